//! `authctl`: what people ask a node's daemon, and the way out when it is dead.
//!
//! One module a command. Each fetches messages of the API (or reads the pinned maps), and renders them by
//! pure functions as a table for people or as JSON for programs; golden tests hold both.

mod auth;
mod bundle;
mod cli;
mod client;
mod detach;
mod drops;
mod encrypt;
mod error;
#[cfg(test)]
mod fixture;
mod guard;
mod identities;
mod observe;
mod output;
mod pinned;
mod policy;
mod revoke;
mod status;
mod svid;
mod table;
#[cfg(test)]
mod tests;
mod time;
mod version;

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;

pub use cli::Cli;
pub use error::Error;
use output::Output;

/// Runs authctl with the process's arguments, and says with which status it exits: 0 done, 1 failed,
/// 2 not understood.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::from(run(std::env::args_os(), &mut io::stdout(), &mut io::stderr()))
}

/// Runs authctl with `arguments` (the first is its name) and returns its exit status.
pub fn run<A>(arguments: A, stdout: &mut dyn Write, stderr: &mut dyn Write) -> u8
where
    A: IntoIterator,
    A::Item: Into<OsString> + Clone,
{
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" of clap's that go to stdout and succeed.
            let to: &mut dyn Write = if error.use_stderr() { stderr } else { stdout };
            let written = write!(to, "{}", error.render());
            return if written.is_ok() { u8::try_from(error.exit_code()).unwrap_or(2) } else { 1 };
        }
    };
    match execute(&cli, &mut Output::new(cli.global.output, stdout, stderr)) {
        Ok(status) => status,
        // The reader has had enough (`authctl observe | head`).
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            // Nobody is left to tell if this fails.
            _ = writeln!(stderr, "authctl: {error}");
            error.exit_status()
        }
    }
}

fn execute(cli: &Cli, output: &mut Output<'_>) -> Result<u8, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(dispatch(cli, output))
}

async fn dispatch(cli: &Cli, output: &mut Output<'_>) -> Result<u8, Error> {
    use cli::{AuthCommand, BundleCommand, Command, EncryptCommand, IdentitiesCommand, SvidCommand};

    let global = &cli.global;
    match &cli.command {
        Command::Status(args) => return status::run(args, global, output).await,
        Command::Auth(AuthCommand::List) => auth::list(global, output).await?,
        Command::Auth(AuthCommand::Explain(args)) => auth::explain(args, global, output).await?,
        Command::Auth(AuthCommand::Flush) => auth::flush(global, output).await?,
        Command::Encrypt(EncryptCommand::Status) => encrypt::run(global, output).await?,
        Command::Observe(args) => observe::run(args, global, output).await?,
        Command::Revoke(args) => revoke::run(args, output)?,
        Command::Identities(IdentitiesCommand::List) => identities::list(global, output).await?,
        Command::Identities(IdentitiesCommand::Allocate { directory, cluster }) => {
            identities::allocate(directory, &cluster.site(), output)?;
        }
        Command::Svid(SvidCommand::List) => svid::list(global, output).await?,
        Command::Svid(SvidCommand::Check(args)) => return svid::check(args, output),
        Command::Bundle(BundleCommand::List) => bundle::list(global, output).await?,
        Command::Policy(command) => return policy::run(command, global, output).await,
        Command::Off(args) => guard::off(args, global, output).await?,
        Command::On(args) => guard::on(args, global, output).await?,
        Command::Drops => drops::run(global, output)?,
        Command::Detach(args) => detach::run(args, global, output).await?,
        Command::Version => version::run(global, output).await?,
    }
    Ok(0)
}
