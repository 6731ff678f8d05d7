//! Counters of the data loop. Kept by the loop alone, without atomics; copied out when somebody asks.

use std::time::Duration;

use ferro_protocol::ids::{DiskId, ObjectId};
use vsand_store::StoreStats;

use super::port::VolumeView;

/// Upper bounds of a histogram's buckets, in microseconds; one more bucket holds what is above.
pub const BOUNDS_US: [u64; 18] = [
    10, 20, 50, 100, 200, 300, 500, 750, 1_000, 1_500, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000,
    500_000, 2_000_000,
];

/// A latency histogram.
#[derive(Clone, Debug, Default)]
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
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket] += 1;
        self.count += 1;
        self.sum_ns = self.sum_ns.saturating_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }
}

/// What one direction of I/O did.
#[derive(Clone, Debug, Default)]
pub struct IoStats {
    /// Requests.
    pub ops: u64,
    /// Bytes.
    pub bytes: u64,
    /// From the ring to the ring.
    pub latency: Histogram,
}

/// What a volume's guest did.
#[derive(Clone, Debug, Default)]
pub struct VolumeStats {
    /// Reads.
    pub read: IoStats,
    /// Writes.
    pub write: IoStats,
    /// Discards and write-zeroes.
    pub zero: IoStats,
    /// Requests that failed.
    pub errors: u64,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// A volume each.
    pub volumes: Vec<(VolumeView, VolumeStats)>,
    /// A disk each.
    pub disks: Vec<(DiskId, StoreStats, Option<String>)>,
    /// From asking a remote disk to its answer.
    pub network: Histogram,
    /// Objects with condemned components, to find leftovers of a lost race.
    pub condemned: Vec<ObjectId>,
    /// How often the loop went to sleep.
    pub sleeps: u64,
    /// How often it turned.
    pub turns: u64,
}
