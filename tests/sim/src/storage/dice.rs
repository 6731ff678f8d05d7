//! All the randomness of a run: one stream of numbers from the seed.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Nanoseconds in a microsecond.
pub(super) const US: u64 = 1_000;
/// Nanoseconds in a millisecond.
pub(super) const MS: u64 = 1_000_000;
/// Nanoseconds in a second.
pub(super) const S: u64 = 1_000_000_000;

/// The dice of one run.
#[derive(Debug)]
pub(super) struct Dice(ChaCha8Rng);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// True in so many of a thousand cases.
    pub(super) fn permille(&mut self, n: u32) -> bool {
        n > 0 && self.0.random_range(0..1_000) < n
    }

    /// A number from `low` to `high`, both included.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0.random_range(low..=high.max(low))
    }

    /// A number below `n`, which is not zero.
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0.random_range(0..n)
    }

    /// A delay around `mean` with a long tail, at most thirty times as much.
    pub(super) fn delay(&mut self, mean: u64) -> u64 {
        let unit: f64 = self.0.random_range(1e-9..1.0);
        let factor = -unit.ln();
        1 + (mean as f64 * factor.min(30.0)) as u64
    }

    /// One of them, if there are any.
    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len())]) }
    }
}
