//! Where programs belong, and keeping them there.

use std::collections::{BTreeMap, BTreeSet};

use auth_ebpf::Attached;
use auth_ebpf_abi::{Hook, Setting, UplinkEntry};

use super::{Interfaces, Plan, Task, chain};
use crate::{cluster::Cluster, hold, metrics::RepairLabels};

/// Why a program that is attached does not count.
const BEHIND: &str = "a traffic control filter of another kind comes before ours and can keep packets from it; \
                      give it another priority than the first";

impl Task {
    /// Attaches the programs wherever they belong; returns the interfaces of pods that have them.
    pub(super) fn attach(
        &mut self,
        cluster: &Cluster,
        plan: &Plan,
        interfaces: &Interfaces,
        failures: &mut BTreeMap<String, String>,
    ) -> BTreeSet<String> {
        let uplinks = self.uplinks(cluster, interfaces);
        if uplinks.is_empty() {
            failures.insert(
                "uplinks".to_owned(),
                format!("no interface carries an address of node {}; set --uplinks", self.node),
            );
        }
        let device = interfaces.index_of(&self.wireguard);
        let hold = interfaces.index_of(hold::INTERFACE).filter(|_| self.hold);
        let (pods, others) = pod_interfaces(plan, interfaces);
        let guarded: BTreeSet<String> =
            uplinks.iter().chain(&others).cloned().chain(overlays(interfaces)).collect();
        let wanted: Vec<(Hook, String)> = guarded
            .iter()
            .cloned()
            .flat_map(|name| [(Hook::FromUplink, name.clone()), (Hook::ToUplink, name)])
            .chain(device.iter().flat_map(|_| {
                [(Hook::FromWireguard, self.wireguard.clone()), (Hook::ToWireguard, self.wireguard.clone())]
            }))
            .chain(hold.iter().flat_map(|_| {
                [(Hook::ToHold, hold::INTERFACE.to_owned()), (Hook::FromHold, hold::INTERFACE.to_owned())]
            }))
            .chain(pods.into_iter().flat_map(|name| [(Hook::ToPod, name.clone()), (Hook::FromPod, name)]))
            .collect();
        let mut attached = BTreeSet::new();
        for (hook, interface) in &wanted {
            let why = match self.parts.datapath.attach(*hook, interface) {
                Ok(Attached::Behind) => BEHIND.to_owned(),
                Ok(found) => {
                    self.notice(found, *hook, interface);
                    attached.insert(interface.clone());
                    continue;
                }
                Err(error) => chain(&error),
            };
            failures.insert(format!("{}@{interface}", hook.as_str()), why);
        }
        self.know_device(Setting::WireguardIfindex, device, &self.wireguard, &attached, failures);
        self.drop_links_of_gone(interfaces);
        attached
            .retain(|interface| !failures.keys().any(|failure| failure.ends_with(&format!("@{interface}"))));
        let guarded = uplinks.intersection(&attached);
        self.know_uplinks(&outward(guarded, &bridges(plan, interfaces), interfaces), failures);
        // Both of its programs are there, or nothing is sent to it.
        self.know_device(Setting::HoldIfindex, hold, hold::INTERFACE, &attached, failures);
        attached
    }

    /// Interfaces that lead to other nodes: those configured, or those that carry this node's addresses.
    fn uplinks(&self, cluster: &Cluster, interfaces: &Interfaces) -> BTreeSet<String> {
        if !self.uplinks.is_empty() {
            return self.uplinks.iter().cloned().collect();
        }
        let own = cluster.nodes.get(&self.node).map(|node| node.addresses.iter().copied().collect());
        interfaces.carrying(&own.unwrap_or_default())
    }

    /// Tells the programs which device is WireGuard's, or for holding, once it is guarded itself.
    fn know_device(
        &self,
        setting: Setting,
        device: Option<u32>,
        name: &str,
        attached: &BTreeSet<String>,
        failures: &mut BTreeMap<String, String>,
    ) {
        let index = device.filter(|_| attached.contains(name)).unwrap_or_default();
        let config = self.parts.datapath.maps().config();
        let known = config.get(setting);
        if known.is_ok_and(|known| known == u64::from(index)) {
            return;
        }
        if let Err(error) = config.set(setting, index.into()) {
            failures.insert("config".to_owned(), chain(&error));
        }
    }

    /// Tells the programs by which interfaces the world's packets come in.
    fn know_uplinks(&self, uplinks: &BTreeMap<u32, UplinkEntry>, failures: &mut BTreeMap<String, String>) {
        if let Err(error) = self.parts.datapath.maps().uplinks().reconcile(uplinks) {
            failures.insert("uplinks".to_owned(), chain(&error));
        }
    }

    /// Reports what others have done to a program.
    fn notice(&self, found: Attached, hook: Hook, interface: &str) {
        let (cause, message) = match found {
            Attached::Displaced => {
                ("displaced", "another program had got ahead of ours, which is ahead again")
            }
            Attached::Removed => (
                "removed",
                "our program had been removed or replaced and is back; packets have not met it meanwhile",
            ),
            Attached::Kept | Attached::Replaced | Attached::Anew | Attached::Behind => return,
        };
        tracing::warn!(hook = hook.as_str(), interface, cause, "{message}");
        self.parts.metrics.program_repairs.get_or_create(&RepairLabels { cause }).inc();
    }

    /// Unpins links to interfaces that are no more. One that is there keeps its programs even without a
    /// pod: what it sends then has no endpoint.
    fn drop_links_of_gone(&mut self, interfaces: &Interfaces) {
        let alive = |index| interfaces.names.contains_key(&index);
        if let Err(error) = self.parts.datapath.forget_gone(alive) {
            tracing::warn!(error = chain(&error), "stale links stay pinned");
        }
    }
}

/// Devices by which a CNI sends pods' packets to other nodes in Ethernet frames: guarded as uplinks, before
/// anything is encapsulated. Of others, such as IP in IP, the uplink shows what they carry.
fn overlays(interfaces: &Interfaces) -> impl Iterator<Item = String> {
    const KINDS: [&str; 4] = ["vxlan", "geneve", "gretap", "ip6gretap"];
    let of_kind = interfaces.links.iter().filter(|(_, link)| KINDS.contains(&link.kind.as_str()));
    of_kind.filter_map(|(index, _)| interfaces.names.get(index).cloned())
}

/// Which of the uplinks, that are guarded, bring the world's packets and no pod's: what a bridge hands to the host
/// does not say by which port it came.
fn outward<'a>(
    uplinks: impl Iterator<Item = &'a String>,
    bridges: &BTreeSet<u32>,
    interfaces: &Interfaces,
) -> BTreeMap<u32, UplinkEntry> {
    let indices = uplinks.filter_map(|name| interfaces.index_of(name));
    let without_pods = indices.filter(|index| !bridges.contains(index));
    without_pods.map(|index| (index, UplinkEntry { uplink: 1 })).collect()
}

/// The bridges of the pods here.
fn bridges(plan: &Plan, interfaces: &Interfaces) -> BTreeSet<u32> {
    let own = plan.pods.iter().filter_map(|pod| pod.interface.as_ref());
    own.filter_map(|(index, _)| interfaces.bridge_of(*index)).collect()
}

/// Interfaces with the programs of pods: those of the pods, and the other pairs that are ports of their
/// bridges, since what comes in by one could name any source. Then the ports of those bridges that lead
/// elsewhere, which are guarded as uplinks.
fn pod_interfaces(plan: &Plan, interfaces: &Interfaces) -> (BTreeSet<String>, BTreeSet<String>) {
    let own = plan.pods.iter().filter_map(|pod| pod.interface.clone());
    let mut pods: BTreeSet<String> = own.map(|(_, name)| name).collect();
    let mut others = BTreeSet::new();
    for (index, name) in bridges(plan, interfaces).into_iter().flat_map(|bridge| interfaces.ports(bridge)) {
        let is_veth = interfaces.links.get(&index).is_some_and(|link| link.kind == "veth");
        if is_veth { &mut pods } else { &mut others }.insert(name.clone());
    }
    (pods, others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_world_comes_in_by_uplinks_that_no_pod_shares() {
        let names = [(2, "eth0"), (3, "br0"), (4, "br1"), (7, "veth0")];
        let names = names.map(|(index, name)| (index, name.to_owned())).into();
        let interfaces = Interfaces { names, ..Interfaces::default() };
        let uplinks = ["eth0", "br0", "br1", "gone"].map(ToOwned::to_owned);
        let outward = outward(uplinks.iter(), &[4].into(), &interfaces);
        assert_eq!(outward.into_keys().collect::<Vec<_>>(), [2, 3]);
    }
}
