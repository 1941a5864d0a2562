//! What is understood and yet can't be meant: rules that select nothing, and rules that others make useless.

use std::collections::{BTreeMap, BTreeSet};

use auth_ebpf_abi::IdentityNumber;

use crate::compile::{Input, meant};
use crate::condition::{Condition, ConditionKind};
use crate::identity::Identity;
use crate::local::LocalIdentities;
use crate::object::ObjectRef;
use crate::peer::{Peer, Peers};
use crate::rule::{Rule, Spec, Subject};

/// Warnings about each policy that has any, judged by the identities there are; without pods none are given
/// about whom a selector selects.
#[must_use]
pub fn lint(input: Input<'_>) -> BTreeMap<ObjectRef, Vec<Condition>> {
    let has_pods = input.identities.iter().any(|identity| !identity.is_reserved());
    let linter = Linter { input, has_pods, local: input.policies.local_identities(input.surroundings) };
    let of_policy = |policy: &crate::rule::Policy| {
        let warnings: Vec<Condition> = policy.specs.iter().flat_map(|spec| linter.spec(spec)).collect();
        (!warnings.is_empty()).then(|| (policy.object.clone(), warnings))
    };
    input.policies.iter().filter_map(of_policy).collect()
}

struct Linter<'a> {
    input: Input<'a>,
    has_pods: bool,
    local: LocalIdentities,
}

/// Whom a rule selects.
enum Whom {
    Any,
    These(BTreeSet<IdentityNumber>),
}

impl Whom {
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (Self::These(_), Self::Any) => false,
            (Self::These(these), Self::These(those)) => those.is_subset(these),
        }
    }
}

impl Linter<'_> {
    fn spec(&self, spec: &Spec) -> Vec<Condition> {
        let place = spec.place.map_or("spec".to_owned(), |place| format!("specs[{place}]"));
        let Subject::Endpoints(selector) = &spec.subject else { return Vec::new() };
        let mut subjects =
            self.input.identities.iter().filter(|identity| selector.matches(identity.labels()));
        let Some(subject) = subjects.find(|identity| !identity.is_reserved()) else {
            let message = "selects no pod there is: the policy has no effect".to_owned();
            let warning = Condition { kind: ConditionKind::SelectsNothing, path: place, message };
            return if self.has_pods { vec![warning] } else { Vec::new() };
        };
        let rules: Vec<(&Rule, Whom)> =
            spec.rules.iter().map(|rule| (rule, self.whom(rule, subject))).collect();
        let path = |rule: &Rule| format!("{place}.{}[{}]", rule.list.as_str(), rule.index);
        let warning = |at: usize, (rule, whom): &(&Rule, Whom)| {
            let (kind, message) = if self.is_empty(rule, whom) {
                (ConditionKind::SelectsNothing, "selects no one there is".to_owned())
            } else {
                let (other, does) = useless(at, &rules)?;
                (ConditionKind::Shadowed, format!("{} {does}", path(other)))
            };
            Some(Condition { kind, path: path(rule), message })
        };
        rules.iter().enumerate().filter_map(|(at, rule)| warning(at, rule)).collect()
    }

    fn whom(&self, rule: &Rule, subject: &Identity) -> Whom {
        let Input { identities, surroundings, .. } = self.input;
        match rule.peers {
            Peers::Any => Whom::Any,
            Peers::Selected(_) => {
                Whom::These(meant(rule, subject.labels(), identities, &self.local, surroundings))
            }
        }
    }

    /// Whether a rule that is about pods selects none. Rules without peers have a condition already, and
    /// names of DNS have no addresses before anybody asks.
    fn is_empty(&self, rule: &Rule, whom: &Whom) -> bool {
        let is_of_pods = |peer: &Peer| matches!(peer, Peer::Selector(_) | Peer::OwnCluster(_));
        let Whom::These(these) = whom else { return false };
        let peers = rule.peers.list();
        self.has_pods && these.is_empty() && !peers.is_empty() && peers.iter().all(is_of_pods)
    }
}

/// The rule that leaves nothing of the one at this place, and what it does.
fn useless<'a>(at: usize, rules: &[(&'a Rule, Whom)]) -> Option<(&'a Rule, &'static str)> {
    let (rule, whom) = rules.get(at)?;
    let is_nobody = matches!(whom, Whom::These(these) if these.is_empty());
    let covering = |(_, (other, of_other)): &(usize, &(&Rule, Whom))| {
        other.list.direction() == rule.list.direction() && of_other.covers(whom) && ports_cover(other, rule)
    };
    let others = || rules.iter().enumerate().filter(|(place, _)| *place != at && !is_nobody).filter(covering);
    let denies = others().find(|(_, (other, _))| other.list.is_deny() && !rule.list.is_deny());
    if let Some((_, (other, _))) = denies {
        return Some((other, "denies all of it"));
    }
    let says_as_much = |(place, (other, of_other)): &(usize, &(&Rule, Whom))| {
        let is_alike = ports_cover(rule, other) && whom.covers(of_other);
        other.list == rule.list
            && (other.authentication, other.encryption) == (rule.authentication, rule.encryption)
            && (*place < at || !is_alike)
    };
    others().find(says_as_much).map(|(_, (other, _))| (*other, "already says all of it"))
}

/// Whether the ports of `wide` have all those of `narrow`.
fn ports_cover(wide: &Rule, narrow: &Rule) -> bool {
    let covered = |port: &crate::port::PortPrefix| wide.ports.iter().any(|ports| ports.covers(*port));
    let named = |name| {
        wide.named_ports.contains(name)
            || wide.ports.iter().any(|ports| ports.covers(crate::port::PortPrefix::protocol(name.protocol)))
    };
    narrow.ports.iter().all(covered) && narrow.named_ports.iter().all(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IdentitySet, Pod, Policy, PolicySet, Surroundings};
    use serde_json::{Value, json};

    fn warnings(spec: &Value) -> Vec<String> {
        let pod = |number, app| {
            let pod = Pod { cluster: "default", namespace: "shop", service_account: "default" };
            Identity::new(number, pod.labels([("app", app)], []).unwrap()).unwrap()
        };
        let identities = IdentitySet::from_identities([pod(256, "web"), pod(257, "db")]).unwrap();
        let value = json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "p", "namespace": "shop"}, "spec": spec,
        });
        let policies = PolicySet::from_iter([Policy::from_value(&value).unwrap()]);
        let input =
            Input { policies: &policies, identities: &identities, surroundings: &Surroundings::default() };
        lint(input)
            .into_values()
            .flatten()
            .map(|warning| format!("{}: {}", warning.path, warning.message))
            .collect()
    }

    fn web(rules: &Value) -> Value {
        let mut spec = rules.clone();
        spec["endpointSelector"] = json!({"matchLabels": {"app": "web"}});
        spec
    }

    #[test]
    fn selectors_that_select_no_one() {
        let db = json!({"matchLabels": {"app": "db"}});
        let no_one = json!({"matchLabels": {"app": "bd"}});
        assert_eq!(
            warnings(&json!({"endpointSelector": no_one, "ingress": [{"fromEndpoints": [db]}]})),
            ["spec: selects no pod there is: the policy has no effect"]
        );
        assert_eq!(
            warnings(&web(&json!({"ingress": [{"fromEndpoints": [db]}, {"fromEndpoints": [no_one]}]}))),
            ["spec.ingress[1]: selects no one there is"]
        );
        assert!(warnings(&web(&json!({"egress": [{"toFQDNs": [{"matchName": "x.y"}]}]}))).is_empty());
        assert!(warnings(&web(&json!({"ingress": [{}]}))).is_empty(), "the way to deny everything");
    }

    #[test]
    fn rules_that_others_make_useless() {
        let db = json!([{"matchLabels": {"app": "db"}}]);
        let port = |port: &str| json!([{"ports": [{"port": port, "protocol": "TCP"}]}]);
        assert_eq!(
            warnings(&web(&json!({
                "ingress": [{"fromEndpoints": db, "toPorts": port("80")}],
                "ingressDeny": [{"fromEndpoints": [{}]}],
            }))),
            ["spec.ingress[0]: spec.ingressDeny[0] denies all of it"]
        );
        assert_eq!(
            warnings(&web(
                &json!({"ingress": [{"fromEndpoints": [{}]}, {"fromEndpoints": db, "toPorts": port("80")}]})
            )),
            ["spec.ingress[1]: spec.ingress[0] already says all of it"]
        );
        assert_eq!(
            warnings(&web(&json!({"ingress": [{"fromEndpoints": db}, {"fromEndpoints": db}]}))),
            ["spec.ingress[1]: spec.ingress[0] already says all of it"],
            "one of two that are alike"
        );
        let required =
            json!({"fromEndpoints": db, "toPorts": port("80"), "authentication": {"mode": "required"}});
        assert!(warnings(&web(&json!({"ingress": [{"fromEndpoints": [{}]}, required]}))).is_empty());
        let other = json!({"fromEndpoints": db, "toPorts": port("81")});
        let part = json!({"fromEndpoints": [{}], "toPorts": port("80")});
        assert!(warnings(&web(&json!({"ingress": [other], "ingressDeny": [part]}))).is_empty());
    }
}
