//! Volumes: objects with a name.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::limits::VolumeLimits;
use super::placement::VolumePlacement;
use super::policy::{Policy, PolicySpec};
use crate::ids::{Epoch, HostId, ObjectId, VolumeName};

/// Make a volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVolumeRequest {
    /// Its name; see [`VolumeName`].
    pub name: String,
    /// Its size: whole blocks of 4 KiB, up to 64 TiB.
    pub size_bytes: u64,
    /// How its data is kept.
    pub policy: PolicySpec,
    /// How much of its size is kept for it on the disks from the beginning, in percent: 0 (thin) to 100 (thick).
    #[serde(default)]
    pub reserve_percent: u8,
    /// Make it although there is no place for all its copies: of a mirror only.
    #[serde(default)]
    pub force_provisioning: bool,
    /// What its guest may ask for at most.
    #[serde(default)]
    pub limits: VolumeLimits,
    /// Where it is rather kept.
    #[serde(default, skip_serializing_if = "VolumePlacement::is_none")]
    pub placement: VolumePlacement,
}

/// Open a volume on this host and serve it on a vhost-user socket.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenVolumeRequest {
    /// The guest may only read.
    #[serde(default)]
    pub read_only: bool,
}

/// Grow a volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeVolumeRequest {
    /// Its new size: whole blocks of 4 KiB, no less than before.
    pub size_bytes: u64,
}

/// How room is found for a volume; what is left out stays as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProvisionRequest {
    /// How much of its size is kept for it, in percent: 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve_percent: Option<u8>,
    /// Whether parts of it are placed although there is no place for all their copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
}

/// Have a volume kept in another way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPolicyRequest {
    /// How its data is to be kept: another number of copies of a mirror.
    pub policy: PolicySpec,
}

/// How much of what the policy asks for is there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Redundancy {
    /// Every component is in sync.
    Healthy,
    /// Some are not, and are being brought up to date.
    Resyncing,
    /// Some are not, and nothing is being done about it yet.
    Degraded,
    /// Of some chunk no good copy can be reached; with parity, too few of its shards, or no copy of its log.
    Unavailable,
}

/// Who has a volume open.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeOwner {
    /// The host.
    pub host: HostId,
    /// What it is called.
    pub host_name: String,
}

/// One volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeInfo {
    /// Its name.
    pub name: VolumeName,
    /// The object behind it.
    pub object: ObjectId,
    /// Its size as the guest sees it.
    pub size_bytes: u64,
    /// What the guest's data takes, where known: of a mirror what one copy takes of the disks; with parity the data's part
    /// of what all shards take, which is an estimate.
    pub used_bytes: Option<u64>,
    /// How its data is kept.
    #[schema(value_type = PolicySpec)]
    pub policy: Policy,
    /// How much of that is there.
    pub redundancy: Redundancy,
    /// How many more hosts or disks may fail now before data can't be reached.
    pub failures_left: u8,
    /// How much of its size is kept for it, written or not, in percent.
    #[serde(default)]
    pub reserve_percent: u8,
    /// Parts of it are placed although there is no place for all their copies.
    #[serde(default)]
    pub force_provisioning: bool,
    /// What its guest may ask for at most.
    #[serde(default)]
    pub limits: VolumeLimits,
    /// Where it is rather kept.
    #[serde(default)]
    pub placement: VolumePlacement,
    /// How many of its copies and shards could be nearer to that: they move there, one after the other, as there is room.
    #[serde(default)]
    pub misplaced: u32,
    /// Who has it open.
    pub owner: Option<VolumeOwner>,
    /// How often it has changed hands.
    pub epoch: Epoch,
    /// Whether it is open read-only.
    pub read_only: bool,
    /// Its vhost-user socket, if it is open on the host that answers.
    pub socket: Option<String>,
    /// An import into it was begun and never completed: what it holds is part of an image.
    pub incomplete: bool,
    /// What it is being made into, if anything.
    #[serde(default)]
    pub conversion: Option<ConversionInfo>,
}

/// A volume is being made into one that is kept in another way: all of it is copied, and until that is done it is as it was.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ConversionInfo {
    /// How its data is to be kept.
    #[schema(value_type = PolicySpec)]
    pub policy: Policy,
    /// How far the copy has come, in bytes of the volume, if its owner says so.
    pub copied_bytes: Option<u64>,
    /// How much there is to come through: the volume's size.
    pub total_bytes: u64,
    /// Why it does not go on for the moment.
    pub waits: Option<String>,
}

/// All volumes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeList {
    /// By name.
    pub volumes: Vec<VolumeInfo>,
}

/// A volume that is open on this host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct OpenedVolume {
    /// Its name.
    pub name: VolumeName,
    /// The object behind it.
    pub object: ObjectId,
    /// The vhost-user socket: an absolute path.
    pub socket: String,
    /// Its size.
    pub size_bytes: u64,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// How many request queues a client may use.
    pub queues: u16,
}
