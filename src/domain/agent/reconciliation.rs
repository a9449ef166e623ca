//! Which counters are compared with the stored visits, and when: those that changed since the last pass every five minutes,
//! all of them at the start and once a day, in slices that one short statement handles.

use std::collections::{BTreeSet, VecDeque};

use uuid::Uuid;

use crate::domain::limits::{
    RECONCILE_EVERY, RECONCILE_RESTING_EVERY, ROWS_PER_RECONCILIATION, VISITS_PER_RECONCILIATION,
};
use crate::domain::time::Mono;

/// See the module.
#[derive(Debug)]
pub(super) struct Reconciliation {
    /// The next pass, or the next slice of the current one; `None` before the first sync.
    next: Option<Mono>,
    next_of_all: Mono,
    moved: BTreeSet<Uuid>,
    pass: VecDeque<Uuid>,
}

impl Reconciliation {
    pub(super) fn new(now: Mono) -> Self {
        Self {
            next: None,
            next_of_all: now,
            moved: BTreeSet::new(),
            pass: VecDeque::new(),
        }
    }

    /// The rows are known from now on.
    pub(super) fn begin(&mut self, now: Mono) {
        self.next = Some(now);
    }

    pub(super) fn next_deadline(&self) -> Option<Mono> {
        self.next
    }

    /// A row's counter changed, or a comparison of it failed.
    pub(super) fn moved(&mut self, id: Uuid) {
        self.moved.insert(id);
    }

    pub(super) fn forget(&mut self, id: Uuid) {
        self.moved.remove(&id);
    }

    /// The next slice, if it is time for one. `all` lists the rows, `distributed` says how many visits one has.
    pub(super) fn slice(
        &mut self,
        now: Mono,
        all: impl FnOnce() -> Vec<Uuid>,
        distributed: impl Fn(Uuid) -> i64,
    ) -> Option<Vec<Uuid>> {
        if self.next.is_none_or(|at| at > now) {
            return None;
        }
        if self.pass.is_empty() {
            let moved = std::mem::take(&mut self.moved);
            if self.next_of_all <= now {
                self.next_of_all = now.plus(RECONCILE_RESTING_EVERY);
                self.pass = all().into();
            } else {
                self.pass = moved.into_iter().collect();
            }
        }
        let mut slice = Vec::new();
        let mut visits = 0_i64;
        while let Some(id) = self.pass.front() {
            visits = visits.saturating_add(distributed(*id));
            let full = slice.len() >= ROWS_PER_RECONCILIATION || visits > VISITS_PER_RECONCILIATION;
            if full && !slice.is_empty() {
                break;
            }
            slice.extend(self.pass.pop_front());
        }
        if self.pass.is_empty() {
            self.next = Some(now.plus(RECONCILE_EVERY));
        }
        (!slice.is_empty()).then_some(slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: i64) -> Mono {
        Mono::from_micros(seconds * 1_000_000)
    }

    fn ids(range: std::ops::Range<u128>) -> Vec<Uuid> {
        range.map(Uuid::from_u128).collect()
    }

    #[test]
    fn all_rows_are_compared_at_the_start_then_every_five_minutes_the_changed_ones_and_all_once_a_day()
     {
        let mut counts = Reconciliation::new(s(0));
        let slice = |counts: &mut Reconciliation, at| counts.slice(s(at), || ids(0..3), |_| 10);
        assert_eq!(slice(&mut counts, 5), None, "not before the first sync");
        counts.begin(s(10));
        assert_eq!(slice(&mut counts, 10), Some(ids(0..3)));
        counts.moved(Uuid::from_u128(2));
        assert_eq!(slice(&mut counts, 309), None);
        assert_eq!(slice(&mut counts, 310), Some(ids(2..3)));
        assert_eq!(slice(&mut counts, 700), None, "nothing changed");
        assert_eq!(counts.next_deadline(), Some(s(1_000)));
        assert_eq!(slice(&mut counts, 86_411), Some(ids(0..3)));
    }

    #[test]
    fn a_slice_holds_at_most_500_rows_and_half_a_million_visits_or_a_single_row() {
        let mut counts = Reconciliation::new(s(0));
        counts.begin(s(0));
        let mut sizes = Vec::new();
        while let Some(slice) = counts.slice(
            s(0),
            || ids(0..1_002),
            |id| {
                if id.as_u128() < 1_000 { 600 } else { 900_000 }
            },
        ) {
            sizes.push(slice.len());
        }
        assert_eq!(sizes, [500, 500, 1, 1]);
    }
}
