//! Everything that the hypervisor decides, without doing any of it.
//!
//! - [`spec`]: what makes a VM's specification right; every fault of it at once.
//! - [`life`]: the life of a VM on a host: `handle(now, event) -> actions`.
//! - [`admission`]: whether a host has room for one more VM, and what is free.
//! - [`cgroup`]: shares, reservations and limits as values of control groups (cgroup v2).
//! - [`command`]: the command lines of our vmm and of QEMU.
//! - [`documents`]: what the cluster directory holds of VMs; [`ownership`]: whose a VM is, by them and by its disk's lock.
//! - [`cpus`]: sets of a host's processors. [`paths`]: where a VM's files and sockets are.
//!
//! What it must not know: files, sockets, processes, clocks, randomness, JSON. Time is an argument, and so is what was drawn.
#![forbid(unsafe_code)]

pub mod admission;
pub mod cgroup;
pub mod command;
pub mod cpus;
pub mod documents;
pub mod life;
pub mod ownership;
pub mod paths;
pub mod spec;
