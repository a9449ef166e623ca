//! The demo's Realtime server with the official clients: `@supabase/supabase-js` from npm and `realtime` from `PyPI`.
//!
//! Owns their processes. They run with their default options, so what they need to report `SUBSCRIBED` and to deliver rows is what
//! the server must do. Needs `node` and `python3` with `venv`; the first run installs the packages.

mod edge;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::{
    fs::File,
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    task::spawn_blocking,
    time::timeout,
};
use visit_pacer::{
    demo::{
        jwt,
        realtime_server::{RealtimeOptions, RealtimeServer},
    },
    domain::secret::Secret,
};

use crate::harness::server::database;

/// A limit for each line of a client.
const PATIENCE: Duration = Duration::from_secs(30);

/// An official client as a process. It ends with this value.
struct OfficialClient {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl OfficialClient {
    /// The client of this command, subscribed to the table.
    fn subscribe(command: &mut Command, url: &str, key: &str, table: &str) -> Self {
        let mut child = command
            .env("SUPABASE_URL", url)
            .env("SUPABASE_SERVICE_ROLE_KEY", key)
            .env("TABLE", table)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node or python3 is installed");
        let stdout = child.stdout.take().expect("stdout is piped");
        Self {
            child,
            lines: BufReader::new(stdout).lines(),
        }
    }

    /// The next line that has `key`.
    async fn next(&mut self, key: &str) -> Value {
        loop {
            let line = timeout(PATIENCE, self.lines.next_line()).await;
            let line = line.expect("a line in time").expect("stdout is read");
            let said: Value = serde_json::from_str(&line.expect("the client runs")).expect("JSON");
            if let Some(value) = said.get(key) {
                return value.clone();
            }
        }
    }

    async fn end(mut self) {
        drop(self.child.stdin.take());
        let status = timeout(PATIENCE, self.child.wait())
            .await
            .expect("the client ends in time");
        assert!(status.expect("a status").success());
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers")
}

/// `@supabase/supabase-js`.
async fn javascript() -> Command {
    let directory = directory();
    install(&directory).await;
    let mut client = Command::new("node");
    client.arg("subscribe.mjs").current_dir(directory);
    client
}

/// `realtime` for Python.
async fn python() -> Command {
    let directory = directory().join("python");
    let programs = python_environment("python-peer", &directory.join("requirements.txt")).await;
    let mut client = Command::new(programs.join("python"));
    client.arg(directory.join("subscribe.py"));
    client
}

/// The programs of these packages of `PyPI`, in a virtual environment below `target`.
pub async fn python_environment(name: &str, requirements: &Path) -> PathBuf {
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut create = Command::new("python3");
    create.args(["-m", "venv", "--clear"]).arg(&environment);
    let mut install = Command::new(environment.join("bin/python"));
    install
        .args(["-m", "pip", "install", "--quiet", "--no-deps", "-r"])
        .arg(requirements);
    let stamp = environment.join("installed.txt");
    installed(requirements, &stamp, &mut [create, install]).await;
    environment.join("bin")
}

/// Installs the packages of npm in the lock file of the folder.
pub async fn install(directory: &Path) {
    let mut install = Command::new("npm");
    install
        .args(["ci", "--no-audit", "--no-fund", "--loglevel=error"])
        .current_dir(directory);
    let stamp = directory.join("node_modules/.installed-lock.json");
    installed(&directory.join("package-lock.json"), &stamp, &mut [install]).await;
}

/// Runs the commands unless the stamp file has this list. One process at a time.
async fn installed(list: &Path, stamp: &Path, commands: &mut [Command]) {
    let lock = File::create(list.with_file_name(".install.lock"))
        .await
        .expect("a lock file");
    let lock = lock.into_std().await;
    let lock = spawn_blocking(move || lock.lock().map(|()| lock));
    let _lock = lock.await.expect("no panic").expect("a lock");
    let wanted = tokio::fs::read(list).await.expect("the list");
    let there = tokio::fs::read(stamp).await;
    if there.is_ok_and(|installed| installed == wanted) {
        return;
    }
    for command in commands {
        let status = command.stdout(Stdio::null()).status().await;
        let status = status.expect("it runs; install Node 20 or later with npm, and python3-venv");
        assert!(status.success(), "{command:?} failed");
    }
    tokio::fs::write(stamp, &wanted).await.expect("written");
}

#[tokio::test]
async fn the_official_clients_receive_the_same_events_for_the_same_edits() {
    let database_url = database().await;
    let mut postgres = PgConnection::connect(&database_url)
        .await
        .expect("a connection");
    for statement in [
        "create table public.peer_rows (id bigint primary key, rate numeric, note text)",
        "create publication supabase_realtime for table public.peer_rows",
    ] {
        sqlx::query(statement)
            .execute(&mut postgres)
            .await
            .expect(statement);
    }
    let secret = Secret::new("a secret of this test, at least 32 characters long");
    let listen = "127.0.0.1:0".parse().expect("an address");
    let mut server =
        RealtimeServer::start(RealtimeOptions::new(listen, database_url, secret.clone()))
            .await
            .expect("the server starts");
    let key = jwt::mint(&secret, "service_role", i64::from(u32::MAX));
    let url = server.supabase_url();

    let mut peers = Vec::new();
    for mut client in [javascript().await, python().await] {
        let mut peer = OfficialClient::subscribe(&mut client, &url, &key, "peer_rows");
        assert_eq!(peer.next("status").await, json!("SUBSCRIBED"));
        let system = peer.next("system").await;
        assert_eq!(system["message"], json!("Subscribed to PostgreSQL"));
        peers.push(peer);
    }

    for statement in [
        "insert into public.peer_rows values (1, 33.33, 'é')",
        "update public.peer_rows set rate = 12.5 where id = 1",
        "delete from public.peer_rows where id = 1",
    ] {
        sqlx::query(statement)
            .execute(&mut postgres)
            .await
            .expect(statement);
    }
    for mut peer in peers {
        let insert = peer.next("change").await;
        assert_eq!(insert["eventType"], json!("INSERT"));
        assert_eq!(insert["schema"], json!("public"));
        assert_eq!(insert["table"], json!("peer_rows"));
        assert_eq!(insert["errors"], Value::Null);
        assert_eq!(
            insert["new"],
            json!({ "id": 1, "rate": 33.33, "note": "é" })
        );
        let update = peer.next("change").await;
        assert_eq!(update["eventType"], json!("UPDATE"));
        assert_eq!(update["new"], json!({ "id": 1, "rate": 12.5, "note": "é" }));
        assert_eq!(update["old"], json!({ "id": 1 }));
        let delete = peer.next("change").await;
        assert_eq!(delete["eventType"], json!("DELETE"));
        assert_eq!(delete["old"], json!({ "id": 1 }));
        peer.end().await;
    }
    server.stop().await;
}
