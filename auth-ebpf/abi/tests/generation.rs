//! Where the counters of pairs lie.

use std::collections::BTreeSet;

use auth_ebpf_abi::{GENERATIONS, generation_slot, generation_slots};
use proptest::prelude::*;

proptest! {
    #[test]
    fn a_pairs_counter_is_among_its_local_identitys(local: u32, remote: u32) {
        let slots = generation_slots(local);
        prop_assert!(slots.contains(&generation_slot(local, remote)));
        prop_assert!(slots.end as usize <= GENERATIONS);
    }
}

#[test]
fn identities_with_numbers_in_a_row_share_few_counters() {
    let local: BTreeSet<u32> = (1000..1250).map(|local| generation_slots(local).start).collect();
    assert_eq!(local.len(), 250, "those of one node");
    for first in [1, 1000, 70_000] {
        let remote: BTreeSet<u32> = (first..first + 16).map(|remote| generation_slot(1000, remote)).collect();
        assert_eq!(remote.len(), 8);
    }
}
