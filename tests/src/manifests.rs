//! Clusters as manifests describe them: what a lab is built from, and which pod has which identity.
//!
//! Only what wiring and registering need is read here; what a manifest means is the daemon's to say.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::lab::Lab;
use crate::lab::node::{Cidr, Node, Pod};

/// What a directory of manifests describes.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    /// Nodes by name.
    pub nodes: BTreeMap<String, NodeManifest>,
    /// Pods by name.
    pub pods: BTreeMap<String, PodManifest>,
    /// Identities by number.
    pub identities: BTreeMap<u32, IdentitySpec>,
}

/// A node.
#[derive(Clone, Debug)]
pub struct NodeManifest {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The ranges of its pods.
    pub pod_cidrs: Vec<Cidr>,
}

/// A pod.
#[derive(Clone, Debug)]
pub struct PodManifest {
    /// Its namespace.
    pub namespace: String,
    /// The node it runs on.
    pub node: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its service account.
    pub service_account: String,
}

/// What an identity stands for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentitySpec {
    /// The namespace of its pods.
    pub namespace: String,
    /// The service account of its pods.
    pub service_account: String,
    /// Labels, `k8s:org` → `empire`.
    pub labels: BTreeMap<String, String>,
}

/// The nodes and pods of a lab that was built from manifests, by name.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Nodes.
    pub nodes: BTreeMap<String, Node>,
    /// Pods.
    pub pods: BTreeMap<String, Pod>,
}

#[derive(Deserialize)]
struct Document {
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default = "default_name")]
    namespace: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    addresses: Vec<NodeAddress>,
    #[serde(default, rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Deserialize)]
struct NodeAddress {
    r#type: String,
    address: String,
}

#[derive(Deserialize)]
struct PodIp {
    ip: IpAddr,
}

#[derive(Deserialize)]
struct NodeSpec {
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: String,
    #[serde(default = "default_name")]
    service_account_name: String,
}

fn default_name() -> String {
    "default".to_owned()
}

impl Manifests {
    /// Reads every manifest of a directory.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn read(directory: &Path) -> Result<Self> {
        let mut manifests = Self::default();
        let entries = fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                let text = fs::read_to_string(&path)?;
                manifests.add(&text).with_context(|| path.display().to_string())?;
            }
        }
        Ok(manifests)
    }

    fn add(&mut self, text: &str) -> Result<()> {
        for document in serde_saphyr::from_multiple::<Document>(text)? {
            let name = document.metadata.name.clone();
            match document.kind.as_str() {
                "Node" => drop(self.nodes.insert(name, document.into_node()?)),
                "Pod" => drop(self.pods.insert(name, document.into_pod()?)),
                "Identity" => {
                    let number = name.parse().with_context(|| format!("number of Identity {name}"))?;
                    self.identities.insert(number, serde_json::from_value(document.spec)?);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Builds the nodes and pods of these manifests in a lab.
    ///
    /// # Errors
    /// When a pod's node is not there, or names or addresses are taken.
    pub fn build(&self, lab: &Lab) -> Result<World> {
        let mut world = World::default();
        for (name, node) in &self.nodes {
            world.nodes.insert(name.clone(), lab.node(name, &node.addresses, &node.pod_cidrs)?);
        }
        for (name, pod) in &self.pods {
            let node = world.nodes.get(&pod.node).with_context(|| format!("{name}: no such node"))?;
            world.pods.insert(name.clone(), node.pod(name, &pod.addresses)?);
        }
        Ok(world)
    }

    /// The identity of a pod: the one of its namespace and service account whose labels it has, beside
    /// those that stem from namespace and service account.
    ///
    /// # Errors
    /// When none fits, or two do.
    pub fn identity_of(&self, pod: &str) -> Result<u32> {
        let manifest = self.pods.get(pod).with_context(|| format!("no pod {pod}"))?;
        let mut fitting = self.identities.iter().filter(|(_, identity)| identity.fits(manifest));
        match (fitting.next(), fitting.next()) {
            (Some((number, _)), None) => Ok(*number),
            (None, _) => bail!("no identity fits pod {pod}"),
            (Some((one, _)), Some((two, _))) => bail!("identities {one} and {two} both fit pod {pod}"),
        }
    }

    /// The nodes that run a pod of each identity.
    ///
    /// # Errors
    /// When a pod has no identity.
    pub fn placements(&self) -> Result<Vec<(u32, String)>> {
        let mut placements = Vec::new();
        for (name, pod) in &self.pods {
            let placement = (self.identity_of(name)?, pod.node.clone());
            if !placements.contains(&placement) {
                placements.push(placement);
            }
        }
        Ok(placements)
    }
}

impl IdentitySpec {
    fn fits(&self, pod: &PodManifest) -> bool {
        let own = self.labels.iter().filter_map(|(key, value)| {
            let key = key.strip_prefix("k8s:")?;
            (!key.starts_with("io.")).then_some((key, value))
        });
        self.namespace == pod.namespace
            && self.service_account == pod.service_account
            && own.into_iter().all(|(key, value)| pod.labels.get(key) == Some(value))
    }
}

impl Document {
    fn into_node(self) -> Result<NodeManifest> {
        let spec: NodeSpec = serde_json::from_value(self.spec)?;
        let internal = self.status.addresses.iter().filter(|address| address.r#type == "InternalIP");
        Ok(NodeManifest {
            addresses: internal.map(|it| it.address.parse()).collect::<Result<_, _>>()?,
            pod_cidrs: spec.pod_cidrs.iter().map(|cidr| cidr.parse()).collect::<Result<_>>()?,
        })
    }

    fn into_pod(self) -> Result<PodManifest> {
        let spec: PodSpec = serde_json::from_value(self.spec)?;
        Ok(PodManifest {
            namespace: self.metadata.namespace,
            node: spec.node_name,
            addresses: self.status.pod_ips.iter().map(|it| it.ip).collect(),
            labels: self.metadata.labels,
            service_account: spec.service_account_name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
kind: Node
metadata: {name: node1}
spec: {podCIDRs: [10.244.1.0/24]}
status:
  addresses:
    - {type: Hostname, address: node1}
    - {type: InternalIP, address: 10.0.0.1}
---
kind: Pod
metadata: {name: xwing, labels: {org: alliance, class: xwing}}
spec: {nodeName: node1}
status: {podIPs: [{ip: 10.244.1.11}]}
---
kind: CiliumNetworkPolicy
metadata: {name: rule1}
";

    fn identity(number: u32, labels: &str) -> String {
        format!(
            "---\nkind: Identity\nmetadata: {{name: \"{number}\"}}\nspec:\n  namespace: default\n  \
             serviceAccount: default\n  labels: {{{labels}}}\n"
        )
    }

    fn read(text: &str) -> Manifests {
        let mut manifests = Manifests::default();
        manifests.add(text).unwrap();
        manifests
    }

    #[test]
    fn addresses_and_ranges_are_read() {
        let manifests = read(TEXT);
        assert_eq!(manifests.nodes["node1"].addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(manifests.nodes["node1"].pod_cidrs, ["10.244.1.0/24".parse().unwrap()]);
        assert_eq!(manifests.pods["xwing"].service_account, "default");
    }

    #[test]
    fn an_identity_fits_by_the_pods_own_labels() {
        let empire = identity(256, "\"k8s:org\": empire");
        let alliance = identity(257, "\"k8s:org\": alliance, \"k8s:io.kubernetes.pod.namespace\": default");
        let manifests = read(&format!("{TEXT}{empire}{alliance}"));
        assert_eq!(manifests.identity_of("xwing").unwrap(), 257);
        assert_eq!(manifests.placements().unwrap(), [(257, "node1".to_owned())]);
    }

    #[test]
    fn none_or_two_are_an_error() {
        let fitting = |number| identity(number, "\"k8s:org\": alliance");
        assert!(read(TEXT).identity_of("xwing").is_err());
        assert!(read(&format!("{TEXT}{}{}", fitting(256), fitting(257))).identity_of("xwing").is_err());
    }
}
