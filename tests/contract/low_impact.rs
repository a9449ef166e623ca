//! Low impact: few Realtime events, no rights of an editor on tables of visit-pacer, every visit labelled, nothing else changed.

use std::time::Duration;

use crate::harness::subscriber::{Subscriber, WriteBacks};
use crate::harness::transaction::run;
use crate::harness::{PATIENCE, Place, refusal, server, url_as, wait_until};
use sqlx::{Connection as _, PgConnection};

#[tokio::test]
async fn with_many_rows_write_backs_stay_within_their_budget() {
    let place = Place::new().await;
    let subscriber = Subscriber::to(&place).await;
    let rows = place.row().rate("2 a second").times(60);
    place.insert_rows(&rows).await;
    let budget = WriteBacks::from_now();
    let _agent = place.agent().await;
    place.agents_work_for(15).await;
    budget.holds(&subscriber).await;
    wait_until("every row makes progress", PATIENCE, async || {
        place
            .ask("select min(distributed) >= 20 from visit_distribution_progress")
            .await
    })
    .await;
}

#[tokio::test]
async fn the_events_of_the_agents_own_write_backs_cause_no_read() {
    let place = Place::new().await;
    let agent = place.agent().await;
    let row = place.insert(1_000_000, "10 a second", "null").await;
    place.has_stored(row, 10).await;
    let read = agent
        .metric("visit_pacer_distributions_read_total")
        .await
        .expect("the metric");
    let known = agent
        .metric("visit_pacer_realtime_events_skipped_total")
        .await
        .expect("the metric");
    wait_until(
        "a write-back has come back as an event",
        PATIENCE,
        async || {
            agent
                .metric("visit_pacer_realtime_events_skipped_total")
                .await
                > Some(known)
        },
    )
    .await;
    assert_eq!(
        agent.metric("visit_pacer_distributions_read_total").await,
        Some(read)
    );
}

#[tokio::test]
async fn a_running_agent_warns_if_each_visit_becomes_a_realtime_event() {
    const WARNING: &str = "store_visits is published, so each visit is a Realtime event";
    /// A full sync every 30 s, and a margin.
    const NOTICED_WITHIN: Duration = Duration::from_secs(90);
    let place = Place::new().await;
    let agent = place.agent().await;
    assert!(!agent.log().contains(WARNING));
    place
        .edit("alter publication supabase_realtime add table store_visits")
        .await;
    wait_until("the warning", NOTICED_WITHIN, async || {
        agent.log().contains(WARNING)
    })
    .await;
    let later = place.start_agent().await;
    later.says(WARNING).await;
}

#[tokio::test]
async fn an_editor_without_rights_on_tables_of_visit_pacer_can_insert_pause_and_edit() {
    let url = server::database().await;
    let mut owner = PgConnection::connect(&url).await.expect("a connection");
    let editor = format!("editor_{:016x}", rand::random::<u64>());
    let own_tables = format!(
        "create table partners (id uuid primary key default gen_random_uuid());
         insert into partners default values;
         create table visit_distribution (
           id uuid primary key default gen_random_uuid(), partner_id uuid references partners, total_visits integer,
           time_period varchar(10), visits_per_unit numeric(10,2), is_active boolean default true,
           start_time timestamptz default now(), end_time timestamptz, total_distributed integer default 0,
           last_distribution timestamptz, created_at timestamptz default now(), updated_at timestamptz default now());
         create role {editor} login password 'an editor';
         grant select, insert, update, delete on visit_distribution to {editor};
         grant select on partners to {editor};"
    );
    run(&mut owner, own_tables).await;
    let place = Place::over(url.clone()).await;

    let mut connection = PgConnection::connect(&url_as(&url, &editor, "an editor"))
        .await
        .expect("the editor connects");
    let _agent = place.agent().await;
    let row: uuid::Uuid = sqlx::query_scalar(
        "insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit)
         select id, 100000, 'second', 50 from partners limit 1 returning id",
    )
    .fetch_one(&mut connection)
    .await
    .expect("an editor inserts");
    place.has_stored(row, 30).await;
    for edit in [
        "is_active = false",
        "visits_per_unit = 80",
        "is_active = true",
        "total_visits = 120",
    ] {
        let sql = format!("update visit_distribution set {edit} where id = '{row}'");
        run(&mut connection, sql).await;
    }
    place.becomes(row, "completed").await;
    assert_eq!(place.settles(row).await, 120);
    let refused = sqlx::query("select from visit_distribution_progress")
        .execute(&mut connection)
        .await;
    let refused = refused.expect_err("no rights");
    assert_eq!(refusal(&refused).0, "42501");
    sqlx::query("delete from visit_distribution")
        .execute(&mut connection)
        .await
        .expect("an editor deletes");
}

#[tokio::test]
async fn organic_visits_are_neither_changed_nor_counted_and_generated_ones_are_labelled() {
    let place = Place::new().await;
    let organic = format!(
        "insert into store_visits (partner_id, visited_at, page_path)
         select '{}', now() - n * interval '1 second', '/organic' from generate_series(1, 50) n",
        place.partner
    );
    place.edit(organic).await;
    let before: String = place
        .ask("select md5(string_agg(v::text, '' order by id)) from store_visits v")
        .await;
    let row = place.insert(60, "30 a second", "null").await;
    let _agent = place.agent().await;
    place.becomes(row, "completed").await;
    assert_eq!(place.settles(row).await, 60);
    let after: String =
        place.ask("select md5(string_agg(v::text, '' order by id)) from store_visits v where distribution_id is null").await;
    assert_eq!(before, after);
    assert_eq!(
        place
            .ask::<i64>("select count(*) from organic_store_visits")
            .await,
        50
    );
    place
        .edit(format!(
            "delete from store_visits where distribution_id = '{row}'"
        ))
        .await;
    assert_eq!(
        place.all_stored().await,
        50,
        "one statement removes what is generated"
    );
}
