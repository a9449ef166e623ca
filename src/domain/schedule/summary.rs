//! How all rows stand, for people and metrics: gathered a bounded number of rows at a time, so that no look at a large table
//! holds the loop up. Few rows are seen anew each second; a million in as many seconds as that takes.

use std::collections::BTreeMap;
use std::ops::Bound;

use uuid::Uuid;

use super::{DistributionStatus, Schedule, Stall, Status};
use crate::domain::limits::ROWS_PER_LOOK;
use crate::domain::time::DbTime;

/// All rows of this agent, as they stood within one round.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StatusSummary {
    /// Rows by status.
    pub by_status: BTreeMap<Status, usize>,
    /// Rows that do not get what is due, by what keeps them.
    pub stalled: BTreeMap<Stall, usize>,
    /// Due and not distributed, of all rows that may still get it.
    pub backlog: i64,
    /// Rows by id: all of them, or the first [`ROWS_PER_LOOK`] that are off their pace and then as many others as fit.
    pub looks: Vec<DistributionStatus>,
}

/// A round that is under way.
#[derive(Debug, Default)]
pub struct Round {
    after: Option<Uuid>,
    counted: StatusSummary,
    off_pace: Vec<DistributionStatus>,
}

impl Round {
    /// Goes on with the round by the next rows; the survey once it has come round.
    pub fn go_on(&mut self, schedule: &Schedule, now: DbTime) -> Option<StatusSummary> {
        let from = self.after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rows = schedule.entries.range((from, Bound::Unbounded));
        for (id, entry) in rows.by_ref().take(ROWS_PER_LOOK) {
            self.after = Some(*id);
            if entry.ours {
                self.count(entry.look(*id, &schedule.control, now));
            }
        }
        rows.next().is_none().then(|| std::mem::take(self).end())
    }

    fn count(&mut self, look: DistributionStatus) {
        let counted = &mut self.counted;
        *counted.by_status.entry(look.status).or_insert(0) += 1;
        if let Some(stall) = look.stall {
            *counted.stalled.entry(stall).or_insert(0) += 1;
        }
        if look.status != Status::Ended {
            counted.backlog += look.backlog(); // what was given up is owed no more
        }
        let of_its_kind = if look.is_off_pace() {
            &mut self.off_pace
        } else {
            &mut counted.looks
        };
        if of_its_kind.len() < ROWS_PER_LOOK {
            of_its_kind.push(look);
        }
    }

    fn end(self) -> StatusSummary {
        let mut status_summary = self.counted;
        let room = ROWS_PER_LOOK - self.off_pace.len();
        status_summary.looks.truncate(room);
        status_summary.looks.extend(self.off_pace);
        status_summary.looks.sort_unstable_by_key(|look| look.id);
        status_summary
    }
}
