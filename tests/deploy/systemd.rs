//! The notifications to systemd, received on a socket of the test, and the unit, checked by systemd's own tools.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::net::UnixDatagram;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use crate::harness::proxy::{Line, Proxy};
use crate::harness::server::Scratch;
use crate::harness::{Agent, PATIENCE, Place};

/// What the unit's `WatchdogSec=` becomes, here.
const WATCHDOG: Duration = Duration::from_secs(3);

/// The end of `NOTIFY_SOCKET` that systemd has.
struct NotifySocket {
    socket: UnixDatagram,
    path: String,
}

impl NotifySocket {
    fn of(place: &Place) -> Self {
        let path = place.folder.path().join("notify");
        let path = path.to_str().expect("plain").to_owned();
        Self {
            socket: UnixDatagram::bind(&path).expect("a socket"),
            path,
        }
    }

    async fn start_agent(&self, place: &Place, url: &str) -> Agent {
        place
            .start_agent_with(&[
                ("DATABASE_URL", url),
                ("NOTIFY_SOCKET", &self.path),
                ("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string()),
            ])
            .await
    }

    async fn next(&self) -> String {
        let mut message = vec![0; 4096];
        let length = self.socket.recv(&mut message).await.expect("a message");
        message.truncate(length);
        String::from_utf8(message).expect("UTF-8")
    }

    /// Waits for a message with all these words. Returns the messages up to it.
    async fn receives(&self, words: &[&str]) -> Vec<String> {
        let mut received = Vec::new();
        let found = timeout(PATIENCE, async {
            loop {
                let message = self.next().await;
                let found = words.iter().all(|word| message.contains(word));
                received.push(message);
                if found {
                    return;
                }
            }
        })
        .await;
        assert!(found.is_ok(), "waited for {words:?}, received {received:?}");
        received
    }

    /// The messages that have been sent before this call.
    async fn pending(&self) -> Vec<String> {
        const MARK: &str = "the mark of this test";
        let sender = UnixDatagram::unbound().expect("a socket");
        sender
            .send_to(MARK.as_bytes(), &self.path)
            .await
            .expect("sent");
        let mut received = self.receives(&[MARK]).await;
        received.pop();
        received
    }
}

#[tokio::test]
async fn ready_is_sent_after_the_first_full_sync_and_watchdog_messages_while_the_loop_runs() {
    let place = Place::new().await;
    place.insert(1_000_000, "10 a second", "null").await;
    let systemd = NotifySocket::of(&place);
    let mut agent = systemd.start_agent(&place, &place.url).await;

    let heard = systemd.receives(&["READY=1"]).await;
    assert!(agent.metric("visit_pacer_syncs_total").await >= Some(1.0));
    assert!(
        heard.iter().all(|word| !word.contains("STOPPING=1")),
        "{heard:?}"
    );
    for _ in 0..3 {
        let heard = systemd.receives(&["WATCHDOG=1", "STATUS="]).await;
        assert!(
            heard.iter().all(|word| !word.contains("READY=1")),
            "once: {heard:?}"
        );
    }
    systemd
        .receives(&["WATCHDOG=1", "STATUS=1 of 1 distributions"])
        .await;

    agent.freeze().await;
    systemd.pending().await;
    sleep(2 * WATCHDOG).await;
    assert_eq!(systemd.pending().await, [""; 0], "it is frozen");
    agent.signal(Signal::SIGCONT);
    systemd.receives(&["WATCHDOG=1"]).await;

    assert!(agent.terminate().await.success());
    systemd.receives(&["STOPPING=1"]).await;
    assert_eq!(systemd.pending().await, [""; 0], "STOPPING=1 is the last");
}

#[tokio::test]
async fn an_unavailable_database_causes_no_restart_neither_at_the_start_nor_later() {
    let place = Place::new().await;
    place.insert(1_000_000, "10 a second", "null").await;
    let proxy = Proxy::to(place.port(), 1).await;
    proxy.admit(false);
    let systemd = NotifySocket::of(&place);
    let _agent = systemd.start_agent(&place, &proxy.url(&place.url)).await;

    for _ in 0..2 {
        let heard = systemd
            .receives(&["EXTEND_TIMEOUT_USEC=", "STATUS=waiting for the database"])
            .await;
        assert!(
            heard.iter().all(|word| !word.contains("READY=1")),
            "{heard:?}"
        );
    }
    proxy.admit(true);
    systemd.receives(&["READY=1"]).await;

    proxy.line(Line::Dead);
    for _ in 0..3 {
        systemd
            .receives(&["WATCHDOG=1", "not ready: the database has been unavailable"])
            .await;
    }
}

/// The output of `systemd-analyze`.
async fn analyze(arguments: &[&str]) -> String {
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .output()
        .await
        .expect("systemd-analyze is installed (Debian: apt install systemd)");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

/// The unit, with the program of this run instead of the installed one.
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
async fn systemd_finds_no_error_in_the_unit() {
    let folder = Scratch::new();
    let said = analyze(&["verify", "--man=no", &unit(&folder)]).await;
    assert!(!said.contains("visit-pacer"), "{said}");
}

#[tokio::test]
async fn the_unit_exposes_no_more_than_its_documentation_says() {
    let folder = Scratch::new();
    let said = analyze(&["security", "--offline=true", "--no-pager", &unit(&folder)]).await;
    let verdict = said.lines().last().unwrap_or_default();
    let (_, score) = verdict
        .split_once("visit-pacer.service: ")
        .expect("a score");
    let score = score.split(' ').next().unwrap_or_default();
    let documented = include_str!("../../deploy/README.md");
    let documented = documented
        .split_once("systemd-analyze security` rates it ")
        .expect("the README names it")
        .1;
    let documented = documented.split(' ').next().unwrap_or_default();
    let [score, documented] =
        [score, documented].map(|text| text.parse::<f64>().expect("a number"));
    println!("systemd-analyze security: {score}");
    assert!(
        score <= documented,
        "{score} instead of {documented}: {said}"
    );
}
