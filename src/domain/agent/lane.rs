//! One lane: one job at a time, and a wait after one that failed, as the policy of its fault says.

use crate::domain::error_policy::{BackoffState, Policy, TOLD_EVERY};
use crate::domain::time::Mono;

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) busy: bool,
    pub(super) not_before: Mono,
    away: bool,
    retry: BackoffState,
    told: Option<Mono>,
}

impl Lane {
    pub(super) fn new(now: Mono) -> Self {
        Self {
            busy: false,
            not_before: now,
            away: false,
            retry: BackoffState::default(),
            told: None,
        }
    }

    pub(super) fn free(&self, now: Mono) -> bool {
        !self.busy && now >= self.not_before
    }

    /// It found the database away, and has not got through since.
    pub(super) fn is_away(&self) -> bool {
        self.away
    }

    /// The database answered its last job; what it said is another matter.
    pub(super) fn succeeded(&mut self) {
        self.busy = false;
        self.away = false;
        self.retry.reset();
    }

    pub(super) fn failed(&mut self, policy: &Policy, draw: u32, now: Mono) {
        self.busy = false;
        self.away |= policy.away;
        self.not_before = now.plus(self.retry.next(policy.backoff, draw));
    }

    /// Whether a fault may be told now; if so, it counts as told.
    pub(super) fn may_tell(&mut self, now: Mono) -> bool {
        let may = self.told.is_none_or(|told| now.since(told) >= TOLD_EVERY);
        if may {
            self.told = Some(now);
        }
        may
    }
}
