//! All rows by id, and when each fires next: the schedule in memory.
//!
//! A row fires once a second of DB time, at a phase of its own; a row in which nothing is due is not woken. There is one way
//! in, [`Timetable::apply`]: a row that was read from the database, whoever asked for it. Invariant: a row that is in
//! `queue` is ready, and its `wake` is the key under which it is there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;

use super::batch::{Batch, BatchRow, Progress};
use super::bucket::{BucketRule, fair_shares};
use super::distribution::{Distribution, Invalid, RawRow};
use super::limits::{
    FIRE_PERIOD_US, INVALID_RETRY, LOCKED_RETRY_MAX, LOCKED_RETRY_MIN, ROWS_PER_BATCH,
    ROWS_PER_SLOT, SLOT_US, SLOTS, VISITS_PER_BATCH, VISITS_PER_ROW,
};
use super::moments::{Span, visited_at};
use super::time::{DbTime, micros_of};

/// The order in which reads began. A row that was read is applied only if its read began after the last applied one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Stamp(pub u64);

/// The control row: `visit_pacer_control`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Control {
    /// While it is set nothing is stored.
    pub paused: bool,
    /// `catch_up` for rows that have none of their own, in thousandths.
    pub catch_up_milli: i64,
    /// How long after `end_time` a backlog is still stored, in microseconds.
    pub give_up_after_us: i64,
    /// Write-backs a second, in millionths.
    pub echo_budget_micro: i64,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            paused: false,
            catch_up_milli: 2_000,
            give_up_after_us: 86_400 * FIRE_PERIOD_US,
            echo_budget_micro: 200_000,
        }
    }
}

/// A row as one read found it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowRead {
    /// Its `visit_distribution` row.
    pub row: RawRow,
    /// Its progress; `None` where it has none yet.
    pub progress: Option<Progress>,
    /// `total_distributed`, where it is a whole number.
    pub written: Option<i64>,
}

/// What [`Timetable::apply`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Applied {
    /// It was known as it is, or the read was older than what is known.
    Nothing,
    /// Its configuration is new to us.
    Changed,
    /// It is gone.
    Removed,
}

/// Why a row that is due does not get what is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stall {
    /// Somebody holds the row or its partner.
    Locked,
    /// Its token bucket is empty.
    Bucket,
    /// The agent's own bound.
    AgentBound,
    /// The database does not answer.
    Database,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hold {
    Ready,
    /// In the batch that is being written.
    InFlight,
    /// Refused, or its outcome is unknown: nothing is tried before it was read again.
    Doubtful(Doubt),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Doubt {
    Refused,
    Unknown,
}

#[derive(Debug)]
struct Entry {
    parsed: Result<Distribution, Invalid>,
    version: Option<i64>,
    progress: Progress,
    rule: BucketRule,
    written: Option<i64>,
    config_read: Stamp,
    progress_read: Stamp,
    hold: Hold,
    wake: Option<DbTime>,
    /// When it may fire again after a batch that did not store all that was due.
    not_before: Option<DbTime>,
    locked_tries: u32,
    /// After a batch failed: how many rows its next one may have.
    company: Option<usize>,
    stall: Option<Stall>,
    running: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Timetable {
    entries: BTreeMap<Uuid, Entry>,
    queue: BTreeSet<(DbTime, Uuid)>,
    control: Control,
    running: usize,
    spread: Spread,
}

impl Timetable {
    /// The control row as it is now.
    pub fn control(&self) -> Control {
        self.control
    }

    /// Takes the control row over.
    pub fn set_control(&mut self, control: Control, now: DbTime) {
        if control == self.control {
            return;
        }
        self.control = control;
        for entry in self.entries.values_mut() {
            entry.rule = rule_of(entry.parsed.as_ref().ok(), &control);
        }
        self.reschedule_all(now);
    }

    /// One row that was read (`None`: it is not there) by a read that began at `began`.
    pub fn apply(&mut self, id: Uuid, read: Option<RowRead>, began: Stamp, now: DbTime) -> Applied {
        let Some(read) = read else {
            return self.remove(id, began);
        };
        let control = self.control;
        let known = self.entries.contains_key(&id);
        let entry = self
            .entries
            .entry(id)
            .or_insert_with(|| Entry::unknown(&control));
        let mut applied = Applied::Nothing;
        if began > entry.config_read && (!known || read.row.config_version != entry.version) {
            entry.parsed = Distribution::parse(&read.row);
            entry.version = read.row.config_version;
            entry.rule = rule_of(entry.parsed.as_ref().ok(), &control);
            entry.company = None;
            entry.not_before = None;
            applied = Applied::Changed;
        }
        entry.config_read = entry.config_read.max(began);
        let mut moved = false;
        if began > entry.progress_read && entry.hold != Hold::InFlight {
            let progress = read.progress.unwrap_or_default();
            moved = progress != entry.progress;
            entry.progress = progress;
            entry.written = read.written;
            entry.progress_read = began;
        }
        if let Hold::Doubtful(doubt) = entry.hold {
            entry.hold = Hold::Ready;
            let locked = doubt == Doubt::Refused && applied == Applied::Nothing && !moved;
            if locked && !control.paused {
                entry.locked_tries = entry.locked_tries.saturating_add(1);
                entry.stall = Some(Stall::Locked);
                let wait = locked_retry(entry.locked_tries);
                self.set_wake(id, Some(now.plus_micros(micros_of(wait))));
                return applied;
            }
            entry.locked_tries = 0;
        } else if applied == Applied::Nothing && !moved {
            return applied;
        }
        self.schedule(id, now);
        applied
    }

    /// Ids that are known and were not seen by a full read that began at `began`.
    pub fn unseen_by(&self, seen: &BTreeSet<Uuid>, began: Stamp) -> Vec<Uuid> {
        self.entries
            .iter()
            .filter(|(id, entry)| entry.config_read < began && !seen.contains(id))
            .map(|(id, _)| *id)
            .collect()
    }

    /// The version that is known of a row.
    pub fn version(&self, id: Uuid) -> Option<i64> {
        self.entries.get(&id).and_then(|entry| entry.version)
    }

    /// Cuts what is due into the next batch, of at most `available` visits; `None` if nothing can be stored now.
    pub fn plan(&mut self, now: DbTime, available: i64) -> Option<Batch> {
        if self.control.paused {
            return None;
        }
        let wave = self.take_due(now);
        let wanted: Vec<i64> = wave.iter().map(|fire| fire.wanted).collect();
        let shares = fair_shares(&wanted, available);
        let mut batch = Batch::default();
        let mut room = VISITS_PER_BATCH;
        for (fire, share) in wave.into_iter().zip(shares) {
            let visits = share.min(VISITS_PER_ROW).min(room);
            if visits > 0 {
                room -= visits;
                let again = if visits < share {
                    Some(fire.at)
                } else if visits < fire.backlog {
                    Some(fire.at.plus_micros(FIRE_PERIOD_US))
                } else {
                    None
                };
                batch.rows.extend(self.depart(&fire, visits, again));
            } else if share > 0 {
                self.set_wake(fire.id, Some(fire.at)); // no room in this statement: the next one takes it
            } else {
                self.stall(
                    fire.id,
                    Stall::AgentBound,
                    fire.at.plus_micros(FIRE_PERIOD_US),
                );
            }
        }
        (!batch.rows.is_empty()).then_some(batch)
    }

    /// The batch was answered: these rows of it were stored, the others were refused and must be read again (returned).
    pub fn answered(
        &mut self,
        batch: &Batch,
        stored: &BTreeSet<Uuid>,
        at: Stamp,
        now: DbTime,
    ) -> Vec<Uuid> {
        let mut refused = Vec::new();
        for row in &batch.rows {
            let Some(entry) = self.entries.get_mut(&row.id) else {
                continue;
            };
            if stored.contains(&row.id) {
                entry.progress = row.after.clone();
                entry.progress_read = at;
                entry.hold = Hold::Ready;
                entry.locked_tries = 0;
                entry.company = None;
                entry.stall = entry.not_before.is_some().then_some(Stall::Bucket);
                self.schedule(row.id, now);
            } else {
                entry.hold = Hold::Doubtful(Doubt::Refused);
                refused.push(row.id);
            }
        }
        refused
    }

    /// Nobody knows whether the batch was committed: its rows must be read before anything is tried again (returned).
    pub fn unknown(&mut self, batch: &Batch) -> Vec<Uuid> {
        let mut doubtful = Vec::new();
        for row in &batch.rows {
            if let Some(entry) = self.entries.get_mut(&row.id) {
                entry.hold = Hold::Doubtful(Doubt::Unknown);
                entry.stall = Some(Stall::Database);
                doubtful.push(row.id);
            }
        }
        doubtful
    }

    /// The database refused the batch's data: it is halved until the bad row is alone. Returns that row, once it is; it is
    /// tried again after a minute.
    pub fn failed(&mut self, batch: &Batch, why: &str, now: DbTime) -> Option<Uuid> {
        let half = batch.rows.len() / 2;
        for row in &batch.rows {
            let Some(entry) = self.entries.get_mut(&row.id) else {
                continue;
            };
            entry.hold = Hold::Ready;
            entry.company = Some(half.max(1));
            if half == 0 {
                entry.progress.invalid = Some(why.to_owned());
                let again = now.plus_micros(micros_of(INVALID_RETRY));
                self.set_wake(row.id, Some(again));
                return Some(row.id);
            }
            self.schedule(row.id, now);
        }
        None
    }

    /// The batch was not tried, or certainly not committed, and nothing is wrong with its rows.
    pub fn untried(&mut self, batch: &Batch, stall: Stall, now: DbTime) {
        for row in &batch.rows {
            if let Some(entry) = self.entries.get_mut(&row.id) {
                entry.hold = Hold::Ready;
                entry.stall = Some(stall);
                self.schedule(row.id, now);
            }
        }
    }

    /// The next moment at which a row fires; `None` while everything is paused.
    pub fn next_deadline(&self) -> Option<DbTime> {
        if self.control.paused {
            return None;
        }
        self.queue.first().map(|(at, _)| *at)
    }

    /// A row's state, for whoever looks.
    pub fn look(&self, id: Uuid, now: DbTime) -> Option<Look> {
        self.entries
            .get(&id)
            .map(|entry| entry.look(id, &self.control, now))
    }

    /// All rows' states, by id.
    pub fn look_at_all(&self, now: DbTime) -> impl Iterator<Item = Look> + '_ {
        self.entries
            .iter()
            .map(move |(id, entry)| entry.look(*id, &self.control, now))
    }

    /// What was written back of a row is now this.
    pub fn wrote_back(&mut self, id: Uuid, distributed: i64) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.written = Some(distributed);
        }
    }

    /// Rows known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no row is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Rows that run: active, and not at their total.
    pub fn running(&self) -> usize {
        self.running
    }

    fn remove(&mut self, id: Uuid, began: Stamp) -> Applied {
        match self.entries.get(&id) {
            Some(entry) if began > entry.config_read => {
                self.set_wake(id, None);
                if let Some(entry) = self.entries.remove(&id)
                    && entry.running
                {
                    self.running -= 1;
                }
                Applied::Removed
            }
            Some(_) | None => Applied::Nothing,
        }
    }

    /// Takes the rows out of the queue that are due now and may be stored; the others are put back for later.
    fn take_due(&mut self, now: DbTime) -> Vec<Fire> {
        let mut wave = Vec::new();
        let mut most = ROWS_PER_BATCH;
        while let Some(&(wake, id)) = self.queue.first() {
            if wake > now || wave.len() >= most {
                break;
            }
            let Some(entry) = self.entries.get(&id) else {
                self.queue.remove(&(wake, id));
                continue;
            };
            most = most.min(entry.company.unwrap_or(ROWS_PER_BATCH));
            if wave.len() >= most {
                break; // it wants less company than there already is
            }
            let at = self.spread.at_or_before(id, now);
            let fire = entry.fire(id, at);
            self.set_wake(id, None);
            match fire {
                Some(fire) if fire.wanted > 0 => wave.push(fire),
                Some(fire) => self.stall(id, Stall::Bucket, fire.at.plus_micros(FIRE_PERIOD_US)),
                None => self.schedule(id, now),
            }
        }
        wave
    }

    /// The row's part of the batch; from here on it is in flight.
    fn depart(&mut self, fire: &Fire, visits: i64, again: Option<DbTime>) -> Option<BatchRow> {
        let entry = self.entries.get_mut(&fire.id)?;
        let distribution = entry.parsed.as_ref().ok()?;
        let before = entry.progress.clone();
        let span = Span::of(&distribution.curve, before.last_visited_at, fire.at);
        let moments = visited_at(&distribution.curve, before.distributed + 1, visits, span);
        let after = Progress {
            distributed: before.distributed + visits,
            last_number: before.last_number + visits,
            bucket: before.bucket.taken(&entry.rule, visits, fire.at),
            last_visited_at: moments.last().copied().or(before.last_visited_at),
            invalid: None,
        };
        let row = BatchRow {
            id: fire.id,
            partner_id: distribution.partner_id,
            version: distribution.version,
            before,
            after,
            at: fire.at,
            moments,
        };
        entry.hold = Hold::InFlight;
        entry.not_before = again;
        Some(row)
    }

    fn stall(&mut self, id: Uuid, stall: Stall, until: DbTime) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.stall = Some(stall);
        }
        self.set_wake(id, Some(until));
    }

    fn reschedule_all(&mut self, now: DbTime) {
        let ids: Vec<Uuid> = self.entries.keys().copied().collect();
        for id in ids {
            self.schedule(id, now);
        }
    }

    /// Puts a row into the queue for the next instant at which something of it is due and may be stored.
    fn schedule(&mut self, id: Uuid, now: DbTime) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let was_running = entry.running;
        entry.running = entry.runs();
        let running = entry.running;
        let give_up_after = self.control.give_up_after_us;
        let wake = (entry.hold == Hold::Ready)
            .then(|| entry.due_next(give_up_after, now))
            .flatten()
            .map(|due| {
                // The latest instant that has passed is early enough: a fire stores all that is due by then.
                let earliest = now.plus_micros(1 - FIRE_PERIOD_US);
                let from = entry.not_before.unwrap_or(earliest).max(due).max(earliest);
                self.spread.at_or_after(id, from)
            });
        if wake.is_none_or(|wake| wake > now) && entry.stall != Some(Stall::Bucket) {
            entry.stall = None;
        }
        self.set_wake(id, wake);
        if running != was_running {
            self.running = if running {
                self.running + 1
            } else {
                self.running - 1
            };
            if self.spread.fit(self.running) {
                self.reschedule_all(now);
            }
        }
    }

    fn set_wake(&mut self, id: Uuid, wake: Option<DbTime>) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if let Some(before) = entry.wake.take() {
            self.queue.remove(&(before, id));
        }
        entry.wake = wake;
        if let Some(at) = wake {
            self.queue.insert((at, id));
        }
    }
}

/// A row that fires.
struct Fire {
    id: Uuid,
    /// The instant of its grid that it fires for.
    at: DbTime,
    /// Due and not distributed.
    backlog: i64,
    /// … as much of it as its bucket holds.
    wanted: i64,
}

impl Entry {
    fn unknown(control: &Control) -> Self {
        Self {
            parsed: Err(Invalid::default()),
            version: None,
            progress: Progress::default(),
            rule: rule_of(None, control),
            written: None,
            config_read: Stamp::default(),
            progress_read: Stamp::default(),
            hold: Hold::Ready,
            wake: None,
            not_before: None,
            locked_tries: 0,
            company: None,
            stall: None,
            running: false,
        }
    }

    fn runs(&self) -> bool {
        self.parsed
            .as_ref()
            .is_ok_and(|row| row.active && self.progress.distributed < row.curve.total)
    }

    /// What fires at the instant `at`; `None` if nothing is due.
    fn fire(&self, id: Uuid, at: DbTime) -> Option<Fire> {
        let row = self.parsed.as_ref().ok()?;
        let backlog = row.curve.due(at) - self.progress.distributed;
        let wanted = backlog.min(self.progress.bucket.holds(&self.rule, at));
        (backlog > 0).then_some(Fire {
            id,
            at,
            backlog,
            wanted,
        })
    }

    /// When the next visit is due; `None` if never, or if the time to catch up is over.
    fn due_next(&self, give_up_after_us: i64, now: DbTime) -> Option<DbTime> {
        let row = self.parsed.as_ref().ok().filter(|row| row.active)?;
        let over = row
            .curve
            .to
            .is_some_and(|to| to.plus_micros(give_up_after_us) <= now);
        if over {
            return None;
        }
        row.curve.due_at(self.progress.distributed + 1)
    }

    fn look(&self, id: Uuid, control: &Control, now: DbTime) -> Look {
        let mut look = Look {
            id,
            partner_id: None,
            status: Status::Invalid,
            reason: self.progress.invalid.clone(),
            stall: self.stall,
            total: 0,
            due: 0,
            distributed: self.progress.distributed,
            written: self.written,
            per_second_nano: 0,
        };
        let row = match &self.parsed {
            Ok(row) => row,
            Err(why) => {
                look.reason = Some(why.to_string());
                return look;
            }
        };
        let curve = &row.curve;
        let done = self.progress.distributed;
        look.partner_id = Some(row.partner_id);
        look.total = curve.total;
        look.due = curve.due(now);
        look.per_second_nano = row.slope / 86_400;
        let one_second = i64::try_from(row.slope / 86_400 / 1_000_000_000).unwrap_or(i64::MAX);
        let over = curve.to.is_some_and(|to| to <= now);
        let given_up = curve
            .to
            .is_some_and(|to| to.plus_micros(control.give_up_after_us) <= now);
        look.status = if look.reason.is_some() {
            Status::Invalid
        } else if done >= curve.total {
            Status::Completed
        } else if given_up || (over && look.due <= done) {
            Status::Ended
        } else if !row.active {
            Status::Paused
        } else if over {
            Status::Draining
        } else if curve.from.is_none_or(|from| from > now) {
            Status::Scheduled
        } else if curve.due(now.plus_micros(-BEHIND_US)) - done > one_second.saturating_add(1) {
            Status::Behind
        } else {
            Status::Active
        };
        look
    }
}

/// A row is behind when it is so for this long, in microseconds.
const BEHIND_US: i64 = 3_000_000;

/// A row's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Look {
    /// The row.
    pub id: Uuid,
    /// Its partner; `None` for a row that could not be parsed.
    pub partner_id: Option<Uuid>,
    /// See [`Status`].
    pub status: Status,
    /// Why it is invalid.
    pub reason: Option<String>,
    /// Why it does not get what is due, when it does not.
    pub stall: Option<Stall>,
    /// `total_visits`
    pub total: i64,
    /// Visits that should exist now.
    pub due: i64,
    /// Visits that do, or did.
    pub distributed: i64,
    /// What the row itself says, as last read or written.
    pub written: Option<i64>,
    /// Its pace when active, in billionths of a visit a second.
    pub per_second_nano: i128,
}

/// See the section of the same name in the README.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Status {
    /// Starts later, or never.
    Scheduled,
    /// On its curve.
    Active,
    /// More than a second's worth and one visit behind its curve, for over three seconds.
    Behind,
    /// `is_active` is false or null.
    Paused,
    /// Its window is over; what was due in it is still being stored.
    Draining,
    /// At its total.
    Completed,
    /// Its window is over, short of the total.
    Ended,
    /// It cannot be paced, or its inserts fail.
    Invalid,
}

impl Status {
    /// As the view `visit_distribution_status` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Active => "active",
            Self::Behind => "behind",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Completed => "completed",
            Self::Ended => "ended",
            Self::Invalid => "invalid",
        }
    }
}

/// How rows are spread over the second. Few rows share one instant, and so one statement; many are dealt over up to
/// [`SLOTS`] instants by their ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Spread {
    slots: i64,
}

impl Default for Spread {
    fn default() -> Self {
        Self { slots: 1 }
    }
}

impl Spread {
    /// The numbers of slots that divide a second evenly.
    const STEPS: [i64; 6] = [1, 2, 5, 10, 25, SLOTS];

    /// Fits the slots to so many running rows; says whether that changed them. It shrinks late, so that it does not flap.
    fn fit(&mut self, running: usize) -> bool {
        let enough = |rows_per_slot: usize| {
            let holds =
                |slots: &&i64| usize::try_from(**slots).unwrap_or(1) * rows_per_slot >= running;
            Self::STEPS.iter().find(holds).copied().unwrap_or(SLOTS)
        };
        let (grown, shrunk) = (enough(ROWS_PER_SLOT), enough(ROWS_PER_SLOT / 2));
        let before = self.slots;
        self.slots = if grown > before {
            grown
        } else {
            before.min(shrunk)
        };
        self.slots != before
    }

    /// The row's phase: microseconds after the full second.
    fn phase(self, id: Uuid) -> i64 {
        let (high, low) = id.as_u64_pair();
        let mixed = (high ^ low.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let fine = i64::try_from(mixed).unwrap_or(0) % SLOTS;
        let per_step = SLOTS / self.slots;
        fine / per_step * per_step * SLOT_US
    }

    fn at_or_before(self, id: Uuid, at: DbTime) -> DbTime {
        let phase = self.phase(id);
        let since = (at.as_micros().saturating_sub(phase)).rem_euclid(FIRE_PERIOD_US);
        at.plus_micros(-since)
    }

    fn at_or_after(self, id: Uuid, at: DbTime) -> DbTime {
        self.at_or_before(id, at.plus_micros(FIRE_PERIOD_US - 1))
    }
}

fn rule_of(row: Option<&Distribution>, control: &Control) -> BucketRule {
    row.map_or_else(
        || BucketRule::new(0, 1_000),
        |row| {
            BucketRule::new(
                row.slope,
                row.catch_up_milli.unwrap_or(control.catch_up_milli),
            )
        },
    )
}

fn locked_retry(tries: u32) -> Duration {
    let doublings = tries.saturating_sub(1).min(16);
    LOCKED_RETRY_MIN
        .saturating_mul(1 << doublings)
        .min(LOCKED_RETRY_MAX)
}

#[cfg(test)]
mod tests;
