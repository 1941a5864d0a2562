//! The `metrics` map.

use std::collections::BTreeMap;
use std::path::Path;

use auth_ebpf_abi::{Counter, DropReason, Hook, Layout, Verdict, map, metric};
use aya::maps::{Map, MapData, MapError, PerCpuArray};

use crate::error::Error;
use crate::maps::open_map;

/// What the programs have counted, over all CPUs. Counters only grow, until the maps are made anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Packets and bytes by fate; only what isn't zero.
    pub counters: BTreeMap<(Hook, Verdict, Option<DropReason>), Counter>,
    /// Events that the ring buffer had no room for.
    pub lost_events: u64,
}

/// The map itself.
pub(crate) struct Counters {
    map: PerCpuArray<MapData, [u8; 16]>,
}

impl Counters {
    pub(crate) fn open(pin_dir: &Path) -> Result<Self, Error> {
        let data = open_map(pin_dir, map::METRICS)?;
        let map = PerCpuArray::try_from(Map::PerCpuArray(data)).map_err(|error| failed("open it", error))?;
        Ok(Self { map })
    }

    pub(crate) fn read(&self) -> Result<Metrics, Error> {
        let mut metrics =
            Metrics { lost_events: self.sum(metric::LOST_EVENTS)?.packets, ..Metrics::default() };
        for hook in Hook::ALL {
            let refused = DropReason::ALL
                .iter()
                .flat_map(|reason| [(Verdict::Dropped, Some(*reason)), (Verdict::Audit, Some(*reason))]);
            let others = [(Verdict::Forwarded, None), (Verdict::Held, None)];
            for (verdict, reason) in others.into_iter().chain(refused) {
                let counter = self.sum(metric::index(hook, verdict, reason))?;
                if counter.packets != 0 {
                    metrics.counters.insert((hook, verdict, reason), counter);
                }
            }
        }
        Ok(metrics)
    }

    fn sum(&self, index: u32) -> Result<Counter, Error> {
        let values = self.map.get(&index, 0).map_err(|error| failed("read a counter", error))?;
        Ok(values.iter().filter_map(|bytes| Counter::from_bytes(bytes)).fold(
            Counter::default(),
            |sum, one| Counter {
                packets: sum.packets.wrapping_add(one.packets),
                bytes: sum.bytes.wrapping_add(one.bytes),
            },
        ))
    }
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

fn failed(action: &'static str, error: MapError) -> Error {
    Error::Map { map: map::METRICS, action, source: error.into() }
}
