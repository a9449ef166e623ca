//! The curve: the exact number of visits that should exist at a moment, piecewise linear and never falling.
//!
//! `units(t) = max(anchor, min(total, anchor + slope × max(0, min(t, end) − max(anchor_at, start))))`, in integers. A visit
//! is `86,400,000,000 × 10^9` units: a rate of at most nine decimals per second, minute, hour or day is then a whole number
//! of units per microsecond, so nothing is ever divided before the one comparison, and no edit loses anything. The same
//! formula in SQL is `visit_pacer_curve()`; a test holds the two against each other.
//!
//! Bounds (see `distribution`): totals up to 10^15 visits are 8.64·10^34 units and two centuries at 10^6 visits a second are
//! 5.5·10^35: a 128-bit integer holds a thousand times more.

use super::time::DbTime;

/// Units in one visit.
pub const VISIT: i128 = 86_400_000_000 * 1_000_000_000;

/// One row's curve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Curve {
    /// Units at `from`, and before it.
    pub anchor: i128,
    /// Units gained per microsecond; 0 for a row that is not active.
    pub slope: i128,
    /// Where it begins to rise: the later of the anchor's moment and `start_time`; `None`: it never does.
    pub from: Option<DbTime>,
    /// `end_time`; `None`: it has no end.
    pub to: Option<DbTime>,
    /// `total_visits`.
    pub total: i64,
}

impl Curve {
    /// The curve's value at a moment, in units.
    pub fn units(&self, at: DbTime) -> i128 {
        let Some(from) = self.from else {
            return self.anchor;
        };
        let until = self.to.map_or(at, |to| to.min(at));
        let elapsed = i128::from(until.micros_since(from).max(0));
        let risen = self
            .anchor
            .saturating_add(self.slope.saturating_mul(elapsed));
        self.anchor.max(risen.min(i128::from(self.total) * VISIT))
    }

    /// Whole visits that are due at a moment: visit `k` is due when the curve reaches `k − 1/2`.
    pub fn due(&self, at: DbTime) -> i64 {
        let rounded = (2 * self.units(at) + VISIT).div_euclid(2 * VISIT);
        i64::try_from(rounded).unwrap_or(i64::MAX).min(self.total)
    }

    /// The first moment at which visit `k` is due; `None` if it never is. A visit that the anchor already covers is due
    /// from the beginning of time.
    pub fn due_at(&self, k: i64) -> Option<DbTime> {
        if k > self.total {
            return None;
        }
        let needed = Self::half_before(k) - self.anchor;
        if needed <= 0 {
            return Some(DbTime::from_micros(i64::MIN));
        }
        self.after(needed, Rounding::Up)
            .filter(|at| self.to.is_none_or(|to| *at <= to))
    }

    /// The moment `m(k)` when the curve reaches `k − 1/2`, rounded down to a microsecond; undefined (`None`) for a visit
    /// that the anchor already covers, and for one that is never reached.
    pub fn moment(&self, k: i64) -> Option<DbTime> {
        let needed = Self::half_before(k) - self.anchor;
        if k > self.total || needed < 0 {
            return None;
        }
        self.after(needed, Rounding::Down)
    }

    fn half_before(k: i64) -> i128 {
        i128::from(k) * VISIT - VISIT / 2
    }

    /// The moment when the curve has risen by `units` (positive) above its anchor.
    fn after(&self, units: i128, rounding: Rounding) -> Option<DbTime> {
        let from = self.from?;
        if self.slope <= 0 {
            return None;
        }
        let down = units / self.slope;
        let micros = match rounding {
            Rounding::Up if units % self.slope != 0 => down + 1,
            Rounding::Up | Rounding::Down => down,
        };
        let micros = i64::try_from(micros).ok()?;
        from.as_micros()
            .checked_add(micros)
            .map(DbTime::from_micros)
    }
}

#[derive(Clone, Copy)]
enum Rounding {
    Up,
    Down,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const T0: i64 = 1_800_000_000_000_000;

    fn curve(visits_per_unit_nano: i128, unit_seconds: i128, total: i64, window_s: i64) -> Curve {
        Curve {
            anchor: 0,
            slope: visits_per_unit_nano * (86_400 / unit_seconds),
            from: Some(DbTime::from_micros(T0)),
            to: Some(DbTime::from_micros(T0 + window_s * 1_000_000)),
            total,
        }
    }

    #[test]
    fn the_guides_examples_end_with_exactly_what_was_asked_for() {
        let first = curve(6_250_000_000_000, 3_600, 150_000, 86_400);
        assert_eq!(first.due(DbTime::from_micros(T0 + 86_400_000_000)), 150_000);
        let second = curve(33_330_000_000, 60, 2_000, 3_600);
        assert_eq!(second.due(DbTime::from_micros(T0 + 3_600_000_000)), 2_000);
        assert_eq!(second.due(DbTime::from_micros(i64::MAX)), 2_000);
    }

    #[test]
    fn visit_k_is_due_when_the_curve_reaches_k_minus_a_half() {
        let sixty_a_second = curve(3_600_000_000_000, 60, 600, 10);
        // m(1) = 1/120 s = 8333.33 µs: the first whole microsecond at which it is due, and the moment rounded down.
        assert_eq!(
            sixty_a_second.due_at(1),
            Some(DbTime::from_micros(T0 + 8_334))
        );
        assert_eq!(
            sixty_a_second.moment(1),
            Some(DbTime::from_micros(T0 + 8_333))
        );
        assert_eq!(sixty_a_second.due(DbTime::from_micros(T0 + 8_333)), 0);
        assert_eq!(sixty_a_second.due(DbTime::from_micros(T0 + 8_334)), 1);
        assert_eq!(sixty_a_second.due_at(601), None);
    }

    #[test]
    fn dividing_first_would_give_nothing_where_one_visit_is_due() {
        let twenty_a_minute = curve(20_000_000_000, 60, 100, 3_600);
        assert_eq!(twenty_a_minute.due(DbTime::from_micros(T0 + 1_500_000)), 1);
    }

    proptest! {
        #[test]
        fn due_at_is_the_first_moment_at_which_the_visit_is_due(
            rate in 0_i128..10_i128.pow(15), unit in prop::sample::select(vec![1_i128, 60, 3_600, 86_400]),
            anchor in 0_i128..10_i128.pow(25), total in 0_i64..10_i64.pow(9), window in 1_i64..10_i64.pow(8), k in 1_i64..10_i64.pow(9),
        ) {
            let curve = Curve { anchor, ..curve(rate, unit, total, window) };
            match curve.due_at(k) {
                Some(at) if at.as_micros() == i64::MIN => prop_assert!(curve.due(DbTime::from_micros(T0 - 1)) >= k),
                Some(at) => {
                    prop_assert!(curve.due(at) >= k);
                    prop_assert!(curve.due(at.plus_micros(-1)) < k);
                }
                None => prop_assert!(curve.due(DbTime::from_micros(T0 + 300 * 365 * 86_400 * 1_000_000)) < k),
            }
        }

        #[test]
        fn a_visits_moment_is_the_last_microsecond_before_the_curve_passes_k_minus_a_half(
            rate in 1_i128..10_i128.pow(12), anchor in 0_i128..10_i128.pow(15), k in 1_i64..100_000,
        ) {
            let curve = Curve { anchor, ..curve(rate, 1, 10_i64.pow(9), 10_i64.pow(8)) };
            let needed = i128::from(k) * VISIT - VISIT / 2;
            match curve.moment(k) {
                None => prop_assert!(needed < anchor, "only what the anchor covers has none"),
                Some(at) => {
                    prop_assert!(curve.units(at) <= needed);
                    prop_assert!(curve.units(at.plus_micros(1)) > needed || curve.to.is_some_and(|to| to <= at));
                }
            }
        }

        #[test]
        fn it_never_falls_and_never_passes_the_total(
            rate in 0_i128..10_i128.pow(15), anchor in 0_i128..10_i128.pow(25), total in 0_i64..10_i64.pow(9), a in 0_i64..10_i64.pow(14), b in 0_i64..10_i64.pow(14),
        ) {
            let curve = Curve { anchor, ..curve(rate, 60, total, 10_000_000) };
            let (early, late) = (T0 + a.min(b), T0 + a.max(b));
            prop_assert!(curve.units(DbTime::from_micros(early)) <= curve.units(DbTime::from_micros(late)));
            prop_assert!(curve.due(DbTime::from_micros(late)) <= total);
        }
    }
}
