//! What systemd is told of a unit of `Type=notify`; see `sd_notify(3)`. Without systemd nobody listens, and nothing is sent.
//!
//! - `READY=1` once, when the table has been read in full. Until then the start is granted more time with each look at a
//!   database that is away, and with each turn of the loop.
//! - `WATCHDOG=1` only after [`Snapshot::progressed_at`] has moved on: see [`super::progress`] for what progress is. A frozen
//!   loop publishes no snapshot, so it says nothing.
//! - `STATUS=` what `/readyz` says, or how the rows stand; `STOPPING=1` as soon as a stop is asked for.
//!
//! It has no timer of its own: each word follows from something that happened elsewhere.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::clock::Clock;
use super::snapshot::Snapshot;
use crate::domain::schedule::Status;
use crate::domain::time::Mono;

/// How often the state is told where no watchdog waits for it.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// A watchdog's time has room for so many words: one that comes late does no harm.
const WORDS_PER_WATCHDOG: u32 = 3;
/// Longer than one look at a database that swallows everything, with the wait after it.
const START_GOES_ON: Duration = Duration::from_secs(180);

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Word {
    kind: Kind,
    status: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// The start takes longer, and goes on.
    Starting,
    /// From now on it does its work.
    Ready,
    /// It got on with its work.
    Progressed,
    /// It did not: the watchdog is to find out.
    Hangs,
    /// A stop was asked for.
    Stopping,
}

impl Word {
    async fn send(self) {
        // The socket's queue may be full, and the send then waits.
        let sent = spawn_blocking(move || {
            let status = NotifyState::Status(&self.status);
            match self.kind {
                Kind::Starting => {
                    let micros = u32::try_from(START_GOES_ON.as_micros()).unwrap_or(u32::MAX);
                    sd_notify::notify(&[NotifyState::ExtendTimeoutUsec(micros), status])
                }
                Kind::Ready => {
                    sd_notify::notify(&[NotifyState::Ready, NotifyState::Watchdog, status])
                }
                Kind::Progressed => sd_notify::notify(&[NotifyState::Watchdog, status]),
                Kind::Hangs => sd_notify::notify(&[status]),
                Kind::Stopping => sd_notify::notify(&[NotifyState::Stopping, status]),
            }
        });
        if let Ok(Err(error)) = sent.await {
            warn!(%error, "systemd cannot be told; check that NOTIFY_SOCKET names a socket that this user may write to");
        }
    }
}

/// Tells systemd until it is asked to stop; says that too.
pub async fn run(
    mut waiting_for: watch::Receiver<String>,
    mut seen: watch::Receiver<Snapshot>,
    clock: Clock,
    shutdown: CancellationToken,
) {
    let every =
        sd_notify::watchdog_enabled().map_or(TELL_EVERY, |watchdog| watchdog / WORDS_PER_WATCHDOG);
    let mut teller = Teller::every(every);
    loop {
        let word = tokio::select! {
            () = shutdown.cancelled() => break,
            Ok(()) = waiting_for.changed() => Some(Word {
                kind: Kind::Starting,
                status: waiting_for.borrow_and_update().clone(),
            }),
            Ok(()) = seen.changed() => teller.hear(&seen.borrow_and_update(), clock.now()),
            else => break,
        };
        if let Some(word) = word {
            word.send().await;
        }
    }
    let stopping = Word {
        kind: Kind::Stopping,
        status: "stopping: the batch in hand is finished first".to_owned(),
    };
    stopping.send().await;
}

/// What has been told.
struct Teller {
    every: Duration,
    ready: bool,
    told_at: Option<Mono>,
    progressed_at: Option<Mono>,
}

impl Teller {
    fn every(every: Duration) -> Self {
        Self {
            every,
            ready: false,
            told_at: None,
            progressed_at: None,
        }
    }

    /// What is to be told of a new snapshot.
    fn hear(&mut self, snapshot: &Snapshot, now: Mono) -> Option<Word> {
        let becomes_ready = !self.ready && snapshot.health.has_begun();
        let too_early = self.told_at.is_some_and(|at| now.since(at) < self.every);
        if too_early && !becomes_ready {
            return None;
        }
        let progressed = snapshot.progressed_at > self.progressed_at;
        let kind = match (progressed, self.ready, becomes_ready) {
            (false, _, _) => Kind::Hangs,
            (true, _, true) => Kind::Ready,
            (true, true, false) => Kind::Progressed,
            (true, false, false) => Kind::Starting,
        };
        self.ready |= kind == Kind::Ready;
        self.told_at = Some(now);
        self.progressed_at = snapshot.progressed_at;
        Some(Word {
            kind,
            status: status(snapshot, now),
        })
    }
}

/// For `systemctl status`: one line.
fn status(snapshot: &Snapshot, now: Mono) -> String {
    let mut words = format!(
        "{} of {} rows are this agent's: {} active, {} behind, {} owed; Realtime: {}",
        snapshot.rows_owned,
        snapshot.rows,
        snapshot.rows_that_are(Status::Active),
        snapshot.rows_that_are(Status::Behind),
        snapshot.status_summary.backlog,
        snapshot.realtime,
    );
    let unready = snapshot.unready(now);
    if !unready.is_empty() {
        words = format!("not ready: {}; {words}", unready.join("; "));
    }
    // A line feed would begin another assignment.
    words.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::agent::Health;

    fn at(seconds: i64) -> Mono {
        Mono::from_micros(seconds * 1_000_000)
    }

    fn snapshot(synced: bool, progressed: i64) -> Snapshot {
        Snapshot {
            progressed_at: Some(at(progressed)),
            health: Health {
                synced_at: synced.then(|| at(1)),
                control_known: synced,
                ..Health::default()
            },
            realtime: "live".to_owned(),
            ..Snapshot::default()
        }
    }

    fn told(teller: &mut Teller, snapshot: &Snapshot, now: i64) -> Option<Kind> {
        teller.hear(snapshot, at(now)).map(|word| word.kind)
    }

    #[test]
    fn ready_is_told_once_at_the_first_full_sync_and_progress_no_more_often_than_asked() {
        let mut teller = Teller::every(Duration::from_secs(10));
        assert_eq!(
            told(&mut teller, &snapshot(false, 0), 0),
            Some(Kind::Starting)
        );
        assert_eq!(told(&mut teller, &snapshot(false, 1), 1), None);
        assert_eq!(told(&mut teller, &snapshot(true, 2), 2), Some(Kind::Ready));
        assert_eq!(told(&mut teller, &snapshot(true, 11), 11), None);
        assert_eq!(
            told(&mut teller, &snapshot(true, 12), 12),
            Some(Kind::Progressed)
        );
        assert_eq!(
            told(&mut teller, &snapshot(false, 22), 22),
            Some(Kind::Progressed),
            "ready is never taken back"
        );
    }

    #[test]
    fn a_loop_that_turns_without_getting_on_is_no_sign_of_life() {
        let mut teller = Teller::every(Duration::from_secs(10));
        assert_eq!(told(&mut teller, &snapshot(true, 2), 2), Some(Kind::Ready));
        for now in [12, 22, 32] {
            assert_eq!(
                told(&mut teller, &snapshot(true, 2), now),
                Some(Kind::Hangs)
            );
        }
        assert_eq!(
            told(&mut teller, &snapshot(true, 42), 42),
            Some(Kind::Progressed)
        );
    }

    #[test]
    fn a_status_is_one_line_whatever_a_database_said() {
        let mut snapshot = snapshot(true, 2);
        snapshot.realtime = "refused:\nSTOPPING=1".to_owned();
        let line = status(&snapshot, at(2));
        assert!(!line.contains('\n') && line.contains("refused:"), "{line}");
    }
}
