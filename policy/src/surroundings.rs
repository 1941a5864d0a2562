//! What policies refer to beside identities: ports with names, addresses, services, groups of prefixes,
//! nodes, names of hosts.
//!
//! All of it is plain data that the caller keeps up to date; nothing here looks anything up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use auth_ebpf_abi::IdentityNumber;
use ipnet::IpNet;

use crate::identity::{Identity, IdentitySet};
use crate::label_set::LabelSet;
use crate::port::NamedPort;
use crate::selector::Selector;

/// State of the cluster that the meaning of policies depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The named ports of each identity's pods.
    pub named_ports: BTreeMap<IdentityNumber, NamedPorts>,
    /// The addresses of each identity's pods, and of all nodes under `remote-node` and `host`: an `ipBlock` of
    /// a NetworkPolicy selects an identity if it has all of them.
    pub addresses: BTreeMap<IdentityNumber, BTreeSet<IpAddr>>,
    /// Services, by namespace and name.
    pub services: BTreeMap<(String, String), Service>,
    /// Groups of prefixes, by name.
    pub cidr_groups: BTreeMap<String, CidrGroup>,
    /// The nodes, by name.
    pub nodes: BTreeMap<String, Node>,
    /// The name of the node that is `host` for the endpoints here, if it is one of these.
    pub host: Option<String>,
    /// The addresses that DNS has given for a name, as [`canonical_name`](crate::canonical_name) writes it.
    pub names: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Namespaces whose endpoints are audited: what policies would drop there passes, and is reported.
    pub audited_namespaces: BTreeSet<String>,
    /// Identities with the same SPIFFE ID, where several share one.
    shared: Vec<BTreeSet<IdentityNumber>>,
}

/// The numbers of named ports. Pods of one identity may give one name several.
pub type NamedPorts = BTreeMap<NamedPort, BTreeSet<u16>>;

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its own labels.
    pub labels: LabelSet,
    /// Selects its pods, namespace included; none if its addresses are kept by hand.
    pub pods: Option<Selector>,
    /// The addresses of its endpoints, where it has no selector.
    pub addresses: BTreeSet<IpAddr>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its labels, that of its cluster ([`CLUSTER_KEY`](crate::CLUSTER_KEY)) among them.
    pub labels: LabelSet,
    /// Its own addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// A group of prefixes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CidrGroup {
    /// Its labels.
    pub labels: LabelSet,
    /// The prefixes.
    pub nets: BTreeSet<IpNet>,
}

impl Surroundings {
    /// Says which SPIFFE ID each identity has under the configured template: authentication can't tell apart
    /// identities that share one.
    pub fn share_spiffe_ids(
        &mut self,
        identities: &IdentitySet,
        spiffe_id: impl Fn(&Identity) -> Option<String>,
    ) {
        let mut by_id: BTreeMap<String, BTreeSet<IdentityNumber>> = BTreeMap::new();
        for identity in identities.iter().filter(|identity| !identity.is_reserved()) {
            if let Some(id) = spiffe_id(identity) {
                by_id.entry(id).or_default().insert(identity.number());
            }
        }
        self.shared = by_id.into_values().filter(|sharing| sharing.len() > 1).collect();
    }

    pub(crate) fn set_shared(&mut self, shared: &[BTreeSet<IdentityNumber>]) {
        shared.clone_into(&mut self.shared);
    }

    /// Groups of identities that share a SPIFFE ID.
    #[must_use]
    pub fn shared(&self) -> &[BTreeSet<IdentityNumber>] {
        &self.shared
    }

    /// The numbers that a port's name has at an identity. Where its pods disagree, a rule that allows gets
    /// none of them and one that denies gets all.
    #[must_use]
    pub fn numbers_of(&self, port: &NamedPort, identity: IdentityNumber, is_deny: bool) -> Vec<u16> {
        let numbers = self.named_ports.get(&identity).and_then(|ports| ports.get(port));
        let known = numbers.filter(|numbers| is_deny || numbers.len() == 1);
        known.into_iter().flatten().copied().collect()
    }
}
