//! A loop around one store, as small as can be, and the content that tests write.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ferro_protocol::ids::{ChunkId, ChunkIndex, ClusterId, DiskId, Epoch, HostId, ObjectId, Seq, Version};
use ferro_protocol::units::{BLOCK_BYTES, BlockRange};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;
use vsand_core::disk::{DiskError, DiskOp, DiskReply, Ticket};
use vsand_store::{Completion, FormatOptions, Ring, Store, StoreConfig, check};

pub type Answer = Result<DiskReply, DiskError>;

/// A directory in memory if there is one that takes direct I/O, else wherever temporary files go.
pub fn temp_dir() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() && takes_direct_io(memory) {
        return tempfile::tempdir_in(memory).unwrap();
    }
    tempfile::tempdir().unwrap()
}

fn takes_direct_io(dir: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    let probe = tempfile::NamedTempFile::new_in(dir).unwrap();
    std::fs::OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(probe.path()).is_ok()
}

pub fn options(capacity_bytes: u64) -> FormatOptions {
    FormatOptions {
        disk: DiskId::from_bytes([1; 16]),
        cluster: ClusterId::from_bytes([2; 16]),
        host: HostId::from_bytes([3; 16]),
        capacity_bytes,
        journal_bytes: Some(5 << 20),
        tiny: true,
    }
}

pub fn object(n: u8) -> ObjectId {
    ObjectId::from_bytes([n; 16])
}

pub fn chunk(n: u8, index: u32) -> ChunkId {
    ChunkId { object: object(n), index: ChunkIndex(index) }
}

pub fn version(epoch: u32, seq: u64) -> Version {
    Version { epoch: Epoch(epoch), seq: Seq(seq) }
}

pub fn range(first: u32, count: u32) -> BlockRange {
    BlockRange::new(first, count).unwrap()
}

/// What a block holds that was written with this version.
pub fn block_content(block: u32, version: Version) -> Vec<u8> {
    let mut state = version.seq.0 << 32 ^ u64::from(version.epoch.0) << 24 ^ u64::from(block) ^ 0x5bd1_e995;
    let mut out = Vec::with_capacity(BLOCK_BYTES);
    while out.len() < BLOCK_BYTES {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        out.extend_from_slice(&(state ^ state >> 29).to_le_bytes());
    }
    out
}

type Made = std::cell::RefCell<HashMap<(u32, Version), std::rc::Rc<Vec<u8>>>>;

thread_local! {
    /// Made once each: in a debug build that is most of the work.
    static MADE: Made = Made::default();
}

/// The same as [`block_content`], remembered.
pub fn known_content(block: u32, version: Version) -> std::rc::Rc<Vec<u8>> {
    let make = || std::rc::Rc::new(block_content(block, version));
    MADE.with_borrow_mut(|made| std::rc::Rc::clone(made.entry((block, version)).or_insert_with(make)))
}

pub fn content(range: BlockRange, version: Version) -> Bytes {
    let blocks: Vec<_> = range.blocks().map(|b| known_content(b, version)).collect();
    blocks.iter().map(|b| b.as_slice()).collect::<Vec<_>>().concat().into()
}

pub fn write(chunk: ChunkId, range: BlockRange, version: Version) -> DiskOp {
    DiskOp::Write { chunk, range, version, watermark: Seq(0), data: content(range, version) }
}

pub fn zero(chunk: ChunkId, range: BlockRange, version: Version) -> DiskOp {
    DiskOp::Zero { chunk, range, version, watermark: Seq(0) }
}

/// A store and its loop.
pub struct Harness {
    pub store: Store,
    pub ring: Ring,
    pub answers: HashMap<u64, Answer>,
    /// Answers in the order in which they came, for those who record.
    pub order: Vec<u64>,
    next: u64,
    start: Instant,
    /// Completions are then held back at random, so that more things meet than on a quick disk.
    pub dawdle: Option<ChaCha8Rng>,
    held: Vec<Completion>,
}

impl Harness {
    pub fn open(dir: &Path, config: StoreConfig) -> Self {
        let (store, _) = Store::open(dir, config).unwrap();
        Self::of(store)
    }

    pub fn of(store: Store) -> Self {
        Self {
            store,
            ring: Ring::new(64).unwrap(),
            answers: HashMap::new(),
            order: Vec::new(),
            next: 0,
            start: Instant::now(),
            dawdle: None,
            held: Vec::new(),
        }
    }

    pub fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Takes an operation without letting anything happen yet.
    pub fn submit(&mut self, op: DiskOp) -> u64 {
        self.next += 1;
        self.store.submit(self.now(), &mut self.ring, Ticket(self.next), op);
        self.next
    }

    /// One turn of the loop; waits for a completion up to this long.
    pub fn turn(&mut self, wait: Duration) {
        self.store.flush_batch(self.now(), &mut self.ring);
        self.collect();
        self.ring.wait(Some(if self.held.is_empty() { wait } else { Duration::ZERO })).unwrap();
        let mut completions = std::mem::take(&mut self.held);
        self.ring.completions(usize::MAX, &mut completions);
        for completion in completions {
            if self.dawdle.as_mut().is_some_and(|rng| rng.random_bool(0.8)) {
                self.held.push(completion);
                continue;
            }
            self.store.handle(self.now(), &mut self.ring, completion);
        }
        self.collect();
    }

    pub fn collect(&mut self) {
        while let Some((ticket, answer)) = self.store.poll() {
            self.order.push(ticket.0);
            assert!(self.answers.insert(ticket.0, answer).is_none(), "answered twice");
        }
    }

    pub fn wait(&mut self, ticket: u64) -> Answer {
        let end = Instant::now() + Duration::from_secs(30);
        self.collect();
        while !self.answers.contains_key(&ticket) {
            assert!(Instant::now() < end, "no answer: {:?}", self.store.stats());
            self.turn(Duration::from_millis(20));
        }
        self.answers[&ticket].clone()
    }

    pub fn run(&mut self, op: DiskOp) -> Answer {
        let ticket = self.submit(op);
        self.wait(ticket)
    }

    pub fn done(&mut self, op: DiskOp) {
        assert_eq!(self.run(op), Ok(DiskReply::Done));
    }

    pub fn read(&mut self, chunk: ChunkId, range: BlockRange) -> Bytes {
        match self.run(DiskOp::Read { chunk, range }) {
            Ok(DiskReply::Data(data)) => data,
            other => panic!("{other:?}"),
        }
    }

    pub fn shut_down(mut self) {
        let end = Instant::now() + Duration::from_secs(30);
        self.store.shutdown(self.now(), &mut self.ring);
        while !self.store.is_shut_down() {
            assert!(Instant::now() < end, "no end: {:?}", self.store.stats());
            self.turn(Duration::from_millis(20));
        }
    }
}

/// A fresh disk of this size and a store on it.
pub fn fresh(capacity_bytes: u64) -> (TempDir, PathBuf, Harness) {
    let dir = temp_dir();
    let path = dir.path().join("disk");
    Store::format(&path, &options(capacity_bytes)).unwrap();
    let harness = Harness::open(&path, StoreConfig { debug_faults: true, ..StoreConfig::default() });
    (dir, path, harness)
}

/// The offline check finds nothing.
pub fn clean(path: &Path) -> check::CheckReport {
    let report = check::verify(path).unwrap();
    assert_eq!(report.findings, []);
    report
}
