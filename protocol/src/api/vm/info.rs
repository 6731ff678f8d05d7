//! A VM as it is.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::VmName;
use super::spec::VmSpec;
use crate::api::OperationCounters;
use crate::api::switch::Counters;
use crate::ids::{Epoch, HostId, VolumeName};

/// What a VM does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Nothing of it runs.
    Off,
    /// Its disks are being opened, its ports attached, its vmm started.
    Starting,
    /// It runs.
    Running,
    /// Its processors stand still.
    Paused,
    /// It is asked to shut down, or its resources are being given back.
    Stopping,
    /// Its vmm died or its guest panicked; it is about to be started again.
    Crashed,
    /// It was to run and does not: it could not be started, or failed too often. `detail` says why.
    Failed,
    /// The host that has it does not answer.
    Unknown,
}

impl VmState {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Crashed => "crashed",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it has disks, ports or a process: what may only be changed while it is off can't be now.
    pub const fn is_active(self) -> bool {
        !matches!(self, Self::Off | Self::Failed)
    }
}

/// What a VM is meant to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmPower {
    /// Not to run.
    Off,
    /// To run.
    On,
    /// To exist and stand still.
    Paused,
}

/// What runs a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmmKind {
    /// Our vmm, under KVM.
    Kvm,
    /// QEMU's emulation.
    Qemu,
}

/// The process that runs a VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VmmProcess {
    /// What it is.
    pub kind: VmmKind,
    /// Why it is that one, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Its process id on its host.
    pub pid: u32,
}

/// How a vmm ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExitCause {
    /// The guest switched the machine off.
    PoweredOff,
    /// The guest reset the machine.
    Reset,
    /// The guest's kernel panicked.
    Panicked,
    /// The guest crashed its processor.
    CpuCrashed,
    /// KVM could not go on.
    KvmFailed,
    /// It could not be started.
    NotStarted,
    /// A signal ended the vmm, or it is gone and nobody knows how.
    Died,
    /// We ended it, as somebody asked.
    Killed,
    /// We ended it, because this host lost the lock of its first disk.
    LockLost,
}

/// How a VM last ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ExitReport {
    /// How.
    pub cause: ExitCause,
    /// The same with all that is known, for people.
    pub detail: String,
    /// When: seconds since 1970.
    pub at_unix_s: u64,
    /// Whether the console's log from then is kept: `log?previous=true` has it.
    pub log_kept: bool,
}

/// What a host says of a VM that it has or had.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VmStatus {
    /// What it does.
    pub state: VmState,
    /// How often it was begun anew, resets and restarts counted: a client that sees it change has another guest before it.
    pub incarnation: u64,
    /// The epoch of its first disk's lock that it runs under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// The process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<VmmProcess>,
    /// Since when it has been in this state: seconds since 1970.
    pub since_unix_s: u64,
    /// What is in the way, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// How it last ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<ExitReport>,
    /// How often it was started again within the last hour.
    pub restarts: u32,
}

impl VmStatus {
    /// Of a VM that no host has had.
    pub fn never_started() -> Self {
        Self {
            state: VmState::Off,
            incarnation: 0,
            epoch: None,
            process: None,
            since_unix_s: 0,
            detail: None,
            last_exit: None,
            restarts: 0,
        }
    }
}

/// A VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VmInfo {
    /// Its name.
    pub name: VmName,
    /// What it is made of. A change is for the next start.
    pub spec: VmSpec,
    /// The revision of `spec`, for `PUT` and `DELETE`.
    pub revision: u64,
    /// What it is meant to do.
    pub wanted: VmPower,
    /// The host that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// That host's name, where known; its id else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<String>,
    /// Whether that is the host that answers.
    pub here: bool,
    /// How it is.
    pub status: VmStatus,
}

/// All VMs of the cluster, by name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VmList {
    /// The VMs.
    pub vms: Vec<VmInfo>,
}

/// What a VM uses. Counters only go up as long as `incarnation` stays; only differences between two samples say something.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VmStats {
    /// The VM.
    pub name: VmName,
    /// When it was read, on a clock that only goes forward and begins anywhere.
    pub at_us: u64,
    /// Which run of the VM it is.
    pub incarnation: u64,
    /// Its virtual processors.
    pub cpus: u32,
    /// The processor time that its vmm took, guest and all.
    pub cpu_time_us: u64,
    /// The guest's memory.
    pub memory_bytes: u64,
    /// What its vmm has of the host's memory, the guest's touched pages included.
    pub resident_bytes: u64,
    /// The balloon, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonStats>,
    /// Its disks, in their order.
    pub disks: Vec<DiskStats>,
    /// Its network cards, in their order.
    pub nics: Vec<NicStats>,
}

/// A VM's balloon.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct BalloonStats {
    /// What the guest is asked to give back.
    pub target_bytes: u64,
    /// What it has given back.
    pub actual_bytes: u64,
    /// What it has reported as free since it started, and was returned to the host.
    #[serde(default)]
    pub reported_free_bytes: u64,
    /// What the guest could give away without swapping, as it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
}

/// What a VM's disk has done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DiskStats {
    /// The volume.
    pub volume: VolumeName,
    /// What it has done; none if its daemon does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<OperationCounters>,
}

/// What a VM's network card has done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NicStats {
    /// The switch port.
    pub port: String,
    /// Its address.
    pub mac: String,
    /// What passed; none if its daemon does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<Counters>,
}
