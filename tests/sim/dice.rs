//! The one source of chance: the same seed, the same run.

use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg32;

pub(super) struct Dice(Pcg32);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(Pcg32::seed_from_u64(seed))
    }

    /// Uniform in `low..=high`.
    pub(super) fn between(&mut self, low: i64, high: i64) -> i64 {
        let span = u64::try_from(high - low + 1).expect("low is not above high");
        low + i64::try_from(self.0.next_u64() % span).expect("within the span")
    }

    pub(super) fn percent(&mut self, chance: i64) -> bool {
        self.between(1, 100) <= chance
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let last = i64::try_from(from.len()).expect("small") - 1;
        (last >= 0).then(|| from[usize::try_from(self.between(0, last)).expect("not negative")])
    }
}
