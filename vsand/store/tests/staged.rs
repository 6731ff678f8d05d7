//! Whole extents that change hands, and extents that are forgotten: what is there afterwards, what is refused, and what is left in
//! the metadata.

#[allow(unreachable_pub, reason = "shared with other test binaries")]
mod common;
mod watch;

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{
    Answer, Harness, chunk, clean, content, object, options, range, temp_dir, version, write, zero,
};
use ferro_protocol::ids::{ChunkId, ChunkIndex, Seq, Version};
use ferro_protocol::peer::Run;
use ferro_protocol::units::{CHUNK_EXTENTS, EXTENT_BYTES};
use tempfile::TempDir;
use vsand_core::disk::{DiskError, DiskOp, DiskReply};
use vsand_store::{Store, StoreConfig};
use watch::Watch;

const MIB: u64 = 1 << 20;
const NOT_STAGED: Answer = Err(DiskError::NotStaged);

fn config(watch: &Watch) -> StoreConfig {
    StoreConfig { hook: Some(Box::new(watch.clone())), ..StoreConfig::default() }
}

/// One whose checkpoints begin as soon as there is anything to store.
fn eager(watch: &Watch) -> StoreConfig {
    StoreConfig { checkpoint_ns_max: 0, cached_extents: 2, ..config(watch) }
}

struct Disk {
    _dir: TempDir,
    path: std::path::PathBuf,
    watch: Watch,
}

impl Disk {
    fn new() -> Self {
        let dir = temp_dir();
        let path = dir.path().join("disk");
        Store::format(&path, &options(40 * MIB)).unwrap();
        Self { _dir: dir, path, watch: Watch::default() }
    }

    fn open(&self) -> Harness {
        Harness::open(&self.path, config(&self.watch))
    }

    /// Opens it again: with a checkpoint, or as after a crash.
    fn reopen(&self, h: Harness, checkpoint: bool) -> Harness {
        if checkpoint {
            h.shut_down();
        } else {
            drop(h);
        }
        clean(&self.path);
        self.open()
    }
}

const TO: (u8, u32) = (1, 0);
const FROM: (u8, u32) = (1, 9);

fn to() -> ChunkId {
    chunk(TO.0, TO.1)
}

fn from() -> ChunkId {
    chunk(FROM.0, FROM.1)
}

fn promote(extent: u32, watermark: u64) -> DiskOp {
    DiskOp::Promote { to: to(), from: from().index, extent, watermark: Seq(watermark) }
}

fn forget(chunk: ChunkId, extents: Range<u32>) -> DiskOp {
    DiskOp::Forget { chunk, first: extents.start, end: extents.end }
}

fn extent(n: u32) -> ferro_protocol::units::BlockRange {
    range(n * 256, 256)
}

/// What is fetched, whose bytes must be those of the versions that are told.
fn fetch(h: &mut Harness, chunk: ChunkId, range: ferro_protocol::units::BlockRange) -> Vec<Run> {
    let ticket = h.submit(DiskOp::Fetch { chunk, range });
    let answer = h.wait(ticket);
    good_runs(&answer)
}

fn good_runs(answer: &Answer) -> Vec<Run> {
    let Ok(DiskReply::Runs(runs, data)) = answer else { panic!("{answer:?}") };
    let expected: Vec<u8> =
        runs.iter().filter(|r| r.mapped).flat_map(|r| content(r.range, r.version)).collect();
    assert!(*data == expected, "bytes that are not of the version: {runs:?}");
    runs.clone()
}

fn run(first: u32, count: u32, version: Version, mapped: bool) -> Run {
    Run { range: range(first, count), version, mapped }
}

fn never(n: u32) -> Vec<Run> {
    vec![Run { range: extent(n), version: Version::NEVER, mapped: false }]
}

fn list(h: &mut Harness, chunk: ChunkId) -> Answer {
    h.run(DiskOp::List { chunk, since: Seq(0), from_block: 0, runs_max: 4096 })
}

/// All that the disk tells of the two.
fn look(h: &mut Harness) -> (Vec<Vec<Run>>, Vec<Answer>, u32) {
    let mut runs = Vec::new();
    for c in [to(), from()] {
        runs.extend((0..5).map(|n| fetch(h, c, extent(n))));
    }
    let answers = vec![list(h, to()), list(h, from()), h.run(DiskOp::Summarise { object: object(1) })];
    (runs, answers, h.store.stats().extents_used)
}

fn extents_of(h: &Harness, chunk: ChunkId) -> u32 {
    h.store.inventory().iter().find(|entry| entry.chunk == chunk).map_or(0, |entry| entry.extents)
}

/// Turns until a checkpoint that begins now is over.
fn checkpoint(h: &mut Harness) {
    let (before, end) = (h.store.stats().checkpoints, Instant::now() + Duration::from_secs(30));
    while h.store.stats().checkpoints < before + 2 {
        assert!(Instant::now() < end, "{:?}", h.store.stats());
        h.done(DiskOp::SetEpoch { object: object(200), epoch: ferro_protocol::ids::Epoch(1) });
        h.turn(Duration::from_millis(1));
    }
}

#[test]
fn a_promoted_extent_is_there_as_it_was_staged_after_every_kind_of_restart() {
    for (before, after, old) in
        [(false, false, 1), (true, false, 1), (false, true, 1), (true, true, 1), (true, true, 0)]
    {
        let disk = Disk::new();
        let mut h = disk.open();
        h.done(write(to(), range(0, 3), version(1, 1)));
        if old == 1 {
            h.done(write(to(), extent(1), version(1, 2)));
            // Its newest data lies in the journal.
            h.done(write(to(), range(300, 2), version(1, 3)));
        }
        h.done(write(from(), extent(1), version(2, 9)));
        h.done(write(from(), extent(3), version(2, 10)));
        if before {
            h = disk.reopen(h, true);
        }
        let used = h.store.stats().extents_used;
        let data_bytes = disk.watch.data_bytes();
        let records = h.store.stats().records;
        h.done(promote(1, 77));
        assert_eq!(disk.watch.data_bytes(), data_bytes, "data was written again");
        assert_eq!(h.store.stats().records, records + 1);
        let check = |h: &mut Harness, when: &str| {
            let what = format!("{when}, {before} {after} {old}");
            assert_eq!(fetch(h, to(), extent(1)), [run(256, 256, version(2, 9), true)], "{what}");
            assert_eq!(h.read(to(), extent(1)), content(extent(1), version(2, 9)), "{what}");
            assert_eq!(h.read(to(), range(0, 3)), content(range(0, 3), version(1, 1)), "{what}");
            assert_eq!(fetch(h, from(), extent(1)), never(1), "{what}");
            assert!(h.read(from(), extent(1)).iter().all(|&b| b == 0), "{what}");
            let staged = vec![run(768, 256, version(2, 10), true)];
            assert_eq!(list(h, from()), Ok(DiskReply::List(staged, None)), "{what}");
            let DiskReply::Summary(summary) = h.run(DiskOp::Summarise { object: object(1) }).unwrap() else {
                panic!()
            };
            assert_eq!((summary[0].watermark, summary[0].seq_max), (Seq(77), Seq(9)), "{what}");
            assert_eq!(h.store.stats().extents_used, used - old, "{what}");
            assert_eq!((extents_of(h, to()), extents_of(h, from())), (2, 1), "{what}");
        };
        check(&mut h, "at once");
        h = disk.reopen(h, after);
        check(&mut h, "after a restart");
        h = disk.reopen(h, true);
        check(&mut h, "after a checkpoint");
        // A row of `map` and eight of blocks, for the one that is still staged.
        assert_eq!((disk.watch.rows_of(from()), disk.watch.rows_of(to())), (9, 11), "{before} {after} {old}");
        // What it gave up is free: all of the rest can be written.
        let free = h.store.stats().extents - h.store.stats().extents_used;
        for n in 0..free {
            h.done(write(chunk(2, 0), extent(n), version(1, 1)));
        }
        assert_eq!(h.run(write(chunk(2, 0), extent(free), version(1, 1))), Err(DiskError::Full));
        assert_eq!(h.read(to(), extent(1)), content(extent(1), version(2, 9)), "{before} {after} {old}");
        h.shut_down();
        clean(&disk.path);
    }
}

#[test]
fn what_is_not_staged_is_refused_and_nothing_changes() {
    let disk = Disk::new();
    let mut h = disk.open();
    // 0: a block is missing. 1: one is unmapped. 2: one is as old as what is there. 3: one is older. 4: some lies in the journal.
    h.done(write(to(), range(0, 4), version(1, 1)));
    h.done(write(from(), range(0, 255), version(2, 1)));
    h.done(write(from(), extent(1), version(2, 2)));
    h.done(zero(from(), range(300, 1), version(2, 3)));
    h.done(write(to(), range(600, 1), version(2, 4)));
    h.done(write(from(), extent(2), version(2, 4)));
    h.done(zero(to(), range(1023, 1), version(3, 1)));
    h.done(write(from(), extent(3), version(2, 5)));
    h.done(write(from(), extent(4), version(2, 6)));
    h.done(write(from(), range(1030, 1), version(2, 7)));
    let (before, records) = (look(&mut h), h.store.stats().records);
    for n in 0..6 {
        assert_eq!(h.run(promote(n, 1000)), NOT_STAGED, "extent {n}");
    }
    for bad in [CHUNK_EXTENTS, u32::MAX] {
        assert_eq!(h.run(promote(bad, 1000)), NOT_STAGED);
        h.done(forget(from(), bad..u32::MAX));
    }
    let other =
        |to: ChunkId, from| DiskOp::Promote { to, from: ChunkIndex(from), extent: 1, watermark: Seq(9) };
    for op in [other(to(), 5), other(to(), 0), other(from(), 9), other(chunk(7, 0), 9)] {
        assert_eq!(h.run(op), NOT_STAGED);
    }
    assert_eq!((look(&mut h), h.store.stats().records), (before.clone(), records));
    // What lay in the journal only is in its place after a checkpoint.
    h = disk.reopen(h, true);
    assert!(look(&mut h) == before);
    for n in [0, 1, 2, 3] {
        assert_eq!(h.run(promote(n, 1000)), NOT_STAGED, "extent {n}");
    }
    h.done(promote(4, 1000));
    let runs = fetch(&mut h, to(), extent(4));
    assert_eq!(runs[1], run(1030, 1, version(2, 7), true));
}

#[test]
fn an_extent_with_a_write_to_its_place_under_way_is_not_staged() {
    let disk = Disk::new();
    let mut h = Harness::open(&disk.path, eager(&disk.watch));
    h.done(write(to(), range(0, 1), version(1, 1)));
    h.done(write(from(), extent(1), version(1, 1)));
    checkpoint(&mut h);
    disk.watch.set(|seen| seen.hold_data = true);
    let data_bytes = disk.watch.data_bytes();
    h.done(write(from(), range(256, 4), version(1, 2)));
    while disk.watch.data_bytes() == data_bytes {
        h.turn(Duration::from_millis(5));
    }
    // All of it is written anew elsewhere; the write to the old place is still on its way.
    disk.watch.set(|seen| seen.hold_data = false);
    h.done(write(from(), extent(1), version(1, 3)));
    assert_eq!(h.run(promote(1, 0)), NOT_STAGED);
    assert_eq!(fetch(&mut h, from(), extent(1)), [run(256, 256, version(1, 3), true)]);
}

/// The data of small writes was told to be in its place, but the checkpoint that put it there did not end before the power cut:
/// it is lost there, and the journal has it.
#[test]
fn what_was_promoted_while_a_checkpoint_was_under_way_is_there_after_a_power_cut() {
    let disk = Disk::new();
    // A checkpoint begins when all of an extent's blocks are to go to their place.
    let mut h = Harness::open(&disk.path, StoreConfig { overlay_blocks_max: 512, ..config(&disk.watch) });
    disk.watch.set(|seen| (seen.hold_meta, seen.lose_data) = (true, true));
    h.done(write(to(), extent(1), version(1, 1)));
    let small: Vec<_> = (256..512).step_by(8).map(|n| (range(n, 8), version(2, u64::from(n)))).collect();
    let tickets: Vec<u64> =
        small.iter().map(|(range, version)| h.submit(write(from(), *range, *version))).collect();
    for ticket in tickets {
        assert_eq!(h.wait(ticket), Ok(DiskReply::Done));
    }
    let end = Instant::now() + Duration::from_secs(30);
    while h.run(promote(1, 6)) == NOT_STAGED {
        assert!(Instant::now() < end, "{:?}", h.store.stats());
        h.turn(Duration::from_millis(2));
    }
    assert_eq!((h.store.stats().checkpoints, h.store.stats().destaged_blocks), (0, 256));
    h.done(write(to(), range(256, 1), version(3, 1000)));
    disk.watch.set(|seen| (seen.hold_meta, seen.lose_data) = (false, false));
    for life in 0..3 {
        h = disk.reopen(h, life > 0);
        let runs = fetch(&mut h, to(), extent(1));
        assert_eq!(runs[..2], [run(256, 1, version(3, 1000), true), run(257, 7, version(2, 256), true)]);
        for (range, version) in &small[1..] {
            assert!(runs.contains(&Run { range: *range, version: *version, mapped: true }), "life {life}");
        }
        assert_eq!(fetch(&mut h, from(), extent(1)), never(1), "life {life}");
    }
}

#[test]
fn changes_before_and_after_a_promote_take_effect_in_that_order() {
    for swapped in [false, true] {
        let disk = Disk::new();
        let mut h = disk.open();
        // Either may come first in the disk's own order.
        let first = if swapped { from() } else { to() };
        h.done(write(first, range(0, 1), version(1, 1)));
        h.done(write(to(), extent(1), version(1, 2)));
        let mut tickets = vec![
            h.submit(write(to(), range(256, 8), version(1, 3))),
            h.submit(write(to(), extent(1), version(1, 4))),
            h.submit(write(from(), extent(1), version(2, 1))),
            h.submit(promote(1, 5)),
            h.submit(write(to(), range(300, 8), version(2, 2))),
            h.submit(write(to(), range(400, 20), version(2, 3))),
            h.submit(zero(to(), range(500, 2), version(2, 4))),
            h.submit(write(to(), range(310, 8), version(1, 1000))),
            h.submit(write(from(), range(260, 1), version(1, 1))),
        ];
        let again = h.submit(promote(1, 5));
        tickets.push(h.submit(write(from(), extent(2), version(3, 1))));
        for ticket in tickets {
            assert_eq!(h.wait(ticket), Ok(DiskReply::Done));
        }
        assert_eq!(h.wait(again), NOT_STAGED);
        let staged = version(2, 1);
        for life in 0..3 {
            let expected = [
                run(256, 44, staged, true),
                run(300, 8, version(2, 2), true),
                run(308, 92, staged, true),
                run(400, 20, version(2, 3), true),
                run(420, 80, staged, true),
                run(500, 2, version(2, 4), false),
                run(502, 10, staged, true),
            ];
            assert_eq!(fetch(&mut h, to(), extent(1)), expected, "life {life}");
            let runs = fetch(&mut h, from(), extent(1));
            assert_eq!(runs[1], run(260, 1, version(1, 1), true), "life {life}");
            assert_eq!((runs[0].version, runs[2].version), (Version::NEVER, Version::NEVER), "life {life}");
            h = disk.reopen(h, life > 0);
        }
    }
}

/// Nobody asks for that, but a peer could.
#[test]
fn extents_that_are_to_take_each_others_place_do_not_wait_for_each_other() {
    let disk = Disk::new();
    let mut h = disk.open();
    let (mut done, mut tickets) = (0, Vec::new());
    for seq in 1..20 {
        for (n, c) in [to(), from()].into_iter().enumerate() {
            tickets.push(h.submit(write(c, extent(1), version(1, 2 * seq + n as u64))));
        }
        let op = |to: ChunkId, from: ChunkId| DiskOp::Promote {
            to,
            from: from.index,
            extent: 1,
            watermark: Seq(0),
        };
        tickets.push(h.submit(op(to(), from())));
        tickets.push(h.submit(op(from(), to())));
        tickets.push(h.submit(forget(if seq % 2 == 0 { to() } else { from() }, 0..CHUNK_EXTENTS)));
    }
    for ticket in tickets {
        match h.wait(ticket) {
            Ok(DiskReply::Done) => done += 1,
            NOT_STAGED => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(done > 20, "{done}");
    look(&mut h);
    h.shut_down();
    clean(&disk.path);
}

#[test]
fn forgotten_extents_were_never_written() {
    for (before, after) in [(false, false), (true, false), (false, true), (true, true)] {
        let disk = Disk::new();
        let mut h = disk.open();
        let c = to();
        // Extents 0: stays; 1: in its place; 2: in the journal; 3: unmapped, with versions; 4: stays.
        h.done(write(c, range(0, 3), version(5, 1)));
        h.done(write(c, extent(1), version(5, 2)));
        h.done(write(c, range(512, 5), version(5, 3)));
        h.done(zero(c, extent(3), version(5, 4)));
        h.done(write(c, range(1024, 5), version(5, 5)));
        h.done(zero(c, range(1024, 1), version(5, 6)));
        let kept = (fetch(&mut h, c, extent(0)), fetch(&mut h, c, extent(4)));
        if before {
            h = disk.reopen(h, true);
        }
        h.done(forget(c, 1..4));
        assert_eq!(h.store.stats().overlay_blocks, if before { 0 } else { 7 }, "what is to go to its place");
        let check = |h: &mut Harness, what: &str| {
            for n in 1..4 {
                assert_eq!(fetch(h, c, extent(n)), never(n), "{what} {before} {after}");
            }
            assert_eq!((fetch(h, c, extent(0)), fetch(h, c, extent(4))), kept, "{what} {before} {after}");
            assert_eq!(h.store.stats().extents_used, 2, "{what} {before} {after}");
        };
        check(&mut h, "at once");
        // It costs nothing to forget what is not there, whether it never was or is no more.
        let nothing = |h: &mut Harness| {
            let (records, awake) = (h.store.stats().records, h.store.stats().extents_awake);
            for op in
                [forget(c, 1..4), forget(c, 5..CHUNK_EXTENTS), forget(chunk(9, 9), 0..9), forget(c, 4..4)]
            {
                h.done(op);
            }
            assert_eq!((h.store.stats().records, h.store.stats().extents_awake), (records, awake));
        };
        nothing(&mut h);
        h = disk.reopen(h, after);
        check(&mut h, "after a restart");
        nothing(&mut h);
        h = disk.reopen(h, true);
        check(&mut h, "after a checkpoint");
        // Two extents with a row of `map` each and one for the group that was written.
        assert_eq!(disk.watch.rows_of(c), 4, "{before} {after}");
        h.done(forget(c, 0..CHUNK_EXTENTS));
        assert_eq!(h.store.stats().extents_used, 0);
        h.shut_down();
        assert_eq!((clean(&disk.path).extents, disk.watch.rows_of(c)), (0, 0));
    }
}

#[test]
fn what_is_written_again_is_all_that_is_there() {
    for (before, between, after) in (0..8).map(|n| (n & 1 == 0, n & 2 == 0, n & 4 == 0)).collect::<Vec<_>>() {
        let disk = Disk::new();
        let mut h = disk.open();
        for n in 1..3 {
            h.done(write(from(), extent(n), version(7, 100)));
            h.done(write(from(), range(n * 256, 4), version(7, 101)));
        }
        h.done(write(from(), extent(3), version(7, 102)));
        if before {
            h = disk.reopen(h, true);
        }
        h.done(forget(from(), 1..2));
        h.done(zero(from(), extent(2), version(7, 103)));
        h.done(forget(from(), 2..3));
        h.done(promote(3, 0));
        if between {
            h = disk.reopen(h, true);
        }
        // Of lower versions, in another group.
        h.done(write(from(), range(256 + 70, 2), version(1, 1)));
        h.done(zero(from(), range(512 + 70, 2), version(1, 2)));
        h.done(write(from(), range(768 + 70, 2), version(1, 3)));
        let what = format!("{before} {between} {after}");
        for life in 0..3 {
            for (n, (seq, mapped)) in [(1, (1, true)), (2, (2, false)), (3, (3, true))] {
                let runs = fetch(&mut h, from(), extent(n));
                let expected = [
                    run(n * 256, 70, Version::NEVER, false),
                    run(n * 256 + 70, 2, version(1, seq), mapped),
                    run(n * 256 + 72, 184, Version::NEVER, false),
                ];
                assert_eq!(runs, expected, "{what} life {life}");
            }
            h = disk.reopen(h, after || life > 0);
        }
        // Each a row of `map`, and one for the group.
        assert_eq!(disk.watch.rows_of(from()), 6, "{what}");
    }
}

/// However much was staged there once.
#[test]
fn an_extent_that_was_promoted_costs_nothing_any_more() {
    let disk = Disk::new();
    let often = StoreConfig { checkpoint_ns_max: 50_000_000, ..eager(&disk.watch) };
    let mut h = Harness::open(&disk.path, often);
    let extents = 60;
    let mut seq = 0;
    // Every fifth is forgotten: they are the same ones each time.
    for _ in 0..4 {
        for n in 0..extents {
            seq += 1;
            let place = n % 20;
            h.done(write(from(), extent(place), version(1, seq)));
            if seq % 3 == 0 {
                h.turn(Duration::from_millis(1));
            }
            if seq % 5 == 0 {
                h.done(write(from(), range(place * 256, 2), version(2, seq)));
            }
            h.done(if seq % 5 == 0 { forget(from(), place..place + 1) } else { promote(place, seq) });
        }
    }
    checkpoint(&mut h);
    assert_eq!(disk.watch.rows_of(from()), 0);
    assert_eq!((extents_of(&h, from()), h.store.stats().extents_used), (0, 16));
    let end = Instant::now() + Duration::from_secs(30);
    while h.store.stats().extents_awake > 2 {
        assert!(Instant::now() < end, "{:?}", h.store.stats());
        h.turn(if h.store.has_work() { Duration::ZERO } else { Duration::from_millis(5) });
    }
    // Those at rest are those of the other one.
    let records = h.store.stats().records;
    h.done(forget(from(), 0..CHUNK_EXTENTS));
    assert_eq!(h.store.stats().records, records);
    h.shut_down();
    assert_eq!(clean(&disk.path).extents, 16);
}

/// Begins to fetch an extent block by block, as after an error, and lets `change` happen before it gets far. Returns the place
/// that it reads.
fn fetch_across(h: &mut Harness, watch: &Watch, chunk: ChunkId, change: DiskOp) -> (u64, Range<u64>) {
    watch.set(|seen| (seen.fail_next_read, seen.slow_reads) = (true, true));
    let read = h.submit(DiskOp::Fetch { chunk, range: extent(1) });
    let start = watch.0.lock().unwrap().read_at;
    let change = h.submit(change);
    assert_eq!(h.wait(change), Ok(DiskReply::Done));
    assert!(!h.answers.contains_key(&read), "the read was too quick");
    (read, start..start + EXTENT_BYTES)
}

fn open_staged(path: &Path, watch: &Watch) -> Harness {
    let mut h = Harness::open(path, eager(watch));
    h.done(write(to(), extent(1), version(1, 1)));
    h.done(write(from(), extent(1), version(2, 1)));
    h
}

#[test]
fn a_read_that_is_under_way_finds_an_extent_where_it_has_gone() {
    let disk = Disk::new();
    // The old place can't be read, which is nobody's business any more.
    let mut h = open_staged(&disk.path, &disk.watch);
    let (read, place) = fetch_across(&mut h, &disk.watch, to(), promote(1, 0));
    disk.watch.set(|seen| seen.unreadable = place);
    let answer = h.wait(read);
    assert_eq!(good_runs(&answer), [run(256, 256, version(2, 1), true)]);
    drop(h);

    // The same for what was promoted away and what was forgotten.
    for op in [promote(1, 0), forget(from(), 0..4)] {
        let disk = Disk::new();
        let mut h = open_staged(&disk.path, &disk.watch);
        let (read, place) = fetch_across(&mut h, &disk.watch, from(), op);
        disk.watch.set(|seen| seen.unreadable = place);
        let answer = h.wait(read);
        assert_eq!(good_runs(&answer), never(1));
    }
}

#[test]
fn a_read_that_is_under_way_never_takes_one_component_for_another() {
    let disk = Disk::new();
    let mut h = open_staged(&disk.path, &disk.watch);
    let (read, _) = fetch_across(&mut h, &disk.watch, from(), promote(1, 0));
    // Goes to the place that is being read for the other one.
    let data_bytes = disk.watch.data_bytes();
    h.done(write(to(), range(505, 7), version(3, 1)));
    while disk.watch.data_bytes() == data_bytes && !h.answers.contains_key(&read) {
        h.turn(Duration::from_millis(1));
    }
    assert!(!h.answers.contains_key(&read), "the read was too quick");
    let answer = h.wait(read);
    assert_eq!(good_runs(&answer), never(1));

    // A place that is being read is nobody else's, even after the checkpoint.
    let disk = Disk::new();
    let mut h = open_staged(&disk.path, &disk.watch);
    for n in 0..h.store.stats().extents - 2 {
        h.done(write(chunk(2, 0), extent(n), version(1, 1)));
    }
    disk.watch.set(|seen| (seen.fail_next_read, seen.slow_reads) = (true, true));
    let read = h.submit(DiskOp::Fetch { chunk: to(), range: extent(1) });
    let promoted = h.submit(promote(1, 0));
    assert_eq!(h.wait(promoted), Ok(DiskReply::Done));
    let other = h.submit(write(chunk(3, 0), extent(0), version(9, 9)));
    checkpoint(&mut h);
    assert!(!h.answers.contains_key(&read), "the read was too quick");
    let answer = h.wait(read);
    assert_eq!(good_runs(&answer), [run(256, 256, version(1, 1), true)]);
    assert!(!h.answers.contains_key(&other), "it got a place that was being read");
    assert_eq!(h.wait(other), Ok(DiskReply::Done));
    assert_eq!(fetch(&mut h, to(), extent(1)), [run(256, 256, version(2, 1), true)]);
    h.shut_down();
    clean(&disk.path);
}
