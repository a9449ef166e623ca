//! What people do to the database: edits in transactions of their own, manual visits, deletions, repairs.

use uuid::Uuid;

use super::{Anchor, Change, Database, Pending, Row};

impl Database {
    /// An INSERT; `triggers` are off in a restore.
    pub fn insert(&mut self, mut row: Row, clock: i64, triggers: bool) -> Change {
        if triggers {
            let at = row.terms.start;
            row.anchor = Some(Anchor {
                version: clock,
                parts: 0,
                at,
            });
            row.changed = Some(self.next_xid());
            row.written = self.progress.entry(row.id).or_default().distributed;
            self.reference.inserted(row.id, &row.terms, clock, at, 0);
        } else {
            self.reference.deleted(row.id);
        }
        if !row.is_sound() {
            self.ever_bad.insert(row.id);
        }
        let change = Change {
            id: row.id,
            version: row.version(),
            kind: "INSERT",
        };
        self.rows.insert(row.id, row);
        change
    }

    /// An editor's UPDATE, with the trigger at this moment: the new curve begins where the old one stands.
    pub fn edited(&mut self, id: Uuid, clock: i64, edit: impl FnOnce(&mut Row)) -> Option<Row> {
        let xid = self.next_xid();
        let old = self.rows.get(&id)?;
        let anchor = old.anchor?;
        let mut new = old.clone();
        edit(&mut new);
        let version = clock.max(anchor.version + 1);
        if new.terms != old.terms {
            let parts = self.reference.parts(id, clock);
            new.anchor = Some(Anchor {
                version,
                parts,
                at: clock,
            });
            new.changed = Some(xid);
        } else if new.catch_up != old.catch_up {
            new.anchor = Some(Anchor { version, ..anchor });
            new.changed = Some(xid);
        }
        if old.terms.active && !new.terms.active {
            new.written = self.progress[&id].distributed;
        }
        Some(new)
    }

    /// Ends an editor's transaction.
    pub fn end(&mut self, id: Uuid, commit: bool) -> Option<Change> {
        match self.open.remove(&id)? {
            Pending::Update(row, at) if commit => {
                self.reference.edited(id, &row.terms, row.version()?, at);
                let change = Change::update(&row);
                self.rows.insert(id, *row);
                Some(change)
            }
            Pending::Delete(xid) if commit => {
                self.reference.deleted(id);
                self.deletions.insert(id, xid);
                let gone = self.rows.remove(&id);
                gone.map(|_| Change {
                    id,
                    version: None,
                    kind: "DELETE",
                })
            }
            Pending::Update(..) | Pending::Delete(_) | Pending::Hold => None,
        }
    }

    /// No event is sent.
    pub fn truncate(&mut self) {
        self.truncated = Some(self.next_xid());
        for id in std::mem::take(&mut self.rows).into_keys() {
            self.reference.deleted(id);
        }
    }

    pub fn step_clock(&mut self, by: i64) {
        self.clock.offset += by;
        self.reference.clock_stepped();
    }

    /// As `distribute_visits_for_partner()`: at once, past the curve.
    pub fn add_by_hand(&mut self, id: Uuid, visits: i64, clock: i64) {
        let Some(progress) = self.progress.get_mut(&id) else {
            return;
        };
        let at = super::db_time(clock);
        let at = progress.last_visited_at.map_or(at, |last| last.max(at));
        let first = progress.last_number + 1;
        progress.distributed += visits;
        progress.last_number += visits;
        progress.last_visited_at = Some(at);
        self.visits
            .entry(id)
            .or_default()
            .extend(first..=progress.last_number);
        let (distributed, last) = (progress.distributed, progress.last_number);
        self.reference
            .recounted(id, distributed, last, Some(at.as_micros()));
    }

    /// Deletes the row's latest visits.
    pub fn delete_visits(&mut self, id: Uuid, visits: usize) -> Vec<i64> {
        let Some(stored) = self.visits.get_mut(&id) else {
            return Vec::new();
        };
        let gone: Vec<i64> = stored.iter().rev().take(visits).copied().collect();
        stored.retain(|number| !gone.contains(number));
        gone
    }

    /// Restores deleted visits.
    pub fn restore_visits(&mut self, id: Uuid, numbers: Vec<i64>) {
        self.visits.entry(id).or_default().extend(numbers);
    }

    /// As `sync_distribution_counts(lower => true)`: missing visits are stored again.
    pub fn lower(&mut self, id: Uuid) {
        let held = self.open.contains_key(&id);
        if !held
            && self
                .progress
                .get(&id)
                .is_some_and(|p| p.distributed > self.count(id))
        {
            self.seen.saw("a counter is lowered");
            self.recount(id);
        }
    }
}
