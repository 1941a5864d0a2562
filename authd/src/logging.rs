//! Structured logs: JSON for machines, text for people.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::ConfigError;

/// Target of the lines that say what has changed: their `event` and their other fields stay as they are.
pub const AUDIT: &str = "authd::audit";

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    #[default]
    Json,
    /// For a terminal.
    Text,
}

impl Format {
    /// Parses the setting `log-format`.
    ///
    /// # Errors
    /// It is neither `json` nor `text`.
    pub fn from_setting(value: Option<&str>) -> Result<Self, ConfigError> {
        match value {
            None | Some("json") => Ok(Self::Json),
            Some("text") => Ok(Self::Text),
            Some(other) => Err(ConfigError::Invalid {
                key: "log-format",
                value: other.into(),
                reason: "is no format; use json or text".into(),
            }),
        }
    }
}

/// How a process logs.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// How a line looks.
    pub format: Format,
    /// Level, or directives per module.
    pub level: String,
}

impl LogConfig {
    /// Starts logging to standard error, once per process.
    ///
    /// # Errors
    /// The level is no level and no directive.
    pub fn install(&self) -> Result<(), ConfigError> {
        let filter = EnvFilter::try_new(&self.level).map_err(|error| ConfigError::Invalid {
            key: "log-level",
            value: self.level.clone(),
            reason: format!("is no level: {error}"),
        })?;
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        // A second call, as tests make it, keeps the first subscriber.
        let _already_installed = match self.format {
            Format::Json => lines.json().flatten_event(true).try_init(),
            Format::Text => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
        };
        Ok(())
    }
}
