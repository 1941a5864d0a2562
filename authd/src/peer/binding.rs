//! The MAC that binds an identity handshake to the node session under which it runs.
//!
//! HMAC-SHA256 (aws-lc-rs, which compares in constant time), keyed by an exporter of the node session, over
//! this connection's own exporter and all that both ends believe about it. A node that relays a handshake
//! has another session with each end, so the MACs differ; one that answers itself has no SVID of the identity.

use std::sync::Arc;

use auth_ebpf_abi::IdentityNumber;
use aws_lc_rs::hmac;
use spiffe::SpiffeId;
use zeroize::Zeroizing;

use super::authenticator::{Authenticators, Hash};
use super::error::Error;
use super::role::Role;

/// Exporter of the node session that keys the MAC.
const SESSION_LABEL: &[u8] = b"EXPORTER-authd-identity-binding";
/// Exporter of the node session that names it.
const NAME_LABEL: &[u8] = b"EXPORTER-authd-session-name";
/// Exporter of the connection that the MAC covers.
const CONNECTION_LABEL: &[u8] = b"EXPORTER-authd-identity-connection";
/// What the MAC is for.
const CONTEXT: &[u8] = b"authd identity binding 1";

/// Exporter of the node session from which the tunnel's pre-shared key comes.
const PRESHARED_LABEL: &[u8] = b"EXPORTER-authd-wireguard-psk";

/// Names a session to both its ends; says nothing of its key.
pub(super) type SessionName = [u8; 16];

/// What a node session gives to the handshakes under it.
#[derive(Clone)]
pub(super) struct SessionKey {
    pub(super) name: SessionName,
    key: hmac::Key,
    /// What the tunnel's pre-shared key is made from.
    pub(super) preshared: Arc<Zeroizing<[u8; 32]>>,
    /// What proofs of identities over the session are made and verified by.
    pub(super) authenticators: Arc<Authenticators>,
}

impl SessionKey {
    /// From the exporter of a node session, as `export(output, label)`, and the hash of its cipher suite.
    pub(super) fn new(
        hash: Hash,
        export: impl Fn(&mut [u8], &[u8]) -> Result<(), rustls::Error>,
    ) -> Result<Self, Error> {
        let mut key = Zeroizing::new([0; 32]);
        let mut preshared = Zeroizing::new([0; 32]);
        let mut name = [0; 16];
        export(&mut key[..], SESSION_LABEL).map_err(no_exporter)?;
        export(&mut preshared[..], PRESHARED_LABEL).map_err(no_exporter)?;
        export(&mut name, NAME_LABEL).map_err(no_exporter)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key[..]);
        let authenticators = Arc::new(Authenticators::new(hash, export).map_err(no_exporter)?);
        Ok(Self { name, key, preshared: Arc::new(preshared), authenticators })
    }
}

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionKey").finish_non_exhaustive()
    }
}

/// One end of a handshake as both see it.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) identity: IdentityNumber,
    pub(super) spiffe_id: SpiffeId,
    pub(super) leaf_hash: [u8; 32],
}

/// What the MACs of one connection cover.
pub(super) struct Transcript {
    connection: Zeroizing<[u8; 32]>,
    client: End,
    server: End,
}

impl Transcript {
    /// From the exporter of the handshake's connection.
    pub(super) fn new(
        export: impl Fn(&mut [u8], &[u8]) -> Result<(), rustls::Error>,
        client: End,
        server: End,
    ) -> Result<Self, Error> {
        let mut connection = Zeroizing::new([0; 32]);
        export(&mut connection[..], CONNECTION_LABEL).map_err(no_exporter)?;
        Ok(Self { connection, client, server })
    }

    pub(super) fn mac(&self, key: &SessionKey, role: Role) -> Vec<u8> {
        hmac::sign(&key.key, &self.bytes(role)).as_ref().to_vec()
    }

    pub(super) fn verify(&self, key: &SessionKey, role: Role, mac: &[u8]) -> bool {
        hmac::verify(&key.key, &self.bytes(role), mac).is_ok()
    }

    /// Every part has a fixed length or its length before it, so that no two transcripts give the same bytes.
    fn bytes(&self, role: Role) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(512));
        bytes.extend(CONTEXT);
        bytes.push(role as u8);
        bytes.extend(&self.connection[..]);
        for end in [&self.client, &self.server] {
            let spiffe_id = end.spiffe_id.to_string();
            bytes.extend(end.identity.to_be_bytes());
            bytes.extend(u32::try_from(spiffe_id.len()).unwrap_or(u32::MAX).to_be_bytes());
            bytes.extend(spiffe_id.as_bytes());
            bytes.extend(end.leaf_hash);
        }
        bytes
    }
}

fn no_exporter(error: rustls::Error) -> Error {
    Error::Tls(std::io::Error::other(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exporter(secret: u8) -> impl Fn(&mut [u8], &[u8]) -> Result<(), rustls::Error> {
        move |output, label| {
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &[secret; 32]), label);
            for (to, from) in output.iter_mut().zip(tag.as_ref()) {
                *to = *from;
            }
            Ok(())
        }
    }

    fn end(identity: u32, leaf: u8) -> End {
        let spiffe_id = format!("spiffe://example.test/identity/{identity}").parse().unwrap();
        End { identity, spiffe_id, leaf_hash: [leaf; 32] }
    }

    fn transcript(connection: u8, client: End, server: End) -> Transcript {
        Transcript::new(exporter(connection), client, server).unwrap()
    }

    #[test]
    fn both_ends_of_one_session_and_connection_agree() {
        let [ours, theirs] = [(); 2].map(|()| SessionKey::new(Hash::Sha384, exporter(1)).unwrap());
        assert_eq!(ours.name, theirs.name);
        let [a, b] = [(); 2].map(|()| transcript(2, end(256, 1), end(300, 2)));
        for role in [Role::Client, Role::Server] {
            assert!(b.verify(&theirs, role, &a.mac(&ours, role)));
        }
    }

    #[test]
    fn any_difference_shows() {
        let key = SessionKey::new(Hash::Sha384, exporter(1)).unwrap();
        let ours = transcript(2, end(256, 1), end(300, 2));
        let mac = ours.mac(&key, Role::Client);
        let other_session = SessionKey::new(Hash::Sha384, exporter(9)).unwrap();
        assert!(!ours.verify(&other_session, Role::Client, &mac), "relayed by another node");
        assert!(!ours.verify(&key, Role::Server, &mac), "reflected");
        assert!(!ours.verify(&key, Role::Client, &mac[..31]) && !ours.verify(&key, Role::Client, &[]));
        let others = [
            transcript(3, end(256, 1), end(300, 2)),
            transcript(2, end(257, 1), end(300, 2)),
            transcript(2, end(256, 3), end(300, 2)),
            transcript(2, end(256, 1), end(301, 2)),
            transcript(2, end(256, 1), end(300, 3)),
            transcript(2, end(300, 2), end(256, 1)),
        ];
        for other in others {
            assert!(!other.verify(&key, Role::Client, &mac));
        }
    }

    #[test]
    fn the_key_is_not_shown() {
        let key = SessionKey::new(Hash::Sha384, exporter(1)).unwrap();
        assert_eq!(format!("{key:?}"), "SessionKey { .. }");
    }
}
