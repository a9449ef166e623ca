//! What the agent shows of itself: published by the loop once a second and at every change of state, read by the web
//! endpoints, the demo's screen and the keeper.

use std::collections::BTreeMap;

use crate::domain::agent::{Counters, Health};
use crate::domain::time::Mono;
use crate::domain::timetable::{Look, Stall, Status};
use crate::observe::Readings;
use crate::postgres::chores::SelfReport;

/// The state at one moment.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Snapshot {
    /// When it was taken.
    pub at: Option<Mono>,
    /// Counters since the start.
    pub counters: Counters,
    /// Whether the agent does its work.
    pub health: Health,
    /// Whether the control row stops everything.
    pub paused: bool,
    /// `live`, or why not, in words.
    pub realtime: String,
    /// Rows known.
    pub rows: usize,
    /// … those that are this agent's to store; what follows is of these.
    pub rows_owned: usize,
    /// Rows by status.
    pub by_status: Vec<(Status, usize)>,
    /// Rows that do not get what is due, by what keeps them.
    pub stalled: Vec<(&'static str, usize)>,
    /// Due and not distributed, all rows together.
    pub backlog: i64,
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

    /// Counts rows by status, and what they owe.
    pub fn count(&mut self, looks: &[Look]) {
        let (mut by_status, mut stalled) = (BTreeMap::new(), BTreeMap::new());
        for look in looks {
            *by_status.entry(look.status).or_insert(0) += 1;
            if let (Status::Behind | Status::Draining, Some(stall)) = (look.status, look.stall) {
                *stalled.entry(word(stall)).or_insert(0) += 1;
            }
        }
        self.stalled = stalled.into_iter().collect();
        self.by_status = by_status.into_iter().collect();
        self.backlog = looks
            .iter()
            .map(|look| (look.due - look.distributed).max(0))
            .sum();
    }

    /// For `/metrics`.
    pub fn readings(&self, now: Mono) -> Readings {
        Readings {
            counters: self.counter_readings(),
            gauges: self.gauge_readings(now),
            stalled: self
                .stalled
                .iter()
                .map(|(reason, rows)| (*reason, whole(*rows)))
                .collect(),
            by_status: self
                .by_status
                .iter()
                .map(|(status, rows)| (status.as_str(), whole(*rows)))
                .collect(),
        }
    }

    fn counter_readings(&self) -> Vec<(&'static str, &'static str, u64)> {
        let c = &self.counters;
        vec![
            ("visits_stored", "Visits stored by this agent", c.visits),
            ("batches", "Batches committed", c.batches),
            (
                "rows_refused",
                "Rows left out of a batch: held, edited, or moved by somebody else",
                c.refused,
            ),
            (
                "batches_unknown",
                "Batches whose answer was lost",
                c.unknown,
            ),
            (
                "batches_failed",
                "Batches that the database refused: data, locks, limits, a full disk",
                c.failed,
            ),
            (
                "syncs",
                "Syncs with visit_distribution: what had changed was read, or every row",
                c.syncs,
            ),
            ("full_syncs", "Syncs that read every row", c.full_syncs),
            ("rows_read", "Rows read by id", c.rows_read),
            ("realtime_events", "Events of visit_distribution", c.events),
            (
                "realtime_events_known",
                "Events that told nothing new",
                c.events_known,
            ),
            (
                "repaired_by_sync",
                "Edits of which Realtime had not told",
                c.repaired,
            ),
            (
                "realtime_silent",
                "Times that a joined channel was found to keep silent",
                c.silent,
            ),
            (
                "realtime_broadcasts",
                "Broadcasts of edited rows",
                c.broadcasts,
            ),
            (
                "realtime_broadcast_silent",
                "Times that the joined broadcast channel was found to keep silent",
                c.silent_broadcast,
            ),
            (
                "realtime_rejoins",
                "Times that a silent channel was joined again",
                c.rejoins,
            ),
            (
                "realtime_reopens",
                "Times that a channel which stayed silent was given a new socket",
                c.reopens,
            ),
            (
                "write_backs",
                "Rows whose total_distributed was written back",
                c.written_back,
            ),
        ]
    }

    fn gauge_readings(&self, now: Mono) -> Vec<(&'static str, &'static str, i64)> {
        let live = self.health.live_since.is_some();
        let up = self.health.database_away_since.is_none();
        let ready = self.unready(now).is_empty();
        vec![
            ("rows", "Rows in the schedule", whole(self.rows)),
            (
                "rows_owned",
                "Rows that are this agent's to store",
                whole(self.rows_owned),
            ),
            (
                "backlog_visits",
                "Visits due and not stored, all rows of this agent together",
                self.backlog,
            ),
            (
                "realtime_live",
                "1 while the Realtime subscription is live",
                i64::from(live),
            ),
            ("database_up", "1 while the database answers", i64::from(up)),
            (
                "paused",
                "1 while visit_pacer_control stops everything",
                i64::from(self.paused),
            ),
            ("ready", "1 while the agent is ready", i64::from(ready)),
        ]
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
        if let Some(since) = self.health.database_away_since
            && (too_long(since) || self.health.synced_at.is_none())
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

fn whole(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

fn word(stall: Stall) -> &'static str {
    match stall {
        Stall::Locked => "locked",
        Stall::Bucket => "bucket",
        Stall::AgentBound => "agent's bound",
        Stall::Database => "database",
    }
}
