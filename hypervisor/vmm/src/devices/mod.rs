//! Devices that are not on the PCI bus. Each keeps its state apart from descriptors and threads.

pub mod console;
pub mod power;
pub mod serial;
