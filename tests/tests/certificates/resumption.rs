//! Peers that would go on where they were before: nobody gets a ticket from us or is shown one, and what they say
//! before they have proven anything is not heard.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use authd_tests::{skip, wait};
use spire_adapter::Groups;

use crate::endpoint;
use crate::openssl::{Files, Good, Running, s_client, s_server};

const PATIENCE: Duration = Duration::from_secs(20);
/// What is said too early.
const EARLY: &str = "said before anything is proven";

/// A session that a generous server gave, and has been seen to let resume and speak early.
fn session(files: &Files, directory: &Path) -> PathBuf {
    let path = directory.join("session.pem");
    // Of options given twice the last counts.
    let mut server = Running::start(s_server(files).args(["-naccept", "2", "-early_data"]));
    let address = server.address().unwrap();
    let mut client = Running::start(s_client(files, &address).arg("-sess_out").arg(&path));
    let whole = || std::fs::read_to_string(&path).is_ok_and(|text| text.contains("END SSL SESSION"));
    assert!(wait::until(PATIENCE, || whole().then_some(())).is_some(), "no session");
    // In good order, else it would be worth nothing.
    client.hang_up();
    client.output();
    let mut client = Running::start(resuming(&mut s_client(files, &address), &path, directory));
    client.hang_up();
    let said = server.output();
    assert!(said.contains("Reused session-id") && said.contains(EARLY), "{said}");
    path
}

/// Shows a session, and speaks at once.
fn resuming<'c>(
    client: &'c mut std::process::Command,
    session: &Path,
    directory: &Path,
) -> &'c mut std::process::Command {
    let early = directory.join("early");
    std::fs::write(&early, EARLY).unwrap();
    client.arg("-sess_in").arg(session).arg("-early_data").arg(early)
}

#[test]
fn who_shows_a_session_starts_anew_and_its_early_data_is_not_heard() {
    if !skip::openssl_available("who_shows_a_session_starts_anew_and_its_early_data_is_not_heard") {
        return;
    }
    let Good { row: good, endpoint, files, directory } = &Good::new();
    let session = session(files, directory.path());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let given = directory.path().join("given.pem");
    for early in [false, true] {
        let mut command = s_client(files, &address);
        command.arg("-sess_out").arg(&given);
        if early {
            resuming(&mut command, &session, directory.path());
        } else {
            command.arg("-sess_in").arg(&session);
        }
        let mut client = Running::start(&mut command);
        let server = endpoint.server(good, Groups::Any).unwrap();
        let met = endpoint::accept(&listener, server, || client.ended()).unwrap();
        let said = client.output();
        assert!(met.unwrap().full && said.contains("New, TLSv1.3"), "{said}");
        assert!(
            said.contains(if early { "Early data was rejected" } else { "Early data was not sent" }),
            "{said}"
        );
        assert!(!given.exists(), "it was given a session: {said}");
    }
}

#[test]
fn tickets_that_we_are_given_are_not_used() {
    if !skip::openssl_available("tickets_that_we_are_given_are_not_used") {
        return;
    }
    let Good { row: good, endpoint, files, .. } = &Good::new();
    let mut server = Running::start(s_server(files).args(["-naccept", "2", "-early_data"]));
    let address = server.address().unwrap();
    let config = endpoint.client(good, Groups::Any).unwrap();
    for _ in 0..2 {
        let met = thread::scope(|scope| {
            let dialling = scope.spawn(|| endpoint::dial(&address, Arc::clone(&config)));
            // What it has to say it may have said to the one before.
            while !dialling.is_finished() {
                server.say();
                wait::pause(Duration::from_millis(50));
            }
            dialling.join().unwrap().unwrap()
        });
        assert!(met.full);
    }
    let said = server.output();
    assert!(
        said.contains("2 server accepts that finished") && said.contains("0 session cache hits"),
        "{said}"
    );
}
