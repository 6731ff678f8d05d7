//! Checkpoints: what the journal holds goes to its place, the tables to `RocksDB`, and the journal's tail moves.
//!
//! ```text
//! begin at batch J ─► destage all of batches ≤ J, freeze the tables as of J ─► flush data ─► RocksDB batch ─► tail = end of J
//! ```
//!
//! A block of a batch ≤ J that a later batch has replaced meanwhile needs no destaging: replay begins behind J and brings the
//! newer one. That is also why the rows are exactly those of J: replay then does what the first run did.

use std::io;

use ferro_protocol::units::{BLOCK_BYTES, EXTENT_BYTES};

use super::{Purpose, Store};
use crate::files::FileKind;
use crate::meta::{self, Checkpoint};
use crate::ring::Ring;
use crate::slots::ExtentKey;

/// Extents that are looked at in a turn, whether they may rest, after a checkpoint.
const EVICT_EXTENTS_A_TURN: usize = 64;
/// How often unused buffers are given back, and more extents rest while nobody asks for anything.
const REST_NS: u64 = 1_000_000_000;
/// Nobody asks for anything any more when the last request is so long ago.
const IDLE_NS: u64 = 10_000_000_000;
/// Extents that are looked at then at once.
const EVICT_EXTENTS_IDLE: usize = 1024;
/// Writes to places under way at once: enough to keep the disk busy, few enough not to be in the guests' way.
const DEPTH: usize = 8;
/// The same when writers are about to wait.
const DEPTH_PRESSED: usize = 48;

/// A checkpoint under way.
#[derive(Debug)]
pub(super) struct CheckpointRun {
    batch: u64,
    incarnation: u64,
    end: u64,
    /// What is to be destaged, in the order of the places; taken from the back.
    extents: Vec<ExtentKey>,
    /// The next block of the extent at the back.
    next_block: usize,
    under_way: usize,
    wrote: bool,
    /// When the flush of the data file began, if there is one.
    synced_at_ns: Option<u64>,
    step: Step,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Destage,
    Flush,
    Commit,
    Committing,
}

impl Store {
    fn pressed(&self) -> bool {
        self.shutting_down
            || self.journal.used() > self.journal.size() / 4 * 3
            || self.tables.overlay_blocks > self.config.overlay_blocks_max / 4 * 3
            || self.tables.dirty_count() > self.config.dirty_extents_max / 4 * 3
            || !self.stalled.is_empty()
    }

    fn checkpoint_due(&self) -> bool {
        let worthwhile = self.journal.reclaimable() > 0 || self.tables.is_dirty();
        let idle_long = self.now_ns.saturating_sub(self.checkpoint_last_ns) >= self.config.checkpoint_ns_max;
        worthwhile
            && (self.checkpoint_wanted
                || self.shutting_down
                || self.journal.used() >= self.journal.size() / 2
                || self.tables.overlay_blocks >= self.config.overlay_blocks_max / 2
                || self.tables.dirty_count() >= self.config.dirty_extents_max / 2
                || (!self.stalled.is_empty() && self.tables.alloc.has_deferred())
                || (idle_long && self.tables.is_dirty()))
    }

    pub(super) fn drive_checkpoint(&mut self, ring: &mut Ring) {
        if self.checkpoint.is_none() && self.checkpoint_due() {
            self.begin_checkpoint();
        }
        self.destage(ring);
        if self.checkpoint.is_none() {
            return self.rest();
        }
        let frozen = self.tables.freeze_some(self.config.freeze_extents_a_turn);
        let Some(run) = &mut self.checkpoint else { return };
        if run.step == Step::Destage && frozen && run.extents.is_empty() && run.under_way == 0 {
            run.step = Step::Flush;
            if run.wrote {
                self.stats.data_flushes += 1;
                run.synced_at_ns = Some(self.now_ns);
                self.files.sync(ring, Purpose::CheckpointSync, FileKind::Data);
            } else {
                self.checkpoint_synced(Ok(0));
            }
        }
        self.commit_checkpoint(ring);
    }

    /// What is not needed for now goes out of memory.
    fn rest(&mut self) {
        self.tables.evict_some(EVICT_EXTENTS_A_TURN);
        if self.now_ns.saturating_sub(self.rested_ns) < REST_NS {
            return;
        }
        self.rested_ns = self.now_ns;
        self.pool.rest();
        if self.now_ns.saturating_sub(self.asked_ns) >= IDLE_NS {
            self.tables.evict_idle(EVICT_EXTENTS_IDLE);
        }
    }

    fn begin_checkpoint(&mut self) {
        self.checkpoint_wanted = false;
        self.tables.checkpoint_begins();
        let mut extents: Vec<(u32, ExtentKey)> = Vec::new();
        for &key in self.tables.checkpoint_extents() {
            if let Some(slot) = self.tables.slots.get(key)
                && slot.overlay.as_ref().is_some_and(|o| !o.is_empty())
                && let Some(phys) = slot.phys
            {
                extents.push((phys, key));
            }
        }
        extents.sort_unstable_by_key(|&(phys, _)| std::cmp::Reverse(phys));
        self.checkpoint = Some(CheckpointRun {
            batch: self.journal.applied,
            incarnation: self.journal.applied_incarnation,
            end: self.journal.applied_end,
            extents: extents.into_iter().map(|(_, key)| key).collect(),
            next_block: 0,
            under_way: 0,
            wrote: false,
            synced_at_ns: None,
            step: Step::Destage,
        });
    }

    fn destage(&mut self, ring: &mut Ring) {
        let depth = if self.pressed() { DEPTH_PRESSED } else { DEPTH };
        let Some(run) = &mut self.checkpoint else { return };
        // Filled up in one go: requests that are submitted together cost less.
        if run.under_way > depth / 4 {
            return;
        }
        while run.under_way < depth {
            let Some(&key) = run.extents.last() else { return };
            let slot = self.tables.slots.get_mut(key);
            let found = slot.and_then(|slot| {
                let piece = slot.overlay.as_mut()?.next_run(run.next_block, run.batch)?;
                Some((slot.phys?, piece))
            });
            let Some((phys, piece)) = found else {
                run.extents.pop();
                run.next_block = 0;
                continue;
            };
            run.next_block = piece.first + piece.batches.len();
            run.under_way += 1;
            run.wrote = true;
            self.stats.destages += 1;
            self.stats.destaged_blocks += piece.batches.len() as u64;
            self.tables.alloc.pin(phys);
            let offset = u64::from(phys) * EXTENT_BYTES + (piece.first * BLOCK_BYTES) as u64;
            let purpose = Purpose::Destage { key, first: piece.first, batches: piece.batches, phys };
            self.files.write(ring, purpose, FileKind::Data, offset, piece.data, false);
        }
    }

    pub(super) fn destaged(
        &mut self,
        key: ExtentKey,
        first: usize,
        batches: &[u64],
        phys: u32,
        result: io::Result<u32>,
    ) {
        let bytes = (batches.len() * BLOCK_BYTES) as u32;
        match result {
            Ok(written) if written == bytes => {}
            Ok(written) => return self.die(format!("a write of {bytes} bytes wrote {written}")),
            Err(error) => return self.die(format!("a write failed: {error}")),
        }
        self.tables.alloc.unpin(phys);
        self.retry_stalled = !self.stalled.is_empty();
        if let Some(slot) = self.tables.slots.get_mut(key)
            && let Some(overlay) = &mut slot.overlay
        {
            self.tables.overlay_blocks -= overlay.done(first, batches);
            if overlay.is_empty() {
                slot.overlay = None;
            }
        }
        if let Some(run) = &mut self.checkpoint {
            run.under_way -= 1;
        }
    }

    pub(super) fn checkpoint_synced(&mut self, result: io::Result<u32>) {
        if let Err(error) = result {
            return self.die(format!("a flush failed: {error}"));
        }
        if let Some(run) = &mut self.checkpoint {
            run.step = Step::Commit;
            if let Some(began) = run.synced_at_ns.take() {
                self.stats.flush.add_ns(self.now_ns.saturating_sub(began));
            }
        }
    }

    /// Hands the rows to the helper, once, when the flush is over.
    fn commit_checkpoint(&mut self, ring: &mut Ring) {
        let Some(run) = self.checkpoint.as_mut().filter(|run| run.step == Step::Commit) else { return };
        let mut ops = self.tables.take_frozen();
        ops.push(meta::put_checkpoint(Checkpoint {
            offset: self.journal.offset(run.end),
            batch: run.batch,
            incarnation: run.incarnation,
        }));
        run.step = Step::Committing;
        if let Some(token) = self.files.meta(Purpose::Meta, &ops) {
            match self.worker.commit(ops) {
                Ok(()) => {
                    ring.poll(token, self.worker.event(), false);
                }
                Err(error) => self.die(error.to_string()),
            }
        }
    }

    pub(super) fn meta_done(&mut self, result: io::Result<u32>) {
        let result = match result {
            Ok(_) => self.worker.result(),
            Err(error) => return self.die(format!("metadata could not be written: {error}")),
        };
        match result {
            Some(Ok(())) => {}
            Some(Err(error)) => return self.die(error.to_string()),
            None => return self.die("metadata: its thread has ended".to_owned()),
        }
        if let Some(run) = self.checkpoint.take() {
            self.journal.move_tail(run.end);
            self.tables.checkpoint_ends();
            self.checkpoint_last_ns = self.now_ns;
            self.stats.checkpoints += 1;
            self.retry_stalled = !self.stalled.is_empty();
        }
    }
}
