//! Whether a host has room for one more VM. What can't be honoured is refused, with what there is and what is free of it.
//!
//! Counted is what was promised, not what is used: every VM that is started, runs or is about to run again has a [`Claim`].
//! Virtual processors are no claim: processors are shared by time, and what has to be certain is a reservation.
//!
//! What it must not know: where the figures come from.

use ferro_protocol::api::format_size;
use ferro_protocol::api::vm::spec::HugePages;
use ferro_protocol::api::vm::{CpuCapacity, MemoryCapacity, VmmKind};

use crate::cpus::CpuSet;
use crate::spec::Vm;

/// What our vmm takes beyond its guest's memory, at most, as it is counted: 32 MiB.
pub const VMM_OVERHEAD_BYTES: u64 = 32 << 20;
/// What QEMU takes beyond its guest's memory, most of it translated code: 256 MiB.
pub const QEMU_OVERHEAD_BYTES: u64 = 256 << 20;

/// What a host has for VMs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Room {
    /// Its processors.
    pub cpus: CpuSet,
    /// All its memory.
    pub memory_bytes: u64,
    /// What of it is the host's own.
    pub kept_bytes: u64,
    /// How much VMs may be promised, in percent of what they can have: 100 unless the host is overcommitted.
    pub overcommit_percent: u32,
    /// Free huge pages of 2 MiB, in bytes.
    pub huge_2m_free_bytes: u64,
    /// Free huge pages of 1 GiB, in bytes.
    pub huge_1g_free_bytes: u64,
}

impl Room {
    fn usable_bytes(&self) -> u64 {
        self.memory_bytes.saturating_sub(self.kept_bytes)
    }

    fn promisable_bytes(&self) -> u64 {
        let bytes = u128::from(self.usable_bytes()) * u128::from(self.overcommit_percent.max(100)) / 100;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    fn reservable_percent(&self) -> u32 {
        u32::try_from(self.cpus.len()).unwrap_or(u32::MAX).saturating_mul(100)
    }
}

/// What a VM was promised.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Claim {
    /// Virtual processors.
    pub cpus: u32,
    /// Percent of one processor.
    pub reserved_percent: u32,
    /// Ordinary memory, its vmm's own included.
    pub memory_bytes: u64,
    /// What of that is reserved.
    pub reserved_bytes: u64,
}

impl Claim {
    /// That of a VM.
    pub fn of(vm: &Vm, kind: VmmKind) -> Self {
        let overhead = overhead_bytes(kind);
        let guest = match vm.memory.huge_pages {
            // They come from a pool of their own.
            Some(_) => 0,
            None => vm.memory.limit_bytes.unwrap_or(vm.memory_bytes),
        };
        let reserved = if vm.memory.huge_pages.is_some() { 0 } else { vm.memory.reservation_bytes };
        Self {
            cpus: vm.cpus,
            reserved_percent: vm.cpu.reservation_percent,
            memory_bytes: guest.saturating_add(overhead),
            reserved_bytes: reserved.saturating_add(overhead),
        }
    }
}

/// What a vmm takes beyond its guest's memory, as it is counted.
pub const fn overhead_bytes(kind: VmmKind) -> u64 {
    match kind {
        VmmKind::Kvm => VMM_OVERHEAD_BYTES,
        VmmKind::Qemu => QEMU_OVERHEAD_BYTES,
    }
}

/// What a host has too little of.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Shortage {
    /// Memory.
    #[error(
        "it needs {} of memory with its vmm's own, and of {} for VMs {} are free",
        format_size(*wanted), format_size(*usable), format_size(*free)
    )]
    Memory {
        /// Bytes that are needed.
        wanted: u64,
        /// Bytes that there are for VMs.
        usable: u64,
        /// Bytes of them that are free.
        free: u64,
    },
    /// Memory that can be reserved.
    #[error(
        "it needs {} of reserved memory with its vmm's own, and {} can still be reserved",
        format_size(*wanted), format_size(*free)
    )]
    ReservedMemory {
        /// Bytes that are needed.
        wanted: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// Huge pages.
    #[error(
        "it needs {} in huge pages of {}, and {} are free (`vm.nr_hugepages`, or /sys/kernel/mm/hugepages)",
        format_size(*wanted), size.as_str(), format_size(*free)
    )]
    HugePages {
        /// Which.
        size: HugePages,
        /// Bytes that are needed.
        wanted: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// Processors that can be reserved.
    #[error("it reserves {wanted} % of a processor, and {free} % of {all} % can still be reserved")]
    ReservedCpu {
        /// Percent of a processor.
        wanted: u32,
        /// What is free of it.
        free: u32,
        /// What there is.
        all: u32,
    },
    /// Processors that are named and not there.
    #[error("its affinity names processors {missing}, and there are {there}")]
    NoSuchCpus {
        /// Those that are not there.
        missing: CpuSet,
        /// Those that are.
        there: CpuSet,
    },
}

struct Sum {
    cpus: u32,
    reserved_percent: u32,
    memory_bytes: u64,
    reserved_bytes: u64,
}

fn sum<'a>(claims: impl IntoIterator<Item = &'a Claim>) -> Sum {
    let none = Sum { cpus: 0, reserved_percent: 0, memory_bytes: 0, reserved_bytes: 0 };
    claims.into_iter().fold(none, |sum, claim| Sum {
        cpus: sum.cpus.saturating_add(claim.cpus),
        reserved_percent: sum.reserved_percent.saturating_add(claim.reserved_percent),
        memory_bytes: sum.memory_bytes.saturating_add(claim.memory_bytes),
        reserved_bytes: sum.reserved_bytes.saturating_add(claim.reserved_bytes),
    })
}

/// Whether there is room for this VM beside those that were promised something: its claim, or everything there is too little of.
pub fn admit<'a>(
    room: &Room,
    others: impl IntoIterator<Item = &'a Claim>,
    vm: &Vm,
    kind: VmmKind,
) -> Result<Claim, Vec<Shortage>> {
    let (claim, sum) = (Claim::of(vm, kind), sum(others));
    let mut short = Vec::new();
    let free = room.promisable_bytes().saturating_sub(sum.memory_bytes);
    if claim.memory_bytes > free || claim.memory_bytes > room.usable_bytes() {
        short.push(Shortage::Memory { wanted: claim.memory_bytes, usable: room.usable_bytes(), free });
    }
    let free = room.usable_bytes().saturating_sub(sum.reserved_bytes);
    if claim.reserved_bytes > free {
        short.push(Shortage::ReservedMemory { wanted: claim.reserved_bytes, free });
    }
    if let Some(size) = vm.memory.huge_pages {
        let free = match size {
            HugePages::TwoMib => room.huge_2m_free_bytes,
            HugePages::OneGib => room.huge_1g_free_bytes,
        };
        if vm.memory_bytes > free {
            short.push(Shortage::HugePages { size, wanted: vm.memory_bytes, free });
        }
    }
    let all = room.reservable_percent();
    let free = all.saturating_sub(sum.reserved_percent);
    if claim.reserved_percent > free {
        short.push(Shortage::ReservedCpu { wanted: claim.reserved_percent, free, all });
    }
    if let Some(affinity) = &vm.cpu.affinity {
        let missing = affinity.all().without(&room.cpus);
        if !missing.is_empty() {
            short.push(Shortage::NoSuchCpus { missing, there: room.cpus.clone() });
        }
    }
    if short.is_empty() { Ok(claim) } else { Err(short) }
}

/// What is there, promised and free.
pub fn capacity<'a>(
    room: &Room,
    claims: impl IntoIterator<Item = &'a Claim>,
) -> (CpuCapacity, MemoryCapacity) {
    let sum = sum(claims);
    let reservable = room.reservable_percent();
    let cpu = CpuCapacity {
        count: u32::try_from(room.cpus.len()).unwrap_or(u32::MAX),
        reservable_percent: reservable,
        reserved_percent: sum.reserved_percent,
        free_percent: reservable.saturating_sub(sum.reserved_percent),
        virtual_count: sum.cpus,
    };
    let memory = MemoryCapacity {
        total_bytes: room.memory_bytes,
        usable_bytes: room.usable_bytes(),
        granted_bytes: sum.memory_bytes,
        reserved_bytes: sum.reserved_bytes,
        free_bytes: room.promisable_bytes().saturating_sub(sum.memory_bytes).min(room.usable_bytes()),
        huge_2m_free_bytes: room.huge_2m_free_bytes,
        huge_1g_free_bytes: room.huge_1g_free_bytes,
    };
    (cpu, memory)
}
