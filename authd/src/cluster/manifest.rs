//! Manifests as typed objects: one file's text in, its objects and problems out.
//!
//! Kinds that the daemon has no use for are ignored; anything that may be a policy goes to the `policy`
//! crate, which refuses what it doesn't support. Of Kubernetes' kinds only the fields in use are looked
//! at; our own kinds may have no others.

mod body;
mod cilium;
mod class;
mod service;
mod spec;
mod strict;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use policy::{Identity, LabelSet, NamedPort, Policy};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::problem::Problem;
use super::revocation::Revoked;
use super::yaml::{self, Document};
use super::{Service, Slice};
pub(super) use class::decides_about_numbers;
use class::{Class, class};
use spec::Header;

/// The API group of our own kinds.
pub(super) const GROUP: &str = "authd.io";
/// `apiVersion` of our own kinds.
pub(super) const API_VERSION: &str = "authd.io/v1alpha1";

/// What tells objects apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ObjectKey {
    pub(super) kind: String,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// An object and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) key: ObjectKey,
    pub(super) file: Arc<str>,
    pub(super) document: Arc<Document>,
    pub(super) body: Body,
}

/// What an object says.
#[derive(Clone, Debug)]
pub(super) enum Body {
    Namespace {
        labels: BTreeMap<String, String>,
        audit: bool,
    },
    Node {
        labels: BTreeMap<String, String>,
        addresses: Vec<(String, IpAddr)>,
        pod_cidrs: Vec<IpNet>,
        claimed_key: Option<String>,
    },
    Pod(PodBody),
    /// What it stands for, or the field at fault and why: looked at only where manifests are tried. What
    /// makes pods stands for one of them, what Cilium keeps for what it is about.
    StandIn(Result<Box<Self>, (String, String)>),
    /// `selector` is none if its endpoints are kept by hand.
    Service {
        labels: BTreeMap<String, String>,
        selector: Option<BTreeMap<String, String>>,
        service: Box<Service>,
    },
    /// Addresses that stand behind a service of the same namespace, and, of a slice, all about them.
    Endpoints {
        service: String,
        addresses: Vec<IpAddr>,
        slice: Option<Slice>,
    },
    CidrGroup {
        labels: BTreeMap<String, String>,
        nets: Vec<IpNet>,
    },
    Identity(Box<Identity>),
    NodeNumber(u16),
    Revocation(Revoked),
    Policy(Arc<Policy>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodBody {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) node: Option<String>,
    pub(super) service_account: String,
    pub(super) host_network: bool,
    /// Whether it has run to its end: its addresses may be another's by now.
    pub(super) has_ended: bool,
    /// Whether it is the image of a static pod, which its node alone has made.
    pub(super) mirror: bool,
    /// Field and address.
    pub(super) addresses: Vec<(String, IpAddr)>,
    /// The ports of its containers that have names.
    pub(super) named_ports: Vec<(NamedPort, u16)>,
    /// The labels of its identity, where they are given and don't follow from its own.
    pub(super) identity: Option<LabelSet>,
}

/// A policy, or what may have been one, that can't be applied.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    /// None if not even the kind could be read.
    pub(super) key: Option<ObjectKey>,
    pub(super) value: Value,
    pub(super) problem: Problem,
}

/// A file's content.
#[derive(Clone, Debug, Default)]
pub(super) struct Manifest {
    pub(super) objects: Vec<Object>,
    /// Errors in objects that can't be policies.
    pub(super) problems: Vec<Problem>,
    pub(super) refused: Vec<Refused>,
}

impl Refused {
    /// A policy whose name is another's: nobody can tell which one is meant, so this one denies.
    pub(super) fn duplicate(object: &Object, problem: Problem) -> Option<Self> {
        let is_policy = matches!(object.body, Body::Policy(_));
        is_policy.then(|| Self { key: Some(object.key.clone()), value: object.document.value(), problem })
    }
}

impl Manifest {
    /// A file that couldn't be read at all.
    pub(super) fn unreadable(file: &str, message: &str) -> Self {
        let problem = Problem::error(message).in_file(file);
        Self { refused: vec![Refused { key: None, value: Value::Null, problem }], ..Self::default() }
    }

    /// Whether everything in the file could be read.
    pub(super) fn is_good(&self) -> bool {
        self.problems.is_empty() && self.refused.is_empty()
    }
}

impl Object {
    /// An error in a field of this object.
    pub(super) fn error(&self, field: &str, message: impl Into<String>) -> Problem {
        self.place(Problem::error(message), field)
    }

    /// A notice about a field of this object.
    pub(super) fn notice(&self, field: &str, message: impl Into<String>) -> Problem {
        self.place(Problem::notice(message), field)
    }

    fn place(&self, problem: Problem, field: &str) -> Problem {
        let problem = problem.in_file(&self.file).at_line(self.document.line_of(field)).about(&self.key);
        if field.is_empty() { problem } else { problem.in_field(field) }
    }
}

/// Reads a file's text.
pub(super) fn read(file: &str, text: &str) -> Manifest {
    let mut reader = Reader { file: file.into(), manifest: Manifest::default() };
    for document in yaml::read(text) {
        match document {
            Ok(document) => reader.document(&document, None),
            Err(unreadable) => {
                let problem = Problem::error(unreadable.message).in_file(file).at_line(unreadable.line);
                reader.manifest.refused.push(Refused { key: None, value: Value::Null, problem });
            }
        }
    }
    reader.manifest
}

struct Reader {
    file: Arc<str>,
    manifest: Manifest,
}

/// A mistake in one object; the field is empty if the object as a whole is meant.
struct Mistake {
    field: String,
    message: String,
}

impl Mistake {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

impl Reader {
    /// `list` is the type that the items of a typed list share, and usually leave out themselves.
    fn document(&mut self, document: &Document, list: Option<(&str, &str)>) {
        let mut value = document.value();
        if let (Some((api_version, kind)), Some(map)) = (list, value.as_object_mut()) {
            map.entry("apiVersion").or_insert_with(|| api_version.into());
            map.entry("kind").or_insert_with(|| kind.into());
        }
        let header = match header(&value) {
            Ok(header) => header,
            Err(mistake) => return self.reject(document, None, value, &mistake, Scope::Policy),
        };
        if let Some(kind) = header.kind.strip_suffix("List") {
            return self.list(document, value, &header, kind);
        }
        match class(&header) {
            Class::Ignored => {
                tracing::debug!(file = %self.file, kind = header.kind, "ignored a manifest of a kind that isn't used");
            }
            Class::Mistaken(mistake) => self.reject(document, None, value, &mistake, Scope::Cluster),
            Class::Used(scope) => self.object(document, value, header, scope),
        }
    }

    fn list(&mut self, document: &Document, value: Value, header: &Header, kind: &str) {
        let Some(items) = document.list("items") else {
            let mistake = Mistake::new("items", "a list needs a list of items");
            return self.reject(document, None, value, &mistake, Scope::Policy);
        };
        let list = (!kind.is_empty()).then_some((header.api_version.as_str(), kind));
        for item in items {
            self.document(item, list);
        }
    }

    fn object(&mut self, document: &Document, value: Value, header: Header, scope: Scope) {
        let key = match key(&header, scope) {
            Ok(key) => key,
            Err(mistake) => return self.reject(document, None, value, &mistake, scope),
        };
        match body::read(&key, header, &value, scope) {
            Ok(body) => {
                let (file, document) = (Arc::clone(&self.file), Arc::new(document.clone()));
                self.manifest.objects.push(Object { key, file, document, body });
            }
            Err(mistake) => self.reject(document, Some(key), value, &mistake, scope),
        }
    }

    fn reject(
        &mut self,
        at: &Document,
        key: Option<ObjectKey>,
        value: Value,
        mistake: &Mistake,
        scope: Scope,
    ) {
        let mut problem = self.problem(at, mistake);
        if let Some(key) = &key {
            problem = problem.about(key);
        }
        match scope {
            Scope::Policy => self.manifest.refused.push(Refused { key, value, problem }),
            Scope::Namespaced | Scope::Cluster => self.manifest.problems.push(problem),
            Scope::StandIn { .. } => {
                tracing::debug!(%problem, "ignored a manifest of a kind that isn't used")
            }
        }
    }

    fn problem(&self, document: &Document, mistake: &Mistake) -> Problem {
        let line = document.line_of(&mistake.field);
        let problem = Problem::error(&mistake.message).in_file(&self.file).at_line(line);
        if mistake.field.is_empty() { problem } else { problem.in_field(&mistake.field) }
    }
}

/// What every object has.
fn header(value: &Value) -> Result<Header, Mistake> {
    const IS_LIST: &str = "is a list, not an object with `apiVersion`, `kind` and `metadata`; rules such as `cilium policy import` \
         takes are for `specs` of a CiliumClusterwideNetworkPolicy, objects for `items` of a List";
    const IS_NONE: &str = "is no object with `apiVersion`, `kind` and `metadata`";
    let Some(fields) = value.as_object() else {
        return Err(Mistake::new("", if value.is_array() { IS_LIST } else { IS_NONE }));
    };
    let misspelt = |known: &&str| {
        let found = fields.keys().find(|key| key.eq_ignore_ascii_case(known) && key != known);
        found.filter(|_| !fields.contains_key(*known)).map(|found| (found.clone(), (*known).to_owned()))
    };
    match ["apiVersion", "kind", "metadata"].iter().find_map(misspelt) {
        Some((found, known)) => Err(Mistake::new(found, format!("unknown field; did you mean `{known}`?"))),
        None => typed(value),
    }
}

/// Where an object lives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Namespaced,
    Cluster,
    /// In a namespace or not, and of no use to the daemon: it stands for something else.
    StandIn {
        in_namespace: bool,
    },
    /// A policy: its kind decides, and the `policy` crate knows which.
    Policy,
}

fn key(header: &Header, scope: Scope) -> Result<ObjectKey, Mistake> {
    let name = header.metadata.name.clone().ok_or_else(|| Mistake::new("metadata.name", "missing"))?;
    check_name("metadata.name", &name)?;
    let is_namespaced = match scope {
        Scope::Namespaced | Scope::StandIn { in_namespace: true } => true,
        Scope::Cluster | Scope::StandIn { in_namespace: false } => false,
        Scope::Policy => !header.kind.contains("Clusterwide"),
    };
    let namespace =
        is_namespaced.then(|| header.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()));
    if let Some(namespace) = &namespace {
        check_name("metadata.namespace", namespace)?;
    }
    Ok(ObjectKey { kind: header.kind.clone(), namespace, name })
}

/// Names go into SPIFFE IDs, tables and logs, so nothing but Kubernetes' own characters is let in.
fn check_name(field: &str, name: &str) -> Result<(), Mistake> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let edges = name.starts_with(['-', '.']) || name.ends_with(['-', '.']);
    if name.is_empty() || name.len() > 253 || edges || !name.chars().all(allowed) {
        let message = format!("{name:?} is no Kubernetes name (a-z, 0-9, '-' and '.', at most 253)");
        return Err(Mistake::new(field, message));
    }
    Ok(())
}

fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, Mistake> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { String::new() } else { path };
        Mistake::new(field, error.into_inner().to_string())
    })
}

#[cfg(test)]
mod damaged;
#[cfg(test)]
mod tests;
