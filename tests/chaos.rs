//! Faults around the database, made on purpose, while the real program runs: whatever breaks, for however long, every due
//! visit is stored once.
//!
//! Each test has [`Rows`] of several paces, one of them a neighbour that nothing is done to; it makes its fault for a bounded
//! time, proves that the fault really came, and ends with [`Rows::came_once`]. What each of them saw is printed.
//! `chaos/wire.rs` breaks the connections, `chaos/server.rs` the servers, `chaos/limits.rs` what the server allows,
//! `chaos/editors.rs` has people in the way, `chaos/edits.rs` editors without mercy. `chaos/clock.rs` sets clocks wrong,
//! `chaos/realtime.rs` takes Realtime away, `chaos/agents.rs` the agents themselves, and `chaos/soak.rs` does all of it at
//! once, for as long as one likes. `chaos/oracle.rs` tells from the database what was committed that should not have been.

mod agents;
mod clock;
mod editors;
mod edits;
mod limits;
mod oracle;
mod realtime;
mod server;
mod soak;
mod wire;

use std::time::Duration;

use uuid::Uuid;

use crate::harness::{Agent, Place, wait_until};

/// A backlog drains at twice the pace, so after an outage as long as any here within this time, also on a busy machine.
const DRAINS_WITHIN: Duration = Duration::from_secs(100);

/// Rows of three paces.
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
    async fn go_on(&self, place: &Place) {
        let mut before = Vec::new();
        for row in self.all() {
            before.push((row, place.stored(row).await));
        }
        for (row, stored) in before {
            wait_until("the rows go on", DRAINS_WITHIN, async || {
                place.stored(row).await > stored + 2
            })
            .await;
        }
    }

    /// Ends all rows a moment from now, and waits: every visit that was due until then is stored, once. Says what was seen.
    async fn came_once(&self, place: &Place, agent: &Agent, what: &str) {
        place
            .edit(
                "update visit_distribution
                    set total_visits = visit_distribution_due(id, clock_timestamp() + interval '2 seconds')",
            )
            .await;
        for row in self.all() {
            let look = place.becomes_within(row, "completed", DRAINS_WITHIN).await;
            assert_eq!(place.settles(row).await, look.total_visits, "{look:?}");
        }
        let gap = longest_gap(place, self.neighbour).await;
        let warnings = agent
            .log()
            .lines()
            .filter(|line| line.contains(" WARN "))
            .count();
        println!(
            "{what}: {gap:.1} s between two batches of the neighbour at the most, {} batches of unknown outcome, {} refused \
             for their data, {warnings} warnings",
            count(agent, UNKNOWN).await,
            count(agent, r#"visit_pacer_batches_total{outcome="failed"}"#).await,
        );
    }
}

/// The longest time between two batches of a row, in seconds.
async fn longest_gap(place: &Place, row: Uuid) -> f64 {
    place
        .ask(format!(
            "select coalesce(max(extract(epoch from gap)), 0)::float8 from (
               select created_at - lag(created_at) over (order by created_at) as gap
                 from store_visits where distribution_id = '{row}') gaps"
        ))
        .await
}

/// Batches whose answer was lost.
const UNKNOWN: &str = r#"visit_pacer_batches_total{outcome="unknown"}"#;

/// A counter of the agent's; a whole number.
async fn count(agent: &Agent, metric: &str) -> u64 {
    let value = agent.metric(metric).await.expect("the metric");
    format!("{value:.0}").parse().expect("a whole number")
}
