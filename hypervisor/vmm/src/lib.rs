//! One virtual machine: KVM, memory, ACPI, PCI, virtio, and the front ends of vhost-user.
//!
//! ```text
//!   main ──► run ──► config, checked          what the VM is
//!             ├──► confine                    a process that can do nothing, and one that asks for it
//!             ├──► outside                    what it needs that is not in this process
//!             │
//!             ├──► volume                     kernel and initrd out of the first disk, unless they are given as files
//!             ├──► memory, layout             RAM as one sealed memfd
//!             ├──► boot, acpi                 kernel and tables are written into it
//!             ├──► kvm, cpu                   the VM of KVM's, one thread a processor
//!             ├──► machine ──► devices, pci   what answers when a processor leaves the guest
//!             ├──► virtio                     devices on the bus, whose queues other processes serve
//!             ├──► state                      what a guest could find changed, to keep or to send
//!             ├──► events                     one loop: console, signals, the end
//!             └──► api                        pause, resume, reset, state for who manages it
//!   messages      what it says of itself, bounded
//! ```
//!
//! **Invariants.** A guest is hostile: whatever it writes to ports, registers and memory, no code here panics, reads or
//! writes outside of its RAM, or waits for it. A processor's thread never waits for a socket, a file or another process.
//! A device's state is apart from its descriptors and threads, so that it can be saved and moved.
//!
//! What it must not know: volumes, port groups, other VMs, other hosts, the cluster. It gets paths, and gives an exit
//! status.
#![deny(unsafe_code)]

pub mod acpi;
pub mod api;
pub mod args;
pub mod boot;
pub mod config;
pub mod confine;
pub mod cpu;
pub mod devices;
mod events;
pub mod kvm;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod messages;
pub mod outside;
pub mod pci;
pub mod run;
pub mod state;
pub mod threads;
pub mod virtio;
pub mod volume;
