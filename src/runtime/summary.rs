//! The line a minute that sums up: what was stored, which rows are not on pace and why, how late, and who is there.

use std::time::Duration;

use tracing::info;

use super::snapshot::Snapshot;
use crate::domain::agent::Counters;
use crate::domain::schedule::{Stall, Status};
use crate::domain::time::Mono;
use crate::observe::Metrics;
use crate::observe::histogram::Counts;

/// How often the log sums up.
const EVERY: Duration = Duration::from_secs(60);

/// What the last line went up to.
#[derive(Debug)]
pub struct Summary {
    next: Mono,
    counters: Counters,
    lateness: Option<Counts>,
}

impl Summary {
    /// The first line comes after a minute.
    pub fn new(now: Mono) -> Self {
        Self {
            next: now.plus(EVERY),
            counters: Counters::default(),
            lateness: None,
        }
    }

    /// Sums up if a minute has passed.
    pub fn of_the_minute(&mut self, snapshot: &Snapshot, metrics: &Metrics, now: Mono) {
        if now < self.next {
            return;
        }
        self.next = now.plus(EVERY);
        let lateness = metrics.lateness();
        let of_the_minute = self
            .lateness
            .as_ref()
            .map_or_else(|| lateness.clone(), |before| lateness.since(before));
        let milliseconds = |part| {
            let seconds: Option<f64> = of_the_minute.quantile(part);
            seconds.map(|seconds| (seconds * 1000.0).round())
        };
        info!(
            visits = snapshot.counters.visits - self.counters.visits,
            rows = snapshot.rows_owned,
            on_pace = snapshot.rows_that_are(Status::Active),
            behind = snapshot.rows_that_are(Status::Behind),
            invalid = snapshot.rows_that_are(Status::Invalid),
            backlog = snapshot.status_summary.backlog,
            late_p50_ms = milliseconds(0.5),
            late_p99_ms = milliseconds(0.99),
            agents = snapshot.agents,
            realtime = %snapshot.realtime,
            "the last minute{}",
            stalled(snapshot)
        );
        self.counters = snapshot.counters;
        self.lateness = Some(lateness);
    }
}

/// What keeps rows behind, in words; nothing where none is.
fn stalled(snapshot: &Snapshot) -> String {
    let each: Vec<String> = snapshot
        .status_summary
        .stalled
        .iter()
        .map(|(stall, rows)| format!("{rows} because {}", in_short(*stall)))
        .collect();
    if each.is_empty() {
        return String::new();
    }
    format!("; rows kept behind: {}", each.join("; "))
}

/// What keeps a row, and what to do about it; the page says it at length.
fn in_short(stall: Stall) -> &'static str {
    match stall {
        Stall::Locked => "somebody holds the row or its partner: end that transaction",
        Stall::Bucket => "it catches up no faster than catch_up allows: wait, or raise catch_up",
        Stall::AgentBound => {
            "all rows together reach the agent's bound: raise --max-visits-per-second"
        }
        Stall::Database => "the database does not take its visits: see the warnings above",
    }
}
