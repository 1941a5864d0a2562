//! Metrics and health over HTTP: read-only, nothing in it reveals an address or a name.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router, extract::State, http::StatusCode, http::header::CONTENT_TYPE, response::IntoResponse,
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::readiness::Readiness;

/// Why the endpoint can't be served.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {address} for metrics and health: {source}; set another --http-address")]
pub struct HttpError {
    address: SocketAddr,
    source: std::io::Error,
}

/// What is scraped.
pub trait Exposition: Send + Sync + 'static {
    /// The metrics.
    fn registry(&self) -> &Registry;

    /// The text that Prometheus reads (OpenMetrics).
    ///
    /// # Errors
    /// A metric can't be formatted.
    fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, self.registry())?;
        Ok(text)
    }
}

/// What the endpoint shows.
#[derive(Clone)]
struct Shown {
    metrics: Arc<dyn Exposition>,
    readiness: Readiness,
}

/// Binds `address`.
///
/// # Errors
/// The address is taken or not this host's.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, HttpError> {
    TcpListener::bind(address).await.map_err(|source| HttpError { address, source })
}

/// Serves `/metrics`, `/healthz` and `/readyz` until `shutdown`.
///
/// # Errors
/// The listener fails.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<dyn Exposition>,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(show_metrics))
        // Depends on nothing outside the process: a restart would cure nothing else.
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(show_readiness))
        .with_state(Shown { metrics, readiness });
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

async fn show_metrics(State(shown): State<Shown>) -> impl IntoResponse {
    match shown.metrics.encode() {
        Ok(text) => (
            StatusCode::OK,
            [(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            text,
        ),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], format!("{error}\n"))
        }
    }
}

async fn show_readiness(State(shown): State<Shown>) -> (StatusCode, String) {
    let pending = shown.readiness.pending();
    if pending.is_empty() {
        return (StatusCode::OK, "ok\n".into());
    }
    let lines = pending.iter().map(|(condition, reason)| format!("{condition}: {reason}\n"));
    (StatusCode::SERVICE_UNAVAILABLE, lines.collect())
}
