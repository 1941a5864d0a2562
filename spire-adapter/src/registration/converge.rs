//! Lists, plans and does, again and again: on every change of what is wanted, now and then against drift, and
//! after anything that went wrong, because a batch is not atomic.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};

use super::{Plan, Registrar, Wanted};
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

/// The state of all wanted entries after a round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// By entry ID; what is missing has not been tried yet.
    pub entries: BTreeMap<String, Registered>,
    /// Why the server could not be asked, if so.
    pub problem: Option<ApiError>,
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
        let pause = match round(&client, &mut registrar, &now).await {
            Ok(next) => {
                let refused = next.entries.values().any(|state| matches!(state, Registered::Refused { .. }));
                publish(&report, next);
                retry = if refused { (retry * 2).min(options.interval) } else { RETRY_MIN };
                if refused { retry } else { until_due(&registrar, options.interval) }
            }
            Err(problem) => {
                let entries = report.borrow().entries.clone();
                publish(&report, Report { entries, problem: Some(problem) });
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
    report.send_if_modified(|current| {
        if *current == next {
            return false;
        }
        if let Some(problem) = &next.problem
            && current.problem != next.problem
        {
            warn!(%problem, "registration");
        }
        *current = next;
        true
    });
}

/// One list, one plan, and what it asks for.
async fn round(client: &EntryClient, registrar: &mut Registrar, wanted: &Wanted) -> Result<Report, ApiError> {
    let present = client.list(None).await?;
    let plan = registrar.plan(wanted, &present, Instant::now());
    if !plan.is_empty() {
        let (created, updated, deleted) = (plan.create.len(), plan.update.len(), plan.delete.len());
        info!(created, updated, deleted, "registration entries");
    }
    let mut entries: BTreeMap<String, Registered> =
        wanted.iter().map(|entry| (entry.id.clone(), Registered::Yes)).collect();
    entries.extend(plan.foreign.iter().map(|id| (id.clone(), Registered::Foreign)));
    entries.extend(carry_out(client, &plan).await?);
    Ok(Report { entries, problem: None })
}

/// Does what is planned; the wanted entries that the server refused.
async fn carry_out(client: &EntryClient, plan: &Plan) -> Result<Vec<(String, Registered)>, ApiError> {
    for outcome in client.delete(&plan.delete).await? {
        if let Outcome::Failed { code, message } = outcome {
            warn!(code, message, "registration entry not deleted");
        }
    }
    let mut refused = refusals(&plan.update, client.update(&plan.update).await?);
    refused.extend(refusals(&plan.create, client.create(&plan.create).await?));
    Ok(refused)
}

fn refusals(entries: &[Entry], outcomes: Vec<Outcome>) -> Vec<(String, Registered)> {
    let refusal = |(entry, outcome): (&Entry, Outcome)| {
        let reason = match outcome {
            Outcome::Failed { message, .. } => message,
            // Made or deleted by somebody else since the list: the next round sees it as it is.
            Outcome::Exists(other) if other.id != entry.id => format!("entry {} is in its place", other.id),
            Outcome::NotFound(_) => "deleted meanwhile".to_owned(),
            Outcome::Created(_) | Outcome::Exists(_) | Outcome::Updated(_) | Outcome::Deleted(_) => {
                return None;
            }
        };
        warn!(spiffe_id = %entry.spiffe_id, parent_id = %entry.parent_id, reason, "registration entry refused");
        Some((entry.id.clone(), Registered::Refused { reason }))
    };
    entries.iter().zip(outcomes).filter_map(refusal).collect()
}
