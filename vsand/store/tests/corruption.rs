//! The corruption matrix: each zone of a disk × {bit rot, torn, misdirected, lost, zeroed} × {one place, several}. Whatever is damaged
//! while the disk is closed, what it holds is read as it was acknowledged, or refused with an error. Never other bytes.
//!
//! Every cell is tried on a disk that was closed properly and on one that was not, whose journal is needed, at many places each.
//!
//! One thing no disk can know of itself: that the *last* batch of its journal was acknowledged. Only the next one says so. So the last
//! writes here go to a component that nobody looks at. (Should a disk lose what it had acknowledged last, its peers have it.)

#[allow(unreachable_pub, reason = "shared with other test binaries")]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use common::{Harness, block_content, chunk, content, options, range, temp_dir, version, write, zero};
use ferro_protocol::ids::{ChunkId, Version};
use ferro_protocol::peer::Run;
use ferro_protocol::units::BLOCK_BYTES;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use vsand_core::disk::{DiskError, DiskOp, DiskReply};
use vsand_store::{Store, StoreConfig, check};

const CAPACITY_BYTES: u64 = 16 << 20;
/// Blocks of a component that are written and looked at.
const BLOCKS: u32 = 3 * 256;
const SECTOR: usize = 512;

/// A part of a disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Zone {
    Superblock,
    Data,
    Journal,
    Meta,
}

const ZONES: [Zone; 4] = [Zone::Superblock, Zone::Data, Zone::Journal, Zone::Meta];

/// What happens to a block of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Damage {
    /// A bit is another.
    BitRot,
    /// Some of its sectors are from an earlier time.
    Torn,
    /// It was written to another place, too.
    Misdirected,
    /// It is from an earlier time.
    Lost,
    Zeroed,
}

const DAMAGES: [Damage; 5] =
    [Damage::BitRot, Damage::Torn, Damage::Misdirected, Damage::Lost, Damage::Zeroed];

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Seen {
    /// Everything was there.
    whole: u32,
    /// Everything was there, and the disk said that it had mended itself.
    mended: u32,
    /// Some blocks were named as bad; written again they were good.
    bad_blocks: u32,
    /// The disk gave up while it was read.
    dead: u32,
    /// It was not opened.
    refused: u32,
}

/// What is acknowledged: the version of each block that was ever written, and whether it holds data.
type Model = BTreeMap<(ChunkId, u32), (Version, bool)>;

/// A disk at two moments, and what it holds at the later one.
struct History {
    dir: tempfile::TempDir,
    model: Model,
}

impl History {
    fn now(&self) -> PathBuf {
        self.dir.path().join("now")
    }

    fn earlier(&self) -> PathBuf {
        self.dir.path().join("earlier")
    }
}

fn chunks() -> [ChunkId; 3] {
    [chunk(1, 0), chunk(1, 1), chunk(2, 0)]
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Random changes, one after the other.
fn work(disk: &mut Harness, model: &mut Model, count: usize, seq: &mut u64, rng: &mut ChaCha8Rng) {
    for _ in 0..count {
        *seq += 1;
        let (chunk, version) = (chunks()[rng.random_range(0..3)], version(1, *seq));
        let (first, blocks) = match rng.random_range(0..20) {
            // A whole extent: straight to its place if it is new there.
            0 => (rng.random_range(0..3) * 256, 256),
            1..4 => (rng.random_range(0..BLOCKS - 64), rng.random_range(17..64)),
            _ => (rng.random_range(0..BLOCKS - 8), rng.random_range(1..8)),
        };
        let mapped = rng.random_range(0..12) != 0;
        let range = range(first, blocks);
        disk.done(if mapped { write(chunk, range, version) } else { zero(chunk, range, version) });
        for block in range.blocks() {
            model.insert((chunk, block), (version, mapped));
        }
    }
}

fn history(seed: u64, closed: bool) -> History {
    let dir = temp_dir();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut model, mut seq) = (Model::new(), 0);
    let disk = dir.path().join("now");
    Store::format(&disk, &options(CAPACITY_BYTES)).unwrap();
    // Several lives, ended in both ways: so the metadata is in tables and in logs, and the journal has gone round.
    for life in 0..4 {
        let mut harness = Harness::open(&disk, StoreConfig::default());
        work(&mut harness, &mut model, 150, &mut seq, &mut rng);
        if life % 2 == 0 {
            harness.shut_down()
        } else {
            drop(harness)
        }
        if life == 1 {
            copy(&disk, &dir.path().join("earlier"));
        }
    }
    let mut harness = Harness::open(&disk, StoreConfig::default());
    work(&mut harness, &mut model, 60, &mut seq, &mut rng);
    for n in 0..30 {
        seq += 1;
        harness.done(write(chunk(9, 0), range(n, 1), version(1, seq)));
    }
    if closed {
        harness.shut_down()
    } else {
        drop(harness)
    }
    History { dir, model }
}

/// The files of a zone, each with its bytes.
fn files(disk: &Path, zone: Zone) -> Vec<PathBuf> {
    let name = match zone {
        Zone::Superblock => "superblock",
        Zone::Data => "data",
        Zone::Journal => "journal",
        Zone::Meta => {
            let all = fs::read_dir(disk.join("meta")).unwrap().map(|entry| entry.unwrap());
            // Its log of messages and its lock say nothing.
            let mut all: Vec<_> = all
                .filter(|entry| !entry.file_name().to_string_lossy().starts_with("LO"))
                .filter(|entry| entry.metadata().unwrap().len() > 0)
                .map(|entry| entry.path())
                .collect();
            all.sort();
            return all;
        }
    };
    vec![disk.join(name)]
}

fn open_file(path: &Path) -> File {
    fs::OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// The block at this offset, shorter at the end of the file; empty if there is no such file.
fn block_at(path: &Path, offset: u64) -> Vec<u8> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    let len = file.metadata().unwrap().len().saturating_sub(offset).min(BLOCK_BYTES as u64);
    let mut block = vec![0; len as usize];
    file.read_exact_at(&mut block, offset).unwrap();
    block
}

/// Damages one block of a file. What was not there at the earlier time had zeros in its place.
fn harm(disk: &Path, earlier: &Path, path: &Path, damage: Damage, rng: &mut ChaCha8Rng) -> String {
    let file = open_file(path);
    let len = file.metadata().unwrap().len();
    let any_block =
        |rng: &mut ChaCha8Rng| rng.random_range(0..len.div_ceil(BLOCK_BYTES as u64)) * BLOCK_BYTES as u64;
    // Half of the time where there is something: most of a young disk is empty.
    let mut at = any_block(rng);
    for _ in 0..rng.random_range(0..20) {
        if block_at(path, at).iter().all(|byte| *byte == 0) {
            at = any_block(rng);
        }
    }
    let mut block = block_at(path, at);
    let mut before = block_at(&earlier.join(path.strip_prefix(disk).unwrap()), at);
    before.resize(block.len(), 0);
    let to = match damage {
        Damage::Misdirected => any_block(rng),
        _ => at,
    };
    match damage {
        Damage::BitRot => {
            let byte = rng.random_range(0..block.len());
            block[byte] ^= 1 << rng.random_range(0..8);
        }
        Damage::Torn => {
            let cut = rng.random_range(1..8) * SECTOR;
            let cut = cut.min(block.len());
            if rng.random_bool(0.5) {
                block[cut..].copy_from_slice(&before[cut..]);
            } else {
                block[..cut].copy_from_slice(&before[..cut]);
            }
        }
        Damage::Misdirected => {
            block.truncate((len - to).min(BLOCK_BYTES as u64) as usize);
            if rng.random_bool(0.5) {
                // And never arrived where it belongs.
                file.write_all_at(&before, at).unwrap();
            }
        }
        Damage::Lost => block = before,
        Damage::Zeroed => block.fill(0),
    }
    file.write_all_at(&block, to).unwrap();
    format!("{} at {to} from {at}", path.file_name().unwrap().to_string_lossy())
}

fn expected(model: &Model, chunk: ChunkId, block: u32) -> Vec<u8> {
    match model.get(&(chunk, block)) {
        Some((version, true)) => block_content(block, *version),
        _ => vec![0; BLOCK_BYTES],
    }
}

/// Reads everything that was acknowledged. Panics at a wrong byte.
fn judge(disk: &Path, model: &Model, what: &str, seen: &mut Seen) {
    let Ok((store, recovery)) = Store::open(disk, StoreConfig::default()) else {
        seen.refused += 1;
        return;
    };
    let mut harness = Harness::of(store);
    let mut bad = BTreeSet::new();
    for chunk in chunks() {
        let mut next = 0;
        while next < BLOCKS {
            let asked = range(next, 32.min(BLOCKS - next));
            match harness.run(DiskOp::Read { chunk, range: asked }) {
                Ok(DiskReply::Data(data)) => {
                    compare(&data, model, chunk, asked.first(), what);
                }
                Err(DiskError::BadBlocks(blocks)) => {
                    assert!(
                        blocks.iter().all(|block| asked.blocks().contains(block)),
                        "{what}: bad {blocks:?}"
                    );
                    for block in asked.blocks().filter(|block| !blocks.contains(block)) {
                        compare(&harness.read(chunk, range(block, 1)), model, chunk, block, what);
                    }
                    bad.extend(blocks.into_iter().map(|block| (chunk, block)));
                }
                Err(DiskError::Dead(_)) => {
                    seen.dead += 1;
                    return;
                }
                other => panic!("{what}: {other:?}"),
            }
            next = asked.end();
        }
    }
    match (bad.is_empty(), recovery.superblock_repaired) {
        (true, false) => seen.whole += 1,
        (true, true) => seen.mended += 1,
        (false, _) => seen.bad_blocks += 1,
    }
    mend(&mut harness, model, &bad, what);
    harness.shut_down();
    let report = check::verify(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    // What is bad where nobody looked is found here.
    let left = report.findings.iter().all(|finding| match finding {
        check::Finding::BadBlock { chunk, block } => {
            !bad.contains(&(*chunk, *block)) && *chunk == common::chunk(9, 0)
        }
        _ => false,
    });
    assert!(left, "{what}: {:?}", report.findings);
}

fn compare(data: &Bytes, model: &Model, chunk: ChunkId, first: u32, what: &str) {
    for (block, found) in (first..).zip(data.chunks(BLOCK_BYTES)) {
        let state = model.get(&(chunk, block));
        assert!(found == expected(model, chunk, block), "{what}: {chunk} block {block} is not {state:?}");
    }
}

/// As an owner does, from another copy.
fn mend(harness: &mut Harness, model: &Model, bad: &BTreeSet<(ChunkId, u32)>, what: &str) {
    for (chunk, block) in bad {
        let (version, mapped) = model[&(*chunk, *block)];
        assert!(mapped, "{what}: a block of zeros has no place that could be bad");
        let (chunk, range) = (*chunk, range(*block, 1));
        let runs = vec![Run { range, version, mapped }];
        harness.done(DiskOp::Install { chunk, runs, data: content(range, version) });
        compare(&harness.read(chunk, range), model, chunk, *block, what);
    }
}

/// One row of the matrix, on disks of this history: what was seen, by zone and damage.
fn matrix(seed: u64, closed: bool, tries: u32) -> BTreeMap<(Zone, Damage, u32), Seen> {
    let history = history(seed, closed);
    let (now, earlier) = (history.now(), history.earlier());
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xda3a_6e00);
    let mut all = BTreeMap::new();
    let mut untouched = Seen::default();
    let victim = history.dir.path().join("victim");
    copy(&now, &victim);
    judge(&victim, &history.model, "nothing is damaged", &mut untouched);
    fs::remove_dir_all(&victim).unwrap();
    assert_eq!(untouched, Seen { whole: 1, ..Seen::default() });
    for zone in ZONES {
        for damage in DAMAGES {
            for places in [1, 6] {
                let seen: &mut Seen = all.entry((zone, damage, places)).or_default();
                for number in 0..tries {
                    copy(&now, &victim);
                    let mut what =
                        format!("seed {seed}, closed {closed}, {zone:?}, {damage:?}, try {number}");
                    for _ in 0..places {
                        let files = files(&victim, zone);
                        let file = &files[rng.random_range(0..files.len())];
                        what.push_str(", ");
                        what.push_str(&harm(&victim, &earlier, file, damage, &mut rng));
                    }
                    judge(&victim, &history.model, &what, seen);
                    fs::remove_dir_all(&victim).unwrap();
                }
            }
        }
    }
    all
}

fn show(all: &BTreeMap<(Zone, Damage, u32), Seen>) {
    for ((zone, damage, places), seen) in all {
        println!("{:<12}{:<13}{places}  {seen:?}", format!("{zone:?}"), format!("{damage:?}"));
    }
}

/// All that was seen of a zone. How the disk is laid out is a matter of time, so a single cell may be lucky.
fn of(all: &BTreeMap<(Zone, Damage, u32), Seen>, zone: Zone) -> Seen {
    let cells = all.iter().filter(|((it, ..), _)| *it == zone);
    cells.fold(Seen::default(), |sum, (_, seen)| Seen {
        whole: sum.whole + seen.whole,
        mended: sum.mended + seen.mended,
        bad_blocks: sum.bad_blocks + seen.bad_blocks,
        dead: sum.dead + seen.dead,
        refused: sum.refused + seen.refused,
    })
}

// That what is done to the disks does not go unnoticed is looked at too, or the tests would prove nothing.

#[test]
fn a_closed_disk_gives_what_it_held_or_an_error() {
    let all = matrix(1, true, 3);
    show(&all);
    let (data, journal) = (of(&all, Zone::Data), of(&all, Zone::Journal));
    assert!(data.bad_blocks >= 10 && data.refused + data.dead == 0, "{data:?}");
    // Everything is in its place: the journal is not needed.
    assert_eq!(journal, Seen { whole: 30, ..Seen::default() });
    let (meta, superblock) = (of(&all, Zone::Meta), of(&all, Zone::Superblock));
    assert!(meta.refused + meta.dead >= 5 && meta.bad_blocks == 0, "{meta:?}");
    assert!(superblock.mended >= 2 && superblock.refused >= 1, "{superblock:?}");
}

#[test]
fn a_disk_that_was_cut_off_gives_what_it_held_or_an_error() {
    let all = matrix(2, false, 3);
    show(&all);
    let (data, journal, meta) = (of(&all, Zone::Data), of(&all, Zone::Journal), of(&all, Zone::Meta));
    assert!(data.bad_blocks >= 5 && data.refused + data.dead == 0, "{data:?}");
    assert!(journal.refused >= 3 && journal.bad_blocks + journal.dead == 0, "{journal:?}");
    assert!(meta.refused + meta.dead >= 5 && meta.bad_blocks == 0, "{meta:?}");
}

#[test]
#[ignore = "minutes"]
fn many_places() {
    for seed in 10..20 {
        for closed in [true, false] {
            show(&matrix(seed, closed, 12));
        }
    }
}
