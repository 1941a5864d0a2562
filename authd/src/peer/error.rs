//! Why a session or handshake failed: one enum for logs, metrics and the machine.

use std::io;
use std::net::SocketAddr;

use auth_ebpf_abi::IdentityNumber;
use spiffe::SpiffeId;

use super::wire::WireError;
use crate::auth::{Failure, Refused};

/// Why a session or handshake failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The node is not in the cluster state.
    #[error("node {node} is not in the cluster state, or has no address")]
    UnknownNode {
        /// Name or number.
        node: String,
    },
    /// Cluster state has no such identity, or not there.
    #[error("identity {identity} is not known to run on node {node}")]
    UnknownIdentity {
        /// The identity.
        identity: IdentityNumber,
        /// Name or number of the node.
        node: String,
    },
    /// There is no live session with the node.
    #[error("no live session with node {node}")]
    NoSession {
        /// Name or number.
        node: String,
    },
    /// We have no SVID for this.
    #[error("no valid SVID of {whose}")]
    NoSvid {
        /// An identity, or this node.
        whose: String,
    },
    /// TCP failed.
    #[error("connecting to {address}: {source}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// It took too long.
    #[error("no answer in time during {stage}")]
    Timeout {
        /// What it was at.
        stage: &'static str,
    },
    /// TLS failed for a reason of its own.
    #[error("TLS: {0}")]
    Tls(#[source] io::Error),
    /// The other end's certificate is not what it must be.
    #[error("certificate refused: {0}")]
    Certificate(spire_adapter::Violation),
    /// No TLS configuration can be made.
    #[error("TLS configuration: {0}")]
    Config(#[from] spire_adapter::Error),
    /// The connection's frames are not as they must be.
    #[error(transparent)]
    Wire(WireError),
    /// The other end is a node, but not of this cluster.
    #[error("{spiffe_id} is no node of the cluster state")]
    Stranger {
        /// Who it is.
        spiffe_id: SpiffeId,
    },
    /// The other end announces to be another node than its SVID says.
    #[error("{spiffe_id} announces itself as node {announced:?}")]
    WrongNode {
        /// Who it is.
        spiffe_id: SpiffeId,
        /// Who it says it is.
        announced: String,
    },
    /// The other end is another identity than it says.
    #[error("{spiffe_id} claims identity {claimed}")]
    WrongIdentity {
        /// Who it is.
        spiffe_id: SpiffeId,
        /// Who it says it is.
        claimed: IdentityNumber,
    },
    /// The other end has our own SVID: a reflection, or a stolen key.
    #[error("{spiffe_id}, which is this node, dialled us")]
    OwnSvid {
        /// Ours.
        spiffe_id: SpiffeId,
    },
    /// Both nodes dialled at once, and the dial of the one with the lower SPIFFE ID has won.
    #[error("node {node} has dialled at the same time, and its session counts")]
    Crossed {
        /// Its name.
        node: String,
    },
    /// The node's certificate may rest on an anchor that is trusted no longer.
    #[error("an anchor has left the trust bundle; node {node} has to prove itself anew")]
    AnchorLost {
        /// Its name.
        node: String,
    },
    /// It speaks an older protocol than any that we know.
    #[error("protocol version {version} is not supported")]
    Version {
        /// Its version.
        version: u32,
    },
    /// The WireGuard key is ours or another node's.
    #[error("node {node} announces a WireGuard key that belongs to {owner}")]
    KeyConflict {
        /// Who announces it.
        node: String,
        /// Whose it is.
        owner: String,
    },
    /// The handshake is not bound to the session: the MAC differs. It may have been relayed.
    #[error("the handshake with identity {identity} is not bound to the node's session")]
    NotBound {
        /// The other identity.
        identity: IdentityNumber,
    },
    /// What should prove an identity over the node's session does not: it may have been relayed or replayed.
    #[error("the proof of identity {identity} is refused: {reason}")]
    NotProven {
        /// The identity.
        identity: IdentityNumber,
        /// What is wrong with it.
        reason: String,
    },
    /// One of the SVIDs of a pair is another one than the node says that asks for it. It may have been renewed
    /// meanwhile.
    #[error("identity {identity} has another SVID than the pair was asked for with")]
    SvidChanged {
        /// The identity.
        identity: IdentityNumber,
    },
    /// The SVID's chain does not fit into a message of the session.
    #[error("the chain of identity {identity} is too long for a proof over the session")]
    TooLarge {
        /// The identity.
        identity: IdentityNumber,
    },
    /// An identity's proof, for which another pair has waited as well, has failed.
    #[error("no proof of identity {identity}: {reason}", reason = .failure.reason)]
    NoProof {
        /// The identity.
        identity: IdentityNumber,
        /// Why.
        failure: Failure,
    },
    /// The other end has another pre-shared key for the same tunnel.
    #[error("node {node} has another pre-shared key for the tunnel")]
    Preshared {
        /// Its name.
        node: String,
    },
    /// The machine did not record it.
    #[error("not recorded: {0}")]
    NotRecorded(#[from] Refused),
    /// The other end refused, with its word for it.
    #[error("refused by the other node: {reason}")]
    RefusedByPeer {
        /// Its word, out of ours.
        reason: &'static str,
    },
    /// The ClientHello has neither protocol or asks for no identity of ours.
    #[error("the client asks for nothing that is here")]
    NotHere,
    /// Another protocol was negotiated than the one that was dialled for, or none.
    #[error("the other end did not agree on the protocol")]
    Protocol,
    /// No room for another connection.
    #[error("too many connections are being set up")]
    Busy,
}

impl Error {
    /// The word for metrics, logs and the other end.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::UnknownNode { .. } => "unknown_node",
            Self::UnknownIdentity { .. } => "unknown_identity",
            Self::NoSession { .. } => "no_session",
            Self::NoSvid { .. } => "no_svid",
            Self::Connect { .. } => "connect",
            Self::Timeout { .. } => "timeout",
            Self::Tls(_) => "tls",
            Self::Certificate(_) => "certificate",
            Self::Config(_) => "tls_config",
            Self::Wire(_) => "wire",
            Self::Stranger { .. } => "stranger",
            Self::WrongNode { .. } => "wrong_node",
            Self::WrongIdentity { .. } => "wrong_identity",
            Self::OwnSvid { .. } => "own_svid",
            Self::Crossed { .. } => "crossed",
            Self::AnchorLost { .. } => "anchor_lost",
            Self::Version { .. } => "version",
            Self::KeyConflict { .. } => "key_conflict",
            Self::NotBound { .. } => "not_bound",
            Self::NotProven { .. } => "not_proven",
            Self::SvidChanged { .. } => "svid_changed",
            Self::TooLarge { .. } => "too_large",
            Self::NoProof { failure, .. } => failure.reason,
            Self::Preshared { .. } => "preshared",
            Self::NotRecorded(refused) => refused.as_str(),
            Self::RefusedByPeer { reason } => reason,
            Self::NotHere => "not_here",
            Self::Protocol => "protocol",
            Self::Busy => "busy",
        }
    }

    /// Whether trying again soon may help.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        if let Self::NoProof { failure, .. } = self {
            return failure.retryable;
        }
        !matches!(
            self,
            Self::Certificate(_)
                | Self::Config(_)
                | Self::Stranger { .. }
                | Self::WrongNode { .. }
                | Self::WrongIdentity { .. }
                | Self::OwnSvid { .. }
                | Self::Version { .. }
                | Self::KeyConflict { .. }
                | Self::NotBound { .. }
                | Self::NotProven { .. }
        )
    }

    /// An error of a TLS stream: what its verifier said, or what rustls did.
    pub(super) fn tls(error: io::Error) -> Self {
        match spire_adapter::tls::violation_of_io(&error) {
            Some(violation) => Self::Certificate(violation.clone()),
            None => Self::Tls(error),
        }
    }

    /// What the machine needs to know of it.
    pub(super) const fn failure(&self) -> Failure {
        Failure { reason: self.as_str(), retryable: self.retryable() }
    }
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Self {
        match error {
            // A server that refuses our certificate says so in an alert, after our side of TLS is done.
            WireError::Io(error) => Self::tls(error),
            WireError::TooLong { .. }
            | WireError::Garbage(_)
            | WireError::Unexpected { .. }
            | WireError::Closed => Self::Wire(error),
        }
    }
}

/// Our word for what the other end says; what it says is not believed to be a word.
pub(super) fn known_reason(said: &str) -> &'static str {
    const KNOWN: [&str; 18] = [
        "unknown_node",
        "unknown_identity",
        "no_session",
        "no_svid",
        "wire",
        "wrong_identity",
        "not_bound",
        "not_desired",
        "not_announced",
        "overtaken",
        "full",
        "timeout",
        "busy",
        "certificate",
        "not_proven",
        "svid_changed",
        "too_large",
        "version",
    ];
    KNOWN.into_iter().find(|known| *known == said).unwrap_or("refused")
}
