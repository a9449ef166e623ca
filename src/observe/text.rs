//! The exposition: OpenMetrics for clients that accept it, the text format of Prometheus (0.0.4) for all others.
//!
//! `prometheus-client` writes OpenMetrics 1.0. The text format has the same lines, except that a counter's `# HELP` and `# TYPE`
//! name it with its suffix, and that there is no `# EOF`.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::{MetricFamily, MetricValue, PREFIX, Series};

/// An exposition format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format of Prometheus, 0.0.4.
    Classic,
}

impl Format {
    /// Chosen by the header `Accept`.
    pub fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") {
            Self::OpenMetrics
        } else {
            Self::Classic
        }
    }

    /// The header `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The exposition of the agent's families, with the prefix `visit_pacer_`, and of those of the process, without.
pub fn render(agent: Vec<MetricFamily>, process: Vec<MetricFamily>, format: Format) -> String {
    let mut registry = Registry::default();
    registry
        .sub_registry_with_prefix(PREFIX)
        .register_collector(Box::new(Families(agent)));
    registry.register_collector(Box::new(Families(process)));
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _written = prometheus_client::encoding::text::encode(&mut text, &registry).is_ok();
    match format {
        Format::OpenMetrics => text,
        Format::Classic => classic(&text),
    }
}

/// Each family begins with its `# HELP` and `# TYPE`.
fn classic(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    let mut lines = open.lines().filter(|line| *line != "# EOF").peekable();
    while let Some(line) = lines.next() {
        let described = line.strip_prefix("# HELP ");
        let kind = lines.peek().and_then(|next| next.strip_prefix("# TYPE "));
        match (described, kind.and_then(|kind| kind.rsplit_once(' '))) {
            (Some(described), Some((name, "counter"))) => {
                let help = described.strip_prefix(name).unwrap_or_default();
                text.extend(["# HELP ", name, "_total", help, "\n"]);
                text.extend(["# TYPE ", name, "_total counter\n"]);
                lines.next();
            }
            _ => text.extend([line, "\n"]),
        }
    }
    text
}

#[derive(Debug)]
struct Families(Vec<MetricFamily>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for MetricFamily { name, help, series } in &self.0 {
            let Some(first) = series.first() else {
                continue;
            };
            let kind = first.value.metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for Series { label, value } in series {
                match label {
                    None => value.encode_as(&mut family)?,
                    Some((label, of)) => {
                        value.encode_as(&mut family.encode_family(&[(*label, of.as_str())])?)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl MetricValue {
    fn metric_type(&self) -> MetricType {
        match self {
            Self::Counter(_) | Self::FloatCounter(_) => MetricType::Counter,
            Self::Gauge(_) | Self::FloatGauge(_) => MetricType::Gauge,
            Self::Histogram(_) => MetricType::Histogram,
        }
    }

    fn encode_as(&self, encoder: &mut MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Self::Counter(count) => encoder.encode_counter::<NoLabelSet, _, u64>(count, None),
            Self::FloatCounter(sum) => encoder.encode_counter::<NoLabelSet, _, f64>(sum, None),
            Self::Gauge(level) => encoder.encode_gauge(level),
            Self::FloatGauge(real) => encoder.encode_gauge(real),
            Self::Histogram(counts) => {
                let buckets: Vec<(f64, u64)> = counts
                    .buckets()
                    .map(|(bound, count)| (bound.unwrap_or(f64::INFINITY), count))
                    .collect();
                encoder.encode_histogram::<NoLabelSet>(counts.sum(), counts.total(), &buckets, None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::histogram::Histogram;
    use super::*;

    fn rendered(format: Format) -> String {
        let histogram = Histogram::new(&[1.0]);
        histogram.observe(0.5);
        histogram.observe(2.0);
        let by_kind = [
            ("a", MetricValue::Counter(2)),
            ("b", MetricValue::Counter(3)),
        ];
        render(
            vec![
                MetricFamily::labelled("batches", "Batches by outcome", "outcome", by_kind),
                MetricFamily::new(
                    "delay_seconds",
                    "Delay",
                    MetricValue::Histogram(histogram.read()),
                ),
            ],
            vec![MetricFamily::new(
                "process_open_fds",
                "Files",
                MetricValue::Gauge(7),
            )],
            format,
        )
    }

    #[test]
    fn in_openmetrics_a_counter_is_described_without_its_suffix_and_the_text_has_an_end() {
        let text = rendered(Format::OpenMetrics);
        assert!(
            text.contains("# TYPE visit_pacer_batches counter\n"),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn in_the_classic_format_a_counter_is_described_by_its_full_name() {
        assert_eq!(
            rendered(Format::Classic),
            "\
# HELP process_open_fds Files
# TYPE process_open_fds gauge
process_open_fds 7
# HELP visit_pacer_batches_total Batches by outcome
# TYPE visit_pacer_batches_total counter
visit_pacer_batches_total{outcome=\"a\"} 2
visit_pacer_batches_total{outcome=\"b\"} 3
# HELP visit_pacer_delay_seconds Delay
# TYPE visit_pacer_delay_seconds histogram
visit_pacer_delay_seconds_sum 2.5
visit_pacer_delay_seconds_count 2
visit_pacer_delay_seconds_bucket{le=\"1.0\"} 1
visit_pacer_delay_seconds_bucket{le=\"+Inf\"} 2
"
        );
    }
}
