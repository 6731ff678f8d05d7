//! The other side: small vhost-user front ends with a driver's end of split rings, as a VMM and its guest together
//! would be. For tests and benchmarks, and the start of our own VMM's front end.
//!
//! * [`GuestRam`] is the guest's memory, a sealed memfd.
//! * [`DriverRing`] is a driver's end of one split ring.
//! * [`BlkClient`] puts block requests on several rings, and reconnects to a restarted back end.
//! * [`NetClient`] sends and receives frames on several pairs of rings, asleep or polling, and reconnects.
//! * [`Testpmd`] is DPDK's, which nobody here wrote, with two ports.

mod client;
mod net;
mod net_ring;
mod ring;
// One descriptor is borrowed for a poll.
#[allow(unsafe_code)]
mod session;
mod testpmd;

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

pub use client::{BlkClient, ClientOptions, Completion, Op, Ticket};
pub use net::{NetClient, NetClientOptions, NetDestination};
pub use ring::{DriverRing, RingDescriptor};
pub use testpmd::{Testpmd, TestpmdCounters, TestpmdError, TestpmdOptions, TestpmdPort};

/// What fails on the front end's side.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// The vhost-user conversation failed.
    #[error("vhost-user: {0}")]
    Vhost(#[from] vhost::Error),
    /// A system call failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Guest memory access outside of guest memory: the options ask for more than the RAM has.
    #[error("guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// Guest memory could not be mapped.
    #[error("guest memory: {0}")]
    Map(String),
    /// No completion in time.
    #[error("no completion within {0:?}")]
    Timeout(std::time::Duration),
    /// All slots of the queue are in use.
    #[error("queue {0} is full")]
    Full(u16),
    /// The back end lacks a feature that the options ask for.
    #[error("the back end does not offer {0}")]
    Missing(&'static str),
    /// The request does not fit a slot.
    #[error("a request of {0} bytes does not fit a slot")]
    TooLarge(usize),
    /// A request did not end well; virtio-blk status byte.
    #[error("request failed with status {0}")]
    Failed(u8),
}

/// Guest memory: one region from guest physical address 0 on.
#[derive(Debug, Clone)]
pub struct GuestRam {
    mem: GuestMemoryMmap,
    bytes: u64,
}

impl GuestRam {
    /// A new, zeroed, sealed memfd of this size (a multiple of the page size).
    pub fn new(bytes: u64) -> Result<Self, FrontendError> {
        let fd = rustix::fs::memfd_create("guest-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(std::io::Error::from)?;
        let file = File::from(fd);
        file.set_len(bytes)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)
            .map_err(std::io::Error::from)?;
        let offset = FileOffset::from_arc(Arc::new(file), 0);
        let mem = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), bytes as usize, Some(offset))])
            .map_err(|error| FrontendError::Map(error.to_string()))?;
        Ok(Self { mem, bytes })
    }

    /// The memory, by guest physical address.
    pub fn mem(&self) -> &GuestMemoryMmap {
        &self.mem
    }

    /// Bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The address of a guest physical address in this process.
    fn user_addr(&self, addr: GuestAddress) -> Result<u64, FrontendError> {
        Ok(self.mem.get_host_address(addr)? as u64)
    }
}
