//! Latency histograms: counted without allocation and without atomics by the one thread that owns them, copied out when
//! somebody asks. One scheme of buckets for every stage, so that they can be laid beside each other.

use std::time::Duration;

/// Upper bounds of a histogram's buckets, in microseconds; one more bucket holds what is above.
pub const BOUNDS_US: [u64; 18] = [
    10, 20, 50, 100, 200, 300, 500, 750, 1_000, 1_500, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000,
    500_000, 2_000_000,
];

/// A latency histogram.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Histogram {
    /// Counts, a bucket each, not cumulative.
    pub buckets: [u64; BOUNDS_US.len() + 1],
    /// Sum, in nanoseconds.
    pub sum_ns: u64,
    /// How many.
    pub count: u64,
}

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, took: Duration) {
        self.add_ns(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Counts one that took so many nanoseconds.
    pub fn add_ns(&mut self, ns: u64) {
        let bucket = BOUNDS_US.partition_point(|bound| *bound < ns / 1_000);
        self.buckets[bucket] += 1;
        self.count += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
    }

    /// Counts all that another one has counted.
    pub fn merge(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(sum, n)| *sum += n);
        self.count += other.count;
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }
}
