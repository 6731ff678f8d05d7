//! The superblock: who this disk is and how it is laid out.
//!
//! ```text
//! superblock    0        4096      8192
//!               ├─ copy A ─┼─ copy B ─┤
//! copy          version u32 │ magic 12 │ generation u64 │ disk 16 │ cluster 16 │ host 16 │
//!               capacity u64 │ data u64 │ journal u64 │ key u64 │ zeros … │ CRC-32 of the rest u32
//! ```
//!
//! Integers are little-endian. The copies are written one after the other with a flush between, so at any instant one of
//! them is whole; the one with the higher generation counts. The version stands first, so that every later format can
//! be told from this one.
//!
//! Versions: 1: the first.

use ferro_protocol::ids::{ClusterId, DiskId, HostId};
use ferro_protocol::units::EXTENT_BYTES;

/// The version of the disk's whole layout, superblock, journal and metadata.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes in one copy.
pub const COPY_BYTES: usize = 4096;
/// Bytes in the file.
pub const FILE_BYTES: usize = 2 * COPY_BYTES;
const MAGIC: &[u8; 12] = b"vsand disk\r\n";

/// What the superblock says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Counts its changes.
    pub generation: u64,
    /// This disk.
    pub disk: DiskId,
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// The host that had it last.
    pub host: HostId,
    /// Bytes that the whole disk may take up.
    pub capacity_bytes: u64,
    /// Bytes of the data file, a multiple of the extent.
    pub data_bytes: u64,
    /// Bytes of the journal, a multiple of 4 KiB.
    pub journal_bytes: u64,
    /// Random; marks the headers in the journal as ours. Not to be shown to anybody.
    pub key: u64,
}

/// Why there is no usable superblock.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SuperblockError {
    /// Neither copy begins like one of ours.
    #[error("this is no disk of vsand (its superblock has another signature)")]
    Foreign,
    /// It was made by another version of the software.
    #[error(
        "the disk has format version {0}, this vsand reads version {FORMAT_VERSION}: run the version that made it"
    )]
    Version(u32),
    /// Both copies fail their checksums.
    #[error("both copies of the superblock are damaged")]
    Damaged,
}

impl Superblock {
    /// One copy, as it stands in the file.
    pub fn encode(&self) -> [u8; COPY_BYTES] {
        let mut out = Vec::with_capacity(COPY_BYTES);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(self.disk.as_bytes());
        out.extend_from_slice(self.cluster.as_bytes());
        out.extend_from_slice(self.host.as_bytes());
        for n in [self.capacity_bytes, self.data_bytes, self.journal_bytes, self.key] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.resize(COPY_BYTES - 4, 0);
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        let mut copy = [0; COPY_BYTES];
        copy.copy_from_slice(&out);
        copy
    }

    /// How many extents the data file has.
    pub fn extents(&self) -> u32 {
        (self.data_bytes / EXTENT_BYTES) as u32
    }
}

/// Reads the file's bytes: the better of the copies.
pub fn parse(bytes: &[u8]) -> Result<Superblock, SuperblockError> {
    let copies: Vec<_> = bytes.chunks_exact(COPY_BYTES).take(2).map(parse_copy).collect();
    if let Some(best) = copies.iter().flatten().max_by_key(|s| s.generation) {
        return Ok(*best);
    }
    // A version that differs explains more than damage, damage more than a foreign signature.
    for wanted in [
        |e: &SuperblockError| matches!(e, SuperblockError::Version(_)),
        |e: &SuperblockError| *e == SuperblockError::Damaged,
    ] {
        if let Some(Err(error)) = copies.iter().find(|c| c.as_ref().is_err_and(wanted)) {
            return Err(error.clone());
        }
    }
    Err(SuperblockError::Foreign)
}

fn parse_copy(copy: &[u8]) -> Result<Superblock, SuperblockError> {
    let u32_at = |at: usize| u32::from_le_bytes(copy[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(copy[at..at + 8].try_into().expect("8 bytes"));
    let id_at = |at: usize| -> [u8; 16] { copy[at..at + 16].try_into().expect("16 bytes") };
    if &copy[4..16] != MAGIC {
        return Err(SuperblockError::Foreign);
    }
    if crc32fast::hash(&copy[..COPY_BYTES - 4]) != u32_at(COPY_BYTES - 4) {
        return Err(SuperblockError::Damaged);
    }
    if u32_at(0) != FORMAT_VERSION {
        return Err(SuperblockError::Version(u32_at(0)));
    }
    let superblock = Superblock {
        generation: u64_at(16),
        disk: DiskId::from_bytes(id_at(24)),
        cluster: ClusterId::from_bytes(id_at(40)),
        host: HostId::from_bytes(id_at(56)),
        capacity_bytes: u64_at(72),
        data_bytes: u64_at(80),
        journal_bytes: u64_at(88),
        key: u64_at(96),
    };
    // Whole under its checksum and yet absurd: not ours to guess.
    let data_good = superblock.data_bytes.is_multiple_of(EXTENT_BYTES)
        && superblock.data_bytes / EXTENT_BYTES < u64::from(u32::MAX)
        && superblock.data_bytes > 0;
    let journal_good =
        superblock.journal_bytes.is_multiple_of(4096) && (4096..=1 << 40).contains(&superblock.journal_bytes);
    if !data_good || !journal_good {
        return Err(SuperblockError::Damaged);
    }
    Ok(superblock)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(generation: u64) -> Superblock {
        Superblock {
            generation,
            disk: DiskId::from_bytes([1; 16]),
            cluster: ClusterId::from_bytes([2; 16]),
            host: HostId::from_bytes([3; 16]),
            capacity_bytes: 100 << 20,
            data_bytes: 64 << 20,
            journal_bytes: 4 << 20,
            key: 5,
        }
    }

    fn file(a: u64, b: u64) -> Vec<u8> {
        [sample(a).encode(), sample(b).encode()].concat()
    }

    #[test]
    fn the_newer_copy_counts_and_the_other_is_the_spare() {
        assert_eq!(parse(&file(1, 2)).unwrap().generation, 2);
        let mut bytes = file(3, 2);
        assert_eq!(parse(&bytes).unwrap().generation, 3);
        bytes[100] ^= 1;
        assert_eq!(parse(&bytes).unwrap(), sample(2));
        bytes[5000] ^= 1;
        assert_eq!(parse(&bytes), Err(SuperblockError::Damaged));
    }

    #[test]
    fn foreign_and_newer_disks_are_named() {
        assert_eq!(parse(&[0; FILE_BYTES]), Err(SuperblockError::Foreign));
        assert_eq!(parse(b"short"), Err(SuperblockError::Foreign));
        let mut copy = sample(1).encode();
        copy[0] = 9;
        let crc = crc32fast::hash(&copy[..COPY_BYTES - 4]);
        copy[COPY_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(parse(&copy), Err(SuperblockError::Version(9)));
    }
}
