//! A model of calls to a service, of answers, and of changes behind it: whom each call goes to. That is one
//! backend for as long as the connection is, the client's where it keeps one, and the verdict is that about the
//! backend.

use std::collections::{BTreeMap, BTreeSet};

use auth_ebpf_abi::packet::{protocol, tcp as flags};
use auth_ebpf_abi::{Address, DropReason, Hook};
use proptest::prelude::*;

use super::frames::{Parts, tcp, udp};
use super::life::Life;
use super::scene::*;

const SECOND: u64 = 1_000_000_000;
pub(crate) const PORT: u16 = 80;
pub(crate) const BEHIND: u16 = 8080;
/// For how long a client keeps its backend, where it does.
const AFFINITY: u32 = 100;

/// Who may be behind the service: a pod of another node, and a neighbour.
pub(crate) const BACKENDS: [(Address, u32, u32); 2] =
    [(THERE, THERE_ID, WIREGUARD_IFINDEX), (NEIGHBOUR, NEIGHBOUR_ID, NEIGHBOUR_IFINDEX)];

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// The pod calls from a port; without flags, by UDP.
    Call(u16, Option<u8>),
    /// A backend answers to that port.
    Answer(usize, u16, Option<u8>),
    /// Who is behind it.
    Behind(BTreeSet<usize>),
    /// Whom the pod may talk to.
    Allow(BTreeSet<usize>),
    Wait(u64),
}

type Call = (u8, u16);

/// Those who run the same steps.
pub(crate) trait Subject {
    /// Has these behind the service, and clients keep theirs for so many seconds.
    fn serve(&mut self, ends: &BTreeSet<usize>, affinity: u32);
    /// Lets the pod talk to these alone.
    fn allow(&mut self, ends: &BTreeSet<usize>);
    fn wait(&mut self, time: u64);
    /// How much time has gone by of itself since this was last asked.
    fn passed(&mut self) -> u64 {
        0
    }
    fn run(&mut self, hook: Hook, ingress: u32, parts: &Parts) -> Outcome;
}

#[derive(Debug)]
struct Model {
    now: u64,
    affinity: bool,
    /// Of who is behind it no more, no client keeps him, and datagrams go to another.
    forgets: bool,
    behind: BTreeSet<usize>,
    allowed: BTreeSet<usize>,
    /// The backend of each call, and how it is with that; the backends of earlier ones may still speak.
    calls: BTreeMap<Call, usize>,
    /// The connections with backends.
    links: BTreeMap<(Call, usize), Life>,
    kept: Option<(usize, u64)>,
    /// What was chosen for a port among the same backends.
    chosen: BTreeMap<(u16, BTreeSet<usize>), usize>,
}

/// What becomes of a packet: the other end's address after it, or why it drops.
pub(crate) type Outcome = Result<Address, DropReason>;

impl Model {
    fn serves(&mut self, ends: &BTreeSet<usize>) {
        if self.forgets {
            let gone = &self.behind - ends;
            self.kept = self.kept.filter(|(kept, _)| !gone.contains(kept));
            self.calls.retain(|(kind, _), backend| *kind != protocol::UDP || !gone.contains(backend));
        }
        self.behind.clone_from(ends);
    }

    fn link(&self, call: Call, backend: usize) -> Option<Life> {
        self.links.get(&(call, backend)).copied().filter(|link| link.is_alive(call.0, self.now))
    }

    /// Checks where a call has gone, and remembers it.
    fn calls(&mut self, port: u16, flags: Option<u8>, outcome: Outcome) -> Result<(), TestCaseError> {
        let call = (if flags.is_some() { protocol::TCP } else { protocol::UDP }, port);
        let opens = flags.is_none_or(|flags| flags == flags::SYN);
        let first = flags.is_some() && opens;
        let goes_on = self.calls.get(&call).copied().filter(|backend| self.link(call, *backend).is_some());
        let kept = self.kept.filter(|(_, until)| self.affinity && self.now < *until).map(|(kept, _)| kept);
        let settled = goes_on.filter(|_| !first);
        let may_be: BTreeSet<usize> = match (settled, kept) {
            (Some(backend), _) => [backend].into(),
            (None, _) if self.behind.is_empty() => {
                prop_assert_eq!(outcome, Err(DropReason::NoServiceBackend));
                return Ok(());
            }
            (None, Some(kept)) => [kept].into(),
            (None, None) => self.behind.clone(),
        };
        let address = match outcome {
            Ok(address) => address,
            Err(reason) => {
                prop_assert_eq!(reason, DropReason::PolicyDenied);
                prop_assert!(!may_be.is_subset(&self.allowed), "one of {may_be:?} may be talked to");
                return Ok(());
            }
        };
        let backend = BACKENDS.iter().position(|(it, ..)| *it == address);
        prop_assert!(backend.is_some_and(|it| may_be.contains(&it)), "{address:?} is none of {may_be:?}");
        let backend = backend.unwrap_or_default();
        prop_assert!(self.allowed.contains(&backend));
        if settled.is_none() && kept.is_none() {
            let before = *self.chosen.entry((port, self.behind.clone())).or_insert(backend);
            prop_assert_eq!(before, backend, "one port, and the same backends");
        }
        let now = self.now;
        match self.link(call, backend).filter(|link| !(opens && link.is_closed())) {
            Some(mut link) => {
                link.record(now, flags, false);
                self.links.insert((call, backend), link);
            }
            None if opens => {
                let mut link = Life::default();
                link.record(now, flags, false);
                self.links.insert((call, backend), link);
                self.keep(backend);
            }
            // What belongs to no connection leaves nothing behind.
            None => return Ok(()),
        }
        self.calls.insert(call, backend);
        Ok(())
    }

    fn keep(&mut self, backend: usize) {
        if self.affinity {
            self.kept = Some((backend, self.now + u64::from(AFFINITY) * SECOND));
        }
    }

    /// The same of an answer.
    fn answers(
        &mut self,
        backend: usize,
        port: u16,
        flags: Option<u8>,
        outcome: Outcome,
    ) -> Result<(), TestCaseError> {
        let call = (if flags.is_some() { protocol::TCP } else { protocol::UDP }, port);
        let link = self.link(call, backend).filter(|_| flags != Some(flags::SYN));
        match link {
            Some(mut link) if self.allowed.contains(&backend) => {
                prop_assert_eq!(outcome, Ok(SERVICE), "it comes from the service");
                link.record(self.now, flags, true);
                self.links.insert((call, backend), link);
            }
            // Nobody but who was called answers, and nobody calls the pod.
            _ => prop_assert_eq!(outcome, Err(DropReason::PolicyDenied)),
        }
        Ok(())
    }
}

fn segment(from: (Address, u16), to: (Address, u16), flags: Option<u8>) -> Parts {
    flags.map_or_else(|| udp(from, to), |flags| tcp(from, to, flags))
}

/// `waits` are the times, in nanoseconds, that may pass.
pub(crate) fn steps(waits: Vec<u64>) -> impl Strategy<Value = Vec<Step>> {
    let flags = |syn: u8| {
        prop::option::weighted(
            0.7,
            prop::sample::select(vec![syn, syn, flags::ACK, flags::ACK, flags::FIN | flags::ACK, flags::RST]),
        )
    };
    let some = || prop::collection::btree_set(0..2_usize, 0..3);
    let step = prop_oneof![
        6 => (1..5_u16, flags(flags::SYN)).prop_map(|(port, flags)| Step::Call(port, flags)),
        5 => (0..2_usize, 1..5_u16, flags(flags::SYN | flags::ACK))
            .prop_map(|(backend, port, flags)| Step::Answer(backend, port, flags)),
        1 => some().prop_map(Step::Behind),
        1 => some().prop_map(Step::Allow),
        1 => prop::sample::select(waits).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..80)
}

/// Takes both through these steps; `forgets` says whether the subject forgets backends that have gone.
pub(crate) fn follow(
    subject: &mut impl Subject,
    steps: &[Step],
    affinity: bool,
    forgets: bool,
) -> Result<(), TestCaseError> {
    let mut model = Model {
        now: NOW,
        affinity,
        forgets,
        behind: BTreeSet::new(),
        allowed: BTreeSet::new(),
        calls: BTreeMap::new(),
        links: BTreeMap::new(),
        kept: None,
        chosen: BTreeMap::new(),
    };
    let all = BTreeSet::from([0, 1]);
    for step in [Step::Allow(all.clone()), Step::Behind(all)].iter().chain(steps) {
        model.now += subject.passed();
        match step {
            Step::Call(port, flags) => {
                let parts = segment((HERE, *port), (SERVICE, PORT), *flags);
                model.calls(*port, *flags, subject.run(Hook::FromPod, HERE_IFINDEX, &parts))?;
            }
            Step::Answer(backend, port, flags) => {
                let (address, _, ingress) = BACKENDS[*backend];
                let parts = segment((address, BEHIND), (HERE, *port), *flags);
                model.answers(*backend, *port, *flags, subject.run(Hook::ToPod, ingress, &parts))?;
            }
            Step::Behind(ends) => {
                subject.serve(ends, if affinity { AFFINITY } else { 0 });
                model.serves(ends);
            }
            Step::Allow(ends) => {
                subject.allow(ends);
                model.allowed.clone_from(ends);
            }
            Step::Wait(time) => {
                model.now += time;
                subject.wait(*time);
            }
        }
    }
    Ok(())
}
