//! virtio devices on the PCI bus (virtio 1.2, 4.1): the modern interface, interrupts by MSI-X only.
//!
//! ```text
//!   guest ──► VirtioPci ──► Transport   registers of the common configuration, pure
//!                │    └───► MsixTable   messages, pure
//!                └────────► Device      what the device is
//!                              ├──► vhost_user     its rings are served by another process
//!                              └──► rng, balloon   … by a thread of this one: worker, ring
//! ```

pub mod balloon;
mod config_change;
pub mod fuzz;
pub mod pci;
pub mod ring;
pub mod rng;
pub mod transport;
pub mod vhost_user;
pub mod worker;

use std::fmt::Debug;
use std::sync::Arc;

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::state::{DeviceState, RestoreError};

pub use config_change::ConfigChange;

/// `VIRTIO_F_VERSION_1`.
pub const VERSION_1: u64 = 1 << 32;
/// What every device offers whose rings are served here: indirect descriptors, event index, version 1.
pub const IN_PROCESS_FEATURES: u64 = 1 << 28 | 1 << 29 | VERSION_1;

/// Kind of a device (virtio 1.2, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum DeviceKind {
    /// Network card.
    Net = 1,
    /// Block device.
    Block = 2,
    /// Source of random numbers.
    Rng = 4,
    /// Memory balloon.
    Balloon = 5,
}

impl DeviceKind {
    /// PCI class, sub-class, interface.
    fn class(self) -> [u8; 3] {
        match self {
            Self::Net => [2, 0, 0],
            Self::Block => [1, 0x80, 0],
            // Of no class that PCI knows.
            Self::Rng | Self::Balloon => [0, 0xff, 0],
        }
    }
}

/// A queue that the driver has set up.
#[derive(Debug, Clone)]
pub struct ActiveQueue {
    /// Its number.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: GuestAddress,
    /// Available ring.
    pub driver: GuestAddress,
    /// Used ring.
    pub device: GuestAddress,
    /// The driver signals it.
    pub kick: Arc<EventFd>,
    /// The device signals it; `None`: the driver polls.
    pub call: Option<Arc<EventFd>>,
}

/// What driver and device have agreed on.
#[derive(Debug, Clone)]
pub struct Active {
    /// Features.
    pub features: u64,
    /// The queues that are in use.
    pub queues: Vec<ActiveQueue>,
}

/// A device. It is called by processors' threads and never waits.
pub trait Device: Send + Debug {
    /// What it is.
    fn kind(&self) -> DeviceKind;
    /// What it offers.
    fn features(&self) -> u64;
    /// Most entries of each queue.
    fn queue_sizes(&self) -> Vec<u16>;
    /// A read from its configuration; what lies outside reads as zeros. `data` is filled with zeros.
    fn config_read(&self, offset: usize, data: &mut [u8]);
    /// A write to its configuration; most have nothing there that is the driver's.
    fn config_write(&mut self, _offset: usize, _data: &[u8]) {}
    /// What tells the driver of changes; the same one each time.
    fn config_change(&self) -> ConfigChange;
    /// The driver is ready.
    fn activate(&mut self, active: Active);
    /// The driver wants the device to forget everything. It need not have happened when this returns.
    fn reset(&mut self);
    /// What it knows itself; of a device that holds still.
    fn save(&self) -> DeviceState;
    /// Whether that can be what a device like this one knew.
    fn check(&self, state: &DeviceState) -> Result<(), RestoreError>;
    /// As it was when it was saved, before it is activated. The state has passed [`Self::check`].
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError>;
    /// Whether no reset is under way: nothing touches the guest's memory any more.
    fn is_quiet(&self) -> bool;
    /// What tells it from others of its kind; empty where there is one.
    fn id(&self) -> String {
        String::new()
    }
    /// Whether its back end is there, if it has one.
    fn is_connected(&self) -> bool {
        true
    }
    /// The VM is being paused (`true`): requests that were taken are finished and no others are taken. Or it goes on.
    fn hold(&mut self, _: bool) {}
    /// Whether no request is under way any more in a device that holds still.
    fn is_held(&self) -> bool {
        true
    }
}

/// Where the guest's doorbells are.
pub trait Doorbells: Send + Debug {
    /// From now on they are at these addresses, and nowhere else.
    fn place(&mut self, bells: Vec<(u64, Arc<EventFd>)>);
}
