//! While Realtime is down, deaf, or refuses connections, the agent stays on schedule and the sync finds edits.

use std::time::Duration;

use tokio::net::TcpListener;
use visit_pacer::demo::realtime_server::{Deafness, EventFault, Refusal};

use crate::harness::pooler::{Via, directly_and_pooled};
use crate::harness::{Agent, PATIENCE, Place, wait_until};

/// 30 s of back-off, some 10 s until it is live, and a margin.
const LIVE_AGAIN_WITHIN: Duration = Duration::from_secs(75);

async fn is_live_again(agent: &Agent) {
    wait_until(
        "the agent is live again by itself",
        LIVE_AGAIN_WITHIN,
        async || agent.metric("visit_pacer_realtime_live").await == Some(1.0),
    )
    .await;
    agent.ready().await;
}

directly_and_pooled!(
    while_realtime_is_stopped_visits_are_stored_a_pause_is_a_barrier_and_a_resume_is_found
);
async fn while_realtime_is_stopped_visits_are_stored_a_pause_is_a_barrier_and_a_resume_is_found(
    via: Via,
) {
    let mut place = via.place().await;
    let agent = place.agent().await;
    let row = place.insert(1_000_000, "50 a second", "null").await;
    let beside = place.insert(1_000_000, "20 a second", "null").await;
    place.has_stored(row, 1).await;

    place.realtime.kill().await;
    wait_until("the agent has noticed", PATIENCE, async || {
        agent.metric("visit_pacer_realtime_live").await == Some(0.0)
    })
    .await;
    place.stores_more(row, 150).await;
    place.set(row, "is_active = false").await;
    let paused_at = place.stored(row).await;
    place.stores_more(beside, 60).await;
    assert_eq!(
        place.stored(row).await,
        paused_at,
        "visits after the commit of the pause"
    );
    place.set(row, "is_active = true").await;
    place.has_stored(row, paused_at + 100).await;
    place.set(beside, "visits_per_unit = 60").await;
    let inserted = place.insert(30, "30 a second", "null").await;
    place.becomes(inserted, "completed").await;
    agent.unready("Realtime is not live").await;

    place
        .realtime
        .start_again()
        .await
        .expect("its port is free");
    is_live_again(&agent).await;
    assert_eq!(place.settles(inserted).await, 30);
    assert_eq!(place.seconds_off_the_curve(row).await, [""; 0]);
    assert_eq!(place.seconds_off_the_curve(beside).await, [""; 0]);
    place.finish(&[row, beside]).await;
}

#[tokio::test]
async fn a_deaf_channel_is_detected_by_its_missing_echo_and_joined_again() {
    let place = Place::new().await;
    let agent = place.agent().await;
    let row = place.insert(1_000_000, "10 a second", "null").await;
    place.has_stored(row, 1).await;
    place.realtime.faults().set_deafness(Deafness::UntilRejoin);
    agent.says("is silent though joined").await;
    is_live_again(&agent).await;
    wait_until("the rejoin is counted", PATIENCE, async || {
        agent.metric("visit_pacer_realtime_rejoins_total").await == Some(1.0)
    })
    .await;
    assert_eq!(
        agent.metric("visit_pacer_realtime_reconnects_total").await,
        Some(0.0),
        "it kept its socket"
    );
    let heard = agent.metric("visit_pacer_realtime_events_total").await;
    place.set(row, "visits_per_unit = 20").await;
    wait_until("events arrive on the new channel", PATIENCE, async || {
        agent.metric("visit_pacer_realtime_events_total").await > heard
    })
    .await;
    place.finishes(row).await;
}

#[tokio::test]
async fn events_that_are_lost_duplicated_or_out_of_order_change_no_count() {
    let place = Place::new().await;
    let _agent = place.agent().await;
    let row = place.insert(1_000_000, "40 a second", "null").await;
    place.has_stored(row, 1).await;
    for failure in [
        EventFault::Duplicate,
        EventFault::Reorder,
        EventFault::Delay(Duration::from_millis(700)),
        EventFault::Drop,
    ] {
        place.realtime.faults().set_events(failure);
        for rate in [80, 20, 40] {
            place.set(row, &format!("visits_per_unit = {rate}")).await;
        }
        place.stores_more(row, 40).await;
    }
    place.realtime.faults().set_events(EventFault::None);
    assert_eq!(place.seconds_off_the_curve(row).await, [""; 0]);
    place.finishes(row).await;
}

#[tokio::test]
async fn a_key_that_realtime_refuses_is_reported_without_the_key_and_visits_are_stored() {
    let place = Place::new().await;
    let row = place.insert(1_000_000, "20 a second", "null").await;
    let wrong = [("SUPABASE_SERVICE_ROLE_KEY", "sb_secret_this_key_is_wrong")];
    let mut agent = place.start_agent_with(&wrong).await;
    place.has_stored(row, 20).await;
    agent.unready("API key rejected by Realtime").await;
    assert_eq!(
        agent.log().matches("Realtime is not live").count(),
        1,
        "one clear line:\n{}",
        agent.log()
    );
    agent.still_runs();
    place.finishes(row).await;
    assert!(agent.terminate().await.success());
}

#[tokio::test]
async fn without_an_answer_from_realtime_visits_are_stored_and_the_agent_is_not_ready() {
    let place = Place::new().await;
    let row = place.insert(1_000_000, "20 a second", "null").await;
    let nobody = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port")
        .local_addr()
        .expect("an address");
    let url = format!("ws://{nobody}/socket/websocket");
    let mut agent = place.start_agent_with(&[("REALTIME_URL", &url)]).await;
    place.has_stored(row, 20).await;
    agent.unready("Realtime is not live").await;
    agent.still_runs();
    place.finishes(row).await;
}

#[tokio::test]
async fn a_server_that_refuses_connections_is_retried_until_it_accepts() {
    let place = Place::new().await;
    let refusal = Refusal::Http {
        status: 429,
        message: "too many connections".to_owned(),
    };
    place.realtime.faults().refuse_connects(Some(refusal));
    let row = place.insert(1_000_000, "20 a second", "null").await;
    let agent = place.start_agent().await;
    place.has_stored(row, 20).await;
    agent.unready("Realtime is not live").await;
    place.realtime.faults().refuse_connects(None);
    is_live_again(&agent).await;
    place.finishes(row).await;
}
