//! `/api`: what the page shows, live, and the edits that it makes. Each edit is an edit of the table.
//!
//! Owns JSON in and out. What is shown and who carries an edit out is the runtime's: it answers an [`Ask`] each time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{Stream, unfold};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot};
use uuid::Uuid;

use super::guard::Access;
use super::view::{RowView, Second};
use crate::domain::time::DbTime;

/// Browsers that are told live, at once.
pub const LISTENERS_MAX: usize = 32;
/// Frames that a slow listener may be behind; then it is sent the whole board again.
pub const FRAMES_KEPT: usize = 4;
/// Asks that may wait.
pub const ASKS_WAITING: usize = 64;
/// How long an ask may take.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(15);
/// A quiet line is kept open by a comment each so often.
const COMMENT_EVERY: Duration = Duration::from_secs(15);

/// An edit of the table, or of the control row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Edit {
    /// `is_active` of a row.
    Active(Uuid, bool),
    /// `visits_per_unit` and `time_period` of a row, as text: the database judges them.
    Rate(Uuid, String, String),
    /// So many visits for a partner, at once.
    Distribute(Uuid, i32),
    /// `paused` of the control row.
    Paused(bool),
}

/// What came of an edit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Done {
    /// Visits that were stored by it.
    pub added: Option<i64>,
    /// In words.
    pub message: Option<String>,
}

/// Why there is no answer, or an edit was not made; with what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// There is no such row.
    Unknown(String),
    /// Somebody holds the row.
    Held(String),
    /// The database does not take the value.
    Value(String),
    /// The database is away, or says no.
    Database(String),
}

/// One frame for every listener.
#[derive(Debug)]
pub struct Frame {
    /// The data of an event `head`.
    pub head: String,
    /// The data of an event `rows`.
    pub rows: String,
}

/// A board, and all frames from there on.
pub type Watched = (Arc<str>, broadcast::Receiver<Arc<Frame>>);

/// The seconds of a row that ended after a moment, and the number of the last visit that was counted.
pub struct Seconds {
    /// In order.
    pub seconds: Vec<Second>,
    /// Where to go on.
    pub from: DbTime,
}

/// What the page asks of the runtime.
pub enum Ask {
    /// The whole board, once.
    Board(oneshot::Sender<Arc<str>>),
    /// The whole board, and then what changes.
    Watch(oneshot::Sender<Watched>),
    /// One row from near.
    Row(Uuid, oneshot::Sender<Result<Box<RowView>, Refused>>),
    /// The seconds of one row since a moment; `None`: the last two minutes.
    Seconds(
        Uuid,
        Option<DbTime>,
        oneshot::Sender<Result<Seconds, Refused>>,
    ),
    /// An edit.
    Edit(Edit, oneshot::Sender<Result<Done, Refused>>),
}

/// What handlers need.
#[derive(Clone)]
pub struct Desk {
    /// Where asks go.
    pub asks: mpsc::Sender<Ask>,
    /// Room for listeners.
    pub listeners: Arc<Semaphore>,
    /// Who may edit.
    pub access: Arc<Access>,
}

impl Desk {
    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Response> {
        let (answer, answered) = oneshot::channel();
        let busy = || {
            let error = "the agent is busy or stopping; try again";
            problem(StatusCode::SERVICE_UNAVAILABLE, error)
        };
        self.asks.try_send(ask(answer)).map_err(|_| busy())?;
        match tokio::time::timeout(ASK_TIMEOUT, answered).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Err(busy()),
        }
    }

    async fn edit(&self, edit: Edit) -> Response {
        if self.access.read_only {
            let error = "this agent's pages are read-only (--read-only); edit the table itself";
            return problem(StatusCode::FORBIDDEN, error);
        }
        match self.ask(|answer| Ask::Edit(edit, answer)).await {
            Ok(Ok(done)) => {
                let Done { added, message } = done;
                Json(json!({ "ok": true, "added": added, "message": message })).into_response()
            }
            Ok(Err(refused)) => refused.into_response(),
            Err(busy) => busy,
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, error) = match &self {
            Self::Unknown(why) => (StatusCode::NOT_FOUND, why),
            Self::Held(why) => (StatusCode::CONFLICT, why),
            Self::Value(why) => (StatusCode::UNPROCESSABLE_ENTITY, why),
            Self::Database(why) => (StatusCode::BAD_GATEWAY, why),
        };
        problem(status, error)
    }
}

fn problem(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}

/// One text for whoever asks for it at the same time, however slowly they read.
struct Shared(Arc<str>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// `GET /api/board`
pub async fn board(State(desk): State<Desk>) -> Response {
    match desk.ask(Ask::Board).await {
        Ok(board) => (
            [(header::CONTENT_TYPE, "application/json")],
            Bytes::from_owner(Shared(board)),
        )
            .into_response(),
        Err(busy) => busy,
    }
}

/// `GET /api/rows/ID`
pub async fn row(State(desk): State<Desk>, Path(id): Path<Uuid>) -> Response {
    match desk.ask(|answer| Ask::Row(id, answer)).await {
        Ok(Ok(row)) => Json(row).into_response(),
        Ok(Err(refused)) => refused.into_response(),
        Err(busy) => busy,
    }
}

/// `POST /api/rows/ID/pause`
pub async fn pause(
    State(desk): State<Desk>,
    Path(id): Path<Uuid>,
    body: Asked<Nothing>,
) -> Response {
    checked(body, async |Nothing {}| {
        desk.edit(Edit::Active(id, false)).await
    })
    .await
}

/// `POST /api/rows/ID/resume`
pub async fn resume(
    State(desk): State<Desk>,
    Path(id): Path<Uuid>,
    body: Asked<Nothing>,
) -> Response {
    checked(body, async |Nothing {}| {
        desk.edit(Edit::Active(id, true)).await
    })
    .await
}

/// `POST /api/rows/ID/rate`
pub async fn rate(State(desk): State<Desk>, Path(id): Path<Uuid>, body: Asked<Rate>) -> Response {
    checked(body, async |rate: Rate| {
        let edit = Edit::Rate(id, rate.visits_per_unit, rate.time_period);
        desk.edit(edit).await
    })
    .await
}

/// `POST /api/partners/ID/distribute`
pub async fn distribute(
    State(desk): State<Desk>,
    Path(partner): Path<Uuid>,
    body: Asked<Visits>,
) -> Response {
    checked(body, async |Visits { visits }| {
        desk.edit(Edit::Distribute(partner, visits)).await
    })
    .await
}

/// `POST /api/pause`
pub async fn pause_all(State(desk): State<Desk>, body: Asked<Nothing>) -> Response {
    checked(body, async |Nothing {}| desk.edit(Edit::Paused(true)).await).await
}

/// `POST /api/resume`
pub async fn resume_all(State(desk): State<Desk>, body: Asked<Nothing>) -> Response {
    checked(body, async |Nothing {}| {
        desk.edit(Edit::Paused(false)).await
    })
    .await
}

type Asked<T> = Result<Json<T>, JsonRejection>;

/// A body that says nothing: `{}`. It is asked for all the same, since only our own page can send JSON from a browser.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// The body of a change of rate.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    visits_per_unit: String,
    time_period: String,
}

/// The body of a manual distribution.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Visits {
    visits: i32,
}

async fn checked<T>(body: Asked<T>, then: impl AsyncFnOnce(T) -> Response) -> Response {
    match body {
        Ok(Json(body)) => then(body).await,
        Err(rejection) => problem(rejection.status(), &rejection.body_text()),
    }
}

/// The query of `/api/events`.
#[derive(Deserialize)]
pub struct Watching {
    row: Option<Uuid>,
}

/// `GET /api/events`: the whole board, then each second what has changed; of one row its seconds as well.
pub async fn events(State(desk): State<Desk>, Query(watching): Query<Watching>) -> Response {
    let Ok(permit) = Arc::clone(&desk.listeners).try_acquire_owned() else {
        let error = format!("{LISTENERS_MAX} browsers are watching already; close one");
        return problem(StatusCode::SERVICE_UNAVAILABLE, &error);
    };
    let (board, frames) = match desk.ask(Ask::Watch).await {
        Ok(watched) => watched,
        Err(busy) => return busy,
    };
    let listener = Listener {
        desk,
        frames,
        row: watching.row,
        seconds_from: None,
        next: vec![Event::default().event("board").data(board)],
        _permit: permit,
    };
    let keep_alive = KeepAlive::new().interval(COMMENT_EVERY);
    Sse::new(told(listener))
        .keep_alive(keep_alive)
        .into_response()
}

struct Listener {
    desk: Desk,
    frames: broadcast::Receiver<Arc<Frame>>,
    row: Option<Uuid>,
    seconds_from: Option<DbTime>,
    /// Events to send, the next one last.
    next: Vec<Event>,
    _permit: OwnedSemaphorePermit,
}

fn told(listener: Listener) -> impl Stream<Item = Result<Event, Infallible>> {
    unfold(listener, async |mut listener| {
        while listener.next.is_empty() {
            listener.refill().await?;
        }
        let event = listener.next.pop()?;
        Some((Ok(event), listener))
    })
}

impl Listener {
    /// Waits for what is to be sent next; `None` when there is no more.
    async fn refill(&mut self) -> Option<()> {
        match self.frames.recv().await {
            Ok(frame) => {
                if let Some(id) = self.row
                    && let Some(seconds) = self.seconds(id).await
                {
                    self.next.push(seconds);
                }
                self.next
                    .push(Event::default().event("rows").data(&frame.rows));
                self.next
                    .push(Event::default().event("head").data(&frame.head));
            }
            Err(RecvError::Lagged(_)) => {
                let (board, frames) = self.desk.ask(Ask::Watch).await.ok()?;
                self.frames = frames;
                self.next.push(Event::default().event("board").data(board));
            }
            Err(RecvError::Closed) => return None,
        }
        Some(())
    }

    async fn seconds(&mut self, id: Uuid) -> Option<Event> {
        let from = self.seconds_from;
        let found = self.desk.ask(|answer| Ask::Seconds(id, from, answer)).await;
        let found = found.ok()?.ok()?;
        self.seconds_from = Some(found.from);
        let data = json!({ "id": id, "seconds": found.seconds });
        Some(Event::default().event("row").data(data.to_string()))
    }
}
