//! What a distribution would do: its rate, its end, the rate that would fit, and the day on which the disk is full.
//!
//! Owns the arithmetic of `visit-pacer plan`. Everything follows from the distribution's own [`Curve`], in integers, so that a
//! plan is exact to the visit.

use super::curve::{Curve, VISIT};
use super::decimal::format_scaled;
use super::distribution::{Distribution, MAX_VISITS_PER_SECOND, Period, RATE_DECIMALS};
use super::time::{DbTime, SECOND_US};

/// Bytes of a visit on disk: measured on `PostgreSQL` 15 with 200,000 generated visits in a `store_visits` that `migrate` created,
/// both indexes included (341), rounded up.
pub const BYTES_PER_VISIT: i64 = 350;
/// The database size at which a Free project turns read-only, in bytes.
pub const FREE_BYTES: i64 = 500_000_000;
/// The disk of a Pro project before it is grown, in bytes.
pub const PRO_BYTES: i64 = 8_000_000_000;

const DAY_US: i64 = 86_400 * SECOND_US;
const ONE_NANO: i128 = 1_000_000_000;
/// More than the fastest distribution reaches in two centuries.
const NO_TOTAL: i64 = 10_000_000_000_000_000;

/// How a distribution ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlanEnd {
    /// Its last visit is due at that moment.
    Completed(DbTime),
    /// Its window ends at that moment, short of the total.
    Short(DbTime),
    /// It never ends: its rate is 0, or it never starts.
    Never,
}

/// Rate times window differs from the total.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Misfit {
    /// The visits that the curve would reach at `end_time` if the total did not stop it.
    pub rate_times_window: i64,
    /// The `visits_per_unit` with which the total is reached at `end_time`; `None`: beyond the greatest rate.
    pub rate_that_fits: Option<String>,
    /// The moment at which the current rate reaches the total; `None`: it never does.
    pub end_that_fits: Option<DbTime>,
}

/// A distribution as it would run from a moment on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    curve: Curve,
    period: Period,
    stored: i64,
    now: DbTime,
}

impl Plan {
    /// The plan at `now` of a distribution with `stored` visits. An inactive one is planned as if it were activated then.
    pub fn of(row: &Distribution, stored: i64, now: DbTime) -> Self {
        let mut curve = row.curve;
        if !row.active {
            curve.slope = row.slope;
            curve.from = curve.from.map(|from| from.max(now));
        }
        Self {
            curve,
            period: row.period,
            stored,
            now,
        }
    }

    /// `time_period`
    pub fn period(&self) -> Period {
        self.period
    }

    /// Visits per period while it runs, as text with at most six decimals.
    pub fn visits_per(&self, period: Period) -> String {
        const DECIMALS: u32 = 6;
        let per_unit = self.curve.slope * period.seconds() * i128::from(SECOND_US);
        let scaled = rounded(per_unit * 10_i128.pow(DECIMALS), VISIT);
        trimmed(&format_scaled(scaled, DECIMALS))
    }

    /// When its curve begins to rise, not before now.
    pub fn begins(&self) -> DbTime {
        self.curve.from.map_or(self.now, |from| from.max(self.now))
    }

    /// How it ends.
    pub fn end(&self) -> PlanEnd {
        match (self.curve.due_at(self.curve.total), self.curve.to) {
            (Some(at), _) => PlanEnd::Completed(at),
            (None, Some(to)) => PlanEnd::Short(to),
            (None, None) => PlanEnd::Never,
        }
    }

    /// Visits due at a moment.
    pub fn due(&self, at: DbTime) -> i64 {
        self.curve.due(at)
    }

    /// Visits due at its end.
    pub fn visits(&self) -> i64 {
        match self.end() {
            PlanEnd::Completed(_) => self.curve.total,
            PlanEnd::Short(at) => self.curve.due(at),
            PlanEnd::Never => self.curve.due(self.now),
        }
    }

    /// `total_visits`.
    pub fn total(&self) -> i64 {
        self.curve.total
    }

    /// Whether rate times window differs from the total, in whole visits.
    pub fn misfit(&self) -> Option<Misfit> {
        let to = self.curve.to?;
        let endless = Curve {
            total: NO_TOTAL,
            to: None,
            ..self.curve
        };
        let rate_times_window = endless.due(to);
        let total = self.curve.total;
        (rate_times_window != total && self.needed() > 0).then(|| Misfit {
            rate_times_window,
            rate_that_fits: self.rate_that_fits(to),
            end_that_fits: endless.due_at(total),
        })
    }

    /// Curve units from the anchor to the total.
    fn needed(&self) -> i128 {
        i128::from(self.curve.total) * VISIT - self.curve.anchor
    }

    /// The rate with the fewest decimals that reaches the total at `to`.
    fn rate_that_fits(&self, to: DbTime) -> Option<String> {
        let window = i128::from(to.micros_since(self.curve.from?));
        let gain = (86_400 / self.period.seconds()).checked_mul(window)?;
        if gain <= 0 {
            return None;
        }
        let needed = self.needed();
        let fits = |nano: &i128| (needed - VISIT / 2..needed + VISIT / 2).contains(&(nano * gain));
        let nano = (0..=RATE_DECIMALS)
            .map(|decimals| 10_i128.pow(RATE_DECIMALS - decimals))
            .map(|step| rounded(needed, gain * step) * step)
            .find(fits)
            .unwrap_or(needed / gain + 1);
        let greatest = MAX_VISITS_PER_SECOND * self.period.seconds() * ONE_NANO;
        (nano <= greatest).then(|| trimmed(&format_scaled(nano, RATE_DECIMALS)))
    }

    /// Visits that are still to be stored.
    pub fn remaining(&self) -> i64 {
        (self.visits() - self.stored).max(0)
    }

    /// … of its first day.
    pub fn remaining_on_the_first_day(&self) -> i64 {
        let due = self.curve.due(self.begins().plus_micros(DAY_US));
        (due - self.stored).max(0)
    }

    /// The moment at which future visits have filled `room` bytes; `None`: all of them fit.
    pub fn full_at(&self, room: i64, bytes_per_visit: i64) -> Option<DbTime> {
        let visits = room.max(0) / bytes_per_visit.max(1);
        let first_without_room = self.stored.saturating_add(visits).saturating_add(1);
        self.curve.due_at(first_without_room)
    }

    /// The end of a chart: its end, or a day if it never ends.
    pub fn drawn_until(&self) -> DbTime {
        match self.end() {
            PlanEnd::Completed(at) => self.curve.to.map_or(at, |to| to.max(at)),
            PlanEnd::Short(at) => at,
            PlanEnd::Never => self.begins().plus_micros(DAY_US),
        }
    }

    /// The curve at the ends of equal parts of the time that a chart shows.
    pub fn samples(&self, parts: u8) -> Vec<i64> {
        let begins = self.begins();
        let span = self.drawn_until().micros_since(begins).max(0);
        (1..=i64::from(parts))
            .map(|part| {
                let offset = i128::from(span) * i128::from(part) / i128::from(parts);
                self.curve
                    .due(begins.plus_micros(i64::try_from(offset).unwrap_or(span)))
            })
            .collect()
    }
}

/// `a / b` to the nearest whole number, halves up; both positive or 0.
fn rounded(a: i128, b: i128) -> i128 {
    let below = a / b;
    if a % b >= b - a % b { below + 1 } else { below }
}

/// Without the zeros behind the last decimal.
fn trimmed(decimal: &str) -> String {
    decimal
        .trim_end_matches('0')
        .trim_end_matches('.')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::distribution::RawRow;
    use super::super::fixture::{T0, raw_row};
    use super::*;

    fn at(seconds: i64) -> DbTime {
        DbTime::from_micros(T0 + seconds * SECOND_US)
    }

    fn plan(total: &str, rate: &str, period: Period, window_s: Option<i64>) -> Plan {
        row_plan(total, rate, period, window_s, true, at(0))
    }

    fn row_plan(
        total: &str,
        rate: &str,
        period: Period,
        window_s: Option<i64>,
        active: bool,
        now: DbTime,
    ) -> Plan {
        let row = RawRow {
            is_active: Some(active),
            total_visits: Some(total.into()),
            time_period: Some(period.as_str().into()),
            end_time: window_s.map(|s| DbTime::from_micros(T0 + s * SECOND_US)),
            ..raw_row(1, rate)
        };
        let row = Distribution::parse(&row).expect("a valid row");
        Plan::of(&row, 0, now)
    }

    #[test]
    fn the_two_examples_of_the_guide_fit_their_windows() {
        let first = plan("150000", "6250", Period::Hour, Some(86_400));
        assert_eq!((first.misfit(), first.visits()), (None, 150_000));
        assert_eq!(first.visits_per(Period::Second), "1.736111");
        assert_eq!(first.visits_per(Period::Minute), "104.166667");
        assert_eq!(first.visits_per(Period::Day), "150000");
        let second = plan("2000", "33.33", Period::Minute, Some(3_600));
        assert_eq!((second.misfit(), second.visits()), (None, 2_000));
    }

    #[test]
    fn a_rate_that_is_too_low_ends_short_and_the_one_that_fits_is_named() {
        let slow = plan("2000", "30", Period::Minute, Some(3_600));
        assert_eq!(
            (slow.end(), slow.visits()),
            (PlanEnd::Short(at(3_600)), 1_800)
        );
        let misfit = slow.misfit().expect("it does not fit");
        assert_eq!(misfit.rate_times_window, 1_800);
        // 33.3 a minute is 1998; 33.33 is 1999.8, of which the last visit is due before the end.
        assert_eq!(misfit.rate_that_fits.as_deref(), Some("33.33"));
        // The last half visit: 1999.5 / 0.5 a second.
        assert_eq!(misfit.end_that_fits, Some(at(3_999)));
    }

    #[test]
    fn a_rate_that_is_too_high_completes_early_and_is_a_misfit_too() {
        let fast = plan("2000", "100", Period::Minute, Some(3_600));
        assert_eq!(
            fast.end(),
            PlanEnd::Completed(DbTime::from_micros(T0 + 1_199_700_000))
        );
        assert_eq!(
            fast.misfit().map(|m| m.rate_times_window),
            Some(6_000),
            "{fast:?}"
        );
    }

    #[test]
    fn a_total_beyond_the_greatest_rate_has_no_rate_that_fits() {
        let misfit = plan("1000000000", "1", Period::Second, Some(10))
            .misfit()
            .expect("it does not fit");
        assert_eq!(misfit.rate_that_fits, None);
    }

    #[test]
    fn without_an_end_there_is_nothing_to_fit_and_a_rate_of_zero_never_ends() {
        assert_eq!(plan("2000", "30", Period::Minute, None).misfit(), None);
        let still = plan("2000", "0", Period::Minute, None);
        assert_eq!((still.end(), still.visits()), (PlanEnd::Never, 0));
        let window = plan("2000", "0", Period::Minute, Some(60));
        assert_eq!(
            window.misfit().and_then(|m| m.rate_that_fits).as_deref(),
            Some("2000")
        );
    }

    #[test]
    fn a_paused_distribution_is_planned_as_if_it_were_resumed_now() {
        let paused = row_plan("600", "1", Period::Second, None, false, at(1_000));
        assert_eq!(paused.begins(), at(1_000));
        assert_eq!(
            paused.end(),
            PlanEnd::Completed(DbTime::from_micros(T0 + 1_599_500_000))
        );
    }

    #[test]
    fn the_disk_is_full_at_the_first_visit_that_has_no_room() {
        let plan = plan("1000000", "10", Period::Second, None);
        assert_eq!(plan.remaining_on_the_first_day(), 864_000);
        assert_eq!(
            plan.full_at(35_000, 350),
            Some(DbTime::from_micros(T0 + 10_050_000)),
            "visit 101 of 10 a second"
        );
        assert_eq!(plan.full_at(350_000_000, 350), None, "room for all");
        assert_eq!(plan.remaining(), 1_000_000);
        assert_eq!(
            plan.full_at(-1, 350).map(|at| at.as_micros() - T0),
            Some(50_000),
            "the first one"
        );
    }

    #[test]
    fn the_samples_end_with_the_final_count() {
        let plan = plan("2000", "100", Period::Minute, Some(3_600));
        let samples = plan.samples(60);
        assert_eq!(samples.first(), Some(&100));
        assert_eq!(samples.last(), Some(&2_000));
        assert_eq!(samples.len(), 60);
    }

    proptest! {
        #[test]
        fn the_rate_that_fits_reaches_the_total_in_the_window(
            total in 1_i64..10_i64.pow(10), window_s in 1_i64..10_i64.pow(7), period in prop::sample::select(Period::ALL.to_vec()),
        ) {
            let misfit = plan(&total.to_string(), "0", period, Some(window_s)).misfit().expect("0 fits nothing");
            if let Some(rate) = misfit.rate_that_fits {
                let fitting = plan(&total.to_string(), &rate, period, Some(window_s));
                prop_assert_eq!(fitting.visits(), total);
                prop_assert_eq!(fitting.misfit(), None);
            } else {
                prop_assert!(total / window_s >= 999_999);
            }
        }
    }
}
