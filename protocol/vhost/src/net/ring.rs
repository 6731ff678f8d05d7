//! One running split ring of a network device, made for millions of small chains a second: the rings are resolved once,
//! the available index is read again only when what was seen of it is used up, and used entries become visible to the
//! driver a batch at a time ([`NetRing::publish`]).
//!
//! Nothing is ever in flight between two calls: a chain is taken and given back in one, in ring order. So the used index
//! in guest memory says all there is to know of a ring, and that is where a ring starts, whatever base a front end
//! gives (as in DPDK's library): after a crash of either side frames may be lost or, if we died between taking a frame
//! and saying so, sent twice; nothing worse.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use vm_memory::GuestAddress;

use crate::chain::{self, Chain};
use crate::error::{RingFault, SessionError};
use crate::event::{Notifier, RingSetup};
use crate::guest::{Access, GuestView, Outside, Window};
use crate::{QUEUE_SIZE_MAX, QueueIndex};

/// How many chains ahead a descriptor is fetched into the cache, and half of it later its buffer: another processor wrote
/// both, and that takes as long as the work on a few small frames.
const FAR: u16 = 8;
const NEAR: u16 = 4;
const INDEX: usize = 2;
const ENTRIES: usize = 4;

/// The parts of a ring in guest memory.
#[derive(Debug)]
struct Parts {
    view: Arc<GuestView>,
    avail: Window,
    used: Window,
}

impl Parts {
    fn resolve(
        view: &Arc<GuestView>,
        size: u16,
        table: GuestAddress,
        avail: GuestAddress,
        used: GuestAddress,
    ) -> Result<Self, Outside> {
        let entries = usize::from(size);
        if !table.0.is_multiple_of(16) {
            return Err(Outside);
        }
        // The table is read like any other memory; that it is there is checked at once, for a front end to hear of it.
        view.window(table.0, 16 * entries, 1)?;
        Ok(Self {
            view: Arc::clone(view),
            avail: view.window(avail.0, 6 + 2 * entries, 2)?,
            used: view.window(used.0, 6 + 8 * entries, 4)?,
        })
    }
}

/// A started ring.
#[derive(Debug)]
pub(super) struct NetRing {
    parts: Parts,
    size: u16,
    table: GuestAddress,
    avail: GuestAddress,
    used: GuestAddress,
    event_idx: bool,
    indirect: bool,
    /// The next available entry that is taken.
    next_avail: u16,
    /// The driver's available index when it was last read.
    avail_seen: u16,
    /// The next used entry that is written.
    next_used: u16,
    /// The used index that the driver sees.
    published: u16,
    /// The used index when the driver was last called, or found not to want a call.
    called: u16,
    kick: Option<Notifier>,
    call: Option<Notifier>,
    err: Option<Notifier>,
    enabled: bool,
    /// Never enabled since it started: front ends start rings before they enable them, and frames of before wait.
    fresh: bool,
}

impl NetRing {
    /// Starts a ring: checks its addresses, and calls the driver, which may wait for a call that died with our predecessor.
    pub(super) fn start(
        queue: QueueIndex,
        setup: RingSetup,
        view: &Arc<GuestView>,
    ) -> Result<Self, SessionError> {
        let bad = |_| SessionError::Ring { queue, fault: RingFault::BadAddresses };
        if !setup.size.is_power_of_two() || setup.size > QUEUE_SIZE_MAX {
            return Err(bad(Outside));
        }
        let parts = Parts::resolve(view, setup.size, setup.table, setup.avail, setup.used).map_err(bad)?;
        let used_idx = parts.used.load16(INDEX, Ordering::Acquire);
        if used_idx != setup.base {
            tracing::debug!(%queue, base = setup.base, used = used_idx, "ring starts at its used index");
        }
        if let Some(call) = &setup.call {
            call.signal();
        }
        Ok(Self {
            parts,
            size: setup.size,
            table: setup.table,
            avail: setup.avail,
            used: setup.used,
            event_idx: setup.event_idx,
            indirect: setup.indirect,
            next_avail: used_idx,
            avail_seen: used_idx,
            next_used: used_idx,
            published: used_idx,
            called: used_idx,
            kick: setup.kick,
            call: setup.call,
            err: setup.err,
            enabled: setup.enabled,
            fresh: !setup.enabled,
        })
    }

    /// The memory table changed: finds the ring in the new one.
    pub(super) fn remap(&mut self, view: &Arc<GuestView>) -> Result<(), RingFault> {
        self.parts = Parts::resolve(view, self.size, self.table, self.avail, self.used)
            .map_err(|_| RingFault::MemoryGone)?;
        Ok(())
    }

    pub(super) fn kick(&self) -> Option<&Notifier> {
        self.kick.as_ref()
    }

    pub(super) fn set_kick(&mut self, kick: Option<Notifier>) {
        self.kick = kick;
    }

    pub(super) fn set_call(&mut self, call: Option<Notifier>) {
        self.call = call;
        // What was given back while there was no (or another) descriptor may have gone unnoticed.
        if let Some(call) = &self.call {
            call.signal();
        }
    }

    pub(super) fn set_err(&mut self, err: Option<Notifier>) {
        self.err = err;
    }

    pub(super) fn signal_err(&self) {
        if let Some(err) = &self.err {
            err.signal();
        }
    }

    pub(super) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
        self.fresh &= !enabled;
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Started, and not enabled yet: neither forwarded nor thrown away.
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh
    }

    pub(super) fn view(&self) -> &GuestView {
        &self.parts.view
    }

    /// How many chains can be taken; looks at the shared index only when fewer than `wanted` are known of.
    #[inline]
    pub(super) fn available(&mut self, wanted: u16) -> Result<u16, RingFault> {
        let known = self.avail_seen.wrapping_sub(self.next_avail);
        if known >= wanted {
            return Ok(known);
        }
        let avail = self.parts.avail.load16(INDEX, Ordering::Acquire);
        let ahead = avail.wrapping_sub(self.next_avail);
        if ahead > self.size {
            return Err(RingFault::AvailIndex { avail, next: self.next_avail });
        }
        self.avail_seen = avail;
        Ok(ahead)
    }

    /// The head of the chain `ahead` of the next one, and the chain. It is available, says the caller.
    #[inline]
    pub(super) fn look(&self, ahead: u16, chain: &mut Chain) -> Result<u16, RingFault> {
        let slot = self.next_avail.wrapping_add(ahead) & (self.size - 1);
        let head = self.parts.avail.load16(ENTRIES + 2 * usize::from(slot), Ordering::Relaxed);
        if head >= self.size {
            return Err(RingFault::HeadOutOfRange(head));
        }
        chain::walk(&*self.parts.view, self.table, self.size, self.indirect, head, chain)?;
        Ok(head)
    }

    /// Has the memory of the chains that come after the next one fetched: nothing is believed of what is read for that.
    #[inline]
    pub(super) fn prefetch(&self, access: Access) {
        let known = self.avail_seen.wrapping_sub(self.next_avail);
        if known > FAR {
            self.parts.view.prefetch(self.descriptor_at(FAR), Access::Read);
        }
        if known > NEAR
            && let Ok(addr) = self.parts.view.read_array(self.descriptor_at(NEAR))
        {
            self.parts.view.prefetch(u64::from_le_bytes(addr), access);
        }
    }

    /// Where the first descriptor of the chain `ahead` of the next one should be.
    #[inline]
    fn descriptor_at(&self, ahead: u16) -> u64 {
        let slot = self.next_avail.wrapping_add(ahead) & (self.size - 1);
        let head = self.parts.avail.load16(ENTRIES + 2 * usize::from(slot), Ordering::Relaxed);
        self.table.0.wrapping_add(16 * u64::from(head))
    }

    /// Takes the next chain and gives it back. The driver sees it after [`NetRing::publish`].
    #[inline]
    pub(super) fn finish(&mut self, head: u16, written: u32) {
        let at = ENTRIES + 8 * usize::from(self.next_used & (self.size - 1));
        self.parts.used.store32(at, u32::from(head));
        self.parts.used.store32(at + 4, written);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver what was given back.
    #[inline]
    pub(super) fn publish(&mut self) {
        if self.published != self.next_used {
            self.parts.used.store16(INDEX, self.next_used, Ordering::Release);
            self.published = self.next_used;
        }
    }

    /// Shows the driver what was given back, and calls it if it wants to hear of that.
    pub(super) fn notify(&mut self) {
        self.publish();
        let (old, new) = (self.called, self.published);
        if old == new {
            return;
        }
        self.called = new;
        // The used index has to be out before the driver's wish is read, or both sides could miss each other.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.parts.avail.load16(ENTRIES + 2 * usize::from(self.size), Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            let flags = self.parts.avail.load16(0, Ordering::Relaxed);
            u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted && let Some(call) = &self.call {
            call.signal();
        }
    }

    /// Asks for a kick; whether something is available meanwhile.
    pub(super) fn arm(&mut self) -> Result<bool, RingFault> {
        if self.event_idx {
            let at = ENTRIES + 8 * usize::from(self.size);
            self.parts.used.store16(at, self.next_avail, Ordering::Relaxed);
        } else {
            self.parts.used.store16(0, 0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        // Read anew, whatever was seen before.
        self.avail_seen = self.next_avail;
        Ok(self.available(1)? > 0 && !self.fresh)
    }

    /// Says that kicks are not needed. With the event index a kick comes when the index that was asked for is passed: one that
    /// was passed already is passed again after all 65,536.
    pub(super) fn disarm(&mut self) {
        if self.event_idx {
            let at = ENTRIES + 8 * usize::from(self.size);
            self.parts.used.store16(at, self.next_avail.wrapping_sub(1), Ordering::Relaxed);
        } else {
            self.parts.used.store16(0, VRING_USED_F_NO_NOTIFY as u16, Ordering::Relaxed);
        }
    }

    /// Ends the ring, with a last call; where it stood.
    pub(super) fn into_base(mut self) -> u16 {
        self.notify();
        self.next_avail
    }
}
