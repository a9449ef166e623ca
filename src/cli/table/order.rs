//! Which rows a screen shows, and in which order.
//!
//! Pure, and stable: rows that are alike stay in the order of the look, whichever way it is sorted,
//! and rows that have no value in the column come last.

use std::cmp::Ordering;

use super::{COLUMNS, Column, Measured, StatusRow, reason};

/// By which column, and which way. The order of the look is the one by status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sort {
    by: Column,
    is_descending: bool,
}

impl Default for Sort {
    fn default() -> Self {
        Self {
            by: Column::Status,
            is_descending: false,
        }
    }
}

impl Sort {
    /// The column to the right, and again from the left; of numbers the largest first.
    #[must_use]
    pub fn next(self) -> Self {
        let by = (COLUMNS.into_iter().chain(COLUMNS))
            .skip_while(|column| *column != self.by)
            .skip(1)
            .find(|column| *column != Column::Bar)
            .unwrap_or(self.by);
        Self {
            by,
            is_descending: by.is_number(),
        }
    }

    /// The other way round.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            is_descending: !self.is_descending,
            ..self
        }
    }

    /// The column and the way.
    pub fn words(self) -> String {
        let title = if self.by == Column::Percent {
            "percent"
        } else {
            self.by.title()
        };
        format!("{title}{}", self.arrow())
    }

    pub(super) fn mark(self, column: Column) -> Option<&'static str> {
        (column == self.by).then(|| self.arrow())
    }

    fn arrow(self) -> &'static str {
        if self.is_descending { "↓" } else { "↑" }
    }

    fn compare(self, one: Option<&Key>, other: Option<&Key>) -> Ordering {
        match (one, other) {
            (Some(one), Some(other)) if self.is_descending => other.compare(one),
            (Some(one), Some(other)) => one.compare(other),
            (one, other) => other.is_some().cmp(&one.is_some()),
        }
    }
}

enum Key {
    Whole(i128),
    Real(f64),
    Text(String),
}

impl Key {
    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Whole(one), Self::Whole(other)) => one.cmp(other),
            (Self::Real(one), Self::Real(other)) => one.total_cmp(other),
            (Self::Text(one), Self::Text(other)) => one.cmp(other),
            _keys_of_two_columns => Ordering::Equal,
        }
    }

    fn of(row: &StatusRow, place: usize, by: Column, measured: &Measured) -> Option<Self> {
        let whole = |number: i64| Self::Whole(number.into());
        match by {
            Column::Status => i128::try_from(place).ok().map(Self::Whole),
            Column::Partner => (row.partner.as_deref())
                .map(|name| Self::Text(name.trim().to_lowercase()))
                .or_else(|| row.partner_id.map(|id| Self::Text(id.to_string()))),
            Column::Asked => row.asked.map(Self::Real),
            Column::Measured => measured.get(&row.id).copied().map(Self::Real),
            Column::Distributed => row.distributed.map(whole),
            Column::Percent | Column::Bar => {
                let total = i128::from(row.total_visits?);
                let done = i128::from(row.distributed?);
                (total > 0).then(|| Self::Whole(done * 1_000_000 / total))
            }
            Column::Backlog => row.backlog.map(whole),
            Column::Completes => row.completes_at.map(|at| whole(at.as_micros())),
            Column::Id => Some(Self::Text(row.id.to_string())),
        }
    }
}

/// The places in `rows` of those in which `filter` occurs, in order; in capitals or not.
pub fn arranged(rows: &[StatusRow], measured: &Measured, filter: &str, sort: Sort) -> Vec<usize> {
    let filter = filter.to_lowercase();
    let filter = filter.trim();
    let mut found: Vec<(usize, Option<Key>)> = (rows.iter().enumerate())
        .filter(|(_, row)| matches(row, filter))
        .map(|(place, row)| (place, Key::of(row, place, sort.by, measured)))
        .collect();
    found.sort_by(|(_, one), (_, other)| sort.compare(one.as_ref(), other.as_ref()));
    found.into_iter().map(|(place, _)| place).collect()
}

fn matches(row: &StatusRow, filter: &str) -> bool {
    let has = |text: &str| text.to_lowercase().contains(filter);
    let why = row.reason.as_deref();
    filter.is_empty()
        || has(&row.status)
        || row.partner.as_deref().is_some_and(has)
        || why.is_some_and(|why| has(why) || has(&reason(why)))
        || row.partner_id.is_some_and(|id| has(&id.to_string()))
        || has(&row.id.to_string())
}
