//! An SVID is withdrawn: what rested on it ends, and comes back with it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use authd_tests::http::Connection;
use authd_tests::lab::node::Family;
use authd_tests::probe::Probe;
use authd_tests::registry::Registry;
use authd_tests::wait;
use jiff::Timestamp;

use crate::authctl;
use crate::land::pair_entries;
use crate::report::Report;
use crate::scene::{PATIENCE, Scene};

/// Silence for longer than a connection of the probe may take.
const QUIET: Duration = Duration::from_millis(700);
/// How soon traffic must flow again: the agent's word and a handshake.
const RESTORED: Duration = Duration::from_secs(8);

/// Withdraws tiefighter's SVID at its issuer, where nobody mends it, and has the operator give it back.
pub(crate) fn withdraw(
    scene: &mut Scene,
    registry: &Registry,
    connection: &mut Connection,
    report: &mut Report,
) -> Result<()> {
    report.part("tiefighter's SVID is withdrawn");
    let identity = scene.manifests.identity_of("tiefighter")?;
    let probe = Probe::start(scene.pod("tiefighter")?, scene.target(Family::V4)?);
    ensure!(probe.flows_after(Instant::now(), PATIENCE).is_some(), "nothing flows before the withdrawal");

    ensure!(scene.operator()?.process().terminate(PATIENCE)?.success(), "the operator does not end well");
    let since = Timestamp::now();
    let limit = registry.issuer().withdrawal();
    let withdrawn = Instant::now();
    let entries = registry.withdraw(identity)?;
    ensure!(entries > 0, "there is no entry of identity {identity}");
    let last = last_landing(scene, connection, withdrawn);
    report.time("SVID withdrawn: the established connection stops", last, limit);
    report.time("SVID withdrawn: new connections stop", probe.stops_after(withdrawn, QUIET, PATIENCE), limit);
    let drops = authctl::drops(scene.node_of("deathstar")?, "AUTH_REQUIRED", "default/tiefighter", since)?;
    report.figure("SVID withdrawn: dropped with AUTH_REQUIRED", drops > 0, drops, "packets");
    let left = pair_entries(scene, "deathstar", "tiefighter")?.len()
        + pair_entries(scene, "tiefighter", "deathstar")?.len();
    report.figure("SVID withdrawn: auth entries of the pair that are left", left == 0, left, "");

    report.part("and restored");
    let restored = Instant::now();
    // The next retransmission, which TCP puts off by as long again each time.
    let retransmitted = RESTORED + withdrawn.elapsed();
    scene.operator()?.restart()?;
    report.time("SVID restored: new connections flow again", probe.flows_after(restored, RESTORED), RESTORED);
    let answered = connection.receive(retransmitted)?.map(|_answer| restored.elapsed());
    report.time("SVID restored: the established connection goes on", answered, retransmitted);
    Ok(())
}

/// Lands over and over until no answer comes; when the last landing was requested that succeeded.
/// One request is left without its answer.
fn last_landing(scene: &Scene, connection: &mut Connection, withdrawn: Instant) -> Option<Duration> {
    let mut last = Duration::ZERO;
    while withdrawn.elapsed() < PATIENCE {
        let sent = withdrawn.elapsed();
        scene.send(connection).ok()?;
        match connection.receive(QUIET) {
            Ok(Some(_answer)) => last = sent,
            Ok(None) => return Some(last),
            Err(_) => return None,
        }
        wait::pause(Duration::from_millis(5));
    }
    None
}
