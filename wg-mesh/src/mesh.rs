//! The mesh as its owner uses it: say what shall be, again and again.

use crate::{Applied, Backend, Desired, Error, Status, plan};

/// A node's end of the mesh over some backend.
#[derive(Debug)]
pub struct Mesh<B> {
    backend: B,
}

impl<B: Backend> Mesh<B> {
    /// A mesh over `backend`.
    pub const fn new(backend: B) -> Self {
        Self { backend }
    }

    /// The device's state.
    ///
    /// # Errors
    /// When the device cannot be asked.
    pub async fn status(&self) -> Result<Status, Error> {
        self.backend.status().await
    }

    /// Makes the device what `desired` says. Idempotent: touches nothing when it is so already, and notices
    /// by itself when the device has started anew (then [`Applied::public_key`] is another one).
    ///
    /// # Errors
    /// When the device cannot be reached or `desired` is refused.
    pub async fn reconcile(&self, desired: &Desired) -> Result<Applied, Error> {
        let status = self.backend.status().await?;
        desired.check(Some(&status.public_key))?;
        match status.observed() {
            Some(observed) if plan(desired, &observed).is_empty() => Ok(Applied {
                public_key: status.public_key,
                interface: status.interface,
                ifindex: status.ifindex,
                changes: Vec::new(),
            }),
            _ => self.backend.apply(desired).await,
        }
    }
}
