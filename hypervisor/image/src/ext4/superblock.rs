//! The superblock, and where the descriptors of the groups are.

use super::checksum::crc32c;
use super::{Damage, Ext4Error, Feature};
use crate::bytes::{join, le16, le32, printable, uuid};
use crate::source::Window;

/// Where it is.
pub(super) const OFFSET: u64 = 1024;
/// Its bytes.
pub(super) const BYTES: usize = 1024;

const MAGIC: u16 = 0xef53;
/// The journal's usual inode.
const JOURNAL_INODE: u32 = 8;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;

const RECOVER: u32 = 0x4;
const META_BG: u32 = 0x10;
const WIDE: u32 = 0x80;
const CSUM_SEED: u32 = 0x2000;
const EA_INODE: u32 = 0x400;
/// Incompatible features that are read, or that don't matter to a reader: filetype, recover, `meta_bg`, extent, 64bit, mmp,
/// `flex_bg`, `ea_inode`, `metadata_csum_seed`, `large_dir`, `inline_data`, encrypt (file by file), casefold.
const KNOWN: u32 = 0x2
    | RECOVER
    | META_BG
    | 0x40
    | WIDE
    | 0x100
    | 0x200
    | EA_INODE
    | CSUM_SEED
    | 0x4000
    | 0x8000
    | 0x1_0000
    | 0x2_0000;
const REFUSED: [(u32, &str); 3] = [(0x1, "compression"), (0x8, "journal_dev"), (0x1000, "dirdata")];

/// What is needed of it.
#[derive(Clone, Debug)]
pub(super) struct Superblock {
    /// Bytes: 1 to 64 KiB.
    pub(super) block_size: u64,
    /// Blocks of the file system; all of them are in the partition.
    pub(super) blocks: u64,
    first_data_block: u64,
    blocks_per_group: u64,
    pub(super) inodes_per_group: u32,
    pub(super) inodes: u32,
    pub(super) inode_size: usize,
    descriptor_size: u64,
    pub(super) wide: bool,
    pub(super) has_ea_inode: bool,
    first_meta_group: Option<u64>,
    sparse: Sparse,
    /// What checksums of metadata start from, if there are any.
    pub(super) seed: Option<u32>,
    /// Its journal has changes that are not in their places.
    pub(super) needs_recovery: bool,
    /// The journal, if it is in the file system itself.
    pub(super) journal_inode: Option<u32>,
    pub(super) uuid: [u8; 16],
    pub(super) label: String,
}

/// Which groups begin with a copy of the superblock.
#[derive(Clone, Debug)]
enum Sparse {
    All,
    Powers,
    Two([u32; 2]),
}

impl Superblock {
    pub(super) fn read(window: &Window<'_>) -> Result<Self, Ext4Error> {
        let bytes = window.read_vec(OFFSET, BYTES)?;
        Self::parse(&bytes, window.len())
    }

    /// From its bytes, for a partition of so many.
    pub(super) fn parse(bytes: &[u8], partition_len: u64) -> Result<Self, Ext4Error> {
        let damaged = |what| Err(Damage::Superblock(what).into());
        if le16(bytes, 0x38) != MAGIC {
            return damaged("no signature");
        }
        let dynamic = le32(bytes, 0x4c) >= 1;
        let features = |at| if dynamic { le32(bytes, at) } else { 0 };
        let (compat, incompat, ro_compat) = (features(0x5c), features(0x60), features(0x64));
        if let Some((_, name)) = REFUSED.iter().find(|(bit, _)| incompat & bit != 0) {
            return Err(Ext4Error::Unsupported { feature: Feature::Named(name) });
        }
        if incompat & !KNOWN != 0 {
            return Err(Ext4Error::Unsupported { feature: Feature::Bit(incompat & !KNOWN) });
        }
        let uuid = uuid(bytes, 0x68);
        let seed = (ro_compat & RO_COMPAT_METADATA_CSUM != 0)
            .then(|| if incompat & CSUM_SEED != 0 { le32(bytes, 0x270) } else { crc32c(!0, &uuid) });
        if seed.is_some() && crc32c(!0, &bytes[..0x3fc]) != le32(bytes, 0x3fc) {
            return damaged("wrong checksum");
        }
        let log_size = le32(bytes, 0x18);
        if log_size > 6 {
            return damaged("impossible block size");
        }
        let block_size = 1024_u64 << log_size;
        let wide = incompat & WIDE != 0;
        let blocks = join(if wide { le32(bytes, 0x150) } else { 0 }, le32(bytes, 0x4));
        if blocks.checked_mul(block_size).is_none_or(|len| len > partition_len) {
            return damaged("larger than its partition");
        }
        let first_data_block = u64::from(le32(bytes, 0x14));
        let (blocks_per_group, inodes_per_group) = (u64::from(le32(bytes, 0x20)), le32(bytes, 0x28));
        if first_data_block >= blocks || blocks_per_group == 0 || inodes_per_group == 0 {
            return damaged("impossible groups");
        }
        let inode_size = if dynamic { u64::from(le16(bytes, 0x58)) } else { 128 };
        if !(128..=block_size).contains(&inode_size) || !inode_size.is_power_of_two() {
            return damaged("impossible inode size");
        }
        let descriptor_size = if wide { u64::from(le16(bytes, 0xfe)) } else { 32 };
        if descriptor_size < 32 || descriptor_size > block_size || !descriptor_size.is_power_of_two() {
            return damaged("impossible descriptor size");
        }
        let sparse = if compat & COMPAT_SPARSE_SUPER2 != 0 {
            Sparse::Two([le32(bytes, 0x24c), le32(bytes, 0x250)])
        } else if ro_compat & RO_COMPAT_SPARSE_SUPER != 0 {
            Sparse::Powers
        } else {
            Sparse::All
        };
        let label = bytes[0x78..0x88].split(|byte| *byte == 0).next().unwrap_or_default();
        let has_journal = compat & COMPAT_HAS_JOURNAL != 0;
        Ok(Self {
            block_size,
            blocks,
            first_data_block,
            blocks_per_group,
            inodes_per_group,
            inodes: le32(bytes, 0),
            inode_size: inode_size as usize,
            descriptor_size,
            wide,
            has_ea_inode: incompat & EA_INODE != 0,
            first_meta_group: (incompat & META_BG != 0).then(|| u64::from(le32(bytes, 0x104))),
            sparse,
            seed,
            needs_recovery: has_journal && incompat & RECOVER != 0,
            journal_inode: match le32(bytes, 0xe0) {
                0 if le32(bytes, 0xe4) != 0 => None,
                0 => Some(JOURNAL_INODE),
                inode => Some(inode),
            },
            uuid,
            label: printable(&String::from_utf8_lossy(label), 16),
        })
    }

    /// How many bytes of a descriptor count.
    pub(super) fn descriptor_len(&self) -> usize {
        self.descriptor_size as usize
    }

    /// Block and offset of a group's descriptor.
    pub(super) fn descriptor_at(&self, group: u64) -> (u64, u64) {
        let in_block = self.block_size / self.descriptor_size;
        let (meta_group, offset) = (group / in_block, group % in_block * self.descriptor_size);
        let own_block = OFFSET / self.block_size;
        let block = match self.first_meta_group {
            // Each meta group keeps its own descriptors, in its first group, behind the superblock's copy if there is one.
            Some(first) if meta_group >= first => {
                let home = meta_group.saturating_mul(in_block);
                let start = self.first_data_block.saturating_add(home.saturating_mul(self.blocks_per_group));
                // With bigalloc, blocks count from 0 even where the superblock is in block 1.
                let shifted = meta_group == 0 && self.first_data_block < own_block;
                start.saturating_add(u64::from(self.has_superblock(home))).saturating_add(u64::from(shifted))
            }
            _ => (own_block + 1).saturating_add(meta_group),
        };
        (block, offset)
    }

    fn has_superblock(&self, group: u64) -> bool {
        let power_of = |base: u64| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        match self.sparse {
            Sparse::All => true,
            Sparse::Powers => group <= 1 || power_of(3) || power_of(5) || power_of(7),
            Sparse::Two(groups) => group == 0 || groups.iter().any(|it| u64::from(*it) == group),
        }
    }
}
