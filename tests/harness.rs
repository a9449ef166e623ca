//! What the tests of the contract run on: each test has a [`Place`] with a database, a Realtime server, and agents that are
//! the real program as a process.
//!
//! Owns waiting: for conditions, with a generous limit, never for a fixed time. `harness/server.rs` has the PostgreSQL server,
//! `agent.rs` the process, `fixture.rs` new rows, `observed.rs` the state of a distribution, `transaction.rs` sessions of
//! other users, `subscriber.rs` a second Realtime client, `proxy.rs` a network with faults, `pooler.rs` a connection pooler.
//!
//! Invariant: no log of an agent contains a panic, a key or a password.

pub mod agent;
pub mod fixture;
pub mod observed;
pub mod pooler;
pub mod proxy;
pub mod server;
pub mod subscriber;
pub mod transaction;

use std::fmt::Display;
use std::time::Duration;

use sqlx::postgres::{PgDatabaseError, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool, Postgres};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use uuid::Uuid;
use visit_pacer::demo::realtime_server::RealtimeServer;
use visit_pacer::demo::server::PostgresServer;
use visit_pacer::demo::stack;
use visit_pacer::domain::secret::Secret;

pub use self::agent::{Agent, Outcome};
pub use self::fixture::NewDistribution;
use self::pooler::Pooler;
use self::proxy::Proxy;
use self::server::Scratch;

/// Places at once: more would starve each other on two cores.
static PLACES: Semaphore = Semaphore::const_new(4);

/// A limit for everything that takes a moment on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// How often a condition is checked.
const CHECK_EVERY: Duration = Duration::from_millis(20);

/// The environment of a process.
pub type Variables = Vec<(String, String)>;

/// Whether the long forms of the tests are requested.
pub fn long() -> bool {
    std::env::vars().any(|(name, value)| name == "VISIT_PACER_TEST_LONG" && value == "1")
}

/// Waits until `check` finds something. Fails after `limit`.
pub async fn find<T>(
    what: impl Display,
    limit: Duration,
    mut check: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} for: {what}");
        tokio::time::sleep(CHECK_EVERY).await;
    }
}

/// Waits until `check` is true.
pub async fn wait_until(what: impl Display, limit: Duration, mut check: impl AsyncFnMut() -> bool) {
    find(what, limit, async || check().await.then_some(())).await;
}

/// The SQLSTATE of an error of the database, and its message with the hint.
pub fn refusal(error: &sqlx::Error) -> (String, String) {
    let error = error
        .as_database_error()
        .unwrap_or_else(|| panic!("expected an error of the database, found: {error}"));
    let hint = error
        .downcast_ref::<PgDatabaseError>()
        .hint()
        .unwrap_or_default();
    (
        error.code().unwrap_or_default().into_owned(),
        format!("{}; {hint}", error.message()),
    )
}

/// The port in a URL.
pub fn port(url: &str) -> u16 {
    let url = url::Url::parse(url).expect("a URL");
    url.port().expect("a port")
}

/// The URL of a database for another role.
pub fn url_as(url: &str, role: &str, password: &str) -> String {
    let mut url = url::Url::parse(url).expect("a URL");
    url.set_username(role).expect("a host");
    url.set_password(Some(password)).expect("a host");
    url.into()
}

/// An environment with some variables changed; an empty value removes one.
pub fn changed(mut variables: Variables, changes: &[(&str, &str)]) -> Variables {
    for (name, value) in changes {
        variables.retain(|(known, _)| known != name);
        if !value.is_empty() {
            variables.push(((*name).to_owned(), (*value).to_owned()));
        }
    }
    variables
}

/// Connections for the test itself, a Realtime server, a key that it accepts, and the secret of that key.
async fn services(url: &str) -> (PgPool, RealtimeServer, Secret, Secret) {
    let db = PgPoolOptions::new()
        .max_connections(4)
        .connect(url)
        .await
        .expect("the database answers");
    let secret = Secret::new(format!(
        "{:032x}{:032x}",
        rand::random::<u128>(),
        rand::random::<u128>()
    ));
    let key = stack::service_key(&secret);
    let realtime = stack::realtime(url, 0, secret.clone())
        .await
        .expect("a Realtime server");
    (db, realtime, key, secret)
}

/// A migrated database, a Realtime server for it, and a partner.
pub struct Place {
    /// Connections of the test, as the owner of everything.
    pub db: PgPool,
    /// Realtime.
    pub realtime: RealtimeServer,
    /// The PostgreSQL server, if no other test uses it.
    pub server: Option<PostgresServer>,
    /// The database, password included.
    pub url: String,
    /// The pooler that agents and commands connect to.
    pub pooler: Option<Pooler>,
    /// A key that Realtime accepts.
    pub key: Secret,
    /// What such keys are signed with.
    pub jwt_secret: Secret,
    /// A partner.
    pub partner: Uuid,
    /// A folder of this test.
    pub folder: Scratch,
    _permit: SemaphorePermit<'static>,
}

impl Place {
    /// On the server that all tests share.
    pub async fn new() -> Self {
        let permit = PLACES.acquire().await.expect("never closed");
        let url = server::shared().migrated().await;
        Self::at(url, None, permit).await
    }

    /// With an existing database, to which the schema is added.
    pub async fn over(url: String) -> Self {
        let permit = PLACES.acquire().await.expect("never closed");
        let mut connection = PgConnection::connect(&url).await.expect("a connection");
        stack::prepare(&mut connection).await.expect("the schema");
        connection.close().await.expect("closed");
        Self::at(url, None, permit).await
    }

    /// On a server of its own, which the test may stop and start.
    pub async fn apart() -> Self {
        let permit = PLACES.acquire().await.expect("never closed");
        let folder = Scratch::new();
        let server = server::start(folder.path().join("postgres")).await;
        let url = server::prepared(&server, "place").await;
        Self::at(url, Some((server, folder)), permit).await
    }

    async fn at(
        url: String,
        own: Option<(PostgresServer, Scratch)>,
        permit: SemaphorePermit<'static>,
    ) -> Self {
        let (db, realtime, key, jwt_secret) = services(&url).await;
        let (server, folder) = own.map_or_else(
            || (None, Scratch::new()),
            |(server, folder)| (Some(server), folder),
        );
        let mut place = Self {
            db,
            realtime,
            server,
            url,
            pooler: None,
            key,
            jwt_secret,
            partner: Uuid::nil(),
            folder,
            _permit: permit,
        };
        place.partner = place.new_partner().await;
        place
    }

    /// From now on everybody reaches the database through the proxy: the test, Realtime, and agents that start later.
    pub async fn by_way_of(&mut self, proxy: &Proxy) {
        self.url = proxy.url(&self.url);
        (self.db, self.realtime, self.key, self.jwt_secret) = services(&self.url).await;
    }

    /// The port of its server.
    pub fn port(&self) -> u16 {
        port(&self.url)
    }

    /// The database as agents and commands reach it, password included.
    pub fn agents_url(&self) -> String {
        let pooled = self.pooler.as_ref().map(|pooler| pooler.url(&self.url));
        pooled.unwrap_or_else(|| self.url.clone())
    }

    /// The environment of an agent.
    pub fn environment(&self) -> Variables {
        self.environment_with(&[])
    }

    /// The environment of an agent with some variables changed; an empty value removes one.
    pub fn environment_with(&self, changes: &[(&str, &str)]) -> Variables {
        let usual = changed(
            Variables::new(),
            &[
                ("DATABASE_URL", &self.agents_url()),
                ("SUPABASE_URL", &self.realtime.supabase_url()),
                ("SUPABASE_SERVICE_ROLE_KEY", self.key.expose()),
                ("VISIT_PACER_LISTEN", "127.0.0.1:0"),
            ],
        );
        changed(usual, changes)
    }

    /// An agent that has started; see [`Agent::ready`].
    pub async fn start_agent(&self) -> Agent {
        self.start_agent_with(&[]).await
    }

    /// An agent that has started, with some variables changed; an empty value removes one.
    pub async fn start_agent_with(&self, changes: &[(&str, &str)]) -> Agent {
        Agent::start(&self.folder, &["run"], &self.environment_with(changes)).await
    }

    /// An agent that has started, with the database at that URL.
    pub async fn start_agent_at(&self, url: &str) -> Agent {
        self.start_agent_with(&[("DATABASE_URL", url)]).await
    }

    /// An agent that is ready.
    pub async fn agent(&self) -> Agent {
        let agent = self.start_agent().await;
        agent.ready().await;
        agent
    }

    /// Runs one of the program's commands.
    pub async fn command(&self, arguments: &[&str]) -> Outcome {
        agent::command(&self.folder, arguments, &self.environment()).await
    }

    /// Runs SQL.
    pub async fn edit(&self, sql: impl Into<String>) {
        self.try_edit(sql).await.expect("the statement succeeds");
    }

    /// Runs SQL that may fail.
    pub async fn try_edit(&self, sql: impl Into<String>) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql.into()))
            .execute(&self.db)
            .await
            .map(|_| ())
    }

    /// The one value that a query returns.
    pub async fn ask<T>(&self, sql: impl Into<String>) -> T
    where
        T: for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres> + Send + Unpin,
    {
        let sql = sql.into();
        sqlx::query_scalar(AssertSqlSafe(sql.clone()))
            .fetch_one(&self.db)
            .await
            .unwrap_or_else(|error| panic!("{error}: {sql}"))
    }
}
