//! PC partition tables: four primary partitions, and a chain of logical ones in an extended partition. Sectors are 512 bytes.

use super::{PARTITIONS_MAX, Partition, PartitionType};
use crate::bytes::{le16, le32};
use crate::source::{ReadFailed, Window};

const SECTOR: u64 = 512;
const SIGNATURE: u16 = 0xaa55;
/// A GPT's stand-in.
const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

#[derive(Clone, Copy)]
struct Entry {
    flag: u8,
    kind: u8,
    first: u32,
    sectors: u32,
}

impl Entry {
    fn is_used(self) -> bool {
        self.kind != 0 && self.sectors != 0
    }

    fn is_extended(self) -> bool {
        EXTENDED.contains(&self.kind)
    }
}

/// A sector with a table in it: the volume's first, or that of a logical partition.
pub(super) struct Sector {
    entries: [Entry; 4],
    /// The disk's identifier, in the first sector only.
    id: u32,
}

impl Sector {
    /// The volume's first sector, if it has a table's signature.
    pub(super) fn read(disk: &Window<'_>) -> Result<Option<Self>, ReadFailed> {
        Self::at(disk, 0)
    }

    fn at(disk: &Window<'_>, lba: u64) -> Result<Option<Self>, ReadFailed> {
        let bytes = match disk.read_vec(lba.saturating_mul(SECTOR), SECTOR as usize) {
            Err(ReadFailed::BeyondEnd { .. }) => return Ok(None),
            other => other?,
        };
        if le16(&bytes, 510) != SIGNATURE {
            return Ok(None);
        }
        let entry = |n: usize| {
            let at = 446 + 16 * n;
            Entry {
                flag: bytes[at],
                kind: bytes[at + 4],
                first: le32(&bytes, at + 8),
                sectors: le32(&bytes, at + 12),
            }
        };
        Ok(Some(Self { entries: [entry(0), entry(1), entry(2), entry(3)], id: le32(&bytes, 440) }))
    }

    /// Whether it stands for a GPT.
    pub(super) fn is_protective(&self) -> bool {
        self.entries.iter().any(|entry| entry.kind == PROTECTIVE)
    }

    /// Whether these are partitions, not the code of a boot sector in front of a file system.
    pub(super) fn is_plausible(&self) -> bool {
        let known = self.entries.iter().all(|entry| matches!(entry.flag, 0 | 0x80));
        let placed = self.entries.iter().all(|entry| !entry.is_used() || entry.first != 0);
        known && placed && self.entries.iter().any(|entry| entry.is_used())
    }

    /// The primary partitions, then the logical ones.
    pub(super) fn partitions(&self, disk: &Window<'_>) -> Result<Vec<Partition>, ReadFailed> {
        let mut found = Vec::new();
        for (number, entry) in (1..).zip(self.entries) {
            if entry.is_used() && !entry.is_extended() {
                found.extend(self.partition(disk, number, entry, 0));
            }
        }
        if let Some(extended) = self.entries.iter().find(|entry| entry.is_used() && entry.is_extended()) {
            self.logical(disk, u64::from(extended.first), &mut found)?;
        }
        Ok(found)
    }

    /// Each logical partition has a sector of its own with a table: the partition, relative to that sector, and the next
    /// such sector, relative to the extended partition. A chain that leads back to itself ends with the count.
    fn logical(&self, disk: &Window<'_>, base: u64, found: &mut Vec<Partition>) -> Result<(), ReadFailed> {
        let mut at = base;
        for number in 5..5 + PARTITIONS_MAX as u32 {
            let Some(sector) = Self::at(disk, at)? else { break };
            let [entry, next, ..] = sector.entries;
            if entry.is_used() && !entry.is_extended() && found.len() < PARTITIONS_MAX {
                found.extend(self.partition(disk, number, entry, at));
            }
            // The chain goes forward on every disk that a partitioner wrote.
            if !next.is_used() || !next.is_extended() || base + u64::from(next.first) <= at {
                break;
            }
            at = base + u64::from(next.first);
        }
        Ok(())
    }

    fn partition(&self, disk: &Window<'_>, number: u32, entry: Entry, base: u64) -> Option<Partition> {
        let start = (base + u64::from(entry.first)) * SECTOR;
        let end = (start + u64::from(entry.sectors) * SECTOR).min(disk.len());
        (start < end).then(|| Partition {
            number,
            start,
            len: end - start,
            kind: PartitionType::Byte(entry.kind),
            bootable: entry.flag == 0x80,
            uuid: format!("{:08x}-{number:02x}", self.id),
            name: String::new(),
        })
    }
}
