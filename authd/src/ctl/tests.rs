//! authctl as it is called: arguments in, streams and exit status out, with a daemon, a hung one or none.

mod way_out;

use std::{fs, os::unix::net, path::Path, sync::Arc};

use super::{fixture, run};
use crate::api::fake::{Fake, Server};

/// What a call has left behind.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) status: u8,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

pub(super) fn authctl(socket: &Path, arguments: &[&str]) -> Done {
    let nowhere = socket.with_file_name("pins");
    let global = ["authctl", "--socket", socket.to_str().unwrap(), "--pin-dir", nowhere.to_str().unwrap()];
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = run(global.iter().chain(arguments), &mut stdout, &mut stderr);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done { status, stdout: text(stdout), stderr: text(stderr) }
}

/// Calls authctl, which has a runtime of its own, beside the server's.
pub(super) async fn with_daemon(source: Fake, arguments: &[&str]) -> Done {
    let server = Server::start(source);
    let socket = server.socket.clone();
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    let call = move || authctl(&socket, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let done = tokio::task::spawn_blocking(call).await.unwrap();
    server.stop().await.unwrap();
    done
}

fn full() -> Fake {
    Fake {
        status: fixture::status(),
        entries: fixture::entries(),
        explanation: fixture::explanation(),
        encryption: fixture::encryption(),
        identities: fixture::identities(),
        svids: fixture::svids(),
        bundles: fixture::bundles(),
        flows: fixture::flows().into_iter().map(Arc::new).collect(),
        ..Fake::default()
    }
}

#[tokio::test]
async fn every_question_is_answered_as_table_and_as_json() {
    const QUESTIONS: [(&[&str], &[&str], &str); 9] = [
        (&["status"], &["status", "-o", "json"], "/nodes/0/name"),
        (&["auth", "list"], &["auth", "ls", "-o", "json"], "/entries/0/localIdentity"),
        (
            &["auth", "explain", "tiefighter", "deathstar"],
            &["auth", "explain", "identity:256", "identity:257", "-o", "json"],
            "/paths/0/checks/0/name",
        ),
        (&["auth", "flush"], &["auth", "flush", "-o", "json"], "/flushed"),
        (&["encrypt", "status"], &["encrypt", "status", "-o", "json"], "/peers/0/allowedIps"),
        (&["identities", "list"], &["identities", "ls", "-o", "json"], "/identities/1/serviceAccount"),
        (&["svid", "list"], &["svid", "ls", "-o", "json"], "/svids/0/leafSha256"),
        (&["bundle", "list"], &["bundle", "ls", "-o", "json"], "/bundles/0/anchors/1/sha256"),
        (&["version"], &["version", "-o", "json"], "/authd"),
    ];
    for (table, json, field) in QUESTIONS {
        let done = with_daemon(full(), table).await;
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{table:?}");
        assert!(!done.stdout.is_empty(), "{table:?}");

        let done = with_daemon(full(), json).await;
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{json:?}");
        let value: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        assert!(value.pointer(field).is_some_and(|value| !value.is_null()), "{json:?}: {value}");
    }
}

#[tokio::test]
async fn flows_are_filtered_by_the_daemon() {
    let arguments = &["observe", "--verdict", "dropped", "-o", "json"];
    let done = with_daemon(full(), arguments).await;
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.stdout.lines().count(), 1);
    assert!(done.stdout.contains(r#""reason":"POLICY_DENIED""#), "{done:?}");
}

#[tokio::test]
async fn brief_says_by_its_exit_status_whether_all_is_well() {
    let in_an_hour = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let well = || {
        let mut fake = full();
        fake.status.spire.as_mut().unwrap().node_svid_expires = Some(in_an_hour.into());
        fake
    };
    let done = with_daemon(well(), &["status", "--brief"]).await;
    assert_eq!((done.status, done.stdout.as_str()), (0, "ok\n"));

    let mut fake = well();
    fake.status.nodes.iter_mut().for_each(|node| node.live = false);
    let done = with_daemon(fake, &["status", "--brief"]).await;
    assert_eq!(done.status, 1);
    assert_eq!(done.stdout, "degraded: 0 of 1 nodes have a live session\n");
}

#[tokio::test]
async fn what_the_daemon_lacks_is_said_in_one_line() {
    let done = with_daemon(Fake { unavailable: true, ..Fake::default() }, &["status"]).await;
    assert_eq!(done.status, 1);
    assert_eq!(done.stderr, "authctl: authd: the cluster state is not loaded yet\n");
}

#[test]
fn a_dead_daemon_is_named_with_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("authd.sock");
    for command in [&["encrypt", "status"][..], &["identities", "list"], &["observe"]] {
        let done = authctl(&socket, command);
        assert_eq!((done.status, done.stdout.as_str()), (1, ""), "{command:?}");
        assert!(done.stderr.starts_with("authctl: authd is not running: "), "{}", done.stderr);
        assert!(done.stderr.contains("authd.sock") && done.stderr.contains("--socket"), "{}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1);
    }
}

#[test]
fn a_daemon_that_hangs_is_not_waited_for_longer_than_told() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("authd.sock");
    let _listener = net::UnixListener::bind(&socket).unwrap();
    let done = authctl(&socket, &["encrypt", "status", "--timeout", "50ms"]);
    assert_eq!(done.status, 1);
    assert!(done.stderr.contains("does not answer") && done.stderr.contains("50ms"), "{}", done.stderr);
}

#[test]
fn a_connection_that_breaks_is_a_dead_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("authd.sock");
    let listener = net::UnixListener::bind(&socket).unwrap();
    let closing = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let done = authctl(&socket, &["encrypt", "status"]);
    closing.join().unwrap();
    assert_eq!((done.status, done.stdout.as_str()), (1, ""));
    assert!(done.stderr.starts_with("authctl: authd is not running: "), "{}", done.stderr);
    assert_eq!(done.stderr.lines().count(), 1);
}

#[tokio::test]
async fn following_ends_with_the_daemon() {
    let server = Server::start(full());
    let socket = server.socket.clone();
    let following = tokio::task::spawn_blocking(move || authctl(&socket, &["observe", "-f", "--last", "1"]));
    while server.source.news.receiver_count() == 0 {
        tokio::task::yield_now().await;
    }
    server.stop().await.unwrap();
    let done = following.await.unwrap();
    assert_eq!(done.status, 1);
    assert_eq!(done.stdout.lines().count(), 1, "{done:?}");
    assert!(done.stderr.starts_with("authctl: authd has stopped"), "{}", done.stderr);
}

#[test]
fn identities_are_allocated_without_a_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let node = "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n";
    fs::write(directory.path().join("nodes.yaml"), node).unwrap();
    let socket = Path::new("/nonexistent/authd.sock");
    let path = directory.path().to_str().unwrap();
    let done = authctl(socket, &["identities", "allocate", path]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""));
    assert!(done.stdout.contains("node 1: n1"), "{done:?}");

    let done = authctl(socket, &["identities", "allocate", path, "-o", "json"]);
    let value: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(value["nodesBefore"], 1);

    let done = authctl(socket, &["identities", "allocate", "/nonexistent/manifests"]);
    assert_eq!((done.status, done.stdout.as_str()), (1, ""));
    assert_eq!(
        done.stderr,
        "authctl: cluster directory /nonexistent/manifests: No such file or directory (os error 2); name the \
         directory of the manifests (for authd with --cluster-dir)\n"
    );
}

#[test]
fn the_way_out_says_what_it_lacks() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("authd.sock");
    let off = ["off", "policy", "--for", "30m", "--reason", "incident"];
    for command in [
        &off[..],
        &["on", "encryption"],
        &["drops"],
        &["status"],
        &["auth", "ls"],
        &["auth", "explain", "identity:256", "identity:257"],
    ] {
        let done = authctl(&socket, command);
        assert_eq!((done.status, done.stdout.as_str()), (1, ""), "{command:?}");
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
        assert!(done.stderr.contains("pins"), "{}", done.stderr);
    }
}

#[test]
fn a_dead_daemon_knows_no_pod_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("authd.sock");
    let done = authctl(&socket, &["auth", "explain", "default/tiefighter", "identity:257"]);
    assert_eq!((done.status, done.stdout.as_str()), (1, ""));
    assert!(done.stderr.contains("identity:NUMBER or ip:ADDRESS instead of default/tiefighter"), "{done:?}");
}

#[test]
fn version_works_without_a_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let done = authctl(&directory.path().join("authd.sock"), &["version"]);
    assert_eq!(done.status, 0);
    assert!(done.stdout.contains(concat!("authctl ", env!("CARGO_PKG_VERSION"))), "{done:?}");
}

#[test]
fn what_is_not_understood_exits_with_2() {
    let socket = Path::new("/nonexistent/authd.sock");
    for arguments in [&["launch"][..], &[], &["status", "--colour"], &["observe", "--reason", "bad luck"]] {
        let done = authctl(socket, arguments);
        assert_eq!((done.status, done.stdout.as_str()), (2, ""), "{arguments:?}");
        assert!(!done.stderr.is_empty());
    }
}

#[test]
fn help_is_no_error() {
    let done = authctl(Path::new("/nonexistent/authd.sock"), &["--help"]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""));
    assert!(done.stdout.contains("Usage: authctl"), "{done:?}");
}

#[test]
fn help_reads_like_this() {
    let mut text = String::new();
    let mut command = <super::Cli as clap::CommandFactory>::command().term_width(100);
    command.build();
    append_help(&mut command, "authctl", &mut text);
    fixture::golden("help.txt", &text);
}

fn append_help(command: &mut clap::Command, path: &str, text: &mut String) {
    // What clap pads lines with is no matter of ours.
    let help = command.render_help().to_string();
    let lines: Vec<_> = help.trim_end().lines().map(str::trim_end).collect();
    text.push_str(&format!("$ {path} -h\n{}\n\n", lines.join("\n")));
    for command in command.get_subcommands_mut() {
        let path = format!("{path} {}", command.get_name());
        append_help(command, &path, text);
    }
}

/// Every command says what it does, and so does every option.
#[test]
fn everything_has_a_help_text() {
    fn check(command: &clap::Command) {
        assert!(command.get_about().is_some(), "{}", command.get_name());
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
        }
        command.get_subcommands().for_each(check);
    }
    check(&<super::Cli as clap::CommandFactory>::command());
}

#[test]
fn the_files_of_the_golden_tests_are_all_used() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/authctl");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ctl");
    let code: String = [sources.join("auth"), sources]
        .into_iter()
        .flat_map(|directory| fs::read_dir(directory).unwrap())
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok())
        .collect();
    for entry in fs::read_dir(directory).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(code.contains(&format!("\"{name}\"")), "{name} is used by no test");
    }
}
