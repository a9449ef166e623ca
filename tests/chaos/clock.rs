//! Wrong and stepping clocks of the agent's host and of the database, by libfaketime: the rate is that of DB time.
//!
//! Monotonic clocks are not changed, as on a machine whose time is set.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, sleep};
use uuid::Uuid;
use visit_pacer::demo::server::StopMode;

use crate::harness::server::{self, Scratch};
use crate::harness::{Agent, PATIENCE, Place, long, wait_until};

/// Starts `"$@"` and ends it when this process closes its end of the pipe, however it ends.
const SUPERVISOR: &str = r#"
"$@" </dev/null & server=$!
while read -r _; do :; done
kill -QUIT "$server"
wait "$server"
"#;

/// A clock whose error is read from a file, for processes with its environment.
struct WrongClock {
    preload: PathBuf,
    file: PathBuf,
}

impl WrongClock {
    fn new(folder: &Scratch, name: &str) -> Self {
        let libraries = std::fs::read_dir("/usr/lib").expect("the system's libraries");
        let preload = libraries
            .flatten()
            .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
            .find(|path| path.exists())
            .expect(
                "libfaketimeMT.so.1 below /usr/lib/*/faketime; install it: apt install libfaketime",
            );
        let clock = Self {
            preload,
            file: folder.path().join(name),
        };
        clock.is_off_by(0);
        clock
    }

    /// Makes it wrong by that many seconds.
    fn is_off_by(&self, seconds: i64) {
        // A concurrent reader must see either value.
        let fresh = self.file.with_extension("new");
        std::fs::write(&fresh, format!("{seconds:+}")).expect("written");
        std::fs::rename(&fresh, &self.file).expect("renamed");
    }

    fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("LD_PRELOAD", self.preload.as_path()),
            ("FAKETIME_TIMESTAMP_FILE", &self.file),
            ("FAKETIME_NO_CACHE", Path::new("1")),
            ("FAKETIME_DONT_FAKE_MONOTONIC", Path::new("1")),
        ]
        .map(|(name, value)| (name, value.display().to_string()))
    }
}

/// How many seconds the agent's host is ahead of the database, by its newest log line with these words.
async fn ahead_by(place: &Place, agent: &Agent, words: &str) -> i64 {
    let log = agent.log();
    let line = log
        .lines()
        .rfind(|line| line.contains(words))
        .expect("the line");
    let timestamp = line.split_whitespace().next().expect("a time stamp");
    place
        .ask(format!(
            "select extract(epoch from '{timestamp}'::timestamptz - clock_timestamp())::bigint"
        ))
        .await
}

/// Pauses all distributions for a moment, so that the agent writes a line for each.
async fn pause_for_a_moment(place: &Place, agent: &Agent, times: usize) {
    for (paused, words) in [
        ("true", "Everything is paused"),
        ("false", "Pause by visit_pacer_control ended"),
    ] {
        place
            .edit(format!("update visit_pacer_control set paused = {paused}"))
            .await;
        wait_until("the agent logs it", PATIENCE, async || {
            agent.log().matches(words).count() >= times
        })
        .await;
    }
}

#[tokio::test]
async fn a_host_whose_clock_is_wrong_by_an_hour_and_steps_keeps_the_rate_of_db_time() {
    let place = Place::new().await;
    let clock = WrongClock::new(&place.folder, "clock");
    clock.is_off_by(3_600);
    let rows = [
        place.insert(1_000_000, "60 a second", "null").await,
        place.insert(1_000_000, "150 a minute", "null").await,
    ];
    let variables = clock.environment();
    let variables = variables
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let agent = place.start_agent_with(&variables).await;
    agent.ready().await;

    let steps = [
        (3_600, "an hour fast"),
        (3_000, "stepped back by ten minutes"),
        (-3_600, "an hour slow"),
    ];
    for (step, (seconds, what)) in steps.into_iter().enumerate() {
        clock.is_off_by(seconds);
        pause_for_a_moment(&place, &agent, step + 1).await;
        let ahead = ahead_by(&place, &agent, "Pause by visit_pacer_control ended").await;
        assert!(
            (ahead - seconds).abs() < 60,
            "the host's clock is off by {ahead} s"
        );
        let before = place.stored(rows[0]).await;
        place.agents_work_for(if long() { 30 } else { 4 }).await;
        place.has_stored(rows[0], before + 180).await;
        println!("host's clock {what}: {ahead} s, rate kept");
    }
    for row in rows {
        place.catches_up(row, 69).await;
        assert_eq!(place.seconds_off_the_curve(row).await, [""; 0]);
        place.finishes(row).await;
    }
}

/// A PostgreSQL server with a [`WrongClock`]. It ends with this value or with this process.
struct WrongServer {
    shell: Child,
    url: String,
}

impl WrongServer {
    /// In `folder`, with a cluster made as for any test.
    async fn start(folder: &Scratch, clock: &WrongClock) -> Self {
        let mut right = server::start(folder.path().join("postgres")).await;
        let url = right.url("postgres");
        right.stop(StopMode::Fast).await.expect("it stops");
        let cluster = right.data_dir().join("cluster");
        let owner = std::fs::metadata(&cluster).expect("the cluster");
        let mut command = Command::new("sh");
        command
            .args(["-c", SUPERVISOR, "wrong-server"])
            .arg(right.binaries().join("postgres"))
            .arg("-D")
            .arg(&cluster);
        for setting in [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={}", right.port()),
            "unix_socket_directories=".to_owned(),
            "wal_level=logical".to_owned(),
            "fsync=off".to_owned(),
            "timezone=UTC".to_owned(),
        ] {
            command.arg("-c").arg(setting);
        }
        if owner.uid() != nix::unistd::Uid::effective().as_raw() {
            command.uid(owner.uid()).gid(owner.gid());
        }
        let log = std::fs::File::create(folder.path().join("wrong-server.log")).expect("a log");
        let shell = command
            .envs(clock.environment())
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("sh starts");
        wait_until("the server accepts connections", PATIENCE, async || {
            PgConnection::connect(&url).await.is_ok()
        })
        .await;
        Self { shell, url }
    }
}

impl Drop for WrongServer {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        self.shell.wait().ok();
    }
}

/// The rate of a row a second, by how much faster it catches up, and its bucket.
const RATE: i64 = 2;
const CATCH_UP: i64 = 2;
const BUCKET: i64 = CATCH_UP * RATE + 1;

/// Watches a row for a while: between any two checks no more was stored than its bucket allows. Returns the visits stored. A delay
/// of this test only makes the spans longer.
async fn never_bursts(place: &Place, row: Uuid, span: Duration) -> i64 {
    let began = Instant::now();
    let mut seen = vec![(Instant::now(), place.stored(row).await)];
    while began.elapsed() < span {
        sleep(Duration::from_millis(200)).await;
        let (asked, stored) = (Instant::now(), place.stored(row).await);
        for (then, before) in &seen {
            // Whole seconds, rounded up. The second bucket is that of a batch which was late.
            let seconds = i64::try_from(then.elapsed().as_secs()).expect("seconds") + 2;
            let most = CATCH_UP * RATE * seconds + 2 * BUCKET;
            assert!(
                stored - before <= most,
                "{} visits within {seconds} s",
                stored - before
            );
        }
        seen.push((asked, stored));
    }
    seen.last().map_or(0, |(_, stored)| *stored) - seen.first().map_or(0, |(_, stored)| *stored)
}

#[tokio::test]
async fn when_the_clock_of_the_database_steps_the_rate_follows_without_a_burst_and_no_visit_is_in_the_future()
 {
    let folder = Scratch::new();
    let clock = WrongClock::new(&folder, "clock");
    let server = WrongServer::start(&folder, &clock).await;
    let place = Place::over(server.url.clone()).await;
    let row = place
        .insert(1_000_000, &format!("{RATE} a second"), "null")
        .await;
    let agent = place.agent().await;
    place.has_stored(row, 10).await;

    clock.is_off_by(-600);
    agent.says("Database clock stepped").await;
    place.agents_work_for(2).await;
    let before = place.stored(row).await;
    let beside = place
        .insert(1_000_000, &format!("{RATE} a second"), "null")
        .await;
    place.has_stored(beside, 15).await;
    assert_eq!(
        place.stored(row).await,
        before,
        "its curve has not reached what is stored"
    );
    println!("ten minutes back: the old row waits for its curve, a new one is stored on schedule");

    clock.is_off_by(0);
    place.has_stored(row, before + 15).await;
    place.has_stored(beside, 60).await;

    clock.is_off_by(600);
    let visits = never_bursts(
        &place,
        row,
        Duration::from_secs(if long() { 60 } else { 12 }),
    )
    .await;
    assert!(visits > RATE, "{visits} visits: it makes no progress");
    println!("ten minutes forward: {visits} visits while {RATE} a second catch up");

    place
        .edit("update visit_distribution set catch_up = 60")
        .await;
    for row in [row, beside] {
        place.catches_up(row, 2 * RATE - 1).await;
        place.finishes(row).await;
    }
    drop(agent);
    drop(place);
    drop(server);
}
