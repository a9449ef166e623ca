//! The database, as far as the agent can tell: rows with versions that are anchored anew by each edit, progress with
//! compare-and-set, locks that others hold, and a ledger of every visit, which is held against the promises as it grows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use uuid::Uuid;

use visit_pacer::domain::agent::{Stored, WrittenBack};
use visit_pacer::domain::batch::{Batch, BatchRow, Progress};
use visit_pacer::domain::curve::VISIT;
use visit_pacer::domain::decimal::format_scaled;
use visit_pacer::domain::distribution::{Distribution, RawRow};
use visit_pacer::domain::limits::{AGENT_GONE_AFTER, VISITS_PER_BATCH, VISITS_PER_ROW};
use visit_pacer::domain::share::Peer;
use visit_pacer::domain::time::{DbTime, SECOND_US, micros_of};
use visit_pacer::domain::timetable::{Control, RowRead};

/// A row of `visit_distribution`.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) id: Uuid,
    pub(super) partner: Uuid,
    pub(super) active: bool,
    pub(super) total: i64,
    /// Thousandths of a visit a second; negative in a bad row.
    pub(super) milli_per_second: i64,
    pub(super) start: DbTime,
    pub(super) end: Option<DbTime>,
    pub(super) catch_up: Option<i64>,
    /// Version, units and moment of the anchor; `None`: no trigger has seen the row.
    pub(super) anchored: Option<(i64, i128, DbTime)>,
    pub(super) written: i64,
}

impl Row {
    pub(super) fn version(&self) -> Option<i64> {
        self.anchored.map(|(version, _, _)| version)
    }

    /// `None` for a row that cannot be paced.
    pub(super) fn parsed(&self) -> Option<Distribution> {
        Distribution::parse(&self.raw()).ok()
    }

    fn raw(&self) -> RawRow {
        let micros = |at: DbTime| at.as_micros().to_string();
        RawRow {
            id: self.id,
            partner_id: Some(self.partner),
            config_version: self.version(),
            is_active: Some(self.active),
            total_visits: Some(self.total.to_string()),
            visits_per_unit: Some(format_scaled(self.milli_per_second.into(), 3)),
            time_period: Some("second".to_owned()),
            start_time: Some(micros(self.start)),
            end_time: self.end.map(micros),
            catch_up: self.catch_up.map(|times| times.to_string()),
            anchor_units: self.anchored.map(|(_, units, _)| format_scaled(units, 9)),
            anchor_at: self.anchored.map(|(_, _, at)| micros(at)),
        }
    }

    /// The row after an edit, as the trigger has it: the old curve, as it is now, is where the new one begins.
    pub(super) fn edited(&self, now: DbTime, edit: impl FnOnce(&mut Self)) -> Self {
        let mut new = self.clone();
        edit(&mut new);
        let Some((version, units, at)) = self.anchored else {
            return new;
        };
        let pace = |row: &Self| {
            let window = (row.start, row.end);
            (
                row.active,
                row.total,
                row.milli_per_second,
                window,
                row.partner,
            )
        };
        let version = now.as_micros().max(version + 1);
        new.anchored = if pace(&new) == pace(self) {
            Some((version, units, at))
        } else {
            let units = self.parsed().map_or(units, |old| old.curve.units(now));
            Some((version, units, now))
        };
        new
    }
}

/// What really is stored of one row, whatever its progress says.
#[derive(Default)]
pub(super) struct Ledger {
    visits: i64,
    last_at: Option<DbTime>,
    /// Batches since the row's last edit: for what instant, and how many.
    recent: VecDeque<(DbTime, i64)>,
}

/// An editor's open transaction.
pub(super) enum Pending {
    Update(Row),
    Delete,
    /// It only holds the row.
    Hold,
}

/// What a commit did to the table, for whoever listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) id: Uuid,
    pub(super) version: Option<i64>,
}

#[derive(Default)]
pub(super) struct Database {
    pub(super) rows: BTreeMap<Uuid, Row>,
    pub(super) progress: BTreeMap<Uuid, Progress>,
    pub(super) open: BTreeMap<Uuid, Pending>,
    pub(super) held_partners: BTreeSet<Uuid>,
    pub(super) control: Control,
    pub(super) control_held: bool,
    /// The control row's, of all times: an agent learns of another one within a second.
    pub(super) greatest_catch_up: i64,
    /// Rows whose inserts fail.
    pub(super) poisoned: BTreeSet<Uuid>,
    pub(super) clock_offset: i64,
    /// From here on every batch must bring its rows exactly onto their curves.
    pub(super) on_time_since: Option<i64>,
    pub(super) ledger: BTreeMap<Uuid, Ledger>,
    pub(super) visits: i64,
    /// When each agent was seen, and whether it serves.
    pub(super) agents: BTreeMap<Uuid, (DbTime, bool)>,
}

impl Database {
    pub(super) fn clock(&self, now: i64) -> DbTime {
        DbTime::from_micros(now + self.clock_offset)
    }

    /// The clock steps: buckets wait for it to come by again.
    pub(super) fn step_clock(&mut self, by: i64) {
        self.clock_offset += by;
        for ledger in self.ledger.values_mut() {
            ledger.recent.clear();
        }
    }

    pub(super) fn insert(&mut self, mut row: Row, now: DbTime, trigger: bool) -> Change {
        if trigger {
            row.anchored = Some((now.as_micros(), 0, row.start));
            let progress = self.progress.entry(row.id).or_default();
            row.written = progress.distributed;
        }
        let change = Change {
            id: row.id,
            version: row.version(),
        };
        self.ledger.entry(row.id).or_default().recent.clear();
        self.rows.insert(row.id, row);
        change
    }

    /// Ends an editor's transaction.
    pub(super) fn end(&mut self, id: Uuid, commit: bool) -> Option<Change> {
        match self.open.remove(&id)? {
            Pending::Update(row) if commit => {
                let version = row.version();
                self.ledger.entry(id).or_default().recent.clear();
                self.rows.insert(id, row);
                Some(Change { id, version })
            }
            Pending::Delete if commit => {
                self.rows.remove(&id).map(|_| Change { id, version: None })
            }
            Pending::Update(_) | Pending::Delete | Pending::Hold => None,
        }
    }

    pub(super) fn read(&self, ids: Option<&[Uuid]>) -> Vec<RowRead> {
        let wanted = |id: &Uuid| ids.is_none_or(|ids| ids.contains(id));
        self.rows
            .values()
            .filter(|row| wanted(&row.id))
            .map(|row| RowRead {
                row: row.raw(),
                progress: self.progress.get(&row.id).cloned(),
                written: Some(row.written),
            })
            .collect()
    }

    /// As `visit_pacer_store()`.
    pub(super) fn store(&mut self, batch: &Batch, now: i64) -> Stored {
        assert!(
            batch.visits() <= VISITS_PER_BATCH,
            "a statement holds at most 10,000 visits"
        );
        let clock = self.clock(now);
        let mut ids = BTreeSet::new();
        for row in &batch.rows {
            assert!(row.visits() > 0 && row.visits() <= VISITS_PER_ROW);
            assert_eq!(i64::try_from(row.moments.len()), Ok(row.visits()));
            assert!(ids.insert(row.id), "each row once");
        }
        let taken: Vec<&BatchRow> = batch
            .rows
            .iter()
            .filter(|row| self.takes(row, clock))
            .collect();
        if let Some(bad) = taken.iter().find(|row| self.poisoned.contains(&row.id)) {
            return Stored::Failed(format!("row {} cannot be stored", bad.id));
        }
        for row in &taken {
            self.commit(row, now);
        }
        Stored::Rows(taken.iter().map(|row| row.id).collect())
    }

    fn takes(&self, batch: &BatchRow, clock: DbTime) -> bool {
        let (Some(row), Some(progress)) = (self.rows.get(&batch.id), self.progress.get(&batch.id))
        else {
            return false;
        };
        let free = !self.open.contains_key(&batch.id)
            && !self.held_partners.contains(&row.partner)
            && !self.control.paused
            && !self.control_held;
        let before = &batch.before;
        free && row.active
            && row.version() == Some(batch.version)
            && batch.at <= clock
            && progress.last_number == before.last_number
            && progress.distributed == before.distributed
            && progress.bucket.at_column() == before.bucket.at_column()
            && progress.distributed + batch.visits() <= row.total
    }

    /// Stores a row's visits, and holds them against the promises.
    fn commit(&mut self, batch: &BatchRow, now: i64) {
        let clock = self.clock(now);
        let id = batch.id;
        let row = self.rows[&id]
            .parsed()
            .expect("a bad row is never touched by a batch");
        let everybodys = self.greatest_catch_up.max(self.control.catch_up_milli);
        let catch_up = row.catch_up_milli.unwrap_or(everybodys);
        assert_eq!(row.partner_id, batch.partner_id);
        assert!(
            batch.after.distributed <= row.curve.due(clock),
            "{id} is ahead of its curve: {} of {}",
            batch.after.distributed,
            row.curve.due(clock)
        );
        if self.on_time_since.is_some_and(|since| now >= since) {
            assert_eq!(
                batch.after.distributed,
                row.curve.due(batch.at),
                "{id} is on time"
            );
            let late = clock.micros_since(batch.at);
            assert!(
                late < SECOND_US + SECOND_US / 2,
                "{id} is late by {late} µs"
            );
        }
        let ledger = self.ledger.entry(id).or_default();
        for at in &batch.moments {
            assert!(
                ledger.last_at.is_none_or(|last| last <= *at),
                "{id} goes back in time"
            );
            let latest = row.curve.to.map_or(clock, |end| end.min(clock));
            let latest = ledger.last_at.map_or(latest, |last| last.max(latest));
            assert!(
                *at <= latest,
                "{id} has a visit in the future or after its end"
            );
            ledger.last_at = Some(*at);
        }
        ledger.visits += batch.visits();
        ledger.recent.push_back((batch.at, batch.visits()));
        let since = batch.at.plus_micros(-5 * SECOND_US);
        ledger.recent.retain(|(at, _)| *at > since);
        let in_five_seconds: i64 = ledger.recent.iter().map(|(_, visits)| visits).sum();
        let refill = row.slope * i128::from(catch_up) * i128::from(SECOND_US) / VISIT;
        let allowed = (6 * refill) / 1_000 + 3;
        assert!(
            i128::from(in_five_seconds) <= allowed,
            "{id} drains {in_five_seconds} visits in 5 s, {allowed} are allowed"
        );
        self.visits += batch.visits();
        self.progress.insert(id, batch.after.clone());
    }

    /// As `distribute_visits_for_partner()`: at once, past the curve.
    pub(super) fn add_by_hand(&mut self, id: Uuid, visits: i64, now: i64) {
        let clock = self.clock(now);
        let Some(progress) = self.progress.get_mut(&id) else {
            return;
        };
        let at = progress
            .last_visited_at
            .map_or(clock, |last| last.max(clock));
        progress.distributed += visits;
        progress.last_number += visits;
        progress.last_visited_at = Some(at);
        let ledger = self.ledger.entry(id).or_default();
        ledger.visits += visits;
        ledger.last_at = Some(at);
    }

    pub(super) fn write_back(&mut self, ids: &[Uuid]) -> (Vec<WrittenBack>, Vec<Change>) {
        let mut written = Vec::new();
        let mut changes = Vec::new();
        for id in ids.iter().filter(|id| !self.open.contains_key(id)) {
            let (Some(row), Some(progress)) = (self.rows.get_mut(id), self.progress.get(id)) else {
                continue;
            };
            let changed = row.written != progress.distributed;
            row.written = progress.distributed;
            written.push(WrittenBack {
                id: *id,
                distributed: progress.distributed,
                changed,
            });
            if changed {
                let version = row.version();
                changes.push(Change { id: *id, version });
            }
        }
        (written, changes)
    }

    /// As `visit_pacer_initialise()`.
    pub(super) fn initialise(&mut self, now: DbTime) -> Vec<Change> {
        let mut changes = Vec::new();
        for row in self.rows.values_mut() {
            if row.anchored.is_none() && !self.open.contains_key(&row.id) {
                let progress = self.progress.entry(row.id).or_default();
                let units = i128::from(progress.distributed) * VISIT;
                row.anchored = Some((now.as_micros(), units, now));
                changes.push(Change {
                    id: row.id,
                    version: row.version(),
                });
            }
        }
        changes
    }

    /// As the agents' beat: who is there beside `me`.
    pub(super) fn beat(&mut self, me: Uuid, serving: bool, now: DbTime) -> Vec<Peer> {
        self.agents.insert(me, (now, serving));
        let gone_after = micros_of(AGENT_GONE_AFTER);
        let there = |at: DbTime| (-SECOND_US..=gone_after).contains(&now.micros_since(at));
        let others = self
            .agents
            .iter()
            .filter(|(id, (seen_at, _))| **id != me && there(*seen_at));
        others
            .map(|(id, (_, serving))| Peer {
                id: *id,
                serving: *serving,
            })
            .collect()
    }

    pub(super) fn mark_invalid(&mut self, id: Uuid, why: String) {
        if let Some(progress) = self.progress.get_mut(&id) {
            progress.invalid = Some(why);
        }
    }

    /// Exactly once: what progress counts is what is stored, numbered from 1 without a gap.
    pub(super) fn check(&self) {
        for (id, progress) in &self.progress {
            let stored = self.ledger.get(id).map_or(0, |ledger| ledger.visits);
            assert_eq!(
                (progress.distributed, progress.last_number),
                (stored, stored),
                "{id}"
            );
        }
    }
}
