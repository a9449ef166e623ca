//! What has changed is read without reading every row, and nothing is missed: not what commits late, not what subtransactions
//! wrote, not what no trigger saw, not a counter that was lowered.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use tokio::task::JoinSet;
use uuid::Uuid;
use visit_pacer::domain::agent::{ReadRequest, XidWatermark};
use visit_pacer::postgres::connection::Connection;
use visit_pacer::postgres::rows;

use crate::harness::{server, wait_until};

const ROWS: i64 = 400;
const EDITORS: u64 = 12;
const EDITS_EACH: u64 = 40;
const LOOKS_MAX: usize = 10_000;
const A_WHILE: Duration = Duration::from_secs(60);

/// What a reader knows of each row: its version, and its counter.
type Known = BTreeMap<Uuid, (Option<i64>, i64)>;

struct Reader {
    connection: Connection,
    watermark: XidWatermark,
    known: Known,
    looked_at: usize,
}

impl Reader {
    async fn new(url: &str) -> Self {
        let mut reader = Self {
            connection: connect(url).await.into(),
            watermark: XidWatermark::default(),
            known: Known::new(),
            looked_at: 0,
        };
        reader.look(ReadRequest::All).await;
        reader
    }

    async fn go_on(&mut self) {
        self.look(ReadRequest::Since(self.watermark)).await;
    }

    /// What has not changed is not read again, once the transactions of the other tests on this server that were open at
    /// the edit have ended.
    async fn comes_to_rest(&mut self) {
        wait_until("nothing is read again", A_WHILE, async || {
            self.go_on().await;
            self.looked_at == 0
        })
        .await;
    }

    async fn look(&mut self, what: ReadRequest) {
        let watermark = rows::watermark(&mut self.connection)
            .await
            .expect("a horizon");
        let since = std::mem::replace(&mut self.watermark, watermark);
        let read = match what {
            ReadRequest::All => rows::every(&mut self.connection).await,
            ReadRequest::Since(_) | ReadRequest::After(_) | ReadRequest::Rows(_) => {
                rows::read(&mut self.connection, &what).await
            }
        };
        let read = read.expect("rows");
        let gone = rows::gone(&mut self.connection, since)
            .await
            .expect("what is gone");
        self.looked_at = read.rows.len();
        if gone.contains(&None) {
            self.known.clear();
        }
        self.known.retain(|id, _| !gone.contains(&Some(*id)));
        for row in read.rows {
            let counter = row.progress.map_or(-1, |progress| progress.distributed);
            self.known
                .insert(row.row.id, (row.row.config_version, counter));
        }
    }
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("a connection")
}

async fn run(connection: &mut PgConnection, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(connection)
        .await
        .expect("it runs");
}

async fn with_rows() -> String {
    let url = server::shared().migrated().await;
    run(
        &mut connect(&url).await,
        format!(
            "insert into partners (id) values (gen_random_uuid());
             insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit, start_time)
             select (select id from partners), 1000, 'day', 100, now() from generate_series(1, {ROWS})"
        ),
    )
    .await;
    url
}

async fn truth(url: &str) -> Known {
    sqlx::query(
        "select v.id, v.config_version, coalesce(p.distributed, -1) as distributed from visit_distribution v
           left join visit_distribution_progress p on p.distribution_id = v.id",
    )
    .fetch_all(&mut connect(url).await)
    .await
    .expect("the table")
    .iter()
    .map(|row| (row.get("id"), (row.get("config_version"), row.get("distributed"))))
    .collect()
}

/// One editor: each transaction edits a row, some through a savepoint, stays open for a while, and sometimes is rolled back.
async fn edits(url: String, editor: u64) {
    let mut connection = connect(&url).await;
    for turn in 0..EDITS_EACH {
        let draw = (editor * 7_919 + turn * 104_729) % 1_000;
        let edit = format!(
            "update visit_distribution set visits_per_unit = {turn} + 1.{editor}
              where id = (select id from visit_distribution where ('x' || substr(md5(id::text), 1, 8))::bit(32)::bigint % {EDITORS} = {editor}
                           order by md5(id::text || '{turn}') limit 1);"
        );
        let nested = draw.is_multiple_of(3);
        let (before, after) = if nested {
            ("savepoint s;", "release savepoint s;")
        } else {
            ("", "")
        };
        let end = if draw.is_multiple_of(5) {
            "rollback"
        } else {
            "commit"
        };
        let pause = draw % 40;
        run(
            &mut connection,
            format!("begin; {before} {edit} {after} select pg_sleep(0.001 * {pause}); {end}"),
        )
        .await;
    }
}

#[tokio::test]
async fn edits_that_commit_late_are_never_missed_by_who_reads_only_what_has_changed() {
    let url = with_rows().await;
    let mut reader = Reader::new(&url).await;
    let mut editors: JoinSet<()> = (0..EDITORS)
        .map(|editor| edits(url.clone(), editor))
        .collect();
    let done = AtomicBool::new(false);
    let (looks, ()) = tokio::join!(
        async {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) && looks < LOOKS_MAX {
                reader.go_on().await;
                looks += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            looks
        },
        async {
            while let Some(ended) = editors.join_next().await {
                ended.expect("an editor ends");
            }
            done.store(true, Ordering::Relaxed);
        }
    );
    reader.go_on().await;
    assert_eq!(reader.known, truth(&url).await);
    println!("{} transactions, {looks} looks", EDITORS * EDITS_EACH);
}

#[tokio::test]
async fn an_edit_that_was_open_at_the_last_look_is_seen_at_the_next_after_its_commit() {
    let url = with_rows().await;
    let mut editor = connect(&url).await;
    run(
        &mut editor,
        "begin; update visit_distribution set visits_per_unit = 7".to_owned(),
    )
    .await;
    let mut reader = Reader::new(&url).await;
    let mut other = connect(&url).await;
    run(
        &mut other,
        "insert into partners (id) values (gen_random_uuid())".to_owned(),
    )
    .await;
    reader.go_on().await;
    run(&mut editor, "commit".to_owned()).await;
    reader.go_on().await;
    assert_eq!(reader.known, truth(&url).await);
    reader.comes_to_rest().await;
}

#[tokio::test]
async fn a_row_that_no_trigger_saw_and_a_counter_that_was_lowered_are_seen() {
    let url = with_rows().await;
    let mut reader = Reader::new(&url).await;
    let mut editor = connect(&url).await;
    run(
        &mut editor,
        "alter table visit_distribution disable trigger all;
         insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit, start_time)
         select id, 10, 'day', 1, now() from partners limit 1;
         alter table visit_distribution enable trigger all;
         update visit_distribution_progress set distributed = 5, last_number = 5
          where distribution_id in (select id from visit_distribution order by id limit 3)"
            .to_owned(),
    )
    .await;
    reader.look(ReadRequest::All).await;
    run(
        &mut editor,
        "select sync_distribution_counts(lower => true)".to_owned(),
    )
    .await;
    reader.go_on().await;
    assert_eq!(reader.known, truth(&url).await);
    assert!(reader.known.values().all(|(_, counter)| *counter <= 0));
}

#[tokio::test]
async fn a_row_that_is_deleted_and_a_table_that_is_truncated_are_seen() {
    let url = with_rows().await;
    let mut reader = Reader::new(&url).await;
    let mut editor = connect(&url).await;
    run(&mut editor, "begin; delete from visit_distribution where id in (select id from visit_distribution limit 7)".to_owned()).await;
    reader.go_on().await;
    assert_eq!(reader.known.len(), 400);
    run(&mut editor, "commit".to_owned()).await;
    reader.go_on().await;
    assert_eq!(reader.known, truth(&url).await);
    assert_eq!(reader.known.len(), 393);
    run(
        &mut editor,
        "truncate visit_distribution cascade".to_owned(),
    )
    .await;
    reader.go_on().await;
    assert!(reader.known.is_empty());
}

#[tokio::test]
async fn a_sync_in_which_nothing_has_changed_reads_no_row_by_a_scan_of_the_table() {
    let url = with_rows().await;
    let mut connection = connect(&url).await;
    run(
        &mut connection,
        "insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit, start_time)
         select (select id from partners), 1000, 'day', 100, now() from generate_series(1, 20000); analyze"
            .to_owned(),
    )
    .await;
    let mut reader = Reader::new(&url).await;
    reader.comes_to_rest().await;
    let since = rows::SINCE
        .replace("$1", &format!("'{}'", reader.watermark.0))
        .replace("$2", "5000");
    let lines = sqlx::raw_sql(AssertSqlSafe(format!("explain {since}")))
        .fetch_all(&mut connection)
        .await
        .expect("a plan");
    let plan: Vec<String> = lines.iter().map(|line| line.get(0)).collect();
    let plan = plan.join("\n");
    assert!(!plan.contains("Seq Scan on visit_distribution v"), "{plan}");
    assert!(!plan.contains("Seq Scan on visit_distribution c"), "{plan}");
}
