//! The journal's format: batches of records, one batch a write.
//!
//! ```text
//! batch    ├── header, 1 or more blocks of 4 KiB ──────────────────┼── data blocks, in the records' order ──┤
//! header   magic u32 │ version u16 │ 0 u16 │ CRC-32 of the header u32 │ header bytes u32 │ data bytes u32 │ records u32 │
//!          number u64 │ incarnation u64 │ acknowledged u64 │ disk 16 │ key u64 │ records … │ zeros
//! ```
//!
//! The CRC of each data block stands in its record, and the header's CRC covers the records, so a batch is whole or it
//! is not there. A batch follows another when its number is the next and its incarnation is not lower; the incarnation
//! counts how often the disk was opened, and it is stored before the first batch with it is written. So no remainder of
//! an earlier lap, of an earlier life or of another disk can take the place of a batch that was torn.
//!
//! `key` is a random number that the disk was given when it was made. Data blocks hold whatever a guest wrote, also something
//! that looks like a header; a guest does not know the key, so what it wrote is never taken for one.
//!
//! `acknowledged` is the highest batch that was known to be stable when this one was built. A journal that ends at
//! batch *n* while a later batch says that *n* + 1 was acknowledged has been damaged, not cut: [`scan_header`] finds those.
//!
//! Batches lie one behind the other in the file; one that would cross the end begins at 0 instead. A reader therefore
//! looks where the last batch ended, then at 0.
//!
//! The first four kinds of records are as old as the format; `Promote` and `Forget` came later, under the same version: a program
//! that doesn't know them takes their batch for damage and does not open the disk, which is right, as without them it would
//! go on from a state that never was. A cluster asks for them only when all its programs know them.
//!
//! Everything here is a pure function of bytes, and bounded by them.

use bytes::Bytes;
use ferro_protocol::ids::{ChunkId, ChunkIndex, DiskId, Epoch, ObjectId, Seq, Version};
use ferro_protocol::units::{BLOCK_BYTES, BlockRange, CHUNK_EXTENTS, EXTENT_BLOCKS};

use crate::superblock::FORMAT_VERSION;

const MAGIC: u32 = u32::from_le_bytes(*b"vsjb");
const FIXED_BYTES: usize = 72;
/// The most bytes of header in a batch.
pub const HEADER_BYTES_MAX: usize = 128 << 10;
/// The most bytes of data in a batch.
pub const DATA_BYTES_MAX: usize = 2 << 20;

/// One change, as the journal keeps it. Each stays within one extent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// Blocks get data.
    Write {
        /// The component.
        chunk: ChunkId,
        /// Which blocks.
        range: BlockRange,
        /// Their version.
        version: Version,
        /// The component's watermark.
        watermark: Seq,
        /// The physical extent that the extent has or gets.
        phys: u32,
        /// Where the data is.
        place: Place,
        /// Whether higher versions are replaced too.
        force: bool,
        /// CRC-32 of each block.
        crcs: Vec<u32>,
    },
    /// Blocks are unmapped.
    Zero {
        /// The component.
        chunk: ChunkId,
        /// Which blocks.
        range: BlockRange,
        /// Their version.
        version: Version,
        /// The component's watermark.
        watermark: Seq,
        /// Whether higher versions are replaced too.
        force: bool,
    },
    /// An object's epoch.
    SetEpoch {
        /// The object.
        object: ObjectId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// A component, or all of an object, is forgotten.
    Remove {
        /// The object.
        object: ObjectId,
        /// One chunk only.
        chunk: Option<ChunkIndex>,
    },
    /// An extent of one component, place and versions and all, becomes the same extent of another one.
    Promote {
        /// Whose it becomes.
        to: ChunkId,
        /// Whose it was, of the same object; not `to`.
        from: ChunkIndex,
        /// Which extent.
        extent: u32,
        /// The watermark of `to`.
        watermark: Seq,
    },
    /// An extent is as if it had never been written.
    Forget {
        /// The component.
        chunk: ChunkId,
        /// Which extent.
        extent: u32,
    },
}

/// Where the data of a written block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In this batch.
    Journal,
    /// In the data file already, in blocks of `phys` that were unmapped.
    InPlace,
    /// In the data file already, in the whole of a fresh `phys` that replaces the extent's old one.
    Remap,
}

impl Record {
    /// Bytes of this record in the header.
    pub fn encoded_bytes(&self) -> usize {
        match self {
            Self::Write { crcs, .. } => 1 + 20 + 8 + 12 + 8 + 4 + 4 * crcs.len(),
            Self::Zero { .. } => 1 + 20 + 8 + 12 + 8,
            Self::SetEpoch { .. } => 1 + 16 + 4,
            Self::Remove { .. } => 1 + 16 + 5,
            Self::Promote { .. } => 1 + 20 + 4 + 4 + 8,
            Self::Forget { .. } => 1 + 20 + 4,
        }
    }

    /// Bytes of data that this record has in the batch.
    pub fn data_bytes(&self) -> usize {
        match self {
            Self::Write { range, place: Place::Journal, .. } => range.bytes(),
            _ => 0,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Write { chunk, range, version, watermark, phys, place, force, crcs } => {
                let place = match place {
                    Place::Journal => 0,
                    Place::InPlace => 1,
                    Place::Remap => 2,
                };
                out.push(1 | place << 4 | u8::from(*force) << 6);
                encode_blocks(out, *chunk, *range, *version, *watermark);
                out.extend_from_slice(&phys.to_le_bytes());
                for crc in crcs {
                    out.extend_from_slice(&crc.to_le_bytes());
                }
            }
            Self::Zero { chunk, range, version, watermark, force } => {
                out.push(2 | u8::from(*force) << 6);
                encode_blocks(out, *chunk, *range, *version, *watermark);
            }
            Self::SetEpoch { object, epoch } => {
                out.push(3);
                out.extend_from_slice(object.as_bytes());
                out.extend_from_slice(&epoch.0.to_le_bytes());
            }
            Self::Remove { object, chunk } => {
                out.push(4);
                out.extend_from_slice(object.as_bytes());
                out.push(u8::from(chunk.is_some()));
                out.extend_from_slice(&chunk.unwrap_or_default().0.to_le_bytes());
            }
            Self::Promote { to, from, extent, watermark } => {
                out.push(5);
                encode_chunk(out, *to);
                out.extend_from_slice(&from.0.to_le_bytes());
                out.extend_from_slice(&extent.to_le_bytes());
                out.extend_from_slice(&watermark.0.to_le_bytes());
            }
            Self::Forget { chunk, extent } => {
                out.push(6);
                encode_chunk(out, *chunk);
                out.extend_from_slice(&extent.to_le_bytes());
            }
        }
    }
}

fn encode_chunk(out: &mut Vec<u8>, chunk: ChunkId) {
    out.extend_from_slice(chunk.object.as_bytes());
    out.extend_from_slice(&chunk.index.0.to_le_bytes());
}

fn encode_blocks(out: &mut Vec<u8>, chunk: ChunkId, range: BlockRange, version: Version, watermark: Seq) {
    encode_chunk(out, chunk);
    out.extend_from_slice(&range.first().to_le_bytes());
    out.extend_from_slice(&range.count().to_le_bytes());
    out.extend_from_slice(&version.epoch.0.to_le_bytes());
    out.extend_from_slice(&version.seq.0.to_le_bytes());
    out.extend_from_slice(&watermark.0.to_le_bytes());
}

/// The head of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// Counts the batches of this disk, from 1.
    pub number: u64,
    /// How often the disk had been opened.
    pub incarnation: u64,
    /// The highest batch known to be stable when this one was built.
    pub acknowledged: u64,
    /// The disk.
    pub disk: DiskId,
    /// The disk's key.
    pub key: u64,
    /// Bytes of the header.
    pub header_bytes: usize,
    /// Bytes of data behind it.
    pub data_bytes: usize,
    /// Records in the header.
    pub records: u32,
}

/// A whole batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Its head.
    pub head: Head,
    /// The changes, each with the position of its data behind the header.
    pub records: Vec<(Record, usize)>,
}

/// Why bytes are no batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BatchError {
    /// They don't begin like one.
    #[error("no batch begins here")]
    NoBatch,
    /// There are fewer bytes than the batch has.
    #[error("the batch is cut short")]
    Short,
    /// A checksum fails.
    #[error("the batch fails its checksum")]
    Checksum,
    /// It is whole but says impossible things.
    #[error("the batch is malformed: {0}")]
    Malformed(&'static str),
}

/// The header of a batch of these records, padded to whole blocks. Of `head` the sizes are not used.
pub fn encode_header<'a>(head: &Head, records: impl Iterator<Item = &'a Record>) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK_BYTES);
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&(FORMAT_VERSION as u16).to_le_bytes());
    out.extend_from_slice(&[0; 18]);
    for n in [head.number, head.incarnation, head.acknowledged] {
        out.extend_from_slice(&n.to_le_bytes());
    }
    out.extend_from_slice(head.disk.as_bytes());
    out.extend_from_slice(&head.key.to_le_bytes());
    let (mut count, mut data) = (0_u32, 0_usize);
    for record in records {
        record.encode(&mut out);
        count += 1;
        data += record.data_bytes();
    }
    out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
    let header_bytes = out.len() as u32;
    out[12..16].copy_from_slice(&header_bytes.to_le_bytes());
    out[16..20].copy_from_slice(&(data as u32).to_le_bytes());
    out[20..24].copy_from_slice(&count.to_le_bytes());
    let crc = crc32fast::hash(&out);
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Bytes of a header that holds records of this many bytes.
pub const fn header_bytes(records: usize) -> usize {
    (FIXED_BYTES + records).next_multiple_of(BLOCK_BYTES)
}

/// Whether a record of this many bytes can be added to a header and stay within its bound.
pub const fn header_fits(records: usize, more: usize) -> bool {
    header_bytes(records + more) <= HEADER_BYTES_MAX
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], BatchError> {
        let (head, rest) =
            self.0.split_first_chunk::<N>().ok_or(BatchError::Malformed("a record is cut short"))?;
        self.0 = rest;
        Ok(*head)
    }
    fn u8(&mut self) -> Result<u8, BatchError> {
        self.take::<1>().map(|b| b[0])
    }
    fn u32(&mut self) -> Result<u32, BatchError> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64, BatchError> {
        self.take().map(u64::from_le_bytes)
    }
    fn object(&mut self) -> Result<ObjectId, BatchError> {
        self.take().map(ObjectId::from_bytes)
    }
    fn chunk(&mut self) -> Result<ChunkId, BatchError> {
        Ok(ChunkId { object: self.object()?, index: ChunkIndex(self.u32()?) })
    }
    fn extent(&mut self) -> Result<u32, BatchError> {
        let extent = self.u32()?;
        if extent < CHUNK_EXTENTS { Ok(extent) } else { Err(BatchError::Malformed("no such extent")) }
    }
    fn blocks(&mut self) -> Result<(ChunkId, BlockRange, Version, Seq), BatchError> {
        let chunk = self.chunk()?;
        let range = BlockRange::new(self.u32()?, self.u32()?)
            .map_err(|_| BatchError::Malformed("a bad block range"))?;
        if range.first() / EXTENT_BLOCKS != (range.end() - 1) / EXTENT_BLOCKS {
            return Err(BatchError::Malformed("a record crosses extents"));
        }
        let version = Version { epoch: Epoch(self.u32()?), seq: Seq(self.u64()?) };
        Ok((chunk, range, version, Seq(self.u64()?)))
    }

    fn record(&mut self) -> Result<Record, BatchError> {
        let tag = self.u8()?;
        let force = tag & 0x40 != 0;
        match tag & 0xf {
            1 => {
                let place = match tag >> 4 & 3 {
                    0 => Place::Journal,
                    1 => Place::InPlace,
                    2 => Place::Remap,
                    _ => return Err(BatchError::Malformed("an unknown place")),
                };
                let (chunk, range, version, watermark) = self.blocks()?;
                if place == Place::Remap && range.count() != EXTENT_BLOCKS {
                    return Err(BatchError::Malformed("a part of an extent is remapped"));
                }
                let phys = self.u32()?;
                let crcs = range.blocks().map(|_| self.u32()).collect::<Result<_, _>>()?;
                Ok(Record::Write { chunk, range, version, watermark, phys, place, force, crcs })
            }
            2 => {
                let (chunk, range, version, watermark) = self.blocks()?;
                Ok(Record::Zero { chunk, range, version, watermark, force })
            }
            3 => Ok(Record::SetEpoch { object: self.object()?, epoch: Epoch(self.u32()?) }),
            4 => {
                let (object, one) = (self.object()?, self.u8()?);
                let index = ChunkIndex(self.u32()?);
                Ok(Record::Remove { object, chunk: (one == 1).then_some(index) })
            }
            5 => {
                let (to, from) = (self.chunk()?, ChunkIndex(self.u32()?));
                if from == to.index {
                    return Err(BatchError::Malformed("an extent takes its own place"));
                }
                Ok(Record::Promote { to, from, extent: self.extent()?, watermark: Seq(self.u64()?) })
            }
            6 => Ok(Record::Forget { chunk: self.chunk()?, extent: self.extent()? }),
            _ => Err(BatchError::Malformed("an unknown record")),
        }
    }
}

/// The head at the start of these bytes, as far as it can be told without its checksum: to learn how much to read.
pub fn peek_head(bytes: &[u8]) -> Result<Head, BatchError> {
    let fixed = bytes.get(..FIXED_BYTES).ok_or(BatchError::Short)?;
    let u32_at = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("8 bytes"));
    let version = u16::from_le_bytes([fixed[4], fixed[5]]);
    if u32_at(0) != MAGIC || u32::from(version) != FORMAT_VERSION {
        return Err(BatchError::NoBatch);
    }
    let head = Head {
        number: u64_at(24),
        incarnation: u64_at(32),
        acknowledged: u64_at(40),
        disk: DiskId::from_bytes(fixed[48..64].try_into().expect("16 bytes")),
        key: u64_at(64),
        header_bytes: u32_at(12) as usize,
        data_bytes: u32_at(16) as usize,
        records: u32_at(20),
    };
    let blocks = |n: usize, max: usize| n.is_multiple_of(BLOCK_BYTES) && n <= max;
    if !blocks(head.header_bytes, HEADER_BYTES_MAX)
        || head.header_bytes == 0
        || !blocks(head.data_bytes, DATA_BYTES_MAX)
    {
        return Err(BatchError::NoBatch);
    }
    Ok(head)
}

/// The head of the batch whose header begins these bytes and passes its checksum, whatever its data.
pub fn scan_header(bytes: &[u8]) -> Result<Head, BatchError> {
    let head = peek_head(bytes)?;
    let header = bytes.get(..head.header_bytes).ok_or(BatchError::Short)?;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[..8]);
    crc.update(&[0; 4]);
    crc.update(&header[12..]);
    if crc.finalize().to_le_bytes() != header[8..12] {
        return Err(BatchError::Checksum);
    }
    Ok(head)
}

/// The batch that begins these bytes, if it is whole: header and every data block pass their checksums.
pub fn parse_batch(bytes: &[u8]) -> Result<Batch, BatchError> {
    let head = scan_header(bytes)?;
    let data = bytes.get(head.header_bytes..head.header_bytes + head.data_bytes).ok_or(BatchError::Short)?;
    let mut reader = Reader(&bytes[FIXED_BYTES..head.header_bytes]);
    let mut records = Vec::new();
    let mut at = 0;
    for _ in 0..head.records {
        let record = reader.record()?;
        if let Record::Write { place: Place::Journal, crcs, .. } = &record {
            for (n, crc) in crcs.iter().enumerate() {
                let block =
                    data.get(at + n * BLOCK_BYTES..at + (n + 1) * BLOCK_BYTES).ok_or(BatchError::Short)?;
                if crc32fast::hash(block) != *crc {
                    return Err(BatchError::Checksum);
                }
            }
        }
        let from = at;
        at += record.data_bytes();
        records.push((record, from));
    }
    if at != head.data_bytes {
        return Err(BatchError::Malformed("data that belongs to no record"));
    }
    Ok(Batch { head, records })
}

/// The CRC-32 of each block of `data`.
pub fn block_crcs(data: &Bytes) -> Vec<u32> {
    data.chunks_exact(BLOCK_BYTES).map(crc32fast::hash).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> (Vec<Record>, Vec<u8>) {
        let chunk = ChunkId { object: ObjectId::from_bytes([7; 16]), index: ChunkIndex(3) };
        let version = Version { epoch: Epoch(2), seq: Seq(9) };
        let data: Vec<u8> = (0..2 * BLOCK_BYTES).map(|n| (n / 7) as u8).collect();
        let crcs = block_crcs(&Bytes::from(data.clone()));
        let range = BlockRange::new(254, 2).unwrap();
        let whole = BlockRange::new(256, 256).unwrap();
        let (watermark, phys) = (Seq(4), 17);
        let records = vec![
            Record::SetEpoch { object: chunk.object, epoch: Epoch(5) },
            Record::Write {
                chunk,
                range,
                version,
                watermark,
                phys,
                place: Place::Journal,
                force: true,
                crcs,
            },
            Record::Zero { chunk, range, version, watermark, force: false },
            Record::Write {
                chunk,
                range: whole,
                version,
                watermark,
                phys,
                place: Place::Remap,
                force: false,
                crcs: vec![1; 256],
            },
            Record::Remove { object: chunk.object, chunk: Some(ChunkIndex(3)) },
            Record::Remove { object: chunk.object, chunk: None },
            Record::Promote { to: chunk, from: ChunkIndex(u32::MAX), extent: CHUNK_EXTENTS - 1, watermark },
            Record::Forget { chunk, extent: 0 },
        ];
        (records, data)
    }

    fn head() -> Head {
        let disk = DiskId::from_bytes([1; 16]);
        Head {
            number: 11,
            incarnation: 2,
            acknowledged: 10,
            disk,
            key: 99,
            header_bytes: 0,
            data_bytes: 0,
            records: 0,
        }
    }

    fn batch() -> Vec<u8> {
        let (records, data) = records();
        let mut bytes = encode_header(&head(), records.iter());
        bytes.extend_from_slice(&data);
        bytes
    }

    #[test]
    fn a_batch_reads_back() {
        let batch = parse_batch(&batch()).unwrap();
        assert_eq!(batch.records.into_iter().map(|(r, _)| r).collect::<Vec<_>>(), records().0);
        assert_eq!((batch.head.number, batch.head.incarnation, batch.head.acknowledged), (11, 2, 10));
    }

    #[test]
    fn sizes_are_foretold() {
        let (records, _) = records();
        let all: usize = records.iter().map(Record::encoded_bytes).sum();
        let bytes = encode_header(&head(), records.iter());
        assert_eq!(bytes.len(), header_bytes(all));
    }

    #[test]
    fn records_of_extents_that_can_not_be_are_malformed() {
        let parse = |record: &Record| parse_batch(&encode_header(&head(), std::iter::once(record)));
        let malformed = |record: &Record| matches!(parse(record), Err(BatchError::Malformed(_)));
        let to = ChunkId { object: ObjectId::from_bytes([7; 16]), index: ChunkIndex(3) };
        let promote =
            |from, extent| Record::Promote { to, from: ChunkIndex(from), extent, watermark: Seq(1) };
        assert!(parse(&promote(4, CHUNK_EXTENTS - 1)).is_ok() && malformed(&promote(3, 0)));
        assert!(parse(&Record::Forget { chunk: to, extent: CHUNK_EXTENTS - 1 }).is_ok());
        for extent in [CHUNK_EXTENTS, 1 << 16, u32::MAX] {
            assert!(malformed(&promote(4, extent)) && malformed(&Record::Forget { chunk: to, extent }));
        }
        // What an older program says of these, and this one of what comes after it.
        for (tag, known) in [(6, true), (7, false), (15, false)] {
            let mut batch = encode_header(&head(), std::iter::once(&Record::Forget { chunk: to, extent: 0 }));
            batch[FIXED_BYTES] = tag;
            batch[8..12].fill(0);
            let crc = crc32fast::hash(&batch).to_le_bytes();
            batch[8..12].copy_from_slice(&crc);
            let unknown = Err(BatchError::Malformed("an unknown record"));
            assert_eq!(parse_batch(&batch).map(|_| ()), if known { Ok(()) } else { unknown }, "{tag}");
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let good = batch();
        for at in (0..good.len()).step_by(13) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(parse_batch(&bad).is_err(), "flip at {at}");
        }
        for len in (0..good.len()).step_by(511) {
            assert!(parse_batch(&good[..len]).is_err(), "cut at {len}");
        }
    }
}
