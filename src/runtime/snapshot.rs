//! What the agent shows of itself: published by the loop once a second, read by the web endpoints and the keeper. How it
//! becomes metrics is in `readings`.

use std::collections::BTreeMap;
use std::sync::Arc;

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
    /// When the agent last got on with its work: [`Self::at`], unless something hangs (see [`super::progress`]).
    pub progressed_at: Option<Mono>,
    /// Counters since the start.
    pub counters: Counters,
    /// Whether the agent does its work.
    pub health: Health,
    /// Whether the control row stops everything.
    pub paused: bool,
    /// `live`, or why not, in words.
    pub realtime: String,
    /// How each way stands that is followed.
    pub transports: PerTransport<Option<WayState>>,
    /// Troubles that were met, each of which led to another attempt.
    pub error_kinds: BTreeMap<ErrorKind, u64>,
    /// Agents that share the rows, this one among them.
    pub agents: usize,
    /// Rows known.
    pub rows: usize,
    /// … those that are this agent's to store; what follows is of these.
    pub rows_owned: usize,
    /// How they stood when all of them were last looked at.
    pub status_summary: Arc<StatusSummary>,
}

/// How one way of listening stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WayState {
    /// `live`, or why not.
    pub words: String,
    /// Whether it is live.
    pub live: bool,
    /// Since when it is so.
    pub since: Mono,
}

/// How long Realtime or the database may be away, and a sync may be past, before the agent is not ready.
pub const READY_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);
/// A full sync comes every 30 s at the latest; three that failed are too many.
const SYNC_WITHIN: std::time::Duration = std::time::Duration::from_secs(90);

impl Snapshot {
    /// What the agent says of itself to the others.
    pub fn report(&self) -> SelfReport {
        SelfReport {
            realtime: self.realtime.clone(),
            rows: whole(self.rows),
            rows_owned: whole(self.rows_owned),
        }
    }

    /// Rows of this status.
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
                    "the last full sync was {} s ago",
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
                "the database has been away for {} s",
                now.since(since).as_secs()
            ));
        }
        match (self.health.live_since, self.health.down_since) {
            (Some(since), _) if !self.health.caught_up && too_long(since) => {
                reasons.push("no full sync since Realtime is live".to_owned());
            }
            (None, Some(since))
                if too_long(since)
                    || self.health.live_since.is_none() && self.counters.syncs == 0 =>
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
