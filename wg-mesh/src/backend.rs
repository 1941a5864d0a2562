//! The boundary to whatever moves the packets: a tunnel process, later the kernel, a fake in tests.

pub mod memory;
pub mod userspace;

use std::future::Future;

use serde::{Deserialize, Serialize};

use crate::{Change, Desired, Error, PublicKey, Status};

/// Something that can be a node's end of the mesh.
pub trait Backend: Send + Sync {
    /// Reads the device's state.
    ///
    /// # Errors
    /// When the device cannot be asked.
    fn status(&self) -> impl Future<Output = Result<Status, Error>> + Send;

    /// Makes the device what `desired` says, all of it or nothing. Sessions of peers that stay go on.
    ///
    /// # Errors
    /// When the device cannot be reached or `desired` is refused.
    fn apply(&self, desired: &Desired) -> impl Future<Output = Result<Applied, Error>> + Send;
}

/// What an `apply` has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The device's own key, to be announced to peers.
    pub public_key: PublicKey,
    /// Name of its interface.
    pub interface: String,
    /// Index of its interface.
    pub ifindex: u32,
    /// What had to be changed; empty if it was so already.
    pub changes: Vec<Change>,
}
