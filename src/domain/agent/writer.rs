//! The writer's jobs and what follows from its answers: batches.

use std::collections::BTreeSet;

use rand::Rng as _;
use uuid::Uuid;

use super::{Action, Agent, Chore, Stored, Trip};
use crate::domain::batch::{Batch, BatchRow};
use crate::domain::time::Mono;

impl Agent {
    pub(super) fn fires_at(&self) -> Option<Mono> {
        if self.health.synced_at.is_none() || !self.control_known {
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
        let stamp = self.next_stamp();
        match stored {
            Stored::Rows(ids) => {
                self.writer.succeeded();
                self.count_stored(&batch, &ids, now);
                let refused = self.timetable.answered(&batch, &ids, stamp, db_now);
                self.counters.refused += u64::try_from(refused.len()).unwrap_or(u64::MAX);
                self.want(refused, now);
                for id in ids {
                    self.reconciliation.moved(id);
                    self.take_note(id, db_now, now);
                }
            }
            Stored::Unknown(why) => {
                self.counters.unknown += 1;
                self.visits.take(batch.visits());
                let doubtful = self.timetable.unknown(&batch, stamp);
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
                self.timetable.not_now(&batch, db_now);
                self.writer_failed(why, now);
            }
        }
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

    fn writer_failed(&mut self, why: String, now: Mono) {
        let draw = self.random.next_u32();
        self.writer.failed(draw, now);
        self.database_away(why, now);
    }
}
