//! Incremental sync reads what has changed without reading every row, and misses nothing: late commits, subtransactions, rows
//! inserted without the trigger, lowered counters.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use tokio::task::JoinSet;
use uuid::Uuid;
use visit_pacer::domain::agent::{ReadRequest, XidWatermark};
use visit_pacer::postgres::connection::Connection;
use visit_pacer::postgres::rows;

use crate::harness::transaction::run;
use crate::harness::{NewDistribution, PATIENCE, server, wait_until};

const ROWS: i64 = 400;
const EDITORS: u64 = 12;
const EDITS_EACH: u64 = 40;
const SYNCS_MAX: usize = 10_000;

/// The version and counter of each row.
type Known = BTreeMap<Uuid, (Option<i64>, i64)>;

struct Reader {
    connection: Connection,
    watermark: XidWatermark,
    known: Known,
    rows_read: usize,
}

impl Reader {
    async fn new(url: &str) -> Self {
        let mut reader = Self {
            connection: connect(url).await.into(),
            watermark: XidWatermark::default(),
            known: Known::new(),
            rows_read: 0,
        };
        reader.read(ReadRequest::All).await;
        reader
    }

    async fn sync(&mut self) {
        self.read(ReadRequest::Since(self.watermark)).await;
    }

    /// Waits until unchanged rows are not read again: transactions of other tests on this server that were open at the edit must
    /// end first.
    async fn settles(&mut self) {
        wait_until("no row is read again", PATIENCE, async || {
            self.sync().await;
            self.rows_read == 0
        })
        .await;
    }

    async fn read(&mut self, what: ReadRequest) {
        let watermark = rows::watermark(&mut self.connection)
            .await
            .expect("a watermark");
        let since = std::mem::replace(&mut self.watermark, watermark);
        let read = match what {
            ReadRequest::All => rows::every(&mut self.connection).await,
            ReadRequest::Since(_) | ReadRequest::After(_) | ReadRequest::Rows(_) => {
                rows::read(&mut self.connection, &what).await
            }
        };
        let read = read.expect("rows");
        let deleted = rows::gone(&mut self.connection, since)
            .await
            .expect("the deleted ids");
        self.rows_read = read.rows.len();
        if deleted.contains(&None) {
            self.known.clear();
        }
        self.known.retain(|id, _| !deleted.contains(&Some(*id)));
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

/// Rows whose visits are rare.
fn rows_of(partner: Uuid, count: i64) -> NewDistribution {
    NewDistribution::of(partner)
        .total(1_000)
        .rate("100 a day")
        .times(count)
}

/// A database with [`ROWS`] rows of one partner.
async fn with_rows() -> (String, Uuid) {
    let url = server::shared().migrated().await;
    let mut connection = connect(&url).await;
    let partner = Uuid::from_u128(rand::random());
    let sql = format!("insert into partners (id) values ('{partner}')");
    run(&mut connection, sql).await;
    rows_of(partner, ROWS).insert(&mut connection).await;
    (url, partner)
}

/// What is committed.
async fn committed(url: &str) -> Known {
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

/// An editor: each transaction edits a row, some in a savepoint, stays open for a while, and sometimes is rolled back.
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
async fn edits_that_commit_late_are_never_missed() {
    let (url, _) = with_rows().await;
    let mut reader = Reader::new(&url).await;
    let mut editors: JoinSet<()> = (0..EDITORS)
        .map(|editor| edits(url.clone(), editor))
        .collect();
    let done = AtomicBool::new(false);
    let (syncs, ()) = tokio::join!(
        async {
            let mut syncs = 0;
            while !done.load(Ordering::Relaxed) && syncs < SYNCS_MAX {
                reader.sync().await;
                syncs += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            syncs
        },
        async {
            while let Some(ended) = editors.join_next().await {
                ended.expect("an editor ends");
            }
            done.store(true, Ordering::Relaxed);
        }
    );
    reader.sync().await;
    assert_eq!(reader.known, committed(&url).await);
    println!("{} transactions, {syncs} syncs", EDITORS * EDITS_EACH);
}

#[tokio::test]
async fn an_edit_that_was_open_at_the_last_sync_is_found_by_the_first_after_its_commit() {
    let (url, _) = with_rows().await;
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
    reader.sync().await;
    run(&mut editor, "commit".to_owned()).await;
    reader.sync().await;
    assert_eq!(reader.known, committed(&url).await);
    reader.settles().await;
}

#[tokio::test]
async fn a_row_inserted_without_the_trigger_and_a_lowered_counter_are_found() {
    let (url, partner) = with_rows().await;
    let mut reader = Reader::new(&url).await;
    let mut editor = connect(&url).await;
    let unseen = rows_of(partner, 1).sql();
    run(
        &mut editor,
        format!(
            "alter table visit_distribution disable trigger all; {unseen};
             alter table visit_distribution enable trigger all;
             update visit_distribution_progress set distributed = 5, last_number = 5
              where distribution_id in (select id from visit_distribution order by id limit 3)"
        ),
    )
    .await;
    reader.read(ReadRequest::All).await;
    run(
        &mut editor,
        "select sync_distribution_counts(lower => true)".to_owned(),
    )
    .await;
    reader.sync().await;
    assert_eq!(reader.known, committed(&url).await);
    assert!(reader.known.values().all(|(_, counter)| *counter <= 0));
}

#[tokio::test]
async fn a_deleted_row_and_a_truncated_table_are_found() {
    let (url, _) = with_rows().await;
    let mut reader = Reader::new(&url).await;
    let mut editor = connect(&url).await;
    run(&mut editor, "begin; delete from visit_distribution where id in (select id from visit_distribution limit 7)".to_owned()).await;
    reader.sync().await;
    assert_eq!(reader.known.len(), 400);
    run(&mut editor, "commit".to_owned()).await;
    reader.sync().await;
    assert_eq!(reader.known, committed(&url).await);
    assert_eq!(reader.known.len(), 393);
    run(
        &mut editor,
        "truncate visit_distribution cascade".to_owned(),
    )
    .await;
    reader.sync().await;
    assert!(reader.known.is_empty());
}

#[tokio::test]
async fn a_sync_without_changes_does_not_scan_the_table() {
    let (url, partner) = with_rows().await;
    let mut connection = connect(&url).await;
    rows_of(partner, 20_000).insert(&mut connection).await;
    run(&mut connection, "analyze").await;
    let mut reader = Reader::new(&url).await;
    reader.settles().await;
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
