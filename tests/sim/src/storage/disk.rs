//! A disk that keeps the contract of `vsand_core::disk` and nothing more: what is not flushed may be lost block by block,
//! stored blocks rot, operations overtake each other, and it can freeze, fill up or die.
//!
//! ```text
//!   submit ──random──▶ apply (volatile, read by others) ──random──▶ flush: all that was applied so far is durable, answer
//! ```

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use ferro_protocol::ids::{ChunkId, Epoch, ObjectId, Seq, Version};
use ferro_protocol::peer::{ChunkSummary, Run};
use ferro_protocol::units::{BLOCK_BYTES, BlockRange, CHUNK_BLOCKS, EXTENT_BLOCKS};
use vsand_core::disk::{DiskError, DiskOp, DiskReply, Ticket};

use super::dice::Dice;

/// What stands in place of a block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Block {
    pub version: Version,
    pub data: Option<Bytes>,
    /// The stored bytes are no longer what was written.
    pub rotten: bool,
}

/// One component.
#[derive(Clone, Default, Debug)]
pub(super) struct Component {
    pub blocks: BTreeMap<u32, Block>,
    pub watermark: Seq,
}

/// All that is on a disk.
#[derive(Clone, Default, Debug)]
pub(super) struct Image {
    pub components: BTreeMap<ChunkId, Component>,
    pub epochs: BTreeMap<ObjectId, Epoch>,
}

#[derive(Clone, Debug)]
enum Change {
    Block(ChunkId, u32, Option<Block>),
    /// All blocks of the extent, from one component to the other.
    Promote {
        from: ChunkId,
        to: ChunkId,
        extent: u32,
    },
    /// These blocks were never written.
    Forget(ChunkId, std::ops::Range<u32>),
    Watermark(ChunkId, Seq),
    Epoch(ObjectId, Epoch),
    RemoveChunk(ChunkId),
    RemoveObject(ObjectId),
}

impl Image {
    fn change(&mut self, change: &Change) {
        match change {
            Change::Block(chunk, block, Some(value)) => {
                self.components.entry(*chunk).or_default().blocks.insert(*block, value.clone());
            }
            Change::Block(chunk, block, None) => {
                self.components.entry(*chunk).or_default().blocks.remove(block);
            }
            Change::Promote { from, to, extent } => {
                let blocks = extent_blocks(*extent);
                let Some(staged) = self.components.get_mut(from) else { return };
                let mut moved = staged.blocks.split_off(&blocks.start);
                staged.blocks.append(&mut moved.split_off(&blocks.end));
                let component = self.components.entry(*to).or_default();
                component.blocks.retain(|block, _| !blocks.contains(block));
                component.blocks.append(&mut moved);
            }
            Change::Forget(chunk, blocks) => {
                if let Some(component) = self.components.get_mut(chunk) {
                    component.blocks.retain(|block, _| !blocks.contains(block));
                }
            }
            Change::Watermark(chunk, seq) => {
                let component = self.components.entry(*chunk).or_default();
                component.watermark = component.watermark.max(*seq);
            }
            Change::Epoch(object, epoch) => {
                self.epochs.insert(*object, *epoch);
            }
            Change::RemoveChunk(chunk) => {
                self.components.remove(chunk);
            }
            Change::RemoveObject(object) => {
                self.components.retain(|chunk, _| chunk.object != *object);
                self.epochs.remove(object);
            }
        }
    }

    pub(super) fn block(&self, chunk: ChunkId, block: u32) -> Option<&Block> {
        self.components.get(&chunk)?.blocks.get(&block)
    }
}

/// An operation under way.
#[derive(Debug)]
struct Pending {
    op: Option<DiskOp>,
    result: Option<Result<DiskReply, DiskError>>,
    /// What had been applied when this was.
    applied: u64,
}

/// The disk.
#[derive(Debug)]
pub(super) struct SimDisk {
    pub host: usize,
    /// Changes when the process that uses it does: answers to the old one go nowhere.
    pub incarnation: u64,
    pub volatile: Image,
    pub durable: Image,
    unsynced: VecDeque<(u64, Change)>,
    applied: u64,
    pending: BTreeMap<Ticket, Pending>,
    /// It answers nothing before this time.
    pub frozen_until: u64,
    /// Operations take so many times as long until then.
    pub slow: (u64, u64),
    /// New blocks find no space until then.
    pub full_until: u64,
    /// It fails; for good, or until the process is started again.
    pub dead: Option<Death>,
    /// It was taken out.
    pub removed: bool,
    /// It is in no host at the moment.
    pub carried: bool,
    /// What happens to the next operation.
    pub stick: Option<Stick>,
    /// Bug: an operation is answered when it is applied.
    early_answers: bool,
    /// Bug: rotten blocks are handed out.
    unchecked: bool,
    /// The most runs in one list.
    runs_max: usize,
}

/// One operation is stuck for so long, while all others go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stick {
    pub ns: u64,
    /// It takes effect first: only its end is stuck.
    pub late: bool,
}

/// How a disk died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Death {
    UntilRestart,
    ForGood,
}

impl SimDisk {
    pub(super) fn new(host: usize, early_answers: bool, unchecked: bool, runs_max: usize) -> Self {
        Self {
            host,
            incarnation: 0,
            volatile: Image::default(),
            durable: Image::default(),
            unsynced: VecDeque::new(),
            applied: 0,
            pending: BTreeMap::new(),
            frozen_until: 0,
            slow: (0, 1),
            full_until: 0,
            dead: None,
            removed: false,
            carried: false,
            stick: None,
            early_answers,
            unchecked,
            runs_max,
        }
    }

    pub(super) fn submit(&mut self, ticket: Ticket, op: DiskOp) {
        self.pending.insert(ticket, Pending { op: Some(op), result: None, applied: 0 });
    }

    /// The operation takes effect, as far as readers can see. False if there is no such operation.
    pub(super) fn apply(&mut self, now: u64, ticket: Ticket) -> bool {
        let Some(op) = self.pending.get_mut(&ticket).and_then(|p| p.op.take()) else { return false };
        let result = if self.dead.is_some() {
            Err(DiskError::Dead("EIO".to_owned()))
        } else {
            self.carry_out(now, op)
        };
        let applied = self.applied;
        if let Some(pending) = self.pending.get_mut(&ticket) {
            pending.result = Some(result);
            pending.applied = applied;
        }
        true
    }

    /// The operation ends: what was applied up to it is stable, and this is its answer.
    pub(super) fn finish(&mut self, ticket: Ticket) -> Option<Result<DiskReply, DiskError>> {
        let pending = self.pending.remove(&ticket)?;
        if self.dead.is_some() {
            return Some(Err(DiskError::Dead("EIO".to_owned())));
        }
        let result = pending.result?;
        if result == Ok(DiskReply::Done) && !self.early_answers {
            while self.unsynced.front().is_some_and(|(seq, _)| *seq <= pending.applied) {
                let Some((_, change)) = self.unsynced.pop_front() else { break };
                self.durable.change(&change);
            }
        }
        Some(result)
    }

    /// The process or the power is gone: each unsynced change survives in so many of a thousand cases.
    pub(super) fn cut(&mut self, dice: &mut Dice, survive_permille: u32) {
        for (_, change) in std::mem::take(&mut self.unsynced) {
            if dice.permille(survive_permille) {
                self.durable.change(&change);
            }
        }
        self.volatile = self.durable.clone();
        self.pending.clear();
        self.incarnation += 1;
        self.frozen_until = 0;
    }

    /// The process opens it again.
    pub(super) fn restarted(&mut self) {
        if self.dead == Some(Death::UntilRestart) {
            self.dead = None;
        }
    }

    /// A stored block rots. True if there was one.
    pub(super) fn rot(&mut self, chunk: ChunkId, block: u32) -> bool {
        let mut hit = false;
        for image in [&mut self.volatile, &mut self.durable] {
            let found = image.components.get_mut(&chunk).and_then(|c| c.blocks.get_mut(&block));
            if let Some(found) = found.filter(|b| b.data.is_some()) {
                found.rotten = true;
                hit = true;
            }
        }
        hit
    }

    fn push(&mut self, change: Change) {
        self.applied += 1;
        self.volatile.change(&change);
        self.unsynced.push_back((self.applied, change));
    }

    fn carry_out(&mut self, now: u64, op: DiskOp) -> Result<DiskReply, DiskError> {
        let full = now < self.full_until;
        match op {
            DiskOp::Write { chunk, range, version, watermark, data } => {
                let new =
                    range.blocks().any(|b| self.volatile.block(chunk, b).is_none_or(|b| b.data.is_none()));
                if full && new {
                    return Err(DiskError::Full);
                }
                for (n, block) in range.blocks().enumerate() {
                    let data = data.slice(n * BLOCK_BYTES..(n + 1) * BLOCK_BYTES);
                    self.put_newer(chunk, block, version, Some(data));
                }
                self.push(Change::Watermark(chunk, watermark));
                Ok(DiskReply::Done)
            }
            DiskOp::Zero { chunk, range, version, watermark } => {
                for block in range.blocks() {
                    self.put_newer(chunk, block, version, None);
                }
                self.push(Change::Watermark(chunk, watermark));
                Ok(DiskReply::Done)
            }
            DiskOp::Install { chunk, runs, data } => {
                if full {
                    return Err(DiskError::Full);
                }
                let mut at = 0;
                for run in runs {
                    for block in run.range.blocks() {
                        let data = run.mapped.then(|| data.slice(at..at + BLOCK_BYTES));
                        at += if run.mapped { BLOCK_BYTES } else { 0 };
                        let never = run.version == Version::NEVER && data.is_none();
                        let value = (!never).then_some(Block { version: run.version, data, rotten: false });
                        self.push(Change::Block(chunk, block, value));
                    }
                }
                Ok(DiskReply::Done)
            }
            DiskOp::Read { chunk, range } => {
                let mut bytes = BytesMut::with_capacity(range.bytes());
                let mut bad = Vec::new();
                for block in range.blocks() {
                    self.read_block(chunk, block, &mut bytes, &mut bad, true);
                }
                if bad.is_empty() {
                    Ok(DiskReply::Data(bytes.freeze()))
                } else {
                    Err(DiskError::BadBlocks(bad))
                }
            }
            DiskOp::Fetch { chunk, range } => {
                let mut bytes = BytesMut::new();
                let mut bad = Vec::new();
                let mut runs = Vec::new();
                for block in range.blocks() {
                    let found = self.volatile.block(chunk, block);
                    let version = found.map_or(Version::NEVER, |b| b.version);
                    push_run(&mut runs, block, version, found.is_some_and(|b| b.data.is_some()));
                    self.read_block(chunk, block, &mut bytes, &mut bad, false);
                }
                if bad.is_empty() {
                    Ok(DiskReply::Runs(runs, bytes.freeze()))
                } else {
                    Err(DiskError::BadBlocks(bad))
                }
            }
            DiskOp::List { chunk, since, from_block, runs_max } => {
                Ok(self.list(chunk, since, from_block, runs_max.min(self.runs_max)))
            }
            DiskOp::Promote { to, from, extent, watermark } => {
                self.promote(full, ChunkId { index: from, ..to }, to, extent, watermark)
            }
            DiskOp::Forget { chunk, first, end } => {
                self.push(Change::Forget(chunk, first * EXTENT_BLOCKS..end * EXTENT_BLOCKS));
                Ok(DiskReply::Done)
            }
            DiskOp::SetEpoch { object, epoch } => {
                self.push(Change::Epoch(object, epoch));
                Ok(DiskReply::Done)
            }
            DiskOp::Summarise { object } => Ok(DiskReply::Summary(self.summarise(object))),
            DiskOp::Remove { object, chunk: Some(index) } => {
                self.push(Change::RemoveChunk(ChunkId { object, index }));
                Ok(DiskReply::Done)
            }
            DiskOp::Remove { object, chunk: None } => {
                self.push(Change::RemoveObject(object));
                Ok(DiskReply::Done)
            }
        }
    }

    fn promote(
        &mut self,
        full: bool,
        from: ChunkId,
        to: ChunkId,
        extent: u32,
        watermark: Seq,
    ) -> Result<DiskReply, DiskError> {
        let newer = |block: u32| {
            let staged = self.volatile.block(from, block).filter(|b| b.data.is_some());
            let version = self.volatile.block(to, block).map_or(Version::NEVER, |b| b.version);
            staged.is_some_and(|b| b.version > version)
        };
        // A real one may also say no because the data is on its way to its place.
        if full || !extent_blocks(extent).all(newer) {
            return Err(DiskError::NotStaged);
        }
        self.push(Change::Promote { from, to, extent });
        self.push(Change::Watermark(to, watermark));
        Ok(DiskReply::Done)
    }

    fn list(&self, chunk: ChunkId, since: Seq, from_block: u32, runs_max: usize) -> DiskReply {
        let mut runs: Vec<Run> = Vec::new();
        // Only what is stable; with the bug that is all.
        let image = if self.early_answers { &self.volatile } else { &self.durable };
        let component = image.components.get(&chunk);
        let above = component
            .into_iter()
            .flat_map(|c| c.blocks.range(from_block.min(CHUNK_BLOCKS)..))
            .filter(|(_, b)| b.version.seq > since);
        for (block, value) in above {
            push_run(&mut runs, *block, value.version, value.data.is_some());
            if runs.len() > runs_max {
                runs.pop();
                return DiskReply::List(runs, Some(*block));
            }
        }
        DiskReply::List(runs, None)
    }

    fn summarise(&self, object: ObjectId) -> Vec<ChunkSummary> {
        let mut chunks = Vec::new();
        for (chunk, component) in self.volatile.components.iter().filter(|(c, _)| c.object == object) {
            let mut tail = Vec::new();
            for (block, value) in component.blocks.iter().filter(|(_, b)| b.version.seq > component.watermark)
            {
                push_run(&mut tail, *block, value.version, value.data.is_some());
            }
            chunks.push(ChunkSummary {
                index: chunk.index,
                watermark: component.watermark,
                seq_max: component.blocks.values().map(|b| b.version.seq).max().unwrap_or_default(),
                tail,
            });
        }
        chunks
    }

    fn put_newer(&mut self, chunk: ChunkId, block: u32, version: Version, data: Option<Bytes>) {
        if self.volatile.block(chunk, block).is_none_or(|old| old.version < version) {
            self.push(Change::Block(chunk, block, Some(Block { version, data, rotten: false })));
        }
    }

    fn read_block(&self, chunk: ChunkId, block: u32, into: &mut BytesMut, bad: &mut Vec<u32>, zeros: bool) {
        match self.volatile.block(chunk, block) {
            Some(Block { rotten: true, .. }) if !self.unchecked => bad.push(block),
            Some(Block { rotten, data: Some(data), .. }) => {
                let at = into.len();
                into.extend_from_slice(data);
                if *rotten {
                    into[at + 3] ^= 0x10;
                }
            }
            _ if zeros => into.resize(into.len() + BLOCK_BYTES, 0),
            _ => {}
        }
    }
}

fn extent_blocks(extent: u32) -> std::ops::Range<u32> {
    extent * EXTENT_BLOCKS..(extent + 1) * EXTENT_BLOCKS
}

/// Adds a block to ascending runs.
fn push_run(runs: &mut Vec<Run>, block: u32, version: Version, mapped: bool) {
    if let Some(last) = runs.last_mut()
        && last.range.end() == block
        && last.version == version
        && last.mapped == mapped
        && let Ok(range) = BlockRange::new(last.range.first(), last.range.count() + 1)
    {
        last.range = range;
        return;
    }
    if let Ok(range) = BlockRange::one(block) {
        runs.push(Run { range, version, mapped });
    }
}
