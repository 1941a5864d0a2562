//! Any sequence of messages, refusals, losses, bundle changes and clock steps against a plain restatement of the
//! rules.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::authority::CertificateAuthority;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone)]
enum Step {
    Message { svid: Option<usize>, federated: bool },
    Denied,
    Lost,
    Clock(i64),
    Trust { own: bool, foreign: bool },
    TrustLost,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (prop::option::of(0..3_usize), any::<bool>())
            .prop_map(|(svid, federated)| Step::Message { svid, federated }),
        1 => Just(Step::Denied),
        2 => Just(Step::Lost),
        3 => (-4_000_i64..40_000).prop_map(Step::Clock),
        2 => (prop::bool::weighted(0.9), any::<bool>()).prop_map(|(own, foreign)| Step::Trust { own, foreign }),
        1 => Just(Step::TrustLost),
    ]
}

struct World {
    svids: Vec<Svid>,
    own: crate::Bundle,
    foreign: crate::Bundle,
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
}

/// What the rules say, without the machinery.
#[derive(Default)]
struct Model {
    /// `None`: nothing heard; `Some(None)`: withdrawn.
    last: Option<Option<(Svid, bool)>>,
    expired: bool,
}

proptest! {
    #[test]
    fn snapshots_follow_the_rules(steps in prop::collection::vec(step(), 1..40)) {
        let world = World::new();
        let mut now = SystemTime::now();
        let mut tracker = Tracker::new(&expected());
        let mut trust = Trust { bundles: [world.own.clone()].into_iter().collect(), ..Trust::default() };
        let mut model = Model::default();
        for step in steps {
            let before = tracker.snapshot(now, &trust);
            let lost = matches!(step, Step::Lost | Step::TrustLost);
            apply(&step, &world, &mut tracker, &mut trust, &mut model, &mut now);
            let after = tracker.snapshot(now, &trust);
            if lost {
                prop_assert_eq!(&before.state, &after.state, "a lost connection withdraws nothing");
                prop_assert_eq!(&before.bundles, &after.bundles);
            }
            check(&model_at(&mut model, now), &after, &trust)?;
        }
    }
}

fn apply(
    step: &Step,
    world: &World,
    tracker: &mut Tracker,
    trust: &mut Trust,
    model: &mut Model,
    now: &mut SystemTime,
) {
    match step {
        Step::Message { svid, federated } => {
            let svid = svid.map(|index| world.svids[index].clone());
            let federates_with =
                federated.then(|| world.foreign.trust_domain().clone()).into_iter().collect();
            tracker.hear(Heard::Message(Message { svid: svid.clone(), federates_with, bundles: None }));
            *model = Model { last: Some(svid.map(|svid| (svid, *federated))), expired: false };
        }
        Step::Denied => {
            tracker.hear(Heard::Denied(problem()));
            *model = Model { last: Some(None), expired: false };
        }
        Step::Lost => tracker.hear(Heard::Lost(problem())),
        Step::Clock(seconds) => {
            let distance = Duration::from_secs(seconds.unsigned_abs());
            *now = if *seconds < 0 { *now - distance } else { *now + distance };
        }
        Step::Trust { own, foreign } => {
            let bundles = own.then(|| world.own.clone()).into_iter();
            let bundles = bundles.chain(foreign.then(|| world.foreign.clone())).collect();
            trust.hear(Heard::Message(bundles));
        }
        Step::TrustLost => trust.hear(Heard::Lost(problem())),
    }
}

/// The state that the rules ask for, and whether foreign bundles may be used.
fn model_at(model: &mut Model, now: SystemTime) -> (&'static str, Option<Svid>, bool) {
    match &model.last {
        None => ("pending", None, false),
        Some(None) => ("withdrawn", None, false),
        Some(Some((svid, federated))) => {
            model.expired |= now > svid.not_after();
            if model.expired { ("expired", None, false) } else { ("usable", Some(svid.clone()), *federated) }
        }
    }
}

fn check(
    (state, svid, federated): &(&'static str, Option<Svid>, bool),
    snapshot: &Snapshot,
    trust: &Trust,
) -> Result<(), TestCaseError> {
    let own = trust.bundles.get(expected().trust_domain()).is_some();
    if *state == "usable" && !own {
        prop_assert_eq!(snapshot.state.as_str(), "pending");
        prop_assert!(snapshot.bundles.is_empty());
        return Ok(());
    }
    prop_assert_eq!(snapshot.state.as_str(), *state);
    prop_assert_eq!(snapshot.svid(), svid.as_ref());
    if svid.is_none() {
        prop_assert!(snapshot.bundles.is_empty());
        return Ok(());
    }
    let foreign = TrustDomain::new("b.test").unwrap();
    let usable = snapshot.bundles.get(&foreign).is_some();
    prop_assert_eq!(usable, *federated && trust.bundles.get(&foreign).is_some());
    Ok(())
}

#[test]
fn a_message_heals_and_a_refusal_is_told() {
    let world = World::new();
    let trust = Trust { bundles: [world.own.clone()].into_iter().collect(), ..Trust::default() };
    let mut tracker = Tracker::new(&expected());
    tracker.hear(Heard::Lost(problem()));
    let snapshot = tracker.snapshot(SystemTime::now(), &trust);
    assert_eq!((snapshot.state, snapshot.stale), (State::Pending, false));
    assert!(snapshot.problem.is_some());
    let message = Message { svid: Some(world.svids[0].clone()), ..Message::default() };
    tracker.hear(Heard::Message(message));
    tracker.hear(Heard::Lost(problem()));
    let snapshot = tracker.snapshot(SystemTime::now(), &trust);
    assert!(snapshot.stale && snapshot.problem.is_some() && snapshot.svid().is_some());
    tracker.hear(Heard::Denied(problem()));
    let snapshot = tracker.snapshot(SystemTime::now(), &trust);
    assert!(!snapshot.stale && snapshot.problem.is_some());
    assert_eq!(snapshot.state, State::Withdrawn);
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

fn problem() -> ApiError {
    ApiError::Lost { path: "/agent.sock".into(), reason: "test".to_owned() }
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
