//! What an operator sees: in each fault metrics, log, `visit-pacer status`, `/readyz` and the dashboard say the same.

use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;
use visit_pacer::demo::server::StopMode;

use crate::contract::invalid_rows::insert_unchecked;
use crate::harness::{Agent, PATIENCE, Place, find, wait_until};

/// A summary in the log every minute, and a margin.
const SUMMED_UP_WITHIN: Duration = Duration::from_secs(100);

/// Two back-offs of 30 s, a join without an answer between them, and a margin.
const LIVE_AGAIN_WITHIN: Duration = Duration::from_secs(150);

/// Waits until a metric has this value.
async fn reads(agent: &Agent, metric: &str, value: f64) {
    wait_until(format!("{metric} is {value}"), PATIENCE, async || {
        agent.metric(metric).await == Some(value)
    })
    .await;
}

/// Waits until a metric is more than this.
async fn exceeds(agent: &Agent, metric: &str, value: f64) {
    wait_until(format!("{metric} is over {value}"), PATIENCE, async || {
        agent.metric(metric).await > Some(value)
    })
    .await;
}

/// Waits until the output of `visit-pacer status` contains this; returns it.
async fn status_says(place: &Place, words: &str) -> String {
    find(format!("status says: {words}"), PATIENCE, async || {
        let said = place.command(&["status"]).await.said;
        said.contains(words).then_some(said)
    })
    .await
}

/// Waits until the dashboard shows this at that place; returns all of it.
async fn dashboard_shows(agent: &Agent, place: &str, words: &str) -> Value {
    let what = format!("the dashboard shows at {place}: {words}");
    find(what, PATIENCE, async || {
        let (_, shown) = agent.get("/api/snapshot").await;
        let shown: Value = serde_json::from_str(&shown).ok()?;
        let text = shown.pointer(place)?.to_string();
        text.contains(words).then_some(shown)
    })
    .await
}

/// Waits until the dashboard shows a distribution with this status and reason.
async fn dashboard_shows_distribution(agent: &Agent, row: Uuid, status: &str, reason: &str) {
    let what = format!("the dashboard shows {row}: {status}, {reason}");
    wait_until(what, PATIENCE, async || {
        let (_, shown) = agent.get("/api/snapshot").await;
        let shown: Value = serde_json::from_str(&shown).unwrap_or_default();
        let rows = shown["distributions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        rows.iter().any(|shown| {
            let why = shown["reason"].as_str().unwrap_or_default();
            shown["id"] == row.to_string() && shown["status"] == status && why.contains(reason)
        })
    })
    .await;
}

/// Whether the log has a warning with these words.
fn warned(agent: &Agent, words: &str) -> bool {
    let log = agent.log();
    let mut lines = log.lines();
    lines.any(|line| line.contains(" WARN ") && line.contains(words))
}

#[tokio::test]
async fn every_interface_says_that_realtime_is_down() {
    let mut place = Place::new().await;
    let row = place.insert(1_000_000, "20 a second", "null").await;
    let agent = place.agent().await;
    place.has_stored(row, 1).await;
    place.realtime.kill().await;

    reads(&agent, "visit_pacer_realtime_live", 0.0).await;
    let transport = r#"visit_pacer_realtime_transport_live{transport="postgres_changes"}"#;
    reads(&agent, transport, 0.0).await;
    exceeds(
        &agent,
        r#"visit_pacer_retries_total{kind="realtime_network"}"#,
        0.0,
    )
    .await;
    assert_eq!(agent.metric("visit_pacer_database_up").await, Some(1.0));
    agent.says("Realtime is not live").await;
    assert!(
        warned(&agent, "visits continue, and the periodic sync reads edits"),
        "{}",
        agent.log()
    );
    agent.unready("Realtime is not live").await;
    status_says(&place, "Realtime").await;
    reads(&agent, "visit_pacer_ready", 0.0).await;
    let shown = dashboard_shows(&agent, "/health/unready", "Realtime is not live").await;
    assert_eq!(shown["health"]["database"]["up"], true, "{shown}");
    assert_eq!(shown["health"]["realtime"]["live"], false, "{shown}");
    dashboard_shows(&agent, "/events", "Realtime is not live").await;
    dashboard_shows(&agent, "/realtime/events", "not live").await;

    place
        .realtime
        .start_again()
        .await
        .expect("its port is free");
    wait_until(
        "the transport is live again",
        LIVE_AGAIN_WITHIN,
        async || agent.metric(transport).await == Some(1.0),
    )
    .await;
    agent.ready().await;
    reads(&agent, "visit_pacer_ready", 1.0).await;
    place.finishes(row).await;
}

#[tokio::test]
async fn every_interface_says_that_the_database_is_unavailable() {
    let mut place = Place::apart().await;
    let row = place.insert(1_000_000, "20 a second", "null").await;
    // The outcome of a batch in progress is read back, and the batch not sent again. So another row becomes due later.
    let later = place.insert(1_000_000, "20 a second", "null").await;
    place
        .set(later, "start_time = now() + interval '5 seconds'")
        .await;
    let agent = place.agent().await;
    place.has_stored(row, 1).await;
    reads(&agent, "visit_pacer_database_connections", 3.0).await;
    let server = place.server.as_mut().expect("a server of its own");
    server.stop(StopMode::Immediate).await.expect("it stops");

    reads(&agent, "visit_pacer_database_up", 0.0).await;
    reads(&agent, "visit_pacer_database_connections", 0.0).await;
    exceeds(
        &agent,
        r#"visit_pacer_batches_total{outcome="unsent"}"#,
        0.0,
    )
    .await;
    exceeds(&agent, "visit_pacer_retries_total", 0.0).await;
    exceeds(&agent, "visit_pacer_backlog_visits", 0.0).await;
    agent.says("Database unavailable").await;
    assert!(
        warned(&agent, "check that it is running and accepts connections"),
        "{}",
        agent.log()
    );
    agent.unready("the database has been unavailable").await;
    reads(&agent, "visit_pacer_ready", 0.0).await;
    dashboard_shows(
        &agent,
        "/health/unready",
        "the database has been unavailable",
    )
    .await;
    dashboard_shows(
        &agent,
        "/events",
        "check that it is running and accepts connections",
    )
    .await;
    let status = place.command(&["status"]).await;
    assert_eq!(status.code, Some(1), "{status:?}");
    assert!(status.said.contains("database unreachable"), "{status:?}");

    let server = place.server.as_mut().expect("a server of its own");
    server.start_again().await.expect("it starts");
    reads(&agent, "visit_pacer_database_up", 1.0).await;
    agent.says("Database available again").await;
    agent.ready().await;
    place.finishes(row).await;
}

#[tokio::test]
async fn every_interface_says_why_a_row_is_invalid() {
    let place = Place::new().await;
    let good = place.insert(1_000_000, "20 a second", "null").await;
    let invalid = insert_unchecked(&place, "100", "fortnight", "1").await;
    let agent = place.agent().await;
    place.has_stored(good, 20).await;

    reads(
        &agent,
        r#"visit_pacer_distributions{status="invalid"}"#,
        1.0,
    )
    .await;
    reads(&agent, r#"visit_pacer_distributions{status="active"}"#, 1.0).await;
    agent.says("Distribution quarantined").await;
    assert!(warned(&agent, &invalid.to_string()), "{}", agent.log());
    assert!(
        warned(&agent, "time_period is 'fortnight'"),
        "{}",
        agent.log()
    );
    let status = status_says(&place, "invalid").await;
    assert!(status.contains("time_period is 'fortnight'"), "{status}");
    dashboard_shows_distribution(&agent, invalid, "invalid", "time_period is 'fortnight'").await;
    dashboard_shows(&agent, "/events", "Distribution quarantined").await;
    assert_eq!(agent.get("/readyz").await.0, 200, "the others continue");
    place.finishes(good).await;
}

#[tokio::test]
async fn every_interface_says_that_a_row_is_paused() {
    let place = Place::new().await;
    let row = place.insert(1_000_000, "20 a second", "null").await;
    let agent = place.agent().await;
    place.has_stored(row, 20).await;
    place.set(row, "is_active = false").await;

    reads(&agent, r#"visit_pacer_distributions{status="paused"}"#, 1.0).await;
    reads(&agent, r#"visit_pacer_distributions{status="behind"}"#, 0.0).await;
    reads(&agent, "visit_pacer_paused", 0.0).await;
    status_says(&place, "paused").await;
    dashboard_shows_distribution(&agent, row, "paused", "is_active is false").await;
    assert_eq!(agent.get("/readyz").await.0, 200, "a pause is no fault");
    assert!(!warned(&agent, ""), "{}", agent.log());

    place
        .edit("update visit_pacer_control set paused = true")
        .await;
    reads(&agent, "visit_pacer_paused", 1.0).await;
    agent
        .says("Everything is paused by visit_pacer_control")
        .await;
    assert!(
        warned(&agent, "visit-pacer resume --all"),
        "{}",
        agent.log()
    );
}

#[tokio::test]
async fn every_interface_says_that_a_locked_row_is_behind() {
    let place = Place::new().await;
    let row = place.insert(1_000_000, "20 a second", "null").await;
    let beside = place.insert(1_000_000, "20 a second", "null").await;
    place.set(row, "catch_up = 50").await;
    let agent = place.agent().await;
    place.has_stored(row, 20).await;
    let editor = place
        .hold(&format!(
            "select from visit_distribution where id = '{row}' for update"
        ))
        .await;

    reads(&agent, r#"visit_pacer_distributions{status="behind"}"#, 1.0).await;
    reads(
        &agent,
        r#"visit_pacer_distributions_stalled{reason="locked"}"#,
        1.0,
    )
    .await;
    exceeds(
        &agent,
        r#"visit_pacer_distributions_skipped_total{reason="locked"}"#,
        0.0,
    )
    .await;
    exceeds(&agent, "visit_pacer_backlog_visits", 20.0).await;
    status_says(&place, "behind").await;
    dashboard_shows_distribution(
        &agent,
        row,
        "behind",
        "Another transaction has locked this row",
    )
    .await;
    dashboard_shows_distribution(&agent, beside, "active", "").await;
    assert_eq!(agent.get("/readyz").await.0, 200, "the others continue");
    let words = "1: another session locks the row or its partner, end that transaction";
    find(
        "the summary in the log says why",
        SUMMED_UP_WITHIN,
        async || agent.log().contains(words).then_some(()),
    )
    .await;

    editor.rollback().await;
    reads(&agent, r#"visit_pacer_distributions{status="behind"}"#, 0.0).await;
    reads(
        &agent,
        r#"visit_pacer_distributions_stalled{reason="locked"}"#,
        0.0,
    )
    .await;
    place.finishes(row).await;
    place.finishes(beside).await;
}
