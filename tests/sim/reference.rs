//! What must be stored, as simple as possible: the log of committed edits, an exact curve over it, and the promises.
//!
//! It shares no code with the program. It calculates the curve of a row from its whole log each time, in whole numbers of
//! parts of a visit, so nothing is rounded. It checks every visit that is stored, and knows nothing of agents, locks or
//! batches.

use std::collections::{BTreeMap, VecDeque};

use uuid::Uuid;

/// Parts of a visit: with rates in thousandths of a visit a second, minute, hour or day, and time in microseconds, every
/// value of a curve is a whole number of them.
pub const VISIT: i128 = 86_400 * 1_000_000_000;
const SECOND: i64 = 1_000_000;

/// What an editor writes. Times are microseconds of the database's clock.
#[derive(Clone, PartialEq, Debug)]
pub struct Terms {
    pub partner: Uuid,
    pub active: bool,
    pub total: i64,
    /// Thousandths of a visit in each `period_s`; negative in an invalid row.
    pub milli: i64,
    /// 1, 60, 3600 or 86400.
    pub period_s: i64,
    pub start: i64,
    pub end: Option<i64>,
}

impl Terms {
    /// Parts a microsecond.
    pub fn pace(&self) -> i128 {
        i128::from(self.milli) * i128::from(86_400 / self.period_s)
    }

    /// Where a curve that stood at `parts` at the moment `since` stands at `at`.
    fn rise(&self, parts: i128, since: i64, at: i64) -> i128 {
        let from = since.max(self.start);
        let until = self.end.map_or(at, |end| end.min(at));
        let risen = parts + self.pace() * i128::from((until - from).max(0));
        let most = risen.min(i128::from(self.total) * VISIT);
        if self.active { parts.max(most) } else { parts }
    }
}

/// A committed edit.
struct Edit {
    terms: Terms,
    version: i64,
    /// When its UPDATE ran.
    at: i64,
    /// The first of a row: it begins at this number of visits.
    begins: Option<i64>,
}

/// One row, and all that was ever stored of it.
#[derive(Default)]
struct Row {
    /// Empty while the row is deleted or not anchored.
    log: Vec<Edit>,
    /// Numbers given.
    last_number: i64,
    /// What its counter must say.
    counted: i64,
    last_moment: Option<i64>,
    /// How many were stored for which instant since the last edit.
    recent: VecDeque<(i64, i64)>,
}

/// Visits of one row that a transaction commits.
pub struct Commit<'a> {
    pub id: Uuid,
    pub partner: Uuid,
    pub version: i64,
    pub first_number: i64,
    /// For which instant it was computed.
    pub instant: i64,
    pub visit_times: &'a [i64],
    /// The database's clock.
    pub clock: i64,
    pub catch_up_milli: i64,
    /// Whether the control row pauses everything.
    pub stopped: bool,
}

#[derive(Default)]
pub struct Reference {
    rows: BTreeMap<Uuid, Row>,
}

impl Reference {
    pub fn inserted(&mut self, id: Uuid, terms: &Terms, version: i64, at: i64, begins: i64) {
        let (terms, begins) = (terms.clone(), Some(begins));
        let row = self.rows.entry(id).or_default();
        row.recent.clear();
        row.log = vec![Edit {
            terms,
            version,
            at,
            begins,
        }];
    }

    /// An edit that does not affect the rate only changes the version.
    pub fn edited(&mut self, id: Uuid, terms: &Terms, version: i64, at: i64) {
        let row = self.rows.get_mut(&id).expect("an edit follows an insert");
        let last = row.log.last_mut().expect("an edited row is there");
        if last.version != version {
            row.recent.clear();
        }
        if last.terms == *terms {
            last.version = version;
        } else {
            let (terms, begins) = (terms.clone(), None);
            row.log.push(Edit {
                terms,
                version,
                at,
                begins,
            });
        }
    }

    pub fn deleted(&mut self, id: Uuid) {
        self.rows.entry(id).or_default().log.clear();
    }

    /// The clock stepped: what was stored before cannot be assigned to an instant.
    pub fn clock_stepped(&mut self) {
        self.rows.values_mut().for_each(|row| row.recent.clear());
    }

    /// The counter was made to agree with what is stored, or visits were added by hand.
    pub fn recounted(&mut self, id: Uuid, counted: i64, last_number: i64, moment: Option<i64>) {
        let row = self.rows.entry(id).or_default();
        (row.counted, row.last_number) = (counted, last_number);
        row.last_moment = moment.or(row.last_moment);
    }

    /// The curve at a moment, in parts of a visit.
    pub fn parts(&self, id: Uuid, at: i64) -> i128 {
        let log = self.rows.get(&id).map_or(&[][..], |row| &row.log);
        let mut parts = 0;
        for (i, edit) in log.iter().enumerate() {
            parts = edit.begins.map_or(parts, |count| i128::from(count) * VISIT);
            let until = log.get(i + 1).map_or(at, |next| next.at);
            parts = edit.terms.rise(parts, edit.at, until);
        }
        parts
    }

    /// Whole visits due at a moment: visit k when the curve reaches k − 1/2.
    pub fn due(&self, id: Uuid, at: i64) -> i64 {
        let rounded = (2 * self.parts(id, at) + VISIT) / (2 * VISIT);
        let total = self.terms(id).map_or(0, |terms| terms.total);
        i64::try_from(rounded).expect("few").min(total)
    }

    pub fn terms(&self, id: Uuid) -> Option<&Terms> {
        self.rows.get(&id)?.log.last().map(|edit| &edit.terms)
    }

    /// What counter and last number must be.
    pub fn counters(&self, id: Uuid) -> (i64, i64) {
        self.rows
            .get(&id)
            .map_or((0, 0), |row| (row.counted, row.last_number))
    }

    /// Checks what is committed against the promises.
    pub fn stored(&mut self, commit: &Commit<'_>) {
        let Commit { id, clock, .. } = *commit;
        let visits = i64::try_from(commit.visit_times.len()).expect("few");
        let due = self.due(id, clock);
        let row = self
            .rows
            .get_mut(&id)
            .expect("stored rows have been inserted");
        let edit = row
            .log
            .last()
            .unwrap_or_else(|| panic!("{id} is deleted, and visits of it are committed"));
        let terms = &edit.terms;
        assert!(
            !commit.stopped,
            "all is paused, and visits of {id} are committed"
        );
        assert!(
            terms.active,
            "{id} is paused, and visits of it are committed"
        );
        assert_eq!(
            commit.version, edit.version,
            "{id} was edited, and a batch of the old row is committed"
        );
        assert_eq!(commit.partner, terms.partner, "{id} has another partner");
        assert_eq!(
            commit.first_number,
            row.last_number + 1,
            "{id}: numbers are 1 to n, each once"
        );
        row.last_number += visits;
        row.counted += visits;
        assert!(
            row.counted <= due,
            "{id} is ahead of its curve: {} of {due}",
            row.counted
        );
        let latest = terms.end.map_or(clock, |end| end.min(clock));
        for moment in commit.visit_times {
            let last = row.last_moment.replace(*moment).unwrap_or(*moment);
            assert!(last <= *moment, "{id} goes back in time");
            assert!(
                *moment <= latest.max(last),
                "{id} has a visit in the future or after its end"
            );
        }
        row.recent.push_back((commit.instant, visits));
        row.recent
            .retain(|(at, _)| *at > commit.instant - 5 * SECOND);
        let drained: i64 = row.recent.iter().map(|(_, visits)| visits).sum();
        let refill = terms.pace() * i128::from(commit.catch_up_milli) * i128::from(SECOND) / 1_000;
        let allowed = 6 * refill / VISIT + 3; // five seconds' worth and a bucket, which is rounded up
        assert!(
            i128::from(drained) <= allowed,
            "{id} drains {drained} visits in 5 s, {allowed} are allowed"
        );
    }
}
