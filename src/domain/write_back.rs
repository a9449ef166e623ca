//! The echo budget: which rows' `total_distributed` is written back now.
//!
//! Each write to `visit_distribution` is an event for every Realtime subscriber of the table, so running rows are written
//! back every five seconds at the most and at a bounded rate for all together, oldest first. Rows that are finished are
//! written back at once, beside that bound.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;

use super::bucket::RateBucket;
use super::limits::{
    COMPLETIONS_PER_SECOND, INVALID_RETRY, ROWS_PER_WRITE_BACK, WRITE_BACK_BURST, WRITE_BACK_EVERY,
    WRITE_BACK_EVERY_UNHEARD,
};
use super::time::Mono;

/// See the module.
#[derive(Debug)]
pub struct WriteBackBudget {
    running: RateBucket,
    finished: RateBucket,
    /// Nobody hears of a write: there is no cost, and no budget.
    unbound: bool,
    last: BTreeMap<Uuid, Mono>,
    stale: BTreeMap<Uuid, Mono>,
    by_age: BTreeSet<(Mono, Uuid)>,
    stale_finished: BTreeSet<Uuid>,
}

/// What a row's own column is, against what is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Staleness {
    /// It says what is stored.
    Right,
    /// It is behind, and the row runs on.
    Stale,
    /// It is behind, and no more visits will come.
    StaleFinished,
}

impl WriteBackBudget {
    /// A full budget of so many millionths of a write-back a second.
    pub fn new(per_second_micro: i64, now: Mono) -> Self {
        Self {
            running: RateBucket::write_backs(per_second_micro, now),
            finished: RateBucket::visits(COMPLETIONS_PER_SECOND, now),
            unbound: false,
            last: BTreeMap::new(),
            stale: BTreeMap::new(),
            by_age: BTreeSet::new(),
            stale_finished: BTreeSet::new(),
        }
    }

    /// The budget of the control row, of which so many agents have an equal part each.
    pub fn ownership(&mut self, per_second_micro: i64, agents: usize, now: Mono) {
        let agents = i64::try_from(agents).unwrap_or(i64::MAX).max(1);
        let completions = COMPLETIONS_PER_SECOND / agents;
        self.running
            .set_rate(per_second_micro / agents, WRITE_BACK_BURST / agents, now);
        self.finished.set_rate(
            COMPLETIONS_PER_SECOND * 1_000_000 / agents,
            completions,
            now,
        );
    }

    /// Whether nobody hears of a write from now on, so that each row is written back every second, whatever the budget.
    pub fn unbound(&mut self, unbound: bool) {
        self.unbound = unbound;
    }

    fn every(&self) -> Duration {
        if self.unbound {
            WRITE_BACK_EVERY_UNHEARD
        } else {
            WRITE_BACK_EVERY
        }
    }

    /// The database refuses to write the row's column: a minute from now at the earliest, finished or not.
    pub fn defer(&mut self, id: Uuid, now: Mono) {
        let wait = INVALID_RETRY.saturating_sub(self.every());
        self.last.insert(id, now.plus(wait));
    }

    /// A row's column is now so.
    pub fn note(&mut self, id: Uuid, column: Staleness, now: Mono) {
        let defer = self.last.get(&id).is_some_and(|last| *last > now);
        let column = if defer && column == Staleness::StaleFinished {
            Staleness::Stale
        } else {
            column
        };
        if column != Staleness::Stale
            && let Some(due) = self.stale.remove(&id)
        {
            self.by_age.remove(&(due, id));
        }
        if column != Staleness::StaleFinished {
            self.stale_finished.remove(&id);
        }
        match column {
            Staleness::Right => {}
            Staleness::Stale => {
                if !self.stale.contains_key(&id) {
                    let every = self.every();
                    let due = self.last.get(&id).map_or(now, |last| last.plus(every));
                    self.stale.insert(id, due);
                    self.by_age.insert((due, id));
                }
            }
            Staleness::StaleFinished => {
                self.stale_finished.insert(id);
            }
        }
    }

    /// The row is gone.
    pub fn forget(&mut self, id: Uuid, now: Mono) {
        self.note(id, Staleness::Right, now);
        self.last.remove(&id);
    }

    /// The rows to write back now. They are taken out; the answer's [`Self::note`] puts back what is still stale.
    pub fn take(&mut self, now: Mono) -> Vec<Uuid> {
        let room = |held: i64| usize::try_from(held).unwrap_or(0).min(ROWS_PER_WRITE_BACK);
        let finished: Vec<Uuid> = self
            .stale_finished
            .iter()
            .take(room(self.finished.holds(now)))
            .copied()
            .collect();
        let running = if self.unbound {
            ROWS_PER_WRITE_BACK
        } else {
            room(self.running.holds(now))
        };
        let ages: Vec<(Mono, Uuid)> = self
            .by_age
            .iter()
            .take_while(|(due, _)| *due <= now)
            .take(running)
            .copied()
            .collect();
        self.finished
            .take(i64::try_from(finished.len()).unwrap_or(i64::MAX));
        if !self.unbound {
            self.running
                .take(i64::try_from(ages.len()).unwrap_or(i64::MAX));
        }
        let mut taken = finished;
        for id in &taken {
            self.stale_finished.remove(id);
        }
        for (due, id) in ages {
            self.by_age.remove(&(due, id));
            self.stale.remove(&id);
            taken.push(id);
        }
        for id in &taken {
            self.last.insert(*id, now);
        }
        taken
    }

    /// When the next row may be written back.
    pub fn next_deadline(&mut self, now: Mono) -> Option<Mono> {
        let at = |micros: i64| Mono::from_micros(now.as_micros().saturating_add(micros));
        let finished = (!self.stale_finished.is_empty())
            .then(|| self.finished.micros_until_token(now).map(at))
            .flatten();
        let oldest = self.by_age.first().map(|(due, _)| *due);
        let running = if self.unbound {
            oldest
        } else {
            oldest.and_then(|due| Some(due.max(at(self.running.micros_until_token(now)?))))
        };
        finished.into_iter().chain(running).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: i64) -> Mono {
        Mono::from_micros(ms * 1_000)
    }

    /// Runs `rows` rows that are always stale for `seconds`, and counts the write-backs of each.
    fn run(rows: u128, seconds: i64) -> BTreeMap<Uuid, Vec<Mono>> {
        let mut budget = WriteBackBudget::new(200_000, ms(0));
        let mut written: BTreeMap<Uuid, Vec<Mono>> = BTreeMap::new();
        for tick in 0..seconds * 10 {
            let now = ms(tick * 100);
            for row in 0..rows {
                budget.note(Uuid::from_u128(row), Staleness::Stale, now);
            }
            for id in budget.take(now) {
                written.entry(id).or_default().push(now);
            }
        }
        written
    }

    #[test]
    fn one_row_is_written_back_every_five_seconds() {
        let written = run(1, 600);
        let times = &written[&Uuid::from_u128(0)];
        assert!(
            times
                .windows(2)
                .all(|pair| pair[1].since(pair[0]) >= WRITE_BACK_EVERY)
        );
        assert!((115..=121).contains(&times.len()), "{}", times.len());
    }

    #[test]
    fn a_thousand_rows_share_one_write_back_in_five_seconds_after_a_burst_of_twenty_oldest_first() {
        let written = run(1_000, 600);
        let total: usize = written.values().map(Vec::len).sum();
        assert!(
            (139..=141).contains(&total),
            "20 + 600 s × 0.2/s, not {total}"
        );
        assert!(
            written.values().all(|times| times.len() == 1),
            "nobody twice before everybody once"
        );
    }

    #[test]
    fn of_two_agents_each_has_half_the_budget_and_half_the_burst() {
        let mut budget = WriteBackBudget::new(200_000, ms(0));
        budget.ownership(200_000, 2, ms(0));
        let mut written = 0;
        for second in 0..=100 {
            for row in 0..1_000 {
                budget.note(Uuid::from_u128(row), Staleness::Stale, ms(second * 1_000));
            }
            written += budget.take(ms(second * 1_000)).len();
        }
        assert_eq!(written, 10 + 10, "10 + 100 s × 0.1/s");
        let finished: Vec<Uuid> = (5_000..5_025).map(Uuid::from_u128).collect();
        for row in &finished {
            budget.note(*row, Staleness::StaleFinished, ms(200_000));
        }
        let taken = budget.take(ms(200_000));
        let completions = taken.iter().filter(|row| finished.contains(row));
        assert_eq!(completions.count(), 5, "of 10 completions a second");
    }

    #[test]
    fn finished_rows_go_at_once_ten_a_second_beside_the_budget() {
        let mut budget = WriteBackBudget::new(200_000, ms(0));
        for row in 0..25 {
            budget.note(Uuid::from_u128(row), Staleness::StaleFinished, ms(0));
        }
        assert_eq!(budget.take(ms(0)).len(), 10);
        assert_eq!(budget.take(ms(10)).len(), 0);
        assert_eq!(budget.next_deadline(ms(10)), Some(ms(100)));
        assert_eq!(budget.take(ms(1_000)).len(), 10);
        assert_eq!(budget.take(ms(2_000)).len(), 5);
        assert_eq!(budget.next_deadline(ms(2_000)), None);
    }

    #[test]
    fn where_nobody_hears_of_a_write_each_row_is_written_back_every_second() {
        let mut budget = WriteBackBudget::new(200_000, ms(0));
        budget.unbound(true);
        let mut written = 0;
        for tick in 0..600 {
            for row in 0..50 {
                budget.note(Uuid::from_u128(row), Staleness::Stale, ms(tick * 100));
            }
            written += budget.take(ms(tick * 100)).len();
        }
        assert_eq!(written, 50 * 60);
    }

    #[test]
    fn a_row_whose_column_is_right_is_not_written() {
        let mut budget = WriteBackBudget::new(200_000, ms(0));
        budget.note(Uuid::from_u128(1), Staleness::Stale, ms(0));
        budget.note(Uuid::from_u128(1), Staleness::Right, ms(1));
        assert!(budget.take(ms(2)).is_empty());
        budget.note(Uuid::from_u128(1), Staleness::StaleFinished, ms(3));
        budget.note(Uuid::from_u128(1), Staleness::Right, ms(4));
        assert!(budget.take(ms(5)).is_empty());
    }
}
