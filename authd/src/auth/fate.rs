//! Events that end entries, or let waiting pairs start.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use auth_ebpf_abi::{AuthKey, IdentityNumber, NodeNumber};

use super::change::{Cause, Change};
use super::event::{Action, Desired};
use super::losses::Loss;
use super::machine::{Machine, Peer, is_ours};
use super::pair::{Pair, written};
use crate::clock::BootTime;

/// How long an entry may take to be proven anew when an anchor has gone. Handshakes take milliseconds.
const PROVE: Duration = Duration::from_secs(5);

impl Machine {
    pub(super) fn svid_changed(&mut self, identity: IdentityNumber, expires: BootTime, now: BootTime) {
        self.svids.insert(identity, expires);
        for key in self.keys(|key, _| rests_on(key, identity)) {
            self.retry(key, now);
        }
    }

    pub(super) fn svid_missing(&mut self, identity: IdentityNumber, now: BootTime) {
        self.svids.remove(&identity);
        self.losses.note(Loss::Local(identity), now);
        for key in self.keys(|key, _| rests_on(key, identity)) {
            self.void(key, now);
        }
    }

    pub(super) fn svid_withdrawn(&mut self, identity: IdentityNumber, now: BootTime) {
        self.svids.remove(&identity);
        self.losses.note(Loss::Local(identity), now);
        let keys =
            self.keys(|key, pair| rests_on(key, identity) && (pair.held.is_some() || pair.attempt.is_some()));
        let nodes: BTreeSet<NodeNumber> = keys.iter().map(|key| key.node).filter(|node| *node != 0).collect();
        for key in keys {
            self.revoke(key, Cause::Withdrawn, now);
            self.give_up_if_lost(key, now);
        }
        let up = nodes.into_iter().filter(|node| self.peers.get(node).is_some_and(|peer| peer.up));
        self.actions.extend(up.map(|node| Action::TellPeer { node, identity }));
    }

    pub(super) fn anchor_lost(&mut self, identity: IdentityNumber, now: BootTime) {
        // A handshake that began before may have been verified by it.
        self.losses.note(Loss::Local(identity), now);
        let until = now.saturating_add(PROVE);
        for key in self.keys(|key, _| rests_on(key, identity)) {
            if let Some(pair) = self.pairs.get_mut(&key) {
                pair.void();
                pair.reset_backoff();
                if let Some(held) = &mut pair.held {
                    held.renew_at = now;
                    held.prove_until = Some(held.prove_until.map_or(until, |before| before.min(until)));
                }
            }
            self.evaluate(key, now);
        }
    }

    pub(super) fn peer_up(
        &mut self,
        node: NodeNumber,
        epoch: u32,
        identities: Arc<BTreeSet<IdentityNumber>>,
        now: BootTime,
    ) {
        let before = self.peers.insert(node, Peer { up: true, epoch, identities: Arc::clone(&identities) });
        let raised = before.as_ref().is_some_and(|before| before.epoch != epoch);
        if raised {
            self.losses.note(Loss::Node(node), now);
        }
        if let Some(before) = before {
            let gone: Vec<IdentityNumber> = before.identities.difference(&identities).copied().collect();
            self.losses.note_gone(node, &gone, now);
        }
        for key in self.keys(|key, _| key.node == node) {
            let held_epoch = |pair: &Pair| pair.held.as_ref().is_some_and(|held| held.record.epoch != epoch);
            let gone = !identities.contains(&key.remote);
            if raised || self.pairs.get(&key).is_some_and(held_epoch) {
                self.revoke(key, Cause::Epoch, now);
            } else if gone {
                self.revoke(key, Cause::NotAnnounced, now);
            }
            self.retry(key, now);
        }
    }

    pub(super) fn peer_down(&mut self, node: NodeNumber) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.up = false;
        }
    }

    pub(super) fn peer_revoked(&mut self, node: NodeNumber, identity: IdentityNumber, now: BootTime) {
        self.losses.note(Loss::Remote(node, identity), now);
        if let Some(peer) = self.peers.get_mut(&node) {
            Arc::make_mut(&mut peer.identities).remove(&identity);
        }
        for key in self.keys(|key, _| key.node == node && key.remote == identity) {
            self.revoke(key, Cause::PeerRevoked, now);
            self.give_up_if_lost(key, now);
        }
    }

    pub(super) fn desire(&mut self, desired: Arc<Desired>, now: BootTime) {
        self.desired = Some(Arc::clone(&desired));
        for key in self.keys(|key, _| !desired.allows(key)) {
            let obsolete = self.remove(key, Cause::NotDesired);
            self.counters.obsolete += u64::from(obsolete);
            if let Some(pair) = self.pairs.get_mut(&key) {
                pair.void();
                pair.asked_until = BootTime::ZERO;
            }
            self.evaluate(key, now);
        }
        self.look_ahead(&desired);
        for key in self.keys(|_, pair| pair.attempt.is_none()) {
            self.evaluate(key, now);
        }
    }

    /// Marks the pairs that are to be authenticated before a packet asks.
    fn look_ahead(&mut self, desired: &Desired) {
        let ahead = desired.ahead(self.config.preauthenticate);
        for (key, pair) in &mut self.pairs {
            pair.ahead = ahead.contains(key);
        }
        for key in ahead {
            if self.pairs.len() < self.config.max_pairs && is_ours(&key) {
                self.pairs.entry(key).or_default().ahead = true;
            }
        }
    }

    pub(super) fn write_failed(&mut self, key: AuthKey, now: BootTime) {
        self.remove(key, Cause::NotWritten);
        if let Some(pair) = self.pairs.get_mut(&key) {
            pair.retry_at = now.saturating_add(self.config.backoff_limit);
        }
        self.evaluate(key, now);
    }

    pub(super) fn flush(&mut self, now: BootTime) {
        for key in self.keys(|_, _| true) {
            self.remove(key, Cause::Flushed);
            if let Some(pair) = self.pairs.get_mut(&key) {
                pair.void();
                pair.reset_backoff();
                pair.asked_until = now.saturating_add(self.config.interest);
            }
            self.evaluate(key, now);
        }
    }

    /// Ends what stands and voids what runs, because a cause has gone.
    fn revoke(&mut self, key: AuthKey, cause: Cause, now: BootTime) {
        let revoked = self.remove(key, cause);
        self.counters.revoked += u64::from(revoked);
        self.void(key, now);
    }

    fn void(&mut self, key: AuthKey, now: BootTime) {
        if let Some(pair) = self.pairs.get_mut(&key) {
            pair.void();
        }
        self.evaluate(key, now);
    }

    /// Lets a pair start at once, whatever failed before.
    fn retry(&mut self, key: AuthKey, now: BootTime) {
        if let Some(pair) = self.pairs.get_mut(&key) {
            pair.reset_backoff();
        }
        self.evaluate(key, now);
    }

    /// Takes the pair's entries out of the map; whether there were any.
    pub(super) fn remove(&mut self, key: AuthKey, cause: Cause) -> bool {
        let held = self.pairs.get_mut(&key).and_then(|pair| pair.held.take()).is_some();
        if held {
            self.actions.extend(written(key).map(Action::RemoveEntry));
            self.changes.push_back(Change::Ended(key, cause));
        }
        held
    }

    fn keys(&self, which: impl Fn(&AuthKey, &Pair) -> bool) -> Vec<AuthKey> {
        self.pairs.iter().filter(|(key, pair)| which(key, pair)).map(|(key, _)| *key).collect()
    }
}

/// Whether this pair rests on the SVID of that identity of ours.
const fn rests_on(key: &AuthKey, identity: IdentityNumber) -> bool {
    key.local == identity || (key.node == 0 && key.remote == identity)
}
