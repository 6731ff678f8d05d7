//! Where a block of a chunk with parity lies: on which data shard, and where there.
//!
//! ```text
//!   guest blocks    0..16 │ 16..32 │ 32..48 │ 48..64 │ …          with 2 data shards
//!   shard 0         0..16          │ 16..32          │ …
//!   shard 1               │  0..16 │        │ 16..32 │ …
//! ```
//!
//! A *unit* is 16 blocks that follow each other on one shard, so that small requests stay on one shard and large ones are spread. A
//! *row* is one block number across all shards: parity is counted block by block along rows, and a row is the least
//! that can be put into the shards.

use ferro_protocol::units::{BlockRange, CHUNK_BLOCKS};

/// Blocks that follow each other on one shard: 64 KiB.
pub(super) const UNIT_BLOCKS: u32 = 16;

/// The shape of a chunk with parity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::owner) struct Geometry {
    /// Data shards.
    pub data: u8,
    /// Parity shards.
    pub parity: u8,
}

/// Blocks of one shard, and where they are among the blocks that were asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct OnShard {
    pub shard: u8,
    pub rows: BlockRange,
}

impl Geometry {
    /// Shards in all.
    pub(in crate::owner) fn shards(self) -> u8 {
        self.data + self.parity
    }

    pub(super) fn data_shards(self) -> std::ops::Range<u8> {
        0..self.data
    }

    pub(super) fn parity_shards(self) -> std::ops::Range<u8> {
        self.data..self.shards()
    }

    /// The shard and the row of a block.
    pub(super) fn locate(self, block: u32) -> (u8, u32) {
        let (unit, k) = (block / UNIT_BLOCKS, u32::from(self.data));
        ((unit % k) as u8, unit / k * UNIT_BLOCKS + block % UNIT_BLOCKS)
    }

    /// The block that lies in this row of this data shard.
    pub(super) fn block(self, shard: u8, row: u32) -> u32 {
        let k = u32::from(self.data);
        (row / UNIT_BLOCKS * k + u32::from(shard)) * UNIT_BLOCKS + row % UNIT_BLOCKS
    }

    /// The block behind those that follow this one on its shard, up to before row `end`, without one of another shard in between.
    pub(super) fn follows(self, block: u32, end: u32) -> u32 {
        let (row, unit) = (self.locate(block).1, block / UNIT_BLOCKS);
        (block + end.saturating_sub(row)).min((unit + 1) * UNIT_BLOCKS)
    }

    /// Blocks of a full stripe: a unit on each data shard.
    pub(super) fn stripe(self) -> u32 {
        UNIT_BLOCKS * u32::from(self.data)
    }

    /// The rows of blocks that are full stripes; `None` if these are not.
    pub(super) fn full_rows(self, first: u32, end: u32) -> Option<BlockRange> {
        let (stripe, data) = (self.stripe(), u32::from(self.data));
        if !first.is_multiple_of(stripe) || !end.is_multiple_of(stripe) {
            return None;
        }
        BlockRange::new(first / data, end.checked_sub(first)? / data).ok()
    }

    /// Rows in a chunk.
    pub(super) fn rows(self) -> u32 {
        CHUNK_BLOCKS / u32::from(self.data)
    }

    /// The blocks from `first` to before `end` as they lie on the shards, each shard once at most for blocks without a gap.
    pub(super) fn spread(self, first: u32, end: u32) -> Vec<OnShard> {
        let mut runs: Vec<(u8, u32, u32)> = Vec::new();
        let mut at = first;
        while at < end {
            let (shard, row) = self.locate(at);
            let count = (UNIT_BLOCKS - at % UNIT_BLOCKS).min(end - at);
            match runs.iter_mut().rev().find(|(s, ..)| *s == shard) {
                Some((_, from, to))
                    if *to == row && row + count - *from <= ferro_protocol::units::IO_BLOCKS_MAX =>
                {
                    *to = row + count;
                }
                _ => runs.push((shard, row, row + count)),
            }
            at += count;
        }
        runs.into_iter()
            .filter_map(|(shard, from, to)| {
                Some(OnShard { shard, rows: BlockRange::new(from, to - from).ok()? })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_has_one_place_and_is_found_there() {
        for data in [2, 4] {
            let shape = Geometry { data, parity: 1 };
            let mut seen = std::collections::BTreeSet::new();
            for block in (0..4_096).chain(CHUNK_BLOCKS - 256..CHUNK_BLOCKS) {
                let (shard, row) = shape.locate(block);
                assert!(shard < data && row < shape.rows());
                assert_eq!(shape.block(shard, row), block);
                assert!(seen.insert((shard, row)));
            }
        }
    }

    #[test]
    fn what_follows_a_block_on_its_shard_ends_with_the_unit_or_the_row() {
        let shape = Geometry { data: 4, parity: 2 };
        // Block 70 is the seventh of its unit: row 22 of shard 0.
        assert_eq!((shape.locate(70), shape.follows(70, 24), shape.follows(70, 4_000)), ((0, 22), 72, 80));
        assert_eq!(shape.follows(70, 22), 70);
    }

    #[test]
    fn a_long_run_takes_each_shard_once() {
        let shape = Geometry { data: 4, parity: 2 };
        let runs = shape.spread(0, 256);
        assert_eq!(runs.len(), 4);
        assert!(runs.iter().all(|r| r.rows.first() == 0 && r.rows.count() == 64));
        let blocks: u32 = shape.spread(7, 301).iter().map(|r| r.rows.count()).sum();
        assert_eq!(blocks, 294);
        assert_eq!(shape.spread(5, 6), [OnShard { shard: 0, rows: BlockRange::new(5, 1).unwrap() }]);
    }

    #[test]
    fn only_whole_stripes_have_rows_of_their_own() {
        for data in [2, 4] {
            let shape = Geometry { data, parity: 1 };
            let stripe = shape.stripe();
            assert_eq!(shape.full_rows(stripe, 3 * stripe), BlockRange::new(16, 32).ok());
            for (first, end) in [(1, stripe), (0, stripe - 1), (stripe, stripe), (2 * stripe, stripe)] {
                assert_eq!(shape.full_rows(first, end), None, "{first}..{end}");
            }
            let spread = shape.spread(stripe, 3 * stripe);
            assert!(spread.iter().all(|on| Some(on.rows) == shape.full_rows(stripe, 3 * stripe)));
        }
    }
}
