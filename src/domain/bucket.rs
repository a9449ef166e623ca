//! Token buckets: one per row, kept in the database and shared by whoever stores; one for the whole agent; and how rows
//! share the latter when it binds.

use super::curve::VISIT;
use super::decimal::{format_scaled, parse_scaled};
use super::limits::WRITE_BACK_BURST;
use super::time::{DbTime, Mono, SECOND_US};

/// Levels are kept in thousandths of curve units, since `catch_up` has three decimals: then nothing is ever rounded.
const MILLI: i128 = 1_000;
/// Decimals of a level in the database, in units of 1/86,400,000,000 visit: nine of the curve, three of `catch_up`.
const LEVEL_DECIMALS: u32 = 12;

/// How a row's bucket fills: at `catch_up × rate`, up to one second of it (rounded up) and one visit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BucketRule {
    refill_per_micro: i128,
    capacity: i128,
}

impl BucketRule {
    /// For a row of so many curve units per microsecond, at so many thousandths of its pace.
    pub fn new(slope: i128, catch_up_milli: i64) -> Self {
        let refill_per_micro = slope * i128::from(catch_up_milli);
        let per_second = refill_per_micro * i128::from(SECOND_US);
        let visits =
            per_second.div_euclid(VISIT * MILLI) + i128::from(per_second % (VISIT * MILLI) != 0);
        Self {
            refill_per_micro,
            capacity: (visits + 1) * VISIT * MILLI,
        }
    }
}

/// A row's bucket as progress has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bucket {
    /// Level and the moment it was that; `None`: full.
    state: Option<(i128, DbTime)>,
}

impl Bucket {
    /// From `bucket_units` (as text) and `bucket_at`; what cannot be read is a full bucket, what lies below nothing an empty
    /// one.
    pub fn from_columns(units: Option<&str>, at: Option<DbTime>) -> Self {
        let level = units.and_then(|text| parse_scaled(text, LEVEL_DECIMALS).ok());
        Self {
            state: level.map(|level| level.max(0)).zip(at),
        }
    }

    /// `bucket_units` as text.
    pub fn units_column(&self) -> Option<String> {
        self.state
            .map(|(level, _)| format_scaled(level, LEVEL_DECIMALS))
    }

    /// `bucket_at`.
    pub fn at_column(&self) -> Option<DbTime> {
        self.state.map(|(_, at)| at)
    }

    /// Whole visits that it holds at a moment.
    pub fn holds(&self, rule: &BucketRule, at: DbTime) -> i64 {
        i64::try_from(self.level(rule, at) / (VISIT * MILLI)).unwrap_or(i64::MAX)
    }

    /// The bucket after so many visits were taken at a moment.
    #[must_use]
    pub fn taken(&self, rule: &BucketRule, visits: i64, at: DbTime) -> Self {
        let left = (self.level(rule, at) - i128::from(visits) * VISIT * MILLI).max(0);
        let at = self.state.map_or(at, |(_, before)| before.max(at));
        Self {
            state: Some((left, at)),
        }
    }

    fn level(&self, rule: &BucketRule, at: DbTime) -> i128 {
        self.state.map_or(rule.capacity, |(level, since)| {
            let elapsed = i128::from(at.micros_since(since).max(0));
            level
                .saturating_add(rule.refill_per_micro.saturating_mul(elapsed))
                .min(rule.capacity)
        })
    }
}

/// A plain bucket on the monotonic clock, in millionths of a token: for what the whole agent may do.
#[derive(Clone, Debug)]
pub struct RateBucket {
    micro_tokens_per_second: i64,
    burst: i64,
    level: i64,
    at: Mono,
}

const MICRO: i64 = 1_000_000;

impl RateBucket {
    /// A full bucket of `burst` tokens that refills at `per_second_micro` millionths of a token a second.
    pub fn new(per_second_micro: i64, burst: i64, now: Mono) -> Self {
        let burst = burst.max(1).saturating_mul(MICRO);
        Self {
            micro_tokens_per_second: per_second_micro.max(0),
            burst,
            level: burst,
            at: now,
        }
    }

    /// For visits of the whole agent: one second's worth at once at the most.
    pub fn visits(per_second: i64, now: Mono) -> Self {
        Self::new(per_second.saturating_mul(MICRO), per_second, now)
    }

    /// For write-backs: see the echo budget in `limits`.
    pub fn write_backs(per_second_micro: i64, now: Mono) -> Self {
        Self::new(per_second_micro, WRITE_BACK_BURST, now)
    }

    /// Another rate and burst from now on.
    pub fn set_rate(&mut self, per_second_micro: i64, burst: i64, now: Mono) {
        self.refill(now);
        self.micro_tokens_per_second = per_second_micro.max(0);
        self.burst = burst.max(1).saturating_mul(MICRO);
        self.level = self.level.min(self.burst);
    }

    /// Whole tokens that it holds.
    pub fn holds(&mut self, now: Mono) -> i64 {
        self.refill(now);
        self.level / MICRO
    }

    /// Takes tokens that it was seen to hold.
    pub fn take(&mut self, tokens: i64) {
        self.level = self
            .level
            .saturating_sub(tokens.saturating_mul(MICRO))
            .max(0);
    }

    /// How long until it holds a token, in microseconds; `None` if it never refills.
    pub fn micros_until_token(&mut self, now: Mono) -> Option<i64> {
        self.refill(now);
        let short = (MICRO - self.level).max(0);
        if short == 0 {
            return Some(0);
        }
        let rate = i128::from(self.micro_tokens_per_second);
        if rate == 0 {
            return None;
        }
        let wait = (i128::from(short) * i128::from(SECOND_US) + rate - 1) / rate;
        Some(i64::try_from(wait).unwrap_or(i64::MAX))
    }

    fn refill(&mut self, now: Mono) {
        let elapsed = i128::from(now.as_micros().saturating_sub(self.at.as_micros()).max(0));
        let gained = elapsed * i128::from(self.micro_tokens_per_second) / i128::from(SECOND_US);
        let gained = i64::try_from(gained).unwrap_or(i64::MAX);
        if gained > 0 || self.level == self.burst {
            self.level = self.level.saturating_add(gained).min(self.burst);
            self.at = now;
        }
    }
}

/// Max-min fair shares: nobody gets more than asked for, and what is short is shared equally among those who want more
/// than their share. The sum is `min(available, Σ wanted)`; odd visits go to the first of those who want more.
pub fn max_min_fair(wanted: &[i64], available: i64) -> Vec<i64> {
    let mut ascending: Vec<i64> = wanted.iter().map(|want| (*want).max(0)).collect();
    ascending.sort_unstable();
    let mut left = available.max(0);
    let mut claimants = i64::try_from(wanted.len()).unwrap_or(i64::MAX);
    let (mut level, mut odd) = (i64::MAX, 0);
    for want in ascending {
        if want > left / claimants {
            (level, odd) = (left / claimants, left % claimants);
            break;
        }
        left -= want;
        claimants -= 1;
    }
    let ownership = |want: &i64| {
        if *want > level && odd > 0 {
            odd -= 1;
            return level + 1;
        }
        (*want).clamp(0, level)
    };
    wanted.iter().map(ownership).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn per_second(visits: i128) -> i128 {
        visits * VISIT / i128::from(SECOND_US)
    }

    fn at(micros: i64) -> DbTime {
        DbTime::from_micros(1_800_000_000_000_000 + micros)
    }

    #[test]
    fn a_bucket_holds_one_second_of_twice_the_pace_and_one_visit() {
        let rule = BucketRule::new(per_second(200), 2_000);
        assert_eq!(Bucket::default().holds(&rule, at(0)), 401);
        let slow = BucketRule::new(per_second(1) / 3, 2_000);
        assert_eq!(Bucket::default().holds(&slow, at(0)), 2, "ceil(2/3) + 1");
    }

    #[test]
    fn an_outage_drains_at_twice_the_pace_and_not_in_a_burst() {
        let rule = BucketRule::new(per_second(100), 2_000);
        let mut bucket = Bucket::default();
        let mut stored = 0;
        for second in 0..5 {
            let now = at(second * SECOND_US);
            let visits = bucket.holds(&rule, now);
            bucket = bucket.taken(&rule, visits, now);
            stored += visits;
        }
        assert_eq!(stored, 201 + 4 * 200);
    }

    #[test]
    fn the_level_survives_the_database_exactly() {
        let rule = BucketRule::new(per_second(1) / 7, 1_337);
        let bucket = Bucket::default()
            .taken(&rule, 1, at(3))
            .taken(&rule, 0, at(777_777));
        let read = Bucket::from_columns(bucket.units_column().as_deref(), bucket.at_column());
        assert_eq!(read, bucket);
    }

    #[test]
    fn a_rate_bucket_that_is_looked_at_every_microsecond_refills_all_the_same() {
        let mut bucket = RateBucket::new(200_000, 1, Mono::from_micros(0));
        bucket.take(1);
        let waits = (0..=10_000).map(|at| bucket.micros_until_token(Mono::from_micros(at)));
        assert_eq!(waits.last().flatten(), Some(5_000_000 - 10_000));
    }

    #[test]
    fn a_clock_that_steps_back_does_not_fill_the_bucket() {
        let rule = BucketRule::new(per_second(10), 1_000);
        let empty = Bucket::default().taken(&rule, 11, at(0));
        assert_eq!(empty.holds(&rule, at(-5_000_000)), 0);
        let later = empty.taken(&rule, 0, at(-5_000_000));
        assert_eq!(later.holds(&rule, at(0)), 0);
    }

    proptest! {
        #[test]
        fn on_schedule_it_never_binds(rate_nano in 1_i128..2_000_000_000_000, catch_up in 1_000_i64..3_000, seconds in 1_i64..300) {
            let slope = rate_nano * 86_400;
            let rule = BucketRule::new(slope, catch_up);
            let (mut bucket, mut done) = (Bucket::default(), 0_i64);
            for second in 1..=seconds {
                let now = at(second * SECOND_US);
                let units = slope * i128::from(second * SECOND_US);
                let due = i64::try_from((2 * units + VISIT) / (2 * VISIT)).expect("small");
                prop_assert!(bucket.holds(&rule, now) >= due - done);
                bucket = bucket.taken(&rule, due - done, now);
                done = due;
            }
        }

        #[test]
        fn shares_are_max_min_fair(wanted in prop::collection::vec(0_i64..5_000, 0..40), available in 0_i64..20_000) {
            let shares = max_min_fair(&wanted, available);
            prop_assert_eq!(shares.iter().sum::<i64>(), available.min(wanted.iter().sum()));
            for (ownership, want) in shares.iter().zip(&wanted) {
                prop_assert!(ownership <= want);
            }
            let most = shares.iter().copied().max().unwrap_or(0);
            for (ownership, want) in shares.iter().zip(&wanted) {
                prop_assert!(ownership == want || most - ownership <= 1, "who wants more has no less than anybody: {shares:?} of {wanted:?}");
            }
        }

        #[test]
        fn odd_visits_go_to_the_first(claims in 1_usize..40, odd in 0_i64..40) {
            let odd = odd % i64::try_from(claims).expect("small");
            let shares = max_min_fair(&vec![9; claims], 2 * i64::try_from(claims).expect("small") + odd);
            prop_assert!(shares.is_sorted_by(|a, b| a >= b));
            prop_assert_eq!(shares.iter().filter(|ownership| **ownership == 3).count(), usize::try_from(odd).expect("small"));
        }

        #[test]
        fn a_rate_bucket_gives_its_rate_and_one_burst(rate in 1_i64..5_000, steps in prop::collection::vec(1_i64..400_000, 1..200)) {
            let mut bucket = RateBucket::visits(rate, Mono::from_micros(0));
            let (mut now, mut given) = (0, 0);
            for step in steps {
                now += step;
                let held = bucket.holds(Mono::from_micros(now));
                bucket.take(held);
                given += held;
            }
            prop_assert!(i128::from(given) <= i128::from(rate) + i128::from(rate) * i128::from(now) / 1_000_000);
        }
    }
}
