//! Where the SVIDs of identities come from: the SPIFFE Broker API, where the agent serves it and lets this node ask,
//! else SPIRE's Delegated Identity API, by process or by selectors.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use auth_ebpf_abi::IdentityNumber;
use spiffe::SpiffeId;
use spire_adapter::broker::Process;
use spire_adapter::{BrokerAgent, DelegatedAgent, Selector, Snapshot, Subscription};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::chooser::{Answer, Api, Asked, Candidate, Choice, Chooser, FALLBACK, Held, Unused, merge};
use super::processes::{self, Seen};

/// An identity's snapshot, and where it comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Who says so, once that is known.
    pub api: Option<Api>,
    /// Why that is not the API that is preferred, if it is not.
    pub unused: Option<Unused>,
}

/// What there is of one identity; dropping it closes its streams.
pub struct Feed {
    /// The latest.
    pub offers: watch::Receiver<Offer>,
    /// Whatever keeps it coming.
    pub keep: Box<dyn Any + Send>,
}

/// Where identities' SVIDs come from.
pub trait SvidSource: Send + Sync + 'static {
    /// Follows the SVID of an identity.
    fn subscribe(&self, identity: IdentityNumber, spiffe_id: &SpiffeId) -> Feed;
}

/// SPIRE's agent, by the best of its APIs.
#[derive(Clone)]
pub struct SpireAgent {
    /// Which of them is wanted.
    pub choice: Choice,
    /// The one.
    pub broker: BrokerAgent,
    /// What its socket and the processes of the pods here are.
    pub seen: watch::Receiver<Seen>,
    /// Who is told that a process has ended.
    pub look: Arc<Notify>,
    /// The other.
    pub delegated: DelegatedAgent,
    /// What an identity's entry asks for, where it is asked by selectors.
    pub selectors: Arc<dyn Fn(IdentityNumber) -> Vec<Selector> + Send + Sync>,
}

impl SvidSource for SpireAgent {
    fn subscribe(&self, identity: IdentityNumber, spiffe_id: &SpiffeId) -> Feed {
        let (sender, offers) = watch::channel(Offer::default());
        let one = One {
            agent: self.clone(),
            identity,
            spiffe_id: spiffe_id.clone(),
            chooser: Chooser::new(self.choice),
            by_process: None,
            by_selectors: None,
            held: None,
        };
        let closed = CancellationToken::new();
        tokio::spawn(closed.clone().run_until_cancelled_owned(one.run(sender)));
        Feed { offers, keep: Box::new(closed.drop_guard()) }
    }
}

/// One identity's streams.
struct One {
    agent: SpireAgent,
    identity: IdentityNumber,
    spiffe_id: SpiffeId,
    chooser: Chooser,
    by_process: Option<ByProcess>,
    by_selectors: Option<Stream>,
    held: Held,
}

struct ByProcess {
    asked: Asked,
    stream: Stream,
    /// What the answer is, and since when.
    answer: (Answer, Instant),
}

struct Stream {
    snapshots: watch::Receiver<Snapshot>,
    _subscription: Subscription,
}

impl Stream {
    fn new(subscription: Subscription) -> Self {
        Self { snapshots: subscription.watch(), _subscription: subscription }
    }

    fn latest(&mut self) -> Snapshot {
        self.snapshots.borrow_and_update().clone()
    }
}

impl One {
    async fn run(mut self, offers: watch::Sender<Offer>) {
        let mut seen = self.agent.seen.clone();
        loop {
            let now = seen.borrow_and_update().clone();
            let (next, due) = self.step(&now);
            offers.send_if_modified(|last| {
                let differs = *last != next;
                if differs {
                    self.log(last, &next);
                    *last = next;
                }
                differs
            });
            let due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Ok(()) = seen.changed() => {}
                () = changed(self.by_process.as_mut().map(|it| &mut it.stream)) => {}
                () = changed(self.by_selectors.as_mut()) => {}
                () = due => {}
            }
        }
    }

    /// Opens and closes streams as they are wanted now; what is told then, and when to look again at the latest.
    fn step(&mut self, seen: &Seen) -> (Offer, Option<Instant>) {
        let none = BTreeSet::new();
        let known = seen.processes.as_ref();
        let processes = known.and_then(|known| known.get(&self.identity)).unwrap_or(&none);
        let now = Instant::now();
        let mut due = None;
        let asked = loop {
            let asked = self.choose(seen, processes);
            let Some(open) = &mut self.by_process else { break asked };
            let answer = Answer::of(&open.stream.latest());
            if open.answer.0 != answer {
                open.answer = (answer, now);
            }
            let left = self.chooser.patience(answer).map(|patience| open.answer.1 + patience);
            if left.is_none_or(|left| left > now) {
                due = left;
                break asked;
            }
            if answer == Answer::Ended {
                self.agent.look.notify_one();
            }
            open.answer.1 = now;
            self.chooser.leave(answer);
        };
        let answer = self.by_process.as_ref().map(|open| open.answer);
        let since = answer.map_or(Duration::ZERO, |(_, since)| now.duration_since(since));
        let answer = answer.map(|(answer, _)| answer);
        if self.chooser.by_selectors(answer, since) {
            self.by_selectors.get_or_insert_with(|| {
                let selectors = (self.agent.selectors)(self.identity);
                Stream::new(self.agent.delegated.subscribe(selectors, self.spiffe_id.clone()))
            });
        } else {
            if answer == Some(Answer::Awaited) {
                let fallback = now + FALLBACK.saturating_sub(since);
                due = Some(due.map_or(fallback, |due| due.min(fallback)));
            }
            if answer == Some(Answer::Given) {
                self.by_selectors = None;
            }
        }
        let by_process = self.by_process.as_mut().map(|open| (open.asked.api, open.stream.latest()));
        let by_selectors = self.by_selectors.as_mut().map(Stream::latest);
        let by_process = by_process.as_ref().map(|(api, snapshot)| (*api, snapshot));
        let (api, snapshot) = merge(&mut self.held, by_process, by_selectors.as_ref());
        // Before processes have been looked for, nothing is known to be missing.
        let unused = known.and_then(|_| self.chooser.unused(asked, answer));
        (Offer { snapshot, api, unused }, due)
    }

    /// By what the agent is asked now, and has its stream open.
    fn choose(&mut self, seen: &Seen, processes: &BTreeSet<Candidate>) -> Result<Asked, Unused> {
        loop {
            let asked = self.chooser.choose(seen.broker, processes);
            let Ok(wanted) = asked else {
                self.by_process = None;
                return asked;
            };
            if self.by_process.as_ref().is_some_and(|open| open.asked == wanted) {
                return asked;
            }
            self.by_process = processes::hold(wanted.process).map(|process| ByProcess {
                asked: wanted,
                stream: Stream::new(self.open(wanted.api, process)),
                answer: (Answer::Awaited, Instant::now()),
            });
            if self.by_process.is_some() {
                return asked;
            }
            self.chooser.leave(Answer::Ended);
        }
    }

    fn open(&self, api: Api, process: Process) -> Subscription {
        match api {
            Api::Broker => self.agent.broker.subscribe(process, self.spiffe_id.clone()),
            Api::DelegatedPid | Api::Delegated => {
                self.agent.delegated.subscribe_process(process, self.spiffe_id.clone())
            }
        }
    }

    fn log(&self, last: &Offer, next: &Offer) {
        let (identity, spiffe_id) = (self.identity, &self.spiffe_id);
        // Where `auto` finds no Broker API that is nothing to tell of each.
        let is_told = |unused: &Unused| self.agent.choice != Choice::Auto || *unused != Unused::NoSocket;
        let reason = next.unused.filter(is_told).map(tracing::field::display);
        if next.snapshot.svid().is_some() && (last.api != next.api || last.snapshot.svid().is_none()) {
            let api = next.api.map(Api::as_str);
            tracing::info!(identity, %spiffe_id, api, reason, "SVID of an identity");
        } else if reason.is_some() && last.unused != next.unused && next.snapshot.svid().is_none() {
            tracing::info!(identity, %spiffe_id, reason, "no SVID by the API that is preferred");
        }
    }
}

/// Waits until a stream has brought something; for ever without one.
async fn changed(stream: Option<&mut Stream>) {
    if let Some(stream) = stream
        && stream.snapshots.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests;
