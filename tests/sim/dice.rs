//! The one source of chance: the same seed, the same run.

use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg32;

pub struct Dice(Pcg32);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(Pcg32::seed_from_u64(seed))
    }

    /// Any number.
    pub fn draw(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// Uniform in `low..=high`.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        let span = u64::try_from(high - low + 1).expect("low is not above high");
        low + i64::try_from(self.0.next_u64() % span).expect("within the span")
    }

    pub fn percent(&mut self, chance: i64) -> bool {
        self.between(1, 100) <= chance
    }

    pub fn index(&mut self, length: usize) -> usize {
        let last = i64::try_from(length).expect("small") - 1;
        usize::try_from(self.between(0, last)).expect("not negative")
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.index(from.len())])
    }
}
