//! Through a real pgbouncer: in transaction mode with fewer backends than the agents have connections, and in session mode
//! with the fifteen that a small project has.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tokio::net::TcpStream;

use crate::harness::server::Scratch;
use crate::harness::{PATIENCE, Place, long, wait_until};

/// Debian puts it where only root looks.
const PGBOUNCER: &str = "/usr/sbin/pgbouncer";
/// `nobody`: pgbouncer refuses to be root.
const NOBODY: u32 = 65_534;

/// A pgbouncer before a place's server; gone when the test is.
struct Pooler {
    process: Child,
    port: u16,
    _folder: Scratch,
}

impl Pooler {
    async fn before(place: &Place, mode: &str, backends: u32) -> Self {
        let folder = Scratch::new();
        let url = url::Url::parse(&place.url).expect("a URL");
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        drop(listener);
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={} user={} password='{}'\n\
             [pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\nauth_type=any\n\
             pool_mode={mode}\ndefault_pool_size={backends}\nmax_client_conn=200\nserver_reset_query=DISCARD ALL\n\
             ignore_startup_parameters=extra_float_digits\n",
            place.port(),
            url.username(),
            url.password().unwrap_or_default()
        );
        let path = folder.path().join("pgbouncer.ini");
        std::fs::write(&path, settings).expect("written");
        let mut command = Command::new(PGBOUNCER);
        command.arg("-q").arg(&path).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.current_dir(folder.path());
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let process = command
            .spawn()
            .expect("pgbouncer runs: apt-get install pgbouncer");
        wait_until("pgbouncer listens", PATIENCE, async || {
            TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        Self {
            process,
            port,
            _folder: folder,
        }
    }

    /// The place's URL, by way of this.
    fn url(&self, place: &Place) -> String {
        let mut url = url::Url::parse(&place.url).expect("a URL");
        url.set_port(Some(self.port)).expect("a host");
        url.into()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let pid = i32::try_from(self.process.id()).expect("a process number");
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        self.process.wait().ok();
    }
}

#[tokio::test]
async fn a_transaction_pooler_is_recognised_by_how_it_behaves_and_the_better_way_named() {
    let place = Place::new().await;
    let pooler = Pooler::before(&place, "transaction", 3).await;
    let agent = place.start_agent_at(&pooler.url(&place)).await;
    agent.ready().await;
    agent.says("is a transaction pooler").await;
    let row = place.insert(40, "20 a second", "null").await;
    place.becomes(row, "completed").await;
    assert_eq!(place.settles(row).await, 40);
}

#[tokio::test]
async fn through_a_transaction_pooler_the_pace_a_pause_and_an_edit_are_as_on_a_direct_connection() {
    let place = Place::new().await;
    let pooler = Pooler::before(&place, "transaction", 2).await;
    let row = place.insert(1_000_000, "40 a second", "null").await;
    let other = place.insert(1_000_000, "150 a minute", "null").await;
    let agent = place.start_agent_at(&pooler.url(&place)).await;
    agent.ready().await;
    place.has_stored(row, 120).await;
    assert_eq!(place.seconds_off_the_curve(row).await, Vec::<String>::new());
    place.set(row, "is_active = false").await;
    let paused: String = place.ask("select clock_timestamp()::text").await;
    place.agents_work_for(3).await;
    let after: i64 = place
        .ask(format!(
            "select count(*) from store_visits where distribution_id = '{row}' and created_at > '{paused}'"
        ))
        .await;
    assert_eq!(
        after, 0,
        "visits that were stored after the pause was committed"
    );
    place
        .set(row, "is_active = true, visits_per_unit = 80")
        .await;
    place.finishes(row).await;
    place.finishes(other).await;
}

#[tokio::test]
async fn through_a_transaction_pooler_two_agents_that_are_killed_store_each_visit_once() {
    let place = Place::new().await;
    let pooler = Pooler::before(&place, "transaction", 3).await;
    let rows = [
        place.insert(1_000_000, "200 a second", "null").await,
        place.insert(1_000_000, "30 a second", "null").await,
        place.insert(1_000_000, "150 a minute", "null").await,
    ];
    let url = pooler.url(&place);
    let mut agents = [
        place.start_agent_at(&url).await,
        place.start_agent_at(&url).await,
    ];
    for turn in 0..if long() { 40 } else { 6 } {
        let before = place.stored(rows[0]).await;
        place.has_stored(rows[0], before + 1).await;
        tokio::time::sleep(std::time::Duration::from_millis(rand::random_range(0..900))).await;
        let agent = &mut agents[turn % 2];
        agent.kill();
        *agent = place.start_agent_at(&url).await;
    }
    for row in rows {
        place.finishes(row).await;
    }
}

#[tokio::test]
async fn fifteen_backends_of_a_session_pooler_serve_two_agents_and_whoever_else_works_there() {
    let place = Place::new().await;
    let pooler = Pooler::before(&place, "session", 15).await;
    let url = pooler.url(&place);
    let agents = [
        place.start_agent_at(&url).await,
        place.start_agent_at(&url).await,
    ];
    for agent in &agents {
        agent.ready().await;
        assert!(!agent.log().contains("is a transaction pooler"));
    }
    let row = place.insert(100, "50 a second", "null").await;
    place.becomes(row, "completed").await;
    assert_eq!(place.settles(row).await, 100);
    let connections: i64 = place
        .ask(
            "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'visit-pacer'",
        )
        .await;
    assert!(
        (1..=6).contains(&connections),
        "{connections} connections of two agents"
    );
}

#[tokio::test]
async fn the_schema_is_not_brought_through_a_transaction_pooler_and_the_session_pooler_named() {
    let place = Place::new().await;
    let mut environment = place.environment();
    environment.retain(|(name, _)| name != "DATABASE_URL");
    let url = "postgres://postgres.ref:pass-word@127.0.0.1:6543/postgres".to_owned();
    environment.push(("DATABASE_URL".to_owned(), url));
    let outcome = crate::harness::agent::command(&place.folder, &["migrate"], &environment).await;
    assert_eq!(outcome.code, Some(78), "{}", outcome.said);
    assert!(
        outcome
            .said
            .contains("postgres://postgres.ref:PASSWORD@127.0.0.1:5432/postgres")
            && !outcome.said.contains("pass-word"),
        "{}",
        outcome.said
    );
}
