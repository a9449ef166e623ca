//! The pace at which visits are really stored, from how the counts grow between looks.
//!
//! Pure. It measures over the last five seconds, and where fewer than [`ENOUGH`] visits came in
//! those, over as long as that many take, a minute at most.
//!
//! Invariant: a measurement never spans an edit of the pace, nor a change of status.

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::table::{Look, Measured};

/// The shortest time that is measured over, once it has passed; just below five looks.
const WINDOW: TimeDelta = TimeDelta::milliseconds(4_900);
/// The longest.
const WINDOW_MAX: TimeDelta = TimeDelta::seconds(60);
/// Visits that make a measurement steady.
const ENOUGH: i64 = 20;
/// Looks kept of each row; they come once a second.
const LOOKS_MAX: usize = 62;

/// What was seen of each row.
#[derive(Default)]
pub struct Meter {
    tracks: BTreeMap<Uuid, Track>,
}

struct Track {
    course: (String, Option<String>),
    /// When, and how many were distributed; the latest last.
    seen: VecDeque<(DateTime<Utc>, i64)>,
}

impl Meter {
    /// Takes a look in; returns visits per second by row, for those seen twice on one course.
    pub fn take(&mut self, look: &Look) -> Measured {
        let mut before = std::mem::take(&mut self.tracks);
        for row in &look.rows {
            let course = (row.status.clone(), row.pace.clone());
            let kept = before
                .remove(&row.id)
                .filter(|track| track.course == course);
            let mut track = kept.unwrap_or_else(|| Track {
                course,
                seen: VecDeque::new(),
            });
            track
                .seen
                .push_back((look.at, row.distributed.unwrap_or(0)));
            if track.seen.len() > LOOKS_MAX {
                track.seen.pop_front();
            }
            self.tracks.insert(row.id, track);
        }
        self.tracks
            .iter()
            .filter_map(|(id, track)| Some((*id, track.per_second()?)))
            .collect()
    }
}

impl Track {
    fn per_second(&self) -> Option<f64> {
        let (now, count) = *self.seen.back()?;
        let earlier = || self.seen.iter().rev().skip(1);
        let steady = |&&(at, then): &&(DateTime<Utc>, i64)| {
            let long = now - at;
            long >= WINDOW_MAX || (long >= WINDOW && count - then >= ENOUGH)
        };
        let (at, then) = *earlier().find(steady).or_else(|| earlier().last())?;
        let seconds = (now - at).as_seconds_f64();
        let grown = u32::try_from(count - then).unwrap_or(0);
        (seconds > 0.0).then(|| f64::from(grown) / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::table::tests::row;

    const ID: Uuid = Uuid::nil();

    /// Looks once a second at a row of that status and pace, whose count is as given.
    fn measured(looks: &[(&str, &str, i64)]) -> Option<f64> {
        let mut meter = Meter::default();
        let mut last = None;
        for (second, (status, pace, distributed)) in (0_i64..).zip(looks) {
            let mut row = row(*distributed, 100_000);
            row.id = ID;
            row.status = (*status).to_owned();
            row.pace = Some((*pace).to_owned());
            let at = DateTime::UNIX_EPOCH + TimeDelta::seconds(second);
            last = meter
                .take(&Look {
                    at,
                    rows: vec![row],
                    agents: Vec::new(),
                })
                .get(&ID)
                .copied();
        }
        last
    }

    fn steady(per_look: &[i64]) -> Vec<(&'static str, &'static str, i64)> {
        let mut count = 0;
        let counts = per_look.iter().map(|more| {
            count += more;
            ("active", "10 a second", count)
        });
        counts.collect()
    }

    #[track_caller]
    fn is(measured: Option<f64>, expected: f64) {
        let measured = measured.expect("measured");
        assert!(
            (measured - expected).abs() < 1e-9,
            "{measured} is not {expected}"
        );
    }

    #[test]
    fn one_look_measures_nothing() {
        assert_eq!(measured(&steady(&[5])), None);
    }

    #[test]
    fn a_quick_row_is_measured_over_five_seconds() {
        is(measured(&steady(&[0, 0, 0, 0, 10, 10, 10, 10, 10])), 10.0);
        is(measured(&steady(&[10, 10, 10, 10, 10, 4, 4, 4, 4, 4])), 4.0);
    }

    #[test]
    fn a_slow_row_is_measured_over_as_long_as_twenty_visits_take() {
        let every_other_second: Vec<i64> = (0..60).map(|second| second % 2).collect();
        is(measured(&steady(&every_other_second)), 20.0 / 39.0);
    }

    #[test]
    fn a_row_without_visits_is_measured_at_zero_within_a_minute() {
        let mut counts = vec![50; 3];
        counts.extend([0; 70]);
        is(measured(&steady(&counts)), 0.0);
    }

    #[test]
    fn an_edit_of_the_pace_or_a_pause_starts_the_measurement_anew() {
        let edited = [("active", "9 a second", 90), ("active", "1 a second", 99)];
        assert_eq!(measured(&edited), None);
        let paused = [("active", "9 a second", 90), ("paused", "9 a second", 99)];
        assert_eq!(measured(&paused), None);
        let still = [paused.as_slice(), &[("paused", "9 a second", 99)]].concat();
        is(measured(&still), 0.0);
    }

    #[test]
    fn a_count_that_was_lowered_is_no_negative_pace() {
        is(
            measured(&[("active", "9 a second", 90), ("active", "9 a second", 10)]),
            0.0,
        );
    }
}
