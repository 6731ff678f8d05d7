//! For fuzzing: rings that a hostile guest filled, served once by what a device's thread would serve them with, without the
//! thread. Not for use otherwise.

use std::sync::Arc;
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ActiveQueue;
use super::ring::{Ring, RingFault};
use super::worker::Service;
use super::{balloon, rng, vhost_user};
use crate::layout::{Layout, MemorySize};

/// Entries of the ring.
pub const RING_SIZE: u16 = 64;
/// Where its descriptors are.
pub const TABLE: u64 = 0x10_0000;
/// Where its available ring is.
pub const AVAILABLE: u64 = 0x10_1000;
/// Where its used ring is.
pub const USED: u64 = 0x10_2000;
/// Where buffers may be; the guest has 8 MiB.
pub const BUFFERS: u64 = 0x20_0000;
/// Bytes of the guest's memory.
pub const MEMORY_BYTES: u64 = 8 << 20;

/// Whose ring it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Random numbers.
    Rng,
    /// A balloon's, with this number.
    Balloon(u16),
    /// The control queue of a network card with this many pairs.
    Control(u16),
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Entries that were used.
    pub used: u16,
    /// Why the device was lost, if it was.
    pub fault: Option<RingFault>,
}

/// A guest's memory.
#[derive(Debug)]
pub struct Image(GuestMemoryMmap);

impl Image {
    /// Empty memory; nothing, if the host has none.
    pub fn new() -> Option<Self> {
        let layout = Layout::new(MemorySize::new(MEMORY_BYTES).ok()?, 40).ok()?;
        crate::memory::allocate(&layout).ok().map(Self)
    }

    /// Puts bytes there, as far as there is memory.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        // What is outside is not there, as for a guest.
        let _ = self.0.write(bytes, GuestAddress(at));
    }

    /// Serves the ring in some rounds, as if the driver with these features had rung once.
    pub fn serve(&self, owner: Owner, features: u64) -> std::io::Result<Outcome> {
        let index = match owner {
            Owner::Balloon(index) => index,
            Owner::Rng | Owner::Control(_) => 0,
        };
        let queue = ActiveQueue {
            index,
            size: RING_SIZE,
            descriptors: GuestAddress(TABLE),
            driver: GuestAddress(AVAILABLE),
            device: GuestAddress(USED),
            kick: Arc::new(EventFd::new(EFD_NONBLOCK)?),
            call: Some(Arc::new(EventFd::new(EFD_NONBLOCK)?)),
        };
        let before = self.used();
        let fault = match Ring::new(&queue, features, self.0.clone()) {
            Ok(ring) => self.rounds(owner, features, ring).err(),
            Err(fault) => Some(fault),
        };
        Ok(Outcome { used: self.used().wrapping_sub(before), fault })
    }

    fn used(&self) -> u16 {
        self.0.read_obj(GuestAddress(USED + 2)).unwrap_or(0)
    }

    fn rounds(&self, owner: Owner, features: u64, mut ring: Ring) -> Result<(), RingFault> {
        let mut service: Box<dyn Service> = match owner {
            Owner::Control(pairs) => {
                return vhost_user::serve_control(&mut ring, features, pairs).map(drop);
            }
            Owner::Rng => Box::new(rng::source()),
            Owner::Balloon(_) => match balloon::bag(&self.0) {
                Ok(bag) => Box::new(bag),
                Err(_) => return Ok(()),
            },
        };
        service.begin(features);
        let mut rings = [ring];
        // More than one, as a thread would go on when it is told that there is more.
        for _ in 0..3 {
            service.serve(&mut rings, Instant::now())?;
        }
        Ok(())
    }
}
