//! `spire.api.server.entry.v1.Entry`: create, update, delete, list, get.

use super::{SelectorParts, SpiffeIdParts, Status};

pub(crate) const SERVICE: &str = "spire.api.server.entry.v1.Entry";
pub(crate) const LIST: &str = "/spire.api.server.entry.v1.Entry/ListEntries";
pub(crate) const CREATE: &str = "/spire.api.server.entry.v1.Entry/BatchCreateEntry";
pub(crate) const UPDATE: &str = "/spire.api.server.entry.v1.Entry/BatchUpdateEntry";
pub(crate) const DELETE: &str = "/spire.api.server.entry.v1.Entry/BatchDeleteEntry";

/// `spire.api.types.Entry`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Entry {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) spiffe_id: Option<SpiffeIdParts>,
    #[prost(message, optional, tag = "3")]
    pub(crate) parent_id: Option<SpiffeIdParts>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) selectors: Vec<SelectorParts>,
    #[prost(int32, tag = "5")]
    pub(crate) x509_svid_ttl: i32,
    #[prost(string, repeated, tag = "6")]
    pub(crate) federates_with: Vec<String>,
    #[prost(bool, tag = "7")]
    pub(crate) admin: bool,
    #[prost(bool, tag = "8")]
    pub(crate) downstream: bool,
    #[prost(int64, tag = "9")]
    pub(crate) expires_at: i64,
    #[prost(string, repeated, tag = "10")]
    pub(crate) dns_names: Vec<String>,
    #[prost(int64, tag = "11")]
    pub(crate) revision_number: i64,
    #[prost(bool, tag = "12")]
    pub(crate) store_svid: bool,
    #[prost(int32, tag = "13")]
    pub(crate) jwt_svid_ttl: i32,
    #[prost(string, tag = "14")]
    pub(crate) hint: String,
    #[prost(int64, tag = "15")]
    pub(crate) created_at: i64,
}

/// `spire.api.types.EntryMask`: the numbers are those of [`Entry`].
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct EntryMask {
    #[prost(bool, tag = "2")]
    pub(crate) spiffe_id: bool,
    #[prost(bool, tag = "3")]
    pub(crate) parent_id: bool,
    #[prost(bool, tag = "4")]
    pub(crate) selectors: bool,
    #[prost(bool, tag = "5")]
    pub(crate) x509_svid_ttl: bool,
    #[prost(bool, tag = "6")]
    pub(crate) federates_with: bool,
    #[prost(bool, tag = "7")]
    pub(crate) admin: bool,
    #[prost(bool, tag = "8")]
    pub(crate) downstream: bool,
    #[prost(bool, tag = "9")]
    pub(crate) expires_at: bool,
    #[prost(bool, tag = "10")]
    pub(crate) dns_names: bool,
    #[prost(bool, tag = "12")]
    pub(crate) store_svid: bool,
    #[prost(bool, tag = "14")]
    pub(crate) hint: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ListRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) filter: Option<Filter>,
    #[prost(message, optional, tag = "2")]
    pub(crate) output_mask: Option<EntryMask>,
    #[prost(int32, tag = "3")]
    pub(crate) page_size: i32,
    #[prost(string, tag = "4")]
    pub(crate) page_token: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Filter {
    #[prost(message, optional, tag = "1")]
    pub(crate) by_spiffe_id: Option<SpiffeIdParts>,
    #[prost(message, optional, tag = "2")]
    pub(crate) by_parent_id: Option<SpiffeIdParts>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) entries: Vec<Entry>,
    #[prost(string, tag = "2")]
    pub(crate) next_page_token: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct CreateRequest {
    #[prost(message, repeated, tag = "1")]
    pub(crate) entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct UpdateRequest {
    #[prost(message, repeated, tag = "1")]
    pub(crate) entries: Vec<Entry>,
    #[prost(message, optional, tag = "2")]
    pub(crate) input_mask: Option<EntryMask>,
}

/// The result of one entry of a batch that creates or updates.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct EntryResult {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<Status>,
    #[prost(message, optional, tag = "2")]
    pub(crate) entry: Option<Entry>,
}

/// The response to both creating and updating.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct BatchResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) results: Vec<EntryResult>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct DeleteRequest {
    #[prost(string, repeated, tag = "1")]
    pub(crate) ids: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct DeleteResult {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<Status>,
    #[prost(string, tag = "2")]
    pub(crate) id: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct DeleteResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) results: Vec<DeleteResult>,
}
