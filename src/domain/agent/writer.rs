//! The writer's jobs and what follows from its answers: batches.

use std::collections::BTreeSet;

use rand::Rng as _;
use uuid::Uuid;

use super::suspects::Blame;
use super::{Action, Agent, Chore, Stored, Trip};
use crate::domain::batch::{Batch, BatchRow};
use crate::domain::limits::SUSPECT_RETRY;
use crate::domain::policy::{Course, Fault};
use crate::domain::time::{DbTime, Mono};

impl Agent {
    pub(super) fn fires_at(&self) -> Option<Mono> {
        if !self.health.has_begun() {
            return None;
        }
        self.timetable
            .next_deadline()
            .and_then(|at| self.clock.mono_of(at))
    }

    pub(super) fn give_out_storing(&mut self, now: Mono) {
        if !self.writer.free(now) || self.fires_at().is_none_or(|at| at > now) {
            return;
        }
        let Some(db_now) = self.clock.at(now) else {
            return;
        };
        let available = self.visits.holds(now);
        if let Some(batch) = self.timetable.plan(db_now, available) {
            self.writer.busy = true;
            self.storing = Some(batch.clone());
            self.storing_since = now;
            self.outbox.push_back(Action::Store(batch));
        }
    }

    pub(super) fn stored(&mut self, stored: Stored, trip: Option<Trip>, now: Mono) {
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
                let stamp = self.next_stamp();
                self.writer.succeeded();
                self.count_stored(&batch, &ids, now);
                let refused = self.timetable.answered(&batch, &ids, stamp, db_now);
                for row in &batch.rows {
                    if self.timetable.is_doubtful(row.id) {
                        self.refused.insert(row.id, row.version);
                    }
                }
                self.want(refused, now);
                for id in ids {
                    self.suspects.acquit(id);
                    self.reconciliation.moved(id);
                    self.take_note(id, db_now, now);
                }
            }
            Stored::Failed(fault) => self.not_stored(&batch, fault, db_now, now),
            Stored::Unsent(fault) => {
                self.counters.unsent += 1;
                self.timetable.not_now(&batch, db_now);
                self.writer_failed(fault, now);
            }
        }
        self.database_back(now);
    }

    /// The batch was sent and failed: what becomes of it, by the policy of its fault.
    fn not_stored(&mut self, batch: &Batch, fault: Fault, db_now: DbTime, now: Mono) {
        let course = fault.policy().course;
        self.counters.failed += u64::from(course != Course::ReadBack);
        match course {
            Course::ReadBack => {
                self.counters.unknown += 1;
                self.visits.take(batch.visits());
                let stamp = self.next_stamp();
                let doubtful = self.timetable.unknown(batch, stamp);
                self.want(doubtful, now);
                self.writer_failed(fault, now);
            }
            Course::Again => {
                self.timetable.not_now(batch, db_now);
                self.writer_failed(fault, now);
            }
            Course::Halve => {
                self.timetable.halve(batch, db_now);
                self.timetable.not_now(batch, db_now);
                self.writer_failed(fault, now);
            }
            Course::BlameARow => {
                self.writer.succeeded();
                if let Some(id) = self.timetable.halve(batch, db_now) {
                    self.set_aside(id, fault.words, db_now, now);
                }
            }
            Course::BlameARowIfOthersPass => {
                let alone = self.timetable.halve(batch, db_now);
                let blame = alone.map(|id| (id, self.suspects.refused(id, self.counters.visits)));
                match blame {
                    None => self.writer.busy = false,
                    Some((id, Blame::ThisRow)) => {
                        self.writer.succeeded();
                        self.set_aside(id, fault.words, db_now, now);
                    }
                    Some((id, Blame::Nobody)) => {
                        self.writer.busy = false;
                        self.timetable.put_off(id, SUSPECT_RETRY, db_now);
                    }
                    Some((_, Blame::Everybody)) => {
                        self.timetable.not_now(batch, db_now);
                        self.writer_failed(fault, now);
                    }
                }
            }
        }
    }

    fn set_aside(&mut self, id: Uuid, why: String, db_now: DbTime, now: Mono) {
        self.timetable.set_aside(id, &why, db_now);
        self.chore(Chore::MarkInvalid(id, why));
        self.take_note(id, db_now, now);
    }

    /// What was stored counts against the agent's bound; what was refused does not, or a row that somebody holds would
    /// slow the others down.
    fn count_stored(&mut self, batch: &Batch, ids: &BTreeSet<Uuid>, now: Mono) {
        self.counters.batches += 1;
        self.health.stored_at = Some(now);
        let stored = batch.rows.iter().filter(|row| ids.contains(&row.id));
        let visits: i64 = stored.map(BatchRow::visits).sum();
        self.visits.take(visits);
        self.counters.visits += u64::try_from(visits).unwrap_or(0);
    }

    fn writer_failed(&mut self, fault: Fault, now: Mono) {
        let draw = self.random.next_u32();
        self.writer.failed(&fault.policy(), draw, now);
        let may_tell = !fault.policy().away && self.writer.may_tell(now);
        self.failed(fault, may_tell, now);
    }
}
