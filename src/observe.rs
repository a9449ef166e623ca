//! What the agent exposes: metrics and their text for Prometheus, and recent events.
//!
//! Owns the formats; the runtime provides the counts at each scrape. `histogram` has what is measured as it happens, `process`
//! the kernel's figures of the process, `recent` the latest events, `text` the exposition format.
//!
//! Invariant: labels are bounded. Nothing grows with the table except the series of selected distributions, at most
//! [`SELECTED_MAX`].

pub mod histogram;
pub mod process;
pub mod recent;
pub mod text;

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use self::histogram::{Histogram, HistogramCounts};
use crate::domain::event::Event;
use crate::domain::transport::{PerTransport, Transport};

/// The prefix of the agent's metrics.
const PREFIX: &str = "visit_pacer";

/// The most distributions that may have series of their own in one scrape.
pub const SELECTED_MAX: usize = 100;

/// Upper bounds in seconds of the delay from a batch's scheduled instant to its answer.
const DELAY: &[f64] = &[
    0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0,
];
/// … of a statement's round trip, which times out after twelve.
const DURATION: &[f64] = &[
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 12.0,
];
/// … of an echo, which times out after ten.
const ECHO: &[f64] = &[0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// One metric with all its series. Its name has neither the prefix `visit_pacer_` nor a counter's suffix `_total`.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricFamily {
    /// With its base unit.
    pub name: &'static str,
    /// One sentence, without the full stop.
    pub help: &'static str,
    /// All of one type. A family without series is not exposed.
    pub series: Vec<Series>,
}

/// One time series.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Name and value.
    pub label: Option<(&'static str, String)>,
    /// Its value now.
    pub value: MetricValue,
}

/// A value of one of the metric types.
#[derive(Clone, Debug, PartialEq)]
pub enum MetricValue {
    /// A counter.
    Counter(u64),
    /// A counter that is not a whole number.
    FloatCounter(f64),
    /// A gauge.
    Gauge(i64),
    /// A gauge that is not a whole number.
    FloatGauge(f64),
    /// A histogram.
    Histogram(HistogramCounts),
}

impl MetricFamily {
    /// With one series.
    pub fn new(name: &'static str, help: &'static str, value: MetricValue) -> Self {
        let series = vec![Series { label: None, value }];
        Self { name, help, series }
    }

    /// With one series for each value of a label.
    pub fn labelled<L: Into<String>>(
        name: &'static str,
        help: &'static str,
        label: &'static str,
        values: impl IntoIterator<Item = (L, MetricValue)>,
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

/// Distributions that have series of their own.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SelectedDistributions(pub BTreeSet<Uuid>);

/// Why a list of distributions is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// A part of it is no id.
    #[error("'{0}' is not the id of a distribution; expected UUIDs separated by commas")]
    NotAnId(String),
    /// It is too long.
    #[error("{0} distributions are selected; expected at most {SELECTED_MAX}")]
    TooMany(usize),
}

impl FromStr for SelectedDistributions {
    type Err = SelectionError;

    fn from_str(text: &str) -> Result<Self, SelectionError> {
        let parts = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        let ids = parts.map(|part| {
            let shown = || part.chars().take(40).collect();
            part.parse().map_err(|_| SelectionError::NotAnId(shown()))
        });
        let ids: BTreeSet<Uuid> = ids.collect::<Result<_, _>>()?;
        if ids.len() > SELECTED_MAX {
            return Err(SelectionError::TooMany(ids.len()));
        }
        Ok(Self(ids))
    }
}

/// The metrics that are measured as they happen. Clones share the same values.
#[derive(Clone, Debug)]
pub struct Metrics {
    delay: Histogram,
    duration: Histogram,
    echoes: PerTransport<Histogram>,
    last_echo: Arc<Mutex<Option<Duration>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            delay: Histogram::new(DELAY),
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
    /// A batch was stored `delay_us` microseconds after its scheduled instant, with a round trip of `took`.
    pub fn stored(&self, delay_us: i64, took: Duration) {
        let delay = Duration::from_micros(u64::try_from(delay_us).unwrap_or(0));
        self.delay.observe(delay.as_secs_f64());
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

    /// The time of the last echo.
    pub fn last_echo(&self) -> Option<Duration> {
        *self
            .last_echo
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The delays of batches since the start.
    pub fn delay(&self) -> HistogramCounts {
        self.delay.read()
    }

    /// The measured metrics.
    pub fn families(&self) -> Vec<MetricFamily> {
        let echoes = Transport::ALL.map(|transport| {
            let counts = self.echoes.of(transport).read();
            (transport.as_str(), MetricValue::Histogram(counts))
        });
        vec![
            MetricFamily::new(
                "batch_delay_seconds",
                "Time from the scheduled instant of a batch to its answer",
                MetricValue::Histogram(self.delay.read()),
            ),
            MetricFamily::new(
                "batch_duration_seconds",
                "Round trip of a batch's statement",
                MetricValue::Histogram(self.duration.read()),
            ),
            MetricFamily::labelled(
                "realtime_echo_seconds",
                "Time from a write of the agent to its event, by transport",
                "transport",
                echoes,
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_are_selected_by_ids_with_commas_and_not_too_many() {
        let id = Uuid::from_u128(7);
        assert_eq!(
            format!("{id}, {id},").parse(),
            Ok(SelectedDistributions([id].into()))
        );
        assert_eq!("".parse(), Ok(SelectedDistributions::default()));
        assert_eq!(
            "x".parse::<SelectedDistributions>(),
            Err(SelectionError::NotAnId("x".to_owned()))
        );
        let many: Vec<String> = (0..=101).map(|n| Uuid::from_u128(n).to_string()).collect();
        let many = many.join(",");
        assert_eq!(
            many.parse::<SelectedDistributions>(),
            Err(SelectionError::TooMany(102))
        );
    }
}
