//! Connections to SPIRE's unix sockets, and errors that name the socket and the way out.
//!
//! No HTTP/2 keepalive: the agent cuts connections that ping more often than every five minutes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

/// How long connecting and each unary call may take.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// Why an API behind a unix socket could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// No such file.
    #[error("no socket at {}: check the path, and that the process behind it runs", path.display())]
    Missing {
        /// The socket.
        path: PathBuf,
    },
    /// Another kind of file.
    #[error("{} is not a socket: check the path", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// A socket file that nobody listens on.
    #[error("nobody listens on {}: the process behind it is not running", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
    },
    /// File permissions.
    #[error("no permission to connect to {}: check the user this process runs as", path.display())]
    Forbidden {
        /// The socket.
        path: PathBuf,
    },
    /// Any other failure to connect.
    #[error("cannot connect to {}: {reason}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Whoever listens does not recognise this process, or does not allow it to ask.
    #[error("not authorized at {}: {reason}", path.display())]
    NotAuthorized {
        /// The socket.
        path: PathBuf,
        /// What the agent said.
        reason: String,
    },
    /// The wrong API: a Workload API socket configured as admin socket, for example.
    #[error("{} does not serve {api}: is it the right socket?", path.display())]
    WrongApi {
        /// The socket.
        path: PathBuf,
        /// What was asked for.
        api: String,
    },
    /// Connected, but no answer.
    #[error("no answer from {} within {} s: the agent may be stuck", path.display(), deadline.as_secs())]
    Deadline {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        deadline: Duration,
    },
    /// The connection or the stream ended.
    #[error("connection to {} lost: {reason}", path.display())]
    Lost {
        /// The socket.
        path: PathBuf,
        /// What the transport said.
        reason: String,
    },
    /// Any other status.
    #[error("{} answered {code:?}: {reason}", path.display())]
    Status {
        /// The socket.
        path: PathBuf,
        /// The gRPC status code.
        code: Code,
        /// What it said.
        reason: String,
    },
    /// A message that cannot be used.
    #[error("unusable message from {}: {reason}", path.display())]
    Message {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl ApiError {
    pub(crate) fn from_status(path: &Path, api: &str, status: &tonic::Status) -> Self {
        let path = path.to_path_buf();
        let reason = status.message().to_owned();
        // What the client's own transport reports has a cause; what the other side says has none.
        let transport = std::error::Error::source(status).is_some();
        #[expect(clippy::wildcard_enum_match_arm, reason = "the other codes need no treatment of their own")]
        match status.code() {
            Code::PermissionDenied => Self::NotAuthorized { path, reason },
            Code::Unimplemented => Self::WrongApi { path, api: api.to_owned() },
            Code::Unknown | Code::Unavailable | Code::Cancelled => Self::Lost { path, reason },
            _ if transport => Self::Lost { path, reason },
            Code::OutOfRange | Code::Internal => Self::Message { path, reason },
            code => Self::Status { path, code, reason },
        }
    }

    fn from_io(path: &Path, error: &io::Error) -> Self {
        let path = path.to_path_buf();
        #[expect(clippy::wildcard_enum_match_arm, reason = "the other kinds are told as they are")]
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            io::ErrorKind::PermissionDenied => Self::Forbidden { path },
            io::ErrorKind::ConnectionRefused => Self::Refused { path },
            _ => Self::Connect { path, reason: error.to_string() },
        }
    }
}

/// Connects once. The channel does not reconnect by itself: whoever supervises it does, knowingly.
pub(crate) async fn connect(path: &Path) -> Result<Channel, ApiError> {
    let stream = connect_stream(path).await?;
    let slot = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(
            stream.map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)),
        )
    });
    // gRPC wants an authority; what it says is not used on a unix socket.
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|error| ApiError::Connect { path: path.to_path_buf(), reason: error.to_string() })
}

async fn connect_stream(path: &Path) -> Result<UnixStream, ApiError> {
    use std::os::unix::fs::FileTypeExt;
    let connected = tokio::time::timeout(CALL_DEADLINE, UnixStream::connect(path)).await;
    let Ok(connected) = connected else {
        return Err(ApiError::Deadline { path: path.to_path_buf(), deadline: CALL_DEADLINE });
    };
    connected.map_err(|error| {
        let other_file = std::fs::metadata(path).is_ok_and(|metadata| !metadata.file_type().is_socket());
        if other_file {
            ApiError::NotASocket { path: path.to_path_buf() }
        } else {
            ApiError::from_io(path, &error)
        }
    })
}
