//! `spiffe.broker.API`, the X.509 part, for processes of this node. Its answers are those of the Workload API.

pub(crate) const SERVICE: &str = "spiffe.broker.API";
pub(crate) const SUBSCRIBE_TO_X509_SVID: &str = "/spiffe.broker.API/SubscribeToX509SVID";
/// Metadata that every call must carry, with the value `true`.
pub(crate) const SECURITY_HEADER: &str = "broker.spiffe.io";
/// Type of a reference to a process.
pub(crate) const PID_REFERENCE: &str = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct SvidRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) reference: Option<Reference>,
}

/// `spiffe.broker.WorkloadReference`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Reference {
    #[prost(message, optional, tag = "1")]
    pub(crate) reference: Option<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Any {
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) value: Vec<u8>,
}

/// `spiffe.broker.WorkloadPIDReference`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct Pid {
    #[prost(int32, tag = "1")]
    pub(crate) pid: i32,
}
