//! A pause is a barrier: nothing is stored after the commit of the transaction that paused.

use std::time::Duration;

use uuid::Uuid;
use visit_pacer::demo::realtime_server::EventFault;

use crate::harness::pooler::{Via, directly_and_pooled};
use crate::harness::{PATIENCE, Place, wait_until};

/// Longer than the second between two fires: until the event arrives, the agent computes batches of the old version.
const LATE: Duration = Duration::from_millis(1_500);

/// Sleeps until just before the next fire of a row that has just fired, so that what comes next races with its batch.
async fn before_the_next_fire() {
    tokio::time::sleep(Duration::from_millis(rand::random_range(930..1_000))).await;
}

/// A row of 50 a second is never ahead of its curve, and comes to it whatever happens to other rows.
async fn keeps_fifty_a_second(place: &Place, id: Uuid) {
    let look = place.look(id).await;
    assert!(look.backlog() >= 0, "ahead of its curve: {look:?}");
    place.catches_up(id, 50).await;
}

directly_and_pooled!(
    twenty_pauses_and_resumes_leak_no_visit_lose_none_and_cause_no_burst_while_another_row_keeps_its_rate
);
async fn twenty_pauses_and_resumes_leak_no_visit_lose_none_and_cause_no_burst_while_another_row_keeps_its_rate(
    via: Via,
) {
    let place = via.place().await;
    place.record_fires().await;
    let _agent = place.agent().await;
    let fast = place.insert(1_000_000, "200 a second", "null").await;
    let steady = place.insert(1_000_000, "50 a second", "null").await;
    place.has_stored(fast, 1).await;
    place.has_stored(steady, 1).await;

    for turn in 0..via.short(20, 8) {
        let (failure, watched) = if turn % 4 == 3 {
            (EventFault::Delay(LATE), 75)
        } else {
            before_the_next_fire().await;
            (EventFault::None, 15)
        };
        place.realtime.faults().set_events(failure);
        place.set(fast, "is_active = false").await;
        let paused_at = place.stored(fast).await;
        place.stores_more(steady, watched).await;
        let look = place.look(fast).await;
        assert_eq!(
            look.stored, paused_at,
            "visits after the commit of the pause: {look:?}"
        );
        assert_eq!(
            (look.status.as_str(), look.total_distributed),
            ("paused", paused_at),
            "{look:?}"
        );
        keeps_fifty_a_second(&place, steady).await;

        place.set(fast, "is_active = true").await;
        place.has_stored(fast, paused_at + 1).await;
        keeps_fifty_a_second(&place, steady).await;
    }

    place.finish(&[fast, steady]).await;
    // Twice the rate, and a full bucket.
    assert!(
        place.densest(fast, "1 second").await <= 2 * 200 + 401,
        "a burst"
    );
}

directly_and_pooled!(an_editor_who_locks_a_row_for_four_seconds_stalls_that_row_alone);
async fn an_editor_who_locks_a_row_for_four_seconds_stalls_that_row_alone(via: Via) {
    let place = via.place().await;
    place.record_fires().await;
    let _agent = place.agent().await;
    let held = place.insert(1_000_000, "100 a second", "null").await;
    let steady = place.insert(1_000_000, "50 a second", "null").await;
    place.has_stored(held, 1).await;
    place.has_stored(steady, 1).await;

    let editor = place
        .hold(&format!(
            "select from visit_distribution where id = '{held}' for update"
        ))
        .await;
    let stalled_at = place.stored(held).await;
    place.stores_more(steady, 4 * 50).await;
    keeps_fifty_a_second(&place, steady).await;
    assert_eq!(
        place.stored(held).await,
        stalled_at,
        "visits of a locked row"
    );
    place.becomes(held, "behind").await;
    let invalid: i64 = place
        .ask("select count(*) from visit_distribution_progress where reason_code is not null")
        .await;
    assert_eq!(invalid, 0, "a locked row is never quarantined");
    editor.rollback().await;

    place.catches_up(held, 150).await;
    assert!(
        place.densest(held, "1 second").await <= 2 * 100 + 201,
        "it drains through its bucket"
    );
    place.finish(&[held, steady]).await;
}

directly_and_pooled!(a_pause_of_all_is_a_barrier_too_and_its_time_is_a_backlog_that_drains);
async fn a_pause_of_all_is_a_barrier_too_and_its_time_is_a_backlog_that_drains(via: Via) {
    let place = via.place().await;
    place.record_fires().await;
    let agent = place.agent().await;
    let rows = [
        place.insert(1_000_000, "80 a second", "null").await,
        place.insert(1_000_000, "20 a second", "null").await,
    ];
    for row in rows {
        place.has_stored(row, 1).await;
    }

    let said = place.command(&["pause", "--all"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let stopped_at = place.all_stored().await;
    agent.says("paused by visit_pacer_control").await;
    place.agents_work_for(2).await;
    assert_eq!(
        place.all_stored().await,
        stopped_at,
        "visits while all are paused"
    );
    let look = place.look(rows[0]).await;
    assert_eq!(
        look.reason.as_deref(),
        Some("everything is paused: visit-pacer resume --all"),
        "who looks sees why: {look:?}"
    );

    let said = place.command(&["resume", "--all"]).await;
    assert!(
        said.code == Some(0) && said.said.contains("a backlog of"),
        "{said:?}"
    );
    place.catches_up(rows[0], 120).await;
    assert!(
        place.densest(rows[0], "1 second").await <= 2 * 80 + 161,
        "it drains through its bucket"
    );
    place.finish(&rows).await;
}

#[tokio::test]
async fn the_commands_pause_and_resume_edit_the_rows_that_they_name() {
    let place = Place::new().await;
    let _agent = place.agent().await;
    let row = place.insert(1_000_000, "50 a second", "null").await;
    place.has_stored(row, 1).await;

    let said = place.command(&["pause", &row.to_string()]).await;
    assert_eq!(
        (said.code, said.said.trim()),
        (Some(0), format!("paused {row}").as_str())
    );
    let paused_at = place.stored(row).await;
    place.agents_work_for(2).await;
    assert_eq!(place.stored(row).await, paused_at);

    let said = place.command(&["resume", &row.to_string()]).await;
    assert_eq!(
        (said.code, said.said.trim()),
        (Some(0), format!("resumed {row}").as_str())
    );
    place.has_stored(row, paused_at + 1).await;
    let unknown = Uuid::from_u128(7).to_string();
    let said = place.command(&["pause", &unknown]).await;
    assert!(
        said.code == Some(1) && said.said.contains(&unknown),
        "{said:?}"
    );
}

#[tokio::test]
async fn a_pause_between_two_fires_reaches_the_agent_by_realtime_and_not_by_a_sync() {
    let place = Place::new().await;
    let agent = place.agent().await;
    let row = place.insert(1_000_000, "1 a second", "null").await;
    place.has_stored(row, 1).await;
    let heard = agent
        .metric("visit_pacer_realtime_events_total")
        .await
        .expect("the metric");
    place.set(row, "is_active = false").await;
    wait_until("the event of the pause", PATIENCE, async || {
        agent.metric("visit_pacer_realtime_events_total").await > Some(heard)
    })
    .await;
    assert_eq!(
        agent.metric("visit_pacer_sync_repairs_total").await,
        Some(0.0)
    );
}
