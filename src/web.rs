//! The agent's own HTTP: `/healthz`, `/readyz`, `/metrics`.
//!
//! `/healthz` says that the loop turns; `/readyz` that the agent does its work, or why not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::observe::RowsAsked;
use crate::observe::text::Format;

/// Writes the text of `/metrics`.
pub type Scraping = dyn Fn(&RowsAsked, Format) -> String + Send + Sync;

/// What the pages ask. Each answer is computed when it is asked for.
#[derive(Clone)]
pub struct Pages {
    /// How long ago the loop last showed itself; `None`: not yet.
    pub loop_age: Arc<dyn Fn() -> Option<Duration> + Send + Sync>,
    /// Why the agent is not ready; empty when it is.
    pub unready: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    /// The text of `/metrics`, with series of these rows.
    pub metrics: Arc<Scraping>,
}

/// The loop shows itself every second; when it has not for so long, it hangs.
const LOOP_HANGS_AFTER: Duration = Duration::from_secs(15);

/// A listener, bound, so that its address is known.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!(
            "listen on {address}; use --listen with another address, or port 0 for any free one"
        )
    })
}

/// Serves until it is told to stop.
pub async fn serve(
    listener: TcpListener,
    pages: Pages,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(pages);
    axum::serve(listener, router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
        .context("serve HTTP")
}

async fn healthz(State(pages): State<Pages>) -> Response {
    match (pages.loop_age)() {
        Some(age) if age > LOOP_HANGS_AFTER => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the loop has not turned for {} s\n", age.as_secs()),
        )
            .into_response(),
        Some(_) | None => "ok\n".into_response(),
    }
}

async fn readyz(State(pages): State<Pages>) -> Response {
    let reasons = (pages.unready)();
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("not ready: {}\n", reasons.join("; ")),
    )
        .into_response()
}

/// What may be asked of `/metrics`.
#[derive(serde::Deserialize)]
struct Scraped {
    /// Ids with commas between them.
    #[serde(default)]
    rows: String,
}

async fn metrics(
    State(pages): State<Pages>,
    Query(asked): Query<Scraped>,
    headers: HeaderMap,
) -> Response {
    let rows: RowsAsked = match asked.rows.parse() {
        Ok(rows) => rows,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    };
    let accept = headers.get(header::ACCEPT);
    let format = Format::accepted(accept.and_then(|accept| accept.to_str().ok()).unwrap_or(""));
    (
        [(header::CONTENT_TYPE, format.content_type())],
        (pages.metrics)(&rows, format),
    )
        .into_response()
}
