//! The target of the well-known scenario: `POST /v1/request-landing` at port 80 of every address.

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use axum::Router;
use axum::routing::post;
use tokio::net::TcpListener;

const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), 80);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let listener = TcpListener::bind(ADDRESS).await.context("listen at port 80")?;
    let router = Router::new().route("/v1/request-landing", post(async || "Ship landed\n"));
    Ok(axum::serve(listener, router).await?)
}
