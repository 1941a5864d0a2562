//! Which flows an observer wants. Pure: the server and tests share it.

use super::v1::{Flow, FlowEnd, FlowFilter};

/// Whether `flow` has one of the values that `filter` wants, in every field that wants any.
#[must_use]
pub fn matches(filter: &FlowFilter, flow: &Flow) -> bool {
    any_of(&filter.verdicts, |verdict| *verdict == flow.verdict)
        && any_of(&filter.reasons, |reason| *reason == flow.reason)
        && any_of(&filter.from_pods, |pod| is_pod(pod, flow.source.as_ref()))
        && any_of(&filter.to_pods, |pod| is_pod(pod, flow.destination.as_ref()))
        && any_of(&filter.from_identities, |number| is_identity(*number, flow.source.as_ref()))
        && any_of(&filter.to_identities, |number| is_identity(*number, flow.destination.as_ref()))
}

fn any_of<T>(wanted: &[T], matches: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(matches)
}

fn is_identity(number: u32, end: Option<&FlowEnd>) -> bool {
    end.is_some_and(|end| end.identity == number)
}

/// `namespace/name`, `namespace/` or a name in any namespace; names match as a prefix, since a
/// deployment's pods share one.
fn is_pod(wanted: &str, end: Option<&FlowEnd>) -> bool {
    let Some((namespace, name)) = end.and_then(|end| end.pod.split_once('/')) else { return false };
    match wanted.split_once('/') {
        Some((wanted_namespace, wanted_name)) => {
            wanted_namespace == namespace && name.starts_with(wanted_name)
        }
        None => name.starts_with(wanted),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api::v1::{DropReason, Verdict};

    fn flow() -> Flow {
        let end = |pod: &str, identity| FlowEnd { pod: pod.to_owned(), identity, ..FlowEnd::default() };
        Flow {
            verdict: Verdict::Dropped.into(),
            reason: DropReason::PolicyDenied.into(),
            source: Some(end("default/xwing-0", 258)),
            destination: Some(end("empire/deathstar", 257)),
            ..Flow::default()
        }
    }

    #[test]
    fn an_empty_filter_lets_everything_through() {
        assert!(matches(&FlowFilter::default(), &flow()));
        assert!(matches(&FlowFilter::default(), &Flow::default()));
    }

    #[test]
    fn one_of_several_values_is_enough() {
        let verdicts = vec![Verdict::Forwarded.into(), Verdict::Dropped.into()];
        assert!(matches(&FlowFilter { verdicts, ..FlowFilter::default() }, &flow()));
    }

    #[test]
    fn every_field_must_match() {
        let filter = FlowFilter {
            verdicts: vec![Verdict::Dropped.into()],
            reasons: vec![DropReason::AuthRequired.into()],
            ..FlowFilter::default()
        };
        assert!(!matches(&filter, &flow()));
    }

    #[test]
    fn pods_match_by_namespace_and_prefix() {
        let from = |pod: &str| FlowFilter { from_pods: vec![pod.to_owned()], ..FlowFilter::default() };
        for pod in ["default/xwing", "default/xwing-0", "default/", "xwing", "x"] {
            assert!(matches(&from(pod), &flow()), "{pod}");
        }
        for pod in ["empire/xwing", "default/wing", "deathstar", "def/", "/xwing", "xwing-00"] {
            assert!(!matches(&from(pod), &flow()), "{pod}");
        }
    }

    #[test]
    fn what_is_no_pod_matches_no_pod() {
        let filter = FlowFilter { to_pods: vec![String::new()], ..FlowFilter::default() };
        assert!(!matches(&filter, &Flow { destination: Some(FlowEnd::default()), ..flow() }));
        assert!(!matches(&filter, &Flow { destination: None, ..flow() }));
    }

    #[test]
    fn ends_are_not_confused() {
        let to = FlowFilter { to_identities: vec![257], ..FlowFilter::default() };
        let from = FlowFilter { from_identities: vec![257], ..FlowFilter::default() };
        assert!(matches(&to, &flow()));
        assert!(!matches(&from, &flow()));
    }

    proptest! {
        #[test]
        fn more_wanted_values_never_match_less(
            wanted in prop::collection::vec(0u32..8, 1..4), more in 0u32..8, identity in 0u32..8,
        ) {
            let flow = Flow { source: Some(FlowEnd { identity, ..FlowEnd::default() }), ..Flow::default() };
            let filter = FlowFilter { from_identities: wanted.clone(), ..FlowFilter::default() };
            let mut wider = filter.clone();
            wider.from_identities.push(more);
            prop_assert_eq!(matches(&filter, &flow), wanted.contains(&identity));
            prop_assert!(!matches(&filter, &flow) || matches(&wider, &flow));
        }
    }
}
