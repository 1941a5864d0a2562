//! Fixed messages, and the comparison of what is made of them with the files in `testdata/authctl`.
//! `AUTHD_UPDATE_GOLDEN=1 cargo test` writes the files anew: read the difference before you commit it.

use std::{fs, path::Path};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::output::{Origin, Sourced, json};
use crate::api::{self, v1::*};

/// The time at which everything is rendered.
pub(super) const NOW: Timestamp = Timestamp::constant(1_787_569_200, 0);

/// Compares `actual` with a file.
pub(super) fn golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/authctl").join(name);
    if std::env::var_os("AUTHD_UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, actual).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, expected, "{} differs; AUTHD_UPDATE_GOLDEN=1 writes it anew", path.display());
}

/// Compares the JSON of a daemon's answer with a file.
pub(super) fn golden_json<T: Serialize>(name: &str, body: T) {
    golden(name, &json(&Sourced { source: Origin::Daemon, body }).unwrap());
}

/// So many seconds from now.
pub(super) fn at(seconds: i64) -> Option<api::Timestamp> {
    Some(NOW.checked_add(SignedDuration::from_secs(seconds)).unwrap().into())
}

fn strings<const N: usize>(strings: [&str; N]) -> Vec<String> {
    strings.map(str::to_owned).to_vec()
}

pub(super) fn status() -> Status {
    let guard = || Some(GuardState { mode: Mode::Enforce.into(), off_until: None });
    Status {
        version: "0.1.0".to_owned(),
        node: "n1".to_owned(),
        node_number: 1,
        trust_domain: "empire.example".to_owned(),
        attached_by: "tcx".to_owned(),
        started: at(-7_500),
        policy: guard(),
        encryption: guard(),
        policies: Some(PolicyState { accepted: 2, rejected: 0, map_entries: 14 }),
        spire: Some(Spire {
            connected: true,
            node_spiffe_id: "spiffe://empire.example/authd/node/n1".to_owned(),
            node_svid_expires: at(2_530),
            identities_with_svid: vec![256, 258],
            identities_missing_svid: Vec::new(),
            svid_source: "auto".to_owned(),
            svid_apis: vec!["Broker API".to_owned()],
        }),
        tunnel: Some(Tunnel {
            interface: "authd0".to_owned(),
            public_key: "mH5Ay2cAf6cCJ0pcVGDpLDKzNZKB8N2mEqI4kMyGKkI=".to_owned(),
            listen_port: 51871,
            peers: 1,
            reachable: true,
        }),
        endpoints: vec![
            Endpoint {
                pod: "default/tiefighter".to_owned(),
                addresses: strings(["10.1.1.10", "fd00:1:1::10"]),
                identity: 256,
                interface: "veth-tie".to_owned(),
                attached: true,
                direct: true,
            },
            Endpoint {
                pod: "default/xwing".to_owned(),
                addresses: strings(["10.1.1.11"]),
                identity: 258,
                interface: "veth-xwing".to_owned(),
                attached: true,
                direct: true,
            },
        ],
        nodes: vec![Node {
            name: "n2".to_owned(),
            number: 2,
            addresses: strings(["192.168.7.2"]),
            live: true,
            tls_group: "X25519MLKEM768".to_owned(),
            since: at(-3_600),
            expires: at(2_400),
            problem: String::new(),
        }],
        auth_entries: 2,
        hold: Some(Hold { configured: true, active: true }),
        conditions: Vec::new(),
        pending: Vec::new(),
    }
}

pub(super) fn troubled_status() -> Status {
    let mut status = status();
    status.policy = Some(GuardState { mode: Mode::Enforce.into(), off_until: at(1_500) });
    status.encryption = Some(GuardState { mode: Mode::Observe.into(), off_until: None });
    status.policies = Some(PolicyState { accepted: 1, rejected: 1, map_entries: 9 });
    status.spire = status.spire.map(|spire| Spire {
        identities_with_svid: vec![256],
        identities_missing_svid: vec![258],
        ..spire
    });
    status.tunnel = status.tunnel.map(|tunnel| Tunnel { reachable: false, ..tunnel });
    status.endpoints.push(Endpoint { pod: "default/ywing".to_owned(), ..Endpoint::default() });
    status.nodes.push(Node {
        name: "n3".to_owned(),
        number: 3,
        addresses: strings(["192.168.7.3", "fd00:7::3"]),
        problem: "192.168.7.3:4250: connection refused".to_owned(),
        ..Node::default()
    });
    status.conditions = vec![Condition {
        severity: Severity::Error.into(),
        r#type: "POLICY_REFUSED".to_owned(),
        object: "CiliumNetworkPolicy default/landing".to_owned(),
        message: "spec.ingress[0].toPorts[0].rules: layer 7 rules are not supported\u{1b}[2J".to_owned(),
        since: at(-90),
    }];
    status.pending = strings(["node SVID", "cluster state"]);
    status
}

pub(super) fn entries() -> Vec<AuthEntry> {
    let entry = |local: u32, remote: u32, node: u32, expires: i64, valid: bool| AuthEntry {
        local_identity: local,
        remote_identity: remote,
        remote_node: node,
        remote_node_name: if node == 0 { "n1".to_owned() } else { "n2".to_owned() },
        auth_type: AuthType::Spire.into(),
        expires: at(expires),
        local_spiffe_id: format!("spiffe://empire.example/identity/{local}"),
        remote_spiffe_id: format!("spiffe://empire.example/identity/{remote}"),
        tls_group: "X25519MLKEM768".to_owned(),
        method: if node == 0 { "local" } else { "session" }.to_owned(),
        established: at(-60),
        handshake_microseconds: 3_421,
        valid,
        why: "requested".to_owned(),
        epoch: 1,
        draining: false,
    };
    let of_maps = AuthEntry {
        remote_node_name: String::new(),
        local_spiffe_id: String::new(),
        remote_spiffe_id: String::new(),
        tls_group: String::new(),
        method: String::new(),
        established: None,
        handshake_microseconds: 0,
        why: String::new(),
        ..entry(257, 260, 9, 30, true)
    };
    vec![
        entry(256, 257, 2, 3_247, true),
        entry(257, 256, 0, -5, false),
        entry(257, 258, 2, 600, false),
        of_maps,
    ]
}

/// What a daemon says whose agent has not given an SVID yet.
pub(super) fn explanation() -> AuthExplanation {
    use crate::explain::{Entry, Facts, Handshake, Path, Policy, Session, Svid, explain};

    let rule = PolicyRule {
        text: "CiliumNetworkPolicy default/rule1 spec.ingress[0]".to_owned(),
        origin: "rule".to_owned(),
        ..PolicyRule::default()
    };
    let end = |pod: &str, identity| TraceEnd { identity, pod: pod.to_owned(), ..TraceEnd::default() };
    explain(Facts {
        node: "n1".to_owned(),
        from: end("default/tiefighter", 256),
        to: end("default/deathstar", 257),
        port: "80/TCP".to_owned(),
        policy: Policy::Traced(Box::new(PolicyTrace {
            verdict: "allowed".to_owned(),
            authentication: "required".to_owned(),
            decided_by: vec![rule],
            ..PolicyTrace::default()
        })),
        revoked: Vec::new(),
        runs_on: strings(["n1", "n2"]).to_vec(),
        paths: vec![Path {
            key: auth_ebpf_abi::AuthKey { local: 256, remote: 257, node: 2, auth_type: 1, pad: 0 },
            node: "n2".to_owned(),
            local_svid: Svid::Pending {
                spiffe_id: "spiffe://empire.example/identity/256".to_owned(),
                problem: String::new(),
            },
            remote_svid: Svid::Announced,
            session: Session::Up {
                since: at(-3_600).unwrap(),
                expires: at(2_400).unwrap(),
                group: "X25519MLKEM768".to_owned(),
                preshared_since: at(-1_200),
            },
            handshake: Handshake::Asked,
            entry: Entry::None,
            held: Some((2, at(-1))),
        }],
    })
}

pub(super) fn encryption() -> Encryption {
    Encryption {
        guard: Some(GuardState { mode: Mode::Enforce.into(), off_until: None }),
        backend: Backend::Userspace.into(),
        interface: "authd0".to_owned(),
        public_key: "mH5Ay2cAf6cCJ0pcVGDpLDKzNZKB8N2mEqI4kMyGKkI=".to_owned(),
        listen_port: 51871,
        reachable: true,
        peers: vec![
            WireguardPeer {
                node: "n2".to_owned(),
                public_key: "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=".to_owned(),
                endpoint: "192.168.7.2:51871".to_owned(),
                allowed_ips: strings(["10.1.2.0/24", "fd00:1:2::/64"]),
                latest_handshake: at(-94),
                received_bytes: 7_834_960,
                sent_bytes: 848,
                session_live: true,
            },
            WireguardPeer { node: "n3".to_owned(), ..WireguardPeer::default() },
        ],
    }
}

pub(super) fn svids() -> Vec<Svid> {
    let node = Svid {
        identity: 0,
        spiffe_id: "spiffe://empire.example/authd/node/n1".to_owned(),
        state: SvidState::Available.into(),
        not_before: at(-1_080),
        expires: at(2_530),
        leaf_sha256: "5b".repeat(32),
        chain_length: 1,
        trust_domains: strings(["empire.example"]),
        source: "Workload API".to_owned(),
        problem: String::new(),
    };
    let withdrawn = Svid {
        identity: 258,
        spiffe_id: "spiffe://empire.example/identity/258".to_owned(),
        state: SvidState::Withdrawn.into(),
        source: "Delegated Identity API".to_owned(),
        problem: "not authorized at /run/spire/sockets/admin.sock: no identity issued".to_owned(),
        ..Svid::default()
    };
    vec![node, withdrawn]
}

pub(super) fn bundles() -> Vec<Bundle> {
    let anchor = |byte: &str, seconds| TrustAnchor { sha256: byte.repeat(32), expires: at(seconds) };
    vec![
        Bundle {
            trust_domain: "empire.example".to_owned(),
            anchors: vec![anchor("0a", 86_400), anchor("0b", 172_800)],
            identities: vec![0, 256],
        },
        Bundle {
            trust_domain: "rebels.example".to_owned(),
            anchors: vec![anchor("c0", 3_600)],
            identities: vec![256],
        },
    ]
}

pub(super) fn identities() -> Vec<Identity> {
    vec![
        Identity { number: 1, name: "host".to_owned(), ..Identity::default() },
        Identity {
            number: 256,
            namespace: "default".to_owned(),
            service_account: "tiefighter".to_owned(),
            labels: strings(["k8s:class=tiefighter", "k8s:org=empire"]),
            spiffe_id: "spiffe://empire.example/identity/256".to_owned(),
            svid: SvidState::Available.into(),
            svid_expires: at(2_530),
            pods: strings(["default/tiefighter"]),
            ..Identity::default()
        },
        Identity {
            number: 257,
            namespace: "default".to_owned(),
            service_account: "deathstar".to_owned(),
            labels: strings(["k8s:class=deathstar", "k8s:org=empire"]),
            spiffe_id: "spiffe://empire.example/identity/257".to_owned(),
            svid: SvidState::Pending.into(),
            ..Identity::default()
        },
    ]
}

pub(super) fn flows() -> Vec<Flow> {
    let end = |pod: &str, address: &str, port: u32, identity: u32| FlowEnd {
        address: address.to_owned(),
        port,
        identity,
        pod: pod.to_owned(),
        labels: strings(["k8s:org=empire"]),
    };
    let allowed = Flow {
        time: at(-3),
        verdict: Verdict::Forwarded.into(),
        reason: DropReason::Unspecified.into(),
        hook: Hook::FromPod.into(),
        direction: Direction::Egress.into(),
        interface: "veth-tie".to_owned(),
        source: Some(end("default/tiefighter", "10.1.1.10", 43210, 256)),
        destination: Some(end("default/deathstar", "10.1.2.10", 80, 257)),
        protocol: 6,
        length: 60,
        node: "n1".to_owned(),
        remote_node: "n2".to_owned(),
        auth_type: AuthType::Spire.into(),
        encrypted: true,
        reply: false,
        rule: "CiliumNetworkPolicy default/landing".to_owned(),
        log: "landings".to_owned(),
        service: "default/deathstar:80".to_owned(),
    };
    let reply = Flow {
        reply: true,
        source: allowed.destination.clone(),
        destination: allowed.source.clone(),
        hook: Hook::ToPod.into(),
        direction: Direction::Ingress.into(),
        service: String::new(),
        ..allowed.clone()
    };
    let denied = Flow {
        verdict: Verdict::Dropped.into(),
        reason: DropReason::PolicyDenied.into(),
        source: Some(end("default/xwing", "fd00:1:1::11", 0, 258)),
        destination: Some(FlowEnd { labels: strings(["reserved:world"]), ..end("", "2001:db8::1", 443, 2) }),
        protocol: 17,
        remote_node: String::new(),
        auth_type: AuthType::Disabled.into(),
        encrypted: false,
        rule: String::new(),
        log: String::new(),
        service: String::new(),
        ..allowed.clone()
    };
    vec![allowed, reply, denied]
}
