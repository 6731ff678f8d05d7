//! Which file system, or what else, a partition holds: told from its signature.

use std::fmt;

use crate::bytes::{le16, le32};
use crate::source::{ReadFailed, Window};

/// What a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// ext2, ext3 or ext4: what is read.
    Ext,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// F2FS.
    F2fs,
    /// EROFS.
    Erofs,
    /// FAT, as on an EFI system partition.
    Fat,
    /// NTFS.
    Ntfs,
    /// ISO 9660.
    Iso9660,
    /// Squashfs.
    Squashfs,
    /// Swap space.
    Swap,
    /// An encrypted container.
    Luks,
    /// A physical volume of LVM.
    Lvm,
    /// A member of a Linux software RAID.
    Raid,
    /// None of these.
    Unknown,
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext => "ext4",
            Self::Xfs => "XFS",
            Self::Btrfs => "Btrfs",
            Self::F2fs => "F2FS",
            Self::Erofs => "EROFS",
            Self::Fat => "FAT",
            Self::Ntfs => "NTFS",
            Self::Iso9660 => "ISO 9660",
            Self::Squashfs => "Squashfs",
            Self::Swap => "swap space",
            Self::Luks => "an encrypted volume (LUKS)",
            Self::Lvm => "a physical volume of LVM",
            Self::Raid => "a member of a RAID",
            Self::Unknown => "nothing that is known",
        })
    }
}

/// Looks at the signatures. What is too short for a signature does not have it.
///
/// # Errors
///
/// Only if the volume can't be read.
pub fn probe(window: &Window<'_>) -> Result<FileSystem, ReadFailed> {
    let peek = |offset: u64, len: usize| -> Result<Vec<u8>, ReadFailed> {
        match window.read_vec(offset, len) {
            Err(ReadFailed::BeyondEnd { .. }) => Ok(Vec::new()),
            other => other,
        }
    };
    let head = peek(0, 1024)?;
    let at = |offset: usize, sign: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(sign));
    let raid = |block: &[u8]| le32(block, 0) == 0xa92b_4efc;
    // Containers first: a file system's old superblock may have survived under them.
    if at(0, b"LUKS\xba\xbe") {
        return Ok(FileSystem::Luks);
    }
    if at(512, b"LABELONE") && at(512 + 24, b"LVM2 001") {
        return Ok(FileSystem::Lvm);
    }
    let end = window.len() / 4096 * 4096;
    if raid(&peek(4096, 4)?) || raid(&peek(0, 4)?) || end >= 8192 && raid(&peek(end - 8192, 4)?) {
        return Ok(FileSystem::Raid);
    }
    if at(0, b"XFSB") {
        return Ok(FileSystem::Xfs);
    }
    let second = peek(1024, 1024)?;
    if le16(&second, 0x38) == 0xef53 {
        return Ok(FileSystem::Ext);
    }
    if peek(0x1_0040, 8)? == b"_BHRfS_M" {
        return Ok(FileSystem::Btrfs);
    }
    match le32(&second, 0) {
        0xf2f5_2010 => return Ok(FileSystem::F2fs),
        0xe0f5_e1e2 => return Ok(FileSystem::Erofs),
        _ => {}
    }
    if at(3, b"NTFS    ") {
        return Ok(FileSystem::Ntfs);
    }
    if at(510, &[0x55, 0xaa]) && (at(82, b"FAT32") || at(54, b"FAT1")) {
        return Ok(FileSystem::Fat);
    }
    if at(0, b"hsqs") {
        return Ok(FileSystem::Squashfs);
    }
    if peek(4086, 10)? == b"SWAPSPACE2" {
        return Ok(FileSystem::Swap);
    }
    if peek(32_769, 5)? == b"CD001" {
        return Ok(FileSystem::Iso9660);
    }
    Ok(FileSystem::Unknown)
}
