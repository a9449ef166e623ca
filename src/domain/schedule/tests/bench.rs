//! A bench for the timetable: the test is the database.

use super::super::*;
pub(super) use crate::domain::fixture::{T0, id, row};

pub(super) fn at(seconds: f64) -> DbTime {
    DbTime::from_micros(T0).plus_micros(micros_of(Duration::from_secs_f64(seconds)))
}

/// A timetable with a database that stores whatever comes, and counts the reads.
pub(super) struct ScheduleBench {
    pub(super) schedule: Schedule,
    pub(super) sequence: u64,
    pub(super) now: DbTime,
}

impl ScheduleBench {
    pub(super) fn new(rows: impl IntoIterator<Item = RowRead>) -> Self {
        let mut bench = Self {
            schedule: Schedule::default(),
            sequence: 0,
            now: at(0.0),
        };
        for row in rows {
            bench.read(row);
        }
        bench
    }

    pub(super) fn sequence(&mut self) -> ReadSequence {
        self.sequence += 1;
        ReadSequence(self.sequence)
    }

    pub(super) fn read(&mut self, row: RowRead) -> Applied {
        let began = self.sequence();
        self.schedule.apply(row.row.id, Some(row), began, self.now)
    }

    pub(super) fn gone(&mut self, n: u128) -> Applied {
        let began = self.sequence();
        self.schedule.apply(id(n), None, began, self.now)
    }

    /// The row as it is known, to be read again as it is or changed.
    pub(super) fn as_known(&self, row: RowRead) -> RowRead {
        let known = self
            .schedule
            .entries
            .get(&row.row.id)
            .map(|entry| entry.progress.clone());
        RowRead {
            progress: known,
            ..row
        }
    }

    pub(super) fn plan_at(&mut self, seconds: f64) -> Option<Batch> {
        self.now = at(seconds);
        self.schedule.plan(self.now, i64::MAX)
    }

    pub(super) fn store(&mut self, batch: &Batch) {
        let all = batch.rows.iter().map(|row| row.id).collect();
        let sequence = self.sequence();
        let refused = self.schedule.answered(batch, &all, sequence, self.now);
        assert!(refused.is_empty(), "a row that is stored is not read again");
    }

    pub(super) fn refuse(&mut self, batch: &Batch) -> Vec<Uuid> {
        let sequence = self.sequence();
        self.schedule
            .answered(batch, &BTreeSet::new(), sequence, self.now)
    }

    pub(super) fn lose(&mut self, batch: &Batch) -> Vec<Uuid> {
        let sequence = self.sequence();
        self.schedule.unknown(batch, sequence)
    }

    /// Plans and stores all that there is to store at this moment; says how many visits each statement held.
    pub(super) fn fire_at(&mut self, seconds: f64) -> Vec<i64> {
        let mut statements = Vec::new();
        while let Some(batch) = self.plan_at(seconds) {
            self.store(&batch);
            statements.push(batch.visits());
            assert!(statements.len() < 1_000, "it never ends");
        }
        statements
    }

    pub(super) fn deadline(&self) -> Option<f64> {
        let micros = self.schedule.next_deadline()?.micros_since(at(0.0));
        Some(Duration::from_micros(u64::try_from(micros).unwrap()).as_secs_f64())
    }

    pub(super) fn look(&self, n: u128) -> DistributionStatus {
        self.schedule.look(id(n), self.now).expect("known")
    }
}
