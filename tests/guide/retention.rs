//! Visits that are gone: those that retention removed never come again, those that somebody deleted only when a person says so.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::said;
use crate::harness::{PATIENCE, Place, wait_until};

/// Visits of a row, at [`RATE`] a second: more than its bucket lets through within five seconds.
const TOTAL: i64 = 280;
const RATE: i64 = 20;

/// A row whose whole curve is due and stored, by hand.
async fn completed(place: &Place) -> Uuid {
    let row = place
        .ask(format!(
            "insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit, start_time)
             values ('{}', {TOTAL}, 'second', {RATE}, now() - interval '1 minute') returning id",
            place.partner
        ))
        .await;
    let sql_functions = format!(
        "select sum(visits_added) from distribute_visits_for_partner('{}', {TOTAL})",
        place.partner
    );
    assert_eq!(said(&place.db, sql_functions).await, [TOTAL.to_string()]);
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
        .edit("update visit_pacer_agents set last_heartbeat_at = last_heartbeat_at - interval '1 minute'")
        .await;
    place.edit("select * from distribute_visits()").await;
    told
}

#[tokio::test]
async fn what_was_purged_is_never_issued_again_whatever_syncs() {
    let place = Place::new().await;
    let row = completed(&place).await;
    let purged = said(&place.db, "select * from purge_old_visits(interval '0')").await;
    assert_eq!(purged, [format!("{row}|{TOTAL}")]);
    for _ in 0..2 {
        assert_eq!(sync(&place).await, [""; 0], "nothing differs");
        assert_eq!(place.stored(row).await, 0);
    }
    let ledger = format!(
        "select status, distributed, purged, missing from visit_distribution_status where id = '{row}'"
    );
    assert_eq!(
        said(&place.db, ledger).await,
        [format!("completed|{TOTAL}|{TOTAL}|0")]
    );

    place
        .set(row, &format!("total_visits = {TOTAL} + 10"))
        .await;
    let _agent = place.agent().await;
    place.has_stored(row, 10).await;
    let numbers = format!(
        "select min(visit_number), max(visit_number) from store_visits where distribution_id = '{row}'"
    );
    assert_eq!(
        said(&place.db, numbers).await,
        [format!("{}|{}", TOTAL + 1, TOTAL + 10)],
        "numbers go on"
    );
}

/// Runs it over a connection of its own; what it says.
async fn call(url: String, sql: &'static str) -> Vec<(Uuid, i64)> {
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    sqlx::query_as(sql)
        .fetch_all(&mut connection)
        .await
        .expect("a call")
}

#[tokio::test]
async fn an_editor_of_a_row_that_is_purged_waits_for_the_deletes_of_no_other_row() {
    let place = Place::new().await;
    let mut rows = [completed(&place).await, completed(&place).await];
    rows.sort_unstable();
    let [first, last] = rows;
    // The deletes of the last row take until somebody lets them go on.
    place
        .edit(format!(
            "create function goes_on() returns trigger language plpgsql as $$
               begin perform pg_advisory_xact_lock_shared(7); return old; end $$;
             create trigger goes_on before delete on store_visits for each row
               when (old.distribution_id = '{last}') execute function goes_on()"
        ))
        .await;
    let mut gate = PgConnection::connect(&place.url)
        .await
        .expect("a connection");
    let close = sqlx::query("select pg_advisory_lock(7)");
    close.execute(&mut gate).await.expect("nobody has it");
    let purge = "select * from purge_old_visits(interval '0')";
    let mut purging = JoinSet::new();
    purging.spawn(call(place.url.clone(), purge));
    wait_until("the last row is purged", PATIENCE, async || {
        let waits = "select exists (select from pg_locks where locktype = 'advisory' and not granted
                      and database = (select oid from pg_database where datname = current_database()))";
        place.ask(waits).await
    })
    .await;

    let pause = format!(
        "set lock_timeout = '5s'; update visit_distribution set is_active = false where id = '{first}'"
    );
    let mut editor = PgConnection::connect(&place.url)
        .await
        .expect("a connection");
    sqlx::raw_sql(AssertSqlSafe(pause))
        .execute(&mut editor)
        .await
        .expect("an editor waits for no delete");
    gate.close().await.expect("the deletes go on");
    let purged = purging.join_next().await.expect("it was begun");
    assert_eq!(purged.expect("no panic"), rows.map(|row| (row, TOTAL)));
    assert_eq!(sync(&place).await, [""; 0], "nothing differs");
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
    let missing = TOTAL - left;
    assert_eq!(
        sync(&place).await,
        [format!("{TOTAL}|{TOTAL}|{missing}")],
        "{removal}"
    );
    assert_eq!(place.stored(row).await, left, "nothing comes by itself");
    let told =
        format!("select distributed, missing from visit_distribution_status where id = '{row}'");
    assert_eq!(said(&place.db, told).await, [format!("{TOTAL}|{missing}")]);
    let lower =
        "select counted_before, counted_now, missing from sync_distribution_counts(lower => true)";
    let lowered = said(&place.db, lower).await;
    assert_eq!(lowered, [format!("{TOTAL}|{left}|0")]);
    place.record_fires().await;
    let _agent = place.agent().await;
    place.has_stored(row, TOTAL).await;
    place.agents_work_for(2).await;
    assert_eq!(place.stored(row).await, TOTAL, "exactly the missing ones");
    let densest = place.densest(row, "5 seconds").await;
    let bucket = 2 * RATE + 1;
    assert!(
        densest <= 5 * 2 * RATE + bucket,
        "{densest} in five seconds"
    );
}

#[tokio::test]
async fn visits_that_the_user_deleted_come_again_when_a_person_asks_for_them_and_at_pace() {
    gone_and_asked_for("delete from store_visits where visit_number <= 260").await;
}

#[tokio::test]
async fn visits_that_the_user_truncated_come_again_when_a_person_asks_for_them_and_at_pace() {
    gone_and_asked_for("truncate store_visits").await;
}
