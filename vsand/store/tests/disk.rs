//! One disk through its public face: what it stores, what it refuses, how it fails.

#[allow(unreachable_pub, reason = "shared with other test binaries")]
mod common;

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{
    Harness, block_content, chunk, clean, content, fresh, object, options, range, temp_dir, version, write,
    zero,
};
use ferro_protocol::ids::{ChunkIndex, Epoch, HostId, Seq, Version};
use ferro_protocol::peer::Run;
use ferro_protocol::units::{BLOCK_BYTES, CHUNK_BLOCKS};
use vsand_core::disk::{DiskError, DiskOp, DiskReply};
use vsand_store::{
    Fault, FileKind, FormatOptions, IoHook, IoRequest, OpenError, Store, StoreConfig, Verdict, check,
};

const MIB: u64 = 1 << 20;

#[test]
fn data_reads_back_before_and_after_every_kind_of_restart() {
    let (_dir, path, mut disk) = fresh(40 * MIB);
    let c = chunk(1, 0);
    let sizes = [
        (0, 1),
        (5, 3),
        (250, 12),
        (512, 256),
        (768, 256),
        (700, 200),
        (1030, 64),
        (3, 1),
        (CHUNK_BLOCKS - 1, 1),
    ];
    for (n, (first, count)) in sizes.into_iter().enumerate() {
        disk.done(write(c, range(first, count), version(1, n as u64 + 1)));
    }
    let check_all = |disk: &mut Harness| {
        for (n, (first, count)) in sizes.into_iter().enumerate() {
            let data = disk.read(c, range(first, count));
            for (at, block) in (first..first + count).enumerate() {
                let newest = sizes.iter().rposition(|&(f, c)| (f..f + c).contains(&block)).unwrap();
                assert!(newest >= n);
                let expected = block_content(block, version(1, newest as u64 + 1));
                assert!(data[at * BLOCK_BYTES..(at + 1) * BLOCK_BYTES] == expected, "block {block}");
            }
        }
        assert!(disk.read(c, range(6000, 256)).iter().all(|&b| b == 0));
    };
    check_all(&mut disk);
    // A crash: nothing but what is stable is left.
    drop(disk);
    assert!(clean(&path).batches > 0);
    let mut disk = Harness::open(&path, StoreConfig::default());
    check_all(&mut disk);
    disk.shut_down();
    assert_eq!(clean(&path).batches, 0);
    let mut disk = Harness::open(&path, StoreConfig::default());
    check_all(&mut disk);
    let stats = disk.store.stats();
    assert!(stats.data_reads > 0);
    assert_eq!(stats.files.read.latency.count, stats.data_reads);
    assert!(stats.files.read.bytes >= stats.data_reads * BLOCK_BYTES as u64, "{stats:?}");
    assert_eq!(disk.store.inventory()[0].chunk, c);
    assert_eq!(disk.store.inventory()[0].extents, disk.store.stats().extents_used);
}

#[test]
fn older_versions_are_skipped_and_an_install_is_not() {
    let (_dir, _path, mut disk) = fresh(40 * MIB);
    let c = chunk(1, 7);
    disk.done(write(c, range(10, 4), version(2, 5)));
    disk.done(write(c, range(8, 4), version(1, 900)));
    disk.done(zero(c, range(10, 1), version(2, 4)));
    disk.done(write(c, range(12, 1), version(2, 5)));
    let fetch = DiskOp::Fetch { chunk: c, range: range(7, 8) };
    let Ok(DiskReply::Runs(runs, data)) = disk.run(fetch.clone()) else { panic!() };
    let run = |first, count, version, mapped| Run { range: range(first, count), version, mapped };
    let expected = [
        run(7, 1, Version::NEVER, false),
        run(8, 2, version(1, 900), true),
        run(10, 4, version(2, 5), true),
        run(14, 1, Version::NEVER, false),
    ];
    assert_eq!(runs, expected);
    assert_eq!(data, [content(range(8, 2), version(1, 900)), content(range(10, 4), version(2, 5))].concat());

    let lower = version(1, 3);
    let runs =
        vec![run(9, 2, lower, true), run(11, 1, Version::NEVER, false), run(12, 1, version(9, 9), false)];
    disk.done(DiskOp::Install { chunk: c, runs, data: content(range(9, 2), lower) });
    let Ok(DiskReply::Runs(runs, data)) = disk.run(fetch) else { panic!() };
    let expected = [
        run(7, 1, Version::NEVER, false),
        run(8, 1, version(1, 900), true),
        run(9, 2, lower, true),
        run(11, 1, Version::NEVER, false),
        run(12, 1, version(9, 9), false),
        run(13, 1, version(2, 5), true),
        run(14, 1, Version::NEVER, false),
    ];
    assert_eq!(runs, expected);
    assert_eq!(data.len(), 4 * BLOCK_BYTES);
    disk.done(DiskOp::Install { chunk: c, runs: vec![], data: Bytes::new() });
}

#[test]
fn lists_and_summaries_tell_what_changed() {
    let (_dir, path, mut disk) = fresh(40 * MIB);
    let c = chunk(1, 2);
    assert_eq!(disk.run(DiskOp::Summarise { object: object(1) }), Ok(DiskReply::Summary(vec![])));
    for (n, first) in [300, 301, 302, 9, 70_000].into_iter().enumerate() {
        let data = content(range(first, 1), version(1, n as u64 + 1));
        let (range, version) = (range(first, 1), version(1, n as u64 + 1));
        disk.done(DiskOp::Write { chunk: c, range, version, watermark: Seq(n as u64 / 2), data });
    }
    disk.done(DiskOp::SetEpoch { object: object(1), epoch: Epoch(4) });
    disk.done(DiskOp::SetEpoch { object: object(2), epoch: Epoch(6) });
    for life in 0..3 {
        let list =
            |since, from_block, runs_max| DiskOp::List { chunk: c, since: Seq(since), from_block, runs_max };
        let run = |first, seq| Run { range: range(first, 1), version: version(1, seq), mapped: true };
        let all = vec![run(9, 4), run(300, 1), run(301, 2), run(302, 3), run(70_000, 5)];
        assert_eq!(disk.run(list(0, 0, 100)), Ok(DiskReply::List(all.clone(), None)), "life {life}");
        assert_eq!(disk.run(list(2, 0, 2)), Ok(DiskReply::List(vec![all[0], all[3]], Some(70_000))));
        assert_eq!(disk.run(list(2, 302, 9)), Ok(DiskReply::List(all[3..].to_vec(), None)));
        let Ok(DiskReply::Summary(summary)) = disk.run(DiskOp::Summarise { object: object(1) }) else {
            panic!()
        };
        assert_eq!((summary.len(), summary[0].index), (1, ChunkIndex(2)));
        assert_eq!((summary[0].watermark, summary[0].seq_max), (Seq(2), Seq(5)));
        assert_eq!(summary[0].tail, [all[0], all[3], all[4]]);
        let mut sealed: Vec<_> = disk.store.sealed().collect();
        sealed.sort();
        assert_eq!(sealed, [(object(1), Epoch(4)), (object(2), Epoch(6))]);
        if life == 0 {
            drop(disk);
        } else {
            disk.shut_down();
        }
        disk = Harness::open(&path, StoreConfig::default());
    }
    disk.done(DiskOp::Remove { object: object(1), chunk: Some(ChunkIndex(2)) });
    assert_eq!(disk.run(DiskOp::Summarise { object: object(1) }), Ok(DiskReply::Summary(vec![])));
    assert_eq!(disk.store.sealed().count(), 2);
    disk.done(DiskOp::Remove { object: object(1), chunk: None });
    disk.done(write(chunk(1, 3), range(0, 1), version(7, 7)));
    for life in 0..2 {
        assert_eq!(disk.store.sealed().collect::<Vec<_>>(), [(object(2), Epoch(6))]);
        assert_eq!(disk.store.inventory().len(), 1);
        assert!(disk.read(c, range(300, 3)).iter().all(|&b| b == 0));
        if life == 0 {
            disk.shut_down();
            clean(&path);
            disk = Harness::open(&path, StoreConfig::default());
        }
    }
}

#[test]
fn a_full_disk_says_so_changes_nothing_and_takes_data_again_after_a_discard() {
    let (_dir, path, mut disk) = fresh(13 * MIB);
    let extents = disk.store.stats().extents;
    let c = chunk(1, 0);
    for extent in 0..extents {
        disk.done(write(c, range(extent * 256, 1 + extent % 2 * 255), version(1, u64::from(extent) + 1)));
    }
    // The second extent is there, the third not: nothing of it is written.
    let two = range(extents * 256 - 10, 20);
    assert_eq!(disk.run(write(c, two, version(2, 100))), Err(DiskError::Full));
    let Ok(DiskReply::Runs(runs, _)) = disk.run(DiskOp::Fetch { chunk: c, range: two }) else { panic!() };
    assert!(runs.iter().all(|r| r.version != version(2, 100)));
    disk.done(write(c, range(0, 256), version(2, 101)));
    disk.done(write(c, range(256, 256), version(2, 102)));
    disk.done(zero(c, range(0, CHUNK_BLOCKS), version(3, 200)));
    for round in 0..3 {
        for extent in 0..extents {
            disk.done(write(chunk(2, round), range(extent * 256, 256), version(1, 1)));
        }
        assert_eq!(disk.run(write(chunk(2, round), range(5000, 1), version(1, 1))), Err(DiskError::Full));
        disk.done(DiskOp::Remove { object: object(2), chunk: None });
    }
    disk.shut_down();
    assert_eq!(clean(&path).extents, 0);
}

#[test]
fn what_is_kept_for_an_object_others_do_not_get() {
    let (_dir, _path, mut disk) = fresh(13 * MIB);
    let extents = disk.store.stats().extents;
    let (kept, other) = (chunk(1, 0), chunk(2, 0));
    let extent = |c, n: u32, seq| write(c, range(n * 256, 256), version(1, seq));
    disk.done(extent(kept, 0, 1));
    disk.store.keep([(kept.object, 5)].into());
    assert_eq!((disk.store.stats().extents_used, disk.store.stats().extents_kept), (1, 4));
    for n in 0..extents - 5 {
        disk.done(extent(other, n, 1));
    }
    assert_eq!(disk.run(extent(other, extents, 1)), Err(DiskError::Full));
    assert_eq!(disk.run(write(other, range(extents * 256, 1), version(1, 1))), Err(DiskError::Full));
    // What it has it may write over, with and without a fresh extent.
    disk.done(write(other, range(0, 1), version(1, 2)));
    disk.done(extent(other, 1, 3));
    for n in 1..5 {
        disk.done(extent(kept, n, 1));
    }
    assert_eq!(disk.store.stats().extents_kept, 0);
    assert_eq!(disk.run(extent(kept, 5, 1)), Err(DiskError::Full));
    // What it gives up others do not get either, until nothing is kept any more.
    disk.done(zero(kept, range(0, 256), version(1, 2)));
    assert_eq!(disk.run(extent(other, extents, 2)), Err(DiskError::Full));
    disk.store.keep([].into());
    disk.done(extent(other, extents, 2));
}

#[test]
fn many_writers_at_once_share_batches_and_agree_with_a_later_look() {
    let (_dir, path, mut disk) = fresh(60 * MIB);
    let mut seq = 0;
    let mut tickets = Vec::new();
    for round in 0..40_u32 {
        for n in 0..50_u32 {
            seq += 1;
            let count = [1, 1, 1, 2, 17, 64, 256][(n % 7) as usize];
            let first = (n * 97 + round * 31) % 2000;
            tickets.push(disk.submit(write(chunk(1, n % 3), range(first, count), version(1, seq))));
            if n % 9 == 0 {
                seq += 1;
                tickets.push(disk.submit(zero(chunk(1, n % 3), range(first, count), version(1, seq))));
            }
        }
        disk.turn(Duration::ZERO);
    }
    for ticket in tickets {
        assert_eq!(disk.wait(ticket), Ok(DiskReply::Done));
    }
    let stats = disk.store.stats();
    assert!(
        stats.batches * 3 < stats.records && stats.checkpoints > 3 && stats.direct_writes > 0,
        "{stats:?}"
    );
    let look = |disk: &mut Harness| {
        let mut all = Vec::new();
        for c in 0..3 {
            for first in (0..2304).step_by(256) {
                all.push(disk.run(DiskOp::Fetch { chunk: chunk(1, c), range: range(first, 256) }).unwrap());
            }
        }
        all
    };
    let before = look(&mut disk);
    for reply in &before {
        let DiskReply::Runs(runs, data) = reply else { panic!() };
        let expected: Vec<u8> =
            runs.iter().filter(|r| r.mapped).flat_map(|r| content(r.range, r.version)).collect();
        assert!(*data == expected);
    }
    drop(disk);
    clean(&path);
    let mut disk = Harness::open(&path, StoreConfig { cached_extents: 2, ..StoreConfig::default() });
    assert!(look(&mut disk) == before);
    disk.shut_down();
    clean(&path);
    let mut disk = Harness::open(&path, StoreConfig { cached_extents: 2, ..StoreConfig::default() });
    assert!(look(&mut disk) == before);
}

/// Each turn encodes some of them: who slept in between, because no completion is there, would never be done.
#[test]
fn the_last_checkpoint_of_many_extents_waits_for_nothing() {
    let (_dir, path, mut h) = fresh(300 << 20);
    let extents = 200;
    for extent in 0..extents {
        h.done(write(chunk(1, 0), range(extent * 256, 1), version(1, u64::from(extent) + 1)));
    }
    h.done(zero(chunk(1, 0), range(0, extents * 256), version(1, 1_000)));
    h.store.shutdown(h.now(), &mut h.ring);
    let (mut slept, wait) = (0, Duration::from_secs(2));
    while !h.store.is_shut_down() {
        let (began, work) = (Instant::now(), h.store.has_work());
        h.turn(if work { Duration::ZERO } else { wait });
        slept += u32::from(!work && began.elapsed() >= wait);
        assert!(slept < 3, "it has work to do and does not say so: {:?}", h.store.stats());
    }
    drop(h);
    assert_eq!(clean(&path).extents, 0);
}

#[test]
fn a_flipped_bit_is_named_and_a_rewrite_heals_it() {
    let (_dir, path, mut disk) = fresh(40 * MIB);
    let c = chunk(1, 0);
    disk.done(write(c, range(0, 40), version(1, 1)));
    disk.shut_down();
    let data = std::fs::OpenOptions::new().read(true).write(true).open(path.join("data")).unwrap();
    let wanted = block_content(33, version(1, 1));
    let mut found = vec![0; BLOCK_BYTES];
    let at = (0..30 * 256).map(|n| n * BLOCK_BYTES as u64).find(|&at| {
        data.read_exact_at(&mut found, at).unwrap();
        found == wanted
    });
    data.write_all_at(&[wanted[0] ^ 4], at.unwrap()).unwrap();
    data.sync_all().unwrap();
    assert_eq!(check::verify(&path).unwrap().findings, [check::Finding::BadBlock { chunk: c, block: 33 }]);
    let mut disk = Harness::open(&path, StoreConfig::default());
    assert_eq!(
        disk.run(DiskOp::Read { chunk: c, range: range(20, 20) }),
        Err(DiskError::BadBlocks(vec![33]))
    );
    assert_eq!(disk.read(c, range(0, 33)), content(range(0, 33), version(1, 1)));
    let runs = vec![Run { range: range(33, 1), version: version(1, 1), mapped: true }];
    disk.done(DiskOp::Install { chunk: c, runs, data: content(range(33, 1), version(1, 1)) });
    assert_eq!(disk.read(c, range(0, 40)), content(range(0, 40), version(1, 1)));
    disk.shut_down();
    clean(&path);
}

/// Lets requests fail that a function names.
struct Failing<F>(F);

impl<F: FnMut(&IoRequest<'_>) -> Verdict + Send> IoHook for Failing<F> {
    fn issue(&mut self, _id: u64, request: &IoRequest<'_>) -> Verdict {
        (self.0)(request)
    }
    fn done(&mut self, _id: u64) {}
}

fn with_hook(hook: impl FnMut(&IoRequest<'_>) -> Verdict + Send + 'static) -> StoreConfig {
    StoreConfig { hook: Some(Box::new(Failing(hook))), ..StoreConfig::default() }
}

#[test]
fn unreadable_blocks_are_found_one_by_one() {
    let (_dir, path, mut disk) = fresh(40 * MIB);
    let c = chunk(1, 0);
    disk.done(write(c, range(0, 20), version(1, 1)));
    disk.shut_down();
    let bad = 7 * BLOCK_BYTES as u64..8 * BLOCK_BYTES as u64;
    let mut disk = Harness::open(
        &path,
        with_hook(move |request| match request {
            IoRequest::Read { offset, len, .. } if *offset < bad.end && bad.start < offset + *len as u64 => {
                Verdict::Fail(libc::EIO)
            }
            _ => Verdict::Pass,
        }),
    );
    assert_eq!(disk.run(DiskOp::Read { chunk: c, range: range(0, 20) }), Err(DiskError::BadBlocks(vec![7])));
    assert_eq!(disk.read(c, range(8, 12)), content(range(8, 12), version(1, 1)));
    disk.done(write(c, range(7, 1), version(1, 2)));
    assert_eq!(disk.read(c, range(7, 1)), content(range(7, 1), version(1, 2)), "it is in the journal now");
}

#[test]
fn a_write_or_flush_that_fails_kills_the_disk_and_loses_nothing_acknowledged() {
    type Case = (&'static str, fn(&IoRequest<'_>) -> Verdict);
    let cases: [Case; 6] = [
        ("journal", |r| match r {
            IoRequest::Write { file: FileKind::Journal, .. } => Verdict::Fail(libc::EIO),
            _ => Verdict::Pass,
        }),
        ("short journal", |r| match r {
            IoRequest::Write { file: FileKind::Journal, .. } => Verdict::Short(4096),
            _ => Verdict::Pass,
        }),
        ("data", |r| match r {
            IoRequest::Write { file: FileKind::Data, .. } => Verdict::Fail(libc::EIO),
            _ => Verdict::Pass,
        }),
        ("short data", |r| match r {
            IoRequest::Write { file: FileKind::Data, .. } => Verdict::Short(512),
            _ => Verdict::Pass,
        }),
        (
            "flush",
            |r| if matches!(r, IoRequest::Sync { .. }) { Verdict::Fail(libc::EIO) } else { Verdict::Pass },
        ),
        ("metadata", |r| match r {
            IoRequest::Meta(ops) if ops.len() > 1 => Verdict::Fail(libc::EIO),
            _ => Verdict::Pass,
        }),
    ];
    for (name, hook) in cases {
        let (_dir, path, mut disk) = fresh(40 * MIB);
        let c = chunk(1, 0);
        disk.done(write(c, range(0, 30), version(1, 1)));
        drop(disk);
        let mut disk = Harness::open(&path, with_hook(hook));
        let mut tickets: Vec<u64> =
            (2..6).map(|n| disk.submit(write(c, range(0, 8), version(1, n)))).collect();
        tickets.push(disk.submit(write(c, range(256, 256), version(1, 9))));
        tickets.push(disk.submit(DiskOp::Read { chunk: c, range: range(0, 256) }));
        disk.store.shutdown(0, &mut disk.ring);
        while disk.store.dead().is_none() {
            disk.turn(Duration::from_millis(20));
        }
        disk.collect();
        for ticket in tickets {
            assert!(disk.answers.contains_key(&ticket), "{name}: nobody is left waiting");
        }
        for op in [write(c, range(0, 1), version(1, 99)), DiskOp::Read { chunk: c, range: range(0, 1) }] {
            assert!(matches!(disk.run(op), Err(DiskError::Dead(_))), "{name}");
        }
        drop(disk);
        clean(&path);
        let mut disk = Harness::open(&path, StoreConfig::default());
        assert_eq!(disk.read(c, range(10, 20)), content(range(10, 20), version(1, 1)), "{name}");
    }
}

#[test]
fn faults_are_played_only_where_that_is_allowed() {
    let (_dir, path, mut disk) = fresh(40 * MIB);
    let c = chunk(1, 0);
    disk.done(write(c, range(0, 1), version(1, 1)));
    assert!(disk.store.set_fault(Fault::Hang));
    let ticket = disk.submit(write(c, range(0, 1), version(1, 2)));
    for _ in 0..5 {
        disk.turn(Duration::from_millis(5));
    }
    assert!(!disk.answers.contains_key(&ticket));
    drop(disk);
    let mut disk = Harness::open(&path, StoreConfig::default());
    assert!(!disk.store.set_fault(Fault::WriteEio));
    disk.done(write(c, range(0, 1), version(1, 3)));
}

#[test]
fn what_is_no_disk_or_not_ours_is_refused() {
    let dir = temp_dir();
    let path = dir.path().join("disk");
    let refused = |path: &std::path::Path| Store::open(path, StoreConfig::default()).err().unwrap();
    let small = FormatOptions { tiny: false, ..options(500 * MIB) };
    assert!(matches!(Store::format(&path, &small), Err(OpenError::TooSmall { .. })));
    assert!(matches!(Store::format(&path, &options(4 * MIB)), Err(OpenError::Journal { .. })));
    assert!(matches!(refused(dir.path()), OpenError::NotFormatted(_)));
    std::fs::create_dir(dir.path().join("other")).unwrap();
    assert!(matches!(Store::format(dir.path(), &options(40 * MIB)), Err(OpenError::NotEmpty(_))));
    Store::format(&path, &options(40 * MIB)).unwrap();
    assert!(matches!(Store::format(&path, &options(40 * MIB)), Err(OpenError::NotEmpty(_))));

    let (mut store, recovery) = Store::open(&path, StoreConfig::default()).unwrap();
    assert!(matches!(refused(&path), OpenError::Locked(_)));
    assert_eq!(
        (recovery.superblock.host, recovery.superblock_repaired),
        (HostId::from_bytes([3; 16]), false)
    );
    store.adopt(HostId::from_bytes([8; 16])).unwrap();
    drop(store);
    assert_eq!(Store::identify(&path).unwrap().host, HostId::from_bytes([8; 16]));

    let superblock =
        std::fs::OpenOptions::new().read(true).write(true).open(path.join("superblock")).unwrap();
    superblock.write_all_at(b"junk", 100).unwrap();
    let (store, recovery) = Store::open(&path, StoreConfig::default()).unwrap();
    assert!(recovery.superblock_repaired);
    drop(store);
    assert_eq!(clean(&path).components, 0);
    superblock.write_all_at(b"junk", 100).unwrap();
    superblock.write_all_at(b"junk", 4196).unwrap();
    assert!(matches!(refused(&path), OpenError::Superblock { .. }));
}

#[test]
fn a_journal_that_lost_an_acknowledged_batch_is_damage() {
    let (_dir, path, mut disk) = fresh(40 * MIB);
    for n in 1..20 {
        disk.done(write(chunk(1, 0), range(n, 1), version(1, u64::from(n))));
    }
    drop(disk);
    let journal = std::fs::OpenOptions::new().read(true).write(true).open(path.join("journal")).unwrap();
    // The last batches may be lost in a power cut, one in the middle may not.
    journal.write_all_at(&[0; 16], 8 * 8192).unwrap();
    let error = Store::open(&path, StoreConfig::default()).err().unwrap();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

#[test]
fn a_batch_of_an_earlier_life_never_follows_one_of_a_later() {
    let (_dir, path, mut disk) = fresh(40 * MIB);
    let c = chunk(1, 0);
    // Two batches under way at once; a power cut takes the first and leaves the second.
    let first = disk.submit(write(c, range(1, 1), version(1, 1)));
    disk.store.flush_batch(0, &mut disk.ring);
    let second = disk.submit(write(c, range(2, 1), version(1, 2)));
    disk.store.flush_batch(0, &mut disk.ring);
    assert_eq!((disk.wait(first), disk.wait(second)), (Ok(DiskReply::Done), Ok(DiskReply::Done)));
    assert_eq!(disk.store.stats().batches, 2);
    drop(disk);
    let journal = std::fs::OpenOptions::new().read(true).write(true).open(path.join("journal")).unwrap();
    journal.write_all_at(&[0; 16], 0).unwrap();
    // The next life writes a batch of the same number and length: the second one would fit behind it.
    let mut disk = Harness::open(&path, StoreConfig::default());
    assert!(disk.read(c, range(0, 8)).iter().all(|&b| b == 0));
    disk.done(write(c, range(3, 1), version(2, 1)));
    drop(disk);
    let mut disk = Harness::open(&path, StoreConfig::default());
    assert!(disk.read(c, range(0, 3)).iter().all(|&b| b == 0), "what was given up comes back");
    assert_eq!(disk.read(c, range(3, 1)), content(range(3, 1), version(2, 1)));
}

#[test]
fn what_a_guest_writes_is_never_taken_for_a_batch() {
    let (_dir, path, mut disk) = fresh(40 * MIB);
    let c = chunk(1, 0);
    disk.done(write(c, range(1, 1), version(1, 1)));
    // The guest knows a whole batch of a disk, all but its key; and even where it lies its CRC would be right.
    let mut forged = std::fs::read(path.join("journal")).unwrap()[..4096].to_vec();
    for (at, value) in [(24, 3_u64), (40, u64::MAX), (64, 0)] {
        forged[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    forged[8..12].fill(0);
    let crc = crc32fast::hash(&forged).to_le_bytes();
    forged[8..12].copy_from_slice(&crc);
    let data = Bytes::from(forged);
    let (range, version) = (range(2, 1), version(1, 2));
    disk.done(DiskOp::Write { chunk: c, range, version, watermark: Seq(0), data: data.clone() });
    drop(disk);
    clean(&path);
    let mut disk = Harness::open(&path, StoreConfig::default());
    assert_eq!(disk.read(c, range), data);
}

/// The first write to a block's place is never answered; whether a second one meets it.
#[derive(Clone, Default)]
struct HeldWrite {
    held: Arc<Mutex<Option<std::ops::Range<u64>>>>,
    met: Arc<AtomicBool>,
}

impl IoHook for HeldWrite {
    fn issue(&mut self, _: u64, request: &IoRequest<'_>) -> Verdict {
        let IoRequest::Write { file: FileKind::Data, offset, bufs, .. } = request else {
            return Verdict::Pass;
        };
        let place = *offset..*offset + bufs.iter().map(|b| b.len() as u64).sum::<u64>();
        let mut held = self.held.lock().unwrap();
        match &*held {
            None => {
                *held = Some(place);
                Verdict::Hang
            }
            Some(held) => {
                self.met.fetch_or(held.start < place.end && place.start < held.end, Ordering::Relaxed);
                Verdict::Pass
            }
        }
    }
    fn done(&mut self, _: u64) {}
}

#[test]
fn nothing_is_written_to_a_place_while_an_older_write_to_it_is_under_way() {
    let dir = temp_dir();
    let path = dir.path().join("disk");
    Store::format(&path, &options(32 << 20)).unwrap();
    let hook = HeldWrite::default();
    let config = StoreConfig {
        checkpoint_ns_max: 0,
        hook: Some(Box::new(hook.clone()) as Box<dyn IoHook>),
        ..StoreConfig::default()
    };
    let mut disk = Harness::open(&path, config);
    let (chunk, few, many) = (chunk(1, 0), range(0, 15), range(0, 16));
    // Small enough to go through the journal. The checkpoint begins to put it in its place, and does not get on.
    disk.done(write(chunk, few, version(1, 1)));
    while hook.held.lock().unwrap().is_none() {
        disk.turn(Duration::from_millis(5));
    }
    // Another block keeps the extent where it is when these are unmapped.
    disk.done(write(chunk, range(100, 1), version(1, 2)));
    disk.done(zero(chunk, few, version(1, 3)));
    // Large enough, and unmapped: it would go straight to its place, and then the older write over it.
    disk.done(write(chunk, many, version(1, 4)));
    assert!(!hook.met.load(Ordering::Relaxed), "two writes to the same place were under way at once");
    assert_eq!(disk.read(chunk, many), content(many, version(1, 4)));
}
