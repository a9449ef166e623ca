//! One connection that comes back: opened when it is needed, thrown away when an answer is lost.
//!
//! Every call has a deadline of ours, longer than the server's own `statement_timeout`; a call that passes it has an unknown
//! outcome, and its connection is never used again.

use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection};

use super::fault::{Fault, Trouble};
use crate::domain::secret::Secret;

/// How long a connection may take to open.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long any call may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(12);

/// The server's own bounds on us, set when a connection opens: a statement that runs into them certainly did nothing.
const SESSION: &str = "set statement_timeout = '10s'; set lock_timeout = '2s'; \
                       set idle_in_transaction_session_timeout = '5s'; set timezone = 'UTC'; set jit = off";

/// Where the database is, and how to get in.
#[derive(Clone)]
pub struct Database {
    options: PgConnectOptions,
    /// Answers that were lost, over any connection: whoever has an older one opens a new one, since what swallowed the one
    /// will have swallowed the others, each of which would need its own [`CALL_TIMEOUT`] to find out.
    losses: Arc<AtomicU64>,
}

/// Why a URL is no use.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UrlError {
    /// It could not be read. It is not repeated: it holds a password.
    #[error("it is not a Postgres URL; expected postgres://user:password@host:port/database")]
    Unreadable,
    /// It names a transaction pooler by its port.
    #[error(
        "port 6543 is Supabase's transaction pooler, which gives one client's answers to another; \
         use the session pooler or the direct connection: {0}"
    )]
    TransactionPooler(String),
}

impl Database {
    /// From `postgres://user:password@host:port/database`.
    pub fn from_url(url: &Secret) -> Result<Self, UrlError> {
        let text = url.expose();
        if !(text.starts_with("postgres://") || text.starts_with("postgresql://")) {
            return Err(UrlError::Unreadable);
        }
        let options = PgConnectOptions::from_str(text).map_err(|_| UrlError::Unreadable)?;
        if options.get_port() == 6543 {
            return Err(UrlError::TransactionPooler(session_url(&options)));
        }
        let options = options
            .application_name("visit-pacer")
            .disable_statement_logging();
        Ok(Self {
            options,
            losses: Arc::default(),
        })
    }

    /// Host, port and database, without user or password.
    pub fn place(&self) -> String {
        let database = self.options.get_database().unwrap_or("postgres");
        format!(
            "{}:{}/{database}",
            self.options.get_host(),
            self.options.get_port()
        )
    }

    /// Who logs in.
    pub fn user(&self) -> &str {
        self.options.get_username()
    }

    /// Whether the password and the visits would cross a network without a check of who answers.
    pub fn is_unverified(&self) -> bool {
        let local = matches!(self.options.get_host(), "localhost" | "127.0.0.1" | "::1")
            || self.options.get_host().starts_with('/');
        let verified = matches!(
            self.options.get_ssl_mode(),
            PgSslMode::VerifyCa | PgSslMode::VerifyFull
        );
        !local && !verified
    }

    /// Opens a connection.
    pub async fn connect(&self) -> Result<PgConnection, Fault> {
        let opening = async {
            let mut connection = PgConnection::connect_with(&self.options).await?;
            sqlx::raw_sql(SESSION).execute(&mut connection).await?;
            Ok::<_, sqlx::Error>(connection)
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
            Ok(opened) => opened.map_err(Fault::from),
            Err(_elapsed) => Err(Fault::new(
                Trouble::Lost,
                format!("no connection to {} within 5 s", self.place()),
            )),
        }
    }

    /// Refuses a pooler that hands a connection to another client between two statements.
    ///
    /// One connection rests, another holds a transaction open: if both have been served by one and the same backend, there
    /// is a transaction pooler in between.
    pub async fn refuse_transaction_pooler(&self) -> Result<(), PoolerError> {
        let mut resting = self.connect().await?;
        let mut holding = self.connect().await?;
        let first = backend(&mut resting).await?;
        sqlx::raw_sql("begin")
            .execute(&mut holding)
            .await
            .map_err(Fault::from)?;
        let second = backend(&mut holding).await?;
        sqlx::raw_sql("rollback")
            .execute(&mut holding)
            .await
            .map_err(Fault::from)?;
        // A failed goodbye changes nothing about what was found.
        let _gone = (resting.close().await.is_ok(), holding.close().await.is_ok());
        if first == second {
            return Err(PoolerError::TransactionPooler {
                place: self.place(),
                session: session_url(&self.options),
            });
        }
        Ok(())
    }
}

/// Why a connection cannot be worked on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PoolerError {
    /// See [`Database::refuse_transaction_pooler`].
    #[error(
        "{place} is a transaction pooler, which gives one client's answers to another; \
         use the session pooler or the direct connection: {session}"
    )]
    TransactionPooler {
        /// Where it is.
        place: String,
        /// What to use instead.
        session: String,
    },
    /// It could not be found out.
    #[error(transparent)]
    Fault(#[from] Fault),
}

async fn backend(connection: &mut PgConnection) -> Result<String, Fault> {
    use sqlx::{Executor as _, Row as _};
    // The simple protocol, in one round trip: a prepared statement could itself be answered by somebody else.
    let row = connection
        .fetch_one(sqlx::raw_sql("select pg_backend_pid()::text"))
        .await?;
    Ok(row.try_get(0)?)
}

/// The session-mode URL that belongs to a pooler's, without the password.
fn session_url(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or("postgres");
    format!(
        "postgres://{}:PASSWORD@{}:5432/{database}",
        options.get_username(),
        options.get_host()
    )
}

/// A [`Database`] and, most of the time, a connection to it.
pub struct Link {
    database: Database,
    connection: Option<PgConnection>,
    /// Answers lost before it was opened.
    losses: u64,
}

impl Link {
    /// A link that opens at its first use.
    pub fn new(database: Database) -> Self {
        Self {
            database,
            connection: None,
            losses: 0,
        }
    }

    /// The open connection; opens it where there is none, or none that is younger than the last lost answer.
    pub async fn open(&mut self) -> Result<&mut PgConnection, Fault> {
        let losses = self.database.losses.load(Ordering::Relaxed);
        if self.connection.is_none() || self.losses != losses {
            self.losses = losses;
            self.connection = None;
            self.connection = Some(self.database.connect().await?);
        }
        self.connection
            .as_mut()
            .ok_or_else(|| Fault::new(Trouble::Lost, "no connection"))
    }

    /// Whether the next call finds a connection open.
    pub fn is_open(&self) -> bool {
        self.connection.is_some()
    }

    /// Takes a call's outcome in: where the policy says so, the connection is thrown away.
    pub fn check<T>(&mut self, outcome: Result<T, Fault>) -> Result<T, Fault> {
        outcome.inspect_err(|fault| {
            if fault.policy().reconnect {
                self.connection = None;
            }
            if fault.trouble == Trouble::Lost {
                self.database.losses.fetch_add(1, Ordering::Relaxed);
            }
        })
    }

    /// Says goodbye to the server.
    pub async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            // The server notices a lost connection by itself.
            let _said = tokio::time::timeout(CONNECT_TIMEOUT, connection.close()).await;
        }
    }
}

/// Bounds a call: see [`CALL_TIMEOUT`].
pub async fn within<T>(call: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Fault> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(outcome) => outcome.map_err(Fault::from),
        Err(_elapsed) => Err(Fault::new(Trouble::Lost, "no answer within 12 s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(url: &str) -> UrlError {
        Database::from_url(&Secret::new(url))
            .err()
            .expect("refused")
    }

    #[test]
    fn a_url_that_is_none_is_refused_without_repeating_it() {
        for url in [
            "",
            "db.example.test",
            "mysql://u:hunter2@h/d",
            "postgres://u:hunter2@h:port/d",
        ] {
            assert!(!error(url).to_string().contains("hunter2"), "{url}");
        }
    }

    #[test]
    fn the_transaction_poolers_port_is_refused_and_the_session_url_named() {
        let text =
            error("postgres://postgres.ref:hunter2@pooler.example.test:6543/postgres").to_string();
        assert!(
            text.contains("postgres://postgres.ref:PASSWORD@pooler.example.test:5432/postgres"),
            "{text}"
        );
        assert!(!text.contains("hunter2"));
    }

    #[test]
    fn only_a_local_or_a_verified_connection_is_called_safe() {
        let unverified = |url: &str| {
            Database::from_url(&Secret::new(url))
                .expect("a URL")
                .is_unverified()
        };
        assert!(unverified("postgres://u:p@db.example.test/postgres"));
        assert!(unverified(
            "postgres://u:p@db.example.test/postgres?sslmode=require"
        ));
        assert!(!unverified(
            "postgres://u:p@db.example.test/postgres?sslmode=verify-full"
        ));
        assert!(!unverified("postgres://u:p@127.0.0.1:54322/postgres"));
    }
}
