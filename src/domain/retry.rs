//! How long to wait before the next attempt: exponential growth with full jitter.
//!
//! Owns the growth and its bounds; does not sleep, and gives up never: who waits decides that.
//!
//! The growth is that of the crate `backoff`, and this is the only file that names it. The crate
//! has had no maintainer since 2021 (RUSTSEC-2025-0012), so it is held to its policy: its retry
//! loops and its async features are off, and its own jitter (factor 0) and elapsed time (none)
//! are switched off as well, so that neither the clock nor the random number that it reads on
//! each step has a say. The jitter is ours, from a draw that the caller brings.
//!
//! Invariant: every delay lies between the floor and the ceiling.

use std::time::Duration;

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};

/// By how much the upper end of the jitter grows with each attempt.
const GROWTH: f64 = 2.0;

/// The delays of one thing that is tried again and again.
#[derive(Debug)]
pub struct Retry {
    floor: Duration,
    ceiling: Duration,
    policy: ExponentialBackoff,
}

impl Retry {
    /// Delays of at least `floor` and at most `ceiling`. The first is drawn up to twice the
    /// floor, so that already the first attempts of many clients are spread.
    pub fn new(floor: Duration, ceiling: Duration) -> Self {
        let ceiling = ceiling.max(floor);
        let policy = ExponentialBackoffBuilder::new()
            .with_initial_interval(floor.saturating_mul(2).min(ceiling))
            .with_max_interval(ceiling)
            .with_multiplier(GROWTH)
            .with_randomization_factor(0.0)
            .with_max_elapsed_time(None)
            .build();
        Self {
            floor,
            ceiling,
            policy,
        }
    }

    /// The delay before the next attempt: uniform between the floor and the present upper end.
    /// `draw` is a uniform random number; 0 gives the floor, `u32::MAX` the upper end.
    pub fn next(&mut self, draw: u32) -> Duration {
        let upper = self.policy.next_backoff().unwrap_or(self.ceiling);
        let ownership = f64::from(draw) / f64::from(u32::MAX);
        self.floor + upper.saturating_sub(self.floor).mul_f64(ownership)
    }

    /// Forgets the attempts made: it worked.
    pub fn reset(&mut self) {
        self.policy.reset();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn upper_ends(retry: &mut Retry, count: usize) -> Vec<u64> {
        (0..count).map(|_| retry.next(u32::MAX).as_secs()).collect()
    }

    #[test]
    fn the_upper_end_doubles_up_to_the_ceiling_and_stays_there() {
        let mut retry = Retry::new(Duration::from_secs(1), Duration::from_secs(30));
        assert_eq!(upper_ends(&mut retry, 7), [2, 4, 8, 16, 30, 30, 30]);
    }

    #[test]
    fn the_jitter_is_full_down_to_the_floor_at_every_attempt() {
        let mut retry = Retry::new(Duration::from_secs(1), Duration::from_secs(30));
        for _ in 0..10 {
            assert_eq!(retry.next(0), Duration::from_secs(1));
        }
    }

    #[test]
    fn a_reset_starts_the_growth_anew() {
        let mut retry = Retry::new(Duration::from_secs(1), Duration::from_secs(30));
        upper_ends(&mut retry, 5);
        retry.reset();
        assert_eq!(upper_ends(&mut retry, 2), [2, 4]);
    }

    proptest! {
        #[test]
        fn every_delay_lies_between_the_floor_and_the_ceiling(
            floor_ms in 1_u64..10_000,
            span_ms in 0_u64..600_000,
            draws in prop::collection::vec(any::<u32>(), 1..40),
        ) {
            let floor = Duration::from_millis(floor_ms);
            let ceiling = Duration::from_millis(floor_ms + span_ms);
            let mut retry = Retry::new(floor, ceiling);
            for draw in draws {
                let delay = retry.next(draw);
                prop_assert!(floor <= delay && delay <= ceiling, "{delay:?}");
            }
        }
    }
}
