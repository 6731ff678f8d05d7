//! Messages between hosts on the data channel: an owner asks a disk, the disk's host answers.
//!
//! A message is a header (postcard) and, for some, a payload of whole blocks that travels behind it unencoded; the
//! frame says how long each is ([`crate::frame`]). Every request names the epoch it is made under, and a disk that has
//! promised a higher one refuses it (DESIGN.md, Storage, rule 2).
//!
//! Versions of the channel ([`CHANNEL_VERSION`]), in the head of each frame:
//! 1: the first.
//!
//! Added since, at the end of their enums: [`Request::Verify`] and [`Reply::Verified`]; [`Request::Promote`], [`Request::Forget`] and
//! [`Refusal::NotStaged`], which are asked only where the cluster's feature level says that all hosts know them. To a peer that does not know them
//! the frame is one that does not decode, and it drops the connection; so nothing that a guest waits for may depend on
//! them, and who asks does not ask again soon.

use serde::{Deserialize, Serialize};

use crate::ids::{ChunkId, ChunkIndex, DiskId, Epoch, ObjectId, Role, Seq, Version};
use crate::units::{BlockRange, CHUNK_EXTENTS, IO_BLOCKS_MAX};

/// The version of the messages in this module.
pub const CHANNEL_VERSION: u8 = 1;
/// The most runs that one message lists.
pub const RUNS_MAX: usize = 65_536;

/// Names a request on its connection until its answer is there. Given out by the asking side.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub u64);

/// A run of blocks that were last changed by the same write, or that were all never written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Which blocks.
    pub range: BlockRange,
    /// The write that they come from.
    pub version: Version,
    /// Whether they hold data; blocks that don't read as zeros and have no payload.
    pub mapped: bool,
}

/// What an owner asks of one disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Promise, durably, to refuse every lower epoch of this object from now on, and say what you have of it.
    /// Answered by [`Reply::Sealed`].
    Seal {
        /// The object.
        object: ObjectId,
        /// The new owner's epoch.
        epoch: Epoch,
    },
    /// Write the payload. Answered by [`Reply::Done`] once it is on stable storage.
    Write {
        /// The chunk.
        chunk: ChunkId,
        /// The blocks, at most [`IO_BLOCKS_MAX`].
        range: BlockRange,
        /// The owner's epoch and the write's sequence number.
        version: Version,
        /// Every write up to this one is stable on all in-sync components.
        watermark: Seq,
    },
    /// Make the blocks read as zeros, and free their space where that is possible. Answered by [`Reply::Done`].
    Zero {
        /// The chunk.
        chunk: ChunkId,
        /// The blocks; any number.
        range: BlockRange,
        /// As in `Write`.
        version: Version,
        /// As in `Write`.
        watermark: Seq,
    },
    /// Read blocks. Answered by [`Reply::Data`] with a payload of exactly the range.
    Read {
        /// The chunk.
        chunk: ChunkId,
        /// The asking owner's epoch.
        epoch: Epoch,
        /// The blocks, at most [`IO_BLOCKS_MAX`].
        range: BlockRange,
    },
    /// Read blocks with their versions, to copy them to another component. Answered by [`Reply::Runs`] with a payload
    /// of the mapped blocks, in order.
    Fetch {
        /// The chunk.
        chunk: ChunkId,
        /// The asking owner's epoch.
        epoch: Epoch,
        /// The blocks, at most [`IO_BLOCKS_MAX`].
        range: BlockRange,
    },
    /// Take over blocks as another component has them, whatever you hold in their place, even something newer.
    /// The payload is the mapped blocks, in order. Answered by [`Reply::Done`] once it is on stable storage.
    Install {
        /// The chunk.
        chunk: ChunkId,
        /// The owner's epoch.
        epoch: Epoch,
        /// What the blocks become: ascending, disjoint, together at most [`IO_BLOCKS_MAX`] blocks.
        runs: Vec<Run>,
    },
    /// Which blocks were changed after `since`? Answered by [`Reply::List`].
    List {
        /// The chunk.
        chunk: ChunkId,
        /// The asking owner's epoch.
        epoch: Epoch,
        /// Only blocks whose sequence number is above this one.
        since: Seq,
        /// Begin at this block.
        from_block: u32,
    },
    /// Read the first blocks that there are from a block on, up to the end of their extent, and look at their checksums; the
    /// data stays where it is. Answered by [`Reply::Verified`], or [`Refusal::BadBlocks`].
    Verify {
        /// The chunk.
        chunk: ChunkId,
        /// The asking owner's epoch.
        epoch: Epoch,
        /// Begin at this block.
        from_block: u32,
    },
    /// Put a whole extent in force that was written to what is staged for this shard ([`ChunkIndex::staged`]): it takes the place of the
    /// shard's, at once. Answered by [`Reply::Done`], or [`Refusal::NotStaged`].
    Promote {
        /// The shard.
        chunk: ChunkId,
        /// Which extent, from 0.
        extent: u32,
        /// The owner's epoch, and a sequence number that is the request's own: the blocks have those that they were staged with.
        version: Version,
        /// As in `Write`, of the shard.
        watermark: Seq,
    },
    /// Forget what is staged for this shard in some extents. Answered by [`Reply::Done`].
    Forget {
        /// The shard.
        chunk: ChunkId,
        /// As in `Promote`.
        version: Version,
        /// The first extent.
        first: u32,
        /// The extent behind the last one.
        end: u32,
    },
}

/// The answer to a [`Request`] that was carried out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The change is on stable storage.
    Done,
    /// The blocks read are the payload.
    Data,
    /// What the blocks are; the mapped ones are the payload.
    Runs(Vec<Run>),
    /// Blocks that changed, ascending; more follow from `next_block`, if there is one.
    List {
        /// The changed blocks.
        runs: Vec<Run>,
        /// Where to go on.
        next_block: Option<u32>,
    },
    /// The promise is on stable storage. Every chunk of the object of which this disk has a component.
    Sealed {
        /// One entry a chunk.
        chunks: Vec<ChunkSummary>,
    },
    /// All of the blocks are good.
    Verified {
        /// How many of them hold data, and were read.
        blocks: u32,
        /// Where to go on; nothing if there is nothing more.
        next_block: Option<u32>,
    },
}

/// What a disk knows of its component of a chunk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChunkSummary {
    /// Which chunk.
    pub index: ChunkIndex,
    /// The highest watermark that came with a write: all up to here is stable on every in-sync component.
    pub watermark: Seq,
    /// The highest sequence number of any write here.
    pub seq_max: Seq,
    /// The blocks whose sequence number is above `watermark`, ascending.
    pub tail: Vec<Run>,
}

/// Why a disk did not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// It has promised a higher epoch: the asker owns the object no longer.
    #[error("the object has a newer owner (epoch {})", .sealed.0)]
    Fenced {
        /// The epoch that it has promised.
        sealed: Epoch,
    },
    /// It has not yet promised the asker's epoch: seal first.
    #[error("this epoch was not sealed here (the last is {})", .sealed.0)]
    Unsealed {
        /// The epoch that it has promised.
        sealed: Epoch,
    },
    /// The host has no such disk.
    #[error("no disk {0} here")]
    NoDisk(DiskId),
    /// These blocks failed their checksums or could not be read; the others are good.
    #[error("{} blocks can't be read or fail their checksum", .bad.len())]
    BadBlocks {
        /// The blocks, ascending.
        bad: Vec<u32>,
    },
    /// No space is left for new extents.
    #[error("the disk is full")]
    Full,
    /// The disk has failed; it takes no requests until an administrator looks at it.
    #[error("the disk has failed: {0}")]
    Dead(String),
    /// The request breaks the rules of this module.
    #[error("malformed request: {0}")]
    Malformed(String),
    /// The disk has promised the epochs of as many objects as it may without holding anything of them.
    #[error(
        "the disk has promised the epochs of {promises_max} objects of which it holds nothing, and promises no more"
    )]
    TooManyObjects {
        /// The most that it promises.
        promises_max: u32,
    },
    /// What was to be put in force is not staged here, or is older than what is in force.
    #[error("the extent is not staged here")]
    NotStaged,
}

impl Request {
    /// How many bytes of payload belong to this request, or why it can't be carried out.
    pub fn payload_bytes(&self) -> Result<usize, Refusal> {
        let bounded = |range: &BlockRange| {
            if range.count() > IO_BLOCKS_MAX {
                return Err(Refusal::Malformed(format!("{} blocks in one request", range.count())));
            }
            Ok(())
        };
        match self {
            Self::Write { range, .. } => bounded(range).map(|()| range.bytes()),
            Self::Read { range, .. } | Self::Fetch { range, .. } => bounded(range).map(|()| 0),
            Self::Install { runs, .. } => mapped_bytes(runs),
            Self::Promote { chunk, extent, .. } => staged(*chunk, *extent, extent.saturating_add(1)),
            Self::Forget { chunk, first, end, .. } => staged(*chunk, *first, *end),
            Self::Seal { .. } | Self::Zero { .. } | Self::List { .. } | Self::Verify { .. } => Ok(0),
        }
    }
}

/// Whether something can be staged there: of a shard only, and within it. There is no payload.
fn staged(chunk: ChunkId, first: u32, end: u32) -> Result<usize, Refusal> {
    if !matches!(chunk.index.role(), Role::Shard(_))
        || chunk.index.is_staged()
        || first >= end
        || end > CHUNK_EXTENTS
    {
        return Err(Refusal::Malformed(format!("extents {first} to {end} of chunk {}", chunk.index)));
    }
    Ok(0)
}

/// The payload that belongs to these runs; they must be ascending, disjoint and no more than [`IO_BLOCKS_MAX`] blocks.
pub fn mapped_bytes(runs: &[Run]) -> Result<usize, Refusal> {
    let mut at = 0;
    let mut blocks = 0_u32;
    let mut bytes = 0;
    for run in runs {
        if run.range.first() < at {
            return Err(Refusal::Malformed("runs overlap or descend".to_owned()));
        }
        at = run.range.end();
        blocks = blocks.saturating_add(run.range.count());
        if run.mapped {
            bytes += run.range.bytes();
        }
    }
    if blocks > IO_BLOCKS_MAX {
        return Err(Refusal::Malformed(format!("{blocks} blocks in one request")));
    }
    Ok(bytes)
}
