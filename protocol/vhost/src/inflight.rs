//! In-flight tracking for split rings, as QEMU's `docs/interop/vhost-user.rst` ("Inflight I/O tracking") lays it out.
//!
//! The region is a memfd that we make and the front end keeps: it outlives us, so that after our death and rebirth the
//! requests that were taken from a ring and not yet answered can be found and done again. One part a queue, each 64-byte
//! aligned:
//!
//! ```text
//!  0            8         10         12                14         16
//!  +------------+---------+----------+-----------------+----------+
//!  | features 8 | version | desc_num | last_batch_head | used_idx |   header
//!  +----------+-+---------+---+------+-----------------+----------+
//!  | inflight | padding[5]    | next | counter 8                  |   one a descriptor; only heads are used
//!  +----------+---------------+------+----------------------------+
//! ```
//!
//! Order of stores (a kill may come between any two):
//! take: `counter`, then `inflight = 1` · give back: `next`, `last_batch_head`, then the used ring's `idx`, then
//! `inflight = 0`, then `used_idx`. A batch is always one request here, but a longer last batch, left by another back
//! end, is understood.
//!
//! The file is sealed against shrinking before it is mapped, else a front end could kill us with SIGBUS. Its content is
//! hostile like any guest memory: indices are checked, lists are bounded.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use crate::error::InflightError;
use crate::memory::sealed_against_shrinking;
use crate::{QUEUE_SIZE_MAX, QUEUES_MAX, QueueIndex};

const HEADER_BYTES: u64 = 16;
const ENTRY_BYTES: u64 = 16;
const PART_ALIGN: u64 = 64;
const VERSION: u16 = 1;
const AT_VERSION: usize = 8;
const AT_DESC_NUM: usize = 10;
const AT_LAST_BATCH_HEAD: usize = 12;
const AT_USED_IDX: usize = 14;
const AT_ENTRY_NEXT: usize = 6;
const AT_ENTRY_COUNTER: usize = 8;

/// How many queues of how many descriptors a region serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InflightShape {
    /// Number of queues.
    pub queues: u16,
    /// Descriptors of each.
    pub queue_size: u16,
}

impl InflightShape {
    fn check(self) -> Result<Self, InflightError> {
        let fits = (1..=QUEUES_MAX).contains(&self.queues) && (1..=QUEUE_SIZE_MAX).contains(&self.queue_size);
        if fits { Ok(self) } else { Err(InflightError::Shape { queues: self.queues, size: self.queue_size }) }
    }

    fn part_bytes(self) -> u64 {
        (HEADER_BYTES + ENTRY_BYTES * u64::from(self.queue_size)).next_multiple_of(PART_ALIGN)
    }

    /// Bytes of the whole region.
    pub fn bytes(self) -> u64 {
        self.part_bytes() * u64::from(self.queues)
    }
}

/// Makes the file of a new region, sealed, and initialised for its shape.
pub fn create(shape: InflightShape) -> Result<File, InflightError> {
    let shape = shape.check()?;
    let fd = rustix::fs::memfd_create("ferro-inflight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(std::io::Error::from)?;
    let file = File::from(fd);
    file.set_len(shape.bytes())?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(std::io::Error::from)?;
    Ok(file)
}

/// A mapped region.
#[derive(Debug)]
pub struct InflightRegion {
    mapping: MmapRegion,
    shape: InflightShape,
}

impl InflightRegion {
    /// Maps what a front end handed back. `bytes` and `offset` are its words for the area within the file.
    pub fn map(file: File, offset: u64, bytes: u64, shape: InflightShape) -> Result<Self, InflightError> {
        let shape = shape.check()?;
        let need = shape.bytes();
        if bytes < need {
            return Err(InflightError::Short { need, have: bytes });
        }
        if !sealed_against_shrinking(&file) {
            // A memfd that still takes seals can be made safe; anything else can't.
            let sealed = rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK);
            if sealed.is_err() || !sealed_against_shrinking(&file) {
                return Err(InflightError::NotSealed);
            }
        }
        // After the seal: what is long enough now stays so.
        let have = file.metadata()?.len().saturating_sub(offset);
        if have < need {
            return Err(InflightError::Short { need, have });
        }
        let mapping = MmapRegion::from_file(FileOffset::new(file, offset), need as usize).map_err(map_err)?;
        Ok(Self { mapping, shape })
    }

    /// The part of one queue, for a ring of `ring_size` descriptors; a part that was never used is initialised.
    pub(crate) fn queue(
        self: &Arc<Self>,
        queue: QueueIndex,
        ring_size: u16,
    ) -> Result<InflightQueue, InflightError> {
        if queue.0 >= self.shape.queues || ring_size > self.shape.queue_size {
            return Err(InflightError::Shape { queues: queue.0 + 1, size: ring_size });
        }
        let base = self.shape.part_bytes() as usize * usize::from(queue.0);
        let part = InflightQueue { region: Arc::clone(self), base, ring_size };
        let version: u16 = part.load(AT_VERSION)?;
        if version == 0 {
            part.store(AT_DESC_NUM, self.shape.queue_size)?;
            part.store(AT_VERSION, VERSION)?;
        }
        let (version, descriptors) = (part.load(AT_VERSION)?, part.load(AT_DESC_NUM)?);
        if version != VERSION || descriptors < ring_size {
            return Err(InflightError::Version { version, descriptors, ring: ring_size });
        }
        Ok(part)
    }
}

/// What a queue's part says after a reconnect.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Heads to do again, in the order in which they were taken.
    pub(crate) heads: Vec<u16>,
    /// The counter for the next request.
    pub(crate) next_counter: u64,
}

/// One queue's part of a region.
#[derive(Debug)]
pub(crate) struct InflightQueue {
    region: Arc<InflightRegion>,
    base: usize,
    ring_size: u16,
}

impl InflightQueue {
    fn load<T: vm_memory::AtomicAccess>(&self, at: usize) -> Result<T, InflightError> {
        self.region.mapping.as_volatile_slice().load(self.base + at, Ordering::Acquire).map_err(map_err)
    }

    fn store<T: vm_memory::AtomicAccess>(&self, at: usize, value: T) -> Result<(), InflightError> {
        self.region
            .mapping
            .as_volatile_slice()
            .store(value, self.base + at, Ordering::Release)
            .map_err(map_err)
    }

    fn entry(head: u16) -> usize {
        HEADER_BYTES as usize + ENTRY_BYTES as usize * usize::from(head)
    }

    /// Notes that a head was taken from the ring.
    pub(crate) fn take(&self, head: u16, counter: u64) -> Result<(), InflightError> {
        let entry = Self::entry(head);
        self.store(entry + AT_ENTRY_COUNTER, counter.to_le())?;
        self.store(entry, 1u8)
    }

    /// Before the used ring's index moves over this head.
    pub(crate) fn before_used(&self, head: u16) -> Result<(), InflightError> {
        let last: u16 = self.load(AT_LAST_BATCH_HEAD)?;
        self.store(Self::entry(head) + AT_ENTRY_NEXT, last)?;
        self.store(AT_LAST_BATCH_HEAD, head.to_le())
    }

    /// After the used ring's index has moved to `used_idx`.
    pub(crate) fn after_used(&self, head: u16, used_idx: u16) -> Result<(), InflightError> {
        self.store(Self::entry(head), 0u8)?;
        self.store(AT_USED_IDX, used_idx.to_le())
    }

    /// The reconnect steps: settle the last batch, then list what is in flight.
    pub(crate) fn recover(&self, ring_used_idx: u16) -> Result<Recovered, InflightError> {
        let used_idx = u16::from_le(self.load(AT_USED_IDX)?);
        let batch = ring_used_idx.wrapping_sub(used_idx);
        let mut head = u16::from_le(self.load(AT_LAST_BATCH_HEAD)?);
        // A fresh region beside a ring that has run before shows a large difference and an empty list: harmless.
        for _ in 0..batch.min(self.ring_size) {
            if head >= self.ring_size {
                break;
            }
            self.store(Self::entry(head), 0u8)?;
            head = u16::from_le(self.load(Self::entry(head) + AT_ENTRY_NEXT)?);
        }
        self.store(AT_USED_IDX, ring_used_idx.to_le())?;

        let mut found = Vec::new();
        for head in 0..self.ring_size {
            if self.load::<u8>(Self::entry(head))? == 1 {
                found.push((u64::from_le(self.load(Self::entry(head) + AT_ENTRY_COUNTER)?), head));
            }
        }
        found.sort_unstable();
        let next_counter = found.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(Recovered { heads: found.into_iter().map(|(_, head)| head).collect(), next_counter })
    }
}

fn map_err(error: impl std::fmt::Display) -> InflightError {
    InflightError::Map(error.to_string())
}
