//! What deciding on every packet costs between two pods of a node, beside iptables and nftables with the
//! same allow-list, at sizes up to 100,000 rules; and beside programs that do nothing, for what of it is the
//! hooks' own.
//!
//! `make bench-forwarding`; without cargo's `--bench`, as in `cargo test`, everything runs once and briefly.
//! Each wall is measured beside the same path without any, and only the ratio of such neighbours counts: the
//! machine's mood hits both. Programs, of which a hundredth is asked, can step aside and back within
//! milliseconds, and do so many times.

mod load;
mod report;
mod wall;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use auth_ebpf_abi::Hook;
use authd_tests::lab::node::Family;
use authd_tests::{Lab, Node, Pod};
use load::{Figures, Server};
use report::Report;
use wall::Wall;

const PORT: u16 = 8080;

/// Two pods of one node.
struct Site {
    node: Node,
    client: Pod,
    server: Pod,
}

impl Site {
    fn new(lab: &Lab) -> Result<Self> {
        let node = lab.node("node1", &["10.0.0.1".parse()?], &["10.244.1.0/24".parse()?])?;
        let client = node.pod("client", &["10.244.1.10".parse()?])?;
        let server = node.pod("server", &["10.244.1.20".parse()?])?;
        Ok(Self { node, client, server })
    }

    fn target(&self) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.server.address(Family::V4)?, PORT))
    }

    /// Changes something at every hook of both pods.
    fn at_each_hook(&self, mut change: impl FnMut(Hook, &str) -> Result<()> + Send) -> Result<()> {
        self.node.run(|| {
            let pods = [&self.client, &self.server].into_iter();
            let mut hooks =
                pods.flat_map(|pod| [Hook::FromPod, Hook::ToPod].map(|hook| (hook, pod.interface())));
            hooks.try_for_each(|(hook, interface)| change(hook, interface))
        })?
    }
}

/// How thoroughly to measure.
struct Plan {
    rounds: usize,
    sizes: &'static [usize],
    each: Duration,
    /// How often a wall steps aside that can, in each round, and how long it is measured between.
    turns: usize,
    each_turn: Duration,
}

const FULL: Plan = Plan {
    rounds: 5,
    sizes: &[1, 1_000, 100_000],
    each: Duration::from_millis(500),
    turns: 40,
    each_turn: Duration::from_millis(100),
};
const BRIEF: Plan = Plan {
    rounds: 1,
    sizes: &[1, 50],
    each: Duration::from_millis(20),
    turns: 2,
    each_turn: Duration::from_millis(20),
};

#[expect(clippy::print_stdout, reason = "the table is what people run this for")]
fn main() -> Result<()> {
    let brief = !std::env::args().any(|argument| argument == "--bench");
    if !authd_tests::skip::lab_available("bench forwarding") {
        return Ok(());
    }
    let plan = if brief { BRIEF } else { FULL };
    let lab = Lab::new("forwarding")?;
    let site = Site::new(&lab)?;
    let _server = Server::start(&site.server, site.target()?)?;
    let mut report = Report::default();
    for round in 0..plan.rounds {
        let mut walls = Wall::all(plan.sizes)?;
        if round % 2 == 1 {
            walls.reverse();
        }
        for wall in walls {
            compare(&site, wall, &plan, &mut report).with_context(|| wall.to_string())?;
        }
    }
    print!("{report}");
    if brief { Ok(()) } else { report.write() }
}

/// Measures without the wall and behind it, as often as it can step aside.
fn compare(site: &Site, wall: Wall, plan: &Plan, report: &mut Report) -> Result<()> {
    if !wall.kind.steps_aside() {
        let bare = measure(site, plan.each).context("without any rules")?;
        let rules = wall.rules(site).context("raise")?;
        report.add(wall, bare, measure(site, plan.each)?);
        return rules.lower().context("lower");
    }
    let mut programs = wall.programs(site).context("raise")?;
    for turn in 0..plan.turns {
        let behind_first = turn % 2 == 0;
        let first = measure(site, plan.each_turn)?;
        if behind_first { programs.detach() } else { programs.attach() }.context("step aside and back")?;
        let second = measure(site, plan.each_turn)?;
        let (bare, behind) = if behind_first { (second, first) } else { (first, second) };
        report.add(wall, bare, behind);
    }
    programs.lower().context("lower")
}

fn measure(site: &Site, each: Duration) -> Result<Figures> {
    let target = site.target()?;
    site.client.run(|| load::run(target, each))?
}
