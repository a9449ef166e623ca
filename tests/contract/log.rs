//! The log: JSON without a terminal, and few lines.

use std::time::Duration;

use serde_json::Value;

use crate::contract::invalid_rows::insert_unchecked;
use crate::harness::{Agent, Place, find};

/// A summary every minute, and a margin.
const SUMMED_UP_WITHIN: Duration = Duration::from_secs(100);

fn run(place: &Place, format: &str) -> Agent {
    let environment = place.environment_with(&[("VISIT_PACER_LOG_FORMAT", format)]);
    Agent::launch(&place.folder, &["run"], &environment)
}

#[tokio::test]
async fn without_a_terminal_each_line_is_json_and_one_a_minute_is_a_summary() {
    let place = Place::new().await;
    let row = place.insert(1_000_000, "50 a second", "null").await;
    let bad = insert_unchecked(&place, "-5", "second", "1").await;
    let mut agent = run(&place, "auto");
    place.has_stored(row, 50).await;
    let summary = find("Last minute", SUMMED_UP_WITHIN, async || {
        let log = agent.log();
        let line = log.lines().find(|line| line.contains("Last minute"))?;
        serde_json::from_str::<Value>(line).ok()
    })
    .await;
    for number in [
        "visits",
        "distributions",
        "active",
        "behind",
        "invalid",
        "backlog",
        "delay_p50_ms",
        "delay_p99_ms",
        "agents",
    ] {
        assert!(summary[number].is_number(), "{number} in {summary}");
    }
    assert_eq!(
        (&summary["active"], &summary["invalid"]),
        (&1.into(), &1.into())
    );
    assert_eq!(summary["realtime"], "live");

    assert!(agent.terminate().await.success());
    let log = agent.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect();
    for line in &lines {
        for text in ["timestamp", "level", "message"] {
            assert!(line[text].is_string(), "{text} in {line}");
        }
    }
    let warned: Vec<&Value> = lines
        .iter()
        .filter(|line| line["level"] == "WARN")
        .collect();
    assert!(
        warned
            .iter()
            .any(|line| line["distribution_id"] == bad.to_string()
                && line["reason"]
                    .as_str()
                    .is_some_and(|why| why.contains("total_visits is -5"))),
        "{log}"
    );
    assert!(lines.len() < 40, "there is no line per batch:\n{log}");
}

#[tokio::test]
async fn the_log_format_is_chosen_by_name_and_an_unknown_one_is_refused() {
    let place = Place::new().await;
    let mut agent = run(&place, "human");
    agent.says("visit-pacer 0.1.0").await;
    assert!(!agent.log().starts_with('{'), "{}", agent.log());
    assert!(agent.terminate().await.success());
    let environment = place.environment_with(&[("VISIT_PACER_LOG_FORMAT", "xml")]);
    let refused = crate::harness::agent::command(&place.folder, &["run"], &environment).await;
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(
        refused.said.contains("VISIT_PACER_LOG_FORMAT is 'xml'"),
        "{refused:?}"
    );
}
