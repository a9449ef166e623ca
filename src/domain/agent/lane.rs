//! One lane: one job at a time, and a growing wait after one that failed.

use crate::domain::limits::{DATABASE_RETRY_MAX, DATABASE_RETRY_MIN};
use crate::domain::retry::Retry;
use crate::domain::time::Mono;

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) busy: bool,
    pub(super) not_before: Mono,
    failed: bool,
    retry: Retry,
}

impl Lane {
    pub(super) fn new(now: Mono) -> Self {
        Self {
            busy: false,
            not_before: now,
            failed: false,
            retry: Retry::new(DATABASE_RETRY_MIN, DATABASE_RETRY_MAX),
        }
    }

    pub(super) fn free(&self, now: Mono) -> bool {
        !self.busy && now >= self.not_before
    }

    /// Its last job failed.
    pub(super) fn fails(&self) -> bool {
        self.failed
    }

    pub(super) fn succeeded(&mut self) {
        self.busy = false;
        self.failed = false;
        self.retry.reset();
    }

    pub(super) fn failed(&mut self, draw: u32, now: Mono) {
        self.busy = false;
        self.failed = true;
        self.not_before = now.plus(self.retry.next(draw));
    }
}
