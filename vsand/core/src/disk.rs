//! What the core asks of one disk, and what it hears back.
//!
//! `vsand-store` carries these out on a real disk, the simulator on one that loses and corrupts. The contract:
//!
//! - A change is answered `Done` only when it is on stable storage: it survives a power cut from then on. A change
//!   that is not answered may survive or not, block by block, but never as a mixture within a block.
//! - Operations may be answered in any order. Two that overlap and are under way at once may take effect in either order,
//!   except that `Write` and `Zero` never replace a block of an equal or higher version: they skip it and count as done.
//! - `List` and `Summarise` tell of changes that are stable, and of no other: a block that a resync finds alike on two disks is
//!   not copied.
//! - A read never returns bytes that were not written there: a block that fails its checksum is named in
//!   [`DiskError::BadBlocks`] instead.
//! - After [`DiskError::Dead`] the disk answers nothing else, ever, until the process is started again.

use bytes::Bytes;
use ferro_protocol::ids::{ChunkId, ChunkIndex, Epoch, ObjectId, Seq, Version};
use ferro_protocol::peer::{ChunkSummary, Run};
use ferro_protocol::units::BlockRange;

/// Names an operation until its result is there. Given out by the asker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ticket(pub u64);

/// An operation on one disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskOp {
    /// Store `data` (exactly the range) with this version. Blocks that already have this or a higher version are skipped.
    Write {
        /// The component.
        chunk: ChunkId,
        /// The blocks, at most [`ferro_protocol::units::IO_BLOCKS_MAX`].
        range: BlockRange,
        /// The version of all of them.
        version: Version,
        /// The component's watermark becomes this, if it is higher than before; as durable as the write itself.
        watermark: Seq,
        /// The bytes.
        data: Bytes,
    },
    /// Unmap the blocks: they read as zeros and keep this version. Space of wholly unmapped extents is freed.
    Zero {
        /// The component.
        chunk: ChunkId,
        /// The blocks, up to the whole chunk.
        range: BlockRange,
        /// The version of all of them.
        version: Version,
        /// As in `Write`.
        watermark: Seq,
    },
    /// Make the blocks of these runs exactly this, whatever was there, even something of a higher version.
    Install {
        /// The component.
        chunk: ChunkId,
        /// Ascending, disjoint runs, at most [`ferro_protocol::units::IO_BLOCKS_MAX`] blocks in all.
        runs: Vec<Run>,
        /// The mapped blocks, in order.
        data: Bytes,
    },
    /// Read blocks; unmapped ones read as zeros, also those of a component that is not there at all.
    Read {
        /// The component.
        chunk: ChunkId,
        /// The blocks, at most [`ferro_protocol::units::IO_BLOCKS_MAX`].
        range: BlockRange,
    },
    /// Read blocks with their versions.
    Fetch {
        /// The component.
        chunk: ChunkId,
        /// The blocks, at most [`ferro_protocol::units::IO_BLOCKS_MAX`].
        range: BlockRange,
    },
    /// List blocks whose sequence number is above `since` (those never written have 0).
    List {
        /// The component.
        chunk: ChunkId,
        /// Exclusive lower bound.
        since: Seq,
        /// The first block to look at.
        from_block: u32,
        /// The most runs to return.
        runs_max: usize,
    },
    /// Put an extent in force that was staged: at once, extent `extent` of `from` with its data and its versions takes the place of the
    /// same extent of `to`, and `from` has none of it any more. Nothing is copied. Refused with [`DiskError::NotStaged`], and nothing is
    /// changed, unless every block of it is mapped in `from` and of a higher version than in `to`, and already lies where it
    /// will be: a disk may still have it elsewhere, as in a journal.
    Promote {
        /// Whose extent it becomes.
        to: ChunkId,
        /// Where it was staged; of the same object.
        from: ChunkIndex,
        /// Which extent, from 0.
        extent: u32,
        /// The watermark of `to` becomes this, as in `Write`.
        watermark: Seq,
    },
    /// Forget extents as if nothing had ever been written there, versions too; free their space. Does nothing where there is nothing.
    Forget {
        /// The component.
        chunk: ChunkId,
        /// The first extent.
        first: u32,
        /// The extent behind the last one.
        end: u32,
    },
    /// Remember this epoch for the object.
    SetEpoch {
        /// The object.
        object: ObjectId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// Summarise every component of the object on this disk.
    Summarise {
        /// The object.
        object: ObjectId,
    },
    /// Forget the component of one chunk, or with `None` all that the disk has of the object, its epoch too; free the space.
    Remove {
        /// The object.
        object: ObjectId,
        /// One chunk only.
        chunk: Option<ChunkIndex>,
    },
}

/// What an operation brought.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskReply {
    /// `Write`, `Zero`, `Install`, `Promote`, `Forget`, `SetEpoch` and `Remove`: it is on stable storage.
    Done,
    /// `Read`: the range's bytes.
    Data(Bytes),
    /// `Fetch`: runs that cover the range exactly, and the bytes of the mapped ones.
    Runs(Vec<Run>, Bytes),
    /// `List`: ascending runs and where to go on.
    List(Vec<Run>, Option<u32>),
    /// `Summarise`: one entry a component.
    Summary(Vec<ChunkSummary>),
}

/// Why an operation failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DiskError {
    /// These blocks can't be read or fail their checksums. Nothing else is wrong.
    #[error("{} blocks can't be read or fail their checksum", .0.len())]
    BadBlocks(Vec<u32>),
    /// No extent is free. Nothing was changed.
    #[error("no space is left on the disk")]
    Full,
    /// What was to be put in force is not there, or not newer than what is. Nothing was changed.
    #[error("the extent is not staged")]
    NotStaged,
    /// The disk has failed: a write or a flush went wrong, or its state can't be trusted.
    #[error("the disk has failed: {0}")]
    Dead(String),
}
