//! Builds the eBPF object with whichever Rust compiler can do it, and leaves it in `OUT_DIR`.
//!
//! Compiler: `$EBPF_RUSTC` or rustup's `$EBPF_TOOLCHAIN` if set. Otherwise the first that has `core` for the
//! target or the sources to build it from: `/usr/bin/rustc` (Debian's rustc-web with
//! libstd-rust-web-dev-bpf); rustup's `nightly` with rust-src; the rustc of this build with rust-src.
//! Linker: `$BPF_LINKER`, `target/tools/bin/bpf-linker` of the workspace, or `bpf-linker` from PATH.
//! `$EBPF_OBJECT` names an object to embed instead of building one.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "authd-datapath";
/// Variables of the outer cargo that would change the inner build.
const LEAKS: [&str; 11] = [
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_MAKEFLAGS",
    "CARGO_TARGET_DIR",
    "MAKEFLAGS",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
    "TARGET",
];
const LEAKING_PREFIXES: [&str; 3] = ["CARGO_CFG_", "CARGO_FEATURE_", "CARGO_PROFILE_"];

/// Where `core` for the target comes from.
enum Core {
    Prebuilt,
    BuildStd,
}

fn main() -> Result<(), Box<dyn Error>> {
    for name in ["EBPF_OBJECT", "EBPF_RUSTC", "EBPF_TOOLCHAIN", "BPF_LINKER"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let destination = out.join("datapath.bpf.o");
    if let Some(object) = env::var_os("EBPF_OBJECT") {
        println!("cargo:rerun-if-changed={}", Path::new(&object).display());
        fs::copy(&object, destination)?;
        return Ok(());
    }
    for path in ["src", "Cargo.toml", "Cargo.lock", ".cargo"] {
        println!("cargo:rerun-if-changed=programs/{path}");
    }
    println!("cargo:rerun-if-changed=abi/src");
    let object = build(&manifest, &out.join("programs"))?;
    fs::copy(object, destination)?;
    Ok(())
}

/// Runs the inner cargo, and returns the path of the object.
fn build(manifest: &Path, target_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let (rustc, core) = pick_compiler()?;
    let mut cargo = Command::new(variable("CARGO")?);
    // Started in the programs' directory, cargo reads their .cargo/config.toml.
    cargo
        .current_dir(manifest.join("programs"))
        .args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(target_dir);
    if let Core::BuildStd = core {
        cargo.args(["-Z", "build-std=core"]);
    }
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if LEAKS.contains(&&*name) || LEAKING_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            cargo.env_remove(&*name);
        }
    }
    // aya-ebpf uses an unstable feature, for inline assembly of this target.
    let status = cargo
        .env("RUSTC", &rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker(manifest))
        .status()?;
    if !status.success() {
        return Err(format!("building the eBPF programs failed ({status}): {cargo:?}").into());
    }
    Ok(target_dir.join(TARGET).join("release").join(OBJECT))
}

fn pick_compiler() -> Result<(PathBuf, Core), Box<dyn Error>> {
    let candidates: Vec<PathBuf> = if let Some(rustc) = env::var_os("EBPF_RUSTC") {
        vec![rustc.into()]
    } else if let Ok(toolchain) = env::var("EBPF_TOOLCHAIN") {
        vec![rustc_of(&toolchain).ok_or_else(|| format!("rustup has no toolchain {toolchain}"))?]
    } else {
        [Some("/usr/bin/rustc".into()), rustc_of("nightly"), Some(variable("RUSTC")?.into())]
            .into_iter()
            .flatten()
            .collect()
    };
    for rustc in &candidates {
        if let Some(core) = core_of(rustc) {
            return Ok((rustc.clone(), core));
        }
    }
    Err(format!(
        "no rustc with `core` for {TARGET}; tried {candidates:?}.\n\
         Debian: apt-get install rustc-web libstd-rust-web-dev-bpf (scripts/setup does it)\n\
         rustup: rustup toolchain install nightly --component rust-src"
    )
    .into())
}

fn rustc_of(toolchain: &str) -> Option<PathBuf> {
    output(Command::new("rustup").args(["which", "rustc", "--toolchain", toolchain])).map(PathBuf::from)
}

/// How this compiler can have `core` for BPF, if it can.
fn core_of(rustc: &Path) -> Option<Core> {
    let libdir = output(Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]))?;
    let is_core = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with("libcore-");
    if fs::read_dir(libdir).is_ok_and(|entries| entries.flatten().any(is_core)) {
        return Some(Core::Prebuilt);
    }
    let sysroot = output(Command::new(rustc).args(["--print", "sysroot"]))?;
    let source = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/src/lib.rs");
    source.exists().then_some(Core::BuildStd)
}

fn linker(manifest: &Path) -> PathBuf {
    if let Some(linker) = env::var_os("BPF_LINKER") {
        return linker.into();
    }
    let installed = manifest.join("../target/tools/bin/bpf-linker");
    installed.canonicalize().unwrap_or_else(|_| "bpf-linker".into())
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn variable(name: &str) -> Result<std::ffi::OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo has not set {name}"))
}
