//! One distribution as the dashboard's JSON has it.
//!
//! Owns field names and units: times are RFC 3339 in UTC, rates are visits per second, durations are seconds, and what is not
//! known is null.

use std::borrow::Cow;

use serde::Serialize;
use uuid::Uuid;

use super::super::status_reason;
use crate::domain::partner::PartnerId;
use crate::domain::schedule::{DistributionStatus, DistributionTerms};
use crate::domain::time::DbTime;
use crate::postgres::status::StatusRow;

const NANO_PER_SECOND: f64 = 86_400e9;

/// One distribution.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct DistributionView {
    /// What only edits change.
    #[serde(flatten)]
    pub config: ConfigView,
    /// What changes by itself.
    #[serde(flatten)]
    pub state: StateView,
}

/// See [`DistributionView`].
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ConfigView {
    /// `id`
    pub id: Uuid,
    /// `partner_id`
    pub partner_id: Option<PartnerId>,
    /// The partner's name, if the table has one.
    pub partner: Option<String>,
    /// The rate that is asked for.
    pub target_per_second: Option<f64>,
    /// `visits_per_unit`, exactly.
    pub visits_per_unit: Option<String>,
    /// `time_period`
    pub time_period: Option<String>,
    /// `total_visits`
    pub total_visits: i64,
    /// `start_time`
    pub start_time: Option<DbTime>,
    /// `end_time`
    pub end_time: Option<DbTime>,
    /// When its last visit is due, unless it is edited.
    pub completes_at: Option<DbTime>,
    /// `is_active`
    pub is_active: bool,
    /// The agent that owns it, if that is this one.
    pub agent: Option<String>,
}

/// See [`DistributionView`].
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct StateView {
    /// As in `visit_distribution_status`.
    pub status: Cow<'static, str>,
    /// Why it makes no progress, and what to do.
    pub reason: Option<String>,
    /// The rate of the stored visits.
    pub actual_per_second: Option<f64>,
    /// Visits that should exist now.
    pub due: i64,
    /// Visits that were stored.
    pub distributed: i64,
    /// Due and not stored.
    pub backlog: i64,
}

impl ConfigView {
    /// Of a distribution that this agent owns.
    pub fn new(status: &DistributionStatus, partner: Option<String>, agent: String) -> Self {
        let terms = status.pace.as_ref();
        Self {
            id: status.id,
            partner_id: status.partner_id.clone(),
            partner,
            target_per_second: terms.map(|terms| float(terms.slope) / NANO_PER_SECOND),
            visits_per_unit: terms.map(DistributionTerms::visits_per_unit),
            time_period: terms.map(|terms| terms.time_period().to_owned()),
            total_visits: status.total,
            start_time: terms.and_then(|terms| terms.start),
            end_time: terms.and_then(|terms| terms.end),
            completes_at: terms.and_then(|terms| terms.completes_at),
            is_active: terms.is_some_and(|terms| terms.active),
            agent: Some(agent),
        }
    }
}

impl StateView {
    /// Of a distribution that this agent owns.
    pub fn new(status: &DistributionStatus, all_paused: bool, actual: Option<f64>) -> Self {
        Self {
            status: status.status.as_str().into(),
            reason: status_reason::reason(status, all_paused),
            actual_per_second: actual.map(rounded),
            due: status.due,
            distributed: status.distributed,
            backlog: status.backlog(),
        }
    }
}

/// As the database has it: of another agent's distribution, or of an invalid one.
impl From<&StatusRow> for DistributionView {
    fn from(row: &StatusRow) -> Self {
        let config = ConfigView {
            id: row.id,
            partner_id: row.partner_id.clone(),
            partner: row.partner.clone(),
            target_per_second: row.asked,
            visits_per_unit: row.visits_per_unit.clone(),
            time_period: row.time_period.clone(),
            total_visits: row.total_visits.unwrap_or(0),
            start_time: row.start_time,
            end_time: row.end_time,
            completes_at: row.completes_at,
            is_active: row.is_active,
            agent: None,
        };
        let state = StateView {
            status: row.status.clone().into(),
            reason: status_reason::of_view(
                &row.status,
                row.reason_code.as_deref(),
                row.reason.as_deref(),
            ),
            actual_per_second: None,
            due: row.due.unwrap_or(0),
            distributed: row.distributed.unwrap_or(0),
            backlog: row.backlog.unwrap_or(0),
        };
        Self { config, state }
    }
}

/// The part of a distribution that changed.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum ViewChange<'a> {
    /// All of it.
    Whole(&'a DistributionView),
    /// The rest is as it was.
    State {
        /// `id`
        id: Uuid,
        /// See [`StateView`].
        #[serde(flatten)]
        state: &'a StateView,
    },
}

impl<'a> ViewChange<'a> {
    /// `None` if nothing changed.
    pub fn between(before: Option<&DistributionView>, now: &'a DistributionView) -> Option<Self> {
        match before {
            Some(before) if before == now => None,
            Some(before) if before.config == now.config => Some(Self::State {
                id: now.config.id,
                state: &now.state,
            }),
            Some(_) | None => Some(Self::Whole(now)),
        }
    }
}

/// To three digits, so that noise in the fourth is no change.
fn rounded(per_second: f64) -> f64 {
    if per_second <= 0.0 {
        return 0.0;
    }
    let scale = 10_f64.powf(2.0 - per_second.log10().floor());
    (per_second * scale).round() / scale
}

/// Exact enough to be shown.
fn float(number: i128) -> f64 {
    number.to_string().parse().unwrap_or(f64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_rounded_to_three_digits() {
        for (rate, expected) in [
            (0.0, "0"),
            (-1.0, "0"),
            (0.123_46, "0.123"),
            (9.999, "10"),
            (33.33, "33.3"),
            (1_234.5, "1230"),
        ] {
            assert_eq!(rounded(rate).to_string(), expected);
        }
    }
}
