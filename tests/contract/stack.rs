//! The stack of the demo as a process: its settings file, the data that it keeps, and that no process is left.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use crate::harness::server::Scratch;
use crate::harness::{Agent, PATIENCE, find, wait_until};

/// Starting or stopping the demo with its PostgreSQL.
const DEMO_WITHIN: Duration = Duration::from_secs(60);

/// The settings in the file that is written when the demo is ready.
async fn settings(demo: &mut Agent, path: &Path) -> BTreeMap<String, String> {
    find("the demo is ready", DEMO_WITHIN, async || {
        demo.still_runs();
        let text = std::fs::read_to_string(path).ok()?;
        Some(
            text.lines()
                .filter_map(|line| line.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        )
    })
    .await
}

/// Live processes whose arguments or current folder are in `folder`.
fn processes_in(folder: &Path) -> usize {
    processes_of(folder, "").len()
}

/// … those with this word in their arguments, by process number.
fn processes_of(folder: &Path, word: &str) -> Vec<i32> {
    let text = folder.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for process in Path::new("/proc").read_dir().expect("Linux").flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let arguments = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments);
        let works_here = std::fs::read_link(process.path().join("cwd"))
            .is_ok_and(|cwd| cwd.starts_with(folder.join("data")));
        if (works_here || arguments.contains(&text)) && arguments.contains(word) {
            found.push(pid);
        }
    }
    found
}

fn demo(folder: &Scratch, more: &[&str]) -> Agent {
    let (data, file) = (folder.path().join("data"), folder.path().join("demo.env"));
    let (data, file) = (data.to_string_lossy(), file.to_string_lossy());
    let mut arguments = vec![
        "demo",
        "--data-dir",
        &data,
        "--env-file",
        &file,
        "--db-port",
        "0",
        "--realtime-port",
        "0",
    ];
    arguments.extend(["--listen", "127.0.0.1:0"]);
    arguments.extend(more);
    Agent::launch(folder, &arguments, &[])
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn the_stack_alone_writes_its_settings_to_a_private_file_and_ctrl_c_leaves_no_process() {
    let folder = Scratch::new();
    let file = folder.path().join("demo.env");
    let mut stack = demo(&folder, &["--empty", "--stack-only"]);
    let written = settings(&mut stack, &file).await;
    let names: Vec<&str> = written.keys().map(String::as_str).collect();
    let expected = [
        "DATABASE_URL",
        "REALTIME_URL",
        "SUPABASE_SERVICE_ROLE_KEY",
        "SUPABASE_URL",
        "VISIT_PACER_LISTEN",
    ];
    assert_eq!(names, expected);
    assert!(
        written["REALTIME_URL"].starts_with("ws://127.0.0.1:")
            && !written["REALTIME_URL"].contains('?')
    );
    assert!(written["SUPABASE_URL"].starts_with("http://127.0.0.1:"));
    let mode = std::fs::metadata(&file)
        .expect("the file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600, "it holds keys");
    let mut connection = PgConnection::connect(&written["DATABASE_URL"])
        .await
        .expect("a connection");
    let rows: i64 = sqlx::query_scalar("select (select count(*) from visit_distribution) + (select count(*) from visit_pacer_agents)")
        .fetch_one(&mut connection)
        .await
        .expect("a count");
    assert_eq!(rows, 0, "neither sample rows nor an agent");
    drop(connection);

    stack.signal(Signal::SIGINT);
    assert!(
        stack.ends_within(DEMO_WITHIN).await.success(),
        "Ctrl-C is a success:\n{}",
        stack.log()
    );
    wait_until("no process is left", PATIENCE, async || {
        processes_in(folder.path()) == 0
    })
    .await;
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn data_and_key_are_kept_after_kill_nine() {
    let folder = Scratch::new();
    let file = folder.path().join("demo.env");
    let mut stack = demo(&folder, &["--empty", "--stack-only"]);
    let first = settings(&mut stack, &file).await;
    let partner = Uuid::from_u128(rand::random());
    let mut connection = PgConnection::connect(&first["DATABASE_URL"])
        .await
        .expect("a connection");
    sqlx::query("insert into partners (id) values ($1)")
        .bind(partner)
        .execute(&mut connection)
        .await
        .expect("an insert");
    drop(connection);
    stack.kill();
    wait_until("no process is left after kill -9", PATIENCE, async || {
        processes_in(folder.path()) == 0
    })
    .await;

    std::fs::remove_file(&file).expect("the file");
    let mut stack = demo(&folder, &["--empty", "--stack-only"]);
    let again = settings(&mut stack, &file).await;
    assert_eq!(
        again["SUPABASE_SERVICE_ROLE_KEY"], first["SUPABASE_SERVICE_ROLE_KEY"],
        "the key is kept"
    );
    let mut connection = PgConnection::connect(&again["DATABASE_URL"])
        .await
        .expect("a connection");
    let kept: bool = sqlx::query_scalar("select exists (select from partners where id = $1)")
        .bind(partner)
        .fetch_one(&mut connection)
        .await
        .expect("an answer");
    assert!(kept, "the data are kept");
    drop(connection);
    stack.signal(Signal::SIGTERM);
    assert!(
        stack.ends_within(DEMO_WITHIN).await.success(),
        "{}",
        stack.log()
    );

    std::fs::remove_file(&file).expect("the file");
    let mut stack = demo(&folder, &["--empty", "--stack-only", "--for", "1s"]);
    settings(&mut stack, &file).await;
    assert!(
        stack.ends_within(DEMO_WITHIN).await.success(),
        "the end of --for is a success:\n{}",
        stack.log()
    );
}

#[tokio::test]
async fn the_demo_runs_the_two_examples_of_the_guide() {
    let folder = Scratch::new();
    let file = folder.path().join("demo.env");
    let mut demo = demo(&folder, &[]);
    let settings = settings(&mut demo, &file).await;
    let mut connection = PgConnection::connect(&settings["DATABASE_URL"])
        .await
        .expect("a connection");
    let rates: Vec<String> = sqlx::query_scalar(
        "select format('%s a %s', trim_scale(visits_per_unit), time_period) from visit_distribution order by total_visits desc",
    )
    .fetch_all(&mut connection)
    .await
    .expect("rows");
    assert_eq!(rates, ["6250 a hour", "33.33 a minute"]);
    wait_until("both have visits", PATIENCE, async || {
        let visited: i64 =
            sqlx::query_scalar("select count(distinct distribution_id) from store_visits")
                .fetch_one(&mut connection)
                .await
                .expect("a count");
        visited == 2
    })
    .await;
    drop(connection);
    demo.signal(Signal::SIGTERM);
    assert!(
        demo.ends_within(DEMO_WITHIN).await.success(),
        "{}",
        demo.log()
    );
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn a_server_without_its_watchdog_is_stopped_by_the_next_demo() {
    let folder = Scratch::new();
    let file = folder.path().join("demo.env");
    let mut stack = demo(&folder, &["--empty", "--stack-only"]);
    settings(&mut stack, &file).await;
    let watchdogs = processes_of(folder.path(), "visit-pacer-watchdog");
    assert_eq!(watchdogs.len(), 1);
    for watchdog in watchdogs {
        kill(Pid::from_raw(watchdog), Signal::SIGKILL).expect("it runs");
    }
    stack.kill();
    let left = processes_of(folder.path(), "postgres");
    assert!(
        !left.is_empty(),
        "without a watchdog the server keeps running"
    );

    std::fs::remove_file(&file).expect("the file");
    let mut stack = demo(&folder, &["--empty", "--stack-only"]);
    settings(&mut stack, &file).await;
    let now = processes_of(folder.path(), "postgres");
    assert!(
        left.iter().all(|old| !now.contains(old)),
        "the old one is stopped"
    );
    stack.signal(Signal::SIGTERM);
    assert!(
        stack.ends_within(DEMO_WITHIN).await.success(),
        "{}",
        stack.log()
    );
}
