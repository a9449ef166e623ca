//! The keeper's jobs and what follows from its answers: beats, write-backs, canary, reconciliation, and the rest.

use rand::Rng as _;
use uuid::Uuid;

use super::{
    Action, Agent, CountDifference, MaintenanceTask, Notice, Published, RoundTrip, TaskOutcome,
    WrittenBack,
};
use crate::domain::echo_check::CANARY;
use crate::domain::error_policy::{Failure, Recovery};
use crate::domain::limits::BEAT_EVERY;
use crate::domain::ownership::{Ownership, PeerAgent};
use crate::domain::schedule::Control;
use crate::domain::time::{DbTime, Mono};
use crate::domain::transport::{Following, ListenBy, Transport};

impl Agent {
    pub(super) fn give_out_keeping(&mut self, now: Mono) {
        if !self.keeper.free(now) {
            return;
        }
        if let Some(task) = self.next_chore(now) {
            match &task {
                MaintenanceTask::WriteBack(ids) => {
                    for id in ids {
                        self.echo_check.changes.writing(*id, now);
                    }
                }
                MaintenanceTask::Canary(transport) => {
                    self.echo_check.of_mut(*transport).writing(CANARY, now);
                }
                MaintenanceTask::Beat { .. }
                | MaintenanceTask::Initialise
                | MaintenanceTask::Reconcile(_)
                | MaintenanceTask::MarkInvalid(..)
                | MaintenanceTask::Published => {}
            }
            self.keeper.busy = true;
            self.keeping = Some(task.clone());
            self.outbox.push_back(Action::Keep(task));
        }
    }

    fn next_chore(&mut self, now: Mono) -> Option<MaintenanceTask> {
        if self.next_beat <= now {
            self.next_beat = now.plus(BEAT_EVERY);
            return Some(MaintenanceTask::Beat {
                serving: self.serves(now),
            });
        }
        if let Some(task) = self.maintenance.pop_front() {
            return Some(task);
        }
        let stale = self.echo.take(now);
        if !stale.is_empty() {
            return Some(MaintenanceTask::WriteBack(stale));
        }
        for transport in Transport::ALL {
            if self.canary_at(transport).is_some_and(|at| at <= now) {
                return Some(MaintenanceTask::Canary(transport));
            }
        }
        self.next_slice(now).map(MaintenanceTask::Reconcile)
    }

    /// When the canary is to be touched, or broadcast: never while it could not be heard.
    pub(super) fn canary_at(&self, transport: Transport) -> Option<Mono> {
        let heard = self.published.is_some_and(|found| match transport {
            Transport::Changes => found.canary,
            Transport::Broadcast => found.broadcasts,
        });
        self.echo_check.of(transport).canary_at().filter(|_| heard)
    }

    fn next_slice(&mut self, now: Mono) -> Option<Vec<Uuid>> {
        let db_now = self.clock.at(now)?;
        let schedule = &self.schedule;
        self.reconciliation.slice(
            now,
            || schedule.ids_owned(),
            |id| schedule.look(id, db_now).map_or(0, |look| look.distributed),
        )
    }

    pub(super) fn kept(&mut self, answer: Result<(TaskOutcome, RoundTrip), Failure>, now: Mono) {
        let Some(task) = self.keeping.take() else {
            return;
        };
        let kept = match answer {
            Ok((kept, round_trip)) => {
                self.keeper.succeeded();
                self.round_trip(round_trip, now);
                self.database_back(now);
                kept
            }
            Err(failure) => {
                self.keeper_failed(task, failure, now);
                return;
            }
        };
        let Some(db_now) = self.clock.at(now) else {
            return;
        };
        match kept {
            TaskOutcome::Beat(control, peers) => {
                self.control(control, db_now);
                self.ownership(&peers, db_now, now);
                for (id, why) in std::mem::take(&mut self.unmarked) {
                    self.task(MaintenanceTask::MarkInvalid(id, why));
                }
            }
            TaskOutcome::WroteBack(rows) => self.wrote_back(&task, &rows, now),
            TaskOutcome::Canary(transport) => self.echo_check.of_mut(transport).wrote(CANARY, now),
            TaskOutcome::Initialised(rows) => {
                if rows > 0 {
                    self.tell(Notice::Initialised(rows));
                    self.sync_now(now);
                }
            }
            TaskOutcome::Reconciled(findings) => self.found(findings, now),
            TaskOutcome::MarkedInvalid(true) => {}
            TaskOutcome::MarkedInvalid(false) => self.not_kept(task, now),
            TaskOutcome::Published(published) => self.publication(published),
        }
    }

    /// What refuses one of several rows is halved until that row is alone; then the row's turn is put off.
    fn keeper_failed(&mut self, task: MaintenanceTask, failure: Failure, now: Mono) {
        let splits = !matches!(
            failure.policy().recovery,
            Recovery::Retry | Recovery::Reread
        );
        match halves(&task).filter(|_| splits) {
            Some((first, second)) => {
                self.keeper.busy = false;
                self.did_not_write(&task);
                self.maintenance.push_front(second);
                self.maintenance.push_front(first);
            }
            None if splits
                && matches!(
                    task,
                    MaintenanceTask::WriteBack(_) | MaintenanceTask::Reconcile(_)
                ) =>
            {
                self.keeper.busy = false;
                self.did_not_write(&task);
                self.defer(&task, &failure, now);
            }
            None if splits && let MaintenanceTask::Canary(transport) = task => {
                self.keeper.busy = false;
                self.echo_check.of_mut(transport).cannot_write(CANARY, now);
                // What it is sent with may have been taken away.
                self.task(MaintenanceTask::Published);
                if self.keeper.may_tell(now) {
                    self.tell(Notice::Hindered(failure));
                }
            }
            None => {
                let draw = self.random.next_u32();
                self.keeper.failed(&failure.policy(), draw, now);
                let may_tell = !failure.policy().away && self.keeper.may_tell(now);
                self.failed(failure, may_tell, now);
                self.not_kept(task, now);
            }
        }
        self.database_back(now);
    }

    fn did_not_write(&mut self, task: &MaintenanceTask) {
        if let MaintenanceTask::WriteBack(ids) = task {
            for id in ids {
                self.echo_check.changes.did_not_write(*id);
            }
        }
    }

    /// The chore's only row is refused: it is told once, and tried again later.
    fn defer(&mut self, task: &MaintenanceTask, failure: &Failure, now: Mono) {
        let (MaintenanceTask::WriteBack(ids) | MaintenanceTask::Reconcile(ids)) = task else {
            return;
        };
        for id in ids {
            // What every row meets is told for one of them.
            let own = failure.policy().recovery == Recovery::Bisect;
            if self.defer.insert(*id) && (own || self.keeper.may_tell(now)) {
                self.tell(Notice::Deferred(*id, failure.clone()));
            }
            if matches!(task, MaintenanceTask::WriteBack(_)) {
                self.echo.defer(*id, now);
                if let Some(db_now) = self.clock.at(now) {
                    self.take_note(*id, db_now, now);
                }
            } else {
                self.reconciliation.moved(*id);
            }
        }
    }

    /// A chore failed, or its answer was lost: what nobody would ask for again is asked for again.
    fn not_kept(&mut self, task: MaintenanceTask, now: Mono) {
        match task {
            // The beat comes by itself; so do the others, as long as there is a reason for them.
            MaintenanceTask::Beat { .. } | MaintenanceTask::Initialise => {}
            MaintenanceTask::MarkInvalid(id, why) => {
                self.unmarked.insert(id, why);
            }
            MaintenanceTask::Canary(transport) => {
                self.echo_check.of_mut(transport).did_not_write(CANARY);
            }
            MaintenanceTask::WriteBack(_) => self.wrote_back(&task, &[], now),
            MaintenanceTask::Reconcile(ids) => {
                for id in ids {
                    self.reconciliation.moved(id);
                }
            }
            MaintenanceTask::Published => self.task(MaintenanceTask::Published),
        }
    }

    /// Rows that are not among the written ones are held by somebody, or were not asked: they are still to be written.
    fn wrote_back(&mut self, task: &MaintenanceTask, written: &[WrittenBack], now: Mono) {
        for row in written {
            self.schedule.wrote_back(row.id, row.distributed);
            self.defer.remove(&row.id);
            if row.changed {
                self.counters.written_back += 1;
                self.echo_check.changes.wrote(row.id, now);
            }
        }
        let (MaintenanceTask::WriteBack(ids), Some(db_now)) = (task, self.clock.at(now)) else {
            return;
        };
        for id in ids {
            self.echo_check.changes.did_not_write(*id);
            self.take_note(*id, db_now, now);
        }
    }

    fn control(&mut self, control: Control, db_now: DbTime) {
        let was_paused = self.schedule.control().paused;
        self.schedule.set_control(control, db_now);
        self.health.control_known = true;
        if was_paused != control.paused {
            self.tell(Notice::Paused(control.paused));
        }
    }

    fn ownership(&mut self, peers: &[PeerAgent], db_now: DbTime, now: Mono) {
        let ownership = Ownership::beside(self.me, self.serves(now), peers);
        let agents = ownership.agents();
        let budget = self.schedule.control().write_back_budget_micro;
        self.echo.ownership(budget, agents, now);
        if agents != self.agents {
            self.agents = agents;
            self.tell(Notice::Shared(agents));
        }
        let sequence = self.next_sequence();
        let shift = self.schedule.set_share(ownership, sequence, db_now);
        for id in shift.lost {
            self.forget(id, now);
        }
        for id in &shift.gained {
            self.reconciliation.moved(*id);
        }
        self.want(shift.gained, now);
    }

    /// What is followed goes by what the database has. A subscription does not outlive that its table was away from the
    /// publication, so it is made again then.
    fn publication(&mut self, published: Published) {
        let before = self.published.replace(published);
        if before == Some(published) {
            return;
        }
        let following = Following::with(self.listen_by, published.canary, published.broadcasts);
        let as_wished = published.distributions && published.canary && !published.visits;
        if following.changes && !as_wished {
            self.tell(Notice::Published(published));
        }
        if following.broadcast && !published.broadcasts {
            self.tell(Notice::NothingBroadcasts);
        }
        if self.listen_by == ListenBy::Auto && following.broadcast != self.following.broadcast {
            self.tell(Notice::Broadcasts(following.broadcast));
        }
        let tables = |found: Published| (found.distributions, found.canary);
        let anew = before.is_some_and(|before| tables(before) != tables(published));
        if following != self.following || (following.changes && anew) {
            self.outbox.push_back(Action::Follow(following));
        }
        self.echo.unbound(!following.changes && !published.anywhere);
        self.following = following;
    }

    fn found(&mut self, findings: Vec<CountDifference>, now: Mono) {
        for finding in findings {
            let told = self.missing_told.get(&finding.id).copied().unwrap_or(0);
            if finding.changed {
                self.want([finding.id], now);
            }
            if finding.changed || finding.missing != told {
                self.missing_told.insert(finding.id, finding.missing);
                self.tell(Notice::CountsDiffer(finding));
            }
        }
    }
}

/// A chore for several rows as two for half of them each.
fn halves(task: &MaintenanceTask) -> Option<(MaintenanceTask, MaintenanceTask)> {
    let (ids, task): (_, fn(Vec<Uuid>) -> MaintenanceTask) = match task {
        MaintenanceTask::WriteBack(ids) => (ids, MaintenanceTask::WriteBack),
        MaintenanceTask::Reconcile(ids) => (ids, MaintenanceTask::Reconcile),
        MaintenanceTask::Beat { .. }
        | MaintenanceTask::Canary(_)
        | MaintenanceTask::Initialise
        | MaintenanceTask::MarkInvalid(..)
        | MaintenanceTask::Published => return None,
    };
    let (first, second) = ids.split_at_checked(ids.len() / 2)?;
    (!first.is_empty()).then(|| (task(first.to_vec()), task(second.to_vec())))
}
