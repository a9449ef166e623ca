//! The metrics of a running agent, and the alerts and the Grafana dashboard made from them, checked by Prometheus' `promtool`.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use uuid::Uuid;
use visit_pacer::observe::SELECTED_MAX;

use crate::harness::{Agent, PATIENCE, Place, find, wait_until};

const ALERTS: &str = include_str!("../../deploy/prometheus/alerts.yml");
const SECTIONS: &str = include_str!("../../deploy/prometheus/README.md");
const DASHBOARD: &str = include_str!("../../deploy/grafana/visit-pacer.json");

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus")
}

/// Runs `promtool` with this on its standard input. Returns its output; fails if it finds an error.
fn promtool(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed (Debian: apt install prometheus)");
    let mut stdin = child.stdin.take().expect("a pipe");
    // It may end before it has read everything.
    stdin.write_all(input.as_bytes()).ok();
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    said
}

/// The names of all series of a scrape.
fn exposed(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .map(str::to_owned)
        .collect()
}

/// The names of our metrics and those of the process in expressions.
fn named(text: &str) -> BTreeSet<&str> {
    let is_of_a_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    text.split(|letter| !is_of_a_name(letter))
        .filter(|word| word.starts_with("visit_pacer_") || word.starts_with("process_"))
        .collect()
}

/// The values of these keys, wherever they are.
fn values_of<'a>(json: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match json {
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == key {
                    found.extend(value.as_str());
                }
                values_of(value, key, found);
            }
        }
        Value::Array(items) => {
            for item in items {
                values_of(item, key, found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The expressions of the alerts.
fn alert_expressions() -> Vec<&'static str> {
    let expressions = ALERTS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "));
    expressions.collect()
}

/// An agent that has stored visits of one row and received the event of its own write-back.
async fn working_agent(place: &Place) -> (Agent, Uuid) {
    let row = place.insert(1_000_000, "20 a second", "null").await;
    let agent = place.agent().await;
    place.has_stored(row, 40).await;
    let echo = r#"visit_pacer_realtime_echo_seconds_count{transport="postgres_changes"}"#;
    wait_until("its own write is heard of", PATIENCE, async || {
        agent.metric(echo).await > Some(0.0)
    })
    .await;
    (agent, row)
}

#[tokio::test]
async fn promtool_finds_no_error_in_the_metrics_of_a_running_agent() {
    let place = Place::new().await;
    let (agent, row) = working_agent(&place).await;
    for path in [
        "/metrics".to_owned(),
        format!("/metrics?distributions={row}"),
    ] {
        let (status, text) = agent.get(&path).await;
        assert_eq!(status, 200);
        assert_eq!(promtool(&["check", "metrics"], &text), "", "{text}");
    }
}

#[tokio::test]
async fn the_metrics_agree_with_what_the_agent_did() {
    let place = Place::new().await;
    let (agent, row) = working_agent(&place).await;
    assert!(agent.metric("visit_pacer_realtime_echo_seconds_sum").await > Some(0.0));
    place.finishes(row).await;
    let stored = place.stored(row).await.to_string();
    find("all visits are counted", PATIENCE, async || {
        let counted = agent.metric("visit_pacer_visits_stored_total").await?;
        (format!("{counted:.0}") == stored).then_some(())
    })
    .await;
    let batches = r#"visit_pacer_batches_total{outcome="stored"}"#;
    wait_until("each batch is measured", PATIENCE, async || {
        let measured = agent
            .metric("visit_pacer_batch_duration_seconds_count")
            .await;
        measured.is_some() && measured == agent.metric(batches).await
    })
    .await;
    for (name, value) in [
        ("visit_pacer_agents", 1.0),
        ("visit_pacer_database_connections", 3.0),
        ("visit_pacer_database_connections_expected", 3.0),
        (
            r#"visit_pacer_realtime_transport_live{transport="postgres_changes"}"#,
            1.0,
        ),
        (r#"visit_pacer_build_info{version="0.1.0"}"#, 1.0),
    ] {
        assert_eq!(agent.metric(name).await, Some(value), "{name}");
    }
    assert!(agent.metric("visit_pacer_sync_age_seconds").await >= Some(0.0));
    assert!(agent.metric("process_resident_memory_bytes").await > Some(1_000_000.0));
    assert!(agent.metric("process_cpu_seconds_total").await > Some(0.0));
}

#[tokio::test]
async fn series_of_single_rows_are_exposed_on_request_and_limited() {
    let place = Place::new().await;
    let (agent, row) = working_agent(&place).await;
    let series = format!("visit_pacer_distribution_due_visits{{distribution_id=\"{row}\"}}");
    assert_eq!(agent.metric(&series).await, None, "nobody asked for it");
    let (_, text) = agent
        .get(&format!("/metrics?distributions={row},{row}"))
        .await;
    assert_eq!(text.matches(&series).count(), 1, "{text}");

    let other = Uuid::from_u128(7);
    let (_, text) = agent.get(&format!("/metrics?distributions={other}")).await;
    assert!(!text.contains("distribution_id=\""), "{text}");
    let too_many: Vec<String> = (0..=SELECTED_MAX)
        .map(|_| Uuid::from_u128(rand::random()).to_string())
        .collect();
    for rows in ["x", &too_many.join(",")] {
        let (status, text) = agent.get(&format!("/metrics?distributions={rows}")).await;
        assert_eq!(status, 400, "{text}");
        assert!(text.contains("expected"), "{text}");
    }

    drop(agent);
    let agent = place
        .start_agent_with(&[("VISIT_PACER_METRICS_DISTRIBUTIONS", &row.to_string())])
        .await;
    wait_until("each scrape has the row", PATIENCE, async || {
        agent.metric(&series).await.is_some()
    })
    .await;
}

#[tokio::test]
async fn a_client_that_accepts_openmetrics_receives_openmetrics() {
    let place = Place::new().await;
    let agent = place.agent().await;
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
    let (_, head, text) = agent.get_as("/metrics", accept).await;
    let kind = "content-type: application/openmetrics-text; version=1.0.0";
    assert!(head.contains(kind), "{head}");
    assert!(text.contains("# EOF\n"), "{text}");
    let (_, head, text) = agent.get_as("/metrics", "*/*").await;
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert!(!text.contains("# EOF"), "{text}");
}

#[tokio::test]
async fn alerts_and_dashboard_use_only_metrics_that_a_running_agent_exposes() {
    let place = Place::new().await;
    let (agent, row) = working_agent(&place).await;
    let (_, text) = agent.get(&format!("/metrics?distributions={row}")).await;
    let exposed = exposed(&text);
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let mut expressions = alert_expressions();
    values_of(&dashboard, "expr", &mut expressions);
    values_of(&dashboard, "query", &mut expressions);
    assert!(expressions.len() > 40, "{expressions:?}");
    for expression in expressions {
        for name in named(expression) {
            assert!(exposed.contains(name), "{name} in: {expression}");
        }
    }
}

#[test]
fn the_alerts_are_valid_rules_that_fire_when_they_should_and_not_for_a_healthy_agent() {
    promtool(&["check", "rules", "alerts.yml"], "");
    promtool(&["check", "config", "prometheus.yml"], "");
    promtool(&["test", "rules", "alerts.test.yml"], "");
}

#[test]
fn each_alert_has_a_summary_a_description_a_test_and_a_section_that_says_what_to_do() {
    let tests = include_str!("../../deploy/prometheus/alerts.test.yml");
    let alerts: Vec<&str> = ALERTS.split("- alert: ").skip(1).collect();
    assert_eq!(alerts.len(), alert_expressions().len());
    let mut names = BTreeSet::new();
    for alert in alerts {
        let name = alert.lines().next().expect("a name");
        for part in ["severity: ", "summary: ", "description: "] {
            assert!(alert.contains(part), "{name} has {part}");
        }
        assert!(tests.contains(&format!("alertname=\"{name}\"")), "{name}");
        assert!(SECTIONS.contains(&format!("\n## {name}\n")), "{name}");
        names.insert(name);
    }
    let sections = SECTIONS.lines().filter_map(|line| line.strip_prefix("## "));
    assert_eq!(sections.collect::<BTreeSet<_>>(), names);
}
