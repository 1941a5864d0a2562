//! Single kinds of packets, each repeated with its maps hot.

use auth_ebpf::abi::packet::icmp as types;
use auth_ebpf::abi::{Address, AuthType, Direction, Hook};
use auth_ebpf::{Choices, Datapath, TestPacket};

use crate::fill::{at_boot_time, fill};
use crate::frames::{Parts, ack, icmp, syn, syn_ack, udp};
use crate::report::{Report, median};
use crate::scene::*;
use crate::tables::Tables;

const ROUNDS: usize = 31;
const REPEAT: u32 = 30_000;
const ESTABLISHED_GOAL: f64 = 60.0;
const DECISION_GOAL: f64 = 120.0;
const FAMILIES_GOAL: f64 = 1.15;

struct Case {
    name: String,
    hook: Hook,
    ingress: u32,
    bytes: Vec<u8>,
    goal: Option<f64>,
}

/// Everybody must authenticate, and has.
fn authenticated() -> Tables {
    let mut tables = locked();
    for direction in [Direction::Egress, Direction::Ingress] {
        allow(&mut tables, HERE_ID, direction, THERE_ID, AuthType::Spire);
    }
    authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 1);
    tables
}

fn case(name: &str, hook: Hook, ingress: u32, parts: &Parts, goal: Option<f64>) -> Case {
    let bytes = match hook {
        Hook::FromWireguard | Hook::ToWireguard => parts.ip(),
        Hook::FromPod | Hook::ToPod | Hook::FromUplink | Hook::ToUplink | Hook::FromHold | Hook::ToHold => {
            parts.ethernet()
        }
    };
    Case { name: name.to_owned(), hook, ingress, bytes, goal }
}

/// The cases at a pod's interface, for one family.
fn at_pod(family: &str, here: Address, there: Address) -> Vec<Case> {
    let out = |name: &str, parts: Parts, goal| {
        case(&format!("{name}, {family}"), Hook::FromPod, HERE_IFINDEX, &parts, goal)
    };
    let back = |name: &str, parts: Parts, goal| {
        case(&format!("{name}, {family}"), Hook::ToPod, WIREGUARD_IFINDEX, &parts, goal)
    };
    // Neither looked for among connections nor remembered: what a first segment costs up to its entry.
    let (untracked, echo) = if here.is_v4() { (13, types::ECHO) } else { (200, types::V6_ECHO) };
    vec![
        out("established, sent", ack((here, 1), (there, 80)), Some(ESTABLISHED_GOAL)),
        back("established, received", ack((there, 80), (here, 1)), Some(ESTABLISHED_GOAL)),
        out("new decision", icmp(here, there, untracked, 5), Some(DECISION_GOAL)),
        out("new decision, segment of no connection", ack((here, 2), (there, 80)), None),
        out("new decision and connection entry, TCP", syn((here, 3), (there, 80)), None),
        out("new decision and connection entry, echo", icmp(here, there, echo, 5), None),
    ]
}

fn borders() -> Vec<Case> {
    let tunnel = udp((OTHER_NODE, WIREGUARD_PORT), (HOST, WIREGUARD_PORT));
    let tunnel_out = udp((HOST, WIREGUARD_PORT), (OTHER_NODE, WIREGUARD_PORT));
    vec![
        case("from_wireguard", Hook::FromWireguard, WIREGUARD_IFINDEX, &ack((THERE, 7), (HERE, 80)), None),
        case("to_wireguard", Hook::ToWireguard, HERE_IFINDEX, &ack((HERE, 7), (THERE, 80)), None),
        case("from_uplink, tunnel", Hook::FromUplink, UPLINK_IFINDEX, &tunnel, None),
        case("to_uplink, tunnel", Hook::ToUplink, 0, &tunnel_out, None),
        case("from_uplink, world", Hook::FromUplink, UPLINK_IFINDEX, &ack((WORLD, 7), (HOST, 80)), None),
    ]
}

/// Opens what the established cases rest on.
fn open(datapath: &mut Datapath, here: Address, there: Address) {
    for (hook, ingress, parts) in [
        (Hook::FromPod, HERE_IFINDEX, syn((here, 1), (there, 80))),
        (Hook::ToPod, WIREGUARD_IFINDEX, syn_ack((there, 80), (here, 1))),
        (Hook::FromPod, HERE_IFINDEX, ack((here, 1), (there, 80))),
    ] {
        run(datapath, &case("", hook, ingress, &parts, None), 1);
    }
}

fn packet(case: &Case, repeat: u32) -> TestPacket<'_> {
    TestPacket { ifindex: HERE_IFINDEX, ingress_ifindex: case.ingress, bytes: &case.bytes, repeat }
}

fn run(datapath: &mut Datapath, case: &Case, repeat: u32) -> f64 {
    let (verdict, duration) = datapath.test_run(case.hook, &packet(case, repeat)).unwrap();
    assert_eq!(verdict, auth_ebpf::abi::Verdict::Forwarded, "{}", case.name);
    duration.as_nanos() as f64
}

/// Connections by way of a service. The program changes the packet, which the next run of a repeat would see:
/// so each run is given its destination anew, and how long that takes is taken off.
fn services(datapath: &mut Datapath, report: &mut Report) {
    const CHOICES: Choices = Choices { addresses: 1, ports: 1 };
    // Of the address, the first byte is not given anew: the service and its backend share it.
    let (client, service, backend) = ((HERE, 1), (v4([10, 0, 0, 0]), 1), (THERE, 8080));
    let mut tables = authenticated();
    serve(&mut tables, service.0, service.1, 1, 0, &[backend]);
    at_boot_time(&mut tables);
    fill(datapath.maps(), &tables);
    for (hook, ingress, parts) in [
        (Hook::FromPod, HERE_IFINDEX, syn(client, service)),
        (Hook::ToPod, WIREGUARD_IFINDEX, syn_ack(backend, client)),
        (Hook::FromPod, HERE_IFINDEX, ack(client, service)),
    ] {
        run(datapath, &case("", hook, ingress, &parts, None), 1);
    }
    for (name, parts) in [
        ("established by way of a service, sent, IPv4", ack(client, service)),
        ("new decision by way of a service, segment of no connection, IPv4", ack((HERE, 2), service)),
    ] {
        let case = case(name, Hook::FromPod, HERE_IFINDEX, &parts, None);
        let costs = (0..ROUNDS).map(|_| {
            let packet = packet(&case, REPEAT);
            let baseline = datapath.test_run_varied(None, &packet, CHOICES).unwrap().as_nanos() as f64;
            let cost = datapath.test_run_varied(Some(case.hook), &packet, CHOICES).unwrap().as_nanos() as f64;
            cost - baseline
        });
        report.cost(&case.name, median(costs.collect()), None);
    }
}

/// Established connections again, but each packet by itself after other work of the kernel and of programs, as
/// in traffic: most of what it needs is in the second-level cache at best.
fn after_other_work(datapath: &mut Datapath, report: &mut Report, cases: &[Case]) {
    const TIMES: usize = 3_000;
    let mut memory = vec![0_u8; 256 * 1024];
    let mut work = || {
        for byte in memory.iter_mut().step_by(64) {
            *byte = byte.wrapping_add(1);
        }
        std::hint::black_box(std::fs::read("/proc/self/status").unwrap());
    };
    for case in cases.iter().filter(|case| case.name.starts_with("established")) {
        let costs = (0..TIMES).map(|_| {
            work();
            let baseline = datapath.test_run_baseline(&packet(case, 1)).unwrap().as_nanos() as f64;
            work();
            run(datapath, case, 1) - baseline
        });
        report.cost(&format!("{}, after other work", case.name), median(costs.collect()), None);
    }
}

pub(crate) fn measure(datapath: &mut Datapath, report: &mut Report) {
    let mut tables = authenticated();
    at_boot_time(&mut tables);
    fill(datapath.maps(), &tables);
    open(datapath, HERE, THERE);
    open(datapath, HERE_V6, THERE_V6);
    let cases: Vec<Case> = at_pod("IPv4", HERE, THERE)
        .into_iter()
        .chain(at_pod("IPv6", HERE_V6, THERE_V6))
        .chain(borders())
        .collect();
    let mut rounds: Vec<Vec<f64>> = cases.iter().map(|_| vec![]).collect();
    let mut baselines = vec![];
    for _ in 0..ROUNDS {
        for (case, costs) in cases.iter().zip(&mut rounds) {
            let baseline = datapath.test_run_baseline(&packet(case, REPEAT)).unwrap().as_nanos() as f64;
            costs.push(run(datapath, case, REPEAT) - baseline);
            baselines.push(baseline);
        }
    }
    report.cost("a program that does nothing", median(baselines), None);
    for (case, costs) in cases.iter().zip(rounds) {
        report.cost(&case.name, median(costs), case.goal);
    }
    for name in ["established, sent", "established, received", "new decision"] {
        let ratio = report.value(&format!("{name}, IPv6")) / report.value(&format!("{name}, IPv4"));
        report.ratio(&format!("{name}, IPv6 over IPv4"), ratio, FAMILIES_GOAL);
    }
    after_other_work(datapath, report, &cases);
    services(datapath, report);
}
