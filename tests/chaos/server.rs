//! The database server crashes, fails over to a standby, or does not complete commits.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgPool, Postgres};
use visit_pacer::demo::server::{PostgresServer, StopMode};

use crate::chaos::{DRAINS_WITHIN, Rows, UNKNOWN, count};
use crate::harness::proxy::Proxy;
use crate::harness::{Agent, PATIENCE, Place, long, server, wait_until};

#[tokio::test]
async fn a_server_that_crashes_repeatedly_loses_and_duplicates_no_visit() {
    let mut place = Place::apart().await;
    let rows = Rows::of(&place).await;
    let agent = place.agent().await;
    for _ in 0..if long() { 30 } else { 4 } {
        rows.make_progress(&place).await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..900))).await;
        let mode = [StopMode::Immediate, StopMode::Kill][rand::random_range(0..2)];
        let server = place.server.as_mut().expect("a server of its own");
        server.stop(mode).await.expect("it stops");
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..1_500))).await;
        server.start_again().await.expect("it starts");
    }
    rows.make_progress(&place).await;
    rows.stored_exactly_once(&place, &agent, "server crashed")
        .await;
}

/// A primary that everybody reaches through a proxy, and a standby that streams from it.
struct Pair {
    place: Place,
    proxy: Proxy,
    primary: PostgresServer,
    standby: PostgresServer,
    /// Connections to the standby.
    copy: PgPool,
    rows: Rows,
    agent: Agent,
}

impl Pair {
    async fn start(seed: u64) -> Self {
        let mut place = Place::apart().await;
        let proxy = Proxy::to(place.port(), seed).await;
        place.by_way_of(&proxy).await;
        let primary = place.server.take().expect("a server of its own");
        let standby = server::standby(&primary, place.folder.path().join("standby")).await;
        let copy = PgPool::connect(&standby.url(database(&place)))
            .await
            .expect("the standby accepts connections");
        let rows = Rows::of(&place).await;
        let agent = place.agent().await;
        rows.make_progress(&place).await;
        Self {
            place,
            proxy,
            primary,
            standby,
            copy,
            rows,
            agent,
        }
    }

    /// Waits until the standby has what the primary had committed before the call.
    async fn replicate(&self) {
        let at: String = self.place.ask("select pg_current_wal_lsn()::text").await;
        wait_until("the standby has caught up", PATIENCE, async || {
            self.at_standby(format!("select pg_last_wal_replay_lsn() >= '{at}'"))
                .await
        })
        .await;
    }

    async fn at_standby<T>(&self, sql: impl Into<String>) -> T
    where
        T: for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres> + Send + Unpin,
    {
        sqlx::query_scalar(AssertSqlSafe(sql.into()))
            .fetch_one(&self.copy)
            .await
            .expect("the standby answers")
    }

    /// Kills the primary with SIGKILL, promotes the standby, and points the proxy to it.
    async fn fail_over(&mut self) {
        self.primary
            .stop(StopMode::Kill)
            .await
            .expect("it is killed");
        let promoted: bool = self.at_standby("select pg_promote()").await;
        assert!(promoted, "the standby is not promoted");
        self.proxy.retarget(self.standby.port());
        self.proxy.cut();
    }
}

fn database(place: &Place) -> &str {
    place.url.rsplit('/').next().expect("a database")
}

#[tokio::test]
async fn visits_that_a_fail_over_lost_are_stored_again_with_their_numbers() {
    let mut pair = Pair::start(5).await;
    pair.replicate().await;
    for sql in [
        "alter system set primary_conninfo = ''",
        "select pg_reload_conf()",
    ] {
        sqlx::raw_sql(sql).execute(&pair.copy).await.expect(sql);
    }
    wait_until("replication has stopped", PATIENCE, async || {
        pair.at_standby("select count(*) = 0 from pg_stat_wal_receiver")
            .await
    })
    .await;
    pair.rows.make_progress(&pair.place).await;
    let number = format!(
        "select last_number from visit_distribution_progress where distribution_id = '{}'",
        pair.rows.fast
    );
    let before: i64 = pair.place.ask(number.clone()).await;

    pair.fail_over().await;
    let after: i64 = pair.at_standby(number).await;
    assert!(
        after < before,
        "{after} visits of {before}: nothing was lost"
    );
    pair.rows.make_progress(&pair.place).await;
    pair.rows
        .stored_exactly_once(
            &pair.place,
            &pair.agent,
            &format!("failed over, {} visits lost", before - after),
        )
        .await;
}

#[tokio::test]
async fn an_agent_connected_to_a_standby_reports_it_and_works_after_the_promotion() {
    let mut pair = Pair::start(6).await;
    pair.replicate().await;
    let url = pair.standby.url(database(&pair.place));
    let waiting = pair.place.start_agent_at(&url).await;
    waiting.says("read-only").await;
    waiting.unready("").await;

    pair.agent.kill();
    pair.fail_over().await;
    waiting.ready().await;
    pair.rows.make_progress(&pair.place).await;
    pair.rows
        .stored_exactly_once(&pair.place, &waiting, "waited at a standby")
        .await;
}

#[tokio::test]
async fn commits_that_wait_for_a_missing_standby_are_counted_once() {
    let place = Place::apart().await;
    let rows = Rows::of(&place).await;
    let agent = place.agent().await;
    rows.make_progress(&place).await;
    let hanging = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    place
        .edit("alter system set synchronous_standby_names = 'nobody'")
        .await;
    place.edit("select pg_reload_conf()").await;
    wait_until("the answer to a batch is lost", DRAINS_WITHIN, async || {
        count(&agent, UNKNOWN).await > 0
    })
    .await;
    let most: i64 = place.ask(hanging).await;
    assert!(
        (1..=8).contains(&most),
        "{most} connections wait in their commit"
    );

    place
        .edit("alter system reset synchronous_standby_names")
        .await;
    place.edit("select pg_reload_conf()").await;
    rows.make_progress(&place).await;
    rows.stored_exactly_once(&place, &agent, &format!("commits hung, {most} at once"))
        .await;
}
