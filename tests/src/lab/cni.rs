//! Pods wired by the CNI project's own plugins, as a container runtime calls them
//! (<https://www.cni.dev/docs/spec/>).

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::node::{Node, Pod};
use crate::binaries;

/// A plugin that makes interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugin {
    /// Pairs whose host ends are ports of a bridge, which has the gateway's addresses.
    Bridge,
    /// Pairs with host routes.
    Ptp,
    /// Devices upon the uplink, past the host.
    Macvlan,
}

impl Plugin {
    const fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Ptp => "ptp",
            Self::Macvlan => "macvlan",
        }
    }

    fn configuration(self, node: &Node, pod: &Pod) -> Value {
        let ranges: Vec<_> =
            node.pod_cidrs().iter().map(|cidr| json!([{"subnet": cidr.to_string()}])).collect();
        let routes: Vec<_> = ["0.0.0.0/0", "::/0"].iter().map(|to| json!({"dst": to})).collect();
        let addresses: Vec<_> = pod.addresses().iter().map(ToString::to_string).collect();
        let mut configuration = json!({
            "cniVersion": "1.0.0", "name": "lab", "type": self.name(),
            "ipam": {
                "type": "host-local",
                "dataDir": format!("/run/lab/cni-{}", node.name()),
                "ranges": ranges,
                "routes": routes,
            },
            "args": {"cni": {"ips": addresses}},
        });
        let own = match self {
            Self::Bridge => json!({"bridge": "cni0", "isGateway": true, "hairpinMode": true}),
            Self::Ptp => json!({}),
            Self::Macvlan => json!({"master": "eth0"}),
        };
        if let (Value::Object(all), Value::Object(own)) = (&mut configuration, own) {
            all.extend(own);
        }
        configuration
    }
}

/// Wires a pod; returns the host end of its pair, or nothing where there is none.
pub(super) fn add(plugin: Plugin, node: &Node, pod: &Pod) -> Result<String> {
    let result = call(plugin, node, pod, "ADD")?;
    let result: Value = serde_json::from_str(&result).with_context(|| result)?;
    let names = result.get("interfaces").and_then(Value::as_array).into_iter().flatten();
    let mut names = names.filter_map(|interface| interface.get("name")?.as_str());
    Ok(names.find(|name| name.starts_with("veth")).unwrap_or_default().to_owned())
}

/// Takes a pod's interface away, and gives its addresses back.
pub(super) fn delete(plugin: Plugin, node: &Node, pod: &Pod) -> Result<()> {
    call(plugin, node, pod, "DEL").map(drop)
}

fn call(plugin: Plugin, node: &Node, pod: &Pod, command: &str) -> Result<String> {
    let program = binaries::peer(&format!("cni/{}", plugin.name()))?;
    let directory = program.parent().context("a program lies in a directory")?.display();
    let environment = [
        format!("CNI_COMMAND={command}"),
        format!("CNI_CONTAINERID={}", pod.name()),
        format!("CNI_NETNS=/run/netns/{}", pod.name()),
        "CNI_IFNAME=eth0".to_owned(),
        format!("CNI_PATH={directory}"),
    ];
    let configuration = plugin.configuration(node, pod).to_string();
    let path = program.to_str().context("a path that is no text")?;
    let arguments = ["env"].into_iter().chain(environment.iter().map(String::as_str)).chain([path]);
    node.exec_with_input(arguments, &configuration).with_context(|| format!("CNI plugin {}", plugin.name()))
}
