//! Directories. Hashed ones are read like the others: the nodes of the hash tree look like empty entries.

use std::ops::ControlFlow;

use super::checksum::crc32c;
use super::inode::Inode;
use super::map::File;
use super::{DIR_BYTES_MAX, DIR_ENTRIES_MAX, Damage, Ext4, Ext4Error};
use crate::bytes::{le16, le32};

/// What a checksum at the end of a block looks like as an entry: no inode, 12 bytes, no name, this type.
const TAIL_TYPE: u8 = 0xde;
const TAIL_BYTES: usize = 12;
/// A directory in its inode begins with its parent's number, where others have "." and "..".
const INLINE_PARENT_BYTES: usize = 4;

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name. Names that are not UTF-8 are left out of listings.
    pub name: String,
    pub(super) inode: u32,
}

/// Goes through the names of a directory until `each` has enough.
pub(super) fn walk(
    fs: &Ext4<'_>,
    dir: &Inode,
    mut each: impl FnMut(&[u8], u32) -> ControlFlow<()>,
) -> Result<(), Ext4Error> {
    if dir.size > DIR_BYTES_MAX {
        return Err(Damage::Directory(dir.number, "larger than any directory").into());
    }
    if dir.has_inline_data() {
        let data = dir.inline_data()?;
        let (first, second) = data.split_at(data.len().min(60));
        let first = first.get(INLINE_PARENT_BYTES..).unwrap_or_default();
        for part in [first, second] {
            if entries(fs, dir, part, &mut each)?.is_break() {
                break;
            }
        }
        return Ok(());
    }
    let file = File::open(fs, dir)?;
    let mut block = vec![0; fs.sb.block_size as usize];
    let mut offset = 0;
    while offset < dir.size {
        fs.charge(fs.sb.block_size)?;
        if file.read_at(offset, &mut block)? < block.len() {
            return Err(Damage::Directory(dir.number, "no whole number of blocks").into());
        }
        offset += fs.sb.block_size;
        check(dir, &block)?;
        if entries(fs, dir, &block, &mut each)?.is_break() {
            break;
        }
    }
    Ok(())
}

fn check(dir: &Inode, block: &[u8]) -> Result<(), Ext4Error> {
    let Some(seed) = dir.seed else { return Ok(()) };
    let (body, tail) = block.split_at(block.len() - TAIL_BYTES);
    let is_tail = le32(tail, 0) == 0 && usize::from(le16(tail, 4)) == TAIL_BYTES && tail[7] == TAIL_TYPE;
    if is_tail && crc32c(seed, body) != le32(tail, 8) {
        return Err(Damage::Directory(dir.number, "wrong checksum").into());
    }
    Ok(())
}

fn entries(
    fs: &Ext4<'_>,
    dir: &Inode,
    block: &[u8],
    each: &mut impl FnMut(&[u8], u32) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Ext4Error> {
    let mut rest = block;
    while rest.len() >= 8 {
        let len = match le16(rest, 4) {
            // 64 KiB does not fit into 16 bits.
            0 | u16::MAX if fs.sb.block_size == 1 << 16 => rest.len(),
            len => usize::from(len),
        };
        let inode = le32(rest, 0);
        let name_len = usize::from(rest[6]);
        if len < 8 || len > rest.len() || inode != 0 && 8 + name_len > len {
            return Err(Damage::Directory(dir.number, "an entry of impossible length").into());
        }
        if inode != 0 && each(&rest[8..8 + name_len], inode).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        rest = &rest[len..];
    }
    Ok(ControlFlow::Continue(()))
}

/// The inode of a name.
pub(super) fn look_up(fs: &Ext4<'_>, dir: &Inode, name: &[u8]) -> Result<Option<u32>, Ext4Error> {
    let mut found = None;
    walk(fs, dir, |it, inode| {
        if it == name {
            found = Some(inode);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// All names but "." and "..", in the order of their bytes.
pub(super) fn list(fs: &Ext4<'_>, dir: &Inode) -> Result<Vec<DirEntry>, Ext4Error> {
    let mut found = Vec::new();
    let mut too_many = false;
    walk(fs, dir, |name, inode| {
        if let Ok(name) = std::str::from_utf8(name)
            && !matches!(name, "." | "..")
        {
            too_many = found.len() >= DIR_ENTRIES_MAX;
            if too_many {
                return ControlFlow::Break(());
            }
            found.push(DirEntry { name: name.to_owned(), inode });
        }
        ControlFlow::Continue(())
    })?;
    if too_many {
        return Err(Damage::Directory(dir.number, "more names than are looked at").into());
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}
