//! What must hold after each step of an interleaving, and across each step that stored visits.

use std::fmt;

use serde::Deserialize;
use sqlx::PgConnection;
use uuid::Uuid;

/// A distribution of which a batch stored visits, and the `config_version` that the batch was computed from.
pub type StoredRow = (Uuid, i64);

/// Visits in a full bucket of these distributions, which gain less than one a minute.
const BUCKET_VISITS: i64 = 2;

/// What can go wrong in an interleaving.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Wrong {
    /// A statement failed.
    Failed,
    /// A session waited for a lock that it must not wait for.
    Waited,
    /// Sessions waited for each other.
    Deadlock,
    /// Visits were stored after the commit of a pause, a delete, or a pause of all.
    DuringPause,
    /// A batch was stored that was computed before the commit of an edit.
    OldVersion,
    /// More visits were stored than were due.
    AheadOfCurve,
    /// Visits are dated after the end of the window.
    AfterTheEnd,
    /// More visits were stored than the shared bucket held.
    BeyondBucket,
    /// A visit number was given twice, or left out.
    Numbers,
    /// The counters are not those of the stored visits.
    Counters,
    /// In the end, an agent alone does not store what is due.
    Stuck,
}

/// One thing that went wrong.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Its kind.
    pub kind: Wrong,
    /// For people.
    pub how: String,
}

impl Violation {
    /// Of that kind.
    pub fn new(kind: Wrong, how: impl Into<String>) -> Self {
        Self {
            kind,
            how: how.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.how)
    }
}

/// One distribution as committed.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct RowState {
    /// Its id. It may have been deleted.
    pub id: Uuid,
    /// Whether visits may be stored: it exists, is active, and not all are paused.
    pub open: bool,
    /// `config_version`, or null if deleted.
    pub version: Option<i64>,
    /// Due now, or null if deleted.
    pub due: Option<i64>,
    /// Whether it exists and is paused.
    pub paused: bool,
    /// The user's column.
    pub total_distributed: Option<i64>,
    /// As in progress.
    pub distributed: i64,
    /// As in progress.
    pub last_number: i64,
    /// As in progress.
    pub purged: i64,
    /// As in progress.
    pub baseline: i64,
    /// Visits in `store_visits`.
    pub stored: i64,
    /// Different visit numbers in `store_visits`.
    pub numbers: i64,
    /// Visits dated after the end of the window.
    pub after_end: i64,
}

const STATES: &str = "
  select to_json(r)::text from (
    select p.distribution_id as id, coalesce(v.is_active and not c.paused, false) as open, v.config_version as version,
           public.visit_distribution_due(v.id, clock_timestamp()) as due, coalesce(not v.is_active, false) as paused,
           v.total_distributed::bigint as total_distributed, p.distributed, p.last_number, p.purged, p.baseline, s.*
      from visit_distribution_progress p
      cross join visit_pacer_control c
      left join visit_distribution v on v.id = p.distribution_id
      cross join lateral (
        select count(*) as stored, count(distinct s.visit_number) as numbers,
               count(*) filter (where s.visited_at > v.end_time) as after_end
          from store_visits s where s.distribution_id = p.distribution_id) s
     order by p.distribution_id) r";

/// What is committed now.
pub async fn states(connection: &mut PgConnection) -> Vec<RowState> {
    let rows: Vec<String> = sqlx::query_scalar(STATES)
        .fetch_all(connection)
        .await
        .expect("the rows");
    rows.iter()
        .map(|row| serde_json::from_str(row).expect("the columns of the query"))
        .collect()
}

/// Checks a step: what was committed before and after it, and what batches report as stored. `manual`: visits may be added
/// beyond curve and bucket.
pub fn check(
    before: &[RowState],
    after: &[RowState],
    stored: &[StoredRow],
    manual: bool,
) -> Vec<Violation> {
    let mut wrong = Vec::new();
    for (was, is) in before.iter().zip(after) {
        let mut say = |kind, how: &str| {
            wrong.push(Violation::new(
                kind,
                format!("{how}: {was:?} became {is:?}"),
            ));
        };
        if is.numbers != is.stored || is.last_number != is.stored + is.purged {
            say(
                Wrong::Numbers,
                "expected numbers from 1 without gap or duplicate",
            );
        }
        if is.distributed != is.stored + is.purged + is.baseline {
            say(
                Wrong::Counters,
                "expected the number of stored visits as counter",
            );
        }
        if is.paused && !was.paused && is.total_distributed != Some(is.distributed) {
            say(
                Wrong::Counters,
                "expected a pause to write total_distributed",
            );
        }
        let from_old = |(id, version): &StoredRow| *id == was.id && Some(*version) != was.version;
        if stored.iter().any(from_old) {
            say(Wrong::OldVersion, "expected batches of the present version");
        }
        if is.stored <= was.stored {
            continue;
        }
        if !was.open {
            say(Wrong::DuringPause, "expected no visits during a pause");
        }
        if is.after_end > was.after_end {
            say(Wrong::AfterTheEnd, "expected no visit after the end");
        }
        if !manual && is.due.is_some_and(|due| is.distributed > due) {
            say(Wrong::AheadOfCurve, "expected no more than the curve");
        }
        if !manual && is.distributed - is.baseline > BUCKET_VISITS {
            say(Wrong::BeyondBucket, "expected one bucket for all");
        }
    }
    wrong
}
