//! What changes in the state of a pair, for whoever keeps account of it.

use std::time::Duration;

use auth_ebpf_abi::AuthKey;

use super::event::{Failure, Refused};
use super::record::Record;

/// A change of a pair's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has an entry now. The record says what for.
    Authenticated(Record),
    /// Its entry stands and is to stand for longer.
    Renewed(Record),
    /// Its entry is gone.
    Ended(AuthKey, Cause),
    /// A handshake that we began has failed: the first since it was well, or for another reason than the last.
    Failing {
        /// The pair.
        key: AuthKey,
        /// Why.
        failure: Failure,
        /// When the next try is due, from now.
        pause: Duration,
    },
    /// A handshake that the other node began was not recorded.
    Refused(AuthKey, Refused),
}

/// Why an entry has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// One of the two SVIDs has expired.
    Expired,
    /// An SVID on this node was withdrawn.
    Withdrawn,
    /// The other node has taken its identity back.
    PeerRevoked,
    /// The other node no longer announces its identity.
    NotAnnounced,
    /// The other node vouches under another epoch than before.
    Epoch,
    /// The certificate that proved it rests on an anchor that is trusted no longer.
    Untrusted,
    /// Policy asks for it no longer, or cluster state has its identity or node there no longer.
    NotDesired,
    /// People wanted it.
    Flushed,
    /// It could not be written to the map.
    NotWritten,
}

impl Cause {
    /// The word for logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Withdrawn => "withdrawn",
            Self::PeerRevoked => "peer_revoked",
            Self::NotAnnounced => "not_announced",
            Self::Epoch => "epoch",
            Self::Untrusted => "untrusted",
            Self::NotDesired => "not_desired",
            Self::Flushed => "flushed",
            Self::NotWritten => "not_written",
        }
    }
}
