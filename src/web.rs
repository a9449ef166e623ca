//! The agent's own HTTP: `/healthz`, `/readyz`, `/metrics`, and the dashboard with what it asks for below `/api`.
//!
//! `/healthz` says that the agent gets on, whatever the database answers; `/readyz` that the agent does its work, or why not.
//! Everything else is behind [`guard`]. Bounds: connections, heads and bodies with the time for each, answers that nobody
//! reads, listeners. Who comes beyond them is refused, but for connections: there the newest wins ([`places`]). Pacing knows
//! nothing of all this.

pub mod api;
mod assets;
pub mod guard;
mod login_throttle;
mod places;
mod stream;
pub mod token;
pub mod view;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::to_bytes;
use axum::extract::{ConnectInfo, Extension, FromRef, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
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

use self::api::Desk;
use self::guard::Access;
use self::places::{Place, Places, Standing};
use self::stream::Stream;
use crate::observe::RowsAsked;
use crate::observe::text::Format;

/// Writes the text of `/metrics`.
pub type Scraping = dyn Fn(&RowsAsked, Format) -> String + Send + Sync;

/// What the pages ask. Each answer is computed when it is asked for.
#[derive(Clone)]
pub struct Pages {
    /// How long ago the agent last got on with its work; `None`: its loop has not begun.
    pub loop_age: Arc<dyn Fn() -> Option<Duration> + Send + Sync>,
    /// Why the agent is not ready; empty when it is.
    pub unready: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    /// The text of `/metrics`, with series of these rows.
    pub metrics: Arc<Scraping>,
    /// What the dashboard asks.
    pub desk: Desk,
}

impl FromRef<Pages> for Desk {
    fn from_ref(pages: &Pages) -> Self {
        pages.desk.clone()
    }
}

impl FromRef<Pages> for Arc<Access> {
    fn from_ref(pages: &Pages) -> Self {
        Arc::clone(&pages.desk.access)
    }
}

/// An agent gets on every second; one that has not for so long hangs.
const LOOP_HANGS_AFTER: Duration = Duration::from_secs(15);
/// Connections at once. For a further one another makes room.
pub const CONNECTIONS_MAX: usize = 256;
const _: () = assert!(
    api::LISTENERS_MAX + api::ASKS_WAITING < CONNECTIONS_MAX,
    "listeners and whoever is being answered leave places for others"
);
/// Connections that wait for being taken, with the kernel.
const BACKLOG: u32 = 1_024;
/// What the kernel keeps of an answer that a peer has not read, in bytes.
const UNREAD_MAX: u32 = 256 * 1024;
/// A connection whose peer has not read anything of a waiting answer for so long is closed.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// The longest head, in bytes.
const HEAD_MAX: usize = 32 * 1024;
/// A connection on which no request's head has come for so long is closed.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// A body that has not come whole so long after its head is given up.
const BODY_WITHIN: Duration = Duration::from_secs(5);
/// The longest body, in bytes.
const BODY_MAX: usize = 4 * 1024;
/// After an accept that failed (no file to be had) it is tried again so much later.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A listener, bound, so that its address is known.
pub fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    bound(address).with_context(|| {
        format!(
            "listen on {address}; use --listen with another address, or port 0 for any free one"
        )
    })
}

/// Connections have the listener's sizes.
fn bound(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(UNREAD_MAX)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn router(pages: Pages) -> Router {
    let access = Arc::clone(&pages.desk.access);
    Router::new()
        .route("/", get(assets::index))
        .route("/assets/{name}", get(assets::asset))
        .route("/login", get(assets::login).post(guard::log_in))
        .route("/logout", post(guard::log_out))
        .route("/api/board", get(api::board))
        .route("/api/events", get(api::events))
        .route("/api/rows/{id}", get(api::row))
        .route("/api/rows/{id}/pause", post(api::pause))
        .route("/api/rows/{id}/resume", post(api::resume))
        .route("/api/rows/{id}/rate", post(api::rate))
        .route("/api/partners/{id}/distribute", post(api::distribute))
        .route("/api/pause", post(api::pause_all))
        .route("/api/resume", post(api::resume_all))
        .route("/metrics", get(metrics))
        .layer(from_fn(whole))
        .layer(from_fn_with_state(access, guard::guard))
        // Whoever looks after the process knows neither names nor tokens.
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(pages)
}

/// Serves until it is told to stop.
pub async fn serve(
    listener: TcpListener,
    pages: Pages,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let router = router(pages);
    let places = Places::default();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_ended) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            places.make_room(1);
            tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
            continue;
        };
        while connections.len() >= CONNECTIONS_MAX {
            places.make_room(CONNECTIONS_MAX);
            connections.join_next().await;
        }
        connections.spawn(answer(stream, peer, places.take(), router.clone()));
    }
    connections.shutdown().await;
    Ok(())
}

/// Serves one connection to its end, or until it must make room.
async fn answer(stream: TcpStream, peer: SocketAddr, place: Place, router: Router) {
    let router = TowerToHyperService::new(router);
    let its_place = place.clone();
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        let extensions = request.extensions_mut();
        extensions.insert(ConnectInfo(peer));
        extensions.insert(its_place.clone());
        router.call(request)
    });
    let mut serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(Stream::new(stream, READ_WITHIN)), service);
    tokio::select! {
        biased; // what has been asked already is answered first
        // Whoever hangs up in the middle has harmed nobody else.
        _ended = &mut serving => {}
        () = place.leaves() => serving.into_parts().io.into_inner().abandon(),
    }
}

/// Reads the body before a handler asks for it: one that never ended would keep its connection for ever.
async fn whole(Extension(place): Extension<Place>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    match tokio::time::timeout(BODY_WITHIN, to_bytes(body, BODY_MAX)).await {
        Ok(Ok(body)) => {
            let _answering = place.during(Standing::Answers);
            next.run(Request::from_parts(head, body.into())).await
        }
        Ok(Err(_)) => refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a body has at most {BODY_MAX} bytes, and all that it announces\n"),
        ),
        Err(_late) => refused(
            StatusCode::REQUEST_TIMEOUT,
            format!(
                "the body was not whole within {} s\n",
                BODY_WITHIN.as_secs()
            ),
        ),
    }
}

/// What is left of the request is not waited for.
fn refused(status: StatusCode, words: String) -> Response {
    (status, [(header::CONNECTION, "close")], words).into_response()
}

async fn healthz(State(pages): State<Pages>) -> Response {
    match (pages.loop_age)() {
        Some(age) if age > LOOP_HANGS_AFTER => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the agent has not got on for {} s\n", age.as_secs()),
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
