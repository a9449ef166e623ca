//! Faults around the database, while the real program runs: whatever breaks, for however long, every due visit is stored once.
//!
//! Each test has [`Rows`] of several rates, one of them a neighbour that nothing is done to. It makes its fault for a bounded
//! time, verifies that the fault occurred, and ends with [`Rows::stored_exactly_once`], which prints figures.
//! `chaos/wire.rs` breaks connections, `server.rs` servers, `limits.rs` exhausts what the server allows, `editors.rs` holds locks
//! and changes tables, `edits.rs` edits without pause, `clock.rs` sets clocks wrong, `realtime.rs` stops Realtime, `agents.rs`
//! kills agents, and `soak.rs` does all of it at once.

mod agents;
mod clock;
mod editors;
mod edits;
mod limits;
mod realtime;
mod server;
mod soak;
mod wire;

use std::time::Duration;

use uuid::Uuid;

use crate::harness::{Agent, Place, wait_until};
use crate::oracle;

/// A limit for draining the backlog of any outage here, at twice the rate, on a busy machine.
const DRAINS_WITHIN: Duration = Duration::from_secs(100);

/// Distributions of three rates.
struct Rows {
    fast: Uuid,
    slow: Uuid,
    neighbour: Uuid,
}

impl Rows {
    async fn of(place: &Place) -> Self {
        Self {
            fast: place.insert(1_000_000, "120 a second", "null").await,
            slow: place.insert(1_000_000, "150 a minute", "null").await,
            neighbour: place.insert(1_000_000, "10 a second", "null").await,
        }
    }

    fn all(&self) -> [Uuid; 3] {
        [self.fast, self.slow, self.neighbour]
    }

    /// Waits until each of them has some visits more.
    async fn make_progress(&self, place: &Place) {
        let mut before = Vec::new();
        for row in self.all() {
            before.push((row, place.stored(row).await));
        }
        for (row, stored) in before {
            wait_until("every row makes progress", DRAINS_WITHIN, async || {
                place.stored(row).await > stored + 2
            })
            .await;
        }
    }

    /// Ends all rows and expects every visit that was due, once. Prints figures of the fault.
    async fn stored_exactly_once(&self, place: &Place, agent: &Agent, fault: &str) {
        oracle::all_stored_exactly_once(place, oracle::ALL, DRAINS_WITHIN).await;
        let gap = oracle::longest_gap(place, &oracle::visits_of(self.neighbour), "-infinity").await;
        println!(
            "{fault}: longest gap between two batches of the neighbour {gap:.1} s, {} batches of unknown outcome, {} refused for \
             their data, {} warnings",
            count(agent, UNKNOWN).await,
            count(agent, r#"visit_pacer_batches_total{outcome="failed"}"#).await,
            agent.warnings()
        );
    }
}

/// Batches whose answer was lost.
const UNKNOWN: &str = r#"visit_pacer_batches_total{outcome="unknown"}"#;

/// The value of a counter of the agent.
async fn count(agent: &Agent, metric: &str) -> u64 {
    let value = agent.metric(metric).await.expect("the metric");
    format!("{value:.0}").parse().expect("a whole number")
}
