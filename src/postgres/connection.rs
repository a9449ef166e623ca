//! One open connection, and the one place that knows whether a transaction pooler stands behind it.
//!
//! Direct and through a session pooler, a statement is prepared once and is a transaction of its own. Through a transaction
//! pooler nothing of ours stays on a backend from one transaction to the next: there each statement is sent as BEGIN with
//! SET LOCAL bounds, the statement, unnamed, and COMMIT. (Unnamed alone is not enough: between Parse and Bind the pooler may
//! give the backend to somebody else, whose statement then runs.) Text without parameters is one round trip of the simple
//! protocol, and a transaction already.
//!
//! Invariants: through a transaction pooler no statement is named and no SET outlives its transaction; what an error of
//! COMMIT leaves unknown is told as that error, never as the statement's success.

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use sqlx::postgres::{
    PgArguments, PgConnectOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo,
};
use sqlx::{
    AssertSqlSafe, Connection as _, Either, Error, Execute, Executor, PgConnection, Postgres,
    SqlStr,
};

/// The server's own bounds on us: a statement that runs into them certainly did nothing.
const BOUNDS: &str = "set statement_timeout = '10s'; set lock_timeout = '2s'; \
                      set idle_in_transaction_session_timeout = '5s'; set timezone = 'UTC'; set jit = off";
const BEGIN: &str = "begin; set local statement_timeout = '10s'; set local lock_timeout = '2s'; \
                     set local idle_in_transaction_session_timeout = '5s'; set local timezone = 'UTC'; set local jit = off";
const BEGIN_UNBOUNDED: &str = "begin; set local statement_timeout = 0; set local lock_timeout = '2s'; \
                               set local timezone = 'UTC'; set local jit = off";

/// An open connection; an [`Executor`] of single statements.
#[derive(Debug)]
pub struct Connection {
    inner: PgConnection,
    /// How a statement's transaction begins; `None` where a statement needs none around it.
    begin: Option<&'static str>,
}

/// A connection of which nobody else has a part: direct, or through a session pooler.
impl From<PgConnection> for Connection {
    fn from(inner: PgConnection) -> Self {
        Self { inner, begin: None }
    }
}

impl Connection {
    /// Opens one and bounds it; `pooled` says whether it leads through a transaction pooler.
    pub async fn open(options: &PgConnectOptions, pooled: bool) -> Result<Self, Error> {
        let mut inner = PgConnection::connect_with(options).await?;
        if pooled {
            let begin = Some(BEGIN);
            return Ok(Self { inner, begin });
        }
        sqlx::raw_sql(BOUNDS).execute(&mut inner).await?;
        Ok(inner.into())
    }

    /// Lets statements take as long as they need from now on.
    pub async fn without_timeout(&mut self) -> Result<(), Error> {
        if let Some(begin) = &mut self.begin {
            *begin = BEGIN_UNBOUNDED;
            return Ok(());
        }
        let lifted = sqlx::raw_sql("set statement_timeout = 0");
        lifted.execute(&mut self.inner).await.map(|_| ())
    }

    /// Whether each statement is a transaction of its own, by way of a transaction pooler.
    pub fn is_pooled(&self) -> bool {
        self.begin.is_some()
    }

    /// The connection itself, for a transaction whose text the simple protocol carries.
    pub fn simple(&mut self) -> &mut PgConnection {
        &mut self.inner
    }

    /// Says goodbye to the server.
    pub async fn close(self) -> Result<(), Error> {
        self.inner.close().await
    }

    /// A statement as a transaction of its own, through a transaction pooler.
    async fn in_transaction(
        &mut self,
        begin: &'static str,
        sql: SqlStr,
        arguments: PgArguments,
    ) -> Result<Vec<Either<PgQueryResult, PgRow>>, Error> {
        sqlx::raw_sql(begin).execute(&mut self.inner).await?;
        let statement = sqlx::query_with(AssertSqlSafe(sql.as_str().to_owned()), arguments);
        let answered: Result<Vec<_>, Error> = self
            .inner
            .fetch_many(statement.persistent(false))
            .try_collect()
            .await;
        let end = if answered.is_ok() {
            "commit"
        } else {
            "rollback"
        };
        let ended = sqlx::raw_sql(end).execute(&mut self.inner).await;
        let answer = answered?;
        ended.map(|_| answer)
    }
}

impl<'c> Executor<'c> for &'c mut Connection {
    type Database = Postgres;

    fn fetch_many<'e, 'q, E>(
        self,
        mut query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        'c: 'e,
        E: Execute<'q, Postgres>,
        'q: 'e,
        E: 'q,
    {
        let Some(begin) = self.begin else {
            return self.inner.fetch_many(query);
        };
        let arguments = match query.take_arguments() {
            Ok(Some(arguments)) => arguments,
            Ok(None) => return self.inner.fetch_many(query),
            Err(error) => return stream::iter([Err(Error::Encode(error))]).boxed(),
        };
        let answer = self.in_transaction(begin, query.sql(), arguments);
        stream::once(answer)
            .map_ok(|items| stream::iter(items.into_iter().map(Ok)))
            .try_flatten()
            .boxed()
    }

    fn fetch_optional<'e, 'q, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: Execute<'q, Postgres>,
        'q: 'e,
        E: 'q,
    {
        // To the end of the answer: an error may follow the row.
        let items = self.fetch_many(query);
        Box::pin(async move {
            let items: Vec<_> = items.try_collect().await?;
            Ok(items.into_iter().find_map(Either::right))
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        self.inner.prepare_with(sql, parameters)
    }
}
