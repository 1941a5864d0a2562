//! The SVIDs and trust bundles of this node, as the API shows them.

use std::collections::BTreeMap;

use auth_ebpf_abi::IdentityNumber;
use spire_adapter::{Bundle, Bundles, State, Svid};

use super::{DaemonSource, conditions::why_missing};
use crate::{
    api::v1,
    flows::to_timestamp,
    svids::{Api, IdentitySvid},
};

/// The node itself, where others have the number of an identity.
const NODE: IdentityNumber = 0;
const WORKLOAD_API: &str = "Workload API";

impl DaemonSource {
    pub(super) fn list_svids(&self) -> Vec<v1::Svid> {
        let mut svids = vec![self.node_svid()];
        svids.extend(self.svids.all().iter().map(|(identity, known)| self.identity_svid(*identity, known)));
        svids
    }

    fn node_svid(&self) -> v1::Svid {
        let snapshot = self.svids.node_changes().borrow().clone();
        let state = match (&snapshot.state, self.svids.node()) {
            (State::Usable(_), Some(_)) => v1::SvidState::Available,
            (State::Usable(_) | State::Expired, _) => v1::SvidState::Expired,
            (State::Withdrawn, _) => v1::SvidState::Withdrawn,
            _ => v1::SvidState::Pending,
        };
        let spiffe_id = self.naming.node(&self.config.node_name);
        v1::Svid {
            identity: NODE,
            spiffe_id: spiffe_id.map(|id| id.to_string()).unwrap_or_default(),
            state: state.into(),
            source: WORKLOAD_API.to_owned(),
            problem: snapshot.problem.as_ref().map(ToString::to_string).unwrap_or_default(),
            ..described(snapshot.svid(), &snapshot.bundles)
        }
    }

    fn identity_svid(&self, identity: IdentityNumber, known: &IdentitySvid) -> v1::Svid {
        let state = match &known.credential {
            Some(credential) if credential.svid.is_valid_at(self.clock.wall()) => v1::SvidState::Available,
            Some(_) => v1::SvidState::Expired,
            None if known.withdrawn && known.arrived => v1::SvidState::Withdrawn,
            None => v1::SvidState::Pending,
        };
        let none = Bundles::new();
        let credential = known.credential.as_ref();
        let problem = match credential {
            Some(_) => known.problem.as_ref().map(ToString::to_string),
            None => why_missing(known),
        };
        v1::Svid {
            identity,
            spiffe_id: known.spiffe_id.to_string(),
            state: state.into(),
            source: known.api.map(Api::as_str).unwrap_or_default().to_owned(),
            problem: problem.unwrap_or_default(),
            ..described(credential.map(|it| &it.svid), credential.map_or(&none, |it| &it.bundles))
        }
    }

    pub(super) fn list_bundles(&self) -> Vec<v1::Bundle> {
        let node = self.svids.node_changes().borrow().bundles.clone();
        let identities = self.svids.all();
        let held = identities
            .iter()
            .filter_map(|(identity, known)| Some((*identity, known.credential.as_ref()?.bundles.clone())));
        // The same trust domain may be at different states in two streams for a moment.
        let mut users: Vec<(Bundle, Vec<u32>)> = Vec::new();
        for (identity, bundles) in std::iter::once((NODE, node)).chain(held) {
            for bundle in bundles.iter() {
                match users.iter_mut().find(|(known, _)| known == bundle) {
                    Some((_, users)) => users.push(identity),
                    None => users.push((bundle.clone(), vec![identity])),
                }
            }
        }
        let mut listed: BTreeMap<String, Vec<v1::Bundle>> = BTreeMap::new();
        for (bundle, identities) in users {
            let trust_domain = bundle.trust_domain().to_string();
            let shown =
                v1::Bundle { trust_domain: trust_domain.clone(), anchors: anchors(&bundle), identities };
            listed.entry(trust_domain).or_default().push(shown);
        }
        listed.into_values().flatten().collect()
    }
}

/// What can be told of an SVID, if there is one.
fn described(svid: Option<&Svid>, bundles: &Bundles) -> v1::Svid {
    let Some(svid) = svid else { return v1::Svid::default() };
    v1::Svid {
        not_before: Some(to_timestamp(svid.not_before())),
        expires: Some(to_timestamp(svid.not_after())),
        leaf_sha256: hex(&svid.leaf_hash()),
        chain_length: u32::try_from(svid.chain().len()).unwrap_or(u32::MAX),
        trust_domains: bundles.iter().map(|bundle| bundle.trust_domain().to_string()).collect(),
        ..v1::Svid::default()
    }
}

fn anchors(bundle: &Bundle) -> Vec<v1::TrustAnchor> {
    bundle
        .fingerprints()
        .zip(bundle.expiries())
        .map(|(sha256, expires)| v1::TrustAnchor {
            sha256: hex(&sha256),
            expires: Some(to_timestamp(expires)),
        })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
