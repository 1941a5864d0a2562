//! What goes wrong in authctl, in one line that says what to do.

use std::{io, path::PathBuf, time::Duration};

/// An error with its causes, unless it names them itself.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let mut text = error.to_string();
    for cause in causes.map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(&format!(": {cause}"));
        }
    }
    text
}

/// Why a command has failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens on the socket.
    #[error(
        "authd is not running: {}: {source}; start it, or name its socket with --socket", socket.display()
    )]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// What connecting to it says.
        source: io::Error,
    },
    /// Nobody listens, and policies can be looked at without.
    #[error("{0}, or name a directory of manifests with --manifests")]
    NoPolicies(Box<Self>),
    /// The daemon hangs.
    #[error("authd does not answer on {} within {timeout:?}; its log says why, or give it longer with --timeout", socket.display())]
    NoAnswer {
        /// The socket.
        socket: PathBuf,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The socket is not for this user.
    #[error("no permission to open {}: run authctl as root", .0.display())]
    Forbidden(PathBuf),
    /// The daemon is older than authctl.
    #[error("this authd does not know the command: use the authctl of its own version (`authctl version`)")]
    Unknown,
    /// The daemon has said no.
    #[error("authd: {}", .0.message())]
    Refused(Box<tonic::Status>),
    /// The daemon has stopped while flows were followed.
    #[error("authd has stopped, and the flows with it; run the command again when it is back")]
    Ended,
    /// The daemon's answer lacks what it must have.
    #[error("authd's answer has no {0}: use the authctl of its own version (`authctl version`)")]
    Incomplete(&'static str),
    /// The pinned maps cannot be read or written.
    #[error("{}", chain(.0))]
    Pinned(#[from] auth_ebpf::Error),
    /// No daemon answers, and there are no maps to read instead.
    #[error("{daemon}; nor can the pinned maps be read: {maps}")]
    NothingThere {
        /// What the socket says.
        daemon: Box<Self>,
        /// What the maps say.
        maps: Box<Self>,
    },
    /// The directory of manifests is wrong.
    #[error("{}", chain(.0))]
    Cluster(#[from] crate::cluster::Error),
    /// A revocation can't be written.
    #[error("can't write a revocation into {}: {source}", directory.display())]
    Revoke {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The guard is off or the programs are gone, but traffic still goes into the tunnel.
    #[error(
        "all else is done, but the routes into the tunnel stay: {0}; see `ip rule` and `ip route show table all proto 97`"
    )]
    Steering(#[from] wg_mesh::steering::Error),
    /// A file of certificates can't be used.
    #[error("{}: {reason}", file.display())]
    Certificates {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An end of a trace isn't there.
    #[error(transparent)]
    Trace(#[from] crate::trace::Error),
    /// Without a daemon nobody knows pods by their names.
    #[error("{daemon}; the pinned maps know no names: give identity:NUMBER or ip:ADDRESS instead of {end}")]
    Nameless {
        /// What the socket says.
        daemon: Box<Self>,
        /// The end, as it was given.
        end: String,
    },
    /// `detach` was not confirmed.
    #[error(
        "detach takes every program of authd off this node: nothing is checked, nothing is encrypted; \
         say --yes if that is what you want, or let traffic pass for a while with `authctl off`"
    )]
    NotConfirmed,
    /// Writing the result has failed.
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
}

impl Error {
    /// What the process exits with.
    pub(super) fn exit_status(&self) -> u8 {
        if matches!(self, Self::NotConfirmed) { 2 } else { 1 }
    }

    /// Whether no daemon answers, so that the pinned maps are the place to look.
    pub(super) fn is_daemon_dead(&self) -> bool {
        matches!(self, Self::NotRunning { .. } | Self::NoAnswer { .. })
    }
}
