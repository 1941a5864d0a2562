//! The server behind a real socket, with a fake source.

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net,
    },
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{UnixSocket, UnixStream},
    time::timeout,
};
use tonic::{
    Code, Streaming,
    transport::{Channel, Endpoint},
};

use super::{
    ListenError, Listener,
    fake::{Fake, Server},
    v1::{self, authd_client::AuthdClient, observe_response::Item},
};

async fn client(server: &Server) -> AuthdClient<Channel> {
    let socket = server.socket.clone();
    let connector = tower::service_fn(move |_uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://authd");
    AuthdClient::new(endpoint.connect_with_connector(connector).await.unwrap())
}

fn flow(number: u32) -> v1::Flow {
    v1::Flow { length: number, ..v1::Flow::default() }
}

async fn next(stream: &mut Streaming<v1::ObserveResponse>) -> Item {
    let response = timeout(Duration::from_secs(10), stream.next()).await.expect("in time");
    response.expect("not the end").unwrap().item.unwrap()
}

#[tokio::test]
async fn answers_come_from_the_source() {
    let status = v1::Status { node: "n1".to_owned(), ..v1::Status::default() };
    let server = Server::start(Fake { status, ..Fake::default() });
    let response = client(&server).await.get_status(v1::GetStatusRequest {}).await.unwrap();
    assert_eq!(response.into_inner().status.unwrap().node, "n1");
}

#[tokio::test]
async fn what_the_source_lacks_is_said_in_its_words() {
    let server = Server::start(Fake { unavailable: true, ..Fake::default() });
    let status = client(&server).await.get_status(v1::GetStatusRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "the cluster state is not loaded yet");
}

#[tokio::test]
async fn an_override_comes_with_the_callers_credentials() {
    let server = Server::start(Fake::default());
    let note = v1::RecordOverrideRequest { guard: v1::Guard::Policy.into(), ..Default::default() };
    client(&server).await.record_override(note).await.unwrap();
    let overrides = server.source.overrides.lock().unwrap();
    let (_, caller) = overrides.first().unwrap();
    assert_eq!(caller.uid, nix::unistd::getuid().as_raw());
    assert_eq!(caller.pid, Some(nix::unistd::getpid().as_raw()));
}

#[tokio::test]
async fn an_override_of_nothing_is_refused() {
    let server = Server::start(Fake::default());
    let note = v1::RecordOverrideRequest::default();
    let status = client(&server).await.record_override(note).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(server.source.overrides.lock().unwrap().is_empty());
}

#[tokio::test]
async fn only_the_owner_may_open_the_socket() {
    let server = Server::start(Fake::default());
    let metadata = fs::symlink_metadata(&server.socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_live_socket_is_not_taken() {
    let server = Server::start(Fake::default());
    let error = Listener::bind(&server.socket).unwrap_err();
    assert!(matches!(&error, ListenError::InUse(path) if *path == server.socket), "{error}");
    client(&server).await.get_status(v1::GetStatusRequest {}).await.unwrap();
}

#[tokio::test]
async fn a_socket_on_which_another_program_listens_is_not_taken() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("authd.sock");
    let _other = net::UnixListener::bind(&socket).unwrap();
    assert!(matches!(Listener::bind(&socket), Err(ListenError::InUse(_))));
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("authd.sock");
    // Without ever having listened: a child that another test has just forked may hold a listener for a while.
    UnixSocket::new_stream().unwrap().bind(&socket).unwrap();
    Listener::bind(&socket).unwrap();
}

#[tokio::test]
async fn a_file_in_the_way_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("authd.sock");
    fs::write(&socket, "precious").unwrap();
    assert!(matches!(Listener::bind(&socket), Err(ListenError::NotASocket(_))));
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let socket = PathBuf::from("/proc/nothing/here/authd.sock");
    let error = Listener::bind(&socket).unwrap_err().to_string();
    assert!(error.starts_with("cannot create the directory /proc/nothing/here: "), "{error}");
}

#[tokio::test]
async fn the_socket_goes_with_the_server_and_streams_end() {
    let server = Server::start(Fake::default());
    let mut client = client(&server).await;
    let request = v1::ObserveRequest { follow: true, ..Default::default() };
    let mut stream = client.observe(request).await.unwrap().into_inner();
    let socket = server.socket.clone();
    timeout(Duration::from_secs(10), server.stop()).await.expect("in time").unwrap();
    assert!(stream.next().await.is_none_or(|item| item.is_err()));
    assert!(!socket.exists());
}

#[tokio::test]
async fn the_last_flows_are_the_last_that_match() {
    let flows = (0..10).map(|number| {
        let verdict = if number < 5 { v1::Verdict::Dropped } else { v1::Verdict::Forwarded };
        Arc::new(v1::Flow { verdict: verdict.into(), ..flow(number) })
    });
    let server = Server::start(Fake { flows: flows.collect(), ..Fake::default() });
    let filter = v1::FlowFilter { verdicts: vec![v1::Verdict::Dropped.into()], ..Default::default() };
    let request = v1::ObserveRequest { last: 2, filter: Some(filter), follow: false };
    let stream = client(&server).await.observe(request).await.unwrap().into_inner();
    let lengths: Vec<_> = stream
        .map(|response| match response.unwrap().item.unwrap() {
            Item::Flow(flow) => flow.length,
            Item::Lost(lost) => panic!("{lost:?}"),
        })
        .collect()
        .await;
    assert_eq!(lengths, [3, 4]);
}

#[tokio::test]
async fn following_goes_on_after_the_last_flows() {
    let server = Server::start(Fake { flows: vec![Arc::new(flow(1))], ..Fake::default() });
    let request = v1::ObserveRequest { last: 20, follow: true, filter: None };
    let mut stream = client(&server).await.observe(request).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await, Item::Flow(flow(1)));
    server.source.news.send(Arc::new(flow(2))).unwrap();
    assert_eq!(next(&mut stream).await, Item::Flow(flow(2)));
}

/// The source never waits: what an observer was too slow for is lost, counted, and told in its place.
#[tokio::test]
async fn a_slow_observer_is_told_what_it_has_lost() {
    const SENT: u32 = 20_000;
    let server = Server::start(Fake::default());
    let request = v1::ObserveRequest { follow: true, ..Default::default() };
    let mut stream = client(&server).await.observe(request).await.unwrap().into_inner();
    for number in 1..=SENT {
        // Large ones, so that the transport's windows fill.
        server.source.news.send(Arc::new(v1::Flow { rule: "x".repeat(1000), ..flow(number) })).unwrap();
        if number % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let (mut received, mut lost, mut last) = (0, 0, 0);
    while last < SENT {
        match next(&mut stream).await {
            Item::Flow(flow) => {
                assert!(flow.length > last, "in order");
                last = flow.length;
                received += 1;
            }
            Item::Lost(flows) => lost += flows.count,
        }
    }
    assert!(lost > 0);
    assert_eq!(received + lost, u64::from(SENT));
}
