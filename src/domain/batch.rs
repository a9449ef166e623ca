//! What one statement stores: everything is decided here, and the writer only executes.

use uuid::Uuid;

use super::bucket::Bucket;
use super::partner::PartnerId;
use super::time::DbTime;

/// How far a row has come, as `visit_distribution_progress` has it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Visits distributed: stored, purged or counted before our time.
    pub distributed: i64,
    /// The highest visit number given; never used again.
    pub last_number: i64,
    /// The row's token bucket.
    pub bucket: Bucket,
    /// `visited_at` of the last visit stored.
    pub last_visited_at: Option<DbTime>,
    /// What the database said when an insert for this row failed.
    pub invalid: Option<String>,
}

/// The visits of one or more rows that are committed in one transaction.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    /// Each row once.
    pub rows: Vec<BatchRow>,
}

impl Batch {
    /// Visits in all.
    pub fn visits(&self) -> i64 {
        self.rows.iter().map(BatchRow::visits).sum()
    }
}

/// One row's part of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BatchRow {
    /// The row.
    pub id: Uuid,
    /// Its partner.
    pub partner_id: PartnerId,
    /// The `config_version` that this was computed from.
    pub version: i64,
    /// The progress that this was computed from.
    pub before: Progress,
    /// The progress once it is committed.
    pub after: Progress,
    /// The instant of DB time that this was computed for.
    pub at: DbTime,
    /// `visited_at` of each visit; the first one's number is `before.last_number + 1`.
    pub visit_times: Vec<DbTime>,
}

impl BatchRow {
    /// Visits of this row.
    pub fn visits(&self) -> i64 {
        self.after.last_number - self.before.last_number
    }
}
