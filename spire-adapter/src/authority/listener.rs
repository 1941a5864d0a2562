//! Unix sockets of the authority: made in directories of their own, private from the first moment, replaced only
//! where nobody listens, and removed at the end.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixSocket};
use tokio::task::JoinHandle;
use tokio_stream::Stream;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tracing::error;

use super::{AuthorityError, path_error};

const BACKLOG: u32 = 1024;

/// A bound socket. Dropped, it takes its file with it.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    file: SocketFile,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Socket {
    pub(crate) fn bind(path: &Path) -> Result<Self, AuthorityError> {
        let failed = |error: io::Error| path_error(path, &error);
        if let Some(parent) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(|error| path_error(parent, &error))?;
        }
        remove_stale(path)?;
        let socket = UnixSocket::new_stream().map_err(failed)?;
        socket.bind(path).map_err(failed)?;
        // Nobody can connect before the socket listens, so that it is never open to others.
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
        let inode = fs::metadata(path).map_err(failed)?.ino();
        let listener = socket.listen(BACKLOG).map_err(failed)?;
        Ok(Self { listener, file: SocketFile { path: path.to_path_buf(), inode } })
    }

    /// Serves until `stop`; open streams must end by it themselves.
    pub(crate) fn serve(self, routes: Routes, stop: CancellationToken) -> JoinHandle<()> {
        self.serve_admitted(routes, stop, UnixListenerStream::new)
    }

    /// The same for the connections that `admit` lets through.
    pub(crate) fn serve_admitted<S, C>(
        self,
        routes: Routes,
        stop: CancellationToken,
        admit: impl FnOnce(UnixListener) -> S,
    ) -> JoinHandle<()>
    where
        S: Stream<Item = io::Result<C>> + Send + 'static,
        C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let Self { listener, file } = self;
        let connections = admit(listener);
        tokio::spawn(async move {
            let served = tonic::transport::Server::builder()
                .add_routes(routes)
                .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
                .await;
            if let Err(error) = served {
                error!(path = %file.path.display(), %error, "socket no longer served");
            }
            drop(file);
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process may have taken the path meanwhile: only our own file goes.
        let ours = fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            error!(path = %self.path.display(), %error, "socket not removed");
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), AuthorityError> {
    match UnixStream::connect(path) {
        Ok(_) => Err(AuthorityError::InUse { path: path.to_path_buf() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && is_socket(path) => {
            fs::remove_file(path).map_err(|error| path_error(path, &error))
        }
        Err(error) => Err(path_error(path, &error)),
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}
