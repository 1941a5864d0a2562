//! The clauses that concern issuers: the certificates after the leaf, and the anchors' own SPIFFE IDs.

use x509_parser::prelude::X509Certificate;

use super::Violation;
use super::leaf::uri_sans;
use crate::{SpiffeId, TrustDomain};

/// A certificate after the leaf must be a CA's, for this trust domain. Anything else in a chain is refused, even
/// where path building would have ignored it.
pub(crate) fn check(
    parsed: &X509Certificate<'_>,
    index: usize,
    trust_domain: &TrustDomain,
) -> Result<(), Violation> {
    let is_ca = matches!(parsed.basic_constraints(), Ok(Some(constraints)) if constraints.value.ca);
    if !is_ca {
        return Err(Violation::IssuerNotCa { index });
    }
    let may_sign = matches!(parsed.key_usage(), Ok(Some(usage)) if usage.value.key_cert_sign());
    if !may_sign {
        return Err(Violation::IssuerWithoutCertSign { index });
    }
    // webpki looks for one purpose alone, and leaves serve in both roles.
    let purposes = parsed.extended_key_usage().ok().flatten();
    if purposes.is_some_and(|purposes| !(purposes.value.server_auth && purposes.value.client_auth)) {
        return Err(Violation::IssuerExtendedKeyUsage);
    }
    check_spiffe_id(parsed, trust_domain)
}

/// An issuer needs no SPIFFE ID; if it has one, it has no path and is of the trust domain it issues for.
pub(crate) fn check_spiffe_id(
    parsed: &X509Certificate<'_>,
    trust_domain: &TrustDomain,
) -> Result<(), Violation> {
    let uris = uri_sans(parsed)?;
    let uri = match uris.as_slice() {
        [] => return Ok(()),
        [uri] => *uri,
        [..] => return Err(Violation::IssuerSpiffeIdInvalid),
    };
    let Ok(spiffe_id) = SpiffeId::new(uri) else {
        return Err(Violation::IssuerSpiffeIdInvalid);
    };
    if !spiffe_id.path().is_empty() {
        return Err(Violation::IssuerSpiffeIdWithPath);
    }
    if !spiffe_id.is_member_of(trust_domain) {
        return Err(Violation::IssuerOfOtherTrustDomain);
    }
    Ok(())
}
