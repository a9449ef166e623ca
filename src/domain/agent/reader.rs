//! The reader's jobs and what follows from its answers: changed rows, full syncs, and repairs.

use std::collections::BTreeSet;

use rand::Rng as _;
use uuid::Uuid;

use super::{Action, Agent, Chore, Found, Horizon, Notice, Trip, What};
use crate::domain::limits::{ROWS_PER_READ, SYNC_EVERY, SYNC_EVERY_BLIND, SYNC_FULL_EVERY};
use crate::domain::policy::Fault;
use crate::domain::time::{DbTime, Mono};
use crate::domain::timetable::{Applied, Stamp, Status};

/// A read that is under way.
#[derive(Debug)]
pub(super) struct Reading {
    what: What,
    began: Stamp,
    /// The rows that a full read answers for beside the others: of their changes we have been told.
    told: BTreeSet<Uuid>,
    /// A sync that somebody called for, since changes may have been missed: what it finds is no surprise.
    called_for: bool,
}

impl Agent {
    pub(super) fn give_out_reading(&mut self, now: Mono) {
        if !self.reader.free(now) {
            return;
        }
        let mut told = BTreeSet::new();
        let mut called_for = false;
        let what = if self.next_sync <= now {
            called_for = std::mem::take(&mut self.sync_called_for);
            // What was missed may be a deletion, which only a look at every row shows.
            let may_go_on = !called_for && now < self.next_full_sync;
            if let Some(horizon) = self.horizon.filter(|_| may_go_on) {
                What::Since(horizon)
            } else {
                told = std::mem::take(&mut self.wanted);
                self.wanted_at = None;
                What::All
            }
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
        self.reading = Some(Reading {
            what: what.clone(),
            began,
            told,
            called_for,
        });
        self.outbox.push_back(Action::Read(what));
    }

    pub(super) fn read(&mut self, answer: Result<(Found, Trip), Fault>, now: Mono) {
        let Some(reading) = self.reading.take() else {
            return;
        };
        match answer {
            Ok((found, trip)) => {
                self.reader.succeeded();
                self.trip(trip, now);
                self.apply(&reading, found, now);
            }
            Err(fault) => {
                let draw = self.random.next_u32();
                self.reader.failed(&fault.policy(), draw, now);
                let may_tell = !fault.policy().away && self.reader.may_tell(now);
                self.failed(fault, may_tell, now);
                self.wanted.extend(reading.told);
                self.sync_called_for |= reading.called_for;
                match reading.what {
                    What::All | What::Since(_) => {
                        self.next_sync = now;
                        self.horizon = None; // who knows which database answers next
                    }
                    What::Rows(ids) => self.want(ids, now),
                }
            }
        }
        self.database_back(now);
    }

    fn apply(&mut self, reading: &Reading, found: Found, now: Mono) {
        let Some(db_now) = self.clock.at(now) else {
            return;
        };
        let Found {
            rows,
            gone,
            truncated,
            horizon,
        } = found;
        let empty = rows.is_empty();
        let mut seen = BTreeSet::new();
        let mut changed = Vec::new();
        let mut unanchored = false;
        for row in rows {
            let id = row.row.id;
            unanchored |= row.row.config_version.is_none() || row.progress.is_none();
            seen.insert(id);
            if self.timetable.apply(id, Some(row), reading.began, db_now) != Applied::Nothing {
                changed.push(id);
            }
            self.count_refusal(id, db_now);
            self.take_note(id, db_now, now);
        }
        let absent = match &reading.what {
            What::All => self.timetable.unseen_by(&seen, reading.began),
            What::Since(_) => gone.difference(&seen).copied().collect(),
            What::Rows(ids) => ids
                .iter()
                .filter(|id| !seen.contains(id))
                .copied()
                .collect(),
        };
        for id in absent {
            if self.timetable.apply(id, None, reading.began, db_now) == Applied::Removed {
                self.counters.refused.deleted += u64::from(self.refused.contains_key(&id));
                self.forget(id, now);
                changed.push(id);
            }
        }
        if unanchored {
            self.chore(Chore::Initialise);
        }
        match &reading.what {
            What::All | What::Since(_) => {
                // A TRUNCATE is never told, so an empty table proves nothing against Realtime.
                if !reading.called_for && !empty {
                    self.repairs(&changed, &reading.told, now);
                }
                self.go_on_from(&reading.what, horizon, now);
                self.synced(reading, now);
                if truncated {
                    self.sync_now(now);
                }
            }
            What::Rows(ids) => {
                self.counters.rows_read += u64::try_from(ids.len()).unwrap_or(u64::MAX);
            }
        }
    }

    /// Why a row was left out of a batch, now that it was read since.
    fn count_refusal(&mut self, id: Uuid, db_now: DbTime) {
        if self.timetable.is_doubtful(id) {
            return;
        }
        let Some(version) = self.refused.remove(&id) else {
            return;
        };
        let status = self.timetable.look(id, db_now).map(|look| look.status);
        let refused = &mut self.counters.refused;
        let reason = if self.timetable.control().paused || status == Some(Status::Paused) {
            &mut refused.paused
        } else if self.timetable.version(id) != Some(version) {
            &mut refused.changed
        } else if self.timetable.is_held(id) {
            &mut refused.locked
        } else {
            &mut refused.moved
        };
        *reason += 1;
    }

    /// Changes that a periodic sync had to find, though Realtime, if it was live, should have told of them.
    fn repairs(&mut self, changed: &[Uuid], told: &BTreeSet<Uuid>, now: Mono) {
        let missed: Vec<Uuid> = changed
            .iter()
            .filter(|id| !told.contains(id) && !self.wanted.contains(id))
            .copied()
            .collect();
        if missed.is_empty() || self.health.synced_at.is_none() {
            return;
        }
        self.counters.repaired += u64::try_from(missed.len()).unwrap_or(u64::MAX);
        self.tell(Notice::Repaired(missed.len()));
        if self.health.caught_up {
            for id in missed {
                for proof in self.proof.both_mut() {
                    proof.repaired(id, now);
                }
            }
        }
    }

    /// Where the next sync goes on; a horizon that went back is another database's.
    fn go_on_from(&mut self, what: &What, horizon: Option<Horizon>, now: Mono) {
        let went_back =
            matches!(what, What::Since(before) if horizon.is_none_or(|at| at < *before));
        self.horizon = horizon.filter(|_| !went_back);
        if *what == What::All {
            self.counters.full_syncs += 1;
            self.next_full_sync = now.plus(SYNC_FULL_EVERY);
        }
    }

    fn synced(&mut self, reading: &Reading, now: Mono) {
        self.counters.syncs += 1;
        self.chore(Chore::Published); // nobody tells that the publication, or what broadcasts, is another
        let first = self.health.synced_at.is_none();
        let live = self.health.live_since.is_some();
        let answered = reading.began > self.sync_since;
        if answered {
            self.next_sync = now.plus(if live { SYNC_EVERY } else { SYNC_EVERY_BLIND });
        }
        self.health.caught_up = live && answered;
        self.health.synced_at = Some(now);
        if first {
            self.tell(Notice::Synced(self.timetable.len()));
            self.reconciliation.begin(now);
            self.next_beat = now; // the others are to know that it serves from now on
        }
    }
}
