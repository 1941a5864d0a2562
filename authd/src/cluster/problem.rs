//! What is wrong with the cluster directory, in words that name the place and the way out.
//!
//! Everything that is refused or missing becomes a [`Problem`] in the snapshot: nothing disappears silently.

use std::fmt;

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Something that was written was refused, or can't be read.
    Error,
    /// Something is incomplete, and has no traffic until it is completed.
    Notice,
}

impl Severity {
    /// The word for logs and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Notice => "notice",
        }
    }
}

/// One thing that is wrong with the directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The file's name in the directory; none if the directory itself is meant.
    pub file: Option<String>,
    /// The line in that file, from 1.
    pub line: Option<u32>,
    /// The object, such as `Pod default/xwing`.
    pub object: Option<String>,
    /// The path of the field in the object, such as `spec.podCIDRs[0]`.
    pub field: Option<String>,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Problem {
    /// An error whose place is not known yet.
    pub(super) fn error(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            file: None,
            line: None,
            object: None,
            field: None,
            message: message.into(),
        }
    }

    /// A notice whose place is not known yet.
    pub(super) fn notice(message: impl Into<String>) -> Self {
        Self { severity: Severity::Notice, ..Self::error(message) }
    }

    /// The same in this file.
    pub(super) fn in_file(self, file: &str) -> Self {
        Self { file: Some(file.to_owned()), ..self }
    }

    /// The same at this line.
    pub(super) fn at_line(self, line: u32) -> Self {
        Self { line: Some(line), ..self }
    }

    /// The same about this object.
    pub(super) fn about(self, object: impl fmt::Display) -> Self {
        Self { object: Some(object.to_string()), ..self }
    }

    /// The same in this field.
    pub(super) fn in_field(self, field: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}:")?;
            if let Some(line) = self.line {
                write!(f, "{line}:")?;
            }
            f.write_str(" ")?;
        }
        for part in [&self.object, &self.field].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_every_known_part_of_the_place() {
        let problem = Problem::error("no").in_file("a.yaml").at_line(3).about("Pod x/y").in_field("spec.a");
        assert_eq!(problem.to_string(), "a.yaml:3: Pod x/y: spec.a: no");
    }

    #[test]
    fn leaves_out_unknown_parts() {
        assert_eq!(Problem::notice("gone").to_string(), "gone");
        assert_eq!(Problem::error("bad").in_file("a.yaml").to_string(), "a.yaml: bad");
    }
}
