//! The loop itself, on a thread, with a disk in a temporary directory and no cluster.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ferro_protocol::ids::{ChunkId, ChunkIndex, ClusterId, DiskId, Epoch, HostId, ObjectId, Seq, Version};
use ferro_protocol::units::{BLOCK_BYTES, BlockRange, CHUNK_BYTES};
use vsand_core::directory::{
    Basis, Command as Directory, HostRecord, LockKind, ObjectRecord, Outcome, Policy, State,
};
use vsand_core::disk::{DiskOp, DiskReply, Ticket};
use vsand_core::lease::{LEASE, Renewal};
use vsand_core::owner::guest::{GuestRequest, GuestResult};
use vsand_core::time::Now;
use vsand_store::ring::Ring;
use vsand_store::{Fault, FormatOptions, Store, StoreConfig};

use super::port::{Command, DataHandle, channel};
use super::{DISKS_STOP_MAX, DataLoop, clock};

const DISK: DiskId = DiskId::from_bytes([1; 16]);

/// A disk with a change that is in its journal only.
fn disk(dir: &Path) -> PathBuf {
    let path = dir.join("disk");
    std::fs::create_dir(&path).unwrap();
    let options = FormatOptions {
        disk: DISK,
        cluster: ClusterId::from_bytes([2; 16]),
        host: HostId::from_bytes([3; 16]),
        capacity_bytes: 40 << 20,
        journal_bytes: Some(5 << 20),
        tiny: true,
    };
    Store::format(&path, &options).unwrap();
    let (mut store, _) = Store::open(&path, StoreConfig::default()).unwrap();
    let mut ring = Ring::new(64).unwrap();
    let write = DiskOp::Write {
        chunk: ChunkId { object: ObjectId::from_bytes([4; 16]), index: ChunkIndex(0) },
        range: BlockRange::one(7).unwrap(),
        version: Version { epoch: Epoch(1), seq: Seq(1) },
        watermark: Seq(0),
        data: Bytes::from(vec![5; BLOCK_BYTES]),
    };
    store.submit(0, &mut ring, Ticket(1), write);
    let answer = loop {
        store.flush_batch(0, &mut ring);
        if let Some(answer) = store.poll() {
            break answer;
        }
        ring.wait(Some(Duration::from_secs(1))).unwrap();
        let mut completions = Vec::new();
        ring.completions(usize::MAX, &mut completions);
        for completion in completions {
            store.handle(0, &mut ring, completion);
        }
    };
    assert_eq!(answer, (Ticket(1), Ok(DiskReply::Done)));
    path
}

/// A loop that serves the disk in `path`.
fn serve(path: &Path, fault: Fault) -> (DataHandle, std::thread::JoinHandle<std::io::Result<()>>) {
    // Disks' numbers begin there.
    let config = StoreConfig { owner: 16, debug_faults: true, ..StoreConfig::default() };
    let (mut store, recovery) = Store::open(path, config).unwrap();
    assert_eq!(recovery.replayed, 1, "the change is in the journal");
    assert!(store.set_fault(fault));
    let (data, port, _events) = channel().unwrap();
    let thread = std::thread::spawn(move || super::run(port, Duration::from_secs(300)));
    data.send(Command::AddDisk(Box::new(store))).unwrap();
    (data, thread)
}

#[tokio::test]
async fn a_loop_that_is_told_to_stop_closes_its_disks() {
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path());
    let (data, thread) = serve(&path, Fault::None);
    assert_eq!(data.ask(Command::Stop).await.unwrap(), []);
    thread.join().unwrap().unwrap();
    let (_store, recovery) = Store::open(&path, StoreConfig::default()).unwrap();
    assert_eq!(recovery.replayed, 0, "everything is in its place");
}

#[tokio::test]
async fn a_disk_that_does_not_answer_is_left_when_the_loop_stops() {
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path());
    let (data, thread) = serve(&path, Fault::Hang);
    let began = Instant::now();
    assert_eq!(data.ask(Command::Stop).await.unwrap(), [DISK]);
    let took = began.elapsed();
    assert!(took >= DISKS_STOP_MAX && took < DISKS_STOP_MAX * 3, "{took:?}");
    // It ends well, and nothing waits for the disk.
    thread.join().unwrap().unwrap();
}

/// A loop in this thread, so that a turn's time can be held still.
fn held() -> DataLoop {
    let (_data, port, _events) = channel().unwrap();
    DataLoop::new(Ring::new(64).unwrap(), port, Duration::from_secs(300))
}

/// The directory's record of a volume with one copy on the disk, owned by this host, its first chunk placed.
fn record() -> Arc<ObjectRecord> {
    let host = HostId::from_bytes([3; 16]);
    let mut state = State::default();
    let mut index = 0;
    let mut apply = |command| {
        index += 1;
        state.apply(index, command).unwrap()
    };
    let known = HostRecord {
        id: host,
        name: "h".to_owned(),
        address: ([10, 0, 0, 1], 7_000).into(),
        fault_domain: "h".to_owned(),
        joined_unix_s: 0,
        lease: 0,
    };
    apply(Directory::PutHost { host: known });
    let path = "/d".to_owned();
    apply(Directory::PutDisk { disk: DISK, host, path, capacity_extents: 1 << 20, used_extents: 0 });
    let (object, policy) = (ObjectId::from_bytes([4; 16]), Policy::Mirror { copies: 1 });
    let name = "v".parse().unwrap();
    apply(Directory::CreateObject { object, name, size_bytes: CHUNK_BYTES, policy, unix_s: 0 });
    let kind = LockKind::Transfer;
    let Outcome::Object(record) =
        apply(Directory::Acquire { object, epoch: Epoch(0), host, kind, unix_s: 0 })
    else {
        panic!("no record")
    };
    let basis = Basis { object, epoch: record.epoch, revision: record.revision };
    let Outcome::Object(record) = apply(Directory::PlaceChunk { basis, chunk: ChunkIndex(0), near: host })
    else {
        panic!("no record")
    };
    record
}

/// A turn begins while the lease runs, and the process is stopped within it until after its end: what a disk has answered by
/// then must not reach the guest, for somebody else may own the volume.
#[test]
fn a_read_is_not_answered_by_a_lease_that_ended_within_the_turn() {
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path());
    let (store, _) = Store::open(&path, StoreConfig { owner: 16, ..StoreConfig::default() }).unwrap();
    let mut data = held();
    let record = record();
    let (object, epoch) = (record.id, record.epoch);
    // Long ago: renewals that were sent since then say something of this lock.
    let acquired = clock::mono() - LEASE * 2;
    data.command(clock::now(), Command::AddDisk(Box::new(store)));
    let config = vsand_core::owner::Config::new(HostId::from_bytes([3; 16]));
    data.command(clock::now(), Command::Own { record, acquired, config, socket: None });
    let turn = |data: &mut DataLoop, now: Now| {
        let mut completions = Vec::new();
        data.ring.wait(Some(Duration::from_millis(10))).unwrap();
        data.ring.completions(usize::MAX, &mut completions);
        completions.into_iter().for_each(|completion| data.complete(now, completion));
        data.look_after(now);
        data.pump(now);
        data.flush(now);
    };
    let serving = |data: &DataLoop| data.volumes.values().all(|v| v.owner.main().is_serving());
    // What waits in memory for its place would be answered at once, while the lease still runs.
    let at_rest = |data: &DataLoop| data.disks.values().all(|d| d.store.stats().overlay_blocks == 0);
    while !(serving(&data) && at_rest(&data)) {
        turn(&mut data, clock::now());
    }
    // The lease ends in a second and a half.
    let left = Duration::from_millis(1_500);
    let sent = clock::mono() + left - LEASE;
    data.command(clock::now(), Command::Lease(Renewal { sent, locks: vec![(object, epoch)] }));
    let until = sent + LEASE;
    let (answer, mut answered) = tokio::sync::oneshot::channel();
    let request = GuestRequest::Read { offset: 7 * BLOCK_BYTES as u64, bytes: BLOCK_BYTES as u64 };
    let now = clock::now();
    assert!(now.mono < until, "the lease still runs");
    data.command(now, Command::Transfer { object, request, answer });
    data.pump(now);
    data.flush(now);
    assert!(answered.try_recv().is_err(), "the disk is asked, and has not answered yet");
    std::thread::sleep(until.since(now.mono) + Duration::from_millis(50));
    for _ in 0..20 {
        // Still the same turn, as far as it knows.
        turn(&mut data, now);
    }
    assert!(answered.try_recv().is_err(), "answered after the lease had ended");
    // With a new one it is.
    let renewal = Renewal { sent: clock::mono(), locks: vec![(object, epoch)] };
    data.command(clock::now(), Command::Lease(renewal));
    let result = loop {
        turn(&mut data, clock::now());
        if let Ok(result) = answered.try_recv() {
            break result;
        }
    };
    assert!(matches!(result, GuestResult::Data(_)), "{result:?}");
}
