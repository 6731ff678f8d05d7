//! A split ring (virtio 1.2, 2.7) that this process serves: chains are taken from it, and given back.
//!
//! Whatever a guest writes there is read once and checked. What breaks the rules ends in [`RingFault`], and costs the
//! guest this device until it resets it. A ring goes on at the index that its used ring has, so that one which is begun
//! anew (after a pause, or in another process) takes first what was not given back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::ActiveQueue;
use super::vhost_user::QUEUE_SIZE;

/// Most descriptors of a chain. Linux's longest in these devices has 32 (page reporting).
pub const CHAIN_MAX: usize = 1024;
/// `VIRTIO_F_EVENT_IDX`.
const EVENT_INDEX: u64 = 1 << 29;

/// What a guest did to lose its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// Rings that are not in its memory, or not aligned.
    #[error("ring {0} is not in the guest's memory")]
    Place(u16),
    /// More chains than the ring has entries, or indices outside of it.
    #[error("ring {0} says that there is more in it than it holds")]
    Index(u16),
    /// A chain that ends nowhere, goes round, or is too long.
    #[error("a chain of ring {0} does not end")]
    Chain(u16),
    /// A buffer that is not in its memory.
    #[error("a buffer of ring {0} is not in the guest's memory")]
    Buffer(u16),
    /// A request that makes no sense.
    #[error("ring {0}: {1}")]
    Request(u16, &'static str),
}

/// A range of the guest's memory; where it is has not been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// First address.
    pub start: GuestAddress,
    /// Bytes.
    pub bytes: u32,
}

/// One request: descriptors that the device reads, and that it writes to.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
}

impl Chain {
    /// Its first descriptor: what is given back.
    pub fn head(&self) -> Head {
        Head(self.head)
    }

    /// What the device may write to.
    pub fn writable(&self) -> &[Buffer] {
        &self.writable
    }

    /// Bytes that there are to read.
    pub fn readable_bytes(&self) -> u64 {
        self.readable.iter().map(|buffer| u64::from(buffer.bytes)).sum()
    }

    /// Bytes that there is room for.
    pub fn writable_bytes(&self) -> u64 {
        self.writable.iter().map(|buffer| u64::from(buffer.bytes)).sum()
    }
}

/// The number by which a chain is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head(u16);

/// The ring.
#[derive(Debug)]
pub struct Ring {
    index: u16,
    queue: Queue,
    memory: GuestMemoryMmap,
    kick: Arc<EventFd>,
    call: Option<Arc<EventFd>>,
}

impl Ring {
    /// A ring that the driver has set up, from its used index on.
    pub fn new(active: &ActiveQueue, features: u64, memory: GuestMemoryMmap) -> Result<Self, RingFault> {
        let place = |_| RingFault::Place(active.index);
        let mut queue = Queue::new(QUEUE_SIZE).map_err(place)?;
        queue.try_set_size(active.size).map_err(place)?;
        queue.try_set_desc_table_address(active.descriptors).map_err(place)?;
        queue.try_set_avail_ring_address(active.driver).map_err(place)?;
        queue.try_set_used_ring_address(active.device).map_err(place)?;
        queue.set_event_idx(features & EVENT_INDEX != 0);
        queue.set_ready(true);
        if !queue.is_valid(&memory) {
            return Err(RingFault::Place(active.index));
        }
        let used = queue.used_idx(&memory, Ordering::Acquire).map_err(place)?;
        queue.set_next_used(used.0);
        queue.set_next_avail(used.0);
        let (kick, call) = (Arc::clone(&active.kick), active.call.clone());
        Ok(Self { index: active.index, queue, memory, kick, call })
    }

    /// Its number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Rung by the driver.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Most chains that are in it at once.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The next chain, if there is one.
    pub fn take(&mut self) -> Result<Option<Chain>, RingFault> {
        let index = self.index;
        let mut chains = self.queue.iter(&self.memory).map_err(|_| RingFault::Index(index))?;
        let Some(chain) = chains.next() else { return Ok(None) };
        let head = chain.head_index();
        if head >= self.queue.size() {
            return Err(RingFault::Index(index));
        }
        let descriptors: Vec<Descriptor> = chain.take(CHAIN_MAX + 1).collect();
        // The iterator ends without a word at what it does not like; only an end that the guest has set is one.
        let ends = descriptors.last().is_some_and(|last| !last.has_next());
        if !ends || descriptors.len() > CHAIN_MAX {
            return Err(RingFault::Chain(index));
        }
        let of = |writable: bool| {
            let these = descriptors.iter().filter(|descriptor| descriptor.is_write_only() == writable);
            these.map(|descriptor| Buffer { start: descriptor.addr(), bytes: descriptor.len() }).collect()
        };
        Ok(Some(Chain { head, readable: of(false), writable: of(true) }))
    }

    /// The first bytes of what there is to read, at most so many.
    pub fn read(&self, chain: &Chain, most: usize) -> Result<Vec<u8>, RingFault> {
        let mut all = Vec::new();
        for buffer in &chain.readable {
            let wanted = (buffer.bytes as usize).min(most - all.len());
            let at = all.len();
            all.resize(at + wanted, 0);
            self.memory
                .read_slice(&mut all[at..], buffer.start)
                .map_err(|_| RingFault::Buffer(self.index))?;
        }
        Ok(all)
    }

    /// Writes bytes to where there is room, from its beginning; how many found some.
    pub fn write(&self, chain: &Chain, bytes: &[u8]) -> Result<u32, RingFault> {
        let mut rest = bytes;
        for buffer in &chain.writable {
            let (now, later) = rest.split_at((buffer.bytes as usize).min(rest.len()));
            self.memory.write_slice(now, buffer.start).map_err(|_| RingFault::Buffer(self.index))?;
            rest = later;
        }
        Ok((bytes.len() - rest.len()) as u32)
    }

    /// Gives a chain back, into which so many bytes were written.
    pub fn give_back(&mut self, head: Head, written: u32) -> Result<(), RingFault> {
        self.queue.add_used(&self.memory, head.0, written).map_err(|_| RingFault::Index(self.index))
    }

    /// Interrupts the driver if it wants to know of what was given back.
    pub fn tell(&mut self) -> Result<(), RingFault> {
        let wanted = self.queue.needs_notification(&self.memory).map_err(|_| RingFault::Place(self.index))?;
        if let (true, Some(call)) = (wanted, &self.call) {
            // Full means that it is signalled already.
            let _ = call.write(1);
        }
        Ok(())
    }

    /// From now on the driver rings when it has more. Whether it already has.
    pub fn listen(&mut self) -> Result<bool, RingFault> {
        self.queue.enable_notification(&self.memory).map_err(|_| RingFault::Place(self.index))
    }
}
