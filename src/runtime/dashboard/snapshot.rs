//! What the dashboard shows of all rows: kept up to date while somebody watches, told as changes, forgotten when nobody does.
//!
//! Rows of this agent are as the loop has them, each second; rows of other agents, names of partners and the list of agents are
//! as the clerk last read them. Pure: the task around it is `desk`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::super::snapshot::{Snapshot, WayState};
use super::super::status_reason;
use crate::domain::rate_estimate::RateEstimator;
use crate::domain::schedule::{DistributionStatus, DistributionTerms, Stall, Status};
use crate::domain::time::Mono;
use crate::domain::transport::Transport;
use crate::observe::Metrics;
use crate::observe::recent::Recent;
use crate::postgres::maintenance::Identity;
use crate::postgres::series::PARTNERS_MAX;
use crate::postgres::status::{AgentRow, StatusRow};
use crate::web::api::Frame;
use crate::web::view::{
    AboutAgent, AgentView, Bucket, Changed, Course, EventView, Head, HealthView, Lateness,
    NoteView, RealtimeView, Row, Terms, Text, Time, Totals, WayView,
};

/// Visits of the whole agent are measured over so many looks.
const LOOKS: usize = 6;
/// Of a slower row, in visits a second, a minute holds too few for a measurement to mean anything.
const MEASURED_FROM: f64 = 0.2;
const NANO_PER_SECOND: f64 = 86_400e9;

/// What only the database knows, as last read.
#[derive(Clone, Default)]
pub struct Facts {
    /// The partners, with their names.
    pub partners: BTreeMap<Uuid, Option<Text>>,
    /// The agents.
    pub agents: Vec<AgentRow>,
    /// Every row, where other agents have some; else the bad ones.
    pub others: Vec<StatusRow>,
}

impl Facts {
    /// The row's partner, where there certainly is none of that id.
    fn is_without_partner(&self, look: &DistributionStatus) -> Option<Uuid> {
        let all_are_known = (1..PARTNERS_MAX).contains(&self.partners.len());
        let partner = look.partner_id?;
        (all_are_known && !self.partners.contains_key(&partner)).then_some(partner)
    }
}

/// What does not change while the agent runs, and what it measures.
#[derive(Clone)]
pub struct About {
    /// Who it is.
    pub identity: Identity,
    /// Whether the pages may edit.
    pub read_only: bool,
    /// The measurements.
    pub metrics: Metrics,
    /// What happened last.
    pub recent: Recent,
    /// Why the agent is not ready; empty when it is.
    pub unready: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
}

/// See the module.
pub struct Board {
    about: About,
    me: Text,
    rows: BTreeMap<Uuid, Row>,
    rate_estimate: RateEstimator<(Status, Option<i128>)>,
    stored: VecDeque<(Mono, u64)>,
    head: String,
}

impl Board {
    /// An empty one.
    pub fn new(about: About) -> Self {
        Self {
            me: about.identity.name.as_str().into(),
            about,
            rows: BTreeMap::new(),
            rate_estimate: RateEstimator::default(),
            stored: VecDeque::new(),
            head: "{}".to_owned(),
        }
    }

    /// Nobody watches any more.
    pub fn forget(&mut self) {
        self.rows.clear();
        self.rate_estimate = RateEstimator::default();
        self.stored.clear();
    }

    /// Takes the state in; what has changed since the last time.
    pub fn take(&mut self, snapshot: &Snapshot, facts: &Facts, now: Mono) -> Frame {
        let fresh = self.fresh(snapshot, facts);
        let removed: Vec<Uuid> = {
            let gone = self.rows.keys().filter(|id| !fresh.contains_key(id));
            gone.copied().collect()
        };
        let changed: Vec<Changed<'_>> = fresh
            .values()
            .filter_map(|row| changed(self.rows.get(&row.terms.id), row))
            .collect();
        let rows = text(&Changes {
            changed: &changed,
            removed: &removed,
        });
        self.rows = fresh;
        self.head = text(&self.head(snapshot, facts, now));
        Frame {
            head: self.head.clone(),
            rows,
        }
    }

    /// The whole of it, as `/api/board` has it.
    pub fn whole(&self) -> Arc<str> {
        let rows: Vec<&Row> = self.rows.values().collect();
        let head = self.head.strip_suffix('}').unwrap_or("{");
        let comma = if head.len() > 1 { "," } else { "" };
        format!("{head}{comma}\"rows\":{}}}", text(&rows)).into()
    }

    /// One row.
    pub fn row(&self, id: Uuid) -> Option<&Row> {
        self.rows.get(&id)
    }

    fn fresh(&mut self, snapshot: &Snapshot, facts: &Facts) -> BTreeMap<Uuid, Row> {
        let looks = || snapshot.status_summary.looks.iter();
        let measured = snapshot.db_time.map_or_else(BTreeMap::new, |at| {
            let counted = looks().map(|look| {
                let course = (look.status, look.pace.as_ref().map(|pace| pace.slope));
                (look.id, course, look.distributed)
            });
            self.rate_estimate.take(at, counted)
        });
        let read: BTreeMap<Uuid, &StatusRow> =
            facts.others.iter().map(|row| (row.id, row)).collect();
        let ours = looks().map(|look| {
            let terms = match read.get(&look.id) {
                // The agent keeps nothing of a bad row; the view has what can be read of it.
                Some(row) if look.partner_id.is_none() => Terms {
                    agent: Some(self.me.clone()),
                    ..others_row(row).terms
                },
                Some(_) | None => self.terms(look, facts),
            };
            let measured = measured.get(&look.id).copied();
            let measured =
                measured.filter(|_| terms.asked.is_none_or(|asked| asked >= MEASURED_FROM));
            let mut course = course(look, snapshot.paused, measured);
            if look.stall == Some(Stall::Locked)
                && let Some(partner) = facts.is_without_partner(look)
            {
                course.reason = Some(status_reason::no_partner(partner).as_str().into());
            }
            (look.id, Row { terms, course })
        });
        let mut rows: BTreeMap<Uuid, Row> = ours.collect();
        let known: BTreeSet<Uuid> = rows.keys().copied().collect();
        let theirs = facts.others.iter().filter(|row| !known.contains(&row.id));
        rows.extend(theirs.map(|row| (row.id, others_row(row))));
        rows
    }

    fn terms(&self, look: &DistributionStatus, facts: &Facts) -> Terms {
        let pace = look.pace.as_ref();
        Terms {
            id: look.id,
            partner_id: look.partner_id,
            partner: look
                .partner_id
                .and_then(|partner| facts.partners.get(&partner).cloned().flatten()),
            asked: pace.map(|pace| float(pace.slope) / NANO_PER_SECOND),
            visits_per_unit: pace.map(DistributionTerms::visits_per_unit),
            time_period: pace.map(|pace| pace.time_period().to_owned()),
            total: look.total,
            start_time: pace.and_then(|pace| pace.start).map(Time),
            end_time: pace.and_then(|pace| pace.end).map(Time),
            completes_at: pace.and_then(|pace| pace.completes_at).map(Time),
            is_active: pace.is_some_and(|pace| pace.active),
            agent: Some(self.me.clone()),
        }
    }

    fn head(&mut self, snapshot: &Snapshot, facts: &Facts, now: Mono) -> Head {
        let counters = &snapshot.counters;
        self.stored.push_back((now, counters.visits));
        if self.stored.len() > LOOKS {
            self.stored.pop_front();
        }
        let unready = (self.about.unready)();
        let database = match snapshot.health.database_away_since {
            None if snapshot.at.is_none() => unready.join("; "),
            None => "up".to_owned(),
            Some(since) => format!(
                "away for {} s; the schedule is kept, and what is owed drains when it is back",
                now.since(since).as_secs()
            ),
        };
        Head {
            agent: AboutAgent {
                id: self.about.identity.id,
                name: self.me.clone(),
                version: env!("CARGO_PKG_VERSION"),
            },
            now: snapshot.db_time.map(Time),
            read_only: self.about.read_only,
            paused: snapshot.paused,
            health: HealthView {
                ready: unready.is_empty(),
                unready,
                database,
                realtime: snapshot.realtime.clone(),
            },
            totals: Totals {
                rows: snapshot.rows,
                rows_owned: snapshot.rows_owned,
                visits_stored: counters.visits,
                batches: counters.batches,
                backlog: snapshot.status_summary.backlog,
                visits_per_second: self.per_second(),
                refused: counters.refused.total(),
                failed: counters.failed,
                unknown: counters.unknown,
                repaired: counters.repaired,
            },
            lateness: self.lateness(),
            realtime: self.realtime(snapshot, now),
            agents: self.agents(facts),
            notes: self.notes(),
        }
    }

    fn per_second(&self) -> f64 {
        let (Some((first, then)), Some((last, count))) = (self.stored.front(), self.stored.back())
        else {
            return 0.0;
        };
        let seconds = last.since(*first).as_secs_f64();
        let grown = u32::try_from(count.saturating_sub(*then)).unwrap_or(u32::MAX);
        if seconds > 0.0 {
            f64::from(grown) / seconds
        } else {
            0.0
        }
    }

    fn lateness(&self) -> Lateness {
        let counts = self.about.metrics.lateness();
        Lateness {
            buckets: counts
                .buckets()
                .map(|(le, count)| Bucket { le, count })
                .collect(),
            p50: counts.quantile(0.5),
            p99: counts.quantile(0.99),
        }
    }

    fn realtime(&self, snapshot: &Snapshot, now: Mono) -> RealtimeView {
        let view = |transport: Transport, state: &WayState| WayView {
            transport: transport.as_str(),
            state: state.words.clone(),
            since_seconds: now.since(state.since).as_secs_f64(),
        };
        let transports = Transport::ALL.into_iter().filter_map(|transport| {
            snapshot
                .transports
                .of(transport)
                .as_ref()
                .map(|state| view(transport, state))
        });
        let events = self.about.recent.events().into_iter().rev();
        RealtimeView {
            transports: transports.collect(),
            echo_round_trip: self
                .about
                .metrics
                .last_echo()
                .map(|took| took.as_secs_f64()),
            events: events
                .map(|event| EventView {
                    at: event.at.map(Time),
                    transport: event.transport.map(Transport::as_str),
                    what: event.what,
                    id: event.id,
                })
                .collect(),
        }
    }

    fn notes(&self) -> Vec<NoteView> {
        let notes = self.about.recent.notes().into_iter().rev();
        notes
            .map(|note| NoteView {
                at: note.at.map(Time),
                level: match note.level {
                    tracing::Level::ERROR => "error",
                    tracing::Level::WARN => "warn",
                    _ => "info",
                },
                text: note.text,
                id: note.id,
            })
            .collect()
    }

    fn agents(&self, facts: &Facts) -> Vec<AgentView> {
        let view = |agent: &AgentRow| AgentView {
            name: agent.name.clone(),
            seen_seconds_ago: agent.seen_seconds_ago,
            rows: agent.rows,
            rows_owned: agent.rows_owned,
            realtime: agent.realtime.clone(),
            serving: agent.serving,
            me: *agent.name == *self.me.0,
        };
        facts.agents.iter().map(view).collect()
    }
}

fn course(look: &DistributionStatus, everything_paused: bool, measured: Option<f64>) -> Course {
    Course {
        status: look.status.as_str().into(),
        reason: status_reason::reason(look, everything_paused).map(|why| why.as_str().into()),
        measured: measured.map(rounded),
        due: look.due,
        distributed: look.distributed,
        backlog: look.backlog(),
    }
}

/// To three digits: a measurement that wavers in the fourth is no news.
fn rounded(per_second: f64) -> f64 {
    if per_second <= 0.0 {
        return 0.0;
    }
    let scale = 10_f64.powi(2 - Digits::of(per_second).0);
    (per_second * scale).round() / scale
}

struct Digits(i32);

impl Digits {
    /// The power of ten of the first digit.
    fn of(mut number: f64) -> Self {
        const MOST: i32 = 12;
        let mut power = 0;
        while number >= 10.0 && power < MOST {
            number /= 10.0;
            power += 1;
        }
        while number < 1.0 && power > -MOST {
            number *= 10.0;
            power -= 1;
        }
        Self(power)
    }
}

/// Exact enough to be shown.
fn float(number: i128) -> f64 {
    number.to_string().parse().unwrap_or(f64::MAX)
}

/// A row that another agent stores, as the view has it.
fn others_row(row: &StatusRow) -> Row {
    Row {
        terms: Terms {
            id: row.id,
            partner_id: row.partner_id,
            partner: row.partner.as_deref().map(Into::into),
            asked: row.asked,
            visits_per_unit: row.visits_per_unit.clone(),
            time_period: row.time_period.clone(),
            total: row.total_visits.unwrap_or(0),
            start_time: row.start_time.map(Time),
            end_time: row.end_time.map(Time),
            completes_at: row.completes_at.map(Time),
            is_active: row.is_active,
            agent: None,
        },
        course: Course {
            status: row.status.as_str().into(),
            reason: status_reason::of_view(row.status.as_str(), row.reason.as_deref())
                .map(|why| why.as_str().into()),
            measured: None,
            due: row.due.unwrap_or(0),
            distributed: row.distributed.unwrap_or(0),
            backlog: row.backlog.unwrap_or(0),
        },
    }
}

fn changed<'a>(before: Option<&Row>, now: &'a Row) -> Option<Changed<'a>> {
    match before {
        Some(before) if before == now => None,
        Some(before) if before.terms == now.terms => Some(Changed::Course {
            id: now.terms.id,
            course: &now.course,
        }),
        Some(_) | None => Some(Changed::Whole(now)),
    }
}

#[derive(Serialize)]
struct Changes<'a> {
    changed: &'a [Changed<'a>],
    removed: &'a [Uuid],
}

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value)
        .unwrap_or_else(|error| json!({ "error": error.to_string() }).to_string())
}
