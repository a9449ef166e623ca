//! Exactly once: every due visit is stored once, whatever crashes or runs twice.

use std::time::Duration;

use uuid::Uuid;

use crate::harness::pooler::{Via, directly_and_pooled};
use crate::harness::{Agent, Place, long};

/// Rows of three paces, without end.
async fn rows(place: &Place) -> [Uuid; 3] {
    [
        place.insert(1_000_000, "200 a second", "null").await,
        place.insert(1_000_000, "30 a second", "null").await,
        place.insert(1_000_000, "150 a minute", "null").await,
    ]
}

/// Lets visits begin to flow, and some more time pass, so that whatever comes next comes at any point of a batch.
async fn some_moment(place: &Place, row: Uuid) {
    let before = place.stored(row).await;
    place.has_stored(row, before + 1).await;
    tokio::time::sleep(Duration::from_millis(rand::random_range(0..900))).await;
}

fn kills() -> usize {
    if long() { 40 } else { 6 }
}

directly_and_pooled!(kill_nine_at_random_moments_loses_and_doubles_nothing);
async fn kill_nine_at_random_moments_loses_and_doubles_nothing(via: Via) {
    let place = via.place().await;
    let rows = rows(&place).await;
    for _ in 0..kills() {
        let mut agent = place.start_agent().await;
        some_moment(&place, rows[0]).await;
        agent.kill();
    }
    let _agent = place.agent().await;
    place.finish(&rows).await;
}

directly_and_pooled!(two_agents_at_once_store_each_visit_once_also_while_both_are_killed);
async fn two_agents_at_once_store_each_visit_once_also_while_both_are_killed(via: Via) {
    let place = via.place().await;
    place.notes_fires().await;
    let rows = rows(&place).await;
    let mut agents = [place.agent().await, place.agent().await];
    place.agents_work_for(3).await;
    assert!(
        agents[0].metric("visit_pacer_visits_stored_total").await > Some(0.0)
            || agents[1].metric("visit_pacer_visits_stored_total").await > Some(0.0)
    );
    for turn in 0..kills() {
        some_moment(&place, rows[0]).await;
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
async fn a_visit_is_drawn_from_its_number_so_an_agent_that_died_and_one_that_follows_agree() {
    let place = Place::new().await;
    let row = place.insert(40, "20 a second", "null").await;
    let _agent = place.agent().await;
    place.becomes(row, "completed").await;
    place.settles(row).await;
    let odd: i64 = place
        .ask(format!(
            "select count(*) from store_visits where distribution_id = '{row}' and (session_duration not between 5 and 3600
               or page_path is null or user_agent is null or device_type not in ('desktop', 'mobile', 'tablet')
               or ('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint
                    is distinct from floor(extract(epoch from visited_at) * 1000)::bigint)"
        ))
        .await;
    assert_eq!(
        odd, 0,
        "visits that are not believable, or whose id is not ordered by visited_at"
    );
}
