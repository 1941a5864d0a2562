//! Connections to SPIRE's unix sockets, and errors that name the socket and the way out.
//!
//! No HTTP/2 keepalive: the agent cuts connections that ping more often than every five minutes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{ExpectedPeer, Groups, Snapshot, SpiffeId, State, Svid, tls};

/// How long connecting may take.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// Why an API of SPIRE could not be used.
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
    /// There is no SVID of this process with which to say who it is.
    #[error("no valid SVID of this process with which to authenticate at {}", path.display())]
    NoSvid {
        /// The socket.
        path: PathBuf,
    },
    /// The process whose SVID this was is gone.
    #[error("process {pid} has ended, and with it what {} gave it", path.display())]
    ProcessEnded {
        /// The socket.
        path: PathBuf,
        /// The number it had.
        pid: i32,
    },
    /// SVIDs of others, and none of whom it was asked for.
    #[error("there is an SVID of {given}, and none of {expected}: is it registered under that name?")]
    OtherIdentity {
        /// Whose SVID is wanted.
        expected: String,
        /// Whose there is.
        given: String,
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
    /// Whether it takes calls and answers none: a burst of them has SPIRE's agent stay so until it is restarted,
    /// while streams that are open already go on.
    pub fn is_stuck(&self) -> bool {
        matches!(self, Self::Deadline { .. })
    }

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

/// How a socket is spoken to.
#[derive(Debug)]
pub(crate) enum Dial {
    /// As it is: the kernel says who we are.
    Plain,
    /// By mutual TLS with the SVID of this snapshot, to an agent of the same trust domain.
    Mutual(watch::Receiver<Snapshot>),
}

impl Dial {
    /// The SVID that a connection made now rests on.
    pub(crate) fn svid(&self) -> Option<Svid> {
        match self {
            Self::Plain => None,
            Self::Mutual(own) => own.borrow().svid().cloned(),
        }
    }

    /// Waits until a connection that rests on `svid` should not be used any longer.
    pub(crate) async fn superseded(&self, svid: Option<&Svid>) {
        if let Self::Mutual(own) = self
            && own.clone().wait_for(|own| own.svid() != svid).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    /// What an error before the first message means. In TLS 1.3 the agent refuses us only after the handshake,
    /// by closing, and says nothing of it.
    pub(crate) fn explain(&self, error: ApiError) -> ApiError {
        match (self.svid(), error) {
            (Some(svid), ApiError::Lost { path, .. }) => refused(&path, &svid),
            (_, error) => error,
        }
    }

    /// Connects once, as [`connect`] does.
    pub(crate) async fn connect(&self, path: &Path) -> Result<Channel, ApiError> {
        match self {
            Self::Plain => connect(path).await,
            Self::Mutual(own) => {
                let own = own.borrow().clone();
                connect_mutual(path, &own).await
            }
        }
    }
}

/// The agent's own SPIFFE ID is below this path.
const AGENT_PATH: &str = "/spire/agent";
/// The server's own SPIFFE ID.
const SERVER_PATH: &str = "/spire/server";

async fn connect_mutual(path: &Path, own: &Snapshot) -> Result<Channel, ApiError> {
    let svid = own_svid(path, own)?;
    let agent = ExpectedPeer::PathPrefix(svid.spiffe_id().trust_domain().clone(), AGENT_PATH.to_owned());
    let stream = secured(path, own, agent, connect_stream(path).await?).await?;
    open(path, stream).await.map_err(|_closed| refused(path, svid))
}

/// Connects once to the server at `address`, with the SVID of `own`.
pub(crate) async fn connect_server(address: &str, own: &Snapshot) -> Result<Channel, ApiError> {
    let path = Path::new(address);
    let trust_domain = own_svid(path, own)?.spiffe_id().trust_domain().clone();
    let expected = SpiffeId::new(format!("{}{SERVER_PATH}", trust_domain.id_string()));
    let expected = expected.map_err(|error| failed(path, error.to_string()))?;
    let stream = TcpStream::connect(address).await.map_err(|error| ApiError::from_io(path, &error))?;
    open(path, secured(path, own, ExpectedPeer::Exact(expected), stream).await?).await
}

/// The SVID with which this process says who it is.
fn own_svid<'s>(path: &Path, own: &'s Snapshot) -> Result<&'s Svid, ApiError> {
    own.svid().ok_or_else(|| {
        let path = path.to_path_buf();
        // Who has been taken off the list of identities must not go on as somebody.
        match own.state {
            State::Withdrawn => {
                ApiError::NotAuthorized { path, reason: "the SVID of this process is withdrawn".to_owned() }
            }
            State::Pending | State::Usable(_) | State::Expired => ApiError::NoSvid { path },
        }
    })
}

/// Mutual TLS over `stream`.
async fn secured<S>(
    path: &Path,
    own: &Snapshot,
    expected: ExpectedPeer,
    stream: S,
) -> Result<TlsStream<S>, ApiError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = tls::client_config(own_svid(path, own)?, &own.bundles, expected, b"h2", &Groups::Any.into())
        .map_err(|error| failed(path, error.to_string()))?;
    // SPIRE goes by SPIFFE IDs and looks at no name.
    let name = ServerName::try_from("spire").map_err(|error| failed(path, error.to_string()))?;
    let connected = TlsConnector::from(config).connect(name, stream).await;
    connected.map_err(|error| failed(path, format!("TLS: {error}")))
}

fn failed(path: &Path, reason: String) -> ApiError {
    ApiError::Connect { path: path.to_path_buf(), reason }
}

fn refused(path: &Path, svid: &Svid) -> ApiError {
    let id = svid.spiffe_id();
    failed(path, format!("closed by the agent after the TLS handshake: is {id} among its brokers?"))
}

/// Connects once. The channel does not reconnect by itself: whoever supervises it does, knowingly.
pub(crate) async fn connect(path: &Path) -> Result<Channel, ApiError> {
    open(path, connect_stream(path).await?).await
}

async fn open<S>(path: &Path, stream: S) -> Result<Channel, ApiError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
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
