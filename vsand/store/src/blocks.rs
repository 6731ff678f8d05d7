//! What is known of each block of one extent: its version, whether it holds data, and the data's CRC-32.
//!
//! On disk the extent's 256 blocks are 8 groups of 32, each a row of its own, so that a small write dirties a small row:
//!
//! ```text
//! row, all blocks unmapped, one version    0 u8 │ epoch u32 │ seq u64
//! row, one epoch, near sequence numbers    1 u8 │ mapped u32 │ written u32 │ epoch u32 │ base u64 │ (seq − base) u32 … │ crc u32 …
//! row, anything else                       2 u8 │ mapped u32 │ (epoch u32 │ seq u64) × 32 │ crc u32 …
//! ```
//!
//! `written` has a bit for each block with a sequence of its own, the others were never written; there is a CRC for each mapped block.

use ferro_protocol::ids::{Epoch, Seq, Version};
use ferro_protocol::units::EXTENT_BLOCKS;

/// Blocks in one row.
pub(crate) const GROUP_BLOCKS: usize = 32;
/// Rows of an extent.
pub(crate) const GROUPS: usize = EXTENT_BLOCKS as usize / GROUP_BLOCKS;

/// A set of blocks of one extent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct BlockSet([u64; 4]);

impl BlockSet {
    pub(crate) const fn has(&self, block: usize) -> bool {
        self.0[block / 64] >> (block % 64) & 1 == 1
    }
    pub(crate) const fn insert(&mut self, block: usize) {
        self.0[block / 64] |= 1 << (block % 64);
    }
    pub(crate) const fn remove(&mut self, block: usize) {
        self.0[block / 64] &= !(1 << (block % 64));
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }
    pub(crate) fn is_full(&self) -> bool {
        self.0 == [u64::MAX; 4]
    }
    pub(crate) fn any_in(&self, mut range: std::ops::Range<usize>) -> bool {
        !self.is_empty() && range.any(|b| self.has(b))
    }
}

/// The blocks of one extent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Blocks {
    pub(crate) mapped: BlockSet,
    crcs: [u32; EXTENT_BLOCKS as usize],
    epochs: [u32; EXTENT_BLOCKS as usize],
    seqs: [u64; EXTENT_BLOCKS as usize],
}

/// A row that can't be one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a row of block metadata is malformed")]
pub(crate) struct BadRow;

impl Blocks {
    pub(crate) fn never() -> Box<Self> {
        let n = EXTENT_BLOCKS as usize;
        debug_assert_eq!(n, 256);
        Box::new(Self { mapped: BlockSet::default(), crcs: [0; 256], epochs: [0; 256], seqs: [0; 256] })
    }

    pub(crate) fn version(&self, block: usize) -> Version {
        Version { epoch: Epoch(self.epochs[block]), seq: Seq(self.seqs[block]) }
    }

    pub(crate) fn crc(&self, block: usize) -> u32 {
        self.crcs[block]
    }

    pub(crate) fn set(&mut self, block: usize, version: Version, crc: Option<u32>) {
        self.epochs[block] = version.epoch.0;
        self.seqs[block] = version.seq.0;
        if let Some(crc) = crc {
            self.mapped.insert(block);
            self.crcs[block] = crc;
        } else {
            self.mapped.remove(block);
            self.crcs[block] = 0;
        }
    }

    pub(crate) fn seq_max(&self) -> Seq {
        Seq(self.seqs.iter().copied().max().unwrap_or(0))
    }

    /// Whether all of these hold data, each block of a higher version than there.
    pub(crate) fn supersede(&self, others: &Self) -> bool {
        self.mapped.is_full()
            && (0..EXTENT_BLOCKS as usize).all(|block| self.version(block) > others.version(block))
    }

    /// The row of one group.
    pub(crate) fn encode(&self, group: usize) -> Vec<u8> {
        let range = group * GROUP_BLOCKS..(group + 1) * GROUP_BLOCKS;
        let bits = |f: &dyn Fn(usize) -> bool| {
            range.clone().enumerate().fold(0_u32, |set, (bit, block)| set | u32::from(f(block)) << bit)
        };
        let mapped = bits(&|b| self.mapped.has(b));
        let first = self.version(range.start);
        if mapped == 0 && range.clone().all(|b| self.version(b) == first) {
            let mut out = vec![0];
            out.extend_from_slice(&first.epoch.0.to_le_bytes());
            out.extend_from_slice(&first.seq.0.to_le_bytes());
            return out;
        }
        let written = bits(&|b| self.version(b) != Version::NEVER);
        let mut own = range
            .clone()
            .filter(|&b| self.version(b) != Version::NEVER)
            .map(|b| (self.epochs[b], self.seqs[b]));
        let (epoch, mut base) = own.next().unwrap_or((0, 0));
        let (mut top, mut one_epoch) = (base, true);
        for (e, seq) in own {
            one_epoch &= e == epoch;
            base = base.min(seq);
            top = top.max(seq);
        }
        let mut out = Vec::with_capacity(300);
        if one_epoch && u32::try_from(top - base).is_ok() {
            out.push(1);
            out.extend_from_slice(&mapped.to_le_bytes());
            out.extend_from_slice(&written.to_le_bytes());
            out.extend_from_slice(&epoch.to_le_bytes());
            out.extend_from_slice(&base.to_le_bytes());
            for block in range.clone().filter(|b| written >> (b % GROUP_BLOCKS) & 1 == 1) {
                out.extend_from_slice(&((self.seqs[block] - base) as u32).to_le_bytes());
            }
        } else {
            out.push(2);
            out.extend_from_slice(&mapped.to_le_bytes());
            for block in range.clone() {
                out.extend_from_slice(&self.epochs[block].to_le_bytes());
                out.extend_from_slice(&self.seqs[block].to_le_bytes());
            }
        }
        for block in range.filter(|&b| self.mapped.has(b)) {
            out.extend_from_slice(&self.crcs[block].to_le_bytes());
        }
        out
    }

    /// Takes over the row of one group.
    pub(crate) fn decode(&mut self, group: usize, row: &[u8]) -> Result<(), BadRow> {
        fn take<const N: usize>(row: &mut &[u8]) -> Result<[u8; N], BadRow> {
            let (head, rest) = row.split_first_chunk::<N>().ok_or(BadRow)?;
            *row = rest;
            Ok(*head)
        }
        if group >= GROUPS {
            return Err(BadRow);
        }
        let range = group * GROUP_BLOCKS..(group + 1) * GROUP_BLOCKS;
        let mut row = row;
        let [tag] = take::<1>(&mut row)?;
        let mut mapped = 0;
        match tag {
            0 => {
                let epoch = Epoch(u32::from_le_bytes(take(&mut row)?));
                let seq = Seq(u64::from_le_bytes(take(&mut row)?));
                for block in range.clone() {
                    self.set(block, Version { epoch, seq }, None);
                }
            }
            1 => {
                mapped = u32::from_le_bytes(take(&mut row)?);
                let written = u32::from_le_bytes(take(&mut row)?);
                let epoch = Epoch(u32::from_le_bytes(take(&mut row)?));
                let base = u64::from_le_bytes(take(&mut row)?);
                for block in range.clone() {
                    let version = if written >> (block % GROUP_BLOCKS) & 1 == 1 {
                        let delta = u32::from_le_bytes(take(&mut row)?);
                        Version { epoch, seq: Seq(base.checked_add(u64::from(delta)).ok_or(BadRow)?) }
                    } else {
                        Version::NEVER
                    };
                    self.set(block, version, None);
                }
            }
            2 => {
                mapped = u32::from_le_bytes(take(&mut row)?);
                for block in range.clone() {
                    let epoch = Epoch(u32::from_le_bytes(take(&mut row)?));
                    let seq = Seq(u64::from_le_bytes(take(&mut row)?));
                    self.set(block, Version { epoch, seq }, None);
                }
            }
            _ => return Err(BadRow),
        }
        for block in range.filter(|b| mapped >> (b % GROUP_BLOCKS) & 1 == 1) {
            let crc = u32::from_le_bytes(take(&mut row)?);
            self.set(block, self.version(block), Some(crc));
        }
        if row.is_empty() { Ok(()) } else { Err(BadRow) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(epoch: u32, seq: u64) -> Version {
        Version { epoch: Epoch(epoch), seq: Seq(seq) }
    }

    fn round_trip(blocks: &Blocks) -> Vec<usize> {
        let mut back = Blocks::never();
        let rows: Vec<_> = (0..GROUPS).map(|g| blocks.encode(g)).collect();
        for (group, row) in rows.iter().enumerate() {
            back.decode(group, row).unwrap();
            for len in 0..row.len() {
                assert!(Blocks::never().decode(group, &row[..len]).is_err());
            }
        }
        assert_eq!(*back, *blocks);
        rows.iter().map(Vec::len).collect()
    }

    #[test]
    fn rows_read_back_in_every_shape() {
        let mut blocks = Blocks::never();
        assert_eq!(round_trip(&blocks), [13; 8]);
        for block in 32..64 {
            blocks.set(block, version(3, 70), None);
        }
        for block in 64..96 {
            blocks.set(block, version(3, 1000 + block as u64), (block % 3 == 0).then_some(block as u32));
        }
        blocks.set(100, version(1, 5), Some(9));
        blocks.set(130, version(1, 5), Some(9));
        blocks.set(131, version(2, u64::MAX), None);
        blocks.set(255, version(9, 1), Some(1));
        let sizes = round_trip(&blocks);
        assert!(sizes[2] < 250 && sizes[3] < 40, "{sizes:?}");
        assert_eq!(blocks.seq_max(), Seq(u64::MAX));
    }
}
