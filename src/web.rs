//! The agent's HTTP server: `/healthz`, `/readyz`, `/metrics`, and the dashboard with its `/api`.
//!
//! `/healthz` reports whether the agent's loop runs, whatever the database answers; `/readyz` whether the agent does its work, or
//! why not. Everything else is behind [`guard`]. Bounds: connections in all and of each address, the size and time of a request's
//! head, the size of its body, the time until it is answered, the time a peer may leave an answer unread, event streams. A
//! connection beyond the limits is closed at once. The server shares nothing with the agent's loop that could delay it.

pub mod api;
mod assets;
mod connection_limit;
pub mod guard;
mod login_throttle;
pub mod token;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRef, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower_http::timeout::TimeoutLayer;

use self::api::Dashboard;
use self::connection_limit::ConnectionLimit;
pub use self::connection_limit::{CONNECTIONS_MAX, CONNECTIONS_PER_ADDRESS};
use self::guard::Access;

/// A scrape's content type and text, or what is wrong with the request.
pub type Scraped = Result<(&'static str, String), String>;
/// Answers a scrape, by the query's list of distributions and the header `Accept`.
pub type ScrapeFn = dyn Fn(&str, &str) -> Scraped + Send + Sync;

/// What the handlers ask for. Each answer is computed when it is asked for.
#[derive(Clone)]
pub struct Pages {
    /// Time since the agent's loop last made progress; `None`: it has not begun.
    pub loop_age: Arc<dyn Fn() -> Option<Duration> + Send + Sync>,
    /// Why the agent is not ready; empty when it is.
    pub unready: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    /// `/metrics`
    pub metrics: Arc<ScrapeFn>,
    /// `/api`
    pub dashboard: Dashboard,
}

impl FromRef<Pages> for Dashboard {
    fn from_ref(pages: &Pages) -> Self {
        pages.dashboard.clone()
    }
}

impl FromRef<Pages> for Arc<Access> {
    fn from_ref(pages: &Pages) -> Self {
        Arc::clone(&pages.dashboard.access)
    }
}

/// The loop makes progress every second; one that has made none for this long hangs.
const LOOP_HANGS_AFTER: Duration = Duration::from_secs(15);
/// Accepted connections that wait in the kernel.
const BACKLOG: u32 = 1_024;
/// Bytes of unread answers that the kernel keeps for a connection.
const SEND_BUFFER: u32 = 256 * 1024;
/// The kernel closes a connection whose peer reads nothing of an answer for this long, in milliseconds (`TCP_USER_TIMEOUT`).
#[cfg(target_os = "linux")]
const UNREAD_MS: u32 = 10_000;
/// The longest head of a request, in bytes.
const HEAD_MAX: usize = 32 * 1024;
/// A connection that has sent no whole head for this long is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest body, in bytes.
const BODY_MAX: usize = 4 * 1024;
/// From a request's head to the head of its answer; the body and the answer of the agent's loop come in between.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const _: () = assert!(api::QUERY_TIMEOUT.as_secs() < ANSWER_TIMEOUT.as_secs());
/// Pause after a failed accept (no free descriptor).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Binds a listener, so that its address is known.
pub fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    bound(address).with_context(|| {
        format!(
            "cannot listen on {address}; use --listen with another address, or port 0 for any free one"
        )
    })
}

/// Connections inherit the listener's buffer size and timeout.
fn bound(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    #[cfg(target_os = "linux")]
    nix::sys::socket::setsockopt(
        &socket,
        nix::sys::socket::sockopt::TcpUserTimeout,
        &UNREAD_MS,
    )?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn router(pages: Pages) -> Router {
    let access = Arc::clone(&pages.dashboard.access);
    Router::new()
        .route("/", get(assets::index))
        .route("/assets/{name}", get(assets::asset))
        .route("/login", get(assets::login).post(guard::log_in))
        .route("/logout", post(guard::log_out))
        .route("/api/snapshot", get(api::snapshot))
        .route("/api/events", get(api::events))
        .route("/api/distributions/{id}", get(api::detail))
        .route("/api/distributions/{id}/pause", post(api::pause))
        .route("/api/distributions/{id}/resume", post(api::resume))
        .route("/api/distributions/{id}/rate", post(api::rate))
        .route("/api/partners/{id}/distribute", post(api::distribute))
        .route("/api/pause", post(api::pause_all))
        .route("/api/resume", post(api::resume_all))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::REQUEST_TIMEOUT,
            ANSWER_TIMEOUT,
        ))
        .layer(from_fn_with_state(access, guard::guard))
        // Supervisors know neither host names nor tokens.
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(pages)
}

/// Serves until `shutdown` is cancelled.
pub async fn serve(
    listener: TcpListener,
    pages: Pages,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let router = router(pages);
    let mut limit = ConnectionLimit::default();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_ended) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        // Left unaccepted, refused connections would fill the kernel's queue and keep others out.
        if let Some(permit) = limit.admit(peer.ip()) {
            let answering = answer(stream, peer, router.clone());
            connections.spawn(async move {
                answering.await;
                drop(permit);
            });
        }
    }
    connections.shutdown().await;
    Ok(())
}

/// Serves one connection to its end.
async fn answer(stream: TcpStream, peer: SocketAddr, router: Router) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        router.call(request)
    });
    // A peer that hangs up in the middle harms nobody else.
    let _ended = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .is_ok();
}

async fn healthz(State(pages): State<Pages>) -> Response {
    match (pages.loop_age)() {
        Some(age) if age > LOOP_HANGS_AFTER => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "the agent's loop has made no progress for {} s\n",
                age.as_secs()
            ),
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

/// The query of `/metrics`.
#[derive(serde::Deserialize)]
struct MetricsQuery {
    /// Ids separated by commas.
    #[serde(default)]
    distributions: String,
}

async fn metrics(
    State(pages): State<Pages>,
    Query(query): Query<MetricsQuery>,
    headers: HeaderMap,
) -> Response {
    let accept = headers.get(header::ACCEPT);
    let accept = accept.and_then(|accept| accept.to_str().ok()).unwrap_or("");
    match (pages.metrics)(&query.distributions, accept) {
        Ok((content_type, text)) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}
