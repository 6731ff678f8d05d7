//! One disk, open: carries out the operations of [`vsand_core::disk`] on its files.
//!
//! A store has no thread of its own but a helper for `RocksDB`. Its owner, the data loop, feeds it and drains it:
//!
//! ```text
//! submit(op) ──► read ────────────────────────────────► data, overlay ──────────────────────► poll()
//!            └─► change ─► object gate ─► extent gate ─► queue ─► batch ─► journal ─► tables ─► poll()
//!                                             └─► direct: data, stable ─┘
//! checkpoint: freeze tables ─► destage overlay to data ─► flush ─► RocksDB ─► the journal's tail moves
//! ```
//!
//! - `submit`, `handle` and `tick` only choose what happens and change state; `flush_batch`, once a turn of the loop, issues
//!   what has gathered: so all that is submitted in one turn shares a batch.
//! - A change takes effect in the tables when its batch and all before it are stable, and is answered then; reads see the
//!   tables. Nothing that is not stable is ever read.
//! - The first write or flush that goes wrong makes the store dead: all operations, present and future, are answered so.
//!
//! It must not know: peers, owners, epochs' meaning, time other than what it is told.

mod batch;
mod change;
mod checkpoint;
mod query;
mod read;
mod staged;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use ferro_protocol::ids::{ChunkId, DiskId, Epoch, HostId, ObjectId};
use ferro_protocol::units::{BLOCK_BYTES, IO_BLOCKS_MAX};
use vsand_core::disk::{DiskError, DiskOp, DiskReply, Ticket};

use crate::files::{DiskFiles, Fault, FileStats, IoHook, IoRequest};
use crate::format::{self, FormatOptions, OpenError, OpenFiles, at};
use crate::latency::Histogram;
use crate::meta::{self, Meta};
use crate::recovery::{JournalEnd, recover};
use crate::ring::{AlignedBuf, BufPool, Completion, Ring};
use crate::slab::Slab;
use crate::slots::ExtentKey;
use crate::superblock::Superblock;
use crate::tables::Tables;
use crate::worker::Worker;

use self::batch::{Batches, Journal, Queued};
use self::change::{Objects, Op, Part};
use self::checkpoint::CheckpointRun;
use self::read::ReadOp;

/// How a store is run.
pub struct StoreConfig {
    /// The owner in the tokens of its requests, by which the loop routes completions.
    pub owner: u16,
    /// Extents whose block metadata is kept in memory when clean; 4 KiB each.
    pub cached_extents: usize,
    /// Extents whose metadata may be dirty in memory before writers wait; a checkpoint begins at half.
    pub dirty_extents_max: usize,
    /// Blocks that may wait in memory for their place before writers wait; a checkpoint begins at half.
    pub overlay_blocks_max: usize,
    /// Extents whose metadata a checkpoint encodes in one turn of the loop.
    pub freeze_extents_a_turn: usize,
    /// Batches under way at once.
    pub batches_max: usize,
    /// The longest that changes stay in the journal only.
    pub checkpoint_ns_max: u64,
    /// Whether [`Store::set_fault`] does anything.
    pub debug_faults: bool,
    /// Sees every request.
    pub hook: Option<Box<dyn IoHook>>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            owner: 0,
            cached_extents: 8192,
            dirty_extents_max: 32_768,
            overlay_blocks_max: 32_768,
            freeze_extents_a_turn: 8,
            batches_max: 2,
            checkpoint_ns_max: 5_000_000_000,
            debug_faults: false,
            hook: None,
        }
    }
}

/// What opening a disk brought to light.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recovery {
    /// Who the disk is, and whose it was last: `host` may be another one.
    pub superblock: Superblock,
    /// Batches replayed from the journal.
    pub replayed: u64,
    /// One copy of the superblock was damaged and has been written anew.
    pub superblock_repaired: bool,
}

/// Counters and gauges of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreStats {
    /// Extents of the disk.
    pub extents: u32,
    /// Extents in use.
    pub extents_used: u32,
    /// Extents that are kept for objects and not in use yet.
    pub extents_kept: u32,
    /// Bytes of the journal.
    pub journal_bytes: u64,
    /// Bytes of it that the next checkpoint frees.
    pub journal_used_bytes: u64,
    /// Extents whose metadata is in memory, or with which something is under way. The others take 16 bytes each.
    pub extents_awake: usize,
    /// Blocks that wait in memory for their place.
    pub overlay_blocks: usize,
    /// Changes that wait for a batch.
    pub queued: usize,
    /// Requests under way.
    pub in_flight: usize,
    /// Reads of its files and writes to them.
    pub files: FileStats,
    /// Batches written.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// How long batches took, from being issued to being stable.
    pub journal: Histogram,
    /// Flushes of the data file.
    pub data_flushes: u64,
    /// How long they took.
    pub flush: Histogram,
    /// Writes of blocks to their place.
    pub destages: u64,
    /// Blocks in them.
    pub destaged_blocks: u64,
    /// Blocks that were written again before they had gone to their place, which so many writes to it were spared.
    pub absorbed_blocks: u64,
    /// Changes whose data went straight to its place.
    pub direct_writes: u64,
    /// Extents that were put in force, without writing their data again.
    pub promoted_extents: u64,
    /// Reads of the data file.
    pub data_reads: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Blocks found bad.
    pub bad_blocks: u64,
}

/// A component on this disk and how many extents it takes up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InventoryEntry {
    /// The component.
    pub chunk: ChunkId,
    /// Its extents.
    pub extents: u32,
}

/// What a request on the files is for.
#[derive(Debug)]
enum Purpose {
    Batch(u64),
    Destage { key: ExtentKey, first: usize, batches: Vec<u64>, phys: u32 },
    DirectData { part: u32, bytes: u32 },
    CheckpointSync,
    Meta,
    Read { op: u32, piece: usize },
}

/// An open disk.
pub struct Store {
    dir: PathBuf,
    superblock_file: File,
    superblock: Superblock,
    config: StoreConfig,
    files: DiskFiles<Purpose>,
    pool: BufPool,
    /// What unmapped blocks read as.
    zeros: Bytes,
    meta: Arc<Meta>,
    worker: Worker,
    tables: Tables,
    journal: Journal,
    ops: Slab<Op>,
    parts: Slab<Part>,
    reads: Slab<ReadOp>,
    objects: Objects,
    /// Changes that wait for space that a checkpoint or another change may bring.
    stalled: VecDeque<(Ticket, DiskOp)>,
    retry_stalled: bool,
    /// Let in by a gate, to be started in this turn.
    ready_ops: VecDeque<(Ticket, DiskOp)>,
    ready_parts: VecDeque<u32>,
    queue: VecDeque<Queued>,
    batches: Batches,
    checkpoint: Option<CheckpointRun>,
    checkpoint_wanted: bool,
    checkpoint_last_ns: u64,
    /// When something was last asked for, and when what is not needed was last put out of memory.
    asked_ns: u64,
    rested_ns: u64,
    shutting_down: bool,
    done: VecDeque<(Ticket, Result<DiskReply, DiskError>)>,
    dead: Option<String>,
    now_ns: u64,
    stats: StoreStats,
}

impl Store {
    /// Makes a disk in an empty directory.
    pub fn format(dir: &Path, options: &FormatOptions) -> Result<(), OpenError> {
        format::format(dir, options)
    }

    /// Who the disk in this directory is, without opening it (it must not be open elsewhere).
    pub fn identify(dir: &Path) -> Result<Superblock, OpenError> {
        format::open_files(dir).map(|files| files.content)
    }

    /// Opens the disk and brings it to its last stable state.
    pub fn open(dir: &Path, mut config: StoreConfig) -> Result<(Self, Recovery), OpenError> {
        let files = format::open_files(dir)?;
        let meta_dir = dir.join("meta");
        let in_meta = |error| OpenError::Meta { path: meta_dir.clone(), error };
        let meta = Arc::new(Meta::open(&meta_dir, false, false).map_err(in_meta)?);
        let (tables, end) = recover(dir, &files, &meta, config.cached_extents)?;
        // Before the first batch with it is written: see the module `journal`.
        let incarnation = end.incarnation + 1;
        let begin = [meta::put_incarnation(incarnation)];
        if let Some(hook) = &mut config.hook {
            hook.issue(0, &IoRequest::Meta(&begin));
            hook.done(0);
        }
        meta.commit(&begin).map_err(in_meta)?;
        let OpenFiles { superblock, data, journal, content, superblock_damaged } = files;
        if superblock_damaged {
            format::write_superblock(&superblock, &content).map_err(at(dir))?;
        }
        let recovery =
            Recovery { superblock: content, replayed: end.replayed, superblock_repaired: superblock_damaged };
        let worker = Worker::start(Arc::clone(&meta), "vsand-meta").map_err(at(dir))?;
        let hook = config.hook.take();
        let store = Self {
            dir: dir.to_owned(),
            superblock_file: superblock,
            superblock: content,
            files: DiskFiles::new(config.owner, data, journal, hook),
            config,
            pool: BufPool::new(16 << 20),
            zeros: AlignedBuf::new(IO_BLOCKS_MAX as usize * BLOCK_BYTES).freeze(),
            meta,
            worker,
            tables,
            journal: Journal::new(&content, &JournalEnd { incarnation, ..end }),
            ops: Slab::default(),
            parts: Slab::default(),
            reads: Slab::default(),
            objects: HashMap::new(),
            stalled: VecDeque::new(),
            retry_stalled: false,
            ready_ops: VecDeque::new(),
            ready_parts: VecDeque::new(),
            queue: VecDeque::new(),
            batches: VecDeque::new(),
            checkpoint: None,
            checkpoint_wanted: false,
            checkpoint_last_ns: 0,
            asked_ns: 0,
            rested_ns: 0,
            shutting_down: false,
            done: VecDeque::new(),
            dead: None,
            now_ns: 0,
            stats: StoreStats::default(),
        };
        Ok((store, recovery))
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The owner in the tokens of its requests.
    pub fn owner(&self) -> u16 {
        self.config.owner
    }

    /// Whether [`Store::poll`] has something.
    pub fn has_answers(&self) -> bool {
        !self.done.is_empty()
    }

    /// Whether it goes on at its next turn without anything to be waited for: who drives it must not sleep.
    pub fn has_work(&self) -> bool {
        let to_do =
            if self.checkpoint.is_some() { self.tables.has_to_freeze() } else { self.tables.has_to_evict() };
        self.has_answers() || to_do
    }

    /// The disk.
    pub fn disk(&self) -> DiskId {
        self.superblock.disk
    }

    /// A pool of buffers that need no copy when they come back as the data of a write.
    pub fn pool(&self) -> &BufPool {
        &self.pool
    }

    /// The epochs that objects were sealed with.
    pub fn sealed(&self) -> impl Iterator<Item = (ObjectId, Epoch)> {
        self.tables.epochs.iter().map(|(&o, &e)| (o, e))
    }

    /// Every component on the disk.
    pub fn inventory(&self) -> Vec<InventoryEntry> {
        let extents =
            |chunk| self.tables.extents(chunk).filter(|extent| extent.phys.is_some()).count() as u32;
        self.tables
            .components(None)
            .map(|(chunk, _)| InventoryEntry { chunk, extents: extents(chunk) })
            .collect()
    }

    /// Keeps so many extents for each of these objects, with those that it has, and none for others: from now on nobody else gets
    /// them. What others have taken already they keep.
    pub fn keep(&mut self, kept: HashMap<ObjectId, u32>) {
        self.tables.alloc.keep(kept);
    }

    /// Counters and gauges.
    pub fn stats(&self) -> StoreStats {
        StoreStats {
            extents: self.tables.alloc.total(),
            extents_used: self.tables.alloc.used(),
            extents_kept: self.tables.alloc.kept(),
            journal_bytes: self.superblock.journal_bytes,
            journal_used_bytes: self.journal.used(),
            extents_awake: self.tables.slots.awake(),
            overlay_blocks: self.tables.overlay_blocks,
            absorbed_blocks: self.tables.absorbed,
            queued: self.queue.len() + self.stalled.len(),
            in_flight: self.files.in_flight(),
            files: self.files.stats(),
            ..self.stats
        }
    }

    /// Why the disk answers nothing any more, if that is so.
    pub fn dead(&self) -> Option<&str> {
        self.dead.as_deref()
    }

    /// Records that this host has the disk now. Blocks for two flushes; for the time before service.
    pub fn adopt(&mut self, host: HostId) -> io::Result<()> {
        let generation = self.superblock.generation.checked_add(1);
        let generation = generation.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the superblock was written more often than can be")
        })?;
        let superblock = Superblock { generation, host, ..self.superblock };
        format::write_superblock(&self.superblock_file, &superblock)?;
        self.superblock = superblock;
        Ok(())
    }

    /// Plays a failure from now on. Returns whether the configuration allows that.
    pub fn set_fault(&mut self, fault: Fault) -> bool {
        if self.config.debug_faults {
            tracing::warn!(?fault, disk = %self.superblock.disk, "a disk fault is played");
            self.files.set_fault(fault);
        }
        self.config.debug_faults
    }

    /// Takes an operation. Its answer comes out of [`Store::poll`]. The operation must keep the bounds of [`DiskOp`]: whoever
    /// takes it from a peer has checked them.
    pub fn submit(&mut self, now_ns: u64, ring: &mut Ring, ticket: Ticket, op: DiskOp) {
        self.set_time(now_ns);
        if let Some(reason) = &self.dead {
            self.done.push_back((ticket, Err(DiskError::Dead(reason.clone()))));
            return;
        }
        self.asked_ns = now_ns;
        match op {
            DiskOp::Read { chunk, range } => self.start_read(ring, ReadOp::new(ticket, chunk, range, false)),
            DiskOp::Fetch { chunk, range } => self.start_read(ring, ReadOp::new(ticket, chunk, range, true)),
            DiskOp::List { chunk, since, from_block, runs_max } => {
                self.list(ticket, chunk, since, from_block, runs_max);
            }
            op => self.enter_object(ticket, op),
        }
        self.settle(ring);
    }

    /// Takes a completion whose token has this store as its owner.
    pub fn handle(&mut self, now_ns: u64, ring: &mut Ring, completion: Completion) {
        self.set_time(now_ns);
        if let Some(purpose) = self.files.complete(completion.token, &completion.result) {
            self.completed(ring, purpose, completion.result, completion.buf);
        }
        self.settle(ring);
    }

    fn completed(
        &mut self,
        ring: &mut Ring,
        purpose: Purpose,
        result: io::Result<u32>,
        buf: Option<AlignedBuf>,
    ) {
        if self.dead.is_some() {
            return;
        }
        match purpose {
            Purpose::Batch(number) => self.batch_written(number, result),
            Purpose::Destage { key, first, batches, phys } => {
                self.destaged(key, first, &batches, phys, result);
            }
            Purpose::DirectData { part, bytes } => self.direct_written(part, bytes, result),
            Purpose::CheckpointSync => self.checkpoint_synced(result),
            Purpose::Meta => self.meta_done(result),
            Purpose::Read { op, piece } => self.read_done(ring, op, piece, result, buf),
        }
    }

    /// Issues what has gathered. To be called once a turn of the loop, after all submissions and completions.
    pub fn flush_batch(&mut self, now_ns: u64, ring: &mut Ring) {
        self.set_time(now_ns);
        loop {
            self.settle(ring);
            if self.dead.is_none() {
                self.issue_batches(ring);
                self.drive_checkpoint(ring);
            }
            let Some((purpose, result, buf)) = self.files.next_synthetic() else { return };
            self.completed(ring, purpose, result, buf);
        }
    }

    /// As [`Store::flush_batch`]: lets time pass. Needed at least once every second.
    pub fn tick(&mut self, now_ns: u64, ring: &mut Ring) {
        self.flush_batch(now_ns, ring);
    }

    /// The next answer.
    pub fn poll(&mut self) -> Option<(Ticket, Result<DiskReply, DiskError>)> {
        self.done.pop_front()
    }

    /// Begins the last checkpoint, so that the next opening has nothing to replay. No changes may be submitted any more.
    pub fn shutdown(&mut self, now_ns: u64, ring: &mut Ring) {
        self.shutting_down = true;
        self.flush_batch(now_ns, ring);
    }

    /// After [`Store::shutdown`]: whether everything is done, or nothing can be done any more.
    pub fn is_shut_down(&self) -> bool {
        let idle = self.checkpoint.is_none() && self.files.in_flight() == 0 && self.ops.len() == 0;
        self.dead.is_some()
            || (self.shutting_down
                && idle
                && self.queue.is_empty()
                && !self.has_news()
                && self.journal.reclaimable() == 0)
    }

    /// Runs what the gates have let in. Afterwards nothing waits that could go on.
    fn settle(&mut self, ring: &mut Ring) {
        loop {
            if self.dead.is_some() {
                return;
            }
            if let Some(part) = self.ready_parts.pop_front() {
                self.start_part(ring, part);
            } else if let Some((ticket, op)) = self.ready_ops.pop_front() {
                self.start_change(ring, ticket, op);
            } else if std::mem::take(&mut self.retry_stalled) && !self.stalled.is_empty() {
                self.retry_stalled(ring);
            } else {
                return;
            }
        }
    }

    fn set_time(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        self.files.set_time(now_ns);
    }

    fn answer(&mut self, ticket: Ticket, result: Result<DiskReply, DiskError>) {
        self.done.push_back((ticket, result));
    }

    /// The disk is dead from now on. Everything that waits is answered so.
    fn die(&mut self, reason: String) {
        if self.dead.is_some() {
            return;
        }
        tracing::error!(disk = %self.superblock.disk, dir = %self.dir.display(), reason, "the disk has failed");
        let mut tickets: Vec<Ticket> = self.ops.drain().map(|op| op.ticket).collect();
        tickets.extend(self.reads.drain().map(|read| read.ticket()));
        tickets.extend(self.objects.drain().flat_map(|(_, gate)| gate.waiting).map(|(ticket, _)| ticket));
        tickets.extend(self.stalled.drain(..).map(|(ticket, _)| ticket));
        tickets.extend(self.ready_ops.drain(..).map(|(ticket, _)| ticket));
        self.parts.drain().for_each(drop);
        self.ready_parts.clear();
        self.queue.clear();
        self.batches.clear();
        for ticket in tickets {
            self.answer(ticket, Err(DiskError::Dead(reason.clone())));
        }
        self.dead = Some(reason);
    }
}
