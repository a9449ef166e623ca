//! The reader's jobs and what follows from its answers: changed rows, full syncs, and repairs.

use std::collections::BTreeSet;

use rand::Rng as _;
use uuid::Uuid;

use super::{
    Action, Agent, MaintenanceTask, Notice, ReadRequest, ReadResult, RoundTrip, XidWatermark,
};
use crate::domain::error_policy::Failure;
use crate::domain::limits::{ROWS_PER_READ, SYNC_EVERY, SYNC_EVERY_BLIND, SYNC_FULL_EVERY};
use crate::domain::schedule::{Applied, ReadSequence, Status};
use crate::domain::time::{DbTime, Mono};

/// A read that is under way.
#[derive(Debug)]
pub(super) struct Reading {
    what: ReadRequest,
    began: ReadSequence,
    /// Where it is a part of a sync.
    sync: Option<Sync>,
}

/// A look at the whole table, or at what has changed in it: one read, or several.
#[derive(Debug)]
pub(super) struct Sync {
    began: ReadSequence,
    /// The rows that a full one answers for beside the others: of their changes we have been told.
    told: BTreeSet<Uuid>,
    /// It reads every row.
    is_full: bool,
    /// Somebody called for it, since changes may have been missed: what it finds is no surprise.
    called_for: bool,
    /// Where the next one goes on.
    watermark: Option<XidWatermark>,
    /// Nothing was found.
    empty: bool,
    /// Rows that were not known as they are.
    changed: Vec<Uuid>,
    /// The next part begins after this row.
    after: Option<Uuid>,
}

impl Agent {
    pub(super) fn give_out_reading(&mut self, now: Mono) {
        if !self.reader.free(now) {
            return;
        }
        let edited = self.wanted_at.is_some_and(|at| at <= now);
        let turn = std::mem::take(&mut self.sync_has_its_turn);
        let (what, sync) = if let Some(sync) = self.syncing.take_if(|_| turn || !edited) {
            let what = sync.after.map_or(ReadRequest::All, ReadRequest::After);
            (what, Some(sync))
        } else if self.syncing.is_none() && self.next_sync <= now {
            self.begin_sync(now)
        } else if edited {
            self.sync_has_its_turn = true;
            let ids: Vec<Uuid> = self.wanted.iter().take(ROWS_PER_READ).copied().collect();
            for id in &ids {
                self.wanted.remove(id);
            }
            self.wanted_at = (!self.wanted.is_empty()).then_some(now);
            (ReadRequest::Rows(ids), None)
        } else {
            return;
        };
        // The parts of one look are as old as its beginning: what was read by id meanwhile is newer.
        let goes_on = sync.as_ref().filter(|sync| sync.after.is_some());
        let began = goes_on.map(|sync| sync.began);
        let began = began.unwrap_or_else(|| self.next_sequence());
        self.reader.busy = true;
        self.reading = Some(Reading {
            what: what.clone(),
            began,
            sync,
        });
        self.outbox.push_back(Action::Read(what));
    }

    fn begin_sync(&mut self, now: Mono) -> (ReadRequest, Option<Sync>) {
        let called_for = std::mem::take(&mut self.sync_called_for);
        // What was missed may be a deletion, which only a look at every row shows.
        // Where it was called for during such a look, that look and what is noted since tell of it.
        let looked = std::mem::take(&mut self.called_for_while_reading_all);
        let may_go_on = now < self.next_full_sync && (looked || !called_for);
        let since = self.watermark.filter(|_| may_go_on);
        let told = if since.is_none() {
            self.wanted_at = None;
            std::mem::take(&mut self.wanted)
        } else {
            BTreeSet::new()
        };
        let sync = Sync {
            began: ReadSequence(self.sequence.0 + 1),
            told,
            is_full: since.is_none(),
            called_for,
            watermark: None,
            empty: true,
            changed: Vec::new(),
            after: None,
        };
        (
            since.map_or(ReadRequest::All, ReadRequest::Since),
            Some(sync),
        )
    }

    pub(super) fn read(&mut self, answer: Result<(ReadResult, RoundTrip), Failure>, now: Mono) {
        let Some(reading) = self.reading.take() else {
            return;
        };
        match answer {
            Ok((found, round_trip)) => {
                self.reader.succeeded();
                self.round_trip(round_trip, now);
                self.apply(reading, found, now);
            }
            Err(failure) => {
                let draw = self.random.next_u32();
                self.reader.failed(&failure.policy(), draw, now);
                let may_tell = !failure.policy().away && self.reader.may_tell(now);
                self.failed(failure, may_tell, now);
                if let Some(sync) = reading.sync {
                    self.wanted.extend(sync.told);
                    self.sync_called_for |= sync.called_for;
                    self.next_sync = now;
                    self.watermark = None; // who knows which database answers next
                }
                if let ReadRequest::Rows(ids) = reading.what {
                    self.want(ids, now);
                }
            }
        }
        self.database_back(now);
    }

    fn apply(&mut self, reading: Reading, found: ReadResult, now: Mono) {
        let Some(db_now) = self.clock.at(now) else {
            return;
        };
        let empty = found.rows.is_empty();
        let mut seen = BTreeSet::new();
        let mut changed = Vec::new();
        let mut unanchored = false;
        for row in found.rows {
            let id = row.row.id;
            unanchored |= row.row.config_version.is_none() || row.progress.is_none();
            if !matches!(reading.what, ReadRequest::All | ReadRequest::After(_)) {
                seen.insert(id);
            }
            let applied = self.schedule.apply(id, Some(row), reading.began, db_now);
            if applied != Applied::Nothing && self.health.synced_at.is_some() {
                changed.push(id);
                self.tell(Notice::Followed(id, self.schedule.version(id)));
            }
            self.count_refusal(id, db_now);
            self.take_note(id, db_now, now);
        }
        if unanchored {
            self.task(MaintenanceTask::Initialise);
        }
        let Some(mut sync) = reading.sync else {
            let ReadRequest::Rows(ids) = &reading.what else {
                return;
            };
            self.counters.rows_read += u64::try_from(ids.len()).unwrap_or(u64::MAX);
            let absent = ids.iter().filter(|id| !seen.contains(id)).copied();
            self.gone(absent.collect(), reading.began, now);
            return;
        };
        sync.watermark = sync.watermark.or(found.watermark);
        sync.empty &= empty;
        sync.changed.extend(changed);
        let absent = match (&reading.what, found.more_after) {
            (ReadRequest::Since(_), None) => found.gone.difference(&seen).copied().collect(),
            (ReadRequest::Since(_), Some(_)) => Vec::new(), // too much has changed: all is read
            (_, None) => self.schedule.unseen_since(sync.began),
            (_, Some(last)) => {
                sync.after = Some(last);
                self.syncing = Some(sync);
                return;
            }
        };
        let gone = self.gone(absent, reading.began, now);
        sync.changed.extend(gone);
        // A TRUNCATE is never told, so an empty table proves nothing against Realtime.
        if !sync.called_for && !sync.empty {
            self.repairs(&sync.changed, &sync.told, now);
        }
        self.go_on_from(&reading.what, sync.watermark, now);
        self.synced(&sync, now);
        if found.truncated || found.more_after.is_some() {
            self.sync_now(now);
        }
    }

    /// Rows that a read which began then did not find; those that were known.
    fn gone(&mut self, ids: Vec<Uuid>, began: ReadSequence, now: Mono) -> Vec<Uuid> {
        let db_now = self.clock.at(now);
        let mut removed = Vec::new();
        for id in ids {
            let applied = db_now.map(|db_now| self.schedule.apply(id, None, began, db_now));
            if applied == Some(Applied::Removed) {
                self.counters.refused.deleted += u64::from(self.refused.contains_key(&id));
                self.forget(id, now);
                removed.push(id);
            }
        }
        removed
    }

    /// Why a row was left out of a batch, now that it was read since.
    fn count_refusal(&mut self, id: Uuid, db_now: DbTime) {
        let Some(version) = self.refused.get(&id).copied() else {
            return;
        };
        if self.schedule.is_doubtful(id) {
            return;
        }
        self.refused.remove(&id);
        let status = self.schedule.look(id, db_now).map(|look| look.status);
        let refused = &mut self.counters.refused;
        let reason = if self.schedule.control().paused || status == Some(Status::Paused) {
            &mut refused.paused
        } else if self.schedule.version(id) != Some(version) {
            &mut refused.changed
        } else if self.schedule.is_held(id) {
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
                for echo_check in self.echo_check.both_mut() {
                    echo_check.repaired(id, now);
                }
            }
        }
    }

    /// Where the next sync goes on; a horizon that went back is another database's.
    fn go_on_from(&mut self, what: &ReadRequest, watermark: Option<XidWatermark>, now: Mono) {
        let went_back =
            matches!(what, ReadRequest::Since(before) if watermark.is_none_or(|at| at < *before));
        self.watermark = watermark.filter(|_| !went_back);
        if !matches!(what, ReadRequest::Since(_)) {
            self.counters.full_syncs += 1;
            self.next_full_sync = now.plus(SYNC_FULL_EVERY);
        }
    }

    fn synced(&mut self, sync: &Sync, now: Mono) {
        self.counters.syncs += 1;
        self.task(MaintenanceTask::Published); // nobody tells that the publication, or what broadcasts, is another
        let first = self.health.synced_at.is_none();
        let live = self.health.live_since.is_some();
        let answered = sync.began > self.sync_since;
        if answered {
            self.next_sync = now.plus(if live { SYNC_EVERY } else { SYNC_EVERY_BLIND });
        }
        self.called_for_while_reading_all = !answered && sync.is_full;
        self.health.caught_up = live && answered;
        self.health.synced_at = Some(now);
        if first {
            self.tell(Notice::Synced(self.schedule.len()));
            self.reconciliation.begin(now);
            self.next_beat = now; // the others are to know that it serves from now on
        }
    }
}
