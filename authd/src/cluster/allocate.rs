//! `authctl identities allocate DIR`: numbers for the label sets and nodes that have none yet.
//!
//! Numbers are appended to one file as `Identity` and `NodeNumber` documents, and never given again, even if
//! those documents are removed by hand: a hidden file beside them remembers the highest.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::libc::{O_CLOEXEC, O_NOFOLLOW};
use policy::{
    Allocated, Allocation, Identity, IdentityNumber, IdentitySpec, LabelSet, NodeNumber, NodeNumberSpec,
};
use serde::Serialize;

use super::loader::Loader;
use super::manifest::{self, API_VERSION, Body, Object};
use super::problem::{Problem, Severity};
use super::{Error, Site, snapshot};

/// The file that allocated numbers are appended to.
pub const IDENTITIES_FILE: &str = "authd-identities.yaml";
/// Remembers the highest numbers, and is locked while numbers are allocated.
const HIGHEST_FILE: &str = ".authd-identities.highest";
const TEMPORARY_FILE: &str = ".authd-identities.yaml.new";
const HEADER: &str = "# Written by `authctl identities allocate`, which appends to it. Numbers are never changed or used again.\n";

/// What was allocated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The file that holds the numbers.
    pub file: PathBuf,
    /// The new identities.
    pub identities: BTreeMap<IdentityNumber, IdentitySpec>,
    /// The new numbers of nodes, by name.
    pub nodes: BTreeMap<String, NodeNumber>,
    /// How many identities there were before.
    pub identities_before: usize,
    /// How many nodes had a number before.
    pub nodes_before: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (identities, nodes) = (self.identities.len(), self.nodes.len());
        let (identities_before, nodes_before) = (self.identities_before, self.nodes_before);
        if identities + nodes == 0 {
            return write!(
                f,
                "nothing to allocate: {identities_before} identities and {nodes_before} node numbers are there"
            );
        }
        let file = self.file.display();
        write!(f, "{file}: {identities} new identities ({identities_before} before), ")?;
        write!(f, "{nodes} new node numbers ({nodes_before} before)")?;
        for (number, identity) in &self.identities {
            write!(f, "\nidentity {number}: {}", identity.labels)?;
        }
        for (name, number) in &self.nodes {
            write!(f, "\nnode {number}: {name}")?;
        }
        Ok(())
    }
}

/// Allocates numbers to what has none in this directory. Doing it again changes nothing.
///
/// # Errors
/// [`Error`] if the directory can't be read or written, or if something in it that decides about numbers is
/// wrong; then nothing is written.
pub fn allocate(directory: &Path, site: &Site) -> Result<Summary, Error> {
    // An absent directory is reported as such, not by the file that can't be made in it.
    Loader::new(directory, site).load()?;
    let mut highest = Highest::lock(directory)?;
    let mut loader = Loader::new(directory, site);
    let cluster = loader.load()?;
    let blocking: Vec<Problem> = cluster.problems.into_iter().filter(blocks).collect();
    if !blocking.is_empty() {
        return Err(Error::Problems(blocking));
    }
    let objects = loader.objects();
    let (label_sets, nodes) = wanted(&objects, &site.cluster)?;
    let numbers = node_numbers(&objects);
    let (identity, node) = highest.numbers;
    let allocated = Allocated {
        identities: &cluster.identities,
        nodes: &numbers,
        highest_identity: identity.max(loader.memory().highest().0),
        highest_node: node.max(loader.memory().highest().1),
    };
    let allocation = policy::allocate(allocated, label_sets, nodes)?;
    let identities_before = cluster.identities.iter().filter(|identity| !identity.is_reserved()).count();
    if !allocation.identities.is_empty() || !allocation.nodes.is_empty() {
        // Numbers are remembered before they are given, so that no crash in between gives them twice.
        highest.raise(&allocation)?;
        append(directory, &documents(&allocation)?)?;
    }
    Ok(Summary {
        file: directory.join(IDENTITIES_FILE),
        identities: allocation
            .identities
            .iter()
            .map(|identity| (identity.number(), identity.to_spec()))
            .collect(),
        nodes: allocation.nodes,
        identities_before,
        nodes_before: numbers.len(),
    })
}

/// Policies decide about no numbers, so errors in them don't matter here.
fn blocks(problem: &Problem) -> bool {
    let decides = problem.object.as_deref().is_none_or(manifest::decides_about_numbers);
    problem.severity == Severity::Error && decides
}

fn wanted(objects: &[Object], cluster: &str) -> Result<(Vec<LabelSet>, Vec<String>), Error> {
    let namespaces = snapshot::namespaces(objects);
    let (mut label_sets, mut nodes, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    for object in objects {
        match &object.body {
            Body::Node { .. } => nodes.push(object.key.name.clone()),
            Body::Pod(pod) if !pod.host_network && !pod.has_ended => {
                let namespace = object.key.namespace.as_deref().unwrap_or_default();
                match snapshot::labels(cluster, namespace, pod, &namespaces) {
                    Ok(labels) => label_sets.push(labels),
                    Err((field, message)) => problems.push(object.error(field, message)),
                }
            }
            Body::Pod(_)
            | Body::StandIn(_)
            | Body::Namespace { .. }
            | Body::Service { .. }
            | Body::Endpoints { .. }
            | Body::CidrGroup { .. }
            | Body::Identity(_)
            | Body::NodeNumber(_)
            | Body::Revocation(_)
            | Body::Policy(_) => {}
        }
    }
    if problems.is_empty() { Ok((label_sets, nodes)) } else { Err(Error::Problems(problems)) }
}

fn node_numbers(objects: &[Object]) -> BTreeMap<String, NodeNumber> {
    let number = |object: &Object| match object.body {
        Body::NodeNumber(number) => Some((object.key.name.clone(), number)),
        Body::Namespace { .. }
        | Body::Node { .. }
        | Body::Pod(_)
        | Body::StandIn(_)
        | Body::Service { .. }
        | Body::Endpoints { .. }
        | Body::CidrGroup { .. }
        | Body::Identity(_)
        | Body::Revocation(_)
        | Body::Policy(_) => None,
    };
    objects.iter().filter_map(number).collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<S> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    spec: S,
}

#[derive(Serialize)]
struct Metadata {
    name: String,
}

fn documents(allocation: &Allocation) -> Result<String, Error> {
    let mut text = String::new();
    for (name, number) in &allocation.nodes {
        text.push_str(&document("NodeNumber", name.clone(), NodeNumberSpec { number: *number })?);
    }
    for identity in &allocation.identities {
        text.push_str(&document("Identity", identity.number().to_string(), identity.to_spec())?);
    }
    Ok(text)
}

fn document(kind: &'static str, name: String, spec: impl Serialize) -> Result<String, Error> {
    let document = Document { api_version: API_VERSION, kind, metadata: Metadata { name }, spec };
    Ok(format!("---\n{}", serde_saphyr::to_string(&document)?))
}

/// Replaces the file by itself and `documents`: a reader sees either all of them or none.
fn append(directory: &Path, documents: &str) -> Result<(), Error> {
    let (path, temporary) = (directory.join(IDENTITIES_FILE), directory.join(TEMPORARY_FILE));
    let mut text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => HEADER.to_owned(),
        Err(source) => return Err(Error::Write { path, source }),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(documents);
    let replace = || {
        let mut file = options().truncate(true).mode(0o644).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        File::open(directory)?.sync_all()
    };
    replace().map_err(|source| Error::Write { path: path.clone(), source })
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).custom_flags(O_NOFOLLOW | O_CLOEXEC);
    options
}

/// The highest numbers ever given in a directory, locked against others who would give some.
struct Highest {
    path: PathBuf,
    file: Flock<File>,
    numbers: (IdentityNumber, NodeNumber),
}

impl Highest {
    fn lock(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(HIGHEST_FILE);
        let failed = |source| Error::Write { path: path.clone(), source };
        let file = options().truncate(false).mode(0o644).open(&path).map_err(failed)?;
        let mut file = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| failed(io::Error::from(error)))?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        let numbers = parse(&text).ok_or_else(|| {
            let message = "unreadable; write the highest identity number and the highest node number into it";
            failed(io::Error::new(io::ErrorKind::InvalidData, message))
        })?;
        Ok(Self { path, file, numbers })
    }

    fn raise(&mut self, allocation: &Allocation) -> Result<(), Error> {
        let (identity, node) = self.numbers;
        let identity = allocation.identities.iter().map(Identity::number).fold(identity, Ord::max);
        let node = allocation.nodes.values().copied().fold(node, Ord::max);
        // Numbers only grow, so the new text covers the old one.
        let write = |file: &mut Flock<File>| {
            file.rewind()?;
            file.write_all(format!("{identity} {node}\n").as_bytes())?;
            file.sync_all()
        };
        write(&mut self.file).map_err(|source| Error::Write { path: self.path.clone(), source })?;
        self.numbers = (identity, node);
        Ok(())
    }
}

fn parse(text: &str) -> Option<(IdentityNumber, NodeNumber)> {
    if text.is_empty() {
        return Some((0, 0));
    }
    let (identity, node) = text.trim_end().split_once(' ')?;
    Some((identity.parse().ok()?, node.parse().ok()?))
}
