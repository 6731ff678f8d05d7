//! Reads: from the overlay and from `data`, each block checked against its CRC-32.
//!
//! What the tables say of the blocks is noted when the read begins. If a block then fails its checksum, either the tables still
//! say the same, and it is bad, or a newer write has replaced it meanwhile, in the very place perhaps, and the read begins again.
//! If the disk reports an error, the blocks are read one by one to find the bad ones.
//!
//! The same holds when the extent moves meanwhile, because it was written anew as a whole, promoted or forgotten: the place that is read
//! is pinned, so it is given to nobody else before the read is over, and what stands there either is still what was noted, or it
//! fails its checksum, or can't be read, and then the tables name another place. (Who was promoted to the place may write to it.)

use std::io;

use bytes::Bytes;
use ferro_protocol::ids::{ChunkId, Version};
use ferro_protocol::peer::Run;
use ferro_protocol::units::{BLOCK_BYTES, BlockRange, EXTENT_BLOCKS, EXTENT_BYTES, IO_BLOCKS_MAX};
use vsand_core::disk::{DiskError, DiskReply, Ticket};

use super::query::push_run;
use super::{Purpose, Store};
use crate::meta::{Meta, MetaError};
use crate::ring::{AlignedBuf, Ring};
use crate::slots::ExtentKey;
use crate::tables::Tables;

/// A block to be read from the data file.
#[derive(Clone, Copy, Debug)]
struct Expected {
    /// Within the piece.
    at: usize,
    crc: u32,
    version: Version,
}

/// The part of a read that lies in one extent.
#[derive(Debug)]
struct ReadPiece {
    key: Option<ExtentKey>,
    range: BlockRange,
    phys: u32,
    expected: Vec<Expected>,
    overlay: Vec<(usize, Bytes)>,
    buf: Option<AlignedBuf>,
    /// The disk has reported an error: this one of `expected` is being read by itself.
    probe: Option<usize>,
}

/// A read under way.
#[derive(Debug)]
pub(super) struct ReadOp {
    ticket: Ticket,
    chunk: ChunkId,
    range: BlockRange,
    with_runs: bool,
    pieces: Vec<ReadPiece>,
    runs: Vec<Run>,
    pending: u32,
    bad: Vec<u32>,
    again: bool,
}

impl ReadOp {
    pub(super) fn new(ticket: Ticket, chunk: ChunkId, range: BlockRange, with_runs: bool) -> Self {
        assert!(range.count() <= IO_BLOCKS_MAX, "a read of the wrong size");
        Self {
            ticket,
            chunk,
            range,
            with_runs,
            pieces: Vec::new(),
            runs: Vec::new(),
            pending: 0,
            bad: Vec::new(),
            again: false,
        }
    }

    pub(super) fn ticket(&self) -> Ticket {
        self.ticket
    }
}

impl Store {
    pub(super) fn answer_dead(&mut self, ticket: Ticket) {
        let reason = self.dead.clone().unwrap_or_default();
        self.answer(ticket, Err(DiskError::Dead(reason)));
    }

    pub(super) fn start_read(&mut self, ring: &mut Ring, mut op: ReadOp) {
        op.pieces.clear();
        op.runs.clear();
        op.bad.clear();
        op.again = false;
        for range in op.range.by_extent() {
            match self.plan_piece(&op, range) {
                Ok((piece, runs)) => {
                    op.pending += u32::from(!piece.expected.is_empty());
                    op.pieces.push(piece);
                    for run in runs {
                        push_run(&mut op.runs, run);
                    }
                }
                Err(error) => {
                    self.die(error.to_string());
                    return self.answer_dead(op.ticket);
                }
            }
        }
        if op.pending == 0 {
            return self.finish_read(op);
        }
        let index = self.reads.insert(op);
        self.issue_reads(ring, index);
    }

    /// Notes what one extent's blocks are.
    fn plan_piece(&mut self, op: &ReadOp, range: BlockRange) -> Result<(ReadPiece, Vec<Run>), MetaError> {
        let key = self.tables.find(op.chunk, range.first());
        let mut piece = ReadPiece {
            key,
            range,
            phys: 0,
            expected: Vec::new(),
            overlay: Vec::new(),
            buf: None,
            probe: None,
        };
        let mut runs = Vec::new();
        let slot = match key {
            Some(key) => self.tables.load(&self.meta, key)?,
            None => None,
        };
        let Some((slot, blocks)) = slot.and_then(|s| s.blocks.as_ref().map(|blocks| (&*s, blocks))) else {
            runs.push(Run { range, version: Version::NEVER, mapped: false });
            return Ok((piece, runs));
        };
        piece.phys = slot.phys.unwrap_or(0);
        for block in range.blocks() {
            let (within, at) = ((block % EXTENT_BLOCKS) as usize, (block - range.first()) as usize);
            let (version, mapped) = (blocks.version(within), blocks.mapped.has(within));
            if op.with_runs
                && let Ok(range) = BlockRange::one(block)
            {
                push_run(&mut runs, Run { range, version, mapped });
            }
            if !mapped {
                continue;
            }
            if let Some(data) = slot.overlay.as_ref().and_then(|o| o.get(within)) {
                piece.overlay.push((at, data.clone()));
            } else {
                piece.expected.push(Expected { at, crc: blocks.crc(within), version });
            }
        }
        Ok((piece, runs))
    }

    fn issue_reads(&mut self, ring: &mut Ring, index: u32) {
        let Some(op) = self.reads.get_mut(index) else { return };
        for (n, piece) in op.pieces.iter_mut().enumerate() {
            let (Some(first), Some(last)) = (piece.expected.first(), piece.expected.last()) else { continue };
            let (first, last) = (first.at, last.at);
            self.tables.alloc.pin(piece.phys);
            self.stats.data_reads += 1;
            let buf = self.pool.take(piece.range.bytes());
            let at = (piece.range.first() % EXTENT_BLOCKS) as usize + first;
            let offset = u64::from(piece.phys) * EXTENT_BYTES + (at * BLOCK_BYTES) as u64;
            let bytes = first * BLOCK_BYTES..(last + 1) * BLOCK_BYTES;
            self.files.read(ring, Purpose::Read { op: index, piece: n }, offset, buf, bytes);
        }
    }

    pub(super) fn read_done(
        &mut self,
        ring: &mut Ring,
        index: u32,
        number: usize,
        result: io::Result<u32>,
        buf: Option<AlignedBuf>,
    ) {
        let Some(op) = self.reads.get_mut(index) else { return };
        let (Some(piece), Some(buf)) = (op.pieces.get_mut(number), buf) else { return };
        let (wanted, first) = match piece.probe {
            Some(n) => (1, n),
            None => (
                piece.expected.last().map_or(0, |e| e.at + 1) - piece.expected.first().map_or(0, |e| e.at),
                0,
            ),
        };
        let good = result.is_ok_and(|bytes| bytes as usize == wanted * BLOCK_BYTES);
        let checked = if piece.probe.is_some() || !good { first..first + 1 } else { 0..piece.expected.len() };
        if good {
            for expected in &piece.expected[checked] {
                let bytes = &buf[expected.at * BLOCK_BYTES..(expected.at + 1) * BLOCK_BYTES];
                if crc32fast::hash(bytes) != expected.crc {
                    let block = piece.range.first() + expected.at as u32;
                    match piece.is_current(&mut self.tables, &self.meta, expected) {
                        Ok(true) => op.bad.push(block),
                        Ok(false) => op.again = true,
                        Err(error) => return self.die(error.to_string()),
                    }
                }
            }
        } else if piece.probe.is_some() {
            let expected = &piece.expected[first];
            match piece.is_current(&mut self.tables, &self.meta, expected) {
                Ok(true) => op.bad.push(piece.range.first() + expected.at as u32),
                Ok(false) => op.again = true,
                Err(error) => return self.die(error.to_string()),
            }
        }
        let next_probe = match (piece.probe, good) {
            (None, true) => None,
            (None, false) => Some(0),
            (Some(n), _) => Some(n + 1).filter(|&n| n < piece.expected.len()),
        };
        piece.probe = next_probe;
        if let Some(n) = next_probe {
            let at = piece.expected[n].at;
            let within = (piece.range.first() % EXTENT_BLOCKS) as usize + at;
            let offset = u64::from(piece.phys) * EXTENT_BYTES + (within * BLOCK_BYTES) as u64;
            let bytes = at * BLOCK_BYTES..(at + 1) * BLOCK_BYTES;
            return self.files.read(ring, Purpose::Read { op: index, piece: number }, offset, buf, bytes);
        }
        piece.buf = Some(buf);
        let phys = piece.phys;
        op.pending -= 1;
        let finished = op.pending == 0;
        self.tables.alloc.unpin(phys);
        self.retry_stalled = !self.stalled.is_empty();
        if finished && let Some(op) = self.reads.remove(index) {
            if op.again {
                return self.start_read(ring, op);
            }
            self.finish_read(op);
        }
    }

    fn finish_read(&mut self, mut op: ReadOp) {
        let ticket = op.ticket;
        if !op.bad.is_empty() {
            op.bad.sort_unstable();
            self.stats.bad_blocks += op.bad.len() as u64;
            tracing::warn!(disk = %self.superblock.disk, chunk = %op.chunk, blocks = ?op.bad, "bad blocks");
            return self.answer(ticket, Err(DiskError::BadBlocks(op.bad)));
        }
        let reply = if op.with_runs {
            let runs = std::mem::take(&mut op.runs);
            DiskReply::Runs(runs.clone(), self.mapped_data(op, &runs))
        } else {
            DiskReply::Data(self.all_data(op))
        };
        self.answer(ticket, Ok(reply));
    }

    /// The bytes of the whole range; unmapped blocks are zeros.
    fn all_data(&mut self, mut op: ReadOp) -> Bytes {
        if let [piece] = op.pieces.as_mut_slice() {
            return match (piece.buf.take(), piece.overlay.as_slice()) {
                (None, []) => self.zeros.slice(..piece.range.bytes()),
                (None, [(_, data)]) if piece.range.count() == 1 => data.clone(),
                (buf, _) => {
                    let mut buf = buf.unwrap_or_else(|| self.pool.take(piece.range.bytes()));
                    piece.complete(&mut buf);
                    buf.freeze()
                }
            };
        }
        let mut all = self.pool.take(op.range.bytes());
        let mut at = 0;
        for piece in &mut op.pieces {
            let part = &mut all[at..at + piece.range.bytes()];
            at += part.len();
            if let Some(buf) = piece.buf.take() {
                part.copy_from_slice(&buf);
            }
            piece.complete(part);
        }
        all.freeze()
    }

    /// The bytes of the mapped blocks, one behind the other.
    fn mapped_data(&mut self, op: ReadOp, runs: &[Run]) -> Bytes {
        let first = op.range.first();
        let mapped: usize = runs.iter().filter(|r| r.mapped).map(|r| r.range.bytes()).sum();
        if mapped == 0 {
            return Bytes::new();
        }
        let whole = op.range.bytes();
        let all = self.all_data(op);
        if mapped == whole {
            return all;
        }
        let mut out = self.pool.take(mapped);
        let mut at = 0;
        for run in runs.iter().filter(|r| r.mapped) {
            let from = (run.range.first() - first) as usize * BLOCK_BYTES;
            out[at..at + run.range.bytes()].copy_from_slice(&all[from..from + run.range.bytes()]);
            at += run.range.bytes();
        }
        out.freeze()
    }
}

impl ReadPiece {
    /// Fills in what did not come from the data file.
    fn complete(&self, buf: &mut [u8]) {
        if self.expected.len() == self.range.count() as usize {
            return;
        }
        let (mut expected, mut overlay) = (self.expected.iter().peekable(), self.overlay.iter().peekable());
        for (at, block) in buf.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            if expected.next_if(|e| e.at == at).is_some() {
                continue;
            }
            match overlay.next_if(|(o, _)| *o == at) {
                Some((_, data)) => block.copy_from_slice(data),
                None => block.fill(0),
            }
        }
    }

    /// Whether the tables still say of this block what they said when the read began.
    fn is_current(&self, tables: &mut Tables, meta: &Meta, expected: &Expected) -> Result<bool, MetaError> {
        let Some(key) = self.key else { return Ok(false) };
        let Some(slot) = tables.load(meta, key)? else { return Ok(false) };
        let within = (self.range.first() % EXTENT_BLOCKS) as usize + expected.at;
        let in_overlay = slot.overlay.as_ref().is_some_and(|o| o.get(within).is_some());
        let same = slot.blocks.as_ref().is_some_and(|b| {
            b.mapped.has(within) && (b.version(within), b.crc(within)) == (expected.version, expected.crc)
        });
        Ok(slot.phys == Some(self.phys) && !in_overlay && same)
    }
}
