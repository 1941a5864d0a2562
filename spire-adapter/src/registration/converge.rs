//! Lists, plans and does, again and again: on every change of what is wanted, now and then against drift, and
//! after anything that went wrong, because a batch is not atomic.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tracing::{info, warn};

use super::{Plan, Registrar, Wanted};
use crate::entry::BATCH;
use crate::{ApiError, Entry, EntryClient, Outcome};

const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// How often, and how patiently.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often the server's entries are compared with what is wanted though nothing has changed.
    pub interval: Duration,
    /// How long an entry stays that nobody wants any more.
    pub grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { interval: Duration::from_secs(30), grace: super::GRACE }
    }
}

/// What has become of a wanted entry.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Registered {
    /// The server has it.
    Yes,
    /// The server has one of somebody else's that does the same.
    Foreign,
    /// The server refuses it.
    Refused {
        /// In the server's words.
        reason: String,
    },
}

/// How many entries were changed at the server so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Made.
    pub created: u64,
    /// Changed in place, what others had changed among them.
    pub updated: u64,
    /// Deleted.
    pub deleted: u64,
    /// Refused by the server, each time.
    pub refused: u64,
}

/// The state of all wanted entries after a round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// By entry ID; what is missing has not been tried yet.
    pub entries: BTreeMap<String, Registered>,
    /// Why the server could not be asked, if so.
    pub problem: Option<ApiError>,
    /// When the server last had all that was wanted, but for what it refuses.
    pub converged: Option<SystemTime>,
    /// What was done since the start.
    pub changes: Changes,
}

/// Keeps the server's entries as `wanted` says, until its sender is gone. Each round is reported.
pub async fn converge(
    client: EntryClient,
    options: Options,
    mut wanted: watch::Receiver<Wanted>,
    report: watch::Sender<Report>,
) {
    let mut registrar = Registrar::new(options.grace);
    let mut retry = RETRY_MIN;
    loop {
        let now = wanted.borrow_and_update().clone();
        let mut round = Round { client: &client, changes: report.borrow().changes };
        let done = round.run(&mut registrar, &now).await;
        let changes = round.changes;
        let pause = match done {
            Ok(entries) => {
                let refused = entries.values().any(|state| matches!(state, Registered::Refused { .. }));
                let converged = Some(SystemTime::now());
                publish(&report, Report { entries, problem: None, converged, changes });
                retry = if refused { (retry * 2).min(options.interval) } else { RETRY_MIN };
                if refused { retry } else { until_due(&registrar, options.interval) }
            }
            Err(problem) => {
                let Report { entries, converged, .. } = report.borrow().clone();
                publish(&report, Report { entries, problem: Some(problem), converged, changes });
                retry = (retry * 2).min(RETRY_MAX);
                retry
            }
        };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn until_due(registrar: &Registrar, interval: Duration) -> Duration {
    let due = registrar.next_deletion().map(|due| due.saturating_duration_since(Instant::now()));
    due.map_or(interval, |due| due.min(interval))
}

fn publish(report: &watch::Sender<Report>, next: Report) {
    report.send_modify(|current| {
        match (&current.problem, &next.problem) {
            (before, Some(problem)) if before.as_ref() != Some(problem) => warn!(%problem, "SPIRE server"),
            (Some(_), None) => info!("SPIRE server answers again"),
            _ => {}
        }
        *current = next;
    });
}

/// What a round would do, without doing it.
pub async fn survey(
    client: &EntryClient,
    registrar: &mut Registrar,
    wanted: &Wanted,
) -> Result<Plan, ApiError> {
    let present = client.list(None).await?;
    Ok(registrar.plan(wanted, &present, Instant::now()))
}

/// One list, one plan, and what it asks for.
#[derive(Debug)]
pub struct Round<'a> {
    /// The server.
    pub client: &'a EntryClient,
    /// Counted on, also for what was done before an error.
    pub changes: Changes,
}

impl Round<'_> {
    /// Runs it: what has become of each wanted entry. After an error some of it may have been done.
    pub async fn run(
        &mut self,
        registrar: &mut Registrar,
        wanted: &Wanted,
    ) -> Result<BTreeMap<String, Registered>, ApiError> {
        let plan = survey(self.client, registrar, wanted).await?;
        let mut entries: BTreeMap<String, Registered> =
            wanted.iter().map(|entry| (entry.id.clone(), Registered::Yes)).collect();
        entries.extend(plan.foreign.iter().map(|id| (id.clone(), Registered::Foreign)));
        for batch in plan.delete.chunks(BATCH) {
            let ids: Vec<String> = batch.iter().map(|entry| entry.id.clone()).collect();
            let mut outcomes = self.client.delete(&ids).await?;
            // What somebody else has deleted meanwhile is gone as well.
            outcomes.iter_mut().for_each(|outcome| {
                if let Outcome::NotFound(id) = outcome {
                    *outcome = Outcome::Deleted(std::mem::take(id));
                }
            });
            self.account(batch, outcomes);
        }
        for batch in plan.update.chunks(BATCH) {
            let outcomes = self.client.update(batch).await?;
            entries.extend(self.account(batch, outcomes));
        }
        for batch in plan.create.chunks(BATCH) {
            let outcomes = self.client.create(batch).await?;
            entries.extend(self.account(batch, outcomes));
        }
        Ok(entries)
    }

    /// Counts and logs what has become of a batch; what the server refused of it.
    fn account(&mut self, batch: &[Entry], outcomes: Vec<Outcome>) -> Vec<(String, Registered)> {
        let pairs = batch.iter().zip(outcomes);
        pairs.filter_map(|(entry, outcome)| self.account_one(entry, outcome)).collect()
    }

    fn account_one(&mut self, entry: &Entry, outcome: Outcome) -> Option<(String, Registered)> {
        let reason = match outcome {
            Outcome::Created(_) => return self.done(entry, "created", |changes| &mut changes.created),
            Outcome::Updated(_) => return self.done(entry, "updated", |changes| &mut changes.updated),
            Outcome::Deleted(_) => return self.done(entry, "deleted", |changes| &mut changes.deleted),
            // Another writer was first, with the same entry.
            Outcome::Exists(other) if other.id == entry.id => return None,
            // Made or deleted by somebody else since the list: the next round sees it as it is.
            Outcome::Exists(other) => format!("entry {} is in its place", other.id),
            Outcome::NotFound(_) => "deleted meanwhile".to_owned(),
            Outcome::Failed { message, .. } => message,
        };
        self.changes.refused += 1;
        let Entry { id, spiffe_id, parent_id, .. } = entry;
        warn!(%spiffe_id, %parent_id, id, reason, "registration entry refused");
        Some((id.clone(), Registered::Refused { reason }))
    }

    fn done(
        &mut self,
        entry: &Entry,
        what: &str,
        count: impl FnOnce(&mut Changes) -> &mut u64,
    ) -> Option<(String, Registered)> {
        *count(&mut self.changes) += 1;
        let Entry { id, spiffe_id, parent_id, .. } = entry;
        info!(%spiffe_id, %parent_id, id, what, "registration entry");
        None
    }
}
