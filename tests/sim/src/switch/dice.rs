//! All the randomness of a run: one stream of numbers from the seed.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

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
    pub(super) fn between(&mut self, low: u32, high: u32) -> u32 {
        self.0.random_range(low..=high.max(low))
    }

    /// A number below `n`, which is not zero.
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0.random_range(0..n)
    }

    /// Any number.
    pub(super) fn any(&mut self) -> u64 {
        self.0.random()
    }

    /// One of them, if there are any.
    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() { None } else { Some(&from[self.below(from.len())]) }
    }
}
