//! The state machine: everything that the agent decides. It reads no clock, opens no socket and knows no SQL.
//!
//! The runtime feeds it [`Input`]s with the time at which they arrived, carries out the [`Action`]s that it polls, and
//! wakes it at [`Agent::next_deadline`]. Three lanes work for it, each with one job at a time: the writer stores batches,
//! the reader reads rows, the keeper does the rest (beats, write-backs, reconciliation). So nothing queues up unseen, and
//! the answer to every job is an input. Each lane's jobs and answers are in a file of its own below this one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::SeedableRng as _;
use rand_pcg::Pcg32;
use uuid::Uuid;

use super::batch::Batch;
use super::bucket::RateBucket;
use super::clock::{DbClock, Stepped};
use super::echo_check::{CANARY, EchoCheck, Reconnect};
use super::error_policy::{ErrorKind, Failure};
use super::limits::{COALESCE, SERVES_WITHIN, SYNC_EVERY_BLIND};
use super::ownership::Ownership;
use super::schedule::{
    Control, DistributionStatus, ReadSequence, Round, Schedule, Status, StatusSummary,
};
use super::time::{DbTime, Mono};
use super::transport::{Following, ListenBy, PerTransport, Transport};
use super::write_back::{Staleness, WriteBackBudget};

use self::lane::Lane;
pub use self::messages::{
    Action, CountDifference, Counters, Health, Input, MaintenanceTask, Notice, Published,
    ReadRequest, ReadResult, RealtimeEvent, Refusals, RoundTrip, Stored, TaskOutcome, WrittenBack,
    XidWatermark,
};
use self::poison_search::PoisonSearch;
use self::reader::{Reading, Sync};
use self::reconciliation::Reconciliation;

mod keeper;
mod lane;
mod messages;
mod poison_search;
mod reader;
mod reconciliation;
mod writer;

/// See the module.
#[derive(Debug)]
pub struct Agent {
    me: Uuid,
    agents: usize,
    schedule: Schedule,
    round: Round,
    clock: DbClock,
    visits: RateBucket,
    echo: WriteBackBudget,
    listen_by: ListenBy,
    following: Following,
    echo_check: PerTransport<EchoCheck>,
    random: Pcg32,
    outbox: VecDeque<Action>,
    sequence: ReadSequence,
    writer: Lane,
    reader: Lane,
    keeper: Lane,
    storing: Option<Batch>,
    storing_since: Mono,
    reading: Option<Reading>,
    /// A sync of which parts are still to be read.
    syncing: Option<Sync>,
    /// Edited rows were read last: the next part of the sync comes before more of them.
    sync_has_its_turn: bool,
    keeping: Option<MaintenanceTask>,
    wanted: BTreeSet<Uuid>,
    wanted_at: Option<Mono>,
    next_sync: Mono,
    /// Where the next sync goes on; `None`: it reads every row.
    watermark: Option<XidWatermark>,
    next_full_sync: Mono,
    /// A full read that began before this one does not answer the last reason to sync.
    sync_since: ReadSequence,
    sync_called_for: bool,
    /// … while every row was being read.
    called_for_while_reading_all: bool,
    next_beat: Mono,
    reconciliation: Reconciliation,
    maintenance: VecDeque<MaintenanceTask>,
    missing_told: BTreeMap<Uuid, i64>,
    quarantine: BTreeSet<Uuid>,
    /// Reasons that are still to be kept in progress: somebody held the row. Tried again at each beat.
    unmarked: BTreeMap<Uuid, String>,
    defer: BTreeSet<Uuid>,
    /// Why the database is away, as far as it has been told since it is.
    away_told: BTreeSet<ErrorKind>,
    poison_search: PoisonSearch,
    /// Rows that were left out of a batch, and their version in it: why is known once they have been read.
    refused: BTreeMap<Uuid, i64>,
    published: Option<Published>,
    stopping: bool,
    counters: Counters,
    health: Health,
}

impl Agent {
    /// An agent that knows nothing yet, bounded to so many visits a second. `me` is new at each start of a process; it
    /// also feeds the jitter of its retries.
    pub fn new(me: Uuid, max_visits_per_second: u32, now: Mono) -> Self {
        Self {
            me,
            agents: 1,
            schedule: Schedule::new(Ownership::alone(me)),
            round: Round::default(),
            clock: DbClock::default(),
            visits: RateBucket::visits(i64::from(max_visits_per_second), now),
            echo: WriteBackBudget::new(Control::default().write_back_budget_micro, now),
            listen_by: ListenBy::default(),
            following: Following::at_first(ListenBy::default()),
            echo_check: PerTransport::default(),
            random: Pcg32::seed_from_u64(me.as_u64_pair().0),
            outbox: VecDeque::new(),
            sequence: ReadSequence::default(),
            writer: Lane::new(now),
            reader: Lane::new(now),
            keeper: Lane::new(now),
            storing: None,
            storing_since: now,
            reading: None,
            syncing: None,
            sync_has_its_turn: false,
            keeping: None,
            wanted: BTreeSet::new(),
            wanted_at: None,
            next_sync: now,
            watermark: None,
            next_full_sync: now,
            sync_since: ReadSequence::default(),
            sync_called_for: false,
            called_for_while_reading_all: false,
            next_beat: now,
            reconciliation: Reconciliation::new(now),
            maintenance: VecDeque::from([MaintenanceTask::Published]),
            missing_told: BTreeMap::new(),
            quarantine: BTreeSet::new(),
            unmarked: BTreeMap::new(),
            defer: BTreeSet::new(),
            away_told: BTreeSet::new(),
            poison_search: PoisonSearch::default(),
            refused: BTreeMap::new(),
            published: None,
            stopping: false,
            counters: Counters::default(),
            health: Health {
                down_since: Some(now),
                ..Health::default()
            },
        }
    }

    /// The agent, listening in these ways; before its first input.
    #[must_use]
    pub fn listening(mut self, by: ListenBy) -> Self {
        self.listen_by = by;
        self.following = Following::at_first(by);
        self
    }

    /// Takes an input in; what follows from it is polled as actions.
    pub fn handle(&mut self, input: Input, now: Mono) {
        match input {
            Input::Tick => {}
            Input::RealtimeEvent(news) => self.hear(&news, now),
            Input::Read(answer) => self.read(answer, now),
            Input::Stored(stored, round_trip) => self.stored(stored, round_trip, now),
            Input::TaskOutcome(answer) => self.kept(answer, now),
            Input::Stop => self.stopping = true,
        }
        self.give_out_work(now);
    }

    /// The next action to carry out.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.outbox.pop_front()
    }

    /// When to tick next, and why.
    pub fn next_deadline(&mut self, now: Mono) -> Option<(Mono, &'static str)> {
        if self.stopping {
            return None;
        }
        let after = |lane: &Lane, at: Mono| (!lane.busy).then(|| at.max(lane.not_before));
        let fire = self.fires_at().and_then(|at| after(&self.writer, at));
        let sync = after(&self.reader, self.next_sync);
        let read = self.wanted_at.and_then(|at| after(&self.reader, at));
        let beat = after(&self.keeper, self.next_beat);
        let echo = self
            .echo
            .next_deadline(now)
            .and_then(|at| after(&self.keeper, at));
        let canary = |transport| {
            self.canary_at(transport)
                .and_then(|at| after(&self.keeper, at))
        };
        let reconcile = self
            .reconciliation
            .next_deadline()
            .and_then(|at| after(&self.keeper, at));
        [
            (fire, "a row fires"),
            (sync, "full sync"),
            (read, "changed rows are read"),
            (beat, "beat"),
            (echo, "write-back"),
            (canary(Transport::Changes), "canary"),
            (canary(Transport::Broadcast), "canary by broadcast"),
            (reconcile, "reconciliation"),
            (self.echo_check.changes.next_deadline(), "proof of life"),
            (self.echo_check.broadcast.next_deadline(), "proof of life"),
        ]
        .into_iter()
        .filter_map(|(at, why)| at.map(|at| (at, why)))
        .min()
    }

    /// Whether nothing is in hand any more, after [`Input::Stop`].
    pub fn is_idle(&self) -> bool {
        !self.writer.busy && !self.keeper.busy
    }

    /// Counters since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether it does its work.
    pub fn health(&self) -> Health {
        self.health
    }

    /// All rows of this agent as they stand; nothing before the first round trip.
    pub fn statuses(&self, now: Mono) -> Vec<DistributionStatus> {
        self.clock
            .at(now)
            .map_or_else(Vec::new, |db| self.schedule.statuses(db).collect())
    }

    /// Looks at the next rows for people and metrics; how all of this agent's stand, once every row has had its turn.
    pub fn status_summary(&mut self, now: Mono) -> Option<StatusSummary> {
        let db_now = self.clock.at(now)?;
        self.round.go_on(&self.schedule, db_now)
    }

    /// Rows known.
    pub fn rows(&self) -> usize {
        self.schedule.len()
    }

    /// Rows that are this agent's to store.
    pub fn rows_owned(&self) -> usize {
        self.schedule.ours()
    }

    /// Whether it knows the rows, and its batches get through.
    pub fn serves(&self, now: Mono) -> bool {
        let stuck = self.storing.is_some() && now.since(self.storing_since) > SERVES_WITHIN;
        self.health.synced_at.is_some() && !self.stopping && !stuck && !self.writer.is_away()
    }

    /// Agents that share the rows, this one among them.
    pub fn agents(&self) -> usize {
        self.agents
    }

    /// Rows of this agent that run.
    pub fn running(&self) -> usize {
        self.schedule.running()
    }

    /// Whether the control row stops everything.
    pub fn paused(&self) -> bool {
        self.schedule.control().paused
    }

    /// The batch that is being stored.
    pub fn storing(&self) -> Option<&Batch> {
        self.storing.as_ref()
    }

    /// The database's time, as estimated.
    pub fn db_time(&self, now: Mono) -> Option<DbTime> {
        self.clock.at(now)
    }

    fn hear(&mut self, news: &RealtimeEvent, now: Mono) {
        match news {
            RealtimeEvent::Live(transport) => {
                self.echo_check.of_mut(*transport).live(now);
                self.sync_now(now);
                self.health.live_since = self.health.live_since.or(Some(now));
                self.health.down_since = None;
                self.health.caught_up = false;
            }
            RealtimeEvent::Down(transport) => self.down(*transport, now),
            RealtimeEvent::Row(transport, id, version) => {
                *self.counters.events.of_mut(*transport) += 1;
                self.heard(*transport, *id, now);
                if version.is_some() && *version == self.schedule.version(*id) {
                    self.counters.events_known += 1;
                } else {
                    self.want([*id], now.plus(COALESCE));
                }
            }
            RealtimeEvent::Canary(transport) => self.heard(*transport, CANARY, now),
            RealtimeEvent::Unclear => {
                self.counters.events.changes += 1;
                self.sync_now(now);
            }
            RealtimeEvent::Unfollowed => {
                self.down(Transport::Changes, now);
                self.task(MaintenanceTask::Published);
            }
        }
    }

    fn heard(&mut self, transport: Transport, id: Uuid, now: Mono) {
        if let Some(after) = self.echo_check.of_mut(transport).heard(id, now) {
            self.tell(Notice::Echoed(transport, after));
        }
    }

    /// One way is not live; the agent is blind only where none is.
    fn down(&mut self, transport: Transport, now: Mono) {
        self.echo_check.of_mut(transport).down();
        if self
            .echo_check
            .both()
            .iter()
            .any(|echo_check| echo_check.is_live())
        {
            return;
        }
        self.next_sync = self.next_sync.min(now.plus(SYNC_EVERY_BLIND));
        self.health.live_since = None;
        self.health.down_since = self.health.down_since.or(Some(now));
        self.health.caught_up = false;
    }

    fn give_out_work(&mut self, now: Mono) {
        if self.stopping {
            return;
        }
        for transport in Transport::ALL {
            if let Some(reconnect) = self.echo_check.of_mut(transport).reconnect(now) {
                *self.counters.silent.of_mut(transport) += 1;
                match reconnect {
                    Reconnect::Rejoin => self.counters.rejoins += 1,
                    Reconnect::Reopen => self.counters.reopens += 1,
                }
                self.tell(Notice::Silent(transport, reconnect));
                self.outbox.push_back(Action::Revive(transport, reconnect));
            }
        }
        self.give_out_storing(now);
        self.give_out_reading(now);
        self.give_out_keeping(now);
    }

    fn sync_now(&mut self, now: Mono) {
        self.next_sync = now;
        self.sync_since = self.sequence;
        self.sync_called_for = true;
    }

    /// Follows from where a row stands now: whether it is set aside, and whether its own column is right.
    fn take_note(&mut self, id: Uuid, db_now: DbTime, now: Mono) {
        let Some(look) = self.schedule.owned_status(id, db_now) else {
            return;
        };
        match look.reason {
            Some(why) if self.quarantine.insert(id) => self.tell(Notice::Quarantined(id, why)),
            None if self.quarantine.remove(&id) => {
                self.unmarked.remove(&id);
                self.tell(Notice::Mended(id));
            }
            Some(_) | None => {}
        }
        let bad = look.partner_id.is_none(); // who knows what a write to it would meet
        let column = if bad || look.written == Some(look.distributed) {
            Staleness::Right
        } else if matches!(look.status, Status::Completed | Status::Ended) {
            Staleness::StaleFinished
        } else {
            Staleness::Stale
        };
        self.echo.note(id, column, now);
    }

    fn forget(&mut self, id: Uuid, now: Mono) {
        self.echo.forget(id, now);
        self.quarantine.remove(&id);
        self.unmarked.remove(&id);
        self.defer.remove(&id);
        self.refused.remove(&id);
        self.poison_search.clear(id);
        self.missing_told.remove(&id);
        self.reconciliation.forget(id);
    }

    fn want(&mut self, ids: impl IntoIterator<Item = Uuid>, by: Mono) {
        self.wanted.extend(ids);
        if !self.wanted.is_empty() {
            self.wanted_at = Some(self.wanted_at.map_or(by, |at| at.min(by)));
        }
    }

    fn round_trip(&mut self, round_trip: RoundTrip, now: Mono) {
        if self
            .clock
            .sample(round_trip.sent, round_trip.db, round_trip.received)
            == Stepped::Yes
        {
            self.tell(Notice::ClockStepped);
            if let Some(db_now) = self.clock.at(now) {
                self.schedule.clock_stepped(db_now);
            }
        }
    }

    /// A lane's job failed.
    fn failed(&mut self, failure: Failure, may_tell: bool, now: Mono) {
        if failure.policy().away {
            self.health.database_away_since = self.health.database_away_since.or(Some(now));
            if self.away_told.insert(failure.kind) {
                self.tell(Notice::DatabaseAway(failure));
            }
        } else if may_tell {
            self.tell(Notice::Hindered(failure));
        }
    }

    /// The database is back once no lane with something to do is without an answer: on a full disk it can still be read.
    fn database_back(&mut self, now: Mono) {
        let to_store = self.storing.is_some() || self.fires_at().is_some_and(|at| at <= now);
        let cannot_store = self.writer.is_away() && to_store;
        if cannot_store || self.reader.is_away() || self.keeper.is_away() {
            return;
        }
        if let Some(since) = self.health.database_away_since.take() {
            self.away_told.clear();
            self.tell(Notice::DatabaseBack(now.since(since)));
        }
    }

    /// Puts a chore on the list once.
    fn task(&mut self, task: MaintenanceTask) {
        if !self.maintenance.contains(&task) {
            self.maintenance.push_back(task);
        }
    }

    fn tell(&mut self, notice: Notice) {
        self.outbox.push_back(Action::Tell(notice));
    }

    fn next_sequence(&mut self) -> ReadSequence {
        self.sequence = ReadSequence(self.sequence.0 + 1);
        self.sequence
    }
}

#[cfg(test)]
mod tests;
