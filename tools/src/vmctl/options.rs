//! The options of a machine. All of them can be left out: one that is made gets its defaults then, and one that is changed
//! stays as it is.

use clap::ValueHint;

use super::values::{
    HugePagesWord, RestartWord, VmmWord, bytes, bytes_or_none, huge_pages_or_none, percent, percent_or_none,
};
use crate::values::{OrNone, text_or_none};

/// What a VM is made of, beside its disks and network cards.
#[derive(clap::Args, Debug, Clone, Default, PartialEq)]
pub struct MachineOptions {
    /// Virtual processors, 1 to 64 [default: 1]
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Memory, as in 512M or 4G [default: 512M]
    #[arg(short, long, value_name = "SIZE", value_parser = bytes)]
    pub memory: Option<u64>,
    /// What becomes of it when its guest panics or its monitor dies [default: on-failure]
    #[arg(long, value_enum, value_name = "WHEN")]
    pub restart: Option<RestartWord>,
    /// What runs it [default: auto]
    #[arg(long, value_enum, value_name = "WHICH")]
    pub vmm: Option<VmmWord>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub boot: BootOptions,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub cpu: CpuOptions,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub ram: MemoryOptions,
}

/// What it boots.
#[derive(clap::Args, Debug, Clone, Default, PartialEq)]
#[command(next_help_heading = "Boot")]
pub struct BootOptions {
    /// A kernel of the host that runs it; none boots what the first volume brings
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = text_or_none)]
    pub kernel: Option<OrNone<String>>,
    /// The initial RAM disk of that kernel; none has none
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = text_or_none)]
    pub initrd: Option<OrNone<String>>,
    /// That kernel's command line; without --kernel, what is added to the command line that the volume brings
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// The entry of the volume's boot menu, by its title; none is the menu's own choice
    #[arg(long, value_name = "TITLE", value_parser = text_or_none)]
    pub boot_entry: Option<OrNone<String>>,
}

/// Its part of the processors.
#[derive(clap::Args, Debug, Clone, Default, PartialEq)]
#[command(next_help_heading = "Processors")]
pub struct CpuOptions {
    /// Where there is not enough for all, each VM gets its part by these shares, 1 to 100000 [default: 1000]
    #[arg(long, value_name = "N")]
    pub cpu_shares: Option<u32>,
    /// What it gets at least whenever it wants it, in percent of one processor, as in 150% [default: 0]
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub cpu_reservation: Option<u32>,
    /// What it gets at most, in percent of one processor; none is no limit
    #[arg(long, value_name = "PERCENT", value_parser = percent_or_none)]
    pub cpu_limit: Option<OrNone<u32>>,
    /// The host's processors that it runs on: a list, or one for each virtual processor, as in '0-3,8;4'; none is any
    #[arg(long, value_name = "LIST", value_parser = text_or_none)]
    pub cpu_affinity: Option<OrNone<String>>,
}

/// Its part of the memory.
#[derive(clap::Args, Debug, Clone, Default, PartialEq)]
#[command(next_help_heading = "Memory")]
pub struct MemoryOptions {
    /// Memory that is kept for it and never taken [default: 0]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub memory_reservation: Option<u64>,
    /// What it has of the host's memory at most; the balloon takes the rest; none is no limit
    #[arg(long, value_name = "SIZE", value_parser = bytes_or_none)]
    pub memory_limit: Option<OrNone<u64>>,
    /// Where memory is short, what is not reserved is protected by these shares, 1 to 100000 [default: 1000]
    #[arg(long, value_name = "N")]
    pub memory_shares: Option<u32>,
    /// Huge pages of this size, all of them reserved: 2M or 1G; none is ordinary pages
    #[arg(long, value_name = "SIZE", value_parser = huge_pages_or_none)]
    pub huge_pages: Option<OrNone<HugePagesWord>>,
    /// No balloon: what the guest has once touched it keeps
    #[arg(long, overrides_with = "balloon")]
    pub no_balloon: bool,
    /// A balloon: the guest gives back what it does not use; this is the default
    #[arg(long, overrides_with = "no_balloon")]
    pub balloon: bool,
}
