//! The two tasks behind the dashboard: one keeps the [`DashboardSnapshot`], one asks the database what only that knows.
//!
//! The second opens its connection for the first query and closes it after a minute without one: while no browser is open, the
//! agent has no more than its three. Queries wait for each other, up to a bound.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::super::clock::Clock;
use super::super::snapshot::Snapshot;
use super::snapshot::{AgentInfo, DashboardSnapshot, Polled};
use super::view::DistributionView;
use crate::domain::agent::ReadRequest;
use crate::domain::curve::Curve;
use crate::domain::distribution::Distribution;
use crate::domain::history::History;
use crate::domain::limits::ROWS_PER_LOOK;
use crate::domain::time::{DbTime, SECOND_US};
use crate::postgres::connection::Connection;
use crate::postgres::failure::{ErrorKind, Failure};
use crate::postgres::reconnect::{ReconnectingConnection, with_timeout};
use crate::postgres::{rows, series, sql_functions, status};
use crate::web::api::{
    DashboardEdit, DashboardQuery, DatabaseQuery, EditOutcome, QueryError, UPDATES_KEPT, Update,
};

/// How often the snapshot is refreshed.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// Queries that may wait for the connection.
const QUERIES_WAITING: usize = 32;
/// The connection is closed after this time without a query.
const IDLE_AFTER: Duration = Duration::from_secs(60);
/// How often the database is polled while a browser listens.
const POLL_EVERY: Duration = Duration::from_secs(5);
/// How often the names of the partners are polled.
const PARTNERS_EVERY: Duration = Duration::from_secs(30);
/// Invalid rows that are polled.
const INVALID_MAX: usize = 500;
/// Seconds of a distribution that are shown.
const SECONDS_SHOWN: i64 = 120;
/// A second is shown after this many more: by then its visits are stored.
const SECONDS_TO_SETTLE: i64 = 2;
/// Points of the target curve.
const POINTS: i64 = 200;

/// Answers queries until their senders are gone.
pub async fn serve(
    info: AgentInfo,
    connection: ReconnectingConnection,
    clock: Clock,
    (agent, mut queries): (watch::Receiver<Snapshot>, mpsc::Receiver<DashboardQuery>),
) {
    let (database, database_queries) = mpsc::channel(QUERIES_WAITING);
    let (scope, scopes) = watch::channel(PollScope::Nothing);
    let (polled_to, polled) = watch::channel(Polled::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(serve_database(
        connection,
        database_queries,
        scopes,
        polled_to,
    ));
    let mut task = DashboardTask {
        snapshot: DashboardSnapshot::new(info),
        agent,
        polled,
        scope,
        updates: broadcast::Sender::new(UPDATES_KEPT),
        database,
        clock,
        is_fresh: false,
    };
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = sleep_until(next) => {
                next = (next + REFRESH_EVERY).max(Instant::now());
                task.tick();
            }
            query = queries.recv() => {
                let Some(query) = query else { break };
                task.answer(query);
            }
        }
    }
    tasks.shutdown().await;
}

/// The distributions that are polled from the database.
#[derive(Clone, PartialEq, Eq, Debug)]
enum PollScope {
    /// No browser listens.
    Nothing,
    /// Other agents own some.
    All,
    /// The invalid ones, of which the agent itself keeps nothing else.
    Only(Vec<Uuid>),
}

/// Where a receiver of an answer is gone, nobody needs the answer.
struct DashboardTask {
    snapshot: DashboardSnapshot,
    agent: watch::Receiver<Snapshot>,
    polled: watch::Receiver<Polled>,
    scope: watch::Sender<PollScope>,
    updates: broadcast::Sender<Arc<Update>>,
    database: mpsc::Sender<(DatabaseQuery, Option<DistributionView>)>,
    clock: Clock,
    /// The snapshot is of this second.
    is_fresh: bool,
}

impl DashboardTask {
    fn tick(&mut self) {
        self.is_fresh = self.updates.receiver_count() > 0;
        let scope = if self.is_fresh {
            let update = Arc::new(self.refresh());
            let _sent = self.updates.send(update).is_ok();
            self.wanted_scope()
        } else {
            self.snapshot.clear();
            PollScope::Nothing
        };
        self.scope.send_if_modified(|before| {
            let is_new = *before != scope;
            *before = scope;
            is_new
        });
    }

    fn refresh(&mut self) -> Update {
        let (agent, polled) = (self.agent.borrow().clone(), self.polled.borrow().clone());
        self.snapshot.refresh(&agent, &polled, self.clock.now())
    }

    fn wanted_scope(&self) -> PollScope {
        let agent = self.agent.borrow();
        if agent.rows_owned < agent.rows && agent.rows <= ROWS_PER_LOOK {
            return PollScope::All;
        }
        let statuses = agent.status_summary.looks.iter();
        let invalid = statuses.filter(|status| status.partner_id.is_none());
        PollScope::Only(invalid.take(INVALID_MAX).map(|status| status.id).collect())
    }

    fn answer(&mut self, query: DashboardQuery) {
        let needs_snapshot = !matches!(
            query,
            DashboardQuery::Database(DatabaseQuery::Seconds(..) | DatabaseQuery::Edit(..))
        );
        if needs_snapshot && !self.is_fresh {
            self.refresh();
            self.is_fresh = true;
        }
        match query {
            DashboardQuery::Snapshot(to) => {
                let _sent = to.send(self.snapshot.whole()).is_ok();
            }
            DashboardQuery::Watch(to) => {
                let watched = (self.snapshot.whole(), self.updates.subscribe());
                let _sent = to.send(watched).is_ok();
            }
            DashboardQuery::Database(query) => {
                let view = match query {
                    DatabaseQuery::Detail(id, _) => self.snapshot.distribution(id).cloned(),
                    DatabaseQuery::Seconds(..) | DatabaseQuery::Edit(..) => None,
                };
                // A query that finds too many waiting is dropped, which answers it: the agent is busy.
                let _queued = self.database.try_send((query, view)).is_ok();
            }
        }
    }
}

/// Answers queries with the database, and polls it while a browser listens.
async fn serve_database(
    mut connection: ReconnectingConnection,
    mut queries: mpsc::Receiver<(DatabaseQuery, Option<DistributionView>)>,
    mut scope: watch::Receiver<PollScope>,
    polled: watch::Sender<Polled>,
) {
    let mut idle_at = Instant::now();
    let mut next_poll: Option<Instant> = None;
    let mut next_partners = Instant::now();
    loop {
        let wake = next_poll.unwrap_or(idle_at);
        tokio::select! {
            query = queries.recv() => {
                let Some((query, view)) = query else { break };
                answer(&mut connection, query, view).await;
                idle_at = Instant::now() + IDLE_AFTER;
            }
            changed = scope.changed() => {
                if changed.is_err() {
                    break;
                }
                let is_watched = *scope.borrow_and_update() != PollScope::Nothing;
                next_poll = is_watched.then(Instant::now);
            }
            () = sleep_until(wake), if next_poll.is_some() || connection.is_open() => {
                if next_poll.is_none() {
                    connection.close().await;
                    continue;
                }
                let scope = scope.borrow().clone();
                let with_partners = next_partners <= Instant::now();
                poll(&mut connection, scope, with_partners, &polled).await;
                let now = Instant::now();
                if with_partners {
                    next_partners = now + PARTNERS_EVERY;
                }
                next_poll = Some(now + POLL_EVERY);
                idle_at = now + IDLE_AFTER;
            }
        }
    }
    connection.close().await;
}

/// A failure leaves what was polled before; the agent itself reports that the database is unavailable.
async fn poll(
    connection: &mut ReconnectingConnection,
    scope: PollScope,
    with_partners: bool,
    polled: &watch::Sender<Polled>,
) {
    let before = polled.borrow().partners.clone();
    let read = call(connection, async |connection| {
        let distributions = match scope {
            PollScope::All => status::status(connection).await?,
            PollScope::Only(ids) if !ids.is_empty() => {
                status::status_of(connection, Some(&ids)).await?
            }
            PollScope::Only(_) | PollScope::Nothing => Vec::new(),
        };
        let partners = if with_partners {
            let partners = series::partners(connection).await?;
            partners.into_iter().collect()
        } else {
            before
        };
        Ok(Polled {
            partners,
            agents: status::agents(connection).await?,
            distributions,
        })
    });
    if let Ok(read) = read.await {
        polled.send_replace(read);
    }
}

async fn call<T>(
    connection: &mut ReconnectingConnection,
    call: impl AsyncFnOnce(&mut Connection) -> Result<T, sqlx::Error>,
) -> Result<T, Failure> {
    let open = connection.open().await?;
    let outcome = with_timeout(call(open)).await;
    connection.check(outcome)
}

async fn answer(
    connection: &mut ReconnectingConnection,
    query: DatabaseQuery,
    view: Option<DistributionView>,
) {
    match query {
        DatabaseQuery::Detail(id, to) => {
            let _sent = to.send(detail(connection, id, view).await).is_ok();
        }
        DatabaseQuery::Seconds(id, since, to) => {
            let _sent = to.send(seconds(connection, id, since).await).is_ok();
        }
        DatabaseQuery::Edit(edit, to) => {
            let _sent = to.send(apply(connection, edit).await).is_ok();
        }
    }
}

/// One second of a distribution.
#[derive(Debug, Serialize)]
struct SecondView {
    at: DbTime,
    /// Visits that fell due in it; null for a time before the known edits.
    target: Option<i64>,
    /// Visits with a time in it.
    stored: i64,
}

/// A distribution's curve, its edits and its latest seconds.
struct Detail {
    curve: Option<Curve>,
    history: History,
    now: DbTime,
    seconds: Vec<SecondView>,
    /// The end of the seconds.
    until: DbTime,
}

impl Detail {
    async fn read(
        connection: &mut Connection,
        id: Uuid,
        since: Option<DbTime>,
    ) -> Result<Option<Self>, sqlx::Error> {
        let read = rows::read(connection, &ReadRequest::Rows(vec![id])).await?;
        let Some(found) = read.rows.first() else {
            return Ok(None);
        };
        let history = series::history(connection, id).await?;
        let (from, until) = span(read.db, since);
        let stored = series::seconds(connection, id, from, until).await?;
        Ok(Some(Self {
            curve: Distribution::parse(&found.row).ok().map(|row| row.curve),
            seconds: each_second(&history, &stored, from, until),
            history,
            now: read.db,
            until,
        }))
    }

    /// The curve until now and, as it is now, on to its end.
    fn target(&self, first_stored: Option<DbTime>) -> Vec<(DbTime, i64)> {
        let Some(curve) = &self.curve else {
            return Vec::new();
        };
        let Some(from) = self.history.begins().or(curve.from) else {
            return Vec::new();
        };
        let ends = [curve.to, curve.due_at(curve.total)];
        let end = ends.into_iter().flatten().min().unwrap_or(self.now);
        let from = first_stored.map_or(from, |first| first.max(from).min(self.now));
        let to = end.max(self.now).max(from.plus_micros(POINTS));
        let step = to.micros_since(from) / POINTS;
        let due = |at| self.history.due(at).unwrap_or_else(|| curve.due(at));
        let times = (0..=POINTS).map(|n| from.plus_micros(n * step));
        times.map(|at| (at, due(at))).collect()
    }
}

/// The whole seconds to show, from and to.
fn span(now: DbTime, since: Option<DbTime>) -> (DbTime, DbTime) {
    let second = now.as_micros().div_euclid(SECOND_US);
    let to = DbTime::from_micros((second - SECONDS_TO_SETTLE) * SECOND_US);
    let first = to.plus_micros(-SECONDS_SHOWN * SECOND_US);
    let from = since.map_or(first, |since| since.max(first)).min(to);
    (from, to)
}

fn each_second(
    history: &History,
    stored: &[(DbTime, i64)],
    from: DbTime,
    to: DbTime,
) -> Vec<SecondView> {
    let stored: BTreeMap<DbTime, i64> = stored.iter().copied().collect();
    let starts = (0..SECONDS_SHOWN).map(|n| from.plus_micros(n * SECOND_US));
    let second = |at: DbTime| {
        let (before, after) = (history.due(at), history.due(at.plus_micros(SECOND_US)));
        SecondView {
            at,
            target: before
                .zip(after)
                .map(|(before, after)| (after - before).max(0)),
            stored: stored.get(&at).copied().unwrap_or(0),
        }
    };
    starts.take_while(|at| *at < to).map(second).collect()
}

async fn detail(
    connection: &mut ReconnectingConnection,
    id: Uuid,
    view: Option<DistributionView>,
) -> Result<String, QueryError> {
    let read = call(connection, async |connection| {
        let Some(detail) = Detail::read(connection, id, None).await? else {
            return Ok(None);
        };
        Ok(Some((detail, series::stored(connection, id).await?)))
    });
    let found = read.await.map_err(|failure| database_error(&failure))?;
    let (detail, stored) = found.ok_or(QueryError::NotFound(id))?;
    let edits = detail.history.told().into_iter();
    let edits = edits.map(|(at, change, by)| json!({ "at": at, "change": change, "by": by }));
    let detail = json!({
        "distribution": view,
        "curve": {
            "target": detail.target(stored.first().map(|(at, _)| *at)),
            "stored": stored,
        },
        "seconds": detail.seconds,
        "edits": edits.collect::<Vec<_>>(),
    });
    Ok(detail.to_string())
}

async fn seconds(
    connection: &mut ReconnectingConnection,
    id: Uuid,
    since: Option<DbTime>,
) -> Result<(String, DbTime), QueryError> {
    let read = call(connection, async |connection| {
        Detail::read(connection, id, since).await
    });
    let found = read.await.map_err(|failure| database_error(&failure))?;
    let detail = found.ok_or(QueryError::NotFound(id))?;
    let json = json!({ "id": id, "seconds": detail.seconds });
    Ok((json.to_string(), detail.until))
}

async fn apply(
    connection: &mut ReconnectingConnection,
    edit: DashboardEdit,
) -> Result<EditOutcome, QueryError> {
    // A failure here is certain to have changed nothing.
    connection
        .open()
        .await
        .map_err(|failure| database_error(&failure))?;
    let applied = call(connection, async |connection| {
        Ok(match &edit {
            DashboardEdit::Active(id, active) => {
                let found = status::set_active(connection, &[*id], *active).await?;
                found.first().map(|_| EditOutcome::default()).ok_or(*id)
            }
            DashboardEdit::Rate(id, visits_per_unit, time_period) => {
                let found = status::set_rate(connection, *id, visits_per_unit, time_period).await?;
                found.then(EditOutcome::default).ok_or(*id)
            }
            DashboardEdit::Distribute(partner, visits) => {
                let request = Some((partner, *visits));
                let lines = sql_functions::distribute(connection, request).await?;
                let messages = lines.iter().filter_map(|line| line.message.as_deref());
                Ok(EditOutcome {
                    added: Some(lines.iter().map(|line| line.visits_added).sum()),
                    message: Some(messages.collect::<Vec<_>>().join("; ")),
                })
            }
            DashboardEdit::Paused(paused) => {
                status::set_paused(connection, *paused).await?;
                Ok(EditOutcome::default())
            }
        })
    });
    applied
        .await
        .map_err(|failure| edit_error(&failure))?
        .map_err(QueryError::NotFound)
}

fn database_error(failure: &Failure) -> QueryError {
    QueryError::Database(failure.report())
}

fn edit_error(failure: &Failure) -> QueryError {
    let report = failure.report();
    if matches!(failure.kind, ErrorKind::Locked | ErrorKind::Timeout) {
        QueryError::Locked
    } else if failure.kind == ErrorKind::Data {
        QueryError::Rejected(report)
    } else if failure.kind == ErrorKind::Lost {
        QueryError::Unknown(report)
    } else {
        QueryError::Database(report)
    }
}
