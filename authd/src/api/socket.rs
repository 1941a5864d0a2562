//! The unix socket that the interface is served on: only its owner may open it, a stale one is replaced,
//! a live one never.

use std::{
    fs::{self, File, Permissions, TryLockError},
    io::{self, ErrorKind},
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::{info, warn};

use super::{
    server::{Service, Source},
    v1::authd_server::AuthdServer,
};

/// Serves `source` on `socket` until `shutdown` is cancelled.
///
/// # Errors
/// If the socket can't be had, or serving fails.
pub async fn serve(
    socket: &Path,
    source: Arc<dyn Source>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    Listener::bind(socket)?.serve(source, shutdown).await
}

/// Why the interface can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is no socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The transport has failed.
    #[error("serving the API on {}: {source}", socket.display())]
    Transport {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
}

/// Why there is no socket to serve on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another daemon serves there.
    #[error("another authd serves the API on {}: stop it, or set --api-socket to another path", .0.display())]
    InUse(PathBuf),
    /// A file that is no socket is in the way.
    #[error("{} is not a socket: remove it, or set --api-socket to another path", .0.display())]
    NotASocket(PathBuf),
    /// The file system says no.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A bound socket. Its file goes when this is dropped, unless somebody else's has taken its place.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    file: SocketFile,
}

impl Listener {
    /// Binds `socket` with mode 0600, in a directory that is made if it is missing. What a daemon that has
    /// died left there is replaced.
    ///
    /// # Errors
    /// If another daemon serves there, something else is in the way, or the file system says no.
    pub fn bind(socket: &Path) -> Result<Self, ListenError> {
        if let Some(directory) = socket.parent() {
            fs::create_dir_all(directory).map_err(io_error("create the directory", directory))?;
        }
        // Held as long as the socket is served: two daemons that start at once can't both find it stale.
        let lock = lock(socket)?;
        refuse_live(socket)?;

        // Under another name until the mode is right: nobody can connect in between.
        let new = with_suffix(socket, ".new");
        if let Err(error) = fs::remove_file(&new)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(io_error("remove", &new)(error));
        }
        let listener = UnixListener::bind(&new).map_err(io_error("bind", &new))?;
        fs::set_permissions(&new, Permissions::from_mode(0o600))
            .map_err(io_error("set the mode of", &new))?;
        let inode = fs::symlink_metadata(&new).map_err(io_error("look at", &new))?.ino();
        fs::rename(&new, socket).map_err(io_error("put the new socket at", socket))?;
        Ok(Self { listener, file: SocketFile { path: socket.to_owned(), inode, _lock: lock } })
    }

    /// Serves `source` until `shutdown` is cancelled. Requests under way are answered, streams end.
    ///
    /// # Errors
    /// If the transport fails.
    pub async fn serve(self, source: Arc<dyn Source>, shutdown: CancellationToken) -> Result<(), ServeError> {
        let Self { listener, file } = self;
        info!(socket = %file.path.display(), "serving the API");
        let service = AuthdServer::new(Service::new(source, shutdown.clone()));
        Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.cancelled_owned())
            .await
            .map_err(|source| ServeError::Transport { socket: file.path.clone(), source })
    }
}

/// The socket's file, and the lock beside it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
    _lock: File,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode)
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!(socket = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

fn lock(socket: &Path) -> Result<File, ListenError> {
    let path = with_suffix(socket, ".lock");
    let file = File::create(&path).map_err(io_error("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ListenError::InUse(socket.to_owned())),
        Err(TryLockError::Error(error)) => Err(io_error("lock", &path)(error)),
    }
}

/// Refuses a path at which something is that may not be replaced.
fn refuse_live(socket: &Path) -> Result<(), ListenError> {
    match fs::symlink_metadata(socket) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("look at", socket)(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket(socket.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(socket) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("connect to", socket)(error)),
        Ok(_) => Err(ListenError::InUse(socket.to_owned())),
    }
}

fn with_suffix(socket: &Path, suffix: &str) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ListenError {
    move |source| ListenError::Io { action, path: path.to_owned(), source }
}
