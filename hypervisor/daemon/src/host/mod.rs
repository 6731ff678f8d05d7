//! What this host has: processors, memory, huge pages, KVM ([`capacity`]), control groups ([`groups`]), users.
//!
//! What it must not know: VMs.

pub mod capacity;
pub mod groups;
pub mod users;
