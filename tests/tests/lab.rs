//! The harness itself: labs connect, captures see, and nothing outlives its lab.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use authd_tests::capture::Expected;
use authd_tests::http::Connection;
use authd_tests::lab::node::Family;
use authd_tests::lab::processes_of;
use authd_tests::probe::Probe;
use authd_tests::{Lab, Node, Pod, Process, binaries, skip, wait};

const LIMIT: Duration = Duration::from_secs(5);
const NEEDLE: &str = "the plans of the death star";

/// Two nodes with one pod each, as on paper.
struct Pair {
    lab: Lab,
    nodes: [Node; 2],
    client: Pod,
    server: Pod,
}

fn addresses(v4: &str, v6: &str) -> Result<[IpAddr; 2]> {
    Ok([v4.parse()?, v6.parse()?])
}

fn pair(name: &str) -> Result<Pair> {
    let lab = Lab::new(name)?;
    let node1 = lab.node(
        "node1",
        &addresses("10.0.0.1", "fd00:10::1")?,
        &["10.244.1.0/24".parse()?, "fd00:10:244:1::/64".parse()?],
    )?;
    let node2 = lab.node(
        "node2",
        &addresses("10.0.0.2", "fd00:10::2")?,
        &["10.244.2.0/24".parse()?, "fd00:10:244:2::/64".parse()?],
    )?;
    let client = node1.pod("client", &addresses("10.244.1.10", "fd00:10:244:1::10")?)?;
    let server = node2.pod("server", &addresses("10.244.2.10", "fd00:10:244:2::10")?)?;
    Ok(Pair { lab, nodes: [node1, node2], client, server })
}

fn serve(pair: &Pair) -> Result<Process> {
    let command = pair.server.command(binaries::path("deathstar")?);
    let process = Process::start(&pair.lab, &pair.server, "deathstar", command)?;
    let to = SocketAddr::new(pair.server.address(Family::V4)?, 80);
    wait::until(LIMIT, || pair.server.tcp_connect(to, LIMIT).ok()).context("the server does not listen")?;
    Ok(process)
}

#[test]
fn pods_on_two_nodes_reach_each_other_and_the_capture_shows_it() {
    if !skip::lab_available("pods_on_two_nodes_reach_each_other_and_the_capture_shows_it") {
        return;
    }
    let pair = pair("reach").unwrap();
    let _server = serve(&pair).unwrap();
    let capture = pair.lab.capture().unwrap();
    for family in Family::ALL {
        let to = SocketAddr::new(pair.server.address(family).unwrap(), 80);
        let mut connection = Connection::open(&pair.client, to, LIMIT).unwrap();
        for _ in 0..3 {
            let answer = connection.request("POST", "/v1/request-landing", NEEDLE, LIMIT).unwrap();
            assert_eq!((answer.status, answer.body.as_str()), (200, "Ship landed\n"));
        }
    }
    let frames = capture.stop().unwrap();
    let nodes = pair.nodes.iter().flat_map(|node| node.addresses().to_owned()).collect();
    let counts = frames.count(&Expected { nodes, wireguard: 51871, handshake: 4250 });
    assert!(frames.containing(NEEDLE.as_bytes()) >= 6, "in the clear, each request is seen");
    assert!(counts.other >= 6, "{counts}");
    assert_eq!((counts.wireguard, counts.handshake, counts.link), (0, 0, 0), "{counts}");
}

#[test]
fn an_idle_underlay_is_silent() {
    if !skip::lab_available("an_idle_underlay_is_silent") {
        return;
    }
    let pair = pair("silent").unwrap();
    let capture = pair.lab.capture().unwrap();
    wait::pause(Duration::from_secs(2));
    let frames = capture.stop().unwrap();
    assert!(frames.is_empty(), "{frames:?}");
}

#[test]
fn a_capture_has_what_tcpdump_had_yet_to_read() {
    if !skip::lab_available("a_capture_has_what_tcpdump_had_yet_to_read") {
        return;
    }
    let pair = pair("behind").unwrap();
    let _server = serve(&pair).unwrap();
    let capture = pair.lab.capture().unwrap();
    let signal = |lab: &Lab, signal: &str| {
        let to = format!("grep -lx tcpdump /proc/*/comm | cut -d/ -f3 | xargs kill -{signal}");
        lab.exec(["sh", "-c", &to]).unwrap();
    };
    signal(&pair.lab, "STOP");
    let to = SocketAddr::new(pair.server.address(Family::V4).unwrap(), 80);
    let mut connection = Connection::open(&pair.client, to, LIMIT).unwrap();
    connection.request("POST", "/v1/request-landing", NEEDLE, LIMIT).unwrap();
    let lab = pair.lab.clone();
    let going_on = thread::spawn(move || {
        wait::pause(Duration::from_millis(300));
        signal(&lab, "CONT");
    });
    let frames = capture.stop().unwrap();
    going_on.join().unwrap();
    assert!(frames.containing(NEEDLE.as_bytes()) >= 1);
}

#[test]
fn a_probe_sees_when_traffic_stops_and_flows() {
    if !skip::lab_available("a_probe_sees_when_traffic_stops_and_flows") {
        return;
    }
    let pair = pair("probe").unwrap();
    let _server = serve(&pair).unwrap();
    let to = SocketAddr::new(pair.server.address(Family::V6).unwrap(), 80);
    let probe = Probe::start(&pair.client, to);
    let start = std::time::Instant::now();
    assert!(probe.flows_after(start, LIMIT).is_some());
    pair.nodes[1].ip("link set eth0 down\n").unwrap();
    let cut = std::time::Instant::now();
    let stopped = probe.stops_after(cut, Duration::from_millis(200), LIMIT).expect("it still flows");
    assert!(stopped < Duration::from_millis(100), "{stopped:?}");
    let restored = std::time::Instant::now();
    assert_eq!(probe.flows_after(restored, Duration::from_millis(100)), None);
}

#[test]
fn each_node_has_its_own_bpf_file_system_and_run_directory() {
    if !skip::lab_available("each_node_has_its_own_bpf_file_system_and_run_directory") {
        return;
    }
    let pair = pair("mounts").unwrap();
    let [one, two] = &pair.nodes;
    one.exec(["mkdir", "/sys/fs/bpf/authd"]).unwrap();
    one.exec(["touch", "/run/authd/here"]).unwrap();
    assert!(two.exec(["test", "-e", "/sys/fs/bpf/authd"]).is_err());
    assert!(two.exec(["test", "-e", "/run/authd/here"]).is_err());
    assert!(one.outside("/run/authd/here".as_ref()).exists());
    assert!(pair.lab.exec(["ip", "netns", "list"]).unwrap().contains("client"));
    assert!(!std::path::Path::new("/run/netns/client").exists());
}

#[test]
fn an_address_that_a_forked_child_still_holds_is_waited_for() {
    if !skip::lab_available("an_address_that_a_forked_child_still_holds_is_waited_for") {
        return;
    }
    let lab = Lab::new("released").unwrap();
    let listener = lab.underlay().tcp_listen("127.0.0.1:9000".parse().unwrap()).unwrap();
    let held = listener.try_clone().unwrap();
    drop(listener);
    let child = thread::spawn(move || {
        wait::pause(Duration::from_millis(200));
        drop(held);
    });
    drop(lab.underlay().tcp_listen("[::]:9000".parse().unwrap()).unwrap());
    child.join().unwrap();
}

#[test]
fn a_failing_command_says_what_it_printed() {
    if !skip::lab_available("a_failing_command_says_what_it_printed") {
        return;
    }
    let lab = Lab::new("failing").unwrap();
    let error = lab.exec(["sh", "-c", "echo out; echo err >&2; exit 3"]).unwrap_err().to_string();
    for part in ["out", "err", "exit status: 3"] {
        assert!(error.contains(part), "{error}");
    }
}

/// How a process that has a lab ends.
const ENDINGS: [&str; 3] = ["panic", "abort", "wait"];
/// Set in that process, which runs the same test.
const ENDING: &str = "AUTHD_TEST_ENDING";

#[test]
fn nothing_outlives_its_lab() {
    if !skip::lab_available("nothing_outlives_its_lab") {
        return;
    }
    if let Ok(ending) = std::env::var(ENDING) {
        let pair = pair("doomed").unwrap();
        let _server = serve(&pair).unwrap();
        let _capture = pair.lab.capture().unwrap();
        println!("LAB={}", pair.lab.name());
        match ending.as_str() {
            "panic" => panic!("as it should"),
            "abort" => std::process::abort(),
            _ => return wait::pause(Duration::from_secs(60)),
        }
    }
    for ending in ENDINGS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "nothing_outlives_its_lab", "--nocapture"])
            .env(ENDING, ending)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let name = lines.find_map(|line| line.split_once("LAB=").map(|(_, name)| name.to_owned())).unwrap();
        if ending == "wait" {
            assert!(processes_of(&name).unwrap().len() > 6, "the lab has processes while it lives");
            child.kill().unwrap();
        }
        child.wait().unwrap();
        let gone = wait::until(LIMIT, || processes_of(&name).unwrap().is_empty().then_some(()));
        assert!(gone.is_some(), "after {ending}: {:?}", processes_of(&name));
    }
}

#[test]
fn a_kept_lab_lives_until_its_keeper_ends() {
    if !skip::lab_available("a_kept_lab_lives_until_its_keeper_ends") {
        return;
    }
    let lab = Lab::new("kept").unwrap();
    let keeper = lab.keep().unwrap();
    let name = lab.name().to_owned();
    // Between two programs, a process has no environment for a moment.
    let kept = wait::until(LIMIT, || processes_of(&name).unwrap().contains(&keeper).then_some(()));
    assert!(kept.is_some());
    Command::new("kill").arg(keeper.to_string()).status().unwrap();
    let ended = wait::until(LIMIT, || lab.exec(["true"]).is_err().then_some(()));
    assert!(ended.is_some());
}
