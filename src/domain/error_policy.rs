//! What can fail, and what is done about it: one enum, one table ([`ErrorKind::policy`]).
//!
//! How a trouble is recognised is the adapters' business (by SQLSTATE in `postgres::failure`, by HTTP status and text in
//! `realtime::failure`). What is done about it is said here and nowhere else. Nothing here ends a running agent: a fault halts
//! it only at its start, before it has begun.
//!
//! **What is told.** That the database is away is told once for each trouble that keeps it so, and once that it is back; any other fault of a lane at most
//! once in [`TOLD_EVERY`]. What waits for a person has an advice, and only that is tried again slowly.

use std::fmt;
use std::time::Duration;

use super::limits::{DATABASE_RETRY_MAX, DATABASE_RETRY_MIN};
use super::retry::Retry;

/// Faults that do not make the database count as away are told by each lane this often at the most.
pub const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What can fail.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ErrorKind {
    /// The database: the connection is lost, or an answer took too long. What was sent may have been done.
    Lost,
    /// The database shuts down, starts up, or ended our connection.
    ShuttingDown,
    /// The database takes no writes: a standby, or switched to read-only.
    ReadOnly,
    /// Its disk is full.
    DiskFull,
    /// It is out of memory.
    Memory,
    /// It, or the pooler before it, takes no further connection.
    Connections,
    /// A statement ran into its timeout, or was cancelled.
    Timeout,
    /// A lock was not had in time; or a deadlock or a serialization failure chose us.
    Locked,
    /// The statement was refused for what is in it: a row's fault.
    Data,
    /// A table, column, function or right is missing: for all rows, or in a trigger of one row's.
    Schema,
    /// The login, or the database of that name, was refused.
    Login,
    /// Prepared statements get lost: a transaction pooler is in between.
    Pooler,
    /// No encrypted connection could be agreed on.
    Tls,
    /// Anything else that the server reports, internal errors above all.
    Server,
    /// Realtime: the agent asked for the end, for a rejoin or a new socket.
    Asked,
    /// Realtime: the socket could not be opened, broke, or fell silent.
    Network,
    /// Realtime: the channel was closed, a join not answered, or the server failed for a reason of its own.
    Channel,
    /// Realtime: a table of the join cannot be followed. One such table kills all bindings of the join.
    Table,
    /// Realtime: the private topic of broadcasts may not be read.
    Topic,
    /// Realtime: a quota of the project is used up.
    Quota,
    /// Realtime: the API key was refused.
    Key,
    /// Realtime: the time of a connection, or of its token, was over; a new socket is given a new one.
    Expired,
    /// Realtime: the project is unknown, suspended, or has Realtime switched off.
    Project,
}

/// What becomes of a statement that met a trouble after it was sent. One that was not sent is always tried again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recovery {
    /// It was certainly not done: the same again.
    Retry,
    /// Nobody knows: the rows are read before anything is tried again.
    Reread,
    /// It was certainly not done, and one row may be to blame: halved until that row is alone, and then set aside.
    Bisect,
    /// As before; but a row that is alone is to blame only if other batches get through.
    BisectIfOthersPass,
    /// It was certainly not done, and was too much perhaps: halved, and no row is to blame.
    Shrink,
}

/// How soon something is tried again: full jitter between `from` and an upper end that doubles up to `to`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backoff {
    /// The shortest wait.
    pub from: Duration,
    /// The longest.
    pub to: Duration,
}

impl Backoff {
    const fn new(from: Duration, to: Duration) -> Self {
        Self { from, to }
    }
}

/// A [`Retry`] that begins anew when the pace changes.
#[derive(Debug, Default)]
pub struct BackoffState {
    present: Option<(Backoff, Retry)>,
}

impl BackoffState {
    /// The wait before the next attempt; see [`Retry::next`].
    pub fn next(&mut self, backoff: Backoff, draw: u32) -> Duration {
        match &mut self.present {
            Some((present, retry)) if *present == backoff => retry.next(draw),
            present => {
                let (_, retry) = present.insert((backoff, Retry::new(backoff.from, backoff.to)));
                retry.next(draw)
            }
        }
    }

    /// Forgets the attempts made: it worked.
    pub fn reset(&mut self) {
        self.present = None;
    }
}

/// What is done about a trouble.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// The trouble in words, before those of the server; empty where these say it all.
    pub what: &'static str,
    /// What becomes of the statement.
    pub recovery: Recovery,
    /// When whoever met it tries again.
    pub backoff: Backoff,
    /// The connection is thrown away.
    pub reconnect: bool,
    /// The database counts as away until the lane that met it gets through again.
    pub away: bool,
    /// Ends an agent that meets it at its start, with exit code 78: waiting would mend nothing.
    pub halts: bool,
    /// What a person can do.
    pub advice: Option<&'static str>,
}

/// The database's, for what passes by itself.
const DATABASE: Backoff = Backoff::new(DATABASE_RETRY_MIN, DATABASE_RETRY_MAX);
/// The database's, for what waits for a person.
const DATABASE_SLOW: Backoff = Backoff::new(DATABASE_RETRY_MIN, Duration::from_mins(1));
/// Realtime's, for what passes by itself.
pub const REALTIME: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
/// Realtime's, for what waits for a person, or for a quota's window.
pub const REALTIME_SLOW: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_mins(5));

/// The database does not work for us, and comes back by itself.
const AWAY: Policy = Policy {
    what: "",
    recovery: Recovery::Retry,
    backoff: DATABASE,
    reconnect: false,
    away: true,
    halts: false,
    advice: None,
};
/// It works, but not on this statement.
const HERE: Policy = Policy {
    away: false,
    ..AWAY
};
/// The feed of changes ended; the database is not concerned.
const FEED: Policy = Policy {
    backoff: REALTIME,
    ..HERE
};

impl ErrorKind {
    /// All that there are.
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

    /// As a metric's label has it.
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

    /// The table: what is done about it.
    pub const fn policy(self) -> Policy {
        use Recovery::{Bisect, BisectIfOthersPass, Reread, Shrink};
        match self {
            Self::Lost => AWAY.is("the database does not answer").anew().then(Reread),
            Self::ShuttingDown => AWAY.is("the database stops or starts").anew().then(Reread),
            Self::ReadOnly => AWAY.is("the database is read-only").anew().waits(READ_ONLY),
            Self::DiskFull => AWAY.is("the database's disk is full").waits(DISK_FULL),
            Self::Memory => AWAY.is("the database is out of memory"),
            Self::Connections => AWAY.is("no connection is left").waits(CONNECTIONS),
            Self::Timeout => HERE.is("the statement took too long").then(Shrink),
            Self::Locked => HERE.is("somebody held a lock for too long"),
            Self::Data => HERE.then(Bisect),
            Self::Schema => (AWAY.is("the schema does not fit").anew().waits(SCHEMA))
                .then(BisectIfOthersPass)
                .halts(),
            Self::Login => (AWAY
                .is("the database refuses the login")
                .anew()
                .waits(LOGIN))
            .halts(),
            Self::Pooler => (AWAY.is("prepared statements get lost").anew().waits(POOLER)).halts(),
            Self::Tls => (AWAY.is("no encrypted connection to the database").anew()).waits(TLS),
            Self::Server => AWAY.is("the database reports an error of its own").anew(),
            Self::Asked => FEED.is("the agent asked for it"),
            Self::Network => FEED.is("the socket to Realtime ended"),
            Self::Channel => FEED.is("the channel ended"),
            Self::Table => FEED.is("Realtime cannot follow a table").waits(TABLE),
            Self::Topic => FEED.is("Realtime refuses the private topic").waits(TOPIC),
            Self::Quota => FEED.is("a Realtime quota is used up").waits(QUOTA),
            Self::Key => FEED.is("Realtime refuses the API key").waits(KEY),
            Self::Expired => FEED.is("the connection's time was over"),
            Self::Project => FEED
                .is("Realtime does not serve the project")
                .waits(PROJECT),
        }
    }

    /// What to do about it, for what waits for a person.
    pub const fn advice(self) -> Option<&'static str> {
        self.policy().advice
    }

    /// It takes a person, or a quota's window, to mend it, and is tried again slowly.
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

    /// Over a new connection.
    const fn anew(self) -> Self {
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

    /// Waits for a person.
    const fn waits(self, advice: &'static str) -> Self {
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

const READ_ONLY: &str = "wait for the fail-over to end, or make room on its disk and switch its \
    read-only mode off; DATABASE_URL must name the primary";
const DISK_FULL: &str = "enlarge the disk, or make room: visit-pacer purge, then vacuum";
const CONNECTIONS: &str = "close other clients, or raise max_connections or the pooler's pool \
    size; an agent needs three connections";
const SCHEMA: &str = "run: visit-pacer migrate";
const LOGIN: &str = "check user, password and database in DATABASE_URL; through a pooler of Supabase's the user is \
    postgres.PROJECT_REF, or ROLE.PROJECT_REF";
const POOLER: &str = "this is what a transaction pooler does; use the session pooler or the \
    direct connection in DATABASE_URL";
const TLS: &str = "check sslmode and sslrootcert in DATABASE_URL";
const TABLE: &str = "a table is missing, not published or not readable: run `visit-pacer migrate`, \
    which adds visit_distribution to the publication supabase_realtime and grants SELECT on it to \
    service_role";
const TOPIC: &str = "the key may not read the private topic visit_pacer: use the secret (or \
    service_role) key, or run deploy/supabase/broadcast.sql again, which grants it to visit_pacer";
const QUOTA: &str = "the project's Realtime quota is used up: close other connections, or raise \
    the limit in the Realtime settings of the project";
const KEY: &str = "Realtime does not accept the API key: copy the secret (or service_role) key of \
    this very project from its API settings into SUPABASE_SERVICE_ROLE_KEY or SUPABASE_SECRET_KEY";
const PROJECT: &str = "Realtime does not serve this project: check that SUPABASE_URL (or \
    REALTIME_URL) is the project's own address, restore the project if it is paused, and enable \
    Realtime with public access to channels in its settings";

/// An operation that failed: its kind decides what is done about it, the rest is for whoever reads of it.
///
/// No secret is in it: drivers and servers do not repeat a URL or a key, and `postgres::failure` drops what could.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// What it is.
    pub kind: ErrorKind,
    /// In the words of the server or the driver, without what [`ServerFields`] has.
    pub message: String,
    /// The other fields of a PostgreSQL error; none where no server answered. Boxed, since failures travel in results.
    pub server: Option<Box<ServerFields>>,
}

/// The fields of a PostgreSQL error beside its message.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServerFields {
    /// SQLSTATE; a pooler's error may have none.
    pub sqlstate: String,
    /// DETAIL
    pub detail: Option<String>,
    /// HINT
    pub hint: Option<String>,
    /// CONTEXT: the functions and triggers in which it happened, the innermost first, one a line.
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

/// Of a CONTEXT so many characters are shown: the innermost trigger comes first, and the text of the agent's own statements,
/// which follows, is long.
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
    fn what_waits_for_a_person_says_what_to_do_and_is_tried_slowly_and_nothing_else_is() {
        for kind in ErrorKind::ALL {
            let policy = kind.policy();
            let slow = matches!(policy.backoff, DATABASE_SLOW | REALTIME_SLOW);
            assert_eq!(policy.advice.is_some(), slow, "{kind:?}");
            assert!(policy.backoff.from < policy.backoff.to);
        }
    }

    /// Course, upper end of the pace in seconds, then: reconnect, away, halts.
    #[test]
    fn each_trouble_has_its_row() {
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
            "the database's disk is full: could not extend file; enlarge the disk, or make \
             room: visit-pacer purge, then vacuum"
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
