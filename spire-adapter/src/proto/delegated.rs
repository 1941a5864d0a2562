//! `spire.api.agent.delegatedidentity.v1.DelegatedIdentity`, the X.509 part.

use std::collections::BTreeMap;
use std::fmt;

use zeroize::Zeroize;

use super::{SelectorParts, SpiffeIdParts};

pub(crate) const SERVICE: &str = "spire.api.agent.delegatedidentity.v1.DelegatedIdentity";
pub(crate) const SUBSCRIBE_TO_X509_SVIDS: &str =
    "/spire.api.agent.delegatedidentity.v1.DelegatedIdentity/SubscribeToX509SVIDs";
pub(crate) const SUBSCRIBE_TO_X509_BUNDLES: &str =
    "/spire.api.agent.delegatedidentity.v1.DelegatedIdentity/SubscribeToX509Bundles";

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct SvidsRequest {
    #[prost(message, repeated, tag = "1")]
    pub(crate) selectors: Vec<SelectorParts>,
    #[prost(int32, tag = "2")]
    pub(crate) pid: i32,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct SvidsResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) x509_svids: Vec<SvidWithKey>,
    #[prost(string, repeated, tag = "2")]
    pub(crate) federates_with: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct SvidWithKey {
    #[prost(message, optional, tag = "1")]
    pub(crate) x509_svid: Option<X509Svid>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) x509_svid_key: Vec<u8>,
}

impl fmt::Debug for SvidWithKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidWithKey").field("x509_svid", &self.x509_svid).finish_non_exhaustive()
    }
}

impl Drop for SvidWithKey {
    fn drop(&mut self) {
        self.x509_svid_key.zeroize();
    }
}

/// `spire.api.types.X509SVID`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct X509Svid {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(crate) cert_chain: Vec<Vec<u8>>,
    #[prost(message, optional, tag = "2")]
    pub(crate) id: Option<SpiffeIdParts>,
    #[prost(int64, tag = "3")]
    pub(crate) expires_at: i64,
    #[prost(string, tag = "4")]
    pub(crate) hint: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct BundlesRequest {}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct BundlesResponse {
    #[prost(btree_map = "string, bytes", tag = "1")]
    pub(crate) ca_certificates: BTreeMap<String, Vec<u8>>,
}
