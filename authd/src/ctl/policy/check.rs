//! `authctl policy check`: mistakes in manifests, with file, line, object and field.

use std::path::PathBuf;

use serde::Serialize;

use crate::{
    cluster::{self, Problem, Severity, Site},
    ctl::{
        cli::Format,
        error::Error,
        output::{Output, json},
        table::{count, printable},
    },
};

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report {
    policies: usize,
    errors: usize,
    warnings: usize,
    problems: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct Finding {
    severity: &'static str,
    file: Option<String>,
    line: Option<u32>,
    object: Option<String>,
    field: Option<String>,
    message: String,
}

/// Prints what is wrong; the exit status is 1 if anything is refused.
pub(super) fn run(paths: &[PathBuf], site: &Site, output: &mut Output<'_>) -> Result<u8, Error> {
    let mut cluster = cluster::load_offline(paths, site)?;
    cluster.problems.extend(cluster::capacity(&cluster, auth_ebpf_abi::capacity::POLICY));
    let errors = cluster.problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    let report = Report {
        policies: cluster.policies.len(),
        errors,
        warnings: cluster.problems.len() - errors,
        problems: cluster.problems.iter().map(finding).collect(),
    };
    let text = match output.format {
        Format::Table => words(&cluster.problems, &report),
        Format::Json => json(&report)?,
    };
    output.text(&text)?;
    Ok(u8::from(errors > 0))
}

fn finding(problem: &Problem) -> Finding {
    Finding {
        severity: word(problem.severity),
        file: problem.file.clone(),
        line: problem.line,
        object: problem.object.clone(),
        field: problem.field.clone(),
        message: problem.message.clone(),
    }
}

fn words(problems: &[Problem], report: &Report) -> String {
    let line = |problem: &Problem| {
        let text = format!("{}: {problem}", word(problem.severity));
        format!("{}\n", printable(&text))
    };
    let mut text: String = problems.iter().map(line).collect();
    text.push_str(&format!(
        "{}: {}, {}\n",
        count(report.policies, "policy", "policies"),
        count(report.errors, "error", "errors"),
        count(report.warnings, "warning", "warnings")
    ));
    text
}

const fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Notice => "warning",
    }
}
