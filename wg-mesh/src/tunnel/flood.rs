//! A token bucket per source address for handshake initiations.
//!
//! The protocol library stops answering addresses that cannot prove themselves when it is under load, but
//! lets one that has proven itself cost a Diffie-Hellman per packet. Its numbers here are those of wg(8).

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

const BURST: u32 = 5;
const INTERVAL: Duration = Duration::from_millis(50);
/// Addresses remembered at once; beyond it new ones wait for a sweep.
const CAPACITY: usize = 8192;

/// For each address when its bucket will be full again (the "virtual scheduling" form of a token bucket).
#[derive(Debug, Default)]
pub(super) struct Flood {
    full_at: HashMap<IpAddr, Instant>,
}

impl Flood {
    /// Whether one more handshake from there is to be answered now.
    pub(super) fn admits(&mut self, from: IpAddr, now: Instant) -> bool {
        let key = bucket(from);
        if !self.full_at.contains_key(&key) && self.full_at.len() >= CAPACITY {
            return false;
        }
        let full_at = self.full_at.entry(key).or_insert(now);
        let next = (*full_at).max(now) + INTERVAL;
        if next > now + INTERVAL * BURST {
            return false;
        }
        *full_at = next;
        true
    }

    /// Forgets addresses that have been quiet.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.full_at.retain(|_, full_at| *full_at > now);
    }
}

/// Who has one IPv6 address mostly has a whole /64.
fn bucket(from: IpAddr) -> IpAddr {
    match from {
        IpAddr::V4(_) => from,
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_twenty_a_second() {
        let (mut flood, start) = (Flood::default(), Instant::now());
        let from = "192.0.2.1".parse().unwrap();
        assert_eq!((0..10).filter(|_| flood.admits(from, start)).count(), 5);
        let second = (1..=1000).filter(|ms| flood.admits(from, start + Duration::from_millis(*ms))).count();
        assert_eq!(second, 20);
        assert!(flood.admits("192.0.2.2".parse().unwrap(), start));
    }

    #[test]
    fn a_v6_network_shares_one_bucket() {
        let (mut flood, start) = (Flood::default(), Instant::now());
        let admitted =
            (0..10).filter(|n| flood.admits(format!("2001:db8::{n}").parse().unwrap(), start)).count();
        assert_eq!(admitted, 5);
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let (mut flood, start) = (Flood::default(), Instant::now());
        let addresses = (0..10_000_u32).map(|n| IpAddr::V4(n.into()));
        assert_eq!(addresses.filter(|address| flood.admits(*address, start)).count(), CAPACITY);
        flood.sweep(start + INTERVAL);
        assert!(flood.full_at.is_empty());
    }
}
