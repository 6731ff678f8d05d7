//! A driver's end of a split ring (virtio 1.2, section 2.7).

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::FrontendError;

/// A buffer to be put on a ring.
#[derive(Debug, Clone, Copy)]
pub struct RingDescriptor {
    /// Guest physical address.
    pub addr: GuestAddress,
    /// Bytes.
    pub len: u32,
    /// The device writes it.
    pub device_writes: bool,
}

/// The driver's state of one ring. All shared state is in guest memory.
#[derive(Debug)]
pub struct DriverRing {
    mem: GuestMemoryMmap,
    size: u16,
    table: GuestAddress,
    avail: GuestAddress,
    used: GuestAddress,
    event_idx: bool,
    free: Vec<u16>,
    /// Descriptors of the chain that starts at an index.
    chains: Vec<Vec<u16>>,
    avail_idx: u16,
    kicked_idx: u16,
    used_idx: u16,
}

impl DriverRing {
    /// Bytes of guest memory that a ring takes, from an address aligned to 4096 on.
    pub fn bytes(size: u16) -> u64 {
        let size = u64::from(size);
        (16 * size).next_multiple_of(4096)
            + (6 + 2 * size).next_multiple_of(4096)
            + (6 + 8 * size).next_multiple_of(4096)
    }

    /// A zeroed ring at this address.
    pub fn new(
        mem: GuestMemoryMmap,
        base: GuestAddress,
        size: u16,
        event_idx: bool,
    ) -> Result<Self, FrontendError> {
        let avail = base.unchecked_add((16 * u64::from(size)).next_multiple_of(4096));
        let used = avail.unchecked_add((6 + 2 * u64::from(size)).next_multiple_of(4096));
        mem.write_slice(&vec![0u8; Self::bytes(size) as usize], base)?;
        Ok(Self {
            mem,
            size,
            table: base,
            avail,
            used,
            event_idx,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
            avail_idx: 0,
            kicked_idx: 0,
            used_idx: 0,
        })
    }

    /// Addresses of descriptor table, available ring and used ring.
    pub fn addrs(&self) -> (GuestAddress, GuestAddress, GuestAddress) {
        (self.table, self.avail, self.used)
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The index up to which the driver has seen completions.
    pub fn seen_used(&self) -> u16 {
        self.used_idx
    }

    /// The used index in guest memory: where a front end restarts a ring whose back end died.
    pub fn shared_used_idx(&self) -> Result<u16, FrontendError> {
        Ok(u16::from_le(self.mem.load(self.used.unchecked_add(2), Ordering::Acquire)?))
    }

    /// Puts a chain on the ring, through an indirect table at `indirect` if there is one. Returns its head, or `None` if
    /// the ring is full.
    pub fn add(
        &mut self,
        chain: &[RingDescriptor],
        indirect: Option<GuestAddress>,
    ) -> Result<Option<u16>, FrontendError> {
        let needed = if indirect.is_some() { 1 } else { chain.len() };
        if self.free.len() < needed || needed == 0 {
            return Ok(None);
        }
        let indices = self.free.split_off(self.free.len() - needed);
        let head = indices[0];
        if let Some(table) = indirect {
            for (at, descriptor) in chain.iter().enumerate() {
                let next = (at + 1 < chain.len()).then_some(at as u16 + 1);
                self.write_descriptor(table, at as u16, descriptor, next)?;
            }
            let outer = Descriptor::new(table.0, 16 * chain.len() as u32, VRING_DESC_F_INDIRECT as u16, 0);
            self.store_descriptor(self.table, head, outer)?;
        } else {
            for (at, descriptor) in chain.iter().enumerate() {
                let next = indices.get(at + 1).copied();
                self.write_descriptor(self.table, indices[at], descriptor, next)?;
            }
        }
        self.chains[usize::from(head)] = indices;
        let slot = self.avail.unchecked_add(4 + 2 * u64::from(self.avail_idx % self.size));
        self.mem.store(head.to_le(), slot, Ordering::Relaxed)?;
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.mem.store(self.avail_idx.to_le(), self.avail.unchecked_add(2), Ordering::Release)?;
        Ok(Some(head))
    }

    fn write_descriptor(
        &self,
        table: GuestAddress,
        index: u16,
        descriptor: &RingDescriptor,
        next: Option<u16>,
    ) -> Result<(), FrontendError> {
        let mut flags = 0;
        if descriptor.device_writes {
            flags |= VRING_DESC_F_WRITE as u16;
        }
        if next.is_some() {
            flags |= VRING_DESC_F_NEXT as u16;
        }
        let raw = Descriptor::new(descriptor.addr.0, descriptor.len, flags, next.unwrap_or(0));
        self.store_descriptor(table, index, raw)
    }

    fn store_descriptor(
        &self,
        table: GuestAddress,
        index: u16,
        descriptor: Descriptor,
    ) -> Result<(), FrontendError> {
        Ok(self.mem.write_obj(descriptor, table.unchecked_add(16 * u64::from(index)))?)
    }

    /// Whether the device wants to be kicked for what was added since the last question.
    pub fn needs_kick(&mut self) -> Result<bool, FrontendError> {
        fence(Ordering::SeqCst);
        let (old, new) = (self.kicked_idx, self.avail_idx);
        self.kicked_idx = new;
        if self.event_idx {
            let at = self.used.unchecked_add(4 + 8 * u64::from(self.size));
            let event = u16::from_le(self.mem.load(at, Ordering::Relaxed)?);
            Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
        } else {
            let flags = u16::from_le(self.mem.load(self.used, Ordering::Relaxed)?);
            Ok(flags & VRING_USED_F_NO_NOTIFY as u16 == 0 && old != new)
        }
    }

    /// Takes the next completion: the chain's head, and how many bytes the device says it wrote.
    pub fn reap(&mut self) -> Result<Option<(u16, u32)>, FrontendError> {
        if self.shared_used_idx()? == self.used_idx {
            return Ok(None);
        }
        let slot = self.used.unchecked_add(4 + 8 * u64::from(self.used_idx % self.size));
        let id = u32::from_le(self.mem.read_obj(slot)?);
        let len = u32::from_le(self.mem.read_obj(slot.unchecked_add(4))?);
        self.used_idx = self.used_idx.wrapping_add(1);
        let head = (id % u32::from(self.size)) as u16;
        self.free.append(&mut self.chains[usize::from(head)]);
        Ok(Some((head, len)))
    }

    /// Asks for a call on the next completion (or none at all). `true`: one came meanwhile, reap again.
    pub fn want_calls(&mut self, wanted: bool) -> Result<bool, FrontendError> {
        if self.event_idx {
            let event = if wanted { self.used_idx } else { self.used_idx.wrapping_sub(1) };
            let at = self.avail.unchecked_add(4 + 2 * u64::from(self.size));
            self.mem.store(event.to_le(), at, Ordering::Relaxed)?;
        } else {
            let flags = if wanted { 0 } else { VRING_AVAIL_F_NO_INTERRUPT as u16 };
            self.mem.store(flags.to_le(), self.avail, Ordering::Relaxed)?;
        }
        fence(Ordering::SeqCst);
        Ok(wanted && self.shared_used_idx()? != self.used_idx)
    }
}
