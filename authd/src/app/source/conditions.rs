//! What is wrong or worth knowing, the worst first.

use std::collections::BTreeMap;

use auth_ebpf_abi::{Mode, NodeNumber, Setting};

use super::{DaemonSource, v1};
use crate::{
    cluster::{Cluster, Severity},
    config::Config,
    datapath::View,
    handover::Contested,
    svids::{IdentitySvid, Unused},
};

impl DaemonSource {
    pub(super) fn conditions(&self, cluster: &Cluster, view: &View) -> Vec<v1::Condition> {
        let mut conditions = Vec::new();
        for problem in &cluster.problems {
            let severity = match problem.severity {
                Severity::Error => v1::Severity::Error,
                Severity::Notice => v1::Severity::Warning,
            };
            let object = problem.object.as_ref().map(ToString::to_string).unwrap_or_default();
            conditions.push(condition(severity, "CLUSTER_STATE", object, problem.to_string()));
        }
        for (policy, message) in &view.conditions {
            conditions.push(condition(v1::Severity::Warning, "POLICY", policy.clone(), message.clone()));
        }
        for (what, why) in &view.failures {
            conditions.push(condition(v1::Severity::Error, "DATAPATH_INCOMPLETE", what.clone(), why.clone()));
        }
        for Contested { address, nodes } in &view.contested {
            let name = |number: &NodeNumber| match cluster.node_by_number(*number) {
                _ if *number == 0 => self.config.node_name.clone(),
                Some(node) => node.name.clone(),
                None => format!("number {number}"),
            };
            let nodes: Vec<String> = nodes.iter().map(name).collect();
            let message = format!(
                "nodes {} claim it; only the one counts where cluster state has its pod, and another is \
                 compromised or has two pods with one address",
                nodes.join(" and ")
            );
            let object = format!("Address {address}");
            conditions.push(condition(v1::Severity::Error, "ADDRESS_CONTESTED", object, message));
        }
        if let Some(why) = &self.found.borrow().failure {
            conditions.push(condition(v1::Severity::Error, "TUNNEL", String::new(), why.clone()));
        }
        for (node, why) in &self.found.borrow().wrong_claims {
            let message =
                format!("{why}; it is not used: find out who wrote it, and correct or remove the annotation");
            conditions.push(condition(
                v1::Severity::Warning,
                "WRONG_KEY_CLAIMED",
                format!("Node {node}"),
                message,
            ));
        }
        if self.config.hold && !self.can_hold() {
            let message =
                "first packets of pairs drop and are sent again: no hold device, or not guarded yet";
            conditions.push(condition(v1::Severity::Warning, "HOLD", String::new(), message.to_owned()));
        }
        if !self.naming.is_by_number() {
            let message = "a SPIFFE ID is that of a service account: authentication proves no more of a pod, \
                           and its registration is not authd's";
            conditions.push(condition(
                v1::Severity::Info,
                "SHARED_SPIFFE_IDS",
                String::new(),
                message.to_owned(),
            ));
        }
        self.service_conditions(cluster, view, &mut conditions);
        self.svid_conditions(&mut conditions);
        // Stable: what is equally bad stays in the order above.
        conditions.sort_by_key(|condition| std::cmp::Reverse(condition.severity));
        conditions
    }

    /// What the programs ask before they hold a packet.
    pub(super) fn can_hold(&self) -> bool {
        let get = |setting| self.maps.config().get(setting).unwrap_or_default();
        get(Setting::HoldIfindex) != 0 && get(Setting::HoldUntil) > self.clock.now().0
    }

    /// Which identities have their SVIDs otherwise than an agent with a Broker API would give them.
    fn fallbacks(&self) -> Vec<v1::Condition> {
        let mut by_reason: BTreeMap<Unused, Vec<String>> = BTreeMap::new();
        for (identity, known) in self.svids.all() {
            let unused = known.unused.filter(|_| known.credential.is_some());
            // Where `auto` finds no Broker API that is nothing to tell.
            if let Some(unused) = unused.filter(|unused| *unused != Unused::NoSocket) {
                by_reason.entry(unused).or_default().push(identity.to_string());
            }
        }
        let told = |(unused, identities): (Unused, Vec<String>)| {
            let message = format!(
                "SVIDs of {} come by the Delegated Identity API, as svid-source auto falls back to: {unused}",
                identities.join(", ")
            );
            condition(v1::Severity::Info, "SVID_SOURCE", String::new(), message)
        };
        by_reason.into_iter().map(told).collect()
    }

    /// Services that answer those outside at this node by chance: kube-proxy may choose a backend elsewhere, and
    /// gives what it sends there this node's address, in whose place there is no other.
    fn service_conditions(&self, cluster: &Cluster, view: &View, conditions: &mut Vec<v1::Condition>) {
        if self.config.policy_mode == Mode::Observe {
            return;
        }
        let Config { node_name, encryption, .. } = &*self.config;
        let outside = encryption.outside.in_use(cluster, node_name, &view.interfaces);
        for ((namespace, name), service) in &cluster.services {
            let missed = service.sent_on_in_vain(node_name, |address| outside.has_family_of(address));
            let others: Vec<&str> = missed.into_iter().collect();
            if others.is_empty() {
                continue;
            }
            let message = format!(
                "what comes from outside at this node, and kube-proxy sends on to a backend on {}, drops \
                 (MASQUERADED): set externalTrafficPolicy: Local, so that it stays with the backends here, or \
                 outside-ranges on every node, by which it reaches others",
                others.join(", ")
            );
            let object = format!("Service {namespace}/{name}");
            conditions.push(condition(v1::Severity::Warning, "SERVICE_FROM_OUTSIDE", object, message));
        }
    }

    fn svid_conditions(&self, conditions: &mut Vec<v1::Condition>) {
        conditions.extend(self.fallbacks());
        if self.svids.agent_is_stuck() {
            let message = "the SPIRE agent takes calls and answers none: restart it; SVIDs that are there count until \
                           they expire";
            conditions.push(condition(
                v1::Severity::Error,
                "SPIRE_AGENT_STUCK",
                String::new(),
                message.to_owned(),
            ));
        }
        let snapshot = self.svids.node_changes().borrow().clone();
        if self.svids.node().is_none() {
            let why = snapshot.problem.as_ref().map(ToString::to_string);
            let message = why.unwrap_or_else(|| {
                "the SPIRE agent has given this node no SVID; is there an entry for it?".to_owned()
            });
            conditions.push(condition(v1::Severity::Error, "NODE_SVID_MISSING", String::new(), message));
        }
        for (identity, known) in self.svids.all() {
            if self.svids.identity(identity).is_none() {
                let why = why_missing(&known).unwrap_or_else(|| "is there an entry for it?".to_owned());
                let message = format!("the SPIRE agent gives no SVID for {}: {why}", known.spiffe_id);
                conditions.push(condition(
                    v1::Severity::Warning,
                    "SVID_MISSING",
                    format!("Identity {identity}"),
                    message,
                ));
            }
        }
    }
}

/// Why an identity has no SVID, if that is known.
pub(super) fn why_missing(known: &IdentitySvid) -> Option<String> {
    let problem = known.problem.as_ref().map(ToString::to_string);
    let all = [known.unused.map(|unused| unused.to_string()), problem];
    let all: Vec<String> = all.into_iter().flatten().collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn condition(severity: v1::Severity, kind: &str, object: String, message: String) -> v1::Condition {
    v1::Condition { severity: severity.into(), r#type: kind.to_owned(), object, message, since: None }
}
