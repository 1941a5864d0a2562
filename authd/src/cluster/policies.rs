//! The set of policies, with those that can't be applied in it as refused: they deny what they are about.

use std::collections::BTreeMap;
use std::sync::Arc;

use policy::{Condition, ConditionKind, Input, ObjectRef, Policy, PolicySet};

use super::Cluster;
use super::manifest::{Body, Object, Refused};
use super::problem::Problem;
use super::snapshot::Missing;

/// Policies in force, and what is to be said about them.
pub(super) fn collect(
    objects: &[Object],
    refused: Vec<Refused>,
    cluster: &Cluster,
    missing: Missing,
) -> (PolicySet, Vec<Problem>) {
    let mut set = PolicySet::new();
    for object in objects {
        if let Body::Policy(policy) = &object.body {
            set.insert(Arc::clone(policy));
        }
    }
    let mut of_policies = set.conditions(&cluster.identities, &cluster.surroundings);
    if missing == Missing::Assumed {
        let Cluster { identities, surroundings, .. } = cluster;
        for (object, warnings) in policy::lint(Input { policies: &set, identities, surroundings }) {
            of_policies.entry(object).or_default().extend(warnings);
        }
    }
    let mut problems = conditions(objects, of_policies);
    for Refused { key, value, mut problem } in refused {
        let mut policy = denying(Policy::from_value_or_deny(&value), &problem.message);
        if policy.object.name.is_empty() || set.get(&policy.object).is_some() {
            rename(&mut policy.object, &problem);
        }
        problem.message.push_str("; ");
        problem.message.push_str(match key {
            Some(_) => policy.consequence(),
            None => "it may hold a policy, so everything that it may be about is denied",
        });
        set.insert(policy);
        problems.push(problem);
    }
    (set, problems)
}

/// The same policy, denying everything that it is about.
fn denying(policy: Policy, message: &str) -> Policy {
    if policy.refused.is_some() {
        return policy;
    }
    let scope = policy.specs.into_iter().map(|spec| spec.subject).collect();
    let condition = Condition {
        kind: ConditionKind::Refused,
        path: "metadata.name".to_owned(),
        message: message.to_owned(),
    };
    Policy {
        object: policy.object,
        specs: Vec::new(),
        refused: Some(scope),
        audit: false,
        conditions: vec![condition],
    }
}

/// Names are taken once in a set, so one that is missing or taken is told apart by its place.
fn rename(object: &mut ObjectRef, problem: &Problem) {
    let file = problem.file.as_deref().unwrap_or_default();
    let line = problem.line.map(|line| format!(":{line}")).unwrap_or_default();
    let space = if object.name.is_empty() { "" } else { " " };
    object.name.push_str(&format!("{space}({file}{line})"));
}

/// What policies ask for that isn't done as written.
fn conditions(objects: &[Object], mut of_policies: BTreeMap<ObjectRef, Vec<Condition>>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for object in objects {
        let Body::Policy(policy) = &object.body else { continue };
        for condition in of_policies.remove(&policy.object).unwrap_or_default() {
            problems.push(match condition.kind {
                ConditionKind::Refused | ConditionKind::Unsupported | ConditionKind::SharedSpiffeId => {
                    object.error(&condition.path, condition.message)
                }
                ConditionKind::AuthImpossible
                | ConditionKind::ForeignNamespace
                | ConditionKind::Ambiguous
                | ConditionKind::Shadowed
                | ConditionKind::SelectsNothing => object.notice(&condition.path, condition.message),
            });
        }
    }
    problems
}
