//! Changes: from the operation to records in the queue.
//!
//! An operation is cut at extents into *parts*, each with one or more *pieces*. A part goes through its extent's gate, then
//! decides where its data goes:
//!
//! - through the journal: one record a piece, with its data;
//! - direct: at least [`DIRECT_BLOCKS_MIN`] blocks that are unmapped, or a whole extent, which then gets a fresh place. The data is
//!   written there first, through to the medium, and only then a record names it.
//!
//! Space is promised to an operation as a whole before any part begins, so that a full disk changes nothing. What changes
//! whole extents without data needs none: see [`super::staged`].

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;

use bytes::Bytes;
use ferro_protocol::ids::{ChunkId, ObjectId, Seq, Version};
use ferro_protocol::units::{BLOCK_BYTES, BlockRange, EXTENT_BLOCKS, EXTENT_BYTES, IO_BLOCKS_MAX};
use vsand_core::disk::{DiskError, DiskOp, DiskReply, Ticket};

use super::batch::{Queued, Target};
use super::staged::Whole;
use super::{Purpose, Store};
use crate::files::FileKind;
use crate::gate::Mode;
use crate::journal::{Place, Record, block_crcs};
use crate::ring::Ring;
use crate::slots::ExtentKey;

/// The smallest run that is worth a stable write of its own instead of a second write.
const DIRECT_BLOCKS_MIN: u32 = 16;

/// A change under way.
#[derive(Debug)]
pub(super) struct Op {
    pub(super) ticket: Ticket,
    pub(super) object: ObjectId,
    pub(super) parts_left: u32,
    /// Why nothing of it was done.
    pub(super) refused: Option<DiskError>,
}

/// Blocks of one extent that become the same thing.
#[derive(Clone, Debug)]
struct Piece {
    range: BlockRange,
    version: Version,
    /// The data; without it the blocks are unmapped.
    data: Option<Bytes>,
}

/// What an operation does to one extent.
#[derive(Debug)]
pub(super) struct Part {
    op: u32,
    pub(super) key: ExtentKey,
    pub(super) chunk: ChunkId,
    pub(super) watermark: Seq,
    force: bool,
    pieces: Vec<Piece>,
    mode: Mode,
    /// One extent is promised to it.
    promised: bool,
    pub(super) records_left: u32,
    /// The record of a direct write, while its data is on its way.
    direct: Option<Record>,
    /// What becomes of the whole extent; then there are no pieces.
    pub(super) whole: Option<Whole>,
}

impl Part {
    fn new(key: ExtentKey, chunk: ChunkId, watermark: Seq, whole: Option<Whole>) -> Self {
        Self {
            op: 0,
            key,
            chunk,
            watermark,
            force: false,
            pieces: Vec::new(),
            mode: Mode::Exclusive,
            promised: false,
            records_left: 0,
            direct: None,
            whole,
        }
    }

    /// One that is alone with the extent, and has no data.
    pub(super) fn of_whole(key: ExtentKey, chunk: ChunkId, watermark: Seq, whole: Whole) -> Self {
        Self::new(key, chunk, watermark, Some(whole))
    }

    /// The blocks it may touch, within the extent.
    fn span(&self) -> Range<u32> {
        let first = self.pieces.first().map_or(0, |p| p.range.first() % EXTENT_BLOCKS);
        let end = self.pieces.last().map_or(0, |p| (p.range.end() - 1) % EXTENT_BLOCKS + 1);
        first..end
    }

    /// The extents whose gates it goes through: it begins when it is in all of them.
    fn gates(&self) -> impl Iterator<Item = ExtentKey> + use<> {
        let other = match self.whole {
            Some(Whole::Promote { from, .. }) => Some(from),
            _ => None,
        };
        std::iter::once(self.key).chain(other)
    }
}

/// The changes of one object under way. `Remove` and `Summarise` are alone.
#[derive(Debug, Default)]
pub(super) struct ObjectGate {
    active: u32,
    alone: bool,
    pub(super) waiting: VecDeque<(Ticket, DiskOp)>,
}

pub(super) type Objects = HashMap<ObjectId, ObjectGate>;

fn object_of(op: &DiskOp) -> ObjectId {
    match op {
        DiskOp::Write { chunk, .. }
        | DiskOp::Zero { chunk, .. }
        | DiskOp::Install { chunk, .. }
        | DiskOp::Read { chunk, .. }
        | DiskOp::Fetch { chunk, .. }
        | DiskOp::List { chunk, .. }
        | DiskOp::Promote { to: chunk, .. }
        | DiskOp::Forget { chunk, .. } => chunk.object,
        DiskOp::SetEpoch { object, .. } | DiskOp::Summarise { object } | DiskOp::Remove { object, .. } => {
            *object
        }
    }
}

impl Store {
    pub(super) fn has_news(&self) -> bool {
        !self.stalled.is_empty() || self.tables.is_dirty()
    }

    pub(super) fn enter_object(&mut self, ticket: Ticket, mut op: DiskOp) {
        if let DiskOp::Write { data, .. } | DiskOp::Install { data, .. } = &mut op {
            *data = self.pool.aligned(data);
        }
        let object = object_of(&op);
        self.objects.entry(object).or_default().waiting.push_back((ticket, op));
        self.admit_ops(object);
    }

    fn admit_ops(&mut self, object: ObjectId) {
        let Some(gate) = self.objects.get_mut(&object) else { return };
        while let Some((_, op)) = gate.waiting.front() {
            // A summary that comes after a seal must hold all that was under way before.
            let alone = matches!(op, DiskOp::Remove { .. } | DiskOp::Summarise { .. });
            if gate.alone || (alone && gate.active > 0) {
                return;
            }
            gate.active += 1;
            gate.alone = alone;
            self.ready_ops.extend(gate.waiting.pop_front());
        }
        if gate.active == 0 {
            self.objects.remove(&object);
        }
    }

    pub(super) fn leave_object(&mut self, object: ObjectId) {
        if let Some(gate) = self.objects.get_mut(&object) {
            gate.active -= 1;
            gate.alone = false;
        }
        self.admit_ops(object);
    }

    pub(super) fn start_change(&mut self, ring: &mut Ring, ticket: Ticket, op: DiskOp) {
        let object = object_of(&op);
        let record = match &op {
            DiskOp::SetEpoch { object, epoch } => Record::SetEpoch { object: *object, epoch: *epoch },
            DiskOp::Remove { object, chunk } => Record::Remove { object: *object, chunk: *chunk },
            DiskOp::Summarise { object } => {
                self.summarise(ticket, *object);
                return self.leave_object(*object);
            }
            DiskOp::Promote { to, from, extent, watermark } => {
                return self.start_promote(ring, ticket, *to, *from, *extent, *watermark);
            }
            DiskOp::Forget { chunk, first, end } => {
                return self.start_forget(ring, ticket, *chunk, *first..*end);
            }
            _ => {
                // Whoever waits for space already comes first.
                let fresh = self.stalled.is_empty();
                if let Some(op) = self.start_blocks(ring, ticket, object, op, fresh) {
                    self.stalled.push_back((ticket, op));
                }
                return;
            }
        };
        let index = self.ops.insert(Op { ticket, object, parts_left: 1, refused: None });
        self.queue.push_back(Queued { record, data: None, target: Target::Op(index) });
    }

    /// Tries those that wait for space again, in order, up to the first that must go on waiting.
    pub(super) fn retry_stalled(&mut self, ring: &mut Ring) {
        while let Some((ticket, op)) = self.stalled.pop_front() {
            if let Some(op) = self.start_blocks(ring, ticket, object_of(&op), op, true) {
                return self.stalled.push_front((ticket, op));
            }
        }
    }

    /// Begins a change of blocks. Gives it back if there is no space for it now and there may be later: it stays in its
    /// object's gate, and a checkpoint or the end of another change lets it be tried again.
    fn start_blocks(
        &mut self,
        ring: &mut Ring,
        ticket: Ticket,
        object: ObjectId,
        op: DiskOp,
        first_in_line: bool,
    ) -> Option<DiskOp> {
        let mut parts = self.plan(&op);
        let needed = parts.iter_mut().map(|part| u32::from(self.needs_extent(part))).sum();
        if (needed > 0 && !first_in_line) || !self.tables.alloc.promise(object, needed) {
            if !first_in_line || self.tables.alloc.more_to_come() {
                return Some(op);
            }
            self.answer(ticket, Err(DiskError::Full));
            self.leave_object(object);
            return None;
        }
        self.start_parts(ring, ticket, object, parts);
        None
    }

    /// Sends an operation's parts through their gates. With no parts it is done.
    pub(super) fn start_parts(
        &mut self,
        ring: &mut Ring,
        ticket: Ticket,
        object: ObjectId,
        parts: Vec<Part>,
    ) {
        if parts.is_empty() {
            self.answer(ticket, Ok(DiskReply::Done));
            return self.leave_object(object);
        }
        let parts_left = parts.len() as u32;
        let index = self.ops.insert(Op { ticket, object, parts_left, refused: None });
        for mut part in parts {
            part.op = index;
            let gates = part.gates();
            let at = self.parts.insert(part);
            for key in gates {
                if self.enter_gate(key, at) {
                    self.start_part(ring, at);
                }
            }
            if self.dead.is_some() {
                return;
            }
        }
    }

    /// Lets the part in if nobody is in its way, else makes it wait: it is started when it is its turn.
    fn enter_gate(&mut self, key: ExtentKey, index: u32) -> bool {
        let Some(part) = self.parts.get_mut(index) else { return false };
        let (mode, span) = (part.mode, part.span());
        let gate = &mut self.tables.slots.wake_or_new(key).gate;
        let admitted = gate.admits(mode, &span);
        if admitted {
            gate.enter(index, mode, span);
        } else {
            gate.wait(index, mode, span);
        }
        admitted
    }

    /// Cuts an operation into parts.
    fn plan(&mut self, op: &DiskOp) -> Vec<Part> {
        let (chunk, watermark, force, pieces) = match op {
            DiskOp::Write { chunk, range, version, watermark, data } => {
                assert!(
                    range.count() <= IO_BLOCKS_MAX && data.len() == range.bytes(),
                    "a write of the wrong size"
                );
                (*chunk, *watermark, false, cut(*range, *version, Some(data)))
            }
            DiskOp::Zero { chunk, range, version, watermark } => {
                (*chunk, *watermark, false, cut(*range, *version, None))
            }
            DiskOp::Install { chunk, runs, data } => {
                let expected = ferro_protocol::peer::mapped_bytes(runs).expect("runs ascend and are bounded");
                assert!(expected == data.len(), "an install of the wrong size");
                let mut pieces = Vec::new();
                let mut at = 0;
                for run in runs {
                    let bytes = run.mapped.then(|| data.slice(at..at + run.range.bytes()));
                    at += bytes.as_ref().map_or(0, Bytes::len);
                    pieces.extend(cut(run.range, run.version, bytes.as_ref()));
                }
                (*chunk, Seq(0), true, pieces)
            }
            _ => unreachable!("not a change of blocks"),
        };
        let mut parts: Vec<Part> = Vec::new();
        for piece in pieces {
            let key = self.tables.key_of(chunk, piece.range.first());
            match parts.last_mut() {
                Some(part) if part.key == key => part.pieces.push(piece),
                _ => {
                    parts.push(Part { force, pieces: vec![piece], ..Part::new(key, chunk, watermark, None) });
                }
            }
        }
        for part in &mut parts {
            self.tables.slots.wake(part.key);
            part.mode = self.mode_of(part);
        }
        parts
    }

    /// What the part may come to do. Whether it does is decided when it begins.
    fn mode_of(&self, part: &Part) -> Mode {
        let [Piece { range, data: Some(_), .. }] = part.pieces.as_slice() else {
            let all_data = part.pieces.iter().all(|p| p.data.is_some());
            return if all_data { Mode::Journaled } else { Mode::Exclusive };
        };
        if range.count() < DIRECT_BLOCKS_MIN {
            return Mode::Journaled;
        }
        let Some(slot) = self.tables.slots.get(part.key) else { return Mode::Direct };
        if range.count() == EXTENT_BLOCKS {
            return if slot.phys.is_none() && slot.gate.is_idle() { Mode::Direct } else { Mode::Exclusive };
        }
        let span = part.span();
        let unmapped = slot.phys.is_none()
            || slot.mapped().is_some_and(|m| !m.any_in(span.start as usize..span.end as usize));
        if unmapped { Mode::Direct } else { Mode::Journaled }
    }

    /// Whether the part may have to allocate an extent; notes the promise.
    fn needs_extent(&self, part: &mut Part) -> bool {
        let maps = part.pieces.iter().any(|p| p.data.is_some());
        let has_one = self.tables.slots.get(part.key).is_some_and(|slot| {
            (slot.phys.is_some() || slot.pending.is_some()) && slot.gate.admits(part.mode, &part.span())
        });
        part.promised = maps && !has_one;
        part.promised
    }

    /// The gate has let the part in.
    pub(super) fn start_part(&mut self, ring: &mut Ring, index: u32) {
        let Some(part) = self.parts.get_mut(index) else { return };
        let key = part.key;
        if part.whole.is_some() {
            return self.start_whole(index);
        }
        if part.promised {
            self.tables.alloc.redeem(part.chunk.object);
            part.promised = false;
        }
        if let Err(error) = self.tables.load_or_new(&self.meta, key) {
            return self.die(error.to_string());
        }
        if self.start_direct(ring, index) {
            return;
        }
        let Some(part) = self.parts.get_mut(index) else { return };
        part.records_left = part.pieces.len() as u32;
        let (chunk, watermark, force) = (part.chunk, part.watermark, part.force);
        for Piece { range, version, data } in std::mem::take(&mut part.pieces) {
            let record = if let Some(data) = &data {
                let Some(phys) = self.place_of(key) else {
                    return self.die("an extent that was promised is not there".to_owned());
                };
                let crcs = block_crcs(data);
                Record::Write { chunk, range, version, watermark, phys, place: Place::Journal, force, crcs }
            } else {
                Record::Zero { chunk, range, version, watermark, force }
            };
            self.queue.push_back(Queued { record, data, target: Target::Part(index) });
        }
    }

    /// The physical extent that the extent has or will have.
    fn place_of(&mut self, key: ExtentKey) -> Option<u32> {
        let object = self.tables.object_of(key);
        let slot = self.tables.slots.get_mut(key)?;
        if slot.phys.is_none() && slot.pending.is_none() {
            slot.pending = self.tables.alloc.allocate(object);
        }
        slot.phys.or(slot.pending)
    }

    /// Writes the part's data straight to its place if that is possible. Returns whether it is.
    fn start_direct(&mut self, ring: &mut Ring, index: u32) -> bool {
        let Some(part) = self.parts.get_mut(index) else { return false };
        let [Piece { range, version, data: Some(data) }] = part.pieces.as_slice() else { return false };
        if part.mode == Mode::Journaled || range.count() < DIRECT_BLOCKS_MIN {
            return false;
        }
        let (key, range, version, data, force) = (part.key, *range, *version, data.clone(), part.force);
        let (chunk, watermark, mode, span) = (part.chunk, part.watermark, part.mode, part.span());
        let Some(slot) = self.tables.slots.get(key) else { return false };
        let Some(blocks) = &slot.blocks else { return false };
        let mut span = span.start as usize..span.end as usize;
        if !force && span.clone().any(|b| blocks.version(b) >= version) {
            return false;
        }
        let in_place = !blocks.mapped.any_in(span.clone())
            && slot
                .overlay
                .as_ref()
                .is_none_or(|o| !o.busy(span.clone()) && !span.any(|b| o.get(b).is_some()));
        let (place, phys) = if in_place {
            (Place::InPlace, self.place_of(key))
        } else if mode == Mode::Exclusive
            && range.count() == EXTENT_BLOCKS
            && self.tables.alloc.available(chunk.object) > 0
        {
            (Place::Remap, self.tables.alloc.allocate(chunk.object))
        } else {
            return false;
        };
        let Some(phys) = phys else { return false };
        let crcs = block_crcs(&data);
        let Some(part) = self.parts.get_mut(index) else { return false };
        part.direct = Some(Record::Write { chunk, range, version, watermark, phys, place, force, crcs });
        part.records_left = 1;
        part.pieces.clear();
        self.stats.direct_writes += 1;
        let offset =
            u64::from(phys) * EXTENT_BYTES + u64::from(range.first() % EXTENT_BLOCKS) * BLOCK_BYTES as u64;
        let purpose = Purpose::DirectData { part: index, bytes: data.len() as u32 };
        self.files.write(ring, purpose, FileKind::Data, offset, vec![data], true);
        true
    }

    /// The data of a direct write is stable: a record may name it.
    pub(super) fn direct_written(&mut self, index: u32, bytes: u32, result: io::Result<u32>) {
        match result {
            Ok(written) if written == bytes => {
                if let Some(record) = self.parts.get_mut(index).and_then(|part| part.direct.take()) {
                    self.queue.push_back(Queued { record, data: None, target: Target::Part(index) });
                }
            }
            Ok(written) => self.die(format!("a write of {bytes} bytes wrote {written}")),
            Err(error) => self.die(format!("a write failed: {error}")),
        }
    }

    /// A record of the part is stable and has taken effect.
    pub(super) fn record_stable(&mut self, index: u32) {
        let Some(part) = self.parts.get_mut(index) else { return };
        part.records_left -= 1;
        if part.records_left > 0 {
            return;
        }
        self.part_done(index);
    }

    /// The part leaves, and those that waited for it begin.
    pub(super) fn part_done(&mut self, index: u32) {
        let Some(part) = self.parts.remove(index) else { return };
        let object = part.chunk.object;
        for key in part.gates() {
            let Some(slot) = self.tables.slots.get_mut(key) else { continue };
            slot.gate.leave(index);
            if !slot.gate.has_active()
                && let Some(unused) = slot.pending.take()
            {
                // All writes that were to map it were older than what is there.
                self.tables.alloc.untake(object, unused);
            }
            while let Some(next) = slot.gate.admit_next() {
                self.ready_parts.push_back(next);
            }
        }
        self.retry_stalled = !self.stalled.is_empty();
        self.part_of_op_done(part.op);
    }

    /// Nothing is done of the part's operation, which has no other.
    pub(super) fn refuse_part(&mut self, index: u32, error: DiskError) {
        let Some(part) = self.parts.get_mut(index) else { return };
        if let Some(op) = self.ops.get_mut(part.op) {
            op.refused = Some(error);
        }
        self.part_done(index);
    }
}

/// A run in pieces that each stay within an extent.
fn cut(range: BlockRange, version: Version, data: Option<&Bytes>) -> Vec<Piece> {
    let mut at = 0;
    range
        .by_extent()
        .map(|range| {
            let data = data.map(|d| d.slice(at..at + range.bytes()));
            at += range.bytes();
            Piece { range, version, data }
        })
        .collect()
}
