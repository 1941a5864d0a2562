//! The pre-shared key of a tunnel, out of the key exchange of the node session that announced its ends.
//!
//! WireGuard alone rests on Curve25519. A node session is X25519MLKEM768 between two SVIDs, so a key that it
//! exports, and that both ends of the tunnel use, makes the tunnel last as long as the session's secrecy does.
//! It covers both SPIFFE IDs, leaf certificates and WireGuard keys, and counts only when the other end has
//! shown that it has the same.

use std::sync::Arc;

use aws_lc_rs::hmac;
use spiffe::SpiffeId;
use wg_mesh::PresharedKey;
use zeroize::Zeroizing;

use super::role::Role;
use super::wire::Preshared;

/// What the exporter's key is used for: the key itself, and its confirmation.
const KEY: &[u8] = b"authd wireguard psk 1 key";
const CONFIRMATION: &[u8] = b"authd wireguard psk 1 confirmation";

/// A WireGuard public key.
type Key = [u8; 32];

/// One end of the session.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) spiffe_id: SpiffeId,
    pub(super) leaf_hash: [u8; 32],
}

/// The other end has another key for the same tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mismatch;

/// What both ends of a session make of it.
pub(super) struct Agreement {
    exported: Arc<Zeroizing<[u8; 32]>>,
    role: Role,
    client: End,
    server: End,
    /// WireGuard keys of client and server for which our confirmation was made.
    tunnel: Option<(Key, Key)>,
}

impl Agreement {
    /// `exported`: the session's exporter. `client` and `server`: who has dialled, and who was.
    pub(super) const fn new(
        exported: Arc<Zeroizing<[u8; 32]>>,
        role: Role,
        client: End,
        server: End,
    ) -> Self {
        Self { exported, role, client, server, tunnel: None }
    }

    /// What to say to the other end when both WireGuard keys are known, once for each pair of them.
    pub(super) fn propose(&mut self, own: Option<Key>, theirs: Option<Key>) -> Option<Preshared> {
        let tunnel = self.in_order(own?, theirs?);
        if self.tunnel == Some(tunnel) {
            return None;
        }
        self.tunnel = Some(tunnel);
        let (client_key, server_key) = tunnel;
        let confirmation = self.confirmation(tunnel, self.role);
        Some(Preshared {
            client_key: client_key.to_vec(),
            server_key: server_key.to_vec(),
            confirmation: confirmation.as_ref().to_vec(),
        })
    }

    /// The key, if the other end has confirmed it; `None` if what it said is of a tunnel that is no more.
    pub(super) fn confirm(&self, said: &Preshared) -> Result<Option<PresharedKey>, Mismatch> {
        let Some(tunnel) = self.tunnel else { return Ok(None) };
        if (said.client_key.as_slice(), said.server_key.as_slice()) != (&tunnel.0[..], &tunnel.1[..]) {
            return Ok(None);
        }
        let bytes = [CONFIRMATION, &[self.role.other() as u8], &self.transcript(tunnel)].concat();
        hmac::verify(&self.key(), &bytes, &said.confirmation).map_err(|_differs| Mismatch)?;
        let tag = hmac::sign(&self.key(), &[KEY, &[0], &self.transcript(tunnel)].concat());
        let mut secret = Zeroizing::new([0; 32]);
        for (to, from) in secret.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        Ok(Some(PresharedKey::new(secret)))
    }

    fn confirmation(&self, tunnel: (Key, Key), role: Role) -> hmac::Tag {
        hmac::sign(&self.key(), &[CONFIRMATION, &[role as u8], &self.transcript(tunnel)].concat())
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.exported[..])
    }

    const fn in_order(&self, own: Key, theirs: Key) -> (Key, Key) {
        match self.role {
            Role::Client => (own, theirs),
            Role::Server => (theirs, own),
        }
    }

    /// Every part has a fixed length or its length before it.
    fn transcript(&self, (client_key, server_key): (Key, Key)) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512);
        for (end, key) in [(&self.client, client_key), (&self.server, server_key)] {
            let spiffe_id = end.spiffe_id.to_string();
            bytes.extend(u32::try_from(spiffe_id.len()).unwrap_or(u32::MAX).to_be_bytes());
            bytes.extend(spiffe_id.as_bytes());
            bytes.extend(end.leaf_hash);
            bytes.extend(key);
        }
        bytes
    }
}

impl std::fmt::Debug for Agreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agreement").field("role", &self.role).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Key = [1; 32];
    const SERVER: Key = [2; 32];

    fn end(name: &str, leaf: u8) -> End {
        let spiffe_id = format!("spiffe://example.test/authd/node/{name}").parse().unwrap();
        End { spiffe_id, leaf_hash: [leaf; 32] }
    }

    fn agreement(secret: u8, role: Role, client: End, server: End) -> Agreement {
        Agreement::new(Arc::new(Zeroizing::new([secret; 32])), role, client, server)
    }

    fn ends(secret: u8) -> (Agreement, Agreement) {
        let end = |role| agreement(secret, role, end("n1", 1), end("n2", 2));
        (end(Role::Client), end(Role::Server))
    }

    #[test]
    fn both_ends_come_to_the_same_key_once_both_have_confirmed() {
        let (mut client, mut server) = ends(7);
        assert_eq!(client.propose(Some(CLIENT), None), None, "its key is not known yet");
        let from_client = client.propose(Some(CLIENT), Some(SERVER)).unwrap();
        assert_eq!(server.confirm(&from_client), Ok(None), "not proposed here yet");
        let from_server = server.propose(Some(SERVER), Some(CLIENT)).unwrap();
        let key = client.confirm(&from_server).unwrap().unwrap();
        assert_eq!(server.confirm(&from_client).unwrap().unwrap(), key);
        assert_eq!(client.propose(Some(CLIENT), Some(SERVER)), None, "said once");
    }

    #[test]
    fn another_tunnel_or_session_has_another_key() {
        let key = |secret, client_key, server_key| {
            let (mut client, mut server) = ends(secret);
            client.propose(Some(client_key), Some(server_key)).unwrap();
            client.confirm(&server.propose(Some(server_key), Some(client_key)).unwrap()).unwrap().unwrap()
        };
        let first = key(7, CLIENT, SERVER);
        for other in
            [key(8, CLIENT, SERVER), key(7, [3; 32], SERVER), key(7, CLIENT, [3; 32]), key(7, SERVER, CLIENT)]
        {
            assert_ne!(other, first);
        }
    }

    #[test]
    fn what_differs_or_comes_back_confirms_nothing() {
        let (mut client, mut server) = ends(7);
        let own = client.propose(Some(CLIENT), Some(SERVER)).unwrap();
        assert_eq!(client.confirm(&own), Err(Mismatch), "reflected");
        let theirs = server.propose(Some(SERVER), Some(CLIENT)).unwrap();
        let cut = Preshared { confirmation: theirs.confirmation[..31].to_vec(), ..theirs.clone() };
        assert_eq!(client.confirm(&cut), Err(Mismatch));
        for (client_end, server_end) in [(end("n1", 9), end("n2", 2)), (end("n1", 1), end("n3", 2))] {
            let mut other = agreement(7, Role::Server, client_end, server_end);
            let said = other.propose(Some(SERVER), Some(CLIENT)).unwrap();
            assert_eq!(client.confirm(&said), Err(Mismatch));
        }
        // Of a tunnel that is no more: another word will come.
        client.propose(Some([5; 32]), Some(SERVER)).unwrap();
        assert_eq!(client.confirm(&theirs), Ok(None));
    }
}
