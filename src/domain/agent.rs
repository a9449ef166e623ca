//! The state machine: everything that the agent decides. It reads no clock, opens no socket and knows no SQL.
//!
//! The runtime feeds it [`Input`]s with the time at which they arrived, carries out the [`Action`]s that it polls, and
//! wakes it at [`Agent::next_deadline`]. Three lanes work for it, each with one job at a time: the writer stores batches,
//! the reader reads rows, the keeper does the rest (beats, write-backs, reconciliation). So nothing queues up unseen, and
//! the answer to every job is an input.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg32;
use uuid::Uuid;

use super::batch::Batch;
use super::bucket::RateBucket;
use super::clock::{DbClock, Stepped};
use super::echo::{Column, EchoBudget};
use super::limits::{
    BEAT_EVERY, COALESCE, DATABASE_RETRY_MAX, DATABASE_RETRY_MIN, RECONCILE_EVERY,
    RECONCILE_RESTING_EVERY, ROWS_PER_READ, ROWS_PER_RECONCILIATION, SYNC_EVERY, SYNC_EVERY_BLIND,
    VISITS_PER_RECONCILIATION,
};
use super::proof::{CANARY, Proof, Verdict};
use super::retry::Retry;
use super::time::{DbTime, Mono};
use super::timetable::{Applied, Control, Look, RowRead, Stall, Stamp, Status, Timetable};

/// What Realtime tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum News {
    /// The subscription is live, or was made anew: changes may have been missed before.
    Live,
    /// It ended.
    Down,
    /// A row changed; its version, where the event carries it.
    Row(Uuid, Option<i64>),
    /// Our canary was heard.
    Canary,
    /// Something changed, and it cannot be told what.
    Unclear,
    /// A table cannot be followed.
    Unfollowed,
}

/// One round trip to the database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trip {
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
    /// The answer was lost: nobody knows.
    Unknown(String),
    /// Certainly not committed: the database refused the data.
    Failed(String),
    /// Certainly not committed, for a reason that is not the rows'.
    NotNow(String),
}

/// What the keeper found out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kept {
    /// The agent was seen; the control row.
    Beat(Control),
    /// These rows' columns were written, with what they say now.
    WroteBack(Vec<WrittenBack>),
    /// The canary was touched.
    Canary,
    /// Rows that were anchored.
    Initialised(u64),
    /// What the comparison with the stored visits found.
    Reconciled(Vec<Finding>),
    /// The reason is kept in progress.
    MarkedInvalid,
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
pub struct Finding {
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
    News(News),
    /// The reader's answer.
    Read(Result<(Vec<RowRead>, Trip), String>),
    /// The writer's answer; no trip where there was no answer.
    Stored(Stored, Option<Trip>),
    /// The keeper's answer.
    Kept(Result<(Kept, Trip), String>),
    /// Stop: finish what is in hand, begin nothing.
    Stop,
}

/// A job for one of the lanes, or a word to the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// For the writer.
    Store(Batch),
    /// For the reader.
    Read(What),
    /// For the keeper.
    Keep(Chore),
    /// For the feed: its channel keeps silent.
    Revive(Verdict),
    /// For the feed: what to follow from now on.
    Follow(Published),
    /// For the log.
    Tell(Notice),
}

/// What to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// Every row.
    All,
    /// These.
    Rows(Vec<Uuid>),
}

/// The keeper's jobs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Chore {
    /// Be seen, and read the control row.
    Beat,
    /// Write `total_distributed` back.
    WriteBack(Vec<Uuid>),
    /// Touch the canary.
    Canary,
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
    SetAside(Uuid, String),
    /// A row that was set aside is paced again.
    Mended(Uuid),
    /// A sync found changes of which Realtime had not told.
    Repaired(usize),
    /// Realtime's channel kept silent.
    Silent(Verdict),
    /// The database's clock stepped.
    ClockStepped,
    /// The database does not answer, or refuses to work.
    DatabaseAway(String),
    /// It does again.
    DatabaseBack(Duration),
    /// Everything was stopped by the control row, or goes on.
    Paused(bool),
    /// Counters and stored visits differ.
    Found(Finding),
    /// Rows that no trigger had seen were anchored.
    Initialised(u64),
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
    /// Rows refused by the database at a batch.
    pub refused: u64,
    /// Batches whose answer was lost.
    pub unknown: u64,
    /// Batches that failed.
    pub failed: u64,
    /// Full reads of the table.
    pub syncs: u64,
    /// Rows read by id.
    pub rows_read: u64,
    /// Events of Realtime, and those that told nothing new.
    pub events: u64,
    /// See `events`.
    pub events_known: u64,
    /// Changes that only a sync found.
    pub repaired: u64,
    /// Times that the channel was found to keep silent.
    pub silent: u64,
    /// Rows written back.
    pub written_back: u64,
}

/// Whether the agent does its work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Health {
    /// When the last full sync ended.
    pub synced_at: Option<Mono>,
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

#[derive(Debug)]
struct Lane {
    busy: bool,
    not_before: Mono,
    retry: Retry,
}

impl Lane {
    fn new(now: Mono) -> Self {
        Self {
            busy: false,
            not_before: now,
            retry: Retry::new(DATABASE_RETRY_MIN, DATABASE_RETRY_MAX),
        }
    }

    fn free(&self, now: Mono) -> bool {
        !self.busy && now >= self.not_before
    }

    fn succeeded(&mut self) {
        self.busy = false;
        self.retry.reset();
    }

    fn failed(&mut self, draw: u32, now: Mono) {
        self.busy = false;
        self.not_before = now.plus(self.retry.next(draw));
    }
}

/// See the module.
#[derive(Debug)]
pub struct Agent {
    timetable: Timetable,
    clock: DbClock,
    visits: RateBucket,
    echo: EchoBudget,
    proof: Proof,
    random: Pcg32,
    outbox: VecDeque<Action>,
    stamp: Stamp,
    writer: Lane,
    reader: Lane,
    keeper: Lane,
    storing: Option<Batch>,
    reading: Option<(What, Stamp)>,
    wanted: BTreeSet<Uuid>,
    wanted_at: Option<Mono>,
    next_sync: Mono,
    /// A full read that began before this one does not answer the last reason to sync.
    sync_since: Stamp,
    next_beat: Mono,
    next_reconciliation: Option<Mono>,
    next_full_reconciliation: Mono,
    moved: BTreeSet<Uuid>,
    to_reconcile: VecDeque<Uuid>,
    chores: VecDeque<Chore>,
    missing_told: BTreeMap<Uuid, i64>,
    set_aside: BTreeSet<Uuid>,
    published: Option<Published>,
    control_known: bool,
    stopping: bool,
    counters: Counters,
    health: Health,
}

impl Agent {
    /// An agent that knows nothing yet, bounded to so many visits a second. `seed` feeds the jitter of its retries.
    pub fn new(max_visits_per_second: u32, seed: u64, now: Mono) -> Self {
        Self {
            timetable: Timetable::default(),
            clock: DbClock::default(),
            visits: RateBucket::visits(i64::from(max_visits_per_second), now),
            echo: EchoBudget::new(Control::default().echo_budget_micro, now),
            proof: Proof::default(),
            random: Pcg32::seed_from_u64(seed),
            outbox: VecDeque::new(),
            stamp: Stamp::default(),
            writer: Lane::new(now),
            reader: Lane::new(now),
            keeper: Lane::new(now),
            storing: None,
            reading: None,
            wanted: BTreeSet::new(),
            wanted_at: None,
            next_sync: now,
            sync_since: Stamp::default(),
            next_beat: now,
            next_reconciliation: None,
            next_full_reconciliation: now,
            moved: BTreeSet::new(),
            to_reconcile: VecDeque::new(),
            chores: VecDeque::from([Chore::Published]),
            missing_told: BTreeMap::new(),
            set_aside: BTreeSet::new(),
            published: None,
            control_known: false,
            stopping: false,
            counters: Counters::default(),
            health: Health {
                down_since: Some(now),
                ..Health::default()
            },
        }
    }

    /// Takes an input in; what follows from it is polled as actions.
    pub fn handle(&mut self, input: Input, now: Mono) {
        match input {
            Input::Tick => {}
            Input::News(news) => self.hear(&news, now),
            Input::Read(answer) => self.read(answer, now),
            Input::Stored(stored, trip) => self.stored(stored, trip, now),
            Input::Kept(answer) => self.kept(answer, now),
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
        let reconcile = self
            .next_reconciliation
            .and_then(|at| after(&self.keeper, at));
        [
            (fire, "a row fires"),
            (sync, "full sync"),
            (read, "changed rows are read"),
            (beat, "beat"),
            (echo, "write-back"),
            (reconcile, "reconciliation"),
            (self.proof.next_deadline(), "proof of life"),
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

    /// All rows as they stand; nothing before the first round trip.
    pub fn look_at_all(&self, now: Mono) -> Vec<Look> {
        self.clock
            .at(now)
            .map_or_else(Vec::new, |db| self.timetable.look_at_all(db).collect())
    }

    /// Rows known.
    pub fn rows(&self) -> usize {
        self.timetable.len()
    }

    /// Rows that run.
    pub fn running(&self) -> usize {
        self.timetable.running()
    }

    /// Whether the control row stops everything.
    pub fn paused(&self) -> bool {
        self.timetable.control().paused
    }

    /// The batch that is being stored.
    pub fn storing(&self) -> Option<&Batch> {
        self.storing.as_ref()
    }

    /// The database's time, as estimated.
    pub fn db_time(&self, now: Mono) -> Option<DbTime> {
        self.clock.at(now)
    }

    // ---- what is heard -------------------------------------------------------------------------

    fn hear(&mut self, news: &News, now: Mono) {
        match news {
            News::Live => {
                self.proof.live(now);
                self.sync_now(now);
                self.health.live_since = Some(now);
                self.health.down_since = None;
                self.health.caught_up = false;
            }
            News::Down => {
                self.proof.down();
                self.next_sync = self.next_sync.min(now.plus(SYNC_EVERY_BLIND));
                self.health.live_since = None;
                self.health.down_since = self.health.down_since.or(Some(now));
            }
            News::Row(id, version) => {
                self.counters.events += 1;
                self.proof.heard(*id, now);
                if version.is_some() && *version == self.timetable.version(*id) {
                    self.counters.events_known += 1;
                } else {
                    self.want([*id], now.plus(COALESCE));
                }
            }
            News::Canary => self.proof.heard(CANARY, now),
            News::Unclear => {
                self.counters.events += 1;
                self.sync_now(now);
            }
            News::Unfollowed => self.chore(Chore::Published),
        }
    }

    // ---- what is answered ----------------------------------------------------------------------

    fn read(&mut self, answer: Result<(Vec<RowRead>, Trip), String>, now: Mono) {
        let Some((what, began)) = self.reading.take() else {
            return;
        };
        match answer {
            Ok((rows, trip)) => {
                self.reader.succeeded();
                self.trip(trip, now);
                self.apply(&what, rows, began, now);
            }
            Err(why) => {
                let draw = self.random.next_u32();
                self.reader.failed(draw, now);
                self.database_away(why, now);
                match what {
                    What::All => self.next_sync = now,
                    What::Rows(ids) => self.want(ids, now),
                }
            }
        }
    }

    fn apply(&mut self, what: &What, rows: Vec<RowRead>, began: Stamp, now: Mono) {
        let Some(db_now) = self.clock.at(now) else {
            return;
        };
        let first = self.health.synced_at.is_none();
        let empty = rows.is_empty();
        let mut seen = BTreeSet::new();
        let mut changed = Vec::new();
        let mut unanchored = false;
        for row in rows {
            let id = row.row.id;
            unanchored |= row.row.config_version.is_none() || row.progress.is_none();
            seen.insert(id);
            if self.timetable.apply(id, Some(row), began, db_now) != Applied::Nothing {
                changed.push(id);
            }
            self.take_note(id, db_now, now);
        }
        let absent = match what {
            What::All => self.timetable.unseen_by(&seen, began),
            What::Rows(ids) => ids
                .iter()
                .filter(|id| !seen.contains(id))
                .copied()
                .collect(),
        };
        for id in absent {
            if self.timetable.apply(id, None, began, db_now) == Applied::Removed {
                self.forget(id, now);
                changed.push(id);
            }
        }
        if unanchored {
            self.chore(Chore::Initialise);
        }
        match what {
            What::All => {
                self.repairs(&changed, first || empty, now);
                self.synced(first, began, now);
            }
            What::Rows(ids) => {
                self.counters.rows_read += u64::try_from(ids.len()).unwrap_or(u64::MAX);
            }
        }
    }

    /// Changes that a sync had to find although Realtime should have told of them. A TRUNCATE is never told, so an empty
    /// table proves nothing against it.
    fn repairs(&mut self, changed: &[Uuid], excused: bool, now: Mono) {
        let missed: Vec<Uuid> = changed
            .iter()
            .filter(|id| !self.wanted.contains(id))
            .copied()
            .collect();
        if excused || missed.is_empty() || !self.health.caught_up {
            return;
        }
        self.counters.repaired += u64::try_from(missed.len()).unwrap_or(u64::MAX);
        self.tell(Notice::Repaired(missed.len()));
        for id in missed {
            self.proof.repaired(id, now);
        }
    }

    fn synced(&mut self, first: bool, began: Stamp, now: Mono) {
        self.counters.syncs += 1;
        let live = self.health.live_since.is_some();
        let answered = began > self.sync_since;
        if answered {
            self.next_sync = now.plus(if live { SYNC_EVERY } else { SYNC_EVERY_BLIND });
        }
        self.health.caught_up = live && answered;
        self.health.synced_at = Some(now);
        if first {
            self.tell(Notice::Synced(self.timetable.len()));
            self.next_reconciliation = Some(now);
        }
    }

    fn stored(&mut self, stored: Stored, trip: Option<Trip>, now: Mono) {
        let Some(batch) = self.storing.take() else {
            return;
        };
        if let Some(trip) = trip {
            self.trip(trip, now);
        }
        let Some(db_now) = self.clock.at(now) else {
            return;
        };
        match stored {
            Stored::Rows(ids) => {
                self.writer.succeeded();
                self.count_stored(&batch, &ids, now);
                let stamp = self.next_stamp();
                let refused = self.timetable.answered(&batch, &ids, stamp, db_now);
                self.counters.refused += u64::try_from(refused.len()).unwrap_or(u64::MAX);
                self.want(refused, now);
                for id in ids {
                    self.moved.insert(id);
                    self.take_note(id, db_now, now);
                }
            }
            Stored::Unknown(why) => {
                self.counters.unknown += 1;
                let doubtful = self.timetable.unknown(&batch);
                self.want(doubtful, now);
                self.writer_failed(why, now);
            }
            Stored::Failed(why) => {
                self.counters.failed += 1;
                self.writer.succeeded();
                if let Some(id) = self.timetable.failed(&batch, &why, db_now) {
                    self.chore(Chore::MarkInvalid(id, why));
                    self.take_note(id, db_now, now);
                }
            }
            Stored::NotNow(why) => {
                self.timetable.untried(&batch, Stall::Database, db_now);
                self.writer_failed(why, now);
            }
        }
    }

    fn count_stored(&mut self, batch: &Batch, ids: &BTreeSet<Uuid>, now: Mono) {
        self.counters.batches += 1;
        self.health.stored_at = Some(now);
        let visits: i64 = batch
            .rows
            .iter()
            .filter(|row| ids.contains(&row.id))
            .map(super::batch::BatchRow::visits)
            .sum();
        self.counters.visits += u64::try_from(visits).unwrap_or(0);
    }

    fn writer_failed(&mut self, why: String, now: Mono) {
        let draw = self.random.next_u32();
        self.writer.failed(draw, now);
        self.database_away(why, now);
    }

    fn kept(&mut self, answer: Result<(Kept, Trip), String>, now: Mono) {
        let kept = match answer {
            Ok((kept, trip)) => {
                self.keeper.succeeded();
                self.trip(trip, now);
                kept
            }
            Err(why) => {
                let draw = self.random.next_u32();
                self.keeper.failed(draw, now);
                self.database_away(why, now);
                return;
            }
        };
        let Some(db_now) = self.clock.at(now) else {
            return;
        };
        match kept {
            Kept::Beat(control) => self.control(control, db_now, now),
            Kept::WroteBack(rows) => {
                for row in rows {
                    self.timetable.wrote_back(row.id, row.distributed);
                    if row.changed {
                        self.counters.written_back += 1;
                        self.proof.wrote(row.id, now);
                    }
                    self.take_note(row.id, db_now, now);
                }
            }
            Kept::Canary => self.proof.wrote(CANARY, now),
            Kept::Initialised(rows) => {
                if rows > 0 {
                    self.tell(Notice::Initialised(rows));
                    self.sync_now(now);
                }
            }
            Kept::Reconciled(findings) => self.found(findings, now),
            Kept::MarkedInvalid => {}
            Kept::Published(published) => self.publication(published),
        }
    }

    fn control(&mut self, control: Control, db_now: DbTime, now: Mono) {
        let was_paused = self.timetable.control().paused;
        self.timetable.set_control(control, db_now);
        self.echo.set_rate(control.echo_budget_micro, now);
        self.control_known = true;
        if was_paused != control.paused {
            self.tell(Notice::Paused(control.paused));
        }
    }

    fn publication(&mut self, published: Published) {
        if self.published != Some(published) {
            let as_wished = Published {
                distributions: true,
                canary: true,
                visits: false,
            };
            if published != as_wished {
                self.tell(Notice::Published(published));
            }
            if self.published.is_some() || !published.canary {
                self.outbox.push_back(Action::Follow(published));
            }
            self.published = Some(published);
        }
    }

    fn found(&mut self, findings: Vec<Finding>, now: Mono) {
        for finding in findings {
            let told = self.missing_told.get(&finding.id).copied().unwrap_or(0);
            if finding.changed {
                self.want([finding.id], now);
            }
            if finding.changed || finding.missing != told {
                self.missing_told.insert(finding.id, finding.missing);
                self.tell(Notice::Found(finding));
            }
        }
    }

    // ---- work that is given out ----------------------------------------------------------------

    fn give_out_work(&mut self, now: Mono) {
        if self.stopping {
            return;
        }
        if let Some(verdict) = self.proof.verdict(now) {
            self.counters.silent += 1;
            self.tell(Notice::Silent(verdict));
            self.outbox.push_back(Action::Revive(verdict));
        }
        self.give_out_storing(now);
        self.give_out_reading(now);
        self.give_out_keeping(now);
    }

    fn fires_at(&self) -> Option<Mono> {
        if self.health.synced_at.is_none() || !self.control_known {
            return None;
        }
        self.timetable
            .next_deadline()
            .and_then(|at| self.clock.mono_of(at))
    }

    fn give_out_storing(&mut self, now: Mono) {
        if !self.writer.free(now) || self.fires_at().is_none_or(|at| at > now) {
            return;
        }
        let Some(db_now) = self.clock.at(now) else {
            return;
        };
        let available = self.visits.holds(now);
        if let Some(batch) = self.timetable.plan(db_now, available) {
            self.visits.take(batch.visits());
            self.writer.busy = true;
            self.storing = Some(batch.clone());
            self.outbox.push_back(Action::Store(batch));
        }
    }

    fn give_out_reading(&mut self, now: Mono) {
        if !self.reader.free(now) {
            return;
        }
        let what = if self.next_sync <= now {
            self.wanted.clear();
            self.wanted_at = None;
            What::All
        } else if self.wanted_at.is_some_and(|at| at <= now) {
            let ids: Vec<Uuid> = self.wanted.iter().take(ROWS_PER_READ).copied().collect();
            for id in &ids {
                self.wanted.remove(id);
            }
            self.wanted_at = (!self.wanted.is_empty()).then_some(now);
            What::Rows(ids)
        } else {
            return;
        };
        let began = self.next_stamp();
        self.reader.busy = true;
        self.reading = Some((what.clone(), began));
        self.outbox.push_back(Action::Read(what));
    }

    fn give_out_keeping(&mut self, now: Mono) {
        if !self.keeper.free(now) {
            return;
        }
        if let Some(chore) = self.next_chore(now) {
            self.keeper.busy = true;
            self.outbox.push_back(Action::Keep(chore));
        }
    }

    fn next_chore(&mut self, now: Mono) -> Option<Chore> {
        if self.next_beat <= now {
            self.next_beat = now.plus(BEAT_EVERY);
            return Some(Chore::Beat);
        }
        if let Some(chore) = self.chores.pop_front() {
            return Some(chore);
        }
        let stale = self.echo.take(now);
        if !stale.is_empty() {
            return Some(Chore::WriteBack(stale));
        }
        if self.proof.wants_canary(now) && self.published.is_some_and(|tables| tables.canary) {
            return Some(Chore::Canary);
        }
        self.next_reconciliation(now)
    }

    fn next_reconciliation(&mut self, now: Mono) -> Option<Chore> {
        if self.next_reconciliation.is_none_or(|at| at > now) {
            return None;
        }
        if self.to_reconcile.is_empty() {
            let moved = std::mem::take(&mut self.moved);
            if self.next_full_reconciliation <= now {
                self.next_full_reconciliation = now.plus(RECONCILE_RESTING_EVERY);
                self.to_reconcile = self
                    .look_at_all(now)
                    .into_iter()
                    .map(|look| look.id)
                    .collect();
            } else {
                self.to_reconcile = moved.into_iter().collect();
            }
        }
        let db_now = self.clock.at(now)?;
        let mut slice = Vec::new();
        let mut visits = 0;
        while let Some(id) = self.to_reconcile.front() {
            let distributed = self
                .timetable
                .look(*id, db_now)
                .map_or(0, |look| look.distributed);
            visits += distributed;
            let full = slice.len() >= ROWS_PER_RECONCILIATION || visits > VISITS_PER_RECONCILIATION;
            if full && !slice.is_empty() {
                break;
            }
            slice.extend(self.to_reconcile.pop_front());
        }
        if self.to_reconcile.is_empty() {
            self.next_reconciliation = Some(now.plus(RECONCILE_EVERY));
        }
        (!slice.is_empty()).then_some(Chore::Reconcile(slice))
    }

    // ---- small things --------------------------------------------------------------------------

    fn sync_now(&mut self, now: Mono) {
        self.next_sync = now;
        self.sync_since = self.stamp;
    }

    /// Follows from where a row stands now: whether it is set aside, and whether its own column is right.
    fn take_note(&mut self, id: Uuid, db_now: DbTime, now: Mono) {
        let Some(look) = self.timetable.look(id, db_now) else {
            return;
        };
        match look.reason {
            Some(why) if self.set_aside.insert(id) => self.tell(Notice::SetAside(id, why)),
            None if self.set_aside.remove(&id) => self.tell(Notice::Mended(id)),
            Some(_) | None => {}
        }
        let column = if look.written == Some(look.distributed) {
            Column::Right
        } else if matches!(look.status, Status::Completed | Status::Ended) {
            Column::StaleFinished
        } else {
            Column::Stale
        };
        self.echo.note(id, column, now);
    }

    fn forget(&mut self, id: Uuid, now: Mono) {
        self.echo.forget(id, now);
        self.set_aside.remove(&id);
        self.missing_told.remove(&id);
        self.moved.remove(&id);
    }

    fn want(&mut self, ids: impl IntoIterator<Item = Uuid>, by: Mono) {
        let before = self.wanted.len();
        self.wanted.extend(ids);
        if self.wanted.len() > before || !self.wanted.is_empty() {
            self.wanted_at = Some(self.wanted_at.map_or(by, |at| at.min(by)));
        }
    }

    fn trip(&mut self, trip: Trip, now: Mono) {
        if self.clock.sample(trip.sent, trip.db, trip.received) == Stepped::Yes {
            self.tell(Notice::ClockStepped);
        }
        if let Some(since) = self.health.database_away_since.take() {
            self.tell(Notice::DatabaseBack(now.since(since)));
        }
    }

    fn database_away(&mut self, why: String, now: Mono) {
        if self.health.database_away_since.is_none() {
            self.health.database_away_since = Some(now);
            self.tell(Notice::DatabaseAway(why));
        }
    }

    /// Puts a chore on the list once.
    fn chore(&mut self, chore: Chore) {
        if !self.chores.contains(&chore) {
            self.chores.push_back(chore);
        }
    }

    fn tell(&mut self, notice: Notice) {
        self.outbox.push_back(Action::Tell(notice));
    }

    fn next_stamp(&mut self) -> Stamp {
        self.stamp = Stamp(self.stamp.0 + 1);
        self.stamp
    }
}

#[cfg(test)]
mod tests;
