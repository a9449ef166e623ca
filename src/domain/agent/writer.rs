//! The writer's jobs and what follows from its answers: batches.

use std::collections::BTreeSet;

use rand::Rng as _;
use uuid::Uuid;

use super::poison_search::Blame;
use super::{Action, Agent, MaintenanceTask, RoundTrip, Stored};
use crate::domain::batch::{Batch, BatchRow};
use crate::domain::error_policy::{Failure, Recovery};
use crate::domain::limits::SUSPECT_RETRY;
use crate::domain::time::{DbTime, Mono};

impl Agent {
    pub(super) fn fires_at(&self) -> Option<Mono> {
        if !self.health.has_begun() {
            return None;
        }
        self.schedule
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
        if let Some(batch) = self.schedule.plan(db_now, available) {
            self.writer.busy = true;
            self.storing = Some(batch.clone());
            self.storing_since = now;
            self.outbox.push_back(Action::Store(batch));
        }
    }

    pub(super) fn stored(&mut self, stored: Stored, round_trip: Option<RoundTrip>, now: Mono) {
        let Some(batch) = self.storing.take() else {
            return;
        };
        if let Some(round_trip) = round_trip {
            self.round_trip(round_trip, now);
        }
        let Some(db_now) = self.clock.at(now) else {
            return;
        };
        match stored {
            Stored::Rows(ids) => {
                let sequence = self.next_sequence();
                self.writer.succeeded();
                self.count_stored(&batch, &ids, now);
                let refused = self.schedule.answered(&batch, &ids, sequence, db_now);
                for row in &batch.rows {
                    if self.schedule.is_doubtful(row.id) {
                        self.refused.insert(row.id, row.version);
                    }
                }
                self.want(refused, now);
                for id in ids {
                    self.poison_search.clear(id);
                    self.reconciliation.moved(id);
                    self.take_note(id, db_now, now);
                }
            }
            Stored::Failed(failure) => self.not_stored(&batch, failure, db_now, now),
            Stored::Unsent(failure) => {
                self.counters.unsent += 1;
                self.schedule.not_now(&batch, db_now);
                self.writer_failed(failure, now);
            }
        }
        self.database_back(now);
    }

    /// The batch was sent and failed: what becomes of it, by the policy of its fault.
    fn not_stored(&mut self, batch: &Batch, failure: Failure, db_now: DbTime, now: Mono) {
        let recovery = failure.policy().recovery;
        self.counters.failed += u64::from(recovery != Recovery::Reread);
        match recovery {
            Recovery::Reread => {
                self.counters.unknown += 1;
                self.visits.take(batch.visits());
                let sequence = self.next_sequence();
                let doubtful = self.schedule.unknown(batch, sequence);
                self.want(doubtful, now);
                self.writer_failed(failure, now);
            }
            Recovery::Retry => {
                self.schedule.not_now(batch, db_now);
                self.writer_failed(failure, now);
            }
            Recovery::Shrink => {
                self.schedule.halve(batch, db_now);
                self.schedule.not_now(batch, db_now);
                self.writer_failed(failure, now);
            }
            Recovery::Bisect => {
                self.writer.succeeded();
                if let Some(id) = self.schedule.halve(batch, db_now) {
                    self.quarantine(id, failure.report(), db_now, now);
                }
            }
            Recovery::BisectIfOthersPass => {
                let alone = self.schedule.halve(batch, db_now);
                let blame =
                    alone.map(|id| (id, self.poison_search.refused(id, self.counters.visits)));
                match blame {
                    None => self.writer.busy = false,
                    Some((id, Blame::ThisRow)) => {
                        self.writer.succeeded();
                        self.quarantine(id, failure.report(), db_now, now);
                    }
                    Some((id, Blame::Nobody)) => {
                        self.writer.busy = false;
                        self.schedule.defer(id, SUSPECT_RETRY, db_now);
                    }
                    Some((_, Blame::Everybody)) => {
                        self.schedule.not_now(batch, db_now);
                        self.writer_failed(failure, now);
                    }
                }
            }
        }
    }

    fn quarantine(&mut self, id: Uuid, why: String, db_now: DbTime, now: Mono) {
        self.schedule.quarantine(id, &why, db_now);
        self.task(MaintenanceTask::MarkInvalid(id, why));
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

    fn writer_failed(&mut self, failure: Failure, now: Mono) {
        let draw = self.random.next_u32();
        self.writer.failed(&failure.policy(), draw, now);
        let may_tell = !failure.policy().away && self.writer.may_tell(now);
        self.failed(failure, may_tell, now);
    }
}
