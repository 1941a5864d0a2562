//! Answers of the gRPC interface, out of the daemon's parts.

mod conditions;
mod encryption;
mod explain;
mod status;
mod svids;

use std::{sync::Arc, time::SystemTime};

use auth_ebpf::Maps;
use auth_ebpf_abi::Setting;
use tokio::sync::watch;

use crate::{
    api::{Caller, Flows as Subscription, Source, SourceError, v1},
    auth::{Event, Handle, Record},
    clock::{BootTime, Clock},
    cluster::Cluster,
    config::Config,
    datapath::View,
    encryption::Found,
    flows::{Flows, to_timestamp, wall_time},
    peer::{Naming, Peers, SessionMap},
    readiness::Readiness,
    svids::Svids,
    trace::{self, Question},
};

/// The daemon's parts, as far as people may look at them.
pub(super) struct DaemonSource {
    pub(super) started: SystemTime,
    pub(super) config: Arc<Config>,
    pub(super) naming: Naming,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) maps: Maps,
    pub(super) readiness: Readiness,
    pub(super) cluster: watch::Receiver<Arc<Cluster>>,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) sessions: watch::Receiver<SessionMap>,
    pub(super) peers: Peers,
    pub(super) found: watch::Receiver<Arc<Found>>,
    pub(super) svids: Svids,
    pub(super) auth: Handle,
    pub(super) flows: Arc<Flows>,
}

impl DaemonSource {
    fn cluster(&self) -> Arc<Cluster> {
        Arc::clone(&self.cluster.borrow())
    }

    /// A guard's mode and override, as they stand in the map.
    fn guard(&self, mode: Setting, off: Setting) -> Result<v1::GuardState, SourceError> {
        let config = self.maps.config();
        let read = |setting| config.get(setting).map_err(|error| SourceError::Failed(error.to_string()));
        let until = BootTime(read(off)?);
        Ok(v1::GuardState {
            mode: v1::Mode::from(auth_ebpf_abi::Mode::from_number(read(mode)?)).into(),
            off_until: (until > self.clock.now()).then(|| wall_time(&*self.clock, until)),
        })
    }

    fn policy_guard(&self) -> Result<v1::GuardState, SourceError> {
        self.guard(Setting::PolicyMode, Setting::PolicyOffUntil)
    }

    fn encryption_guard(&self) -> Result<v1::GuardState, SourceError> {
        self.guard(Setting::EncryptionMode, Setting::EncryptionOffUntil)
    }

    fn auth_entry(&self, cluster: &Cluster, record: &Record) -> v1::AuthEntry {
        let node = cluster.node_by_number(record.key.node).filter(|_| record.key.node != 0);
        let id = |id: &Option<spiffe::SpiffeId>| id.as_ref().map(ToString::to_string).unwrap_or_default();
        v1::AuthEntry {
            local_identity: record.key.local,
            remote_identity: record.key.remote,
            remote_node: record.key.node.into(),
            remote_node_name: node.map(|node| node.name.clone()).unwrap_or_default(),
            auth_type: auth_ebpf_abi::AuthType::from_number(record.key.auth_type)
                .map_or(v1::AuthType::Disabled, Into::into)
                .into(),
            expires: Some(wall_time(&*self.clock, record.expires)),
            local_spiffe_id: id(&record.local_spiffe),
            remote_spiffe_id: id(&record.remote_spiffe),
            tls_group: record.group.to_owned(),
            method: record.method.as_str().to_owned(),
            established: Some(wall_time(&*self.clock, record.established)),
            handshake_microseconds: u64::try_from(record.latency.as_micros()).unwrap_or(u64::MAX),
            valid: record.expires > self.clock.now(),
            why: record.why.as_str().to_owned(),
            epoch: record.epoch,
            draining: self.is_draining(&record.key),
        }
    }

    fn identity(&self, cluster: &Cluster, identity: &policy::Identity) -> v1::Identity {
        let number = identity.number();
        let here = || cluster.local_pods(&self.config.node_name).filter(|pod| pod.identity == Some(number));
        let credential = self.svids.identity(number);
        let svid = match &credential {
            Some(_) => v1::SvidState::Available,
            None if here().next().is_none() => v1::SvidState::NotNeeded,
            None => v1::SvidState::Pending,
        };
        let spiffe_id = self.naming.identity(identity);
        v1::Identity {
            number,
            name: policy::reserved_name(number).unwrap_or_default().to_owned(),
            namespace: identity.namespace().to_owned(),
            service_account: identity.service_account().to_owned(),
            labels: identity.labels().iter().map(ToString::to_string).collect(),
            spiffe_id: spiffe_id.map(|id| id.to_string()).unwrap_or_default(),
            svid: svid.into(),
            svid_expires: credential.map(|credential| to_timestamp(credential.svid.not_after())),
            pods: here().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect(),
        }
    }
}

#[tonic::async_trait]
impl Source for DaemonSource {
    async fn status(&self) -> Result<v1::Status, SourceError> {
        self.build_status()
    }

    async fn auth_entries(&self) -> Result<Vec<v1::AuthEntry>, SourceError> {
        let cluster = self.cluster();
        let records = Arc::clone(&self.auth.records().borrow());
        Ok(records.iter().map(|record| self.auth_entry(&cluster, record)).collect())
    }

    async fn explain_auth(
        &self,
        request: v1::ExplainAuthRequest,
    ) -> Result<v1::AuthExplanation, SourceError> {
        self.explain(&request).await
    }

    async fn flush_auth(&self, caller: Caller) -> Result<u32, SourceError> {
        let count = self.auth.records().borrow().len();
        tracing::warn!(uid = caller.uid, pid = caller.pid, count, "authentications flushed");
        self.peers.forget_proofs();
        self.auth.tell(Event::Flush).await;
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    async fn encryption(&self) -> Result<v1::Encryption, SourceError> {
        self.build_encryption()
    }

    async fn identities(&self) -> Result<Vec<v1::Identity>, SourceError> {
        let cluster = self.cluster();
        Ok(cluster.identities.iter().map(|identity| self.identity(&cluster, identity)).collect())
    }

    async fn policies(&self) -> Result<Vec<v1::Policy>, SourceError> {
        let cluster = self.cluster();
        in_background(move || Ok(trace::policies(&cluster))).await
    }

    async fn trace_policy(&self, request: v1::TracePolicyRequest) -> Result<v1::PolicyTrace, SourceError> {
        let question = Question::try_from(&request).map_err(SourceError::Invalid)?;
        let cluster = self.cluster();
        let answer = move || {
            trace::answer(&cluster, &question).map_err(|error| SourceError::Invalid(error.to_string()))
        };
        in_background(answer).await
    }

    async fn svids(&self) -> Result<Vec<v1::Svid>, SourceError> {
        Ok(self.list_svids())
    }

    async fn bundles(&self) -> Result<Vec<v1::Bundle>, SourceError> {
        Ok(self.list_bundles())
    }

    fn flows(&self, last: usize) -> Subscription {
        self.flows.subscribe(last)
    }

    async fn record_override(
        &self,
        note: v1::RecordOverrideRequest,
        caller: Caller,
    ) -> Result<(), SourceError> {
        let until = note.off_until.and_then(crate::api::Timestamp::to_jiff);
        tracing::warn!(
            guard = note.guard().as_str_name(),
            until = until.map(tracing::field::display),
            reason = note.reason,
            uid = caller.uid,
            pid = caller.pid,
            "a guard was switched by hand"
        );
        Ok(())
    }
}

/// All policies of a large cluster take a while to look through, and others wait for this thread.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(SourceError::Failed(error.to_string())))
}
