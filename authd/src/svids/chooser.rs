//! By whom SPIRE's agent is asked for an identity's SVID, and what follows from its answers. Pure.
//!
//! An identity has one SVID here, whichever of its pods' processes it was asked by: when that process ends, another
//! takes its place, and the SVID stays until the agent has answered for the other. With none left it is withdrawn.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use spire_adapter::{ApiError, Snapshot, State};

/// Waits before a process that is given nothing is left for the next: in the first round, which a gap of the agent
/// does not outlast, and in any.
const PATIENCE: Duration = Duration::from_millis(100);
const MOST_PATIENCE: Duration = Duration::from_secs(60);
/// The same where the agent has not answered at all.
const UNANSWERED: Duration = Duration::from_secs(10);
/// How long the agent may take before it is asked by selectors beside.
pub(super) const FALLBACK: Duration = Duration::from_millis(400);

/// An API of SPIRE's agent that gives out SVIDs of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Api {
    /// `spiffe.broker.API`: the agent attests the process itself.
    Broker,
    /// SPIRE's own, asked by a process, which the agent attests too.
    DelegatedPid,
    /// The same, asked by selectors: the agent believes what it is told.
    Delegated,
}

impl Api {
    /// The name for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Broker => "Broker API",
            Self::DelegatedPid => "Delegated Identity API by PID",
            Self::Delegated => "Delegated Identity API",
        }
    }
}

/// The setting `svid-source`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The first of them by which there is an SVID.
    #[default]
    Auto,
    /// The Broker API and no other.
    Broker,
    /// The Delegated Identity API by process and no other.
    DelegatedPid,
    /// The Delegated Identity API by selectors and no other.
    Delegated,
}

impl Choice {
    /// Its word in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Broker => "broker",
            Self::DelegatedPid => "delegated-pid",
            Self::Delegated => "delegated",
        }
    }
}

/// Why an identity's SVID does not come by the API that is preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unused {
    /// Nobody listens at its socket.
    NoSocket,
    /// No process of its pods is known.
    NoProcess,
    /// The agent does not let this node ask.
    Refused,
    /// The agent gives nothing to any of its pods' processes.
    Nothing,
}

impl fmt::Display for Unused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSocket => {
                "the agent serves no Broker API at broker-socket: enable experimental.broker there, or set svid-source"
            }
            Self::NoProcess => {
                "no process of its pods is found on this node: have they started, and does authd see the host's \
                 processes (hostPID)?"
            }
            Self::Refused => {
                "the agent does not take this node for a broker: add its SPIFFE ID to experimental.broker.brokers"
            }
            Self::Nothing => {
                "the agent gives it to no process of its pods: no entry selects what is attested of them, or they \
                 have another SPIFFE ID than spiffe-id-template says"
            }
        })
    }
}

/// A process of a pod, never to be taken for a later one with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// When it started, in ticks of the kernel: those that are there for longest come first.
    pub started: u64,
    /// Its number.
    pub pid: i32,
    /// Its network namespace, by inode.
    pub namespace: u64,
}

/// A socket file that another takes the place of when the agent starts anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketId {
    /// Device and inode.
    pub file: (u64, u64),
    /// When it was made, in nanoseconds.
    pub made: i128,
}

/// By what the agent is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) api: Api,
    pub(super) process: Candidate,
}

/// What an agent that is asked by a process has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nothing yet.
    Awaited,
    /// An SVID that can be used.
    Given,
    /// That there is none, or none any more.
    Nothing,
    /// The agent is away.
    Away,
    /// That we may not ask.
    Refused,
    /// The process has ended.
    Ended,
}

impl Answer {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        match (&snapshot.state, &snapshot.problem) {
            (State::Usable(_), _) => Self::Given,
            (_, Some(ApiError::ProcessEnded { .. })) => Self::Ended,
            // Whoever is no broker finds the connection closed.
            (
                _,
                Some(
                    ApiError::NotAuthorized { .. }
                    | ApiError::Connect { .. }
                    | ApiError::Forbidden { .. }
                    | ApiError::NotASocket { .. }
                    | ApiError::WrongApi { .. },
                ),
            ) => Self::Refused,
            (
                _,
                Some(ApiError::Message { .. } | ApiError::Status { .. } | ApiError::OtherIdentity { .. }),
            ) => Self::Nothing,
            (_, Some(_)) => Self::Away,
            (State::Pending, None) => Self::Awaited,
            (_, None) => Self::Nothing,
        }
    }
}

/// The memory of one identity.
#[derive(Debug)]
pub(super) struct Chooser {
    choice: Choice,
    /// The agent's broker socket at the last look.
    broker: Option<SocketId>,
    asked: Option<Asked>,
    /// The broker does not let us ask; not asked again in this round.
    refused: bool,
    /// Who was given nothing in this round.
    passed: BTreeSet<Candidate>,
    ended: BTreeSet<Candidate>,
    round: u32,
}

impl Chooser {
    pub(super) const fn new(choice: Choice) -> Self {
        Self {
            choice,
            broker: None,
            asked: None,
            refused: false,
            passed: BTreeSet::new(),
            ended: BTreeSet::new(),
            round: 0,
        }
    }

    /// By what the agent is asked now, given its broker socket and the identity's processes: as before for as long
    /// as that can be.
    pub(super) fn choose(
        &mut self,
        broker: Option<SocketId>,
        processes: &BTreeSet<Candidate>,
    ) -> Result<Asked, Unused> {
        if self.choice == Choice::Delegated {
            return Err(Unused::NoProcess);
        }
        // Another agent may do what the last one did not.
        if broker != self.broker {
            *self = Self { broker, ended: std::mem::take(&mut self.ended), ..Self::new(self.choice) };
        }
        self.ended.retain(|process| processes.contains(process));
        let alive: BTreeSet<Candidate> = processes.difference(&self.ended).copied().collect();
        let kept = self.asked.filter(|asked| alive.contains(&asked.process));
        self.asked = match kept {
            Some(kept) => Some(kept),
            None => {
                if !alive.is_empty() && alive.is_subset(&self.passed) {
                    self.passed.clear();
                    self.refused = false;
                    self.round = self.round.saturating_add(1);
                }
                let api = self.api()?;
                let next = alive.difference(&self.passed).next();
                next.map(|process| Asked { api, process: *process })
            }
        };
        self.asked.ok_or(Unused::NoProcess)
    }

    fn api(&self) -> Result<Api, Unused> {
        match (self.choice, self.broker) {
            (Choice::Auto | Choice::Broker, Some(_)) if !self.refused => Ok(Api::Broker),
            (Choice::Broker, _) => Err(Unused::NoSocket),
            (Choice::Auto | Choice::DelegatedPid | Choice::Delegated, _) => Ok(Api::DelegatedPid),
        }
    }

    /// When what is asked now is to be left for the next, counted from the answer: at once, later, or never.
    pub(super) fn patience(&self, answer: Answer) -> Option<Duration> {
        let patience = PATIENCE.saturating_mul(1 << self.round.min(16)).min(MOST_PATIENCE);
        match answer {
            Answer::Given => None,
            Answer::Ended => Some(Duration::ZERO),
            // By another API it may be let.
            Answer::Refused if self.falls_back() => Some(Duration::ZERO),
            Answer::Nothing => Some(patience),
            Answer::Awaited | Answer::Away | Answer::Refused => Some(patience.max(UNANSWERED)),
        }
    }

    fn falls_back(&self) -> bool {
        self.choice == Choice::Auto && self.asked.is_some_and(|asked| asked.api == Api::Broker)
    }

    /// Leaves what is asked now, since this was its answer.
    pub(super) fn leave(&mut self, answer: Answer) {
        let by_another_api = answer == Answer::Refused && self.falls_back();
        let Some(asked) = self.asked.take() else { return };
        if by_another_api {
            self.refused = true;
            self.passed.clear();
        } else if answer == Answer::Ended {
            self.ended.insert(asked.process);
        } else {
            self.passed.insert(asked.process);
        }
    }

    /// Whether the agent is to be asked by selectors beside, where the other answer is this for so long.
    pub(super) fn by_selectors(&self, answer: Option<Answer>, since: Duration) -> bool {
        match (self.choice, answer) {
            (Choice::Delegated, _) => true,
            (Choice::Broker | Choice::DelegatedPid, _) | (Choice::Auto, Some(Answer::Given)) => false,
            (Choice::Auto, Some(Answer::Awaited)) => since >= FALLBACK,
            (Choice::Auto, _) => true,
        }
    }

    /// Why it is not the API that is preferred, if it is not.
    pub(super) fn unused(&self, asked: Result<Asked, Unused>, answer: Option<Answer>) -> Option<Unused> {
        match (asked, answer) {
            _ if self.choice == Choice::Delegated => None,
            (Err(unused), _) => Some(unused),
            (Ok(Asked { api: Api::Broker, .. }), Some(Answer::Refused)) => Some(Unused::Refused),
            (Ok(Asked { api: Api::DelegatedPid, .. }), _) if self.choice == Choice::Auto => {
                Some(if self.refused { Unused::Refused } else { Unused::NoSocket })
            }
            (Ok(_), Some(Answer::Nothing)) => Some(Unused::Nothing),
            _ => None,
        }
    }
}

/// The last SVID that an agent gave, until one is withdrawn.
pub(super) type Held = Option<(Api, Snapshot)>;

/// The identity's snapshot, of what the agent says by process and by selectors.
pub(super) fn merge(
    held: &mut Held,
    by_process: Option<(Api, &Snapshot)>,
    by_selectors: Option<&Snapshot>,
) -> (Option<Api>, Snapshot) {
    let said = by_process.into_iter().chain(by_selectors.map(|snapshot| (Api::Delegated, snapshot)));
    if let Some((api, usable)) = said.clone().find(|(_, snapshot)| snapshot.svid().is_some()) {
        *held = Some((api, usable.clone()));
        return (Some(api), usable.clone());
    }
    let problem = said.clone().find_map(|(_, snapshot)| snapshot.problem.clone());
    // Another process of the identity is there, and the agent has not answered for it yet.
    if let Some((_, Snapshot { state: State::Pending, .. })) = by_process
        && let Some((api, last)) = held
    {
        let stale = last.stale || problem.is_some();
        return (Some(*api), Snapshot { stale, problem, ..last.clone() });
    }
    let had = held.take().is_some();
    let mut states = said.map(|(_, snapshot)| &snapshot.state);
    let state = match states.find(|state| !matches!(state, State::Pending)) {
        Some(state) => state.clone(),
        None if had => State::Withdrawn,
        None => State::Pending,
    };
    let api = by_process.map(|(api, _)| api).or(by_selectors.map(|_| Api::Delegated));
    (api, Snapshot { state, problem, ..Snapshot::default() })
}

#[cfg(test)]
mod tests;
