//! An agent whose every message is told to it. A test's word reaches the open streams at once, new streams
//! first hear the latest.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;

use crate::authority::Issued;
use crate::authority::grpc::{self, Api, ApiService};
use crate::authority::listener::Socket;
use crate::proto::SpiffeIdParts;
use crate::proto::delegated::{
    self, BundlesRequest, BundlesResponse, SvidWithKey, SvidsRequest, SvidsResponse, X509Svid,
};
use crate::proto::workload::{self, X509SvidRequest, X509SvidResponse};
use crate::{DelegatedAgent, Selector, SpiffeId, Subscription};

/// What the SVID streams do.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// Send this and go on.
    Message(SvidsResponse),
    /// End with this status.
    Status(Status),
    /// Send bytes that are no such message.
    Garbage,
    /// Never send anything.
    Silence,
}

#[derive(Debug)]
pub(crate) struct StandIn {
    pub(crate) path: PathBuf,
    state: Arc<State>,
    delegated: DelegatedAgent,
    _stop: DropGuard,
    _dir: tempfile::TempDir,
}

#[derive(Debug)]
struct State {
    reply: watch::Sender<Reply>,
    bundles: watch::Sender<BundlesResponse>,
    workload: watch::Sender<X509SvidResponse>,
    opened: AtomicUsize,
    open: AtomicUsize,
    pending: AtomicUsize,
    most_pending: AtomicUsize,
    stop: CancellationToken,
}

impl StandIn {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let stop = CancellationToken::new();
        let state = Arc::new(State {
            reply: watch::Sender::new(Reply::Silence),
            bundles: watch::Sender::new(BundlesResponse::default()),
            workload: watch::Sender::new(X509SvidResponse::default()),
            opened: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            most_pending: AtomicUsize::new(0),
            stop: stop.clone(),
        });
        let socket = Socket::bind(&path).unwrap();
        let delegated_api = ApiService::new(Delegated(Arc::clone(&state)));
        let workload_api = ApiService::new(Workload(Arc::clone(&state)));
        let routes = Routes::new(delegated_api).add_service(workload_api);
        drop(socket.serve(routes, stop.clone()));
        let delegated = DelegatedAgent::new(&path);
        Self { path, state, delegated, _stop: stop.drop_guard(), _dir: dir }
    }

    pub(crate) fn subscribe(&self, expected: &SpiffeId) -> Subscription {
        self.delegated.subscribe([Selector::new("authd", "test")], expected.clone())
    }

    pub(crate) fn send(&self, message: SvidsResponse) {
        self.reply(Reply::Message(message));
    }

    pub(crate) fn reply(&self, reply: Reply) {
        self.state.reply.send_replace(reply);
    }

    pub(crate) fn send_bundles(&self, bundles: &[(&str, &CertificateDer<'_>)]) {
        let ca_certificates = bundles.iter().map(|(name, der)| ((*name).to_owned(), der.to_vec())).collect();
        self.state.bundles.send_replace(BundlesResponse { ca_certificates });
    }

    pub(crate) fn send_workload(&self, message: X509SvidResponse) {
        self.state.workload.send_replace(message);
    }

    /// How many SVID streams there have been.
    pub(crate) fn opened(&self) -> usize {
        self.state.opened.load(Ordering::SeqCst)
    }

    /// How many of them are open now.
    pub(crate) fn open(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    /// The most that are open at a time from now on, for so long.
    pub(crate) async fn most_open_during(&self, time: Duration) -> usize {
        let (began, mut most) = (Instant::now(), 0);
        while began.elapsed() < time {
            most = most.max(self.open());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        most
    }

    pub(crate) fn most_pending(&self) -> usize {
        self.state.most_pending.load(Ordering::SeqCst)
    }
}

pub(crate) fn svid_message(issued: &Issued) -> SvidWithKey {
    SvidWithKey {
        x509_svid: Some(X509Svid {
            cert_chain: vec![issued.certificate.to_vec()],
            id: Some(SpiffeIdParts::from(&issued.spiffe_id)),
            expires_at: issued.expires_at(),
            hint: String::new(),
        }),
        x509_svid_key: issued.key.to_vec(),
    }
}

/// `SvidsResponse` with its SVIDs as bare bytes, which may be anything.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Raw {
    #[prost(bytes = "vec", repeated, tag = "1")]
    svids: Vec<Vec<u8>>,
    #[prost(string, repeated, tag = "2")]
    federates_with: Vec<String>,
}

struct Delegated(Arc<State>);

impl Api for Delegated {
    const NAME: &'static str = delegated::SERVICE;

    async fn route(self: Arc<Self>, request: http::Request<Body>) -> http::Response<Body> {
        if request.uri().path() == delegated::SUBSCRIBE_TO_X509_BUNDLES {
            let state = &self.0;
            return grpc::streaming::<BundlesRequest, _, _>(request, |_| {
                Ok(latest(&state.bundles, &state.stop))
            })
            .await;
        }
        grpc::streaming::<SvidsRequest, _, _>(request, |_| {
            let (sender, receiver) = mpsc::channel(1);
            let state = Arc::clone(&self.0);
            tokio::spawn(async move {
                state.open.fetch_add(1, Ordering::SeqCst);
                play(&state, sender).await;
                state.open.fetch_sub(1, Ordering::SeqCst);
            });
            Ok(ReceiverStream::new(receiver))
        })
        .await
    }
}

struct Workload(Arc<State>);

impl Api for Workload {
    const NAME: &'static str = workload::SERVICE;

    async fn route(self: Arc<Self>, request: http::Request<Body>) -> http::Response<Body> {
        let state = &self.0;
        grpc::streaming::<X509SvidRequest, _, _>(request, |_| Ok(latest(&state.workload, &state.stop))).await
    }
}

async fn play(state: &State, sender: mpsc::Sender<Result<Raw, Status>>) {
    let mut reply = state.reply.subscribe();
    state.opened.fetch_add(1, Ordering::SeqCst);
    let pending = state.pending.fetch_add(1, Ordering::SeqCst) + 1;
    state.most_pending.fetch_max(pending, Ordering::SeqCst);
    let mut opened = false;
    loop {
        let next = reply.borrow_and_update().clone();
        let (item, end) = match next {
            Reply::Message(message) => (Some(Ok(raw(&message))), false),
            Reply::Status(status) => (Some(Err(status)), true),
            Reply::Garbage => (Some(Ok(Raw { svids: vec![vec![0xff; 9]], federates_with: vec![] })), false),
            Reply::Silence => (None, false),
        };
        if let Some(item) = item {
            if !std::mem::replace(&mut opened, true) {
                state.pending.fetch_sub(1, Ordering::SeqCst);
            }
            if sender.send(item).await.is_err() || end {
                return;
            }
        }
        tokio::select! {
            changed = reply.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
            () = state.stop.cancelled() => return,
        }
    }
}

/// Submessages and byte strings look the same on the wire.
fn raw(message: &SvidsResponse) -> Raw {
    use prost::Message as _;
    Raw::decode(message.encode_to_vec().as_slice()).unwrap()
}

fn latest<M>(source: &watch::Sender<M>, stop: &CancellationToken) -> ReceiverStream<Result<M, Status>>
where
    M: Clone + Send + Sync + 'static,
{
    let (sender, receiver) = mpsc::channel(1);
    let (mut source, stop) = (source.subscribe(), stop.clone());
    tokio::spawn(async move {
        loop {
            let message = source.borrow_and_update().clone();
            if sender.send(Ok(message)).await.is_err() {
                return;
            }
            tokio::select! {
                changed = source.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
                () = stop.cancelled() => return,
            }
        }
    });
    ReceiverStream::new(receiver)
}
