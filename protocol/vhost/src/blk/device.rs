//! The block device as the data loop sees it.

use std::sync::Arc;

use vm_memory::Bytes;

use super::config::{BlkSettings, Sector};
use super::request::{
    ID_BYTES, Parsed, Placement, Request, RequestKind, Status, parse, read_segments, write_segments,
};
use crate::chain::Chain;
use crate::event::ControlPort;
use crate::rings::Rings;
use crate::server::SharedConfig;
use crate::{QUEUE_SIZE_MAX, QueueIndex, RequestTag};

/// Data could not be moved between the guest and us. The request is still to be completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// The front end that sent the request is gone. Complete it, whatever the status: it is only counted off.
    #[error("the request's front end is gone")]
    Stale,
    /// The guest's buffer is not mapped any more.
    #[error("the guest's buffer is not in guest memory any more")]
    Unmapped,
    /// The caller's buffer has another length than the request's data, or the request moves data the other way.
    #[error("the buffer does not fit the request")]
    Mismatch,
}

/// What a call of [`BlkDevice::poll`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollOutcome {
    /// Chains taken from the rings.
    pub taken: usize,
    /// The budget ran out before the rings were empty.
    pub more: bool,
}

/// A virtio-blk device: hands out requests, takes their outcomes. See the module for the order of calls.
#[derive(Debug)]
pub struct BlkDevice {
    settings: BlkSettings,
    config: Arc<SharedConfig>,
    rings: Rings,
    /// Per queue and head; valid only while the rings say that the head is in flight under the tag.
    placements: Vec<Vec<Option<Placement>>>,
    chain: Chain,
}

impl BlkDevice {
    pub(crate) fn new(settings: BlkSettings, port: Option<ControlPort>, config: Arc<SharedConfig>) -> Self {
        let queues = settings.queues;
        Self {
            settings,
            config,
            rings: Rings::with_port(queues, port),
            placements: (0..queues).map(|_| Vec::new()).collect(),
            chain: Chain::default(),
        }
    }

    // ---- getters ----

    /// The rings: kick descriptors, control descriptor, arming, notifications.
    pub fn rings(&self) -> &Rings {
        &self.rings
    }

    /// See [`BlkDevice::rings`].
    pub fn rings_mut(&mut self) -> &mut Rings {
        &mut self.rings
    }

    /// What the device is.
    pub fn settings(&self) -> &BlkSettings {
        &self.settings
    }

    // ---- mutators ----

    /// Changes the size; the guest is told by the control thread.
    pub fn resize(&mut self, capacity: Sector) {
        self.settings.capacity = capacity;
        self.config.update(self.settings.config_space());
    }

    /// Takes up to `budget` requests from the rings, in turn, and hands them out. Requests that need no storage (bad
    /// ones, `GET_ID`) are completed here.
    pub fn poll(&mut self, budget: usize, out: &mut impl FnMut(Request)) -> PollOutcome {
        let mut taken = 0;
        let queues = self.rings.queues();
        let start = self.rings.next_turn();
        let mut idle = 0;
        let mut turn = start;
        while idle < queues && self.rings.may_take() {
            if taken == budget {
                return PollOutcome { taken, more: true };
            }
            let queue = QueueIndex((turn % queues) as u16);
            turn += 1;
            let mut chain = std::mem::take(&mut self.chain);
            if let Some(tag) = self.rings.take(queue, &mut chain) {
                taken += 1;
                idle = 0;
                self.start(tag, &mut chain, out);
            } else {
                idle += 1;
            }
            self.chain = chain;
        }
        PollOutcome { taken, more: false }
    }

    fn start(&mut self, tag: RequestTag, chain: &mut Chain, out: &mut impl FnMut(Request)) {
        let Some(memory) = self.rings.memory().cloned() else { return };
        let (parsed, placement) = match parse(memory.mem(), chain, &self.settings) {
            Ok(parsed) => parsed,
            Err(fault) => {
                self.rings.break_device(tag.queue, fault);
                // Nobody outside knows of this request: end it here, or the ring could never stop.
                self.rings.give_back(tag, 0);
                return;
            }
        };
        let heads = &mut self.placements[usize::from(tag.queue.0)];
        if heads.is_empty() {
            heads.resize_with(usize::from(QUEUE_SIZE_MAX), || None);
        }
        heads[usize::from(tag.head)] = Some(placement);
        match parsed {
            Parsed::Do(kind) => out(Request { tag, kind }),
            Parsed::Finish(status) => self.complete(tag, status),
            Parsed::GetId => {
                let id = self.settings.id();
                let status = match self.copy_in(tag, 0, &id) {
                    Ok(()) => Status::Ok,
                    Err(_) => Status::IoErr,
                };
                let written = if status == Status::Ok { ID_BYTES as u32 } else { 0 };
                self.finish(tag, status, written);
            }
        }
    }

    fn placement(&self, tag: RequestTag) -> Result<&Placement, CopyError> {
        if !self.rings.is_current(tag) {
            return Err(CopyError::Stale);
        }
        self.placements
            .get(usize::from(tag.queue.0))
            .and_then(|heads| heads.get(usize::from(tag.head))?.as_ref())
            .ok_or(CopyError::Stale)
    }

    /// Copies a write's data out of guest memory. `buffer` is exactly as long as the request.
    pub fn copy_out(&self, tag: RequestTag, buffer: &mut [u8]) -> Result<(), CopyError> {
        let placement = self.placement(tag)?;
        if placement.data_writable || buffer.len() != placement.data_bytes as usize {
            return Err(CopyError::Mismatch);
        }
        let memory = self.rings.memory().ok_or(CopyError::Stale)?;
        read_segments(memory.mem(), &placement.data, 0, buffer).map_err(|_| CopyError::Unmapped)
    }

    /// Copies a part of a write's data out of guest memory, from `offset` bytes into the request on.
    ///
    /// The guest may change its buffer between two calls: fetch each byte once.
    pub fn copy_out_at(&self, tag: RequestTag, offset: u32, buffer: &mut [u8]) -> Result<(), CopyError> {
        let placement = self.placement(tag)?;
        let end = offset as usize + buffer.len();
        if placement.data_writable || end > placement.data_bytes as usize {
            return Err(CopyError::Mismatch);
        }
        let memory = self.rings.memory().ok_or(CopyError::Stale)?;
        read_segments(memory.mem(), &placement.data, offset as usize, buffer).map_err(|_| CopyError::Unmapped)
    }

    /// Copies a part of a read's data into guest memory, `offset` bytes into the request.
    pub fn copy_in(&self, tag: RequestTag, offset: u32, data: &[u8]) -> Result<(), CopyError> {
        let placement = self.placement(tag)?;
        let end = offset as usize + data.len();
        if !placement.data_writable || end > placement.data_bytes as usize {
            return Err(CopyError::Mismatch);
        }
        let memory = self.rings.memory().ok_or(CopyError::Stale)?;
        write_segments(memory.mem(), &placement.data, offset as usize, data).map_err(|_| CopyError::Unmapped)
    }

    /// Copies a read's data, in pieces, and completes it. If they can't be copied, the request fails and the error says
    /// why; it is completed in any case.
    pub fn complete_read<'a>(
        &mut self,
        tag: RequestTag,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), CopyError> {
        let copied = self.copy_pieces(tag, pieces);
        let status = if copied.is_ok() { Status::Ok } else { Status::IoErr };
        self.complete(tag, status);
        copied
    }

    fn copy_pieces<'a>(
        &self,
        tag: RequestTag,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), CopyError> {
        let mut at: u32 = 0;
        for piece in pieces {
            self.copy_in(tag, at, piece)?;
            at += piece.len() as u32;
        }
        if at == self.placement(tag)?.data_bytes { Ok(()) } else { Err(CopyError::Mismatch) }
    }

    /// Ends a request. A read that ends `Ok` has had all its data copied in before.
    pub fn complete(&mut self, tag: RequestTag, status: Status) {
        let written = match self.placement(tag) {
            Ok(placement) if placement.data_writable && status == Status::Ok => placement.data_bytes,
            _ => 0,
        };
        self.finish(tag, status, written);
    }

    fn finish(&mut self, tag: RequestTag, status: Status, written: u32) {
        let mut fault = None;
        if let Ok(placement) = self.placement(tag)
            && let Some(memory) = self.rings.memory()
            && self.rings.broken().is_none()
            && memory.mem().write_obj(status.byte(), placement.status).is_err()
        {
            fault = Some(crate::RingFault::NoStatus);
        }
        if let Some(fault) = fault {
            self.rings.break_device(tag.queue, fault);
        }
        if self.rings.is_current(tag)
            && let Some(slot) = self
                .placements
                .get_mut(usize::from(tag.queue.0))
                .and_then(|heads| heads.get_mut(usize::from(tag.head)))
        {
            *slot = None;
        }
        self.rings.give_back(tag, written + 1);
    }

    // ---- the loop's boundaries, passed on ----

    /// See [`Rings::control`].
    pub fn control(&mut self) {
        self.rings.control();
    }

    /// See [`Rings::flush_notifications`].
    pub fn flush_notifications(&mut self) {
        self.rings.flush_notifications();
    }

    /// See [`Rings::arm`].
    pub fn arm(&mut self) -> bool {
        self.rings.arm()
    }

    /// See [`Rings::disarm`].
    pub fn disarm(&mut self) {
        self.rings.disarm();
    }
}

impl Request {
    /// Data bytes that the request moves.
    pub fn data_bytes(&self) -> u32 {
        match self.kind {
            RequestKind::Read { bytes, .. } | RequestKind::Write { bytes, .. } => bytes,
            RequestKind::Flush | RequestKind::Discard(_) | RequestKind::WriteZeroes { .. } => 0,
        }
    }
}
