//! The demo's embedded database: PostgreSQL in a data directory of its own.
//!
//! [`PostgresServer::start`] finds the programs on this machine (or downloads them, see [`super::download`]), creates the
//! cluster the first time, stops a server that an earlier demo left running, starts `postgres` as a child process and returns
//! when it accepts connections. Data are kept between runs; the superuser's password is random and stays in the data directory.
//!
//! It listens on 127.0.0.1 only, with `wal_level=logical`, and flushes to disk unless `durable` is off. None of its processes
//! outlives this one, not even after `kill -9`: see `server/postmaster.rs`. For development and tests only.

mod account;
mod binaries;
mod cluster;
mod postmaster;
#[cfg(all(test, target_os = "linux"))]
mod tests;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

use self::account::Account;
use self::binaries::{Binaries, OLDEST_MAJOR, Search};
pub use self::cluster::DATA_DIR_OF_ROOT;
use self::cluster::{Cluster, SUPERUSER};
use self::postmaster::Postmaster;
use super::download::{self, Source};
use crate::domain::secret::Secret;

/// How long the server may take to accept connections, recovery after a crash included.
const READY_TIMEOUT: Duration = Duration::from_mins(1);
const READY_CHECK_INTERVAL: Duration = Duration::from_millis(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A refused password counts only if the server is still running after this time; else another server took the port first.
const REFUSAL_GRACE: Duration = Duration::from_millis(500);
/// How often `postgres` is started if its port was taken at the last moment, or processes of a killed server are still running.
const LAUNCH_ATTEMPTS: u32 = 6;
const LAUNCH_PAUSE: Duration = Duration::from_millis(300);
/// Messages of such a start, which may succeed at the next attempt.
const RETRIABLE: [&str; 3] = [
    "could not create any TCP/IP sockets",
    "pre-existing shared memory block",
    "lock file \"postmaster.pid\" already exists",
];
/// The time limit of each stop signal before the next, harder one.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Paths of Unix sockets have at most 107 bytes (103 on macOS), `/.s.PGSQL.65535` included.
const SOCKET_DIR_BYTES_MAX: usize = 85;
/// PostgreSQL's limit on names, in bytes.
const NAME_BYTES_MAX: usize = 63;

/// What to start.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// The demo's data directory, created if necessary; see [`default_data_dir`].
    pub data_dir: PathBuf,
    /// The port on 127.0.0.1; if it is 0 or in use, any free port.
    pub port: u16,
    /// Whether a commit is flushed to disk before it is answered (`fsync`). Without it, a commit survives the end of every process,
    /// but not of the machine: enough for tests.
    pub durable: bool,
    /// Further settings of `postgres`, which override the defaults.
    pub settings: Vec<(String, String)>,
}

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions are ended and everything is written.
    Fast,
    /// Immediately; the next start recovers from the WAL.
    Immediate,
    /// `kill -9` of the postmaster: a crash.
    Kill,
}

/// The default data directory: `$XDG_DATA_HOME/visit-pacer/demo`, by default in
/// `~/.local/share`; [`DATA_DIR_OF_ROOT`] for root whose home is closed to others.
pub fn default_data_dir() -> anyhow::Result<PathBuf> {
    let path = |name| std::env::var_os(name).map(PathBuf::from);
    data_dir_under(path("XDG_DATA_HOME"), path("HOME"))
}

/// [`default_data_dir`] for these values of the environment; relative paths are ignored.
fn data_dir_under(xdg: Option<PathBuf>, home: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let own = xdg
        .filter(|path| path.is_absolute())
        .or_else(|| Some(home.filter(|path| path.is_absolute())?.join(".local/share")))
        .map(|data| data.join("visit-pacer/demo"));
    let cluster = own.as_ref().map(|own| own.join("cluster"));
    let account = Account::hand_over(&cluster.unwrap_or_default())?;
    match (own, account) {
        (Some(own), None) => Ok(own),
        (Some(own), Some(account)) if account.blocked_at(&own).is_none() => Ok(own),
        (_, Some(_)) => Ok(PathBuf::from(DATA_DIR_OF_ROOT)),
        (None, None) => bail!(
            "neither XDG_DATA_HOME nor HOME is an absolute path: name the directory for the demo's \
             data (--data-dir DIR)"
        ),
    }
}

/// A PostgreSQL server that lives as long as this value; dropping it stops it without waiting.
pub struct PostgresServer {
    // Declared before the cluster, so that the server is stopped before the directory is unlocked.
    postmaster: Option<Postmaster>,
    cluster: Cluster,
    binaries: Binaries,
    password: Secret,
    port: u16,
    durable: bool,
    settings: Vec<(String, String)>,
}

impl PostgresServer {
    /// Starts a server and waits until it accepts connections.
    pub async fn start(options: PostgresOptions) -> anyhow::Result<Self> {
        let cluster = Cluster::take(&options.data_dir)?;
        cluster.stop_stale().await?;
        let binaries = find_or_download(&cluster).await?;
        let password = cluster.password()?;
        cluster.init(&binaries, options.durable).await?;
        let mut server = Self {
            postmaster: None,
            cluster,
            binaries,
            password,
            port: options.port,
            durable: options.durable,
            settings: options.settings,
        };
        server.launch(true).await?;
        Ok(server)
    }

    /// Starts the stopped server again, on the same port and data.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        if self.is_running() {
            bail!("the server on port {} is running: stop it first", self.port);
        }
        self.launch(false).await
    }

    /// Stops the server and waits until all its processes have ended. If a signal does not stop it within ten seconds, the next
    /// harder one follows. Does nothing to a stopped server.
    pub async fn stop(&mut self, mode: StopMode) -> anyhow::Result<()> {
        let Some(postmaster) = &self.postmaster else {
            return Ok(());
        };
        let signals: &[Signal] = match mode {
            StopMode::Fast => &[Signal::SIGINT, Signal::SIGQUIT, Signal::SIGKILL],
            StopMode::Immediate => &[Signal::SIGQUIT, Signal::SIGKILL],
            StopMode::Kill => &[Signal::SIGKILL],
        };
        for &signal in signals {
            postmaster.signal(signal);
            if postmaster.gone_within(STOP_LIMIT).await {
                self.postmaster = None;
                return Ok(());
            }
            tracing::warn!(%signal, limit = ?STOP_LIMIT, "The server has not stopped");
        }
        bail!(
            "processes of the server in {} are running {STOP_LIMIT:?} after SIGKILL: see ps",
            self.cluster.dir().display()
        )
    }

    /// Whether any process of the server is running.
    pub fn is_running(&self) -> bool {
        self.postmaster.as_ref().is_some_and(Postmaster::is_running)
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The postmaster's process number, while it is running.
    pub fn pid(&self) -> Option<u32> {
        let running = self
            .postmaster
            .as_ref()
            .filter(|found| found.is_running())?;
        u32::try_from(running.pid().as_raw()).ok()
    }

    /// The demo's data directory, absolute.
    pub fn data_dir(&self) -> &Path {
        self.cluster.root()
    }

    /// The directory of PostgreSQL's programs (`psql`, `pg_dump` and the like beside `postgres`).
    pub fn binaries(&self) -> &Path {
        &self.binaries.dir
    }

    /// The server's version, such as `15.14`.
    pub fn version(&self) -> String {
        self.binaries.version.to_string()
    }

    /// The URL of `database` for the superuser, with the password: `postgres://postgres:…@127.0.0.1:PORT/database`.
    pub fn url(&self, database: &str) -> String {
        let mut url = url::Url::parse("postgres://127.0.0.1").expect("a fixed URL");
        url.set_username(SUPERUSER).expect("the URL has a host");
        url.set_password(Some(self.password.expose()))
            .expect("the URL has a host");
        url.set_port(Some(self.port)).expect("the URL has a host");
        url.path_segments_mut()
            .expect("the URL has a host")
            .push(database);
        url.into()
    }

    /// The same for sqlx, independent of `PG*` variables.
    pub fn connect_options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username(SUPERUSER)
            .password(self.password.expose())
            .database(database)
            .ssl_mode(PgSslMode::Disable)
            .disable_statement_logging()
    }

    /// Creates the empty database `name`: lower-case letters, digits and `_`.
    pub async fn create_database(&self, name: &str) -> anyhow::Result<()> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(plain) {
            bail!("{name:?} is no name for a database: expected 1 to 63 of a-z, 0-9 and _");
        }
        let mut connection = PgConnection::connect_with(&self.connect_options("postgres"))
            .await
            .context("connect to create a database")?;
        // Safe: the name was checked above.
        sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE \"{name}\"")))
            .execute(&mut connection)
            .await
            .with_context(|| format!("create database {name}"))?;
        connection
            .close()
            .await
            .context("close after creating a database")
    }

    /// Starts `postgres` and waits until it accepts connections. With `any_port` it may use, and then sets, another port than
    /// `self.port`.
    async fn launch(&mut self, any_port: bool) -> anyhow::Result<()> {
        for attempt in 1..=LAUNCH_ATTEMPTS {
            let port = match (any_port, attempt) {
                (true, 1) => free_port(self.port)?,
                (true, _) => free_port(0)?,
                (false, _) => self.port,
            };
            let postmaster = self.spawn(port)?;
            let asked = std::mem::replace(&mut self.port, port);
            let Err(reason) = self.ready(&postmaster).await else {
                self.postmaster = Some(postmaster);
                return Ok(());
            };
            self.port = asked;
            let ended = !postmaster.is_running();
            let log = postmaster::tail(&self.cluster.log());
            let retriable = ended && RETRIABLE.iter().any(|message| log.contains(message));
            if !retriable || attempt == LAUNCH_ATTEMPTS {
                bail!(
                    "{reason}; the end of {}:\n{log}",
                    self.cluster.log().display()
                );
            }
            tracing::debug!(attempt, port, %reason, "Starting the server again");
            tokio::time::sleep(LAUNCH_PAUSE).await;
        }
        unreachable!("the last attempt returns")
    }

    fn spawn(&self, port: u16) -> anyhow::Result<Postmaster> {
        let dir = self.cluster.dir();
        let mut postgres = self.cluster.command(self.binaries.dir.join("postgres"));
        postgres.arg("-D").arg(&dir);
        for (name, value) in self.settings(port, &dir) {
            postgres.arg("-c").arg(format!("{name}={value}"));
        }
        let shell = self.cluster.command("/bin/sh");
        Postmaster::spawn(
            postgres,
            shell,
            &self.cluster.lock_file(),
            &self.cluster.log(),
        )
    }

    /// The settings of every start. They are arguments, not a file, so that a cluster of an older release gets the settings of
    /// this one.
    fn settings(&self, port: u16, dir: &Path) -> Vec<(String, String)> {
        let socket_dir = dir.to_string_lossy();
        let socket_dir = if socket_dir.len() <= SOCKET_DIR_BYTES_MAX {
            socket_dir.into_owned()
        } else {
            String::new()
        };
        let port = port.to_string();
        let durable = if self.durable { "on" } else { "off" };
        [
            ("listen_addresses", "127.0.0.1"),
            ("port", &port),
            ("unix_socket_directories", &socket_dir),
            ("unix_socket_permissions", "0700"),
            ("wal_level", "logical"),
            ("max_wal_senders", "10"),
            ("max_replication_slots", "10"),
            // An abandoned slot must not fill the disk.
            ("max_slot_wal_keep_size", "1GB"),
            ("max_connections", "100"),
            ("shared_buffers", "128MB"),
            ("fsync", durable),
            ("full_page_writes", durable),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
            ("lc_messages", "C"),
            ("log_destination", "stderr"),
            ("logging_collector", "off"),
            ("log_checkpoints", "off"),
            ("log_line_prefix", "%m [%p] %q%d "),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .chain(self.settings.iter().cloned())
        .collect()
    }

    /// Waits until the server accepts the password, or fails with the reason.
    async fn ready(&self, postmaster: &Postmaster) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let options = self.connect_options("postgres");
        let mut last = String::from("no answer");
        while Instant::now() < deadline {
            if !postmaster.is_running() {
                bail!("PostgreSQL {} ended while starting", self.binaries.version);
            }
            let connect = PgConnection::connect_with(&options);
            match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
                Ok(Ok(connection)) => {
                    connection.close().await.ok();
                    return Ok(());
                }
                Ok(Err(error)) if is_refusal(&error) => {
                    if postmaster.gone_within(REFUSAL_GRACE).await {
                        bail!("PostgreSQL {} ended while starting", self.binaries.version);
                    }
                    return Err(error).with_context(|| {
                        format!(
                            "the server in {} does not know the password kept in {}: correct it, or \
                             move the cluster away to start with an empty one",
                            self.cluster.dir().display(),
                            self.cluster.root().join("password").display()
                        )
                    });
                }
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => last = format!("no answer within {CONNECT_TIMEOUT:?}"),
            }
            tokio::time::sleep(READY_CHECK_INTERVAL).await;
        }
        bail!("PostgreSQL accepted no connection within {READY_TIMEOUT:?} (last: {last})")
    }
}

/// Whether the server refused the login (class 28), which no retry changes.
fn is_refusal(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| code.starts_with("28"))
}

/// `wanted` if it is free on 127.0.0.1, else a free port.
fn free_port(wanted: u16) -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted))
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .context("find a free port on 127.0.0.1")?;
    Ok(listener.local_addr().context("read the free port")?.port())
}

/// The programs for `cluster`: of its major version if it exists, else the newest.
async fn find_or_download(cluster: &Cluster) -> anyhow::Result<Binaries> {
    let downloads = cluster
        .root()
        .parent()
        .unwrap_or_else(|| cluster.root())
        .to_path_buf();
    let search = Search::of_this_machine(&download::earlier(&downloads), cluster.account());
    let major = cluster.major()?;
    for reason in &search.skipped {
        tracing::info!("Skipped: {reason}");
    }
    if let Some(found) = search.best(major) {
        return Ok(found.clone());
    }
    let skipped = if search.skipped.is_empty() {
        String::new()
    } else {
        format!(" (skipped: {})", search.skipped.join("; "))
    };
    if let Some(major) = major
        && (search.best(None).is_some() || u64::from(major) != download::VERSION.major)
    {
        let newest = search.best(None).map_or_else(
            || "there is none here".to_owned(),
            |newest| format!("the newest here is PostgreSQL {}", newest.version),
        );
        bail!(
            "{} was made by PostgreSQL {major}, but {newest}{skipped}: install PostgreSQL {major}, or \
             move that directory away to start with an empty one",
            cluster.dir().display(),
        );
    }
    if search.named {
        bail!("PGBIN names no PostgreSQL of at least {OLDEST_MAJOR}{skipped}: correct or unset it");
    }
    let bin = download::fetch(&Source::default(), &downloads)
        .await
        .with_context(|| {
            format!(
                "found no PostgreSQL of at least {OLDEST_MAJOR} on this machine{skipped} and could \
             not download one: install it (Debian: apt install postgresql; macOS: brew install \
             postgresql), or set PGBIN to the directory of its programs"
            )
        })?;
    let mut downloaded = Search::among(&[bin], cluster.account());
    match downloaded.usable.pop() {
        Some(found) => Ok(found),
        None => bail!(
            "the downloaded PostgreSQL is unusable: {}",
            downloaded.skipped.join("; ")
        ),
    }
}
