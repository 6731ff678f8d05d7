//! What stands on a disk: it may come from anywhere, and it may be damaged anyhow.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::OnceLock;

use bytes::Bytes;
use ferro_protocol::ids::{ChunkId, ChunkIndex, ClusterId, DiskId, Epoch, HostId, ObjectId, Seq, Version};
use ferro_protocol::units::{BLOCK_BYTES, BlockRange, EXTENT_BLOCKS};
use rustix::fs::OFlags;
use tempfile::TempDir;
use vsand_store::journal::{self, Head, Place, Record};
use vsand_store::superblock::{self, COPY_BYTES, Superblock};
use vsand_store::{Family, MetaOp, check, write_meta};

use crate::Source;

const MIB: u64 = 1 << 20;
const KEY: u64 = 0x0123_4567_89ab_cdef;
const DISK: DiskId = DiskId::from_bytes([1; 16]);
/// Where a batch keeps its checksum.
const BATCH_CRC: std::ops::Range<usize> = 8..12;

/// A batch as it is, and with its checksums mended, so that what is behind them is reached.
pub(super) fn journal_batch(data: &[u8]) {
    read_batch(data);
    let mut mended = data.to_vec();
    if mend_batch(&mut mended) {
        read_batch(&mended);
    }
}

fn read_batch(bytes: &[u8]) {
    let scanned = journal::scan_header(bytes);
    let Ok(batch) = journal::parse_batch(bytes) else { return };
    assert_eq!(scanned, Ok(batch.head), "a whole batch has a whole header");
    let data_at = batch.head.header_bytes;
    for (record, from) in &batch.records {
        assert!(data_at + from + record.data_bytes() <= bytes.len());
        if let Record::Write { range, crcs, .. } = record {
            assert_eq!(range.count() as usize, crcs.len());
            assert_eq!(range.first() / EXTENT_BLOCKS, (range.end() - 1) / EXTENT_BLOCKS);
        }
    }
    let mut again = journal::encode_header(&batch.head, batch.records.iter().map(|(record, _)| record));
    again.extend_from_slice(&bytes[data_at..data_at + batch.head.data_bytes]);
    let read = journal::parse_batch(&again).expect("what was read can be written and read again");
    assert_eq!(read.records, batch.records);
    let sizes = |head: Head| Head { header_bytes: 0, ..head };
    assert_eq!(sizes(read.head), sizes(batch.head));
}

/// Sets the header's checksum right, if the sizes allow it.
fn mend_batch(bytes: &mut [u8]) -> bool {
    let Ok(head) = journal::peek_head(bytes) else { return false };
    let Some(header) = bytes.get_mut(..head.header_bytes) else { return false };
    header[BATCH_CRC].fill(0);
    let crc = crc32fast::hash(header);
    header[BATCH_CRC].copy_from_slice(&crc.to_le_bytes());
    true
}

fn records(data: &Bytes) -> Vec<Record> {
    let chunk = ChunkId { object: ObjectId::from_bytes([7; 16]), index: ChunkIndex(0) };
    let version = |seq| Version { epoch: Epoch(2), seq: Seq(seq) };
    let range = |first, count| BlockRange::new(first, count).expect("seeds are valid");
    let watermark = Seq(1);
    let write = |first, seq, phys, place, force, crcs: Vec<u32>| {
        let range = range(first, crcs.len() as u32);
        Record::Write { chunk, range, version: version(seq), watermark, phys, place, force, crcs }
    };
    vec![
        Record::SetEpoch { object: chunk.object, epoch: Epoch(2) },
        write(0, 2, 0, Place::Journal, false, journal::block_crcs(data)),
        Record::Zero { chunk, range: range(0, 1), version: version(3), watermark, force: false },
        write(4, 4, 0, Place::InPlace, true, vec![5, 6]),
        write(256, 5, 1, Place::Remap, false, vec![1; 256]),
        Record::Remove { object: chunk.object, chunk: Some(ChunkIndex(9)) },
        Record::Promote { to: chunk, from: ChunkIndex(9), extent: 3, watermark },
        Record::Forget { chunk, extent: 1_023 },
        Record::Remove { object: ObjectId::from_bytes([8; 16]), chunk: None },
    ]
}

fn batch(number: u64, records: &[Record], data: &Bytes) -> Vec<u8> {
    let head = Head {
        number,
        incarnation: 1,
        acknowledged: number - 1,
        disk: DISK,
        key: KEY,
        header_bytes: 0,
        data_bytes: 0,
        records: 0,
    };
    let mut out = journal::encode_header(&head, records.iter());
    out.extend_from_slice(data);
    out
}

pub(super) fn journal_seeds() -> Vec<Vec<u8>> {
    let data = Bytes::from((0..2 * BLOCK_BYTES).map(|n| (n / 7) as u8).collect::<Vec<u8>>());
    let records = records(&data);
    let mut seeds = vec![batch(1, &records, &data)];
    seeds.extend(records.iter().map(|record| {
        let data = if record.data_bytes() > 0 { data.clone() } else { Bytes::new() };
        batch(2, std::slice::from_ref(record), &data)
    }));
    seeds
}

/// Both copies, as they are and with their checksums mended.
pub(super) fn superblock(data: &[u8]) {
    read_superblock(data);
    let mut mended = data.to_vec();
    for copy in mended.chunks_exact_mut(COPY_BYTES).take(2) {
        mend_copy(copy);
    }
    read_superblock(&mended);
}

fn mend_copy(copy: &mut [u8]) {
    let crc = crc32fast::hash(&copy[..COPY_BYTES - 4]);
    copy[COPY_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

fn read_superblock(bytes: &[u8]) {
    let Ok(read) = superblock::parse(bytes) else { return };
    let _extents = read.extents();
    assert_eq!(superblock::parse(&read.encode()), Ok(read), "what was read can be written and read again");
}

fn sample(generation: u64, data_mib: u64, journal_bytes: u64) -> Superblock {
    Superblock {
        generation,
        disk: DISK,
        cluster: ClusterId::from_bytes([2; 16]),
        host: HostId::from_bytes([3; 16]),
        capacity_bytes: (data_mib + 8) * MIB,
        data_bytes: data_mib * MIB,
        journal_bytes,
        key: KEY,
    }
}

pub(super) fn superblock_seeds() -> Vec<Vec<u8>> {
    let newer = sample(2, 64, 4 * MIB).encode();
    let older = sample(1, 64, 4 * MIB).encode();
    vec![[newer, older].concat(), [older, newer].concat(), newer.to_vec()]
}

/// A disk directory that an input describes: how large its files are, rows of metadata, and the journal's bytes. It is
/// opened and checked like one that was carried here from another host.
///
/// ```text
/// sizes: data MiB, journal in 4 KiB │ rows: family, key length, key, value length, value … 0xff │ journal
/// ```
pub(super) fn whole_disk(data: &[u8]) {
    let dir = temp_dir();
    if build_disk(dir.path(), data).is_some() {
        // Both a report and a refusal are answers; only a panic is none.
        let _report = check::verify(dir.path());
    }
}

/// In memory, where that takes direct I/O: most of the time goes into making the metadata's database.
fn temp_dir() -> TempDir {
    static IN_MEMORY: OnceLock<bool> = OnceLock::new();
    let memory = Path::new("/dev/shm");
    let takes_direct_io = || {
        let probe = tempfile::NamedTempFile::new_in(memory).ok()?;
        let direct = OFlags::DIRECT.bits().cast_signed();
        fs::OpenOptions::new().write(true).custom_flags(direct).open(probe.path()).ok()
    };
    let made = if *IN_MEMORY.get_or_init(|| takes_direct_io().is_some()) {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    made.expect("a temporary directory can be made")
}

/// What there is to build; `None` if the rows can't be written, which is not the disk's reader's fault.
fn build_disk(dir: &Path, data: &[u8]) -> Option<()> {
    let mut source = Source::new(data);
    let data_mib = 1 + source.below(4) as u64;
    let journal_bytes = match source.byte() {
        0xff => 0,
        blocks => u64::from(blocks % 64) * BLOCK_BYTES as u64,
    };
    let mut rows = Vec::new();
    while !source.is_empty() && rows.len() < 64 {
        let family = match source.byte() {
            0xff => break,
            family => [Family::State, Family::Map, Family::Blocks][usize::from(family) % 3],
        };
        let len = usize::from(source.byte());
        let key = source.take(len).to_vec();
        let len = usize::from(source.byte()) + usize::from(source.byte()) * 256;
        rows.push(MetaOp::Put(family, key, source.take(len).to_vec()));
    }
    write_meta(&dir.join("meta"), &rows).ok()?;
    let superblock = sample(1, data_mib, journal_bytes).encode();
    fs::write(dir.join("superblock"), [superblock, superblock].concat()).ok()?;
    let mut journal = source.rest().to_vec();
    journal.truncate(journal_bytes as usize);
    let mut at = 0;
    while at < journal.len() && mend_batch(&mut journal[at..]) {
        let Ok(head) = journal::peek_head(&journal[at..]) else { break };
        at += head.header_bytes + head.data_bytes;
    }
    journal.resize(journal_bytes as usize, 0);
    fs::write(dir.join("journal"), journal).ok()?;
    let file = fs::File::create(dir.join("data")).ok()?;
    file.set_len(data_mib * MIB).ok()
}

pub(super) fn disk_seeds() -> Vec<Vec<u8>> {
    let row = |family: u8, key: &[u8], value: &[u8]| {
        let len = (value.len() as u16).to_le_bytes();
        [&[family, key.len() as u8][..], key, &len, value].concat()
    };
    let object = [7_u8; 16];
    let chunk = [&object[..], &[0; 4]].concat();
    let extent = |n: u16| [&chunk[..], &n.to_be_bytes()].concat();
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let checkpoint = row(0, b"j", &words(&[0, 0, 0]));
    let incarnation = row(0, b"i", &words(&[1]));
    let component = row(0, &[b"c", &chunk[..]].concat(), &words(&[1]));
    let epoch = row(0, &[b"e", &object[..]].concat(), &2_u32.to_le_bytes());
    let map = row(1, &extent(0), &[&1_u32.to_le_bytes()[..], &words(&[9])].concat());
    let group_key = [&extent(0)[..], &[0]].concat();
    // One block mapped, of epoch 1 and sequence number 9.
    let group =
        [&[1][..], &1_u32.to_le_bytes(), &1_u32.to_le_bytes(), &1_u32.to_le_bytes(), &words(&[9]), &[0; 8]];
    let blocks = row(2, &group_key, &group.concat());
    let rows = [checkpoint, incarnation, component, epoch, map, blocks];
    let data = Bytes::from(vec![0x5a; BLOCK_BYTES]);
    let chunk_id = ChunkId { object: ObjectId::from_bytes([6; 16]), index: ChunkIndex(0) };
    let write = |first, seq, phys| Record::Write {
        chunk: chunk_id,
        range: BlockRange::new(first, 1).expect("seeds are valid"),
        version: Version { epoch: Epoch(1), seq: Seq(seq) },
        watermark: Seq(0),
        phys,
        place: Place::Journal,
        force: false,
        crcs: journal::block_crcs(&data),
    };
    let journal = [batch(1, &[write(3, 1, 0)], &data), batch(2, &[write(4, 2, 0)], &data)].concat();
    let disk = |rows: &[Vec<u8>], journal: &[u8]| [&[2, 40][..], &rows.concat(), &[0xff], journal].concat();
    vec![disk(&rows, &journal), disk(&rows[..2], &journal), disk(&rows, &[]), disk(&[], &journal)]
}
