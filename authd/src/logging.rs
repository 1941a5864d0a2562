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

/// Lines as a test finds them.
#[cfg(test)]
pub(crate) mod lines {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use serde_json::{Map, Value};

    use super::AUDIT;

    /// What has been written, in the form of JSON.
    #[derive(Clone, Default)]
    pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        /// What writes them here.
        pub(crate) fn subscriber(&self) -> impl tracing::Subscriber + Send + Sync + use<> {
            let writer = self.clone();
            tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish()
        }

        /// Those about what has changed.
        pub(crate) fn audit(&self) -> Vec<Map<String, Value>> {
            let bytes = self.0.lock().unwrap().clone();
            let lines = serde_json::Deserializer::from_slice(&bytes).into_iter::<Map<String, Value>>();
            lines.map(Result::unwrap).filter(|line| line["target"] == AUDIT).collect()
        }
    }

    /// The fields of a line about an event. Whoever reads these lines by a program relies on them: the operations guide
    /// has all of them.
    pub(crate) fn fields<'a>(line: &'a Map<String, Value>, event: &str) -> Vec<&'a str> {
        let guide = include_str!("../../docs/operations.md");
        let row = guide.lines().find(|row| row.starts_with("| ") && row.contains(&format!("`{event}`")));
        let row = row.unwrap_or_else(|| panic!("no row of {event}"));
        let of_all = ["timestamp", "level", "message", "target", "event"];
        let fields: Vec<&str> = line.keys().map(String::as_str).filter(|it| !of_all.contains(it)).collect();
        for field in &fields {
            assert!(row.contains(&format!("`{field}`")), "{event}: {field}");
        }
        fields
    }
}
