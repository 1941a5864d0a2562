//! Who may use whom: the crates that can be used alone know nothing of each other, only `authd` joins them.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What each crate uses of this workspace, beside `[dev-dependencies]`.
const ALLOWED: &[(&str, &[&str])] = &[
    ("auth-ebpf-abi", &[]),
    ("auth-ebpf-memory", &[]),
    ("auth-ebpf", &["auth-ebpf-abi", "auth-ebpf-memory"]),
    ("policy", &["auth-ebpf-abi"]),
    ("spire-adapter", &["auth-ebpf-abi"]),
    ("wg-mesh", &["auth-ebpf-abi"]),
    ("authd", &["auth-ebpf", "auth-ebpf-abi", "policy", "spire-adapter", "wg-mesh"]),
    ("authd-tests", &["auth-ebpf", "auth-ebpf-abi", "authd", "policy", "spire-adapter", "wg-mesh"]),
];

/// Crates that do no I/O, and what would betray it.
const PURE: &[&str] = &["auth-ebpf-abi", "policy"];
const IMPURE: &[&str] =
    &["async-std", "aya", "axum", "futures", "hyper", "mio", "nix", "rtnetlink", "smol", "tokio", "tonic"];

/// What each crate of the workspace depends on, as its manifest says.
fn manifests() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata.get("packages").and_then(Value::as_array).context("no packages")?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a name is text");
    packages
        .iter()
        .map(|package| {
            let dependencies =
                package.get("dependencies").and_then(Value::as_array).context("no dependencies")?;
            let names = dependencies.iter().filter(|it| it["kind"] != "dev").map(|it| text(&it["name"]));
            Ok((text(&package["name"])?, names.collect::<Result<_>>()?))
        })
        .collect()
}

#[test]
fn crates_use_only_what_they_may() {
    let manifests = manifests().unwrap();
    let members: BTreeSet<_> = manifests.keys().map(String::as_str).collect();
    let listed: BTreeSet<_> = ALLOWED.iter().map(|(name, _)| *name).collect();
    assert_eq!(members, listed, "every crate has its line in ALLOWED");
    for (name, allowed) in ALLOWED {
        let used = manifests[*name].iter().map(String::as_str).filter(|it| members.contains(it));
        let wrong: Vec<_> = used.filter(|it| !allowed.contains(it)).collect();
        assert!(wrong.is_empty(), "{name} must not use {wrong:?}");
    }
}

#[test]
fn the_leaf_depends_on_nothing() {
    assert_eq!(manifests().unwrap()["auth-ebpf-abi"], BTreeSet::new());
}

#[test]
fn pure_crates_have_no_means_to_do_anything() {
    let manifests = manifests().unwrap();
    for name in PURE {
        let impure: Vec<_> = IMPURE.iter().filter(|it| manifests[*name].contains(**it)).collect();
        assert!(impure.is_empty(), "{name} is pure, but depends on {impure:?}");
    }
}
