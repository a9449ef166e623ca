//! What the dashboard shows, as JSON: kept up to date while a browser listens, cleared otherwise.
//!
//! This agent's distributions come from its main loop, each second. Those of other agents, the names of partners and the list
//! of agents are polled from the database. Pure: the tasks are in [`super::queries`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::snapshot::Snapshot;
use super::super::status_reason;
use super::view::{ConfigView, DistributionView, StateView, ViewChange};
use crate::domain::event::Level;
use crate::domain::partner::PartnerId;
use crate::domain::rate_estimate::RateEstimator;
use crate::domain::schedule::{DistributionStatus, Stall, Status};
use crate::domain::time::Mono;
use crate::domain::transport::Transport;
use crate::observe::Metrics;
use crate::observe::recent::Recent;
use crate::postgres::maintenance::Identity;
use crate::postgres::series::PARTNERS_MAX;
use crate::postgres::status::{AgentRow, StatusRow};
use crate::web::api::{SharedJson, Update};

/// The agent's visits per second are measured over this many refreshes.
const REFRESHES: usize = 6;
/// The slowest target rate, in visits per second, whose actual rate is shown: within a minute, slower ones store too few visits.
const ACTUAL_FROM: f64 = 0.2;

/// What is polled from the database.
#[derive(Clone, Default)]
pub struct Polled {
    /// The partners, with their names.
    pub partners: BTreeMap<PartnerId, Option<String>>,
    /// The agents.
    pub agents: Vec<AgentRow>,
    /// Every distribution, if other agents own some; else the invalid ones.
    pub distributions: Vec<StatusRow>,
}

impl Polled {
    /// The partner of a distribution, if it certainly does not exist.
    fn missing_partner<'s>(&self, status: &'s DistributionStatus) -> Option<&'s PartnerId> {
        let all_are_known = (1..PARTNERS_MAX).contains(&self.partners.len());
        let partner = status.partner_id.as_ref()?;
        (all_are_known && !self.partners.contains_key(partner)).then_some(partner)
    }
}

/// What does not change while the agent runs, and what it measures.
#[derive(Clone)]
pub struct AgentInfo {
    /// Id and name.
    pub identity: Identity,
    /// Whether the dashboard cannot edit.
    pub read_only: bool,
    /// The measurements.
    pub metrics: Metrics,
    /// The latest events.
    pub recent: Recent,
    /// Why the agent is not ready; empty when it is.
    pub unready: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
}

/// See the module.
pub struct DashboardSnapshot {
    info: AgentInfo,
    distributions: BTreeMap<Uuid, DistributionView>,
    /// The course of a distribution is its status and slope.
    rates: RateEstimator<(Status, Option<i128>)>,
    stored: VecDeque<(Mono, u64)>,
    /// A JSON object.
    overview: String,
}

impl DashboardSnapshot {
    /// An empty one.
    pub fn new(info: AgentInfo) -> Self {
        Self {
            info,
            distributions: BTreeMap::new(),
            rates: RateEstimator::default(),
            stored: VecDeque::new(),
            overview: "{}".to_owned(),
        }
    }

    /// Clears what only a listener needs.
    pub fn clear(&mut self) {
        self.distributions.clear();
        self.rates = RateEstimator::default();
        self.stored.clear();
    }

    /// Takes the agent's state; returns what changed.
    pub fn refresh(&mut self, agent: &Snapshot, polled: &Polled, now: Mono) -> Update {
        let fresh = self.views(agent, polled);
        let changed = fresh
            .iter()
            .filter_map(|(id, view)| ViewChange::between(self.distributions.get(id), view));
        let removed = self.distributions.keys();
        let removed = removed.filter(|id| !fresh.contains_key(id));
        let distributions = text(&json!({
            "changed": changed.collect::<Vec<_>>(),
            "removed": removed.collect::<Vec<_>>(),
        }));
        self.distributions = fresh;
        self.overview = text(&self.overview(agent, polled, now));
        Update {
            overview: self.overview.clone(),
            distributions,
        }
    }

    /// All of it: the overview, with the distributions.
    pub fn whole(&self) -> SharedJson {
        let distributions = text(&self.distributions.values().collect::<Vec<_>>());
        let overview = self.overview.strip_suffix('}').unwrap_or("{");
        let comma = if overview.len() > 1 { "," } else { "" };
        format!("{overview}{comma}\"distributions\":{distributions}}}").into()
    }

    /// One distribution.
    pub fn distribution(&self, id: Uuid) -> Option<&DistributionView> {
        self.distributions.get(&id)
    }

    fn views(&mut self, agent: &Snapshot, polled: &Polled) -> BTreeMap<Uuid, DistributionView> {
        let statuses = || agent.status_summary.looks.iter();
        let rates = agent.db_time.map_or_else(BTreeMap::new, |at| {
            let counts = statuses().map(|status| {
                let slope = status.pace.as_ref().map(|terms| terms.slope);
                (status.id, (status.status, slope), status.distributed)
            });
            self.rates.take(at, counts)
        });
        let polled_rows = polled.distributions.iter();
        let polled_rows: BTreeMap<Uuid, &StatusRow> =
            polled_rows.map(|row| (row.id, row)).collect();
        let own = statuses().map(|status| {
            let row = polled_rows.get(&status.id).copied();
            let rate = rates.get(&status.id).copied();
            let view = self.own_view(status, (row, rate), agent.paused, polled);
            (status.id, view)
        });
        let mut views: BTreeMap<Uuid, DistributionView> = own.collect();
        let own: BTreeSet<Uuid> = views.keys().copied().collect();
        let others = polled.distributions.iter();
        let others = others.filter(|row| !own.contains(&row.id));
        views.extend(others.map(|row| (row.id, row.into())));
        views
    }

    fn own_view(
        &self,
        status: &DistributionStatus,
        (row, rate): (Option<&StatusRow>, Option<f64>),
        all_paused: bool,
        polled: &Polled,
    ) -> DistributionView {
        let agent = self.info.identity.name.clone();
        let config = match row {
            // The agent keeps nothing of an invalid row.
            Some(row) if status.partner_id.is_none() => ConfigView {
                agent: Some(agent),
                ..DistributionView::from(row).config
            },
            Some(_) | None => {
                let partner = (status.partner_id.as_ref()).and_then(|id| polled.partners.get(id));
                ConfigView::new(status, partner.cloned().flatten(), agent)
            }
        };
        let target = config.target_per_second;
        let rate = rate.filter(|_| target.is_none_or(|target| target >= ACTUAL_FROM));
        let mut state = StateView::new(status, all_paused, rate);
        if status.stall == Some(Stall::Locked)
            && let Some(partner) = polled.missing_partner(status)
        {
            state.reason = Some(status_reason::no_partner(partner));
        }
        DistributionView { config, state }
    }

    fn overview(&mut self, agent: &Snapshot, polled: &Polled, now: Mono) -> Value {
        let counters = &agent.counters;
        self.stored.push_back((now, counters.writes.visits));
        if self.stored.len() > REFRESHES {
            self.stored.pop_front();
        }
        let delay = self.info.metrics.delay();
        let buckets = delay.buckets();
        let buckets = buckets.map(|(le, count)| json!({ "le": le, "count": count }));
        json!({
            "agent": {
                "id": self.info.identity.id,
                "name": self.info.identity.name,
                "version": env!("CARGO_PKG_VERSION"),
            },
            "now": agent.db_time,
            "read_only": self.info.read_only,
            "paused": agent.paused,
            "health": self.health(agent, now),
            "totals": {
                "distributions": agent.rows,
                "distributions_owned": agent.rows_owned,
                "visits_stored": counters.writes.visits,
                "batches": counters.writes.batches,
                "backlog": agent.status_summary.backlog,
                "visits_per_second": self.visits_per_second(),
                "refused": counters.writes.refused.total(),
                "failed": counters.writes.failed,
                "unknown": counters.writes.unknown,
                "repaired": counters.reads.repaired,
            },
            "delay": {
                "buckets": buckets.collect::<Vec<_>>(),
                "p50": delay.quantile(0.5),
                "p99": delay.quantile(0.99),
            },
            "realtime": self.realtime(agent, now),
            "agents": polled.agents,
            "events": self.events(),
        })
    }

    fn health(&self, agent: &Snapshot, now: Mono) -> Value {
        let unready = (self.info.unready)();
        let unavailable_since = agent.health.database_away_since;
        let detail = match unavailable_since {
            None if agent.at.is_none() => unready.join("; "),
            None => "up".to_owned(),
            Some(since) => format!(
                "unavailable for {} s; the backlog drains once it is back",
                now.since(since).as_secs()
            ),
        };
        json!({
            "ready": unready.is_empty(),
            "unready": unready,
            "database": { "up": agent.at.is_some() && unavailable_since.is_none(), "detail": detail },
            "realtime": { "live": agent.health.live_since.is_some(), "detail": agent.realtime },
        })
    }

    fn visits_per_second(&self) -> f64 {
        let (Some((first, then)), Some((last, count))) = (self.stored.front(), self.stored.back())
        else {
            return 0.0;
        };
        let seconds = last.since(*first).as_secs_f64();
        let stored = u32::try_from(count.saturating_sub(*then)).unwrap_or(u32::MAX);
        if seconds > 0.0 {
            f64::from(stored) / seconds
        } else {
            0.0
        }
    }

    fn realtime(&self, agent: &Snapshot, now: Mono) -> Value {
        let transports = Transport::ALL.into_iter().filter_map(|transport| {
            let state = agent.transports.of(transport).as_ref()?;
            Some(json!({
                "transport": transport.as_str(),
                "state": state.text(),
                "since_seconds": now.since(state.since).as_secs_f64(),
            }))
        });
        let events = self.info.recent.all_received().into_iter().map(|event| {
            json!({
                "at": event.at,
                "transport": event.transport.map(Transport::as_str),
                "what": event.what,
                "id": event.id,
            })
        });
        let echo = self.info.metrics.last_echo();
        json!({
            "transports": transports.collect::<Vec<_>>(),
            "echo_seconds": echo.map(|after| after.as_secs_f64()),
            "events": events.collect::<Vec<_>>(),
        })
    }

    fn events(&self) -> Vec<Value> {
        let events = self.info.recent.events().into_iter().map(|event| {
            json!({
                "at": event.at,
                "level": if event.level == Level::Warn { "warn" } else { "info" },
                "message": event.message,
                "reason": event.why(),
                "distribution_id": event.distribution_id,
            })
        });
        events.collect()
    }
}

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value)
        .unwrap_or_else(|error| json!({ "error": error.to_string() }).to_string())
}
