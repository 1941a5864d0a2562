//! Who may land lands, who may not does not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use authd_tests::http::Connection;
use authd_tests::lab::node::Family;
use authd_tests::netstat::syns_sent_again;
use jiff::Timestamp;

use crate::authctl::{self, AuthEntry};
use crate::report::Report;
use crate::scene::{PATIENCE, Scene};

/// What a connection may take: a SYN that was sent again would take a second.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How long one who may not land keeps trying: the first SYN and two more.
const IN_VAIN: Duration = Duration::from_millis(1500);

/// The first connection of the pair, where its time goes, and the second.
pub(crate) fn tiefighter(scene: &Scene, report: &mut Report) -> Result<()> {
    report.part("tiefighter lands");
    let pod = scene.pod("tiefighter")?;
    let before = syns_sent_again(pod)?;
    let begun = Timestamp::now();
    let mut connection = scene.connect("tiefighter", Family::V4, PATIENCE)?;
    scene.land(&mut connection, PATIENCE)?;
    report.time("tiefighter lands over IPv4, first connection", Some(connection.connect_time), AT_ONCE);
    let again = syns_sent_again(pod)? - before;

    let entry = entry(scene, "deathstar", "tiefighter")?.context("node of deathstar has no auth entry")?;
    let handshake = Duration::from_micros(entry.handshake_microseconds);
    report.time("  of that: handshake of the two identities", Some(handshake), AT_ONCE);
    let authenticated = entry.established.context("no time in the auth entry")?.duration_since(begun);
    let authenticated = Duration::try_from(authenticated).ok();
    report.time("  of that: from the first SYN until authenticated", authenticated, AT_ONCE);
    let waited = authenticated.map(|time| connection.connect_time.saturating_sub(time));
    report.time("  of that: until the SYN that was held was answered", waited, AT_ONCE);
    report.figure("  SYNs that were sent again", again == 0, again, "");

    second(scene, report)?;
    let mut connection = scene.connect("tiefighter", Family::V6, PATIENCE)?;
    scene.land(&mut connection, PATIENCE)?;
    report.time("tiefighter lands over IPv6", Some(connection.connect_time), AT_ONCE);
    Ok(())
}

fn second(scene: &Scene, report: &mut Report) -> Result<()> {
    let mut connection = scene.connect("tiefighter", Family::V4, PATIENCE)?;
    let landed = scene.land(&mut connection, PATIENCE)?;
    report.time("tiefighter's second connection", Some(connection.connect_time), AT_ONCE);
    report.time("  and landing over it", Some(landed), AT_ONCE);
    Ok(())
}

/// Authentication holds between pods of one node as well.
pub(crate) fn stormtrooper(scene: &Scene, report: &mut Report) -> Result<()> {
    report.part("stormtrooper lands, on the same node");
    let pod = scene.pod("stormtrooper")?;
    let before = syns_sent_again(pod)?;
    for family in Family::ALL {
        let mut connection = scene.connect("stormtrooper", family, PATIENCE)?;
        scene.land(&mut connection, PATIENCE)?;
        let name = format!("stormtrooper lands over {family}");
        report.time(&name, Some(connection.connect_time), AT_ONCE);
    }
    let again = syns_sent_again(pod)? - before;
    report.figure("  SYNs that were sent again on the same node", again == 0, again, "");
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

/// Opens the connection that the following parts keep.
pub(crate) fn keep_open(scene: &Scene) -> Result<Connection> {
    let mut connection = scene.connect("tiefighter", Family::V6, PATIENCE)?;
    scene.land(&mut connection, PATIENCE)?;
    Ok(connection)
}
