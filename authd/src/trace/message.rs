//! Traces and policies as messages of the API.

use policy::{
    Condition, Considered, DirectionTrace, ObjectRef, Policy, RuleRef, Subject, Trace, TraceVerdict,
};

use super::{end::Resolved, port::Port};
use crate::api::v1;

pub(super) fn trace(
    from: Resolved,
    to: Resolved,
    port: &Port,
    trace: &Trace,
    notes: Vec<String>,
) -> v1::PolicyTrace {
    v1::PolicyTrace {
        from: Some(end(from)),
        to: Some(end(to)),
        port: port.to_string(),
        verdict: verdict(trace.verdict),
        authentication: trace.authentication.as_str().to_owned(),
        encryption: trace.encryption.as_str().to_owned(),
        audit: trace.audit,
        authentication_impossible: trace.authentication_impossible,
        egress: Some(direction(&trace.egress)),
        ingress: Some(direction(&trace.ingress)),
        decided_by: trace.decided_by.iter().map(rule).collect(),
        notes,
    }
}

pub(super) fn end(end: Resolved) -> v1::TraceEnd {
    // A node that has an identity of its own is one of the others all the same.
    let of_node = end.node.as_ref().map(|_| "remote-node");
    v1::TraceEnd {
        identity: end.identity,
        name: policy::reserved_name(end.identity).or(of_node).unwrap_or_default().to_owned(),
        labels: end.labels,
        pod: end.pod.unwrap_or_default(),
        service: end.service.unwrap_or_default(),
        address: end.address.map(|address| address.to_string()).unwrap_or_default(),
    }
}

fn direction(trace: &DirectionTrace) -> v1::DirectionTrace {
    v1::DirectionTrace {
        verdict: verdict(trace.verdict),
        authentication: trace.authentication.as_str().to_owned(),
        encryption: trace.encryption.as_str().to_owned(),
        audit: trace.audit,
        rule: trace.rule.as_ref().map(rule),
        default_deny: trace.default_deny.iter().map(rule).collect(),
        considered: trace.considered.iter().map(considered).collect(),
    }
}

fn considered(considered: &Considered) -> v1::ConsideredRule {
    v1::ConsideredRule {
        rule: Some(rule(&considered.rule)),
        denies: considered.denies,
        matches_peer: considered.matches_peer,
        matches_port: considered.matches_port,
    }
}

fn rule(rule: &RuleRef) -> v1::PolicyRule {
    let named = v1::PolicyRule { text: rule.to_string(), ..v1::PolicyRule::default() };
    let of = |origin: &str| v1::PolicyRule {
        origin: origin.to_owned(),
        object: rule.object().map(object),
        ..named.clone()
    };
    match rule {
        RuleRef::NoDefaultDeny { direction } => {
            v1::PolicyRule { direction: (*direction).to_owned(), ..of("noDefaultDeny") }
        }
        RuleRef::DefaultDeny { direction, .. } => {
            v1::PolicyRule { direction: (*direction).to_owned(), ..of("defaultDeny") }
        }
        RuleRef::LocalHost => of("localHost"),
        RuleRef::SamePod => of("samePod"),
        RuleRef::Refused { .. } => of("refused"),
        RuleRef::Rule { spec, list, rule, .. } => v1::PolicyRule {
            spec: spec.map(number),
            list: list.as_str().to_owned(),
            rule: Some(number(*rule)),
            ..of("rule")
        },
    }
}

fn object(object: &ObjectRef) -> v1::PolicyObject {
    v1::PolicyObject {
        kind: object.kind.as_str().to_owned(),
        namespace: object.namespace.clone(),
        name: object.name.clone(),
    }
}

fn verdict(verdict: TraceVerdict) -> String {
    let word = match verdict {
        TraceVerdict::Allowed => "allowed",
        TraceVerdict::Denied => "denied",
    };
    word.to_owned()
}

fn number(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

pub(super) fn policy(policy: &Policy, conditions: &[Condition]) -> v1::Policy {
    let subjects = policy.specs.iter().map(|spec| &spec.subject).chain(policy.refused.iter().flatten());
    let selectors = subjects.map(|subject| match subject {
        Subject::Endpoints(selector) => selector.to_string(),
        Subject::Nodes(selector) => format!("nodes: {selector}"),
    });
    let condition = |condition: &Condition| v1::PolicyCondition {
        kind: condition.kind.as_str().to_owned(),
        path: condition.path.clone(),
        message: condition.message.clone(),
    };
    let v1::PolicyObject { kind, namespace, name } = object(&policy.object);
    v1::Policy {
        kind,
        namespace,
        name,
        refused: policy.refused.is_some(),
        audit: policy.audit,
        selectors: selectors.collect(),
        rules: number(policy.specs.iter().map(|spec| spec.rules.len()).sum()),
        conditions: conditions.iter().map(condition).collect(),
    }
}
