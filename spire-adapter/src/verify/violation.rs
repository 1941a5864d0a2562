//! The clauses that a peer's certificate can violate, one variant each.

use crate::{SpiffeId, TrustDomain};

/// Why a certificate chain was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// The peer sent none.
    #[error("no certificate was presented")]
    NoCertificate,
    /// Longer than any real chain.
    #[error("more than {limit} certificates were presented")]
    TooManyCertificates {
        /// The limit.
        limit: usize,
    },
    /// Bigger than any real chain.
    #[error("the chain is larger than {limit} bytes")]
    ChainTooLarge {
        /// The limit.
        limit: usize,
    },
    /// Not a certificate, or one with trailing or unreadable parts.
    #[error("a certificate is malformed: {reason}")]
    Malformed {
        /// What could not be read.
        reason: &'static str,
    },
    /// An extension appears twice.
    #[error("a certificate carries the same extension twice")]
    DuplicateExtension,
    /// X509-SVID 2: exactly one URI SAN.
    #[error("the leaf has no URI SAN")]
    NoUriSan,
    /// X509-SVID 2: exactly one URI SAN.
    #[error("the leaf has more than one URI SAN")]
    SeveralUriSans,
    /// SPIFFE-ID 2.3: 2,048 bytes.
    #[error("the SPIFFE ID is longer than 2048 bytes")]
    SpiffeIdTooLong,
    /// The URI SAN is no SPIFFE ID.
    #[error("the URI SAN is no valid SPIFFE ID")]
    SpiffeIdInvalid,
    /// Legitimate issuers write the canonical form.
    #[error("the SPIFFE ID is not in canonical lower case")]
    SpiffeIdNotCanonical,
    /// X509-SVID 5.2: a leaf's ID has a path.
    #[error("the leaf's SPIFFE ID has no path")]
    SpiffeIdWithoutPath,
    /// SPIRE always sets them.
    #[error("the leaf has no basic constraints")]
    BasicConstraintsMissing,
    /// X509-SVID 4.1.
    #[error("the leaf is a CA certificate")]
    LeafIsCa,
    /// X509-SVID 4.3.
    #[error("the leaf has no key usage")]
    KeyUsageMissing,
    /// X509-SVID 4.3.
    #[error("the leaf's key usage is not critical")]
    KeyUsageNotCritical,
    /// X509-SVID 4.3.
    #[error("the leaf's key usage lacks digitalSignature")]
    DigitalSignatureMissing,
    /// X509-SVID 4.3.
    #[error("the leaf's key usage has keyCertSign")]
    LeafWithCertSign,
    /// X509-SVID 4.3.
    #[error("the leaf's key usage has cRLSign")]
    LeafWithCrlSign,
    /// X509-SVID 4.4: serverAuth and clientAuth, if any.
    #[error("the leaf's extended key usage lacks serverAuth or clientAuth")]
    ExtendedKeyUsageIncomplete,
    /// X509-SVID 3.1.
    #[error("the leaf's subject is empty and its SAN not critical")]
    SanNotCritical,
    /// A key of another kind or size than the rules accept.
    #[error("the leaf's public key is of a kind that is not accepted")]
    KeyTypeNotAllowed,
    /// Longer valid than the rules accept.
    #[error("the leaf is valid for {days} days, longer than accepted")]
    LifetimeTooLong {
        /// Its lifetime in whole days.
        days: u64,
    },
    /// NotBefore lies in the future.
    #[error("the leaf is not yet valid: check both clocks")]
    NotYetValid,
    /// NotAfter has passed.
    #[error("the leaf has expired")]
    Expired,
    /// A valid identity, but not the one this connection is for.
    #[error("the peer is {found}, which is not expected here")]
    UnexpectedPeer {
        /// Who it is.
        found: SpiffeId,
    },
    /// No bundle for the leaf's trust domain.
    #[error("there is no trust bundle for trust domain {trust_domain}")]
    UnknownTrustDomain {
        /// The leaf's trust domain.
        trust_domain: TrustDomain,
    },
    /// A certificate after the leaf is no CA's.
    #[error("certificate {index} of the chain is not a CA certificate")]
    IssuerNotCa {
        /// Position in the chain.
        index: usize,
    },
    /// A certificate after the leaf may not sign.
    #[error("certificate {index} of the chain lacks keyCertSign")]
    IssuerWithoutCertSign {
        /// Position in the chain.
        index: usize,
    },
    /// An issuer's SPIFFE ID is unusable.
    #[error("an issuer has several URI SANs or an invalid SPIFFE ID")]
    IssuerSpiffeIdInvalid,
    /// X509-SVID 3.2.
    #[error("an issuer's SPIFFE ID has a path")]
    IssuerSpiffeIdWithPath,
    /// X509-SVID 3.2, as a must.
    #[error("an issuer's SPIFFE ID is of another trust domain")]
    IssuerOfOtherTrustDomain,
    /// An issuer is outside its validity.
    #[error("an issuer in the chain has expired or is not yet valid")]
    IssuerExpired,
    /// The anchor is outside its validity, which webpki would not notice.
    #[error("the trust anchor has expired")]
    AnchorExpired,
    /// No way to an anchor of the leaf's trust domain.
    #[error("the chain ends at no trust anchor of its trust domain")]
    Untrusted,
    /// A signature in the chain is wrong.
    #[error("a signature in the chain is wrong")]
    BadSignature,
    /// SHA-1, small keys and the like.
    #[error("a signature in the chain is of a kind that is not accepted")]
    SignatureAlgorithm,
    /// RFC 5280 path length.
    #[error("the chain is longer than an issuer allows")]
    PathLength,
    /// RFC 5280 name constraints; webpki refuses every URI constraint.
    #[error("a name constraint is violated or of a kind that is not supported")]
    NameConstraint,
    /// RFC 5280.
    #[error("a certificate has an unknown critical extension")]
    UnknownCriticalExtension,
    /// An issuer's extended key usage, if any, has serverAuth and clientAuth.
    #[error("an issuer's extended key usage lacks serverAuth or clientAuth")]
    IssuerExtendedKeyUsage,
    /// Anything else that path building refuses.
    #[error("the chain is not valid")]
    Path,
}

impl Violation {
    /// A short, stable name for metrics and flow records.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::TooManyCertificates { .. } => "too_many_certificates",
            Self::ChainTooLarge { .. } => "chain_too_large",
            Self::Malformed { .. } => "malformed",
            Self::DuplicateExtension => "duplicate_extension",
            Self::NoUriSan => "no_uri_san",
            Self::SeveralUriSans => "several_uri_sans",
            Self::SpiffeIdTooLong => "spiffe_id_too_long",
            Self::SpiffeIdInvalid => "spiffe_id_invalid",
            Self::SpiffeIdNotCanonical => "spiffe_id_not_canonical",
            Self::SpiffeIdWithoutPath => "spiffe_id_without_path",
            Self::BasicConstraintsMissing => "basic_constraints_missing",
            Self::LeafIsCa => "leaf_is_ca",
            Self::KeyUsageMissing => "key_usage_missing",
            Self::KeyUsageNotCritical => "key_usage_not_critical",
            Self::DigitalSignatureMissing => "digital_signature_missing",
            Self::LeafWithCertSign => "leaf_with_cert_sign",
            Self::LeafWithCrlSign => "leaf_with_crl_sign",
            Self::ExtendedKeyUsageIncomplete => "extended_key_usage_incomplete",
            Self::SanNotCritical => "san_not_critical",
            Self::KeyTypeNotAllowed => "key_type_not_allowed",
            Self::LifetimeTooLong { .. } => "lifetime_too_long",
            Self::NotYetValid => "not_yet_valid",
            Self::Expired => "expired",
            Self::UnexpectedPeer { .. } => "unexpected_peer",
            Self::UnknownTrustDomain { .. } => "unknown_trust_domain",
            Self::IssuerNotCa { .. } => "issuer_not_ca",
            Self::IssuerWithoutCertSign { .. } => "issuer_without_cert_sign",
            Self::IssuerSpiffeIdInvalid => "issuer_spiffe_id_invalid",
            Self::IssuerSpiffeIdWithPath => "issuer_spiffe_id_with_path",
            Self::IssuerOfOtherTrustDomain => "issuer_of_other_trust_domain",
            Self::IssuerExpired => "issuer_expired",
            Self::AnchorExpired => "anchor_expired",
            Self::Untrusted => "untrusted",
            Self::BadSignature => "bad_signature",
            Self::SignatureAlgorithm => "signature_algorithm",
            Self::PathLength => "path_length",
            Self::NameConstraint => "name_constraint",
            Self::UnknownCriticalExtension => "unknown_critical_extension",
            Self::IssuerExtendedKeyUsage => "issuer_extended_key_usage",
            Self::Path => "path",
        }
    }

    /// The clause that is violated.
    pub fn clause(&self) -> &'static str {
        match self {
            Self::NoCertificate | Self::TooManyCertificates { .. } | Self::ChainTooLarge { .. } => {
                "authd: size"
            }
            Self::Malformed { .. } | Self::DuplicateExtension => "RFC 5280, 4.1",
            Self::NoUriSan | Self::SeveralUriSans => "X509-SVID, 2",
            Self::SpiffeIdTooLong => "SPIFFE-ID, 2.3",
            Self::SpiffeIdInvalid => "SPIFFE-ID, 2",
            Self::SpiffeIdNotCanonical => "authd: SPIFFE ID",
            Self::SpiffeIdWithoutPath => "X509-SVID, 5.2",
            Self::BasicConstraintsMissing | Self::LeafIsCa => "X509-SVID, 4.1",
            Self::KeyUsageMissing
            | Self::KeyUsageNotCritical
            | Self::DigitalSignatureMissing
            | Self::LeafWithCertSign
            | Self::LeafWithCrlSign => "X509-SVID, 4.3",
            Self::ExtendedKeyUsageIncomplete | Self::IssuerExtendedKeyUsage => "X509-SVID, 4.4",
            Self::SanNotCritical => "X509-SVID, 3.1",
            Self::KeyTypeNotAllowed => "authd: key types",
            Self::LifetimeTooLong { .. } => "authd: lifetime",
            Self::NotYetValid | Self::Expired | Self::IssuerExpired | Self::AnchorExpired => {
                "RFC 5280, 6.1.3"
            }
            Self::UnexpectedPeer { .. } => "authd: expected peer",
            Self::UnknownTrustDomain { .. } => "Workload API, 4.6",
            Self::IssuerNotCa { .. }
            | Self::IssuerWithoutCertSign { .. }
            | Self::IssuerSpiffeIdInvalid
            | Self::IssuerSpiffeIdWithPath
            | Self::IssuerOfOtherTrustDomain => "X509-SVID, 3.2",
            Self::NameConstraint => "X509-SVID, 4.2",
            Self::Untrusted
            | Self::BadSignature
            | Self::SignatureAlgorithm
            | Self::PathLength
            | Self::UnknownCriticalExtension
            | Self::Path => "RFC 5280, 6.1",
        }
    }

    /// What to do about it.
    pub fn way_out(&self) -> &'static str {
        match self {
            Self::NoCertificate => "have the peer present its SVID",
            Self::TooManyCertificates { .. } | Self::ChainTooLarge { .. } | Self::PathLength => {
                "have fewer issuers between the leaf and the anchor"
            }
            Self::Malformed { .. }
            | Self::DuplicateExtension
            | Self::NoUriSan
            | Self::SeveralUriSans
            | Self::SpiffeIdTooLong
            | Self::SpiffeIdInvalid
            | Self::SpiffeIdNotCanonical
            | Self::SpiffeIdWithoutPath
            | Self::BasicConstraintsMissing
            | Self::LeafIsCa
            | Self::KeyUsageMissing
            | Self::KeyUsageNotCritical
            | Self::DigitalSignatureMissing
            | Self::LeafWithCertSign
            | Self::LeafWithCrlSign
            | Self::ExtendedKeyUsageIncomplete
            | Self::SanNotCritical => {
                "SPIRE issues no such leaf: find out who has issued it, and register the workload with SPIRE"
            }
            Self::KeyTypeNotAllowed | Self::SignatureAlgorithm => {
                "set `workload_x509_svid_key_type` of the agents and `ca_key_type` of the server to EC or RSA of 2048 \
                 bits or more"
            }
            Self::LifetimeTooLong { .. } => {
                "shorten the server's `default_x509_svid_ttl`, or the entry's own TTL"
            }
            Self::NotYetValid => "compare the clocks of the machine that issued it and of this one",
            Self::Expired => {
                "its agent renews it at half of its lifetime: `authctl svid list` there says what it lacks for that"
            }
            Self::UnexpectedPeer { .. } => "find out who answers at that address, and why",
            Self::UnknownTrustDomain { .. } => {
                "if it is to be trusted, let the server fetch its bundle and the entry federate with it \
                 (`-federatesWith`)"
            }
            Self::IssuerExpired | Self::AnchorExpired => {
                "have the server prepare and activate another CA (`spire-server localauthority x509`), or renew its \
                 upstream authority"
            }
            Self::Untrusted | Self::BadSignature => {
                "compare its issuer with `authctl bundle list`: an anchor that is missing there is another trust \
                 domain's, was revoked, or has not come yet"
            }
            Self::NameConstraint => {
                "take URI name constraints off the issuer: even satisfied ones are not supported"
            }
            Self::IssuerNotCa { .. }
            | Self::IssuerWithoutCertSign { .. }
            | Self::IssuerSpiffeIdInvalid
            | Self::IssuerSpiffeIdWithPath
            | Self::IssuerOfOtherTrustDomain
            | Self::IssuerExtendedKeyUsage
            | Self::UnknownCriticalExtension
            | Self::Path => "have the server's upstream authority issue the CA as the clause says",
        }
    }
}
