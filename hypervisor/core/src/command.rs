//! The command lines of what runs a VM: our vmm ([`vmm`]) and QEMU ([`qemu`]), from the same [`Machine`].
//!
//! What it must not know: whether a file is there.

pub mod qemu;
pub mod vmm;

use ferro_protocol::net::Mac;

use crate::paths::Paths;
use crate::spec::Vm;

/// A disk's socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskSocket {
    /// Its absolute path.
    pub path: String,
    /// How many queues its back end offers.
    pub queues: u16,
    /// The guest may only read.
    pub read_only: bool,
}

/// A network card's socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NicSocket {
    /// Its absolute path.
    pub path: String,
    /// The card's address.
    pub mac: Mac,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Pairs of queues that are offered.
    pub queues: u16,
}

/// A VM with everything that it is plugged into.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// The VM.
    pub vm: &'a Vm,
    /// Its files.
    pub paths: &'a Paths,
    /// Its disks, in their order.
    pub disks: &'a [DiskSocket],
    /// Its network cards, in their order.
    pub nics: &'a [NicSocket],
}

/// Where arguments can't say what is asked for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadArgument {
    /// A path with a character that separates settings.
    #[error("the path {0:?} has a comma, which the vmm's arguments can't have: configure another directory")]
    Comma(String),
}

/// How many queues a device of a VM uses: one for each virtual processor, as far as there are any.
fn queues(offered: u16, cpus: u32) -> u16 {
    u16::try_from(cpus).unwrap_or(u16::MAX).min(offered).max(1)
}
