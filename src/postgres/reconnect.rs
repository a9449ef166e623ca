//! One connection that comes back: opened when it is needed, thrown away when an answer is lost.
//!
//! Every call has a deadline of ours, longer than the server's own `statement_timeout`; a call that passes it has an unknown
//! outcome, and its connection is never used again.

use std::collections::BTreeSet;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection};
use url::Url;

use super::connection::Connection;
use super::failure::{ErrorKind, Failure};
use crate::domain::secret::Secret;

/// How long a connection may take to open.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long any call may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(12);

/// The port of Supabase's transaction pooler.
const TRANSACTION_POOLER_PORT: u16 = 6543;
/// How often it is looked whether a transaction pooler stands in between: with other clients at work and two backends, one look
/// misses it with a chance of a quarter.
const LOOKS: u32 = 8;

/// Supabase's own roots, of which no system has heard.
const SUPABASE_ROOTS: &str = concat!(
    include_str!("../../deploy/supabase/prod-ca-2021.crt"),
    include_str!("../../deploy/supabase/prod-ca-2025.crt")
);

/// Where the database is, and how to get in.
#[derive(Clone)]
pub struct Database {
    options: PgConnectOptions,
    /// Answers that were lost, over any connection: whoever has an older one opens a new one, since what swallowed the one
    /// will have swallowed the others, each of which would need its own [`CALL_TIMEOUT`] to find out.
    losses: Arc<AtomicU64>,
    /// Connections of links that are open.
    open: Arc<AtomicUsize>,
    /// Whether a transaction pooler stands in between.
    pooled: bool,
}

/// Why a URL is no use. No part of it is repeated: it holds a password.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UrlError {
    /// Something else, or nothing.
    #[error("it is not a Postgres URL; expected postgres://user:password@host:port/database")]
    Malformed,
    /// A character of the password would end the password, so that the rest of it would become the host.
    #[error(
        "it does not parse as intended: an @, /, #, ? or % in the user name, the password or an option must be percent-encoded; \
         percent-encode the password (@ is %40, / is %2F, # is %23, ? is %3F, % is %25)"
    )]
    Unencoded,
    /// As the dashboard of Supabase shows it.
    #[error(
        "it still has [YOUR-PASSWORD] in the password's place; put the database password there, percent-encoded"
    )]
    Placeholder,
}

/// Why a command cannot do its work here.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{place} is a transaction pooler, and this needs a session; use the session pooler or the direct connection: {session}"
)]
pub struct NeedsSession {
    place: String,
    session: String,
}

impl Database {
    /// From `postgres://user:password@host:port/database`. A host of Supabase's is verified in full unless the URL says
    /// otherwise; its roots are known here. `pgbouncer=true` says that the port is a transaction pooler's, as 6543 is.
    pub fn from_url(url: &Secret) -> Result<Self, UrlError> {
        let text = url.expose();
        let rest = (text.strip_prefix("postgres://"))
            .or_else(|| text.strip_prefix("postgresql://"))
            .ok_or(UrlError::Malformed)?;
        check_encoding(rest)?;
        let mut url = Url::parse(text).map_err(|_| UrlError::Malformed)?;
        let (marks, others): (Vec<_>, Vec<_>) = url
            .query_pairs()
            .into_owned()
            .partition(|(name, _)| name == "pgbouncer");
        let says = |name: &str| others.iter().any(|(other, _)| other == name);
        let (says_mode, says_root) = (says("sslmode"), says("sslrootcert"));
        url.query_pairs_mut().clear().extend_pairs(&others);
        let mut options =
            PgConnectOptions::from_str(url.as_str()).map_err(|_| UrlError::Malformed)?;
        if let Some(url::Host::Ipv6(address)) = ipv6(&url) {
            options = options.host(&address.to_string()); // the driver would look the brackets up as a name
        }
        if is_supabase(options.get_host()) {
            if !says_mode && matches!(options.get_ssl_mode(), PgSslMode::Prefer) {
                options = options.ssl_mode(PgSslMode::VerifyFull);
            }
            if !says_root {
                options = options.ssl_root_cert_from_pem(SUPABASE_ROOTS.into());
            }
        }
        let pooled = options.get_port() == TRANSACTION_POOLER_PORT
            || marks.iter().any(|(_, value)| value == "true");
        let options = options
            .application_name("visit-pacer")
            // Not needed since PostgreSQL 12, and a pgbouncer that is not told to overlook it refuses it.
            .extra_float_digits(None)
            .disable_statement_logging();
        Ok(Self {
            options,
            pooled,
            losses: Arc::default(),
            open: Arc::default(),
        })
    }

    /// Host, port and database, without user or password.
    pub fn place(&self) -> String {
        let database = self.options.get_database().unwrap_or("postgres");
        format!("{}:{}/{database}", self.host(), self.options.get_port())
    }

    /// The host as a URL has it.
    fn host(&self) -> String {
        let host = self.options.get_host();
        if host.contains(':') {
            format!("[{host}]")
        } else {
            host.to_owned()
        }
    }

    /// Connections that links to it have open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Who logs in.
    pub fn user(&self) -> &str {
        self.options.get_username()
    }

    /// How it is reached.
    pub fn options(&self) -> &PgConnectOptions {
        &self.options
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

    /// Whether each call is a transaction of its own, through a transaction pooler.
    pub fn is_pooled(&self) -> bool {
        self.pooled
    }

    /// The session-mode URL that belongs to a pooler's, without the password.
    pub fn session_url(&self) -> String {
        let database = self.options.get_database().unwrap_or("postgres");
        format!(
            "postgres://{}:PASSWORD@{}:5432/{database}",
            self.options.get_username(),
            self.host()
        )
    }

    /// Fails where a transaction pooler is known to stand in between.
    pub fn keeps_sessions(&self) -> Result<(), NeedsSession> {
        if self.pooled {
            return Err(NeedsSession {
                place: self.place(),
                session: self.session_url(),
            });
        }
        Ok(())
    }

    /// Opens a connection.
    pub async fn connect(&self) -> Result<Connection, Failure> {
        self.opened(Box::pin(Connection::open(&self.options, self.pooled)))
            .await
    }

    /// The same, and counts as open for as long as the second of the two is kept.
    pub(super) async fn connect_counted(&self) -> Result<(Connection, Counted), Failure> {
        let connection = self.connect().await?;
        Ok((connection, Counted::new(&self.open)))
    }

    async fn opened<T>(
        &self,
        opening: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
            Ok(opened) => opened.map_err(|error| self.advise(Failure::from(error))),
            Err(_elapsed) => Err(Failure::new(
                ErrorKind::Lost,
                format!("no connection to {} within 5 s", self.place()),
            )),
        }
    }

    /// Adds what can be done about an address or a certificate, where the text tells.
    fn advise(&self, failure: Failure) -> Failure {
        let text = failure.to_string();
        let host = self.options.get_host();
        let advice = ADVICE.iter().find(|(words, _)| text.contains(words));
        let direct = host
            .strip_prefix("db.")
            .and_then(|rest| rest.strip_suffix(".supabase.co"));
        match (advice, direct) {
            (Some((_, Advice::Certificate(what))), _) => Failure::new(
                ErrorKind::Tls,
                format!("{}: {host}: {what}", failure.report()),
            ),
            (Some((_, Advice::Address)), Some(project)) => Failure::new(
                failure.kind,
                format!(
                    "{}: {host} has an IPv6 address only, and this machine has no way there; use the session pooler: \
                     postgres://{}.{project}:PASSWORD@aws-0-REGION.pooler.supabase.com:5432/postgres \
                     (Connect > Session pooler has the exact host)",
                    failure.report(),
                    self.options.get_username()
                ),
            ),
            (Some((_, Advice::Address)), None) | (None, _) => failure,
        }
    }

    /// The same, each call a transaction of its own: at home behind a transaction pooler, and four round trips a call
    /// everywhere.
    #[must_use]
    pub fn in_transactions(self) -> Self {
        Self {
            pooled: true,
            ..self
        }
    }

    /// The same, knowing whether a transaction pooler stands in between, which hands a connection's backend to another client
    /// between two statements.
    ///
    /// One connection rests, another holds a transaction open, several times: if both have been served by one and the same
    /// backend, or one of them by two, there is a transaction pooler.
    pub async fn recognised(mut self) -> Result<Self, Failure> {
        if self.pooled {
            return Ok(self);
        }
        let options = &self.options;
        let dial = || self.opened(PgConnection::connect_with(options));
        let (mut resting, mut holding) = (dial().await?, dial().await?);
        let (mut of_resting, mut of_holding) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..LOOKS {
            of_resting.insert(backend(&mut resting).await?);
            simple(&mut holding, "begin").await?;
            of_holding.insert(backend(&mut holding).await?);
            of_resting.insert(backend(&mut resting).await?);
            simple(&mut holding, "rollback").await?;
        }
        // A failed goodbye changes nothing about what was found.
        let _gone = (resting.close().await.is_ok(), holding.close().await.is_ok());
        self.pooled =
            of_resting.len() > 1 || of_holding.len() > 1 || !of_resting.is_disjoint(&of_holding);
        Ok(self)
    }
}

/// Refuses what would parse as something else than it means: `rest` is the URL after its scheme. Only the last `@` may separate
/// the login from the host, and nothing before it may end the authority of a URL (RFC 3986, section 3.2).
fn check_encoding(rest: &str) -> Result<(), UrlError> {
    if rest.contains("[YOUR-PASSWORD]") {
        return Err(UrlError::Placeholder);
    }
    let login = rest.rsplit_once('@').map_or("", |(login, _)| login);
    let is_hex = |c: Option<&u8>| c.is_some_and(u8::is_ascii_hexdigit);
    let bytes = rest.as_bytes();
    let is_escape = |at: usize| is_hex(bytes.get(at + 1)) && is_hex(bytes.get(at + 2));
    let lone_percent = (bytes.iter().enumerate()).any(|(at, c)| *c == b'%' && !is_escape(at));
    if login.contains(['@', '/', '#', '?']) || rest.contains('#') || lone_percent {
        return Err(UrlError::Unencoded);
    }
    Ok(())
}

/// The host of a URL of a scheme that the `url` crate does not know, if it is an IPv6 literal.
fn ipv6(url: &Url) -> Option<url::Host<&str>> {
    url.host().filter(|host| matches!(host, url::Host::Ipv6(_)))
}

/// What mends a connection that cannot be opened.
enum Advice {
    /// There is no way to the address.
    Address,
    /// The server's certificate does not convince.
    Certificate(&'static str),
}

/// By words of the driver, of rustls and of the system.
const ADVICE: &[(&str, Advice)] = &[
    (
        "UnknownIssuer",
        Advice::Certificate(
            "its certificate is of an authority that is not known here; add sslrootcert=FILE with \
      that authority's certificate to DATABASE_URL (for Supabase: Database Settings > SSL Configuration > Download certificate)",
        ),
    ),
    (
        "not valid for name",
        Advice::Certificate(
            "its certificate is for another host; put the host that the certificate names into DATABASE_URL",
        ),
    ),
    (
        "NotValidForName",
        Advice::Certificate(
            "its certificate is for another host; put the host that the certificate names into DATABASE_URL",
        ),
    ),
    (
        "xpired",
        Advice::Certificate("its certificate has expired, or this machine's clock is wrong"),
    ),
    (
        "server does not support TLS",
        Advice::Certificate(
            "it offers no TLS; turn it on there, or say sslmode=disable in DATABASE_URL where the network is yours",
        ),
    ),
    ("etwork is unreachable", Advice::Address),
    ("o route to host", Advice::Address),
    ("failed to lookup address", Advice::Address),
    ("annot assign requested address", Advice::Address),
];

fn is_supabase(host: &str) -> bool {
    [".supabase.co", ".supabase.com"]
        .iter()
        .any(|domain| host.ends_with(domain))
}

/// One round trip of the simple protocol, which no pooler tears apart.
async fn simple(connection: &mut PgConnection, sql: &'static str) -> Result<(), Failure> {
    let call = sqlx::raw_sql(sql).execute(connection);
    with_timeout(call).await.map(|_| ())
}

async fn backend(connection: &mut PgConnection) -> Result<String, Failure> {
    use sqlx::{Executor as _, Row as _};
    // The simple protocol, in one round trip: a prepared statement could itself be answered by somebody else.
    let row =
        with_timeout(connection.fetch_one(sqlx::raw_sql("select pg_backend_pid()::text"))).await?;
    Ok(row.try_get(0)?)
}

/// Counts a connection as open for as long as it is kept.
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(open))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A [`Database`] and, most of the time, a connection to it.
pub struct ReconnectingConnection {
    database: Database,
    connection: Option<(Connection, Counted)>,
    /// Answers lost before it was opened.
    losses: u64,
}

impl ReconnectingConnection {
    /// A link that opens at its first use.
    pub fn new(database: Database) -> Self {
        Self {
            database,
            connection: None,
            losses: 0,
        }
    }

    /// The open connection; opens it where there is none, or none that is younger than the last lost answer.
    pub async fn open(&mut self) -> Result<&mut Connection, Failure> {
        let losses = self.database.losses.load(Ordering::Relaxed);
        if self.connection.is_none() || self.losses != losses {
            self.losses = losses;
            self.connection = None;
            self.connection = Some(self.database.connect_counted().await?);
        }
        self.connection
            .as_mut()
            .map(|(connection, _)| connection)
            .ok_or_else(|| Failure::new(ErrorKind::Lost, "no connection"))
    }

    /// Where it leads.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Whether the next call finds a connection open.
    pub fn is_open(&self) -> bool {
        self.connection.is_some()
    }

    /// Takes a call's outcome in: where the policy says so, the connection is thrown away.
    pub fn check<T>(&mut self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        outcome.inspect_err(|failure| {
            if failure.policy().reconnect {
                self.connection = None;
            }
            if failure.kind == ErrorKind::Lost {
                self.database.losses.fetch_add(1, Ordering::Relaxed);
            }
        })
    }

    /// Says goodbye to the server.
    pub async fn close(&mut self) {
        if let Some((connection, _open)) = self.connection.take() {
            // The server notices a lost connection by itself.
            let _said = tokio::time::timeout(CONNECT_TIMEOUT, connection.close()).await;
        }
    }
}

/// Bounds a call: see [`CALL_TIMEOUT`].
pub async fn with_timeout<T>(
    call: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(outcome) => outcome.map_err(Failure::from),
        Err(_elapsed) => Err(Failure::new(ErrorKind::Lost, "no answer within 12 s")),
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
    fn a_password_that_is_not_percent_encoded_is_refused_and_no_part_of_it_repeated() {
        for url in [
            "postgres://u:hun@ter2@h:5432/d",
            "postgres://u:hun/ter2@h:5432/d",
            "postgres://u:hun#ter2@h:5432/d",
            "postgres://u:hun?ter2@h:5432/d",
            "postgres://u:hun%ter2@h:5432/d",
            "postgres://u:hunter2%@h:5432/d",
            "postgres://u:/hun@ter2/@h:5432/d",
            "postgres://u:hunter2@h:5432/d#hun",
        ] {
            let error = error(url);
            assert_eq!(error, UrlError::Unencoded, "{url}");
            let text = error.to_string();
            assert!(text.contains("percent-encode the password"), "{text}");
            assert!(!text.contains("hun") && !text.contains("ter2"), "{text}");
        }
        let placeholder = "postgresql://postgres:[YOUR-PASSWORD]@db.ref.supabase.co:5432/postgres";
        assert_eq!(error(placeholder), UrlError::Placeholder);
        let encoded = database("postgres://u:%40%2F%23%3F%25@h:5432/d?sslmode=disable");
        assert_eq!(encoded.place(), "h:5432/d");
        assert_eq!(database("postgres://h/d").place(), "h:5432/d");
    }

    #[test]
    fn an_ipv6_literal_is_an_address_and_no_name_in_brackets() {
        let database = database("postgres://u:p@[::1]:5433/d");
        assert_eq!(database.options().get_host(), "::1");
        assert_eq!(database.place(), "[::1]:5433/d");
        assert!(!database.is_unverified());
        assert!(database.session_url().contains("@[::1]:5432/"));
    }

    fn database(url: &str) -> Database {
        Database::from_url(&Secret::new(url)).expect("a URL")
    }

    #[test]
    fn a_transaction_pooler_is_known_by_its_port_or_its_mark_and_the_session_url_named() {
        let pooler = database("postgres://postgres.ref:hunter2@pooler.example.test:6543/postgres");
        assert!(pooler.is_pooled());
        let text = pooler.keeps_sessions().expect_err("none").to_string();
        assert!(
            text.contains("postgres://postgres.ref:PASSWORD@pooler.example.test:5432/postgres"),
            "{text}"
        );
        assert!(!text.contains("hunter2"));
        assert!(database("postgres://u:p@h:5433/d?pgbouncer=true&sslmode=require").is_pooled());
        let session = database("postgres://u:p@h:5432/d?pgbouncer=false");
        assert!(!session.is_pooled() && session.keeps_sessions().is_ok());
    }

    #[test]
    fn a_host_of_supabases_is_verified_in_full_unless_the_url_says_otherwise() {
        for (url, unverified) in [
            ("postgres://u:p@db.ref.supabase.co:5432/postgres", false),
            (
                "postgres://u:p@aws-0-eu.pooler.supabase.com:6543/postgres",
                false,
            ),
            (
                "postgres://u:p@db.ref.supabase.co/postgres?sslmode=require",
                true,
            ),
            ("postgres://u:p@supabase.co.example.test/postgres", true),
        ] {
            assert_eq!(database(url).is_unverified(), unverified, "{url}");
        }
    }

    #[test]
    fn where_there_is_no_way_to_the_direct_host_the_session_pooler_is_named() {
        let database = database("postgres://postgres:hunter2@db.abcd.supabase.co:5432/postgres");
        let refused = std::io::Error::other("Network is unreachable (os error 101)");
        let text = database.advise(sqlx::Error::Io(refused).into()).to_string();
        assert!(
            text.contains(
                "postgres://postgres.abcd:PASSWORD@aws-0-REGION.pooler.supabase.com:5432/postgres"
            ) && !text.contains("hunter2"),
            "{text}"
        );
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
