//! `authctl policy check`, `trace` and `get`: policies of a daemon, or of manifests without one.

mod check;
mod get;
mod trace;

use super::{
    cli::{Global, PolicyCommand},
    client::Daemon,
    error::Error,
    output::Output,
};

/// Runs the command and says with which status authctl exits.
pub(super) async fn run(
    command: &PolicyCommand,
    global: &Global,
    output: &mut Output<'_>,
) -> Result<u8, Error> {
    match command {
        PolicyCommand::Check { paths, site } => check::run(paths, &site.site(), output),
        PolicyCommand::Trace(args) => trace::run(args, global, output).await,
        PolicyCommand::Get { manifests, names } => get::run(manifests, names, global, output).await,
    }
}

/// The daemon, or how to do without it.
async fn daemon(global: &Global) -> Result<Daemon, Error> {
    let connected = Daemon::connect(global).await;
    connected.map_err(|error| {
        if matches!(error, Error::NotRunning { .. }) { Error::NoPolicies(Box::new(error)) } else { error }
    })
}

#[cfg(test)]
mod tests;
