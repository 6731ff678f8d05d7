//! Group commit: the queue of changes becomes batches, and stable batches take effect, in order.

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;
use vsand_core::disk::DiskReply;

use super::{Purpose, Store};
use crate::files::FileKind;
use crate::journal::{self, DATA_BYTES_MAX, Head, Record};
use crate::recovery::JournalEnd;
use crate::ring::Ring;
use crate::superblock::Superblock;

/// The most buffers in one write (`IOV_MAX` is 1024).
const BUFS_MAX: usize = 1000;

/// Whom a record was made for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    Part(u32),
    Op(u32),
}

/// A change that waits for a batch.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) record: Record,
    pub(super) data: Option<Bytes>,
    pub(super) target: Target,
}

/// A batch being written, or written while an earlier one is not.
#[derive(Debug)]
pub(super) struct Batch {
    number: u64,
    bytes: u32,
    /// Where it ends, see [`Journal`].
    end: u64,
    issued_ns: u64,
    stable: bool,
    changes: Vec<Queued>,
}

pub(super) type Batches = VecDeque<Batch>;

/// Where the journal is. Positions count on past the end of the file: the offset is the remainder.
#[derive(Debug)]
pub(super) struct Journal {
    size: u64,
    head: u64,
    tail: u64,
    /// The end of the last batch that has taken effect, its number and incarnation.
    pub(super) applied_end: u64,
    pub(super) applied: u64,
    pub(super) applied_incarnation: u64,
    next: u64,
    pub(super) incarnation: u64,
}

impl Journal {
    pub(super) fn new(superblock: &Superblock, end: &JournalEnd) -> Self {
        Self {
            size: superblock.journal_bytes,
            head: end.head,
            tail: end.tail,
            applied_end: end.head,
            applied: end.batch,
            applied_incarnation: end.batch_incarnation,
            next: end.batch + 1,
            incarnation: end.incarnation,
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.head - self.tail
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that a checkpoint of all that has taken effect would free.
    pub(super) fn reclaimable(&self) -> u64 {
        self.applied_end - self.tail
    }

    /// The offset of a position.
    pub(super) fn offset(&self, position: u64) -> u64 {
        position % self.size
    }

    pub(super) fn move_tail(&mut self, to: u64) {
        self.tail = to;
    }

    /// Room for a batch: its offset, or `None` if the journal is too full.
    fn place(&mut self, bytes: u64) -> Option<u64> {
        let at = self.offset(self.head);
        let skipped = if at + bytes > self.size { self.size - at } else { 0 };
        if self.used() + skipped + bytes > self.size {
            return None;
        }
        self.head += skipped + bytes;
        Some(self.offset(self.head - bytes))
    }
}

impl Store {
    /// Whether writers must wait for a checkpoint.
    fn is_throttled(&self) -> bool {
        self.tables.overlay_blocks >= self.config.overlay_blocks_max
            || self.tables.dirty_count() >= self.config.dirty_extents_max
    }

    pub(super) fn issue_batches(&mut self, ring: &mut Ring) {
        while !self.queue.is_empty() && self.batches.len() < self.config.batches_max {
            if self.is_throttled() {
                self.checkpoint_wanted = true;
                return;
            }
            let data_max = DATA_BYTES_MAX.min((self.journal.size() / 8) as usize);
            let (mut records, mut data, mut count) = (0, 0, 0);
            for queued in self.queue.iter().take(BUFS_MAX) {
                let (more, more_data) = (queued.record.encoded_bytes(), queued.record.data_bytes());
                // The first always goes: a record is far smaller than the smallest journal.
                if count > 0 && (!journal::header_fits(records, more) || data + more_data > data_max) {
                    break;
                }
                records += more;
                data += more_data;
                count += 1;
            }
            let bytes = journal::header_bytes(records) + data;
            let Some(offset) = self.journal.place(bytes as u64) else {
                self.checkpoint_wanted = true;
                return;
            };
            self.issue_batch(ring, count, bytes as u32, offset);
        }
    }

    fn issue_batch(&mut self, ring: &mut Ring, count: usize, bytes: u32, offset: u64) {
        let changes: Vec<Queued> = self.queue.drain(..count).collect();
        let head = Head {
            number: self.journal.next,
            incarnation: self.journal.incarnation,
            acknowledged: self.journal.applied,
            disk: self.superblock.disk,
            key: self.superblock.key,
            header_bytes: 0,
            data_bytes: 0,
            records: 0,
        };
        let header = journal::encode_header(&head, changes.iter().map(|q| &q.record));
        let mut buf = self.pool.take(header.len());
        buf.copy_from_slice(&header);
        let mut bufs = Vec::with_capacity(1 + count);
        bufs.push(buf.freeze());
        bufs.extend(changes.iter().filter_map(|q| q.data.clone()));
        self.journal.next += 1;
        self.stats.batches += 1;
        self.stats.records += count as u64;
        self.batches.push_back(Batch {
            number: head.number,
            bytes,
            end: self.journal.head,
            issued_ns: self.now_ns,
            stable: false,
            changes,
        });
        self.files.write(ring, Purpose::Batch(head.number), FileKind::Journal, offset, bufs, true);
    }

    /// A batch is stable, or the disk is dead.
    pub(super) fn batch_written(&mut self, number: u64, result: io::Result<u32>) {
        let Some(first) = self.batches.front().map(|b| b.number) else { return };
        let Some(batch) = self.batches.get_mut((number - first) as usize) else { return };
        match result {
            Ok(bytes) if bytes == batch.bytes => batch.stable = true,
            Ok(bytes) => {
                let reason = format!("a journal write of {} bytes wrote {bytes}", batch.bytes);
                return self.die(reason);
            }
            Err(error) => return self.die(format!("a journal write failed: {error}")),
        }
        while self.batches.front().is_some_and(|b| b.stable) {
            let Some(batch) = self.batches.pop_front() else { return };
            self.stats.journal.add_ns(self.now_ns.saturating_sub(batch.issued_ns));
            self.journal.applied = batch.number;
            self.journal.applied_incarnation = self.journal.incarnation;
            self.journal.applied_end = batch.end;
            for change in batch.changes {
                let effect =
                    self.tables.apply(&self.meta, &change.record, change.data.as_ref(), batch.number);
                if let Err(error) = effect {
                    return self.die(error.to_string());
                }
                match change.target {
                    Target::Part(part) => self.record_stable(part),
                    Target::Op(op) => self.part_of_op_done(op),
                }
            }
        }
    }

    /// One of the parts of an operation is done; after the last it is answered.
    pub(super) fn part_of_op_done(&mut self, index: u32) {
        let Some(op) = self.ops.get_mut(index) else { return };
        op.parts_left -= 1;
        if op.parts_left == 0 {
            let (ticket, object, refused) = (op.ticket, op.object, op.refused.take());
            self.ops.remove(index);
            self.answer(ticket, refused.map_or(Ok(DiskReply::Done), Err));
            self.leave_object(object);
        }
    }
}
