//! `store_visits` by day, where a person has run the script for it: the agent goes on, and what a partition takes with it is counted.

use sqlx::AssertSqlSafe;

use super::said;
use crate::harness::Place;

const PARTITION: &str = include_str!("../../deploy/supabase/partition.sql");

/// As `psql --single-transaction` runs it.
async fn partition(place: &Place) -> Result<(), String> {
    let mut connection = place.db.acquire().await.expect("a connection");
    let run = sqlx::raw_sql(AssertSqlSafe(format!("begin; {PARTITION} commit")));
    match run.execute(&mut *connection).await {
        Ok(_) => Ok(()),
        Err(error) => {
            let ended = sqlx::raw_sql("rollback").execute(&mut *connection).await;
            ended.expect("the end");
            Err(error.to_string())
        }
    }
}

#[tokio::test]
async fn an_agent_goes_on_over_a_table_that_is_partitioned_beneath_it_and_loses_and_doubles_nothing()
 {
    let place = Place::new().await;
    let row = place.insert(1_000_000, "20 a second", "null").await;
    let _agent = place.agent().await;
    place
        .edit("insert into store_visits (partner_id) select id from partners")
        .await;
    place.has_stored(row, 40).await;
    partition(&place).await.expect("it is partitioned");
    let before = place.stored(row).await;
    place.has_stored(row, before + 60).await;
    let numbers = format!(
        "select count(*) = max(visit_number), count(distinct visit_number) = count(*), min(visit_number)
           from store_visits where distribution_id = '{row}'"
    );
    assert_eq!(said(&place.db, numbers).await, ["t|t|1"]);
    assert_eq!(place.look(row).await.status, "active");
    let organic = "select count(*) from organic_store_visits";
    assert_eq!(
        said(&place.db, organic).await,
        ["1"],
        "the view has the whole"
    );
    let twice = partition(&place).await.expect_err("refused");
    assert!(twice.contains("partitioned already"), "{twice}");
}

#[tokio::test]
async fn what_a_dropped_partition_held_is_counted_as_purged_and_never_issued_again() {
    let place = Place::new().await;
    let row = place.insert(300, "60 a second", "null").await;
    let mut agent = place.agent().await;
    place.has_stored(row, 300).await;
    agent.terminate().await;
    partition(&place).await.expect("it is partitioned");
    place
        .edit(
            "update store_visits set visited_at = visited_at - interval '9 days';
             alter table store_visits detach partition store_visits_before_partitions;
             alter table store_visits attach partition store_visits_before_partitions
               for values from (minvalue) to (date_trunc('day', now()) - interval '5 days')",
        )
        .await;
    let kept = said(
        &place.db,
        "select * from visit_pacer_drop_partitions(interval '30 days')",
    )
    .await;
    assert_eq!(kept, [""; 0]);
    let dropped = said(
        &place.db,
        "select * from visit_pacer_drop_partitions(interval '2 days')",
    )
    .await;
    assert_eq!(dropped, ["store_visits_before_partitions|300"]);
    assert_eq!(place.stored(row).await, 0);
    let differs = said(&place.db, "select missing from sync_distribution_counts()").await;
    assert_eq!(differs, [""; 0]);
    place.set(row, "total_visits = 310").await;
    let _agent = place.agent().await;
    place.has_stored(row, 10).await;
    let numbers = format!(
        "select min(visit_number), max(visit_number) from store_visits where distribution_id = '{row}'"
    );
    assert_eq!(said(&place.db, numbers).await, ["301|310"], "numbers go on");
}

#[tokio::test]
async fn after_days_without_new_partitions_those_of_the_days_to_come_are_made_again() {
    let place = Place::new().await;
    partition(&place).await.expect("it is partitioned");
    place
        .edit(
            "do $$ begin
               execute format('drop table store_visits_%s, store_visits_%s',
                              to_char(current_date + 2, 'YYYYMMDD'), to_char(current_date + 3, 'YYYYMMDD'));
             end $$;
             insert into store_visits (partner_id, visited_at) select id, current_date + 2.5 * interval '1 day' from partners limit 1",
        )
        .await;
    let kept = "select count(*) from store_visits_default";
    assert_eq!(said(&place.db, kept).await, ["1"]);
    let made = said(&place.db, "select visit_pacer_make_partitions()").await;
    assert_eq!(made, ["1"], "the visit's own day stays in the default one");
}

#[tokio::test]
async fn partitions_are_dropped_one_a_call_the_oldest_first() {
    let place = Place::new().await;
    partition(&place).await.expect("it is partitioned");
    place
        .edit(
            "alter table store_visits detach partition store_visits_before_partitions;
             create table store_visits_old partition of store_visits
               for values from (date_trunc('day', now()) - interval '8 days') to (date_trunc('day', now()) - interval '7 days');
             create table store_visits_older partition of store_visits
               for values from (date_trunc('day', now()) - interval '9 days') to (date_trunc('day', now()) - interval '8 days')",
        )
        .await;
    for expected in [&["store_visits_older|0"][..], &["store_visits_old|0"], &[]] {
        let drop = "select * from visit_pacer_drop_partitions(interval '2 days')";
        assert_eq!(said(&place.db, drop).await, expected);
    }
}

#[tokio::test]
async fn a_table_with_triggers_of_its_own_is_left_as_it_is() {
    let place = Place::new().await;
    place
        .edit(
            "create function theirs() returns trigger language plpgsql as 'begin return new; end';
             create trigger theirs before insert on store_visits for each row execute function theirs()",
        )
        .await;
    let refused = partition(&place).await.expect_err("refused");
    assert!(refused.contains("triggers of its own: theirs"), "{refused}");
    let kind = "select relkind from pg_class where oid = 'store_visits'::regclass";
    assert_eq!(said(&place.db, kind).await, ["r"]);
}
