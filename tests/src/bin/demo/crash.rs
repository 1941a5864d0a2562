//! Processes die: what is authenticated goes on, nothing new passes, nothing leaks; and all comes back.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use authd_tests::Capture;
use authd_tests::http::Connection;
use authd_tests::lab::node::Family;
use jiff::Timestamp;

use crate::authctl;
use crate::report::Report;
use crate::scene::{PATIENCE, Scene};
use crate::start::wait_settled;

/// Requests over the connection that must survive.
const REQUESTS: usize = 50;
/// How long a request has to stay unanswered to call it stalled.
const STALL: Duration = Duration::from_millis(1500);
/// How long one who may not pass keeps trying.
const IN_VAIN: Duration = Duration::from_millis(1500);
/// How long somebody tries to get past a dead tunnel.
const ATTEMPT: Duration = Duration::from_millis(500);
/// How soon a connection must go on once the tunnel is back: peers, a WireGuard handshake, and the next
/// retransmission, which TCP has put off further and further.
const BACK: Duration = Duration::from_secs(15);

/// Kills the daemon of tiefighter's node, then its tunnel, then starts both again.
pub(crate) fn crash(
    scene: &mut Scene,
    capture: &mut Capture,
    connection: &mut Connection,
    report: &mut Report,
) -> Result<()> {
    daemon_dies(scene, connection, report)?;
    tunnel_dies(scene, capture, connection, report)?;
    both_return(scene, connection, report)
}

fn daemon_dies(scene: &mut Scene, connection: &mut Connection, report: &mut Report) -> Result<()> {
    report.part("authd on tiefighter's node is killed (kill -9)");
    let (agent, _) = scene.daemons_of("tiefighter")?;
    agent.kill9()?;
    ensure!(!agent.is_ready(), "it still answers");
    let mut landed = 0;
    while landed < REQUESTS && scene.land(connection, PATIENCE).is_ok() {
        landed += 1;
    }
    let name = "authd killed: the established connection goes on";
    report.figure(name, landed == REQUESTS, landed, "landings");

    let since = Timestamp::now();
    let refused = scene.connect("interceptor", Family::V4, IN_VAIN).is_err();
    let drops = authctl::drops_in_time(scene.node_of("deathstar")?, "default/interceptor", since)?;
    let name = "authd killed: interceptor, a new pair, is dropped with HOLD_TIMEOUT";
    report.figure(name, refused && drops > 0, drops, "packets");
    Ok(())
}

fn tunnel_dies(
    scene: &mut Scene,
    capture: &mut Capture,
    connection: &mut Connection,
    report: &mut Report,
) -> Result<()> {
    report.part("the tunnel on tiefighter's node is killed as well");
    let (_, tunnel) = scene.daemons_of("tiefighter")?;
    tunnel.kill9()?;
    let from = SystemTime::now();
    scene.send(connection)?;
    let stalled = connection.receive(STALL)?.is_none();
    let value = STALL.as_secs_f64() * 1000.0;
    report.figure("tunnel killed: the connection stalls, no answer for", stalled, value, "ms");
    // Somebody who tries anew must not get out in the clear either.
    let refused = scene.connect("tiefighter", Family::V4, ATTEMPT).is_err();
    report.figure("tunnel killed: tiefighter's new connections fail", refused, refused, "");
    // The other node still sends by WireGuard; what its kernel answers for the dead tunnel would show.
    let to = SocketAddr::new(scene.pod("tiefighter")?.address(Family::V4)?, 80);
    let refused = scene.pod("stormtrooper")?.tcp_connect(to, ATTEMPT).is_err();
    report.figure("tunnel killed: connections towards it fail as well", refused, refused, "");
    let frames = capture.frames()?.between(from, SystemTime::now());
    let counts = frames.count(&scene.expected());
    let leaked: usize = scene.needles().iter().map(|needle| frames.containing(needle)).sum();
    report.figure(
        "tunnel killed: packets in the clear",
        counts.other + leaked == 0,
        counts.other + leaked,
        "packets",
    );
    report.say(&format!("on the wire: {counts}"));
    Ok(())
}

fn both_return(scene: &mut Scene, connection: &mut Connection, report: &mut Report) -> Result<()> {
    report.part("both are started again");
    let (agent, tunnel) = scene.daemons_of("tiefighter")?;
    let start = Instant::now();
    tunnel.restart()?;
    agent.restart()?;
    let answered = connection.receive(BACK)?.map(|_answer| start.elapsed());
    report.time("started again: the same connection goes on by itself", answered, BACK);
    let (agent, tunnel) = scene.daemons_of("tiefighter")?;
    tunnel.wait_ready(PATIENCE)?;
    agent.wait_ready(PATIENCE)?;
    wait_settled(scene.node_of("tiefighter")?)?;
    report.time("started again: daemon and tunnel have settled", Some(start.elapsed()), BACK);
    let mut interceptor = scene.connect("interceptor", Family::V4, PATIENCE)?;
    scene.land(&mut interceptor, PATIENCE)?;
    report.time("started again: interceptor lands", Some(interceptor.connect_time), PATIENCE);
    Ok(())
}
