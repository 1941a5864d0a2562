//! A source with fixed answers, for tests of the server and of authctl.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use tokio::{sync::broadcast, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{Caller, Flows, Listener, ServeError, Source, SourceError, v1};
use crate::{
    cluster::Cluster,
    explain::Question as AuthQuestion,
    trace::{self, Question},
};

/// The answers, and what has been asked.
pub(crate) struct Fake {
    pub(crate) status: v1::Status,
    pub(crate) entries: Vec<v1::AuthEntry>,
    pub(crate) explanation: v1::AuthExplanation,
    pub(crate) encryption: v1::Encryption,
    pub(crate) identities: Vec<v1::Identity>,
    pub(crate) cluster: Cluster,
    pub(crate) svids: Vec<v1::Svid>,
    pub(crate) bundles: Vec<v1::Bundle>,
    pub(crate) flows: Vec<Arc<v1::Flow>>,
    pub(crate) news: broadcast::Sender<Arc<v1::Flow>>,
    pub(crate) overrides: Mutex<Vec<(v1::RecordOverrideRequest, Caller)>>,
    pub(crate) unavailable: bool,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            status: v1::Status::default(),
            entries: Vec::new(),
            explanation: v1::AuthExplanation::default(),
            encryption: v1::Encryption::default(),
            identities: Vec::new(),
            cluster: Cluster::default(),
            svids: Vec::new(),
            bundles: Vec::new(),
            flows: Vec::new(),
            news: broadcast::Sender::new(16),
            overrides: Mutex::default(),
            unavailable: false,
        }
    }
}

#[tonic::async_trait]
impl Source for Fake {
    async fn status(&self) -> Result<v1::Status, SourceError> {
        if self.unavailable {
            return Err(SourceError::Unavailable("the cluster state is not loaded yet".to_owned()));
        }
        Ok(self.status.clone())
    }

    async fn auth_entries(&self) -> Result<Vec<v1::AuthEntry>, SourceError> {
        Ok(self.entries.clone())
    }

    async fn explain_auth(
        &self,
        request: v1::ExplainAuthRequest,
    ) -> Result<v1::AuthExplanation, SourceError> {
        AuthQuestion::try_from(&request).map_err(SourceError::Invalid)?;
        Ok(self.explanation.clone())
    }

    async fn flush_auth(&self, _caller: Caller) -> Result<u32, SourceError> {
        Ok(u32::try_from(self.entries.len()).unwrap())
    }

    async fn encryption(&self) -> Result<v1::Encryption, SourceError> {
        Ok(self.encryption.clone())
    }

    async fn identities(&self) -> Result<Vec<v1::Identity>, SourceError> {
        Ok(self.identities.clone())
    }

    async fn policies(&self) -> Result<Vec<v1::Policy>, SourceError> {
        Ok(trace::policies(&self.cluster))
    }

    async fn trace_policy(&self, request: v1::TracePolicyRequest) -> Result<v1::PolicyTrace, SourceError> {
        let question = Question::try_from(&request).map_err(SourceError::Invalid)?;
        trace::answer(&self.cluster, &question).map_err(|error| SourceError::Invalid(error.to_string()))
    }

    async fn svids(&self) -> Result<Vec<v1::Svid>, SourceError> {
        Ok(self.svids.clone())
    }

    async fn bundles(&self) -> Result<Vec<v1::Bundle>, SourceError> {
        Ok(self.bundles.clone())
    }

    fn flows(&self, last: usize) -> Flows {
        let skip = self.flows.len().saturating_sub(last);
        (self.flows[skip..].to_vec(), self.news.subscribe())
    }

    async fn record_override(
        &self,
        note: v1::RecordOverrideRequest,
        caller: Caller,
    ) -> Result<(), SourceError> {
        self.overrides.lock().unwrap().push((note, caller));
        Ok(())
    }
}

/// A server over a socket in a directory of its own.
pub(crate) struct Server {
    pub(crate) socket: PathBuf,
    pub(crate) source: Arc<Fake>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
    _directory: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start(source: Fake) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run/authd.sock");
        let (source, shutdown) = (Arc::new(source), CancellationToken::new());
        let listener = Listener::bind(&socket).unwrap();
        let task = tokio::spawn(listener.serve(Arc::<Fake>::clone(&source), shutdown.clone()));
        Self { socket, source, shutdown, task, _directory: directory }
    }

    pub(crate) async fn stop(self) -> Result<(), ServeError> {
        self.shutdown.cancel();
        self.task.await.unwrap()
    }
}
