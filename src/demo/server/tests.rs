//! The server with the PostgreSQL of this machine: it starts, answers, stops, and leaves nothing behind. Processes are looked up
//! in `/proc`.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use nix::unistd::{Pid, Uid, getpgid};

use super::*;

/// The last process of a stopped server must be gone by then.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// A data directory of one test, gone when the test is.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let id = std::process::id();
        let path = std::env::temp_dir().join(format!("vp-server-{name}-{id}"));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        Self(path.canonicalize().unwrap())
    }

    fn options(&self) -> PostgresOptions {
        PostgresOptions {
            data_dir: self.0.join("demo"),
            port: 0,
            durable: false,
            settings: Vec::new(),
        }
    }

    /// Every live process that belongs to a server of this directory: those at work in it, and
    /// those whose arguments name it.
    fn processes(&self) -> Vec<Pid> {
        let cluster = self.0.join("demo/cluster");
        let mut found = Vec::new();
        for process in Path::new("/proc").read_dir().unwrap().flatten() {
            let Ok(pid) = process.file_name().to_string_lossy().parse() else {
                continue;
            };
            let works_here = std::fs::read_link(process.path().join("cwd"))
                .is_ok_and(|directory| directory == cluster);
            if works_here || command_line(pid).contains(&*cluster.to_string_lossy()) {
                found.push(Pid::from_raw(pid));
            }
        }
        found
    }

    async fn no_process_is_left(&self) {
        let deadline = Instant::now() + GONE_WITHIN;
        while !self.processes().is_empty() {
            assert!(Instant::now() < deadline, "left: {:?}", self.processes());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn command_line(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn ask(server: &PostgresServer, question: &'static str) -> String {
    let options = server.connect_options("postgres");
    let mut connection = PgConnection::connect_with(&options).await.unwrap();
    let answer = sqlx::query_scalar(question)
        .fetch_one(&mut connection)
        .await;
    connection.close().await.unwrap();
    answer.unwrap()
}

async fn tell(server: &PostgresServer, order: &'static str) {
    let options = server.connect_options("postgres");
    let mut connection = PgConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql(order).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn refusal(options: PostgresOptions) -> String {
    match PostgresServer::start(options).await {
        Ok(_) => panic!("the server must not start"),
        Err(error) => format!("{error:#}"),
    }
}

#[tokio::test]
async fn started_it_answers_as_supabase_would_and_stopped_it_leaves_no_process() {
    let scratch = Scratch::new("answers");
    let mut options = scratch.options();
    options.durable = true;
    options.settings = vec![("max_connections".to_owned(), "50".to_owned())];
    let mut server = PostgresServer::start(options).await.unwrap();

    for (question, expected) in [
        ("SHOW wal_level", "logical"),
        ("SHOW server_encoding", "UTF8"),
        ("SHOW timezone", "UTC"),
        ("SHOW listen_addresses", "127.0.0.1"),
        ("SHOW fsync", "on"),
        ("SHOW data_checksums", "on"),
        ("SHOW password_encryption", "scram-sha-256"),
        ("SHOW max_connections", "50"),
        (
            "SELECT datcollate FROM pg_database WHERE datname = 'postgres'",
            "C",
        ),
        (
            "SELECT string_agg(DISTINCT auth_method, ',') FROM pg_hba_file_rules",
            "scram-sha-256",
        ),
    ] {
        assert_eq!(ask(&server, question).await, expected, "{question}");
    }
    let postmaster = Pid::from_raw(i32::try_from(server.pid().unwrap()).unwrap());
    assert_eq!(
        getpgid(Some(postmaster)),
        Ok(postmaster),
        "a terminal's Ctrl-C passes it by"
    );
    assert!(!scratch.processes().is_empty());

    server.stop(StopMode::Fast).await.unwrap();

    assert_eq!(scratch.processes(), []);
    assert!(!server.is_running());
    assert_eq!(server.pid(), None);
    server
        .stop(StopMode::Fast)
        .await
        .expect("a stopped server stays stopped");
}

#[tokio::test]
async fn its_url_opens_the_database_that_was_made_and_a_bad_name_is_refused() {
    let scratch = Scratch::new("database");
    let mut server = PostgresServer::start(scratch.options()).await.unwrap();
    server.create_database("case_1").await.unwrap();

    let mut connection = PgConnection::connect(&server.url("case_1")).await.unwrap();
    let name: String = sqlx::query_scalar("SELECT current_database()::text")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();

    assert_eq!(name, "case_1");
    let again = server.create_database("case_1").await.unwrap_err();
    assert!(format!("{again:#}").contains("already exists"), "{again:#}");
    let bad = server
        .create_database("a\"b")
        .await
        .unwrap_err()
        .to_string();
    assert!(bad.contains("expected 1 to 63 of a-z, 0-9 and _"), "{bad}");
    server.stop(StopMode::Immediate).await.unwrap();
}

#[tokio::test]
async fn data_survive_every_way_of_stopping_and_the_next_run() {
    let scratch = Scratch::new("data");
    let mut server = PostgresServer::start(scratch.options()).await.unwrap();
    let port = server.port();
    tell(&server, "CREATE TABLE kept AS SELECT 0 AS run; CHECKPOINT").await;

    for mode in [StopMode::Immediate, StopMode::Kill, StopMode::Fast] {
        tell(&server, "UPDATE kept SET run = run + 1").await;
        server.stop(mode).await.unwrap();
        assert_eq!(scratch.processes(), [], "after {mode:?}");
        server.start_again().await.unwrap();
        assert_eq!(server.port(), port, "after {mode:?}");
    }
    assert_eq!(ask(&server, "SELECT run::text FROM kept").await, "3");
    server.stop(StopMode::Fast).await.unwrap();
    drop(server);

    let mut server = PostgresServer::start(scratch.options()).await.unwrap();
    assert_eq!(ask(&server, "SELECT run::text FROM kept").await, "3");
    let password = scratch.0.join("demo/password").metadata().unwrap();
    assert_eq!(password.mode() & 0o777, 0o600);
    server.stop(StopMode::Fast).await.unwrap();
}

#[tokio::test]
async fn dropped_it_leaves_no_process() {
    let scratch = Scratch::new("dropped");
    let server = PostgresServer::start(scratch.options()).await.unwrap();
    assert!(!scratch.processes().is_empty());

    drop(server);

    scratch.no_process_is_left().await;
}

#[tokio::test]
async fn a_lock_file_that_names_another_program_is_forgotten() {
    let scratch = Scratch::new("reused");
    let mut server = PostgresServer::start(scratch.options()).await.unwrap();
    server.stop(StopMode::Fast).await.unwrap();
    drop(server);
    let lock_file = scratch.0.join("demo/cluster/postmaster.pid");
    std::fs::write(lock_file, format!("{}\n", std::process::id())).unwrap();

    let mut server = PostgresServer::start(scratch.options()).await.unwrap();

    server.stop(StopMode::Fast).await.unwrap();
}

#[tokio::test]
async fn one_data_directory_has_one_demo() {
    let scratch = Scratch::new("twice");
    let mut first = PostgresServer::start(scratch.options()).await.unwrap();

    let refused = refusal(scratch.options()).await;

    let us = std::process::id();
    assert!(
        refused.contains(&format!("is in use by another demo (process {us})")),
        "{refused}"
    );
    assert_eq!(ask(&first, "SELECT 'still there'").await, "still there");
    first.stop(StopMode::Fast).await.unwrap();
}

#[tokio::test]
async fn a_free_port_is_taken_as_asked_and_a_taken_one_replaced() {
    let scratch = Scratch::new("port");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let asked = taken.local_addr().unwrap().port();
    let mut options = scratch.options();
    options.port = asked;

    let mut server = PostgresServer::start(options.clone()).await.unwrap();
    assert_ne!(server.port(), asked);
    server.stop(StopMode::Fast).await.unwrap();
    drop((server, taken));

    let mut server = PostgresServer::start(options).await.unwrap();
    assert_eq!(server.port(), asked);
    server.stop(StopMode::Fast).await.unwrap();
}

#[tokio::test]
async fn a_cluster_of_another_major_version_is_refused_naming_both() {
    let scratch = Scratch::new("version");
    let cluster = scratch.0.join("demo/cluster");
    std::fs::create_dir_all(&cluster).unwrap();
    std::fs::write(cluster.join("PG_VERSION"), "9\n").unwrap();

    let refused = refusal(scratch.options()).await;

    assert!(
        refused.contains("was made by PostgreSQL 9, but the newest here is"),
        "{refused}"
    );
    assert!(
        refused.contains("install PostgreSQL 9, or move that directory away"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why_with_the_end_of_its_log() {
    let scratch = Scratch::new("settings");
    let mut options = scratch.options();
    options.settings = vec![("shared_buffers".to_owned(), "nonsense".to_owned())];

    let refused = refusal(options).await;

    assert!(refused.contains("ended while starting"), "{refused}");
    assert!(
        refused.contains("invalid value for parameter \"shared_buffers\""),
        "{refused}"
    );
    scratch.no_process_is_left().await;
}

#[tokio::test]
async fn a_password_that_does_not_fit_is_named_at_once() {
    let scratch = Scratch::new("password");
    let mut server = PostgresServer::start(scratch.options()).await.unwrap();
    server.stop(StopMode::Fast).await.unwrap();
    drop(server);
    std::fs::write(scratch.0.join("demo/password"), "another\n").unwrap();

    let refused = refusal(scratch.options()).await;

    assert!(
        refused.contains("does not know the password kept in"),
        "{refused}"
    );
    assert!(!refused.contains("another\n"), "{refused}");
    scratch.no_process_is_left().await;
}

#[tokio::test]
async fn root_hands_over_to_another_account_and_says_what_that_one_cannot_enter() {
    if !Uid::effective().is_root() {
        return;
    }
    let scratch = Scratch::new("root");
    let mut server = PostgresServer::start(scratch.options()).await.unwrap();
    let postmaster = PathBuf::from(format!("/proc/{}", server.pid().unwrap()));
    assert_ne!(postmaster.metadata().unwrap().uid(), 0);
    server.stop(StopMode::Fast).await.unwrap();

    let closed = scratch.0.join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
    let mut options = scratch.options();
    options.data_dir = closed.join("demo");
    let refused = refusal(options).await;
    assert!(
        refused.contains(&format!("may not enter {}", closed.display())),
        "{refused}"
    );
    assert!(refused.contains(DATA_DIR_OF_ROOT), "{refused}");

    let open = scratch.0.clone();
    let chosen = |home| data_dir_under(None, home).unwrap();
    assert_eq!(chosen(Some(closed)), PathBuf::from(DATA_DIR_OF_ROOT));
    assert_eq!(chosen(None), PathBuf::from(DATA_DIR_OF_ROOT));
    assert_eq!(
        chosen(Some(open.clone())),
        open.join(".local/share/visit-pacer/demo")
    );
    let xdg = data_dir_under(Some(open.join("data")), Some(open.clone())).unwrap();
    assert_eq!(xdg, open.join("data/visit-pacer/demo"));
}
