//! GUID partition tables: UEFI 2.10, section 5.3.

use super::{PARTITIONS_MAX, Partition, PartitionType, Scheme, Table, TableError, guid_text};
use crate::bytes::{le16, le32, le64, printable, uuid};
use crate::source::{ReadFailed, Window};

/// Sectors of disks that exist.
const SECTOR_SIZES: [u64; 2] = [512, 4096];
/// The smallest header.
const HEADER_BYTES: usize = 92;
/// All entries together: real tables have 16 KiB.
const ENTRIES_BYTES_MAX: u64 = 1 << 20;
/// An attribute: what legacy boot code starts.
const LEGACY_BIOS_BOOTABLE: u64 = 1 << 2;

/// Reads the first table, or else the one at the end. Called when a protective MBR says that there is one.
pub(super) fn read(disk: &Window<'_>) -> Result<Table, TableError> {
    let mut too_large = None;
    let places = SECTOR_SIZES.map(|sector| (sector, 1, false)).into_iter().chain(
        SECTOR_SIZES
            .into_iter()
            .filter_map(|sector| Some((sector, (disk.len() / sector).checked_sub(1)?, true))),
    );
    for (sector, lba, from_backup) in places {
        match at(disk, sector, lba) {
            Ok(Some(partitions)) => return Ok(Table { scheme: Scheme::Gpt { from_backup }, partitions }),
            Ok(None) | Err(TableError::Read(ReadFailed::BeyondEnd { .. })) => {}
            Err(error @ TableError::GptTooLarge { .. }) => too_large = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(too_large.unwrap_or(TableError::GptDamaged))
}

/// The table whose header is in this sector, if it is whole.
fn at(disk: &Window<'_>, sector: u64, lba: u64) -> Result<Option<Vec<Partition>>, TableError> {
    let Some(offset) = lba.checked_mul(sector) else { return Ok(None) };
    let mut header = disk.read_vec(offset, sector as usize)?;
    if !header.starts_with(b"EFI PART") {
        return Ok(None);
    }
    let header_len = le32(&header, 12) as usize;
    if !(HEADER_BYTES..=header.len()).contains(&header_len) || le64(&header, 24) != lba {
        return Ok(None);
    }
    let sum = le32(&header, 16);
    header[16..20].fill(0);
    if crc32fast::hash(&header[..header_len]) != sum {
        return Ok(None);
    }
    let (entries, size) = (le32(&header, 80), le32(&header, 84));
    let bytes = u64::from(entries) * u64::from(size);
    if size < 128 || bytes > ENTRIES_BYTES_MAX {
        return Err(TableError::GptTooLarge { entries, size });
    }
    let Some(offset) = le64(&header, 72).checked_mul(sector) else { return Ok(None) };
    let array = disk.read_vec(offset, bytes as usize)?;
    if crc32fast::hash(&array) != le32(&header, 88) {
        return Ok(None);
    }
    let found = (1..).zip(array.chunks_exact(size as usize));
    let found = found.filter_map(|(number, entry)| partition(disk, sector, number, entry));
    Ok(Some(found.take(PARTITIONS_MAX).collect()))
}

fn partition(disk: &Window<'_>, sector: u64, number: u32, entry: &[u8]) -> Option<Partition> {
    let kind = uuid(entry, 0);
    let (first, last) = (le64(entry, 32), le64(entry, 40));
    let start = first.checked_mul(sector)?;
    let end = last.checked_add(1)?.checked_mul(sector)?.min(disk.len());
    if kind == [0; 16] || start >= end {
        return None;
    }
    let name: Vec<u16> = (0..36).map(|n| le16(entry, 56 + 2 * n)).take_while(|unit| *unit != 0).collect();
    Some(Partition {
        number,
        start,
        len: end - start,
        kind: PartitionType::Guid(kind),
        bootable: le64(entry, 48) & LEGACY_BIOS_BOOTABLE != 0,
        uuid: guid_text(&uuid(entry, 16)),
        name: printable(&String::from_utf16_lossy(&name), 36),
    })
}
