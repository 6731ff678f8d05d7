//! The room there is, what takes it, and what a loss would mean.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::cluster::HostState;
use crate::ids::{DiskId, HostId, VolumeName};

/// The most volumes that are named of one loss.
pub const LOSS_VOLUMES_MAX: usize = 20;

/// All disks together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CapacityTotals {
    /// The size of the disks that can be used.
    pub total_bytes: u64,
    /// How much of that is taken, all copies and parity counted.
    pub used_bytes: u64,
    /// What is left for new data: placement keeps the last 5 % of each disk for what is placed there already.
    pub free_bytes: u64,
    /// Those 5 %, as far as they are free.
    pub reserved_bytes: u64,
    /// What is kept for volumes with a reservation and not written yet: neither used nor free.
    #[serde(default)]
    pub kept_bytes: u64,
    /// The volumes' sizes together, each once.
    pub provisioned_bytes: u64,
    /// What the volumes would take if they were full, with all copies and parity. It may be more than there is.
    pub promised_bytes: u64,
    /// What thinness saves: the promised less the used.
    pub thin_savings_bytes: u64,
}

/// The disks of one host together.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostCapacity {
    /// The host.
    pub host: HostId,
    /// What it is called.
    pub name: String,
    /// Whether it takes part.
    pub state: HostState,
    /// What fails together with it.
    pub fault_domain: String,
    /// How many disks it has.
    pub disks: u32,
    /// Their size.
    pub total_bytes: u64,
    /// How much of that is taken.
    pub used_bytes: u64,
    /// What the components that are placed there would take if they were full.
    pub promised_bytes: u64,
}

/// The volumes of one policy together.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PolicyCapacity {
    /// The policy, as `volume create` takes it.
    pub policy: String,
    /// How many volumes have it.
    pub volumes: u32,
    /// Their sizes together.
    pub provisioned_bytes: u64,
    /// What they take on the disks, with all copies and parity, as far as their hosts have reported.
    pub stored_bytes: u64,
    /// What they would take if they were full.
    pub promised_bytes: u64,
}

/// What is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// A site with all its hosts.
    Site,
    /// A host with all its disks.
    Host,
    /// A disk.
    Disk,
}

/// What it would mean to lose one site, host or disk now, with what is away already.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LossForecast {
    /// What is lost.
    pub kind: LossKind,
    /// The host, or that of the disk, or one of those of the site.
    pub host: HostId,
    /// The disk, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskId>,
    /// It for people: a site's or a host's name, or a disk's path and host.
    pub name: String,
    /// How many volumes have something there.
    pub volumes: u32,
    /// How much would have to be rebuilt.
    pub rebuild_bytes: u64,
    /// Whether all of it would be: every volume could be read, and there is room in enough fault domains.
    pub rebuilt: bool,
    /// How many volumes could not be read.
    pub unavailable: u32,
    /// Their names, at most [`LOSS_VOLUMES_MAX`].
    pub unavailable_volumes: Vec<VolumeName>,
    /// How many volumes could be read, and would have fewer copies until there are more disks.
    pub unplaced: u32,
    /// Their names, at most [`LOSS_VOLUMES_MAX`].
    pub unplaced_volumes: Vec<VolumeName>,
    /// How full the disks that stay would be then, in percent.
    pub used_percent_after: u32,
}

/// The room there is, what takes it, and what a loss would mean.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct CapacityReport {
    /// All disks together.
    pub totals: CapacityTotals,
    /// By name.
    pub hosts: Vec<HostCapacity>,
    /// By policy.
    pub policies: Vec<PolicyCapacity>,
    /// What each loss would mean: sites of several hosts where there are several sites, then hosts by name, then disks.
    pub losses: Vec<LossForecast>,
}
