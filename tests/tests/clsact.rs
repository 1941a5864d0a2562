//! The whole scenario on clsact filters, as kernels before 6.6 have it.

use anyhow::Result;
use authd_tests::lab::node::Family;
use authd_tests::star_wars::{NODES, PATIENCE};
use authd_tests::{StarWars, log, skip, wait};

/// The filters of the programs on a node, by interface and direction.
fn filters(scene: &StarWars, node: &str) -> Result<Vec<String>> {
    let list = "for device in $(ls /sys/class/net); do for way in ingress egress; do \
                tc filter show dev $device $way | sed -n \"s/.* handle \\(0x617.*\\) direct-action.*/$device $way \\1/p\"; \
                done; done";
    Ok(scene.node(node)?.exec(["sh", "-c", list])?.lines().map(str::to_owned).collect())
}

#[test]
fn everything_works_on_clsact() {
    if !skip::lab_available("everything_works_on_clsact") {
        return;
    }
    let mut scene = StarWars::settled("clsact", &["--attach", "clsact"]).unwrap();
    let mut connection = scene.land("tiefighter", Family::V4, PATIENCE).unwrap();
    drop(scene.land("tiefighter", Family::V6, PATIENCE).unwrap());
    assert!(scene.is_refused("xwing", Family::V4));
    for node in NODES {
        assert_eq!(scene.authctl_json(node, &["status"]).unwrap()["attachedBy"], "clsact");
        assert!(scene.links(node).unwrap().is_empty());
        assert!(filters(&scene, node).unwrap().len() >= 6);
    }

    // A restarted daemon finds its filters, and the connection does not notice.
    let before = filters(&scene, "node2").unwrap();
    scene.agent("node2").unwrap().kill9().unwrap();
    assert_eq!(filters(&scene, "node2").unwrap(), before);
    scene.land_over(&mut connection, PATIENCE).unwrap();
    scene.agent("node2").unwrap().restart().unwrap();
    scene.agent("node2").unwrap().wait_ready(PATIENCE).unwrap();
    scene.land_over(&mut connection, PATIENCE).unwrap();
    let places = |filters: &[String]| -> Vec<String> {
        filters.iter().map(|it| it.split(' ').take(3).collect::<Vec<_>>().join(" ")).collect()
    };
    assert_eq!(places(&filters(&scene, "node2").unwrap()), places(&before));
    assert!(scene.is_refused("xwing", Family::V4));

    // Somebody deletes one: it comes back, and that is said.
    let interface = scene.pod("deathstar").unwrap().interface().to_owned();
    scene.node("node2").unwrap().exec(["tc", "filter", "del", "dev", &interface, "egress"]).unwrap();
    let back = || (filters(&scene, "node2").ok()?.len() == before.len()).then_some(());
    assert!(wait::until(PATIENCE, back).is_some());
    let said = [("level", "WARN"), ("cause", "removed"), ("hook", "to_pod")];
    let told = wait::until(PATIENCE, || {
        log::contains(&scene.agent("node2").ok()?.process().log().ok()?, &said).then_some(())
    });
    assert!(told.is_some());
    assert!(scene.is_refused("xwing", Family::V4));

    // Another kind of filter takes the first place, where it could keep packets from ours: until it goes, the
    // node isn't ready, and says why.
    let node = scene.node("node2").unwrap().clone();
    let taken = format!(
        "tc filter del dev {interface} ingress && \
         tc filter add dev {interface} ingress prio 1 u32 match u32 1 0xffffffff flowid 1:1"
    );
    node.exec(["sh", "-c", &taken]).unwrap();
    scene
        .wait_condition(
            "node2",
            &["DATAPATH_INCOMPLETE", &format!("from_pod@{interface}"), "another kind comes before ours"],
        )
        .unwrap();
    assert!(!scene.agent("node2").unwrap().is_ready());
    node.exec(["tc", "filter", "del", "dev", &interface, "ingress", "prio", "1"]).unwrap();
    let over = || {
        let conditions = scene.conditions("node2").ok()?;
        (!conditions.iter().any(|text| text.contains("another kind comes before ours"))).then_some(())
    };
    assert!(wait::until(PATIENCE, over).is_some());
    scene.land_over(&mut connection, PATIENCE).unwrap();
    assert!(scene.is_refused("xwing", Family::V4));

    for agent in scene.agents.values_mut() {
        agent.kill9().unwrap();
    }
    let text = scene.authctl("node2", &["detach", "--yes"]).unwrap();
    assert!(text.starts_with(&format!("{} programs detached", before.len())), "{text}");
    assert!(filters(&scene, "node2").unwrap().is_empty());
}
