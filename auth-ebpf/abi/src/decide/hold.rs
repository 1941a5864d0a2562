//! Holding packets that only lack authentication, and taking them back.

use super::{Context, Judge, Outcome, State};
use crate::packet::protocol;
use crate::{
    AuthEntry, AuthFlags, AuthKey, AuthType, Credits, DropReason, ENDPOINT_UNITS, EventKind, HOLD_UNITS,
    Held, HoldStage, Hook, Setting, capacity, has_room, units,
};

/// Bits of a VLAN tag that name a token.
const TOKENS: u16 = {
    assert!(capacity::HELD.is_power_of_two() && capacity::HELD <= 1 << 16, "a token must fit into a tag");
    (capacity::HELD - 1) as u16
};

/// Length from which on the kernel makes segments of any packet for a device that hasn't said how much it takes.
const TOO_LARGE: u32 = 65_536;
/// As many datagrams as the kernel takes in one from a socket, and their headers.
const MAX_FRAMES: u32 = 128 + 2;

/// Takes back a packet that has been held at this very hook: `context` becomes that with which it came
/// here first, and its tag is to be taken off. Whatever else carries a tag stays as it is.
#[inline(always)]
pub fn come_back<S: State>(state: &S, context: &mut Context) -> bool {
    let Some(held) = tagged(state, context) else { return false };
    let is_its_hook = held.hook == context.hook as u8 && held.ifindex == context.ifindex;
    // On its way out the kernel still says that it came by the device.
    let by_device = context.hook != Hook::ToPod
        || u64::from(context.ingress_ifindex) == state.setting(Setting::HoldIfindex);
    if held.stage != HoldStage::RELEASED || !is_its_hook || !by_device {
        return false;
    }
    give_back(state, context.hook, &held);
    state.hold(context.tag, &Held { stage: HoldStage::FREE, ..held });
    context.tagged = false;
    context.tag = 0;
    context.ingress_ifindex = held.ingress_ifindex;
    context.held_since = held.since;
    context.held_for = held.auth_type;
    true
}

/// Where a packet goes that [`Hook::FromHold`] has let pass: the hook that has held it, and its interface.
#[inline(always)]
pub fn hook_of<S: State>(state: &S, token: u16) -> Option<(Hook, u32)> {
    let held = state.held(token)?;
    Some((Hook::from_number(held.hook)?, held.ifindex))
}

/// The packet that a tag in use stands for.
#[inline(always)]
fn tagged<S: State>(state: &S, context: &Context) -> Option<Held> {
    if context.tagged { state.held(context.tag) } else { None }
}

/// Gives back the credits of a packet.
#[inline(always)]
fn give_back<S: State>(state: &S, hook: Hook, held: &Held) {
    let places = Credits::of(hook, held.ifindex, &held.key());
    let units = u64::from(held.units).wrapping_neg();
    state.credit(places.pair, units);
    state.credit(places.endpoint, units);
    state.credit(Credits::ALL, units);
}

/// Takes units at a place, and returns how many had been taken there before. What a restarted daemon has
/// set to nothing goes below when packets from before come back.
#[inline(always)]
fn take<S: State>(state: &S, place: u32, units: u64) -> u64 {
    taken(state.credit(place, units))
}

#[inline(always)]
const fn taken(credit: u64) -> u64 {
    if credit > u64::MAX / 2 { 0 } else { credit }
}

impl<S: State> Judge<'_, S> {
    /// The packet lacks this authentication or, where the key names none, that the node knows whose its
    /// source is: it asks for that, and waits if it may.
    ///
    /// What has waited in vain neither asks nor waits again, but after an announcement a packet may wait for
    /// its pair's authentication, within the time of both.
    #[inline(always)]
    pub(super) fn lack(&mut self, key: AuthKey) -> Outcome {
        let since = self.notes().held_since;
        let announces = key.auth_type == AuthType::Disabled as u8;
        if since != 0 && Held::is_late(since, self.now()) {
            let pending = !announces && self.state.is_svid_pending(key.local);
            return self.refuse(if pending { DropReason::SvidPending } else { DropReason::HoldTimeout });
        }
        let in_vain = since != 0 && self.notes().held_for >= key.auth_type;
        let may_wait = !in_vain && self.can_hold();
        let (wanted, reason) = if announces {
            (EventKind::AnnouncementWanted, DropReason::AddressUnannounced)
        } else if !may_wait && self.state.is_svid_pending(key.local) {
            (EventKind::AuthWanted, DropReason::SvidPending)
        } else {
            (EventKind::AuthWanted, DropReason::AuthRequired)
        };
        let notes = self.notes();
        notes.wanted = if in_vain { 0 } else { wanted as u8 };
        notes.may_wait = may_wait;
        notes.hold_key = key;
        self.refuse(reason)
    }

    /// The pair has authenticated, but packets that came before may still be held: then this one waits
    /// behind them, as long as there is room. Order is all that is at stake, so without room it passes.
    ///
    /// Until they have gone, the connection lets no packet pass without asking here.
    #[inline(always)]
    pub(super) fn queue_behind(&mut self, auth: AuthEntry, key: AuthKey) -> Outcome {
        if auth.flags & AuthFlags::DRAINING == 0 {
            let notes = self.notes();
            notes.valid_until = notes.valid_until.min(auth.expires);
            return Ok(());
        }
        let notes = self.notes();
        notes.valid_until = 0;
        if notes.held_since != 0 || !self.can_hold() {
            return Ok(());
        }
        let places = Credits::of(self.context.hook, self.context.ifindex, &key);
        let pair = taken(self.state.credit(places.pair, 0));
        let endpoint = taken(self.state.credit(places.endpoint, 0));
        let all = taken(self.state.credit(Credits::ALL, 0));
        if pair == 0 || !may_take(pair, endpoint, all) {
            return Ok(());
        }
        let notes = self.notes();
        notes.may_wait = true;
        notes.hold_key = key;
        Err(DropReason::AuthRequired)
    }

    /// Whether there is a device that takes the packet as it is, and somebody who reads it.
    #[inline(always)]
    fn can_hold(&self) -> bool {
        self.is_held_whole()
            && self.state.setting(Setting::HoldIfindex) != 0
            && self.now() < self.state.setting(Setting::HoldUntil)
    }

    /// Whether the device makes one frame of the packet, as there is one token.
    #[inline(always)]
    fn is_held_whole(&self) -> bool {
        if self.context.segment == 0 {
            return true;
        }
        let takes = match self.event.protocol {
            protocol::TCP => true,
            protocol::UDP => self.frames() <= MAX_FRAMES && self.state.setting(Setting::HoldDatagrams) != 0,
            _ => false,
        };
        takes && self.context.length < TOO_LARGE
    }

    /// How many frames the device may make of the packet. Datagrams in one that a socket sends, it takes as they are;
    /// but a pod can send others by a packet socket that look the same.
    #[inline(always)]
    fn frames(&self) -> u32 {
        let Context { length, segment, .. } = self.context;
        if segment == 0 || self.event.protocol != protocol::UDP { 1 } else { 1 + length / segment }
    }

    /// Takes a token and the credits for it.
    #[inline(always)]
    pub(super) fn take_hold(&mut self, key: AuthKey) -> Outcome {
        let held = Held {
            since: match self.notes().held_since {
                0 => self.now(),
                since => since,
            },
            ifindex: self.context.ifindex,
            ingress_ifindex: self.context.ingress_ifindex,
            local: key.local,
            remote: key.remote,
            node: key.node,
            auth_type: key.auth_type,
            hook: self.context.hook as u8,
            units: units(self.context.length).max(self.frames()),
            stage: HoldStage::TAKEN,
            pad: 0,
        };
        let places = Credits::of(self.context.hook, held.ifindex, &key);
        let wanted = u64::from(held.units);
        let all = take(self.state, Credits::ALL, wanted);
        let endpoint = take(self.state, places.endpoint, wanted);
        let pair = take(self.state, places.pair, wanted);
        if may_take(pair, endpoint, all) && self.take_token(&held) {
            return Ok(());
        }
        give_back(self.state, self.context.hook, &held);
        Err(DropReason::HoldFull)
    }

    #[inline(always)]
    fn take_token(&mut self, held: &Held) -> bool {
        // Each CPU gets another number, and comes to the same token only once all have been given out.
        let token = self.state.credit(Credits::LAST_TOKEN, 1) as u16 & TOKENS;
        let Some(last) = self.state.held(token) else { return false };
        if !last.is_free(held.since) {
            return false;
        }
        if last.stage != HoldStage::FREE
            && let Some(hook) = Hook::from_number(last.hook)
        {
            give_back(self.state, hook, &last);
        }
        self.state.hold(token, held);
        *self.token = token;
        true
    }

    /// Into the hold device: only what a hook has sent there, and only once. Whatever a host makes itself
    /// has come in by no interface, so nobody can send something under the token of another.
    #[inline(always)]
    pub(super) fn enter_hold(&mut self) -> Outcome {
        match tagged(self.state, &self.context) {
            Some(held)
                if held.stage == HoldStage::TAKEN
                    && held.ingress_ifindex == self.context.ingress_ifindex
                    && held.ingress_ifindex != 0 =>
            {
                self.state.hold(self.context.tag, &Held { stage: HoldStage::HELD, ..held });
                Ok(())
            }
            _ => Err(DropReason::NotHeld),
        }
    }

    /// Out of the hold device, back to the hook: only what is held, and only once.
    #[inline(always)]
    pub(super) fn leave_hold(&mut self) -> Outcome {
        match tagged(self.state, &self.context) {
            Some(held) if held.stage == HoldStage::HELD && !held.is_free(self.now()) => {
                self.state.hold(self.context.tag, &Held { stage: HoldStage::RELEASED, ..held });
                *self.token = self.context.tag;
                Ok(())
            }
            _ => Err(DropReason::NotHeld),
        }
    }
}

/// Whether one more packet may be held where so many units have been taken.
#[inline(always)]
const fn may_take(pair: u64, endpoint: u64, all: u64) -> bool {
    has_room(pair, endpoint, ENDPOINT_UNITS) && has_room(endpoint, all, HOLD_UNITS)
}
