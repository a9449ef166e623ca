//! The keeper's jobs and what follows from its answers: beats, write-backs, canary, reconciliation, and the rest.

use rand::Rng as _;
use uuid::Uuid;

use super::{Action, Agent, Chore, Finding, Kept, Notice, Published, Trip, WrittenBack};
use crate::domain::limits::BEAT_EVERY;
use crate::domain::policy::{Course, Fault};
use crate::domain::proof::CANARY;
use crate::domain::share::{Peer, Share};
use crate::domain::time::{DbTime, Mono};
use crate::domain::timetable::Control;
use crate::domain::way::{Following, ListenBy, Way};

impl Agent {
    pub(super) fn give_out_keeping(&mut self, now: Mono) {
        if !self.keeper.free(now) {
            return;
        }
        if let Some(chore) = self.next_chore(now) {
            match &chore {
                Chore::WriteBack(ids) => {
                    for id in ids {
                        self.proof.changes.writing(*id, now);
                    }
                }
                Chore::Canary(way) => self.proof.of_mut(*way).writing(CANARY, now),
                Chore::Beat { .. }
                | Chore::Initialise
                | Chore::Reconcile(_)
                | Chore::MarkInvalid(..)
                | Chore::Published => {}
            }
            self.keeper.busy = true;
            self.keeping = Some(chore.clone());
            self.outbox.push_back(Action::Keep(chore));
        }
    }

    fn next_chore(&mut self, now: Mono) -> Option<Chore> {
        if self.next_beat <= now {
            self.next_beat = now.plus(BEAT_EVERY);
            return Some(Chore::Beat {
                serving: self.serves(now),
            });
        }
        if let Some(chore) = self.chores.pop_front() {
            return Some(chore);
        }
        let stale = self.echo.take(now);
        if !stale.is_empty() {
            return Some(Chore::WriteBack(stale));
        }
        for way in Way::ALL {
            if self.canary_at(way).is_some_and(|at| at <= now) {
                return Some(Chore::Canary(way));
            }
        }
        self.next_slice(now).map(Chore::Reconcile)
    }

    /// When the canary is to be touched, or broadcast: never while it could not be heard.
    pub(super) fn canary_at(&self, way: Way) -> Option<Mono> {
        let heard = self.published.is_some_and(|found| match way {
            Way::Changes => found.canary,
            Way::Broadcast => found.broadcasts,
        });
        self.proof.of(way).canary_at().filter(|_| heard)
    }

    fn next_slice(&mut self, now: Mono) -> Option<Vec<Uuid>> {
        let db_now = self.clock.at(now)?;
        let timetable = &self.timetable;
        self.reconciliation.slice(
            now,
            || timetable.ids_owned(),
            |id| {
                timetable
                    .look(id, db_now)
                    .map_or(0, |look| look.distributed)
            },
        )
    }

    pub(super) fn kept(&mut self, answer: Result<(Kept, Trip), Fault>, now: Mono) {
        let Some(chore) = self.keeping.take() else {
            return;
        };
        let kept = match answer {
            Ok((kept, trip)) => {
                self.keeper.succeeded();
                self.trip(trip, now);
                self.database_back(now);
                kept
            }
            Err(fault) => {
                self.keeper_failed(chore, fault, now);
                return;
            }
        };
        let Some(db_now) = self.clock.at(now) else {
            return;
        };
        match kept {
            Kept::Beat(control, peers) => {
                self.control(control, db_now);
                self.share(&peers, db_now, now);
                for (id, why) in std::mem::take(&mut self.unmarked) {
                    self.chore(Chore::MarkInvalid(id, why));
                }
            }
            Kept::WroteBack(rows) => self.wrote_back(&chore, &rows, now),
            Kept::Canary(way) => self.proof.of_mut(way).wrote(CANARY, now),
            Kept::Initialised(rows) => {
                if rows > 0 {
                    self.tell(Notice::Initialised(rows));
                    self.sync_now(now);
                }
            }
            Kept::Reconciled(findings) => self.found(findings, now),
            Kept::MarkedInvalid(true) => {}
            Kept::MarkedInvalid(false) => self.not_kept(chore, now),
            Kept::Published(published) => self.publication(published),
        }
    }

    /// What refuses one of several rows is halved until that row is alone; then the row's turn is put off.
    fn keeper_failed(&mut self, chore: Chore, fault: Fault, now: Mono) {
        let splits = !matches!(fault.policy().course, Course::Again | Course::ReadBack);
        match halves(&chore).filter(|_| splits) {
            Some((first, second)) => {
                self.keeper.busy = false;
                self.did_not_write(&chore);
                self.chores.push_front(second);
                self.chores.push_front(first);
            }
            None if splits && matches!(chore, Chore::WriteBack(_) | Chore::Reconcile(_)) => {
                self.keeper.busy = false;
                self.did_not_write(&chore);
                self.put_off(&chore, &fault, now);
            }
            None if splits && let Chore::Canary(way) = chore => {
                self.keeper.busy = false;
                self.proof.of_mut(way).cannot_write(CANARY, now);
                // What it is sent with may have been taken away.
                self.chore(Chore::Published);
                if self.keeper.may_tell(now) {
                    self.tell(Notice::Hindered(fault));
                }
            }
            None => {
                let draw = self.random.next_u32();
                self.keeper.failed(&fault.policy(), draw, now);
                let may_tell = !fault.policy().away && self.keeper.may_tell(now);
                self.failed(fault, may_tell, now);
                self.not_kept(chore, now);
            }
        }
        self.database_back(now);
    }

    fn did_not_write(&mut self, chore: &Chore) {
        if let Chore::WriteBack(ids) = chore {
            for id in ids {
                self.proof.changes.did_not_write(*id);
            }
        }
    }

    /// The chore's only row is refused: it is told once, and tried again later.
    fn put_off(&mut self, chore: &Chore, fault: &Fault, now: Mono) {
        let (Chore::WriteBack(ids) | Chore::Reconcile(ids)) = chore else {
            return;
        };
        for id in ids {
            // What every row meets is told for one of them.
            let own = fault.policy().course == Course::BlameARow;
            if self.put_off.insert(*id) && (own || self.keeper.may_tell(now)) {
                self.tell(Notice::PutOff(*id, fault.clone()));
            }
            if matches!(chore, Chore::WriteBack(_)) {
                self.echo.put_off(*id, now);
                if let Some(db_now) = self.clock.at(now) {
                    self.take_note(*id, db_now, now);
                }
            } else {
                self.reconciliation.moved(*id);
            }
        }
    }

    /// A chore failed, or its answer was lost: what nobody would ask for again is asked for again.
    fn not_kept(&mut self, chore: Chore, now: Mono) {
        match chore {
            // The beat comes by itself; so do the others, as long as there is a reason for them.
            Chore::Beat { .. } | Chore::Initialise => {}
            Chore::MarkInvalid(id, why) => {
                self.unmarked.insert(id, why);
            }
            Chore::Canary(way) => self.proof.of_mut(way).did_not_write(CANARY),
            Chore::WriteBack(_) => self.wrote_back(&chore, &[], now),
            Chore::Reconcile(ids) => {
                for id in ids {
                    self.reconciliation.moved(id);
                }
            }
            Chore::Published => self.chore(Chore::Published),
        }
    }

    /// Rows that are not among the written ones are held by somebody, or were not asked: they are still to be written.
    fn wrote_back(&mut self, chore: &Chore, written: &[WrittenBack], now: Mono) {
        for row in written {
            self.timetable.wrote_back(row.id, row.distributed);
            self.put_off.remove(&row.id);
            if row.changed {
                self.counters.written_back += 1;
                self.proof.changes.wrote(row.id, now);
            }
        }
        let (Chore::WriteBack(ids), Some(db_now)) = (chore, self.clock.at(now)) else {
            return;
        };
        for id in ids {
            self.proof.changes.did_not_write(*id);
            self.take_note(*id, db_now, now);
        }
    }

    fn control(&mut self, control: Control, db_now: DbTime) {
        let was_paused = self.timetable.control().paused;
        self.timetable.set_control(control, db_now);
        self.health.control_known = true;
        if was_paused != control.paused {
            self.tell(Notice::Paused(control.paused));
        }
    }

    fn share(&mut self, peers: &[Peer], db_now: DbTime, now: Mono) {
        let share = Share::beside(self.me, self.serves(now), peers);
        let agents = share.agents();
        let budget = self.timetable.control().echo_budget_micro;
        self.echo.share(budget, agents, now);
        if agents != self.agents {
            self.agents = agents;
            self.tell(Notice::Shared(agents));
        }
        let stamp = self.next_stamp();
        let shift = self.timetable.set_share(share, stamp, db_now);
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
}

/// A chore for several rows as two for half of them each.
fn halves(chore: &Chore) -> Option<(Chore, Chore)> {
    let (ids, chore): (_, fn(Vec<Uuid>) -> Chore) = match chore {
        Chore::WriteBack(ids) => (ids, Chore::WriteBack),
        Chore::Reconcile(ids) => (ids, Chore::Reconcile),
        Chore::Beat { .. }
        | Chore::Canary(_)
        | Chore::Initialise
        | Chore::MarkInvalid(..)
        | Chore::Published => return None,
    };
    let (first, second) = ids.split_at_checked(ids.len() / 2)?;
    (!first.is_empty()).then(|| (chore(first.to_vec()), chore(second.to_vec())))
}
