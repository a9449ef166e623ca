//! Metrics in the Prometheus text format: every name and description in one place.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Rows by one label's value.
pub type ByLabel = Vec<(&'static str, i64)>;

/// Plain numbers that are read when somebody scrapes.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Readings {
    /// Name, help, value; ever rising.
    pub counters: Vec<(&'static str, &'static str, u64)>,
    /// Name, help, value.
    pub gauges: Vec<(&'static str, &'static str, i64)>,
    /// Rows by status.
    pub by_status: ByLabel,
    /// Rows that are behind, by what keeps them.
    pub stalled: ByLabel,
}

/// What is measured as it happens, and where it is rendered.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    lateness: Histogram,
    duration: Histogram,
}

impl Metrics {
    /// Readings come from a closure, called at each scrape.
    pub fn new(readings: impl Fn() -> Readings + Send + Sync + 'static) -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let (lateness, duration) = (seconds(), seconds());
        let mut registry = Registry::with_prefix("visit_pacer");
        registry.register(
            "commit_lateness_seconds",
            "From the instant that a batch was due at to its answer",
            lateness.clone(),
        );
        registry.register(
            "batch_duration_seconds",
            "Round trip of a batch's statement",
            duration.clone(),
        );
        registry.register_collector(Box::new(Scrape(Box::new(readings))));
        Self {
            registry: Arc::new(registry),
            lateness,
            duration,
        }
    }

    /// A batch was stored so many microseconds after its instant, and took so long.
    pub fn stored(&self, late_us: i64, took: Duration) {
        let late = Duration::from_micros(u64::try_from(late_us).unwrap_or(0));
        self.lateness.observe(late.as_secs_f64());
        self.duration.observe(took.as_secs_f64());
    }

    /// The text of `/metrics`.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _written = prometheus_client::encoding::text::encode(&mut text, &self.registry).is_ok();
        text
    }
}

struct Scrape(Box<dyn Fn() -> Readings + Send + Sync>);

impl std::fmt::Debug for Scrape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let readings = (self.0)();
        for (name, help, value) in &readings.counters {
            let counter = ConstCounter::new(*value);
            counter.encode(encoder.encode_descriptor(
                name,
                help,
                None,
                counter.metric_type(),
            )?)?;
        }
        for (name, help, value) in &readings.gauges {
            let gauge = ConstGauge::new(*value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let by_label = [
            (
                "distributions",
                "Rows by status",
                "status",
                &readings.by_status,
            ),
            (
                "distributions_stalled",
                "Rows behind, by what keeps them",
                "reason",
                &readings.stalled,
            ),
        ];
        for (name, help, label, rows) in by_label {
            let kind = ConstGauge::new(0_i64).metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (value, count) in rows {
                ConstGauge::new(*count).encode(family.encode_family(&[(label, *value)])?)?;
            }
        }
        Ok(())
    }
}
