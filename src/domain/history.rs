//! What a row asked for over time: its edits, each with the curve that held from it until the next.
//!
//! Pure. Before the first edit that is known nothing is, but for a row that began with it: there the curve is that one's.

use std::fmt::Write as _;

use compact_str::CompactString;

use super::curve::Curve;
use super::distribution::{Distribution, RawRow};
use super::time::DbTime;

/// One edit of a row's pace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Edit {
    /// When it took effect.
    pub at: DbTime,
    /// Who: the database's session user, and the program.
    pub by: Option<String>,
    /// The row from then on.
    pub row: RawRow,
}

/// All edits that are known, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct History {
    edits: Vec<(Edit, Option<Curve>)>,
}

impl History {
    /// Of these edits, in any order.
    pub fn new(mut edits: Vec<Edit>) -> Self {
        edits.sort_by_key(|edit| (edit.at, edit.row.config_version));
        let edits = edits.into_iter().map(|edit| {
            let curve = Distribution::parse(&edit.row).ok().map(|row| row.curve);
            (edit, curve)
        });
        Self {
            edits: edits.collect(),
        }
    }

    /// Visits that were due at a moment; `None` where that is not known.
    pub fn due(&self, at: DbTime) -> Option<i64> {
        let after = self.edits.partition_point(|(edit, _)| edit.at <= at);
        let before = after
            .checked_sub(1)
            .or_else(|| self.is_whole().then_some(0));
        let (_, curve) = self.edits.get(before?)?;
        curve.as_ref().map(|curve| curve.due(at))
    }

    /// Since when it is known.
    pub fn begins(&self) -> Option<DbTime> {
        let (edit, curve) = self.edits.first()?;
        let from = curve
            .and_then(|curve| curve.from)
            .filter(|_| self.is_whole());
        Some(from.map_or(edit.at, |from| from.min(edit.at)))
    }

    /// Whether the first edit that is known is the row's beginning, before which nothing was asked for.
    fn is_whole(&self) -> bool {
        let first = self.edits.first().and_then(|(_, curve)| curve.as_ref());
        first.is_some_and(|curve| curve.anchor == 0)
    }

    /// Each edit in words, with when and by whom.
    pub fn told(&self) -> Vec<(DbTime, String, Option<String>)> {
        let mut before: Option<&Edit> = None;
        let mut told = Vec::new();
        for (edit, _) in &self.edits {
            let what = before.map_or_else(|| first(&edit.row), |old| changes(&old.row, &edit.row));
            told.push((edit.at, what, edit.by.clone()));
            before = Some(edit);
        }
        told
    }

    /// The stretches in which it was paused, from and to; the last may still last.
    pub fn pauses(&self) -> Vec<(DbTime, Option<DbTime>)> {
        let mut pauses = Vec::new();
        let mut since = None;
        for (edit, _) in &self.edits {
            match (since, edit.row.is_active.unwrap_or(false)) {
                (None, false) => since = Some(edit.at),
                (Some(from), true) => {
                    pauses.push((from, Some(edit.at)));
                    since = None;
                }
                (None, true) | (Some(_), false) => {}
            }
        }
        pauses.extend(since.map(|from| (from, None)));
        pauses
    }
}

fn pace(row: &RawRow) -> String {
    let (rate, unit) = (row.visits_per_unit.as_ref(), row.time_period.as_ref());
    format!("{} a {}", text(rate), text(unit))
}

fn text(value: Option<&CompactString>) -> &str {
    value.map_or("null", CompactString::as_str)
}

fn first(row: &RawRow) -> String {
    let active = if row.is_active.unwrap_or(false) {
        "active"
    } else {
        "paused"
    };
    format!(
        "{active}: {} visits at {}",
        text(row.total_visits.as_ref()),
        pace(row)
    )
}

fn changes(old: &RawRow, new: &RawRow) -> String {
    let mut said = String::new();
    let mut say = |words: std::fmt::Arguments<'_>| {
        let comma = if said.is_empty() { "" } else { ", " };
        // Writing into a String cannot fail.
        let _written = write!(said, "{comma}{words}").is_ok();
    };
    match (
        old.is_active.unwrap_or(false),
        new.is_active.unwrap_or(false),
    ) {
        (true, false) => say(format_args!("paused")),
        (false, true) => say(format_args!("resumed")),
        (true, true) | (false, false) => {}
    }
    if pace(old) != pace(new) {
        say(format_args!("rate {} → {}", pace(old), pace(new)));
    }
    if old.total_visits != new.total_visits {
        let (from, to) = (
            text(old.total_visits.as_ref()),
            text(new.total_visits.as_ref()),
        );
        say(format_args!("total {from} → {to}"));
    }
    if old.start_time != new.start_time {
        say(format_args!("another start_time"));
    }
    if old.end_time != new.end_time {
        say(format_args!("another end_time"));
    }
    if old.partner_id != new.partner_id {
        say(format_args!("another partner"));
    }
    if said.is_empty() {
        return "edited, at the same pace".to_owned();
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::fixture::{T0, raw_row};

    fn edit(second: i64, active: bool, rate: &str, anchor_visits: i64) -> Edit {
        let at = T0 + second * 1_000_000;
        Edit {
            at: DbTime::from_micros(at),
            by: Some("postgres (psql)".to_owned()),
            row: RawRow {
                config_version: Some(at),
                is_active: Some(active),
                total_visits: Some("1000".into()),
                anchor_units: Some((anchor_visits * 86_400_000_000).to_string().into()),
                anchor_at: Some(DbTime::from_micros(at)),
                ..raw_row(1, rate)
            },
        }
    }

    fn history() -> History {
        History::new(vec![
            edit(20, true, "5", 100),
            edit(0, true, "10", 0),
            edit(10, false, "10", 100),
        ])
    }

    fn due(second: i64) -> Option<i64> {
        history().due(DbTime::from_micros(T0 + second * 1_000_000))
    }

    #[test]
    fn each_edits_curve_holds_until_the_next() {
        assert_eq!(due(-1), Some(0), "before the row nothing is asked for");
        assert_eq!(due(5), Some(50));
        assert_eq!(due(10), Some(100));
        assert_eq!(due(19), Some(100), "paused");
        assert_eq!(due(30), Some(150));
    }

    #[test]
    fn before_the_first_edit_that_is_known_nothing_is_but_of_a_row_that_begins_with_it() {
        let late = History::new(vec![edit(10, true, "10", 100)]);
        assert_eq!(late.due(DbTime::from_micros(T0)), None);
        let mut backdated = edit(10, true, "10", 0);
        backdated.row.anchor_at = Some(DbTime::from_micros(T0));
        let backdated = History::new(vec![backdated]);
        assert_eq!(backdated.due(DbTime::from_micros(T0 + 5_000_000)), Some(50));
        assert_eq!(backdated.begins(), Some(DbTime::from_micros(T0)));
    }

    #[test]
    fn edits_are_told_in_words_and_pauses_as_stretches() {
        let told: Vec<String> = history()
            .told()
            .into_iter()
            .map(|(_, what, _)| what)
            .collect();
        assert_eq!(
            told,
            [
                "active: 1000 visits at 10 a second",
                "paused",
                "resumed, rate 10 a second → 5 a second"
            ]
        );
        let at = |second: i64| DbTime::from_micros(T0 + second * 1_000_000);
        assert_eq!(history().pauses(), [(at(10), Some(at(20)))]);
    }
}
