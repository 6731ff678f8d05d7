//! Objects with their chunks and components, and locks.

use std::fmt;

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

/// What a part of a chunk is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ChunkPart {
    /// All of it, mirrored.
    Whole,
    /// One of its data shards.
    Data {
        /// Which, from 0.
        number: u8,
    },
    /// One of its parity shards.
    Parity {
        /// Which, from 0.
        number: u8,
    },
    /// What was written and is not in the shards yet, mirrored.
    Log,
}

impl fmt::Display for ChunkPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("whole"),
            Self::Data { number } => write!(f, "data {number}"),
            Self::Parity { number } => write!(f, "parity {number}"),
            Self::Log => f.write_str("log"),
        }
    }
}

/// One copy of one part of a chunk.
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

/// One chunk, or with parity one part of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ChunkInfo {
    /// Which chunk.
    pub index: ChunkIndex,
    /// Which part of it.
    pub part: ChunkPart,
    /// Its copies: of a shard one, or none while it has no place.
    pub components: Vec<ComponentInfo>,
}

/// One object with some of its chunks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ObjectDetails {
    /// The object.
    pub object: ObjectInfo,
    /// At most [`CHUNKS_PAGE_MAX`] of its chunks, ascending, each with all its parts.
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
