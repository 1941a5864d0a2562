//! Tests on directories: what becomes of manifests as a whole.

mod allocating;
mod keeping;
mod policies;
mod snapshots;
mod watching;

use std::path::{Path, PathBuf};

use super::*;
use crate::peer::Naming;

/// Where SPIFFE IDs are by this template.
fn site(template: &str) -> Site {
    let naming = Naming::new("example.test".parse().unwrap(), template, DEFAULT_CLUSTER_NAME).unwrap();
    Site { sharing: naming.sharing(), ..Site::default() }
}

/// A directory of manifests.
struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Two nodes, one namespace, two pods on different nodes; numbers allocated.
    fn galaxy() -> Self {
        let directory = Self::new();
        directory.write("base.yaml", &documents(&[namespace("default"), node(1), node(2)]));
        directory.write("pods.yaml", &documents(&[pod("xwing", 1, 11), pod("deathstar", 2, 10)]));
        allocate(directory.path(), &Site::default()).unwrap();
        directory
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Writes the file so that it doesn't look like one that is being written.
    fn write(&self, name: &str, text: &str) {
        let file = std::fs::File::create(self.file(name)).unwrap();
        io::Write::write_all(&mut &file, text.as_bytes()).unwrap();
        let past = std::time::SystemTime::now() - std::time::Duration::from_secs(1);
        file.set_modified(past).unwrap();
    }

    fn load(&self) -> Cluster {
        load(self.path(), &Site::default()).unwrap()
    }
}

fn texts(cluster: &Cluster) -> Vec<String> {
    cluster.problems.iter().map(ToString::to_string).collect()
}

/// The errors alone.
fn errors(cluster: &Cluster) -> Vec<String> {
    let errors = cluster.problems.iter().filter(|problem| problem.severity == Severity::Error);
    errors.map(ToString::to_string).collect()
}

fn documents(documents: &[String]) -> String {
    documents.join("---\n")
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{team: {name}}}}}\n")
}

fn node(number: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: node{number}}}\nspec: {{podCIDRs: [10.244.{number}.0/24, 'fd00:10:244:{number}::/64']}}\nstatus: {{addresses: [{{type: InternalIP, address: 10.0.0.{number}}}]}}\n"
    )
}

fn pod(name: &str, node: u8, host: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{class: {name}}}}}\nspec: {{nodeName: node{node}}}\nstatus: {{podIPs: [{{ip: 10.244.{node}.{host}}}, {{ip: 'fd00:10:244:{node}::{host}'}}]}}\n"
    )
}

fn policy(name: &str, class: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}}}\nspec: {{endpointSelector: {{matchLabels: {{class: {class}}}}}, ingress: [{{}}]}}\n"
    )
}
