//! What is asked of a VM.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::spec::{DiskSpec, NicSpec};

/// The most lines of a console's log that one answer has.
pub const LOG_LINES_MAX: u32 = 100_000;

/// Start a VM.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StartVm {
    /// The name of the host that is to run it; the one that is asked unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

/// Ask the guest to shut down, as if its power button was pressed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StopVm {
    /// Wait so many seconds for it, up to 3600; 60 unless given. An answer that came in time has the VM off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u32>,
    /// Kill it when the time is up. Without this it stays as it is and the answer is `timed_out`.
    pub force: bool,
}

/// Reset a VM: a new vmm over the same disks and ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetVm {}

/// Give a VM that is off one more disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachDisk {
    /// The disk; it becomes the last.
    pub disk: DiskSpec,
}

/// Give a VM that is off one more network card.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachNic {
    /// The card; it becomes the last.
    pub nic: NicSpec,
}

/// Where a VM's console is, on the host that answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ConsoleInfo {
    /// A Unix socket: bytes as they are, both ways. A client that comes gets the last 4 KiB first; the newest client wins.
    pub socket: String,
    /// The log of all that the guest printed.
    pub log: String,
}

/// The end of a console's log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VmLog {
    /// The lines, with what is no UTF-8 replaced.
    pub text: String,
    /// There is more before it.
    pub cut: bool,
}
