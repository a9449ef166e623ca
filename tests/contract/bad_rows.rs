//! Bad rows are refused where they are written, or set aside with a reason while every other row goes on.

use sqlx::Connection as _;
use uuid::Uuid;

use crate::harness::pooler::{Via, directly_and_pooled};
use crate::harness::{PATIENCE, Place, refusal, wait_until};

/// What an edit may not write, and a word of the hint or message that says what to do.
const REFUSED: &[(&str, &str)] = &[
    ("visits_per_unit = null", "visits_per_unit"),
    ("visits_per_unit = -1", "0 or more"),
    ("visits_per_unit = 'NaN'", "visits_per_unit"),
    ("visits_per_unit = 'Infinity'", "visits_per_unit"),
    ("visits_per_unit = 0.0000000001", "9 decimals"),
    ("visits_per_unit = 1000001", "1000000"),
    ("total_visits = null", "total_visits"),
    ("total_visits = -1", "0 or more"),
    ("total_visits = 1000000000000001", "10^15"),
    ("time_period = 'fortnight'", "minute"),
    ("time_period = null", "minute"),
    ("start_time = '1999-12-31 23:59:59+00'", "2000"),
    ("start_time = '2200-01-01 00:00:00+00'", "2200"),
    ("start_time = 'infinity'", "2200"),
    ("end_time = '-infinity'", "2000"),
    ("end_time = start_time", "after"),
    ("catch_up = 0.5", "1 to 1000"),
    ("catch_up = 'NaN'", "1 to 1000"),
];

#[tokio::test]
async fn a_bad_value_is_refused_where_it_is_written_with_what_to_do_in_the_hint() {
    let place = Place::new().await;
    let row = place.insert(100, "1 a second", "interval '1 hour'").await;
    for (bad, what_to_do) in REFUSED {
        let update = format!("update visit_distribution set {bad} where id = '{row}'");
        let (code, words) = refusal(&place.try_edit(update).await.expect_err("refused"));
        assert_eq!(code, "23514", "{bad}: {words}");
        let (_, hint) = words.split_once("; ").expect("a message and a hint");
        assert!(
            words.contains(what_to_do) && !hint.is_empty(),
            "{bad}: {words}"
        );

        let (column, value) = bad.split_once(" = ").expect("COLUMN = VALUE");
        let value = value.replace("start_time", "d.start_time");
        let insert = format!(
            "insert into visit_distribution select (jsonb_populate_record(d, to_jsonb(n))).*
               from visit_distribution d, lateral (select gen_random_uuid() as id, {value} as {column}) n
              where d.id = '{row}'"
        );
        let (code, words) = refusal(&place.try_edit(insert).await.expect_err("refused"));
        assert_eq!(code, "23514", "an insert with {bad}: {words}");
    }
    let stranger = Uuid::from_u128(5);
    let update =
        format!("update visit_distribution set partner_id = '{stranger}' where id = '{row}'");
    assert_eq!(
        refusal(&place.try_edit(update).await.expect_err("refused")).0,
        "23503"
    );
    place
        .set(row, "visits_per_unit = 0, total_visits = 0")
        .await;
}

/// A row that no trigger of ours has seen, with these values for total, unit and rate.
pub async fn smuggle(place: &Place, values: &str) -> Uuid {
    let id = Uuid::from_u128(rand::random());
    place
        .edit(format!(
            "alter table visit_distribution disable trigger zzz_visit_pacer_before_edit;
             insert into visit_distribution (id, partner_id, total_visits, time_period, visits_per_unit)
             values ('{id}', '{}', {values});
             alter table visit_distribution enable always trigger zzz_visit_pacer_before_edit;",
            place.partner
        ))
        .await;
    id
}

directly_and_pooled!(
    bad_rows_that_exist_all_the_same_are_set_aside_with_the_reason_and_can_be_repaired
);
async fn bad_rows_that_exist_all_the_same_are_set_aside_with_the_reason_and_can_be_repaired(
    via: Via,
) {
    let place = via.place().await;
    let good = place.insert(1_000_000, "20 a second", "null").await;
    let bad = [
        (
            smuggle(&place, "100, 'second', 'NaN'").await,
            "visits_per_unit is NaN",
        ),
        (
            smuggle(&place, "-5, 'second', 1").await,
            "total_visits is -5",
        ),
        (
            smuggle(&place, "100, 'fortnight', 1").await,
            "time_period is 'fortnight'",
        ),
        (
            smuggle(&place, "100, 'minute', null").await,
            "visits_per_unit is null",
        ),
    ];
    let unanchored = smuggle(&place, "40, 'second', 20").await;
    let agent = place.agent().await;

    for (id, reason) in &bad {
        let look = place.becomes(*id, "invalid").await;
        assert!(
            look.reason
                .as_deref()
                .is_some_and(|found| found.contains(reason)),
            "{look:?}"
        );
        wait_until(format!("the log names {id}"), PATIENCE, async || {
            agent
                .log()
                .lines()
                .any(|line| line.contains(&id.to_string()) && line.contains(reason))
        })
        .await;
    }
    wait_until("the metrics count them", PATIENCE, async || {
        agent
            .get("/metrics")
            .await
            .1
            .lines()
            .any(|line| line == "visit_pacer_distributions{status=\"invalid\"} 4")
    })
    .await;
    place.becomes(unanchored, "completed").await;
    place.settles(unanchored).await;
    place.has_stored(good, 40).await;

    let (nan, _) = bad[0];
    place.set(nan, "is_active = false").await;
    place
        .set(nan, "visits_per_unit = 20, is_active = true")
        .await;
    place.becomes(nan, "completed").await;
    assert_eq!(place.settles(nan).await, 100);
    for (id, _) in &bad[1..] {
        assert_eq!(place.stored(*id).await, 0, "a batch touched a bad row");
    }
    place.finishes(good).await;
}

#[tokio::test]
async fn a_row_whose_insert_fails_is_set_aside_alone_with_the_databases_words_until_it_is_edited() {
    is_set_aside_alone(
        Via::Direct,
        "create function no_visits() returns trigger language plpgsql as $$
           begin raise exception 'the warehouse is closed'; end $$;
         create trigger no_visits before insert on store_visits for each row",
        "the warehouse is closed",
    )
    .await;
}

directly_and_pooled!(a_row_that_is_refused_only_at_the_commit_is_set_aside_alone_as_well);
async fn a_row_that_is_refused_only_at_the_commit_is_set_aside_alone_as_well(via: Via) {
    is_set_aside_alone(
        via,
        "create function no_visits() returns trigger language plpgsql as $$
           begin raise exception 'the books do not balance' using errcode = '23514'; end $$;
         create constraint trigger no_visits after insert on store_visits
           deferrable initially deferred for each row",
        "the books do not balance",
    )
    .await;
}

#[tokio::test]
async fn a_trigger_of_the_users_own_that_misses_a_column_concerns_its_row_and_not_the_schema() {
    is_set_aside_alone(
        Via::Direct,
        "create function no_visits() returns trigger language plpgsql as $$
           begin perform shelf from public.partners; return new; end $$;
         create trigger no_visits before insert on store_visits for each row",
        "\"shelf\" does not exist",
    )
    .await;
}

/// `trigger`, which refuses visits in these words, is made to meet the partner of one of three rows alone.
async fn is_set_aside_alone(via: Via, trigger: &str, words: &str) {
    let place = via.place().await;
    let unlucky = Uuid::from_u128(rand::random());
    place
        .edit(format!(
            "insert into partners (id, name) values ('{unlucky}', 'unlucky');
             {trigger} when (new.partner_id = '{unlucky}') execute function no_visits();"
        ))
        .await;
    let mut rows = Vec::new();
    for _ in 0..3 {
        rows.push(place.insert(1_000_000, "20 a second", "null").await);
    }
    let failing = rows[1];
    place
        .set(failing, &format!("partner_id = '{unlucky}'"))
        .await;
    let agent = place.agent().await;
    let look = place.becomes(failing, "invalid").await;
    assert!(
        look.reason
            .as_deref()
            .is_some_and(|why| why.contains(words)),
        "{look:?}"
    );
    agent.says(words).await;
    let seen = place.stored(rows[0]).await;
    place.has_stored(rows[0], seen + 60).await;
    for row in [rows[0], rows[2]] {
        let look = place.look(row).await;
        assert!(
            look.due.is_some_and(|due| due - look.stored <= 30),
            "off its curve: {look:?}"
        );
    }
    assert!(!agent.log().contains(AWAY), "{}", agent.log());
    let stored = place.stored(failing).await;
    place.edit("drop trigger no_visits on store_visits").await;
    place.set(failing, "visits_per_unit = 30").await;
    place.has_stored(failing, stored + 1).await;
    place.finish(&rows).await;
}

/// What the log says while the database counts as away.
const AWAY: &str = "Database unavailable";

#[tokio::test]
async fn a_row_whose_write_back_is_refused_keeps_its_visits_and_does_not_hinder_the_others() {
    let place = Place::new().await;
    let mut rows = Vec::new();
    for _ in 0..5 {
        rows.push(place.insert(40, "20 a second", "null").await);
    }
    let refused = rows[2];
    place
        .edit(format!(
            "create function no_counts() returns trigger language plpgsql as $$
               begin raise exception 'the ledger is closed'; end $$;
             create trigger no_counts before update of total_distributed on visit_distribution for each row
               when (new.id = '{refused}' and new.total_distributed > 0) execute function no_counts();"
        ))
        .await;
    let agent = place.agent().await;
    for row in &rows {
        place.has_stored(*row, 40).await;
    }
    agent.says("the ledger is closed").await;
    for row in rows.iter().filter(|row| **row != refused) {
        assert_eq!(place.settles(*row).await, 40);
    }
    let log = agent.log();
    let told = log
        .lines()
        .filter(|line| line.contains("the ledger is closed"));
    assert_eq!(told.count(), 1, "once: {log}");
    assert!(
        log.contains(&refused.to_string()) && !log.contains(AWAY),
        "{log}"
    );
}

#[tokio::test]
async fn a_lock_that_is_not_had_in_time_does_not_count_as_the_database_being_away() {
    let place = Place::new().await;
    let row = place.insert(1_000_000, "20 a second", "null").await;
    let agent = place.agent().await;
    place.has_stored(row, 1).await;
    let mut application = sqlx::PgConnection::connect(&place.url)
        .await
        .expect("a connection");
    let mut transaction = application.begin().await.expect("a transaction");
    sqlx::query("lock table store_visits in share mode")
        .execute(&mut *transaction)
        .await
        .expect("the application waits for nobody for long");
    agent.says("lock conflict with another transaction").await;
    let (_, metrics) = agent.get("/metrics").await;
    assert!(
        metrics
            .lines()
            .any(|line| line == "visit_pacer_database_up 1"),
        "{metrics}"
    );
    let stalled_at = place.stored(row).await;
    transaction.commit().await.expect("the application goes on");
    place.has_stored(row, stalled_at + 20).await;
    assert!(!agent.log().contains(AWAY), "{}", agent.log());
    place.finishes(row).await;
}

#[tokio::test]
async fn a_partner_that_an_application_holds_stalls_its_own_rows_alone() {
    let place = Place::new().await;
    let other = Uuid::from_u128(rand::random());
    place
        .edit(format!(
            "insert into partners (id, name) values ('{other}', 'held')"
        ))
        .await;
    let steady = place.insert(1_000_000, "50 a second", "null").await;
    let held = place.insert(1_000_000, "50 a second", "null").await;
    place.set(held, &format!("partner_id = '{other}'")).await;
    let _agent = place.agent().await;
    place.has_stored(held, 1).await;

    let mut application = sqlx::PgConnection::connect(&place.url)
        .await
        .expect("a connection");
    let mut transaction = application.begin().await.expect("a transaction");
    sqlx::query("select from partners where id = $1 for update")
        .bind(other)
        .execute(&mut *transaction)
        .await
        .expect("the application waits for nobody for long");
    let (stalled_at, seen) = (place.stored(held).await, place.stored(steady).await);
    place.has_stored(steady, seen + 100).await;
    assert_eq!(
        place.stored(held).await,
        stalled_at,
        "visits of a partner that is held"
    );
    transaction.commit().await.expect("the application goes on");
    place.has_stored(held, stalled_at + 50).await;
    place.finish(&[held, steady]).await;
}
