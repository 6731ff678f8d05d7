//! Partition tables: where the file systems of a volume begin.
//!
//! A table is believed if it is whole: a GPT by its checksums (the backup at the volume's end if the first is broken), an
//! MBR by its signature and the plausibility of its entries. Without a table the whole volume may be one file system.

mod gpt;
mod mbr;

use std::fmt;

use crate::bytes::uuid_text;
use crate::source::{ReadFailed, Window};

/// At most so many partitions are looked at.
pub const PARTITIONS_MAX: usize = 128;

/// XBOOTLDR: the extended boot loader partition of the Boot Loader Specification.
const XBOOTLDR: &str = "bc13c2ff-59e6-4262-a352-b275fd6f7172";
/// The EFI system partition (UEFI 2.10, table 5-7).
const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

/// Which table was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// A GUID partition table (UEFI 2.10, section 5.3).
    Gpt {
        /// The first header was broken, and the backup was read.
        from_backup: bool,
    },
    /// A PC partition table.
    Mbr,
    /// None: the volume is taken as one file system.
    Whole,
}

/// The type of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionType {
    /// A GUID, as it is stored: its first three fields are little-endian.
    Guid([u8; 16]),
    /// A PC partition's type.
    Byte(u8),
    /// The whole volume.
    Whole,
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, as Linux counts: 1 for `vda1`, logical partitions from 5 on, 0 for the whole volume.
    pub number: u32,
    /// Its first byte.
    pub start: u64,
    /// Its bytes; what lies beyond the volume's end is cut off.
    pub len: u64,
    /// What it is said to be for.
    pub kind: PartitionType,
    /// Marked as the one to boot from (MBR's active flag, GPT's legacy BIOS bootable).
    pub bootable: bool,
    /// What `PARTUUID=` says on a kernel's command line. Empty for the whole volume.
    pub uuid: String,
    /// The name in a GPT.
    pub name: String,
}

impl Partition {
    /// Of the type that the Boot Loader Specification has for `/boot`.
    pub fn is_xbootldr(&self) -> bool {
        self.is_type(XBOOTLDR)
    }

    /// An EFI system partition.
    pub fn is_esp(&self) -> bool {
        self.is_type(ESP) || self.kind == PartitionType::Byte(0xef)
    }

    fn is_type(&self, text: &str) -> bool {
        matches!(self.kind, PartitionType::Guid(guid) if guid_text(&guid) == text)
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            0 => f.write_str("the whole volume"),
            n => write!(f, "partition {n}"),
        }
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// By which table.
    pub scheme: Scheme,
    /// By number. At least one if it is [`Scheme::Whole`].
    pub partitions: Vec<Partition>,
}

/// Why there are no partitions to look at.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The volume can't be read.
    #[error(transparent)]
    Read(#[from] ReadFailed),
    /// There is a protective MBR, so there was a GPT, but neither header nor its backup is whole.
    #[error(
        "the GPT is damaged, and so is its backup (repair it in a running system with `sgdisk -e` or `gdisk`)"
    )]
    GptDamaged,
    /// Larger than what is looked at.
    #[error("the GPT says it has {entries} entries of {size} bytes, which is more than any real one")]
    GptTooLarge {
        /// Entries.
        entries: u32,
        /// Of so many bytes.
        size: u32,
    },
}

/// Finds a volume's partitions.
///
/// # Errors
///
/// If the volume can't be read, or has a GPT that is broken at both ends.
pub fn read(disk: &Window<'_>) -> Result<Table, TableError> {
    let mbr = mbr::Sector::read(disk)?;
    if mbr.as_ref().is_some_and(mbr::Sector::is_protective) {
        return gpt::read(disk);
    }
    if let Some(mbr) = mbr.filter(mbr::Sector::is_plausible) {
        let partitions = mbr.partitions(disk)?;
        if !partitions.is_empty() {
            return Ok(Table { scheme: Scheme::Mbr, partitions });
        }
    }
    let whole = Partition {
        number: 0,
        start: 0,
        len: disk.len(),
        kind: PartitionType::Whole,
        bootable: false,
        uuid: String::new(),
        name: String::new(),
    };
    Ok(Table { scheme: Scheme::Whole, partitions: vec![whole] })
}

/// A GUID as UEFI stores it, in its usual form.
fn guid_text(guid: &[u8; 16]) -> String {
    let mut bytes = *guid;
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    uuid_text(&bytes)
}
