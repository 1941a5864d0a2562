//! Addresses that change hands, so that nobody is taken for the last owner of his address.
//!
//! Every assignment of an address here takes a new epoch ([`Assigned`]). The programs let a pod send to another
//! node only once that node has acknowledged the epoch; until then they hold the packet, and sessions announce
//! what they have not told yet. The other side keeps what it was told ([`Claims`]): a claim gives an address to
//! nobody, it only takes it from whom cluster state still believes to have it, before it is acknowledged.

mod assigned;
mod claims;

use std::{collections::BTreeMap, net::IpAddr};

use auth_ebpf_abi::{IdentityNumber, NodeNumber};
use tokio::sync::oneshot;

pub use assigned::Assigned;
pub use claims::{Claims, Contested, is_withheld, withheld};

/// Who has which address, as one node says it.
pub type Owners = BTreeMap<IpAddr, IdentityNumber>;

/// What sessions tell those who keep the maps.
#[derive(Debug)]
pub enum Told {
    /// A node has announced its addresses, all of them.
    Announced {
        /// The node.
        node: NodeNumber,
        /// Its pods' addresses.
        owners: Owners,
        /// To be told once the maps know nobody else under them.
        applied: oneshot::Sender<()>,
    },
    /// A node has acknowledged this node's addresses.
    Acknowledged {
        /// The node.
        node: NodeNumber,
        /// Its session epoch.
        session_epoch: u32,
        /// The address epoch up to which it has.
        epoch: u32,
    },
}
