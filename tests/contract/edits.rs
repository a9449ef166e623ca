//! Table edits drive behaviour: after each kind of edit the visits are exactly those of the new curve.

use crate::harness::pooler::{Via, directly_and_pooled};
use crate::harness::{PATIENCE, Place, wait_until};

directly_and_pooled!(
    each_edit_of_the_rate_takes_effect_and_the_seconds_after_it_follow_the_new_curve
);
async fn each_edit_of_the_rate_takes_effect_and_the_seconds_after_it_follow_the_new_curve(
    via: Via,
) {
    let place = via.place().await;
    let _agent = place.agent().await;
    let mut rows = Vec::new();
    for rate in ["20 a second", "60 a second", "40 a minute", "1200 a minute"] {
        rows.push(place.insert(1_000_000, rate, "interval '1 hour'").await);
    }
    for row in &rows {
        place.has_stored(*row, 1).await;
    }
    place.set(rows[0], "visits_per_unit = 90").await;
    place.set(rows[1], "visits_per_unit = 30").await;
    place.set(rows[2], "time_period = 'second'").await;
    place
        .set(
            rows[3],
            "end_time = clock_timestamp() + interval '5 seconds'",
        )
        .await;
    place.agents_work_for(8).await;

    for row in &rows {
        assert_eq!(place.seconds_off_the_curve(*row).await, [""; 0]);
    }
    let ended = place.becomes(rows[3], "ended").await;
    assert_eq!(
        place.settles(rows[3]).await,
        ended.stored,
        "nothing after the new end"
    );
    place.finish(&rows[..3]).await;
}

directly_and_pooled!(
    a_total_below_what_is_distributed_stops_the_row_and_a_raised_total_continues_it
);
async fn a_total_below_what_is_distributed_stops_the_row_and_a_raised_total_continues_it(via: Via) {
    let place = via.place().await;
    let _agent = place.agent().await;
    let row = place.insert(100_000, "100 a second", "null").await;
    let beside = place.insert(100_000, "20 a second", "null").await;
    place.has_stored(row, 150).await;
    place.set(row, "total_visits = 50").await;
    let lowered_at = place.stored(row).await;
    place.stores_more(beside, 40).await;
    assert_eq!(
        place.stored(row).await,
        lowered_at,
        "visits beyond a lowered total"
    );
    assert_eq!(place.look(row).await.status, "completed");

    place.set(row, "total_visits = 100000").await;
    place.has_stored(row, lowered_at + 100).await;
    place.finish(&[row, beside]).await;
}

directly_and_pooled!(a_window_that_is_moved_to_the_future_stops_the_row_until_it_opens);
async fn a_window_that_is_moved_to_the_future_stops_the_row_until_it_opens(via: Via) {
    let place = via.place().await;
    let _agent = place.agent().await;
    let row = place
        .insert(100_000, "50 a second", "interval '1 hour'")
        .await;
    place.has_stored(row, 50).await;
    place
        .set(row, "start_time = clock_timestamp() + interval '4 seconds'")
        .await;
    let moved_at = place.stored(row).await;
    let look = place.becomes(row, "scheduled").await;
    assert_eq!(look.stored, moved_at);
    place.becomes(row, "active").await;
    place.has_stored(row, moved_at + 120).await;
    assert_eq!(place.seconds_off_the_curve(row).await, [""; 0]);
    let between: i64 = place
        .ask(format!(
            "select count(*) from store_visits v join visit_distribution d on d.id = v.distribution_id
              where d.id = '{row}' and v.visit_number > {moved_at} and v.visited_at < d.start_time"
        ))
        .await;
    assert_eq!(between, 0, "visits dated before the window opened");
    place.finishes(row).await;
}

directly_and_pooled!(
    a_deleted_row_stops_at_once_keeps_its_visits_and_continues_its_numbers_when_it_is_inserted_again
);
async fn a_deleted_row_stops_at_once_keeps_its_visits_and_continues_its_numbers_when_it_is_inserted_again(
    via: Via,
) {
    let place = via.place().await;
    let _agent = place.agent().await;
    let row = place.insert(100_000, "100 a second", "null").await;
    let beside = place.insert(100_000, "20 a second", "null").await;
    place.has_stored(row, 100).await;
    place
        .edit(format!("delete from visit_distribution where id = '{row}'"))
        .await;
    let deleted_at = place.stored(row).await;
    place.stores_more(beside, 40).await;
    assert_eq!(
        place.stored(row).await,
        deleted_at,
        "visits of a deleted row"
    );

    let again = place.row().with("id", format!("'{row}'"));
    place
        .insert_rows(&again.total(100_000).rate("400 a second"))
        .await;
    place.has_stored(row, deleted_at + 100).await;
    place.finish(&[row, beside]).await;
}

directly_and_pooled!(a_row_whose_partner_changed_continues_for_the_new_one);
async fn a_row_whose_partner_changed_continues_for_the_new_one(via: Via) {
    let place = via.place().await;
    let _agent = place.agent().await;
    let row = place.insert(100_000, "100 a second", "null").await;
    place.has_stored(row, 100).await;
    let other = place.new_partner().await;
    place.set(row, &format!("partner_id = '{other}'")).await;
    let changed_at = place.stored(row).await;
    place.has_stored(row, changed_at + 100).await;
    place.finishes(row).await;
    let mixed: i64 = place
        .ask(format!(
            "select count(*) from store_visits where distribution_id = '{row}'
                and (partner_id = '{other}') <> (visit_number > {changed_at})"
        ))
        .await;
    assert_eq!(
        mixed, 0,
        "visits of the old partner after the edit, or of the new one before it"
    );
}

directly_and_pooled!(a_truncate_stops_all_rows_and_changes_no_visit);
async fn a_truncate_stops_all_rows_and_changes_no_visit(via: Via) {
    let place = via.place().await;
    let agent = place.agent().await;
    let rows = [
        place.insert(100_000, "50 a second", "null").await,
        place.insert(100_000, "5 a second", "null").await,
    ];
    for row in rows {
        place.has_stored(row, 5).await;
    }
    place.edit("truncate visit_distribution").await;
    let left = place.all_stored().await;
    place.agents_work_for(3).await;
    assert_eq!(place.all_stored().await, left);
    for row in rows {
        place.ledger_is_sound(row).await;
    }
    wait_until("the agent knows of no row", PATIENCE, async || {
        agent.metric("visit_pacer_distributions_scheduled").await == Some(0.0)
    })
    .await;
    let again = place.insert(20, "20 a second", "null").await;
    place.becomes(again, "completed").await;
    assert_eq!(place.settles(again).await, 20);
}

#[tokio::test]
async fn edits_of_other_columns_change_nothing() {
    let place = Place::new().await;
    let _agent = place.agent().await;
    let row = place.insert(100_000, "40 a second", "null").await;
    let version: i64 = place
        .ask(format!(
            "select config_version from visit_distribution where id = '{row}'"
        ))
        .await;
    for _ in 0..10 {
        place.set(row, "updated_at = clock_timestamp(), config_version = 3, anchor_units = 0, total_distributed = 7").await;
        place.stores_more(row, 1).await;
    }
    let now: i64 = place
        .ask(format!(
            "select config_version from visit_distribution where id = '{row}'"
        ))
        .await;
    assert_eq!(now, version, "only the trigger writes these columns");
    assert_eq!(place.seconds_off_the_curve(row).await, [""; 0]);
    place.finishes(row).await;
}
