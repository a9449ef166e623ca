//! The state of the agent: published by the main loop once a second, read by web endpoints, metrics and heartbeat.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::realtime_state::TransportState;
use crate::domain::agent::{Counters, Health};
use crate::domain::error_policy::ErrorKind;
use crate::domain::schedule::{Status, StatusSummary};
use crate::domain::time::{DbTime, Mono};
use crate::domain::transport::PerTransport;
use crate::postgres::maintenance::SelfReport;

/// The state at one moment.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Snapshot {
    /// When it was taken.
    pub at: Option<Mono>,
    /// … by the database's clock, once that is known.
    pub db_time: Option<DbTime>,
    /// When the agent last made progress: [`Self::at`], unless something is stuck (see [`super::watchdog`]).
    pub progressed_at: Option<Mono>,
    /// Counters since the start.
    pub counters: Counters,
    /// Whether the agent does its work.
    pub health: Health,
    /// Whether the control row pauses everything.
    pub paused: bool,
    /// `live`, or why not, in words.
    pub realtime: String,
    /// The state of each transport that is followed.
    pub transports: PerTransport<Option<TransportState>>,
    /// Failures by kind, each of which led to another attempt.
    pub error_kinds: BTreeMap<ErrorKind, u64>,
    /// Live agents, this one included.
    pub agents: usize,
    /// Rows known.
    pub rows: usize,
    /// Rows that this agent owns.
    pub rows_owned: usize,
    /// Their statuses, as of the last round over all of them.
    pub status_summary: Arc<StatusSummary>,
}

/// How long Realtime or the database may be unavailable, or a sync missing, before the agent is not ready.
pub const READY_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);
/// A sync comes every 30 s at the latest; three that failed are too many.
const SYNC_WITHIN: std::time::Duration = std::time::Duration::from_secs(90);

impl Snapshot {
    /// What the heartbeat says of the agent.
    pub fn report(&self) -> SelfReport {
        SelfReport {
            realtime: self.realtime.clone(),
            rows: whole(self.rows),
            rows_owned: whole(self.rows_owned),
        }
    }

    /// How many rows have this status.
    pub fn rows_that_are(&self, status: Status) -> usize {
        self.status_summary
            .by_status
            .get(&status)
            .copied()
            .unwrap_or(0)
    }

    /// Why the agent is not ready, in words; empty when it is.
    pub fn unready(&self, now: Mono) -> Vec<String> {
        let mut reasons = Vec::new();
        let too_long = |since: Mono| now.since(since) > READY_WITHIN;
        match self.health.synced_at {
            None => reasons.push("no full sync yet".to_owned()),
            Some(at) if now.since(at) > SYNC_WITHIN => {
                reasons.push(format!(
                    "the last sync was {} s ago",
                    now.since(at).as_secs()
                ));
            }
            Some(_) => {}
        }
        if self.health.synced_at.is_some() && !self.health.control_known {
            reasons.push("visit_pacer_control has not been read yet".to_owned());
        }
        if let Some(since) = self.health.database_away_since
            && (too_long(since) || !self.health.has_begun())
        {
            reasons.push(format!(
                "the database has been unavailable for {} s",
                now.since(since).as_secs()
            ));
        }
        match (self.health.live_since, self.health.down_since) {
            (Some(since), _) if !self.health.caught_up && too_long(since) => {
                reasons.push("no full sync yet since Realtime is live".to_owned());
            }
            (None, Some(since))
                if too_long(since)
                    || self.health.live_since.is_none() && self.counters.reads.syncs == 0 =>
            {
                reasons.push(format!("Realtime is not live: {}", self.realtime));
            }
            (None, Some(_) | None) | (Some(_), _) => {}
        }
        reasons
    }
}

pub(super) fn whole(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}
