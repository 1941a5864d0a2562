//! Errors of the mesh as its users see them.

use std::{io, path::PathBuf, time::Duration};

use crate::Invalid;

/// Why a mesh cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers at the tunnel's socket.
    #[error("tunnel socket {}: {source}; `authd tunnel --socket {}` must run on this node", socket.display(), socket.display())]
    Unreachable {
        /// The socket's path.
        socket: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The tunnel accepted the connection, but said nothing in time.
    #[error("tunnel socket {}: no answer within {limit:?}; `authd tunnel` hangs or is stopped", socket.display())]
    Timeout {
        /// The socket's path.
        socket: PathBuf,
        /// How long we waited.
        limit: Duration,
    },
    /// Somebody who is neither root nor us holds the socket.
    #[error("tunnel socket {}: held by uid {uid}, expected root or this process' own", socket.display())]
    Stranger {
        /// The socket's path.
        socket: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// The answer is not what the protocol says.
    #[error("tunnel socket {}: unintelligible answer: {problem}; is it the same version of authd?", socket.display())]
    Answer {
        /// The socket's path.
        socket: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The tunnel understood the request and refused it.
    #[error("tunnel refused: {message}{}", field.as_ref().map(|field| format!(" (field {field})")).unwrap_or_default())]
    Refused {
        /// The field at fault.
        field: Option<String>,
        /// Why.
        message: String,
    },
    /// The desired state is wrong in itself.
    #[error("desired mesh: {0}")]
    Invalid(#[from] Invalid),
}
