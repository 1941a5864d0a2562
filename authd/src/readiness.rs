//! What `/readyz` answers: everything that the daemon still waits for, or has lost, by name.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// The conditions for being ready. Cheap to clone; all clones share one state.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    waiting: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl Readiness {
    /// A readiness that waits for nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Not ready any more, for `reason`.
    pub fn wait_for(&self, condition: &'static str, reason: impl Into<String>) {
        self.lock().insert(condition, reason.into());
    }

    /// The condition holds.
    pub fn reached(&self, condition: &'static str) {
        if self.lock().remove(condition).is_some() {
            tracing::info!(condition, "ready condition reached");
        }
    }

    /// Every condition that does not hold, with its reason.
    #[must_use]
    pub fn pending(&self) -> BTreeMap<&'static str, String> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_pending() {
        let readiness = Readiness::new();
        readiness.wait_for("datapath", "programs are not attached");
        let other = readiness.clone();
        assert_eq!(other.pending()["datapath"], "programs are not attached");
        other.reached("datapath");
        assert!(readiness.pending().is_empty());
    }
}
