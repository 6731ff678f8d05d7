//! Disks.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{DiskId, HostId};

/// Give a directory or a block device of this host to the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddDiskRequest {
    /// An absolute path: a directory on a file system of its own, or a block device.
    pub path: String,
    /// How much of it to use; all that is free, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// The device's name, typed back by a person who was told what it holds (`disk_not_empty`): erase it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<String>,
}

/// A disk that the cluster now has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct AddedDisk {
    /// The disk.
    pub disk: DiskInfo,
    /// Whether it came with data: a disk of this cluster that was moved here.
    pub adopted: bool,
}

/// Whether a disk can be used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskState {
    /// In use.
    Online,
    /// Its host is not there, or it was taken out of it.
    Offline,
    /// It failed; it is used no more and its data is rebuilt elsewhere.
    Failed,
    /// Its data is being moved away.
    Leaving,
}

/// One disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DiskInfo {
    /// Its id.
    pub id: DiskId,
    /// The host it is in.
    pub host: HostId,
    /// What that host is called.
    pub host_name: String,
    /// Where it is there.
    pub path: String,
    /// Whether it can be used.
    pub state: DiskState,
    /// Why it is not online, where there is something to say.
    pub reason: Option<String>,
    /// Its size.
    pub capacity_bytes: u64,
    /// How much of that is taken.
    pub used_bytes: u64,
    /// How many components are on it.
    pub components: u32,
    /// How much of it is still to be copied elsewhere, of one that is leaving, whatever its state is.
    #[serde(default)]
    pub leaving_bytes: Option<u64>,
    /// How many blocks failed their checksum since the daemon started.
    pub checksum_errors: u64,
}

/// All disks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DiskList {
    /// By host name, then path.
    pub disks: Vec<DiskInfo>,
}
