//! Trust bundles: one per trust domain, never pooled. A peer is verified with the anchors of the trust domain
//! that its own SPIFFE ID names and with no others.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, TrustAnchor};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::der::{self, Bounds};
use crate::verify::issuer;
use crate::verify::met::Met;
use crate::{Error, TrustDomain, Violation, svid};

/// Largest bundle that is taken from an agent; fast rotation makes them grow.
const BOUNDS: Bounds = Bounds { certificates: 512, bytes: 1 << 20 };

/// The trust anchors of one trust domain. Cheap to clone.
#[derive(Clone)]
pub struct Bundle {
    trust_domain: TrustDomain,
    authorities: Arc<[Authority]>,
    /// Shared by its clones alone.
    met: Arc<Met>,
}

/// One trust anchor, with what webpki would not look at.
#[derive(PartialEq, Eq)]
pub(crate) struct Authority {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) anchor: TrustAnchor<'static>,
    pub(crate) subject: Vec<u8>,
    pub(crate) not_after: SystemTime,
    /// Set if its own SPIFFE ID forbids it to issue for this trust domain.
    pub(crate) violation: Option<Violation>,
}

impl Bundle {
    /// Reads concatenated DER certificates as the anchors of `trust_domain`. One unusable certificate makes the
    /// whole bundle unusable: half a bundle would refuse peers for no visible reason.
    pub fn from_der(trust_domain: TrustDomain, der: &[u8]) -> Result<Self, Error> {
        let object = format!("bundle of {trust_domain}");
        let certificates = der::split(der, BOUNDS, &object)?;
        let authorities = certificates
            .into_iter()
            .enumerate()
            .map(|(index, certificate)| {
                Authority::new(&trust_domain, certificate).map_err(|reason| Error::Anchor {
                    object: object.clone(),
                    index,
                    reason,
                })
            })
            .collect::<Result<Arc<[_]>, _>>()?;
        Ok(Self { trust_domain, authorities, met: Arc::default() })
    }

    /// The trust domain that these anchors vouch for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The anchors' certificates.
    pub fn certificates(&self) -> impl ExactSizeIterator<Item = &CertificateDer<'static>> {
        self.authorities.iter().map(|authority| &authority.der)
    }

    /// SHA-256 of each anchor's DER, in the order of [`Bundle::certificates`].
    pub fn fingerprints(&self) -> impl ExactSizeIterator<Item = [u8; 32]> {
        self.certificates().map(svid::hash)
    }

    /// When each anchor expires, in the order of [`Bundle::certificates`].
    pub fn expiries(&self) -> impl ExactSizeIterator<Item = SystemTime> {
        self.authorities.iter().map(|authority| authority.not_after)
    }

    pub(crate) fn authorities(&self) -> &[Authority] {
        &self.authorities
    }

    /// What it has vouched for.
    pub(crate) fn met(&self) -> &Met {
        &self.met
    }
}

/// The same anchors of the same trust domain.
impl PartialEq for Bundle {
    fn eq(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain && self.authorities == other.authorities
    }
}

impl Eq for Bundle {}

impl Authority {
    fn new(trust_domain: &TrustDomain, der: CertificateDer<'static>) -> Result<Self, String> {
        let anchor = webpki::anchor_from_trusted_cert(&der).map_err(|error| error.to_string())?.to_owned();
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
        let subject = parsed.subject().as_raw().to_vec();
        let not_after = der::system_time(parsed.validity().not_after);
        let violation = issuer::check_spiffe_id(&parsed, trust_domain).err();
        Ok(Self { anchor, subject, not_after, violation, der })
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bundle({}, {} anchors)", self.trust_domain, self.authorities.len())
    }
}

/// The bundles that may be used for one purpose, by trust domain. Cheap to clone.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Bundles(Arc<BTreeMap<TrustDomain, Bundle>>);

impl Bundles {
    /// No bundle: nobody can be verified.
    pub fn new() -> Self {
        Self::default()
    }

    /// The bundle of one trust domain.
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&Bundle> {
        self.0.get(trust_domain)
    }

    /// Every bundle, ordered by trust domain.
    pub fn iter(&self) -> impl Iterator<Item = &Bundle> {
        self.0.values()
    }

    /// How many trust domains can be verified.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody can be verified.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same bundles; each that `before` has too, with what it has vouched for.
    #[must_use]
    pub(crate) fn continuing(self, before: &Self) -> Self {
        let known =
            |bundle: &Bundle| before.get(&bundle.trust_domain).filter(|known| *known == bundle).cloned();
        self.iter().map(|bundle| known(bundle).unwrap_or_else(|| bundle.clone())).collect()
    }

    /// Whether an anchor of `before` is missing here although it is valid at `now`: somebody has taken its trust
    /// away. What it had vouched for may stand on nothing. An expired one vouches for nothing that is left.
    pub fn lack_anchor_of(&self, before: &Self, now: SystemTime) -> bool {
        before.iter().any(|bundle| {
            let here = self.get(&bundle.trust_domain).map_or(&[][..], Bundle::authorities);
            let missing = |authority: &&Authority| !here.iter().any(|one| one.der == authority.der);
            bundle.authorities().iter().filter(missing).any(|authority| now <= authority.not_after)
        })
    }
}

/// Of two bundles of the same trust domain the later one stays; they are never merged.
impl FromIterator<Bundle> for Bundles {
    fn from_iter<I: IntoIterator<Item = Bundle>>(bundles: I) -> Self {
        Self(Arc::new(bundles.into_iter().map(|bundle| (bundle.trust_domain.clone(), bundle)).collect()))
    }
}
