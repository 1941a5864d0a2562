//! The node sessions that are live, and what the rest of the daemon sees of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use auth_ebpf_abi::{IdentityNumber, NodeNumber};
use spiffe::SpiffeId;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use wg_mesh::PresharedKey;

use super::binding::{SessionKey, SessionName};
use super::crossing::Completed;
use super::error::Error;
use super::exchange::Exchange;
use crate::auth::{Event, Handle};
use crate::clock::BootTime;

/// Sessions by node name.
pub type SessionMap = Arc<BTreeMap<String, Session>>;

/// What is known of a node by its session, or by its last one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The node's number.
    pub number: NodeNumber,
    /// The node's SPIFFE ID.
    pub spiffe_id: SpiffeId,
    /// Its WireGuard public key, if it has one.
    pub wireguard_key: Option<[u8; 32]>,
    /// Pre-shared key of the tunnel with it, which both ends have confirmed: of this session or, until it has
    /// come to one, of the last. A tunnel without one is not made.
    pub preshared_key: Option<PresharedKey>,
    /// When both ends had confirmed it.
    pub preshared_since: Option<SystemTime>,
    /// Where its WireGuard is: the address at the other end of the session, with the port that it announces.
    pub wireguard_endpoint: SocketAddr,
    /// Where its handshakes are taken.
    pub handshake_endpoint: SocketAddr,
    /// The identities that it vouches for.
    pub identities: Arc<BTreeSet<IdentityNumber>>,
    /// Its session epoch.
    pub epoch: u32,
    /// Version of the protocol that it announces.
    pub version: u32,
    /// Key exchange group of the session's TLS.
    pub group: &'static str,
    /// When the session began.
    pub since: SystemTime,
    /// The earlier NotAfter of the two node SVIDs: the session's end, for people.
    pub expires: SystemTime,
    /// The same in boot time, as it was when the session began: no step of the wall clock moves it.
    pub ends: BootTime,
    /// Whether the session is up. If not, this is what was known last: tunnels go on, nothing new starts.
    pub live: bool,
}

/// Why there is no session with a node, or why it can't be renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What went wrong last.
    pub what: String,
    /// When.
    pub at: SystemTime,
}

/// What goes out on a session at our wish.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outgoing {
    Revoke(IdentityNumber),
}

/// A session as the table holds it.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) key: SessionKey,
    pub(super) completed: Completed,
    pub(super) outbox: mpsc::Sender<Outgoing>,
    /// Asks for this node's addresses to be told.
    pub(super) announce: Arc<Notify>,
    /// What its two ends prove to each other.
    pub(super) exchange: Arc<Exchange>,
    /// Ends the session.
    pub(super) stop: CancellationToken,
}

/// What proving a pair needs of a live session.
#[derive(Clone, Debug)]
pub(super) struct Under {
    pub(super) key: SessionKey,
    pub(super) exchange: Arc<Exchange>,
    pub(super) session: Session,
}

#[derive(Debug)]
pub(super) struct Table {
    live: Mutex<BTreeMap<String, Live>>,
    published: watch::Sender<SessionMap>,
    troubles: Mutex<BTreeMap<String, Trouble>>,
    /// Held while the machine is told of a node, so that a replaced session can't speak after its successor.
    order: tokio::sync::Mutex<()>,
    auth: Handle,
}

impl Table {
    pub(super) fn new(auth: Handle) -> Self {
        let (published, _) = watch::channel(SessionMap::default());
        Self {
            live: Mutex::default(),
            published,
            troubles: Mutex::default(),
            order: tokio::sync::Mutex::new(()),
            auth,
        }
    }

    pub(super) fn watch(&self) -> watch::Receiver<SessionMap> {
        self.published.subscribe()
    }

    /// A completed session takes the place of an older one with the same node, once the machine knows of it, unless
    /// that one has won over it. Returns it as it stands: the tunnel goes on with the key that it has.
    pub(super) async fn install(
        &self,
        node: &str,
        live: Live,
        mut session: Session,
        own_key: Option<[u8; 32]>,
        setup: Duration,
    ) -> Result<Session, Error> {
        let _order = self.order.lock().await;
        let standing = self.live().get(node).map(|live| live.completed);
        if standing.is_some_and(|standing| !standing.gives_way_to(live.completed, setup)) {
            return Err(Error::Crossed { node: node.to_owned() });
        }
        self.check_key(node, session.wireguard_key, own_key)?;
        let last = self.known(node).filter(|last| last.wireguard_key == session.wireguard_key);
        (session.preshared_key, session.preshared_since) =
            last.map(|last| (last.preshared_key, last.preshared_since)).unwrap_or_default();
        self.auth.tell(peer_up(&session)).await;
        self.troubles().remove(node);
        let older = self.live().insert(node.to_owned(), live);
        self.publish(node, Some(session.clone()));
        if let Some(older) = older {
            older.stop.cancel();
        }
        Ok(session)
    }

    /// What a live session announces has changed. False if it is not the node's session any more.
    pub(super) async fn update(
        &self,
        node: &str,
        name: SessionName,
        session: Session,
        own_key: Option<[u8; 32]>,
    ) -> Result<bool, Error> {
        let _order = self.order.lock().await;
        if !self.is_current(node, name) {
            return Ok(false);
        }
        self.check_key(node, session.wireguard_key, own_key)?;
        self.auth.tell(peer_up(&session)).await;
        self.publish(node, Some(session));
        Ok(true)
    }

    /// The node says that an identity of its has lost its SVID.
    pub(super) async fn revoked(&self, node: &str, name: SessionName, identity: IdentityNumber) {
        let _order = self.order.lock().await;
        let Some(mut session) = self.known(node).filter(|_| self.is_current(node, name)) else { return };
        Arc::make_mut(&mut session.identities).remove(&identity);
        self.auth.tell(Event::PeerRevoked { node: session.number, identity }).await;
        self.publish(node, Some(session));
    }

    /// A session has ended. What was known stays published, as no longer live, if the node is still `known`.
    pub(super) async fn end(&self, node: &str, name: SessionName, known: bool) {
        let _order = self.order.lock().await;
        if !self.is_current(node, name) {
            return;
        }
        self.live().remove(node);
        let Some(session) = self.known(node) else { return };
        self.auth.tell(Event::PeerDown(session.number)).await;
        self.publish(node, known.then_some(Session { live: false, ..session }));
    }

    /// Forgets nodes that are no longer in the cluster state, and ends their sessions.
    pub(super) async fn retain(&self, known: impl Fn(&str) -> bool) {
        let _order = self.order.lock().await;
        let gone: Vec<String> = self.published.borrow().keys().filter(|node| !known(node)).cloned().collect();
        for node in gone {
            let live = self.live().remove(&node);
            if let Some(live) = live {
                live.stop.cancel();
            }
            if let Some(session) = self.known(&node) {
                self.auth.tell(Event::PeerDown(session.number)).await;
            }
            self.publish(&node, None);
        }
        self.troubles().retain(|node, _| known(node));
    }

    /// Notes why there is no session; whether it is another reason than before.
    pub(super) fn note_trouble(&self, node: &str, what: String, at: SystemTime) -> bool {
        let mut troubles = self.troubles();
        let news = troubles.get(node).is_none_or(|before| before.what != what);
        troubles.insert(node.to_owned(), Trouble { what, at });
        news
    }

    /// Why there is no session.
    pub(super) fn trouble(&self, node: &str) -> Option<Trouble> {
        self.troubles().get(node).cloned()
    }

    /// Whether there is a session with a node.
    pub(super) fn is_live(&self, node: &str) -> bool {
        self.live().contains_key(node)
    }

    /// Sends on the node's session; false if there is none or it can't keep up.
    pub(super) fn send(&self, number: NodeNumber, outgoing: Outgoing) -> bool {
        let Some(node) = self.named(number) else { return false };
        self.live().get(&node).is_some_and(|live| {
            let sent = live.outbox.try_send(outgoing).is_ok();
            if !sent {
                // What it misses, a new session's Hello says in full.
                live.stop.cancel();
            }
            sent
        })
    }

    /// Has the node of this number told whose the addresses here are, if it has a session.
    pub(super) fn announce(&self, number: NodeNumber) {
        let Some(node) = self.named(number) else { return };
        if let Some(live) = self.live().get(&node) {
            live.announce.notify_one();
        }
    }

    /// Ends the session with a node, if there is one.
    pub(super) fn stop(&self, node: &str) {
        if let Some(live) = self.live().get(node) {
            live.stop.cancel();
        }
    }

    /// Drops what was proven over the sessions.
    pub(super) fn forget_proofs(&self) {
        self.live().values().for_each(|live| live.exchange.retain(|_| false));
    }

    /// Whether some node has a live session from this address.
    pub(super) fn is_live_at(&self, address: IpAddr) -> bool {
        let known = self.published.borrow();
        known.values().any(|session| session.live && session.handshake_endpoint.ip() == address)
    }

    /// The live session with the node of this number, and the node's name.
    pub(super) fn under(&self, number: NodeNumber) -> Option<(String, Under)> {
        let node = self.named(number)?;
        let live = self.live().get(&node).map(|live| (live.key.clone(), Arc::clone(&live.exchange)));
        let ((key, exchange), session) = (live?, self.known(&node)?);
        Some((node, Under { key, exchange, session }))
    }

    /// Whether this is the node's session now.
    pub(super) fn is_current(&self, node: &str, name: SessionName) -> bool {
        self.live().get(node).is_some_and(|live| live.key.name == name)
    }

    fn check_key(&self, node: &str, key: Option<[u8; 32]>, own_key: Option<[u8; 32]>) -> Result<(), Error> {
        let Some(key) = key else { return Ok(()) };
        let conflict = |owner: String| Err(Error::KeyConflict { node: node.to_owned(), owner });
        if own_key == Some(key) {
            return conflict("this node".to_owned());
        }
        let known = Arc::clone(&self.published.borrow());
        match known.iter().find(|(name, session)| *name != node && session.wireguard_key == Some(key)) {
            Some((owner, _)) => conflict(format!("node {owner}")),
            None => Ok(()),
        }
    }

    fn named(&self, number: NodeNumber) -> Option<String> {
        let known = self.published.borrow();
        known.iter().find(|(_, session)| session.number == number).map(|(name, _)| name.clone())
    }

    fn known(&self, node: &str) -> Option<Session> {
        self.published.borrow().get(node).cloned()
    }

    fn publish(&self, node: &str, session: Option<Session>) {
        self.published.send_if_modified(|published| {
            if published.get(node) == session.as_ref() {
                return false;
            }
            let map = Arc::make_mut(published);
            match session {
                Some(session) => map.insert(node.to_owned(), session),
                None => map.remove(node),
            };
            true
        });
    }

    fn troubles(&self) -> MutexGuard<'_, BTreeMap<String, Trouble>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<String, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn peer_up(session: &Session) -> Event {
    Event::PeerUp { node: session.number, epoch: session.epoch, identities: Arc::clone(&session.identities) }
}
