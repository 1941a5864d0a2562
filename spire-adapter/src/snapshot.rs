//! What is known of one identity at one moment, and the pure rules by which messages, refusals, lost
//! connections and time turn one snapshot into the next.
//!
//! Each message is the full state: what it lacks is withdrawn. A connection that is merely lost withdraws
//! nothing; NotAfter does, whatever the agent says.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use crate::{ApiError, Bundles, SpiffeId, Svid, TrustDomain};

/// How long an agent may always be silent.
const MIN_SILENCE: Duration = Duration::from_secs(5);

/// What an identity may do now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum State {
    /// SVID and bundle of its trust domain have not both arrived yet.
    #[default]
    Pending,
    /// The SVID may be used.
    Usable(Svid),
    /// The agent gives it no longer, or refuses to. New work must not use what was there before.
    Withdrawn,
    /// Its last SVID is past NotAfter and no newer one came.
    Expired,
}

impl State {
    /// A short, stable name for metrics and status.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Usable(_) => "usable",
            Self::Withdrawn => "withdrawn",
            Self::Expired => "expired",
        }
    }
}

/// One identity at one moment. Immutable: what changes comes as another snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// What the identity may do.
    pub state: State,
    /// Bundles by which its peers are verified: that of its own trust domain and of those it federates with.
    /// Empty unless usable.
    pub bundles: Bundles,
    /// Whether the agent is away, so that this is merely the last that was heard.
    pub stale: bool,
    /// What went wrong last, until a message comes again.
    pub problem: Option<ApiError>,
}

impl Snapshot {
    /// The SVID, if it may be used.
    pub fn svid(&self) -> Option<&Svid> {
        match &self.state {
            State::Usable(svid) => Some(svid),
            State::Pending | State::Withdrawn | State::Expired => None,
        }
    }
}

/// What an agent's stream brought.
#[derive(Debug, Clone)]
pub(crate) enum Heard<M> {
    /// A message: the full state.
    Message(M),
    /// The agent refuses: nothing of it may be used any more.
    Denied(ApiError),
    /// The agent is away or says things that cannot be used: the last good counts.
    Lost(ApiError),
}

/// One message about an identity.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message {
    /// The SVID of the expected SPIFFE ID, if the message has one.
    pub(crate) svid: Option<Svid>,
    /// The foreign trust domains whose bundles it may use.
    pub(crate) federates_with: BTreeSet<TrustDomain>,
    /// Bundles that came in the same message; without them those of the agent's bundle stream count.
    pub(crate) bundles: Option<Bundles>,
    /// Whose SVID it has, if it has some and none is that of the expected SPIFFE ID.
    pub(crate) other: Option<String>,
}

impl Message {
    /// How long nothing newer may come before the agent is asked anew: until three quarters of the SVID's
    /// life, as SPIRE rotates at half of it, give or take a tenth; later, half of what is left.
    pub(crate) fn silence(&self, now: SystemTime) -> Option<Duration> {
        let svid = self.svid.as_ref()?;
        let life = svid.not_after().duration_since(svid.not_before()).unwrap_or_default();
        let left = svid.not_after().duration_since(now).unwrap_or_default();
        let overdue = left.saturating_sub(life / 4);
        Some(if overdue.is_zero() { left / 2 } else { overdue }.max(MIN_SILENCE))
    }
}

/// Bundles of the agent as a whole, not yet narrowed to what an identity may use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Trust {
    pub(crate) bundles: Bundles,
    pub(crate) stale: bool,
    pub(crate) problem: Option<ApiError>,
}

/// The memory behind the snapshots of one identity.
#[derive(Debug)]
pub(crate) struct Tracker {
    expected: SpiffeId,
    held: Held,
    stale: bool,
    problem: Option<ApiError>,
}

#[derive(Debug)]
enum Held {
    Nothing,
    Withdrawn,
    /// Stays so for this SVID even if the clock is set back.
    Expired,
    Message(Svid, Message),
}

impl Tracker {
    pub(crate) fn new(expected: &SpiffeId) -> Self {
        Self { expected: expected.clone(), held: Held::Nothing, stale: false, problem: None }
    }

    /// Takes in what the stream brought.
    pub(crate) fn hear(&mut self, heard: Heard<Message>) {
        match heard {
            Heard::Message(mut message) => {
                self.stale = false;
                self.problem = message
                    .other
                    .take()
                    .map(|given| ApiError::OtherIdentity { expected: self.expected.to_string(), given });
                if let Held::Message(_, Message { bundles: Some(before), .. }) = &self.held {
                    message.bundles = message.bundles.map(|bundles| bundles.continuing(before));
                }
                self.held = match message.svid.take() {
                    Some(svid) => Held::Message(svid, message),
                    None => Held::Withdrawn,
                };
            }
            Heard::Denied(problem) => {
                self.stale = false;
                self.problem = Some(problem);
                self.held = Held::Withdrawn;
            }
            Heard::Lost(problem) => {
                self.stale = !matches!(self.held, Held::Nothing);
                self.problem = Some(problem);
            }
        }
    }

    /// When the held SVID expires.
    pub(crate) fn not_after(&self) -> Option<SystemTime> {
        match &self.held {
            Held::Message(svid, _) => Some(svid.not_after()),
            Held::Nothing | Held::Withdrawn | Held::Expired => None,
        }
    }

    /// The snapshot at `now` with the agent's bundles as they are.
    pub(crate) fn snapshot(&mut self, now: SystemTime, trust: &Trust) -> Snapshot {
        if let Held::Message(svid, _) = &self.held
            && !svid.is_valid_at(now)
        {
            self.held = Held::Expired;
        }
        let (state, bundles) = match &self.held {
            Held::Nothing => (State::Pending, Bundles::new()),
            Held::Withdrawn => (State::Withdrawn, Bundles::new()),
            Held::Expired => (State::Expired, Bundles::new()),
            Held::Message(svid, message) => {
                let bundles = self.permitted(message, trust);
                match bundles.get(self.expected.trust_domain()) {
                    Some(_) => (State::Usable(svid.clone()), bundles),
                    None => (State::Pending, Bundles::new()),
                }
            }
        };
        Snapshot {
            state,
            bundles,
            stale: self.stale || trust.stale,
            problem: self.problem.clone().or_else(|| trust.problem.clone()),
        }
    }

    fn permitted(&self, message: &Message, trust: &Trust) -> Bundles {
        let source = message.bundles.as_ref().unwrap_or(&trust.bundles);
        source
            .iter()
            .filter(|bundle| {
                let trust_domain = bundle.trust_domain();
                trust_domain == self.expected.trust_domain() || message.federates_with.contains(trust_domain)
            })
            .cloned()
            .collect()
    }
}

impl Trust {
    /// Takes in what the agent-wide bundle stream brought.
    pub(crate) fn hear(&mut self, heard: Heard<Bundles>) {
        *self = match heard {
            Heard::Message(bundles) => Self { bundles: bundles.continuing(&self.bundles), ..Self::default() },
            Heard::Denied(problem) => Self { problem: Some(problem), ..Self::default() },
            Heard::Lost(problem) => Self {
                stale: !self.bundles.is_empty(),
                problem: Some(problem),
                bundles: self.bundles.clone(),
            },
        };
    }
}

#[cfg(test)]
mod tests;
