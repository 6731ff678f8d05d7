//! What one VM is made of, checked. Where it came from (arguments today) is not known here.

use std::fmt;
use std::path::PathBuf;

use rustix::thread::CpuSet;

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

/// All that the guest prints, in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleLog {
    /// The file; the one before it has `.1` behind its name.
    pub path: PathBuf,
    /// When it has so many bytes, a new one is begun.
    pub bytes: u64,
}

/// Pages of the host's that are larger than 4 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HugePages {
    /// 2 MiB.
    Mib2,
    /// 1 GiB.
    Gib1,
}

impl HugePages {
    /// The size of one.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Mib2 => 2 << 20,
            Self::Gib1 => 1 << 30,
        }
    }
}

impl fmt::Display for HugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mib2 => "2M",
            Self::Gib1 => "1G",
        })
    }
}

/// Processors of the host, as `0-3,8`. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuList(Vec<usize>);

impl CpuList {
    /// Reads numbers and ranges of numbers.
    pub fn parse(text: &str) -> Option<Self> {
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            // Digits alone: `parse` would take a sign.
            let number = |text: &str| {
                let digits = text.bytes().all(|byte| byte.is_ascii_digit());
                text.parse().ok().filter(|cpu: &usize| digits && *cpu < CpuSet::MAX_CPU)
            };
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return None;
            }
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        cpus.dedup();
        Some(Self(cpus))
    }

    /// Those of a set.
    pub fn from_set(set: &CpuSet) -> Self {
        Self((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
    }

    /// Their numbers.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().copied()
    }

    /// The kernel's form of it.
    pub fn to_set(&self) -> CpuSet {
        let mut set = CpuSet::new();
        self.0.iter().for_each(|cpu| set.set(*cpu));
        set
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, run) in self.0.chunk_by(|before, after| before + 1 == *after).enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match run {
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                _ => write!(f, "{comma}{}", run[0])?,
            }
        }
        Ok(())
    }
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// What people call it; may be empty.
    pub name: String,
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
    /// A file for what the guest prints.
    pub console_log: Option<ConsoleLog>,
    /// The socket of the control API.
    pub api: Option<PathBuf>,
    /// Memory out of the host's huge pages.
    pub huge_pages: Option<HugePages>,
    /// Where the processors run: one list each, one for all, or none.
    pub affinity: Vec<CpuList>,
    /// Its devices at sockets, in the order of their slots.
    pub devices: Vec<DeviceConfig>,
}

impl VmConfig {
    /// Where a processor runs, if that is not left to the host.
    pub fn affinity_of(&self, cpu: u8) -> Option<&CpuList> {
        self.affinity.get(usize::from(cpu)).or(match self.affinity.as_slice() {
            [all] => Some(all),
            _ => None,
        })
    }
}
