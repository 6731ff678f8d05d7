//! Devices that are not on the PCI bus. Each keeps its state apart from descriptors and threads.

pub mod console;
pub mod generic_event;
pub mod power;
pub mod pvpanic;
pub mod serial;
