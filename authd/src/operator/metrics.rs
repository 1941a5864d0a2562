//! The operator's metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info};
use prometheus_client::registry::{Registry, Unit};
use spire_adapter::registration::{Registered, Report};

use super::wishes::Wishes;
use crate::http::Exposition;
use crate::metrics::saturate;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChangeLabels {
    change: &'static str,
}

/// What the operator counts.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    entries: Family<StateLabels, Gauge>,
    changes: Family<ChangeLabels, Counter>,
    converged: Gauge<f64, AtomicU64>,
    server_up: Gauge,
    nodes_without_agent: Gauge,
    cluster_problems: Gauge,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("authd_operator"),
            entries: Family::default(),
            changes: Family::default(),
            converged: Gauge::default(),
            server_up: Gauge::default(),
            nodes_without_agent: Gauge::default(),
            cluster_problems: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        let version = vec![("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
        registry.register("build", "Version of this operator", Info::new(version));
        registry.register("entries", "Registration entries by state", metrics.entries.clone());
        registry.register("changes", "Changes of entries at the server", metrics.changes.clone());
        registry.register_with_unit(
            "last_convergence_timestamp",
            "When the server last had every entry that it takes",
            Unit::Seconds,
            metrics.converged.clone(),
        );
        registry.register("server_up", "Whether the server answers", metrics.server_up.clone());
        registry.register(
            "nodes_without_agent",
            "Nodes for which SPIRE has attested no agent",
            metrics.nodes_without_agent.clone(),
        );
        registry.register(
            "cluster_problems",
            "Objects of the cluster state that could not be used",
            metrics.cluster_problems.clone(),
        );
        metrics
    }

    pub(super) fn wishes(&self, wishes: &Wishes, problems: usize) {
        self.nodes_without_agent.set(saturate(wishes.without_agent));
        self.cluster_problems.set(saturate(problems));
        self.set_entries("wanted", wishes.wanted.iter().count());
    }

    pub(super) fn report(&self, report: &Report) {
        let count = |wanted: fn(&Registered) -> bool| {
            report.entries.values().filter(|registered| wanted(registered)).count()
        };
        self.set_entries("present", count(|registered| matches!(registered, Registered::Yes)));
        self.set_entries("foreign", count(|registered| matches!(registered, Registered::Foreign)));
        self.set_entries("refused", count(|registered| matches!(registered, Registered::Refused { .. })));
        let changes = report.changes;
        for (change, total) in [
            ("created", changes.created),
            ("updated", changes.updated),
            ("deleted", changes.deleted),
            ("refused", changes.refused),
        ] {
            self.changes.get_or_create(&ChangeLabels { change }).inner().store(total, Ordering::Relaxed);
        }
        let since = report.converged.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        self.converged.set(since.map_or(0.0, |since| since.as_secs_f64()));
        self.server_up.set(report.problem.is_none().into());
    }

    fn set_entries(&self, state: &'static str, count: usize) {
        self.entries.get_or_create(&StateLabels { state }).set(saturate(count));
    }
}

impl Exposition for Metrics {
    fn registry(&self) -> &Registry {
        &self.registry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `docs/spire.md` says is kept complete.
    #[test]
    fn the_guide_has_every_metric() {
        let guide = include_str!("../../../docs/spire.md");
        let metrics = Metrics::new();
        metrics.wishes(&Wishes::default(), 0);
        metrics.report(&Report::default());
        let text = metrics.encode().unwrap();
        let types: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
        assert_eq!(types.len(), guide.matches("\n| `authd_operator_").count(), "{types:?}");
        for (name, kind) in types {
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let row = format!("| `{name}{suffix}` | {kind}");
            assert!(guide.contains(&row), "docs/spire.md has no row that begins {row}");
        }
    }
}
