//! Where results go: stdout as a table or JSON, notes for people to stderr.

use std::io::Write;

use serde::Serialize;

use super::{cli::Format, error::Error};

/// The two streams, and the format of the first.
pub(super) struct Output<'a> {
    pub(super) format: Format,
    stdout: &'a mut dyn Write,
    stderr: &'a mut dyn Write,
}

/// Where a result comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Origin {
    /// The daemon has answered.
    #[serde(rename = "daemon")]
    Daemon,
    /// The daemon is dead; the kernel's maps were read.
    #[serde(rename = "pinned maps")]
    PinnedMaps,
}

/// A result with where it comes from, for JSON.
#[derive(Debug, Serialize)]
pub(super) struct Sourced<T> {
    pub(super) source: Origin,
    #[serde(flatten)]
    pub(super) body: T,
}

impl<'a> Output<'a> {
    pub(super) fn new(format: Format, stdout: &'a mut dyn Write, stderr: &'a mut dyn Write) -> Self {
        Self { format, stdout, stderr }
    }

    /// Writes `body` as JSON, or what `table` makes of it.
    pub(super) fn print<T: Serialize>(
        &mut self,
        source: Origin,
        body: T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<(), Error> {
        let text = match self.format {
            Format::Table => table(&body),
            Format::Json => json(&Sourced { source, body })?,
        };
        self.text(&text)
    }

    /// Writes `text` as it is.
    pub(super) fn text(&mut self, text: &str) -> Result<(), Error> {
        self.stdout.write_all(text.as_bytes())?;
        self.stdout.flush()?;
        Ok(())
    }

    /// Writes one line ahead of a table; JSON has a field for it.
    pub(super) fn header(&mut self, line: &str) -> Result<(), Error> {
        match self.format {
            Format::Table => self.text(&format!("{line}\n")),
            Format::Json => Ok(()),
        }
    }

    /// Writes one line for people, which is no part of the result.
    pub(super) fn note(&mut self, line: &str) -> Result<(), Error> {
        writeln!(self.stderr, "authctl: {line}")?;
        Ok(())
    }
}

/// Indented JSON with a newline at its end.
pub(super) fn json<T: Serialize>(value: &T) -> Result<String, Error> {
    let mut text = serde_json::to_string_pretty(value).map_err(std::io::Error::from)?;
    text.push('\n');
    Ok(text)
}
