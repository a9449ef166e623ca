//! The three tasks that talk to the database, each over one connection, each with one job at a time: the writer, the
//! reader, the keeper. They answer every job, whatever happens; what follows from the answer is the core's to say.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::watch;

use super::clock::Clock;
use super::snapshot::Snapshot;
use crate::domain::agent::{
    Input, MaintenanceTask, ReadRequest, ReadResult, RoundTrip, Stored, TaskOutcome,
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

/// Connections of an agent at work: one a lane.
pub const LANES: usize = 3;
/// The catalogue is read again after this time.
const CATALOGUE_EVERY: Duration = Duration::from_secs(60);

/// What a lane needs to answer.
#[derive(Clone)]
pub struct Answers {
    /// Where answers go.
    pub inputs: mpsc::Sender<Input>,
    /// Where time comes from.
    pub clock: Clock,
}

impl Answers {
    /// The loop is gone only when the process ends, so an answer that cannot be given matters to nobody.
    async fn give(&self, input: Input) {
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

/// Stores batches until there are no more.
pub async fn writer(
    mut link: ReconnectingConnection,
    mut jobs: mpsc::Receiver<Batch>,
    answers: Answers,
) {
    let mut catalogue = CatalogueCache::default();
    while let Some(batch) = jobs.recv().await {
        let (stored, round_trip) = write(&mut link, &mut catalogue, &batch, &answers).await;
        answers.give(Input::Stored(stored, round_trip)).await;
    }
    link.close().await;
}

async fn write(
    link: &mut ReconnectingConnection,
    catalogue: &mut CatalogueCache,
    batch: &Batch,
    answers: &Answers,
) -> (Stored, Option<RoundTrip>) {
    let opened = link.open().await;
    let prepared = match opened {
        Ok(connection) => catalogue.refresh(connection, answers.clock.now()).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = link.check(prepared) {
        return (Stored::Unsent(failure), None);
    }
    let records = BatchRecords::of(batch, &catalogue.generator);
    let sent = answers.clock.now();
    let outcome = match link.open().await {
        Ok(connection) => with_timeout(store(connection, &records)).await,
        Err(failure) => return (Stored::Unsent(failure), None),
    };
    match link.check(outcome) {
        Ok((rows, db)) => (
            Stored::Rows(rows),
            db.map(|db| answers.round_trip(sent, db)),
        ),
        Err(failure) => (Stored::Failed(failure), None),
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

/// Reads rows until there is nothing more to read.
pub async fn reader(
    mut link: ReconnectingConnection,
    mut jobs: mpsc::Receiver<ReadRequest>,
    answers: Answers,
) {
    let mut reader = Reader::new(link.database().clone());
    while let Some(what) = jobs.recv().await {
        let answer = read(&mut link, &mut reader, &what, &answers).await;
        if answer.is_err() {
            reader.forget();
        }
        answers.give(Input::Read(answer)).await;
    }
    link.close().await;
}

async fn read(
    link: &mut ReconnectingConnection,
    reader: &mut Reader,
    what: &ReadRequest,
    answers: &Answers,
) -> Result<(ReadResult, RoundTrip), Failure> {
    let connection = link.open().await?;
    let mut sent = answers.clock.now();
    let outcome = async {
        let watermark = match what {
            ReadRequest::All | ReadRequest::Since(_) => {
                Some(with_timeout(rows::watermark(connection)).await?)
            }
            ReadRequest::After(_) | ReadRequest::Rows(_) => None,
        };
        sent = answers.clock.now();
        let read = reader.read(connection, what).await?;
        let gone = match what {
            ReadRequest::Since(since) => with_timeout(rows::gone(connection, *since)).await?,
            ReadRequest::All | ReadRequest::After(_) | ReadRequest::Rows(_) => BTreeSet::new(),
        };
        let found = ReadResult {
            rows: read.rows,
            more_after: read.more_after,
            truncated: gone.contains(&None),
            gone: gone.into_iter().flatten().collect(),
            watermark,
        };
        Ok((found, read.db))
    }
    .await;
    let (found, db) = link.check(outcome)?;
    Ok((found, answers.round_trip(sent, db)))
}

/// Does the chores until there are no more; then says goodbye.
pub async fn keeper(
    mut link: ReconnectingConnection,
    mut jobs: mpsc::Receiver<MaintenanceTask>,
    answers: Answers,
    identity: Identity,
    seen: watch::Receiver<Snapshot>,
) {
    while let Some(task) = jobs.recv().await {
        let report = seen.borrow().report();
        let answer = keep(&mut link, &task, &answers, &identity, &report).await;
        answers.give(Input::TaskOutcome(answer)).await;
    }
    if link.is_open()
        && let Ok(connection) = link.open().await
    {
        // Others see after 20 s that it is gone, should this fail.
        let _said = with_timeout(maintenance::goodbye(connection, &identity))
            .await
            .is_ok();
    }
    link.close().await;
}

async fn keep(
    link: &mut ReconnectingConnection,
    task: &MaintenanceTask,
    answers: &Answers,
    identity: &Identity,
    report: &SelfReport,
) -> Result<(TaskOutcome, RoundTrip), Failure> {
    let connection = link.open().await?;
    let mut sent = answers.clock.now();
    let outcome = with_timeout(async {
        let kept = match task {
            MaintenanceTask::Beat { serving } => {
                let seen = maintenance::beat(connection, identity, *serving, report).await?;
                return Ok((TaskOutcome::Beat(seen.control, seen.peers), seen.db));
            }
            MaintenanceTask::WriteBack(ids) => {
                TaskOutcome::WroteBack(maintenance::write_back(connection, ids).await?)
            }
            MaintenanceTask::Canary(transport) => {
                match transport {
                    Transport::Changes => maintenance::touch_canary(connection, identity).await?,
                    Transport::Broadcast => maintenance::broadcast_canary(connection).await?,
                }
                TaskOutcome::Canary(*transport)
            }
            MaintenanceTask::Initialise => {
                TaskOutcome::Initialised(maintenance::initialise(connection).await?)
            }
            MaintenanceTask::Reconcile(ids) => {
                TaskOutcome::Reconciled(maintenance::reconcile(connection, ids).await?)
            }
            MaintenanceTask::MarkInvalid(id, why) => {
                TaskOutcome::MarkedInvalid(maintenance::mark_invalid(connection, *id, why).await?)
            }
            MaintenanceTask::Published => {
                TaskOutcome::Published(maintenance::published(connection).await?)
            }
        };
        sent = answers.clock.now();
        Ok((kept, rows::clock(connection).await?))
    })
    .await;
    let (kept, db) = link.check(outcome)?;
    Ok((kept, answers.round_trip(sent, db)))
}
