//! What is on its way to the other end of a session. It is written as the other end reads, and nobody waits for
//! that: two ends that have much to say to each other would else wait for each other.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::clock::BootTime;
use crate::peer::wire::{self, MAX_FRAME, SessionFrame, SessionMessage, WireError};

/// Bytes beyond which only answers are added.
const ROOM: usize = MAX_FRAME;

/// Frames, and where they go.
pub(super) struct Output {
    to: Box<dyn AsyncWrite + Send + Unpin>,
    waiting: VecDeque<u8>,
    flushed: bool,
    /// When something last went out, or began to wait.
    moved: BootTime,
}

impl Output {
    pub(super) fn new(to: Box<dyn AsyncWrite + Send + Unpin>) -> Self {
        Self { to, waiting: VecDeque::new(), flushed: true, moved: BootTime(0) }
    }

    /// Adds a message to what is to be written.
    pub(super) fn say(&mut self, message: SessionMessage, now: BootTime) -> Result<(), WireError> {
        if self.is_empty() {
            self.moved = now;
        }
        self.waiting.extend(wire::encode(&SessionFrame { message: Some(message) }, MAX_FRAME)?);
        self.flushed = false;
        Ok(())
    }

    /// Nothing is left to be written.
    pub(super) const fn is_empty(&self) -> bool {
        self.flushed
    }

    /// Whether there is room for what can wait elsewhere.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < ROOM
    }

    /// Whether nothing has gone out for so long, although something is to.
    pub(super) const fn is_stuck(&self, now: BootTime, silence: Duration) -> bool {
        !self.is_empty() && now.since(self.moved).as_nanos() > silence.as_nanos()
    }

    /// Something has gone out.
    pub(super) const fn has_moved(&mut self, now: BootTime) {
        self.moved = now;
    }

    /// Writes some of it. Cancelling loses nothing.
    pub(super) async fn write(&mut self) -> Result<(), WireError> {
        if self.waiting.is_empty() {
            self.to.flush().await?;
            self.flushed = true;
            return Ok(());
        }
        match self.to.write_buf(&mut self.waiting).await? {
            0 => Err(WireError::Closed),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::wire::{Ping, ProofRequest, Reader};

    const SILENCE: Duration = Duration::from_secs(6);

    fn large(identity: u32) -> SessionMessage {
        SessionMessage::ProofRequest(ProofRequest { identity, request: vec![7; MAX_FRAME - 100] })
    }

    /// Reads and writes until it has heard that many.
    async fn live(stream: tokio::io::DuplexStream, messages: u32) {
        let (read, write) = tokio::io::split(stream);
        let (mut input, mut output) = (Reader::new(read, MAX_FRAME), Output::new(Box::new(write)));
        for identity in 0..messages {
            output.say(large(identity), BootTime(1)).unwrap();
        }
        let mut heard = 0;
        while heard < messages || !output.is_empty() {
            let is_empty = output.is_empty();
            tokio::select! {
                frame = input.next::<SessionFrame>(), if heard < messages => {
                    assert_eq!(frame.unwrap().message, Some(large(heard)));
                    heard += 1;
                }
                written = output.write(), if !is_empty => written.unwrap(),
            }
        }
    }

    #[tokio::test]
    async fn two_ends_that_say_much_at_once_both_come_to_an_end() {
        let (one, other) = tokio::io::duplex(1000);
        let both = async { tokio::join!(live(one, 16), live(other, 16)) };
        tokio::time::timeout(Duration::from_secs(20), both).await.expect("each waits for the other");
    }

    #[tokio::test]
    async fn who_reads_nothing_leaves_no_room_and_is_found_stuck() {
        let (near, _far) = tokio::io::duplex(100);
        let mut output = Output::new(Box::new(near));
        let ping = || SessionMessage::Ping(Ping { number: u64::MAX });
        assert!(output.is_empty() && output.has_room() && !output.is_stuck(BootTime(u64::MAX), SILENCE));
        let at = |seconds: u64| BootTime(seconds * 1_000_000_000);
        output.say(ping(), at(100)).unwrap();
        assert!(output.has_room() && !output.is_empty());
        output.write().await.unwrap();
        output.write().await.unwrap();
        assert!(output.is_empty());
        output.say(large(1), at(200)).unwrap();
        output.say(large(2), at(203)).unwrap();
        assert!(!output.has_room());
        output.write().await.unwrap();
        output.has_moved(at(204));
        assert!(futures::poll!(Box::pin(output.write())).is_pending());
        assert!(!output.is_stuck(at(210), SILENCE) && output.is_stuck(at(211), SILENCE));
    }

    #[tokio::test]
    async fn what_is_too_long_is_not_said() {
        let (near, _far) = tokio::io::duplex(100);
        let mut output = Output::new(Box::new(near));
        let too_long =
            SessionMessage::ProofRequest(ProofRequest { identity: 1, request: vec![7; MAX_FRAME] });
        assert!(matches!(output.say(too_long, BootTime(1)), Err(WireError::TooLong { .. })));
        assert!(output.is_empty());
    }
}
