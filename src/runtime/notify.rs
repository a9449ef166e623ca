//! Messages to systemd for a unit of `Type=notify`; see `sd_notify(3)`. Without systemd nothing is sent.
//!
//! - `READY=1` once, after the first full sync. Until then each attempt to reach the database, and each snapshot, extends the
//!   start timeout.
//! - `WATCHDOG=1` only after [`Snapshot::progressed_at`] has moved: see [`super::watchdog`]. A frozen loop publishes no snapshot, so
//!   nothing is sent.
//! - `STATUS=` the answer of `/readyz`, or how many distributions have which status; `STOPPING=1` when a stop is requested.
//!
//! It has no timer: each message follows from an event elsewhere.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::clock::Clock;
use super::snapshot::Snapshot;
use crate::domain::event::Event;
use crate::domain::schedule::Status;
use crate::domain::time::Mono;

/// How often the status is sent where no watchdog waits for it.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// Messages in the time of a watchdog: one that comes late does no harm.
const MESSAGES_PER_WATCHDOG: u32 = 3;
/// Longer than one attempt to reach a database that swallows everything, with the wait after it.
const START_TIMEOUT: Duration = Duration::from_secs(180);

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Message {
    state: UnitState,
    status: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum UnitState {
    /// The start takes longer, and continues.
    Starting,
    /// The agent does its work from now on.
    Ready,
    /// It made progress.
    Progressed,
    /// It did not: the watchdog expires.
    Stuck,
    /// A stop was requested.
    Stopping,
}

impl Message {
    async fn send(self) {
        // The socket's queue may be full; the send waits then.
        let sent = spawn_blocking(move || {
            let status = NotifyState::Status(&self.status);
            match self.state {
                UnitState::Starting => {
                    let micros = u32::try_from(START_TIMEOUT.as_micros()).unwrap_or(u32::MAX);
                    sd_notify::notify(&[NotifyState::ExtendTimeoutUsec(micros), status])
                }
                UnitState::Ready => {
                    sd_notify::notify(&[NotifyState::Ready, NotifyState::Watchdog, status])
                }
                UnitState::Progressed => sd_notify::notify(&[NotifyState::Watchdog, status]),
                UnitState::Stuck => sd_notify::notify(&[status]),
                UnitState::Stopping => sd_notify::notify(&[NotifyState::Stopping, status]),
            }
        });
        if let Ok(Err(error)) = sent.await {
            warn!(%error, "{}", Event::SYSTEMD_UNREACHABLE.message);
        }
    }
}

/// Notifies systemd until a stop is requested, and of the stop.
pub async fn run(
    mut waiting_for: watch::Receiver<String>,
    mut snapshots: watch::Receiver<Snapshot>,
    clock: Clock,
    shutdown: CancellationToken,
) {
    let every = sd_notify::watchdog_enabled()
        .map_or(STATUS_EVERY, |watchdog| watchdog / MESSAGES_PER_WATCHDOG);
    let mut notifier = Notifier::every(every);
    loop {
        let message = tokio::select! {
            () = shutdown.cancelled() => break,
            Ok(()) = waiting_for.changed() => Some(Message {
                state: UnitState::Starting,
                status: waiting_for.borrow_and_update().clone(),
            }),
            Ok(()) = snapshots.changed() => {
                notifier.message(&snapshots.borrow_and_update(), clock.now())
            }
            else => break,
        };
        if let Some(message) = message {
            message.send().await;
        }
    }
    let stopping = Message {
        state: UnitState::Stopping,
        status: "stopping after the batch in hand".to_owned(),
    };
    stopping.send().await;
}

/// What has been sent.
struct Notifier {
    every: Duration,
    ready: bool,
    sent_at: Option<Mono>,
    progressed_at: Option<Mono>,
}

impl Notifier {
    fn every(every: Duration) -> Self {
        Self {
            every,
            ready: false,
            sent_at: None,
            progressed_at: None,
        }
    }

    /// The message for a new snapshot.
    fn message(&mut self, snapshot: &Snapshot, now: Mono) -> Option<Message> {
        let becomes_ready = !self.ready && snapshot.health.has_begun();
        let too_early = self.sent_at.is_some_and(|at| now.since(at) < self.every);
        if too_early && !becomes_ready {
            return None;
        }
        let progressed = snapshot.progressed_at > self.progressed_at;
        let state = match (progressed, self.ready, becomes_ready) {
            (false, _, _) => UnitState::Stuck,
            (true, _, true) => UnitState::Ready,
            (true, true, false) => UnitState::Progressed,
            (true, false, false) => UnitState::Starting,
        };
        self.ready |= state == UnitState::Ready;
        self.sent_at = Some(now);
        self.progressed_at = snapshot.progressed_at;
        Some(Message {
            state,
            status: status(snapshot, now),
        })
    }
}

/// For `systemctl status`: one line.
fn status(snapshot: &Snapshot, now: Mono) -> String {
    let mut status = format!(
        "{} of {} distributions owned: {} active, {} behind, backlog {}; Realtime: {}",
        snapshot.rows_owned,
        snapshot.rows,
        snapshot.rows_that_are(Status::Active),
        snapshot.rows_that_are(Status::Behind),
        snapshot.status_summary.backlog,
        snapshot.realtime,
    );
    let unready = snapshot.unready(now);
    if !unready.is_empty() {
        status = format!("not ready: {}; {status}", unready.join("; "));
    }
    // A line feed would begin another assignment.
    status.replace(['\n', '\r'], " ")
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

    fn sent(notifier: &mut Notifier, snapshot: &Snapshot, now: i64) -> Option<UnitState> {
        let message = notifier.message(snapshot, at(now));
        message.map(|message| message.state)
    }

    #[test]
    fn ready_is_sent_once_at_the_first_full_sync_and_progress_no_more_often_than_requested() {
        let mut notifier = Notifier::every(Duration::from_secs(10));
        assert_eq!(
            sent(&mut notifier, &snapshot(false, 0), 0),
            Some(UnitState::Starting)
        );
        assert_eq!(sent(&mut notifier, &snapshot(false, 1), 1), None);
        assert_eq!(
            sent(&mut notifier, &snapshot(true, 2), 2),
            Some(UnitState::Ready)
        );
        assert_eq!(sent(&mut notifier, &snapshot(true, 11), 11), None);
        assert_eq!(
            sent(&mut notifier, &snapshot(true, 12), 12),
            Some(UnitState::Progressed)
        );
        assert_eq!(
            sent(&mut notifier, &snapshot(false, 22), 22),
            Some(UnitState::Progressed),
            "ready is never taken back"
        );
    }

    #[test]
    fn a_loop_that_runs_without_progress_is_no_sign_of_life() {
        let mut notifier = Notifier::every(Duration::from_secs(10));
        assert_eq!(
            sent(&mut notifier, &snapshot(true, 2), 2),
            Some(UnitState::Ready)
        );
        for now in [12, 22, 32] {
            assert_eq!(
                sent(&mut notifier, &snapshot(true, 2), now),
                Some(UnitState::Stuck)
            );
        }
        assert_eq!(
            sent(&mut notifier, &snapshot(true, 42), 42),
            Some(UnitState::Progressed)
        );
    }

    #[test]
    fn a_status_is_one_line_whatever_the_reason_contains() {
        let mut snapshot = snapshot(true, 2);
        snapshot.realtime = "refused:\nSTOPPING=1".to_owned();
        let line = status(&snapshot, at(2));
        assert!(!line.contains('\n') && line.contains("refused:"), "{line}");
    }
}
