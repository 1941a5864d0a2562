//! Nodes and pods: names, addresses and what can be done in them.

use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result};

use super::cni::{self, Plugin};
use super::{Namespace, wiring};

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// Its first address.
    pub address: IpAddr,
    /// How many bits its addresses share.
    pub length: u8,
}

impl FromStr for Cidr {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (address, length) = text.split_once('/').context("an address range has a slash")?;
        Ok(Self { address: address.parse()?, length: length.parse()? })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.length)
    }
}

/// A node: a network namespace with an uplink, its own BPF file system and its own /run/authd.
#[derive(Clone, Debug)]
pub struct Node {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    namespace: Namespace,
    underlay: Namespace,
    number: u8,
    cni: Option<Plugin>,
    addresses: Vec<IpAddr>,
    pod_cidrs: Vec<Cidr>,
    pods: AtomicU8,
}

impl Node {
    pub(super) fn new(
        underlay: &Namespace,
        name: &str,
        (number, cni): (u8, Option<Plugin>),
        addresses: &[IpAddr],
        pod_cidrs: &[Cidr],
    ) -> Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                namespace: underlay.new_node(name)?,
                underlay: underlay.clone(),
                number,
                cni,
                addresses: addresses.to_owned(),
                pod_cidrs: pod_cidrs.to_owned(),
                pods: AtomicU8::new(0),
            }),
        })
    }

    /// Adds a pod with its addresses.
    ///
    /// # Errors
    /// When the name or an address is taken.
    pub fn pod(&self, name: &str, addresses: &[IpAddr]) -> Result<Pod> {
        let number = self.shared.pods.fetch_add(1, Ordering::Relaxed) + 1;
        let mut pod = Pod {
            namespace: self.shared.underlay.new_pod(name)?,
            interface: wiring::host_interface(name),
            addresses: addresses.into(),
        };
        let wired = match self.shared.cni {
            None => wiring::pod(self, &pod, number),
            Some(plugin) => wiring::quiet(&pod)
                .and_then(|()| cni::add(plugin, self, &pod))
                .map(|interface| pod.interface = interface),
        };
        wired.with_context(|| format!("add pod {name}"))?;
        Ok(pod)
    }

    /// Takes a pod away by the CNI plugin that has wired it.
    ///
    /// # Errors
    /// When the plugin fails.
    pub fn remove_pod(&self, pod: &Pod) -> Result<()> {
        let plugin = self.shared.cni.context("no CNI plugin has wired it")?;
        cni::delete(plugin, self, pod)
    }

    /// The addresses of its uplink.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.shared.addresses
    }

    /// The ranges of its pods.
    #[must_use]
    pub fn pod_cidrs(&self) -> &[Cidr] {
        &self.shared.pod_cidrs
    }

    pub(super) fn number(&self) -> u8 {
        self.shared.number
    }
}

impl Deref for Node {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.shared.namespace
    }
}

/// A pod: a network namespace behind a veth pair.
#[derive(Clone, Debug)]
pub struct Pod {
    namespace: Namespace,
    interface: String,
    addresses: Arc<[IpAddr]>,
}

impl Pod {
    /// Its addresses.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its address of the family.
    ///
    /// # Errors
    /// When it has none.
    pub fn address(&self, family: Family) -> Result<IpAddr> {
        let found = self.addresses.iter().find(|address| Family::of(**address) == family);
        found.copied().with_context(|| format!("{} has no {family} address", self.name()))
    }

    /// The host end of its veth pair.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }
}

impl Deref for Pod {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}
