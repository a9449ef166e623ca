//! The database stops and starts: the agent keeps its schedule, the backlog drains at twice the rate, every visit is stored once.

use std::time::Duration;

use visit_pacer::demo::server::StopMode;

use crate::harness::pooler::{Via, directly_and_pooled};
use crate::harness::{Place, long};

/// The outage, long enough for a burst to break the bound below.
fn outage() -> Duration {
    Duration::from_secs(if long() { 20 } else { 10 })
}

directly_and_pooled!(
    after_an_outage_the_backlog_drains_at_twice_the_rate_and_every_visit_is_stored_once
);
async fn after_an_outage_the_backlog_drains_at_twice_the_rate_and_every_visit_is_stored_once(
    via: Via,
) {
    let mut place = via.place_apart().await;
    place.record_fires().await;
    let agent = place.agent().await;
    let row = place.insert(1_000_000, "50 a second", "null").await;
    let slow = place.insert(1_000_000, "90 a minute", "null").await;
    place.has_stored(row, 100).await;

    let server = place.server.as_mut().expect("a server of its own");
    server.stop(StopMode::Immediate).await.expect("it stops");
    agent.says("Database unavailable").await;
    tokio::time::sleep(outage()).await;
    agent.unready("the database has been unavailable").await;
    server.start_again().await.expect("it starts");

    place.catches_up(row, 75).await;
    let most = 2 * 50 * 5 + 101;
    let densest = place.densest(row, "5 seconds").await;
    assert!(
        densest <= most,
        "{densest} visits in 5 s, expected at most {most}"
    );
    assert!(
        densest > 50 * 5 + 50,
        "{densest} visits in 5 s, expected more than its rate"
    );
    agent.ready().await;
    place.finish(&[row, slow]).await;
    assert_eq!(
        place.seconds_off_the_curve(slow).await,
        [""; 0],
        "each visit has its own moment"
    );
}

#[tokio::test]
async fn an_agent_without_a_database_waits_says_why_and_begins_when_it_is_available() {
    let mut place = Place::apart().await;
    let row = place.insert(1_000_000, "50 a second", "null").await;
    let server = place.server.as_mut().expect("a server of its own");
    server.stop(StopMode::Fast).await.expect("it stops");

    let mut agent = place.start_agent().await;
    agent.unready("waiting for the database").await;
    assert_eq!(agent.get("/healthz").await.0, 200, "it is alive");
    agent.still_runs();
    let mut second = place.start_agent().await;
    second.unready("waiting for the database").await;
    assert!(
        second.terminate().await.success(),
        "it stops without a database too"
    );

    place
        .server
        .as_mut()
        .expect("a server of its own")
        .start_again()
        .await
        .expect("it starts");
    agent.ready().await;
    place.has_stored(row, 1).await;
    place.finishes(row).await;
}
