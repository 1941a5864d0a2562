//! What goes into the machine and what comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use auth_ebpf_abi::{AuthEntry, AuthKey, AuthType, IdentityNumber, NodeNumber, identity};
use policy::AuthenticationPairs;
use spiffe::SpiffeId;

use super::record::Method;
use crate::clock::BootTime;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A packet of this pair lacks its authentication.
    AuthWanted(AuthKey),
    /// A handshake or local verification that [`Action`] asked for has ended, one way or the other.
    Finished(AuthKey, Result<Success, Failure>),
    /// This identity of ours has a valid SVID from now until `expires`.
    SvidChanged {
        /// The identity.
        identity: IdentityNumber,
        /// Its SVID's NotAfter.
        expires: BootTime,
    },
    /// This identity's SVID is missing, which may be a gap: nothing new starts, nothing that stands goes.
    SvidMissing(IdentityNumber),
    /// This identity's SVID has been withdrawn: what rests on it goes.
    SvidWithdrawn(IdentityNumber),
    /// An anchor by which this identity of ours verified its peers is trusted no longer, before its time. What may
    /// rest on it has to be proven anew, soon, or goes.
    AnchorLost(IdentityNumber),
    /// A node's session is up, or what it announces there has changed. What it announces is complete.
    PeerUp {
        /// The node.
        node: NodeNumber,
        /// Its session epoch; another one than before revokes all that it vouched for.
        epoch: u32,
        /// The identities that it vouches for.
        identities: Arc<BTreeSet<IdentityNumber>>,
    },
    /// A node's session is lost. Entries stay: they end with the SVIDs.
    PeerDown(NodeNumber),
    /// A node says that this identity of its has lost its SVID.
    PeerRevoked {
        /// The node.
        node: NodeNumber,
        /// The identity.
        identity: IdentityNumber,
    },
    /// What may be authenticated has changed.
    Desired(Arc<Desired>),
    /// The map refused this entry: it does not stand there.
    WriteFailed(AuthKey),
    /// People want everything to authenticate anew.
    Flush,
    /// Time has passed.
    Tick,
}

/// What may be authenticated: by policy, and by where the identities run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Pairs for which some policy requires it, in either order; `None` for all.
    pub pairs: Option<AuthenticationPairs>,
    /// Which identities run where, by cluster state; 0 is this node.
    pub placed: BTreeMap<NodeNumber, BTreeSet<IdentityNumber>>,
}

impl Desired {
    /// Pairs that may have an entry and that this node is to authenticate ahead of traffic, at most so many. Of two
    /// nodes the one with the smaller identity does it.
    pub(super) fn ahead(&self, most: usize) -> BTreeSet<AuthKey> {
        let mut keys = BTreeSet::new();
        let Some(pairs) = self.pairs.as_ref().filter(|_| most > 0) else { return keys };
        let mut nodes: BTreeMap<IdentityNumber, Vec<NodeNumber>> = BTreeMap::new();
        for (node, identities) in &self.placed {
            for identity in identities {
                nodes.entry(*identity).or_default().push(*node);
            }
        }
        for local in self.placed.get(&0).into_iter().flatten().copied() {
            let asked: BTreeSet<IdentityNumber> = pairs.remotes(local).collect();
            let is_asked =
                |remote: &IdentityNumber| asked.contains(&identity::UNKNOWN) || asked.contains(remote);
            for (remote, on) in nodes.range(local..).filter(|(remote, _)| is_asked(remote)) {
                for node in on {
                    if keys.len() >= most {
                        return keys;
                    }
                    let auth_type = AuthType::Spire as u8;
                    keys.insert(AuthKey { local, remote: *remote, node: *node, auth_type, pad: 0 });
                }
            }
        }
        keys
    }

    /// Whether this pair may have an entry.
    #[must_use]
    pub fn allows(&self, key: &AuthKey) -> bool {
        let runs =
            |node: NodeNumber, identity| self.placed.get(&node).is_some_and(|on| on.contains(&identity));
        let required = self.pairs.as_ref().is_none_or(|pairs| {
            pairs.contains(key.local, key.remote) || pairs.contains(key.remote, key.local)
        });
        required && runs(0, key.local) && runs(key.node, key.remote)
    }
}

/// What a completed handshake has proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The earlier NotAfter of the two SVIDs.
    pub expires: BootTime,
    /// SPIFFE ID of the identity here.
    pub local_spiffe: SpiffeId,
    /// SPIFFE ID of the other identity.
    pub remote_spiffe: SpiffeId,
    /// Key exchange group of the TLS session; empty for a pair on one node.
    pub group: &'static str,
    /// Session epoch of the other node under which the handshake was bound; 0 for a pair on one node.
    pub epoch: u32,
    /// How it was proven.
    pub method: Method,
}

/// A handshake that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Success {
    /// What it has proven.
    pub proof: Proof,
    /// How long it took.
    pub latency: Duration,
}

/// A handshake that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Why, in a word for metrics and logs.
    pub reason: &'static str,
    /// Whether trying again soon may help.
    pub retryable: bool,
}

/// A handshake that the other node began and that has proven all it must, but is not recorded yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The pair, seen from here.
    pub key: AuthKey,
    /// When the connection came in: a loss since then voids it.
    pub began: BootTime,
    /// What it has proven.
    pub success: Success,
}

/// Why the machine does not record a handshake that the other node began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Refused {
    /// Policy does not ask for it, or the identity is not known to run there.
    #[error("no policy asks for this pair, or its identities are not known to run there")]
    NotDesired,
    /// The identity here has no SVID.
    #[error("the identity here has no valid SVID")]
    NoSvid,
    /// The other node does not vouch for its identity, or has no session.
    #[error("the node does not announce this identity on a live session")]
    NotAnnounced,
    /// One of the SVIDs went while the handshake ran, or has expired.
    #[error("an SVID was lost while the handshake ran")]
    Overtaken,
    /// Too many pairs.
    #[error("no room for another pair")]
    Full,
}

impl Refused {
    /// The word for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotDesired => "not_desired",
            Self::NoSvid => "no_svid",
            Self::NotAnnounced => "not_announced",
            Self::Overtaken => "overtaken",
            Self::Full => "full",
        }
    }
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Dial the other node for this pair; answer with [`Event::Finished`].
    StartHandshake(AuthKey),
    /// Verify both SVIDs of this pair here; answer with [`Event::Finished`].
    VerifyLocal(AuthKey),
    /// Write the entry.
    WriteEntry(AuthKey, AuthEntry),
    /// Remove the entry.
    RemoveEntry(AuthKey),
    /// Nothing need wait for this pair: one of its SVIDs has been taken back.
    GiveUp(AuthKey),
    /// Tell the node that this identity of ours has lost its SVID.
    TellPeer {
        /// The node.
        node: NodeNumber,
        /// The identity.
        identity: IdentityNumber,
    },
}
