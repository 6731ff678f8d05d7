//! A driver's end of a split ring, as a network driver has it: the chain of each slot begins at a descriptor of its own,
//! so that there is nothing to allocate, and the ring is resolved once. For load generators that have to be faster than
//! what they measure.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use vm_memory::GuestAddress;

use super::{DriverRing, FrontendError};
use crate::guest::{GuestView, Window};

const INDEX: usize = 2;
const ENTRIES: usize = 4;

/// The driver's state of one ring. All shared state is in guest memory.
#[derive(Debug)]
pub(super) struct SlotRing {
    table: Window,
    avail: Window,
    used: Window,
    addrs: (GuestAddress, GuestAddress, GuestAddress),
    size: u16,
    event_idx: bool,
    avail_idx: u16,
    kicked_idx: u16,
    used_idx: u16,
    used_seen: u16,
}

fn outside(_: crate::guest::Outside) -> FrontendError {
    FrontendError::Map("a ring outside of guest memory".into())
}

impl SlotRing {
    /// A zeroed ring of [`DriverRing::bytes`] at this address.
    pub(super) fn new(
        view: &Arc<GuestView>,
        base: GuestAddress,
        size: u16,
        event_idx: bool,
    ) -> Result<Self, FrontendError> {
        let entries = usize::from(size);
        let avail = base.0 + (16 * u64::from(size)).next_multiple_of(4096);
        let used = avail + (6 + 2 * u64::from(size)).next_multiple_of(4096);
        view.write(base.0, &vec![0; DriverRing::bytes(size) as usize]).map_err(outside)?;
        Ok(Self {
            table: view.window(base.0, 16 * entries, 16).map_err(outside)?,
            avail: view.window(avail, 6 + 2 * entries, 2).map_err(outside)?,
            used: view.window(used, 6 + 8 * entries, 4).map_err(outside)?,
            addrs: (base, GuestAddress(avail), GuestAddress(used)),
            size,
            event_idx,
            avail_idx: 0,
            kicked_idx: 0,
            used_idx: 0,
            used_seen: 0,
        })
    }

    /// Addresses of descriptor table, available ring and used ring.
    pub(super) fn addrs(&self) -> (GuestAddress, GuestAddress, GuestAddress) {
        self.addrs
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// The used index in guest memory: where a front end restarts a ring whose back end died.
    pub(super) fn shared_used_idx(&self) -> u16 {
        self.used.load16(INDEX, Ordering::Acquire)
    }

    pub(super) fn descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = 16 * usize::from(index);
        self.table.store32(at, addr as u32);
        self.table.store32(at + 4, (addr >> 32) as u32);
        self.table.store32(at + 8, len);
        self.table.store16(at + 12, flags, Ordering::Relaxed);
        self.table.store16(at + 14, next, Ordering::Relaxed);
    }

    /// Only the length of a descriptor that was written before.
    #[inline]
    pub(super) fn descriptor_len(&self, index: u16, len: u32) {
        self.table.store32(16 * usize::from(index) + 8, len);
    }

    /// Makes the chain at `head` available, with the next [`SlotRing::publish`].
    #[inline]
    pub(super) fn put(&mut self, head: u16) {
        let slot = usize::from(self.avail_idx & (self.size - 1));
        self.avail.store16(ENTRIES + 2 * slot, head, Ordering::Relaxed);
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// Shows the device what was put.
    #[inline]
    pub(super) fn publish(&mut self) {
        self.avail.store16(INDEX, self.avail_idx, Ordering::Release);
    }

    /// Whether the device wants to be kicked for what was published since the last question.
    pub(super) fn needs_kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let (old, new) = (self.kicked_idx, self.avail_idx);
        self.kicked_idx = new;
        if self.event_idx {
            let event = self.used.load16(ENTRIES + 8 * usize::from(self.size), Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            let flags = self.used.load16(0, Ordering::Relaxed);
            u32::from(flags) & VRING_USED_F_NO_NOTIFY == 0 && old != new
        }
    }

    /// How many completions can be reaped; looks at the shared index only if fewer than `wanted` are known of.
    #[inline]
    pub(super) fn completed(&mut self, wanted: u16) -> u16 {
        let known = self.used_seen.wrapping_sub(self.used_idx);
        if known >= wanted {
            return known;
        }
        self.used_seen = self.shared_used_idx();
        self.used_seen.wrapping_sub(self.used_idx)
    }

    /// Takes the next completion, which is there: head, and bytes that the device says it wrote.
    #[inline]
    pub(super) fn reap(&mut self) -> (u16, u32) {
        let at = ENTRIES + 8 * usize::from(self.used_idx & (self.size - 1));
        self.used_idx = self.used_idx.wrapping_add(1);
        (self.used.load32(at) as u16, self.used.load32(at + 4))
    }

    /// Asks for a call on the next completion (or none at all). `true`: one came meanwhile, reap again.
    pub(super) fn want_calls(&mut self, wanted: bool) -> bool {
        if self.event_idx {
            let event = if wanted { self.used_idx } else { self.used_idx.wrapping_sub(1) };
            self.avail.store16(ENTRIES + 2 * usize::from(self.size), event, Ordering::Relaxed);
        } else {
            let flags = if wanted { 0 } else { VRING_AVAIL_F_NO_INTERRUPT as u16 };
            self.avail.store16(0, flags, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        wanted && self.shared_used_idx() != self.used_idx
    }
}
