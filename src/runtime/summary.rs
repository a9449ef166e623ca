//! One log line a minute: what was stored and with which delay, which distributions are not on their curve and why, and who
//! shares them.

use std::time::Duration;

use tracing::info;

use super::snapshot::Snapshot;
use crate::domain::agent::Counters;
use crate::domain::schedule::{Stall, Status};
use crate::domain::time::Mono;
use crate::observe::Metrics;
use crate::observe::histogram::HistogramCounts;

/// How often.
const EVERY: Duration = Duration::from_secs(60);

/// What the last line included.
#[derive(Debug)]
pub struct Summary {
    next: Mono,
    counters: Counters,
    delay: Option<HistogramCounts>,
}

impl Summary {
    /// The first line comes after a minute.
    pub fn new(now: Mono) -> Self {
        Self {
            next: now.plus(EVERY),
            counters: Counters::default(),
            delay: None,
        }
    }

    /// Sums up if a minute has passed.
    pub fn log(&mut self, snapshot: &Snapshot, metrics: &Metrics, now: Mono) {
        if now < self.next {
            return;
        }
        self.next = now.plus(EVERY);
        let delay = metrics.delay();
        let last_minute =
            (self.delay.as_ref()).map_or_else(|| delay.clone(), |before| delay.since(before));
        let milliseconds = |part| {
            let seconds: Option<f64> = last_minute.quantile(part);
            seconds.map(|seconds| (seconds * 1000.0).round())
        };
        info!(
            visits = snapshot.counters.writes.visits - self.counters.writes.visits,
            distributions = snapshot.rows_owned,
            active = snapshot.rows_that_are(Status::Active),
            behind = snapshot.rows_that_are(Status::Behind),
            invalid = snapshot.rows_that_are(Status::Invalid),
            backlog = snapshot.status_summary.backlog,
            delay_p50_ms = milliseconds(0.5),
            delay_p99_ms = milliseconds(0.99),
            agents = snapshot.agents,
            realtime = %snapshot.realtime,
            stalled = stalled(snapshot).map(display),
            "Last minute"
        );
        self.counters = snapshot.counters;
        self.delay = Some(delay);
    }
}

/// Why distributions are not on their curve, and what to do about it.
fn stalled(snapshot: &Snapshot) -> Option<String> {
    let each: Vec<String> = snapshot
        .status_summary
        .stalled
        .iter()
        .map(|(stall, count)| format!("{count}: {}", reason(*stall)))
        .collect();
    (!each.is_empty()).then(|| each.join("; "))
}

fn reason(stall: Stall) -> &'static str {
    match stall {
        Stall::Locked => "another session locks the row or its partner, end that transaction",
        Stall::Bucket => "catching up as fast as catch_up allows, wait or raise it",
        Stall::AgentBound => "the agent's limit is reached, raise --max-visits-per-second",
        Stall::Database => "the database does not store the visits, see the warnings above",
    }
}
