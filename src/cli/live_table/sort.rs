//! Filter and order of the rows of a live table.
//!
//! Pure, and stable: equal rows stay in the order of the snapshot in both directions, and rows without a value come last.

use std::cmp::Ordering;

use crate::cli::snapshot::LiveStatus;
use crate::cli::table::{COLUMNS, TableColumn};
use crate::postgres::status::StatusRow;

/// A column and a direction. By status means the order of the snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sort {
    by: TableColumn,
    is_descending: bool,
}

impl Default for Sort {
    fn default() -> Self {
        Self {
            by: TableColumn::Status,
            is_descending: false,
        }
    }
}

impl Sort {
    /// The next column to the right, or again the first; numbers in descending order.
    #[must_use]
    pub fn next(self) -> Self {
        let by = (COLUMNS.into_iter().chain(COLUMNS))
            .skip_while(|column| *column != self.by)
            .skip(1)
            .find(|column| *column != TableColumn::Bar)
            .unwrap_or(self.by);
        Self {
            by,
            is_descending: by.is_number(),
        }
    }

    /// The other direction.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            is_descending: !self.is_descending,
            ..self
        }
    }

    /// The column, and an arrow for the direction.
    pub fn mark(self) -> (TableColumn, &'static str) {
        (self.by, if self.is_descending { "↓" } else { "↑" })
    }

    /// The same as text.
    pub fn words(self) -> String {
        let title = if self.by == TableColumn::Percent {
            "percent"
        } else {
            self.by.title()
        };
        format!("{title}{}", self.mark().1)
    }

    fn compare(self, one: Option<&SortKey>, other: Option<&SortKey>) -> Ordering {
        match (one, other) {
            (Some(one), Some(other)) => {
                let order = one.partial_cmp(other).unwrap_or(Ordering::Equal);
                if self.is_descending {
                    order.reverse()
                } else {
                    order
                }
            }
            (one, other) => other.is_some().cmp(&one.is_some()),
        }
    }
}

/// All keys of a column are of one kind.
#[derive(PartialEq, PartialOrd)]
enum SortKey {
    Whole(i128),
    Real(f64),
    Text(String),
}

fn key(row: &StatusRow, place: usize, by: TableColumn, live: &LiveStatus) -> Option<SortKey> {
    let whole = |number: i64| SortKey::Whole(number.into());
    match by {
        TableColumn::Status => i128::try_from(place).ok().map(SortKey::Whole),
        TableColumn::Partner => (row.partner.as_deref())
            .map(|name| SortKey::Text(name.trim().to_lowercase()))
            .or_else(|| (row.partner_id.as_ref()).map(|id| SortKey::Text(id.to_string()))),
        TableColumn::Target => row.asked.map(SortKey::Real),
        TableColumn::Actual => live.rates.get(&row.id).copied().map(SortKey::Real),
        TableColumn::Distributed => row.distributed.map(whole),
        TableColumn::Percent | TableColumn::Bar => {
            let total = i128::from(row.total_visits?);
            let done = i128::from(row.distributed?);
            (total > 0).then(|| SortKey::Whole(done * 1_000_000 / total))
        }
        TableColumn::Backlog => row.backlog.map(whole),
        TableColumn::Completes => row.completes_at.map(|at| whole(at.as_micros())),
        TableColumn::Id => Some(SortKey::Text(row.id.to_string())),
    }
}

/// The places of the rows that contain `filter` (of any case), in order.
pub fn arranged(live: &LiveStatus, filter: &str, sort: Sort) -> Vec<usize> {
    let filter = filter.to_lowercase();
    let filter = filter.trim();
    let mut found: Vec<(usize, Option<SortKey>)> = (live.rows().iter().enumerate())
        .filter(|(_, row)| matches(row, filter))
        .map(|(place, row)| (place, key(row, place, sort.by, live)))
        .collect();
    found.sort_by(|(_, one), (_, other)| sort.compare(one.as_ref(), other.as_ref()));
    found.into_iter().map(|(place, _)| place).collect()
}

fn matches(row: &StatusRow, filter: &str) -> bool {
    let has = |text: &str| text.to_lowercase().contains(filter);
    filter.is_empty()
        || has(&row.status)
        || row.partner.as_deref().is_some_and(has)
        || row.reason.as_deref().is_some_and(has)
        || (row.partner_id.as_ref()).is_some_and(|id| has(&id.to_string()))
        || has(&row.id.to_string())
}
