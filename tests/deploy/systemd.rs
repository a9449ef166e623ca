//! What the program tells systemd, heard on a socket of our own in systemd's place; and the unit, before systemd's own checks.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::net::UnixDatagram;
use tokio::process::Command;
use tokio::time::timeout;

use crate::harness::proxy::{Line, Proxy};
use crate::harness::server::Scratch;
use crate::harness::{Agent, PATIENCE, Place};

/// What the unit's `WatchdogSec=` becomes, here.
const WATCHDOG: Duration = Duration::from_secs(3);

/// Systemd's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn of(place: &Place) -> Self {
        let path = place.folder.path().join("notify");
        let path = path.to_str().expect("plain").to_owned();
        Self {
            socket: UnixDatagram::bind(&path).expect("a socket"),
            path,
        }
    }

    async fn starts(&self, place: &Place, url: &str) -> Agent {
        let mut environment = place.environment();
        environment.retain(|(name, _)| name != "DATABASE_URL");
        for (name, value) in [
            ("DATABASE_URL", url),
            ("NOTIFY_SOCKET", &self.path),
            ("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string()),
        ] {
            environment.push((name.to_owned(), value.to_owned()));
        }
        Agent::start(&place.folder, &["run"], &environment).await
    }

    /// The next message, within that time.
    async fn hears_within(&self, limit: Duration) -> Option<String> {
        let mut message = vec![0; 4096];
        let length = timeout(limit, self.socket.recv(&mut message)).await.ok()?;
        message.truncate(length.expect("a message"));
        Some(String::from_utf8(message).expect("UTF-8"))
    }

    /// Waits for a message that has all these; gives what came until then, that one last.
    async fn hears(&self, words: &[&str]) -> Vec<String> {
        let mut heard = Vec::new();
        let found = timeout(PATIENCE, async {
            loop {
                let message = self
                    .hears_within(PATIENCE)
                    .await
                    .expect("it says something");
                let found = words.iter().all(|word| message.contains(word));
                heard.push(message);
                if found {
                    return;
                }
            }
        })
        .await;
        assert!(found.is_ok(), "waited for {words:?}, and heard {heard:?}");
        heard
    }
}

#[tokio::test]
async fn systemd_hears_ready_after_the_first_full_sync_then_signs_of_life_while_the_loop_turns() {
    let place = Place::new().await;
    place.insert(1_000_000, "10 a second", "null").await;
    let systemd = Manager::of(&place);
    let mut agent = systemd.starts(&place, &place.url).await;

    let heard = systemd.hears(&["READY=1"]).await;
    assert!(agent.metric("visit_pacer_syncs_total").await >= Some(1.0));
    assert!(
        heard.iter().all(|word| !word.contains("STOPPING=1")),
        "{heard:?}"
    );
    for _ in 0..3 {
        let heard = systemd.hears(&["WATCHDOG=1", "STATUS="]).await;
        assert!(
            heard.iter().all(|word| !word.contains("READY=1")),
            "once is enough: {heard:?}"
        );
    }
    systemd.hears(&["WATCHDOG=1", "STATUS=1 of 1 rows"]).await;

    agent.signal(Signal::SIGSTOP);
    while systemd
        .hears_within(Duration::from_millis(100))
        .await
        .is_some()
    {}
    assert_eq!(
        systemd.hears_within(2 * WATCHDOG).await,
        None,
        "a frozen loop gives no sign of life"
    );
    agent.signal(Signal::SIGCONT);
    systemd.hears(&["WATCHDOG=1"]).await;

    assert!(agent.terminate().await.success());
    let heard = systemd.hears(&["STOPPING=1"]).await;
    assert_eq!(
        systemd.hears_within(Duration::ZERO).await,
        None,
        "{heard:?}"
    );
}

#[tokio::test]
async fn a_database_that_is_away_costs_no_restart_neither_at_the_start_nor_later() {
    let place = Place::new().await;
    place.insert(1_000_000, "10 a second", "null").await;
    let proxy = Proxy::to(place.port(), 1).await;
    proxy.admit(false);
    let systemd = Manager::of(&place);
    let _agent = systemd.starts(&place, &proxy.url(&place.url)).await;

    for _ in 0..2 {
        let heard = systemd
            .hears(&["EXTEND_TIMEOUT_USEC=", "STATUS=waiting for the database"])
            .await;
        assert!(
            heard.iter().all(|word| !word.contains("READY=1")),
            "{heard:?}"
        );
    }
    proxy.admit(true);
    systemd.hears(&["READY=1"]).await;

    proxy.line(Line::Dead);
    for _ in 0..3 {
        systemd
            .hears(&["WATCHDOG=1", "not ready: the database has been unavailable"])
            .await;
    }
}

/// What `systemd-analyze` says; fails where it fails.
async fn analysed(arguments: &[&str]) -> String {
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .output()
        .await
        .expect("systemd-analyze is there; install systemd");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

/// The unit, with the program of this run in the place of the installed one.
fn unit(folder: &Scratch) -> String {
    let unit = include_str!("../../deploy/systemd/visit-pacer.service");
    let installed = "ExecStart=/usr/local/bin/visit-pacer ";
    assert!(unit.contains(installed), "the unit runs the program");
    let ours = concat!("ExecStart=", env!("CARGO_BIN_EXE_visit-pacer"), " ");
    let path = folder.path().join("visit-pacer.service");
    std::fs::write(&path, unit.replace(installed, ours)).expect("written");
    path.to_str().expect("plain").to_owned()
}

#[tokio::test]
async fn systemd_finds_no_fault_in_the_unit() {
    let folder = Scratch::new();
    let said = analysed(&["verify", "--man=no", &unit(&folder)]).await;
    assert!(!said.contains("visit-pacer"), "{said}");
}

#[tokio::test]
async fn the_unit_exposes_no_more_than_its_documentation_says() {
    let folder = Scratch::new();
    let said = analysed(&["security", "--offline=true", "--no-pager", &unit(&folder)]).await;
    let verdict = said.lines().last().unwrap_or_default();
    let (_, score) = verdict
        .split_once("visit-pacer.service: ")
        .expect("a score");
    let score = score.split(' ').next().unwrap_or_default();
    let told = include_str!("../../deploy/README.md");
    let told = told
        .split_once("systemd-analyze security` rates it ")
        .expect("it is told")
        .1;
    let told = told.split(' ').next().unwrap_or_default();
    let [score, told] = [score, told].map(|text| text.parse::<f64>().expect("a number"));
    println!("systemd-analyze security: {score}");
    assert!(score <= told, "{score} instead of {told}; see {said}");
}
