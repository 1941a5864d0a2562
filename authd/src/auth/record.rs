//! What is known of an authentication that stands in the map.

use std::time::Duration;

use auth_ebpf_abi::AuthKey;
use spiffe::SpiffeId;

use crate::clock::BootTime;

/// One entry of the map, as `authctl auth list` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its key.
    pub key: AuthKey,
    /// SPIFFE ID of the identity here; unknown for an entry found in the map at the start.
    pub local_spiffe: Option<SpiffeId>,
    /// SPIFFE ID of the other identity.
    pub remote_spiffe: Option<SpiffeId>,
    /// When the handshake was done.
    pub established: BootTime,
    /// When it ends: the earlier NotAfter of the two SVIDs.
    pub expires: BootTime,
    /// The node's session epoch under which it was made.
    pub epoch: u32,
    /// Key exchange group of the handshake's TLS, or the session's; empty where there was none.
    pub group: &'static str,
    /// How long the handshake took.
    pub latency: Duration,
    /// How it was proven.
    pub method: Method,
    /// What it was made for.
    pub why: Why,
}

/// How a pair was proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// By a TLS handshake of its own.
    Handshake,
    /// Each identity by itself over the node session.
    Session,
    /// Here, for both identities are.
    Local,
    /// Before the daemon's start.
    Unknown,
}

impl Method {
    /// The word for logs and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Session => "session",
            Self::Local => "local",
            Self::Unknown => "",
        }
    }
}

/// What an entry was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// A packet asked for it.
    Requested,
    /// Its predecessor was to expire.
    Renewed,
    /// The other node asked for it.
    Accepted,
    /// It stood in the map at the start.
    Adopted,
    /// Policy asks for it, and no packet has yet.
    Ahead,
}

impl Why {
    /// The word for logs, metrics and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Renewed => "renewed",
            Self::Accepted => "accepted",
            Self::Adopted => "adopted",
            Self::Ahead => "ahead",
        }
    }
}
