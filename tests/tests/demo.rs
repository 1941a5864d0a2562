//! The demo, end to end: the real daemons on real packets.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use authd_tests::{binaries, skip};
use serde_json::Value;

#[test]
fn the_demo_sees_all_that_it_expects() {
    if skip::lab_available("the_demo_sees_all_that_it_expects") {
        sees_all_that_it_expects("embedded");
    }
}

#[test]
fn the_demo_holds_on_real_spire() {
    let name = "the_demo_holds_on_real_spire";
    if skip::lab_available(name) && skip::spire_available(name) {
        sees_all_that_it_expects("real");
    }
}

fn sees_all_that_it_expects(issuer: &str) {
    binaries::path("authd").unwrap();
    let report = std::env::temp_dir().join(format!("authd-demo-{issuer}-{}.json", std::process::id()));
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(["--spire", issuer, "--report"])
        .arg(&report)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let entries: Vec<Value> = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    std::fs::remove_file(&report).unwrap();
    assert!(entries.len() > 30, "{said}");
    let names: BTreeSet<_> = entries.iter().map(|entry| entry["name"].as_str()).collect();
    assert_eq!(names.len(), entries.len(), "names are unique");
    for entry in &entries {
        assert_eq!(entry["ok"], true, "{entry}");
        assert!(entry["name"].is_string() && entry["unit"].is_string(), "{entry}");
    }
}
