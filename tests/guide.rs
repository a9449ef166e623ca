//! The users' setup guide, statement by statement, on the tables that they have: with an agent, beside one, and without.
//!
//! Owns the look of such a database before our schema came (`guide/tables.sql`), and what is asked of one by SQL alone; where an
//! agent takes part, it is a [`crate::harness::Place`].

mod access;
mod adoption;
mod cron;
mod functions;
mod own_tables;
mod partitions;
mod refusals;
mod restore;
mod retention;
mod same_rules;
mod schemas;
mod statements;
mod uninstall;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection as _, Executor, FromRow, PgConnection, Postgres, Row as _};
use uuid::Uuid;
use visit_pacer::postgres::migrations::{self, MIGRATIONS};

use crate::harness::server;

/// The guide's tables as a user made them by hand, with rows, functions, views and a trigger of theirs.
const TABLES: &str = include_str!("guide/tables.sql");

/// The partner of the guide, of whom [`TABLES`] has 500 visits.
const GUIDES_PARTNER: Uuid = Uuid::from_u128(0xe273_1c06_58b4_4f37_96c7_f721_af43_263c);
/// A partner of [`TABLES`] who has no distribution.
const OTHER_PARTNER: Uuid = Uuid::from_u128(2);

/// Sends SQL as the SQL Editor does, and gives each row as text, its columns between bars; `-` for a null.
async fn said<'c>(
    db: impl Executor<'c, Database = Postgres>,
    sql: impl Into<String>,
) -> Vec<String> {
    let sql = sql.into();
    let rows = sqlx::raw_sql(AssertSqlSafe(sql.clone()))
        .fetch_all(db)
        .await;
    let rows = rows.unwrap_or_else(|error| panic!("{error}: {sql}"));
    let text = |row: &PgRow, n| row.get_unchecked::<Option<String>, _>(n);
    let line = |row: &PgRow| -> Vec<String> {
        let columns = (0..row.len()).map(|n| text(row, n));
        columns
            .map(|value| value.unwrap_or_else(|| "-".to_owned()))
            .collect()
    };
    rows.iter().map(|row| line(row).join("|")).collect()
}

/// A database that is looked at by SQL alone.
struct Database {
    url: String,
    connection: PgConnection,
}

impl Database {
    /// One with our schema and nothing else.
    async fn migrated() -> Self {
        Self::at(server::shared().migrated().await).await
    }

    /// One as Supabase gives it.
    async fn empty() -> Self {
        Self::at(server::database().await).await
    }

    /// One that has [`TABLES`], and nothing of ours.
    async fn of_the_guide() -> Self {
        let mut database = Self::empty().await;
        database.run(TABLES).await;
        database
    }

    async fn at(url: String) -> Self {
        let connection = PgConnection::connect(&url).await.expect("a connection");
        Self { url, connection }
    }

    /// Applies every migration.
    async fn migrate(&mut self) {
        let applied = migrations::apply(&mut self.connection)
            .await
            .unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(applied.len(), MIGRATIONS.len());
    }

    /// Runs SQL; fails with the database's words.
    async fn run(&mut self, sql: impl Into<String>) {
        self.try_run(sql)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// Runs SQL.
    async fn try_run(&mut self, sql: impl Into<String>) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql.into()))
            .execute(&mut self.connection)
            .await
            .map(|_| ())
    }

    /// Asks for one value.
    async fn ask<T>(&mut self, sql: impl Into<String>) -> T
    where
        T: for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres> + Send + Unpin,
    {
        let sql = sql.into();
        sqlx::query_scalar(AssertSqlSafe(sql.clone()))
            .fetch_one(&mut self.connection)
            .await
            .unwrap_or_else(|error| panic!("{error}: {sql}"))
    }

    /// Asks for rows.
    async fn rows<T>(&mut self, sql: impl Into<String>) -> Vec<T>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let sql = sql.into();
        sqlx::query_as(AssertSqlSafe(sql.clone()))
            .fetch_all(&mut self.connection)
            .await
            .unwrap_or_else(|error| panic!("{error}: {sql}"))
    }

    /// Sends SQL as the SQL Editor does, and gives each row as text, its columns between bars.
    async fn said(&mut self, sql: impl Into<String>) -> Vec<String> {
        said(&mut self.connection, sql).await
    }

    /// A partner.
    async fn partner(&mut self) -> Uuid {
        self.ask("insert into partners (id) values (gen_random_uuid()) returning id")
            .await
    }

    /// A row of a partner: so many visits, at a pace such as `"10 a second"`, from a moment such as `"-10 seconds"` to another.
    async fn insert(
        &mut self,
        partner: Uuid,
        total: i64,
        pace: &str,
        from: &str,
        to: &str,
    ) -> Uuid {
        let (rate, unit) = pace.split_once(" a ").expect("a pace is `NUMBER a UNIT`");
        self.ask(format!(
            "insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit, start_time, end_time)
             values ('{partner}', {total}, '{unit}', {rate}, clock_timestamp() + interval '{from}', clock_timestamp() + interval '{to}')
             returning id"
        ))
        .await
    }

    /// What `distribute_visits()` added to each row, in the order of their ids, and said of it.
    async fn distribute(&mut self) -> Vec<(i64, String)> {
        self.rows("select visits_added, message from distribute_visits()")
            .await
    }

    /// What `distribute_visits_for_partner()` added and said.
    async fn sql_functions(&mut self, partner: Uuid, visits: i64) -> Vec<(i64, String)> {
        self.rows(format!(
            "select visits_added, message from distribute_visits_for_partner('{partner}', {visits})"
        ))
        .await
    }
}
