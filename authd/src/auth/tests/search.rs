//! Every interleaving, within small bounds, of what can happen between two nodes: two real machines, the ordered
//! session between them, and handshakes that take their time. `AUTHD_SEARCH_DEPTH` makes the bound another one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use auth_ebpf_abi::{AuthEntry, AuthKey};

use super::*;
use crate::clock::BootTime;

/// Identities of the two nodes, whose numbers are 1 and 2.
const IDENTITY: [u32; 2] = [256, 300];
/// Far away; the proof's number is added, so that an entry shows which one it rests on.
const FAR: u64 = 1 << 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A packet of the node asks.
    Want(usize),
    /// The node's dial comes in at the other.
    Arrive(usize),
    /// The other node has verified it and asks its machine.
    Accept(usize),
    /// The answer comes back.
    Answer(usize),
    /// The dial fails where it began; the other node may not have noticed.
    Fail(usize),
    Withdraw(usize),
    Restore(usize),
    /// The next message of the node's session arrives.
    Deliver(usize),
    Down,
    Up,
    RaiseEpoch(usize),
    Policy(usize),
}

#[derive(Clone, Debug)]
enum Message {
    Announce { epoch: u32, vouched: bool },
    Revoke,
}

/// A handshake under way.
#[derive(Clone, Copy, Debug)]
struct Dial {
    proof: u64,
    session: u32,
    /// Epoch of the other node as the dialling one knew it.
    epoch: u32,
    /// Both SVIDs were there when they were looked at.
    proven: bool,
    arrived: Option<BootTime>,
    accepted: Option<bool>,
    /// The dialling node has given up.
    orphan: bool,
}

struct Node {
    machine: Machine,
    map: BTreeMap<AuthKey, AuthEntry>,
    has_svid: bool,
    asks: bool,
    epoch: u32,
    /// What the other node last announced.
    known: Option<(u32, bool)>,
    outbox: VecDeque<Message>,
    dial: Option<Dial>,
}

struct World {
    nodes: [Node; 2],
    now: BootTime,
    session: u32,
    up: bool,
    /// When each node's SVID was looked at for each proof.
    proofs: Vec<[BootTime; 2]>,
    /// When each node's SVID was withdrawn last; `None` if word of it may be lost.
    withdrawn: [Option<BootTime>; 2],
}

const fn pair(at: usize) -> AuthKey {
    if at == 0 { key(256, 300, 2) } else { key(300, 256, 1) }
}

impl World {
    fn new() -> Self {
        let node = || Node {
            machine: Machine::new(Config::default(), jitter()),
            map: BTreeMap::new(),
            has_svid: false,
            asks: false,
            epoch: 1,
            known: None,
            outbox: VecDeque::new(),
            dial: None,
        };
        let now = BootTime(1_000_000_000_000);
        let mut world = Self {
            nodes: [node(), node()],
            now,
            session: 0,
            up: false,
            proofs: Vec::new(),
            withdrawn: [None; 2],
        };
        for at in [0, 1] {
            world.take(Step::Policy(at));
            world.take(Step::Restore(at));
        }
        world.take(Step::Up);
        world.drain_messages();
        world
    }

    fn handle(&mut self, at: usize, event: Event) {
        self.nodes[at].machine.handle(event, self.now);
        self.carry_out(at);
    }

    fn carry_out(&mut self, at: usize) {
        let actions: Vec<Action> = self.nodes[at].machine.actions().collect();
        for action in actions {
            match action {
                Action::StartHandshake(started) => {
                    assert_eq!(started, pair(at));
                    self.proofs.push([self.now; 2]);
                    let node = &mut self.nodes[at];
                    let (epoch, proven) = (node.known.map_or(0, |(epoch, _)| epoch), node.has_svid);
                    let dial = Dial {
                        proof: self.proofs.len() as u64 - 1,
                        session: self.session,
                        epoch,
                        proven,
                        arrived: None,
                        accepted: None,
                        orphan: false,
                    };
                    assert!(node.dial.replace(dial).is_none_or(|before| before.orphan), "two at a time");
                }
                Action::WriteEntry(key, entry) => drop(self.nodes[at].map.insert(key, entry)),
                Action::RemoveEntry(key) => drop(self.nodes[at].map.remove(&key)),
                Action::TellPeer { .. } if self.up => self.nodes[at].outbox.push_back(Message::Revoke),
                Action::TellPeer { .. } | Action::GiveUp(_) => {}
                Action::VerifyLocal(key) => panic!("not on this node: {key:?}"),
            }
        }
    }

    fn announce(&mut self, at: usize) {
        if self.up {
            let node = &mut self.nodes[at];
            node.outbox.push_back(Message::Announce { epoch: node.epoch, vouched: node.has_svid });
        }
    }

    fn may(&self, step: Step) -> bool {
        let dial = |at: usize| self.nodes[at].dial;
        match step {
            Step::Want(at) => self.nodes[at].dial.is_none_or(|dial| dial.orphan),
            Step::Arrive(at) => {
                self.up && dial(at).is_some_and(|dial| dial.arrived.is_none() && dial.session == self.session)
            }
            Step::Accept(at) => {
                dial(at).is_some_and(|dial| dial.arrived.is_some() && dial.accepted.is_none())
            }
            Step::Answer(at) => dial(at).is_some_and(|dial| dial.accepted.is_some() && !dial.orphan),
            Step::Fail(at) => dial(at).is_some_and(|dial| !dial.orphan),
            Step::Withdraw(at) => self.nodes[at].has_svid,
            Step::Restore(at) => !self.nodes[at].has_svid,
            Step::Deliver(at) => !self.nodes[at].outbox.is_empty(),
            Step::Down => self.up,
            Step::Up => !self.up,
            Step::RaiseEpoch(at) => self.nodes[at].epoch < 2,
            Step::Policy(_) => true,
        }
    }

    fn take(&mut self, step: Step) {
        self.now.0 += 1_000_000;
        match step {
            Step::Want(at) => self.handle(at, Event::AuthWanted(pair(at))),
            Step::Arrive(at) => {
                let proven = self.nodes[1 - at].has_svid;
                let now = self.now;
                if let Some(dial) = &mut self.nodes[at].dial {
                    self.proofs[usize::try_from(dial.proof).unwrap()][1 - at] = now;
                    (dial.arrived, dial.proven) = (Some(now), dial.proven && proven);
                }
            }
            Step::Accept(at) => self.accept(at),
            Step::Answer(at) => {
                let dial = self.nodes[at].dial.take().unwrap();
                let proof = success(pair(at), BootTime(FAR + dial.proof), dial.epoch);
                let result = if dial.accepted == Some(true) { Ok(proof) } else { Err(FAILURE) };
                self.handle(at, Event::Finished(pair(at), result));
            }
            Step::Fail(at) => {
                let dial = self.nodes[at].dial.as_mut().unwrap();
                dial.orphan = true;
                if dial.arrived.is_none() || dial.accepted.is_some() {
                    self.nodes[at].dial = None;
                }
                self.handle(at, Event::Finished(pair(at), Err(FAILURE)));
            }
            Step::Withdraw(at) => {
                self.nodes[at].has_svid = false;
                // Without a session only its next Hello tells, and that knows the present alone.
                self.withdrawn[at] = self.up.then_some(self.now);
                self.announce(at);
                self.handle(at, Event::SvidWithdrawn(IDENTITY[at]));
                self.announce(at);
            }
            Step::Restore(at) => {
                self.nodes[at].has_svid = true;
                self.announce(at);
                let expires = BootTime(FAR * 2);
                self.handle(at, Event::SvidChanged { identity: IDENTITY[at], expires });
            }
            Step::Deliver(at) => self.deliver(at),
            Step::Down => {
                (self.up, self.withdrawn) = (false, [None; 2]);
                for at in [0, 1] {
                    self.nodes[at].outbox.clear();
                    let other = u16::try_from(2 - at).unwrap();
                    self.handle(at, Event::PeerDown(other));
                }
            }
            Step::Up => {
                self.up = true;
                self.session += 1;
                for at in [0, 1] {
                    self.announce(at);
                }
            }
            Step::RaiseEpoch(at) => {
                self.nodes[at].epoch += 1;
                self.announce(at);
            }
            Step::Policy(at) => self.change_policy(at),
        }
        self.check();
    }

    fn accept(&mut self, at: usize) {
        let (server, dial) = (1 - at, self.nodes[at].dial.unwrap());
        let known = self.nodes[server].known.map_or(0, |(epoch, _)| epoch);
        // As the server does it: the session that the client means must be there still.
        let bound = self.up && dial.session == self.session && dial.proven;
        let success = success(pair(server), BootTime(FAR + dial.proof), known);
        let accepted = Accepted { key: pair(server), began: dial.arrived.unwrap(), success };
        let recorded = bound && self.nodes[server].machine.accept(accepted, self.now).is_ok();
        self.carry_out(server);
        if let Some(dial) = &mut self.nodes[at].dial {
            dial.accepted = Some(recorded);
        }
        if dial.orphan {
            self.nodes[at].dial = None;
        }
    }

    fn deliver(&mut self, from: usize) {
        let (at, node) = (1 - from, u16::try_from(from + 1).unwrap());
        match self.nodes[from].outbox.pop_front().unwrap() {
            Message::Announce { epoch, vouched } => {
                self.nodes[at].known = Some((epoch, vouched));
                let identities = Arc::new(vouched.then_some(IDENTITY[from]).into_iter().collect());
                self.handle(at, Event::PeerUp { node, epoch, identities });
            }
            Message::Revoke => self.handle(at, Event::PeerRevoked { node, identity: IDENTITY[from] }),
        }
    }

    fn change_policy(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.asks = !node.asks;
        let other = u16::try_from(2 - at).unwrap();
        let placed = [(0, [IDENTITY[at]].into()), (other, [IDENTITY[1 - at]].into())].into();
        let pairs = node.asks.then_some((IDENTITY[0], IDENTITY[1])).into_iter().collect();
        self.handle(at, Event::Desired(Arc::new(Desired { pairs: Some(pairs), placed })));
    }

    /// What must hold at every moment, whatever is under way.
    fn check(&self) {
        for node in &self.nodes {
            assert!(node.map.is_empty() || (node.has_svid && node.asks), "an entry without its cause here");
            assert_eq!(node.map.len(), node.machine.records().count());
        }
    }

    fn drain_messages(&mut self) {
        for at in [0, 1, 0, 1] {
            while self.may(Step::Deliver(at)) {
                self.take(Step::Deliver(at));
            }
        }
    }

    /// What must hold when every message has arrived.
    fn check_quiet(&mut self) {
        self.drain_messages();
        for at in [0, 1] {
            let Some(entry) = self.nodes[at].map.get(&pair(at)) else { continue };
            let other = &self.nodes[1 - at];
            if self.up {
                assert!(other.has_svid, "stands although the other SVID is withdrawn");
                assert_eq!(entry.epoch, other.epoch, "stands although the other node's epoch was raised");
            }
            let looked = self.proofs[usize::try_from(entry.expires - FAR).unwrap()];
            for (withdrawn, looked) in self.withdrawn.iter().zip(looked) {
                assert!(
                    withdrawn.is_none_or(|at| looked > at),
                    "rests on an SVID from before its withdrawal"
                );
            }
        }
    }
}

const ALL: [Step; 22] = [
    Step::Want(0),
    Step::Want(1),
    Step::Arrive(0),
    Step::Arrive(1),
    Step::Accept(0),
    Step::Accept(1),
    Step::Answer(0),
    Step::Answer(1),
    Step::Fail(0),
    Step::Fail(1),
    Step::Withdraw(0),
    Step::Withdraw(1),
    Step::Restore(0),
    Step::Restore(1),
    Step::Deliver(0),
    Step::Deliver(1),
    Step::Down,
    Step::Up,
    Step::RaiseEpoch(0),
    Step::RaiseEpoch(1),
    Step::Policy(0),
    Step::Policy(1),
];

fn replay(steps: &[Step]) -> World {
    let mut world = World::new();
    steps.iter().for_each(|step| world.take(*step));
    world
}

/// Visits every sequence that goes on from `steps` by up to `depth`; returns how many there were.
fn search(steps: &mut Vec<Step>, depth: u32) -> u64 {
    let mut world = replay(steps);
    let next: Vec<Step> = ALL.into_iter().filter(|step| world.may(*step)).collect();
    world.check_quiet();
    if depth == 0 {
        return 1;
    }
    let mut visited = 1;
    for step in next {
        steps.push(step);
        visited += search(steps, depth - 1);
        steps.pop();
    }
    visited
}

#[test]
fn no_interleaving_of_two_nodes_leaves_an_entry_without_its_cause() {
    let depth = std::env::var("AUTHD_SEARCH_DEPTH").ok().and_then(|depth| depth.parse().ok()).unwrap_or(4);
    let handshake = [Step::Want(0), Step::Arrive(0), Step::Accept(0), Step::Answer(0)];
    let mut visited = 0;
    for begun in 0..=handshake.len() {
        let mut steps = handshake[..begun].to_vec();
        visited += std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| search(&mut steps, depth)))
            .unwrap_or_else(|_| panic!("after {steps:?}"));
    }
    assert!(visited > 10_000, "{visited}");
    println!("{visited} interleavings to a depth of {depth}");
}

#[test]
fn the_search_sees_handshakes_succeed_at_both_ends() {
    let world = replay(&[Step::Want(0), Step::Arrive(0), Step::Accept(0), Step::Answer(0)]);
    assert!(world.nodes.iter().all(|node| node.map.len() == 1));
    let world = replay(&[Step::Want(1), Step::Arrive(1), Step::Accept(1), Step::Answer(1)]);
    assert!(world.nodes.iter().all(|node| node.map.len() == 1));
}
