//! A host that runs VMs: what it has and what is free.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::Health;
use crate::ids::HostId;

/// Whether KVM can be used.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct KvmSupport {
    /// `/dev/kvm` answers and virtual machines can be made.
    pub usable: bool,
    /// It runs ordinary kernels: the processor has a virtualisation extension. Without one, VMs run under QEMU's emulation
    /// unless they ask for KVM.
    pub stock_kernels: bool,
    /// Why not, or what it is, for people.
    pub detail: String,
}

/// A host's processors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CpuCapacity {
    /// How many there are for VMs.
    pub count: u32,
    /// What may be reserved: percent of one processor.
    pub reservable_percent: u32,
    /// What is reserved.
    pub reserved_percent: u32,
    /// What is free to be reserved.
    pub free_percent: u32,
    /// Virtual processors of the VMs that run.
    pub virtual_count: u32,
}

/// A host's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct MemoryCapacity {
    /// All there is.
    pub total_bytes: u64,
    /// What VMs may have together: all but what the host keeps for itself.
    pub usable_bytes: u64,
    /// What the VMs that run were given, reserved or not, with what their vmms take.
    pub granted_bytes: u64,
    /// What of that is reserved.
    pub reserved_bytes: u64,
    /// What the next VM can be given.
    pub free_bytes: u64,
    /// Free huge pages of 2 MiB, in bytes.
    #[serde(default)]
    pub huge_2m_free_bytes: u64,
    /// Free huge pages of 1 GiB, in bytes.
    #[serde(default)]
    pub huge_1g_free_bytes: u64,
}

/// What a host has for VMs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostCapacity {
    /// The host.
    pub host: HostId,
    /// Its name, where known; its id else.
    pub host_name: String,
    /// Its processors.
    pub cpu: CpuCapacity,
    /// Its memory.
    pub memory: MemoryCapacity,
    /// Whether KVM can be used.
    pub kvm: KvmSupport,
    /// QEMU's program, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<String>,
    /// How shares, reservations and limits are kept, or why they are not, for people.
    pub control_groups: String,
    /// Whether they are.
    pub limits_enforced: bool,
}

/// How many VMs there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct VmTotals {
    /// All that are defined.
    pub defined: u32,
    /// Of those, running or paused.
    pub running: u32,
    /// Of those, meant to run and failed.
    pub failed: u32,
}

/// The VMs of one host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct HostVms {
    /// Starting, running, paused, stopping.
    pub active: u32,
    /// Meant to run and failed.
    pub failed: u32,
}

/// A host of the cluster, as the one that answers knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HypervisorHost {
    /// Whether its report is fresh.
    pub answers: bool,
    /// Seconds since its last report, as far as that can be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_s: Option<u64>,
    /// Its VMs.
    pub vms: HostVms,
    /// What it has.
    pub capacity: HostCapacity,
}

/// The hypervisor at a glance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HypervisorStatus {
    /// The version of the `hypervisord` that answers.
    pub version: String,
    /// This host.
    pub host: HostId,
    /// Its name, where known; its id else.
    pub host_name: String,
    /// How well it is.
    pub health: Health,
    /// Whether the cluster directory answers; else what is shown is the last that is known of the others.
    pub directory: bool,
    /// The VMs of the cluster.
    pub vms: VmTotals,
    /// The hosts that run a hypervisord, by name.
    pub hosts: Vec<HypervisorHost>,
}
