//! The connections to the database break, in every way a network has.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::chaos::{DRAINS_WITHIN, Rows, UNKNOWN, count};
use crate::harness::pooler::{Via, directly_and_pooled};
use crate::harness::proxy::{Direction, Line, Proxy};
use crate::harness::{Agent, Place, long, port, wait_until};

/// How long a fault lasts that does not end by itself.
fn spell() -> Duration {
    Duration::from_secs(if long() { 60 } else { 8 })
}

/// A place, its rows, and an agent that reaches the database through a proxy.
async fn start(via: Via, seed: u64) -> (Place, Rows, Proxy, Agent) {
    let place = via.place().await;
    let way_in = place.agents_url();
    let proxy = Proxy::to(port(&way_in), seed).await;
    let rows = Rows::of(&place).await;
    let agent = place.start_agent_at(&proxy.url(&way_in)).await;
    agent.ready().await;
    rows.make_progress(&place).await;
    (place, rows, proxy, agent)
}

async fn reaches(what: &str, counter: &AtomicU64, times: u64) {
    wait_until(format!("{times} {what}"), DRAINS_WITHIN, async || {
        counter.load(Ordering::Relaxed) >= times
    })
    .await;
}

directly_and_pooled!(connections_cut_within_statements_and_answers_lose_and_duplicate_no_visit);
async fn connections_cut_within_statements_and_answers_lose_and_duplicate_no_visit(via: Via) {
    let (place, rows, proxy, agent) = start(via, 1).await;
    let (cuts, unknown) = if long() { (200, 30) } else { (8, 2) };
    proxy.cut_within(Some(6_000));
    reaches("cuts", &proxy.happened().cuts, cuts).await;
    wait_until("cuts hit batches", DRAINS_WITHIN, async || {
        count(&agent, UNKNOWN).await >= unknown
    })
    .await;
    proxy.cut_within(None);
    rows.make_progress(&place).await;
    rows.stored_exactly_once(&place, &agent, "connections cut")
        .await;
}

directly_and_pooled!(
    a_batch_whose_answer_is_lost_after_its_commit_is_read_back_and_not_stored_again
);
async fn a_batch_whose_answer_is_lost_after_its_commit_is_read_back_and_not_stored_again(via: Via) {
    let (place, rows, proxy, agent) = start(via, 2).await;
    for round in 1..=if long() { 40 } else { 5 } {
        proxy.lose_answers(1);
        reaches("lost answers", &proxy.happened().answers_lost, round).await;
        rows.make_progress(&place).await;
        assert!(count(&agent, UNKNOWN).await >= round);
    }
    rows.stored_exactly_once(&place, &agent, "answers lost after commit")
        .await;
}

/// One direction swallows everything until the agent gives a batch up.
async fn half_open(direction: Direction, seed: u64, what: &str) {
    let (place, rows, proxy, agent) = start(Via::Direct, seed).await;
    proxy.line(Line::HalfOpen(direction));
    wait_until("the answer to a batch is lost", DRAINS_WITHIN, async || {
        count(&agent, UNKNOWN).await > 0
    })
    .await;
    proxy.line(Line::Passes);
    assert!(proxy.happened().swallowed.load(Ordering::Relaxed) > 0);
    rows.make_progress(&place).await;
    rows.stored_exactly_once(&place, &agent, what).await;
}

#[tokio::test]
async fn a_connection_whose_answers_vanish_is_abandoned_and_its_batch_read_back() {
    half_open(Direction::ToClient, 3, "answers vanish").await;
}

#[tokio::test]
async fn a_connection_whose_statements_vanish_is_abandoned_and_its_batch_stored_over_another() {
    half_open(Direction::ToServer, 7, "statements vanish").await;
}

#[tokio::test]
async fn slow_late_dead_and_refused_connections_only_delay_visits() {
    let (place, rows, proxy, agent) = start(Via::Direct, 4).await;
    for line in [
        Line::Slow(6_000),
        Line::Late(Duration::from_millis(300)),
        Line::Dead,
    ] {
        proxy.line(line);
        tokio::time::sleep(spell()).await;
        proxy.line(Line::Passes);
        rows.make_progress(&place).await;
    }
    proxy.admit(false);
    proxy.cut();
    reaches("refused connects", &proxy.happened().refused, 3).await;
    proxy.admit(true);
    rows.make_progress(&place).await;
    rows.stored_exactly_once(&place, &agent, "slow, late, dead, refused")
        .await;
}
