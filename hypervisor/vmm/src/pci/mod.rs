//! PCI: one bus with up to 32 devices of one function each, found through I/O ports 0xcf8 and 0xcfc or through ECAM.
//!
//! There is no firmware, so BARs are placed when a device is plugged in; the guest may move them, within the window that
//! the host bridge has. Interrupts are messages only.
//!
//! Pure but for what a device does: a guest's access is looked up, checked and handed on here, whatever it is.

mod bus;
mod config_space;
mod host_bridge;
pub mod msix;

pub use bus::{
    About, BusError, CONFIG_PORTS, CONFIG_PORTS_COUNT, DEVICES_MAX, PciBus, PciDevice, Slot, has_port,
};
pub use config_space::{BARS_MAX, BarIndex, CONFIG_BYTES, Capability, ConfigSpace, Identity, MappedBar};
pub use host_bridge::HostBridge;
