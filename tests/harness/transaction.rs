//! Sessions of other users: connections of their own, and transactions that stay open.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::Place;

/// Runs SQL on a connection.
pub async fn run(connection: &mut PgConnection, sql: impl Into<String>) {
    let sql = sql.into();
    sqlx::raw_sql(AssertSqlSafe(sql.clone()))
        .execute(connection)
        .await
        .unwrap_or_else(|error| panic!("{error}: {sql}"));
}

/// An open transaction. It is rolled back if it is dropped.
pub struct OpenTransaction(PgConnection);

impl OpenTransaction {
    /// Commits it.
    pub async fn commit(self) {
        self.end("commit").await;
    }

    /// Rolls it back.
    pub async fn rollback(self) {
        self.end("rollback").await;
    }

    async fn end(self, how: &str) {
        let Self(mut connection) = self;
        run(&mut connection, how).await;
        connection.close().await.expect("closed");
    }
}

impl Place {
    /// A new connection to the database, as the owner of everything.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url)
            .await
            .expect("a connection")
    }

    /// A transaction of another session that has run this SQL and holds its locks.
    pub async fn hold(&self, sql: &str) -> OpenTransaction {
        let mut connection = self.connect().await;
        run(&mut connection, format!("begin; {sql}")).await;
        OpenTransaction(connection)
    }
}
