//! The workers: three tasks with a database connection and one job at a time each, the writer, the reader and the
//! maintenance worker. They answer every job, whatever happens; the agent decides what follows.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::watch;

use super::clock::Clock;
use super::snapshot::Snapshot;
use crate::domain::agent::{
    Answer, BatchOutcome, Input, MaintenanceTask, ReadRequest, ReadResult, RoundTrip, TaskOutcome,
};
use crate::domain::batch::Batch;
use crate::domain::time::{DbTime, Mono};
use crate::domain::transport::Transport;
use crate::domain::visit::{Catalogue, Generator};
use crate::postgres::batches::{BatchRecords, store};
use crate::postgres::connection::Connection;
use crate::postgres::failure::Failure;
use crate::postgres::maintenance::{self, Identity, SelfReport};
use crate::postgres::reconnect::{ReconnectingConnection, with_timeout};
use crate::postgres::rows;
use crate::postgres::scan::Reader;

/// Connections of an agent at work: one for each worker.
pub const WORKERS: usize = 3;
/// The catalogue is read again after this time.
const CATALOGUE_EVERY: Duration = Duration::from_secs(60);

/// What a worker needs to answer.
#[derive(Clone)]
pub struct Answers {
    /// Where answers go.
    pub inputs: mpsc::Sender<Input>,
    /// The monotonic clock.
    pub clock: Clock,
}

impl Answers {
    /// The loop is gone only when the process ends, so an answer that cannot be sent does not matter.
    async fn send(&self, answer: Answer, round_trip: Option<RoundTrip>) {
        let input = Input::Answer(answer, round_trip);
        let _delivered = self.inputs.send(input).await.is_ok();
    }

    fn round_trip(&self, sent: Mono, db: DbTime) -> RoundTrip {
        RoundTrip {
            sent,
            db,
            received: self.clock.now(),
        }
    }
}

/// Stores batches until the queue ends.
pub async fn writer(
    mut connection: ReconnectingConnection,
    mut jobs: mpsc::Receiver<Batch>,
    answers: Answers,
) {
    let mut catalogue = CatalogueCache::default();
    while let Some(batch) = jobs.recv().await {
        let (outcome, round_trip) = write(&mut connection, &mut catalogue, &batch, &answers).await;
        answers.send(Answer::Stored(outcome), round_trip).await;
    }
    connection.close().await;
}

async fn write(
    reconnecting: &mut ReconnectingConnection,
    catalogue: &mut CatalogueCache,
    batch: &Batch,
    answers: &Answers,
) -> (BatchOutcome, Option<RoundTrip>) {
    let prepared = match reconnecting.open().await {
        Ok(connection) => catalogue.refresh(connection, answers.clock.now()).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = reconnecting.check(prepared) {
        return (BatchOutcome::Unsent(failure), None);
    }
    let records = BatchRecords::of(batch, &catalogue.generator);
    let sent = answers.clock.now();
    let stored = match reconnecting.open().await {
        Ok(connection) => with_timeout(store(connection, &records)).await,
        Err(failure) => return (BatchOutcome::Unsent(failure), None),
    };
    match reconnecting.check(stored) {
        Ok((rows, db)) => {
            let round_trip = db.map(|db| answers.round_trip(sent, db));
            (BatchOutcome::Committed(rows), round_trip)
        }
        Err(failure) => (BatchOutcome::Failed(failure), None),
    }
}

/// The catalogue that visits are drawn from, as last read.
struct CatalogueCache {
    catalogue: Catalogue,
    generator: Generator,
    read_at: Option<Mono>,
}

impl Default for CatalogueCache {
    fn default() -> Self {
        Self {
            catalogue: Catalogue::default(),
            generator: Generator::new(&Catalogue::default()),
            read_at: None,
        }
    }
}

impl CatalogueCache {
    async fn refresh(&mut self, connection: &mut Connection, now: Mono) -> Result<(), Failure> {
        if self
            .read_at
            .is_some_and(|at| now.since(at) < CATALOGUE_EVERY)
        {
            return Ok(());
        }
        let catalogue = with_timeout(rows::catalogue(connection)).await?;
        if catalogue != self.catalogue {
            self.generator = Generator::new(&catalogue);
            self.catalogue = catalogue;
        }
        self.read_at = Some(now);
        Ok(())
    }
}

/// Reads rows until the queue ends.
pub async fn reader(
    mut connection: ReconnectingConnection,
    mut jobs: mpsc::Receiver<ReadRequest>,
    answers: Answers,
) {
    let mut reader = Reader::new(connection.database().clone());
    while let Some(request) = jobs.recv().await {
        let answer = read(&mut connection, &mut reader, &request, &answers).await;
        if answer.is_err() {
            reader.forget();
        }
        let (answer, round_trip) = split(answer);
        answers.send(Answer::Read(answer), round_trip).await;
    }
    connection.close().await;
}

async fn read(
    reconnecting: &mut ReconnectingConnection,
    reader: &mut Reader,
    request: &ReadRequest,
    answers: &Answers,
) -> Result<(ReadResult, RoundTrip), Failure> {
    let connection = reconnecting.open().await?;
    let mut sent = answers.clock.now();
    let outcome = async {
        let watermark = match request {
            ReadRequest::All | ReadRequest::Since(_) => {
                Some(with_timeout(rows::watermark(connection)).await?)
            }
            ReadRequest::After(_) | ReadRequest::Rows(_) => None,
        };
        sent = answers.clock.now();
        let read = reader.read(connection, request).await?;
        let deletions = match request {
            ReadRequest::Since(since) => with_timeout(rows::gone(connection, *since)).await?,
            ReadRequest::All | ReadRequest::After(_) | ReadRequest::Rows(_) => BTreeSet::new(),
        };
        let result = ReadResult {
            rows: read.rows,
            more_after: read.more_after,
            truncated: deletions.contains(&None),
            deletions: deletions.into_iter().flatten().collect(),
            watermark,
        };
        Ok((result, read.db))
    }
    .await;
    let (result, db) = reconnecting.check(outcome)?;
    Ok((result, answers.round_trip(sent, db)))
}

/// Does tasks of maintenance until the queue ends, and then releases the agent's rows.
pub async fn maintenance(
    mut connection: ReconnectingConnection,
    mut jobs: mpsc::Receiver<MaintenanceTask>,
    answers: Answers,
    identity: Identity,
    snapshot: watch::Receiver<Snapshot>,
) {
    while let Some(task) = jobs.recv().await {
        let report = snapshot.borrow().report();
        let answer = maintain(&mut connection, &task, &answers, &identity, &report).await;
        let (answer, round_trip) = split(answer);
        answers.send(Answer::Maintained(answer), round_trip).await;
    }
    if connection.is_open()
        && let Ok(connection) = connection.open().await
    {
        // If this fails, its heartbeat expires.
        let _released = with_timeout(maintenance::goodbye(connection, &identity))
            .await
            .is_ok();
    }
    connection.close().await;
}

async fn maintain(
    reconnecting: &mut ReconnectingConnection,
    task: &MaintenanceTask,
    answers: &Answers,
    identity: &Identity,
    report: &SelfReport,
) -> Result<(TaskOutcome, RoundTrip), Failure> {
    let connection = reconnecting.open().await?;
    let mut sent = answers.clock.now();
    let outcome = with_timeout(async {
        let outcome = match task {
            MaintenanceTask::Heartbeat { serving } => {
                let seen = maintenance::beat(connection, identity, *serving, report).await?;
                return Ok((TaskOutcome::Heartbeat(seen.control, seen.peers), seen.db));
            }
            MaintenanceTask::WriteBack(ids) => {
                TaskOutcome::WroteBack(maintenance::write_back(connection, ids).await?)
            }
            MaintenanceTask::Canary(transport) => {
                match transport {
                    Transport::Changes => maintenance::touch_canary(connection, identity).await?,
                    Transport::Broadcast => maintenance::broadcast_canary(connection).await?,
                }
                TaskOutcome::Canary
            }
            MaintenanceTask::Initialise => {
                TaskOutcome::Initialised(maintenance::initialise(connection).await?)
            }
            MaintenanceTask::Reconcile(ids) => {
                TaskOutcome::Reconciled(maintenance::reconcile(connection, ids).await?)
            }
            MaintenanceTask::MarkInvalid(id, reason) => {
                let marked = maintenance::mark_invalid(connection, *id, reason).await?;
                TaskOutcome::MarkedInvalid(marked)
            }
            MaintenanceTask::CheckPublication => {
                maintenance::follow_tables(connection).await?;
                TaskOutcome::Publication(maintenance::published(connection).await?)
            }
        };
        sent = answers.clock.now();
        Ok((outcome, rows::clock(connection).await?))
    })
    .await;
    let (outcome, db) = reconnecting.check(outcome)?;
    Ok((outcome, answers.round_trip(sent, db)))
}

fn split<T>(answer: Result<(T, RoundTrip), Failure>) -> (Result<T, Failure>, Option<RoundTrip>) {
    match answer {
        Ok((result, round_trip)) => (Ok(result), Some(round_trip)),
        Err(failure) => (Err(failure), None),
    }
}
