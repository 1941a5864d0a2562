//! SPIRE server's Entry API: list, create, update, delete. Statuses are per entry, as SPIRE gives them.

use std::sync::Arc;

use tonic::body::Body;
use tonic::{Code, Status};

use super::grpc::{self, Api};
use super::world::{Refusal, World};
use crate::entry::{FIELDS, from_message, to_message};
use crate::proto;
use crate::proto::entry::{
    BatchResponse, CREATE, CreateRequest, DELETE, DeleteRequest, DeleteResponse, DeleteResult, EntryMask,
    EntryResult, LIST, ListRequest, ListResponse, SERVICE, UPDATE, UpdateRequest,
};
use crate::{Entry, SpiffeId};

#[derive(Debug)]
pub(crate) struct EntryApi {
    world: Arc<World>,
}

impl EntryApi {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    /// Pages are ordered by entry ID; the token is the last one of the page before.
    fn list(&self, request: &ListRequest) -> Result<ListResponse, Status> {
        let filter = request.filter.clone().unwrap_or_default();
        let wanted = |parts: Option<proto::SpiffeIdParts>| match parts {
            Some(parts) => {
                let invalid = || Status::invalid_argument("malformed filter");
                parts.to_id().map(Some).ok_or_else(invalid)
            }
            None => Ok(None),
        };
        let (by_id, by_parent) = (wanted(filter.by_spiffe_id)?, wanted(filter.by_parent_id)?);
        let fits =
            |wanted: &Option<SpiffeId>, id: &SpiffeId| wanted.as_ref().is_none_or(|wanted| wanted == id);
        let state = self.world.now();
        let mut rest = state
            .entries
            .values()
            .filter(|entry| fits(&by_id, &entry.spiffe_id) && fits(&by_parent, &entry.parent_id))
            .filter(|entry| request.page_token.is_empty() || entry.id > request.page_token);
        let page = usize::try_from(request.page_size).ok().filter(|size| *size > 0).unwrap_or(usize::MAX);
        let entries: Vec<_> = rest.by_ref().take(page).map(to_message).collect();
        let more = rest.next().is_some();
        let next_page_token =
            entries.last().filter(|_| more).map(|entry| entry.id.clone()).unwrap_or_default();
        Ok(ListResponse { entries, next_page_token })
    }

    fn create(&self, request: CreateRequest) -> BatchResponse {
        let results = request
            .entries
            .into_iter()
            .map(|message| {
                result(
                    from_message(message)
                        .map_err(Refusal::Invalid)
                        .and_then(|entry| self.world.create(entry)),
                )
            })
            .collect();
        BatchResponse { results }
    }

    fn update(&self, request: UpdateRequest) -> BatchResponse {
        let mask = request.input_mask.unwrap_or(FIELDS);
        let results =
            request.entries.into_iter().map(|message| result(self.update_one(message, mask))).collect();
        BatchResponse { results }
    }

    fn update_one(&self, mut message: proto::entry::Entry, mask: EntryMask) -> Result<Entry, Refusal> {
        let current = self.world.now().entries.get(&message.id).cloned().ok_or(Refusal::NotFound)?;
        let current = to_message(&current);
        // Fields outside the mask may be missing from the request.
        if !mask.spiffe_id {
            message.spiffe_id = current.spiffe_id;
        }
        if !mask.parent_id {
            message.parent_id = current.parent_id;
        }
        if !mask.selectors {
            message.selectors = current.selectors;
        }
        if !mask.x509_svid_ttl {
            message.x509_svid_ttl = current.x509_svid_ttl;
        }
        if !mask.federates_with {
            message.federates_with = current.federates_with;
        }
        if !mask.admin {
            message.admin = current.admin;
        }
        if !mask.downstream {
            message.downstream = current.downstream;
        }
        if !mask.expires_at {
            message.expires_at = current.expires_at;
        }
        if !mask.dns_names {
            message.dns_names = current.dns_names;
        }
        if !mask.store_svid {
            message.store_svid = current.store_svid;
        }
        if !mask.hint {
            message.hint = current.hint;
        }
        let next = from_message(message).map_err(Refusal::Invalid)?;
        let id = next.id.clone();
        self.world.update(&id, |entry| *entry = next)
    }

    fn delete(&self, request: DeleteRequest) -> DeleteResponse {
        let results = request
            .ids
            .into_iter()
            .map(|id| {
                let status = match self.world.delete(&id) {
                    Ok(()) => status(Code::Ok, ""),
                    Err(_) if id.is_empty() => status(Code::InvalidArgument, "missing entry ID"),
                    Err(_) => status(Code::NotFound, "entry not found"),
                };
                DeleteResult { status: Some(status), id }
            })
            .collect();
        DeleteResponse { results }
    }
}

impl Api for EntryApi {
    const NAME: &'static str = SERVICE;

    async fn route(self: Arc<Self>, request: http::Request<Body>) -> http::Response<Body> {
        match request.uri().path() {
            LIST => grpc::unary(request, |request| self.list(request.get_ref())).await,
            CREATE => grpc::unary(request, |request| Ok(self.create(request.into_inner()))).await,
            UPDATE => grpc::unary(request, |request| Ok(self.update(request.into_inner()))).await,
            DELETE => grpc::unary(request, |request| Ok(self.delete(request.into_inner()))).await,
            _ => grpc::unimplemented(),
        }
    }
}

fn result(result: Result<Entry, Refusal>) -> EntryResult {
    let (status, entry) = match result {
        Ok(entry) => (status(Code::Ok, ""), Some(entry)),
        Err(Refusal::Exists(entry)) => {
            (status(Code::AlreadyExists, "similar entry already exists"), Some(*entry))
        }
        Err(Refusal::Invalid(reason)) => (status(Code::InvalidArgument, &reason), None),
        Err(Refusal::NotFound) => (status(Code::NotFound, "failed to update entry"), None),
        Err(Refusal::NoFederatedBundle) => (status(Code::Internal, "unable to find federated bundle"), None),
    };
    EntryResult { status: Some(status), entry: entry.as_ref().map(to_message) }
}

fn status(code: Code, message: &str) -> proto::Status {
    proto::Status { code: code as i32, message: message.to_owned() }
}
