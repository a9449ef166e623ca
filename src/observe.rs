//! What can be seen from outside: the measurements, their text for Prometheus, and what happened last.
//!
//! Owns the formats; what the numbers are is told by the runtime, at each scrape. `histogram` has what is measured as it
//! happens, `process` what the kernel knows of the process, `recent` the latest events and notes, `text` the format.
//!
//! Invariant: labels are bounded. Nothing here grows with the table but the rows that somebody asked for by id, and of these
//! there are at most [`ROWS_MAX`].

pub mod histogram;
pub mod process;
pub mod recent;
pub mod text;

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use self::histogram::{Counts, Histogram};
use crate::domain::event::Event;
use crate::domain::transport::{PerTransport, Transport};

/// What the names of our own metrics begin with; a `_` follows.
const PREFIX: &str = "visit_pacer";

/// Rows that may be asked for by id in one scrape.
pub const ROWS_MAX: usize = 100;

/// From the instant that a batch was due at to its answer, in seconds.
const LATENESS: &[f64] = &[
    0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0,
];
/// A statement's round trip, in seconds; after twelve it is given up.
const DURATION: &[f64] = &[
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 12.0,
];
/// From a write of our own to its event, in seconds; after ten it is given up.
const ECHO: &[f64] = &[0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// One metric, with all its series. Its name has neither the prefix `visit_pacer_` nor a counter's suffix `_total`.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// In base units.
    pub name: &'static str,
    /// One sentence, without the full stop.
    pub help: &'static str,
    /// Of one kind all. A family without any is left out.
    pub series: Vec<Series>,
}

/// One time series.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Name and value.
    pub label: Option<(&'static str, String)>,
    /// Its value now.
    pub value: Value,
}

/// The kinds that there are.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Ever rising.
    Count(u64),
    /// Ever rising, not whole.
    Sum(f64),
    /// Up and down.
    Level(i64),
    /// Up and down, not whole.
    Real(f64),
    /// A distribution.
    Spread(Counts),
}

impl Family {
    /// With one series.
    pub fn one(name: &'static str, help: &'static str, value: Value) -> Self {
        let series = vec![Series { label: None, value }];
        Self { name, help, series }
    }

    /// With one series for each value of a label.
    pub fn by<L: Into<String>>(
        name: &'static str,
        help: &'static str,
        label: &'static str,
        values: impl IntoIterator<Item = (L, Value)>,
    ) -> Self {
        let series = values.into_iter().map(|(of, value)| Series {
            label: Some((label, of.into())),
            value,
        });
        Self {
            name,
            help,
            series: series.collect(),
        }
    }
}

/// Rows of which somebody wants to see series of their own.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RowsAsked(pub BTreeSet<Uuid>);

/// Why a list of rows is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRows {
    /// A part of it is no id.
    #[error("'{0}' is no id of a row; expected UUIDs with commas between them")]
    NotAnId(String),
    /// It is too long.
    #[error("{0} rows are asked for; expected {ROWS_MAX} at the most")]
    TooMany(usize),
}

impl FromStr for RowsAsked {
    type Err = NoRows;

    fn from_str(text: &str) -> Result<Self, NoRows> {
        let parts = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        let ids = parts.map(|part| {
            part.parse()
                .map_err(|_| NoRows::NotAnId(part.chars().take(40).collect()))
        });
        let ids: BTreeSet<Uuid> = ids.collect::<Result<_, _>>()?;
        if ids.len() > ROWS_MAX {
            return Err(NoRows::TooMany(ids.len()));
        }
        Ok(Self(ids))
    }
}

/// What is measured as it happens. Clones measure into the same.
#[derive(Clone, Debug)]
pub struct Metrics {
    lateness: Histogram,
    duration: Histogram,
    echoes: PerTransport<Histogram>,
    last_echo: Arc<Mutex<Option<Duration>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            lateness: Histogram::new(LATENESS),
            duration: Histogram::new(DURATION),
            echoes: PerTransport {
                changes: Histogram::new(ECHO),
                broadcast: Histogram::new(ECHO),
            },
            last_echo: Arc::default(),
        }
    }
}

impl Metrics {
    /// A batch was stored so many microseconds after its instant, and took so long.
    pub fn stored(&self, late_us: i64, took: Duration) {
        let late = Duration::from_micros(u64::try_from(late_us).unwrap_or(0));
        self.lateness.observe(late.as_secs_f64());
        self.duration.observe(took.as_secs_f64());
    }

    /// Measures an event, if it is an echo.
    pub fn event(&self, event: &Event) {
        let (Some(transport), Some(after)) = (event.transport, event.elapsed) else {
            return;
        };
        if !event.is(&Event::ECHO_RECEIVED) {
            return;
        }
        self.echoes.of(transport).observe(after.as_secs_f64());
        *self
            .last_echo
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(after);
    }

    /// How long the last echo took.
    pub fn last_echo(&self) -> Option<Duration> {
        *self
            .last_echo
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How late batches were, since the start.
    pub fn lateness(&self) -> Counts {
        self.lateness.read()
    }

    /// As families of their own.
    pub fn families(&self) -> Vec<Family> {
        let echoes = Transport::ALL.map(|transport| {
            let spread = self.echoes.of(transport).read();
            (transport.as_str(), Value::Spread(spread))
        });
        vec![
            Family::one(
                "commit_lateness_seconds",
                "From the instant that a batch was due at to its answer",
                Value::Spread(self.lateness.read()),
            ),
            Family::one(
                "batch_duration_seconds",
                "Round trip of a batch's statement",
                Value::Spread(self.duration.read()),
            ),
            Family::by(
                "realtime_echo_seconds",
                "From a write of the agent's own to its event, by the way it came",
                "way",
                echoes,
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_asked_for_by_ids_with_commas_and_not_too_many() {
        let id = Uuid::from_u128(7);
        assert_eq!(format!("{id}, {id},").parse(), Ok(RowsAsked([id].into())));
        assert_eq!("".parse(), Ok(RowsAsked::default()));
        assert_eq!(
            "x".parse::<RowsAsked>(),
            Err(NoRows::NotAnId("x".to_owned()))
        );
        let many: Vec<String> = (0..=101).map(|n| Uuid::from_u128(n).to_string()).collect();
        let many = many.join(",");
        assert_eq!(many.parse::<RowsAsked>(), Err(NoRows::TooMany(102)));
    }
}
