//! Who answers the dashboard: the board's task, and a clerk with a connection of its own for what only the database knows.
//!
//! The connection is opened for the first question, and closed when there was none for a minute: where nobody looks, the agent
//! has no more than its three. A question that finds the clerk busy waits; one that finds too many waiting is refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::super::clock::Clock;
use super::super::snapshot::Snapshot;
use super::snapshot::{About, Board, Facts};
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
use crate::web::api::{Ask, Done, Edit, FRAMES_KEPT, Frame, Refused, Seconds, Watched};
use crate::web::view::{Curves, EditView, Row, RowView, Second, Text, Time};

/// The board is looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Questions that may wait for the clerk.
const QUESTIONS_WAITING: usize = 32;
/// The clerk's connection is closed when it was not needed for so long.
const IDLE_AFTER: Duration = Duration::from_secs(60);
/// What only the database knows is read again so often while somebody watches.
const FACTS_EVERY: Duration = Duration::from_secs(5);
/// Bad rows that are read for what can be shown of them.
const BAD_MAX: usize = 500;
/// Names of partners are read again so often.
const PARTNERS_EVERY: Duration = Duration::from_secs(30);
/// A row's seconds that are shown at first.
const SECONDS_SHOWN: i64 = 120;
/// A second is shown when it ended so long ago: by then its visits are stored.
const SECOND_SETTLES: i64 = 2;
/// Points of the curve that is asked for.
const POINTS: i64 = 200;

/// Answers until nobody can ask any more.
pub async fn serve(
    about: About,
    link: ReconnectingConnection,
    clock: Clock,
    (seen, mut asks): (watch::Receiver<Snapshot>, mpsc::Receiver<Ask>),
) {
    let (questions, waiting) = mpsc::channel(QUESTIONS_WAITING);
    let (facts_in, facts) = watch::channel(Facts::default());
    let (watched_in, watched) = watch::channel(Watching::default());
    let mut clerks = JoinSet::new();
    clerks.spawn(clerk(link, waiting, facts_in, watched));
    let (frames, nobody) = broadcast::channel(FRAMES_KEPT);
    drop(nobody); // a receiver that is kept counts as somebody who watches
    let mut board = Board::new(about);
    let mut fresh = false;
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = sleep_until(next) => {
                next = (next + LOOK_EVERY).max(Instant::now());
                let watched = frames.receiver_count() > 0;
                fresh = watched;
                if watched {
                    let frame = look(&mut board, &seen, &facts, &watched_in, clock, true);
                    // Whoever listened has gone meanwhile.
                    let _heard = frames.send(Arc::new(frame)).is_ok();
                } else {
                    board.forget();
                    watched_in.send_if_modified(|watching| std::mem::take(&mut watching.watched));
                }
            }
            ask = asks.recv() => {
                let Some(ask) = ask else { break };
                if !fresh && matches!(ask, Ask::Board(_) | Ask::Watch(_) | Ask::Row(..)) {
                    let _frame = look(&mut board, &seen, &facts, &watched_in, clock, false);
                    fresh = true;
                }
                answer(ask, &board, &frames, &questions);
            }
        }
    }
    drop(questions);
    clerks.shutdown().await;
}

/// What the clerk is to find out by itself.
#[derive(Clone, PartialEq, Eq, Default)]
struct Watching {
    watched: bool,
    /// Other agents have rows, no more than can be shown.
    shared: bool,
    /// Rows of which the agent itself knows no more than that they are bad.
    bad: Vec<Uuid>,
}

fn look(
    board: &mut Board,
    seen: &watch::Receiver<Snapshot>,
    facts: &watch::Receiver<Facts>,
    watched: &watch::Sender<Watching>,
    clock: Clock,
    live: bool,
) -> Frame {
    let snapshot = seen.borrow().clone();
    let shared = snapshot.rows_owned < snapshot.rows && snapshot.rows <= ROWS_PER_LOOK;
    if live {
        let bad = snapshot.status_summary.looks.iter();
        let bad = bad.filter(|look| look.partner_id.is_none()).take(BAD_MAX);
        let wanted = Watching {
            watched: true,
            shared,
            bad: bad.map(|look| look.id).collect(),
        };
        watched.send_if_modified(|watching| {
            let before = std::mem::replace(watching, wanted);
            before != *watching
        });
    }
    let facts = facts.borrow().clone();
    board.take(&snapshot, &facts, clock.now())
}

/// Whoever asked may have gone; then the answer matters to nobody.
fn answer(
    ask: Ask,
    board: &Board,
    frames: &broadcast::Sender<Arc<Frame>>,
    questions: &mpsc::Sender<Question>,
) {
    match ask {
        Ask::Board(to) => {
            let _given = to.send(board.whole()).is_ok();
        }
        Ask::Watch(to) => {
            let watched: Watched = (board.whole(), frames.subscribe());
            let _given = to.send(watched).is_ok();
        }
        Ask::Row(id, to) => {
            let row = board.row(id).cloned().map(Box::new);
            let _taken = questions.try_send(Question::Row(id, row, to)).is_ok();
        }
        Ask::Seconds(id, from, to) => {
            let _taken = questions.try_send(Question::Seconds(id, from, to)).is_ok();
        }
        Ask::Edit(edit, to) => {
            let _taken = questions.try_send(Question::Edit(edit, to)).is_ok();
        }
    }
}

enum Question {
    Row(
        Uuid,
        Option<Box<Row>>,
        oneshot::Sender<Result<Box<RowView>, Refused>>,
    ),
    Seconds(
        Uuid,
        Option<DbTime>,
        oneshot::Sender<Result<Seconds, Refused>>,
    ),
    Edit(Edit, oneshot::Sender<Result<Done, Refused>>),
}

/// Answers questions, and reads facts while somebody watches.
async fn clerk(
    mut link: ReconnectingConnection,
    mut questions: mpsc::Receiver<Question>,
    facts: watch::Sender<Facts>,
    mut watched: watch::Receiver<Watching>,
) {
    let mut idle_at = Instant::now();
    let mut next_facts: Option<Instant> = None;
    let mut next_partners = Instant::now();
    loop {
        let wake = next_facts.unwrap_or(idle_at);
        tokio::select! {
            question = questions.recv() => {
                let Some(question) = question else { break };
                tell(&mut link, question).await;
                idle_at = Instant::now() + IDLE_AFTER;
            }
            changed = watched.changed() => {
                if changed.is_err() {
                    break;
                }
                next_facts = watched.borrow_and_update().watched.then(Instant::now);
            }
            () = sleep_until(wake), if next_facts.is_some() || link.is_open() => {
                if next_facts.is_none() {
                    link.close().await;
                    continue;
                }
                let watching = watched.borrow().clone();
                let partners = next_partners <= Instant::now();
                read_facts(&mut link, &facts, watching, partners).await;
                let now = Instant::now();
                if partners {
                    next_partners = now + PARTNERS_EVERY;
                }
                next_facts = Some(now + FACTS_EVERY);
                idle_at = now + IDLE_AFTER;
            }
        }
    }
    link.close().await;
}

/// Leaves what was known where the database does not answer: the loop tells of that.
async fn read_facts(
    link: &mut ReconnectingConnection,
    facts: &watch::Sender<Facts>,
    watching: Watching,
    partners: bool,
) {
    let before = facts.borrow().clone();
    let read = on(link, async |connection| {
        let agents = status::agents(connection).await?;
        let others = if watching.shared {
            status::status(connection).await?
        } else if watching.bad.is_empty() {
            Vec::new()
        } else {
            status::status_of(connection, Some(&watching.bad)).await?
        };
        let partners = if partners {
            let names = series::partners(connection).await?;
            let named = names
                .into_iter()
                .map(|(id, name)| (id, name.map(|name| Text::from(name.as_str()))));
            named.collect::<BTreeMap<Uuid, Option<Text>>>()
        } else {
            before.partners.clone()
        };
        Ok(Facts {
            partners,
            agents,
            others,
        })
    })
    .await;
    if let Ok(read) = read {
        facts.send_replace(read);
    }
}

async fn on<T>(
    link: &mut ReconnectingConnection,
    call: impl AsyncFnOnce(&mut Connection) -> Result<T, sqlx::Error>,
) -> Result<T, Failure> {
    let connection = link.open().await?;
    let outcome = with_timeout(call(connection)).await;
    link.check(outcome)
}

async fn tell(link: &mut ReconnectingConnection, question: Question) {
    match question {
        Question::Row(id, row, to) => {
            let _given = to.send(from_near(link, id, row).await).is_ok();
        }
        Question::Seconds(id, from, to) => {
            let _given = to.send(seconds(link, id, from).await).is_ok();
        }
        Question::Edit(edit, to) => {
            let _given = to.send(carry_out(link, edit).await).is_ok();
        }
    }
}

/// A row's curve as it is now, and as it was.
struct Course {
    curve: Option<Curve>,
    history: History,
    now: DbTime,
}

async fn course(connection: &mut Connection, id: Uuid) -> Result<Option<Course>, sqlx::Error> {
    let read = rows::read(connection, &ReadRequest::Rows(vec![id])).await?;
    let Some(found) = read.rows.first() else {
        return Ok(None);
    };
    Ok(Some(Course {
        curve: Distribution::parse(&found.row).ok().map(|row| row.curve),
        history: series::history(connection, id).await?,
        now: read.db,
    }))
}

fn unknown(id: Uuid) -> Refused {
    Refused::Unknown(format!(
        "there is no row {id} in visit_distribution; it may have been deleted"
    ))
}

async fn from_near(
    link: &mut ReconnectingConnection,
    id: Uuid,
    row: Option<Box<Row>>,
) -> Result<Box<RowView>, Refused> {
    let found = on(link, async |connection| {
        let Some(course) = course(connection, id).await? else {
            return Ok(None);
        };
        let (from, to) = span(course.now, None);
        let stored = series::stored(connection, id).await?;
        let counted = series::seconds(connection, id, from, to).await?;
        Ok(Some((course, stored, counted)))
    })
    .await
    .map_err(|failure| refused(&failure))?;
    let (course, stored, counted) = found.ok_or_else(|| unknown(id))?;
    let (from, to) = span(course.now, None);
    let points = |points: Vec<(DbTime, i64)>| points.into_iter().map(|(at, n)| (Time(at), n));
    let asked = asked(&course, stored.first().map(|(at, _)| *at));
    Ok(Box::new(RowView {
        row: row.map(|row| *row),
        curve: Curves {
            asked: points(asked).collect(),
            stored: points(stored).collect(),
        },
        seconds: each_second(&course, &counted, from, to),
        edits: course
            .history
            .told()
            .into_iter()
            .map(|(at, what, by)| EditView {
                at: Time(at),
                what,
                by,
            })
            .collect(),
    }))
}

async fn seconds(
    link: &mut ReconnectingConnection,
    id: Uuid,
    since: Option<DbTime>,
) -> Result<Seconds, Refused> {
    let found = on(link, async |connection| {
        let Some(course) = course(connection, id).await? else {
            return Ok(None);
        };
        let (from, to) = span(course.now, since);
        let counted = series::seconds(connection, id, from, to).await?;
        Ok(Some((course, counted)))
    })
    .await
    .map_err(|failure| refused(&failure))?;
    let (course, counted) = found.ok_or_else(|| unknown(id))?;
    let (from, to) = span(course.now, since);
    Ok(Seconds {
        seconds: each_second(&course, &counted, from, to),
        from: to,
    })
}

/// The seconds to show: whole ones, those that have settled.
fn span(now: DbTime, since: Option<DbTime>) -> (DbTime, DbTime) {
    let second = now.as_micros().div_euclid(SECOND_US);
    let to = DbTime::from_micros((second - SECOND_SETTLES) * SECOND_US);
    let first = to.plus_micros(-SECONDS_SHOWN * SECOND_US);
    let from = since.map_or(first, |since| since.max(first)).min(to);
    (from, to)
}

fn each_second(
    course: &Course,
    counted: &[(DbTime, i64)],
    from: DbTime,
    to: DbTime,
) -> Vec<Second> {
    let stored: BTreeMap<DbTime, i64> = counted.iter().copied().collect();
    let due = |at: DbTime| course.history.due(at);
    let mut seconds = Vec::new();
    let mut at = from;
    while at < to {
        let next = at.plus_micros(SECOND_US);
        seconds.push(Second {
            at: Time(at),
            asked: due(at)
                .zip(due(next))
                .map(|(before, after)| (after - before).max(0)),
            stored: stored.get(&at).copied().unwrap_or(0),
        });
        at = next;
    }
    seconds
}

/// The curve as it was, and as it goes on from now, to where it ends.
fn asked(course: &Course, first_stored: Option<DbTime>) -> Vec<(DbTime, i64)> {
    let Some(curve) = &course.curve else {
        return Vec::new();
    };
    let Some(from) = course.history.begins().or(curve.from) else {
        return Vec::new();
    };
    let end = match (curve.to, curve.due_at(curve.total)) {
        (Some(to), Some(done)) => to.min(done),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => course.now,
    };
    let from = first_stored.map_or(from, |first| first.max(from).min(course.now));
    let to = end.max(course.now).max(from.plus_micros(POINTS));
    let step = to.micros_since(from) / POINTS;
    (0..=POINTS)
        .map(|n| from.plus_micros(n * step))
        .map(|at| (at, course.history.due(at).unwrap_or_else(|| curve.due(at))))
        .collect()
}

async fn carry_out(link: &mut ReconnectingConnection, edit: Edit) -> Result<Done, Refused> {
    let done = Done {
        added: None,
        message: None,
    };
    match edit {
        Edit::Active(id, active) => {
            let found = on(link, async |connection| {
                status::set_active(connection, &[id], active).await
            })
            .await
            .map_err(|failure| refused(&failure))?;
            found.first().map(|_| done).ok_or_else(|| unknown(id))
        }
        Edit::Rate(id, visits_per_unit, time_period) => {
            let found = on(link, async |connection| {
                status::set_rate(connection, id, &visits_per_unit, &time_period).await
            })
            .await
            .map_err(|failure| refused(&failure))?;
            found.then_some(done).ok_or_else(|| unknown(id))
        }
        Edit::Distribute(partner, visits) => {
            let lines = on(link, async |connection| {
                sql_functions::distribute(connection, Some((partner, visits))).await
            })
            .await
            .map_err(|failure| refused(&failure))?;
            let messages = lines.iter().filter_map(|line| line.message.clone());
            Ok(Done {
                added: Some(lines.iter().map(|line| line.visits_added).sum()),
                message: Some(messages.collect::<Vec<_>>().join("; ")),
            })
        }
        Edit::Paused(paused) => {
            on(link, async |connection| {
                status::set_paused(connection, paused).await
            })
            .await
            .map_err(|failure| refused(&failure))?;
            Ok(done)
        }
    }
}

fn refused(failure: &Failure) -> Refused {
    if matches!(failure.kind, ErrorKind::Locked | ErrorKind::Timeout) {
        return Refused::Held(
            "another transaction holds this row; nothing was changed. Try again when it has ended."
                .to_owned(),
        );
    }
    if failure.kind == ErrorKind::Data {
        return Refused::Value(format!("the database refuses this: {}", failure.report()));
    }
    Refused::Database(format!(
        "the database did not take it: {}. Look at the row before you try again.",
        failure.report()
    ))
}
