//! Others' datapaths on this node beside which nothing can be promised.

use std::{collections::BTreeSet, fs, path::Path};

use super::interfaces::Interfaces;

/// Where Cilium pins its maps, by versions old and new.
const PINS: [&str; 2] = ["/sys/fs/bpf/tc/globals", "/sys/fs/bpf/cilium"];
/// Devices that its agent makes.
const DEVICES: [&str; 4] = ["cilium_host", "cilium_net", "cilium_vxlan", "cilium_geneve"];

/// Names of what stands where Cilium pins its maps.
pub(super) fn pins() -> BTreeSet<String> {
    let list = |directory| fs::read_dir(Path::new(directory)).into_iter().flatten().flatten();
    let names = PINS.into_iter().flat_map(list).map(|entry| entry.file_name());
    names.filter_map(|name| name.into_string().ok()).collect()
}

/// What Cilium has on this node, and why that is refused; `None` if it has nothing.
///
/// It hands packets from pod to pod by redirects (`bpf_redirect_peer`, netkit) that enter no hook of ours, and
/// takes a mark or an address for an identity where nobody has proven one.
pub(super) fn cilium(interfaces: &Interfaces, pins: &BTreeSet<String>) -> Option<String> {
    let device = interfaces.names.values().find(|name| DEVICES.contains(&name.as_str()));
    let device = device.map(|name| format!("the device {name}"));
    let map = pins.iter().find(|name| name.starts_with("cilium_"));
    let found = device.or_else(|| map.map(|name| format!("the pinned map {name}")))?;
    Some(format!(
        "Cilium is or was on this node ({found}); its redirects between pods go round the hooks where authd \
         checks them, so no promise holds here. Run one of the two: take Cilium off (`cilium-dbg \
         post-uninstall-cleanup`), or authd"
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn found(device: &str, pin: &str) -> Option<String> {
        let names = BTreeMap::from([(1, "lo".to_owned()), (2, device.to_owned())]);
        cilium(&Interfaces { names, ..Interfaces::default() }, &BTreeSet::from([pin.to_owned()]))
    }

    #[test]
    fn a_device_or_a_pinned_map_of_cilium_is_named() {
        assert!(found("cilium_host", "x").unwrap().contains("the device cilium_host"));
        assert!(found("eth0", "cilium_lxc").unwrap().contains("the pinned map cilium_lxc"));
    }

    #[test]
    fn what_only_resembles_it_is_not_meant() {
        assert_eq!(found("cilium_host2", "authd"), None);
        assert_eq!(found("lxc-cilium", "my_cilium_map"), None);
    }
}
