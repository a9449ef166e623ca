//! The pace at which visits are really stored, from how the counts grow between looks.
//!
//! It measures over the last five seconds, and where fewer than [`ENOUGH`] visits came in those, over as long as that many
//! take, a minute at most.
//!
//! Invariant: a measurement never spans an edit of the pace, nor a change of status: what `C`, a row's course, tells apart.

use std::collections::{BTreeMap, VecDeque};

use uuid::Uuid;

use super::time::DbTime;

/// The shortest time that is measured over, once it has passed; just below five looks.
const WINDOW_US: i64 = 4_900_000;
/// The longest.
const WINDOW_MAX_US: i64 = 60_000_000;
/// Visits that make a measurement steady.
const ENOUGH: i64 = 20;
/// Looks kept of each row; they come once a second.
const LOOKS_MAX: usize = 62;

/// What was seen of each row.
pub struct RateEstimator<C> {
    tracks: BTreeMap<Uuid, Track<C>>,
}

struct Track<C> {
    course: C,
    /// When, and how many were distributed; the latest last.
    seen: VecDeque<(DbTime, i64)>,
}

impl<C> Default for RateEstimator<C> {
    fn default() -> Self {
        Self {
            tracks: BTreeMap::new(),
        }
    }
}

impl<C: PartialEq> RateEstimator<C> {
    /// Takes a look at all rows in; returns visits per second by row, for those seen twice on one course.
    pub fn take(
        &mut self,
        at: DbTime,
        rows: impl IntoIterator<Item = (Uuid, C, i64)>,
    ) -> BTreeMap<Uuid, f64> {
        let mut before = std::mem::take(&mut self.tracks);
        for (id, course, distributed) in rows {
            let kept = before.remove(&id).filter(|track| track.course == course);
            let mut track = kept.unwrap_or_else(|| Track {
                course,
                seen: VecDeque::new(),
            });
            track.seen.push_back((at, distributed));
            if track.seen.len() > LOOKS_MAX {
                track.seen.pop_front();
            }
            self.tracks.insert(id, track);
        }
        self.tracks
            .iter()
            .filter_map(|(id, track)| Some((*id, track.per_second()?)))
            .collect()
    }
}

impl<C> Track<C> {
    fn per_second(&self) -> Option<f64> {
        let (now, count) = *self.seen.back()?;
        let earlier = || self.seen.iter().rev().skip(1);
        let steady = |&&(at, then): &&(DbTime, i64)| {
            let long = now.micros_since(at);
            long >= WINDOW_MAX_US || (long >= WINDOW_US && count - then >= ENOUGH)
        };
        let (at, then) = *earlier().find(steady).or_else(|| earlier().last())?;
        let micros = u32::try_from(now.micros_since(at))
            .ok()
            .filter(|us| *us > 0)?;
        let grown = u32::try_from(count - then).unwrap_or(0);
        Some(f64::from(grown) / (f64::from(micros) / 1e6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Uuid = Uuid::nil();

    /// Looks once a second at a row of that course, whose count is as given.
    fn measured(looks: &[(&'static str, i64)]) -> Option<f64> {
        let mut rate_estimate = RateEstimator::default();
        let mut last = None;
        for (second, (course, distributed)) in (0_i64..).zip(looks) {
            let at = DbTime::from_micros(second * 1_000_000);
            last = rate_estimate
                .take(at, [(ID, *course, *distributed)])
                .get(&ID)
                .copied();
        }
        last
    }

    fn steady(per_look: &[i64]) -> Vec<(&'static str, i64)> {
        let mut count = 0;
        let counts = per_look.iter().map(|more| {
            count += more;
            ("10 a second", count)
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
        assert_eq!(measured(&[("9 a second", 90), ("1 a second", 99)]), None);
        is(
            measured(&[("9 a second", 90), ("paused", 99), ("paused", 99)]),
            0.0,
        );
    }

    #[test]
    fn a_count_that_was_lowered_is_no_negative_pace() {
        is(measured(&[("9 a second", 90), ("9 a second", 10)]), 0.0);
    }
}
