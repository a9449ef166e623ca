//! The status of all distributions and agents at one moment: read once, or once a second with the actual rates.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::domain::rate_estimate::RateEstimator;
use crate::domain::time::DbTime;
use crate::postgres::connection::Connection;
use crate::postgres::reconnect::{ReconnectingConnection, with_timeout};
use crate::postgres::rows::clock;
use crate::postgres::status::{AgentRow, StatusRow, agents, status};

/// An agent whose last heartbeat is older does not count, as in `visit_pacer_agent_alive()`.
const AGENT_ALIVE_SECONDS: f64 = 20.0;
/// How often the database is queried.
const READ_EVERY: Duration = Duration::from_secs(1);

/// Actual rates in visits per second, by distribution.
pub type ActualRates = BTreeMap<Uuid, f64>;

/// Everything at one moment.
#[derive(Clone)]
pub struct StatusSnapshot {
    /// When, by the database's clock.
    pub at: DbTime,
    /// The distributions.
    pub rows: Vec<StatusRow>,
    /// The agents.
    pub agents: Vec<AgentRow>,
}

impl StatusSnapshot {
    /// Reads it.
    pub async fn read(connection: &mut Connection) -> Result<Self, sqlx::Error> {
        Ok(Self {
            at: clock(connection).await?,
            rows: status(connection).await?,
            agents: agents(connection).await?,
        })
    }

    /// The agents with a recent heartbeat.
    pub fn alive_agents(&self) -> impl Iterator<Item = &AgentRow> {
        let agents = self.agents.iter();
        agents.filter(|agent| agent.seen_seconds_ago <= AGENT_ALIVE_SECONDS)
    }
}

/// The latest state, as a screen shows it.
#[derive(Clone, Default)]
pub struct LiveStatus {
    /// The last snapshot that could be read.
    pub snapshot: Option<StatusSnapshot>,
    /// The rates up to it.
    pub rates: ActualRates,
    /// Why there is no newer snapshot.
    pub error: Option<String>,
}

impl LiveStatus {
    /// The distributions.
    pub fn rows(&self) -> &[StatusRow] {
        self.snapshot
            .as_ref()
            .map_or(&[], |snapshot| &snapshot.rows)
    }
}

/// Reads a snapshot every second; after an outage of the database too.
pub async fn follow(
    mut connection: ReconnectingConnection,
    live: watch::Sender<Arc<LiveStatus>>,
) -> Infallible {
    let mut estimator = RateEstimator::default();
    let mut next = Instant::now();
    loop {
        let read = match connection.open().await {
            Ok(connection) => with_timeout(StatusSnapshot::read(connection)).await,
            Err(failure) => Err(failure),
        };
        match connection.check(read) {
            Ok(snapshot) => {
                let rows = snapshot.rows.iter().map(|row| {
                    let rate = (row.visits_per_unit.clone(), row.time_period.clone());
                    let course = (row.status.clone(), rate);
                    (row.id, course, row.distributed.unwrap_or(0))
                });
                live.send_replace(Arc::new(LiveStatus {
                    rates: estimator.take(snapshot.at, rows),
                    snapshot: Some(snapshot),
                    error: None,
                }));
            }
            Err(failure) => live.send_modify(|live| {
                Arc::make_mut(live).error = Some(failure.to_string());
            }),
        }
        next = (next + READ_EVERY).max(Instant::now());
        sleep_until(next).await;
    }
}
