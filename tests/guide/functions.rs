//! The SQL functions beside agents and beside each other, and what one row's trouble means for the others.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::Database;
use crate::harness::{PATIENCE, Place, find, long, wait_until};

const CONNECTIONS: usize = 8;
/// Between two calls of one connection, so that the other tests of the run have their share of the machine.
const BREATH: Duration = Duration::from_millis(30);

/// Calls `distribute_visits()` until then; gives how often. Every row of every call says what is ordinary beside others.
async fn call_in_a_loop(url: String, until: Instant) -> u32 {
    let mut db = Database::at(url).await;
    let mut calls = 0;
    while Instant::now() < until {
        for (_, message) in db.distribute().await {
            let ordinary = message == "owed: 0"
                || message.starts_with("held by another transaction")
                || message.starts_with("the rest comes at the pace of the row's bucket");
            assert!(ordinary, "{message}");
        }
        calls += 1;
        tokio::time::sleep(BREATH).await;
    }
    calls
}

#[tokio::test]
async fn eight_connections_that_distribute_in_a_loop_beside_two_agents_store_what_is_due_and_no_more()
 {
    let place = Place::new().await;
    place.record_fires().await;
    let rows = [
        place.insert(1_000_000, "200 a second", "null").await,
        place.insert(1_000_000, "30 a second", "null").await,
        place
            .insert(1_000_000, "150 a minute", "interval '1 hour'")
            .await,
    ];
    let agents = [place.agent().await, place.agent().await];
    let until = Instant::now() + Duration::from_secs(if long() { 30 } else { 10 });
    let mut callers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        callers.spawn(call_in_a_loop(place.url.clone(), until));
    }
    while let Some(ended) = callers.join_next().await {
        let calls = ended.expect("no error in any call, and nothing odd said");
        assert!(calls > 10, "{calls} calls");
    }
    for row in rows {
        place.finishes(row).await;
    }
    let densest = place.densest(rows[0], "5 seconds").await;
    assert!(densest <= 10 * 200 + 401, "one bucket for all: {densest}");
    for agent in &agents {
        assert!(!agent.log().contains("ERROR"), "{}", agent.log());
    }
}

async fn sql_functions(place: &Place, partner: Uuid, visits: i64) -> Vec<(i64, String)> {
    sqlx::query_as(AssertSqlSafe(format!(
        "select visits_added, message from distribute_visits_for_partner('{partner}', {visits})"
    )))
    .fetch_all(&place.db)
    .await
    .expect("no error")
}

#[tokio::test]
async fn fifty_by_hand_come_at_once_and_the_agent_then_waits_until_the_curve_has_caught_up() {
    let place = Place::new().await;
    let _agent = place.agent().await;
    let row = place.insert(1_000, "10 a second", "null").await;
    place.has_stored(row, 5).await;

    // A call in the very moment of the agent's own batch is told to come again.
    find("fifty by hand", PATIENCE, async || {
        let told = sql_functions(&place, place.partner, 50).await;
        assert!(
            told.len() == 1 && (told[0].0 == 50 || told[0].1.starts_with("held")),
            "{told:?}"
        );
        (told[0].0 == 50).then_some(())
    })
    .await;
    let ahead = place.look(row).await;
    assert!(Some(ahead.stored) > ahead.due, "at once: {ahead:?}");
    assert_eq!(ahead.total_distributed, ahead.stored, "and told");
    find("the curve has caught up", PATIENCE, async || {
        let look = place.look(row).await;
        if look.due >= Some(ahead.stored) {
            return Some(());
        }
        assert_eq!(look.stored, ahead.stored, "the agent waits: {look:?}");
        None
    })
    .await;
    place.has_stored(row, ahead.stored + 5).await;
    place.finishes(row).await;
}

#[tokio::test]
async fn by_hand_never_goes_beyond_the_total_or_the_window_and_says_why_it_added_nothing() {
    let mut db = Database::migrated().await;
    let partner = db.partner().await;
    let nobody = Uuid::from_u128(rand::random());
    let refused = |told: Vec<(i64, String)>, why: &str| {
        assert!(
            told.len() == 1 && told[0].0 == 0 && told[0].1.contains(why),
            "{why}: {told:?}"
        );
    };
    refused(db.sql_functions(nobody, 50).await, "there is no partner");
    refused(
        db.sql_functions(partner, 50).await,
        "no active distribution",
    );
    let row = db.insert(partner, 80, "1 a hour", "0", "1 hour").await;
    assert_eq!(db.sql_functions(partner, 50).await[0].0, 50);
    assert_eq!(db.sql_functions(partner, 50).await[0].0, 30, "80 in all");
    refused(db.sql_functions(partner, 50).await, "completed");
    refused(db.sql_functions(partner, 0).await, "visits is 0");

    db.run(format!("delete from visit_distribution where id = '{row}'"))
        .await;
    db.insert(partner, 80, "1 a hour", "-2 hours", "-1 hour")
        .await;
    refused(db.sql_functions(partner, 50).await, "its window is over");
    db.run("update visit_distribution set is_active = false")
        .await;
    refused(
        db.sql_functions(partner, 50).await,
        "no active distribution",
    );
    db.run("update visit_distribution set is_active = true; update visit_pacer_control set paused = true").await;
    refused(db.sql_functions(partner, 50).await, "stopped");
}

#[tokio::test]
async fn by_hand_is_shared_in_proportion_to_what_each_row_has_left() {
    let mut db = Database::migrated().await;
    let partner = db.partner().await;
    db.insert(partner, 100, "1 a day", "0", "1 day").await;
    db.insert(partner, 300, "1 a day", "0", "1 day").await;
    db.insert(partner, 300, "1 a day", "1 day", "2 days").await;
    let mut told = db.sql_functions(partner, 40).await;
    told.sort_unstable();
    let added: Vec<i64> = told.iter().map(|row| row.0).collect();
    assert_eq!(
        added,
        [0, 10, 30],
        "none for one that starts later: {told:?}"
    );
    let rest = db.sql_functions(partner, 5_000).await;
    assert_eq!(rest.iter().map(|row| row.0).sum::<i64>(), 360);
}

#[tokio::test]
async fn a_row_whose_insert_fails_in_a_trigger_of_the_users_is_set_aside_and_the_others_go_on() {
    let mut db = Database::migrated().await;
    let (first, second, third) = (db.partner().await, db.partner().await, db.partner().await);
    for partner in [first, second, third] {
        db.insert(partner, 1_000, "10 a second", "-10 seconds", "1 hour")
            .await;
    }
    db.run(format!(
        "create function no() returns trigger language plpgsql as $$ begin
           if new.partner_id = '{second}' then raise exception 'a trigger says no'; end if; return new; end $$;
         create trigger no before insert on store_visits for each row execute function no()"
    ))
    .await;
    let added = format!(
        "select partner_id = '{second}', visits_added, message from distribute_visits() order by 1, 2"
    );
    let told: Vec<(bool, i64, String)> = db.rows(&added).await;
    assert!(told[0].1 >= 100 && told[1].1 >= 100, "{told:?}");
    assert!(
        told[2].0 && told[2].1 == 0 && told[2].2.starts_with("a trigger says no; owed: 1"),
        "{told:?}"
    );
    let status = format!(
        "select status || ': ' || reason from visit_distribution_status where partner_id = '{second}'"
    );
    assert_eq!(
        db.ask::<String>(&status).await,
        "invalid: a trigger says no"
    );
    let told: Vec<(bool, i64, String)> = db.rows(&added).await;
    assert!(told[2].2.contains("tried again every 60 s"), "{told:?}");

    db.run(format!("drop trigger no on store_visits; update visit_distribution set total_visits = 2000 where partner_id = '{second}'")).await;
    let told: Vec<(bool, i64, String)> = db.rows(&added).await;
    assert!(told[2].1 >= 100, "at once after an edit: {told:?}");
}

#[tokio::test]
async fn a_held_row_is_passed_over_without_waiting_and_comes_with_the_next_call() {
    let mut db = Database::migrated().await;
    let (held, free) = (db.partner().await, db.partner().await);
    for partner in [held, free] {
        db.insert(partner, 1_000, "10 a second", "-10 seconds", "1 hour")
            .await;
    }
    let added = format!(
        "select visits_added, message from distribute_visits() order by partner_id = '{held}' desc"
    );
    let mut editor = Database::at(db.url.clone()).await;
    for lock in [
        format!("begin; select from visit_distribution where partner_id = '{held}' for update"),
        format!("begin; select from partners where id = '{held}' for update"),
    ] {
        editor.run(lock).await;
        let told: Vec<(i64, String)> = db.rows(&added).await;
        assert!(
            told[0].0 == 0
                && told[0].1.starts_with(
                    "held by another transaction; tried again at the next call; owed: 1"
                ),
            "{told:?}"
        );
        editor.run("rollback").await;
    }
    let told: Vec<(i64, String)> = db.rows(&added).await;
    assert!(told[0].0 >= 100, "{told:?}");
    let stored: i64 = db
        .ask(format!(
            "select count(*) from store_visits where partner_id = '{free}'"
        ))
        .await;
    assert!(stored >= 100, "the free one never waited");
}

#[tokio::test]
async fn without_an_agent_a_call_stores_a_quarter_of_an_hour_and_beside_one_what_the_bucket_holds()
{
    let mut db = Database::migrated().await;
    let partner = db.partner().await;
    db.insert(partner, 100_000, "1 a second", "-1 hour", "1 hour")
        .await;
    db.run(
        "insert into visit_pacer_agents (id, name) values (gen_random_uuid(), 'one that lives')",
    )
    .await;
    let told = db.distribute().await;
    assert!(
        told[0].0 == 3
            && told[0]
                .1
                .contains("at the pace of the row's bucket; owed: 3"),
        "{told:?}"
    );
    db.run("delete from visit_pacer_agents").await;
    let told = db.distribute().await;
    assert!(
        told[0].0 == 900 && told[0].1.contains("with the next calls; owed: 2"),
        "{told:?}"
    );
    assert_eq!(
        db.ask::<i64>("select total_distributed::bigint from visit_distribution")
            .await,
        903
    );
}

#[tokio::test]
async fn what_was_due_at_the_end_is_dated_before_it_also_after_an_edit_while_it_drains() {
    let mut db = Database::migrated().await;
    let partner = db.partner().await;
    db.insert(partner, 100, "1 a second", "-60 seconds", "-10 seconds")
        .await;
    db.run("update visit_distribution set total_visits = 99")
        .await;
    assert_eq!(db.distribute().await[0].0, 50);
    let late: i64 = db
        .ask("select count(*) from store_visits s, visit_distribution v where s.visited_at > v.end_time")
        .await;
    assert_eq!(late, 0, "visits after end_time");
}

#[tokio::test]
async fn a_control_row_that_somebody_deleted_is_made_again_without_an_agent() {
    let place = Place::new().await;
    let row = place.insert(1_000, "10 a second", "null").await;
    place.edit("delete from visit_pacer_control").await;
    wait_until("visits are due and stored", PATIENCE, async || {
        place.edit("select * from distribute_visits()").await;
        place.stored(row).await > 0
    })
    .await;
}

#[tokio::test]
async fn in_a_transaction_with_one_snapshot_the_functions_refuse_and_say_what_to_do() {
    let mut db = Database::migrated().await;
    for call in [
        "distribute_visits()",
        "distribute_visits_for_partner(gen_random_uuid(), 5)",
        "purge_old_visits('1 day')",
        "adopt_existing_visits(gen_random_uuid())",
    ] {
        let sql = format!("begin isolation level repeatable read; select * from {call}");
        let refused = db.try_run(sql).await.expect_err(call).to_string();
        assert!(refused.contains("read committed"), "{call}: {refused}");
        db.run("rollback").await;
    }
}
