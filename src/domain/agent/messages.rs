//! The inputs of the state machine, and the actions that it asks for.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::domain::batch::Batch;
use crate::domain::echo_check::Reconnect;
use crate::domain::error_policy::Failure;
use crate::domain::event::Event;
use crate::domain::ownership::PeerAgent;
use crate::domain::schedule::{Control, RowRead};
use crate::domain::time::{DbTime, Mono};
use crate::domain::transport::{Following, PerTransport, Transport};

/// What happens to the agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// A deadline passed.
    Tick,
    /// From Realtime.
    Realtime(RealtimeEvent),
    /// A worker's answer; no round trip where the database did not answer.
    Answer(Answer, Option<RoundTrip>),
    /// Stop: finish the jobs in hand, start none.
    Stop,
}

/// For the runtime.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// For the writer.
    Store(Batch),
    /// For the reader.
    Read(ReadRequest),
    /// For the maintenance worker.
    Maintain(MaintenanceTask),
    /// For the feed: this transport's channel is silent.
    Reconnect(Transport, Reconnect),
    /// For the feed: what to follow from now on.
    Follow(Following),
    /// For the log, the dashboard and the metrics.
    Emit(Event),
}

/// The answer to a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The writer's.
    Stored(BatchOutcome),
    /// The reader's.
    Read(Result<ReadResult, Failure>),
    /// The maintenance worker's.
    Maintained(Result<TaskOutcome, Failure>),
}

impl Answer {
    /// What failed.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Stored(BatchOutcome::Failed(failure) | BatchOutcome::Unsent(failure))
            | Self::Read(Err(failure))
            | Self::Maintained(Err(failure)) => Some(failure),
            Self::Stored(BatchOutcome::Committed(_))
            | Self::Read(Ok(_))
            | Self::Maintained(Ok(_)) => None,
        }
    }
}

/// One round trip to the database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoundTrip {
    /// When the statement was sent.
    pub sent: Mono,
    /// The database's clock meanwhile.
    pub db: DbTime,
    /// When it was answered.
    pub received: Mono,
}

/// What happened to a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BatchOutcome {
    /// It was committed; these rows of it were stored, the others refused.
    Committed(BTreeSet<Uuid>),
    /// It was sent and failed. The policy says whether it may have been committed all the same.
    Failed(Failure),
    /// It was never sent.
    Unsent(Failure),
}

/// What to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadRequest {
    /// The first part of all rows, by id.
    All,
    /// The part after this row.
    After(Uuid),
    /// Rows that were edited, or whose counter was decreased, since an earlier sync.
    Since(XidWatermark),
    /// These.
    Rows(Vec<Uuid>),
}

/// Where a sync left off: the oldest transaction in progress just before it (`pg_snapshot_xmin`). Whatever that sync did not
/// see was written by this transaction or a later one, however late it commits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct XidWatermark(pub u64);

/// What the reader found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReadResult {
    /// In no order.
    pub rows: Vec<RowRead>,
    /// The last of these rows, if there are more than one read returns.
    pub more_after: Option<Uuid>,
    /// Rows that were deleted since the watermark of the request.
    pub deletions: BTreeSet<Uuid>,
    /// The table was truncated since then.
    pub truncated: bool,
    /// Where the next sync continues; `None` where only some rows were requested.
    pub watermark: Option<XidWatermark>,
}

/// A job of the maintenance worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MaintenanceTask {
    /// Write the heartbeat; read the control row and the other agents.
    Heartbeat {
        /// The agent knows the rows, and its batches succeed.
        serving: bool,
    },
    /// Write `total_distributed` back.
    WriteBack(Vec<Uuid>),
    /// Touch or broadcast the canary.
    Canary(Transport),
    /// Anchor rows that no trigger has seen.
    Initialise,
    /// Compare these rows' counters with the stored visits.
    Reconcile(Vec<Uuid>),
    /// Keep the reason why this row's insert fails.
    MarkInvalid(Uuid, String),
    /// Read which tables Realtime publishes.
    CheckPublication,
}

/// What a task of maintenance found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TaskOutcome {
    /// The control row, and the other live agents.
    Heartbeat(Control, Vec<PeerAgent>),
    /// These rows' columns were written, with their values now.
    WroteBack(Vec<WrittenBack>),
    /// The canary was touched or broadcast.
    Canary,
    /// How many rows were anchored.
    Initialised(usize),
    /// What the comparison with the stored visits found.
    Reconciled(Vec<CountDifference>),
    /// Whether the reason was kept; not while another session locks the row.
    MarkedInvalid(bool),
    /// What Realtime publishes.
    Publication(Published),
}

/// Which tables Realtime publishes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Published {
    /// `visit_distribution`
    pub distributions: bool,
    /// The canary.
    pub canary: bool,
    /// `store_visits`, which should not be: each visit would be an event.
    pub visits: bool,
    /// Any publication, Realtime's or another, has `visit_distribution`: each write to it is an event for a subscriber.
    pub anywhere: bool,
    /// Edits are broadcast: `realtime.messages`, `realtime.send` and our trigger exist, and the agent may send the canary.
    pub broadcasts: bool,
}

/// A row's own column after a write-back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrittenBack {
    /// The row.
    pub id: Uuid,
    /// The value of `total_distributed` now.
    pub distributed: i64,
    /// Whether the write changed it, so that an event of it must follow.
    pub changed: bool,
}

/// One row whose counters and stored visits differed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CountDifference {
    /// The row.
    pub id: Uuid,
    /// Visits that are missing.
    pub missing: i64,
    /// Whether its counter was changed.
    pub changed: bool,
    /// In words.
    pub message: String,
}

/// What Realtime tells the agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RealtimeEvent {
    /// The subscription is live, or was made again: changes may have been missed before.
    Live(Transport),
    /// It ended.
    Down(Transport),
    /// A row changed; its version, where the event carries it.
    Row(Transport, Uuid, Option<i64>),
    /// A canary arrived.
    Canary(Transport),
    /// Something changed, and the event does not say what.
    Unclear,
    /// A table cannot be followed by `postgres_changes`.
    Unfollowed,
}

/// Counters since the start, by owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Of batches.
    pub writes: WriteCounters,
    /// Of syncs and reads.
    pub reads: ReadCounters,
    /// Of Realtime.
    pub realtime: RealtimeCounters,
    /// Rows written back.
    pub written_back: u64,
}

/// Counters of batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriteCounters {
    /// Visits stored.
    pub visits: u64,
    /// Batches committed.
    pub batches: u64,
    /// Rows that the database left out of a batch, by reason.
    pub refused: Refusals,
    /// Batches whose answer was lost.
    pub unknown: u64,
    /// Batches that failed.
    pub failed: u64,
    /// Batches that were not sent, for want of a connection.
    pub unsent: u64,
}

/// Why rows were left out of batches that were committed, as the next read found them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Refusals {
    /// Unchanged: another session locked the row or its partner.
    pub locked: u64,
    /// Edited.
    pub changed: u64,
    /// Paused, by itself or by the control row.
    pub paused: u64,
    /// Another agent or function stored its visits meanwhile.
    pub moved: u64,
    /// Deleted.
    pub deleted: u64,
}

impl Refusals {
    /// Whatever the reason.
    pub fn total(&self) -> u64 {
        self.locked + self.changed + self.paused + self.moved + self.deleted
    }
}

/// Counters of syncs and reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReadCounters {
    /// Syncs, incremental and full.
    pub syncs: u64,
    /// Full syncs.
    pub full_syncs: u64,
    /// Rows read by id.
    pub rows_read: u64,
    /// Changes that only a sync found.
    pub repaired: u64,
}

/// Counters of Realtime.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RealtimeCounters {
    /// Events of rows.
    pub events: PerTransport<u64>,
    /// Events whose version was known already.
    pub events_known: u64,
    /// Times that a channel was found silent.
    pub silent: PerTransport<u64>,
    /// Of these, times that it was joined again on the same socket.
    pub rejoins: u64,
    /// Of these, times that a new socket was opened.
    pub reopens: u64,
}

/// Whether the agent does its work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Health {
    /// When the last sync ended.
    pub synced_at: Option<Mono>,
    /// A heartbeat was answered: the control row is known, and other agents and SQL functions see this agent.
    pub control_known: bool,
    /// When a batch was last committed.
    pub stored_at: Option<Mono>,
    /// Since when the database has been unavailable.
    pub database_away_since: Option<Mono>,
    /// Since when a transport has been live.
    pub live_since: Option<Mono>,
    /// Since when none has.
    pub down_since: Option<Mono>,
    /// A sync has followed the latest subscription.
    pub caught_up: bool,
}

impl Health {
    /// Whether it knows the rows and the control row; nothing is stored before.
    pub fn has_begun(&self) -> bool {
        self.synced_at.is_some() && self.control_known
    }
}
