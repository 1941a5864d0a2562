//! Cluster state: nodes, pods, identities and policies, read from a directory of manifests.
//!
//! A [`Cluster`] is an immutable snapshot that is swapped whole. Nothing in it is there twice, nothing that
//! was refused is in it, and everything that was refused is among its [`Problem`]s. This module decides
//! nothing about traffic and talks to nobody.

mod allocate;
mod capacity;
mod directory;
mod files;
mod loader;
mod manifest;
mod offline;
mod policies;
mod problem;
mod revocation;
mod service;
mod snapshot;
mod surroundings;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use policy::{IdentityNumber, IdentitySet, Input, NamedPort, NodeNumber, PolicySet, Surroundings};

pub use allocate::{IDENTITIES_FILE, Summary, allocate};
pub use capacity::capacity;
pub use directory::{Watch, load, watch};
pub use offline::{from_text, load_offline};
pub use problem::{Problem, Severity};
pub use revocation::{Revocations, Revoked, revoke};
pub use service::{Service, ServiceEndpoint, ServicePort, Slice, SlicePort, TargetPort};

use crate::peer::Naming;

/// Where manifests are read, which they don't say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The cluster's name, in the labels of identities and nodes.
    pub cluster: String,
    /// The name of the node whose daemon reads them, which is the host of the pods there.
    pub node: Option<String>,
    /// How identities are named, where several may share a SPIFFE ID.
    pub sharing: Option<Naming>,
}

/// The name of a cluster that has been given none.
pub const DEFAULT_CLUSTER_NAME: &str = "default";

impl Default for Site {
    fn default() -> Self {
        Self { cluster: DEFAULT_CLUSTER_NAME.to_owned(), node: None, sharing: None }
    }
}

/// The state of the cluster at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    /// The labels of the namespaces, by name.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// The nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// The pods that haven't ended, in the order of namespace and name.
    pub pods: Vec<Pod>,
    /// Namespaces and names of those that have: nothing comes from them or reaches them.
    pub ended: BTreeSet<(String, String)>,
    /// The identities; the reserved ones are always among them.
    pub identities: IdentitySet,
    /// The policies; those that can't be applied are in it as refused and deny.
    pub policies: PolicySet,
    /// What else the policies refer to.
    pub surroundings: Surroundings,
    /// The addresses of services, by namespace and name.
    pub services: BTreeMap<(String, String), Service>,
    /// WireGuard keys that annotations say nodes have, by node: never used, and looked at for what is wrong.
    pub claimed_keys: BTreeMap<String, String>,
    /// What people have revoked: no SVID, session or tunnel of theirs counts.
    pub revoked: Revocations,
    /// What is wrong with the directory.
    pub problems: Vec<Problem>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its number; until it has one, nothing remote can be authenticated with it.
    pub number: Option<NodeNumber>,
    /// Its own addresses (those of type `InternalIP`).
    pub addresses: Vec<IpAddr>,
    /// The ranges of its pods' addresses, IPv4 first; overlapping those of no other node.
    pub pod_cidrs: Vec<IpNet>,
}

/// A pod that hasn't ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The name of the node it is bound to.
    pub node: Option<String>,
    /// Its addresses, which nobody else has; none on the host's network, where they are the node's.
    pub addresses: Vec<IpAddr>,
    /// Whether it uses the network of its node, and so has the identity of the host.
    pub host_network: bool,
    /// Whether it is the image of a static pod: its node alone says what it is, so it gets no SVID.
    pub mirror: bool,
    /// Its service account.
    pub service_account: String,
    /// The ports of its containers that have names.
    pub named_ports: Vec<(NamedPort, u16)>,
    /// Its labels as written.
    pub labels: BTreeMap<String, String>,
    /// Its identity. A pod without one gets no traffic.
    pub identity: Option<IdentityNumber>,
}

impl Cluster {
    /// What policies are compiled from.
    #[must_use]
    pub const fn policy_input(&self) -> Input<'_> {
        Input { policies: &self.policies, identities: &self.identities, surroundings: &self.surroundings }
    }

    /// The pods that are bound to this node.
    pub fn local_pods<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Pod> {
        self.pods.iter().filter(move |pod| pod.node.as_deref() == Some(node))
    }

    /// The pods that have this identity.
    pub fn pods_with_identity(&self, identity: IdentityNumber) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(move |pod| pod.identity == Some(identity))
    }

    /// The nodes that run pods of this identity.
    #[must_use]
    pub fn nodes_of_identity(&self, identity: IdentityNumber) -> BTreeSet<&str> {
        self.pods_with_identity(identity).filter_map(|pod| pod.node.as_deref()).collect()
    }

    /// Whether a pod of this identity is bound to this node.
    #[must_use]
    pub fn identity_runs_on(&self, identity: IdentityNumber, node: &str) -> bool {
        self.pods_with_identity(identity).any(|pod| pod.node.as_deref() == Some(node))
    }

    /// The node with this number.
    #[must_use]
    pub fn node_by_number(&self, number: NodeNumber) -> Option<&Node> {
        self.nodes.values().find(|node| node.number == Some(number))
    }

    /// The pod with this name.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.namespace == namespace && pod.name == name)
    }

    /// Whether anything was refused or couldn't be read.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }
}

/// Why the cluster directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory can't be listed.
    #[error("cluster directory {}: {source}; name the directory of the manifests (for authd with --cluster-dir)", directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that was named can't be read.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// The directory can't be watched for changes.
    #[error("cluster directory {}: can't be watched: {source} (fs.inotify.max_user_watches may be too low)", directory.display())]
    Watch {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: notify::Error,
    },
    /// The thread that watches can't be started.
    #[error("can't start the thread that watches the cluster directory: {0}")]
    Thread(#[source] io::Error),
    /// Numbers can't be allocated while something that decides about them is wrong.
    #[error("nothing allocated: mend this first:{}", list(.0))]
    Problems(Vec<Problem>),
    /// The file of allocated numbers can't be written.
    #[error("{}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is to be written can't be put into YAML.
    #[error("can't write the allocated objects as YAML: {0}")]
    Yaml(#[from] serde_saphyr::ser_error::Error),
    /// There are no numbers, or labels can't be those of an identity.
    #[error("nothing allocated: {0}")]
    Allocate(#[from] policy::AllocateError),
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

#[cfg(test)]
mod tests;
