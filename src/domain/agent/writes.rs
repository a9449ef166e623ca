//! Batches: which is stored next, within the agent's limit of visits a second, and what follows from its outcome.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::poison_search::{Blame, PoisonSearch};
use super::turn::{Effect, Turn};
use super::worker::Worker;
use super::{BatchOutcome, MaintenanceTask, WriteCounters};
use crate::domain::batch::{Batch, BatchRow};
use crate::domain::bucket::RateBucket;
use crate::domain::error_policy::{Failure, Recovery};
use crate::domain::limits::{SERVES_WITHIN, SUSPECT_RETRY};
use crate::domain::schedule::{Schedule, Status};
use crate::domain::time::{DbTime, Mono};

/// See the module.
#[derive(Debug)]
pub(super) struct Writes {
    worker: Worker<Batch>,
    rate: RateBucket,
    poison_search: PoisonSearch,
    /// Rows that were left out of a batch, with their version in it. The next read shows the reason.
    refused: BTreeMap<Uuid, i64>,
    stored_at: Option<Mono>,
    counters: WriteCounters,
}

impl Writes {
    pub(super) fn new(max_visits_per_second: u32, now: Mono) -> Self {
        Self {
            worker: Worker::new("writer", now),
            rate: RateBucket::visits(i64::from(max_visits_per_second), now),
            poison_search: PoisonSearch::default(),
            refused: BTreeMap::new(),
            stored_at: None,
            counters: WriteCounters::default(),
        }
    }

    pub(super) fn worker(&self) -> &Worker<Batch> {
        &self.worker
    }

    pub(super) fn counters(&self) -> WriteCounters {
        self.counters
    }

    pub(super) fn stored_at(&self) -> Option<Mono> {
        self.stored_at
    }

    /// Whether batches get through: none waits for its answer too long, and the database was there for the last one.
    pub(super) fn serves(&self, now: Mono) -> bool {
        let in_hand = self.worker.in_hand();
        let waits = in_hand.is_some_and(|(_, since)| now.since(since) > SERVES_WITHIN);
        !waits && !self.worker.is_away()
    }

    pub(super) fn deadline(&self, fires_at: Option<Mono>) -> Option<(Mono, &'static str)> {
        Some((self.worker.when_free(fires_at?)?, "fire"))
    }

    /// The batch to store now, for a schedule that fires now.
    pub(super) fn next_job(
        &mut self,
        schedule: &mut Schedule,
        db_now: DbTime,
        now: Mono,
    ) -> Option<Batch> {
        if !self.worker.is_free(now) {
            return None;
        }
        let batch = schedule.plan(db_now, self.rate.holds(now))?;
        self.worker.start(batch.clone(), now);
        Some(batch)
    }

    pub(super) fn answer(
        &mut self,
        outcome: BatchOutcome,
        schedule: &mut Schedule,
        turn: &mut Turn,
    ) {
        let (Some(batch), Some(db_now)) = (self.worker.finish(), turn.db_now) else {
            return;
        };
        match outcome {
            BatchOutcome::Committed(ids) => self.committed(&batch, ids, schedule, db_now, turn),
            BatchOutcome::Failed(failure) => self.failed(&batch, &failure, schedule, db_now, turn),
            BatchOutcome::Unsent(failure) => {
                self.counters.unsent += 1;
                schedule.not_now(&batch, db_now);
                turn.fail(&mut self.worker, &failure);
            }
        }
    }

    /// Only stored visits count against the agent's limit: if refused ones did, a locked row would slow the others down.
    fn committed(
        &mut self,
        batch: &Batch,
        ids: BTreeSet<Uuid>,
        schedule: &mut Schedule,
        db_now: DbTime,
        turn: &mut Turn,
    ) {
        self.worker.succeed();
        self.stored_at = Some(turn.now);
        let stored = batch.rows.iter().filter(|row| ids.contains(&row.id));
        let visits: i64 = stored.map(BatchRow::visits).sum();
        self.rate.take(visits);
        self.counters.batches += 1;
        self.counters.visits += u64::try_from(visits).unwrap_or(0);
        let sequence = schedule.next_sequence();
        let refused = schedule.answered(batch, &ids, sequence, db_now);
        for row in &batch.rows {
            if schedule.is_doubtful(row.id) {
                self.refused.insert(row.id, row.version);
            }
        }
        for id in &ids {
            self.poison_search.clear(*id);
        }
        turn.effect(Effect::Read(refused, turn.now));
        turn.effect(Effect::Stored(ids));
    }

    /// The batch was sent and failed; the policy of the failure says what becomes of it.
    fn failed(
        &mut self,
        batch: &Batch,
        failure: &Failure,
        schedule: &mut Schedule,
        db_now: DbTime,
        turn: &mut Turn,
    ) {
        let recovery = failure.policy().recovery;
        self.counters.failed += u64::from(recovery != Recovery::Reread);
        match recovery {
            Recovery::Reread => {
                self.counters.unknown += 1;
                self.rate.take(batch.visits());
                let sequence = schedule.next_sequence();
                let doubtful = schedule.unknown(batch, sequence);
                turn.effect(Effect::Read(doubtful, turn.now));
                turn.fail(&mut self.worker, failure);
            }
            Recovery::Retry => {
                schedule.not_now(batch, db_now);
                turn.fail(&mut self.worker, failure);
            }
            Recovery::Shrink => {
                schedule.halve(batch, db_now);
                schedule.not_now(batch, db_now);
                turn.fail(&mut self.worker, failure);
            }
            Recovery::Bisect => {
                self.worker.succeed();
                if let Some(id) = schedule.halve(batch, db_now) {
                    quarantine(id, failure, schedule, db_now, turn);
                }
            }
            Recovery::BisectIfOthersPass => {
                let Some(id) = schedule.halve(batch, db_now) else {
                    return;
                };
                match self.poison_search.refused(id, self.counters.visits) {
                    Blame::ThisRow => {
                        self.worker.succeed();
                        quarantine(id, failure, schedule, db_now, turn);
                    }
                    Blame::Unknown => schedule.defer(id, SUSPECT_RETRY, db_now),
                    Blame::AllRows => {
                        schedule.not_now(batch, db_now);
                        turn.fail(&mut self.worker, failure);
                    }
                }
            }
        }
    }

    /// The row was read: counts why a batch left it out, if one did since the last read.
    pub(super) fn was_read(&mut self, id: Uuid, schedule: &Schedule, db_now: Option<DbTime>) {
        if schedule.is_doubtful(id) {
            return;
        }
        let Some(version) = self.refused.remove(&id) else {
            return;
        };
        let look = db_now.and_then(|db_now| schedule.look(id, db_now));
        let status = look.map(|look| look.status);
        let refused = &mut self.counters.refused;
        let reason = if schedule.control().paused || status == Some(Status::Paused) {
            &mut refused.paused
        } else if schedule.version(id) != Some(version) {
            &mut refused.changed
        } else if schedule.is_held(id) {
            &mut refused.locked
        } else {
            &mut refused.moved
        };
        *reason += 1;
    }

    pub(super) fn deleted(&mut self, id: Uuid) {
        self.counters.refused.deleted += u64::from(self.refused.contains_key(&id));
        self.forget(id);
    }

    /// The row is not this agent's any more.
    pub(super) fn forget(&mut self, id: Uuid) {
        self.refused.remove(&id);
        self.poison_search.clear(id);
    }
}

fn quarantine(
    id: Uuid,
    failure: &Failure,
    schedule: &mut Schedule,
    db_now: DbTime,
    turn: &mut Turn,
) {
    let reason = failure.report();
    schedule.quarantine(id, &reason, db_now);
    turn.effect(Effect::Task(MaintenanceTask::MarkInvalid(id, reason)));
    turn.effect(Effect::Inspect(vec![id]));
}
