//! The cluster at a glance, resyncs, and counters for `top`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::cluster::{ClusterInfo, HostInfo};
use super::volume::VolumeInfo;
use crate::ids::{DiskId, HostId, ObjectId, VolumeName};

/// How well the cluster is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthLevel {
    /// Nothing to do.
    Ok,
    /// All data is there, with less redundancy or room than there should be.
    Warning,
    /// Data can't be reached, or nothing can be changed.
    Critical,
}

/// One thing that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HealthReason {
    /// How bad it is.
    pub level: HealthLevel,
    /// Which kind; stable, for programs, such as `host_offline`.
    pub code: String,
    /// What is wrong with which object.
    pub message: String,
    /// What to do about it.
    pub next_step: String,
}

/// How well the cluster is, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// The worst of the reasons.
    pub level: HealthLevel,
    /// The worst first.
    pub reasons: Vec<HealthReason>,
}

/// The room on all disks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Capacity {
    /// On disks that can be used.
    pub total_bytes: u64,
    /// Taken.
    pub used_bytes: u64,
    /// The sum of the volumes' sizes, once a copy: what would be taken if they were full.
    pub provisioned_bytes: u64,
    /// How many disks can be used.
    pub disks_online: u32,
    /// How many disks there are.
    pub disks: u32,
}

/// The cluster at a glance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The version of the `vsand` that answers.
    pub version: String,
    /// How well the cluster is, without what is muted.
    pub health: Health,
    /// The codes of the checks that found something and are muted.
    #[serde(default)]
    pub muted: Vec<String>,
    /// The cluster; absent before `cluster bootstrap` or `cluster join`.
    pub cluster: Option<ClusterInfo>,
    /// The hosts, by name.
    pub hosts: Vec<HostInfo>,
    /// The room.
    pub capacity: Capacity,
    /// The volumes, by name.
    pub volumes: Vec<VolumeInfo>,
    /// The resyncs.
    pub resync: ResyncTotals,
}

/// All resyncs together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ResyncTotals {
    /// How many are running.
    pub running: u32,
    /// How many wait: for their turn, or for the repair delay to end.
    pub waiting: u32,
    /// How much is done, of all that are running or waiting.
    pub done_bytes: u64,
    /// How much there is to do, with what is done.
    pub total_bytes: u64,
    /// How fast it goes now.
    pub bytes_per_second: u64,
    /// How long it will take, where that can be said.
    pub eta_seconds: Option<u64>,
}

/// How much a resync has to copy.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResyncKind {
    /// What changed while the component was away.
    Delta,
    /// All of it, to a new component.
    Full,
}

/// What a resync does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResyncState {
    /// It copies.
    Running,
    /// It waits for its turn.
    Queued,
    /// It waits for the component to come back, until the repair delay ends.
    Delayed,
}

/// The resync of one volume to one disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ResyncInfo {
    /// The object.
    pub object: ObjectId,
    /// The volume that it is.
    pub volume: Option<VolumeName>,
    /// The disk that is copied to.
    pub disk: DiskId,
    /// The host that the disk is in.
    pub host: HostId,
    /// What that host is called.
    pub host_name: String,
    /// How much has to be copied.
    pub kind: ResyncKind,
    /// What it does.
    pub state: ResyncState,
    /// How many chunks are left.
    pub chunks_remaining: u32,
    /// How much is done.
    pub done_bytes: u64,
    /// How much there is to do, with what is done.
    pub total_bytes: u64,
    /// How fast it goes now.
    pub bytes_per_second: u64,
    /// How long until it is done, or, of a delayed one, until it begins; where that can be said.
    pub eta_seconds: Option<u64>,
}

/// All resyncs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ResyncList {
    /// Running ones first.
    pub resyncs: Vec<ResyncInfo>,
    /// All together.
    pub totals: ResyncTotals,
}

/// What has been done since the daemon started: only differences between two samples say something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct OperationCounters {
    /// Completed reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// The time that reads took, summed.
    pub read_us_sum: u64,
    /// Completed writes.
    pub writes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// The time that writes took, summed.
    pub write_us_sum: u64,
    /// Requests under way now.
    pub in_flight: u32,
}

/// What a volume has done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeCounters {
    /// The volume.
    pub name: VolumeName,
    /// What it has done.
    pub counters: OperationCounters,
}

/// What a disk has done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DiskCounters {
    /// The disk.
    pub id: DiskId,
    /// Where it is.
    pub path: String,
    /// What it has done.
    pub counters: OperationCounters,
}

/// The counters of this host at one time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TopSample {
    /// When they were read, on a clock that only goes forward and begins anywhere.
    pub at_us: u64,
    /// The host.
    pub host_name: String,
    /// The volumes that are open here.
    pub volumes: Vec<VolumeCounters>,
    /// The disks that are here.
    pub disks: Vec<DiskCounters>,
}
