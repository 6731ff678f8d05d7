//! What one VM is made of, checked. Where it came from (arguments today) is not known here.

use std::path::PathBuf;

use crate::layout::MemorySize;
use crate::virtio::vhost_user::Role;
use crate::volume::VolumeBoot;

/// Most virtual processors of a VM.
pub const CPUS_MAX: u8 = 64;

/// How many virtual processors a VM has: 1 to [`CPUS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuCount(u8);

impl CpuCount {
    /// Checks a number.
    pub fn new(count: u8) -> Option<Self> {
        (1..=CPUS_MAX).contains(&count).then_some(Self(count))
    }

    /// The number.
    pub fn get(self) -> u8 {
        self.0
    }

    /// The processors' numbers, which are also their APIC ids.
    pub fn indices(self) -> impl Iterator<Item = u8> {
        0..self.0
    }
}

/// Where the serial console is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleTarget {
    /// Standard input and output.
    Standard,
    /// A Unix socket that this process listens on; one client at a time, the newest wins.
    Socket(PathBuf),
    /// Nowhere: what the guest prints is dropped.
    Nowhere,
}

/// A device on the bus, at a vhost-user socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Where its back end listens.
    pub socket: PathBuf,
    /// What it is.
    pub role: Role,
}

/// Where kernel, initrd and command line come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootSource {
    /// Files of this host.
    Files {
        /// A bzImage or an ELF image with a PVH entry.
        kernel: PathBuf,
        /// Its initial RAM disk.
        initrd: Option<PathBuf>,
        /// Its command line.
        command_line: String,
    },
    /// The first disk's own `/boot`.
    Volume(VolumeBoot),
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// Processors.
    pub cpus: CpuCount,
    /// Memory.
    pub memory: MemorySize,
    /// What it boots.
    pub boot: BootSource,
    /// Its console.
    pub console: ConsoleTarget,
    /// Whether it has a source of random numbers.
    pub rng: bool,
    /// Whether it has a memory balloon.
    pub balloon: bool,
    /// Its devices at sockets, in the order of their slots.
    pub devices: Vec<DeviceConfig>,
}
