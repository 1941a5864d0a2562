//! A model of what one pod sends and receives: connections, replies, fragments and errors, as the design
//! tells of them, and without anything that makes them fast. It has no generations: policy, authentication
//! and sessions are asked for every packet, about the connection that it belongs to.

use std::collections::BTreeMap;

use auth_ebpf_abi::packet::{icmp as types, protocol, tcp as flags};
use auth_ebpf_abi::{
    Address, ConnectionEntry, ConnectionKey, Direction, DropReason, Hook, PolicyEntry, PolicyKey, Verdict,
    generation_slot, identity,
};
use proptest::prelude::*;

use super::frames::{Parts, data, error, icmp, init, tcp, udp};
use super::life::Life;
use super::scene::*;

const SECOND: u64 = 1_000_000_000;
/// Who has the other pod's addresses once they have changed hands.
const HEIR_ID: u32 = 401;
/// The one port for which there are rules of their own.
const SERVED: u16 = 80;
/// Where the first fragment of a datagram ends.
const FIRST_ENDS: u16 = 32;

pub(crate) type Fate = (Verdict, Option<DropReason>);

/// The other end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    There,
    ThereV6,
    Neighbour,
    World,
    Host,
    OtherNode,
}

impl End {
    const fn address(self) -> Address {
        match self {
            Self::There => THERE,
            Self::ThereV6 => THERE_V6,
            Self::Neighbour => NEIGHBOUR,
            Self::World => WORLD,
            Self::Host => HOST,
            Self::OtherNode => OTHER_NODE,
        }
    }

    /// The pod's address for this one.
    const fn ours(self) -> Address {
        match self {
            Self::ThereV6 => HERE_V6,
            Self::There | Self::Neighbour | Self::World | Self::Host | Self::OtherNode => HERE,
        }
    }

    /// The interface by which its packets come in.
    const fn way(self) -> u32 {
        match self {
            Self::There | Self::ThereV6 | Self::OtherNode => WIREGUARD_IFINDEX,
            Self::Neighbour => NEIGHBOUR_IFINDEX,
            Self::World => UPLINK_IFINDEX,
            Self::Host => 0,
        }
    }
}

/// What a packet is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Tcp(u8),
    Udp,
    Sctp {
        init: bool,
    },
    Echo {
        request: bool,
    },
    /// About a packet that went the other way, from who got that or from a router.
    Error {
        about: u8,
        by_router: bool,
    },
    First,
    /// It begins so many bytes into the datagram.
    Later(u16),
}

/// One packet of the pod, or to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    out: bool,
    end: End,
    /// The pod's port and the other one; of an echo, the first is its identifier.
    ports: (u16, u16),
    kind: Kind,
    /// It comes in by the uplink, wherever its source should.
    astray: bool,
}

/// What a rule wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    deny: bool,
    auth_type: u8,
}

/// Identity, and the port if the rule is for one alone.
pub(crate) type RuleKey = (bool, u32, bool);

/// What can change between two packets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    /// Whether for what the pod opens.
    Rule(RuleKey, Option<Rule>),
    /// Of an identity on a node: how long it holds from now on, and the node's epoch.
    Auth((u32, u16), Option<(u64, u32)>),
    /// The same of the other node's session, and which assignment it has acknowledged.
    Session(Option<(u64, u32, u32)>),
    /// Who has the other pod's addresses: nobody, or this identity.
    Owner(Option<u32>),
    /// Whether there is a program at the neighbour's interface.
    Neighbour(bool),
    /// Whether there is a tunnel.
    Tunnel(bool),
}

/// What happens next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Packet(Sent),
    Change(Change),
    Wait(u64),
}

/// Those who run the same steps.
pub(crate) trait Subject {
    fn change(&mut self, change: &Change);
    fn wait(&mut self, time: u64);
    /// How much time has gone by of itself since this was last asked.
    fn passed(&mut self) -> u64 {
        0
    }
    fn run(&mut self, hook: Hook, ingress: u32, parts: &Parts) -> Fate;
    /// Every connection, wherever it stands.
    fn connections(&mut self) -> Vec<(ConnectionKey, ConnectionEntry)>;
    /// How many datagrams are known by their first fragment.
    fn datagrams(&mut self) -> usize;
}

/// What is known of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connection {
    opened_by_us: bool,
    identity: u32,
    node: u16,
    life: Life,
    /// Nothing has changed since it was decided, until this time.
    rests_until: u64,
    stale: bool,
}

/// The first fragment of a datagram.
#[derive(Clone, Copy, Debug)]
struct Lead {
    ports: (u16, u16),
    until: u64,
}

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    identity: u32,
    node: u16,
}

type Key = (Address, u16, Address, u16, u8, u8);

#[derive(Clone, Debug)]
pub(crate) struct Model {
    now: u64,
    rules: BTreeMap<RuleKey, Rule>,
    auth: BTreeMap<(u32, u16), (u64, u32)>,
    session: Option<(u64, u32, u32)>,
    owner: Option<u32>,
    neighbour: bool,
    tunnel: bool,
    connections: BTreeMap<Key, Connection>,
    leads: BTreeMap<(bool, End), Lead>,
}

/// What a packet turns out to be: the ports that count, its connection, what it does to that.
struct Seen {
    ports: (u16, u16),
    protocol: u8,
    tcp: u8,
    /// Of an echo, whether its request goes out.
    asked: Option<bool>,
    opens: bool,
    /// It says itself that it is the first of its connection.
    first: bool,
}

impl Model {
    /// With a session that lasts so long, and no rules.
    pub(crate) fn new(session: u64) -> Self {
        Self {
            now: NOW,
            rules: BTreeMap::new(),
            auth: BTreeMap::new(),
            session: Some((NOW + session, 7, 1)),
            owner: Some(THERE_ID),
            neighbour: true,
            tunnel: true,
            connections: BTreeMap::new(),
            leads: BTreeMap::new(),
        }
    }

    /// Re-opens what it touches: what was put, or taken from where there was something.
    pub(crate) fn change(&mut self, change: &Change) {
        match *change {
            Change::Rule(key, rule) => {
                let was_there = self.rules.remove(&key).is_some();
                self.rules.extend(rule.map(|rule| (key, rule)));
                self.reopen(was_there || rule.is_some(), Some(key.1));
            }
            Change::Auth(key, auth) => {
                let was_there = self.auth.remove(&key).is_some();
                self.auth.extend(auth.map(|(time, epoch)| (key, (self.now + time, epoch))));
                self.reopen(was_there || auth.is_some(), Some(key.0));
            }
            Change::Session(session) => {
                let was_there = self.session.is_some();
                self.session = session.map(|(time, epoch, known)| (self.now + time, epoch, known));
                self.reopen(was_there || session.is_some(), None);
            }
            Change::Owner(owner) => {
                let was_there = self.owner.is_some();
                self.owner = owner;
                self.reopen(was_there || owner.is_some(), None);
            }
            Change::Neighbour(there) => {
                self.reopen(self.neighbour || there, None);
                self.neighbour = there;
            }
            Change::Tunnel(there) => {
                self.reopen(self.tunnel != there, None);
                self.tunnel = there;
            }
        }
    }

    pub(crate) fn wait(&mut self, time: u64) {
        self.now += time;
    }

    /// Only errors mind: they follow a connection that is as it was decided. Identities may share a counter.
    fn reopen(&mut self, touched: bool, identity: Option<u32>) {
        let counter = |identity| generation_slot(HERE_ID, identity);
        for connection in self.connections.values_mut().filter(|_| touched) {
            connection.stale |= identity.is_none_or(|it| counter(connection.identity) == counter(it));
        }
    }

    fn owner(&self, end: End) -> Option<Owner> {
        let of = |identity, node| Some(Owner { identity, node });
        match end {
            End::There | End::ThereV6 => self.owner.and_then(|identity| of(identity, NODE)),
            End::Neighbour => of(NEIGHBOUR_ID, 0),
            End::World => of(identity::WORLD, 0),
            End::Host => of(identity::HOST, 0),
            End::OtherNode => of(identity::REMOTE_NODE, NODE),
        }
    }

    /// Decides, and remembers.
    pub(crate) fn judge(&mut self, sent: &Sent) -> Fate {
        let Some(seen) = self.see(sent) else { return drops(DropReason::Fragment) };
        match self.decide(sent, &seen) {
            Ok(()) => {
                if matches!(sent.kind, Kind::First) {
                    let lead = Lead { ports: seen.ports, until: self.now + 30 * SECOND };
                    self.leads.insert((sent.out, sent.end), lead);
                }
                PASSES
            }
            Err(reason) => drops(reason),
        }
    }

    /// What can be seen of it; a later fragment shows nothing unless its first one has.
    fn see(&self, sent: &Sent) -> Option<Seen> {
        let mut seen = Seen {
            ports: sent.ports,
            protocol: protocol::UDP,
            tcp: 0,
            asked: None,
            opens: true,
            first: false,
        };
        match sent.kind {
            Kind::Tcp(flags) => {
                seen.protocol = protocol::TCP;
                seen.tcp = flags;
                seen.opens = flags & flags::SYN != 0 && flags & flags::ACK == 0;
                seen.first = seen.opens;
            }
            Kind::Sctp { init } => {
                seen.protocol = protocol::SCTP;
                seen.first = init;
            }
            Kind::Udp | Kind::First => {}
            Kind::Echo { request } => {
                seen.protocol = icmp_of(sent.end);
                seen.ports = (sent.ports.0, sent.ports.0);
                seen.asked = Some(request == sent.out);
                seen.opens = request;
            }
            Kind::Error { .. } => {
                seen.protocol = icmp_of(sent.end);
                seen.opens = false;
            }
            Kind::Later(offset) => {
                let lead = self.leads.get(&(sent.out, sent.end))?;
                if self.now >= lead.until || offset < FIRST_ENDS {
                    return None;
                }
                seen.ports = lead.ports;
                seen.opens = false;
            }
        }
        Some(seen)
    }

    fn decide(&mut self, sent: &Sent, seen: &Seen) -> Result<(), DropReason> {
        let end = source_of_error(sent).unwrap_or(sent.end);
        let mut missing = DropReason::UnknownSource;
        if sent.out {
            missing = DropReason::UnknownDestination;
        }
        let mut owner = self.owner(end).ok_or(missing)?;
        if end == End::Neighbour && !self.neighbour {
            return Err(DropReason::NoEndpoint);
        }
        if !sent.out {
            let ingress = if sent.astray { UPLINK_IFINDEX } else { end.way() };
            let tunnelled = self.tunnel && ingress == WIREGUARD_IFINDEX;
            if end == End::Neighbour && ingress != NEIGHBOUR_IFINDEX {
                return Err(DropReason::Spoofed);
            }
            if owner.node != 0 && !tunnelled {
                return Err(DropReason::Unencrypted);
            }
            // The host's address on the way in is anybody's.
            if end == End::Host && ingress != 0 {
                owner.identity = identity::WORLD;
            }
        }
        if matches!(sent.kind, Kind::Error { .. }) {
            return if self.is_related(sent) {
                Ok(())
            } else {
                self.may(sent.out, sent, seen, owner).map(drop)
            };
        }
        let key = key(sent.end, seen.ports, seen.protocol, seen.asked);
        let known =
            self.connections.get(&key).copied().filter(|it| it.life.is_alive(seen.protocol, self.now));
        // What bears the host's address and is the world's, is answered as that.
        if sent.out
            && end == End::Host
            && !seen.first
            && known.is_some_and(|it| it.identity == identity::WORLD)
        {
            owner.identity = identity::WORLD;
        }
        let theirs = known.filter(|known| (known.identity, known.node) == (owner.identity, owner.node));
        // What says that it is the first is judged as that, whoever has opened one there before.
        let by_us = if seen.first { sent.out } else { theirs.map_or(sent.out, |known| known.opened_by_us) };
        let rests_until = self.may(by_us, sent, seen, owner)?;
        self.remember(key, sent, seen, owner, by_us, rests_until);
        Ok(())
    }

    /// Whether a connection that the pod, or the other end, has opened may be used now; until when nothing
    /// but a change can end that.
    fn may(&self, by_us: bool, sent: &Sent, seen: &Seen, owner: Owner) -> Result<u64, DropReason> {
        let is_pod = owner.identity >= 256;
        let mut until = u64::MAX;
        let mut wanted = 0;
        // The host reaches its pods.
        if by_us || owner.identity != identity::HOST {
            let port = if by_us { seen.ports.1 } else { seen.ports.0 };
            let has_ports = [protocol::TCP, protocol::UDP].contains(&seen.protocol);
            let own = self.rules.get(&(by_us, owner.identity, true)).filter(|_| has_ports && port == SERVED);
            let rule = own.or_else(|| self.rules.get(&(by_us, owner.identity, false)));
            let rule = rule.ok_or(DropReason::PolicyDenied)?;
            if rule.deny {
                return Err(DropReason::PolicyDeny);
            }
            wanted = rule.auth_type;
        }
        let session = self.session.filter(|_| owner.node != 0);
        let unannounced = is_pod && session.is_some_and(|(_, _, known)| known < 1);
        if sent.out && unannounced {
            return Err(DropReason::AddressUnannounced);
        }
        if wanted != 0 && !is_pod {
            return Err(DropReason::AuthImpossible);
        }
        if wanted != 0 {
            let held = self.auth.get(&(owner.identity, owner.node)).filter(|_| wanted == 1);
            let (expires, epoch) = held.ok_or(DropReason::AuthRequired)?;
            let vouched = owner.node == 0 || session.is_some_and(|(_, now, _)| now == *epoch);
            if !vouched || self.now >= *expires {
                return Err(DropReason::AuthRequired);
            }
            until = until.min(*expires);
        }
        if is_pod && owner.node != 0 {
            let live = session.filter(|(expires, ..)| self.tunnel && self.now < *expires);
            until = until.min(live.ok_or(DropReason::NoNodeSession)?.0);
        }
        // Nothing is settled with another node without a tunnel, or before it knows whose the address is.
        Ok(if unannounced || (owner.node != 0 && !self.tunnel) { 0 } else { until })
    }

    /// An error passes as long as the connection of the packet that it is about goes on unasked.
    fn is_related(&self, sent: &Sent) -> bool {
        let Kind::Error { about, .. } = sent.kind else { return false };
        // An echo that went the other way than the error.
        let asked = (about == icmp_of(sent.end)).then_some(!sent.out);
        let ports = if asked.is_some() { (sent.ports.0, sent.ports.0) } else { sent.ports };
        let known = self.connections.get(&key(sent.end, ports, about, asked));
        known.is_some_and(|known| {
            known.life.is_alive(about, self.now) && !known.stale && self.now < known.rests_until
        })
    }

    fn remember(&mut self, key: Key, sent: &Sent, seen: &Seen, owner: Owner, by_us: bool, rests_until: u64) {
        let now = self.now;
        let fresh = Connection {
            opened_by_us: by_us,
            identity: owner.identity,
            node: owner.node,
            life: Life::default(),
            rests_until,
            stale: false,
        };
        let goes_on = |known: &Connection| {
            known.life.is_alive(seen.protocol, now)
                && (known.identity, known.node) == (owner.identity, owner.node)
                && known.opened_by_us == by_us
                && !(seen.opens && known.life.is_closed())
        };
        let known = self.connections.get(&key).copied();
        let mut connection = match known {
            Some(known) if goes_on(&known) => known,
            // What no packet has opened, none can go on with.
            _ if !seen.opens => return,
            _ => fresh,
        };
        if seen.first || connection.stale || now >= connection.rests_until {
            (connection.stale, connection.rests_until) = (false, rests_until);
        }
        let reply = by_us != sent.out;
        connection.life.record(now, (seen.protocol == protocol::TCP).then_some(seen.tcp), reply);
        self.connections.insert(key, connection);
    }

    /// Compares what both remember.
    pub(crate) fn compare(&self, subject: &mut impl Subject) -> Result<(), TestCaseError> {
        let entries = subject.connections();
        let found: BTreeMap<Key, _> = entries.iter().map(|(key, entry)| (words(key), told(entry))).collect();
        prop_assert_eq!(found.len(), entries.len(), "one connection stands twice: {:?}", entries);
        let expected: BTreeMap<Key, _> =
            self.connections.iter().map(|(key, known)| (*key, known.told())).collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(subject.datagrams(), self.leads.len());
        Ok(())
    }
}

/// What is compared of a connection: who has opened it, with whom, and how far it has come.
type Told = (bool, (u32, u16), (bool, bool));

impl Connection {
    const fn told(&self) -> Told {
        (self.opened_by_us, (self.identity, self.node), (self.life.answered, self.life.is_closed()))
    }
}

fn told(entry: &ConnectionEntry) -> Told {
    (
        entry.direction == Direction::Egress as u8,
        (entry.remote_identity, entry.node),
        (entry.is_answered(), entry.is_closed()),
    )
}

const fn icmp_of(end: End) -> u8 {
    if matches!(end, End::ThereV6) { protocol::ICMPV6 } else { protocol::ICMP }
}

fn key(end: End, (ours, theirs): (u16, u16), protocol: u8, asked: Option<bool>) -> Key {
    let direction = |out| if out { Direction::Egress } else { Direction::Ingress } as u8;
    (end.ours(), ours, end.address(), theirs, protocol, asked.map_or(0, direction))
}

/// A key of the map, in the model's terms.
fn words(key: &ConnectionKey) -> Key {
    let port = u16::from_be_bytes;
    let (ours, theirs) = (port(key.ports.source()), port(key.ports.destination()));
    (key.local, ours, key.remote, theirs, key.protocol(), (key.kind >> 8) as u8)
}

/// Who sends this error, if it is another than the end that it is about: the other node, as a router.
fn source_of_error(sent: &Sent) -> Option<End> {
    let by_router = matches!(sent.kind, Kind::Error { by_router: true, .. });
    (by_router && !sent.out && sent.end == End::There).then_some(End::OtherNode)
}

/// What a rule is in the map: a port's is of TCP and of UDP.
pub(crate) fn rule_entries(
    (by_us, remote, port): RuleKey,
    rule: Option<Rule>,
) -> Vec<((PolicyKey, u32), Option<PolicyEntry>)> {
    let direction = if by_us { Direction::Egress } else { Direction::Ingress } as u8;
    let key = PolicyKey { local: HERE_ID, remote, direction, ..PolicyKey::default() };
    let entry = rule.map(|rule| PolicyEntry {
        precedence: if rule.deny { PolicyEntry::DENY_PRECEDENCE } else { 1 },
        deny: rule.deny.into(),
        auth_type: rule.auth_type,
        ..PolicyEntry::default()
    });
    if !port {
        return vec![((key, PolicyKey::prefix_len(None)), entry)];
    }
    let of = |protocol| PolicyKey { protocol, port: SERVED.to_be_bytes(), ..key };
    [protocol::TCP, protocol::UDP].map(|it| ((of(it), PolicyKey::FULL_BITS), entry)).to_vec()
}

impl Sent {
    pub(crate) const fn hook(&self) -> Hook {
        if self.out { Hook::FromPod } else { Hook::ToPod }
    }

    pub(crate) fn ingress(&self) -> u32 {
        let end = source_of_error(self).unwrap_or(self.end);
        match (self.out, self.astray) {
            (true, _) => HERE_IFINDEX,
            (false, true) => UPLINK_IFINDEX,
            (false, false) => end.way(),
        }
    }

    /// The packet.
    pub(crate) fn parts(&self) -> Parts {
        let (ours, theirs) = ((self.end.ours(), self.ports.0), (self.end.address(), self.ports.1));
        let (from, to) = if self.out { (ours, theirs) } else { (theirs, ours) };
        let v6 = self.end == End::ThereV6;
        let echo = |request, from, to| {
            let kind = match (v6, request) {
                (false, true) => types::ECHO,
                (false, false) => types::ECHO_REPLY,
                (true, true) => types::V6_ECHO,
                (true, false) => types::V6_ECHO + 1,
            };
            icmp(from, to, kind, self.ports.0)
        };
        match self.kind {
            Kind::Tcp(flags) => tcp(from, to, flags),
            Kind::Udp => udp(from, to),
            Kind::Sctp { init: true } => init(from, to),
            Kind::Sctp { init: false } => data(from, to),
            Kind::Echo { request } => echo(request, from.0, to.0),
            Kind::Error { about, .. } => {
                let about = match about {
                    protocol::TCP => tcp(to, from, flags::ACK),
                    protocol::UDP => udp(to, from),
                    protocol::SCTP => data(to, from),
                    _ => echo(true, to.0, from.0),
                };
                let kind = if v6 { types::V6_ERROR_FIRST } else { types::UNREACHABLE };
                let source = source_of_error(self).map_or(from.0, End::address);
                error(kind, source, to.0, &about)
            }
            Kind::First => {
                let mut parts = udp(from, to);
                parts.payload.resize(usize::from(FIRST_ENDS), 0);
                if v6 {
                    parts.extensions = vec![(44, vec![0, 0, 1, 0, 0, 0, 9])];
                } else {
                    parts.fragment = 0x2000;
                }
                parts
            }
            Kind::Later(offset) => {
                let mut parts = Parts { payload: vec![0; 20], ..udp(from, to) };
                if v6 {
                    let [high, low] = offset.to_be_bytes();
                    parts.extensions = vec![(44, vec![0, high, low, 0, 0, 0, 9])];
                } else {
                    parts.fragment = offset / 8;
                }
                parts
            }
        }
    }
}

fn ends() -> impl Strategy<Value = End> {
    prop::sample::select(vec![
        End::There,
        End::There,
        End::There,
        End::ThereV6,
        End::Neighbour,
        End::World,
        End::Host,
        End::OtherNode,
    ])
}

fn packets() -> impl Strategy<Value = Sent> {
    let flags = prop::sample::select(vec![
        flags::SYN,
        flags::SYN,
        flags::SYN | flags::ACK,
        flags::SYN | flags::ACK,
        flags::ACK,
        flags::ACK,
        flags::FIN | flags::ACK,
        flags::RST,
        0,
    ]);
    let kinds = prop_oneof![
        6 => flags.prop_map(Kind::Tcp),
        4 => Just(Kind::Udp),
        3 => any::<bool>().prop_map(|init| Kind::Sctp { init }),
        2 => any::<bool>().prop_map(|request| Kind::Echo { request }),
        3 => (prop::sample::select(vec![protocol::TCP, protocol::UDP, protocol::SCTP, 1]), any::<bool>())
            .prop_map(|(about, by_router)| Kind::Error { about, by_router }),
        2 => Just(Kind::First),
        3 => prop::sample::select(vec![16, 32, 32, 48]).prop_map(Kind::Later),
    ];
    let ports = prop::sample::select(vec![(1, SERVED), (1, SERVED), (1, 53), (SERVED, 1)]);
    let astray = prop::bool::weighted(0.1);
    (any::<bool>(), ends(), ports, kinds, astray).prop_map(|(out, end, ports, mut kind, astray)| {
        if let Kind::Error { about, .. } = &mut kind
            && *about == protocol::ICMP
        {
            *about = icmp_of(end);
        }
        Sent { out, end, ports, kind, astray }
    })
}

fn rules() -> impl Strategy<Value = Change> {
    let identities = prop::sample::select(vec![
        THERE_ID,
        THERE_ID,
        HEIR_ID,
        NEIGHBOUR_ID,
        identity::WORLD,
        identity::REMOTE_NODE,
        identity::HOST,
    ]);
    let rule = (prop::bool::weighted(0.1), prop::sample::select(vec![0, 0, 0, 0, 1, 1, 1, 2]))
        .prop_map(|(deny, auth_type)| Rule { deny, auth_type });
    (any::<bool>(), identities, prop::bool::weighted(0.3), prop::option::weighted(0.9, rule))
        .prop_map(|(by_us, identity, port, rule)| Change::Rule((by_us, identity, port), rule))
}

/// Lifetimes that no sum of waits meets.
fn lifetimes() -> impl Strategy<Value = u64> {
    prop::sample::select(vec![49, 203, 86_399]).prop_map(|seconds| seconds * SECOND)
}

fn changes() -> impl Strategy<Value = Change> {
    let pairs =
        prop::sample::select(vec![(THERE_ID, NODE), (THERE_ID, NODE), (HEIR_ID, NODE), (NEIGHBOUR_ID, 0)]);
    let epochs = || prop::sample::select(vec![7, 7, 7, 8]);
    prop_oneof![
        8 => rules(),
        6 => (pairs, prop::option::weighted(0.8, (lifetimes(), epochs())))
            .prop_map(|(pair, auth)| Change::Auth(pair, auth)),
        2 => prop::option::weighted(0.8, (lifetimes(), epochs(), prop::sample::select(vec![0, 1, 1, 1])))
            .prop_map(Change::Session),
        2 => prop::option::weighted(0.9, prop::sample::select(vec![THERE_ID, THERE_ID, HEIR_ID]))
            .prop_map(Change::Owner),
        1 => any::<bool>().prop_map(Change::Neighbour),
        1 => prop::bool::weighted(0.8).prop_map(Change::Tunnel),
    ]
}

/// A connection from its first packet to its last, both ways; something may happen in between.
fn conversations(between: impl Strategy<Value = Step>) -> impl Strategy<Value = Vec<Step>> {
    const BOTH: u8 = flags::SYN | flags::ACK;
    const END: u8 = flags::FIN | flags::ACK;
    const INIT: Kind = Kind::Sctp { init: true };
    const DATA: Kind = Kind::Sctp { init: false };
    let tcp =
        |flags: &[(bool, u8)]| flags.iter().map(|(by_opener, it)| (*by_opener, Kind::Tcp(*it))).collect();
    let courses: Vec<Vec<(bool, Kind)>> = vec![
        tcp(&[
            (true, flags::SYN),
            (false, BOTH),
            (true, flags::ACK),
            (false, flags::ACK),
            (true, END),
            (false, END),
        ]),
        tcp(&[(true, flags::SYN), (false, BOTH), (true, flags::ACK), (true, flags::RST), (true, flags::SYN)]),
        tcp(&[
            (true, flags::SYN),
            (false, BOTH),
            (false, flags::SYN),
            (true, flags::ACK),
            (false, flags::ACK),
        ]),
        vec![(true, Kind::Udp), (false, Kind::Udp), (true, Kind::Udp), (false, Kind::Udp)],
        vec![
            (true, INIT),
            (false, DATA),
            (true, DATA),
            (false, INIT),
            (true, DATA),
            (false, DATA),
            (true, INIT),
        ],
        vec![(true, Kind::Udp), (false, Kind::First), (false, Kind::Later(32)), (false, Kind::Later(48))],
        vec![
            (true, Kind::First),
            (true, Kind::Later(32)),
            (false, Kind::Later(32)),
            (false, Kind::Error { about: protocol::UDP, by_router: false }),
        ],
        [true, false, true, false].map(|request| (request, Kind::Echo { request })).to_vec(),
    ];
    let shape = (any::<bool>(), ends(), prop::sample::select(vec![(1, SERVED), (SERVED, 1)]));
    let pause = prop::option::weighted(0.6, (0..7_usize, between));
    (shape, prop::sample::select(courses), pause).prop_map(|((by_us, end, ports), course, pause)| {
        let sent = |(by_opener, kind)| Sent { out: by_opener == by_us, end, ports, kind, astray: false };
        let mut steps: Vec<Step> = course.into_iter().map(sent).map(Step::Packet).collect();
        if let Some((place, between)) = pause {
            steps.insert(place.min(steps.len()), between);
        }
        steps
    })
}

/// What is set up first, and what happens then; `waits` are the times, in nanoseconds, that may pass.
pub(crate) fn steps(waits: Vec<u64>) -> impl Strategy<Value = Vec<Step>> {
    let setup = prop::collection::vec(
        prop_oneof![
            3 => rules(),
            1 => (prop::sample::select(vec![(THERE_ID, NODE), (NEIGHBOUR_ID, 0)]), lifetimes())
                .prop_map(|(pair, time)| Change::Auth(pair, Some((time, 7)))),
        ]
        .prop_map(Step::Change),
        4..20,
    );
    let between = || {
        prop_oneof![
            2 => changes().prop_map(Step::Change),
            1 => prop::sample::select(waits.clone()).prop_map(Step::Wait),
        ]
    };
    let one = |step: Step| vec![step];
    let some = prop_oneof![
        4 => packets().prop_map(Step::Packet).prop_map(one),
        1 => between().prop_map(one),
        3 => conversations(between()),
    ];
    (setup, prop::collection::vec(some, 1..24)).prop_map(|(setup, some)| [setup, some.concat()].concat())
}

/// Takes both through these steps.
pub(crate) fn follow(
    model: &mut Model,
    subject: &mut impl Subject,
    steps: &[Step],
) -> Result<Vec<Fate>, TestCaseError> {
    let mut fates = vec![];
    for (number, step) in steps.iter().enumerate() {
        model.wait(subject.passed());
        match step {
            Step::Packet(sent) => {
                let parts = sent.parts();
                let fate = subject.run(sent.hook(), sent.ingress(), &parts);
                prop_assert_eq!(fate, model.judge(sent), "step {}: {:?}", number, sent);
                fates.push(fate);
            }
            Step::Change(change) => {
                model.change(change);
                subject.change(change);
            }
            Step::Wait(time) => {
                model.wait(*time);
                subject.wait(*time);
            }
        }
    }
    model.compare(subject)?;
    Ok(fates)
}
