//! `authctl revoke`.

use std::path::PathBuf;

use serde::Serialize;

use super::{
    cli::{Format, RevokeArgs},
    error::Error,
    output::{Output, json},
};
use crate::cluster::{self, Revoked};

#[derive(Debug, Serialize)]
struct Written {
    file: PathBuf,
}

/// Writes the revocation; needs no daemon, for every daemon reads the directory.
pub(super) fn run(args: &RevokeArgs, output: &mut Output<'_>) -> Result<(), Error> {
    let revoked = match (&args.node, args.identity) {
        (Some(node), _) => Revoked::Node(node.clone()),
        (None, number) => Revoked::Identity(number.unwrap_or_default()),
    };
    let file = cluster::revoke(&args.directory, &revoked, &args.reason)
        .map_err(|source| Error::Revoke { directory: args.directory.clone(), source })?;
    let text = match output.format {
        Format::Table => {
            format!("every node refuses it from now on; delete {} to take it back\n", file.display())
        }
        Format::Json => json(&Written { file })?,
    };
    output.text(&text)
}
