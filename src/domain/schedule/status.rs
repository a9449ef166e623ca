//! A row's state as people see it: the same rules as the view `visit_distribution_status` of the migrations.

use uuid::Uuid;

use super::{Control, ScheduledDistribution, Stall};
use crate::domain::distribution::{Distribution, Period, Unpaced};
use crate::domain::partner::PartnerId;
use crate::domain::time::DbTime;

/// A slope of so many curve units per microsecond is a billionth of a visit a second.
const NANO_PER_SECOND: i128 = 86_400;
const NANO: i128 = 1_000_000_000;

/// A row is behind when it is so for this long, in microseconds.
const BEHIND_US: i64 = 3_000_000;

/// A row's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DistributionStatus {
    /// The row.
    pub id: Uuid,
    /// Its partner; `None` for a row that is not paced: bad, or not anchored yet.
    pub partner_id: Option<PartnerId>,
    /// See [`Status`].
    pub status: Status,
    /// Why it is invalid.
    pub reason: Option<String>,
    /// Why it does not get what is due, while it is behind or draining.
    pub stall: Option<Stall>,
    /// `total_visits`
    pub total: i64,
    /// Visits that should exist now.
    pub due: i64,
    /// Visits that do, or did.
    pub distributed: i64,
    /// What the row itself says, as last read or written.
    pub written: Option<i64>,
    /// What it asks for; `None` for a row that is not paced.
    pub pace: Option<DistributionTerms>,
}

/// What a row asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DistributionTerms {
    /// Curve units per microsecond, while it is active.
    pub slope: i128,
    /// `time_period`
    pub period: Period,
    /// `start_time`
    pub start: Option<DbTime>,
    /// `end_time`
    pub end: Option<DbTime>,
    /// `is_active`
    pub active: bool,
    /// When its last visit is due, if it goes on as it is.
    pub completes_at: Option<DbTime>,
}

impl DistributionStatus {
    /// Visits that it is due and does not have.
    pub fn backlog(&self) -> i64 {
        self.due.saturating_sub(self.distributed).max(0)
    }

    /// Whether somebody should look at it first.
    pub fn is_off_pace(&self) -> bool {
        let odd = matches!(
            self.status,
            Status::Behind | Status::Draining | Status::Invalid
        );
        odd || self.stall.is_some()
    }
}

impl DistributionTerms {
    fn of(row: &Distribution) -> Self {
        Self {
            slope: row.slope,
            period: row.period,
            start: row.start,
            end: row.curve.to,
            active: row.active,
            completes_at: row
                .curve
                .due_at(row.curve.total)
                .filter(|at| at.as_micros() != i64::MIN),
        }
    }

    /// `visits_per_unit`, exactly.
    pub fn visits_per_unit(&self) -> String {
        let nano = self.slope / (86_400 / self.period.seconds());
        let (whole, rest) = (nano / NANO, nano % NANO);
        let decimals = format!("{whole}.{rest:09}");
        let short = decimals.trim_end_matches('0').trim_end_matches('.');
        short.to_owned()
    }

    /// `time_period`
    pub fn time_period(&self) -> &'static str {
        self.period.as_str()
    }
}

/// See the section of the same name in the README.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Status {
    /// Starts later, or never.
    Scheduled,
    /// On its curve.
    Active,
    /// More than a second's worth and one visit behind its curve, for over three seconds.
    Behind,
    /// `is_active` is false or null.
    Paused,
    /// Its window is over; what was due in it is still being stored.
    Draining,
    /// At its total.
    Completed,
    /// Its window is over, short of the total.
    Ended,
    /// It cannot be paced, or its inserts fail.
    Invalid,
}

impl Status {
    /// All that there are.
    pub const ALL: [Self; 8] = [
        Self::Scheduled,
        Self::Active,
        Self::Behind,
        Self::Paused,
        Self::Draining,
        Self::Completed,
        Self::Ended,
        Self::Invalid,
    ];

    /// As the view `visit_distribution_status` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Active => "active",
            Self::Behind => "behind",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Completed => "completed",
            Self::Ended => "ended",
            Self::Invalid => "invalid",
        }
    }
}

impl ScheduledDistribution {
    pub(super) fn look(&self, id: Uuid, control: &Control, now: DbTime) -> DistributionStatus {
        let look = DistributionStatus {
            id,
            partner_id: None,
            status: Status::Scheduled,
            reason: None,
            stall: None,
            total: 0,
            due: 0,
            distributed: self.progress.distributed,
            written: self.written,
            pace: None,
        };
        match &self.parsed {
            Ok(row) => {
                let status = self.status(row, control, now);
                DistributionStatus {
                    partner_id: Some(row.partner_id.clone()),
                    status,
                    reason: self.progress.invalid.clone(),
                    stall: self
                        .stall()
                        .filter(|_| matches!(status, Status::Behind | Status::Draining)),
                    total: row.curve.total,
                    due: row.curve.due(now),
                    pace: Some(DistributionTerms::of(row)),
                    ..look
                }
            }
            Err(Unpaced::NotAnchored) => look,
            Err(Unpaced::Invalid(why)) => DistributionStatus {
                status: Status::Invalid,
                reason: Some(why.clone()),
                ..look
            },
        }
    }

    /// A row that somebody holds is held also while it is tried again.
    fn stall(&self) -> Option<Stall> {
        let held = (self.locked_tries > 0).then_some(Stall::Locked);
        held.or(self.stall)
    }

    fn status(&self, row: &Distribution, control: &Control, now: DbTime) -> Status {
        let curve = &row.curve;
        let done = self.progress.distributed;
        let over = curve.to.is_some_and(|to| to <= now);
        let given_up = row.given_up(control.give_up_after_us, now);
        // In whole visits: as a backlog is whole, a fraction of a visit a second makes no difference.
        let one_second = i64::try_from(row.slope / NANO_PER_SECOND / NANO).unwrap_or(i64::MAX);
        if self.progress.invalid.is_some() {
            Status::Invalid
        } else if done >= curve.total {
            Status::Completed
        } else if given_up || (over && curve.due(now) <= done) {
            Status::Ended
        } else if !row.active {
            Status::Paused
        } else if over {
            Status::Draining
        } else if curve.from.is_none_or(|from| from > now) {
            Status::Scheduled
        } else if curve.due(now.plus_micros(-BEHIND_US)) - done > one_second.saturating_add(1) {
            Status::Behind
        } else {
            Status::Active
        }
    }
}
