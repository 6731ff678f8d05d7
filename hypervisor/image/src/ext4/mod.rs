//! ext2, ext3 and ext4, read only: as documented in the kernel's `Documentation/filesystems/ext4`.
//!
//! ```text
//!   byte 1024: superblock ─► group descriptors ─► inode table ─► inode ─► block map or extents ─► blocks
//!                  │                                                         │
//!                  └─ needs recovery? journal (inode 8) ─► Replay: block ─► its newest copy in the journal
//! ```
//!
//! A guest that was killed leaves a journal that has not been written back: without it, the file system is an old and
//! partly contradictory one. It is replayed in memory: every read of a block asks [`journal::Replay`] first. Nothing is
//! written.
//!
//! **Invariant:** whatever the bytes say, this returns: an answer, or an error that names what is damaged or not
//! supported. Metadata checksums are compared where the file system has them.

mod checksum;
mod dir;
mod inode;
mod journal;
mod map;
mod path;
mod superblock;

use std::cell::Cell;
use std::fmt;

use crate::bytes::uuid_text;
use crate::source::{ReadFailed, Window};

pub use dir::DirEntry;
pub use inode::FileType;
pub use map::File;
use superblock::Superblock;

/// The longest path, and the longest target of a symbolic link, in bytes.
pub const PATH_BYTES_MAX: usize = 4096;
/// How many symbolic links one path may lead through; Linux has the same bound.
pub const LINKS_MAX: u32 = 40;
/// A directory with more bytes than this is refused.
pub const DIR_BYTES_MAX: u64 = 32 << 20;
/// So much of directories, inodes and block maps is looked at in one file system's life here; honest ones need a hundredth.
pub const METADATA_BYTES_MAX: u64 = 128 << 20;
/// A listing has at most so many names.
pub const DIR_ENTRIES_MAX: usize = 16_384;

/// Why a file system, or something on it, could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// The volume can't be read there, or a pointer leads outside.
    #[error(transparent)]
    Read(#[from] ReadFailed),
    /// Something contradicts itself or its checksum.
    #[error("the file system is damaged: {what} (run `fsck` on it)")]
    Damaged {
        /// What does.
        what: Damage,
    },
    /// A feature that is not read.
    #[error("the file system has the feature {feature}, which is not supported")]
    Unsupported {
        /// Its name, as `mke2fs` calls it where it has one.
        feature: Feature,
    },
    /// The journal can't be replayed.
    #[error(
        "the file system was not unmounted and its journal can't be replayed: {why} (mount it once, or run `fsck`)"
    )]
    Journal {
        /// Why.
        why: JournalTrouble,
    },
    /// No such file.
    #[error("there is no {path}")]
    NotFound {
        /// The path, as it was asked for.
        path: String,
    },
    /// Not the kind of file that was expected.
    #[error("{path} is {found}, not {expected}")]
    WrongType {
        /// The path, as it was asked for.
        path: String,
        /// What it is.
        found: FileType,
        /// What it should be.
        expected: FileType,
    },
    /// The names or contents are encrypted by the guest.
    #[error("{path} is encrypted (fscrypt)")]
    Encrypted {
        /// The path, as it was asked for.
        path: String,
    },
    /// Too many symbolic links, or one into itself.
    #[error("{path} leads through more than {LINKS_MAX} symbolic links")]
    TooManyLinks {
        /// The path, as it was asked for.
        path: String,
    },
    /// Too long to be looked at.
    #[error("a path has more than {PATH_BYTES_MAX} bytes")]
    PathTooLong,
    /// Directories or maps without end.
    #[error(
        "more than {METADATA_BYTES_MAX} bytes of directories and block maps were looked at: it leads in circles"
    )]
    TooMuch,
    /// Larger than the caller allows.
    #[error("{path} has {size} bytes, and at most {size_max} are read")]
    TooLarge {
        /// The path, as it was asked for.
        path: String,
        /// Its bytes.
        size: u64,
        /// The bound.
        size_max: u64,
    },
}

/// What is damaged. The numbers are those of `debugfs`: `stat <12>`, `bd 34`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A field of the superblock is impossible.
    Superblock(&'static str),
    /// A group's descriptor.
    Group(u64),
    /// An inode.
    Inode(u32, &'static str),
    /// An inode's extents or indirect blocks.
    BlockMap(u32, &'static str),
    /// A directory.
    Directory(u32, &'static str),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock(what) => write!(f, "superblock: {what}"),
            Self::Group(group) => write!(f, "descriptor of group {group}: wrong checksum"),
            Self::Inode(inode, what) => write!(f, "inode {inode}: {what}"),
            Self::BlockMap(inode, what) => write!(f, "block map of inode {inode}: {what}"),
            Self::Directory(inode, what) => write!(f, "directory of inode {inode}: {what}"),
        }
    }
}

/// A feature that is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// It has a name.
    Named(&'static str),
    /// Newer than this code: the bit in the superblock's incompatible features.
    Bit(u32),
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Bit(bit) => write!(f, "{bit:#x}"),
        }
    }
}

/// Why a journal can't be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalTrouble {
    /// It is on another device.
    Elsewhere,
    /// Its superblock is impossible.
    Superblock(&'static str),
    /// It has a feature that is not read: the bits in the journal's incompatible features.
    Unsupported(u32),
    /// Changes were logged in the short form of `fast_commit`.
    FastCommit,
    /// A committed block has not the contents it was committed with.
    BlockDamaged(u64),
    /// It holds more changes than any journal should.
    TooLarge,
}

impl fmt::Display for JournalTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elsewhere => f.write_str("it is on another device"),
            Self::Superblock(what) => write!(f, "its superblock is damaged: {what}"),
            Self::Unsupported(bits) => write!(f, "it has features that are not supported ({bits:#x})"),
            Self::FastCommit => f.write_str("it has fast commits, which are not supported"),
            Self::BlockDamaged(block) => write!(f, "its copy of block {block} has a wrong checksum"),
            Self::TooLarge => f.write_str("it holds more changes than are looked at"),
        }
    }
}

/// A file system, with its journal replayed in memory.
#[derive(Debug)]
pub struct Ext4<'a> {
    window: Window<'a>,
    sb: Superblock,
    replay: journal::Replay,
    /// Bytes of metadata that were looked at.
    looked_at: Cell<u64>,
}

impl<'a> Ext4<'a> {
    /// Reads the superblock and, if the file system was not unmounted, the journal.
    ///
    /// # Errors
    ///
    /// If it is no such file system, is damaged, or has features that are not supported.
    pub fn open(window: Window<'a>) -> Result<Self, Ext4Error> {
        let sb = Superblock::read(&window)?;
        let mut fs = Self { window, sb, replay: journal::Replay::default(), looked_at: Cell::new(0) };
        if fs.sb.needs_recovery {
            fs.replay = journal::replay(&fs)?;
            // The journal may have a newer superblock, of a file system that was growing for example.
            let mut newer = vec![0; superblock::BYTES];
            let (block, offset) =
                (superblock::OFFSET / fs.sb.block_size, superblock::OFFSET % fs.sb.block_size);
            fs.read_blocks(block, offset, &mut newer)?;
            let newer = Superblock::parse(&newer, window.len())?;
            if newer.block_size != fs.sb.block_size {
                return Err(Damage::Superblock("the journal changes the block size").into());
            }
            fs.sb = newer;
        }
        Ok(fs)
    }

    /// Its UUID, as in `/etc/fstab` and `search --fs-uuid`.
    pub fn uuid(&self) -> String {
        uuid_text(&self.sb.uuid)
    }

    /// Its label; empty if it has none.
    pub fn label(&self) -> &str {
        &self.sb.label
    }

    /// How many blocks are read from the journal instead of from their places: none if it was unmounted.
    pub fn replayed_blocks(&self) -> usize {
        self.replay.len()
    }

    /// Counts work that a hostile file system could make endless.
    fn charge(&self, bytes: u64) -> Result<(), Ext4Error> {
        self.looked_at.set(self.looked_at.get().saturating_add(bytes));
        if self.looked_at.get() > METADATA_BYTES_MAX { Err(Ext4Error::TooMuch) } else { Ok(()) }
    }

    /// Fills `buf` from byte `offset` of block `block` on, across blocks, each in its newest version.
    fn read_blocks(&self, block: u64, offset: u64, buf: &mut [u8]) -> Result<(), Ext4Error> {
        let size = self.sb.block_size;
        let blocks = (offset + buf.len() as u64).div_ceil(size);
        let end = block.checked_add(blocks).filter(|end| *end <= self.sb.blocks);
        let Some(end) = end else {
            return Err(ReadFailed::BeyondEnd {
                offset: block.saturating_mul(size).saturating_add(offset),
                size: self.sb.blocks.saturating_mul(size),
            }
            .into());
        };
        if !self.replay.touches(block..end) {
            return Ok(self.window.read(block * size + offset, buf)?);
        }
        let (mut block, mut offset, mut rest) = (block, offset, buf);
        while !rest.is_empty() {
            if offset >= size {
                (block, offset) = (block + offset / size, offset % size);
            }
            let len = rest.len().min((size - offset) as usize);
            let (now, later) = rest.split_at_mut(len);
            match self.replay.newest(block) {
                Some(copy) => copy.read(&self.window, size, offset, now)?,
                None => self.window.read(block * size + offset, now)?,
            }
            (offset, rest) = (offset + len as u64, later);
        }
        Ok(())
    }
}

impl From<Damage> for Ext4Error {
    fn from(what: Damage) -> Self {
        Self::Damaged { what }
    }
}

impl From<JournalTrouble> for Ext4Error {
    fn from(why: JournalTrouble) -> Self {
        Self::Journal { why }
    }
}
