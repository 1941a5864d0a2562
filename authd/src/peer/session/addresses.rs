//! What a session says and hears about addresses: all of them each time, in parts that fit into frames.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use auth_ebpf_abi::identity;
use tokio::sync::watch;

use crate::clock::BootTime;
use crate::handover::{Assigned, Owners};
use crate::peer::error::Error;
use crate::peer::wire::{Addresses, OwnedAddress, WireError};

/// Addresses in one frame.
const PART: usize = 1024;
/// Addresses that a node may have: as many as its own maps hold.
const MOST: usize = auth_ebpf_abi::capacity::ENDPOINTS;
/// How long an acknowledgement is waited for before a packet's asking counts again.
const AGAIN: Duration = Duration::from_secs(1);

/// The state of one session.
pub(super) struct AddressExchange {
    assigned: watch::Receiver<Arc<Assigned>>,
    /// What was told last, and when.
    told: Option<(Arc<Assigned>, BootTime)>,
    acknowledged: bool,
    /// Parts of what the other side is telling.
    heard: Owners,
}

impl AddressExchange {
    pub(super) fn new(mut assigned: watch::Receiver<Arc<Assigned>>) -> Self {
        // A new session tells what there is, whatever an older one has told.
        assigned.mark_changed();
        Self { assigned, told: None, acknowledged: false, heard: Owners::new() }
    }

    /// Waits until the assignments have changed, and so that something that was told is no longer so.
    pub(super) async fn outdated(&mut self) {
        loop {
            if self.assigned.changed().await.is_err() {
                return std::future::pending().await;
            }
            let now = Arc::clone(&self.assigned.borrow_and_update());
            if self.told.as_ref().is_none_or(|(told, _)| now.takes_back(told)) {
                return;
            }
        }
    }

    /// A packet asks for an announcement: whether it is to be made, or has just been.
    pub(super) fn is_due(&self, now: BootTime) -> bool {
        let epoch = self.assigned.borrow().epoch;
        self.told
            .as_ref()
            .is_none_or(|(told, at)| self.acknowledged || told.epoch != epoch || now.since(*at) >= AGAIN)
    }

    /// All that is to be told now.
    pub(super) fn tell(&mut self, now: BootTime) -> Vec<Addresses> {
        let assigned = Arc::clone(&self.assigned.borrow_and_update());
        let all: Vec<OwnedAddress> = assigned.owners.iter().map(|(ip, owner)| owned(ip, *owner)).collect();
        let epoch = assigned.epoch;
        self.told = Some((assigned, now));
        self.acknowledged = false;
        let mut parts: Vec<_> =
            all.chunks(PART).map(|part| Addresses { epoch, addresses: part.to_vec(), more: true }).collect();
        match parts.last_mut() {
            Some(last) => last.more = false,
            None => parts.push(Addresses { epoch, addresses: Vec::new(), more: false }),
        }
        parts
    }

    /// The other side has acknowledged; the epoch that it now knows of, if that is news.
    pub(super) fn acknowledge(&mut self, epoch: u32) -> Option<u32> {
        let told = self.told.as_ref().is_some_and(|(told, _)| told.epoch == epoch);
        let news = told && !self.acknowledged;
        self.acknowledged |= told;
        news.then_some(epoch)
    }

    /// A part of what the other side tells; all of it, with the last one.
    pub(super) fn hear(&mut self, part: &Addresses) -> Result<Option<Owners>, Error> {
        for owned in &part.addresses {
            let (ip, owner) = owner(owned)?;
            self.heard.insert(ip, owner);
        }
        if self.heard.len() > MOST {
            return Err(unexpected("at most 4096 addresses"));
        }
        Ok((!part.more).then(|| std::mem::take(&mut self.heard)))
    }
}

fn owned(ip: &IpAddr, identity: u32) -> OwnedAddress {
    let address = match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    OwnedAddress { address, identity }
}

fn owner(owned: &OwnedAddress) -> Result<(IpAddr, u32), Error> {
    let bytes = owned.address.as_slice();
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from);
    let ip = v4().or_else(v6).ok_or_else(|| unexpected("an address of 4 or 16 bytes"))?;
    if identity::is_reserved(owned.identity) {
        return Err(unexpected("the identity of a pod"));
    }
    Ok((ip.to_canonical(), owned.identity))
}

const fn unexpected(expected: &'static str) -> Error {
    Error::Wire(WireError::Unexpected { expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: BootTime = BootTime(1 << 40);

    fn assigned(epoch: u32, count: u32) -> Arc<Assigned> {
        let owners = (0..count).map(|number| (IpAddr::from(number.to_be_bytes()), 256)).collect();
        Arc::new(Assigned { epoch, owners })
    }

    fn exchange(first: Arc<Assigned>) -> (watch::Sender<Arc<Assigned>>, AddressExchange) {
        let (sender, receiver) = watch::channel(first);
        (sender, AddressExchange::new(receiver))
    }

    #[test]
    fn what_is_told_in_parts_is_heard_as_a_whole() {
        for count in [0, 1, 1024, 1025, 4096] {
            let (_sender, mut teller) = exchange(assigned(7, count));
            let (_other, mut listener) = exchange(Arc::default());
            let parts = teller.tell(NOW);
            let heard: Vec<_> = parts.iter().filter_map(|part| listener.hear(part).unwrap()).collect();
            assert_eq!(heard, [assigned(7, count).owners.clone()], "{count}");
        }
    }

    #[test]
    fn neither_too_many_nor_nonsense_is_taken() {
        let (_sender, mut teller) = exchange(assigned(7, 4097));
        let (_other, mut listener) = exchange(Arc::default());
        assert!(teller.tell(NOW).iter().any(|part| listener.hear(part).is_err()));
        for (address, identity) in [(vec![1; 5], 256), (vec![1; 4], 1), (vec![], 256), (vec![1; 4], 1 << 24)]
        {
            let part =
                Addresses { epoch: 1, addresses: vec![OwnedAddress { address, identity }], more: false };
            assert!(listener.hear(&part).is_err(), "{part:?}");
        }
    }

    #[test]
    fn only_what_was_told_last_can_be_acknowledged_and_once() {
        let (sender, mut teller) = exchange(assigned(7, 1));
        assert_eq!(teller.acknowledge(0), None, "nothing was told");
        teller.tell(NOW);
        assert_eq!(
            (teller.acknowledge(8), teller.acknowledge(7), teller.acknowledge(7)),
            (None, Some(7), None)
        );
        sender.send_replace(assigned(8, 2));
        teller.tell(NOW);
        assert_eq!((teller.acknowledge(7), teller.acknowledge(8)), (None, Some(8)));
    }

    #[test]
    fn packets_that_ask_have_it_told_once_a_second_at_most() {
        let (sender, mut teller) = exchange(assigned(7, 1));
        assert!(teller.is_due(NOW));
        teller.tell(NOW);
        assert!(!teller.is_due(NOW), "on its way");
        assert!(teller.is_due(NOW.saturating_add(AGAIN)));
        sender.send_replace(assigned(8, 2));
        assert!(teller.is_due(NOW));
        teller.tell(NOW);
        teller.acknowledge(8);
        assert!(teller.is_due(NOW), "the programs know nothing of the acknowledgement any more");
    }

    #[tokio::test]
    async fn a_new_session_tells_at_once_and_then_what_is_no_longer_so() {
        let (sender, mut teller) = exchange(assigned(7, 2));
        teller.outdated().await;
        teller.tell(NOW);
        sender.send_replace(assigned(8, 3));
        assert!(
            futures::poll!(Box::pin(teller.outdated())).is_pending(),
            "one more waits until it is asked for"
        );
        sender.send_replace(assigned(9, 1));
        teller.outdated().await;
    }
}
