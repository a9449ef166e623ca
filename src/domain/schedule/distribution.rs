//! One row of the timetable: what is known of it, what it waits for, and what it would store now.
//!
//! It takes over what reads find, in the order in which they began; when it is woken, and in which batch it goes, is the
//! timetable's to say.

use std::collections::BTreeSet;

use super::{Control, ReadSequence, RowRead, Stall};
use crate::domain::batch::Progress;
use crate::domain::bucket::BucketRule;
use crate::domain::distribution::{Distribution, Unpaced};
use crate::domain::time::DbTime;
use uuid::Uuid;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hold {
    Ready,
    /// In the batch that is being written.
    InFlight,
    /// Nothing is tried before a read that began after this moment has shown the truth.
    Doubtful(Doubt, ReadSequence),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Doubt {
    /// The database refused it; unless the read finds a reason, somebody holds it.
    Refused,
    /// The answer was lost, or it was refused since it was edited.
    Unknown,
}

#[derive(Debug)]
pub(super) struct ScheduledDistribution {
    pub(super) parsed: Result<Distribution, Unpaced>,
    pub(super) version: Option<i64>,
    pub(super) progress: Progress,
    pub(super) written: Option<i64>,
    pub(super) config_read: ReadSequence,
    pub(super) progress_read: ReadSequence,
    pub(super) hold: Hold,
    pub(super) wake: Option<DbTime>,
    /// When it may fire again after a fire that did not store all that was due.
    pub(super) not_before: Option<DbTime>,
    pub(super) locked_tries: u32,
    /// After a batch failed: how many rows its next one may have.
    pub(super) batch_limit: Option<usize>,
    pub(super) stall: Option<Stall>,
    pub(super) running: bool,
    /// It is this agent's to store.
    pub(super) ours: bool,
}

/// A row that fires.
pub(super) struct Fire {
    pub(super) id: Uuid,
    /// The instant of its grid that it fires for.
    pub(super) at: DbTime,
    /// Due and not distributed.
    pub(super) backlog: i64,
    /// … as much of it as its bucket holds.
    pub(super) wanted: i64,
    /// When visits were last taken from its bucket.
    pub(super) served_at: Option<DbTime>,
}

impl ScheduledDistribution {
    pub(super) fn unknown(ours: bool) -> Self {
        Self {
            parsed: Err(Unpaced::NotAnchored),
            version: None,
            progress: Progress::default(),
            written: None,
            config_read: ReadSequence::default(),
            progress_read: ReadSequence::default(),
            hold: Hold::Ready,
            wake: None,
            not_before: None,
            locked_tries: 0,
            batch_limit: None,
            stall: None,
            running: false,
            ours,
        }
    }

    /// Takes the configuration over that a read found, if it is new; says so. Not only the version is compared: where
    /// somebody has switched the triggers off, a row changes without it.
    pub(super) fn take_config(&mut self, read: &RowRead, began: ReadSequence) -> bool {
        if began <= self.config_read {
            return false;
        }
        let first = self.config_read == ReadSequence::default();
        self.config_read = began;
        let mut parsed = Distribution::parse(&read.row);
        if parsed.is_ok() && read.progress.is_none() {
            parsed = Err(Unpaced::NotAnchored);
        }
        if !first && parsed == self.parsed && read.row.config_version == self.version {
            return false;
        }
        self.parsed = parsed;
        self.version = read.row.config_version;
        self.batch_limit = None;
        self.not_before = None;
        self.stall = None;
        true
    }

    /// Takes the progress over that a read found, unless what is known is newer; says whether that was news. That an insert
    /// failed stays known until one succeeded or the row was edited, also where it is not yet kept in the database.
    pub(super) fn take_progress(
        &mut self,
        read: RowRead,
        began: ReadSequence,
        edited: bool,
    ) -> bool {
        if began <= self.progress_read || self.hold == Hold::InFlight {
            return false;
        }
        let mut progress = read.progress.unwrap_or_default();
        if !edited
            && progress.last_number == self.progress.last_number
            && progress.invalid.is_none()
        {
            progress.invalid.clone_from(&self.progress.invalid);
        }
        let moved = progress != self.progress;
        self.progress = progress;
        self.written = read.written;
        self.progress_read = began;
        moved
    }

    /// Ends a doubt, if this read began late enough to do so; says which.
    pub(super) fn settle(&mut self, began: ReadSequence) -> Option<Doubt> {
        match self.hold {
            Hold::Doubtful(doubt, since) if began > since => {
                self.hold = Hold::Ready;
                self.not_before = None;
                Some(doubt)
            }
            Hold::Ready | Hold::InFlight | Hold::Doubtful(..) => None,
        }
    }

    /// Nothing of it is tried before a read that began later. It is in the queue where it was deleted and inserted again while
    /// its batch was in flight.
    pub(super) fn doubt(
        &mut self,
        id: Uuid,
        doubt: Doubt,
        since: ReadSequence,
        queue: &mut BTreeSet<(DbTime, Uuid)>,
    ) {
        self.hold = Hold::Doubtful(doubt, since);
        self.set_wake(id, None, queue);
    }

    /// Moves it in the queue: the key under which it is there is its `wake`.
    pub(super) fn set_wake(
        &mut self,
        id: Uuid,
        wake: Option<DbTime>,
        queue: &mut BTreeSet<(DbTime, Uuid)>,
    ) {
        if let Some(before) = self.wake.take() {
            let was_queued = queue.remove(&(before, id));
            debug_assert!(was_queued, "a row with a wake is in the queue");
        }
        self.wake = wake;
        if let Some(at) = wake {
            debug_assert!(self.hold == Hold::Ready, "a row in the queue is ready");
            let is_new = queue.insert((at, id));
            debug_assert!(is_new, "a row without a wake is not in the queue");
        }
    }

    pub(super) fn runs(&self) -> bool {
        let unfinished =
            |row: &Distribution| row.active && self.progress.distributed < row.curve.total;
        self.ours && self.parsed.as_ref().is_ok_and(unfinished)
    }

    /// The row, while visits of it may be stored.
    pub(super) fn paced(&self, give_up_after_us: i64, now: DbTime) -> Option<&Distribution> {
        let row = self.parsed.as_ref().ok()?;
        (row.active && !row.given_up(give_up_after_us, now)).then_some(row)
    }

    /// What fires at the instant `at`; `None` if nothing is due.
    pub(super) fn fire(&self, id: Uuid, at: DbTime, control: &Control) -> Option<Fire> {
        let row = self.parsed.as_ref().ok()?;
        let bucket = &self.progress.bucket;
        let backlog = row.curve.due(at) - self.progress.distributed;
        (backlog > 0).then(|| Fire {
            id,
            at,
            backlog,
            wanted: backlog.min(bucket.holds(&self.rule(control), at)),
            served_at: bucket.at_column(),
        })
    }

    /// When the next visit is due; `None` if never, or if the time to catch up is over.
    pub(super) fn due_next(&self, give_up_after_us: i64, now: DbTime) -> Option<DbTime> {
        let row = self.paced(give_up_after_us, now)?;
        let from = row.curve.from?;
        let due = row.curve.due_at(self.progress.distributed + 1)?;
        Some(due.max(from)) // a backlog of an earlier window waits for the new one
    }

    /// How its bucket fills.
    pub(super) fn rule(&self, control: &Control) -> BucketRule {
        self.parsed.as_ref().map_or_else(
            |_| BucketRule::new(0, 1_000),
            |row| {
                let catch_up = row.catch_up_milli.unwrap_or(control.catch_up_milli);
                BucketRule::new(row.slope, catch_up)
            },
        )
    }
}
