//! What the state machine is told, and what it asks for.

use std::collections::BTreeSet;
use std::time::Duration;

use uuid::Uuid;

use crate::domain::batch::Batch;
use crate::domain::echo_check::Reconnect;
use crate::domain::error_policy::Failure;
use crate::domain::ownership::PeerAgent;
use crate::domain::schedule::{Control, RowRead};
use crate::domain::time::{DbTime, Mono};
use crate::domain::transport::{Following, PerTransport, Transport};

/// What Realtime tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RealtimeEvent {
    /// The subscription is live, or was made anew: changes may have been missed before.
    Live(Transport),
    /// It ended.
    Down(Transport),
    /// A row changed; its version, where the event carries it.
    Row(Transport, Uuid, Option<i64>),
    /// A canary was heard.
    Canary(Transport),
    /// Something changed, and it cannot be told what.
    Unclear,
    /// A table cannot be followed by `postgres_changes`.
    Unfollowed,
}

/// One round trip to the database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoundTrip {
    /// When it was sent.
    pub sent: Mono,
    /// What the database's clock said meanwhile.
    pub db: DbTime,
    /// When it was answered.
    pub received: Mono,
}

/// What became of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stored {
    /// It was committed; these rows were stored, the others of it refused.
    Rows(BTreeSet<Uuid>),
    /// It was sent and failed; whether it was committed all the same, the policy knows.
    Failed(Failure),
    /// It was never sent.
    Unsent(Failure),
}

/// What the keeper found out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TaskOutcome {
    /// The agent was seen; the control row, and the other agents that are there.
    Beat(Control, Vec<PeerAgent>),
    /// These rows' columns were written, with what they say now.
    WroteBack(Vec<WrittenBack>),
    /// The canary was touched, or broadcast.
    Canary(Transport),
    /// Rows that were anchored.
    Initialised(u64),
    /// What the comparison with the stored visits found.
    Reconciled(Vec<CountDifference>),
    /// The reason is kept in progress; false where somebody held the row.
    MarkedInvalid(bool),
    /// Which tables Realtime publishes.
    Published(Published),
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
    /// Some publication, Realtime's or another, has `visit_distribution`: each write to it is somebody's event.
    pub anywhere: bool,
    /// Edits are broadcast: Realtime's `messages` and `send` are there, so is our trigger, and we may send the canary.
    pub broadcasts: bool,
}

/// A row's own column after a write-back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrittenBack {
    /// The row.
    pub id: Uuid,
    /// What `total_distributed` says now.
    pub distributed: i64,
    /// Whether that was news, so that an event of it must follow.
    pub changed: bool,
}

/// One row whose counters and stored visits differed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CountDifference {
    /// The row.
    pub id: Uuid,
    /// Visits that are gone.
    pub missing: i64,
    /// Whether its counter was changed.
    pub changed: bool,
    /// In words.
    pub message: String,
}

/// What happens to the agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// A deadline passed.
    Tick,
    /// From Realtime.
    RealtimeEvent(RealtimeEvent),
    /// The reader's answer.
    Read(Result<(ReadResult, RoundTrip), Failure>),
    /// The writer's answer; no trip where there was no answer.
    Stored(Stored, Option<RoundTrip>),
    /// The keeper's answer.
    TaskOutcome(Result<(TaskOutcome, RoundTrip), Failure>),
    /// Stop: finish what is in hand, begin nothing.
    Stop,
}

/// A job for one of the lanes, or a word to the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// For the writer.
    Store(Batch),
    /// For the reader.
    Read(ReadRequest),
    /// For the keeper.
    Keep(MaintenanceTask),
    /// For the feed: its channel keeps silent.
    Revive(Transport, Reconnect),
    /// For the feed: what to follow from now on.
    Follow(Following),
    /// For the log.
    Tell(Notice),
}

/// What to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadRequest {
    /// Every row, in parts: the first of them by id.
    All,
    /// … and the part after this row.
    After(Uuid),
    /// Those that were edited, or whose counter was lowered, after an earlier look at all.
    Since(XidWatermark),
    /// These.
    Rows(Vec<Uuid>),
}

/// Where a look at the table left off: the oldest transaction in progress just before it (`pg_snapshot_xmin`). What that
/// look did not see was written by this transaction or a later one, however late it commits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct XidWatermark(pub u64);

/// What the reader found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReadResult {
    /// In no order.
    pub rows: Vec<RowRead>,
    /// There are more than one read takes: the last of these.
    pub more_after: Option<Uuid>,
    /// Rows that were deleted since the horizon that was asked for.
    pub gone: BTreeSet<Uuid>,
    /// The table was truncated since.
    pub truncated: bool,
    /// Where to go on; nothing where only some rows were asked for.
    pub watermark: Option<XidWatermark>,
}

/// The keeper's jobs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MaintenanceTask {
    /// Be seen, serving or not; read the control row, and see the other agents.
    Beat {
        /// The rows are known, and batches get through.
        serving: bool,
    },
    /// Write `total_distributed` back.
    WriteBack(Vec<Uuid>),
    /// Touch the canary, or broadcast one.
    Canary(Transport),
    /// Anchor rows that no trigger has seen.
    Initialise,
    /// Compare these rows' counters with what is stored.
    Reconcile(Vec<Uuid>),
    /// Keep the reason why a row's insert fails.
    MarkInvalid(Uuid, String),
    /// Find out which tables Realtime publishes.
    Published,
}

/// What a person should hear. The runtime words it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// The first full sync is done.
    Synced(usize),
    /// A row cannot be paced, or its insert fails.
    Quarantined(Uuid, String),
    /// A row that was set aside is paced again.
    Mended(Uuid),
    /// A sync found changes of which Realtime had not told.
    Repaired(usize),
    /// Realtime's channel kept silent.
    Silent(Transport, Reconnect),
    /// From here on the schedule is that of this version of the row.
    Followed(Uuid, Option<i64>),
    /// What we wrote came back as an event after so long.
    Echoed(Transport, Duration),
    /// The database's clock stepped.
    ClockStepped,
    /// The database does not answer, or refuses to work.
    DatabaseAway(Failure),
    /// It works, but a statement of ours failed.
    Hindered(Failure),
    /// A chore for this row is put off: the database refuses it.
    Deferred(Uuid, Failure),
    /// It does again.
    DatabaseBack(Duration),
    /// So many agents share the rows from now on.
    Shared(usize),
    /// Everything was stopped by the control row, or goes on.
    Paused(bool),
    /// Counters and stored visits differ.
    CountsDiffer(CountDifference),
    /// Rows that no trigger had seen were anchored.
    Initialised(u64),
    /// Edits are broadcast, and listened to that way too; or not any more.
    Broadcasts(bool),
    /// Broadcasts alone are listened to, and no edit is broadcast.
    NothingBroadcasts,
    /// Something about the publication is not as it should be.
    Published(Published),
}

/// Plain counters, since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Visits stored.
    pub visits: u64,
    /// Batches committed.
    pub batches: u64,
    /// Rows refused by the database at a batch, by the reason.
    pub refused: Refusals,
    /// Batches whose answer was lost.
    pub unknown: u64,
    /// Batches that failed.
    pub failed: u64,
    /// Batches that were not sent, since no connection could be had.
    pub unsent: u64,
    /// Syncs: what had changed was read, or every row.
    pub syncs: u64,
    /// Of these, those that read every row.
    pub full_syncs: u64,
    /// Rows read by id.
    pub rows_read: u64,
    /// Events of rows.
    pub events: PerTransport<u64>,
    /// Events and broadcasts that told nothing new.
    pub events_known: u64,
    /// Changes that only a sync found.
    pub repaired: u64,
    /// Times that the channel was found to keep silent.
    pub silent: PerTransport<u64>,
    /// Of these, times that it was joined again on the same socket.
    pub rejoins: u64,
    /// Of these, times that a new socket was opened.
    pub reopens: u64,
    /// Rows written back.
    pub written_back: u64,
}

/// Why rows were left out of batches that were committed: as the next read found them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Refusals {
    /// As they were: somebody held the row or its partner.
    pub locked: u64,
    /// Edited.
    pub changed: u64,
    /// Paused, by themselves or by the control row.
    pub paused: u64,
    /// Stored by somebody else meanwhile.
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

/// Whether the agent does its work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Health {
    /// When the last full sync ended.
    pub synced_at: Option<Mono>,
    /// A beat was answered: the control row is known, and the other agents and jobs see this one.
    pub control_known: bool,
    /// When a batch was last committed.
    pub stored_at: Option<Mono>,
    /// Since when the database has been away.
    pub database_away_since: Option<Mono>,
    /// Since when Realtime has been live.
    pub live_since: Option<Mono>,
    /// Since when it has not.
    pub down_since: Option<Mono>,
    /// A full sync has followed the subscription.
    pub caught_up: bool,
}

impl Health {
    /// Whether it knows the rows and the control row; nothing is stored before.
    pub fn has_begun(&self) -> bool {
        self.synced_at.is_some() && self.control_known
    }
}
