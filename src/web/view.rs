//! What the pages are told: the JSON of `/api`, field by field.
//!
//! Owns names and units, and nothing of where the values come from. Times are RFC 3339 in UTC, rates are visits a second,
//! durations are seconds; what is not known is null.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::domain::time::DbTime;

/// A moment, as the pages have it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Time(pub DbTime);

/// A text that many rows, or many frames, have in common.
#[derive(Clone, PartialEq, Debug)]
pub struct Text(pub Arc<str>);

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use chrono::SecondsFormat::Micros;
        let at = self.0.to_datetime();
        at.map(|at| at.to_rfc3339_opts(Micros, true))
            .serialize(serializer)
    }
}

/// One row of `visit_distribution`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    /// What stays as it is between edits.
    #[serde(flatten)]
    pub terms: Terms,
    /// What moves by itself.
    #[serde(flatten)]
    pub course: Course,
}

/// See [`Row`].
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Terms {
    /// `id`
    pub id: Uuid,
    /// `partner_id`
    pub partner_id: Option<Uuid>,
    /// The partner's name, where there is one.
    pub partner: Option<Text>,
    /// Visits a second that the row asks for.
    pub asked: Option<f64>,
    /// `visits_per_unit`, exactly.
    pub visits_per_unit: Option<String>,
    /// `time_period`
    pub time_period: Option<String>,
    /// `total_visits`
    pub total: i64,
    /// `start_time`
    pub start_time: Option<Time>,
    /// `end_time`
    pub end_time: Option<Time>,
    /// When the last visit is due, as the row is now.
    pub completes_at: Option<Time>,
    /// `is_active`
    pub is_active: bool,
    /// The agent that stores it.
    pub agent: Option<Text>,
}

/// See [`Row`].
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Course {
    /// As `visit_distribution_status` spells it.
    pub status: Text,
    /// Why it stands still, or is not on its curve, with what to do.
    pub reason: Option<Text>,
    /// Visits a second, as stored.
    pub measured: Option<f64>,
    /// Visits that should exist now.
    pub due: i64,
    /// Visits that do, or did.
    pub distributed: i64,
    /// Due and not distributed.
    pub backlog: i64,
}

/// What has become of a row since a listener was last told.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Changed<'a> {
    /// All of it.
    Whole(&'a Row),
    /// What moves by itself.
    Course {
        /// `id`
        id: Uuid,
        /// See [`Course`].
        #[serde(flatten)]
        course: &'a Course,
    },
}

/// Everything but the rows.
#[derive(Clone, Debug, Serialize)]
pub struct Head {
    /// Who answers.
    pub agent: AboutAgent,
    /// The database's clock.
    pub now: Option<Time>,
    /// Whether edits are refused here.
    pub read_only: bool,
    /// Whether the control row stops everything.
    pub paused: bool,
    /// Whether the agent does its work.
    pub health: HealthView,
    /// Over all rows of this agent.
    pub totals: Totals,
    /// From a batch's instant to its commit.
    pub lateness: Lateness,
    /// How edits are heard of.
    pub realtime: RealtimeView,
    /// All agents.
    pub agents: Vec<AgentView>,
    /// The last repairs, warnings and errors.
    pub notes: Vec<NoteView>,
}

/// Who answers.
#[derive(Clone, Debug, Serialize)]
pub struct AboutAgent {
    /// Its id.
    pub id: Uuid,
    /// Host and process.
    pub name: Text,
    /// Of the program.
    pub version: &'static str,
}

/// Whether the agent does its work.
#[derive(Clone, Debug, Serialize)]
pub struct HealthView {
    /// As `/readyz` says.
    pub ready: bool,
    /// Why not.
    pub unready: Vec<String>,
    /// `up`, or why not.
    pub database: String,
    /// `live`, or why not.
    pub realtime: String,
}

/// Over all rows of this agent.
#[derive(Clone, Debug, Serialize)]
pub struct Totals {
    /// Rows known.
    pub rows: usize,
    /// … and this agent's to store.
    pub rows_owned: usize,
    /// Since the start.
    pub visits_stored: u64,
    /// Committed since the start.
    pub batches: u64,
    /// Due and not distributed.
    pub backlog: i64,
    /// Over the last seconds.
    pub visits_per_second: f64,
    /// Rows left out of batches since the start.
    pub refused: u64,
    /// Batches that failed since the start.
    pub failed: u64,
    /// Batches whose answer was lost since the start.
    pub unknown: u64,
    /// Edits that a sync found before Realtime told of them.
    pub repaired: u64,
}

/// A histogram since the start, and two of its quantiles.
#[derive(Clone, Debug, Serialize)]
pub struct Lateness {
    /// By upper bound; the last has none.
    pub buckets: Vec<Bucket>,
    /// Half are below it.
    pub p50: Option<f64>,
    /// Of a hundred, one is above it.
    pub p99: Option<f64>,
}

/// One bucket, by itself.
#[derive(Clone, Debug, Serialize)]
pub struct Bucket {
    /// Its upper bound, in seconds.
    pub le: Option<f64>,
    /// How many fell into it.
    pub count: u64,
}

/// How edits are heard of.
#[derive(Clone, Debug, Serialize)]
pub struct RealtimeView {
    /// Those that are followed.
    pub transports: Vec<WayView>,
    /// From the last write of our own to its event.
    pub echo_round_trip: Option<f64>,
    /// The last ones.
    pub events: Vec<EventView>,
}

/// One way of listening.
#[derive(Clone, Debug, Serialize)]
pub struct WayView {
    /// `postgres_changes` or `broadcast`
    pub transport: &'static str,
    /// `live`, or why not.
    pub state: String,
    /// Since when, in seconds before now.
    pub since_seconds: f64,
}

/// Something that came from Realtime.
#[derive(Clone, Debug, Serialize)]
pub struct EventView {
    /// When it came.
    pub at: Option<Time>,
    /// By which way.
    pub transport: Option<&'static str>,
    /// In words.
    pub what: String,
    /// The row.
    pub id: Option<Uuid>,
}

/// A repair, a warning or an error.
#[derive(Clone, Debug, Serialize)]
pub struct NoteView {
    /// When it was.
    pub at: Option<Time>,
    /// `info`, `warn` or `error`
    pub level: &'static str,
    /// What happened, and what to do.
    pub text: String,
    /// The row.
    pub id: Option<Uuid>,
}

/// One agent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AgentView {
    /// Host and process.
    pub name: String,
    /// Since its last beat.
    pub seen_seconds_ago: f64,
    /// Rows known.
    pub rows: i64,
    /// … and its to store.
    pub rows_owned: i64,
    /// `live`, or why not.
    pub realtime: Option<String>,
    /// It knows the rows, and its batches get through.
    pub serving: bool,
    /// The one that answers.
    pub me: bool,
}

/// One row from near.
#[derive(Clone, Debug, Serialize)]
pub struct RowView {
    /// As on the board; null where the agent does not know it (any more).
    pub row: Option<Row>,
    /// Over the whole window.
    pub curve: Curves,
    /// The last two minutes, second by second.
    pub seconds: Vec<Second>,
    /// Edits of the pace, oldest first.
    pub edits: Vec<EditView>,
}

/// Cumulative counts at moments.
#[derive(Clone, Debug, Serialize)]
pub struct Curves {
    /// What the curve asks for.
    pub asked: Vec<(Time, i64)>,
    /// What is stored.
    pub stored: Vec<(Time, i64)>,
}

/// One second that has ended.
#[derive(Clone, Debug, Serialize)]
pub struct Second {
    /// When it began.
    pub at: Time,
    /// Visits that became due in it; null for a time of which the pace is not known any more.
    pub asked: Option<i64>,
    /// Visits that are dated in it.
    pub stored: i64,
}

/// One edit of a row's pace.
#[derive(Clone, Debug, Serialize)]
pub struct EditView {
    /// When it took effect.
    pub at: Time,
    /// In words.
    pub what: String,
    /// Who.
    pub by: Option<String>,
}
