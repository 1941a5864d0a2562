//! Who may land lands, who may not does not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use authd_tests::Pod;
use authd_tests::http::Connection;
use authd_tests::lab::node::Family;
use jiff::Timestamp;

use crate::authctl::{self, AuthEntry};
use crate::report::Report;
use crate::scene::{PATIENCE, Scene};

/// A first connection: its SYN drops and is sent again after a second, unless authentication is faster.
const FIRST: Duration = Duration::from_millis(3500);
/// Any later one.
const LATER: Duration = Duration::from_millis(200);
/// What a handshake between two daemons may take.
const HANDSHAKE: Duration = Duration::from_millis(500);
/// How long one who may not land keeps trying: the first SYN and two more.
const IN_VAIN: Duration = Duration::from_millis(1500);

/// The first connection of the pair, where its time goes, and the second.
pub(crate) fn tiefighter(scene: &Scene, report: &mut Report) -> Result<()> {
    report.part("tiefighter lands");
    let pod = scene.pod("tiefighter")?;
    let before = syn_retransmissions(pod)?;
    let begun = Timestamp::now();
    let mut connection = scene.connect("tiefighter", Family::V4, PATIENCE)?;
    scene.land(&mut connection, PATIENCE)?;
    report.time("tiefighter lands over IPv4, first connection", Some(connection.connect_time), FIRST);
    let again = syn_retransmissions(pod)? - before;

    let entry = entry(scene, "deathstar", "tiefighter")?.context("node of deathstar has no auth entry")?;
    let handshake = Duration::from_micros(entry.handshake_microseconds);
    report.time("  of that: handshake of the two identities", Some(handshake), HANDSHAKE);
    let authenticated = entry.established.context("no time in the auth entry")?.duration_since(begun);
    let authenticated = Duration::try_from(authenticated).ok();
    report.time("  of that: from the first SYN until authenticated", authenticated, FIRST);
    let waited = authenticated.map(|time| connection.connect_time.saturating_sub(time));
    report.time("  of that: until the kernel sent the SYN again", waited, FIRST);
    report.figure("  SYNs that were sent again", again <= 2, again, "");

    second(scene, report)?;
    let mut connection = scene.connect("tiefighter", Family::V6, PATIENCE)?;
    scene.land(&mut connection, PATIENCE)?;
    report.time("tiefighter lands over IPv6", Some(connection.connect_time), LATER);
    Ok(())
}

fn second(scene: &Scene, report: &mut Report) -> Result<()> {
    let mut connection = scene.connect("tiefighter", Family::V4, PATIENCE)?;
    let landed = scene.land(&mut connection, PATIENCE)?;
    report.time("tiefighter's second connection", Some(connection.connect_time), LATER);
    report.time("  and landing over it", Some(landed), LATER);
    Ok(())
}

/// Authentication holds between pods of one node as well.
pub(crate) fn stormtrooper(scene: &Scene, report: &mut Report) -> Result<()> {
    report.part("stormtrooper lands, on the same node");
    for (family, limit) in Family::ALL.into_iter().zip([FIRST, LATER]) {
        let mut connection = scene.connect("stormtrooper", family, PATIENCE)?;
        scene.land(&mut connection, PATIENCE)?;
        let name = format!("stormtrooper lands over {family}");
        report.time(&name, Some(connection.connect_time), limit);
    }
    Ok(())
}

/// The alliance does not land, and the node of the target says why.
pub(crate) fn xwing(scene: &Scene, report: &mut Report) -> Result<()> {
    report.part("xwing does not land");
    for family in Family::ALL {
        let since = Timestamp::now();
        let start = Instant::now();
        let refused = scene.connect("xwing", family, IN_VAIN).is_err();
        let drops = authctl::drops(scene.node_of("deathstar")?, "POLICY_DENIED", "default/xwing", since)?;
        let name = format!("xwing over {family} is dropped with POLICY_DENIED");
        report.figure(&name, refused && drops > 0, drops, "packets");
        if !refused {
            report.say(&format!("it has landed after {:?}", start.elapsed()));
        }
    }
    Ok(())
}

/// Both nodes have recorded who has authenticated to whom.
pub(crate) fn entries(scene: &Scene, report: &mut Report) -> Result<()> {
    report.part("Authentications");
    for (here, there) in
        [("tiefighter", "deathstar"), ("deathstar", "tiefighter"), ("deathstar", "stormtrooper")]
    {
        let entries = pair_entries(scene, here, there)?.len();
        let node = scene.node_of(here)?.name();
        report.figure(&format!("auth entry of {here} and {there} on {node}"), entries == 1, entries, "");
    }
    Ok(())
}

/// The entry of a node for one of its pods and another pod.
fn entry(scene: &Scene, here: &str, there: &str) -> Result<Option<AuthEntry>> {
    Ok(pair_entries(scene, here, there)?.into_iter().next())
}

/// All such entries; there should be one at most.
pub(crate) fn pair_entries(scene: &Scene, here: &str, there: &str) -> Result<Vec<AuthEntry>> {
    let (local, remote) = (scene.manifests.identity_of(here)?, scene.manifests.identity_of(there)?);
    let (here, there) = (scene.node_of(here)?, scene.node_of(there)?);
    let mut entries = authctl::auth_list(here)?;
    entries.retain(|entry| {
        let same_node = here.name() == there.name();
        let node = if same_node { entry.remote_node == 0 } else { entry.remote_node_name == there.name() };
        node && (entry.local_identity, entry.remote_identity) == (local, remote)
    });
    Ok(entries)
}

/// How many SYNs the kernel of a pod has sent again so far.
fn syn_retransmissions(pod: &Pod) -> Result<u64> {
    let text = pod.exec(["cat", "/proc/net/netstat"])?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().context("no counters")?, lines.next().context("no values")?);
    let counters = names.split(' ').zip(values.split(' '));
    let (_, value) = counters.into_iter().find(|(name, _)| *name == "TCPSynRetrans").context("no counter")?;
    Ok(value.parse()?)
}

/// Opens the connection that the following parts keep.
pub(crate) fn keep_open(scene: &Scene) -> Result<Connection> {
    let mut connection = scene.connect("tiefighter", Family::V6, PATIENCE)?;
    scene.land(&mut connection, PATIENCE)?;
    Ok(connection)
}
