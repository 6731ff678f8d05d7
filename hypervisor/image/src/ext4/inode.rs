//! Inodes: what a file is, how large it is, and where its contents are.

use std::fmt;

use super::checksum::crc32c;
use super::{Damage, Ext4, Ext4Error};
use crate::bytes::{join, le16, le32};

/// The root directory's.
pub(super) const ROOT: u32 = 2;

const ENCRYPTED: u32 = 0x800;
const EXTENTS: u32 = 0x8_0000;
const INLINE_DATA: u32 = 0x1000_0000;

/// The contents' place in an inode.
const BLOCK_AT: usize = 0x28;
const BLOCK_BYTES: usize = 60;
/// Where what ext4 added to ext2's inode begins.
const EXTRA_AT: usize = 128;
/// The in-inode extended attributes' signature.
const XATTR_MAGIC: u32 = 0xea02_0000;
/// `system.` of extended attributes.
const XATTR_SYSTEM: u8 = 7;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a socket, a pipe.
    Special,
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Regular => "a file",
            Self::Directory => "a directory",
            Self::Symlink => "a symbolic link",
            Self::Special => "a special file",
        })
    }
}

/// One inode.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) number: u32,
    pub(super) kind: FileType,
    pub(super) size: u64,
    flags: u32,
    /// Sectors that it occupies, less that of its extended attributes.
    own_sectors: u64,
    /// What checksums of its blocks start from.
    pub(super) seed: Option<u32>,
    bytes: Vec<u8>,
}

impl Inode {
    pub(super) fn read(fs: &Ext4<'_>, number: u32) -> Result<Self, Ext4Error> {
        let damaged = |what| Err(Damage::Inode(number, what).into());
        let sb = &fs.sb;
        if number == 0 || number > sb.inodes {
            return damaged("no such inode");
        }
        // With its group's descriptor.
        fs.charge(512.max(sb.inode_size as u64))?;
        let (group, index) =
            (u64::from((number - 1) / sb.inodes_per_group), u64::from((number - 1) % sb.inodes_per_group));
        let table = table_of(fs, group)?;
        let offset = index * sb.inode_size as u64;
        let block = table.saturating_add(offset / sb.block_size);
        let mut bytes = vec![0; sb.inode_size];
        fs.read_blocks(block, offset % sb.block_size, &mut bytes)?;
        let mut inode = Self {
            number,
            kind: match le16(&bytes, 0) & 0xf000 {
                0x8000 => FileType::Regular,
                0x4000 => FileType::Directory,
                0xa000 => FileType::Symlink,
                0x1000 | 0x2000 | 0x6000 | 0xc000 => FileType::Special,
                _ => return damaged("no file type"),
            },
            size: join(le32(&bytes, 0x6c), le32(&bytes, 0x4)),
            flags: le32(&bytes, 0x20),
            own_sectors: 0,
            seed: sb
                .seed
                .map(|seed| crc32c(crc32c(seed, &number.to_le_bytes()), &le32(&bytes, 0x64).to_le_bytes())),
            bytes,
        };
        inode.check()?;
        let attribute_block = le32(&inode.bytes, 0x68) != 0 || le16(&inode.bytes, 0x76) != 0;
        let attributes = if attribute_block { sb.block_size / 512 } else { 0 };
        let sectors = join(u32::from(le16(&inode.bytes, 0x74)), le32(&inode.bytes, 0x1c));
        inode.own_sectors = sectors.saturating_sub(attributes);
        Ok(inode)
    }

    /// Compares the checksum: 16 bits of it in ext2's part, 16 in ext4's, both taken as zero.
    fn check(&mut self) -> Result<(), Ext4Error> {
        let Some(seed) = self.seed else { return Ok(()) };
        let mut bytes = self.bytes.clone();
        let low = le16(&bytes, 0x7c);
        bytes[0x7c..0x7e].fill(0);
        let has_high = bytes.len() > EXTRA_AT && le16(&bytes, EXTRA_AT) >= 4;
        let high = if has_high { le16(&bytes, 0x82) } else { 0 };
        if has_high {
            bytes[0x82..0x84].fill(0);
        }
        let sum = crc32c(seed, &bytes);
        let wrong = sum as u16 != low || has_high && (sum >> 16) as u16 != high;
        if wrong { Err(Damage::Inode(self.number, "wrong checksum").into()) } else { Ok(()) }
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.flags & ENCRYPTED != 0
    }

    pub(super) fn has_extents(&self) -> bool {
        self.flags & EXTENTS != 0
    }

    pub(super) fn has_inline_data(&self) -> bool {
        self.flags & INLINE_DATA != 0
    }

    /// The 60 bytes with the first level of the block map, or with the contents themselves.
    pub(super) fn block(&self) -> &[u8] {
        &self.bytes[BLOCK_AT..BLOCK_AT + BLOCK_BYTES]
    }

    /// Whether a symbolic link's target is in the inode.
    pub(super) fn is_fast_symlink(&self, fs: &Ext4<'_>) -> bool {
        let fits = self.size < BLOCK_BYTES as u64 && !self.has_inline_data();
        fits && (self.own_sectors == 0 || fs.sb.has_ea_inode)
    }

    /// Contents that are in the inode: the first 60 bytes in the place of the block map, the others in the extended
    /// attribute `system.data`.
    pub(super) fn inline_data(&self) -> Result<Vec<u8>, Ext4Error> {
        let mut data = self.block().to_vec();
        if let Some(more) = self.inline_attribute() {
            data.extend_from_slice(more);
        }
        if data.len() as u64 >= self.size {
            data.truncate(self.size as usize);
            return Ok(data);
        }
        Err(Damage::Inode(self.number, "its inline data is too short").into())
    }

    fn inline_attribute(&self) -> Option<&[u8]> {
        let start = EXTRA_AT.checked_add(usize::from(le16(self.bytes.get(EXTRA_AT..)?, 0)))?;
        let area = self.bytes.get(start..)?;
        if area.len() < 4 || le32(area, 0) != XATTR_MAGIC {
            return None;
        }
        let values = &area[4..];
        let mut entry = values;
        // A name's length of zero with an index of zero ends them; each takes at least 16 bytes.
        while entry.len() >= 16 && le32(entry, 0) != 0 {
            let name_len = usize::from(entry[0]);
            let name = entry.get(16..16 + name_len)?;
            if entry[1] == XATTR_SYSTEM && name == b"data" && le32(entry, 4) == 0 {
                let offset = usize::from(le16(entry, 2));
                return values.get(offset..offset.checked_add(le32(entry, 8) as usize)?);
            }
            entry = entry.get((16 + name_len).next_multiple_of(4)..)?;
        }
        None
    }
}

/// The block at which a group's inodes begin.
fn table_of(fs: &Ext4<'_>, group: u64) -> Result<u64, Ext4Error> {
    let (block, offset) = fs.sb.descriptor_at(group);
    let mut bytes = vec![0; fs.sb.descriptor_len()];
    fs.read_blocks(block, offset, &mut bytes)?;
    if let Some(seed) = fs.sb.seed {
        let stored = le16(&bytes, 0x1e);
        bytes[0x1e..0x20].fill(0);
        let sum = crc32c(crc32c(seed, &(group as u32).to_le_bytes()), &bytes);
        if sum as u16 != stored {
            return Err(Damage::Group(group).into());
        }
    }
    let high = if fs.sb.wide { le32(&bytes, 0x28) } else { 0 };
    Ok(join(high, le32(&bytes, 0x8)))
}
