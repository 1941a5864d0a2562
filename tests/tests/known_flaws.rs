//! `docs/known-flaws.md` names the tests that hold us to doing better: each of them exists, and is a test.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The crates of this repository.
const CRATES: [&str; 6] = ["auth-ebpf", "authd", "policy", "spire-adapter", "tests", "wg-mesh"];

/// The functions of a directory's sources that are marked as tests, or that `tests/tests/spire.rs` or `both_ways!` makes
/// tests of.
fn tests_in(directory: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                tests_in(&path, found)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            let (mut marked, mut listed) = (false, false);
            for line in text.lines().map(str::trim) {
                listed = (listed || line.ends_with("both_ways! {")) && line != "}";
                if listed {
                    found.extend(line.strip_suffix(',').map(str::to_owned));
                }
                let name = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "));
                if let Some((name, _)) = name.and_then(|rest| rest.split_once('(')) {
                    if marked {
                        found.insert(name.to_owned());
                    }
                    marked = false;
                } else {
                    marked |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                    if path.ends_with("tests/tests/spire.rs") {
                        let both = line.strip_suffix(',').and_then(|line| line.split_once("::"));
                        found.extend(both.map(|(_, name)| name.to_owned()));
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn every_flaw_has_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut tests = BTreeSet::new();
    for name in CRATES {
        tests_in(&root.join(name), &mut tests).unwrap();
    }
    let document = fs::read_to_string(root.join("docs/known-flaws.md")).unwrap();
    let rows: Vec<&str> =
        document.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| flaw")).collect();
    assert!(rows.len() > 20, "{}", rows.len());
    for row in rows {
        let named = row.rsplit_once(" | ").map(|(_, named)| named).unwrap_or_default();
        let names: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test in the row {row}");
        for name in names {
            assert!(tests.contains(name), "{name} is no test: {row}");
        }
    }
}
