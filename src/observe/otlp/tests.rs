//! What is pushed, to a collector of our own, and what becomes of pushes that fail.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::{HeaderMap as Heads, Uri};
use serde_json::{Value as Json, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::histogram::Histogram;
use super::super::text::{Format, render};
use super::super::{Metrics, Value};
use super::*;

/// However slow the machine is.
const PATIENCE: Duration = Duration::from_secs(60);
const OFTEN: Duration = Duration::from_millis(20);
const NEVER: Duration = Duration::from_secs(86_400);
const AGENT: Uuid = Uuid::from_u128(7);

/// Of each kind one, a label that the text must escape, and what was measured not yet.
fn families() -> Vec<Family> {
    let spread = Histogram::new(&[0.5, 1.0]);
    for value in [0.25, 1.0, 2.0] {
        spread.observe(value);
    }
    let outcomes = [("stored", Value::Count(2)), ("failed", Value::Count(3))];
    let version = [("a \"quoted\" \\ back\nline", Value::Level(1))];
    let none: [(&str, Value); 0] = [];
    let mut families = vec![
        Family::by("batches", "Batches", "outcome", outcomes),
        Family::one("used_seconds", "Time used", Value::Sum(1.5)),
        Family::by("build_info", "1, with the version", "version", version),
        Family::one("backlog_visits", "Owed", Value::Level(-4)),
        Family::one("sync_age_seconds", "Age", Value::Real(0.25)),
        Family::one("late_seconds", "How late", Value::Spread(spread.read())),
        Family::by("unseen", "Without series", "way", none),
    ];
    families.extend(Metrics::default().families());
    families
}

fn of_the_process() -> Vec<Family> {
    vec![Family::one(
        "process_resident_memory_bytes",
        "Memory",
        Value::Real(7.0),
    )]
}

fn requested() -> Json {
    let resource = BTreeMap::from([("service.name".to_owned(), "visit-pacer".to_owned())]);
    let span = Span { begun: 1, now: 2 };
    request(&resource, &families(), &of_the_process(), span)
}

fn metrics(request: &Json) -> &[Json] {
    let metrics = &request["resourceMetrics"][0]["scopeMetrics"][0]["metrics"];
    metrics.as_array().expect("metrics")
}

fn metric<'a>(request: &'a Json, name: &str) -> &'a Json {
    let found = metrics(request).iter().find(|m| m["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {request:#}"))
}

#[test]
fn a_counter_is_a_cumulative_monotonic_sum_under_the_name_that_it_has_in_the_text() {
    let point = |outcome: &str, count: &str| {
        json!({
            "attributes": [{ "key": "outcome", "value": { "stringValue": outcome } }],
            "startTimeUnixNano": "1",
            "timeUnixNano": "2",
            "asInt": count,
        })
    };
    let expected = json!({
        "name": "visit_pacer_batches_total",
        "description": "Batches",
        "unit": "",
        "metadata": [{ "key": "prometheus.type", "value": { "stringValue": "counter" } }],
        "sum": {
            "dataPoints": [point("stored", "2"), point("failed", "3")],
            "aggregationTemporality": 2,
            "isMonotonic": true,
        },
    });
    let request = requested();
    assert_eq!(metric(&request, "visit_pacer_batches_total"), &expected);
    let used = metric(&request, "visit_pacer_used_seconds_total");
    assert_eq!(used["sum"]["dataPoints"][0]["asDouble"], json!(1.5));
    assert_eq!(used["unit"], "s");
}

#[test]
fn a_gauge_is_a_gauge_and_a_label_needs_no_escapes() {
    let request = requested();
    let owed = metric(&request, "visit_pacer_backlog_visits");
    let point = json!({ "attributes": [], "timeUnixNano": "2", "asInt": "-4" });
    assert_eq!(owed["gauge"], json!({ "dataPoints": [point] }));
    let age = metric(&request, "visit_pacer_sync_age_seconds");
    assert_eq!(age["gauge"]["dataPoints"][0]["asDouble"], json!(0.25));
    let info = metric(&request, "visit_pacer_build_info");
    let label = &info["gauge"]["dataPoints"][0]["attributes"][0];
    assert_eq!(label["value"]["stringValue"], "a \"quoted\" \\ back\nline");
    let process = metric(&request, "process_resident_memory_bytes");
    assert_eq!(process["unit"], "By");
}

#[test]
fn a_histogram_has_the_same_buckets_each_with_its_own_count() {
    let request = requested();
    let late = &metric(&request, "visit_pacer_late_seconds")["histogram"];
    let expected = json!({
        "attributes": [],
        "startTimeUnixNano": "1",
        "timeUnixNano": "2",
        "count": "3",
        "sum": 3.25,
        "explicitBounds": [0.5, 1.0],
        "bucketCounts": ["1", "1", "1"],
    });
    assert_eq!(late["dataPoints"], json!([expected]));
    assert_eq!(late["aggregationTemporality"], 2);
}

/// A line of the text, its labels in order: none of them has a comma.
fn in_order(line: &str) -> (String, BTreeSet<String>, String) {
    let (series, value) = line.rsplit_once(' ').expect("a value");
    let value: f64 = value.parse().expect("a number");
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels = labels.strip_suffix('}').expect("an end").split(',');
    let labels = labels.map(str::to_owned).collect();
    (name.to_owned(), labels, format!("{value:?}"))
}

fn number(value: &Json) -> f64 {
    let text = value.as_str().map(str::to_owned);
    text.unwrap_or_else(|| value.to_string())
        .parse()
        .expect("a number")
}

/// As Prometheus writes a point.
fn lines(name: &str, point: &Json) -> Vec<String> {
    let attributes = point["attributes"].as_array().expect("attributes");
    let labels: Vec<String> = attributes
        .iter()
        .map(|attribute| {
            let value = attribute["value"]["stringValue"].as_str().expect("a text");
            // The escapes of a string in the text are those of Rust.
            format!("{}={value:?}", attribute["key"].as_str().expect("a name"))
        })
        .collect();
    let line = |suffix: &str, bound: Option<String>, value: f64| {
        let bound = bound.map(|bound| format!("le=\"{bound}\""));
        let labels: Vec<_> = labels.iter().cloned().chain(bound).collect();
        format!("{name}{suffix}{{{}}} {value}", labels.join(","))
    };
    let Some(counts) = point["bucketCounts"].as_array() else {
        let [int, double] = [&point["asInt"], &point["asDouble"]];
        return vec![line(
            "",
            None,
            number(if int.is_null() { double } else { int }),
        )];
    };
    let bounds = point["explicitBounds"].as_array().expect("bounds").iter();
    let bounds = bounds.map(|bound| format!("{:?}", number(bound)));
    let mut below = 0.0;
    bounds
        .chain(["+Inf".to_owned()])
        .zip(counts)
        .map(|(bound, count)| {
            below += number(count);
            line("_bucket", Some(bound), below)
        })
        .chain([line("_sum", None, number(&point["sum"]))])
        .chain([line("_count", None, number(&point["count"]))])
        .collect()
}

#[test]
fn what_is_pushed_are_the_series_and_values_of_the_text_and_no_others() {
    let text = render(families(), of_the_process(), Format::Classic);
    let scraped: BTreeSet<_> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(in_order)
        .collect();
    let request = requested();
    let pushed: BTreeSet<_> = metrics(&request)
        .iter()
        .flat_map(|metric| {
            let name = metric["name"].as_str().expect("a name");
            let kinds = ["sum", "gauge", "histogram"].map(|kind| &metric[kind]["dataPoints"]);
            let points = kinds.into_iter().filter_map(Json::as_array).flatten();
            points
                .flat_map(|point| lines(name, point))
                .collect::<Vec<_>>()
        })
        .map(|line| in_order(&line))
        .collect();
    assert_eq!(pushed, scraped);
}

/// A collector: whatever comes is kept, and answered with a status and a body.
struct Collector {
    at: SocketAddr,
    pushed: mpsc::Receiver<(Uri, Heads, Json)>,
    _serving: JoinSet<()>,
}

type Answers = (u16, &'static str);

impl Collector {
    async fn start(answer: Answers) -> Self {
        let listener = TcpListener::bind(ANY_PORT).await;
        Self::on(listener.expect("a free port"), answer)
    }

    fn on(listener: TcpListener, answer: Answers) -> Self {
        type Kept = mpsc::Sender<(Uri, Heads, Json)>;
        let (keep, pushed) = mpsc::channel(1000);
        let take = move |State(keep): State<Kept>, uri: Uri, heads: Heads, body: Bytes| async move {
            let body = serde_json::from_slice(&body).expect("JSON");
            keep.send((uri, heads, body)).await.ok();
            (
                StatusCode::from_u16(answer.0).expect("a status"),
                [(LOCATION, "/elsewhere")],
                answer.1,
            )
        };
        let at = listener.local_addr().expect("bound");
        let router = Router::new().fallback(take).with_state(keep);
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.expect("serves") });
        Self {
            at,
            pushed,
            _serving: serving,
        }
    }

    async fn pushed(&mut self) -> (Uri, Heads, Json) {
        let pushed = timeout(PATIENCE, self.pushed.recv()).await;
        pushed.expect("in time").expect("the collector runs")
    }
}

const ANY_PORT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// An address where nobody listens, and the port, which is kept from others.
fn nobody() -> (SocketAddr, TcpSocket) {
    let port = TcpSocket::new_v4().expect("a socket");
    port.bind(ANY_PORT).expect("a free port");
    (port.local_addr().expect("bound"), port)
}

fn export(to: SocketAddr, every: Duration) -> Export {
    let mut key = HeaderValue::from_static("hunter2");
    key.set_sensitive(true);
    Export {
        url: format!("http://user:hunter2@{to}/v1/metrics?key=hunter2")
            .parse()
            .expect("a URL"),
        headers: HeaderMap::from_iter([("x-key".parse().expect("a name"), key)]),
        timeout: PATIENCE,
        every,
        resource: BTreeMap::from([("service.name".to_owned(), "visit-pacer".to_owned())]),
    }
}

#[tokio::test]
async fn a_collector_is_told_of_the_series_each_interval_and_once_more_at_the_end() {
    let mut collector = Collector::start((200, "{}")).await;
    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(export(collector.at, OFTEN).run(AGENT, families, shutdown.clone()));
    let (uri, heads, first) = collector.pushed().await;
    assert_eq!(uri.path(), "/v1/metrics");
    assert_eq!(heads["content-type"], "application/json");
    assert_eq!(heads["x-key"], "hunter2");
    let resource = &first["resourceMetrics"][0]["resource"]["attributes"];
    let instance =
        json!({ "key": "service.instance.id", "value": { "stringValue": AGENT.to_string() } });
    assert!(
        resource.as_array().expect("attributes").contains(&instance),
        "{resource}"
    );
    let point = |request: &Json| {
        let batches = metric(request, "visit_pacer_batches_total");
        batches["sum"]["dataPoints"][0].clone()
    };
    assert_eq!(point(&first)["asInt"], "2");
    metric(&first, "process_open_fds");
    let (.., second) = collector.pushed().await;
    let [first, second] = [&first, &second].map(point);
    assert_eq!(first["startTimeUnixNano"], second["startTimeUnixNano"]);
    assert!(number(&first["timeUnixNano"]) < number(&second["timeUnixNano"]));
    shutdown.cancel();
    tasks.join_all().await;

    let shutdown = CancellationToken::new();
    shutdown.cancel();
    while collector.pushed.try_recv().is_ok() {}
    export(collector.at, NEVER)
        .run(AGENT, families, shutdown)
        .await;
    let (.., last) = collector.pushed().await;
    assert_eq!(point(&last)["asInt"], "2");
}

#[tokio::test]
async fn a_collector_that_was_away_is_told_all_of_it_as_soon_as_it_is_back() {
    let (away, port) = nobody();
    let (read, mut readings) = mpsc::channel(1);
    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let families = move || {
        read.try_send(()).ok();
        families()
    };
    tasks.spawn(export(away, OFTEN).run(AGENT, families, shutdown.clone()));
    for _ in 0..3 {
        let tried = timeout(PATIENCE, readings.recv()).await;
        tried.expect("in time").expect("it goes on");
    }
    let listener = port.listen(16).expect("ours");
    let mut back = Collector::on(listener, (200, ""));
    let (.., pushed) = back.pushed().await;
    metric(&pushed, "visit_pacer_batches_total");
    shutdown.cancel();
    tasks.join_all().await;
}

#[tokio::test]
async fn a_collector_that_keeps_silent_holds_up_a_stop_for_the_time_of_the_last_push_at_the_most() {
    let silent = TcpListener::bind(ANY_PORT).await.expect("a free port");
    let at = silent.local_addr().expect("bound");
    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(export(at, OFTEN).run(AGENT, families, shutdown.clone()));
    let in_flight = timeout(PATIENCE, silent.accept()).await;
    let _push = in_flight.expect("in time").expect("a connection");
    let begun = Instant::now();
    shutdown.cancel();
    tasks.join_all().await;
    let took = begun.elapsed();
    println!("stopped {took:?} after it was asked to");
    assert!(took >= LAST_PUSH_WITHIN, "it did not try: {took:?}");
    assert!(took < PATIENCE, "it waited for an answer: {took:?}");
    let brief = Export {
        timeout: OFTEN,
        ..export(at, NEVER)
    };
    let client = brief.client().expect("a client");
    let failure = brief.push(&client, b"{}".to_vec()).await.unwrap_err();
    assert_eq!(failure.to_string(), "no answer within 0.02 s");
}

#[tokio::test]
async fn what_a_collector_refuses_is_a_failure_and_its_reason_told_without_a_secret() {
    let partly = r#"{"partialSuccess":{"rejectedDataPoints":"3","errorMessage":"too old"}}"#;
    let warned = r#"{"partialSuccess":{"errorMessage":"deprecated"}}"#;
    for (answer, expected) in [
        ((200, ""), None),
        ((202, "no JSON"), None),
        ((200, warned), None),
        ((200, partly), Some("it rejected 3 data points: too old")),
        ((401, ""), Some("it answered 401 Unauthorized")),
        ((307, ""), Some("it answered 307 Temporary Redirect")),
    ] {
        let collector = Collector::start(answer).await;
        let export = export(collector.at, NEVER);
        let client = export.client().expect("a client");
        let outcome = export.push(&client, b"{}".to_vec()).await;
        let told = outcome.err().map(|failure| failure.to_string());
        assert_eq!(told.as_deref(), expected, "{answer:?}");
    }
    let (away, _port) = nobody();
    let export = export(away, NEVER);
    let client = export.client().expect("a client");
    let told = export
        .push(&client, Vec::new())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        told.contains("refused") && !told.contains("hunter2"),
        "{told}"
    );
    assert_eq!(export.place(), format!("http://{away}/v1/metrics"));
    let large = export.push(&client, vec![b' '; BODY_MAX + 1]).await;
    assert!(matches!(large, Err(Failure::TooLarge(_))), "{large:?}");
}

#[test]
fn an_outage_is_told_when_it_begins_and_when_it_ends() {
    let mut outage = Outage::default();
    let failed = || Err(Failure::Refused(StatusCode::BAD_GATEWAY));
    assert_eq!(outage.hear(Ok(())), None);
    let begins = Said::Begins("it answered 502 Bad Gateway".to_owned());
    assert_eq!(outage.hear(failed()), Some(begins));
    assert_eq!(outage.hear(failed()), None);
    assert_eq!(outage.hear(Ok(())), Some(Said::Ends));
    assert_eq!(outage.hear(Ok(())), None);
}
