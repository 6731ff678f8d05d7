//! Counters of the data loop. Kept by the loop alone, without atomics; copied out when somebody asks.

use std::collections::BTreeMap;
use std::time::Duration;

use ferro_protocol::ids::{DiskId, ObjectId};
use vsand_core::replica::BadCounts;
use vsand_store::StoreStats;
pub use vsand_store::latency::{BOUNDS_US, Histogram};

pub use super::load::DiskLoad;
use super::port::VolumeView;

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
    /// How long requests waited in the rings because of the volume's limits.
    pub limited: Duration,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// A volume each.
    pub volumes: Vec<(VolumeView, VolumeStats)>,
    /// A disk each.
    pub disks: Vec<(DiskId, StoreStats, Option<String>)>,
    /// The revision of the directory's provisioning by which the disks count what they keep.
    pub kept_seen: u64,
    /// Blocks of each disk that were bad.
    pub bad: BTreeMap<DiskId, BadCounts>,
    /// What each disk has to serve.
    pub loads: BTreeMap<DiskId, DiskLoad>,
    /// From asking a remote disk to its answer.
    pub network: Histogram,
    /// Objects with condemned components, to find leftovers of a lost race.
    pub condemned: Vec<ObjectId>,
    /// How often the loop went to sleep.
    pub sleeps: u64,
    /// How often it turned.
    pub turns: u64,
}
