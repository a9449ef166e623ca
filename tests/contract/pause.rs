//! A pause is a barrier: nothing is stored after the transaction that paused has committed.

use std::time::Duration;

use sqlx::Connection as _;
use uuid::Uuid;
use visit_pacer::demo::realtime_server::EventFault;

use crate::harness::pooler::{Via, directly_and_pooled};
use crate::harness::{PATIENCE, Place, find, wait_until};

/// Longer than the second between two fires: an agent that hears of a pause so late computes a batch from the row as it was.
const LATE: Duration = Duration::from_millis(1_500);

/// Sleeps until just before a row that has just fired fires again, so that what comes next races with its batch.
async fn the_next_fire_is_near() {
    tokio::time::sleep(Duration::from_millis(rand::random_range(930..1_000))).await;
}

/// A row of 50 a second is on its curve: never ahead, and behind by one second's worth at most, with half a second's of grace
/// for the machine.
async fn keeps_fifty_a_second(place: &Place, id: Uuid) {
    let look = place.look(id).await;
    let due = look.due.expect("a valid row");
    assert!(
        (due - 75..=due).contains(&look.stored),
        "off its curve: {look:?}"
    );
}

directly_and_pooled!(
    twenty_pauses_and_resumes_leak_lose_and_burst_nothing_while_another_row_keeps_its_pace
);
async fn twenty_pauses_and_resumes_leak_lose_and_burst_nothing_while_another_row_keeps_its_pace(
    via: Via,
) {
    let place = via.place().await;
    place.notes_fires().await;
    let _agent = place.agent().await;
    let fast = place.insert(1_000_000, "200 a second", "null").await;
    let steady = place.insert(1_000_000, "50 a second", "null").await;
    place.has_stored(fast, 1).await;
    place.has_stored(steady, 1).await;

    for turn in 0..via.short(20, 8) {
        let (failure, watched) = if turn % 4 == 3 {
            (EventFault::Delay(LATE), 75)
        } else {
            the_next_fire_is_near().await;
            (EventFault::None, 15)
        };
        place.realtime.faults().set_events(failure);
        place.set(fast, "is_active = false").await;
        let paused_at = place.stored(fast).await;
        let seen = place.stored(steady).await;
        place.has_stored(steady, seen + watched).await;
        let look = place.look(fast).await;
        assert_eq!(
            look.stored, paused_at,
            "visits after the pause's commit: {look:?}"
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
    // Twice the pace, and what a full bucket holds.
    assert!(
        place.densest(fast, "1 second").await <= 2 * 200 + 401,
        "a burst"
    );
}

directly_and_pooled!(an_editor_who_holds_a_row_for_four_seconds_stalls_that_row_alone);
async fn an_editor_who_holds_a_row_for_four_seconds_stalls_that_row_alone(via: Via) {
    let place = via.place().await;
    place.notes_fires().await;
    let _agent = place.agent().await;
    let held = place.insert(1_000_000, "100 a second", "null").await;
    let steady = place.insert(1_000_000, "50 a second", "null").await;
    place.has_stored(held, 1).await;
    place.has_stored(steady, 1).await;

    let mut editor = sqlx::PgConnection::connect(&place.url)
        .await
        .expect("a connection");
    let mut transaction = editor.begin().await.expect("a transaction");
    sqlx::query("select from visit_distribution where id = $1 for update")
        .bind(held)
        .execute(&mut *transaction)
        .await
        .expect("the editor waits for nobody for long");
    let (stalled_at, seen) = (place.stored(held).await, place.stored(steady).await);
    place.has_stored(steady, seen + 4 * 50).await;
    keeps_fifty_a_second(&place, steady).await;
    assert_eq!(
        place.stored(held).await,
        stalled_at,
        "a batch of a row that an editor holds"
    );
    assert_eq!(place.look(held).await.status, "behind");
    let invalid: i64 = place
        .ask("select count(*) from visit_distribution_progress where reason_code is not null")
        .await;
    assert_eq!(invalid, 0, "a held row is never quarantined");
    transaction.rollback().await.expect("the editor gives up");

    find("the held row has caught up", PATIENCE, async || {
        let look = place.look(held).await;
        (look.due? - look.stored <= 150).then_some(())
    })
    .await;
    assert!(
        place.densest(held, "1 second").await <= 2 * 100 + 201,
        "it drains by its bucket's rule"
    );
    place.finish(&[held, steady]).await;
}

directly_and_pooled!(pause_all_is_a_barrier_too_and_its_time_is_a_backlog_that_drains);
async fn pause_all_is_a_barrier_too_and_its_time_is_a_backlog_that_drains(via: Via) {
    let place = via.place().await;
    place.notes_fires().await;
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
    let stopped_at: i64 = place.ask("select count(*) from store_visits").await;
    agent.says("paused by visit_pacer_control").await;
    place.agents_work_for(2).await;
    assert_eq!(
        place.ask::<i64>("select count(*) from store_visits").await,
        stopped_at,
        "visits while all is paused"
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
    wait_until("the backlog has drained", PATIENCE, async || {
        let look = place.look(rows[0]).await;
        look.due.is_some_and(|due| due - look.stored <= 120)
    })
    .await;
    assert!(
        place.densest(rows[0], "1 second").await <= 2 * 80 + 161,
        "it drains by its bucket's rule"
    );
    place.finish(&rows).await;
}

#[tokio::test]
async fn pause_and_resume_of_the_command_line_edit_the_rows_they_name() {
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
    let nobody = Uuid::from_u128(7);
    let said = place.command(&["pause", &nobody.to_string()]).await;
    assert!(
        said.code == Some(1) && said.said.contains(&nobody.to_string()),
        "{said:?}"
    );
}

#[tokio::test]
async fn a_pause_between_two_fires_takes_hold_within_a_second_by_realtime() {
    let place = Place::new().await;
    let agent = place.agent().await;
    let row = place.insert(1_000_000, "1 a second", "null").await;
    place.has_stored(row, 1).await;
    let heard = agent
        .metric("visit_pacer_realtime_events_total")
        .await
        .expect("the metric");
    place.set(row, "is_active = false").await;
    wait_until(
        "the agent has heard of the pause",
        Duration::from_secs(5),
        async || agent.metric("visit_pacer_realtime_events_total").await > Some(heard),
    )
    .await;
    assert_eq!(
        agent.metric("visit_pacer_sync_repairs_total").await,
        Some(0.0)
    );
}
