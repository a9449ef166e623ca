//! The PostgreSQL server of a test run: one for all tests, each of which gets a database of its own.
//!
//! It is the server of the demo, whose watchdog stops it when this process ends, however it ends. Its folder is then removed by a
//! shell that waits for the same.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use visit_pacer::demo::server::{PostgresOptions, PostgresServer};
use visit_pacer::demo::stack;

/// The migrated database that the tests copy.
const TEMPLATE: &str = "template_migrated";

/// What a new Supabase project has: its roles, and their default privileges in `public`.
const SUPABASE: &str = "
  do $$ begin
    if not exists (select from pg_roles where rolname = 'anon') then create role anon nologin; end if;
    if not exists (select from pg_roles where rolname = 'authenticated') then create role authenticated nologin; end if;
    if not exists (select from pg_roles where rolname = 'service_role') then create role service_role nologin bypassrls; end if;
  end $$;
  grant usage on schema public to anon, authenticated, service_role;
  alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
  alter default privileges in schema public grant all on functions to anon, authenticated, service_role;
  alter default privileges in schema public grant all on sequences to anon, authenticated, service_role;";

/// Waits until its input ends and no server runs in `$1`, then removes that folder.
const SWEEPER: &str = r#"
trap '' HUP INT TERM
while read -r _; do :; done
looks=0
while [ -e "$1/postgres/cluster/postmaster.pid" ] && [ "$looks" -lt 300 ]; do
    looks=$((looks + 1))
    sleep 0.1
done
rm -rf "$1"
"#;

/// A folder that is removed with this value.
pub struct Scratch(PathBuf);

impl Scratch {
    /// An empty one that every account may enter, as the server needs it.
    pub fn new() -> Self {
        let path =
            std::env::temp_dir().join(format!("visit-pacer-test-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&path).expect("a folder in the temporary directory");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a mode");
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A stopping server may still write to it; then it stays in the temporary directory.
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// The server that all tests share.
pub struct SharedServer {
    server: PostgresServer,
    made: AtomicU32,
    _sweeper: Child,
}

/// Starts it at the first call.
pub fn shared() -> &'static SharedServer {
    static SHARED: OnceLock<SharedServer> = OnceLock::new();
    SHARED.get_or_init(|| {
        let starting = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(SharedServer::start())
        });
        starting.join().expect("the server of the tests starts")
    })
}

impl SharedServer {
    async fn start() -> Self {
        let folder = std::mem::ManuallyDrop::new(Scratch::new());
        let sweeper = Command::new("sh")
            .args(["-c", SWEEPER, "visit-pacer-test-sweeper"])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh runs");
        let server = start(folder.path().join("postgres")).await;
        prepared(&server, TEMPLATE).await;
        Self {
            server,
            made: AtomicU32::new(0),
            _sweeper: sweeper,
        }
    }

    /// The URL of a new, empty database, as in Supabase.
    pub async fn empty(&self) -> String {
        like_supabase(&self.server, &self.next_name()).await
    }

    /// The URL of a new, migrated database.
    pub async fn migrated(&self) -> String {
        let name = self.next_name();
        let mut connection = PgConnection::connect(&self.server.url("postgres"))
            .await
            .expect("a connection");
        sqlx::raw_sql(AssertSqlSafe(format!(
            "create database {name} template {TEMPLATE}"
        )))
        .execute(&mut connection)
        .await
        .expect("a copy of the template");
        connection.close().await.expect("closed");
        self.server.url(&name)
    }

    /// The URL of one of its databases.
    pub fn url(&self, database: &str) -> String {
        self.server.url(database)
    }

    fn next_name(&self) -> String {
        format!("test_{}", self.made.fetch_add(1, Ordering::Relaxed))
    }
}

/// The URL of a new, empty database on the shared server.
pub async fn database() -> String {
    shared().empty().await
}

/// A server in `data_dir`, with room for many tests at once.
pub async fn start(data_dir: PathBuf) -> PostgresServer {
    let settings = [
        ("max_connections", "300"),
        ("max_wal_senders", "60"),
        ("max_replication_slots", "60"),
        // The order of commits decides whether a pause was a barrier.
        ("track_commit_timestamp", "on"),
    ];
    PostgresServer::start(PostgresOptions {
        data_dir,
        port: 0,
        durable: false,
        settings: settings
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
    })
    .await
    .expect("a PostgreSQL server starts")
}

/// A streaming standby of a server, in `data_dir`. It is read-only until it is promoted.
pub async fn standby(primary: &PostgresServer, data_dir: PathBuf) -> PostgresServer {
    std::fs::create_dir(&data_dir).expect("an empty folder");
    let cluster = primary.data_dir().join("cluster");
    let owner = std::fs::metadata(&cluster).expect("the primary");
    let own = |path: &Path| {
        std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))
            .expect("its new owner");
    };
    own(&data_dir);
    let password = data_dir.join("password");
    std::fs::copy(primary.data_dir().join("password"), &password).expect("the same password");
    own(&password);
    let copied = tokio::process::Command::new(primary.binaries().join("pg_basebackup"))
        .args(["--write-recovery-conf", "--checkpoint", "fast", "--no-sync"])
        .arg("--dbname")
        .arg(primary.url("postgres"))
        .arg("--pgdata")
        .arg(data_dir.join("cluster"))
        .current_dir(&data_dir)
        .uid(owner.uid())
        .gid(owner.gid())
        .output()
        .await
        .expect("pg_basebackup runs");
    assert!(
        copied.status.success(),
        "pg_basebackup: {}",
        String::from_utf8_lossy(&copied.stderr)
    );
    start(data_dir).await
}

/// Creates a database like that of a new Supabase project. Returns its URL.
async fn like_supabase(server: &PostgresServer, name: &str) -> String {
    server.create_database(name).await.expect("a database");
    let mut connection = PgConnection::connect(&server.url(name))
        .await
        .expect("a connection");
    sqlx::raw_sql(SUPABASE)
        .execute(&mut connection)
        .await
        .expect("roles and their privileges");
    connection.close().await.expect("closed");
    server.url(name)
}

/// The same, migrated.
pub async fn prepared(server: &PostgresServer, name: &str) -> String {
    let url = like_supabase(server, name).await;
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    stack::prepare(&mut connection).await.expect("the schema");
    connection.close().await.expect("closed");
    url
}
