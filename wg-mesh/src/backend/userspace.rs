//! Client of the tunnel process: one connection a request, so a restarted tunnel is simply found again.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::geteuid;
use tokio::{
    io::{AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time::timeout,
};

use zeroize::Zeroizing;

use crate::{
    Applied, Backend, Desired, Error, Status,
    protocol::{MAX_RESPONSE, Request, Response, Verb, read_frame},
};

/// A tunnel answers from memory; what takes longer hangs.
const LIMIT: Duration = Duration::from_secs(5);

/// The userspace device behind a tunnel process' control socket.
#[derive(Debug, Clone)]
pub struct Userspace {
    socket: PathBuf,
}

impl Userspace {
    /// A client of the tunnel that listens at `socket`. Connects when it is asked something.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The control socket's path.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends the tunnel process; with `remove_device` its interface goes as well, otherwise it stays with
    /// its routes and programs and drops what is sent into it.
    ///
    /// # Errors
    /// When the tunnel cannot be reached.
    pub async fn shutdown(&self, remove_device: bool) -> Result<(), Error> {
        let request = Request { remove_device, ..Request::new(Verb::Shutdown) };
        self.call(&request).await.map(|_response| ())
    }

    async fn call(&self, request: &Request) -> Result<Response, Error> {
        let answer = timeout(LIMIT, self.exchange(request)).await;
        let response =
            answer.map_err(|_elapsed| Error::Timeout { socket: self.socket.clone(), limit: LIMIT })??;
        match response.error {
            Some(refusal) => Err(Error::Refused { field: refusal.field, message: refusal.message }),
            None => Ok(response),
        }
    }

    async fn exchange(&self, request: &Request) -> Result<Response, Error> {
        let unreachable = |source| Error::Unreachable { socket: self.socket.clone(), source };
        let mut stream = UnixStream::connect(&self.socket).await.map_err(unreachable)?;
        let uid = stream.peer_cred().map_err(unreachable)?.uid();
        if uid != 0 && uid != geteuid().as_raw() {
            return Err(Error::Stranger { socket: self.socket.clone(), uid });
        }
        // It may have secrets in it.
        let mut frame = Zeroizing::new(serde_json::to_vec(request).map_err(|error| self.answer(&error))?);
        frame.push(b'\n');
        let (reader, mut writer) = stream.split();
        // The tunnel may refuse and close before it has read all of it: then its answer counts.
        let written = writer.write_all(&frame).await;
        match read_frame(&mut BufReader::new(reader), &mut frame, MAX_RESPONSE).await {
            Ok(true) => serde_json::from_slice(&frame).map_err(|error| self.answer(&error)),
            Ok(false) => {
                Err(unreachable(written.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())))
            }
            Err(error) => Err(unreachable(error)),
        }
    }

    fn answer(&self, problem: &impl ToString) -> Error {
        Error::Answer { socket: self.socket.clone(), problem: problem.to_string() }
    }
}

impl Backend for Userspace {
    async fn status(&self) -> Result<Status, Error> {
        let response = self.call(&Request::new(Verb::Status)).await?;
        response.status.ok_or_else(|| self.answer(&"no status in it"))
    }

    async fn apply(&self, desired: &Desired) -> Result<Applied, Error> {
        let request = Request { desired: Some(desired.clone()), ..Request::new(Verb::Apply) };
        let response = self.call(&request).await?;
        response.applied.ok_or_else(|| self.answer(&"it does not say what was applied"))
    }
}
