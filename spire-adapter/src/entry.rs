//! Registration entries, by the Entry API of SPIRE server.
//!
//! A batch is not atomic and its statuses are per entry, so every outcome is reported; requests go out in
//! batches of 200, lists come back in pages.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::proto::{self, SelectorParts, SpiffeIdParts};
use crate::server::{Server, ServerAddress};
use crate::{ApiError, SpiffeId, TrustDomain};

pub(crate) const BATCH: usize = 200;
const PAGE: i32 = 500;
const OK: i32 = 0;
const NOT_FOUND: i32 = 5;
const ALREADY_EXISTS: i32 = 6;
/// The fields that [`Entry`] has.
pub(crate) const FIELDS: proto::entry::EntryMask = proto::entry::EntryMask {
    spiffe_id: true,
    parent_id: true,
    selectors: true,
    x509_svid_ttl: true,
    federates_with: true,
    admin: true,
    downstream: true,
    expires_at: true,
    dns_names: true,
    store_svid: true,
    hint: true,
};

/// One property of a workload, such as `unix:uid:1000`: `kind` is what stands before the first colon.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// Who attests it.
    pub kind: String,
    /// What is attested.
    pub value: String,
}

impl Selector {
    /// A selector of `kind` with `value`.
    pub fn new(kind: impl Into<String>, value: impl Into<String>) -> Self {
        Self { kind: kind.into(), value: value.into() }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

/// A registration: the agent `parent_id` may obtain `spiffe_id` for workloads that have all `selectors`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Given by the server when empty.
    pub id: String,
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// The agent.
    pub parent_id: SpiffeId,
    /// What a workload must have.
    pub selectors: BTreeSet<Selector>,
    /// Lifetime of its SVIDs; the server's default if none.
    pub svid_ttl: Option<Duration>,
    /// Foreign trust domains whose bundles it gets.
    pub federates_with: BTreeSet<TrustDomain>,
    /// Free text that the server stores.
    pub hint: String,
    /// Its holder may do anything at the server.
    pub admin: bool,
    /// Its holder may have CA certificates signed.
    pub downstream: bool,
    /// Its SVIDs go to a store and to no workload.
    pub store_svid: bool,
    /// DNS names in its SVIDs.
    pub dns_names: BTreeSet<String>,
    /// Until when the server keeps it, in seconds since 1970; 0 for good.
    pub expires_at: i64,
}

impl Entry {
    /// A registration with the server's defaults.
    pub fn new(
        parent_id: SpiffeId,
        spiffe_id: SpiffeId,
        selectors: impl IntoIterator<Item = Selector>,
    ) -> Self {
        Self {
            id: String::new(),
            spiffe_id,
            parent_id,
            selectors: selectors.into_iter().collect(),
            svid_ttl: None,
            federates_with: BTreeSet::new(),
            hint: String::new(),
            admin: false,
            downstream: false,
            store_svid: false,
            dns_names: BTreeSet::new(),
            expires_at: 0,
        }
    }
}

/// What became of one entry of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Created, with the ID that the server gave it.
    Created(Entry),
    /// One with the same parent, SPIFFE ID and selectors exists already: this one.
    Exists(Entry),
    /// Changed in place; as it is now.
    Updated(Entry),
    /// Deleted; its ID.
    Deleted(String),
    /// There was none with this ID.
    NotFound(String),
    /// Refused by the server.
    Failed {
        /// The gRPC status code of this entry.
        code: i32,
        /// What the server said.
        message: String,
    },
}

/// A client of the Entry API.
#[derive(Debug, Clone)]
pub struct EntryClient(Server);

impl EntryClient {
    /// A client for the server's socket at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::at(ServerAddress::Socket(path.into()))
    }

    /// A client for the server at `address`.
    pub fn at(address: ServerAddress) -> Self {
        Self(Server::new(address, proto::entry::SERVICE))
    }

    /// Creates entries; outcomes come in their order. After an error some may exist: list and compare.
    pub async fn create(&self, entries: &[Entry]) -> Result<Vec<Outcome>, ApiError> {
        let mut outcomes = Vec::with_capacity(entries.len());
        for batch in entries.chunks(BATCH) {
            let request = proto::entry::CreateRequest { entries: batch.iter().map(to_message).collect() };
            let response: proto::entry::BatchResponse = self.0.unary(proto::entry::CREATE, request).await?;
            self.check_count(batch.len(), response.results.len())?;
            for result in response.results {
                outcomes.push(self.created(result)?);
            }
        }
        Ok(outcomes)
    }

    /// Changes entries in place, by their IDs; outcomes come in their order. The server's other fields of an
    /// entry stay. Never delete and create instead: the SVID would be missing meanwhile.
    pub async fn update(&self, entries: &[Entry]) -> Result<Vec<Outcome>, ApiError> {
        let mut outcomes = Vec::with_capacity(entries.len());
        for batch in entries.chunks(BATCH) {
            let messages = batch.iter().map(to_message).collect();
            let request = proto::entry::UpdateRequest { entries: messages, input_mask: Some(FIELDS) };
            let response: proto::entry::BatchResponse = self.0.unary(proto::entry::UPDATE, request).await?;
            self.check_count(batch.len(), response.results.len())?;
            for (entry, result) in batch.iter().zip(response.results) {
                outcomes.push(self.updated(&entry.id, result)?);
            }
        }
        Ok(outcomes)
    }

    /// Deletes entries by ID; outcomes come in their order.
    pub async fn delete(&self, ids: &[String]) -> Result<Vec<Outcome>, ApiError> {
        let mut outcomes = Vec::with_capacity(ids.len());
        for batch in ids.chunks(BATCH) {
            let request = proto::entry::DeleteRequest { ids: batch.to_vec() };
            let response: proto::entry::DeleteResponse = self.0.unary(proto::entry::DELETE, request).await?;
            self.check_count(batch.len(), response.results.len())?;
            outcomes.extend(response.results.into_iter().map(deleted));
        }
        Ok(outcomes)
    }

    /// Every entry, page by page; with `parent` only that agent's.
    pub async fn list(&self, parent: Option<&SpiffeId>) -> Result<Vec<Entry>, ApiError> {
        let filter = parent.map(|parent| proto::entry::Filter {
            by_spiffe_id: None,
            by_parent_id: Some(SpiffeIdParts::from(parent)),
        });
        let mut entries = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = proto::entry::ListRequest {
                filter: filter.clone(),
                output_mask: None,
                page_size: PAGE,
                page_token,
            };
            let response: proto::entry::ListResponse = self.0.unary(proto::entry::LIST, request).await?;
            for entry in response.entries {
                entries.push(self.parse(entry)?);
            }
            if response.next_page_token.is_empty() {
                return Ok(entries);
            }
            page_token = response.next_page_token;
        }
    }

    fn check_count(&self, sent: usize, received: usize) -> Result<(), ApiError> {
        if sent == received {
            return Ok(());
        }
        Err(self.0.unusable(format!("{received} results for {sent} entries")))
    }

    fn created(&self, result: proto::entry::EntryResult) -> Result<Outcome, ApiError> {
        let status = result.status.unwrap_or_default();
        match (status.code, result.entry) {
            (OK, Some(entry)) => Ok(Outcome::Created(self.parse(entry)?)),
            (ALREADY_EXISTS, Some(entry)) => Ok(Outcome::Exists(self.parse(entry)?)),
            (code, _) => Ok(Outcome::Failed { code, message: status.message }),
        }
    }

    fn updated(&self, id: &str, result: proto::entry::EntryResult) -> Result<Outcome, ApiError> {
        let status = result.status.unwrap_or_default();
        match (status.code, result.entry) {
            (OK, Some(entry)) => Ok(Outcome::Updated(self.parse(entry)?)),
            (NOT_FOUND, _) => Ok(Outcome::NotFound(id.to_owned())),
            (code, _) => Ok(Outcome::Failed { code, message: status.message }),
        }
    }

    fn parse(&self, message: proto::entry::Entry) -> Result<Entry, ApiError> {
        from_message(message).map_err(|reason| self.0.unusable(reason))
    }

    /// What this client talks to: a socket's path, or a host and port.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

fn deleted(result: proto::entry::DeleteResult) -> Outcome {
    let status = result.status.unwrap_or_default();
    match status.code {
        OK => Outcome::Deleted(result.id),
        NOT_FOUND => Outcome::NotFound(result.id),
        code => Outcome::Failed { code, message: status.message },
    }
}

pub(crate) fn to_message(entry: &Entry) -> proto::entry::Entry {
    let ttl = entry.svid_ttl.map_or(0, |ttl| ttl.as_secs());
    proto::entry::Entry {
        id: entry.id.clone(),
        spiffe_id: Some(SpiffeIdParts::from(&entry.spiffe_id)),
        parent_id: Some(SpiffeIdParts::from(&entry.parent_id)),
        selectors: entry.selectors.iter().map(SelectorParts::from).collect(),
        x509_svid_ttl: i32::try_from(ttl).unwrap_or(i32::MAX),
        federates_with: entry.federates_with.iter().map(ToString::to_string).collect(),
        hint: entry.hint.clone(),
        admin: entry.admin,
        downstream: entry.downstream,
        store_svid: entry.store_svid,
        dns_names: entry.dns_names.iter().cloned().collect(),
        expires_at: entry.expires_at,
        ..proto::entry::Entry::default()
    }
}

pub(crate) fn from_message(message: proto::entry::Entry) -> Result<Entry, String> {
    let id = |parts: Option<SpiffeIdParts>, field: &str| {
        parts.and_then(|parts| parts.to_id()).ok_or_else(|| format!("entry {}: bad {field}", message.id))
    };
    let spiffe_id = id(message.spiffe_id, "spiffe_id")?;
    let parent_id = id(message.parent_id, "parent_id")?;
    let federates_with = message
        .federates_with
        .iter()
        .map(TrustDomain::new)
        .collect::<Result<BTreeSet<_>, _>>()
        .map_err(|error| format!("entry {}: bad federates_with: {error}", message.id))?;
    let ttl = u64::try_from(message.x509_svid_ttl).unwrap_or(0);
    Ok(Entry {
        spiffe_id,
        parent_id,
        selectors: message.selectors.into_iter().map(Selector::from).collect(),
        svid_ttl: (ttl > 0).then(|| Duration::from_secs(ttl)),
        federates_with,
        hint: message.hint,
        admin: message.admin,
        downstream: message.downstream,
        store_svid: message.store_svid,
        dns_names: message.dns_names.into_iter().collect(),
        expires_at: message.expires_at,
        id: message.id,
    })
}
