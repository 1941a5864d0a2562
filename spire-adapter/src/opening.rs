//! How many streams are being opened at a time.

use std::sync::Mutex;
use std::sync::PoisonError;

use tokio::sync::{Semaphore, SemaphorePermit};

/// A burst of about a thousand concurrent opens wedges the agent for good; this many are safe.
const MOST: usize = 64;
/// An agent that lets opens run out of time is asked for no more than this many.
const FEWEST: usize = 4;

/// The places of streams that have not brought anything yet. One that runs out of time costs its place, one that is
/// answered brings one back: else a slow agent would be asked for more than it can do in time, again and again.
#[derive(Debug)]
pub(crate) struct Opening {
    places: Semaphore,
    allowed: Mutex<usize>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Place<'o> {
    opening: &'o Opening,
    /// `None` never, since the semaphore is not closed.
    permit: Option<SemaphorePermit<'o>>,
}

impl Default for Opening {
    fn default() -> Self {
        Self { places: Semaphore::new(MOST), allowed: Mutex::new(MOST) }
    }
}

impl Opening {
    /// Waits for a place.
    pub(crate) async fn place(&self) -> Place<'_> {
        Place { opening: self, permit: self.places.acquire().await.ok() }
    }
}

impl Place<'_> {
    /// The stream has brought its first message.
    pub(crate) fn answered(self) {
        let mut allowed = self.opening.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        if *allowed < MOST {
            *allowed = allowed.saturating_add(1);
            self.opening.places.add_permits(1);
        }
    }

    /// It has run out of time.
    pub(crate) fn unanswered(self) {
        let mut allowed = self.opening.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        if *allowed > FEWEST {
            *allowed = allowed.saturating_sub(1);
            self.permit.into_iter().for_each(SemaphorePermit::forget);
        }
    }
}
