//! Objects with their chunks and components, and locks.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::policy::{Policy, PolicySpec};
use super::volume::{Redundancy, VolumeOwner};
use crate::ids::{ChunkIndex, DiskId, Epoch, HostId, ObjectId, Seq, VolumeName};

/// The most chunks that one answer lists.
pub const CHUNKS_PAGE_MAX: u32 = 1024;

/// One object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ObjectInfo {
    /// Its id.
    pub id: ObjectId,
    /// The volume that it is.
    pub volume: Option<VolumeName>,
    /// Its size.
    pub size_bytes: u64,
    /// How its data is kept.
    #[schema(value_type = PolicySpec)]
    pub policy: Policy,
    /// How much of that is there.
    pub redundancy: Redundancy,
    /// Who has it open.
    pub owner: Option<VolumeOwner>,
    /// How often it has changed hands.
    pub epoch: Epoch,
    /// How many chunks it has.
    pub chunks: u32,
    /// How many of its components are in sync.
    pub components_in_sync: u32,
    /// How many components it should have.
    pub components: u32,
}

/// All objects.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ObjectList {
    /// By id.
    pub objects: Vec<ObjectInfo>,
}

/// Whether a component holds the last write.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ComponentState {
    /// It does.
    InSync,
    /// What it missed is being copied to it.
    Resyncing,
    /// It missed writes.
    Stale,
    /// Its disk is gone.
    Absent,
}

/// One copy of one chunk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ComponentInfo {
    /// The disk it is on.
    pub disk: DiskId,
    /// The host that the disk is in.
    pub host: HostId,
    /// What the host is called.
    pub host_name: String,
    /// Whether it holds the last write.
    pub state: ComponentState,
    /// If it does not: the last write that it holds for certain.
    pub stale_seq: Option<Seq>,
}

/// One chunk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ChunkInfo {
    /// Which.
    pub index: ChunkIndex,
    /// Its copies.
    pub components: Vec<ComponentInfo>,
}

/// One object with some of its chunks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ObjectDetails {
    /// The object.
    pub object: ObjectInfo,
    /// At most [`CHUNKS_PAGE_MAX`] of its chunks, ascending.
    pub chunks: Vec<ChunkInfo>,
    /// Where to go on, if there are more.
    pub next_chunk: Option<ChunkIndex>,
}

/// Who holds an object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LockInfo {
    /// The object.
    pub object: ObjectId,
    /// The volume that it is.
    pub volume: Option<VolumeName>,
    /// Who holds it.
    pub owner: VolumeOwner,
    /// Since which epoch.
    pub epoch: Epoch,
    /// Whether the holder's lease runs. While it does its lock can't be broken.
    pub lease_running: bool,
    /// How long until the lease has surely ended, unless the holder renews it, where known.
    pub lease_seconds: Option<u64>,
}

/// All locks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LockList {
    /// By volume name.
    pub locks: Vec<LockInfo>,
}

/// A lock that was broken.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct BrokenLock {
    /// The object.
    pub object: ObjectId,
    /// The volume that it is.
    pub volume: Option<VolumeName>,
    /// Who held it.
    pub previous_owner: VolumeOwner,
}
