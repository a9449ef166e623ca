//! The database, as far as agents can tell: rows whose versions and anchors a trigger moves, progress with compare-and-set,
//! the visits themselves, locks of other sessions, and a clock of its own.
//!
//! Each public function is one statement, or one transaction of an editor. The reference checks what it commits. Edits of
//! people are in `database/people.rs`.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;
use visit_pacer::domain::agent::{
    BatchOutcome, CountDifference, Published, ReadRequest, ReadResult, WrittenBack, XidWatermark,
};
use visit_pacer::domain::batch::{Batch, BatchRow, Progress};
use visit_pacer::domain::distribution::RawRow;
use visit_pacer::domain::error_policy::{ErrorKind, Failure};
use visit_pacer::domain::limits::{AGENT_GONE_AFTER, VISITS_PER_BATCH, VISITS_PER_ROW};
use visit_pacer::domain::ownership::PeerAgent;
use visit_pacer::domain::schedule::{Control, RowRead};
use visit_pacer::domain::time::{DbTime, SECOND_US, micros_of};

use crate::reference::{Commit, Reference, Terms};
use crate::seen::Seen;

mod people;

/// Another agent or function has stored visits of the row meanwhile.
const RACED: &str = "refused: the progress has moved";

/// Rows that one statement reads, so that a full sync takes several.
const PART: usize = 4;

/// A row of `visit_distribution`.
#[derive(Clone, Debug)]
pub struct Row {
    pub id: Uuid,
    pub terms: Terms,
    /// A multiple of the rate, not in thousandths.
    pub catch_up: Option<i64>,
    /// `None`: no trigger has seen the row.
    pub anchor: Option<Anchor>,
    /// `total_distributed`.
    pub written: i64,
    /// The transaction of the last edit; `None`: no trigger has seen the row.
    pub changed: Option<u64>,
}

/// What the trigger writes.
#[derive(Clone, Copy, Debug)]
pub struct Anchor {
    pub version: i64,
    /// In the reference's parts of a visit.
    pub parts: i128,
    pub at: i64,
}

impl Row {
    pub fn version(&self) -> Option<i64> {
        self.anchor.map(|anchor| anchor.version)
    }

    /// Whether it is valid.
    pub fn is_sound(&self) -> bool {
        self.terms.milli >= 0
    }

    fn raw(&self) -> RawRow {
        let thousandths = |n: i64| format!("{}.{:03}", n / 1_000, n % 1_000);
        let period = match self.terms.period_s {
            1 => "second",
            60 => "minute",
            3_600 => "hour",
            _ => "day",
        };
        let rate = if self.is_sound() {
            thousandths(self.terms.milli)
        } else {
            "-1".to_owned()
        };
        RawRow {
            id: self.id,
            partner_id: Some(self.terms.partner.into()),
            config_version: self.version(),
            is_active: Some(self.terms.active),
            total_visits: Some(self.terms.total.to_string().into()),
            visits_per_unit: Some(rate.into()),
            time_period: Some(period.into()),
            start_time: Some(DbTime::from_micros(self.terms.start)),
            end_time: self.terms.end.map(DbTime::from_micros),
            catch_up: self.catch_up.map(|times| times.to_string().into()),
            // The column's unit is 1/86,400,000,000 visit: a thousand parts.
            anchor_units: self
                .anchor
                .map(|a| format!("{}.{:03}", a.parts / 1_000, a.parts % 1_000).into()),
            anchor_at: self.anchor.map(|a| DbTime::from_micros(a.at)),
        }
    }
}

/// An editor's open transaction, which locks the row.
pub enum Pending {
    /// The row as it will be, and when the UPDATE ran; its `changed` is this transaction.
    Update(Box<Row>, i64),
    /// By this transaction.
    Delete(u64),
    /// It only locks the row.
    Hold,
}

impl Pending {
    fn xid(&self) -> Option<u64> {
        match self {
            Self::Update(row, _) => row.changed,
            Self::Delete(xid) => Some(*xid),
            Self::Hold => None,
        }
    }
}

/// What a commit did to the published table.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub id: Uuid,
    pub version: Option<i64>,
    pub kind: &'static str,
}

impl Change {
    fn update(row: &Row) -> Self {
        Self {
            id: row.id,
            version: row.version(),
            kind: "UPDATE",
        }
    }
}

/// Which process sent a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Storer {
    pub host: usize,
    pub life: u32,
}

#[derive(Default)]
pub struct Database {
    pub rows: BTreeMap<Uuid, Row>,
    pub progress: BTreeMap<Uuid, Progress>,
    /// The transaction that last decreased a row's counter.
    pub decreased: BTreeMap<Uuid, u64>,
    /// The transactions that deleted rows, and the one that truncated the table last.
    pub deletions: BTreeMap<Uuid, u64>,
    pub truncated: Option<u64>,
    /// The last transaction that wrote.
    pub xid: u64,
    /// The numbers of `store_visits`, by row.
    pub visits: BTreeMap<Uuid, BTreeSet<i64>>,
    pub open: BTreeMap<Uuid, Pending>,
    pub held_partners: BTreeSet<Uuid>,
    pub control: Control,
    pub control_held: bool,
    /// The control row's `catch_up`, of all times: an agent learns of another one within a second.
    pub greatest_catch_up: i64,
    /// Rows whose inserts fail.
    pub poisoned: BTreeSet<Uuid>,
    /// Rows that were invalid at some time, or of which an insert has failed.
    pub ever_bad: BTreeSet<Uuid>,
    /// The last heartbeat of each agent, and whether it serves.
    pub agents: BTreeMap<Uuid, (i64, bool)>,
    pub canary_published: bool,
    /// broadcast.sql was run.
    pub broadcasts: bool,
    pub clock: Clock,
    pub reference: Reference,
    /// Which process stored visits of each row last.
    pub last_storer: BTreeMap<Uuid, Storer>,
    /// From here on every batch must bring its rows exactly onto their curves.
    pub on_time: bool,
    /// … and no row is stored by two agents.
    pub one_agent_each: bool,
    pub stored: i64,
    pub seen: Seen,
}

/// The database's clock: off by hours, drifting, stepping.
#[derive(Default)]
pub struct Clock {
    pub offset: i64,
    /// Millionths by which it is fast.
    pub drift_ppm: i64,
}

impl Clock {
    /// What it shows at a moment of true time.
    pub fn at(&self, now: i64) -> i64 {
        now + now * self.drift_ppm / 1_000_000 + self.offset
    }
}

impl Database {
    pub fn read(&self, what: &ReadRequest) -> ReadResult {
        let wanted = |row: &&Row| match what {
            ReadRequest::All => true,
            ReadRequest::After(last) => row.id > *last,
            ReadRequest::Rows(ids) => ids.contains(&row.id),
            ReadRequest::Since(XidWatermark(watermark)) => {
                let decreased = self.decreased.get(&row.id);
                row.changed.is_none_or(|xid| xid >= *watermark)
                    || decreased.is_some_and(|xid| xid >= watermark)
            }
        };
        let rows = self.rows.values().filter(wanted);
        let rows = rows.map(|row| RowRead {
            row: row.raw(),
            progress: self.progress.get(&row.id).cloned(),
            written: Some(row.written),
        });
        let bound = !matches!(what, ReadRequest::Rows(_));
        let rows: Vec<RowRead> = rows.take(if bound { PART } else { usize::MAX }).collect();
        let last = rows.last().map(|read| read.row.id);
        let since = |xid: u64| matches!(what, ReadRequest::Since(XidWatermark(watermark)) if xid >= *watermark);
        let deletions = self.deletions.iter().filter(|(_, xid)| since(**xid));
        let deletions = deletions.map(|(id, _)| *id);
        ReadResult {
            more_after: last.filter(|_| bound && rows.len() == PART),
            rows,
            deletions: deletions.filter(|id| !self.rows.contains_key(id)).collect(),
            truncated: self.truncated.is_some_and(since),
            watermark: Some(self.watermark()),
        }
    }

    /// The oldest transaction in progress.
    fn watermark(&self) -> XidWatermark {
        let open = self.open.values().filter_map(Pending::xid);
        XidWatermark(open.min().unwrap_or(self.xid + 1))
    }

    /// A transaction that writes.
    pub fn next_xid(&mut self) -> u64 {
        self.xid += 1;
        self.xid
    }

    /// As `visit_pacer_store()`.
    pub fn store(&mut self, batch: &Batch, storer: Storer, clock: i64) -> BatchOutcome {
        assert!(
            batch.visits() <= VISITS_PER_BATCH,
            "a statement holds at most 10,000 visits"
        );
        let ids: BTreeSet<Uuid> = batch.rows.iter().map(|row| row.id).collect();
        assert_eq!(ids.len(), batch.rows.len(), "each row once");
        let mut taken = Vec::new();
        for row in &batch.rows {
            assert!(
                (1..=VISITS_PER_ROW).contains(&row.visits()),
                "a row has 1 to 1,000 visits"
            );
            assert_eq!(i64::try_from(row.visit_times.len()), Ok(row.visits()));
            match self.refusal(row, clock) {
                None => taken.push(row),
                Some(why) => {
                    let raced = self.one_agent_each && why == RACED;
                    assert!(!raced, "{}: agents race in the calm", row.id);
                    self.seen.saw(why);
                }
            }
        }
        if let Some(bad) = taken.iter().find(|row| self.fails(row)) {
            self.seen.saw("an insert fails");
            self.ever_bad.insert(bad.id);
            let words = format!("row {} cannot be stored", bad.id);
            return BatchOutcome::Failed(Failure::new(ErrorKind::Data, words));
        }
        for row in &taken {
            self.commit(row, storer, clock);
        }
        BatchOutcome::Committed(taken.iter().map(|row| row.id).collect())
    }

    /// Why a row of a batch is refused, as `seen` names it. The reference checks that the total is not exceeded.
    fn refusal(&self, batch: &BatchRow, clock: i64) -> Option<&'static str> {
        let (Some(row), Some(progress)) = (self.rows.get(&batch.id), self.progress.get(&batch.id))
        else {
            return Some("refused: the row was deleted");
        };
        let before = &batch.before;
        let moved = progress.last_number != before.last_number
            || progress.distributed != before.distributed
            || progress.bucket.at_column() != before.bucket.at_column();
        if self.control.paused || self.control_held {
            Some("refused: everything is paused, or the control row held")
        } else if self.open.contains_key(&batch.id) {
            Some("refused: the row is held")
        } else if !row.terms.active {
            Some("refused: the row was paused while the batch was under way")
        } else if row.version() != Some(batch.version) {
            Some("refused: the row is of another version")
        } else if batch.at.as_micros() > clock {
            Some("refused: for an instant yet to come")
        } else if self.held_partners.contains(&row.terms.partner) {
            Some("refused: the partner is held")
        } else if moved {
            Some(RACED)
        } else {
            None
        }
    }

    /// A trigger that raises for the row, or the unique index.
    fn fails(&self, row: &BatchRow) -> bool {
        let numbers = row.before.last_number + 1..=row.after.last_number;
        let stored = self.visits.get(&row.id);
        let again = stored.is_some_and(|stored| stored.range(numbers).next().is_some());
        assert!(
            !again,
            "{}: only the unique index keeps a visit from being stored twice",
            row.id
        );
        self.poisoned.contains(&row.id)
    }

    fn commit(&mut self, batch: &BatchRow, storer: Storer, clock: i64) {
        let row = &self.rows[&batch.id];
        let everybodys = self.greatest_catch_up.max(self.control.catch_up_milli);
        let visit_times: Vec<i64> = batch.visit_times.iter().map(|at| at.as_micros()).collect();
        self.reference.stored(&Commit {
            id: batch.id,
            partner: row.terms.partner,
            version: batch.version,
            first_number: batch.before.last_number + 1,
            instant: batch.at.as_micros(),
            visit_times: &visit_times,
            clock,
            catch_up_milli: row.catch_up.map_or(everybodys, |times| times * 1_000),
            stopped: self.control.paused,
        });
        if self.on_time {
            self.check_on_time(batch, storer, clock);
        }
        let before = self.last_storer.insert(batch.id, storer);
        if before.is_some_and(|before| before.host != storer.host) {
            self.seen.saw("a row taken over by another agent");
        }
        let numbers = batch.before.last_number + 1..=batch.after.last_number;
        self.visits.entry(batch.id).or_default().extend(numbers);
        self.stored += batch.visits();
        self.progress.insert(batch.id, batch.after.clone());
    }

    /// In the calm each fire brings its row onto the curve at its instant, soon after it, and by one agent.
    fn check_on_time(&self, batch: &BatchRow, storer: Storer, clock: i64) {
        let (id, instant) = (batch.id, batch.at.as_micros());
        let due = self.reference.due(id, instant);
        assert_eq!(batch.after.distributed, due, "{id} is on time");
        let late = clock - instant;
        assert!(
            late < SECOND_US + SECOND_US / 2,
            "{id} is late by {late} µs"
        );
        let before = self.last_storer.get(&id).filter(|_| self.one_agent_each);
        let same = before.is_none_or(|before| *before == storer);
        assert!(same, "{id} has one agent in the calm");
    }

    pub fn write_back(&mut self, ids: &[Uuid]) -> (Vec<WrittenBack>, Vec<Change>) {
        let mut written = Vec::new();
        let mut changes = Vec::new();
        for id in ids.iter().filter(|id| !self.open.contains_key(id)) {
            let (Some(row), Some(progress)) = (self.rows.get_mut(id), self.progress.get(id)) else {
                continue;
            };
            let distributed = progress.distributed;
            let changed = row.written != distributed;
            row.written = distributed;
            written.push(WrittenBack {
                id: *id,
                distributed,
                changed,
            });
            if changed {
                changes.push(Change::update(row));
            }
        }
        (written, changes)
    }

    /// As `visit_pacer_initialise()`: earlier time is not backfilled.
    pub fn initialise(&mut self, clock: i64) -> Vec<Change> {
        let mut changes = Vec::new();
        let xid = self.next_xid();
        for row in self.rows.values_mut() {
            if row.anchor.is_none() && !self.open.contains_key(&row.id) {
                let progress = self.progress.entry(row.id).or_default();
                let parts = i128::from(progress.distributed) * crate::reference::VISIT;
                row.anchor = Some(Anchor {
                    version: clock,
                    parts,
                    at: clock,
                });
                row.changed = Some(xid);
                let begins = progress.distributed;
                self.reference
                    .inserted(row.id, &row.terms, clock, clock, begins);
                changes.push(Change::update(row));
            }
        }
        changes
    }

    /// As an agent's heartbeat: the live agents beside `me`.
    pub fn heartbeat(&mut self, me: Uuid, serving: bool, clock: i64) -> Vec<PeerAgent> {
        self.agents.insert(me, (clock, serving));
        let gone_after = micros_of(AGENT_GONE_AFTER);
        let there = |at: i64| (-SECOND_US..=gone_after).contains(&(clock - at));
        let others = self
            .agents
            .iter()
            .filter(|(id, (seen_at, _))| **id != me && there(*seen_at));
        others
            .map(|(id, (_, serving))| PeerAgent {
                id: *id,
                serving: *serving,
            })
            .collect()
    }

    /// As `visit_pacer_count_mismatches()`, then `visit_pacer_reconcile_row()` for each that differs.
    pub fn reconcile(&mut self, ids: &[Uuid]) -> Vec<CountDifference> {
        let mut findings = Vec::new();
        for id in ids {
            if !self.rows.contains_key(id) || self.open.contains_key(id) {
                continue;
            }
            let Some(distributed) = self.progress.get(id).map(|progress| progress.distributed)
            else {
                continue;
            };
            let missing = distributed - self.count(*id);
            if missing < 0 {
                self.seen.saw("a counter that was too low is raised");
                self.recount(*id);
            }
            if missing > 0 {
                self.seen.saw("missing visits are found");
            }
            if missing != 0 {
                let (missing, changed) = (missing.max(0), missing < 0);
                let message = "counted".to_owned();
                findings.push(CountDifference {
                    id: *id,
                    missing,
                    changed,
                    message,
                });
            }
        }
        findings
    }

    /// Returns whether no session locked the row.
    pub fn mark_invalid(&mut self, id: Uuid, why: String) -> bool {
        let free = self.rows.contains_key(&id) && !self.open.contains_key(&id);
        if let Some(progress) = self.progress.get_mut(&id).filter(|_| free) {
            progress.invalid = Some(why);
        }
        free
    }

    pub fn published(&self) -> Published {
        Published {
            distributions: true,
            canary: self.canary_published,
            visits: false,
            anywhere: true,
            broadcasts: self.broadcasts,
        }
    }

    /// Visits stored of a row.
    pub fn count(&self, id: Uuid) -> i64 {
        let stored = self.visits.get(&id).map_or(0, BTreeSet::len);
        i64::try_from(stored).expect("few")
    }

    /// Progress is what was committed, no more and no less.
    pub fn check(&self) {
        for (id, progress) in &self.progress {
            let counters = (progress.distributed, progress.last_number);
            assert_eq!(
                counters,
                self.reference.counters(*id),
                "{id}: distributed, last number"
            );
        }
    }

    fn recount(&mut self, id: Uuid) {
        let counted = self.count(id);
        let xid = self.next_xid();
        let highest = self
            .visits
            .get(&id)
            .and_then(|numbers| numbers.last().copied());
        let progress = self.progress.entry(id).or_default();
        if counted < progress.distributed {
            self.decreased.insert(id, xid);
        }
        progress.distributed = counted;
        progress.last_number = progress.last_number.max(highest.unwrap_or(0));
        self.reference
            .recounted(id, counted, progress.last_number, None);
    }
}

/// A moment of the database's clock, as the program represents it.
pub fn db_time(clock: i64) -> DbTime {
    DbTime::from_micros(clock)
}
