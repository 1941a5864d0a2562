//! The authd binary: parses the command line and runs what it names.

use std::process::ExitCode;

use authd::cli::Cli;
use clap::Parser;

fn main() -> ExitCode {
    authd::run::run(Cli::parse())
}
