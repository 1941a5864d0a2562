//! The control socket: who may speak, how long a request may be, and no half-read request is acted upon.
//!
//! Connections only parse and relay; the event loop alone touches the device.

use std::{
    fs::Permissions,
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::geteuid;
use tokio::{
    io::{AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::protocol::{MAX_REQUEST, Refusal, Request, Response, Verb, read_frame};

/// Connections served at once; the next are refused with words.
const CONNECTIONS: usize = 16;
/// How long a client may take to send a request or to read its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request on its way to the event loop, and the way back.
pub(super) type Call = (Request, oneshot::Sender<Response>);

/// The bound socket; its file goes when this is dropped.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Binds `path` for its owner alone, in place of what a dead tunnel left there.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        // Made under another name and moved, so that it is never seen with other permissions.
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(format!(".{}", std::process::id()));
        let fresh = PathBuf::from(fresh);
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
        std::fs::rename(&fresh, path)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Accepts until it is dropped. Cancels `stop` once a `shutdown` has been answered.
    pub(super) async fn serve(&self, calls: mpsc::Sender<Call>, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Some(_ended) = connections.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let full = connections.len() >= CONNECTIONS;
                        let (calls, stop) = (calls.clone(), stop.clone());
                        connections.spawn(connection(stream, full, calls, stop));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "control socket does not accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "control socket was gone already");
        }
    }
}

async fn connection(mut stream: UnixStream, full: bool, calls: mpsc::Sender<Call>, stop: CancellationToken) {
    let refusal = match stream.peer_cred() {
        Ok(peer) if peer.uid() != 0 && peer.uid() != geteuid().as_raw() => {
            tracing::warn!(uid = peer.uid(), pid = peer.pid(), "refused a control connection");
            Some(format!("uid {} may not control this tunnel", peer.uid()))
        }
        Ok(_) if full => Some(format!("more than {CONNECTIONS} connections")),
        Ok(_) => None,
        Err(error) => Some(format!("who are you? {error}")),
    };
    let ended = match refusal {
        Some(message) => write(&mut stream, &Refusal::new(None, message).into()).await,
        None => serve(&mut stream, &calls, &stop).await,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "control connection ended");
    }
}

async fn serve(
    stream: &mut UnixStream,
    calls: &mpsc::Sender<Call>,
    stop: &CancellationToken,
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    // It may have secrets in it.
    let mut frame = Zeroizing::new(Vec::new());
    loop {
        match timeout(PATIENCE, read_frame(&mut stream, &mut frame, MAX_REQUEST)).await? {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                let message = format!("request is longer than {MAX_REQUEST} bytes");
                return write(stream.get_mut(), &Refusal::new(None, message).into()).await;
            }
            Err(error) => return Err(error),
        }
        let response = match Request::parse(&frame) {
            Ok(request) if request.request == Verb::Shutdown => {
                let response = ask(request, calls).await?;
                let written = write(stream.get_mut(), &response).await;
                stop.cancel();
                return written;
            }
            Ok(request) => ask(request, calls).await?,
            Err(refusal) => {
                tracing::warn!(field = refusal.field, problem = refusal.message, "refused a control request");
                refusal.into()
            }
        };
        write(stream.get_mut(), &response).await?;
    }
}

async fn ask(request: Request, calls: &mpsc::Sender<Call>) -> io::Result<Response> {
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    let (reply, answer) = oneshot::channel();
    calls.send((request, reply)).await.map_err(|_closed| gone())?;
    answer.await.map_err(|_closed| gone())
}

async fn write(stream: &mut UnixStream, response: &Response) -> io::Result<()> {
    let mut frame = serde_json::to_vec(response)?;
    frame.push(b'\n');
    timeout(PATIENCE, stream.write_all(&frame)).await?
}
