//! Identity policy: labels, selectors, policies and their compilation into map entries.
//!
//! Pure: no I/O, no clock, no async. What it cannot understand or keep it refuses by name, and a refused
//! policy denies.

mod allocate;
mod cidr;
mod compile;
mod condition;
mod engine;
mod fqdn;
mod identity;
mod label;
mod label_set;
mod lint;
mod local;
mod lookup;
mod nearest;
mod object;
mod parse;
mod peer;
mod plan;
mod pod;
mod policy_set;
mod port;
mod rule;
mod selector;
mod surroundings;
mod trace;

pub use allocate::{AllocateError, Allocated, Allocation, allocate};
pub use auth_ebpf_abi::{
    AuthType, Choice, Direction, IdentityNumber, NodeNumber, PolicyEntry, PolicyKey, identity as reserved,
};
pub use cidr::{ALL_V4, ALL_V6, CidrBlock, prefix_key};
pub use compile::{Compiled, Input, PolicyMap, compile};
pub use condition::{Condition, ConditionKind};
pub use engine::{AuthenticationPairs, Engine};
pub use fqdn::{NameSelector, canonical_name};
pub use identity::{
    Identity, IdentityError, IdentitySet, IdentitySpec, LAST_USER, NodeNumberSpec, RESERVED, reserved_name,
};
pub use label::{
    CLUSTER_KEY, Label, LabelError, LabelKey, NAMESPACE_KEY, NAMESPACE_LABELS_PREFIX, SERVICE_ACCOUNT_KEY,
    Source,
};
pub use label_set::LabelSet;
pub use lint::lint;
pub use local::{LocalIdentities, Place};
pub use lookup::lookup;
pub use nearest::nearest;
pub use object::{Kind, ObjectRef, RuleList, RuleRef};
pub use parse::{Fault, PolicyError, Problem};
pub use peer::{GroupSelector, Peer, Peers, Remote, ServiceSelector};
pub use plan::{Growth, Held, MapKey, Overflow, Plan, Step};
pub use pod::{Pod, is_relevant};
pub use policy_set::PolicySet;
pub use port::{NamedPort, PortPrefix, protocol};
pub use rule::{Policy, Rule, Spec, Subject};
pub use selector::{Operator, Requirement, Selector};
pub use surroundings::{CidrGroup, NamedPorts, Node, Service, Surroundings};
pub use trace::{
    Authentication, Considered, DirectionTrace, Encryption, Nodes, Trace, TraceVerdict, Traffic, trace,
    trace_with_nodes,
};
