//! Scrubs: looking for blocks that have gone bad while there are others to mend them from.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{ObjectId, VolumeName};

/// What is done with scrubs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScrubAction {
    /// Scrub as soon as its turn comes.
    Start,
    /// Leave it; what was found stays mended.
    Stop,
}

/// Start or stop scrubs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScrubRequest {
    /// What to do.
    pub action: ScrubAction,
    /// Of which volume; of all, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub volume: Option<VolumeName>,
}

/// How far the scrub of a volume is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScrubState {
    /// None was begun yet.
    Never,
    /// Somebody has asked for one; each host scrubs one volume at a time.
    Waiting,
    /// It is under way, or goes on when its host can.
    Running,
    /// It was stopped.
    Stopped,
    /// It has ended.
    Done,
}

/// The latest scrub of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ScrubInfo {
    /// The volume.
    #[schema(value_type = String)]
    pub volume: VolumeName,
    /// Its object.
    pub object: ObjectId,
    /// How far it is.
    pub state: ScrubState,
    /// When it began, in seconds since 1970 (UTC).
    pub began_unix_s: Option<u64>,
    /// When it ended or was stopped.
    pub ended_unix_s: Option<u64>,
    /// When one last ended that left nothing out.
    pub whole_unix_s: Option<u64>,
    /// When the next begins by itself; nothing if none does, or one runs.
    pub next_unix_s: Option<u64>,
    /// How many parts the volume has, of 1 GiB each; only what was ever written has any.
    pub chunks: u32,
    /// How many of them are done.
    pub chunks_done: u32,
    /// What was read, on all disks together.
    pub bytes: u64,
    /// Blocks of 4 KiB that were bad.
    pub bad_blocks: u64,
    /// Those of them that were mended.
    pub mended_blocks: u64,
    /// Copies of parts that were left out: they were behind, or their disks did not answer.
    pub skipped: u64,
}

/// The latest scrubs, by volume.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ScrubList {
    /// One a volume.
    pub scrubs: Vec<ScrubInfo>,
}
