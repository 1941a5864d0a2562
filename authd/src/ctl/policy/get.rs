//! `authctl policy get`: the policies there are, and what isn't done as they are written.

use std::path::PathBuf;

use policy::{Condition, ObjectRef, Policy, Subject};
use serde::Serialize;

use crate::{
    cluster,
    ctl::{
        cli::Format,
        error::Error,
        output::{Output, json},
        table::Table,
    },
};

#[derive(Debug, Serialize)]
struct Policies {
    policies: Vec<Row>,
}

/// One policy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    #[serde(flatten)]
    object: ObjectRef,
    refused: bool,
    selectors: Vec<String>,
    rules: usize,
    conditions: Vec<Condition>,
}

/// Lists them; those named only, if any are.
pub(super) fn run(manifests: &[PathBuf], names: &[String], output: &mut Output<'_>) -> Result<u8, Error> {
    let cluster = cluster::load_offline(manifests)?;
    let mut conditions = cluster.policies.conditions(&cluster.identities, &cluster.surroundings);
    let is_meant = |object: &ObjectRef| {
        let full_name = format!("{}/{}", object.namespace, object.name);
        names.is_empty() || names.iter().any(|name| *name == object.name || *name == full_name)
    };
    let policies = cluster.policies.iter().filter(|policy| is_meant(&policy.object));
    let row = |policy: &Policy| row(policy, conditions.remove(&policy.object).unwrap_or_default());
    let body = Policies { policies: policies.map(row).collect() };
    let text = match output.format {
        Format::Table => table(&body),
        Format::Json => json(&body)?,
    };
    output.text(&text)?;
    Ok(0)
}

fn row(policy: &Policy, conditions: Vec<Condition>) -> Row {
    let of_spec = policy.specs.iter().map(|spec| match &spec.subject {
        Subject::Endpoints(selector) => selector.to_string(),
        Subject::Nodes => "nodes".to_owned(),
    });
    let of_refused = policy.refused.iter().flatten().map(ToString::to_string);
    Row {
        object: policy.object.clone(),
        refused: policy.refused.is_some(),
        selectors: of_spec.chain(of_refused).collect(),
        rules: policy.specs.iter().map(|spec| spec.rules.len()).sum(),
        conditions,
    }
}

fn table(body: &Policies) -> String {
    let mut table = Table::new(["KIND", "NAMESPACE", "NAME", "RULES", "SELECTS", "CONDITIONS"]);
    for row in &body.policies {
        let conditions: Vec<String> = row.conditions.iter().map(ToString::to_string).collect();
        table.row([
            row.object.kind.as_str().to_owned(),
            row.object.namespace.clone(),
            row.object.name.clone(),
            row.rules.to_string(),
            row.selectors.join("; "),
            conditions.join("; "),
        ]);
    }
    table.render()
}
