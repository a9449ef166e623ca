//! What must hold, read from the database alone: after each step, and across each step that stored something.

use std::fmt;

use serde::Deserialize;
use sqlx::PgConnection;
use uuid::Uuid;

use super::actor::Stored;

/// Visits that a row's bucket holds when it is full, at the pace of these rows; it refills by less than one in a minute.
const BUCKET_VISITS: i64 = 2;

/// What can be wrong with a schedule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Wrong {
    /// A statement failed.
    Failed,
    /// Somebody waited for a lock who may not.
    Waited,
    /// Two or more waited for each other.
    Deadlock,
    /// Visits were stored after the commit of a pause, a delete, or a pause of everything.
    UnderPause,
    /// A batch was stored that was computed from a row as it was before an edit's commit.
    OldRow,
    /// More was stored than was due.
    AheadOfCurve,
    /// Visits were stored after the end of the window.
    AfterTheEnd,
    /// More was stored than the shared bucket held.
    BeyondBucket,
    /// A number was given twice, or left out.
    Numbers,
    /// The counters disagree with what is stored.
    Counters,
    /// Once all is quiet, an agent does not get to what is due.
    Stuck,
}

/// What was wrong, and how.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Its kind.
    pub kind: Wrong,
    /// In words.
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

/// One row as committed.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct RowState {
    /// The row, which may be gone.
    pub id: Uuid,
    /// Whether visits may be stored: it is there, active, and not everything is paused.
    pub open: bool,
    /// `config_version`; null where it is gone.
    pub version: Option<i64>,
    /// Due now; null where it is gone.
    pub due: Option<i64>,
    /// Whether the row is there and paused.
    pub paused: bool,
    /// `total_distributed`
    pub told: Option<i64>,
    /// Progress.
    pub distributed: i64,
    /// Progress.
    pub last_number: i64,
    /// Progress.
    pub purged: i64,
    /// Progress.
    pub baseline: i64,
    /// In `store_visits`.
    pub stored: i64,
    /// Different numbers in `store_visits`.
    pub numbers: i64,
    /// Visits whose `visited_at` lies after the row's end.
    pub after_end: i64,
}

const LOOK: &str = "
  select to_json(r)::text from (
    select p.distribution_id as id, coalesce(v.is_active and not c.paused, false) as open, v.config_version as version,
           public.visit_distribution_due(v.id, clock_timestamp()) as due, coalesce(not v.is_active, false) as paused,
           v.total_distributed::bigint as told, p.distributed, p.last_number, p.purged, p.baseline, s.*
      from visit_distribution_progress p
      cross join visit_pacer_control c
      left join visit_distribution v on v.id = p.distribution_id
      cross join lateral (
        select count(*) as stored, count(distinct s.visit_number) as numbers,
               count(*) filter (where s.visited_at > v.end_time) as after_end
          from store_visits s where s.distribution_id = p.distribution_id) s
     order by p.distribution_id) r";

/// What is committed now, of every row.
pub async fn look(connection: &mut PgConnection) -> Vec<RowState> {
    let rows: Vec<String> = sqlx::query_scalar(LOOK)
        .fetch_all(connection)
        .await
        .expect("a look at the rows");
    rows.iter()
        .map(|row| serde_json::from_str(row).expect("a row as this look has it"))
        .collect()
}

/// Checks a step: what was committed before and after it, and what batches say that they stored meanwhile. `sql_functions`: visits
/// may be added beyond curve and bucket.
pub fn check(
    before: &[RowState],
    after: &[RowState],
    stored: &[Stored],
    sql_functions: bool,
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
            say(Wrong::Numbers, "numbers run from 1 without gap or double");
        }
        if is.distributed != is.stored + is.purged + is.baseline {
            say(Wrong::Counters, "counted is what is stored");
        }
        if is.paused && !was.paused && is.told != Some(is.distributed) {
            say(Wrong::Counters, "a pause tells what was distributed");
        }
        let from_old = |(id, version): &Stored| *id == was.id && Some(*version) != was.version;
        if stored.iter().any(from_old) {
            say(Wrong::OldRow, "a batch is of the row as it is");
        }
        if is.stored <= was.stored {
            continue;
        }
        if !was.open {
            say(Wrong::UnderPause, "nothing is stored under a pause");
        }
        if is.after_end > was.after_end {
            say(Wrong::AfterTheEnd, "no visit is later than the end");
        }
        if !sql_functions && is.due.is_some_and(|due| is.distributed > due) {
            say(Wrong::AheadOfCurve, "never ahead of the curve");
        }
        if !sql_functions && is.distributed - is.baseline > BUCKET_VISITS {
            say(Wrong::BeyondBucket, "all share one bucket");
        }
    }
    wrong
}
