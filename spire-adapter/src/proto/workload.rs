//! `SpiffeWorkloadAPI`, the X.509 part.

use std::collections::BTreeMap;
use std::fmt;

use zeroize::Zeroize;

pub(crate) const SERVICE: &str = "SpiffeWorkloadAPI";
pub(crate) const FETCH_X509_SVID: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
pub(crate) const FETCH_X509_BUNDLES: &str = "/SpiffeWorkloadAPI/FetchX509Bundles";
/// Metadata that every call must carry, with the value `true`.
pub(crate) const SECURITY_HEADER: &str = "workload.spiffe.io";

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct X509SvidRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct X509SvidResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) svids: Vec<X509Svid>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(crate) crl: Vec<Vec<u8>>,
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub(crate) federated_bundles: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct X509Svid {
    #[prost(string, tag = "1")]
    pub(crate) spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(crate) hint: String,
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Svid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

impl Drop for X509Svid {
    fn drop(&mut self) {
        self.x509_svid_key.zeroize();
    }
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct X509BundlesRequest {}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct X509BundlesResponse {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(crate) crl: Vec<Vec<u8>>,
    #[prost(btree_map = "string, bytes", tag = "2")]
    pub(crate) bundles: BTreeMap<String, Vec<u8>>,
}
