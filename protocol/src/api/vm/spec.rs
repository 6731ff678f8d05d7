//! What an operator asks for: names and numbers as they were given. Nothing here is checked beyond its form, so that the
//! hypervisor's core can name every fault of a whole specification at once.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The most virtual processors.
pub const CPUS_MAX: u32 = 64;
/// The least memory, in bytes.
pub const MEMORY_BYTES_MIN: u64 = 16 << 20;
/// The most memory, in bytes: 1 TiB.
pub const MEMORY_BYTES_MAX: u64 = 1 << 40;
/// The most disks.
pub const DISKS_MAX: usize = 16;
/// The most network cards.
pub const NICS_MAX: usize = 8;
/// Shares of the processors and of the memory unless they are given.
pub const SHARES_DEFAULT: u32 = 1000;
/// The most shares.
pub const SHARES_MAX: u32 = 100_000;
/// The most bytes of a command line that we make: what a 64-bit x86 kernel takes (`COMMAND_LINE_SIZE`, with its zero).
pub const CMDLINE_BYTES_MAX: usize = 2047;
/// How often a VM that failed is started again within an hour.
pub const RESTARTS_PER_HOUR: u32 = 3;

/// What is as it would be anyway is not written.
fn is_default<T: Default + PartialEq>(it: &T) -> bool {
    *it == T::default()
}

fn one() -> u32 {
    1
}

fn shares_default() -> u32 {
    SHARES_DEFAULT
}

/// A virtual machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Its name; see [`super::VmName`]. It stays.
    pub name: String,
    /// Virtual processors, 1 to 64.
    #[serde(default = "one")]
    pub cpus: u32,
    /// Memory: whole MiB, 16 MiB to 1 TiB.
    pub memory_bytes: u64,
    /// Its disks, at most 16. The first is the one whose lock decides on which host the VM is; with `boot: volume` it is also
    /// the one that is booted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpec>,
    /// Its network cards, at most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicSpec>,
    /// What it boots.
    #[serde(default)]
    pub boot: BootSpec,
    /// Its part of the processors.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cpu: CpuSpec,
    /// Its part of the memory.
    #[serde(default, skip_serializing_if = "is_default")]
    pub memory: MemorySpec,
    /// What becomes of it when it fails.
    #[serde(default)]
    pub restart: RestartSpec,
    /// What runs it.
    #[serde(default)]
    pub vmm: VmmSpec,
}

impl VmSpec {
    /// A VM of this name with so much memory, and nothing else.
    pub fn named(name: &str, memory_bytes: u64) -> Self {
        Self {
            name: name.to_owned(),
            cpus: 1,
            memory_bytes,
            disks: Vec::new(),
            nics: Vec::new(),
            boot: BootSpec::default(),
            cpu: CpuSpec::default(),
            memory: MemorySpec::default(),
            restart: RestartSpec::default(),
            vmm: VmmSpec::default(),
        }
    }
}

/// A disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// The volume.
    pub volume: String,
    /// The guest may only read.
    #[serde(default, skip_serializing_if = "is_default")]
    pub read_only: bool,
}

/// A network card.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// The port group.
    pub portgroup: String,
    /// Its address. Unless given, one is made when the VM is created, and kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The switch port's name. Unless given, `<vm>.<index>`, chosen when the VM is created and kept. A port that exists
    /// already, in that group and with that address, is used and not taken away at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
}

/// What is booted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BootSpec {
    /// What the first disk brings in its own `/boot`.
    Volume(VolumeBoot),
    /// Files of the host that runs it.
    Files(FilesBoot),
}

impl Default for BootSpec {
    fn default() -> Self {
        Self::Volume(VolumeBoot::default())
    }
}

/// The kernel out of the first disk.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VolumeBoot {
    /// The boot menu's entry, by its title; the menu's own choice unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// More for the end of the command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline_append: Option<String>,
}

/// The kernel out of files.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FilesBoot {
    /// A bzImage or a PVH ELF image: an absolute path.
    pub kernel: String,
    /// The initial RAM disk: an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: String,
}

/// A part of the processors.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CpuSpec {
    /// When VMs want more than there is, what is not reserved is split by shares: 1 to 100 000, 1000 unless given.
    #[serde(default = "shares_default")]
    pub shares: u32,
    /// So much it gets at least whenever it wants it: percent of one processor (250 is two and a half).
    #[serde(skip_serializing_if = "is_default")]
    pub reservation_percent: u32,
    /// So much it gets at most: percent of one processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_percent: Option<u32>,
    /// The host's processors that its virtual processors run on: a list for each, as in `0-3,8;4`, or one list for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<String>,
}

impl Default for CpuSpec {
    fn default() -> Self {
        Self { shares: SHARES_DEFAULT, reservation_percent: 0, limit_percent: None, affinity: None }
    }
}

/// A part of the memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MemorySpec {
    /// So much is kept for it and never taken: bytes, at most its memory.
    #[serde(skip_serializing_if = "is_default")]
    pub reservation_bytes: u64,
    /// So much of the host's memory it has at most: bytes. Below its memory, the balloon takes the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// When the host is short of memory, what is not reserved is protected by shares: 1 to 100 000, 1000 unless given.
    #[serde(default = "shares_default")]
    pub shares: u32,
    /// Pages of that size, which are reserved as a whole; ordinary ones unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
    /// A balloon: the guest gives memory back that it does not use. Yes unless said otherwise.
    pub balloon: bool,
}

impl Default for MemorySpec {
    fn default() -> Self {
        Self {
            reservation_bytes: 0,
            limit_bytes: None,
            shares: SHARES_DEFAULT,
            huge_pages: None,
            balloon: true,
        }
    }
}

/// Sizes of huge pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub enum HugePages {
    /// 2 MiB.
    #[serde(rename = "2M")]
    TwoMib,
    /// 1 GiB.
    #[serde(rename = "1G")]
    OneGib,
}

impl HugePages {
    /// Bytes of one.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::TwoMib => 2 << 20,
            Self::OneGib => 1 << 30,
        }
    }

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TwoMib => "2M",
            Self::OneGib => "1G",
        }
    }
}

/// What becomes of a VM that fails: its vmm dies, or its guest panics. One that the guest switches off stays off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestartSpec {
    /// It stays off.
    Never,
    /// It is started again, three times an hour.
    #[default]
    OnFailure,
}

/// What runs a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmmSpec {
    /// Our vmm where KVM can run an ordinary kernel, QEMU's emulation elsewhere.
    #[default]
    Auto,
    /// Our vmm, under KVM.
    Kvm,
    /// QEMU's emulation.
    Qemu,
}
