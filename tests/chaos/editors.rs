//! People in the way: locks in every order, and tables that change under the agent's feet.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::chaos::{DRAINS_WITHIN, Rows};
use crate::harness::{Place, long, wait_until};

/// Longer than the agent's own `lock_timeout` of 2 s.
const HOLDS_A_TABLE: Duration = Duration::from_secs(3);

/// Whether a statement of an agent waits for a lock.
const WAITS: &str = "select exists (select from pg_stat_activity
  where application_name = 'visit-pacer' and datname = current_database() and wait_event_type = 'Lock')";

async fn run(connection: &mut PgConnection, sql: impl Into<String>) {
    let sql = sql.into();
    sqlx::raw_sql(AssertSqlSafe(sql.clone()))
        .execute(connection)
        .await
        .unwrap_or_else(|error| panic!("{error}: {sql}"));
}

#[tokio::test]
async fn a_table_that_an_editor_locks_altogether_is_waited_for_and_caught_up_with() {
    let place = Place::new().await;
    let rows = Rows::of(&place).await;
    let agent = place.agent().await;
    rows.go_on(&place).await;
    let mut editor = PgConnection::connect(&place.url)
        .await
        .expect("a connection");
    for table in [
        "visit_distribution",
        "store_visits",
        "visit_distribution_progress",
        "partners",
        "visit_pacer_agents",
    ] {
        run(
            &mut editor,
            format!("begin; lock table {table} in access exclusive mode"),
        )
        .await;
        let what = format!("a statement of the agent waits for {table}");
        wait_until(what, DRAINS_WITHIN, async || place.ask(WAITS).await).await;
        sleep(HOLDS_A_TABLE).await;
        run(&mut editor, "commit").await;
        rows.go_on(&place).await;
    }
    rows.came_once(&place, &agent, "tables locked").await;
}

/// An editor who works on these rows from the last to the first, against the order in which the agent takes them: in each of
/// its transactions, a lock on every row and its partner, with some time between. Says how long its longest wait was.
async fn works_backwards(place: &Place, rows: &[(Uuid, Uuid)], until: Instant) -> Duration {
    let mut editor = PgConnection::connect(&place.url)
        .await
        .expect("a connection");
    let mut longest = Duration::ZERO;
    while Instant::now() < until {
        run(&mut editor, "begin").await;
        for (row, partner) in rows.iter().rev() {
            for sql in [
                format!("update visit_distribution set catch_up = 2 where id = '{row}'"),
                format!("select from partners where id = '{partner}' for update"),
                format!(
                    "update visit_distribution_progress set missing = missing where distribution_id = '{row}'"
                ),
            ] {
                let asked = Instant::now();
                run(&mut editor, sql).await;
                longest = longest.max(asked.elapsed());
                sleep(Duration::from_millis(rand::random_range(0..15))).await;
            }
        }
        run(&mut editor, "commit").await;
    }
    longest
}

#[tokio::test]
async fn editors_who_lock_in_the_reverse_order_never_meet_a_deadlock_and_the_others_keep_pace() {
    let place = Place::new().await;
    let neighbour = place.insert(1_000_000, "10 a second", "null").await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let row = place.insert(1_000_000, "20 a second", "null").await;
        let partner = Uuid::from_u128(rand::random());
        place
            .edit(format!("insert into partners (id) values ('{partner}')"))
            .await;
        place.set(row, &format!("partner_id = '{partner}'")).await;
        held.push((row, partner));
    }
    held.sort_unstable();
    let agent = place.agent().await;
    for (row, _) in &held {
        place.has_stored(*row, 1).await;
    }
    let began: String = place.ask("select clock_timestamp()::text").await;
    let until = Instant::now() + Duration::from_secs(if long() { 60 } else { 8 });
    let longest = works_backwards(&place, &held, until).await;
    let gap: f64 = place
        .ask(format!(
            "select extract(epoch from max(gap))::float8 from (
               select created_at - lag(created_at) over (order by created_at) as gap, created_at
                 from store_visits where distribution_id = '{neighbour}') gaps where created_at > '{began}'"
        ))
        .await;
    println!(
        "rows locked in reverse: the editor waited {longest:?} at the most, the neighbour {gap:.1} s"
    );
    for (row, _) in &held {
        place.finishes(*row).await;
    }
    place.finishes(neighbour).await;
    let refused = agent
        .metric("visit_pacer_distributions_skipped_total")
        .await
        .expect("the metric");
    assert!(refused > 0.0, "no batch ever met a row that was held");
    // The server counts deadlocks, whoever is made to give way; sessions tell of theirs within a second.
    let counted = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(place.ask::<i64>(counted).await, 0, "deadlocks");
    assert!(!agent.log().contains("deadlock"), "{}", agent.log());
}

#[tokio::test]
async fn tables_that_change_while_it_runs_do_not_keep_it_from_its_rows() {
    let place = Place::new().await;
    let rows = Rows::of(&place).await;
    let agent = place.agent().await;
    rows.go_on(&place).await;
    for ddl in [
        "alter table visit_distribution add column note text default 'a note'",
        "alter table visit_distribution alter column note type varchar(50)",
        "alter table visit_distribution drop column note",
        "alter table store_visits add column campaign integer default 7",
        "alter table store_visits alter column campaign type bigint",
        "alter table store_visits drop column campaign",
        "create index on store_visits (partner_id, page_path)",
        "create index on visit_distribution (end_time)",
        "analyze",
        "vacuum full store_visits",
        "vacuum full visit_distribution",
        "vacuum full visit_distribution_progress",
        "reindex table store_visits",
    ] {
        place.edit(ddl).await;
        let before = place.stored(rows.neighbour).await;
        place.has_stored(rows.neighbour, before + 5).await;
    }
    rows.came_once(&place, &agent, "tables changed").await;
}

#[tokio::test]
async fn a_column_that_is_renamed_away_is_named_and_all_goes_on_once_it_is_back() {
    let place = Place::new().await;
    let rows = Rows::of(&place).await;
    let agent = place.agent().await;
    rows.go_on(&place).await;
    for (table, column) in [
        ("store_visits", "page_path"),
        ("visit_distribution", "visits_per_unit"),
    ] {
        place
            .edit(format!(
                "alter table {table} rename column {column} to other"
            ))
            .await;
        wait_until("the log names it", DRAINS_WITHIN, async || {
            agent.log().contains(column)
        })
        .await;
        sleep(Duration::from_secs(4)).await;
        place
            .edit(format!(
                "alter table {table} rename column other to {column}"
            ))
            .await;
        rows.go_on(&place).await;
    }
    agent.ready().await;
    rows.came_once(&place, &agent, "a column renamed").await;
}

#[tokio::test]
async fn a_table_that_is_no_longer_published_is_followed_by_reading_it_until_it_is_again() {
    let place = Place::new().await;
    let rows = Rows::of(&place).await;
    let agent = place.agent().await;
    rows.go_on(&place).await;
    place
        .edit("alter publication supabase_realtime drop table visit_distribution")
        .await;
    agent.says("visit_distribution is not published").await;
    let newcomer = place.insert(40, "20 a second", "null").await;
    place.becomes(newcomer, "completed").await;
    place.settles(newcomer).await;
    place
        .edit("alter publication supabase_realtime add table visit_distribution")
        .await;
    rows.go_on(&place).await;
    rows.came_once(&place, &agent, "not published for a while")
        .await;
}
