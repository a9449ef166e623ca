//! Families as an `ExportMetricsServiceRequest` of `opentelemetry-proto`, in its JSON mapping: names in lowerCamelCase, 64-bit
//! integers as strings, enumerations as numbers.
//!
//! What becomes of names and kinds is by "Prometheus and OpenMetrics Compatibility" of the OpenTelemetry specification: a metric
//! has the name that it has at `/metrics` (a counter's with `_total`), its help as the description, its kind as `prometheus.type`
//! too; a counter is a cumulative monotonic sum. Units are those that the names end in.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::super::histogram::Counts;
use super::super::{Family, PREFIX, Series, Value};

/// `AGGREGATION_TEMPORALITY_CUMULATIVE`.
const CUMULATIVE: u8 = 2;

/// The time that is told of, in nanoseconds of the Unix epoch.
#[derive(Clone, Copy)]
pub struct Span {
    /// What is cumulative counts from here.
    pub begun: u64,
    /// When it was read.
    pub now: u64,
}

/// The body: our families with the prefix, those of the process without.
pub fn request(
    resource: &BTreeMap<String, String>,
    ours: &[Family],
    process: &[Family],
    span: Span,
) -> Json {
    let prefixed = ours
        .iter()
        .filter_map(|family| metric(family, &format!("{PREFIX}_{}", family.name), span));
    let plain = process
        .iter()
        .filter_map(|family| metric(family, family.name, span));
    let metrics: Vec<Json> = prefixed.chain(plain).collect();
    let resource: Vec<Json> = resource
        .iter()
        .map(|(name, value)| attribute(name, value))
        .collect();
    json!({
        "resourceMetrics": [{
            "resource": { "attributes": resource },
            "scopeMetrics": [{
                "scope": { "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION") },
                "metrics": metrics,
            }],
        }],
    })
}

fn metric(family: &Family, name: &str, span: Span) -> Option<Json> {
    let points: Vec<Json> = family
        .series
        .iter()
        .map(|series| point(series, span))
        .collect();
    let (kind, suffix, field, data) = match family.series.first()?.value {
        Value::Count(_) | Value::Sum(_) => (
            "counter",
            "_total",
            "sum",
            json!({ "dataPoints": points, "aggregationTemporality": CUMULATIVE, "isMonotonic": true }),
        ),
        Value::Level(_) | Value::Real(_) => ("gauge", "", "gauge", json!({ "dataPoints": points })),
        Value::Spread(_) => (
            "histogram",
            "",
            "histogram",
            json!({ "dataPoints": points, "aggregationTemporality": CUMULATIVE }),
        ),
    };
    Some(json!({
        "name": format!("{name}{suffix}"),
        "description": family.help,
        "unit": unit(name),
        "metadata": [attribute("prometheus.type", kind)],
        (field): data,
    }))
}

/// In the words of UCUM. What is counted has none: a `1` would end in the name, as `_ratio`.
fn unit(name: &str) -> &'static str {
    match name.rsplit_once('_') {
        Some((_, "seconds")) => "s",
        Some((_, "bytes")) => "By",
        _ => "",
    }
}

fn point(Series { label, value }: &Series, span: Span) -> Json {
    let label = label.iter().map(|(name, value)| attribute(name, value));
    let mut point = json!({
        "attributes": label.collect::<Vec<_>>(),
        "timeUnixNano": span.now.to_string(),
    });
    let fields = match value {
        Value::Count(count) => {
            json!({ "startTimeUnixNano": span.begun.to_string(), "asInt": count.to_string() })
        }
        Value::Sum(sum) => {
            json!({ "startTimeUnixNano": span.begun.to_string(), "asDouble": double(*sum) })
        }
        Value::Level(level) => json!({ "asInt": level.to_string() }),
        Value::Real(real) => json!({ "asDouble": double(*real) }),
        Value::Spread(counts) => spread(counts, span),
    };
    if let (Json::Object(point), Json::Object(fields)) = (&mut point, fields) {
        point.extend(fields);
    }
    point
}

/// Bounds are upper ones, and belong to their bucket, as `le` has it; one count more is what is beyond.
fn spread(counts: &Counts, span: Span) -> Json {
    let bounds = counts.buckets().filter_map(|(bound, _)| bound);
    let within = counts.buckets().map(|(_, count)| count.to_string());
    json!({
        "startTimeUnixNano": span.begun.to_string(),
        "count": counts.total().to_string(),
        "sum": double(counts.sum()),
        "explicitBounds": bounds.map(double).collect::<Vec<_>>(),
        "bucketCounts": within.collect::<Vec<_>>(),
    })
}

fn attribute(name: &str, value: &str) -> Json {
    json!({ "key": name, "value": { "stringValue": value } })
}

/// JSON has no number for what is not finite; its mapping of Protocol Buffers has words.
fn double(value: f64) -> Json {
    if value.is_finite() {
        json!(value)
    } else if value.is_nan() {
        json!("NaN")
    } else if value > 0.0 {
        json!("Infinity")
    } else {
        json!("-Infinity")
    }
}
