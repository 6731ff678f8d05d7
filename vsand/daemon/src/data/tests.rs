//! The loop itself, on a thread, with a disk in a temporary directory and no cluster.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ferro_protocol::ids::{ChunkId, ChunkIndex, ClusterId, DiskId, Epoch, HostId, ObjectId, Seq, Version};
use ferro_protocol::units::{BLOCK_BYTES, BlockRange};
use vsand_core::disk::{DiskOp, DiskReply, Ticket};
use vsand_store::ring::Ring;
use vsand_store::{Fault, FormatOptions, Store, StoreConfig};

use super::DISKS_STOP_MAX;
use super::port::{Command, DataHandle, channel};

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
    let thread = std::thread::spawn(move || super::run(port));
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
