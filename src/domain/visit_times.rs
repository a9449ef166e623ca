//! `visited_at`: when each visit of a batch is said to have happened.
//!
//! A visit whose own moment `m(k)` lies in the batch's span gets it; a run of visits without one is spread evenly between
//! its neighbours. So visits never lie in the future, never after `end_time`, and never before the ones stored before.

use super::curve::Curve;
use super::limits::BACKDATED_US;
use super::time::DbTime;

/// The span in which a batch's visits lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    floor: DbTime,
    cut: DbTime,
}

impl Span {
    /// The span of a batch that is computed for the instant `at`: it ends there or at `end_time`, whichever is earlier, and
    /// begins at the latest of the row's last visit, the curve's own beginning, and two minutes before its end. A beginning
    /// that is yet to come (an edit moved `start_time` while a backlog was left) bounds nothing: no visit is dated into the
    /// future for it.
    pub fn of(curve: &Curve, last_visited_at: Option<DbTime>, at: DbTime) -> Self {
        let cut = curve.to.map_or(at, |end| end.min(at));
        let mut floor = cut.plus_micros(-BACKDATED_US);
        if let Some(from) = curve.from.filter(|from| *from <= cut) {
            floor = floor.max(from);
        }
        if let Some(last) = last_visited_at {
            floor = floor.max(last);
        }
        Self { floor, cut }
    }
}

/// The moments of visits `first ..= first + count − 1`, counted in the order of distribution.
pub fn visited_at(curve: &Curve, first: i64, count: i64, span: Span) -> Vec<DbTime> {
    let Span { floor, cut } = span;
    let own = |k: i64| curve.moment(k).filter(|at| (floor..=cut).contains(at));
    let mut visit_times = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
    let mut waiting = 0;
    let mut previous = floor;
    for k in first..first.saturating_add(count) {
        if floor > cut {
            visit_times.push(floor);
        } else if let Some(at) = own(k) {
            spread(&mut visit_times, waiting, previous, at);
            waiting = 0;
            visit_times.push(at);
            previous = at;
        } else {
            waiting += 1;
        }
    }
    spread(&mut visit_times, waiting, previous, cut);
    visit_times
}

/// `count` moments evenly between two, rounded down to a microsecond.
fn spread(visit_times: &mut Vec<DbTime>, count: i64, from: DbTime, to: DbTime) {
    let gap = i128::from(to.micros_since(from));
    for step in 1..=count {
        let offset = gap * i128::from(step) / i128::from(count + 1);
        visit_times.push(from.plus_micros(i64::try_from(offset).unwrap_or(0)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::curve::VISIT;
    use super::*;

    const T0: i64 = 1_800_000_000_000_000;

    fn at(micros: i64) -> DbTime {
        DbTime::from_micros(T0 + micros)
    }

    fn ten_a_second() -> Curve {
        Curve {
            anchor: 0,
            slope: VISIT / 100_000,
            from: Some(at(0)),
            to: None,
            total: 1_000_000,
        }
    }

    #[test]
    fn on_schedule_each_visit_has_its_own_moment() {
        let curve = ten_a_second();
        let visit_times = visited_at(&curve, 1, 10, Span::of(&curve, None, at(1_000_000)));
        let expected: Vec<_> = (1..=10).map(|k| at(k * 100_000 - 50_000)).collect();
        assert_eq!(visit_times, expected);
    }

    #[test]
    fn after_a_long_outage_the_oldest_are_spread_over_the_last_two_minutes() {
        let curve = ten_a_second();
        let cut = at(600_000_000);
        let visit_times = visited_at(&curve, 1, 3, Span::of(&curve, None, cut));
        assert_eq!(
            visit_times,
            vec![at(510_000_000), at(540_000_000), at(570_000_000)]
        );
    }

    #[test]
    fn visits_ahead_of_the_curve_are_spread_up_to_now() {
        let curve = ten_a_second();
        let span = Span::of(&curve, Some(at(950_000)), at(1_000_000));
        assert_eq!(
            visited_at(&curve, 11, 4, span),
            vec![at(960_000), at(970_000), at(980_000), at(990_000)]
        );
    }

    #[test]
    fn nothing_is_dated_after_the_end_nor_before_the_last_visit() {
        let curve = Curve {
            to: Some(at(1_000_000)),
            ..ten_a_second()
        };
        let late = Span::of(&curve, Some(at(990_000)), at(9_000_000));
        assert!(
            visited_at(&curve, 9, 2, late)
                .iter()
                .all(|m| (at(990_000)..=at(1_000_000)).contains(m))
        );
        let passed = Span::of(&curve, Some(at(1_200_000)), at(9_000_000));
        assert_eq!(visited_at(&curve, 9, 2, passed), vec![at(1_200_000); 2]);
    }

    #[test]
    fn a_backlog_is_not_dated_into_the_future_when_the_window_is_moved_there() {
        let curve = Curve {
            anchor: 3 * VISIT,
            from: Some(at(900_000_000)),
            ..ten_a_second()
        };
        let span = Span::of(&curve, Some(at(0)), at(4_000_000));
        assert_eq!(
            visited_at(&curve, 1, 3, span),
            vec![at(1_000_000), at(2_000_000), at(3_000_000)]
        );
    }

    proptest! {
        #[test]
        fn they_never_fall_and_stay_in_their_span(
            slope in 0_i128..VISIT / 100, anchor in 0_i128..50 * VISIT, first in 1_i64..60, count in 0_i64..200,
            last in prop::option::of(0_i64..200_000_000), now in 0_i64..400_000_000, end in prop::option::of(1_i64..300_000_000),
        ) {
            let curve = Curve { anchor, slope, from: Some(at(0)), to: end.map(at), total: 1_000_000 };
            let span = Span::of(&curve, last.map(at), at(now));
            let visit_times = visited_at(&curve, first, count, span);
            prop_assert_eq!(i64::try_from(visit_times.len()).expect("small"), count);
            prop_assert!(visit_times.is_sorted());
            if span.floor <= span.cut {
                prop_assert!(visit_times.iter().all(|m| (span.floor..=span.cut).contains(m)));
            } else {
                prop_assert!(visit_times.iter().all(|m| *m == span.floor));
            }
        }
    }
}
