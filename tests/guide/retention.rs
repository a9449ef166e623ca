//! Visits that are gone: those that retention removed never come again, those that somebody deleted only when a person says so.

use uuid::Uuid;

use super::said;
use crate::harness::{PATIENCE, Place, find};

/// A row of 200 visits at 20 a second that is completed already, by hand.
async fn completed(place: &Place) -> Uuid {
    let row = place.insert(200, "20 a second", "null").await;
    let added = said(
        &place.db,
        format!(
            "select visits_added from distribute_visits_for_partner('{}', 200)",
            place.partner
        ),
    );
    assert_eq!(added.await, ["200"]);
    row
}

/// Has everything that counts do so: the call that a person makes or cron, and an agent that starts.
async fn sync(place: &Place) -> Vec<String> {
    let told = said(
        &place.db,
        "select counted_before, counted_now, missing from sync_distribution_counts()",
    )
    .await;
    let mut agent = place.agent().await;
    place.agents_work_for(3).await;
    agent.terminate().await;
    place
        .edit("update visit_pacer_agents set seen_at = seen_at - interval '1 minute'")
        .await;
    place.edit("select * from distribute_visits()").await;
    told
}

#[tokio::test]
async fn what_was_purged_is_never_issued_again_whatever_syncs() {
    let place = Place::new().await;
    let row = completed(&place).await;
    let purged = said(&place.db, "select * from purge_old_visits(interval '0')").await;
    assert_eq!(purged, [format!("{row}|200")]);
    for _ in 0..2 {
        assert_eq!(sync(&place).await, [""; 0], "nothing differs");
        assert_eq!(place.stored(row).await, 0);
    }
    let ledger = format!(
        "select status, distributed, purged, missing from visit_distribution_status where id = '{row}'"
    );
    assert_eq!(said(&place.db, ledger).await, ["completed|200|200|0"]);

    place.set(row, "total_visits = 210").await;
    let _agent = place.agent().await;
    place.has_stored(row, 10).await;
    let numbers = format!(
        "select min(visit_number), max(visit_number) from store_visits where distribution_id = '{row}'"
    );
    assert_eq!(said(&place.db, numbers).await, ["201|210"], "numbers go on");
}

#[tokio::test]
async fn a_purge_beside_a_running_agent_takes_nothing_off_the_pace() {
    let place = Place::new().await;
    let _agent = place.agent().await;
    let row = place.insert(1_000_000, "100 a second", "null").await;
    let organic = format!(
        "insert into store_visits (partner_id, visited_at) values ('{}', now() - interval '1 year')",
        place.partner
    );
    place.edit(organic).await;
    for _ in 0..5 {
        place.has_stored(row, 5).await;
        place
            .edit("select * from purge_old_visits(interval '0')")
            .await;
    }
    let end = format!(
        "total_visits = visit_distribution_due('{row}', clock_timestamp() + interval '1 second')"
    );
    place.set(row, &end).await;
    let look = place.becomes(row, "completed").await;
    let purged: i64 = place
        .ask(format!(
            "select purged from visit_distribution_status where id = '{row}'"
        ))
        .await;
    assert!(purged >= 25, "{purged} purged");
    assert_eq!(look.stored + purged, look.total_visits, "{look:?}");
    assert_eq!(
        place
            .ask::<i64>("select count(*) from organic_store_visits")
            .await,
        1,
        "organic visits stay"
    );
}

/// Removes visits as a user would; they are told as missing, and come again when a person asks for it, and no sooner.
async fn gone_and_asked_for(removal: &str) {
    let place = Place::new().await;
    let row = completed(&place).await;
    place.edit(removal).await;
    let left = place.stored(row).await;
    let missing = 200 - left;
    assert_eq!(
        sync(&place).await,
        [format!("200|200|{missing}")],
        "{removal}"
    );
    assert_eq!(place.stored(row).await, left, "nothing comes by itself");
    let told =
        format!("select distributed, missing from visit_distribution_status where id = '{row}'");
    assert_eq!(said(&place.db, told).await, [format!("200|{missing}")]);
    find("the whole curve is due", PATIENCE, async || {
        (place.look(row).await.due == Some(200)).then_some(())
    })
    .await;

    let lower =
        "select counted_before, counted_now, missing from sync_distribution_counts(lower => true)";
    let lowered = said(&place.db, lower).await;
    assert_eq!(lowered, [format!("200|{left}|0")]);
    let _agent = place.agent().await;
    place.has_stored(row, 200).await;
    place.agents_work_for(2).await;
    assert_eq!(place.stored(row).await, 200, "exactly the missing ones");
    let densest: i64 = place
        .ask(
            "select max(n) from (
               select count(*) over (order by created_at range between current row and interval '1 second' following) as n
                 from store_visits where visit_number > 200) spans",
        )
        .await;
    assert!(densest <= 2 * 20 + 41, "{densest} in a second");
}

#[tokio::test]
async fn visits_that_the_user_deleted_come_again_when_a_person_asks_for_them_and_at_pace() {
    gone_and_asked_for("delete from store_visits where visit_number <= 120").await;
}

#[tokio::test]
async fn visits_that_the_user_truncated_come_again_when_a_person_asks_for_them_and_at_pace() {
    gone_and_asked_for("truncate store_visits").await;
}
