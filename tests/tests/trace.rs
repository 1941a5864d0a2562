//! `authctl policy trace` and its like on a running daemon: what they say is what packets get, and what the
//! same manifests say without one.

use authd_tests::lab::node::Family;
use authd_tests::star_wars::PATIENCE;
use authd_tests::{StarWars, skip};
use serde_json::Value;

#[test]
fn a_trace_says_what_packets_get() {
    if !skip::lab_available("a_trace_says_what_packets_get") {
        return;
    }
    let scene = StarWars::settled("trace", &[]).unwrap();
    let directory = scene.lab.inside("cluster").to_str().unwrap().to_owned();
    let trace = |from: &str, to: &str, port: &str| -> Value {
        let question = ["policy", "trace", "--from", from, "--to", to, "--port", port];
        let live = scene.authctl_json("node2", &question).unwrap();
        let offline = [&question[..], &["--manifests", &directory]].concat();
        assert_eq!(live, scene.authctl_json("node2", &offline).unwrap(), "{from} {to}");
        live
    };
    let tiefighter = trace("default/tiefighter", "default/deathstar", "80/TCP");
    assert_eq!(
        (&tiefighter["verdict"], &tiefighter["authentication"]),
        (&"allowed".into(), &"required".into())
    );
    scene.land("tiefighter", Family::V4, PATIENCE).unwrap();

    let deathstar = scene.target(Family::V6).unwrap().ip();
    let xwing = trace("default/xwing", &format!("ip:{deathstar}"), "80/TCP");
    assert_eq!((&xwing["verdict"], &xwing["to"]["pod"]), (&"denied".into(), &"default/deathstar".into()));
    assert!(scene.is_refused("xwing", Family::V6));

    let identities = scene.authctl_json("node2", &["identities", "list"]).unwrap();
    let numbers: Vec<&Value> =
        identities["identities"].as_array().unwrap().iter().map(|one| &one["number"]).collect();
    assert!(numbers.contains(&&xwing["from"]["identity"]), "{identities}");
    let policies = scene.authctl_json("node2", &["policy", "get"]).unwrap();
    let decided = &tiefighter["ingress"]["rule"]["object"]["name"];
    let found = policies["policies"].as_array().unwrap().iter().find(|policy| policy["name"] == *decided);
    assert_eq!(found.unwrap()["refused"], false, "{policies}");
}
