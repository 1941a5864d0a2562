//! Following a state that is given whole.

use std::collections::BTreeSet;
use std::sync::Arc;

use auth_ebpf_abi::IdentityNumber;

use super::Engine;
use crate::compile::Input;
use crate::identity::{Identity, IdentitySet};
use crate::local::Place;
use crate::object::ObjectRef;

impl Engine {
    /// Finds what is different and changes that.
    pub fn follow(&mut self, input: Input<'_>, locals: &BTreeSet<IdentityNumber>) {
        let policies = self.world.policies.iter().map(|policy| &policy.object);
        let gone: Vec<ObjectRef> =
            policies.filter(|object| input.policies.get(object).is_none()).cloned().collect();
        gone.iter().for_each(|object| self.remove_policy(object));
        self.gone(input.identities).into_iter().for_each(|number| self.remove_identity(number));
        self.set_surroundings(input.surroundings);
        for identity in input.identities.iter() {
            if self.world.identities.get(identity.number()).is_none() {
                // A set has no number and no labels twice, and what differs has just been taken out.
                self.insert_identity(identity.clone()).unwrap_or_default();
            }
        }
        for policy in input.policies.shared() {
            self.insert_policy(Arc::clone(policy));
        }
        let gone: Vec<IdentityNumber> = self.locals.difference(locals).copied().collect();
        gone.into_iter().for_each(|number| self.remove_local(number));
        locals.iter().for_each(|number| self.add_local(*number));
    }

    /// The identities known here that are not among these, or with other labels.
    #[must_use]
    pub fn gone(&self, identities: &IdentitySet) -> BTreeSet<IdentityNumber> {
        let known = self.world.identities.iter();
        known.filter(|one| identities.get(one.number()) != Some(one)).map(Identity::number).collect()
    }

    /// Gives identities to the prefixes and nodes that these policies name, beside those of the policies in
    /// force, and keeps all of them until [`Engine::release_places`]; whether any is new.
    ///
    /// With this the identity of an address can change when both identities have the same verdicts: first the
    /// new identities under the old policies, then their addresses, then the new policies. Were it all at
    /// once, the old identity of an address could be judged by the new policies, which neither state does.
    pub fn hold_places(&mut self, input: Input<'_>) -> bool {
        let wanted: BTreeSet<Place> = input.policies.places(input.surroundings).collect();
        let held: BTreeSet<Place> = self.world.local.places().cloned().collect();
        let is_new = !wanted.is_subset(&held);
        if held != wanted {
            self.set_places(None, &held | &wanted);
        }
        is_new
    }

    /// Takes back the identities of places that were only held; whether there were any. Their addresses go
    /// first, then their entries.
    pub fn release_places(&mut self) -> bool {
        let held = self.world.local.places().count();
        self.set_places(None, BTreeSet::new());
        held != self.world.local.places().count()
    }
}
