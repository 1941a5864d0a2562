//! `authctl version`.

use serde::Serialize;

use super::{
    cli::{Format, Global},
    client::Daemon,
    error::Error,
    output::{Output, json},
};

/// The version that this was built from.
const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, Serialize)]
struct Versions {
    authctl: &'static str,
    /// `null` if no daemon answers.
    authd: Option<String>,
}

pub(super) async fn run(global: &Global, output: &mut Output<'_>) -> Result<(), Error> {
    let status = async { Daemon::connect(global).await?.status().await };
    let authd = match status.await {
        Ok(status) => Some(status.version),
        Err(error) => {
            output.note(&error.to_string())?;
            None
        }
    };
    let versions = Versions { authctl: VERSION, authd };
    let text = match output.format {
        Format::Json => json(&versions)?,
        Format::Table => {
            let authd = versions.authd.as_deref().unwrap_or("unknown");
            format!("authctl {}\nauthd {authd}\n", versions.authctl)
        }
    };
    output.text(&text)
}
