//! The three tasks that talk to the database, each over one connection, each with one job at a time: the writer, the
//! reader, the keeper. They answer every job, whatever happens; what follows from the answer is the core's to say.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::watch;

use super::clock::Clock;
use super::snapshot::Snapshot;
use crate::domain::agent::{Chore, Found, Input, Kept, Stored, Trip, What};
use crate::domain::batch::Batch;
use crate::domain::time::{DbTime, Mono};
use crate::domain::visit::{Generator, PagePath};
use crate::domain::way::Way;
use crate::postgres::batches::{Columns, store};
use crate::postgres::chores::{self, Identity, SelfReport};
use crate::postgres::connection::Connection;
use crate::postgres::fault::Fault;
use crate::postgres::link::{Link, within};
use crate::postgres::rows;
use crate::postgres::scan::Reader;

/// Connections of an agent at work: one a lane.
pub const LANES: usize = 3;
/// The catalogue of page paths is read again after this time.
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

    fn trip(&self, sent: Mono, db: DbTime) -> Trip {
        Trip {
            sent,
            db,
            received: self.clock.now(),
        }
    }
}

/// Stores batches until there are no more.
pub async fn writer(mut link: Link, mut jobs: mpsc::Receiver<Batch>, answers: Answers) {
    let mut catalogue = Catalogue::default();
    while let Some(batch) = jobs.recv().await {
        let (stored, trip) = write(&mut link, &mut catalogue, &batch, &answers).await;
        answers.give(Input::Stored(stored, trip)).await;
    }
    link.close().await;
}

async fn write(
    link: &mut Link,
    catalogue: &mut Catalogue,
    batch: &Batch,
    answers: &Answers,
) -> (Stored, Option<Trip>) {
    let opened = link.open().await;
    let prepared = match opened {
        Ok(connection) => catalogue.refresh(connection, answers.clock.now()).await,
        Err(fault) => Err(fault),
    };
    if let Err(fault) = link.check(prepared) {
        return (Stored::Unsent(fault), None);
    }
    let columns = Columns::of(batch, &catalogue.generator);
    let sent = answers.clock.now();
    let outcome = match link.open().await {
        Ok(connection) => within(store(connection, &columns)).await,
        Err(fault) => return (Stored::Unsent(fault), None),
    };
    match link.check(outcome) {
        Ok((rows, db)) => (Stored::Rows(rows), db.map(|db| answers.trip(sent, db))),
        Err(fault) => (Stored::Failed(fault), None),
    }
}

/// The page paths that visits are drawn from, as last read.
struct Catalogue {
    paths: Vec<PagePath>,
    generator: Generator,
    read_at: Option<Mono>,
}

impl Default for Catalogue {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            generator: Generator::new(&[]),
            read_at: None,
        }
    }
}

impl Catalogue {
    async fn refresh(&mut self, connection: &mut Connection, now: Mono) -> Result<(), Fault> {
        if self
            .read_at
            .is_some_and(|at| now.since(at) < CATALOGUE_EVERY)
        {
            return Ok(());
        }
        let paths = within(rows::page_paths(connection)).await?;
        if paths != self.paths || self.read_at.is_none() {
            self.generator = Generator::new(&paths);
            self.paths = paths;
        }
        self.read_at = Some(now);
        Ok(())
    }
}

/// Reads rows until there is nothing more to read.
pub async fn reader(mut link: Link, mut jobs: mpsc::Receiver<What>, answers: Answers) {
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
    link: &mut Link,
    reader: &mut Reader,
    what: &What,
    answers: &Answers,
) -> Result<(Found, Trip), Fault> {
    let connection = link.open().await?;
    let mut sent = answers.clock.now();
    let outcome = async {
        let horizon = match what {
            What::All | What::Since(_) => Some(within(rows::horizon(connection)).await?),
            What::After(_) | What::Rows(_) => None,
        };
        sent = answers.clock.now();
        let read = reader.read(connection, what).await?;
        let gone = match what {
            What::Since(since) => within(rows::gone(connection, *since)).await?,
            What::All | What::After(_) | What::Rows(_) => BTreeSet::new(),
        };
        let found = Found {
            rows: read.rows,
            more_after: read.more_after,
            truncated: gone.contains(&None),
            gone: gone.into_iter().flatten().collect(),
            horizon,
        };
        Ok((found, read.db))
    }
    .await;
    let (found, db) = link.check(outcome)?;
    Ok((found, answers.trip(sent, db)))
}

/// Does the chores until there are no more; then says goodbye.
pub async fn keeper(
    mut link: Link,
    mut jobs: mpsc::Receiver<Chore>,
    answers: Answers,
    identity: Identity,
    seen: watch::Receiver<Snapshot>,
) {
    while let Some(chore) = jobs.recv().await {
        let report = seen.borrow().report();
        let answer = keep(&mut link, &chore, &answers, &identity, &report).await;
        answers.give(Input::Kept(answer)).await;
    }
    if link.is_open()
        && let Ok(connection) = link.open().await
    {
        // Others see after 20 s that it is gone, should this fail.
        let _said = within(chores::goodbye(connection, &identity)).await.is_ok();
    }
    link.close().await;
}

async fn keep(
    link: &mut Link,
    chore: &Chore,
    answers: &Answers,
    identity: &Identity,
    report: &SelfReport,
) -> Result<(Kept, Trip), Fault> {
    let connection = link.open().await?;
    let mut sent = answers.clock.now();
    let outcome = within(async {
        let kept = match chore {
            Chore::Beat { serving } => {
                let seen = chores::beat(connection, identity, *serving, report).await?;
                return Ok((Kept::Beat(seen.control, seen.peers), seen.db));
            }
            Chore::WriteBack(ids) => Kept::WroteBack(chores::write_back(connection, ids).await?),
            Chore::Canary(way) => {
                match way {
                    Way::Changes => chores::touch_canary(connection, identity).await?,
                    Way::Broadcast => chores::broadcast_canary(connection).await?,
                }
                Kept::Canary(*way)
            }
            Chore::Initialise => Kept::Initialised(chores::initialise(connection).await?),
            Chore::Reconcile(ids) => Kept::Reconciled(chores::reconcile(connection, ids).await?),
            Chore::MarkInvalid(id, why) => {
                Kept::MarkedInvalid(chores::mark_invalid(connection, *id, why).await?)
            }
            Chore::Published => Kept::Published(chores::published(connection).await?),
        };
        sent = answers.clock.now();
        Ok((kept, rows::clock(connection).await?))
    })
    .await;
    let (kept, db) = link.check(outcome)?;
    Ok((kept, answers.trip(sent, db)))
}
