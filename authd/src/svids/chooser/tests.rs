use proptest::prelude::*;
use spire_adapter::Svid;
use spire_adapter::authority::CertificateAuthority;

use super::*;

const HERE: Option<SocketId> = Some(SocketId { file: (1, 2), made: 3 });
const ANEW: Option<SocketId> = Some(SocketId { file: (1, 3), made: 4 });

fn process(started: u64) -> Candidate {
    Candidate { started, pid: i32::try_from(started).unwrap(), namespace: 7 }
}

fn processes(all: &[u64]) -> BTreeSet<Candidate> {
    all.iter().map(|started| process(*started)).collect()
}

fn by(api: Api, started: u64) -> Result<Asked, Unused> {
    Ok(Asked { api, process: process(started) })
}

#[test]
fn the_broker_is_preferred_and_a_fallback_only_where_that_is_wanted() {
    let two = processes(&[2, 1]);
    for (choice, broker, expected) in [
        (Choice::Auto, HERE, by(Api::Broker, 1)),
        (Choice::Auto, None, by(Api::DelegatedPid, 1)),
        (Choice::Broker, HERE, by(Api::Broker, 1)),
        (Choice::Broker, None, Err(Unused::NoSocket)),
        (Choice::DelegatedPid, HERE, by(Api::DelegatedPid, 1)),
        (Choice::Delegated, HERE, Err(Unused::NoProcess)),
    ] {
        let mut chooser = Chooser::new(choice);
        assert_eq!(chooser.choose(broker, &two), expected, "{choice:?}");
        let none = Chooser::new(choice).choose(broker, &processes(&[]));
        let strict = choice == Choice::Broker && broker.is_none();
        assert_eq!(none, Err(if strict { Unused::NoSocket } else { Unused::NoProcess }), "{choice:?}");
        let selectors = [None, Some(Answer::Nothing), Some(Answer::Refused), Some(Answer::Away)];
        for answer in selectors {
            let asked = chooser.by_selectors(answer, Duration::ZERO);
            assert_eq!(asked, matches!(choice, Choice::Auto | Choice::Delegated), "{choice:?} {answer:?}");
        }
    }
    let auto = Chooser::new(Choice::Auto);
    assert!(!auto.by_selectors(Some(Answer::Given), FALLBACK));
    assert!(!auto.by_selectors(Some(Answer::Awaited), FALLBACK - Duration::from_millis(1)));
    assert!(auto.by_selectors(Some(Answer::Awaited), FALLBACK));
}

#[test]
fn a_process_that_has_ended_gives_way_to_the_next() {
    let mut chooser = Chooser::new(Choice::Broker);
    let all = processes(&[1, 2]);
    assert_eq!(chooser.choose(HERE, &all), by(Api::Broker, 1));
    // One that is older changes nothing.
    assert_eq!(chooser.choose(HERE, &processes(&[0, 1, 2])), by(Api::Broker, 1));
    assert_eq!(chooser.patience(Answer::Ended), Some(Duration::ZERO));
    chooser.leave(Answer::Ended);
    assert_eq!(chooser.choose(HERE, &all), by(Api::Broker, 2));
    chooser.leave(Answer::Ended);
    // They are still among those that were seen last.
    assert_eq!(chooser.choose(HERE, &all), Err(Unused::NoProcess));
    assert_eq!(chooser.choose(HERE, &processes(&[1, 2, 3])), by(Api::Broker, 3));
    // It lives, and is no longer a process of this identity's pods.
    assert_eq!(chooser.choose(HERE, &processes(&[4])), by(Api::Broker, 4));
}

#[test]
fn who_is_given_nothing_is_left_later_and_later() {
    let mut chooser = Chooser::new(Choice::Broker);
    let all = processes(&[1, 2]);
    let mut waits = Vec::new();
    for _ in 0..12 {
        for started in [1, 2] {
            assert_eq!(chooser.choose(HERE, &all), by(Api::Broker, started));
            assert_eq!(chooser.patience(Answer::Given), None);
            waits.push(chooser.patience(Answer::Nothing).unwrap());
            assert!(chooser.patience(Answer::Away).unwrap() >= UNANSWERED);
            chooser.leave(Answer::Nothing);
        }
    }
    assert_eq!((waits[0], waits[1], waits[2]), (PATIENCE, PATIENCE, 2 * PATIENCE));
    assert_eq!(waits.last(), Some(&MOST_PATIENCE));
    // With another agent all of that counts no more.
    assert_eq!(chooser.choose(ANEW, &all), by(Api::Broker, 1));
    assert_eq!(chooser.patience(Answer::Nothing), Some(PATIENCE));
}

#[test]
fn an_agent_that_refuses_is_asked_otherwise_only_by_auto() {
    let all = processes(&[1]);
    let mut auto = Chooser::new(Choice::Auto);
    let asked = auto.choose(HERE, &all);
    assert_eq!(auto.unused(asked, Some(Answer::Refused)), Some(Unused::Refused));
    assert_eq!(auto.patience(Answer::Refused), Some(Duration::ZERO));
    auto.leave(Answer::Refused);
    let asked = auto.choose(HERE, &all);
    assert_eq!(asked, by(Api::DelegatedPid, 1));
    assert_eq!(auto.unused(asked, Some(Answer::Given)), Some(Unused::Refused));
    assert_eq!(auto.patience(Answer::Given), None);
    // Refused there as well: the other may have been allowed meanwhile.
    assert_eq!(auto.patience(Answer::Refused), Some(UNANSWERED));
    auto.leave(Answer::Refused);
    assert_eq!(auto.choose(HERE, &all), by(Api::Broker, 1));
    auto.leave(Answer::Refused);
    assert_eq!(auto.choose(HERE, &all), by(Api::DelegatedPid, 1));
    assert_eq!(auto.choose(ANEW, &all), by(Api::Broker, 1));
    assert_eq!(auto.choose(None, &all), by(Api::DelegatedPid, 1));

    let mut strict = Chooser::new(Choice::Broker);
    let asked = strict.choose(HERE, &all);
    assert_eq!(strict.patience(Answer::Refused), Some(UNANSWERED));
    strict.leave(Answer::Refused);
    assert_eq!(strict.choose(HERE, &all), asked);
    assert_eq!(strict.unused(asked, Some(Answer::Refused)), Some(Unused::Refused));
    assert_eq!(strict.unused(asked, Some(Answer::Given)), None);
    assert_eq!(strict.unused(asked, Some(Answer::Nothing)), Some(Unused::Nothing));
}

fn svid() -> Svid {
    let id = spiffe::SpiffeId::new("spiffe://a.test/identity/256").unwrap();
    let ca = CertificateAuthority::new(id.trust_domain()).unwrap();
    ca.issue(&id, Duration::from_secs(3600)).unwrap().to_svid().unwrap()
}

fn snapshot(state: State) -> Snapshot {
    Snapshot { state, ..Snapshot::default() }
}

fn away() -> ApiError {
    ApiError::Refused { path: "/agent.sock".into() }
}

#[test]
fn an_svid_stays_until_the_agent_has_answered_for_the_next_process() {
    let (usable, mut held) = (snapshot(State::Usable(svid())), None);
    let pending = snapshot(State::Pending);
    assert_eq!(merge(&mut held, None, None).1.state, State::Pending);
    assert_eq!(merge(&mut held, Some((Api::Broker, &usable)), None), (Some(Api::Broker), usable.clone()));
    // Another process is asked, by another API.
    let next = merge(&mut held, Some((Api::DelegatedPid, &pending)), None);
    assert_eq!(next, (Some(Api::Broker), usable.clone()));
    let lost = Snapshot { problem: Some(away()), ..pending.clone() };
    let (_, stale) = merge(&mut held, Some((Api::Broker, &lost)), None);
    assert_eq!((stale.svid(), stale.stale, &stale.problem), (usable.svid(), true, &Some(away())));
    // It has answered.
    let withdrawn = snapshot(State::Withdrawn);
    assert_eq!(merge(&mut held, Some((Api::Broker, &withdrawn)), None).1.state, State::Withdrawn);
    assert_eq!(merge(&mut held, Some((Api::Broker, &pending)), None).1.state, State::Pending);
}

#[test]
fn with_no_process_left_it_is_withdrawn_unless_selectors_give_it() {
    let (usable, mut held) = (snapshot(State::Usable(svid())), None);
    merge(&mut held, Some((Api::Broker, &usable)), None);
    assert_eq!(merge(&mut held, None, None).1.state, State::Withdrawn);
    merge(&mut held, Some((Api::Broker, &usable)), None);
    assert_eq!(merge(&mut held, None, Some(&snapshot(State::Pending))).1.state, State::Withdrawn);
    assert_eq!(merge(&mut held, None, Some(&usable)), (Some(Api::Delegated), usable.clone()));
    let nothing = snapshot(State::Withdrawn);
    let both = merge(&mut held, Some((Api::Broker, &nothing)), Some(&usable));
    assert_eq!(both, (Some(Api::Delegated), usable.clone()));
    let other = snapshot(State::Usable(svid()));
    let both = merge(&mut held, Some((Api::Broker, &other)), Some(&usable));
    assert_eq!(both, (Some(Api::Broker,), other));
}

fn answers() -> impl Strategy<Value = Answer> {
    prop_oneof![
        Just(Answer::Given),
        Just(Answer::Nothing),
        Just(Answer::Away),
        Just(Answer::Refused),
        Just(Answer::Ended)
    ]
}

proptest! {
    /// Whatever happens, only a process of the identity that has not ended is asked for, by an API that the setting
    /// allows, and each gets its turn.
    #[test]
    fn only_what_lives_and_is_its_own_is_asked_for(
        choice in prop_oneof![Just(Choice::Auto), Just(Choice::Broker), Just(Choice::DelegatedPid)],
        steps in prop::collection::vec((prop::collection::btree_set(1u64..6, 0..4), any::<bool>(), answers()), 1..60),
    ) {
        let mut chooser = Chooser::new(choice);
        let mut ended = BTreeSet::new();
        for (all, serves, answer) in steps {
            let all: BTreeSet<Candidate> = all.into_iter().map(process).collect();
            ended.retain(|process| all.contains(process));
            let broker = HERE.filter(|_| serves);
            let alive = all.difference(&ended).count();
            match chooser.choose(broker, &all) {
                Ok(asked) => {
                    prop_assert!(all.contains(&asked.process) && !ended.contains(&asked.process));
                    match asked.api {
                        Api::Broker => prop_assert!(serves && choice != Choice::DelegatedPid),
                        Api::DelegatedPid => prop_assert!(choice != Choice::Broker),
                        Api::Delegated => prop_assert!(false, "by selectors"),
                    }
                    if chooser.patience(answer).is_some() {
                        chooser.leave(answer);
                        if answer == Answer::Ended {
                            ended.insert(asked.process);
                        }
                    }
                }
                Err(Unused::NoProcess) => prop_assert_eq!(alive, 0),
                Err(Unused::NoSocket) => prop_assert!(choice == Choice::Broker && !serves),
                Err(other) => prop_assert!(false, "{:?}", other),
            }
        }
        // All of them in turn, as long as none is given anything.
        let all = processes(&[11, 12, 13]);
        let mut turns = BTreeSet::new();
        for _ in 0..12 {
            let Ok(asked) = chooser.choose(HERE, &all) else { panic!("nobody is asked") };
            turns.insert(asked.process);
            chooser.leave(Answer::Nothing);
        }
        prop_assert_eq!(turns, all);
    }
}
