//! Prometheus metrics. Names carry base units; labels come from fixed enums, never from addresses or names.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
        histogram::Histogram,
        info::Info,
    },
    registry::{Registry, Unit},
};

use crate::http::Exposition;

/// Bounds of the handshake latency histogram, in seconds.
const LATENCY_BUCKETS: [f64; 11] = [0.001, 0.002, 0.003, 0.005, 0.01, 0.015, 0.03, 0.1, 0.3, 1.0, 5.0];

/// How a handshake ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandshakeLabels {
    side: &'static str,
    result: &'static str,
    reason: &'static str,
}

/// Which part of a handshake was ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SideLabels {
    side: &'static str,
}

/// How a proof over a node session ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProofLabels {
    proof: &'static str,
    result: &'static str,
    reason: &'static str,
}

/// Why a program had to be attached again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RepairLabels {
    /// `displaced` or `removed`.
    pub cause: &'static str,
}

/// A label with a name of a thing that the daemon keeps.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

/// A drop or pass that the programs counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketCount {
    /// Name of the hook.
    pub hook: &'static str,
    /// Verdict.
    pub verdict: &'static str,
    /// Drop reason, empty for none.
    pub reason: &'static str,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What the programs have counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Packets by fate.
    pub packets: Vec<PacketCount>,
    /// Events that the ring buffer had no room for.
    pub lost_events: u64,
}

/// Reads the kernel's counters when metrics are scraped.
pub type PacketCounts = Box<dyn Fn() -> Counted + Send + Sync>;

/// Every metric of the daemon.
pub struct Metrics {
    registry: Registry,
    handshakes: Family<HandshakeLabels, Counter>,
    handshake_latency: Family<SideLabels, Histogram, fn() -> Histogram>,
    identity_proofs: Family<ProofLabels, Counter>,
    node_sessions: Family<StateLabels, Gauge>,
    svids: Family<StateLabels, Gauge>,
    /// Entries of the auth map that this daemon keeps.
    pub auth_entries: Gauge,
    /// Requests for authentication that were dropped because too many were waiting.
    pub auth_requests_dropped: Counter,
    /// Packets that the daemon holds until their pair has authenticated.
    pub held_packets: Gauge,
    /// How long they were held.
    pub hold_time: Histogram,
    /// 1 while packets can be held.
    pub hold_up: Gauge,
    /// Handshakes that run, begun here.
    pub handshakes_running: Gauge,
    /// Pairs that wait for their turn.
    pub handshakes_waiting: Gauge,
    /// Entries that the map had lost.
    pub auth_rewritten: Counter,
    /// SVIDs of another SPIFFE ID than their identity's.
    pub svids_refused: Counter,
    /// 1 while the SPIRE agent takes calls and answers none.
    pub agent_stuck: Gauge,
    /// Seconds until the first SVID of a local identity expires; 0 without any.
    pub svid_expiry: Gauge<f64, AtomicU64>,
    /// Endpoints on this node with programs attached.
    pub endpoints: Gauge,
    /// Programs that others had displaced or removed, and that are back.
    pub program_repairs: Family<RepairLabels, Counter>,
    /// Entries of the policy map.
    pub policy_entries: Gauge,
    /// 1 while the policy map has no room for what policies ask.
    pub policy_overflow: Gauge,
    /// Ports of services' addresses that pods are led from.
    pub service_ports: Gauge,
    /// Backends behind them.
    pub service_backends: Gauge,
    /// Addresses that several nodes claim.
    pub contested_addresses: Gauge,
    /// How often one has come to be claimed by several.
    pub contested_claims: Counter,
    /// Objects of the cluster state that could not be used.
    pub cluster_problems: Gauge,
    /// 1 while the tunnel process answers.
    pub tunnel_up: Gauge,
    /// Peers in the WireGuard device.
    pub wireguard_peers: Gauge,
    /// Nodes of which annotations say a wrong WireGuard key.
    pub wrong_key_claims: Gauge,
    /// Seconds until the node's own SVID expires; 0 without a valid one.
    pub node_svid_expiry: Gauge<f64, AtomicU64>,
    /// 1 while policy, or encryption, lets pass what it would drop.
    pub observing: Family<ModeLabels, Gauge<i64, AtomicI64>>,
}

/// What a mode is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ModeLabels {
    /// `policy` or `encryption`.
    pub of: &'static str,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Registers everything; `packets` is called at each scrape.
    #[must_use]
    pub fn new(packets: PacketCounts) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("authd"),
            handshakes: Family::default(),
            handshake_latency: Family::new_with_constructor(|| Histogram::new(LATENCY_BUCKETS)),
            identity_proofs: Family::default(),
            node_sessions: Family::default(),
            svids: Family::default(),
            auth_entries: Gauge::default(),
            auth_requests_dropped: Counter::default(),
            handshakes_running: Gauge::default(),
            handshakes_waiting: Gauge::default(),
            auth_rewritten: Counter::default(),
            svids_refused: Counter::default(),
            agent_stuck: Gauge::default(),
            svid_expiry: Gauge::default(),
            held_packets: Gauge::default(),
            hold_time: Histogram::new(LATENCY_BUCKETS),
            hold_up: Gauge::default(),
            endpoints: Gauge::default(),
            program_repairs: Family::default(),
            policy_entries: Gauge::default(),
            policy_overflow: Gauge::default(),
            service_ports: Gauge::default(),
            service_backends: Gauge::default(),
            contested_addresses: Gauge::default(),
            contested_claims: Counter::default(),
            cluster_problems: Gauge::default(),
            tunnel_up: Gauge::default(),
            wireguard_peers: Gauge::default(),
            wrong_key_claims: Gauge::default(),
            node_svid_expiry: Gauge::default(),
            observing: Family::default(),
        };
        metrics.register_authentication();
        metrics.register_svids();
        metrics.register_node();
        metrics.registry.register_collector(Box::new(PacketCollector(Mutex::new(packets))));
        metrics
    }

    fn register_authentication(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "handshakes",
            "Handshakes of identity pairs by result and reason",
            self.handshakes.clone(),
        );
        registry.register_with_unit(
            "handshake_latency",
            "Time of a successful handshake of an identity pair",
            Unit::Seconds,
            self.handshake_latency.clone(),
        );
        registry.register(
            "identity_proofs",
            "Proofs of identities over node sessions by result and reason",
            self.identity_proofs.clone(),
        );
        registry.register("auth_entries", "Authenticated pairs", self.auth_entries.clone());
        registry.register(
            "auth_requests_dropped",
            "Requests for authentication dropped because too many were waiting",
            self.auth_requests_dropped.clone(),
        );
        registry.register("held_packets", "Packets held until authentication", self.held_packets.clone());
        registry.register_with_unit(
            "hold_time",
            "How long packets were held until authentication",
            Unit::Seconds,
            self.hold_time.clone(),
        );
        registry.register("hold_up", "Whether packets can be held", self.hold_up.clone());
        registry.register(
            "handshakes_running",
            "Handshakes that run, begun here",
            self.handshakes_running.clone(),
        );
        registry.register(
            "handshakes_waiting",
            "Pairs that wait for their turn to authenticate",
            self.handshakes_waiting.clone(),
        );
        registry.register("node_sessions", "Sessions with other nodes by state", self.node_sessions.clone());
        registry.register(
            "auth_rewritten",
            "Authentications that were missing from the map and written again",
            self.auth_rewritten.clone(),
        );
    }

    fn register_svids(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "svids_refused",
            "Times that the SPIRE agent had SVIDs of other SPIFFE IDs for an identity, and none of its own",
            self.svids_refused.clone(),
        );
        registry.register(
            "spire_agent_stuck",
            "Whether the SPIRE agent takes calls and answers none",
            self.agent_stuck.clone(),
        );
        registry.register_with_unit(
            "svid_expiry",
            "Time until the first SVID of a local identity expires",
            Unit::Seconds,
            self.svid_expiry.clone(),
        );
        registry.register("svids", "SVIDs of local identities by state", self.svids.clone());
        registry.register_with_unit(
            "node_svid_expiry",
            "Time until the node's own SVID expires",
            Unit::Seconds,
            self.node_svid_expiry.clone(),
        );
    }

    fn register_node(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "build",
            "Version of this daemon",
            Info::new(vec![("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]),
        );
        registry.register("endpoints", "Endpoints with programs attached", self.endpoints.clone());
        registry.register("policy_entries", "Entries of the policy map", self.policy_entries.clone());
        registry.register(
            "policy_overflow",
            "Whether the policy map has no room for what policies ask",
            self.policy_overflow.clone(),
        );
        registry.register(
            "service_ports",
            "Ports of services' addresses in the map of services",
            self.service_ports.clone(),
        );
        registry.register(
            "service_backends",
            "Entries of the map of services' backends",
            self.service_backends.clone(),
        );
        registry.register(
            "contested_addresses",
            "Addresses that several nodes claim",
            self.contested_addresses.clone(),
        );
        registry.register(
            "contested_claims",
            "Claims to an address that another node claims, refused",
            self.contested_claims.clone(),
        );
        registry.register(
            "program_repairs",
            "Programs that others had displaced or removed, attached again",
            self.program_repairs.clone(),
        );
        registry.register(
            "cluster_problems",
            "Objects of the cluster state that could not be used",
            self.cluster_problems.clone(),
        );
        registry.register("tunnel_up", "Whether the tunnel process answers", self.tunnel_up.clone());
        registry.register("wireguard_peers", "Peers in the WireGuard device", self.wireguard_peers.clone());
        registry.register(
            "wrong_key_claims",
            "Nodes of which the cluster state says a wrong WireGuard key",
            self.wrong_key_claims.clone(),
        );
        registry.register(
            "observing",
            "Whether a check lets pass what it would drop",
            self.observing.clone(),
        );
    }

    /// Counts a handshake that ended after `latency` at our `side` of it: well, or for a reason.
    pub fn handshake(&self, side: &'static str, outcome: Result<(), &'static str>, latency: Duration) {
        let (result, reason) = match outcome {
            Ok(()) => ("success", ""),
            Err(reason) => ("failure", reason),
        };
        self.handshakes.get_or_create(&HandshakeLabels { side, result, reason }).inc();
        if outcome.is_ok() {
            self.handshake_latency.get_or_create(&SideLabels { side }).observe(latency.as_secs_f64());
        }
    }

    /// Counts a proof of an identity over a node session, `made` here or `verified`: well, or not for a reason.
    pub fn proof(&self, proof: &'static str, outcome: Result<(), &'static str>) {
        let (result, reason) = match outcome {
            Ok(()) => ("success", ""),
            Err(reason) => ("failure", reason),
        };
        self.identity_proofs.get_or_create(&ProofLabels { proof, result, reason }).inc();
    }

    /// Sets how many node sessions are live and how many are lost.
    pub fn set_node_sessions(&self, live: usize, lost: usize) {
        for (state, count) in [("live", live), ("lost", lost)] {
            self.node_sessions.get_or_create(&StateLabels { state }).set(saturate(count));
        }
    }

    /// Sets how many local identities have a valid SVID and how many lack one.
    pub fn set_svids(&self, valid: usize, missing: usize) {
        for (state, count) in [("valid", valid), ("missing", missing)] {
            self.svids.get_or_create(&StateLabels { state }).set(saturate(count));
        }
    }
}

impl Exposition for Metrics {
    fn registry(&self) -> &Registry {
        &self.registry
    }
}

/// A count as gauges have it.
pub(crate) fn saturate(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PacketLabels {
    hook: &'static str,
    verdict: &'static str,
    reason: &'static str,
}

/// Shows the programs' counters.
struct PacketCollector(Mutex<PacketCounts>);

impl fmt::Debug for PacketCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PacketCollector")
    }
}

impl Collector for PacketCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counted = (self.0.lock().unwrap_or_else(PoisonError::into_inner))();
        let mut encode_all = |name: &str, help: &str, value: fn(&PacketCount) -> u64| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for count in &counted.packets {
                let labels = PacketLabels { hook: count.hook, verdict: count.verdict, reason: count.reason };
                ConstCounter::new(value(count)).encode(family.encode_family(&labels)?)?;
            }
            Ok(())
        };
        encode_all("packets", "Packets by hook, verdict and reason", |count| count.packets)?;
        encode_all("packet_bytes", "Bytes by hook, verdict and reason", |count| count.bytes)?;
        let lost = encoder.encode_descriptor(
            "events_lost",
            "Events that the ring buffer had no room for",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(counted.lost_events).encode(lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_stable() {
        let metrics = Metrics::new(Box::new(|| Counted {
            packets: vec![PacketCount {
                hook: "to_pod",
                verdict: "DROPPED",
                reason: "POLICY_DENIED",
                packets: 3,
                bytes: 180,
            }],
            lost_events: 7,
        }));
        metrics.handshake("client", Ok(()), Duration::from_millis(4));
        metrics.handshake("server", Err("timeout"), Duration::from_secs(5));
        metrics.set_node_sessions(1, 0);
        let text = metrics.encode().unwrap();
        for line in [
            r#"authd_handshakes_total{side="client",result="success",reason=""} 1"#,
            r#"authd_handshakes_total{side="server",result="failure",reason="timeout"} 1"#,
            r#"authd_handshake_latency_seconds_bucket{le="0.005",side="client"} 1"#,
            "authd_events_lost_total 7",
            r#"authd_node_sessions{state="live"} 1"#,
            r#"authd_packets_total{hook="to_pod",verdict="DROPPED",reason="POLICY_DENIED"} 3"#,
            r#"authd_packet_bytes_total{hook="to_pod",verdict="DROPPED",reason="POLICY_DENIED"} 180"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    /// What `docs/operations.md` says is kept complete, so that nobody is paged for a name that it lacks.
    #[test]
    fn the_operations_guide_has_every_metric_and_drop_reason() {
        let guide = include_str!("../../docs/operations.md");
        let metrics = Metrics::new(Box::new(|| Counted {
            packets: vec![PacketCount {
                hook: "to_pod",
                verdict: "FORWARDED",
                reason: "",
                packets: 1,
                bytes: 60,
            }],
            lost_events: 0,
        }));
        metrics.handshake("client", Ok(()), Duration::from_millis(4));
        metrics.proof("made", Ok(()));
        metrics.set_node_sessions(1, 0);
        metrics.set_svids(1, 0);
        metrics.observing.get_or_create(&ModeLabels { of: "policy" }).set(0);
        metrics.program_repairs.get_or_create(&RepairLabels { cause: "displaced" }).inc();
        let text = metrics.encode().unwrap();
        let types: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .map(|(name, kind)| match kind {
                "counter" => format!("| `{name}_total` | counter"),
                "info" => format!("| `{name}_info` | info"),
                _ => format!("| `{name}` | {kind}"),
            })
            .collect();
        assert_eq!(types.len(), guide.matches("\n| `authd_").count(), "{types:#?}");
        let reasons = auth_ebpf_abi::DropReason::ALL;
        let rows = reasons.iter().map(|reason| format!("| `{}` | {} |", reason.as_str(), *reason as u8));
        for row in types.into_iter().chain(rows) {
            assert!(guide.contains(&row), "docs/operations.md has no row that begins {row}");
        }
    }
}
