//! The participants: scripts of real statements, each over a connection of its own.
//!
//! Owns what an agent keeps between two of its statements (the batch it computed), and where a statement can be suspended.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use uuid::Uuid;
use visit_pacer::domain::batch::{Batch, BatchRow, Progress};
use visit_pacer::domain::bucket::BucketRule;
use visit_pacer::domain::distribution::Distribution;
use visit_pacer::domain::schedule::RowRead;
use visit_pacer::domain::time::DbTime;
use visit_pacer::domain::visit::{Catalogue, Generator};
use visit_pacer::domain::visit_times::{Span, visited_at};
use visit_pacer::postgres::batches::{BatchRecords, store};
use visit_pacer::postgres::connection::Connection;
use visit_pacer::postgres::{maintenance, rows};

use crate::oracle::step::StoredRow;

/// The control row's `catch_up`, in thousandths.
const CATCH_UP_MILLI: i64 = 2_000;

/// Where a statement can be suspended, in the order of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gate {
    /// After the statement's snapshot, before the control row and the distributions are locked.
    Locking,
    /// After the distributions are locked and checked, before the partners are locked.
    Locked,
    /// Before the compare-and-set of progress.
    Advancing,
    /// After progress is advanced, before the visits are inserted.
    Inserting,
    /// After the visits are inserted, before the commit.
    Stored,
    /// Before a function waits for a distribution, in `visit_pacer_lock_row()`.
    Holding,
}

impl Gate {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Locking,
        Self::Locked,
        Self::Advancing,
        Self::Inserting,
        Self::Stored,
        Self::Holding,
    ];

    /// The second key of its advisory lock.
    pub fn key(self) -> i32 {
        let place = Self::ALL.iter().position(|gate| *gate == self);
        place
            .and_then(|place| i32::try_from(place).ok())
            .expect("one of all")
    }

    /// The gate of that key.
    pub fn of(key: i32) -> Self {
        Self::ALL[usize::try_from(key).expect("the key of a gate")]
    }
}

/// What a statement may wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Agents and SQL functions that do their work: nothing.
    Pacer,
    /// Functions of maintenance: any lock of a row, for half a second.
    Maintenance,
    /// A statement that runs, or another editor; never an agent between two statements.
    Editor,
}

/// One statement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Reads every distribution and computes a batch.
    Read,
    /// Stores the batch that was computed last, even if it was stored before.
    Store,
    /// Writes `total_distributed` back.
    WriteBack,
    /// A statement of an editor, or a call of an SQL function.
    Sql(&'static str),
}

/// What one actor does, and where its statements are suspended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Script {
    /// For the trace.
    pub name: &'static str,
    /// What it may wait for.
    pub role: Role,
    /// Where its statements are suspended.
    pub gates: Vec<Gate>,
    /// In order.
    pub steps: Vec<Step>,
    /// Whether it may add visits beyond curve and bucket.
    pub manual: bool,
}

impl Script {
    /// An agent that reads, and stores what it computed.
    pub fn agent(name: &'static str, gates: &[Gate]) -> Self {
        Self::new(name, Role::Pacer, gates, &[Step::Read, Step::Store])
    }

    /// An editor: a statement that begins a transaction, and those after it.
    pub fn editor(statements: &[&'static str]) -> Self {
        let steps: Vec<Step> = statements.iter().map(|sql| Step::Sql(sql)).collect();
        Self::new("editor", Role::Editor, &[], &steps)
    }

    /// A function that does the work of an agent.
    pub fn pacing(call: &'static str, gates: &[Gate]) -> Self {
        Self::new("function", Role::Pacer, gates, &[Step::Sql(call)])
    }

    /// A function of maintenance.
    pub fn maintenance(name: &'static str, call: &'static str, gates: &[Gate]) -> Self {
        Self::new(name, Role::Maintenance, gates, &[Step::Sql(call)])
    }

    /// The same with one more step.
    #[must_use]
    pub fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// The same, and it may add visits beyond curve and bucket.
    #[must_use]
    pub fn manual(mut self) -> Self {
        self.manual = true;
        self
    }

    fn new(name: &'static str, role: Role, gates: &[Gate], steps: &[Step]) -> Self {
        Self {
            name,
            role,
            gates: gates.to_vec(),
            steps: steps.to_vec(),
            manual: false,
        }
    }
}

/// An actor's connection and memory.
pub struct Session {
    connection: Connection,
    batch: Batch,
    batch_visits: i64,
}

impl Session {
    /// A connection to that database, for batches of at most that many visits of a distribution.
    pub async fn open(url: &str, batch_visits: i64) -> Self {
        let connection = PgConnection::connect(url).await.expect("a connection");
        let mut session = Self {
            connection: connection.into(),
            batch: Batch::default(),
            batch_visits,
        };
        let no_compiler = "set jit = off"; // it would take most of the time
        session.run(no_compiler).await.expect("a setting");
        session
    }

    /// Its connection, between two steps.
    pub fn connection(&mut self) -> &mut PgConnection {
        self.connection.simple()
    }

    /// Runs SQL.
    pub async fn run(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut self.connection)
            .await
            .map(|_| ())
    }

    /// The server process of the connection.
    pub async fn pid(&mut self) -> i32 {
        sqlx::query_scalar("select pg_backend_pid()")
            .fetch_one(&mut self.connection)
            .await
            .expect("a number")
    }

    /// Forgets the batch.
    pub fn forget(&mut self) {
        self.batch = Batch::default();
    }

    /// Takes a step. Returns the distributions of which a batch stored visits.
    pub async fn perform(&mut self, step: Step) -> Result<Vec<StoredRow>, sqlx::Error> {
        match step {
            Step::Read => {
                let read = rows::every(&mut self.connection).await?;
                self.batch = batch(&read.rows, read.db, self.batch_visits);
                Ok(Vec::new())
            }
            Step::Store => self.store().await,
            Step::WriteBack => {
                let ids: Vec<Uuid> = self.batch.rows.iter().map(|row| row.id).collect();
                maintenance::write_back(&mut self.connection, &ids)
                    .await
                    .map(|_| Vec::new())
            }
            Step::Sql(sql) => self.run(sql).await.map(|()| Vec::new()),
        }
    }

    async fn store(&mut self) -> Result<Vec<StoredRow>, sqlx::Error> {
        if self.batch.rows.is_empty() {
            return Ok(Vec::new());
        }
        let generator = Generator::new(&Catalogue::default());
        let records = BatchRecords::of(&self.batch, &generator);
        let (stored, _) = store(&mut self.connection, &records).await?;
        let rows = self.batch.rows.iter();
        Ok(rows
            .filter(|row| stored.contains(&row.id))
            .map(|row| (row.id, row.version))
            .collect())
    }
}

/// What an agent would store of what it read: within curve, total and bucket, and at most that many visits of a distribution.
fn batch(read: &[RowRead], at: DbTime, most: i64) -> Batch {
    let rows = read.iter().filter_map(|row| batch_row(row, at, most));
    Batch {
        rows: rows.collect(),
    }
}

fn batch_row(read: &RowRead, at: DbTime, most: i64) -> Option<BatchRow> {
    let row = Distribution::parse(&read.row).ok()?;
    let before = read.progress.clone()?;
    let rule = BucketRule::new(row.slope, row.catch_up_milli.unwrap_or(CATCH_UP_MILLI));
    let visits = (row.curve.due(at) - before.distributed)
        .min(before.bucket.holds(&rule, at))
        .min(most);
    if visits <= 0 || !row.active {
        return None;
    }
    let span = Span::of(&row.curve, before.last_visited_at, at);
    let visit_times = visited_at(&row.curve, before.distributed + 1, visits, span);
    let after = Progress {
        distributed: before.distributed + visits,
        last_number: before.last_number + visits,
        bucket: before.bucket.taken(&rule, visits, at),
        last_visited_at: visit_times.last().copied(),
        invalid: None,
    };
    Some(BatchRow {
        id: row.id,
        partner_id: row.partner_id,
        version: row.version,
        before,
        after,
        at,
        visit_times,
    })
}
