//! Whether the agent makes progress: the source of systemd's watchdog and of `/healthz`.
//!
//! A loop that runs is not enough. Every call to the database has a timeout, so every worker answers every job within
//! [`ANSWERED_WITHIN`], even while the database is unavailable; a worker that does not is stuck. A deadline that stays in the
//! past is stuck too. What the database answers does not matter here: a new process would get the same answer, so a
//! database that is down, full or locked never causes a restart.
//!
//! Pure: times arrive as parameters.

use std::time::Duration;

use crate::domain::time::Mono;
use crate::postgres::reconnect::{CALL_TIMEOUT, CONNECT_TIMEOUT};

/// The longest job, with a margin: the writer may connect twice, read the catalogue and store.
const ANSWERED_WITHIN: Duration = Duration::from_secs(90);
/// The agent meets a deadline at its next turn; one that is this old is never met.
const DEADLINE_WITHIN: Duration = Duration::from_secs(30);
/// After a longer gap between two checks the process itself was frozen, and blames nobody for it.
const CHECKED_WITHIN: Duration = Duration::from_secs(10);

const _: () = assert!(
    ANSWERED_WITHIN.as_secs() > 2 * (2 * CONNECT_TIMEOUT.as_secs() + 2 * CALL_TIMEOUT.as_secs())
);

/// What is stuck.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Stuck {
    /// A worker that does not answer its job.
    #[error("the {} has not answered for {} s", .0, .1.as_secs())]
    Worker(&'static str, Duration),
    /// A deadline that is not met.
    #[error("{} is overdue by {} s", .0, .1.as_secs())]
    Deadline(&'static str, Duration),
}

/// See the module.
#[derive(Debug)]
pub struct Watchdog {
    checked_at: Mono,
    progressed_at: Mono,
}

impl Watchdog {
    /// Of an agent that starts now.
    pub fn new(now: Mono) -> Self {
        Self {
            checked_at: now,
            progressed_at: now,
        }
    }

    /// When the agent last made progress, as of the last check.
    pub fn progressed_at(&self) -> Mono {
        self.progressed_at
    }

    /// Checks the workers that have a job, and the next deadline of the agent. Returns what is stuck, once.
    pub fn check(
        &mut self,
        in_hand: impl Iterator<Item = (&'static str, Mono)>,
        deadline: Option<(Mono, &'static str)>,
        now: Mono,
    ) -> Option<Stuck> {
        let was_frozen = now.since(self.checked_at) > CHECKED_WITHIN;
        let was_stuck = self.progressed_at < self.checked_at;
        self.checked_at = now;
        match stuck(in_hand, deadline, now) {
            Some(stuck) if !was_frozen => (!was_stuck).then_some(stuck),
            Some(_) | None => {
                self.progressed_at = now;
                None
            }
        }
    }
}

fn stuck(
    mut in_hand: impl Iterator<Item = (&'static str, Mono)>,
    deadline: Option<(Mono, &'static str)>,
    now: Mono,
) -> Option<Stuck> {
    let worker = in_hand.find(|(_, since)| now.since(*since) > ANSWERED_WITHIN);
    if let Some((worker, since)) = worker {
        return Some(Stuck::Worker(worker, now.since(since)));
    }
    let (at, what) = deadline.filter(|(at, _)| now.since(*at) > DEADLINE_WITHIN)?;
    Some(Stuck::Deadline(what, now.since(at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Mono {
        Mono::from_micros(seconds * 1_000_000)
    }

    /// Checks each second until then; what was reported, and when.
    fn until(
        watchdog: &mut Watchdog,
        in_hand: &[(&'static str, Mono)],
        deadline: Option<Mono>,
        end: i64,
    ) -> Vec<(i64, String)> {
        let deadline = deadline.map(|at| (at, "fire"));
        let begin = watchdog.checked_at.as_micros() / 1_000_000 + 1;
        (begin..=end)
            .filter_map(|now| {
                let stuck = watchdog.check(in_hand.iter().copied(), deadline, at(now))?;
                Some((now, stuck.to_string()))
            })
            .collect()
    }

    #[test]
    fn a_worker_that_keeps_its_job_beyond_every_timeout_is_stuck_and_one_that_answers_is_not() {
        let mut watchdog = Watchdog::new(at(0));
        let (writer, reader) = (("writer", at(60)), ("reader", at(0)));
        assert_eq!(
            until(&mut watchdog, &[writer, reader], None, 120),
            [(91, "the reader has not answered for 91 s".to_owned())]
        );
        assert_eq!(watchdog.progressed_at(), at(90));
        assert_eq!(
            until(&mut watchdog, &[writer], None, 200),
            [(151, "the writer has not answered for 91 s".to_owned())]
        );
        assert_eq!(watchdog.progressed_at(), at(150));
    }

    #[test]
    fn a_deadline_that_stays_in_the_past_is_stuck() {
        let mut watchdog = Watchdog::new(at(0));
        assert_eq!(
            until(&mut watchdog, &[], Some(at(10)), 100),
            [(41, "fire is overdue by 31 s".to_owned())]
        );
        assert_eq!(watchdog.progressed_at(), at(40));
        assert_eq!(until(&mut watchdog, &[], Some(at(101)), 110), []);
        assert_eq!(watchdog.progressed_at(), at(110));
    }

    #[test]
    fn a_process_that_was_frozen_itself_blames_nobody() {
        let mut watchdog = Watchdog::new(at(0));
        let in_hand = [("maintenance worker", at(0))];
        let deadline = Some((at(1), "heartbeat"));
        assert_eq!(watchdog.check(in_hand.into_iter(), deadline, at(500)), None);
        assert_eq!(watchdog.progressed_at(), at(500));
    }
}
