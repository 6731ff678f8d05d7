//! One running split ring, whatever the device: taking heads, giving them back, notifications, in-flight notes.
//!
//! Owned by the data loop; no lock, no thread, no blocking call. It must not know what a request means.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use crate::QueueIndex;
use crate::chain::{self, Chain};
use crate::error::{RingFault, SessionError};
use crate::event::{Notifier, Reply, ReplySlot, RingSetup};
use crate::inflight::{InflightQueue, InflightRegion};
use crate::{QUEUE_SIZE_MAX, RequestTag};

/// A started ring.
#[derive(Debug)]
pub(crate) struct Ring {
    index: QueueIndex,
    queue: Queue,
    table: GuestAddress,
    avail: GuestAddress,
    indirect: bool,
    kick: Option<Notifier>,
    call: Option<Notifier>,
    err: Option<Notifier>,
    enabled: bool,
    /// Per head, the generation under which it was taken, while it is in flight.
    taken: Box<[Option<u64>]>,
    outstanding: u32,
    resubmit: VecDeque<u16>,
    inflight: Option<InflightQueue>,
    inflight_counter: u64,
    /// Heads were given back since the driver was last told.
    used_since_call: bool,
    /// Someone waits for this ring to fall idle.
    stopping: Option<ReplySlot>,
}

impl Ring {
    /// Starts a ring: checks its addresses and settles what a predecessor left in flight.
    pub(crate) fn start(
        index: QueueIndex,
        setup: RingSetup,
        mem: &GuestMemoryMmap,
        region: Option<&Arc<InflightRegion>>,
    ) -> Result<Self, SessionError> {
        let bad = || SessionError::Ring { queue: index, fault: RingFault::BadAddresses };
        let mut queue = Queue::new(QUEUE_SIZE_MAX).map_err(|_| bad())?;
        queue.try_set_size(setup.size).map_err(|_| bad())?;
        queue.try_set_desc_table_address(setup.table).map_err(|_| bad())?;
        queue.try_set_avail_ring_address(setup.avail).map_err(|_| bad())?;
        queue.try_set_used_ring_address(setup.used).map_err(|_| bad())?;
        queue.set_event_idx(setup.event_idx);
        queue.set_ready(true);
        if !queue.is_valid(mem) {
            return Err(bad());
        }
        // The used index in guest memory, not ours, is what the driver has seen.
        let used_idx = queue.used_idx(mem, Ordering::Acquire).map_err(|_| bad())?.0;
        queue.set_next_used(used_idx);
        queue.set_next_avail(setup.base);

        let mut resubmit = VecDeque::new();
        let mut inflight = None;
        let mut inflight_counter = 0;
        if let Some(region) = region {
            let part = region.queue(index, setup.size)?;
            let recovered = part.recover(used_idx)?;
            // Heads are taken in ring order, so what was taken is what is used plus what is in flight.
            queue.set_next_avail(used_idx.wrapping_add(recovered.heads.len() as u16));
            inflight_counter = recovered.next_counter;
            resubmit = recovered.heads.into();
            inflight = Some(part);
        }
        Ok(Self {
            index,
            queue,
            table: setup.table,
            avail: setup.avail,
            indirect: setup.indirect,
            kick: setup.kick,
            call: setup.call,
            err: setup.err,
            enabled: setup.enabled,
            taken: vec![None; usize::from(setup.size)].into_boxed_slice(),
            outstanding: 0,
            resubmit,
            inflight,
            inflight_counter,
            // After a reconnect the driver may have missed a call for what the predecessor finished.
            used_since_call: false,
            stopping: None,
        })
    }

    pub(crate) fn kick(&self) -> Option<&Notifier> {
        self.kick.as_ref()
    }

    pub(crate) fn set_kick(&mut self, kick: Option<Notifier>) {
        self.kick = kick;
    }

    pub(crate) fn set_call(&mut self, call: Option<Notifier>) {
        self.call = call;
        // What was given back while there was no (or another) descriptor may have gone unnoticed.
        if let Some(call) = &self.call {
            call.signal();
        }
    }

    /// Wakes the driver whatever it asked for: after a reconnect it may wait for a call that died with our predecessor.
    pub(crate) fn call_anyway(&self) {
        if let Some(call) = &self.call {
            call.signal();
        }
    }

    pub(crate) fn set_err(&mut self, err: Option<Notifier>) {
        self.err = err;
    }

    pub(crate) fn signal_err(&self) {
        if let Some(err) = &self.err {
            err.signal();
        }
    }

    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// Heads in flight.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding as usize
    }

    /// Tags of all that is in flight.
    pub(crate) fn tags(&self) -> impl Iterator<Item = RequestTag> + '_ {
        self.taken.iter().enumerate().filter_map(|(head, generation)| {
            generation.map(|generation| RequestTag { queue: self.index, head: head as u16, generation })
        })
    }

    pub(crate) fn is_in_flight(&self, tag: RequestTag) -> bool {
        self.taken.get(usize::from(tag.head)).is_some_and(|taken| *taken == Some(tag.generation))
    }

    /// The next head and its chain, or `None` when there is nothing to do.
    pub(crate) fn take(
        &mut self,
        mem: &GuestMemoryMmap,
        generation: u64,
        chain: &mut Chain,
    ) -> Result<Option<RequestTag>, RingFault> {
        if !self.enabled {
            return Ok(None);
        }
        let (head, again) = match self.resubmit.front() {
            Some(head) => (*head, true),
            None if self.stopping.is_some() => return Ok(None),
            None => match self.next_avail_head(mem)? {
                Some(head) => (head, false),
                None => return Ok(None),
            },
        };
        let slot = self.taken.get_mut(usize::from(head)).ok_or(RingFault::HeadOutOfRange(head))?;
        if slot.is_some() || (!again && self.resubmit.contains(&head)) {
            return Err(RingFault::HeadInFlight(head));
        }
        chain::walk(mem, self.table, self.queue.size(), self.indirect, head, chain)?;
        if again {
            self.resubmit.pop_front();
        } else {
            if let Some(inflight) = &self.inflight {
                inflight.take(head, self.inflight_counter).map_err(|error| inflight_fault(&error))?;
                self.inflight_counter = self.inflight_counter.wrapping_add(1);
            }
            self.queue.set_next_avail(self.queue.next_avail().wrapping_add(1));
        }
        *slot = Some(generation);
        self.outstanding += 1;
        Ok(Some(RequestTag { queue: self.index, head, generation }))
    }

    fn next_avail_head(&self, mem: &GuestMemoryMmap) -> Result<Option<u16>, RingFault> {
        let gone = |_| RingFault::MemoryGone;
        let next = self.queue.next_avail();
        let avail = self.queue.avail_idx(mem, Ordering::Acquire).map_err(|_| RingFault::MemoryGone)?.0;
        let ahead = avail.wrapping_sub(next);
        if ahead == 0 {
            return Ok(None);
        }
        if ahead > self.queue.size() {
            return Err(RingFault::AvailIndex { avail, next });
        }
        let at = 4 + 2 * u64::from(next % self.queue.size());
        let at = self.avail.checked_add(at).ok_or(RingFault::MemoryGone)?;
        mem.load::<u16>(at, Ordering::Relaxed).map(|head| Some(u16::from_le(head))).map_err(gone)
    }

    /// Gives a head back to the driver. `written` is how many bytes of its buffers we wrote.
    pub(crate) fn give_back(
        &mut self,
        mem: &GuestMemoryMmap,
        tag: RequestTag,
        written: u32,
    ) -> Result<(), RingFault> {
        self.forget(tag);
        if let Some(inflight) = &self.inflight {
            inflight.before_used(tag.head).map_err(|error| inflight_fault(&error))?;
        }
        self.queue.add_used(mem, tag.head, written).map_err(|_| RingFault::MemoryGone)?;
        if let Some(inflight) = &self.inflight {
            inflight.after_used(tag.head, self.queue.next_used()).map_err(|error| inflight_fault(&error))?;
        }
        self.used_since_call = true;
        Ok(())
    }

    /// Ends a head without telling the driver (the device is broken).
    pub(crate) fn drop_tag(&mut self, tag: RequestTag) {
        self.forget(tag);
    }

    fn forget(&mut self, tag: RequestTag) {
        if let Some(slot) = self.taken.get_mut(usize::from(tag.head))
            && slot.take().is_some()
        {
            self.outstanding -= 1;
        }
    }

    /// Takes no more from the ring; `reply` gets the base once nothing is in flight.
    pub(crate) fn stop(&mut self, reply: ReplySlot) {
        self.stopping = Some(reply);
    }

    /// The ring had to stop at once: what waits in the in-flight region stays there.
    pub(crate) fn break_off(&mut self) {
        self.resubmit.clear();
        self.enabled = false;
    }

    /// Whether the ring has come to rest after [`Ring::stop`].
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopping.is_some() && self.is_idle()
    }

    fn is_idle(&self) -> bool {
        self.outstanding == 0 && (self.resubmit.is_empty() || !self.enabled)
    }

    /// Ends a ring that [`Ring::is_stopped`], telling who waited where it stood. The last call is made first.
    pub(crate) fn into_base(mut self, mem: Option<&GuestMemoryMmap>) {
        if let Some(mem) = mem {
            self.notify(mem);
        }
        if let Some(reply) = self.stopping.take() {
            reply.send(Reply::Base(self.queue.next_avail()));
        }
    }

    /// Calls the driver if it wants to hear of what was given back since the last call.
    pub(crate) fn notify(&mut self, mem: &GuestMemoryMmap) {
        if !std::mem::take(&mut self.used_since_call) {
            return;
        }
        // Unreadable ring memory: call, it can't harm; the next access will report it.
        let wanted = self.queue.needs_notification(mem).unwrap_or(true)
            && (self.queue.event_idx_enabled() || !self.interrupts_off(mem));
        if wanted && let Some(call) = &self.call {
            call.signal();
        }
    }

    fn interrupts_off(&self, mem: &GuestMemoryMmap) -> bool {
        mem.load::<u16>(self.avail, Ordering::Relaxed)
            .is_ok_and(|flags| u16::from_le(flags) & VRING_AVAIL_F_NO_INTERRUPT as u16 != 0)
    }

    /// Asks for kicks again; whether something arrived in the meantime.
    pub(crate) fn arm(&mut self, mem: &GuestMemoryMmap) -> Result<bool, RingFault> {
        if !self.enabled {
            return Ok(false);
        }
        if self.stopping.is_some() {
            return Ok(!self.resubmit.is_empty());
        }
        let more = self.queue.enable_notification(mem).map_err(|_| RingFault::MemoryGone)?;
        Ok(more || !self.resubmit.is_empty())
    }

    /// Says that kicks are not needed. A hint only: errors show elsewhere.
    pub(crate) fn disarm(&mut self, mem: &GuestMemoryMmap) {
        if self.queue.disable_notification(mem).is_err() {
            tracing::debug!(queue = %self.index, "ring memory is gone");
        }
    }
}

fn inflight_fault(error: &crate::error::InflightError) -> RingFault {
    RingFault::Inflight(error.to_string())
}
