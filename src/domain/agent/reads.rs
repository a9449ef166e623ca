//! Reads: distributions that changed, and syncs, incremental or full, in one part or several.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::turn::{Effect, Turn};
use super::worker::Worker;
use super::{MaintenanceTask, ReadCounters, ReadRequest, ReadResult, XidWatermark};
use crate::domain::error_policy::Failure;
use crate::domain::event::Event;
use crate::domain::limits::{ROWS_PER_READ, SYNC_EVERY, SYNC_EVERY_BLIND, SYNC_FULL_EVERY};
use crate::domain::schedule::{Applied, ReadSequence, Schedule};
use crate::domain::time::Mono;

/// See the module.
#[derive(Debug)]
pub(super) struct Reads {
    worker: Worker<ReadJob>,
    /// To be read by id, at `wanted_at`.
    wanted: BTreeSet<Uuid>,
    wanted_at: Option<Mono>,
    /// A sync of which parts are still to be read.
    unfinished: Option<Sync>,
    /// Changed rows were read last: the next part of the sync comes before more of them.
    sync_has_turn: bool,
    next_sync: Mono,
    /// Where the next sync continues; `None`: it reads every row.
    watermark: Option<XidWatermark>,
    next_full_sync: Mono,
    /// The last request for a sync. A sync that began before it does not answer it.
    requested_at: ReadSequence,
    is_requested: bool,
    /// … while every row was being read.
    requested_during_full_sync: bool,
    realtime_is_live: bool,
    caught_up: bool,
    synced_at: Option<Mono>,
    counters: ReadCounters,
}

#[derive(Debug)]
struct ReadJob {
    request: ReadRequest,
    began: ReadSequence,
    /// The sync that it is a part of.
    sync: Option<Sync>,
}

#[derive(Debug)]
struct Sync {
    began: ReadSequence,
    /// Rows to be read by id that a full sync reads with the others. Their changes are not missed ones.
    wanted: BTreeSet<Uuid>,
    is_full: bool,
    /// Changes may have been missed before it, so it may find some.
    was_requested: bool,
    /// Where the next one continues.
    watermark: Option<XidWatermark>,
    is_empty: bool,
    /// Rows that the schedule did not know as they are.
    changed: Vec<Uuid>,
    /// The next part begins after this row.
    after: Option<Uuid>,
}

impl Reads {
    pub(super) fn new(now: Mono) -> Self {
        Self {
            worker: Worker::new("reader", now),
            wanted: BTreeSet::new(),
            wanted_at: None,
            unfinished: None,
            sync_has_turn: false,
            next_sync: now,
            watermark: None,
            next_full_sync: now,
            requested_at: ReadSequence::default(),
            is_requested: false,
            requested_during_full_sync: false,
            realtime_is_live: false,
            caught_up: false,
            synced_at: None,
            counters: ReadCounters::default(),
        }
    }

    pub(super) fn is_away(&self) -> bool {
        self.worker.is_away()
    }

    pub(super) fn in_hand(&self) -> Option<(&'static str, Mono)> {
        self.worker.in_hand()
    }

    pub(super) fn counters(&self) -> ReadCounters {
        self.counters
    }

    pub(super) fn synced_at(&self) -> Option<Mono> {
        self.synced_at
    }

    pub(super) fn caught_up(&self) -> bool {
        self.caught_up
    }

    pub(super) fn deadline(&self) -> Option<(Mono, &'static str)> {
        let sync = (self.next_sync, "sync");
        let wanted = self.wanted_at.map(|at| (at, "read of changed rows"));
        let (at, why) = wanted.map_or(sync, |wanted| wanted.min(sync));
        Some((self.worker.when_free(at)?, why))
    }

    pub(super) fn subscribed(&mut self, schedule: &Schedule, now: Mono) {
        self.realtime_is_live = true;
        self.caught_up = false;
        self.request_sync(schedule, now);
    }

    pub(super) fn unsubscribed(&mut self, now: Mono) {
        self.realtime_is_live = false;
        self.caught_up = false;
        self.next_sync = self.next_sync.min(now.plus(SYNC_EVERY_BLIND));
    }

    pub(super) fn request_sync(&mut self, schedule: &Schedule, now: Mono) {
        self.next_sync = now;
        self.requested_at = schedule.sequence();
        self.is_requested = true;
    }

    pub(super) fn want(&mut self, ids: impl IntoIterator<Item = Uuid>, by: Mono) {
        self.wanted.extend(ids);
        if !self.wanted.is_empty() {
            self.wanted_at = Some(self.wanted_at.map_or(by, |at| at.min(by)));
        }
    }

    pub(super) fn next_job(&mut self, schedule: &mut Schedule, now: Mono) -> Option<ReadRequest> {
        if !self.worker.is_free(now) {
            return None;
        }
        let changed = self.wanted_at.is_some_and(|at| at <= now);
        let sync_has_turn = std::mem::take(&mut self.sync_has_turn);
        let job = if let Some(sync) = self.unfinished.take_if(|_| sync_has_turn || !changed) {
            ReadJob {
                request: sync.after.map_or(ReadRequest::All, ReadRequest::After),
                // All parts are as old as the first: rows that were read by id meanwhile are newer.
                began: sync.began,
                sync: Some(sync),
            }
        } else if self.unfinished.is_none() && self.next_sync <= now {
            self.begin_sync(schedule.next_sequence(), now)
        } else if changed {
            self.sync_has_turn = true;
            let ids: Vec<Uuid> = self.wanted.iter().take(ROWS_PER_READ).copied().collect();
            for id in &ids {
                self.wanted.remove(id);
            }
            self.wanted_at = (!self.wanted.is_empty()).then_some(now);
            ReadJob {
                request: ReadRequest::Rows(ids),
                began: schedule.next_sequence(),
                sync: None,
            }
        } else {
            return None;
        };
        let request = job.request.clone();
        self.worker.start(job, now);
        Some(request)
    }

    fn begin_sync(&mut self, began: ReadSequence, now: Mono) -> ReadJob {
        let was_requested = std::mem::take(&mut self.is_requested);
        // A missed change may be a deletion, which only a full sync finds. A request during a full sync needs no other one:
        // that sync, and the changes since it began, answer for it.
        let after_full_sync = std::mem::take(&mut self.requested_during_full_sync);
        let may_continue = now < self.next_full_sync && (after_full_sync || !was_requested);
        let since = self.watermark.filter(|_| may_continue);
        let wanted = if since.is_none() {
            self.wanted_at = None;
            std::mem::take(&mut self.wanted)
        } else {
            BTreeSet::new()
        };
        let sync = Sync {
            began,
            wanted,
            is_full: since.is_none(),
            was_requested,
            watermark: None,
            is_empty: true,
            changed: Vec::new(),
            after: None,
        };
        ReadJob {
            request: since.map_or(ReadRequest::All, ReadRequest::Since),
            began,
            sync: Some(sync),
        }
    }

    pub(super) fn answer(
        &mut self,
        answer: Result<ReadResult, Failure>,
        schedule: &mut Schedule,
        turn: &mut Turn,
    ) {
        let Some(job) = self.worker.finish() else {
            return;
        };
        match answer {
            Ok(result) => {
                self.worker.succeed();
                self.apply(job, result, schedule, turn);
            }
            Err(failure) => {
                turn.fail(&mut self.worker, &failure);
                if let Some(sync) = job.sync {
                    self.wanted.extend(sync.wanted);
                    self.is_requested |= sync.was_requested;
                    self.next_sync = turn.now;
                    self.watermark = None; // another database may answer next
                }
                if let ReadRequest::Rows(ids) = job.request {
                    self.want(ids, turn.now);
                }
            }
        }
    }

    fn apply(
        &mut self,
        job: ReadJob,
        result: ReadResult,
        schedule: &mut Schedule,
        turn: &mut Turn,
    ) {
        let Some(db_now) = turn.db_now else {
            return;
        };
        let is_empty = result.rows.is_empty();
        let (mut found, mut changed) = (Vec::new(), Vec::new());
        let mut unanchored = false;
        for row in result.rows {
            let id = row.row.id;
            unanchored |= row.row.config_version.is_none() || row.progress.is_none();
            found.push(id);
            let applied = schedule.apply(id, Some(row), job.began, db_now);
            if applied != Applied::Nothing && self.synced_at.is_some() {
                changed.push(id);
                turn.emit(Event {
                    config_version: schedule.version(id),
                    ..Event::SCHEDULE_UPDATED.of(id)
                });
            }
        }
        let found_ids = match &job.request {
            ReadRequest::All | ReadRequest::After(_) => BTreeSet::new(), // nobody asks for them
            ReadRequest::Since(_) | ReadRequest::Rows(_) => found.iter().copied().collect(),
        };
        turn.effect(Effect::Applied(found));
        if unanchored {
            turn.effect(Effect::Task(MaintenanceTask::Initialise));
        }
        let Some(mut sync) = job.sync else {
            if let ReadRequest::Rows(ids) = &job.request {
                self.counters.rows_read += u64::try_from(ids.len()).unwrap_or(u64::MAX);
                let absent = ids.iter().filter(|id| !found_ids.contains(id));
                remove(absent.copied().collect(), job.began, schedule, turn);
            }
            return;
        };
        sync.watermark = sync.watermark.or(result.watermark);
        sync.is_empty &= is_empty;
        sync.changed.extend(changed);
        let absent = match (&job.request, result.more_after) {
            (ReadRequest::Since(_), None) => {
                result.deletions.difference(&found_ids).copied().collect()
            }
            (ReadRequest::Since(_), Some(_)) => Vec::new(), // too much has changed: a full sync follows
            (_, None) => schedule.unseen_since(sync.began),
            (_, Some(last)) => {
                sync.after = Some(last);
                self.unfinished = Some(sync);
                return;
            }
        };
        sync.changed
            .extend(remove(absent, job.began, schedule, turn));
        self.ended(&sync, &job.request, schedule.len(), turn);
        if result.truncated || result.more_after.is_some() {
            self.request_sync(schedule, turn.now);
        }
    }

    /// All parts of a sync have been read.
    fn ended(&mut self, sync: &Sync, request: &ReadRequest, rows: usize, turn: &mut Turn) {
        // A TRUNCATE causes no event, so an empty table proves nothing about Realtime.
        if !sync.was_requested && !sync.is_empty && self.synced_at.is_some() {
            self.report_missed(sync, turn);
        }
        // A watermark that went back is another database's.
        let went_back = matches!(request, ReadRequest::Since(before) if sync.watermark.is_none_or(|at| at < *before));
        self.watermark = sync.watermark.filter(|_| !went_back);
        self.counters.syncs += 1;
        if sync.is_full {
            self.counters.full_syncs += 1;
            self.next_full_sync = turn.now.plus(SYNC_FULL_EVERY);
        }
        let answers_request = sync.began > self.requested_at;
        if answers_request {
            let every = if self.realtime_is_live {
                SYNC_EVERY
            } else {
                SYNC_EVERY_BLIND
            };
            self.next_sync = turn.now.plus(every);
        }
        self.requested_during_full_sync = !answers_request && sync.is_full;
        self.caught_up = self.realtime_is_live && answers_request;
        let first = self.synced_at.replace(turn.now).is_none();
        if first {
            turn.emit(Event::SCHEDULE_LOADED.count(rows));
        }
        turn.effect(Effect::Synced { first });
    }

    /// Changes of which Realtime, if it was live, should have told.
    fn report_missed(&mut self, sync: &Sync, turn: &mut Turn) {
        let is_missed = |id: &&Uuid| !sync.wanted.contains(*id) && !self.wanted.contains(*id);
        let missed: Vec<Uuid> = sync.changed.iter().filter(is_missed).copied().collect();
        if missed.is_empty() {
            return;
        }
        self.counters.repaired += u64::try_from(missed.len()).unwrap_or(u64::MAX);
        turn.emit(Event::EDITS_FOUND_BY_SYNC.count(missed.len()));
        if self.caught_up {
            turn.effect(Effect::Missed(missed));
        }
    }
}

/// Removes rows that a read which began then did not find; returns those that were known.
fn remove(
    ids: Vec<Uuid>,
    began: ReadSequence,
    schedule: &mut Schedule,
    turn: &mut Turn,
) -> Vec<Uuid> {
    let Some(db_now) = turn.db_now else {
        return Vec::new();
    };
    let mut removed = Vec::new();
    for id in ids {
        if schedule.apply(id, None, began, db_now) == Applied::Removed {
            turn.effect(Effect::Deleted(id));
            removed.push(id);
        }
    }
    removed
}
