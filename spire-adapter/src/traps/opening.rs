//! How streams are opened: few at a time, each with a deadline, again with growing pauses, and to nobody but SPIRE.

use std::time::Instant;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::socket::{Dial, connect_server};
use crate::stream::{self, Agent, Call};
use crate::{ExpectedPeer, Groups, tls};

#[tokio::test]
async fn an_agent_that_never_answers_is_told_apart() {
    let (stand_in, _ca) = rig();
    stand_in.reply(Reply::Silence);
    let agent = Agent::with_deadline(stand_in.path.clone(), Dial::Plain, Duration::from_millis(200));
    let (sink, mut heard) = tokio::sync::mpsc::channel(1);
    let follow = stream::follow(&agent, svids_call(), |response: SvidsResponse| Ok(response), sink);
    let first = tokio::select! {
        () = follow => None,
        first = heard.recv() => first,
    };
    let Some(crate::snapshot::Heard::Lost(error)) = first else {
        panic!("{first:?}");
    };
    assert!(matches!(error, ApiError::Deadline { .. }));
    assert!(error.is_stuck() && error.to_string().contains("may be stuck"));
}

#[tokio::test]
async fn few_streams_are_being_opened_at_a_time() {
    let (agent, ca) = rig();
    let svid = ca.issue(&expected(), HOUR).unwrap();
    let subscriptions: Vec<_> = (0..300).map(|_| agent.subscribe(&expected())).collect();
    // As many as may be wait for their first message, which nobody gets yet, and the others for them.
    let all_pending = async {
        while agent.most_pending() < 64 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all_pending).await.unwrap();
    agent.send(message(&[&svid]));
    for subscription in &subscriptions {
        until(subscription, |next| next.svid().is_some()).await;
    }
    assert_eq!(agent.most_pending(), 64);
}

#[tokio::test]
async fn a_slow_agent_is_asked_for_less_until_it_answers() {
    const STREAMS: usize = 100;
    let (stand_in, _ca) = rig();
    let deadline = Duration::from_millis(500);
    let agent = Agent::with_deadline(stand_in.path.clone(), Dial::Plain, deadline);
    let mut followers = tokio::task::JoinSet::new();
    let (sink, mut heard) = tokio::sync::mpsc::channel(STREAMS);
    for _ in 0..STREAMS {
        let (agent, sink) = (std::sync::Arc::clone(&agent), sink.clone());
        followers.spawn(async move {
            stream::follow(&agent, svids_call(), |response: SvidsResponse| Ok(response), sink).await;
        });
    }
    // So many run out of time; that costs all but four their places.
    for _ in 0..STREAMS {
        let lost = tokio::time::timeout(6 * PATIENCE, heard.recv()).await.unwrap();
        assert!(matches!(lost, Some(crate::snapshot::Heard::Lost(_))), "{lost:?}");
    }
    let most = stand_in.most_open_during(Duration::from_secs(2)).await;
    // It hears only later of those that were given up.
    assert!((1..=16).contains(&most), "{most}");
    // It answers, and gets all of them.
    stand_in.send(message(&[]));
    let began = Instant::now();
    while stand_in.open() < STREAMS {
        while heard.try_recv().is_ok() {}
        assert!(began.elapsed() < 6 * PATIENCE, "{} are open", stand_in.open());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn svids_call() -> Call<crate::proto::delegated::SvidsRequest> {
    Call {
        api: crate::proto::delegated::SERVICE,
        method: crate::proto::delegated::SUBSCRIBE_TO_X509_SVIDS,
        header: None,
        request: crate::proto::delegated::SvidsRequest::default(),
    }
}

#[tokio::test]
async fn a_first_message_may_take_ten_seconds_and_no_hour() {
    let (agent, _ca) = rig();
    let began = Instant::now();
    let subscription = agent.subscribe(&expected());
    let mut watch = subscription.watch();
    let told = watch.wait_for(|next| next.problem.is_some());
    let told = tokio::time::timeout(6 * PATIENCE, told).await.expect("nobody is told").unwrap().clone();
    assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", began.elapsed());
    let problem = told.problem.unwrap();
    assert!(problem.is_stuck() && problem.to_string().contains("within 10 s"), "{problem}");
}

#[tokio::test]
async fn who_refuses_is_asked_again_but_not_at_once() {
    for status in [Status::permission_denied("no identity issued"), Status::unavailable("away")] {
        let (agent, _ca) = rig();
        agent.reply(Reply::Status(status));
        let began = Instant::now();
        let subscription = agent.subscribe(&expected());
        while agent.opened() < 4 {
            assert!(began.elapsed() < PATIENCE, "asked {} times", agent.opened());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Three pauses, of 100, 200 and 400 ms, each shortened by up to half.
        assert!(began.elapsed() >= Duration::from_millis(350), "{:?}", began.elapsed());
        drop(subscription);
    }
}

#[tokio::test]
async fn each_subscription_has_one_stream_and_takes_it_along() {
    let (agent, ca) = rig();
    let svid = ca.issue(&expected(), HOUR).unwrap();
    agent.send(message(&[&svid]));
    let mut subscriptions: Vec<_> = (0..3).map(|_| agent.subscribe(&expected())).collect();
    for subscription in &subscriptions {
        until(subscription, |next| next.svid().is_some()).await;
    }
    assert_eq!((agent.open(), agent.opened()), (3, 3));
    while subscriptions.pop().is_some() {
        let began = Instant::now();
        while agent.open() != subscriptions.len() {
            assert!(began.elapsed() < PATIENCE, "{} are open", agent.open());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    assert_eq!(agent.opened(), 3);
}

/// What a server is that has an SVID of this trust domain, and believes everybody.
struct Impostor {
    acceptor: TlsAcceptor,
    own: watch::Receiver<Snapshot>,
}

impl Impostor {
    fn new(path: &str) -> Self {
        let ca = CertificateAuthority::new(expected().trust_domain()).unwrap();
        let svid = |id: &SpiffeId| ca.issue(id, HOUR).unwrap().to_svid().unwrap();
        let bundles: crate::Bundles = [ca.bundle().unwrap()].into_iter().collect();
        let anybody = ExpectedPeer::PathPrefix(expected().trust_domain().clone(), "/identity".to_owned());
        let options = Groups::Any.into();
        let config = tls::server_config(&svid(&id(path)), &bundles, anybody, b"h2", &options).unwrap();
        let state = State::Usable(svid(&expected()));
        let (_, own) = watch::channel(Snapshot { state, bundles, ..Snapshot::default() });
        Self { acceptor: TlsAcceptor::from(config), own }
    }
}

/// Whether a client believes that this is an agent's broker socket, as far as TLS goes.
async fn is_agent(path: &str) -> bool {
    let Impostor { acceptor, own } = Impostor::new(path);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("broker.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let serve = async { acceptor.accept(listener.accept().await.unwrap().0).await.is_ok() };
    let dial = Dial::Mutual(own);
    let (met, connected) = tokio::join!(serve, dial.connect(&socket));
    assert_eq!(!met, is_refused(connected));
    met
}

/// The same for the server, by TCP.
async fn is_server(path: &str) -> bool {
    let Impostor { acceptor, own } = Impostor::new(path);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serve = async { acceptor.accept(listener.accept().await.unwrap().0).await.is_ok() };
    let own = own.borrow().clone();
    let (met, connected) = tokio::join!(serve, connect_server(&address, &own));
    assert_eq!(!met, is_refused(connected));
    met
}

/// Whether it ended in TLS; what is said above is not looked at here.
fn is_refused(connected: Result<tonic::transport::Channel, ApiError>) -> bool {
    connected.is_err_and(|problem| problem.to_string().contains("TLS: "))
}

#[tokio::test]
async fn whoever_else_has_an_svid_is_no_agent_and_no_server() {
    assert!(is_agent("/spire/agent/x509pop/cn/n1").await && is_server("/spire/server").await);
    for path in ["/identity/257", "/spire/agents/n1", "/spire/agent", "/spire/server", "/authd/node/n1"] {
        assert!(!is_agent(path).await, "{path}");
    }
    for path in ["/identity/257", "/spire/server/x", "/spire/agent/x509pop/cn/n1", "/authd/operator"] {
        assert!(!is_server(path).await, "{path}");
    }
}
