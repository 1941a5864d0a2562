//! What deciding on every packet costs between two pods of a node, beside iptables and nftables with the
//! same allow-list, at sizes up to 100,000 rules.
//!
//! `make bench-forwarding`; without cargo's `--bench`, as in `cargo test`, everything runs once and briefly.
//! Each wall is measured right after the same path without any, and only the ratio of such neighbours counts:
//! the machine's mood hits both.

mod load;
mod report;
mod wall;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
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
}

/// How thoroughly to measure.
struct Plan {
    rounds: usize,
    sizes: &'static [usize],
    each: Duration,
}

const FULL: Plan = Plan { rounds: 5, sizes: &[1, 1_000, 100_000], each: Duration::from_millis(500) };
const BRIEF: Plan = Plan { rounds: 1, sizes: &[1, 50], each: Duration::from_millis(20) };

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
        let mut walls = Wall::all(plan.sizes);
        if round % 2 == 1 {
            walls.reverse();
        }
        for wall in walls {
            let bare = measure(&site, plan.each).context("without any rules")?;
            let raised = wall.raise(&site).with_context(|| format!("raise {wall}"))?;
            let behind = measure(&site, plan.each).with_context(|| format!("behind {wall}"))?;
            raised.lower().with_context(|| format!("lower {wall}"))?;
            report.add(wall, bare, behind);
        }
    }
    print!("{report}");
    if brief { Ok(()) } else { report.write() }
}

fn measure(site: &Site, each: Duration) -> Result<Figures> {
    let target = site.target()?;
    site.client.run(|| load::run(target, each))?
}
