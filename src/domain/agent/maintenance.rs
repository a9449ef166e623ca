//! Maintenance: heartbeat, write-backs, reconciliation, quarantine, and other tasks, one at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use uuid::Uuid;

use super::reconciliation::Reconciliation;
use super::turn::{Effect, Turn};
use super::worker::Worker;
use super::{CountDifference, MaintenanceTask, TaskOutcome, WrittenBack};
use crate::domain::error_policy::{Failure, Recovery};
use crate::domain::event::Event;
use crate::domain::limits::HEARTBEAT_EVERY;
use crate::domain::schedule::{Control, Schedule, Status};
use crate::domain::time::{DbTime, Mono};
use crate::domain::transport::Transport;
use crate::domain::write_back::{Staleness, WriteBackBudget};

/// See the module.
#[derive(Debug)]
pub(super) struct Maintenance {
    worker: Worker<MaintenanceTask>,
    next_heartbeat: Mono,
    control_known: bool,
    tasks: VecDeque<MaintenanceTask>,
    write_back: WriteBackBudget,
    written_back: u64,
    reconciliation: Reconciliation,
    /// Missing visits that were reported, by row.
    missing: BTreeMap<Uuid, i64>,
    quarantined: BTreeSet<Uuid>,
    /// Reasons that are still to be kept in progress, since another session locked the row. Retried at each heartbeat.
    unmarked: BTreeMap<Uuid, String>,
    /// Rows for which the database refused a task.
    deferred: BTreeSet<Uuid>,
}

impl Maintenance {
    pub(super) fn new(now: Mono) -> Self {
        Self {
            worker: Worker::new("maintenance worker", now),
            next_heartbeat: now,
            control_known: false,
            tasks: VecDeque::from([MaintenanceTask::CheckPublication]),
            write_back: WriteBackBudget::new(Control::default().write_back_budget_micro, now),
            written_back: 0,
            reconciliation: Reconciliation::new(now),
            missing: BTreeMap::new(),
            quarantined: BTreeSet::new(),
            unmarked: BTreeMap::new(),
            deferred: BTreeSet::new(),
        }
    }

    pub(super) fn worker(&self) -> &Worker<MaintenanceTask> {
        &self.worker
    }

    pub(super) fn written_back(&self) -> u64 {
        self.written_back
    }

    pub(super) fn control_known(&self) -> bool {
        self.control_known
    }

    /// `canary`: when the next canary is due.
    pub(super) fn deadline(
        &mut self,
        canary: Option<Mono>,
        now: Mono,
    ) -> Option<(Mono, &'static str)> {
        let dues = [
            (Some(self.next_heartbeat), "heartbeat"),
            (self.write_back.next_deadline(now), "write-back"),
            (canary, "canary"),
            (self.reconciliation.next_deadline(), "reconciliation"),
        ];
        let dues = dues.into_iter().filter_map(|(at, why)| Some((at?, why)));
        let (at, why) = dues.min()?;
        Some((self.worker.when_free(at)?, why))
    }

    /// Adds a task to the queue, once.
    pub(super) fn request(&mut self, task: MaintenanceTask) {
        if !self.tasks.contains(&task) {
            self.tasks.push_back(task);
        }
    }

    /// `serving` is for a heartbeat; `canary` is due now.
    pub(super) fn next_job(
        &mut self,
        schedule: &Schedule,
        serving: bool,
        canary: Option<Transport>,
        db_now: Option<DbTime>,
        now: Mono,
    ) -> Option<MaintenanceTask> {
        if !self.worker.is_free(now) {
            return None;
        }
        let task = (self.heartbeat(serving, now))
            .or_else(|| self.tasks.pop_front())
            .or_else(|| self.stale(now))
            .or_else(|| canary.map(MaintenanceTask::Canary))
            .or_else(|| self.slice(schedule, db_now?, now))?;
        self.worker.start(task.clone(), now);
        Some(task)
    }

    fn heartbeat(&mut self, serving: bool, now: Mono) -> Option<MaintenanceTask> {
        if now < self.next_heartbeat {
            return None;
        }
        self.next_heartbeat = now.plus(HEARTBEAT_EVERY);
        Some(MaintenanceTask::Heartbeat { serving })
    }

    fn stale(&mut self, now: Mono) -> Option<MaintenanceTask> {
        let ids = self.write_back.take(now);
        (!ids.is_empty()).then_some(MaintenanceTask::WriteBack(ids))
    }

    fn slice(&mut self, schedule: &Schedule, db_now: DbTime, now: Mono) -> Option<MaintenanceTask> {
        let distributed = |id| schedule.look(id, db_now).map_or(0, |look| look.distributed);
        let slice = self
            .reconciliation
            .slice(now, || schedule.ids_owned(), distributed);
        slice.map(MaintenanceTask::Reconcile)
    }

    pub(super) fn answer(
        &mut self,
        answer: Result<TaskOutcome, Failure>,
        schedule: &mut Schedule,
        turn: &mut Turn,
    ) {
        let Some(task) = self.worker.finish() else {
            return;
        };
        match answer {
            Ok(outcome) => {
                self.worker.succeed();
                self.done(task, outcome, schedule, turn);
            }
            Err(failure) => self.failed(task, &failure, turn),
        }
    }

    fn done(
        &mut self,
        task: MaintenanceTask,
        outcome: TaskOutcome,
        schedule: &mut Schedule,
        turn: &mut Turn,
    ) {
        match outcome {
            TaskOutcome::Heartbeat(control, peers) => {
                self.control(control, schedule, turn);
                turn.effect(Effect::Peers(peers));
            }
            TaskOutcome::WroteBack(rows) => {
                self.wrote_back(&rows, schedule);
                self.repeat(task, turn);
            }
            TaskOutcome::Initialised(0) | TaskOutcome::Canary | TaskOutcome::Publication(_) => {}
            TaskOutcome::Initialised(rows) => {
                turn.emit(Event::ANCHORED.count(rows));
                turn.effect(Effect::Sync);
            }
            TaskOutcome::Reconciled(differences) => self.reconciled(differences, turn),
            TaskOutcome::MarkedInvalid(true) => {}
            TaskOutcome::MarkedInvalid(false) => self.repeat(task, turn),
        }
    }

    fn control(&mut self, control: Control, schedule: &mut Schedule, turn: &mut Turn) {
        let Some(db_now) = turn.db_now else {
            return;
        };
        let was_paused = schedule.control().paused;
        schedule.set_control(control, db_now);
        self.control_known = true;
        match (was_paused, control.paused) {
            (false, true) => turn.emit(Event::PAUSED),
            (true, false) => turn.emit(Event::RESUMED),
            (true, true) | (false, false) => {}
        }
    }

    /// So many agents share the rows and the write-back budget; these rows are this agent's from now on.
    pub(super) fn shared(&mut self, agents: usize, gained: &[Uuid], budget_micro: i64, now: Mono) {
        self.write_back.ownership(budget_micro, agents, now);
        for id in gained {
            self.reconciliation.moved(*id);
        }
        for (id, reason) in std::mem::take(&mut self.unmarked) {
            self.request(MaintenanceTask::MarkInvalid(id, reason));
        }
    }

    /// Whether no subscriber gets an event of a write-back, so that it costs nothing.
    pub(super) fn set_unheard(&mut self, unheard: bool) {
        self.write_back.unbound(unheard);
    }

    /// A task that fails for one of its rows is halved until that row is alone, and then deferred for that row.
    fn failed(&mut self, task: MaintenanceTask, failure: &Failure, turn: &mut Turn) {
        if !is_refused(failure) {
            turn.fail(&mut self.worker, failure);
            self.repeat(task, turn);
            return;
        }
        match (halves(&task), task) {
            (Some((first, second)), _) => {
                self.tasks.push_front(second);
                self.tasks.push_front(first);
            }
            (None, MaintenanceTask::WriteBack(ids)) => {
                for id in ids {
                    self.defer(id, failure, turn);
                    self.write_back.defer(id, turn.now);
                    turn.effect(Effect::Inspect(vec![id]));
                }
            }
            (None, MaintenanceTask::Reconcile(ids)) => {
                for id in ids {
                    self.defer(id, failure, turn);
                    self.reconciliation.moved(id);
                }
            }
            (None, MaintenanceTask::Canary(_)) => {
                // Its function or its right may have been taken away.
                self.request(MaintenanceTask::CheckPublication);
                if self.worker.may_log(turn.now) {
                    turn.emit(Event::STATEMENT_FAILED.failure(failure));
                }
            }
            (None, task) => {
                turn.fail(&mut self.worker, failure);
                self.repeat(task, turn);
            }
        }
    }

    /// A failure that all rows have in common is reported for one of them.
    fn defer(&mut self, id: Uuid, failure: &Failure, turn: &mut Turn) {
        let is_own = failure.policy().recovery == Recovery::Bisect;
        if self.deferred.insert(id) && (is_own || self.worker.may_log(turn.now)) {
            turn.emit(Event::TASK_DEFERRED.of(id).failure(failure));
        }
    }

    /// A task failed, or its answer was lost: what nothing else requests again is requested again.
    fn repeat(&mut self, task: MaintenanceTask, turn: &mut Turn) {
        match task {
            // These come again by themselves, as long as there is a reason for them.
            MaintenanceTask::Heartbeat { .. }
            | MaintenanceTask::Initialise
            | MaintenanceTask::Canary(_) => {}
            MaintenanceTask::MarkInvalid(id, reason) => {
                self.unmarked.insert(id, reason);
            }
            // Rows that were not written, for a lock or a failure, are still stale.
            MaintenanceTask::WriteBack(ids) => turn.effect(Effect::Inspect(ids)),
            MaintenanceTask::Reconcile(ids) => {
                for id in ids {
                    self.reconciliation.moved(id);
                }
            }
            MaintenanceTask::CheckPublication => self.request(task),
        }
    }

    fn wrote_back(&mut self, written: &[WrittenBack], schedule: &mut Schedule) {
        for row in written {
            schedule.wrote_back(row.id, row.distributed);
            self.deferred.remove(&row.id);
            self.written_back += u64::from(row.changed);
        }
    }

    fn reconciled(&mut self, differences: Vec<CountDifference>, turn: &mut Turn) {
        for difference in differences {
            let CountDifference {
                id,
                missing,
                changed,
                message,
            } = difference;
            let reported = self.missing.get(&id).copied().unwrap_or(0);
            if changed {
                turn.effect(Effect::Read(vec![id], turn.now));
            }
            if changed || missing != reported {
                self.missing.insert(id, missing);
                let event = if missing > 0 {
                    Event::VISITS_MISSING
                } else {
                    Event::COUNT_CORRECTED
                };
                turn.emit(event.of(id).because(message));
            }
        }
    }

    /// A sync has ended.
    pub(super) fn synced(&mut self, first: bool, now: Mono) {
        self.request(MaintenanceTask::CheckPublication); // no event tells that the publication, or what broadcasts, changed
        if first {
            self.reconciliation.begin(now);
            self.next_heartbeat = now; // other agents are to know that it serves from now on
        }
    }

    /// Visits of the row were stored.
    pub(super) fn stored(&mut self, id: Uuid) {
        self.reconciliation.moved(id);
    }

    /// Follows the status of a row: whether it is quarantined, and whether its own column is right.
    pub(super) fn inspect(&mut self, id: Uuid, schedule: &Schedule, turn: &mut Turn) {
        let status = turn
            .db_now
            .and_then(|db_now| schedule.owned_status(id, db_now));
        let Some(look) = status else {
            return;
        };
        match look.reason {
            Some(reason) if self.quarantined.insert(id) => {
                turn.emit(Event::QUARANTINED.of(id).because(reason));
            }
            None if self.quarantined.remove(&id) => {
                self.unmarked.remove(&id);
                turn.emit(Event::RELEASED.of(id));
            }
            Some(_) | None => {}
        }
        let is_bad = look.partner_id.is_none(); // a write to it may fail
        let column = if is_bad || look.written == Some(look.distributed) {
            Staleness::Right
        } else if matches!(look.status, Status::Completed | Status::Ended) {
            Staleness::StaleFinished
        } else {
            Staleness::Stale
        };
        self.write_back.note(id, column, turn.now);
    }

    /// The row is not this agent's any more.
    pub(super) fn forget(&mut self, id: Uuid, now: Mono) {
        self.write_back.forget(id, now);
        self.quarantined.remove(&id);
        self.unmarked.remove(&id);
        self.deferred.remove(&id);
        self.missing.remove(&id);
        self.reconciliation.forget(id);
    }
}

/// Whether the database refuses what the statement says, rather than being unavailable or undecided.
pub(super) fn is_refused(failure: &Failure) -> bool {
    !matches!(
        failure.policy().recovery,
        Recovery::Retry | Recovery::Reread
    )
}

/// A task for several rows as two tasks for half of them each.
fn halves(task: &MaintenanceTask) -> Option<(MaintenanceTask, MaintenanceTask)> {
    let (ids, task): (_, fn(Vec<Uuid>) -> MaintenanceTask) = match task {
        MaintenanceTask::WriteBack(ids) => (ids, MaintenanceTask::WriteBack),
        MaintenanceTask::Reconcile(ids) => (ids, MaintenanceTask::Reconcile),
        MaintenanceTask::Heartbeat { .. }
        | MaintenanceTask::Canary(_)
        | MaintenanceTask::Initialise
        | MaintenanceTask::MarkInvalid(..)
        | MaintenanceTask::CheckPublication => return None,
    };
    let (first, second) = ids.split_at_checked(ids.len() / 2)?;
    (!first.is_empty()).then(|| (task(first.to_vec()), task(second.to_vec())))
}
