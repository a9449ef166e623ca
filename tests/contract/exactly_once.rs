//! Exactly once: every due visit is stored once, whatever crashes or runs twice.

use std::time::Duration;

use uuid::Uuid;

use crate::harness::pooler::{Via, directly_and_pooled};
use crate::harness::{Agent, Place, long};

/// Rows of three rates, without end.
async fn rows(place: &Place) -> [Uuid; 3] {
    [
        place.insert(1_000_000, "200 a second", "null").await,
        place.insert(1_000_000, "30 a second", "null").await,
        place.insert(1_000_000, "150 a minute", "null").await,
    ]
}

/// Waits for a visit and a random time, so that what comes next comes at any point of a batch.
async fn random_moment(place: &Place, row: Uuid) {
    place.stores_more(row, 1).await;
    tokio::time::sleep(Duration::from_millis(rand::random_range(0..900))).await;
}

fn kills() -> usize {
    if long() { 40 } else { 6 }
}

directly_and_pooled!(kill_nine_at_random_moments_loses_and_duplicates_no_visit);
async fn kill_nine_at_random_moments_loses_and_duplicates_no_visit(via: Via) {
    let place = via.place().await;
    let rows = rows(&place).await;
    for _ in 0..kills() {
        let mut agent = place.start_agent().await;
        random_moment(&place, rows[0]).await;
        agent.kill();
    }
    let _agent = place.agent().await;
    place.finish(&rows).await;
}

directly_and_pooled!(two_agents_store_each_visit_once_while_both_are_killed_in_turn);
async fn two_agents_store_each_visit_once_while_both_are_killed_in_turn(via: Via) {
    let place = via.place().await;
    place.record_fires().await;
    let rows = rows(&place).await;
    let mut agents = [place.agent().await, place.agent().await];
    place.agents_work_for(3).await;
    assert!(
        agents[0].metric("visit_pacer_visits_stored_total").await > Some(0.0)
            || agents[1].metric("visit_pacer_visits_stored_total").await > Some(0.0)
    );
    for turn in 0..kills() {
        random_moment(&place, rows[0]).await;
        let agent: &mut Agent = &mut agents[turn % 2];
        agent.kill();
        *agent = place.start_agent().await;
    }
    place.finish(&rows).await;
    for row in rows {
        assert!(
            place.densest(row, "5 seconds").await <= 10 * 200 + 401,
            "one bucket for both"
        );
    }
}

#[tokio::test]
async fn visits_have_plausible_contents_and_ids_in_the_order_of_visited_at() {
    let place = Place::new().await;
    let row = place.insert(40, "20 a second", "null").await;
    let _agent = place.agent().await;
    place.becomes(row, "completed").await;
    place.settles(row).await;
    let wrong: i64 = place
        .ask(format!(
            "select count(*) from store_visits where distribution_id = '{row}' and (session_duration not between 5 and 3600
               or page_path is null or user_agent is null or device_type not in ('desktop', 'mobile', 'tablet')
               or ('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint
                    is distinct from floor(extract(epoch from visited_at) * 1000)::bigint)"
        ))
        .await;
    assert_eq!(
        wrong, 0,
        "visits with implausible contents, or an id that is not ordered by visited_at"
    );
}
