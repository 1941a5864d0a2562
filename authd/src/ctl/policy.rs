//! `authctl policy check`, `trace` and `get`: policies on manifests alone, without a daemon.

mod check;
mod end;
mod get;
mod port;
mod trace;

pub(super) use end::End;
pub(super) use port::Port;

use super::{cli::PolicyCommand, error::Error, output::Output};

/// Runs the command and says with which status authctl exits.
pub(super) fn run(command: &PolicyCommand, output: &mut Output<'_>) -> Result<u8, Error> {
    match command {
        PolicyCommand::Check { paths } => check::run(paths, output),
        PolicyCommand::Trace(args) => trace::run(args, output),
        PolicyCommand::Get { manifests, names } => get::run(&manifests.manifests, names, output),
    }
}

#[cfg(test)]
mod tests;
