//! How a connection lives and ends, as the models have it.

use auth_ebpf_abi::packet::{protocol, tcp as flags};

const SECOND: u64 = 1_000_000_000;

/// What has been seen of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Life {
    seen: u64,
    pub(crate) answered: bool,
    finished: (bool, bool),
    reset: bool,
}

impl Life {
    pub(crate) const fn is_closed(&self) -> bool {
        self.reset || (self.finished.0 && self.finished.1)
    }

    pub(crate) const fn is_alive(&self, protocol: u8, now: u64) -> bool {
        let seconds = match (protocol, self.is_closed(), self.answered) {
            (protocol::TCP, true, _) => 10,
            (protocol::TCP, false, true) => 6 * 3600,
            (protocol::TCP, false, false) => 60,
            _ => 120,
        };
        now < self.seen + seconds * SECOND
    }

    /// Takes in a packet; one without flags is none of TCP's.
    pub(crate) fn record(&mut self, now: u64, flags: Option<u8>, reply: bool) {
        let before = *self;
        let flags = flags.unwrap_or(flags::SYN | flags::ACK);
        let has = |wanted| flags & wanted == wanted;
        self.answered |= reply && has(flags::SYN | flags::ACK);
        self.reset |= has(flags::RST);
        if has(flags::FIN) {
            if reply {
                self.finished.1 = true;
            } else {
                self.finished.0 = true;
            }
        }
        // To a second, but when it ends exactly.
        if *self != before || now - self.seen >= SECOND {
            self.seen = now;
        }
    }
}
