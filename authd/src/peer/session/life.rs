//! A session from its Hellos to its end.

use std::sync::Arc;
use std::time::Duration;

use spire_adapter::Bundles;
use tokio::io::AsyncRead;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::Other;
use super::addresses::AddressExchange;
use super::announcement::{announced, announcement};
use super::output::Output;
use crate::auth::stats::Side;
use crate::clock::BootTime;
use crate::handover::Told;
use crate::logging::AUDIT;
use crate::peer::binding::SessionName;
use crate::peer::crossing::Completed;
use crate::peer::error::Error;
use crate::peer::exchange::Exchange;
use crate::peer::pace::Pace;
use crate::peer::pairs::{self, Over};
use crate::peer::preshared::{Agreement, End, Mismatch};
use crate::peer::role::Role;
use crate::peer::service::Shared;
use crate::peer::table::{Live, Outgoing, Session};
use crate::peer::wire::{
    Addresses, AddressesKnown, Announcement, Ping, Preshared, Reader, Revoke, SessionFrame, SessionMessage,
    WireError,
};

/// Revocations that may wait to be sent.
const OUTBOX: usize = 256;
/// Frames that are read at once, and one after each interval from then on: a peer that talks without end keeps
/// nobody but itself waiting.
const FRAMES: (u32, Duration) = (64, Duration::from_millis(50));
/// The same for what is about proofs: each is served in a task of its own, within the node's budget.
const FRAMES_OF_PROOFS: (u32, Duration) = (1024, Duration::from_micros(100));
/// Messages of the exchange that are sent together.
const WORDS: usize = 64;
/// How often time and cluster state are looked at.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) type Input = Reader<Box<dyn AsyncRead + Send + Unpin>>;

/// A session that both ends have agreed on and the table holds.
pub(in crate::peer) struct Established {
    name: String,
    id: SessionName,
    session: Session,
    /// By which the node was verified.
    bundles: Bundles,
    agreement: Agreement,
    input: Input,
    output: Output,
    outbox: mpsc::Receiver<Outgoing>,
    announce: Arc<Notify>,
    over: Arc<Over>,
    /// What the exchange of proofs has to send.
    words: mpsc::Receiver<SessionMessage>,
    addresses: AddressExchange,
    /// A confirmation that came before the keys that it is about.
    early: Option<Preshared>,
    stop: CancellationToken,
}

impl<R: AsyncRead + Send + Unpin + 'static> Reader<R> {
    /// The same without its type.
    pub(super) fn boxed(self) -> Input {
        self.map(|from| Box::new(from) as Box<dyn AsyncRead + Send + Unpin>)
    }
}

impl Established {
    pub(super) async fn new(
        shared: &Arc<Shared>,
        output: Output,
        input: Input,
        other: Other,
        hello: &Announcement,
        side: Side,
    ) -> Result<Self, Error> {
        let session = announced(&other.name, opened(shared, &other), hello)?;
        let (sender, outbox) = mpsc::channel(OUTBOX);
        let stop = CancellationToken::new();
        let id = other.key.name;
        let agreement = agreement(&other, side);
        let dialled = side == Side::SessionClient;
        let by_lower = dialled == (other.own.spiffe_id < session.spiffe_id);
        let completed = Completed { by_lower, at: shared.clock.now() };
        let announce = Arc::new(Notify::new());
        let budget = shared.budgets.of(&other.name);
        let authenticators = Arc::clone(&other.key.authenticators);
        let (exchange, words) = Exchange::new(other.name.clone(), role(side), authenticators, budget);
        let (node, number) = (other.name.clone(), session.number);
        let over = Arc::new(Over { node, number, name: id, exchange: Arc::clone(&exchange) });
        let live = Live {
            key: other.key,
            completed,
            outbox: sender,
            announce: Arc::clone(&announce),
            exchange,
            stop: stop.clone(),
        };
        let own_key = shared.own.borrow().wireguard_key;
        let session =
            shared.table.install(&other.name, live, session, own_key, shared.options.setup_timeout).await?;
        tracing::info!(
            target: AUDIT,
            event = "session_up",
            node = other.name,
            spiffe_id = %session.spiffe_id,
            side = side.as_str(),
            group = session.group,
            epoch = session.epoch,
            expires_in_s = session.ends.since(shared.clock.now()).as_secs(),
            "node session up"
        );
        Ok(Self {
            name: other.name,
            id,
            session,
            bundles: other.bundles,
            agreement,
            input,
            output,
            outbox,
            announce,
            over,
            words,
            addresses: AddressExchange::new(shared.assigned.clone()),
            early: None,
            stop,
        })
    }

    /// How long it has to live.
    pub(in crate::peer) const fn life(&self, now: BootTime) -> Duration {
        self.session.ends.since(now)
    }

    /// Lets it live in a task of its own, until `stop` at the latest. The token says when it has ended.
    pub(in crate::peer) fn spawn(self, shared: &Arc<Shared>, stop: &CancellationToken) -> CancellationToken {
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let shared_here = Arc::clone(shared);
        let stop = stop.clone();
        shared.tasks.spawn(async move {
            self.run(&shared_here, &stop).await;
            drop(guard);
        });
        ended
    }

    async fn run(mut self, shared: &Arc<Shared>, stop: &CancellationToken) {
        let replaced = self.stop.clone();
        let (reason, error) = tokio::select! {
            () = stop.cancelled() => ("stopped", None),
            () = replaced.cancelled() => ("replaced", None),
            result = self.live(shared) => match result {
                Ok(()) => ("expired", None),
                Err(error) => (error.as_str(), Some(error.to_string())),
            },
        };
        let known = shared.directory().nodes.contains_key(&self.name);
        if shared.table.is_current(&self.name, self.id) {
            let why = error.as_deref().unwrap_or(reason);
            shared.table.note_trouble(&self.name, format!("the session ended: {why}"), shared.clock.wall());
        }
        shared.table.end(&self.name, self.id, known).await;
        // Whoever waits for it finds its successor, or none.
        self.over.exchange.end();
        tracing::info!(target: AUDIT, event = "session_ended", node = self.name, reason, error, "node session ended");
    }

    /// Until it expires, or fails.
    async fn live(&mut self, shared: &Arc<Shared>) -> Result<(), Error> {
        let mut own = shared.own.clone();
        let mut announced = shared.svids.announced();
        // What changed since our Hello was written.
        own.mark_changed();
        let mut looks = tokio::time::interval(LOOK);
        let mut pace = Pace::new(FRAMES.0, FRAMES.1);
        let mut proofs_pace = Pace::new(FRAMES_OF_PROOFS.0, FRAMES_OF_PROOFS.1);
        let mut said = Vec::new();
        let mut heard = shared.clock.now();
        let mut pinged = heard;
        loop {
            let now = shared.clock.now();
            let held = pace.wait(now).max(proofs_pace.wait(now));
            // Reading never waits for writing; what can be said later waits where it is.
            let (room, done) = (self.output.has_room(), self.output.is_empty());
            tokio::select! {
                () = tokio::time::sleep(held.unwrap_or_default()), if held.is_some() => {}
                frame = self.input.next::<SessionFrame>(), if held.is_none() => {
                    let frame = frame?;
                    heard = shared.clock.now();
                    if frame.is_of_proofs() { &mut proofs_pace } else { &mut pace }.take(heard);
                    self.hear(shared, frame).await?;
                }
                written = self.output.write(), if !done => {
                    written?;
                    self.output.has_moved(shared.clock.now());
                }
                Some(Outgoing::Revoke(identity)) = self.outbox.recv(), if room => {
                    self.say(shared, SessionMessage::Revoke(Revoke { identity }))?;
                    // It may have come back before this was said: what is so now is said last.
                    announced.mark_changed();
                }
                1.. = self.words.recv_many(&mut said, WORDS), if room => {
                    said.drain(..).try_for_each(|word| self.say(shared, word))?;
                }
                () = self.addresses.outdated(), if room => self.tell_addresses(shared)?,
                () = self.announce.notified(), if room => if self.addresses.is_due(shared.clock.now()) {
                    self.tell_addresses(shared)?;
                },
                Ok(()) = own.changed(), if room => {
                    self.check_key(shared)?;
                    self.say(shared, SessionMessage::Update(announcement(shared)))?;
                    self.agree(shared)?;
                    self.confirm_late(shared).await?;
                }
                Ok(()) = announced.changed(), if room => {
                    self.say(shared, SessionMessage::Update(announcement(shared)))?;
                }
                _ = looks.tick() => if self.look(shared, heard, &mut pinged)? {
                    return Ok(());
                },
            }
        }
    }

    /// What only time and cluster state bring about. Whether the session is over.
    fn look(&mut self, shared: &Shared, heard: BootTime, pinged: &mut BootTime) -> Result<bool, Error> {
        let now = shared.clock.now();
        if now >= self.session.ends {
            return Ok(true);
        }
        if now.since(heard) > shared.options.silence {
            return Err(Error::Timeout { stage: "ping" });
        }
        if self.output.is_stuck(now, shared.options.silence) {
            return Err(Error::Timeout { stage: "writing" });
        }
        self.check_node(shared)?;
        let directory = shared.directory();
        self.over.exchange.prune(|identity| directory.runs_on(identity, &self.name), now);
        self.check_trust(shared)?;
        if now.since(*pinged) >= shared.options.ping {
            *pinged = now;
            self.say(shared, SessionMessage::Ping(Ping { number: now.0 }))?;
        }
        Ok(false)
    }

    fn say(&mut self, shared: &Shared, message: SessionMessage) -> Result<(), Error> {
        Ok(self.output.say(message, shared.clock.now())?)
    }

    async fn hear(&mut self, shared: &Arc<Shared>, frame: SessionFrame) -> Result<(), Error> {
        match frame.message {
            Some(SessionMessage::Update(update)) => {
                let session = announced(&self.name, self.session.clone(), &update)?;
                if session != self.session {
                    // Before the machine hears of it: what it starts afterwards finds no proof.
                    let same_epoch = session.epoch == self.session.epoch;
                    let kept = |identity| same_epoch && session.identities.contains(&identity);
                    self.over.exchange.retain(kept);
                    self.session = session.clone();
                    let own_key = shared.own.borrow().wireguard_key;
                    shared.table.update(&self.name, self.id, session, own_key).await?;
                    self.agree(shared)?;
                    self.confirm_late(shared).await?;
                }
            }
            Some(SessionMessage::Revoke(Revoke { identity })) => {
                tracing::info!(target: AUDIT, event = "identity_revoked", node = self.name, identity, "identity revoked by its node");
                self.over.exchange.retain(|held| held != identity);
                Arc::make_mut(&mut self.session.identities).remove(&identity);
                shared.table.revoked(&self.name, self.id, identity).await;
            }
            Some(SessionMessage::Ping(ping)) => self.say(shared, SessionMessage::Pong(ping))?,
            Some(SessionMessage::Preshared(said)) => self.confirmed(shared, &said).await?,
            Some(SessionMessage::Addresses(part)) => self.hear_addresses(shared, &part).await?,
            Some(SessionMessage::AddressesKnown(AddressesKnown { epoch })) => {
                self.addresses_known(shared, epoch).await?;
            }
            Some(SessionMessage::ProofRequest(asked)) => {
                pairs::serve_proof(shared, Arc::clone(&self.over), asked);
            }
            Some(SessionMessage::ProofAnswer(answer)) => self.over.exchange.hear_proof(answer),
            Some(SessionMessage::PairRequest(asked)) => {
                pairs::serve_pair(shared, Arc::clone(&self.over), asked);
            }
            Some(SessionMessage::PairAnswer(answer)) => self.over.exchange.hear_pair(answer),
            Some(SessionMessage::Hello(_)) => {
                return Err(WireError::Unexpected { expected: "anything but another Hello" }.into());
            }
            Some(SessionMessage::Pong(_)) | None => {}
        }
        Ok(())
    }

    fn tell_addresses(&mut self, shared: &Shared) -> Result<(), Error> {
        for part in self.addresses.tell(shared.clock.now()) {
            self.say(shared, SessionMessage::Addresses(part))?;
        }
        Ok(())
    }

    /// Acknowledges what the node says of its addresses once the maps know nobody else under them.
    async fn hear_addresses(&mut self, shared: &Shared, part: &Addresses) -> Result<(), Error> {
        let Some(owners) = self.addresses.hear(part)? else { return Ok(()) };
        // A session that has been replaced meanwhile may know less than its successor.
        if !shared.table.is_current(&self.name, self.id) {
            return Ok(());
        }
        let (applied, done) = oneshot::channel();
        let told = Told::Announced { node: self.session.number, owners, applied };
        let asked = async { shared.handover.send(told).await.is_ok() && done.await.is_ok() };
        let known = tokio::time::timeout(shared.options.silence, asked).await;
        if known.map_err(|_elapsed| Error::Timeout { stage: "writing addresses" })? {
            let known = AddressesKnown { epoch: part.epoch };
            self.say(shared, SessionMessage::AddressesKnown(known))?;
        }
        Ok(())
    }

    async fn addresses_known(&mut self, shared: &Shared, epoch: u32) -> Result<(), Error> {
        let Some(epoch) = self.addresses.acknowledge(epoch) else { return Ok(()) };
        let told = Told::Acknowledged { node: self.session.number, session_epoch: self.session.epoch, epoch };
        let sent = tokio::time::timeout(shared.options.silence, shared.handover.send(told)).await;
        // Without anybody who keeps the maps, the daemon ends.
        sent.map(drop).map_err(|_elapsed| Error::Timeout { stage: "taking down an acknowledgement" })
    }

    /// Confirms the pre-shared key to the other end, once both WireGuard keys are known.
    fn agree(&mut self, shared: &Shared) -> Result<(), Error> {
        let own = shared.own.borrow().wireguard_key;
        match self.agreement.propose(own, self.session.wireguard_key) {
            Some(said) => self.say(shared, SessionMessage::Preshared(said)),
            None => Ok(()),
        }
    }

    /// What came too early counts now, if it is of the keys that are known by now.
    async fn confirm_late(&mut self, shared: &Shared) -> Result<(), Error> {
        match self.early.take() {
            Some(said) => self.confirmed(shared, &said).await,
            None => Ok(()),
        }
    }

    /// The other end has confirmed the pre-shared key: now it counts.
    async fn confirmed(&mut self, shared: &Shared, said: &Preshared) -> Result<(), Error> {
        self.agree(shared)?;
        let differs = |_: Mismatch| Error::Preshared { node: self.name.clone() };
        let Some(key) = self.agreement.confirm(said).map_err(differs)? else {
            self.early = Some(said.clone());
            return Ok(());
        };
        tracing::info!(target: AUDIT, event = "preshared_key_agreed", node = self.name, key = %key, "pre-shared key agreed on");
        self.session.preshared_key = Some(key);
        self.session.preshared_since = Some(shared.clock.wall());
        let own_key = shared.own.borrow().wireguard_key;
        shared.table.update(&self.name, self.id, self.session.clone(), own_key).await.map(drop)
    }

    /// Our own key may become known after a peer has announced it.
    fn check_key(&self, shared: &Shared) -> Result<(), Error> {
        let own = shared.own.borrow().wireguard_key;
        if own.is_none() || own != self.session.wireguard_key {
            return Ok(());
        }
        Err(Error::KeyConflict { node: self.name.clone(), owner: "this node".to_owned() })
    }

    /// An anchor may leave the bundle before its time.
    fn check_trust(&self, shared: &Shared) -> Result<(), Error> {
        let lost = shared
            .svids
            .node()
            .is_some_and(|own| own.bundles.lack_anchor_of(&self.bundles, shared.clock.wall()));
        if lost { Err(Error::AnchorLost { node: self.name.clone() }) } else { Ok(()) }
    }

    /// Cluster state may take a node away, or say that its name is now another's.
    fn check_node(&self, shared: &Shared) -> Result<(), Error> {
        let directory = shared.directory();
        let same = directory.nodes.get(&self.name).is_some_and(|node| {
            node.spiffe_id == self.session.spiffe_id && node.number == self.session.number
        });
        if same { Ok(()) } else { Err(Error::UnknownNode { node: self.name.clone() }) }
    }
}

/// What TLS has said of the other end, before its Hello.
fn opened(shared: &Shared, other: &Other) -> Session {
    Session {
        number: other.node.number,
        spiffe_id: other.svid.spiffe_id.clone(),
        wireguard_key: None,
        preshared_key: None,
        preshared_since: None,
        wireguard_endpoint: other.address,
        handshake_endpoint: other.address,
        identities: Arc::default(),
        epoch: 0,
        group: other.group,
        version: 0,
        since: shared.clock.wall(),
        expires: other.own_not_after.min(other.svid.not_after),
        ends: shared
            .svids
            .ends(other.own.leaf_hash, other.own_not_after)
            .min(shared.svids.ends(other.svid.leaf_hash, other.svid.not_after)),
        live: true,
    }
}

fn agreement(other: &Other, side: Side) -> Agreement {
    let theirs = End { spiffe_id: other.svid.spiffe_id.clone(), leaf_hash: other.svid.leaf_hash };
    let exported = Arc::clone(&other.key.preshared);
    match role(side) {
        role @ Role::Client => Agreement::new(exported, role, other.own.clone(), theirs),
        role @ Role::Server => Agreement::new(exported, role, theirs, other.own.clone()),
    }
}

/// Ours of the session.
const fn role(side: Side) -> Role {
    match side {
        Side::SessionClient => Role::Client,
        Side::SessionServer | Side::Client | Side::Server | Side::Local | Side::Stranger => Role::Server,
    }
}
