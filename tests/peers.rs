//! The demo's Realtime server before the official client, `@supabase/supabase-js` from npm.
//!
//! Owns the Node process. The client runs with its default options, so whatever it needs of a
//! server in order to say `SUBSCRIBED` and to deliver rows is what the stand-in must do. Needs
//! `node` and, the first time, `npm ci`.

mod edge;

use std::{path::Path, process::Stdio, time::Duration};

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
        realtime_server::{Options, RealtimeServer},
    },
    domain::secret::Secret,
};

use crate::harness::server::database;

/// Each thing that the client says comes within this time.
const PATIENCE: Duration = Duration::from_secs(30);

/// The client as a process; it ends with this value.
struct Peer {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    async fn subscribe(url: &str, key: &str, table: &str) -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers");
        install(&directory).await;
        let mut child = Command::new("node")
            .arg("subscribe.mjs")
            .current_dir(&directory)
            .env("SUPABASE_URL", url)
            .env("SUPABASE_SERVICE_ROLE_KEY", key)
            .env("TABLE", table)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node runs; install Node 20 or later");
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
            let line = line
                .expect("the client says something in time")
                .expect("stdout is read");
            let said: Value =
                serde_json::from_str(&line.expect("the client goes on")).expect("JSON");
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
        assert!(status.expect("the client was there").success());
    }
}

/// Fetches the client unless the lock file's version is there; one process at a time.
async fn install(directory: &Path) {
    let lock = File::create(directory.join(".install.lock"))
        .await
        .expect("a lock file");
    let lock = lock.into_std().await;
    let lock = spawn_blocking(move || lock.lock().map(|()| lock));
    let _lock = lock.await.expect("no panic").expect("the lock is had");
    let wanted = tokio::fs::read(directory.join("package-lock.json"))
        .await
        .expect("a lock file");
    let stamp = directory.join("node_modules/.installed-lock.json");
    if tokio::fs::read(&stamp)
        .await
        .is_ok_and(|installed| installed == wanted)
    {
        return;
    }
    let status = Command::new("npm")
        .args(["ci", "--no-audit", "--no-fund", "--loglevel=error"])
        .current_dir(directory)
        .stdout(Stdio::null())
        .status()
        .await;
    assert!(
        status
            .expect("npm runs; install Node 20 or later")
            .success(),
        "npm ci failed"
    );
    tokio::fs::write(&stamp, &wanted)
        .await
        .expect("the stamp is written");
}

#[tokio::test]
async fn the_official_client_receives_inserts_updates_and_deletes() {
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
    let mut server = RealtimeServer::start(Options::new(listen, database_url, secret.clone()))
        .await
        .expect("the server starts");
    let key = jwt::mint(&secret, "service_role", i64::from(u32::MAX));

    let mut peer = Peer::subscribe(&server.supabase_url(), &key, "peer_rows").await;
    assert_eq!(peer.next("status").await, json!("SUBSCRIBED"));
    assert_eq!(
        peer.next("system").await["message"],
        json!("Subscribed to PostgreSQL")
    );

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
    server.stop().await;
}
