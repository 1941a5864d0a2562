//! `authctl policy get`: the policies there are, and what isn't done as they are written.

use serde::Serialize;

use crate::{
    api::v1,
    cluster,
    ctl::{
        cli::{Format, Global, Manifests},
        error::Error,
        output::{Output, json},
        table::Table,
    },
    trace,
};

#[derive(Debug, Serialize)]
struct Policies {
    policies: Vec<v1::Policy>,
}

/// Lists them; those named only, if any are.
pub(super) async fn run(
    manifests: &Manifests,
    names: &[String],
    global: &Global,
    output: &mut Output<'_>,
) -> Result<u8, Error> {
    let mut policies = if manifests.manifests.is_empty() {
        super::daemon(global).await?.policies().await?
    } else {
        trace::policies(&cluster::load_offline(&manifests.manifests, &manifests.site.site())?)
    };
    policies.retain(|policy| {
        let full_name = format!("{}/{}", policy.namespace, policy.name);
        names.is_empty() || names.iter().any(|name| *name == policy.name || *name == full_name)
    });
    let body = Policies { policies };
    let text = match output.format {
        Format::Table => table(&body),
        Format::Json => json(&body)?,
    };
    output.text(&text)?;
    Ok(0)
}

fn table(body: &Policies) -> String {
    let mut table = Table::new(["KIND", "NAMESPACE", "NAME", "RULES", "SELECTS", "CONDITIONS"]);
    for policy in &body.policies {
        let condition = |one: &v1::PolicyCondition| format!("{}: {}: {}", one.kind, one.path, one.message);
        let conditions: Vec<String> = policy.conditions.iter().map(condition).collect();
        table.row([
            policy.kind.clone(),
            policy.namespace.clone(),
            policy.name.clone(),
            policy.rules.to_string(),
            policy.selectors.join("; "),
            conditions.join("; "),
        ]);
    }
    table.render()
}
