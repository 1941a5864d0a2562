//! All that is wrong with a chain, for people who ask why a peer is refused.

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;

use super::{Rules, Violation, chain, issuer, leaf};
use crate::{Bundles, der};

/// Every clause that a chain violates, where [`super::verify_chain_with`] stops at the first. Without `bundles`
/// nothing is said of signatures and trust.
pub fn violations(
    chain: &[CertificateDer<'_>],
    bundles: Option<&Bundles>,
    rules: &Rules,
    now: SystemTime,
) -> Vec<Violation> {
    let Some((first, intermediates)) = chain.split_first() else {
        return vec![Violation::NoCertificate];
    };
    let mut found: Vec<_> = chain::check_size(chain).err().into_iter().collect();
    if !found.is_empty() {
        return found;
    }
    let parsed = match leaf::parse(first) {
        Ok(parsed) => parsed,
        Err(violation) => return vec![violation],
    };
    let spiffe_id = leaf::spiffe_id(&parsed);
    found.extend(spiffe_id.as_ref().err().cloned());
    found.extend(leaf::form(&parsed));
    found.extend(leaf::rule_violations(&parsed, rules, now));
    let Ok(spiffe_id) = spiffe_id else {
        return found;
    };
    let trust_domain = spiffe_id.trust_domain();
    for (position, certificate) in intermediates.iter().enumerate() {
        let checked = leaf::parse(certificate)
            .and_then(|parsed| issuer::check(&parsed, position.saturating_add(1), trust_domain));
        found.extend(checked.err());
    }
    // Once its time has been judged, an expired leaf must not hide who has issued it.
    let (not_before, not_after) =
        (der::system_time(parsed.validity().not_before), der::system_time(parsed.validity().not_after));
    let at = now.max(not_before).min(not_after);
    let trusted = bundles.map_or(Ok(()), |bundles| match bundles.get(trust_domain) {
        Some(bundle) => chain::verify(first, &parsed, intermediates, bundle, at, rules),
        None => Err(Violation::UnknownTrustDomain { trust_domain: trust_domain.clone() }),
    });
    found.extend(trusted.err().filter(|violation| !found.contains(violation)));
    found
}
