//! Sequences of calls to a service, of answers, and of changes behind it, against the model of whom each call
//! goes to.

use std::collections::BTreeSet;

use auth_ebpf_abi::{AuthType, Direction, DropReason, Hook, TranslationKind, Verdict, Workspace, decide};
use proptest::prelude::*;

use super::frames::Parts;
use super::scene::*;
use super::service_model::{BACKENDS, BEHIND, Outcome, PORT, Subject, follow, steps};
use super::tables::Tables;

const SECOND: u64 = 1_000_000_000;

impl Subject for Tables {
    fn serve(&mut self, ends: &BTreeSet<usize>, affinity: u32) {
        let ends: Vec<_> = ends.iter().map(|it| (BACKENDS[*it].0, BEHIND)).collect();
        serve(self, SERVICE, PORT, 1, affinity, &ends);
    }

    fn allow(&mut self, ends: &BTreeSet<usize>) {
        self.policy.clear();
        for it in ends {
            allow(self, HERE_ID, Direction::Egress, BACKENDS[*it].1, AuthType::Disabled);
        }
        reopen_all(self);
    }

    fn wait(&mut self, time: u64) {
        self.now.set(self.now.get() + time);
    }

    fn run(&mut self, hook: Hook, ingress: u32, parts: &Parts) -> Outcome {
        let mut workspace = Workspace::default();
        let bytes = parts.ethernet();
        self.events.borrow_mut().clear();
        match decide(self, bytes.as_slice(), &context(hook, ingress), &mut workspace) {
            Verdict::Forwarded => {
                let translation = workspace.place.translation;
                assert_eq!(translation.kind, TranslationKind::END);
                Ok(translation.new)
            }
            verdict => {
                assert_eq!(verdict, Verdict::Dropped);
                let number = self.events.borrow().last().unwrap().reason;
                Err(DropReason::from_number(number).unwrap())
            }
        }
    }
}

fn waits() -> Vec<u64> {
    let parts = [7_100, 23_010, 41_001].map(|milliseconds| milliseconds * SECOND / 1000);
    [1_000, 300 * SECOND, 7 * 3600 * SECOND].into_iter().chain(parts).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn each_call_goes_to_the_models_backend(steps in steps(waits()), affinity in any::<bool>()) {
        let mut tables = locked();
        let session = tables.nodes[&NODE];
        tables.nodes.insert(NODE, auth_ebpf_abi::NodeEntry { expires: u64::MAX, ..session });
        follow(&mut tables, &steps, affinity, false)?;
    }
}
