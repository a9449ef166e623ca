//! One worker: the job in hand, and the wait after a job that failed.
//!
//! Invariants: a worker has one job at a time, and each job is answered once.

use crate::domain::error_policy::{BackoffState, Failure, TOLD_EVERY};
use crate::domain::event::Event;
use crate::domain::time::Mono;

/// See the module.
#[derive(Debug)]
pub(super) struct Worker<Job> {
    name: &'static str,
    in_hand: Option<(Job, Mono)>,
    not_before: Mono,
    /// A job found the database unavailable, and none has succeeded since.
    is_away: bool,
    backoff: BackoffState,
    attempt: u32,
    logged_at: Option<Mono>,
}

impl<Job> Worker<Job> {
    pub(super) fn new(name: &'static str, now: Mono) -> Self {
        Self {
            name,
            in_hand: None,
            not_before: now,
            is_away: false,
            backoff: BackoffState::default(),
            attempt: 0,
            logged_at: None,
        }
    }

    pub(super) fn is_free(&self, now: Mono) -> bool {
        self.in_hand.is_none() && now >= self.not_before
    }

    /// When a job that is due at `at` can start; `None` while another one is in hand.
    pub(super) fn when_free(&self, at: Mono) -> Option<Mono> {
        self.in_hand.is_none().then(|| at.max(self.not_before))
    }

    pub(super) fn start(&mut self, job: Job, now: Mono) {
        debug_assert!(self.is_free(now), "the {} is not free", self.name);
        self.in_hand = Some((job, now));
    }

    pub(super) fn job(&self) -> Option<&Job> {
        self.in_hand.as_ref().map(|(job, _)| job)
    }

    /// The worker's name, and since when it has its job.
    pub(super) fn in_hand(&self) -> Option<(&'static str, Mono)> {
        self.in_hand.as_ref().map(|(_, since)| (self.name, *since))
    }

    pub(super) fn is_away(&self) -> bool {
        self.is_away
    }

    /// Takes the job back, since it was answered, whatever the answer.
    pub(super) fn finish(&mut self) -> Option<Job> {
        debug_assert!(self.in_hand.is_some(), "the {} has no job", self.name);
        self.in_hand.take().map(|(job, _)| job)
    }

    /// The database did its part; the wait after the next failure is the shortest again.
    pub(super) fn succeed(&mut self) {
        self.is_away = false;
        self.attempt = 0;
        self.backoff.reset();
    }

    /// The job failed: the worker waits before the next one. Returns what to report: that the database is unavailable each
    /// time (the agent reports it once an outage), any other failure at most once in [`TOLD_EVERY`].
    pub(super) fn fail(&mut self, failure: &Failure, draw: u32, now: Mono) -> Option<Event> {
        let policy = failure.policy();
        let wait = self.backoff.next(policy.backoff, draw);
        self.attempt += 1;
        self.not_before = now.plus(wait);
        self.is_away |= policy.away;
        let event = if policy.away {
            Event::DATABASE_UNAVAILABLE
        } else if self.may_log(now) {
            Event::STATEMENT_FAILED
        } else {
            return None;
        };
        Some(Event {
            worker: Some(self.name),
            attempt: Some(self.attempt),
            retry_in: Some(wait),
            ..event.failure(failure)
        })
    }

    /// Whether a failure may be logged now; if so, it counts as logged.
    pub(super) fn may_log(&mut self, now: Mono) -> bool {
        let may = (self.logged_at).is_none_or(|logged| now.since(logged) >= TOLD_EVERY);
        if may {
            self.logged_at = Some(now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::error_policy::ErrorKind;

    fn at(seconds: i64) -> Mono {
        Mono::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_job_is_in_hand_until_it_is_answered_and_a_failure_delays_the_next_one() {
        let mut worker = Worker::new("reader", at(0));
        worker.start('a', at(1));
        assert_eq!(worker.in_hand(), Some(("reader", at(1))));
        assert_eq!(worker.when_free(at(2)), None);
        assert_eq!(worker.finish(), Some('a'));
        let lost = Failure::new(ErrorKind::Lost, "reset");
        let event = worker.fail(&lost, 0, at(2)).expect("reported");
        assert!(event.is(&Event::DATABASE_UNAVAILABLE));
        assert_eq!((event.worker, event.attempt), (Some("reader"), Some(1)));
        assert!(worker.is_away() && !worker.is_free(at(2)));
        let retry_at = at(2).plus(event.retry_in.expect("it waits"));
        assert_eq!(worker.when_free(at(2)), Some(retry_at));
        worker.succeed();
        assert!(!worker.is_away() && worker.is_free(retry_at));
    }

    #[test]
    fn a_failure_while_the_database_is_available_is_reported_once_a_minute() {
        let mut worker: Worker<()> = Worker::new("writer", at(0));
        let locked = Failure::new(ErrorKind::Locked, "deadlock detected");
        let reported: Vec<i64> = (0..=60)
            .filter(|second| worker.fail(&locked, 0, at(*second)).is_some())
            .collect();
        assert_eq!(reported, [0, 60]);
        assert!(!worker.is_away());
    }

    #[test]
    #[should_panic(expected = "the writer has no job")]
    fn a_job_is_answered_once() {
        let mut worker = Worker::new("writer", at(0));
        worker.start('a', at(0));
        worker.finish();
        worker.finish();
    }
}
