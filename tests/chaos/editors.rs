//! Editors who hold locks in every order, and tables that change while the agent runs.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::chaos::{DRAINS_WITHIN, Rows};
use crate::harness::transaction::run;
use crate::harness::{Place, long, wait_until};
use crate::oracle;

/// Longer than the agent's own `lock_timeout` of 2 s.
const HOLDS_A_TABLE: Duration = Duration::from_secs(3);

/// Whether a statement of the agent waits for a lock.
const WAITS: &str = "select exists (select from pg_stat_activity
  where application_name = 'visit-pacer' and datname = current_database() and wait_event_type = 'Lock')";

#[tokio::test]
async fn a_table_that_is_locked_exclusively_only_delays_visits() {
    let place = Place::new().await;
    let rows = Rows::of(&place).await;
    let agent = place.agent().await;
    rows.make_progress(&place).await;
    for table in [
        "visit_distribution",
        "store_visits",
        "visit_distribution_progress",
        "partners",
        "visit_pacer_agents",
    ] {
        let editor = place
            .hold(&format!("lock table {table} in access exclusive mode"))
            .await;
        let what = format!("a statement of the agent waits for {table}");
        wait_until(what, DRAINS_WITHIN, async || place.ask(WAITS).await).await;
        sleep(HOLDS_A_TABLE).await;
        editor.commit().await;
        rows.make_progress(&place).await;
    }
    rows.stored_exactly_once(&place, &agent, "tables locked")
        .await;
}

/// An editor whose transactions lock these rows and their partners from the last to the first, against the order of the agent,
/// with some time between. Returns its longest wait.
async fn edit_in_reverse(place: &Place, rows: &[(Uuid, Uuid)], until: Instant) -> Duration {
    let mut editor = place.connect().await;
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
async fn editors_who_lock_in_reverse_order_cause_no_deadlock_and_other_rows_keep_their_rate() {
    let place = Place::new().await;
    let neighbour = place.insert(1_000_000, "10 a second", "null").await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let row = place.insert(1_000_000, "20 a second", "null").await;
        let partner = place.new_partner().await;
        place.set(row, &format!("partner_id = '{partner}'")).await;
        held.push((row, partner));
    }
    held.sort_unstable();
    let agent = place.agent().await;
    for (row, _) in &held {
        place.has_stored(*row, 1).await;
    }
    let began = oracle::now(&place).await;
    let until = Instant::now() + Duration::from_secs(if long() { 60 } else { 8 });
    let longest = edit_in_reverse(&place, &held, until).await;
    let gap = oracle::longest_gap(&place, &oracle::visits_of(neighbour), &began).await;
    println!(
        "rows locked in reverse: longest wait of the editor {longest:?}, longest gap of the neighbour {gap:.1} s"
    );
    oracle::all_stored_exactly_once(&place, oracle::ALL, DRAINS_WITHIN).await;
    let refused = agent
        .metric("visit_pacer_distributions_skipped_total")
        .await
        .expect("the metric");
    assert!(refused > 0.0, "no batch met a locked row");
    // The server counts deadlocks, whichever session it cancels. Sessions report theirs within a second.
    let counted = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(place.ask::<i64>(counted).await, 0, "deadlocks");
    assert!(!agent.log().contains("deadlock"), "{}", agent.log());
}

#[tokio::test]
async fn ddl_while_the_agent_runs_does_not_stop_it() {
    let place = Place::new().await;
    let rows = Rows::of(&place).await;
    let agent = place.agent().await;
    rows.make_progress(&place).await;
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
        place.stores_more(rows.neighbour, 5).await;
    }
    rows.stored_exactly_once(&place, &agent, "tables changed")
        .await;
}

#[tokio::test]
async fn a_renamed_column_is_reported_and_the_agent_continues_once_it_is_back() {
    let place = Place::new().await;
    let rows = Rows::of(&place).await;
    let agent = place.agent().await;
    rows.make_progress(&place).await;
    for (table, column) in [
        ("store_visits", "visited_at"),
        ("visit_distribution", "visits_per_unit"),
    ] {
        place
            .edit(format!(
                "alter table {table} rename column {column} to other"
            ))
            .await;
        wait_until("the log names the column", DRAINS_WITHIN, async || {
            agent.log().contains(column)
        })
        .await;
        sleep(Duration::from_secs(4)).await;
        place
            .edit(format!(
                "alter table {table} rename column other to {column}"
            ))
            .await;
        rows.make_progress(&place).await;
    }
    agent.ready().await;
    rows.stored_exactly_once(&place, &agent, "a column renamed")
        .await;
}

#[tokio::test]
async fn a_table_that_is_not_published_is_followed_by_reading_it() {
    let place = Place::new().await;
    let rows = Rows::of(&place).await;
    let agent = place.agent().await;
    rows.make_progress(&place).await;
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
    rows.make_progress(&place).await;
    rows.stored_exactly_once(&place, &agent, "not published for a while")
        .await;
}
