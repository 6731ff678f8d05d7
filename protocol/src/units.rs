//! Sizes. The unit of everything below the guest's sector is the 4 KiB block; a chunk is counted in blocks, a disk in
//! extents of 1 MiB, and bytes appear only at the edges.

use serde::{Deserialize, Serialize};

/// Bytes in a block, the unit of checksums and versions.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes in a virtio-blk sector (virtio 1.2, section 5.2.6: always 512, whatever the logical block size).
pub const SECTOR_BYTES: u64 = 512;
/// Bytes in a physical extent, the unit of allocation on a disk.
pub const EXTENT_BYTES: u64 = 1 << 20;
/// Blocks in a physical extent.
pub const EXTENT_BLOCKS: u32 = (EXTENT_BYTES / BLOCK_BYTES as u64) as u32;
/// Bytes in a chunk, the unit of placement.
pub const CHUNK_BYTES: u64 = 1 << 30;
/// Blocks in a chunk.
pub const CHUNK_BLOCKS: u32 = (CHUNK_BYTES / BLOCK_BYTES as u64) as u32;
/// Extents in a chunk.
pub const CHUNK_EXTENTS: u32 = (CHUNK_BYTES / EXTENT_BYTES) as u32;
/// The most blocks one message or one disk operation may carry: 1 MiB.
pub const IO_BLOCKS_MAX: u32 = EXTENT_BLOCKS;
/// The largest volume: 64 TiB, as on vSAN's VMDKs (62 TB) rounded to a power of two.
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;

/// A run of blocks in a chunk. Never empty, never past the chunk's end: [`BlockRange::new`] sees to both.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "(u32, u32)", into = "(u32, u32)")]
pub struct BlockRange {
    first: u32,
    count: u32,
}

/// A run of blocks that is empty or leaves its chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{count} blocks from block {first} are not within a chunk of {CHUNK_BLOCKS} blocks")]
pub struct BadRange {
    /// The first block.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl BlockRange {
    /// `count` blocks from block `first` of a chunk.
    pub const fn new(first: u32, count: u32) -> Result<Self, BadRange> {
        if count == 0 || count > CHUNK_BLOCKS || first > CHUNK_BLOCKS - count {
            return Err(BadRange { first, count });
        }
        Ok(Self { first, count })
    }

    /// One block.
    pub const fn one(block: u32) -> Result<Self, BadRange> {
        Self::new(block, 1)
    }

    /// The first block.
    pub const fn first(self) -> u32 {
        self.first
    }

    /// How many blocks, at least one.
    pub const fn count(self) -> u32 {
        self.count
    }

    /// The block after the last.
    pub const fn end(self) -> u32 {
        self.first + self.count
    }

    /// Length in bytes.
    pub const fn bytes(self) -> usize {
        self.count as usize * BLOCK_BYTES
    }

    /// Whether the two share a block.
    pub const fn overlaps(self, other: Self) -> bool {
        self.first < other.end() && other.first < self.end()
    }

    /// Whether the block is in the run.
    pub const fn contains(self, block: u32) -> bool {
        block >= self.first && block < self.end()
    }

    /// The blocks, in order.
    pub fn blocks(self) -> std::ops::Range<u32> {
        self.first..self.end()
    }

    /// The run in pieces that each stay within one extent.
    pub fn by_extent(self) -> impl Iterator<Item = Self> {
        let mut at = self.first;
        std::iter::from_fn(move || {
            if at >= self.end() {
                return None;
            }
            let extent_end = (at / EXTENT_BLOCKS + 1) * EXTENT_BLOCKS;
            let end = extent_end.min(self.end());
            let piece = Self { first: at, count: end - at };
            at = end;
            Some(piece)
        })
    }
}

impl TryFrom<(u32, u32)> for BlockRange {
    type Error = BadRange;
    fn try_from((first, count): (u32, u32)) -> Result<Self, BadRange> {
        Self::new(first, count)
    }
}

impl From<BlockRange> for (u32, u32) {
    fn from(range: BlockRange) -> Self {
        (range.first, range.count)
    }
}

/// How many chunks an object of this many bytes has; its last may be used in part.
pub const fn chunks_of(size_bytes: u64) -> u32 {
    size_bytes.div_ceil(CHUNK_BYTES) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_never_leaves_its_chunk() {
        assert!(BlockRange::new(0, 0).is_err());
        assert!(BlockRange::new(CHUNK_BLOCKS, 1).is_err());
        assert!(BlockRange::new(1, CHUNK_BLOCKS).is_err());
        assert!(BlockRange::new(u32::MAX, u32::MAX).is_err());
        assert_eq!(BlockRange::new(CHUNK_BLOCKS - 1, 1).unwrap().end(), CHUNK_BLOCKS);
    }

    #[test]
    fn pieces_by_extent_cover_the_range() {
        let range = BlockRange::new(250, 520).unwrap();
        let pieces: Vec<_> = range.by_extent().map(|p| (p.first(), p.count())).collect();
        assert_eq!(pieces, [(250, 6), (256, 256), (512, 256), (768, 2)]);
    }
}
