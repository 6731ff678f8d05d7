//! The vhost-user back end: what stands between a VMM's rings and a daemon's data loop.
//!
//! ```text
//!   VMM ----control socket----> [server: one thread a socket]  --commands, answered-->  [rings, blk; net]
//!    |                            may block on the VMM                                  owned by the data loop,
//!    +----kick/call eventfds, guest memory, in-flight region -------------------------- never blocks
//! ```
//!
//! * [`server`] speaks vhost-user: features, memory table, ring set-up, configuration space, in-flight region. It is
//!   independent of the device and serves one front end after the other.
//! * [`rings`] is the data loop's side of that: running rings, stopped rings, requests left over from a front end that
//!   is gone. Also independent of the device.
//! * [`blk`] is virtio-blk on top (virtio 1.2, section 5.2).
//! * [`net`] is virtio-net (virtio 1.3, section 5.1), with rings of its own: nothing is in flight there, and a frame has
//!   far less time than a block.
//! * [`frontend`] is the other side, small: for tests and benchmarks, and a start for our own VMM.
//! * [`fuzz`] holds pure entry points for fuzzers.
//!
//! **Invariants.** The data loop takes no lock and never waits for a VMM. Everything a guest writes is read once and
//! checked before use; a guest that breaks the rules costs itself its device ([`DeviceBroken`]), nothing else. A request
//! is handed out once per session and its completion reaches the guest at most once; requests cut off by a restart are
//! handed out again, in the order in which they were taken, before anything new.
//!
//! **Must not know**: volumes, replication, where blocks live, where frames go.
#![deny(unsafe_code)]
// Wire structures of other people's design are full of small integers that are cast back and forth.
#![allow(clippy::missing_fields_in_debug)]

pub mod blk;
pub mod chain;
mod error;
pub mod event;
pub mod frontend;
pub mod fuzz;
mod guest;
pub mod inflight;
pub mod memory;
pub mod net;
mod ring;
pub mod rings;
pub mod server;

pub use error::{ChainFault, DeviceBroken, InflightError, MemoryError, RingFault, SessionError};
pub use event::{ControlPort, Notifier};

/// Most descriptors a ring may have.
pub const QUEUE_SIZE_MAX: u16 = 1024;
/// Most queues a block device may have.
pub const QUEUES_MAX: u16 = 16;

/// Number of a queue within its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueIndex(pub u16);

impl std::fmt::Display for QueueIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one request that was handed out; no two in a device's life are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestTag {
    pub(crate) queue: QueueIndex,
    pub(crate) head: u16,
    pub(crate) generation: u64,
}

impl RequestTag {
    /// The queue that the request came from.
    pub fn queue(self) -> QueueIndex {
        self.queue
    }
}
