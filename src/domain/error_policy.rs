//! What can fail, and what is done about it: one enum, one table ([`ErrorKind::policy`]).
//!
//! `postgres::failure` and `realtime::failure` recognise the kind of an error; this file alone decides what follows from it.
//! Invariant: nothing here ends a running agent; [`Policy::halts`] applies at its start only. Exactly the kinds that need
//! somebody to act have advice, and are retried slowly.

use std::fmt;
use std::time::Duration;

use super::limits::{DATABASE_RETRY_MAX, DATABASE_RETRY_MIN};
use super::retry::Retry;

/// How often a worker logs failures at most, other than that the database is unavailable.
pub const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What can fail.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ErrorKind {
    /// The connection to the database failed, or no answer came. The statement may have been executed.
    Lost,
    /// The database is shutting down or starting up, or ended the connection.
    ShuttingDown,
    /// The database is a standby or in read-only mode.
    ReadOnly,
    /// The disk of the database is full.
    DiskFull,
    /// The database is out of memory.
    Memory,
    /// The database or its pooler has no free connection.
    Connections,
    /// A statement timed out or was cancelled.
    Timeout,
    /// A lock timeout, a deadlock or a serialization failure.
    Locked,
    /// Invalid data or a constraint: one row is to blame.
    Data,
    /// A table, column, function or privilege is missing: for all rows, or in a trigger that one row fires.
    Schema,
    /// Wrong user, password or database name.
    Login,
    /// Prepared statements are lost, as behind a transaction pooler.
    Pooler,
    /// The TLS handshake failed.
    Tls,
    /// Any other error of the server, such as an internal one.
    Server,
    /// Realtime: the agent requested a rejoin or a new socket.
    Asked,
    /// Realtime: the socket could not be opened, broke or became silent.
    Network,
    /// Realtime: the server closed the channel, or did not answer a join.
    Channel,
    /// Realtime: one table of the join cannot be subscribed to, which fails all bindings of the join.
    Table,
    /// Realtime: no permission to read the private topic of broadcasts.
    Topic,
    /// Realtime: a quota of the project is exceeded.
    Quota,
    /// Realtime: the API key was rejected.
    Key,
    /// Realtime: the connection or its token expired; a new socket gets a new token.
    Expired,
    /// Realtime: the project is unknown or suspended, or Realtime is disabled.
    Project,
}

/// What is done after a batch failed. One that was not sent is always retried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recovery {
    /// It was certainly not executed: retry it.
    Retry,
    /// It may have been executed: read its rows before the next attempt.
    Reread,
    /// It was certainly not executed, and one row may be to blame: halve the batch until that row is alone and quarantined.
    Bisect,
    /// The same, but a row that is alone is to blame only if other batches succeed.
    BisectIfOthersPass,
    /// It was certainly not executed, and may be too large: halve the batch; no row is to blame.
    Shrink,
}

/// The delay before a retry: full jitter between `from` and an upper end that doubles up to `to`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backoff {
    /// The shortest delay.
    pub from: Duration,
    /// The longest delay.
    pub to: Duration,
}

impl Backoff {
    const fn new(from: Duration, to: Duration) -> Self {
        Self { from, to }
    }
}

/// A [`Retry`] that starts again when the back-off changes.
#[derive(Debug, Default)]
pub struct BackoffState {
    present: Option<(Backoff, Retry)>,
}

impl BackoffState {
    /// The delay before the next attempt; see [`Retry::next`].
    pub fn next(&mut self, backoff: Backoff, draw: u32) -> Duration {
        match &mut self.present {
            Some((present, retry)) if *present == backoff => retry.next(draw),
            present => {
                let (_, retry) = present.insert((backoff, Retry::new(backoff.from, backoff.to)));
                retry.next(draw)
            }
        }
    }

    /// An attempt succeeded.
    pub fn reset(&mut self) {
        self.present = None;
    }
}

/// What is done about a kind of error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// What failed, for people; empty if the message of the server says it.
    pub what: &'static str,
    /// What is done after a batch failed with it.
    pub recovery: Recovery,
    /// The delay before the next attempt.
    pub backoff: Backoff,
    /// The connection is closed.
    pub reconnect: bool,
    /// The database counts as unavailable until a statement of the same worker succeeds.
    pub away: bool,
    /// It ends an agent that is starting, with exit code 78: waiting would not help.
    pub halts: bool,
    /// What somebody can do about it.
    pub advice: Option<&'static str>,
}

/// For errors of the database that end by themselves.
const DATABASE: Backoff = Backoff::new(DATABASE_RETRY_MIN, DATABASE_RETRY_MAX);
/// For errors of the database that somebody has to fix.
const DATABASE_SLOW: Backoff = Backoff::new(DATABASE_RETRY_MIN, Duration::from_mins(1));
/// For failures of Realtime that end by themselves.
pub const REALTIME: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
/// For failures of Realtime that somebody has to fix, or that last as long as the window of a quota.
pub const REALTIME_SLOW: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_mins(5));

/// The database is unavailable for some time.
const AWAY: Policy = Policy {
    what: "",
    recovery: Recovery::Retry,
    backoff: DATABASE,
    reconnect: false,
    away: true,
    halts: false,
    advice: None,
};
/// The database is available; this statement failed.
const HERE: Policy = Policy {
    away: false,
    ..AWAY
};
/// The feed of changes ended; the database is not affected.
const FEED: Policy = Policy {
    backoff: REALTIME,
    ..HERE
};

impl ErrorKind {
    /// All kinds.
    pub const ALL: [Self; 23] = [
        Self::Lost,
        Self::ShuttingDown,
        Self::ReadOnly,
        Self::DiskFull,
        Self::Memory,
        Self::Connections,
        Self::Timeout,
        Self::Locked,
        Self::Data,
        Self::Schema,
        Self::Login,
        Self::Pooler,
        Self::Tls,
        Self::Server,
        Self::Asked,
        Self::Network,
        Self::Channel,
        Self::Table,
        Self::Topic,
        Self::Quota,
        Self::Key,
        Self::Expired,
        Self::Project,
    ];

    /// The label of metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::ShuttingDown => "shutting_down",
            Self::ReadOnly => "read_only",
            Self::DiskFull => "disk_full",
            Self::Memory => "memory",
            Self::Connections => "connections",
            Self::Timeout => "timeout",
            Self::Locked => "locked",
            Self::Data => "data",
            Self::Schema => "schema",
            Self::Login => "login",
            Self::Pooler => "pooler",
            Self::Tls => "tls",
            Self::Server => "server",
            Self::Asked => "realtime_asked",
            Self::Network => "realtime_network",
            Self::Channel => "realtime_channel",
            Self::Table => "realtime_table",
            Self::Topic => "realtime_topic",
            Self::Quota => "realtime_quota",
            Self::Key => "realtime_key",
            Self::Project => "realtime_project",
            Self::Expired => "realtime_expired",
        }
    }

    /// What is done about it.
    pub const fn policy(self) -> Policy {
        use Recovery::{Bisect, BisectIfOthersPass, Reread, Shrink};
        match self {
            Self::Lost => AWAY.is("database unreachable").reconnects().then(Reread),
            Self::ShuttingDown => (AWAY
                .is("the database is shutting down or starting up")
                .reconnects())
            .then(Reread),
            Self::ReadOnly => AWAY
                .is("the database is read-only")
                .reconnects()
                .advises(READ_ONLY),
            Self::DiskFull => AWAY.is("the database's disk is full").advises(DISK_FULL),
            Self::Memory => AWAY.is("the database is out of memory"),
            Self::Connections => AWAY.is("no free database connection").advises(CONNECTIONS),
            Self::Timeout => HERE.is("statement timed out").then(Shrink),
            Self::Locked => HERE.is("lock conflict with another transaction"),
            Self::Data => HERE.then(Bisect),
            Self::Schema => (AWAY.is("schema mismatch").reconnects().advises(SCHEMA))
                .then(BisectIfOthersPass)
                .halts(),
            Self::Login => (AWAY.is("login refused").reconnects().advises(LOGIN)).halts(),
            Self::Pooler => (AWAY
                .is("prepared statements are lost between transactions")
                .reconnects()
                .advises(POOLER))
            .halts(),
            Self::Tls => (AWAY.is("TLS connection failed").reconnects()).advises(TLS),
            Self::Server => AWAY.is("database error").reconnects(),
            Self::Asked => FEED.is("requested by the agent"),
            Self::Network => FEED.is("Realtime connection failed"),
            Self::Channel => FEED.is("Realtime channel failed"),
            Self::Table => FEED
                .is("Realtime cannot subscribe to a table")
                .advises(TABLE),
            Self::Topic => FEED.is("access to the private topic denied").advises(TOPIC),
            Self::Quota => FEED.is("Realtime quota exceeded").advises(QUOTA),
            Self::Key => FEED.is("API key rejected by Realtime").advises(KEY),
            Self::Expired => FEED.is("Realtime token or connection expired"),
            Self::Project => FEED
                .is("project not available in Realtime")
                .advises(PROJECT),
        }
    }

    /// What somebody can do about it.
    pub const fn advice(self) -> Option<&'static str> {
        self.policy().advice
    }

    /// Whether it is retried slowly, since it lasts until somebody acts.
    pub const fn is_slow(self) -> bool {
        self.policy().advice.is_some()
    }
}

impl Policy {
    const fn is(self, what: &'static str) -> Self {
        Self { what, ..self }
    }

    const fn then(self, recovery: Recovery) -> Self {
        Self { recovery, ..self }
    }

    const fn reconnects(self) -> Self {
        Self {
            reconnect: true,
            ..self
        }
    }

    const fn halts(self) -> Self {
        Self {
            halts: true,
            ..self
        }
    }

    /// Somebody has to act, so it is retried slowly.
    const fn advises(self, advice: &'static str) -> Self {
        let slow = if self.away {
            DATABASE_SLOW
        } else {
            REALTIME_SLOW
        };
        Self {
            backoff: slow,
            advice: Some(advice),
            ..self
        }
    }
}

const READ_ONLY: &str = "wait for the failover, or free disk space and disable read-only mode; \
    DATABASE_URL must point to the primary";
const DISK_FULL: &str = "enlarge the disk, or free space: visit-pacer purge, then VACUUM";
const CONNECTIONS: &str = "close other clients, or raise max_connections or the pooler's pool \
    size; an agent needs three connections";
const SCHEMA: &str = "visit-pacer doctor shows what is missing; visit-pacer migrate applies \
    pending migrations";
const LOGIN: &str = "check user, password and database in DATABASE_URL; through a pooler of Supabase's the user is \
    postgres.PROJECT_REF, or ROLE.PROJECT_REF";
const POOLER: &str = "if DATABASE_URL is a transaction pooler, use the session pooler or the direct \
    connection";
const TLS: &str = "check sslmode and sslrootcert in DATABASE_URL";
const TABLE: &str = "a table is missing, not published or not readable: run `visit-pacer migrate`, \
    which adds visit_distribution to the publication supabase_realtime and grants SELECT on it to \
    service_role";
const TOPIC: &str = "the key may not read the private topic visit_pacer: use the secret (or \
    service_role) key, or run deploy/supabase/broadcast.sql again, which grants it to visit_pacer";
const QUOTA: &str =
    "close other connections, or raise the limit in the project's Realtime settings";
const KEY: &str = "copy this project's secret (or service_role) key from Project Settings > API Keys into \
    SUPABASE_SECRET_KEY (or SUPABASE_SERVICE_ROLE_KEY)";
const PROJECT: &str = "check that SUPABASE_URL (or REALTIME_URL) is the address of the project, restore \
    the project if it is paused, and enable Realtime with public access to channels in its settings";

/// An operation that failed: its kind decides what is done about it, the other fields are for people.
///
/// It contains no secret: `postgres::failure` and `realtime::endpoint` remove URLs and keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// What it is.
    pub kind: ErrorKind,
    /// The message of the server or the driver.
    pub message: String,
    /// The other fields of an error of PostgreSQL; boxed, since results contain failures.
    pub server: Option<Box<ServerFields>>,
}

/// The fields of an error of PostgreSQL beside its message.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServerFields {
    /// SQLSTATE; a pooler's error may have none.
    pub sqlstate: String,
    /// DETAIL
    pub detail: Option<String>,
    /// HINT
    pub hint: Option<String>,
    /// CONTEXT: the functions and triggers in which it happened, innermost first, one a line.
    pub context: Option<String>,
    /// The schema of the object that it concerns.
    pub schema: Option<String>,
    /// The table that it concerns.
    pub table: Option<String>,
    /// The column that it concerns.
    pub column: Option<String>,
    /// The constraint or unique index that was violated.
    pub constraint: Option<String>,
}

/// Characters of a CONTEXT that are shown: the innermost trigger is first; the agent's own statements, which follow, are long.
const CONTEXT_SHOWN: usize = 240;

impl Failure {
    /// Without fields of a server.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            server: None,
        }
    }

    /// What is done about it.
    pub const fn policy(&self) -> Policy {
        self.kind.policy()
    }

    /// The SQLSTATE, if a PostgreSQL server (or a pooler) reported it.
    pub fn sqlstate(&self) -> Option<&str> {
        let server = self.server.as_ref()?;
        (!server.sqlstate.is_empty()).then_some(server.sqlstate.as_str())
    }

    /// The server's message with SQLSTATE, DETAIL and CONTEXT where it sent them, in one line.
    pub fn report(&self) -> String {
        let sqlstate = self.sqlstate().map(|code| format!(" (SQLSTATE {code})"));
        let mut parts = vec![format!("{}{}", self.message, sqlstate.unwrap_or_default())];
        if let Some(server) = &self.server {
            let detail = server.detail.as_ref();
            parts.extend(detail.map(|text| format!("DETAIL: {}", one_line(text, usize::MAX))));
            let context = server.context.as_ref();
            parts.extend(context.map(|text| format!("CONTEXT: {}", one_line(text, CONTEXT_SHOWN))));
        }
        parts.join("; ")
    }
}

fn one_line(text: &str, longest: usize) -> String {
    let line = text.trim().replace('\n', ", ");
    let cut: String = line.chars().take(longest).collect();
    if cut.len() < line.len() {
        cut + "…"
    } else {
        cut
    }
}

/// What failed, the server's report, and what to do.
impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = self.policy();
        if !policy.what.is_empty() {
            write!(formatter, "{}: ", policy.what)?;
        }
        formatter.write_str(&self.report())?;
        policy
            .advice
            .map_or(Ok(()), |advice| write!(formatter, "; {advice}"))
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_kinds_with_advice_are_retried_slowly() {
        for kind in ErrorKind::ALL {
            let policy = kind.policy();
            let slow = matches!(policy.backoff, DATABASE_SLOW | REALTIME_SLOW);
            assert_eq!(policy.advice.is_some(), slow, "{kind:?}");
            assert!(policy.backoff.from < policy.backoff.to);
        }
    }

    /// Recovery, upper end of the back-off in seconds, then: reconnect, away, halts.
    #[test]
    fn each_kind_has_its_row() {
        use Recovery::{Bisect, BisectIfOthersPass, Reread, Retry, Shrink};
        let rows = [
            (ErrorKind::Lost, Reread, 10, true, true, false),
            (ErrorKind::ShuttingDown, Reread, 10, true, true, false),
            (ErrorKind::ReadOnly, Retry, 60, true, true, false),
            (ErrorKind::DiskFull, Retry, 60, false, true, false),
            (ErrorKind::Memory, Retry, 10, false, true, false),
            (ErrorKind::Connections, Retry, 60, false, true, false),
            (ErrorKind::Timeout, Shrink, 10, false, false, false),
            (ErrorKind::Locked, Retry, 10, false, false, false),
            (ErrorKind::Data, Bisect, 10, false, false, false),
            (ErrorKind::Schema, BisectIfOthersPass, 60, true, true, true),
            (ErrorKind::Login, Retry, 60, true, true, true),
            (ErrorKind::Pooler, Retry, 60, true, true, true),
            (ErrorKind::Tls, Retry, 60, true, true, false),
            (ErrorKind::Server, Retry, 10, true, true, false),
            (ErrorKind::Asked, Retry, 30, false, false, false),
            (ErrorKind::Network, Retry, 30, false, false, false),
            (ErrorKind::Channel, Retry, 30, false, false, false),
            (ErrorKind::Table, Retry, 300, false, false, false),
            (ErrorKind::Topic, Retry, 300, false, false, false),
            (ErrorKind::Quota, Retry, 300, false, false, false),
            (ErrorKind::Key, Retry, 300, false, false, false),
            (ErrorKind::Expired, Retry, 30, false, false, false),
            (ErrorKind::Project, Retry, 300, false, false, false),
        ];
        assert_eq!(rows.map(|row| row.0), ErrorKind::ALL);
        for (kind, recovery, up_to, reconnect, away, halts) in rows {
            let policy = kind.policy();
            let found = (
                policy.recovery,
                policy.backoff.to.as_secs(),
                policy.reconnect,
                policy.away,
                policy.halts,
            );
            assert_eq!(found, (recovery, up_to, reconnect, away, halts), "{kind:?}");
        }
    }

    #[test]
    fn a_failure_says_what_it_is_and_what_to_do() {
        let mut full = Failure::new(ErrorKind::DiskFull, "could not extend file");
        assert_eq!(
            full.to_string(),
            "the database's disk is full: could not extend file; enlarge the disk, or free \
             space: visit-pacer purge, then VACUUM"
        );
        assert_eq!(full.sqlstate(), None);
        full.server = Some(Box::new(ServerFields {
            sqlstate: "53100".to_owned(),
            detail: Some("No space left on device.".to_owned()),
            context: Some(format!(
                "PL/pgSQL function audit() line 3\n{}",
                "x".repeat(300)
            )),
            ..ServerFields::default()
        }));
        assert_eq!(full.sqlstate(), Some("53100"));
        assert_eq!(
            full.report(),
            format!(
                "could not extend file (SQLSTATE 53100); DETAIL: No space left on device.; \
                 CONTEXT: PL/pgSQL function audit() line 3, {}…",
                "x".repeat(CONTEXT_SHOWN - 34)
            )
        );
    }
}
