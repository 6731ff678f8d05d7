//! The workloads, by the names, sizes and times of `peers/ceph.sh`, and the ratios that the project aims at.

use std::time::Duration;

use crate::measure::Peer;

/// Bytes of the volume under test, ours and the peer's.
pub const VOLUME_BYTES: u64 = 2 << 30;
/// Bytes of a small request. Small requests are aligned to their size.
pub const SMALL_BYTES: usize = 4 << 10;
/// Bytes of a large request. Large requests are sequential.
pub const LARGE_BYTES: usize = 1 << 20;
/// The deepest queue of any workload.
pub const DEPTH_MAX: usize = 32;

/// Where a request goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Anywhere on the volume, uniformly, aligned to the request's size.
    Random,
    /// From the start, again from the start at the end.
    Sequential,
    /// The first block of each MiB of the whole disk, however large, from the start.
    EachMib,
}

/// When a workload ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    /// After a ramp that is not measured and the time that is.
    Time(Times),
    /// After so many requests; all are measured.
    Requests(u64),
}

/// How long a workload runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Times {
    /// Before measuring.
    pub ramp: Duration,
    /// Measured.
    pub measured: Duration,
}

impl Times {
    /// The peer script's: 3 s and 12 s.
    pub const PEER: Self = Self { ramp: Duration::from_secs(3), measured: Duration::from_secs(12) };
}

/// One pattern of requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Workload {
    /// The name in reports.
    pub name: &'static str,
    /// Where requests go.
    pub access: Access,
    /// How many of a hundred requests are reads.
    pub read_percent: u8,
    /// Bytes of a request.
    pub block_bytes: usize,
    /// Requests in flight.
    pub depth: usize,
    /// Whether each write is followed by a flush before it counts as done.
    pub flush_each: bool,
    /// A burst: so many requests after [`PAUSE`], instead of a time.
    pub burst: Option<u64>,
}

const fn small_random(name: &'static str, read_percent: u8, depth: usize) -> Workload {
    Workload {
        name,
        access: Access::Random,
        read_percent,
        block_bytes: SMALL_BYTES,
        depth,
        flush_each: false,
        burst: None,
    }
}

const fn large_sequential(name: &'static str, read_percent: u8) -> Workload {
    Workload {
        name,
        access: Access::Sequential,
        read_percent,
        block_bytes: LARGE_BYTES,
        depth: 8,
        flush_each: false,
        burst: None,
    }
}

/// Fills the volume, so that no later request meets unallocated space.
pub const PREFILL: Workload = large_sequential("prefill", 0);

/// As much is read as is written: what a copy from a disk onto itself asks of it.
pub const READ_AND_WRITE: Workload = large_sequential("readwrite_1m_qd8", 50);

/// How many of its requests fill the volume.
pub const PREFILL_REQUESTS: u64 = VOLUME_BYTES / LARGE_BYTES as u64;

/// The timed workloads, in the order of the peer's script.
pub const WORKLOADS: [Workload; 7] = [
    small_random("randwrite_4k_qd1", 0, 1),
    small_random("randwrite_4k_qd32", 0, 32),
    small_random("randread_4k_qd1", 100, 1),
    small_random("randread_4k_qd32", 100, 32),
    small_random("randrw70_4k_qd32", 70, 32),
    large_sequential("write_1m_qd8", 0),
    large_sequential("read_1m_qd8", 100),
];

/// Only beside `qemu-storage-daemon`, whose plain writes are not on stable storage when it acknowledges them, as ours
/// are: the like-for-like row.
pub const FLUSHED_WRITES: Workload =
    Workload { flush_each: true, ..small_random("randwrite_4k_qd32_flush", 0, 32) };

/// Before a burst nothing is asked for so long: what is left of the workload before it is done meanwhile.
pub const PAUSE: Duration = Duration::from_secs(10);

/// What a log takes in before the shards have to follow: 48 MB, at most three eighths of the logs of the volume's two chunks.
pub const BURST: Workload =
    Workload { burst: Some(12_000), ..small_random("randwrite_4k_qd32_burst", 0, 32) };

/// The least ratio of our IOPS to the peer's that the project aims at for a workload, if it set one; `parity`: of RAID-5 beside
/// the peer's erasure code.
pub fn target_ratio(peer: Peer, parity: bool, workload: &str) -> Option<f64> {
    match (peer, workload) {
        (Peer::Ceph, "randwrite_4k_qd1") if parity => Some(6.0),
        (Peer::Ceph, "randwrite_4k_qd32") if parity => Some(15.0),
        (Peer::Ceph, "randread_4k_qd1") if parity => Some(3.0),
        (Peer::Ceph, "randread_4k_qd32") if parity => Some(8.0),
        (Peer::Ceph, "read_1m_qd8") if parity => None,
        (Peer::Ceph, "randwrite_4k_qd1") => Some(4.0),
        (Peer::Ceph, "randwrite_4k_qd32") => Some(12.0),
        (Peer::Ceph, "randread_4k_qd1") => Some(1.8),
        (Peer::Ceph, "randread_4k_qd32") => Some(6.0),
        (Peer::Ceph, "write_1m_qd8") => Some(1.5),
        (Peer::Ceph, "read_1m_qd8") => Some(1.0),
        (Peer::Qsd, "randwrite_4k_qd32" | "randread_4k_qd32") => Some(0.7),
        _ => None,
    }
}
