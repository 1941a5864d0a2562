//! The fuzzer's corpus as an ordinary test, and every byte of it flipped for good measure.
//!
//! `AUTHD_UPDATE_CORPUS=1 cargo test -p spire-adapter --test corpus` adds the certificate matrix to it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

#[expect(dead_code, reason = "of the matrix only its rows serve here")]
#[path = "certificates/matrix.rs"]
mod matrix;
#[path = "../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::path::PathBuf;

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 3] =
    [("spiffe_id", targets::spiffe_id), ("svid_chain", targets::svid_chain), ("bundle", targets::bundle)];

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn the_corpus_holds() {
    if std::env::var_os("AUTHD_UPDATE_CORPUS").is_some() {
        write_corpus();
    }
    for (name, target) in TARGETS {
        let files = corpus(name);
        assert!(files.len() >= 20, "{name}: {} files", files.len());
        for (path, data) in files {
            let outcome = std::panic::catch_unwind(|| target(&data));
            assert!(outcome.is_ok(), "{}", path.display());
        }
    }
}

#[test]
fn flipped_and_cut_bytes_of_it_hold() {
    for (name, target) in TARGETS {
        for (_, data) in corpus(name) {
            // Every byte of small files, and of larger ones as many spread over them.
            let step = data.len().div_ceil(32).max(1);
            for at in (0..data.len()).step_by(step) {
                for flip in [0x01, 0x20, 0x80] {
                    let mut flipped = data.clone();
                    flipped[at] ^= flip;
                    target(&flipped);
                }
                target(&data[..at]);
            }
        }
    }
}

fn write_corpus() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let write = |target: &str, name: &str, data: &[u8]| {
        fs::create_dir_all(root.join(target)).unwrap();
        fs::write(root.join(target).join(name.replace(' ', "-").replace(',', "")), data).unwrap();
    };
    let authorities = matrix::Authorities::new();
    let bundles = authorities.bundles();
    let anchors: Vec<_> =
        bundles.iter().map(|bundle| bundle.certificates().next().unwrap().to_vec()).collect();
    write("bundle", "two-anchors", &anchors.concat());
    for row in authorities.rows() {
        let chain: Vec<&[u8]> = row.chain.iter().map(AsRef::as_ref).take(4).collect();
        // With the anchor that would make it good as the last.
        let data = targets::join(&[chain.as_slice(), &[anchors[0].as_slice()]].concat());
        // The largest rows say nothing that the others don't.
        if data.len() < 4096 {
            write("svid_chain", row.name, &data);
            write("bundle", row.name, &chain.concat());
        }
    }
    let texts = [
        "spiffe://a.test/identity/256",
        "SPIFFE://A.test/x",
        "spiffe://a.test",
        "spiffe://a.test/",
        "spiffe://a.test//x",
        "spiffe://a.test/../x",
        "spiffe://a.test/./x",
        "spiffe://a.test:80/x",
        "spiffe://u@a.test/x",
        "spiffe://a.test/x?y",
        "spiffe://a.test/x#y",
        "spiffe://a.test/n%73",
        "https://a.test/x",
        "spiffe://a.test/\u{e4}",
        "spiffe:///x",
        "spiffe://-/x",
        "/identity/{id}",
        "/ns/{namespace}/sa/{serviceaccount}",
        "/authd/{id}",
        "/{id}",
        "/spire/agent/{id}",
        "/a{id}b/c",
        "/identity/{id",
        "{id}",
        "/x/{id}/y/{id}",
    ];
    for (number, text) in texts.iter().enumerate() {
        write("spiffe_id", &format!("{number:02}"), text.as_bytes());
    }
}
