//! What is missing for two ends to talk: pure assembly of what the daemon's parts know, or of what the pinned maps
//! have when there is no daemon.
//!
//! [`Facts`] go in, a list of checks comes out, each of which the next one needs, and the conclusion in a sentence
//! with the way out.

mod checks;
mod conclusion;
mod reason;

#[cfg(test)]
mod tests;

use auth_ebpf_abi::{AuthKey, identity};

use crate::{
    api::{Timestamp, v1},
    trace::{End, Port},
};

/// Who is to talk to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Where packets come from.
    pub from: End,
    /// Where they go.
    pub to: End,
    /// Their protocol and port; `None` for the pair as a whole.
    pub port: Option<Port>,
}

impl TryFrom<&v1::ExplainAuthRequest> for Question {
    /// Which part of it isn't understood, in words.
    type Error = String;

    fn try_from(request: &v1::ExplainAuthRequest) -> Result<Self, String> {
        let port = Some(request.port.as_str()).filter(|port| !port.is_empty());
        let port = port.map(str::parse).transpose()?;
        Ok(Self { from: request.from.parse()?, to: request.to.parse()?, port })
    }
}

/// What is known.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Name of the node that knows it; empty for the pinned maps.
    pub node: String,
    /// Where packets come from.
    pub from: v1::TraceEnd,
    /// Where they go.
    pub to: v1::TraceEnd,
    /// Protocol and port, as they are written; empty for none.
    pub port: String,
    /// What policy says.
    pub policy: Policy,
    /// What is revoked of the two ends and of their nodes, each in words.
    pub revoked: Vec<String>,
    /// Names of the nodes on which either end runs.
    pub runs_on: Vec<String>,
    /// One for each end here and node of the other end.
    pub paths: Vec<Path>,
}

/// What policy says about the two ends.
#[derive(Clone, Debug)]
pub enum Policy {
    /// It was traced for the port.
    Traced(Box<v1::PolicyTrace>),
    /// No port was given: whether some rule asks the pair to authenticate.
    Asks(bool),
    /// It can't be asked.
    Unknown,
}

/// A pair of identities between this node and another, or on this one.
#[derive(Clone, Debug)]
pub struct Path {
    /// The pair, as the maps have it.
    pub key: AuthKey,
    /// Name of the other end's node; empty if the maps are all there is.
    pub node: String,
    /// SVID of the identity here.
    pub local_svid: Svid,
    /// SVID of the other one.
    pub remote_svid: Svid,
    /// The session with that node.
    pub session: Session,
    /// What the machine knows.
    pub handshake: Handshake,
    /// What stands in the map.
    pub entry: Entry,
    /// Packets that wait, and since when the oldest does.
    pub held: Option<(usize, Option<Timestamp>)>,
}

/// Whether an identity has its SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Svid {
    /// It has, until then.
    Available {
        /// Whose it is.
        spiffe_id: String,
        /// Its NotAfter.
        expires: Timestamp,
    },
    /// None has come yet; with what the agent last said.
    Pending {
        /// Whose it would be.
        spiffe_id: String,
        /// What is wrong with the agent; may be empty.
        problem: String,
    },
    /// The agent has taken it back.
    Withdrawn(String),
    /// Its time has passed.
    Expired(String),
    /// Its node vouches for the identity.
    Announced,
    /// Its node does not.
    NotAnnounced,
    /// Not known.
    Unknown,
}

/// How the session with a node stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Session {
    /// None is needed: it is this node.
    Local,
    /// It is up.
    Up {
        /// Since when.
        since: Timestamp,
        /// Until when, unless it is renewed.
        expires: Timestamp,
        /// Key exchange group.
        group: String,
        /// Age of the tunnel's pre-shared key; `None` while there is none.
        preshared_since: Option<Timestamp>,
    },
    /// It is lost, and the tunnel goes on until then.
    Lost {
        /// Why.
        trouble: Option<(String, Timestamp)>,
        /// The end of its tunnel.
        tunnel_until: Timestamp,
        /// Whether that has passed.
        over: bool,
    },
    /// There is none.
    None {
        /// What went wrong last.
        trouble: Option<(String, Timestamp)>,
    },
    /// By the maps: packets pass until then.
    InMap {
        /// The end.
        until: Timestamp,
        /// Whether that has passed.
        over: bool,
    },
}

/// What the authentication of a pair is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// It has succeeded, and this is what for.
    Done(&'static str),
    /// It runs.
    Running(Timestamp),
    /// It waits for its turn.
    Queued(Timestamp),
    /// It has failed.
    Failed {
        /// How often in a row; 0 if nobody has tried again for a while.
        failures: u32,
        /// Why, last.
        reason: &'static str,
        /// When.
        at: Timestamp,
        /// When it is tried again.
        retry: Option<Timestamp>,
    },
    /// A packet has asked, and something is missing.
    Asked,
    /// No packet has asked lately.
    NotAsked,
    /// Neither policy nor cluster state of this node wants it.
    NotDesired,
    /// Nobody is there to do it.
    NoDaemon,
}

/// What stands in the `auth` map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing.
    None,
    /// An entry.
    There {
        /// Its end.
        expires: Timestamp,
        /// Its epoch, and that of the node's session now.
        epochs: (u32, u32),
        /// Whether the programs count it.
        valid: bool,
        /// Whether new packets still wait behind held ones.
        draining: bool,
    },
}

/// The explanation.
#[must_use]
pub fn explain(facts: Facts) -> v1::AuthExplanation {
    let checks = checks::of_ends(&facts);
    let needed = conclusion::is_needed(&facts.policy);
    let paths: Vec<v1::AuthPath> = facts
        .paths
        .iter()
        .map(|path| {
            let checks = checks::of_path(path, needed);
            v1::AuthPath {
                local_identity: path.key.local,
                remote_identity: path.key.remote,
                remote_node: path.key.node.into(),
                remote_node_name: path.node.clone(),
                outcome: conclusion::of_path(&checks).into(),
                checks,
            }
        })
        .collect();
    let conclusion::Conclusion { outcome, reason, way_out } = conclusion::of(&facts, &checks, &paths);
    let policy = match facts.policy {
        Policy::Traced(trace) => Some(*trace),
        Policy::Asks(_) | Policy::Unknown => None,
    };
    v1::AuthExplanation {
        node: facts.node,
        from: Some(facts.from),
        to: Some(facts.to),
        port: facts.port,
        policy,
        checks,
        paths,
        outcome: outcome.into(),
        reason,
        way_out,
    }
}

/// The keys of all pairs between these identities: each end that runs here (node 0 of its nodes) with each node of
/// the other. Reserved identities never authenticate.
#[must_use]
pub fn keys(from: (u32, &[u16]), to: (u32, &[u16])) -> Vec<AuthKey> {
    let mut keys = Vec::new();
    if identity::is_reserved(from.0) || identity::is_reserved(to.0) {
        return keys;
    }
    for ((local, here), (remote, there)) in [(from, to), (to, from)] {
        for node in there.iter().copied().filter(|_| here.contains(&0)) {
            let key =
                AuthKey { local, remote, node, auth_type: auth_ebpf_abi::AuthType::Spire as u8, pad: 0 };
            // On one node the pair is one, whichever end is looked from.
            let reversed = AuthKey { local: remote, remote: local, ..key };
            if !(keys.contains(&key) || node == 0 && keys.contains(&reversed)) {
                keys.push(key);
            }
        }
    }
    keys
}
