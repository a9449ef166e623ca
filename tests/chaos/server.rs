//! The server itself goes: it crashes and comes back, fails over to a standby, or does not let commits end.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgPool, Postgres};
use visit_pacer::demo::server::{PostgresServer, StopMode};

use crate::chaos::{DRAINS_WITHIN, Rows, UNKNOWN, count};
use crate::harness::proxy::Proxy;
use crate::harness::{Agent, PATIENCE, Place, long, server, wait_until};

#[tokio::test]
async fn a_server_that_crashes_again_and_again_loses_and_doubles_nothing() {
    let mut place = Place::apart().await;
    let rows = Rows::of(&place).await;
    let agent = place.agent().await;
    for _ in 0..if long() { 30 } else { 4 } {
        rows.go_on(&place).await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..900))).await;
        let mode = [StopMode::Immediate, StopMode::Kill][rand::random_range(0..2)];
        let server = place.server.as_mut().expect("a server of its own");
        server.stop(mode).await.expect("it stops");
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..1_500))).await;
        server.start_again().await.expect("it starts");
    }
    rows.go_on(&place).await;
    rows.came_once(&place, &agent, "server crashed").await;
}

/// A primary that everybody reaches by way of a proxy, and a standby that streams from it.
struct Pair {
    place: Place,
    proxy: Proxy,
    primary: PostgresServer,
    standby: PostgresServer,
    /// For looks at the standby.
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
            .expect("the standby lets readers in");
        let rows = Rows::of(&place).await;
        let agent = place.agent().await;
        rows.go_on(&place).await;
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

    /// Waits until the standby has what the primary has committed before the call.
    async fn catches_up(&self) {
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

    /// `kill -9` of the primary; the standby becomes one, and the proxy leads there.
    async fn fails_over(&mut self) {
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
async fn after_a_fail_over_that_lost_the_newest_visits_they_are_stored_again_with_their_numbers() {
    let mut pair = Pair::start(5).await;
    pair.catches_up().await;
    for sql in [
        "alter system set primary_conninfo = ''",
        "select pg_reload_conf()",
    ] {
        sqlx::raw_sql(sql).execute(&pair.copy).await.expect(sql);
    }
    wait_until("nothing is streamed any more", PATIENCE, async || {
        pair.at_standby("select count(*) = 0 from pg_stat_wal_receiver")
            .await
    })
    .await;
    pair.rows.go_on(&pair.place).await;
    let number = format!(
        "select last_number from visit_distribution_progress where distribution_id = '{}'",
        pair.rows.fast
    );
    let before: i64 = pair.place.ask(number.clone()).await;

    pair.fails_over().await;
    let after: i64 = pair.at_standby(number).await;
    assert!(
        after < before,
        "{after} visits of {before}: nothing was lost"
    );
    pair.rows.go_on(&pair.place).await;
    pair.rows
        .came_once(
            &pair.place,
            &pair.agent,
            &format!("failed over, {} visits lost", before - after),
        )
        .await;
}

#[tokio::test]
async fn an_agent_at_a_standby_says_that_it_cannot_write_and_goes_on_once_that_is_promoted() {
    let mut pair = Pair::start(6).await;
    pair.catches_up().await;
    let url = pair.standby.url(database(&pair.place));
    let waiting = pair.place.start_agent_at(&url).await;
    waiting.says("read-only").await;
    waiting.unready("").await;

    pair.agent.kill();
    pair.fails_over().await;
    waiting.ready().await;
    pair.rows.go_on(&pair.place).await;
    pair.rows
        .came_once(&pair.place, &waiting, "waited at a standby")
        .await;
}

#[tokio::test]
async fn commits_that_hang_for_want_of_a_standby_are_waited_for_and_counted_once() {
    let place = Place::apart().await;
    let rows = Rows::of(&place).await;
    let agent = place.agent().await;
    rows.go_on(&place).await;
    let hanging = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    place
        .edit("alter system set synchronous_standby_names = 'nobody'")
        .await;
    place.edit("select pg_reload_conf()").await;
    wait_until(
        "a batch's answer does not come",
        DRAINS_WITHIN,
        async || count(&agent, UNKNOWN).await > 0,
    )
    .await;
    let most: i64 = place.ask(hanging).await;
    assert!(
        (1..=8).contains(&most),
        "{most} connections hang in their commit"
    );

    place
        .edit("alter system reset synchronous_standby_names")
        .await;
    place.edit("select pg_reload_conf()").await;
    rows.go_on(&place).await;
    rows.came_once(&place, &agent, &format!("commits hung, {most} at once"))
        .await;
}
