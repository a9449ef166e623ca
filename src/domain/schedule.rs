//! All rows by id, and when each fires next: the schedule in memory.
//!
//! A row fires once a second of DB time, at a phase of its own; a row in which nothing is due is not woken. There is one way
//! in, [`Schedule::apply`]: a row that was read from the database, whoever asked for it. Invariant: a row that is in
//! `queue` is ready, and its `wake` is the key under which it is there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;

use super::batch::{Batch, BatchRow, Progress};
use super::bucket::max_min_fair;
use super::distribution::RawRow;
use super::limits::{
    FIRE_PERIOD_US, INVALID_RETRY, LOCKED_RETRY_MAX, LOCKED_RETRY_MIN, ROWS_PER_BATCH,
    VISITS_PER_BATCH, VISITS_PER_ROW,
};
use super::ownership::Ownership;
use super::time::{DbTime, micros_of};
use super::visit_times::{Span, visited_at};

use self::distribution::{Doubt, Fire, Hold, ScheduledDistribution};
use self::phase::PhaseSlots;
pub use self::status::{DistributionStatus, DistributionTerms, Status};
pub use self::summary::{Round, StatusSummary};

mod distribution;
mod phase;
mod status;
mod summary;

/// The order in which reads began. A row that was read is applied only if its read began after the last applied one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct ReadSequence(pub u64);

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
    pub write_back_budget_micro: i64,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            paused: false,
            catch_up_milli: 2_000,
            give_up_after_us: 86_400 * FIRE_PERIOD_US,
            write_back_budget_micro: 200_000,
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

/// What [`Schedule::apply`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Applied {
    /// It was known as it is, or the read was older than what is known.
    Nothing,
    /// Its configuration is new to us.
    Changed,
    /// It is gone.
    Removed,
}

/// What kept a row, at its last fire, from storing all that was due.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
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

impl Stall {
    /// All that there are.
    pub const ALL: [Self; 4] = [Self::Locked, Self::Bucket, Self::AgentBound, Self::Database];

    /// As a metric's label has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Locked => "locked",
            Self::Bucket => "bucket",
            Self::AgentBound => "agent_bound",
            Self::Database => "database",
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Schedule {
    /// Boxed: what a leaf of the tree leaves empty costs little then.
    entries: BTreeMap<Uuid, Box<ScheduledDistribution>>,
    /// … that are this agent's.
    owned: usize,
    queue: BTreeSet<(DbTime, Uuid)>,
    control: Control,
    running: usize,
    phases: PhaseSlots,
    ownership: Ownership,
    sequence: ReadSequence,
}

/// Rows that changed hands.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OwnershipChange {
    /// Ours from now on. Nothing of them is stored before they are read again: somebody else had them.
    pub gained: Vec<Uuid>,
    /// Somebody else's from now on.
    pub lost: Vec<Uuid>,
}

impl Schedule {
    /// A timetable without rows, for an agent that has this share of them.
    pub fn new(ownership: Ownership) -> Self {
        Self {
            ownership,
            ..Self::default()
        }
    }

    /// The first instant at or after `at` at which a row fires, where so many rows run.
    pub fn instant_at_or_after(running: usize, id: Uuid, at: DbTime) -> DbTime {
        let mut phases = PhaseSlots::default();
        phases.fit(running);
        phases.at_or_after(id, at)
    }

    /// The latest number that was given.
    pub fn sequence(&self) -> ReadSequence {
        self.sequence
    }

    /// The number of a read that begins now, or of a batch that is answered now.
    pub fn next_sequence(&mut self) -> ReadSequence {
        self.sequence = ReadSequence(self.sequence.0 + 1);
        self.sequence
    }

    /// Agents that share the rows, this one included.
    pub fn agents(&self) -> usize {
        self.ownership.agents()
    }

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
        self.reschedule_all(now);
    }

    /// The database's clock stepped: what was put off by the old one is due for another look.
    pub fn clock_stepped(&mut self, now: DbTime) {
        for entry in self.entries.values_mut() {
            entry.not_before = None;
        }
        self.reschedule_all(now);
    }

    /// Takes over how the rows are shared; says which changed hands.
    pub fn set_share(
        &mut self,
        ownership: Ownership,
        at: ReadSequence,
        now: DbTime,
    ) -> OwnershipChange {
        let mut shift = OwnershipChange::default();
        if ownership == self.ownership {
            return shift;
        }
        self.ownership = ownership;
        for (id, entry) in &mut self.entries {
            match (entry.ours, self.ownership.owns(*id)) {
                (false, true) => {
                    entry.ours = true;
                    self.owned += 1;
                    if entry.hold == Hold::Ready {
                        entry.doubt(*id, Doubt::Unknown, at, &mut self.queue);
                    }
                    shift.gained.push(*id);
                }
                (true, false) => {
                    entry.ours = false;
                    self.owned -= 1;
                    shift.lost.push(*id);
                }
                (true, true) | (false, false) => {}
            }
        }
        for id in shift.lost.iter().chain(&shift.gained) {
            self.schedule(*id, now);
        }
        shift
    }

    /// Whether the row is known, and this agent's to store.
    pub fn is_ours(&self, id: Uuid) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.ours)
    }

    /// One row that was read (`None`: it is not there) by a read that began at `began`.
    pub fn apply(
        &mut self,
        id: Uuid,
        read: Option<RowRead>,
        began: ReadSequence,
        now: DbTime,
    ) -> Applied {
        let Some(read) = read else {
            return self.remove(id, began);
        };
        let control = self.control;
        let ours = self.ownership.owns(id);
        let entry = self.entries.entry(id).or_insert_with(|| {
            self.owned += usize::from(ours);
            Box::new(ScheduledDistribution::unknown(ours))
        });
        let changed = entry.take_config(&read, began);
        let moved = entry.take_progress(read, began, changed);
        let doubt = entry.settle(began);
        let unchanged = !changed && !moved && !control.paused;
        if doubt == Some(Doubt::Refused) && unchanged && entry.ours {
            entry.locked_tries = entry.locked_tries.saturating_add(1);
            let wait = locked_retry(entry.locked_tries);
            let wake = Some(now.plus_micros(micros_of(wait)));
            entry.set_wake(id, wake, &mut self.queue);
        } else if doubt.is_some() || changed || moved {
            entry.locked_tries = 0;
            self.schedule(id, now);
        }
        if changed {
            Applied::Changed
        } else {
            Applied::Nothing
        }
    }

    /// Ids that are known and were found by no read that began at `began` or later.
    pub fn unseen_since(&self, began: ReadSequence) -> Vec<Uuid> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.config_read < began)
            .map(|(id, _)| *id)
            .collect()
    }

    /// The version that is known of a row.
    pub fn version(&self, id: Uuid) -> Option<i64> {
        self.entries.get(&id).and_then(|entry| entry.version)
    }

    /// Whether a batch of the row was refused, or its answer lost, and it has not been read since.
    pub fn is_doubtful(&self, id: Uuid) -> bool {
        let entry = self.entries.get(&id);
        entry.is_some_and(|entry| matches!(entry.hold, Hold::Doubtful(..)))
    }

    /// Whether somebody held the row, or its partner, when it was last tried.
    pub fn is_held(&self, id: Uuid) -> bool {
        let entry = self.entries.get(&id);
        entry.is_some_and(|entry| entry.locked_tries > 0)
    }

    /// Cuts what is due into the next batch, of at most `available` visits; `None` if nothing can be stored now.
    ///
    /// Where `available` is less than what is wanted, the rows that fire at this instant share it max-min fairly, and an
    /// odd visit goes to the row that has waited longest: so none starves, however long the agent's bound binds.
    pub fn plan(&mut self, now: DbTime, available: i64) -> Option<Batch> {
        if self.control.paused {
            return None;
        }
        let wave = self.take_due(now);
        let wanted: Vec<i64> = wave.iter().map(|fire| fire.wanted).collect();
        let shares = max_min_fair(&wanted, available);
        let mut batch = Batch::default();
        let mut room = VISITS_PER_BATCH;
        for (fire, ownership) in wave.iter().zip(shares) {
            let visits = ownership.min(VISITS_PER_ROW).min(room);
            room -= visits;
            self.judge(fire, ownership, visits);
            if visits > 0 {
                batch.rows.extend(self.depart(fire, visits));
            } else {
                self.schedule(fire.id, now);
            }
        }
        (!batch.rows.is_empty()).then_some(batch)
    }

    /// The batch was answered at `at`: these rows of it were stored, the others were refused and must be read again
    /// (returned).
    pub fn answered(
        &mut self,
        batch: &Batch,
        stored: &BTreeSet<Uuid>,
        at: ReadSequence,
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
                entry.batch_limit = None;
                self.schedule(row.id, now);
            } else {
                let edited = entry.version != Some(row.version);
                let doubt = if edited {
                    Doubt::Unknown
                } else {
                    Doubt::Refused
                };
                entry.doubt(row.id, doubt, at, &mut self.queue);
                refused.push(row.id);
            }
        }
        refused
    }

    /// Nobody knows whether the batch was committed: its rows must be read before anything is tried again (returned).
    pub fn unknown(&mut self, batch: &Batch, at: ReadSequence) -> Vec<Uuid> {
        let mut doubtful = Vec::new();
        for row in &batch.rows {
            if let Some(entry) = self.entries.get_mut(&row.id) {
                entry.doubt(row.id, Doubt::Unknown, at, &mut self.queue);
                entry.stall = Some(Stall::Database);
                doubtful.push(row.id);
            }
        }
        doubtful
    }

    /// The batch was certainly not committed, and may be too much or hold a bad row: its rows go on in batches of half as
    /// many. Returns the row that is alone already.
    pub fn halve(&mut self, batch: &Batch, now: DbTime) -> Option<Uuid> {
        let half = batch.rows.len() / 2;
        for row in &batch.rows {
            if let Some(entry) = self.entries.get_mut(&row.id) {
                entry.hold = Hold::Ready;
                entry.batch_limit = Some(half.max(1));
                entry.not_before = None;
                self.schedule(row.id, now);
            }
        }
        let first = batch.rows.first().map(|row| row.id);
        first.filter(|id| half == 0 && self.entries.contains_key(id))
    }

    /// The row's insert fails; it is tried again after a minute.
    pub fn quarantine(&mut self, id: Uuid, why: &str, now: DbTime) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.progress.invalid = Some(why.to_owned());
        }
        self.defer(id, INVALID_RETRY, now);
    }

    /// Nothing of the row is tried for so long.
    pub fn defer(&mut self, id: Uuid, wait: Duration, now: DbTime) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.not_before = Some(now.plus_micros(micros_of(wait)));
            self.schedule(id, now);
        }
    }

    /// The batch was certainly not committed, for a reason of the database's own: nothing is wrong with its rows.
    pub fn not_now(&mut self, batch: &Batch, now: DbTime) {
        for row in &batch.rows {
            if let Some(entry) = self.entries.get_mut(&row.id) {
                entry.hold = Hold::Ready;
                entry.stall = Some(Stall::Database);
                entry.not_before = None;
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
    pub fn look(&self, id: Uuid, now: DbTime) -> Option<DistributionStatus> {
        self.entries
            .get(&id)
            .map(|entry| entry.look(id, &self.control, now))
    }

    /// … of a row that is this agent's.
    pub fn owned_status(&self, id: Uuid, now: DbTime) -> Option<DistributionStatus> {
        let entry = self.entries.get(&id).filter(|entry| entry.ours)?;
        Some(entry.look(id, &self.control, now))
    }

    /// The states of all rows that are this agent's, by id.
    pub fn statuses(&self, now: DbTime) -> impl Iterator<Item = DistributionStatus> + '_ {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.ours)
            .map(move |(id, entry)| entry.look(*id, &self.control, now))
    }

    /// Ids of the rows that are this agent's.
    pub fn ids_owned(&self) -> Vec<Uuid> {
        let ours = self.entries.iter().filter(|(_, entry)| entry.ours);
        ours.map(|(id, _)| *id).collect()
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

    /// Rows known that are this agent's.
    pub fn ours(&self) -> usize {
        self.owned
    }

    /// Whether no row is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Rows of this agent that run: active, and not at their total.
    pub fn running(&self) -> usize {
        self.running
    }

    fn remove(&mut self, id: Uuid, began: ReadSequence) -> Applied {
        let older = |entry: &ScheduledDistribution| began > entry.config_read;
        if !self.entries.get(&id).is_some_and(|entry| older(entry)) {
            return Applied::Nothing;
        }
        if let Some(mut entry) = self.entries.remove(&id) {
            entry.set_wake(id, None, &mut self.queue);
            self.running -= usize::from(entry.running);
            self.owned -= usize::from(entry.ours);
        }
        Applied::Removed
    }

    /// Takes the rows out of the queue that are due now, the one first that has waited longest for a visit.
    fn take_due(&mut self, now: DbTime) -> Vec<Fire> {
        let mut wave = Vec::new();
        let mut most = ROWS_PER_BATCH;
        while let Some(&(wake, id)) = self.queue.first() {
            let batch_limit = self.entries.get(&id).and_then(|entry| entry.batch_limit);
            most = most.min(batch_limit.unwrap_or(ROWS_PER_BATCH));
            if wake > now || wave.len() >= most {
                break; // not due; or it wants less company than there already is
            }
            let Some(entry) = self.entries.get_mut(&id) else {
                break; // never: a row that is in the queue is known
            };
            entry.set_wake(id, None, &mut self.queue);
            let at = self.phases.at_or_before(id, now);
            let paced = entry.paced(self.control.give_up_after_us, now).is_some();
            let fire = entry.fire(id, at, &self.control);
            match fire.filter(|_| paced) {
                Some(fire) => wave.push(fire),
                None => self.schedule(id, now),
            }
        }
        wave.sort_by_key(|fire| fire.served_at);
        wave
    }

    /// What keeps the row from all that is due, and when it may have more: at once where only this statement is full.
    fn judge(&mut self, fire: &Fire, ownership: i64, visits: i64) {
        let Some(entry) = self.entries.get_mut(&fire.id) else {
            return;
        };
        let next_fire = Some(fire.at.plus_micros(FIRE_PERIOD_US));
        (entry.stall, entry.not_before) = if visits < ownership {
            (None, Some(fire.at))
        } else if ownership < fire.wanted {
            (Some(Stall::AgentBound), next_fire)
        } else if fire.wanted < fire.backlog {
            (Some(Stall::Bucket), next_fire)
        } else {
            (None, None)
        };
    }

    /// The row's part of the batch; from here on it is in flight.
    fn depart(&mut self, fire: &Fire, visits: i64) -> Option<BatchRow> {
        let control = self.control;
        let entry = self.entries.get_mut(&fire.id)?;
        debug_assert!(entry.hold == Hold::Ready, "a row that fires is ready");
        debug_assert!(entry.ours, "a row that fires is this agent's");
        // Rescheduling all rows may have queued it again since it was taken out.
        entry.set_wake(fire.id, None, &mut self.queue);
        let rule = entry.rule(&control);
        let distribution = entry.parsed.as_ref().ok()?;
        let before = entry.progress.clone();
        let span = Span::of(&distribution.curve, before.last_visited_at, fire.at);
        let visit_times = visited_at(&distribution.curve, before.distributed + 1, visits, span);
        let after = Progress {
            distributed: before.distributed + visits,
            last_number: before.last_number + visits,
            bucket: before.bucket.taken(&rule, visits, fire.at),
            last_visited_at: visit_times.last().copied().or(before.last_visited_at),
            invalid: None,
        };
        entry.hold = Hold::InFlight;
        Some(BatchRow {
            id: fire.id,
            partner_id: distribution.partner_id.clone(),
            version: distribution.version,
            before,
            after,
            at: fire.at,
            visit_times,
        })
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
        let running = entry.runs();
        let was_running = std::mem::replace(&mut entry.running, running);
        let give_up_after = self.control.give_up_after_us;
        let wake = (entry.hold == Hold::Ready && entry.ours)
            .then(|| entry.due_next(give_up_after, now))
            .flatten()
            .map(|due| {
                // The latest instant that has passed is early enough: a fire stores all that is due by then.
                let earliest = now.plus_micros(1 - FIRE_PERIOD_US);
                let from = entry.not_before.unwrap_or(earliest).max(due).max(earliest);
                self.phases.at_or_after(id, from)
            });
        entry.set_wake(id, wake, &mut self.queue);
        if running != was_running {
            self.running = if running {
                self.running + 1
            } else {
                self.running - 1
            };
            if self.phases.fit(self.running) {
                self.reschedule_all(now);
            }
        }
    }
}

fn locked_retry(tries: u32) -> Duration {
    let doublings = tries.saturating_sub(1).min(16);
    LOCKED_RETRY_MIN
        .saturating_mul(1 << doublings)
        .min(LOCKED_RETRY_MAX)
}

#[cfg(test)]
mod tests;
