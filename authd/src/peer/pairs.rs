//! Pairs that are proven over the node session: both ends hold the proof of the other's identity, of the very
//! certificates that they name to each other, before either records. The server records and says so; only then the
//! client records.

use std::sync::Arc;

use auth_ebpf_abi::{AuthKey, AuthType, IdentityNumber, NodeNumber};

use super::binding::SessionName;
use super::budget::Spend;
use super::error::{Error, known_reason};
use super::exchange::{Exchange, Held};
use super::handshake::{self, credential, identity_on, session_with};
use super::service::{PairProof, Shared};
use super::table::Under;
use super::wire::{PairAnswer, PairRequest, ProofAnswer, ProofRequest, SessionMessage, VERSION};
use crate::auth::stats::{Proving, Side};
use crate::auth::{Accepted, Method, Proof, Success};
use crate::clock::BootTime;

/// How often a pair is tried when an SVID or the session is replaced meanwhile.
const ATTEMPTS: usize = 3;

/// Proves the pair to the node of `key`: over the session if both ends can, else by a handshake.
pub(super) async fn dial(shared: &Arc<Shared>, key: AuthKey) -> Result<Proof, Error> {
    let mut replaced = Error::NoSession { node: key.node.to_string() };
    for _ in 0..ATTEMPTS {
        let (name, under) = session_with(shared, key.node, |_| true).await?;
        if shared.options.pair_proof == PairProof::Handshake || under.session.version < VERSION {
            return handshake::dial(shared, key, &name, &under).await;
        }
        match prove(shared, key, &name, &under).await {
            Err(error @ (Error::SvidChanged { .. } | Error::NoSession { .. })) => replaced = error,
            // Its SVID can be shown in a handshake, if it is one that we would take.
            Err(error) if error.as_str() == "too_large" => {
                return handshake::dial(shared, key, &name, &under).await;
            }
            result => return result,
        }
    }
    Err(replaced)
}

async fn prove(shared: &Arc<Shared>, key: AuthKey, name: &str, under: &Under) -> Result<Proof, Error> {
    let expected = identity_on(shared, key.remote, name)?;
    let own = credential(shared, key.local)?;
    let exchange = &under.exchange;
    let theirs = exchange.proof(shared, key.remote, None).await?;
    theirs.check(key.remote, &expected, &own.bundles, &*shared.clock)?;
    let request = PairRequest {
        number: 0,
        from: key.local,
        to: key.remote,
        from_leaf: own.svid.leaf_hash().to_vec(),
        to_leaf: theirs.svid.leaf_hash.to_vec(),
    };
    let answer = exchange.pair(request).await?;
    if *answer.to_leaf != theirs.svid.leaf_hash {
        exchange.outdated(key.remote, &theirs.svid.leaf_hash);
    }
    if answer.recorded {
        // It has recorded another certificate than we have the proof of: no honest node does.
        if *answer.to_leaf != theirs.svid.leaf_hash {
            return Err(Error::NotProven { identity: key.remote, reason: "of another SVID".to_owned() });
        }
        let session = &under.session;
        return Ok(shared.proof(&own, theirs.svid.clone(), session.group, session.epoch, Method::Session));
    }
    match known_reason(&answer.refused) {
        "svid_changed" => Err(Error::SvidChanged { identity: key.remote }),
        reason => Err(Error::RefusedByPeer { reason }),
    }
}

/// The session over which a request has come.
#[derive(Debug)]
pub(super) struct Over {
    pub(super) node: String,
    pub(super) number: NodeNumber,
    pub(super) name: SessionName,
    pub(super) exchange: Arc<Exchange>,
}

/// Serves a request for a proof, in a task of its own.
pub(super) fn serve_proof(shared: &Arc<Shared>, over: Arc<Over>, asked: ProofRequest) {
    let identity = asked.identity;
    // What is no request at all gets no answer: there is no context to name it by.
    let Ok(context) = over.exchange.context(identity, &asked.request).map(<[u8]>::to_vec) else {
        shared.observer.proof(Proving::Made, Err("wire"));
        return;
    };
    let refuse = move |error: &Error| {
        let refused = error.as_str().to_owned();
        SessionMessage::ProofAnswer(ProofAnswer { context, authenticator: Vec::new(), refused })
    };
    let room = match over.exchange.serve() {
        Ok(room) => room,
        Err(error) => {
            shared.observer.proof(Proving::Made, Err(error.as_str()));
            over.exchange.say_now(refuse(&error));
            return;
        }
    };
    let shared_here = Arc::clone(shared);
    shared.tasks.spawn(async move {
        let result = answer_proof(&shared_here, &over, &asked);
        shared_here.observer.proof(Proving::Made, result.as_ref().map(|_| ()).map_err(Error::as_str));
        let message = match result {
            Ok(answer) => SessionMessage::ProofAnswer(answer),
            Err(error) => {
                told(&shared_here, &over.node, identity, &error);
                refuse(&error)
            }
        };
        // A session that has ended needs no answer.
        over.exchange.say(message).await.unwrap_or_default();
        drop(room);
    });
}

fn answer_proof(shared: &Shared, over: &Over, asked: &ProofRequest) -> Result<ProofAnswer, Error> {
    serves(shared)?;
    identity_on(shared, asked.identity, &shared.options.node)?;
    let own = credential(shared, asked.identity)?;
    over.exchange.spend(Spend::Proving, shared.clock.now())?;
    over.exchange.prove(asked.identity, &asked.request, &own)
}

/// Serves a request for a pair, in a task of its own.
pub(super) fn serve_pair(shared: &Arc<Shared>, over: Arc<Over>, asked: PairRequest) {
    let began = shared.clock.now();
    let room = match over.exchange.serve() {
        Ok(room) => room,
        Err(error) => {
            shared.observer.handshake(Side::Server, Err(error.as_str()), std::time::Duration::ZERO);
            over.exchange.say_now(refusal(&asked, &error, Vec::new()));
            return;
        }
    };
    let shared_here = Arc::clone(shared);
    shared.tasks.spawn(async move {
        let shared = shared_here;
        let recorded = record(&shared, &over, &asked, began);
        let recorded = tokio::time::timeout(shared.options.setup_timeout, recorded).await;
        let result = recorded.unwrap_or(Err(Error::Timeout { stage: "a pair over the session" }));
        let leaf = credential(&shared, asked.to).map(|own| own.svid.leaf_hash().to_vec());
        let message = match result {
            Ok(to_leaf) => SessionMessage::PairAnswer(PairAnswer {
                number: asked.number,
                recorded: true,
                refused: String::new(),
                to_leaf,
            }),
            Err(error) => {
                // The driver has reported those that it has not recorded.
                if !matches!(error, Error::NotRecorded(_)) {
                    let latency = shared.clock.now().since(began);
                    shared.observer.handshake(Side::Server, Err(error.as_str()), latency);
                    told(&shared, &over.node, asked.from, &error);
                }
                refusal(&asked, &error, leaf.unwrap_or_default())
            }
        };
        over.exchange.say(message).await.unwrap_or_default();
        drop(room);
    });
}

/// Records a pair that the other end asks for; the hash of our own leaf.
async fn record(
    shared: &Arc<Shared>,
    over: &Over,
    asked: &PairRequest,
    began: BootTime,
) -> Result<Vec<u8>, Error> {
    serves(shared)?;
    over.exchange.spend(Spend::Recording, began)?;
    identity_on(shared, asked.to, &shared.options.node)?;
    let expected = identity_on(shared, asked.from, &over.node)?;
    let own = credential(shared, asked.to)?;
    if own.svid.leaf_hash() != *asked.to_leaf {
        return Err(Error::SvidChanged { identity: asked.to });
    }
    let theirs = over.exchange.proof(shared, asked.from, Some(&asked.from_leaf)).await?;
    theirs.check(asked.from, &expected, &own.bundles, &*shared.clock)?;
    accept(shared, over, asked, &own, &theirs, began).await?;
    Ok(own.svid.leaf_hash().to_vec())
}

async fn accept(
    shared: &Shared,
    over: &Over,
    asked: &PairRequest,
    own: &crate::svids::Credential,
    theirs: &Held,
    began: BootTime,
) -> Result<(), Error> {
    let gone = || Error::NoSession { node: over.node.clone() };
    // What was proven over a session that has been replaced, or has ended, counts no longer.
    let (_, under) = shared.table.under(over.number).ok_or_else(gone)?;
    if under.key.name != over.name {
        return Err(gone());
    }
    let session = under.session;
    let proof = shared.proof(own, theirs.svid.clone(), session.group, session.epoch, Method::Session);
    let key = key(asked, over.number);
    let latency = shared.clock.now().since(began);
    Ok(shared.auth.accept(Accepted { key, began, success: Success { proof, latency } }).await?)
}

const fn key(asked: &PairRequest, node: NodeNumber) -> AuthKey {
    AuthKey { local: asked.to, remote: asked.from, node, auth_type: AuthType::Spire as u8, pad: 0 }
}

/// A node that wants handshakes takes nothing else, whatever the other one has heard.
fn serves(shared: &Shared) -> Result<(), Error> {
    match shared.options.pair_proof {
        PairProof::Session => Ok(()),
        PairProof::Handshake => Err(Error::Version { version: VERSION }),
    }
}

fn refusal(asked: &PairRequest, error: &Error, to_leaf: Vec<u8>) -> SessionMessage {
    let refused = error.as_str().to_owned();
    SessionMessage::PairAnswer(PairAnswer { number: asked.number, recorded: false, refused, to_leaf })
}

/// A line about a refused request, at a pace: a node may ask without end. An SVID that is renewed meanwhile, and the
/// like, is nobody's fault.
fn told(shared: &Shared, node: &str, identity: IdentityNumber, error: &Error) {
    if error.retryable() {
        tracing::debug!(node, identity, reason = error.as_str(), %error, "request over the session not served");
    } else if shared.may_tell_of_refusal() {
        tracing::warn!(node, identity, reason = error.as_str(), %error, "request over the session refused");
    }
}
