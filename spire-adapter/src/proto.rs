//! Messages of the SPIFFE Workload API and of SPIRE's APIs, written by hand with the field numbers of the
//! published .proto files and only the parts that are used.
//!
//! Messages that carry private keys show none in `Debug` and zeroize them when dropped.

pub(crate) mod agent;
pub(crate) mod broker;
pub(crate) mod delegated;
pub(crate) mod entry;
pub(crate) mod workload;

/// `spire.api.types.SPIFFEID`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct SpiffeIdParts {
    #[prost(string, tag = "1")]
    pub(crate) trust_domain: String,
    #[prost(string, tag = "2")]
    pub(crate) path: String,
}

impl From<&crate::SpiffeId> for SpiffeIdParts {
    fn from(id: &crate::SpiffeId) -> Self {
        Self { trust_domain: id.trust_domain().to_string(), path: id.path().to_owned() }
    }
}

impl SpiffeIdParts {
    /// The SPIFFE ID, if the parts make one.
    pub(crate) fn to_id(&self) -> Option<crate::SpiffeId> {
        crate::SpiffeId::new(format!("spiffe://{}{}", self.trust_domain, self.path)).ok()
    }
}

/// `spire.api.types.Selector`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct SelectorParts {
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    #[prost(string, tag = "2")]
    pub(crate) value: String,
}

impl From<&crate::Selector> for SelectorParts {
    fn from(selector: &crate::Selector) -> Self {
        Self { kind: selector.kind.clone(), value: selector.value.clone() }
    }
}

impl From<SelectorParts> for crate::Selector {
    fn from(parts: SelectorParts) -> Self {
        Self { kind: parts.kind, value: parts.value }
    }
}

/// `spire.api.types.Status`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Status {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}
