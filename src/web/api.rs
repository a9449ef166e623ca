//! `/api`: the dashboard's data, live, and its edits. Each edit is an edit of the table.
//!
//! Owns paths, bodies, status codes and the event stream. The data is JSON of the runtime, which answers each
//! [`DashboardQuery`].

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{Event as StreamEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot};
use uuid::Uuid;

use super::guard::Access;
use crate::domain::partner::PartnerId;
use crate::domain::time::DbTime;

/// Browsers with live updates, at once.
pub const LISTENERS_MAX: usize = 32;
/// Updates that a slow listener may be behind; then it gets the whole snapshot again.
pub const UPDATES_KEPT: usize = 4;
/// Queries that may wait.
pub const QUERIES_MAX: usize = 64;
/// How long a query may take.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(15);
/// A quiet stream is kept open by a comment this often.
const COMMENT_EVERY: Duration = Duration::from_secs(15);

/// JSON that any number of responses share, however slowly they are read.
pub type SharedJson = Arc<str>;

/// What changed within a second, as JSON.
#[derive(Debug)]
pub struct Update {
    /// Everything but the distributions.
    pub overview: String,
    /// The changed and the removed distributions.
    pub distributions: String,
}

/// Updates for one listener.
pub type Updates = broadcast::Receiver<Arc<Update>>;

/// An edit of the table, or of the control row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DashboardEdit {
    /// `is_active` of a distribution.
    Active(Uuid, bool),
    /// `visits_per_unit` and `time_period` of a distribution, as text: the database validates them.
    Rate(Uuid, String, String),
    /// This number of visits for a partner, at once.
    Distribute(PartnerId, i32),
    /// `paused` of the control row.
    Paused(bool),
}

/// The result of an edit.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct EditOutcome {
    /// Visits that it stored.
    pub added: Option<i64>,
    /// What the database says of it.
    pub message: Option<String>,
}

/// What a handler asks the runtime for.
#[derive(Debug)]
pub enum DashboardQuery {
    /// Everything, once.
    Snapshot(oneshot::Sender<SharedJson>),
    /// Everything, and then what changes.
    Watch(oneshot::Sender<(SharedJson, Updates)>),
    /// What needs the database.
    Database(DatabaseQuery),
}

/// See [`DashboardQuery::Database`].
#[derive(Debug)]
pub enum DatabaseQuery {
    /// One distribution with its curve, its latest seconds and its edits.
    Detail(Uuid, oneshot::Sender<Result<String, QueryError>>),
    /// Its seconds since a moment (`None`: the last two minutes), and the moment to continue from.
    Seconds(
        Uuid,
        Option<DbTime>,
        oneshot::Sender<Result<(String, DbTime), QueryError>>,
    ),
    /// An edit.
    Edit(
        DashboardEdit,
        oneshot::Sender<Result<EditOutcome, QueryError>>,
    ),
}

/// Why a request is not answered, or an edit not made.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// 404
    #[error("no distribution {0}; it may have been deleted")]
    NotFound(Uuid),
    /// 409
    #[error("the row is locked by another transaction; nothing was changed")]
    Locked,
    /// 422
    #[error("rejected by the database: {0}")]
    Rejected(String),
    /// 502: nothing was changed.
    #[error("database error: {0}")]
    Database(String),
    /// 502: it may have been changed.
    #[error("the outcome is unknown ({0}); check the distribution before you retry")]
    Unknown(String),
    /// 503
    #[error("the agent is busy or stopping; try again")]
    Busy,
    /// 503
    #[error("at most {LISTENERS_MAX} browsers can watch; close one")]
    TooManyListeners,
    /// 403
    #[error("editing is disabled (--read-only); edit the table instead")]
    ReadOnly,
    /// The body is not the JSON that is expected.
    #[error("{}", .0.body_text())]
    Body(#[from] JsonRejection),
}

impl IntoResponse for QueryError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Locked => StatusCode::CONFLICT,
            Self::Rejected(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Database(_) | Self::Unknown(_) => StatusCode::BAD_GATEWAY,
            Self::Busy | Self::TooManyListeners => StatusCode::SERVICE_UNAVAILABLE,
            Self::ReadOnly => StatusCode::FORBIDDEN,
            Self::Body(rejection) => rejection.status(),
        };
        (status, Json(json!({ "error": self.to_string() }))).into_response()
    }
}

/// What the handlers need.
#[derive(Clone)]
pub struct Dashboard {
    /// To the task of the runtime.
    pub queries: mpsc::Sender<DashboardQuery>,
    /// One permit for each listener.
    pub listeners: Arc<Semaphore>,
    /// Who may edit.
    pub access: Arc<Access>,
}

impl Dashboard {
    async fn query<T>(
        &self,
        query: impl FnOnce(oneshot::Sender<T>) -> DashboardQuery,
    ) -> Result<T, QueryError> {
        let (to, answer) = oneshot::channel();
        let sent = self.queries.try_send(query(to));
        sent.map_err(|_| QueryError::Busy)?;
        match tokio::time::timeout(QUERY_TIMEOUT, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Err(QueryError::Busy),
        }
    }

    async fn database<T>(
        &self,
        query: impl FnOnce(oneshot::Sender<Result<T, QueryError>>) -> DatabaseQuery,
    ) -> Result<T, QueryError> {
        self.query(|to| DashboardQuery::Database(query(to))).await?
    }

    async fn edit(&self, edit: DashboardEdit) -> Edited {
        if self.access.read_only {
            return Err(QueryError::ReadOnly);
        }
        let outcome = self.database(|to| DatabaseQuery::Edit(edit, to)).await?;
        Ok(Json(outcome))
    }
}

fn json_response(body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// `GET /api/snapshot`
pub async fn snapshot(State(dashboard): State<Dashboard>) -> Result<Response, QueryError> {
    struct Owner(SharedJson);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }
    let snapshot = dashboard.query(DashboardQuery::Snapshot).await?;
    Ok(json_response(Bytes::from_owner(Owner(snapshot))))
}

/// `GET /api/distributions/ID`
pub async fn detail(
    State(dashboard): State<Dashboard>,
    Path(id): Path<Uuid>,
) -> Result<Response, QueryError> {
    let detail = dashboard.database(|to| DatabaseQuery::Detail(id, to));
    Ok(json_response(detail.await?.into()))
}

type Body<T> = Result<Json<T>, JsonRejection>;
type Edited = Result<Json<EditOutcome>, QueryError>;

/// `{}`: a body is required all the same, since another site's page cannot send JSON from a browser.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmptyBody {}

/// `POST /api/distributions/ID/pause`
pub async fn pause(
    State(dashboard): State<Dashboard>,
    Path(id): Path<Uuid>,
    body: Body<EmptyBody>,
) -> Edited {
    let Json(EmptyBody {}) = body?;
    dashboard.edit(DashboardEdit::Active(id, false)).await
}

/// `POST /api/distributions/ID/resume`
pub async fn resume(
    State(dashboard): State<Dashboard>,
    Path(id): Path<Uuid>,
    body: Body<EmptyBody>,
) -> Edited {
    let Json(EmptyBody {}) = body?;
    dashboard.edit(DashboardEdit::Active(id, true)).await
}

/// The body of [`rate`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateBody {
    visits_per_unit: String,
    time_period: String,
}

/// `POST /api/distributions/ID/rate`
pub async fn rate(
    State(dashboard): State<Dashboard>,
    Path(id): Path<Uuid>,
    body: Body<RateBody>,
) -> Edited {
    let Json(body) = body?;
    let edit = DashboardEdit::Rate(id, body.visits_per_unit, body.time_period);
    dashboard.edit(edit).await
}

/// The body of [`distribute`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistributeBody {
    visits: i32,
}

/// `POST /api/partners/ID/distribute`
pub async fn distribute(
    State(dashboard): State<Dashboard>,
    Path(partner): Path<String>,
    body: Body<DistributeBody>,
) -> Edited {
    let Json(DistributeBody { visits }) = body?;
    let edit = DashboardEdit::Distribute(PartnerId::from(&*partner), visits);
    dashboard.edit(edit).await
}

/// `POST /api/pause`
pub async fn pause_all(State(dashboard): State<Dashboard>, body: Body<EmptyBody>) -> Edited {
    let Json(EmptyBody {}) = body?;
    dashboard.edit(DashboardEdit::Paused(true)).await
}

/// `POST /api/resume`
pub async fn resume_all(State(dashboard): State<Dashboard>, body: Body<EmptyBody>) -> Edited {
    let Json(EmptyBody {}) = body?;
    dashboard.edit(DashboardEdit::Paused(false)).await
}

/// The query string of [`events`].
#[derive(Deserialize)]
pub struct EventsParams {
    distribution: Option<Uuid>,
}

/// `GET /api/events`: the snapshot, then each second what changed; with the seconds of one distribution.
pub async fn events(
    State(dashboard): State<Dashboard>,
    Query(params): Query<EventsParams>,
) -> Result<Response, QueryError> {
    let permit = Arc::clone(&dashboard.listeners).try_acquire_owned();
    let permit = permit.map_err(|_| QueryError::TooManyListeners)?;
    let (snapshot, updates) = dashboard.query(DashboardQuery::Watch).await?;
    let listener = Listener {
        dashboard,
        updates,
        distribution: params.distribution,
        seconds_from: None,
        next: vec![event("snapshot", &snapshot)],
        _permit: permit,
    };
    let stream = unfold(listener, async |mut listener| {
        let event = listener.next().await?;
        Some((Ok::<_, Infallible>(event), listener))
    });
    let keep_alive = KeepAlive::new().interval(COMMENT_EVERY);
    Ok(Sse::new(stream).keep_alive(keep_alive).into_response())
}

fn event(name: &str, data: &str) -> StreamEvent {
    StreamEvent::default().event(name).data(data)
}

struct Listener {
    dashboard: Dashboard,
    updates: Updates,
    distribution: Option<Uuid>,
    seconds_from: Option<DbTime>,
    /// Events to send, the next one last.
    next: Vec<StreamEvent>,
    _permit: OwnedSemaphorePermit,
}

impl Listener {
    /// Waits for the next event; `None` at the end.
    async fn next(&mut self) -> Option<StreamEvent> {
        while self.next.is_empty() {
            match self.updates.recv().await {
                Ok(update) => {
                    let seconds = self.seconds().await;
                    self.next.extend(seconds);
                    self.next
                        .push(event("distributions", &update.distributions));
                    self.next.push(event("overview", &update.overview));
                }
                Err(RecvError::Lagged(_)) => {
                    let (snapshot, updates) =
                        self.dashboard.query(DashboardQuery::Watch).await.ok()?;
                    self.updates = updates;
                    self.next.push(event("snapshot", &snapshot));
                }
                Err(RecvError::Closed) => return None,
            }
        }
        self.next.pop()
    }

    async fn seconds(&mut self) -> Option<StreamEvent> {
        let (id, from) = (self.distribution?, self.seconds_from);
        let seconds = self
            .dashboard
            .database(|to| DatabaseQuery::Seconds(id, from, to));
        let (json, from) = seconds.await.ok()?;
        self.seconds_from = Some(from);
        Some(event("seconds", &json))
    }
}
