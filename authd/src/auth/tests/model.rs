//! The machine against a naive model: a history of what happened, searched anew for every question.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use auth_ebpf_abi::{AuthEntry, AuthKey};
use proptest::prelude::*;

use super::*;
use crate::clock::BootTime;

const IDENTITIES: [u32; 4] = [256, 257, 258, 259];
const NODES: [u16; 3] = [0, 1, 2];

/// What happens to an SVID of ours.
#[derive(Clone, Debug)]
enum OwnStep {
    Svid {
        identity: u32,
        life: u64,
    },
    Missing(u32),
    Withdraw(u32),
    /// An anchor leaves the bundle.
    Untrust(u32),
}

/// What another node does.
#[derive(Clone, Debug)]
enum PeerStep {
    Up { node: u16, epoch: u32, identities: BTreeSet<u32> },
    Down(u16),
    Revoke(u16, u32),
}

/// One thing that the outside does.
#[derive(Clone, Debug)]
enum Step {
    Want(AuthKey),
    Pass(u64),
    Succeed { which: usize, life: u64 },
    Fail { which: usize, retryable: bool },
    Accept { key: AuthKey, age: u64, life: u64 },
    Own(OwnStep),
    Peer(PeerStep),
    Desire(Desired),
    Flush,
    WriteFails(usize),
}

/// What an end reaches.
#[derive(Clone, Copy, Debug)]
enum Reach {
    /// A proof was lost: whatever began before counts for nothing.
    Began,
    /// What stands and what we run; a handshake of another node may still be recorded.
    Ours,
    /// What stands.
    Standing,
    /// Whatever began before counts for nothing, but what stands has five seconds to be proven anew.
    Doubted,
}

/// Something that ended the right of keys to an entry.
#[derive(Debug)]
struct Ended {
    at: BootTime,
    keys: Vec<AuthKey>,
    reach: Reach,
}

/// A success as it really was.
#[derive(Debug)]
struct Proven {
    key: AuthKey,
    /// Number of losses that had happened when it began.
    began: usize,
    /// The same when it ended.
    ended: usize,
    /// We ran it.
    ours: bool,
    expires: BootTime,
    epoch: u32,
}

#[derive(Default)]
struct World {
    now: BootTime,
    running: Vec<(AuthKey, usize)>,
    map: BTreeMap<AuthKey, AuthEntry>,
    proven: Vec<Proven>,
    losses: Vec<Ended>,
    svids: BTreeMap<u32, BootTime>,
    up: BTreeMap<u16, (u32, BTreeSet<u32>)>,
    desired: Option<Desired>,
}

fn all_keys() -> Vec<AuthKey> {
    let mut keys = Vec::new();
    for node in NODES {
        for local in IDENTITIES {
            keys.extend(IDENTITIES.map(|remote| key(local, remote, node)));
        }
    }
    keys
}

impl World {
    fn lose(&mut self, reach: Reach, which: impl Fn(&AuthKey) -> bool) {
        let keys = all_keys().into_iter().filter(which).collect();
        self.losses.push(Ended { at: self.now, keys, reach });
    }

    /// Whether this entry has a cause: a success that nothing has ended since it began, and policy.
    fn has_cause(&self, key: &AuthKey, entry: &AuthEntry) -> bool {
        let proven = self.proven.iter().any(|proven| {
            proven.key == *key
                && proven.expires.0 == entry.expires
                && proven.epoch == entry.epoch
                && !self.losses.iter().enumerate().any(|(at, ended)| {
                    let since = match ended.reach {
                        Reach::Began | Reach::Doubted => proven.began,
                        Reach::Ours if proven.ours => proven.began,
                        Reach::Ours | Reach::Standing => proven.ended,
                    };
                    let doubted = matches!(ended.reach, Reach::Doubted)
                        && proven.ended <= at
                        && self.now < ended.at.saturating_add(Duration::from_secs(5));
                    at >= since && ended.keys.contains(key) && !doubted
                })
        });
        let desired = self.desired.as_ref().is_some_and(|desired| desired.allows(key));
        proven && desired && entry.expires > self.now.0
    }

    /// Whether both SVIDs of a pair are there.
    fn could_prove(&self, key: &AuthKey) -> bool {
        let ours = |identity| self.svids.get(identity).is_some_and(|end| *end > self.now);
        let theirs = self.up.get(&key.node).is_none_or(|(_, identities)| identities.contains(&key.remote));
        ours(&key.local) && if key.node == 0 { ours(&key.remote) } else { theirs }
    }

    fn take_in(&mut self, machine: &mut Machine) {
        for action in machine.actions() {
            match action {
                Action::StartHandshake(key) | Action::VerifyLocal(key) => {
                    assert!(
                        !self.running.iter().any(|(running, ..)| *running == key),
                        "two at a time: {key:?}"
                    );
                    assert!(
                        self.svids.get(&key.local).is_some_and(|end| *end > self.now),
                        "no SVID: {key:?}"
                    );
                    self.running.push((key, self.losses.len()));
                }
                Action::WriteEntry(key, entry) => {
                    self.map.insert(key, entry);
                }
                Action::RemoveEntry(key) => {
                    self.map.remove(&key);
                }
                Action::GiveUp(key) => assert!(!self.could_prove(&key), "given up: {key:?}"),
                Action::TellPeer { node, .. } => assert!(self.up.contains_key(&node)),
            }
        }
        assert!(self.running.len() <= config().max_running);
    }

    fn check(&self, machine: &Machine) {
        for (key, entry) in &self.map {
            assert!(self.has_cause(key, entry), "outlives its cause at {:?}: {key:?} {entry:?}", self.now);
        }
        let listed: BTreeMap<AuthKey, u64> =
            machine.records().map(|record| (record.key, record.expires.0)).collect();
        let standing: BTreeMap<AuthKey, u64> = self.map.iter().map(|(key, e)| (*key, e.expires)).collect();
        assert_eq!(listed, standing, "the list differs from the map");
        assert!(machine.next_deadline().is_none_or(|at| at > self.now), "a deadline has passed unnoticed");
    }

    fn handle(&mut self, machine: &mut Machine, event: Event) {
        machine.handle(event, self.now);
        self.take_in(machine);
    }

    /// Time passes in the machine's own steps.
    fn pass(&mut self, machine: &mut Machine, until: BootTime) {
        while let Some(at) = machine.next_deadline().filter(|at| *at <= until) {
            self.now = at;
            self.handle(machine, Event::Tick);
            self.check(machine);
        }
        self.now = until;
        self.handle(machine, Event::Tick);
    }

    fn prove(&mut self, key: AuthKey, began: usize, ours: bool, life: u64) -> Option<Success> {
        let own = self.svids.get(&key.local)?;
        let own = if key.node == 0 { own.min(self.svids.get(&key.remote)?) } else { own };
        let expires = (*own).min(BootTime(self.now.0 + life));
        let epoch = if key.node == 0 { 0 } else { self.up.get(&key.node)?.0 };
        let ended = self.losses.len();
        for key in pair::written(key) {
            self.proven.push(Proven { key, began, ended, ours, expires, epoch });
        }
        Some(success(key, expires, epoch))
    }

    fn step(&mut self, machine: &mut Machine, step: Step) {
        match step {
            Step::Want(key) => self.handle(machine, Event::AuthWanted(key)),
            Step::Pass(milliseconds) => {
                let until = BootTime(self.now.0 + milliseconds * 1_000_000);
                self.pass(machine, until);
            }
            Step::Succeed { which, life } if !self.running.is_empty() => {
                let (key, losses) = self.running.remove(which % self.running.len());
                let result = self.prove(key, losses, true, life).ok_or(FAILURE);
                self.handle(machine, Event::Finished(key, result));
            }
            Step::Fail { which, retryable } if !self.running.is_empty() => {
                let (key, ..) = self.running.remove(which % self.running.len());
                self.handle(machine, Event::Finished(key, Err(Failure { reason: "test", retryable })));
            }
            Step::Succeed { .. } | Step::Fail { .. } => {}
            Step::Accept { key, age, life } => self.accept(machine, key, age, life),
            Step::Desire(desired) => {
                self.desired = Some(desired.clone());
                self.lose(Reach::Ours, |key| !desired.allows(key));
                self.handle(machine, Event::Desired(Arc::new(desired)));
            }
            Step::Flush => {
                self.lose(Reach::Ours, |_| true);
                self.handle(machine, Event::Flush);
            }
            Step::WriteFails(which) => {
                if let Some(key) = self.map.keys().nth(which % self.map.len().max(1)).copied() {
                    self.lose(Reach::Standing, |lost| pair::canonical(*lost) == pair::canonical(key));
                    self.handle(machine, Event::WriteFailed(key));
                }
            }
            Step::Own(step) => self.step_svid(machine, step),
            Step::Peer(step) => self.step_peer(machine, step),
        }
    }

    fn accept(&mut self, machine: &mut Machine, key: AuthKey, age: u64, life: u64) {
        if key.node == 0 {
            return;
        }
        let began = BootTime(self.now.0.saturating_sub(age));
        let losses = self.losses.iter().take_while(|ended| ended.at < began).count();
        if let Some(success) = self.prove(key, losses, false, life) {
            let accepted = machine.accept(Accepted { key, began, success }, self.now).is_ok();
            self.take_in(machine);
            assert!(!accepted || self.map.contains_key(&key), "recorded means that it stands");
        }
    }

    fn step_svid(&mut self, machine: &mut Machine, step: OwnStep) {
        match step {
            OwnStep::Svid { identity, life } => {
                let expires = BootTime(self.now.0 + life);
                self.svids.insert(identity, expires);
                self.handle(machine, Event::SvidChanged { identity, expires });
            }
            OwnStep::Missing(identity) => {
                self.svids.remove(&identity);
                // Voids what runs, keeps what stands: recorded as a loss for those which run only.
                let running: Vec<AuthKey> = self.running.iter().map(|(key, ..)| *key).collect();
                let standing: Vec<AuthKey> = self.map.keys().copied().collect();
                self.lose(Reach::Began, |key| {
                    running.contains(&pair::canonical(*key))
                        && rests_on(key, identity)
                        && !standing.contains(key)
                });
                self.handle(machine, Event::SvidMissing(identity));
            }
            OwnStep::Withdraw(identity) => {
                self.svids.remove(&identity);
                self.lose(Reach::Began, |key| rests_on(key, identity));
                self.handle(machine, Event::SvidWithdrawn(identity));
            }
            OwnStep::Untrust(identity) => {
                self.lose(Reach::Doubted, |key| rests_on(key, identity));
                self.handle(machine, Event::AnchorLost(identity));
            }
        }
    }

    fn step_peer(&mut self, machine: &mut Machine, step: PeerStep) {
        match step {
            PeerStep::Up { node, epoch, identities } => {
                let before = self.up.insert(node, (epoch, identities.clone()));
                // What was not announced before is not lost by being announced no more than before.
                self.lose(Reach::Began, |key| {
                    let lost = |(old, announced): &(_, BTreeSet<u32>)| {
                        *old != epoch || announced.contains(&key.remote) && !identities.contains(&key.remote)
                    };
                    key.node == node && before.as_ref().is_some_and(lost)
                });
                self.handle(machine, Event::PeerUp { node, epoch, identities: Arc::new(identities) });
            }
            PeerStep::Down(node) => self.handle(machine, Event::PeerDown(node)),
            PeerStep::Revoke(node, identity) => {
                // It is no longer announced: not to announce it any more is no further loss.
                self.up.entry(node).and_modify(|(_, announced)| announced.retain(|one| *one != identity));
                self.lose(Reach::Began, |key| key.node == node && key.remote == identity);
                self.handle(machine, Event::PeerRevoked { node, identity });
            }
        }
    }

    /// Everything is well from now on: each wanted pair must come to stand.
    fn settle(&mut self, machine: &mut Machine) {
        let life = 3_600_000_000_000;
        let everywhere: BTreeSet<u32> = IDENTITIES.into();
        let placed = NODES.map(|node| (node, everywhere.clone())).into();
        self.step(machine, Step::Desire(Desired { pairs: None, placed }));
        for identity in IDENTITIES {
            self.step(machine, Step::Own(OwnStep::Svid { identity, life }));
        }
        for node in [1, 2] {
            self.step(machine, Step::Peer(PeerStep::Up { node, epoch: 1, identities: everywhere.clone() }));
        }
        for key in all_keys() {
            self.handle(machine, Event::AuthWanted(key));
        }
        for _ in 0..200 {
            while !self.running.is_empty() {
                self.step(machine, Step::Succeed { which: 0, life });
            }
            let until = self.now.saturating_add(Duration::from_millis(100));
            self.pass(machine, until);
        }
        for key in all_keys() {
            assert!(self.map.contains_key(&key), "never authenticated: {key:?}");
        }
        assert_eq!(machine.load().1, 0);
    }
}

fn config() -> Config {
    Config { max_running: 3, ..Config::default() }
}

fn any_key() -> impl Strategy<Value = AuthKey> {
    (0..IDENTITIES.len(), 0..IDENTITIES.len(), 0..NODES.len())
        .prop_map(|(local, remote, node)| key(IDENTITIES[local], IDENTITIES[remote], NODES[node]))
}

fn identities() -> impl Strategy<Value = BTreeSet<u32>> {
    prop::sample::subsequence(&IDENTITIES[..], 0..=4).prop_map(|some| some.into_iter().collect())
}

fn life() -> impl Strategy<Value = u64> {
    prop_oneof![1..10u64, 1_000_000..20_000_000_000u64]
}

fn any_step() -> impl Strategy<Value = Step> {
    let identity = || prop::sample::select(&IDENTITIES[..]);
    let node = || prop::sample::select(&[1u16, 2][..]);
    let desired = (
        identities(),
        identities(),
        identities(),
        prop::option::of(prop::collection::btree_set((identity(), identity()), 0..8)),
    )
        .prop_map(|(a, b, c, pairs)| {
            let pairs = pairs.map(|pairs: BTreeSet<_>| pairs.into_iter().collect());
            Desired { pairs, placed: [(0, a), (1, b), (2, c)].into() }
        });
    prop_oneof![
        6 => any_key().prop_map(Step::Want),
        6 => (0..3000u64).prop_map(Step::Pass),
        8 => (any::<usize>(), life()).prop_map(|(which, life)| Step::Succeed { which, life }),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(which, retryable)| Step::Fail { which, retryable }),
        4 => (any_key(), 0..3_000_000_000u64, life()).prop_map(|(key, age, life)| Step::Accept { key, age, life }),
        4 => (identity(), life()).prop_map(|(identity, life)| Step::Own(OwnStep::Svid { identity, life })),
        1 => identity().prop_map(|identity| Step::Own(OwnStep::Missing(identity))),
        2 => identity().prop_map(|identity| Step::Own(OwnStep::Withdraw(identity))),
        1 => identity().prop_map(|identity| Step::Own(OwnStep::Untrust(identity))),
        3 => (node(), 0..3u32, identities()).prop_map(|(node, epoch, identities)| Step::Peer(PeerStep::Up { node, epoch, identities })),
        1 => node().prop_map(|node| Step::Peer(PeerStep::Down(node))),
        2 => (node(), identity()).prop_map(|(node, identity)| Step::Peer(PeerStep::Revoke(node, identity))),
        1 => desired.prop_map(Step::Desire),
        1 => Just(Step::Flush),
        1 => any::<usize>().prop_map(Step::WriteFails),
    ]
}

/// A world in which things can begin to happen at once.
fn begun() -> (World, Machine) {
    let mut world = World { now: BootTime(1_000_000_000_000), ..World::default() };
    let mut machine = Machine::new(config(), jitter());
    let everywhere: BTreeSet<u32> = IDENTITIES.into();
    let placed = NODES.map(|node| (node, everywhere.clone())).into();
    world.step(&mut machine, Step::Desire(Desired { pairs: None, placed }));
    for identity in IDENTITIES {
        world.step(&mut machine, Step::Own(OwnStep::Svid { identity, life: 10_000_000_000 }));
    }
    for node in [1, 2] {
        world.step(&mut machine, Step::Peer(PeerStep::Up { node, epoch: 1, identities: everywhere.clone() }));
    }
    (world, machine)
}

/// Tens of thousands of steps each time; millions with `make nightly-auth`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(512)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn no_entry_outlives_its_cause_and_none_starves(steps in prop::collection::vec(any_step(), 1..120)) {
        let (mut world, mut machine) = begun();
        for step in steps {
            world.step(&mut machine, step);
            world.check(&machine);
        }
        world.settle(&mut machine);
        world.check(&machine);
    }
}

#[test]
fn the_model_itself_sees_entries_come() {
    let (mut world, mut machine) = begun();
    world.step(&mut machine, Step::Want(key(256, 257, 1)));
    world.step(&mut machine, Step::Succeed { which: 0, life: 5_000_000_000 });
    assert_eq!(world.map.len(), 1);
    world.check(&machine);
    let _ = spiffe(256);
}
