//! `authctl detach`: takes every program of authd off this node, and then the routes into the tunnel.

use serde::Serialize;

use super::{
    cli::{DetachArgs, Global},
    client::Daemon,
    error::Error,
    output::{Origin, Output},
    table::count,
};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Detached {
    /// Programs.
    detached: usize,
    /// Routes and rules into the tunnel.
    routes_removed: usize,
}

pub(super) async fn run(args: &DetachArgs, global: &Global, output: &mut Output<'_>) -> Result<(), Error> {
    if !args.yes {
        return Err(Error::NotConfirmed);
    }
    if Daemon::connect(global).await.is_ok() {
        output.note("authd is running and will attach its programs again; stop it first")?;
    }
    let detached = auth_ebpf::detach_all(&global.pin_dir)?;
    let routes_removed = wg_mesh::steering::clear().await?.removed;
    output.print(Origin::PinnedMaps, Detached { detached, routes_removed }, |body| {
        let programs = count(body.detached, "program", "programs");
        let routes = count(body.routes_removed, "route or rule", "routes and rules");
        format!(
            "{programs} detached, {routes} removed; authd checks and encrypts nothing on this node any more\n"
        )
    })
}
