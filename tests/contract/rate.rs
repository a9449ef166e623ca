//! Exact rate: the stored visits are exactly those of the curve.

use crate::harness::pooler::{Via, directly_and_pooled};
use crate::harness::subscriber::{Subscriber, WriteBacks};
use crate::harness::{PATIENCE, long, wait_until};

directly_and_pooled!(six_hundred_visits_at_3600_a_minute_are_stored_each_at_its_own_moment);
async fn six_hundred_visits_at_3600_a_minute_are_stored_each_at_its_own_moment(via: Via) {
    let place = via.place().await;
    let _agent = place.agent().await;
    let row = place
        .insert(600, "3600 a minute", "interval '10 seconds'")
        .await;

    place.becomes(row, "completed").await;
    assert_eq!(place.settles(row).await, 600);
    let off: i64 = place
        .ask(format!(
            "select count(*) from store_visits v join visit_distribution d on d.id = v.distribution_id
              where d.id = '{row}'
                and abs(extract(epoch from v.visited_at - d.start_time) - (v.visit_number - 0.5) / 60.0) > 0.001"
        ))
        .await;
    assert_eq!(
        off, 0,
        "visits that are not within 1 ms of start + (k - 1/2)/60 s"
    );
    wait_until("total_distributed is 600", PATIENCE, async || {
        place.look(row).await.total_distributed == 600
    })
    .await;

    place.agents_work_for(3).await;
    assert_eq!(place.stored(row).await, 600, "none more afterwards");
}

directly_and_pooled!(two_rates_follow_their_curves_at_each_second_within_the_write_back_budget);
async fn two_rates_follow_their_curves_at_each_second_within_the_write_back_budget(via: Via) {
    let place = via.place().await;
    let subscriber = Subscriber::to(&place).await;
    let budget = WriteBacks::from_now();
    let _agent = place.agent().await;
    let (watched, window) = if long() {
        (120, 60)
    } else {
        via.short((36, 25), (20, 12))
    };
    let steady = place
        .insert(150_000, "6250.00 a hour", "interval '24 hours'")
        .await;
    let brief = place
        .insert(
            2_000,
            "33.33 a minute",
            &format!("interval '{window} seconds'"),
        )
        .await;

    for _ in 0..watched {
        for row in [steady, brief] {
            let look = place.look(row).await;
            assert_eq!(
                look.distributed, look.stored,
                "the status view is exact: {look:?}"
            );
            assert!(look.backlog() >= 0, "never ahead of the curve: {look:?}");
            assert!(
                look.total_distributed <= look.stored,
                "never ahead of what is stored: {look:?}"
            );
        }
        place.agents_work_for(1).await;
    }
    for row in [steady, brief] {
        let stored = place.stored(row).await;
        wait_until("what is stored is written back", PATIENCE, async || {
            place.look(row).await.total_distributed >= stored
        })
        .await;
    }

    for row in [steady, brief] {
        assert_eq!(place.seconds_off_the_curve(row).await, [""; 0]);
        place.ledger_is_sound(row).await;
    }
    place.becomes(brief, "ended").await;
    budget.holds(&subscriber).await;
}
