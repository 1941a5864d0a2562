//! Pods whose interface has become another one while cluster state says nothing new of them. Pure.
//!
//! An address goes to the next pod within milliseconds, and the cluster state says so a little later: until
//! then, whoever has the address would be taken for the pod that had it. So such a pod has no traffic until
//! cluster state names its owner anew, or has had the time to: then it is the same pod in a new sandbox.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use auth_ebpf_abi::{Address, EndpointEntry, IdentityNumber};

use super::plan::{Endpoint, Plan};
use crate::clock::BootTime;

/// How long cluster state has to name another owner.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the pods here were found last.
#[derive(Debug, Default)]
pub(super) struct Moves {
    known: BTreeMap<String, Known>,
    /// What stood in the map when the daemon came.
    adopted: BTreeMap<Address, EndpointEntry>,
}

#[derive(Clone, Debug)]
struct Known {
    identity: IdentityNumber,
    addresses: Vec<IpAddr>,
    /// Index of the host end.
    index: u32,
    /// Where it seems to be now, and since when.
    moved: Option<(u32, BootTime)>,
}

impl Moves {
    /// What stands in the map from before.
    pub(super) fn adopt(endpoints: BTreeMap<Address, EndpointEntry>) -> Self {
        Self { known: BTreeMap::new(), adopted: endpoints }
    }

    /// Index of the host end where each pod was found, by its name.
    pub(super) fn before(&self) -> BTreeMap<String, u32> {
        self.known.iter().map(|(pod, known)| (pod.clone(), known.index)).collect()
    }

    /// Takes the endpoints of pods that have moved unasked out of the plan.
    pub(super) fn withhold(&mut self, plan: &mut Plan, now: BootTime) {
        let before = std::mem::take(&mut self.known);
        for pod in &plan.pods {
            let last = before.get(&pod.pod).cloned().or_else(|| self.adopted(pod));
            let last = last.filter(|last| last.is_of(pod));
            let index = pod.interface.as_ref().map(|(index, _)| *index);
            let Some(index) = index.or(last.as_ref().map(|last| last.index)) else { continue };
            let mut known = last.unwrap_or_else(|| Known::new(pod, index));
            if !known.settles(index, now) {
                if known.moved == Some((index, now)) {
                    tracing::warn!(
                        pod = pod.pod,
                        "another interface has its address: no traffic until cluster state says whose it is"
                    );
                }
                for address in &pod.addresses {
                    plan.endpoints.remove(&(*address).into());
                }
            }
            self.known.insert(pod.pod.clone(), known);
        }
        self.adopted.clear();
    }

    fn adopted(&self, pod: &Endpoint) -> Option<Known> {
        let entries = pod.addresses.iter().filter_map(|address| self.adopted.get(&(*address).into()));
        let last = entries.into_iter().find(|entry| entry.identity == pod.identity)?;
        Some(Known::new(pod, last.ifindex))
    }
}

impl Known {
    fn new(pod: &Endpoint, index: u32) -> Self {
        Self { identity: pod.identity, addresses: pod.addresses.clone(), index, moved: None }
    }

    /// Whether cluster state says what it said then.
    fn is_of(&self, pod: &Endpoint) -> bool {
        self.identity == pod.identity && self.addresses == pod.addresses
    }

    /// Whether the pod counts as the one at this interface.
    fn settles(&mut self, index: u32, now: BootTime) -> bool {
        let since = match self.moved {
            _ if index == self.index => {
                self.moved = None;
                return true;
            }
            Some((to, since)) if to == index => since,
            _ => now,
        };
        self.moved = Some((index, since));
        let settled = now.since(since) >= PATIENCE;
        if settled {
            self.index = index;
            self.moved = None;
        }
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: BootTime = BootTime(1 << 40);

    fn after(seconds: u64) -> BootTime {
        START.saturating_add(Duration::from_secs(seconds))
    }

    fn ip() -> IpAddr {
        [10, 0, 0, 1].into()
    }

    /// Whether the pod still is an endpoint, found at this interface at that time.
    fn is_known(moves: &mut Moves, pod: &str, identity: u32, index: Option<u32>, now: BootTime) -> bool {
        let interface = index.map(|index| (index, format!("if{index}")));
        let endpoint = Endpoint {
            pod: pod.into(),
            addresses: vec![ip()],
            identity,
            interface,
            refused: None,
            direct: false,
        };
        let mut plan = Plan { pods: vec![endpoint], ..Plan::default() };
        if let Some(ifindex) = index {
            plan.endpoints
                .insert(ip().into(), EndpointEntry { identity, ifindex, ..EndpointEntry::default() });
        }
        moves.withhold(&mut plan, now);
        !plan.endpoints.is_empty()
    }

    #[test]
    fn a_pod_that_comes_or_stays_is_taken_at_its_word() {
        let mut moves = Moves::default();
        assert!(!is_known(&mut moves, "a", 256, None, START), "it is nowhere yet");
        for second in 0..3 {
            assert!(is_known(&mut moves, "a", 256, Some(7), after(second)));
        }
    }

    #[test]
    fn at_another_interface_it_counts_once_cluster_state_has_had_the_time_to_say_otherwise() {
        let mut moves = Moves::default();
        assert!(is_known(&mut moves, "a", 256, Some(7), START));
        assert!(!is_known(&mut moves, "a", 256, None, after(1)), "gone for a while");
        assert!(!is_known(&mut moves, "a", 256, Some(9), after(2)));
        assert!(!is_known(&mut moves, "a", 256, Some(9), after(6)));
        assert!(!is_known(&mut moves, "a", 256, Some(11), after(7)), "and again at another");
        assert!(!is_known(&mut moves, "a", 256, Some(11), after(11)));
        assert!(is_known(&mut moves, "a", 256, Some(11), after(12)));
        assert!(is_known(&mut moves, "a", 256, Some(11), after(13)));
        assert_eq!(moves.before(), BTreeMap::from([("a".to_owned(), 11)]));
    }

    #[test]
    fn back_at_its_own_it_counts_at_once() {
        let mut moves = Moves::default();
        assert!(is_known(&mut moves, "a", 256, Some(7), START));
        assert!(!is_known(&mut moves, "a", 256, Some(9), after(1)));
        assert!(is_known(&mut moves, "a", 256, Some(7), after(2)));
        assert!(!is_known(&mut moves, "a", 256, Some(9), after(8)), "the time starts anew");
    }

    #[test]
    fn a_new_owner_counts_at_once() {
        let mut moves = Moves::default();
        assert!(is_known(&mut moves, "a", 256, Some(7), START));
        assert!(!is_known(&mut moves, "a", 256, Some(9), after(1)));
        assert!(is_known(&mut moves, "b", 300, Some(9), after(1)));
        assert!(is_known(&mut moves, "b", 301, Some(11), after(2)), "another identity");
    }

    #[test]
    fn a_daemon_that_comes_back_knows_where_pods_were() {
        let entry = EndpointEntry { identity: 256, ifindex: 7, ..EndpointEntry::default() };
        let adopted = BTreeMap::from([(Address::from(ip()), entry)]);
        assert!(is_known(&mut Moves::adopt(adopted.clone()), "a", 256, Some(7), START));
        assert!(!is_known(&mut Moves::adopt(adopted.clone()), "a", 256, Some(9), START));
        assert!(is_known(&mut Moves::adopt(adopted), "b", 300, Some(9), START));
    }
}
