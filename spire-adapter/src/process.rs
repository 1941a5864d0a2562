//! Processes for which SVIDs are asked. Agents never notice that one has ended: so each is held by a pidfd, which
//! ends its stream.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::ApiError;
use crate::snapshot::{Heard, Message};
use crate::stream::Agent;

/// A process that cannot be taken for that of a later one with the same number.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// The process that has this number now. Must be called within a tokio runtime.
    pub fn open(pid: i32) -> io::Result<Self> {
        let number = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(number, PidfdFlags::NONBLOCK)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for types that own no descriptor as OwnedFd does"
        )]
        let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
        Ok(Self { pid, pidfd })
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&self) -> bool {
        let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
        // An error says nothing of the process, which is then not known to live.
        poll(&mut ended, Some(&Timespec::default())) == Ok(0)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits until it has ended.
    async fn ended(&self) {
        // An error says nothing of the process, which is then not known to live.
        drop(self.pidfd.readable().await);
    }

    /// Follows its stream for as long as it lives; then what it had is withdrawn, and stays so until nobody listens.
    pub(crate) async fn follow(
        self,
        agent: &Agent,
        sink: mpsc::Sender<Heard<Message>>,
        stream: impl Future<Output = ()>,
    ) {
        tokio::select! {
            () = stream => return,
            () = self.ended() => {}
        }
        let gone = ApiError::ProcessEnded { path: agent.path().to_path_buf(), pid: self.pid };
        if sink.send(Heard::Denied(gone)).await.is_ok() {
            sink.closed().await;
        }
    }
}
