//! The rules read one by one, packet by packet.

use policy::{
    AuthType, Direction, IdentityNumber, Input, LabelSet, LocalIdentities, Peers, Policy, PortPrefix, Rule,
};

use crate::random::HOST;

/// What a packet gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The authentication that it needs, and whether it must be encrypted; none if it is dropped.
    pub(crate) passes: Option<(AuthType, bool)>,
    /// Only reported; it passes.
    pub(crate) tried: bool,
}

/// One end and the packet.
#[derive(Clone, Copy)]
pub(crate) struct Question<'a> {
    pub(crate) input: Input<'a>,
    pub(crate) local: IdentityNumber,
    pub(crate) remote: IdentityNumber,
    pub(crate) direction: Direction,
    pub(crate) packet: PortPrefix,
    pub(crate) places: &'a LocalIdentities,
}

impl Question<'_> {
    /// The policies in force have the last word; those which are tried are heard where they pass everything.
    pub(crate) fn naive(&self) -> Verdict {
        let own = self.input.identities.get(self.local);
        let audited = &self.input.surroundings.audited_namespaces;
        let in_trial = own.is_some_and(|own| audited.contains(own.namespace()));
        let in_force = self.world(|policy| !policy.audit && !in_trial);
        let all = self.world(|_| true);
        let tried = in_force == Some((AuthType::Disabled, false))
            && all.map(|(auth, _)| auth) != Some(AuthType::Disabled);
        let encryption = in_force.is_some_and(|(_, encryption)| encryption);
        let passes = if tried { all.map(|(auth, _)| (auth, encryption)) } else { in_force };
        Verdict { passes, tried }
    }

    /// The semantics in the words of the documentation: default deny per direction, deny over allow, explicit
    /// authentication from the most specific rule that names one, encryption if any rule wants it.
    fn world(&self, counts: impl Fn(&Policy) -> bool) -> Option<(AuthType, bool)> {
        let Self { input, local, remote, direction, .. } = *self;
        let own = input.identities.get(local)?.labels();
        let is_host = remote == HOST && direction == Direction::Ingress;
        let (mut allowed, mut default_deny, mut encryption) = (is_host, false, false);
        let mut named = Vec::new();
        if is_host {
            named.push(((0, true), AuthType::Disabled));
        }
        for policy in input.policies.iter().filter(|policy| counts(policy)) {
            if policy.refuses(own) {
                return None;
            }
            for spec in policy.specs.iter().filter(|spec| spec.subject.matches(own)) {
                default_deny |= spec.default_deny(direction);
                for rule in spec.rules.iter().filter(|rule| rule.list.direction() == direction) {
                    let Some((bits, chosen)) = self.covers(rule, own) else { continue };
                    if rule.list.is_deny() {
                        return None;
                    }
                    allowed = true;
                    encryption |= rule.encryption;
                    if chosen || !is_host {
                        named.extend(
                            rule.authentication.map(|authentication| ((bits, chosen), authentication)),
                        );
                    }
                }
            }
        }
        let authentication =
            named.into_iter().max().map_or(AuthType::Disabled, |(_, authentication)| authentication);
        (allowed || !default_deny).then_some((authentication, encryption))
    }

    /// How closely a rule is about the packet: bits of its ports, and whether it chooses the other end.
    fn covers(&self, rule: &Rule, own: &LabelSet) -> Option<(u8, bool)> {
        let Input { identities, surroundings, .. } = self.input;
        let is_any = rule.peers == Peers::Any;
        let mut remotes = identities.remotes().chain(self.places.remotes());
        let remote = remotes.find(|remote| remote.number == self.remote);
        let is_deny = rule.list.is_deny();
        if !is_any && !remote.is_some_and(|remote| rule.peers.select(remote, own, surroundings, is_deny)) {
            return None;
        }
        if self.tells_apart_who_share(rule, own) {
            return None;
        }
        let numbered =
            rule.ports.iter().filter(|ports| ports.covers(self.packet)).map(|ports| (ports.bits(), !is_any));
        let egress = self.direction == Direction::Egress;
        let at = if egress { self.remote } else { self.local };
        let by_name = rule.named_ports.iter().filter_map(|port| {
            let numbers = surroundings.named_ports.get(&at)?.get(port)?;
            let known = is_deny || numbers.len() == 1;
            let mut prefixes = numbers.iter().map(|number| PortPrefix::port(port.protocol, *number));
            (known && prefixes.any(|prefix| prefix == self.packet)).then_some((24, egress || !is_any))
        });
        numbered.chain(by_name).max()
    }

    /// Authentication is required of some who share a SPIFFE ID, and not of all of them.
    fn tells_apart_who_share(&self, rule: &Rule, own: &LabelSet) -> bool {
        let Input { identities, surroundings, .. } = self.input;
        let is_selected = |number: &IdentityNumber| {
            let remote = identities.remotes().find(|remote| remote.number == *number);
            remote.is_some_and(|remote| rule.peers.select(remote, own, surroundings, false))
        };
        let is_required = rule.authentication == Some(AuthType::Spire) && !rule.list.is_deny();
        is_required
            && rule.peers != Peers::Any
            && surroundings.shared().iter().any(|sharing| {
                let selected = sharing.iter().filter(|number| is_selected(number)).count();
                selected != 0 && selected != sharing.len()
            })
    }
}
