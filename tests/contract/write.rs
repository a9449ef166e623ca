//! The one write: ten thousand rows in one statement by a plan that stays linear; and what it refuses, it refuses row by row.

use std::collections::BTreeSet;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use tokio::time::Instant;
use uuid::Uuid;
use visit_pacer::domain::batch::{Batch, BatchRow, Progress};
use visit_pacer::domain::distribution::Distribution;
use visit_pacer::domain::visit::{Catalogue, Generator};
use visit_pacer::postgres::batches::{BatchRecords, store};
use visit_pacer::postgres::connection::Connection;
use visit_pacer::postgres::rows;

use crate::harness::server;

const MANY: i64 = 10_000;

/// The statement of `visit_pacer_store()`, prepared as the function runs it: planned without a look at its arguments.
const PREPARE: &str = r"
  set plan_cache_mode = force_generic_plan;
  do $$
  declare
    f pg_proc;
    body text;
    types text;
  begin
    select * into f from pg_proc where oid = 'public.visit_pacer_store'::regproc;
    body := f.prosrc;
    for n in 1 .. f.pronargs loop
      body := regexp_replace(body, '\m' || f.proargnames[n] || '\M', '$' || n, 'g');
    end loop;
    select string_agg(t::regtype::text, ', ' order by nth) into types from unnest(f.proargtypes) with ordinality as a (t, nth);
    execute format('prepare the_advance(%s) as %s', types,
      replace(substring(body from '(with locked .*? from advanced);'), 'into stored, expected from', 'from'));
    execute format('prepare the_insert(%s, uuid[]) as %s', types,
      replace(substring(body from '(insert into public\.store_visits .*? is true);'), 'unnest(stored)', 'unnest($3)'));
  end $$";

async fn with_rows(rows: i64) -> Connection {
    let mut connection = PgConnection::connect(&server::shared().migrated().await)
        .await
        .expect("a connection");
    sqlx::raw_sql(AssertSqlSafe(format!(
        "insert into partners (id) select gen_random_uuid() from generate_series(1, 50);
         insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit, start_time)
         select (array(select id from partners order by id))[1 + n % 50], 1000000, 'day', 100, now() - interval '1 day'
           from generate_series(1, {rows}) n;
         analyze"
    )))
    .execute(&mut connection)
    .await
    .expect("rows");
    connection.into()
}

/// So many visits of every row, computed from what is read now.
async fn batch(connection: &mut Connection, visits: i64) -> Batch {
    let read = rows::every(connection).await.expect("rows are read");
    let mut batch = Batch::default();
    for row in read.rows {
        let distribution = Distribution::parse(&row.row).expect("a valid row");
        let before = row.progress.expect("progress");
        let after = Progress {
            distributed: before.distributed + visits,
            last_number: before.last_number + visits,
            last_visited_at: Some(read.db),
            ..before.clone()
        };
        let visit_times = (0..visits).map(|_| read.db).collect();
        let (id, partner_id, version) = (
            distribution.id,
            distribution.partner_id,
            distribution.version,
        );
        batch.rows.push(BatchRow {
            id,
            partner_id,
            version,
            before,
            after,
            at: read.db,
            visit_times,
        });
    }
    batch
}

async fn write(connection: &mut Connection, batch: &Batch) -> BTreeSet<Uuid> {
    let generator = Generator::new(&Catalogue::default());
    let records = BatchRecords::of(batch, &generator);
    let began = Instant::now();
    let (stored, _) = store(connection, &records)
        .await
        .expect("the statement is taken");
    println!(
        "{} rows, {} visits: {:?}",
        batch.rows.len(),
        batch.visits(),
        began.elapsed()
    );
    stored
}

async fn counts(connection: &mut Connection) -> (i64, i64) {
    sqlx::query_as("select (select count(*) from store_visits), (select sum(distributed)::bigint from visit_distribution_progress)")
        .fetch_one(connection)
        .await
        .expect("counts")
}

#[tokio::test]
async fn ten_thousand_rows_of_one_visit_and_one_row_of_ten_thousand_go_through_in_one_statement() {
    let mut many = with_rows(MANY).await;
    for turn in 1..=3 {
        let batch = batch(&mut many, 1).await;
        assert_eq!(write(&mut many, &batch).await.len(), batch.rows.len());
        assert_eq!(counts(&mut many).await, (turn * MANY, turn * MANY));
    }
    let mut one = with_rows(1).await;
    let batch = batch(&mut one, MANY).await;
    assert_eq!(write(&mut one, &batch).await.len(), 1);
    assert_eq!(counts(&mut one).await, (MANY, MANY));
}

#[tokio::test]
async fn its_plans_have_no_loop_within_a_loop_over_the_batch() {
    let mut connection = with_rows(MANY).await;
    sqlx::raw_sql(PREPARE)
        .execute(&mut connection)
        .await
        .expect("the function's statements");
    for statement in ["the_advance(null, null)", "the_insert(null, null, null)"] {
        let explain = format!("explain (format json) execute {statement}");
        let row = sqlx::Executor::fetch_one(&mut connection, sqlx::raw_sql(AssertSqlSafe(explain)))
            .await
            .expect("a plan");
        let plan: Value = serde_json::from_str(row.get_unchecked(0)).expect("JSON");
        assert_has_no_nested_scan(&plan);
    }
}

fn assert_has_no_nested_scan(plan: &Value) {
    let mut nodes = Vec::new();
    collect(&plan[0]["Plan"], &mut nodes);
    assert!(
        nodes.iter().any(|node| node["Node Type"] == "ModifyTable"),
        "the plan of the write: {plan:#}"
    );
    let mut hashed = 0;
    for node in &nodes {
        if node["Node Type"] == "Nested Loop" {
            let inner = node["Plans"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|child| child["Parent Relationship"] == "Inner");
            let kind = inner
                .map(|inner| &inner["Node Type"])
                .and_then(Value::as_str)
                .unwrap_or_default();
            assert!(
                kind.starts_with("Index"),
                "a loop whose inner side is a {kind}: {node:#}"
            );
        }
        let filter = node["Filter"].as_str().unwrap_or_default();
        assert!(
            !filter.contains("SubPlan") || filter.contains("hashed"),
            "a lookup that is not hashed: {filter}"
        );
        hashed += usize::from(filter.contains("hashed"));
    }
    assert!(hashed > 0, "rows are found by a hash: {plan:#}");
}

fn collect<'a>(node: &'a Value, nodes: &mut Vec<&'a Value>) {
    nodes.push(node);
    for child in node["Plans"].as_array().into_iter().flatten() {
        collect(child, nodes);
    }
}

#[tokio::test]
async fn a_row_that_is_held_edited_paused_moved_or_gone_is_refused_and_only_that_row() {
    let mut connection = with_rows(6).await;
    let batch = batch(&mut connection, 2).await;
    let ids: Vec<Uuid> = batch.rows.iter().map(|row| row.id).collect();
    let url = connection_url(&mut connection).await;
    let mut editor = PgConnection::connect(&url).await.expect("a connection");
    for (edit, n) in [
        (
            "update visit_distribution set visits_per_unit = 99 where id = $1",
            0,
        ),
        (
            "update visit_distribution set is_active = false where id = $1",
            1,
        ),
        (
            "update visit_distribution_progress set distributed = 1, last_number = 1 where distribution_id = $1",
            2,
        ),
        ("delete from visit_distribution where id = $1", 3),
    ] {
        sqlx::query(edit)
            .bind(ids[n])
            .execute(&mut editor)
            .await
            .expect("an edit");
    }
    let mut holding = editor.begin().await.expect("a transaction");
    sqlx::query("select from visit_distribution where id = $1 for update")
        .bind(ids[4])
        .execute(&mut *holding)
        .await
        .expect("held");

    assert_eq!(
        write(&mut connection, &batch).await,
        BTreeSet::from([ids[5]])
    );
    assert_eq!(
        write(&mut connection, &batch).await,
        BTreeSet::new(),
        "the same batch again stores nothing"
    );
    holding.rollback().await.expect("let go");
    assert_eq!(
        write(&mut connection, &batch).await,
        BTreeSet::from([ids[4]])
    );
    let stored: i64 = sqlx::query_scalar("select count(*) from store_visits")
        .fetch_one(&mut connection)
        .await
        .expect("a count");
    assert_eq!(stored, 4);
}

async fn connection_url(connection: &mut Connection) -> String {
    let name: String = sqlx::query_scalar("select current_database()::text")
        .fetch_one(connection)
        .await
        .expect("its name");
    server::shared().url(&name)
}

#[tokio::test]
async fn while_everything_is_paused_or_the_control_row_is_held_nothing_is_stored() {
    let mut connection = with_rows(3).await;
    let batch = batch(&mut connection, 1).await;
    sqlx::raw_sql("update visit_pacer_control set paused = true")
        .execute(&mut connection)
        .await
        .expect("paused");
    assert_eq!(write(&mut connection, &batch).await.len(), 0);
    let url = connection_url(&mut connection).await;
    let mut editor = PgConnection::connect(&url).await.expect("a connection");
    let mut resuming = editor.begin().await.expect("a transaction");
    sqlx::raw_sql("update visit_pacer_control set paused = false")
        .execute(&mut *resuming)
        .await
        .expect("an update");
    assert_eq!(
        write(&mut connection, &batch).await.len(),
        0,
        "not before the resume has committed"
    );
    resuming.commit().await.expect("resumed");
    assert_eq!(write(&mut connection, &batch).await.len(), 3);
}
