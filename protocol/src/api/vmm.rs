//! Types of the control API that each `vmm` serves on the Unix socket of its `--api`, and `hypervisord` speaks.
//!
//! One socket is one VM, so nothing here has a name in its path:
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/state` | [`VmmState`] |
//! | `PUT /v1/pause`, `/v1/resume` | 204, when all processors have stopped or go on. Each may be asked twice |
//! | `PUT /v1/power-button` | 204, when the button is pressed: the guest does with it what it likes |
//! | `PUT /v1/reset`, `/v1/stop` | 204, and then the process ends as a guest's own reset (3) or power-off (0) would end it |
//! | `PUT /v1/balloon` with a [`BalloonRequest`] | 204, when the guest has been told |
//! | `GET /v1/devices/state` | the devices' state, in the format that its first field names; only while paused |
//!
//! Every failure is an [`ApiError`](super::ApiError): `device_not_found` where the VM has no such device, `not_paused`
//! where it has to be paused first, `unavailable` where it has ended.
//!
//! What it must not know: volumes, port groups, hosts. A `vmm` has paths and an exit status.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The format of [`VmmState`] that this version writes.
///
/// - 1: the first.
pub const VMM_STATE_FORMAT: u32 = 1;
/// The largest body of a request, in bytes.
pub const VMM_BODY_BYTES_MAX: usize = 64 << 10;

/// Whether a VM's processors run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmmStatus {
    /// They do.
    Running,
    /// They have been stopped and will go on.
    Paused,
    /// They never will: the process is about to end.
    Ended,
}

/// What a device is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmmDeviceKind {
    /// A disk.
    Block,
    /// A network card.
    Net,
    /// A source of random numbers.
    Rng,
    /// A memory balloon.
    Balloon,
    /// One that this client does not know.
    #[serde(other)]
    Unknown,
}

/// A device on the bus of a VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VmmDevice {
    /// Its slot on the PCI bus, 1 to 31.
    pub slot: u8,
    /// What it is.
    pub kind: VmmDeviceKind,
    /// What tells it from others of its kind: the socket of its back end. Empty where there is only one.
    pub id: String,
    /// Whether its back end is there. A device without one always is.
    pub connected: bool,
}

/// What the guest's balloon driver said last (virtio 1.2, 5.5.6.3). What it does not count is absent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct BalloonStats {
    /// Memory swapped in since the guest's start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_in_bytes: Option<u64>,
    /// Memory swapped out since the guest's start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_out_bytes: Option<u64>,
    /// Page faults that waited for a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Memory that nobody uses for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// Memory that the guest knows of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Memory that programs could have without swapping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// Memory that holds copies of what is on disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_caches_bytes: Option<u64>,
    /// Huge pages that were allocated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_allocated: Option<u64>,
    /// Huge pages that could not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_failed: Option<u64>,
}

/// A VM's balloon.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct BalloonState {
    /// How much the guest should give back.
    pub target_bytes: u64,
    /// How much it has given back by inflating the balloon.
    pub actual_bytes: u64,
    /// How much it has reported as free and so returned to the host, since its start; it may have been used again.
    pub reported_free_bytes: u64,
    /// What its driver said last; absent until it has.
    pub stats: Option<BalloonStats>,
}

/// What a VM is and does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VmmState {
    /// [`VMM_STATE_FORMAT`] of the process that answers.
    pub format: u32,
    /// `--name`; empty without.
    pub name: String,
    /// The process that was started, and whose exit status says how the VM ended.
    pub pid: u32,
    /// Whether it runs.
    pub status: VmmStatus,
    /// Virtual processors.
    pub cpus: u8,
    /// The guest's memory.
    pub memory_bytes: u64,
    /// The devices on the bus, by slot.
    pub devices: Vec<VmmDevice>,
    /// The balloon, if the VM has one.
    pub balloon: Option<BalloonState>,
    /// Whether the guest has said that its kernel panicked.
    pub panicked: bool,
    /// Processor time that all its processes have used, in microseconds.
    pub cpu_time_us: u64,
}

/// How much memory the guest should give back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BalloonRequest {
    /// So much of its memory; less than all of it.
    pub target_bytes: u64,
}
