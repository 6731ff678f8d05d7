//! Blocks of one disk that failed their checksums, and how many of them were written anew.
//!
//! A block is counted once, however often it is read, until something replaces it: then it is mended, and counted again
//! should it go bad again. What is known is lost with the process; a bad block is found again by the next who reads it.

use std::collections::BTreeSet;

use ferro_protocol::ids::{ChunkId, ChunkIndex, ObjectId};
use ferro_protocol::units::BlockRange;

/// So many bad blocks are told apart; of a disk that has more nothing more needs to be known.
const OPEN_MAX: usize = 65_536;

/// How many blocks of a disk were bad since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BadCounts {
    /// Found.
    pub found: u64,
    /// Replaced since, mostly by what another component has.
    pub mended: u64,
    /// Found, and bad still.
    pub open: u64,
}

#[derive(Debug, Default)]
pub(super) struct BadBlocks {
    open: BTreeSet<(ChunkId, u32)>,
    found: u64,
    mended: u64,
}

impl BadBlocks {
    pub(super) fn counts(&self) -> BadCounts {
        BadCounts { found: self.found, mended: self.mended, open: self.open.len() as u64 }
    }

    /// The disk says that these are bad.
    pub(super) fn found(&mut self, chunk: ChunkId, blocks: &[u32]) {
        for block in blocks {
            if self.open.len() < OPEN_MAX && self.open.insert((chunk, *block)) {
                self.found += 1;
            }
        }
    }

    /// Something new lies in these blocks.
    pub(super) fn replaced(&mut self, chunk: ChunkId, span: BlockRange) {
        if self.open.is_empty() {
            return;
        }
        let among = (chunk, span.first())..(chunk, span.end());
        let gone: Vec<(ChunkId, u32)> = self.open.range(among).copied().collect();
        for block in gone {
            self.open.remove(&block);
            self.mended += 1;
        }
    }

    /// The disk has nothing of this chunk, or of the whole object, any more.
    pub(super) fn removed(&mut self, object: ObjectId, index: Option<ChunkIndex>) {
        self.open.retain(|(chunk, _)| chunk.object != object || index.is_some_and(|i| i != chunk.index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_block_is_counted_once_until_it_is_replaced() {
        let chunk = ChunkId { object: ObjectId::from_bytes([1; 16]), index: ChunkIndex(2) };
        let mut bad = BadBlocks::default();
        bad.found(chunk, &[3, 9]);
        bad.found(chunk, &[9]);
        assert_eq!(bad.counts(), BadCounts { found: 2, mended: 0, open: 2 });
        bad.replaced(chunk, BlockRange::new(4, 6).unwrap());
        assert_eq!(bad.counts(), BadCounts { found: 2, mended: 1, open: 1 });
        bad.found(chunk, &[9]);
        assert_eq!(bad.counts(), BadCounts { found: 3, mended: 1, open: 2 });
        bad.removed(chunk.object, Some(ChunkIndex(1)));
        assert_eq!(bad.counts().open, 2, "another chunk's");
        bad.removed(chunk.object, None);
        assert_eq!(bad.counts(), BadCounts { found: 3, mended: 1, open: 0 });
    }
}
