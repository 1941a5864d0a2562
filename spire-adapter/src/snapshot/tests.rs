//! Any sequence of messages, refusals, losses, bundle changes and clock steps against a plain restatement of the
//! rules.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::authority::CertificateAuthority;
use crate::{Bundle, ExpectedPeer, Violation, verify_chain};

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone)]
enum Step {
    /// With one of the world's SVIDs or none, and bundles (own, foreign) in it or not.
    Message {
        svid: Option<usize>,
        federated: bool,
        bundles: Option<(bool, bool)>,
    },
    Denied,
    Lost,
    /// By so many seconds.
    Clock(i64),
    /// To so many nanoseconds beyond NotAfter of one of the world's SVIDs.
    ToNotAfter(usize, i64),
    Trust {
        own: bool,
        foreign: bool,
    },
    TrustDenied,
    TrustLost,
}

fn step() -> impl Strategy<Value = Step> {
    let bundles = || (prop::bool::weighted(0.9), any::<bool>());
    prop_oneof![
        4 => (prop::option::weighted(0.8, 0..3_usize), any::<bool>(), prop::option::of(bundles()))
            .prop_map(|(svid, federated, bundles)| Step::Message { svid, federated, bundles }),
        1 => Just(Step::Denied),
        2 => Just(Step::Lost),
        2 => (-4_000_i64..40_000).prop_map(Step::Clock),
        2 => (0..3_usize, -1..=1_i64).prop_map(|(svid, beyond)| Step::ToNotAfter(svid, beyond)),
        2 => bundles().prop_map(|(own, foreign)| Step::Trust { own, foreign }),
        1 => Just(Step::TrustDenied),
        1 => Just(Step::TrustLost),
    ]
}

struct World {
    svids: Vec<Svid>,
    own: Bundle,
    foreign: Bundle,
}

impl World {
    fn new() -> Self {
        let domain = |name| TrustDomain::new(name).unwrap();
        let ca = CertificateAuthority::new(&domain("a.test")).unwrap();
        let foreign = CertificateAuthority::new(&domain("b.test")).unwrap();
        let svids = [1, 6, 24]
            .into_iter()
            .map(|hours| ca.issue(&expected(), DAY * hours / 24).unwrap().to_svid().unwrap())
            .collect();
        Self { svids, own: ca.bundle().unwrap(), foreign: foreign.bundle().unwrap() }
    }

    fn bundles(&self, (own, foreign): (bool, bool)) -> Bundles {
        let own = own.then(|| self.own.clone()).into_iter();
        own.chain(foreign.then(|| self.foreign.clone())).collect()
    }
}

/// What the rules say, without the machinery.
#[derive(Default)]
struct Model {
    /// `None`: nothing heard; `Some(None)`: withdrawn.
    last: Option<Option<Given>>,
    expired: bool,
    stale: bool,
    problem: Option<&'static str>,
    /// Whether the agent's stream has given the own bundle and the foreign one.
    trust: (bool, bool),
    trust_stale: bool,
    trust_problem: Option<&'static str>,
}

#[derive(Clone)]
struct Given {
    svid: Svid,
    federated: bool,
    bundles: Option<(bool, bool)>,
}

/// A snapshot, as far as it can be told beforehand.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    state: State,
    trust_domains: Vec<String>,
    stale: bool,
    problem: Option<String>,
}

impl Model {
    fn hear(&mut self, step: &Step, world: &World) {
        match *step {
            Step::Message { svid, federated, bundles } => {
                let svid = svid.map(|index| world.svids[index].clone());
                self.last = Some(svid.map(|svid| Given { svid, federated, bundles }));
                (self.expired, self.stale, self.problem) = (false, false, None);
            }
            Step::Denied => {
                self.last = Some(None);
                (self.stale, self.problem) = (false, Some("SVIDs denied"));
            }
            Step::Lost => (self.stale, self.problem) = (self.last.is_some(), Some("SVIDs lost")),
            Step::Trust { own, foreign } => {
                self.trust = (own, foreign);
                (self.trust_stale, self.trust_problem) = (false, None);
            }
            Step::TrustDenied => {
                self.trust = (false, false);
                (self.trust_stale, self.trust_problem) = (false, Some("bundles denied"));
            }
            Step::TrustLost => {
                self.trust_stale = self.trust.0 || self.trust.1;
                self.trust_problem = Some("bundles lost");
            }
            Step::Clock(_) | Step::ToNotAfter(..) => {}
        }
    }

    fn seen(&mut self, now: SystemTime) -> Seen {
        let (mut state, mut trust_domains) = (State::Pending, Vec::new());
        if let Some(last) = &self.last {
            state = State::Withdrawn;
            if let Some(given) = last {
                self.expired |= now > given.svid.not_after();
                let (own, foreign) = given.bundles.unwrap_or(self.trust);
                (state, trust_domains) = match (self.expired, own) {
                    (true, _) => (State::Expired, Vec::new()),
                    (false, false) => (State::Pending, Vec::new()),
                    (false, true) => {
                        let foreign = (foreign && given.federated).then(|| "b.test".to_owned());
                        let own = std::iter::once("a.test".to_owned());
                        (State::Usable(given.svid.clone()), own.chain(foreign).collect())
                    }
                };
            }
        }
        let problem = self.problem.or(self.trust_problem).map(|reason| problem(reason).to_string());
        Seen { state, trust_domains, stale: self.stale || self.trust_stale, problem }
    }
}

impl From<Snapshot> for Seen {
    fn from(snapshot: Snapshot) -> Self {
        let domains = snapshot.bundles.iter().map(|bundle| bundle.trust_domain().to_string());
        Self {
            trust_domains: domains.collect(),
            state: snapshot.state,
            stale: snapshot.stale,
            problem: snapshot.problem.map(|problem| problem.to_string()),
        }
    }
}

proptest! {
    #[test]
    fn snapshots_follow_the_rules(steps in prop::collection::vec(step(), 1..40)) {
        let world = World::new();
        let mut now = SystemTime::now();
        let (mut tracker, mut trust) = (Tracker::new(&expected()), Trust::default());
        let mut model = Model::default();
        for step in steps {
            let before = tracker.snapshot(now, &trust);
            apply(&step, &world, &mut tracker, &mut trust, &mut now);
            model.hear(&step, &world);
            let after = tracker.snapshot(now, &trust);
            if matches!(step, Step::Lost | Step::TrustLost) {
                prop_assert_eq!(&before.state, &after.state, "a lost connection withdraws nothing");
                prop_assert_eq!(&before.bundles, &after.bundles);
            }
            prop_assert_eq!(tracker.snapshot(now, &trust), after.clone(), "asking changes nothing");
            prop_assert_eq!(Seen::from(after), model.seen(now), "after {:?}", step);
        }
    }
}

fn apply(step: &Step, world: &World, tracker: &mut Tracker, trust: &mut Trust, now: &mut SystemTime) {
    match *step {
        Step::Message { svid, federated, bundles } => {
            let svid = svid.map(|index| world.svids[index].clone());
            let federates_with =
                federated.then(|| world.foreign.trust_domain().clone()).into_iter().collect();
            let bundles = bundles.map(|which| world.bundles(which));
            tracker.hear(Heard::Message(Message { svid, federates_with, bundles, other: None }));
        }
        Step::Denied => tracker.hear(Heard::Denied(problem("SVIDs denied"))),
        Step::Lost => tracker.hear(Heard::Lost(problem("SVIDs lost"))),
        Step::Clock(seconds) => {
            let distance = Duration::from_secs(seconds.unsigned_abs());
            *now = if seconds < 0 { *now - distance } else { *now + distance };
        }
        Step::ToNotAfter(svid, beyond) => {
            let distance = Duration::from_nanos(beyond.unsigned_abs());
            let not_after = world.svids[svid].not_after();
            *now = if beyond < 0 { not_after - distance } else { not_after + distance };
        }
        Step::Trust { own, foreign } => trust.hear(Heard::Message(world.bundles((own, foreign)))),
        Step::TrustDenied => trust.hear(Heard::Denied(problem("bundles denied"))),
        Step::TrustLost => trust.hear(Heard::Lost(problem("bundles lost"))),
    }
}

#[test]
fn a_message_heals_and_a_refusal_is_told() {
    let world = World::new();
    let trust = Trust { bundles: [world.own.clone()].into_iter().collect(), ..Trust::default() };
    let mut tracker = Tracker::new(&expected());
    tracker.hear(Heard::Lost(problem("test")));
    let snapshot = tracker.snapshot(SystemTime::now(), &trust);
    assert_eq!((snapshot.state, snapshot.stale), (State::Pending, false));
    assert!(snapshot.problem.is_some());
    let message = Message { svid: Some(world.svids[0].clone()), ..Message::default() };
    tracker.hear(Heard::Message(message));
    tracker.hear(Heard::Lost(problem("test")));
    let snapshot = tracker.snapshot(SystemTime::now(), &trust);
    assert!(snapshot.stale && snapshot.problem.is_some() && snapshot.svid().is_some());
    tracker.hear(Heard::Denied(problem("test")));
    let snapshot = tracker.snapshot(SystemTime::now(), &trust);
    assert!(!snapshot.stale && snapshot.problem.is_some());
    assert_eq!(snapshot.state, State::Withdrawn);
}

/// Whether bundles come with the SVID or by the agent's own stream.
#[test]
fn whom_an_authority_has_vouched_for_is_refused_once_it_is_gone() {
    let ca = || CertificateAuthority::new(expected().trust_domain()).unwrap();
    let (old, new) = (ca(), ca());
    let bundles = |authorities: &[&CertificateAuthority]| -> Bundles {
        let der: Vec<u8> = authorities.iter().flat_map(|ca| ca.certificate().to_vec()).collect();
        [Bundle::from_der(expected().trust_domain().clone(), &der).unwrap()].into_iter().collect()
    };
    let issue = |ca: &CertificateAuthority| ca.issue(&expected(), DAY / 24).unwrap().to_svid().unwrap();
    let (by_old, by_new) = (issue(&old), issue(&new));
    for with_the_svid in [true, false] {
        let (mut tracker, mut trust) = (Tracker::new(&expected()), Trust::default());
        let mut given = |bundles: Bundles| {
            let svid = Some(by_new.clone());
            let bundles = if with_the_svid {
                Some(bundles)
            } else {
                trust.hear(Heard::Message(bundles));
                None
            };
            tracker.hear(Heard::Message(Message { svid, bundles, ..Message::default() }));
            tracker.snapshot(SystemTime::now(), &trust).bundles
        };
        let verify = |svid: &Svid, bundles: &Bundles| {
            let peer = ExpectedPeer::Exact(expected());
            verify_chain(svid.chain(), bundles, &peer, SystemTime::now()).map(|_| ())
        };
        let both = given(bundles(&[&old, &new]));
        assert_eq!([&by_old, &by_new].map(|svid| verify(svid, &both)), [Ok(()), Ok(())]);
        let tainted = given(bundles(&[&new]));
        assert_eq!(verify(&by_old, &tainted), Err(Violation::Untrusted), "{with_the_svid}");
        assert_eq!(verify(&by_new, &tainted), Ok(()), "{with_the_svid}");
        // One more authority in its place vouches for its own only.
        let replaced = given(bundles(&[&new, &ca()]));
        assert_eq!(verify(&by_old, &replaced), Err(Violation::Untrusted), "{with_the_svid}");
        // Who holds on to what was given before is not deceived either: it is another bundle.
        assert_eq!(verify(&by_old, &both), Ok(()));
        assert_eq!(verify(&by_old, &replaced), Err(Violation::Untrusted), "{with_the_svid}");
    }
}

#[test]
fn a_clock_set_back_does_not_revive() {
    let world = World::new();
    let trust = Trust { bundles: [world.own.clone()].into_iter().collect(), ..Trust::default() };
    let mut tracker = Tracker::new(&expected());
    tracker.hear(Heard::Message(Message { svid: Some(world.svids[0].clone()), ..Message::default() }));
    let now = SystemTime::now();
    assert_eq!(tracker.snapshot(now + 2 * DAY, &trust).state, State::Expired);
    assert_eq!(tracker.snapshot(now, &trust).state, State::Expired);
}

fn expected() -> SpiffeId {
    SpiffeId::new("spiffe://a.test/identity/256").unwrap()
}

fn problem(reason: &str) -> ApiError {
    ApiError::Lost { path: "/agent.sock".into(), reason: reason.to_owned() }
}

#[test]
fn the_agent_is_asked_anew_when_a_newer_svid_is_overdue() {
    let world = World::new();
    let svid = world.svids[2].clone();
    let message = Message { svid: Some(svid.clone()), ..Message::default() };
    let life = svid.not_after().duration_since(svid.not_before()).unwrap();
    assert_eq!(message.silence(svid.not_before()), Some(life * 3 / 4));
    assert_eq!(message.silence(svid.not_after() - life / 4), Some(life / 8));
    for late in [svid.not_after(), svid.not_after() + DAY] {
        assert_eq!(message.silence(late), Some(MIN_SILENCE));
    }
    assert_eq!(Message::default().silence(svid.not_before()), None);
}
