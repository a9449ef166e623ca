//! Invalid values are refused when they are written. Invalid rows that exist are quarantined with a reason, and all others continue.

use uuid::Uuid;

use crate::harness::pooler::{Via, directly_and_pooled};
use crate::harness::{PATIENCE, Place, refusal, wait_until};

/// Values that are refused, and words of the message or hint that say what to do.
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
async fn an_invalid_value_is_refused_when_it_is_written_and_the_hint_says_what_to_do() {
    let place = Place::new().await;
    let row = place.insert(100, "1 a second", "interval '1 hour'").await;
    for (invalid, what_to_do) in REFUSED {
        let update = format!("update visit_distribution set {invalid} where id = '{row}'");
        let (code, words) = refusal(&place.try_edit(update).await.expect_err("refused"));
        assert_eq!(code, "23514", "{invalid}: {words}");
        let (_, hint) = words.split_once("; ").expect("a message and a hint");
        assert!(
            words.contains(what_to_do) && !hint.is_empty(),
            "{invalid}: {words}"
        );

        let (column, value) = invalid.split_once(" = ").expect("COLUMN = VALUE");
        let value = value.replace("start_time", "d.start_time");
        let insert = format!(
            "insert into visit_distribution select (jsonb_populate_record(d, to_jsonb(n))).*
               from visit_distribution d, lateral (select gen_random_uuid() as id, {value} as {column}) n
              where d.id = '{row}'"
        );
        let (code, words) = refusal(&place.try_edit(insert).await.expect_err("refused"));
        assert_eq!(code, "23514", "an insert with {invalid}: {words}");
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

/// Inserts a row while the trigger that validates is disabled.
pub async fn insert_unchecked(place: &Place, total: &str, unit: &str, rate: &str) -> Uuid {
    let id = Uuid::from_u128(rand::random());
    let row = place
        .row()
        .with("id", format!("'{id}'"))
        .with("total_visits", total)
        .with("time_period", format!("'{unit}'"))
        .with("visits_per_unit", rate);
    place
        .edit(format!(
            "alter table visit_distribution disable trigger zzz_visit_pacer_before_edit; {};
             alter table visit_distribution enable always trigger zzz_visit_pacer_before_edit;",
            row.sql()
        ))
        .await;
    id
}

directly_and_pooled!(invalid_rows_that_exist_are_quarantined_with_a_reason_and_can_be_repaired);
async fn invalid_rows_that_exist_are_quarantined_with_a_reason_and_can_be_repaired(via: Via) {
    let place = via.place().await;
    let good = place.insert(1_000_000, "20 a second", "null").await;
    let invalid = [
        (
            insert_unchecked(&place, "100", "second", "'NaN'").await,
            "visits_per_unit is NaN",
        ),
        (
            insert_unchecked(&place, "-5", "second", "1").await,
            "total_visits is -5",
        ),
        (
            insert_unchecked(&place, "100", "fortnight", "1").await,
            "time_period is 'fortnight'",
        ),
        (
            insert_unchecked(&place, "100", "minute", "null").await,
            "visits_per_unit is null",
        ),
    ];
    let unanchored = insert_unchecked(&place, "40", "second", "20").await;
    let agent = place.agent().await;

    for (id, reason) in &invalid {
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

    let (nan, _) = invalid[0];
    place.set(nan, "is_active = false").await;
    place
        .set(nan, "visits_per_unit = 20, is_active = true")
        .await;
    place.becomes(nan, "completed").await;
    assert_eq!(place.settles(nan).await, 100);
    for (id, _) in &invalid[1..] {
        assert_eq!(place.stored(*id).await, 0, "visits of an invalid row");
    }
    place.finishes(good).await;
}

#[tokio::test]
async fn a_row_whose_insert_fails_is_quarantined_alone_with_the_message_of_the_database_until_it_is_edited()
 {
    is_quarantined_alone(
        Via::Direct,
        "create function no_visits() returns trigger language plpgsql as $$
           begin raise exception 'the warehouse is closed'; end $$;
         create trigger no_visits before insert on store_visits for each row",
        "the warehouse is closed",
    )
    .await;
}

directly_and_pooled!(a_row_that_fails_at_the_commit_is_quarantined_alone);
async fn a_row_that_fails_at_the_commit_is_quarantined_alone(via: Via) {
    is_quarantined_alone(
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
async fn a_trigger_of_the_user_that_misses_a_column_concerns_its_row_and_not_the_schema() {
    is_quarantined_alone(
        Via::Direct,
        "create function no_visits() returns trigger language plpgsql as $$
           begin perform shelf from public.partners; return new; end $$;
         create trigger no_visits before insert on store_visits for each row",
        "\"shelf\" does not exist",
    )
    .await;
}

/// A trigger that fails with this message for the partner of one of three rows.
async fn is_quarantined_alone(via: Via, trigger: &str, message: &str) {
    let place = via.place().await;
    let unlucky = place.new_partner().await;
    place
        .edit(format!(
            "{trigger} when (new.partner_id = '{unlucky}') execute function no_visits();"
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
            .is_some_and(|why| why.contains(message)),
        "{look:?}"
    );
    agent.says(message).await;
    place.stores_more(rows[0], 60).await;
    for row in [rows[0], rows[2]] {
        place.catches_up(row, 30).await;
    }
    assert!(!agent.log().contains(UNAVAILABLE), "{}", agent.log());
    let stored = place.stored(failing).await;
    place.edit("drop trigger no_visits on store_visits").await;
    place.set(failing, "visits_per_unit = 30").await;
    place.has_stored(failing, stored + 1).await;
    place.finish(&rows).await;
}

/// What the log says while the database counts as unavailable.
const UNAVAILABLE: &str = "Database unavailable";

#[tokio::test]
async fn a_row_whose_write_back_fails_keeps_its_visits_and_does_not_affect_others() {
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
    let lines = log
        .lines()
        .filter(|line| line.contains("the ledger is closed"));
    assert_eq!(lines.count(), 1, "once: {log}");
    assert!(
        log.contains(&refused.to_string()) && !log.contains(UNAVAILABLE),
        "{log}"
    );
}

#[tokio::test]
async fn a_lock_timeout_does_not_count_as_an_unavailable_database() {
    let place = Place::new().await;
    let row = place.insert(1_000_000, "20 a second", "null").await;
    let agent = place.agent().await;
    place.has_stored(row, 1).await;
    let application = place.hold("lock table store_visits in share mode").await;
    agent.says("lock conflict with another transaction").await;
    let (_, metrics) = agent.get("/metrics").await;
    assert!(
        metrics
            .lines()
            .any(|line| line == "visit_pacer_database_up 1"),
        "{metrics}"
    );
    let stalled_at = place.stored(row).await;
    application.commit().await;
    place.has_stored(row, stalled_at + 20).await;
    assert!(!agent.log().contains(UNAVAILABLE), "{}", agent.log());
    place.finishes(row).await;
}

#[tokio::test]
async fn a_locked_partner_stalls_its_own_rows_alone() {
    let place = Place::new().await;
    let other = place.new_partner().await;
    let steady = place.insert(1_000_000, "50 a second", "null").await;
    let held = place.insert(1_000_000, "50 a second", "null").await;
    place.set(held, &format!("partner_id = '{other}'")).await;
    let _agent = place.agent().await;
    place.has_stored(held, 1).await;

    let application = place
        .hold(&format!(
            "select from partners where id = '{other}' for update"
        ))
        .await;
    let (stalled_at, seen) = (place.stored(held).await, place.stored(steady).await);
    place.has_stored(steady, seen + 100).await;
    assert_eq!(
        place.stored(held).await,
        stalled_at,
        "visits of a locked partner"
    );
    application.commit().await;
    place.has_stored(held, stalled_at + 50).await;
    place.finish(&[held, steady]).await;
}
