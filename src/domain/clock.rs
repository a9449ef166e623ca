//! The database's clock as seen from here: an offset to the monotonic clock, measured at each round trip.
//!
//! A round trip that was sent at `sent`, answered at `received` and says `db` tells that the offset lies in
//! `[db - received, db - sent]`. The estimate is the greatest lower bound of the last samples, so it is never ahead of the
//! database (visits are never stored early, nor in the future), and late by no more than the quickest round trip. An
//! estimate above a new upper bound means that the database's clock has stepped back, or that another server answers: all
//! older samples are forgotten. The host's own wall clock plays no part.

use std::collections::VecDeque;

use super::time::{DbTime, Mono};

/// Samples that the estimate rests on: at one round trip a second, about half a minute, in which clocks drift by under 3 ms.
const SAMPLES: usize = 32;

/// Slack for clocks that drift against each other between samples, in microseconds.
const DRIFT_US: i64 = 5_000;

/// The estimator. See the module.
#[derive(Default, Debug)]
pub struct DbClock {
    lower_bounds: VecDeque<i64>,
    offset: Option<i64>,
}

impl DbClock {
    /// Takes one round trip into account. Says whether it showed that the database's clock had stepped.
    pub fn sample(&mut self, sent: Mono, db: DbTime, received: Mono) -> Stepped {
        let lower = db.as_micros().saturating_sub(received.as_micros());
        let upper = db.as_micros().saturating_sub(sent.as_micros());
        let stepped = self.offset.is_some_and(|offset| {
            offset > upper.saturating_add(DRIFT_US) || self.all_far_below(lower)
        });
        if stepped {
            self.lower_bounds.clear();
        }
        if self.lower_bounds.len() == SAMPLES {
            self.lower_bounds.pop_front();
        }
        self.lower_bounds.push_back(lower);
        self.offset = self.lower_bounds.iter().copied().max();
        if stepped { Stepped::Yes } else { Stepped::No }
    }

    /// The database's time at a moment of the monotonic clock; `None` before the first sample.
    pub fn at(&self, mono: Mono) -> Option<DbTime> {
        self.offset
            .map(|offset| DbTime::from_micros(mono.as_micros().saturating_add(offset)))
    }

    /// The moment of the monotonic clock at which the database's clock will show `db`.
    pub fn mono_of(&self, db: DbTime) -> Option<Mono> {
        self.offset
            .map(|offset| Mono::from_micros(db.as_micros().saturating_sub(offset)))
    }

    /// A jump forward of more than a second cannot be a slow round trip's bound.
    fn all_far_below(&self, lower: i64) -> bool {
        self.offset
            .is_some_and(|offset| lower.saturating_sub(offset) > super::time::SECOND_US)
    }
}

/// Whether a sample showed a step of the database's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stepped {
    /// It did; older samples were forgotten.
    Yes,
    /// It fits the ones before.
    No,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: i64) -> i64 {
        ms * 1_000
    }

    fn sample(clock: &mut DbClock, sent_ms: i64, db_ms: i64, received_ms: i64) -> Stepped {
        clock.sample(
            Mono::from_micros(ms(sent_ms)),
            DbTime::from_micros(ms(db_ms)),
            Mono::from_micros(ms(received_ms)),
        )
    }

    #[test]
    fn the_estimate_is_never_ahead_of_the_database_however_slow_a_round_trip_was() {
        // The true offset is 1000 s; the server reads its clock anywhere within the round trip.
        let mut clock = DbClock::default();
        for (sent, read, received) in [(0, 5, 40), (100, 139, 140), (200, 200, 203)] {
            assert_eq!(
                sample(&mut clock, sent, 1_000_000 + read, received),
                Stepped::No
            );
            let estimate = clock.at(Mono::from_micros(ms(received))).expect("sampled");
            assert!(estimate <= DbTime::from_micros(ms(1_000_000 + received)));
        }
        let estimate = clock.at(Mono::from_micros(ms(300))).expect("sampled");
        assert_eq!(
            estimate,
            DbTime::from_micros(ms(1_000_000 + 299)),
            "late by the best bound"
        );
    }

    #[test]
    fn a_database_clock_that_steps_back_or_forward_is_followed_at_once() {
        let mut clock = DbClock::default();
        sample(&mut clock, 0, 1_000_000, 1);
        assert_eq!(sample(&mut clock, 1_000, 401_000, 1_001), Stepped::Yes);
        assert_eq!(
            clock.at(Mono::from_micros(ms(1_001))),
            Some(DbTime::from_micros(ms(401_000)))
        );
        assert_eq!(sample(&mut clock, 2_000, 9_402_000, 2_001), Stepped::Yes);
        assert_eq!(
            clock.at(Mono::from_micros(ms(2_001))),
            Some(DbTime::from_micros(ms(9_402_000)))
        );
    }

    #[test]
    fn both_directions_of_the_conversion_agree() {
        let mut clock = DbClock::default();
        assert_eq!(clock.at(Mono::from_micros(0)), None);
        sample(&mut clock, 0, 777_000, 2);
        let at = clock.at(Mono::from_micros(123_456)).expect("sampled");
        assert_eq!(clock.mono_of(at), Some(Mono::from_micros(123_456)));
    }
}
