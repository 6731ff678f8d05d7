//! The log of a chunk with parity as a ring of slots, each a block: which are free, which hold what.
//!
//! ```text
//!      0                                                        slots
//!      ├──free──┤ record │ record │ … │ record ├──────free──────┤
//!               ▲ tail: the oldest             ▲ head: the next goes here
//!
//!      record = header │ data blocks, in the order of the header's entries (those that are zeros or staged have none)
//! ```
//!
//! A record of full stripes that were staged on the shards' disks ([`super::straight`]) has the header's slot only: it says which blocks,
//! and by its version which of what is staged there is meant.
//!
//! Invariants:
//! - a record is written to slots that are unmapped, in one write of its own: all its slots have one version, no two
//!   records have the same, and the order of versions is the order in the ring;
//! - slots are given back in the order of the ring only, when all of the record's blocks are in the shards, so what is in
//!   the log is never older than what is not;
//! - a record that was acknowledged is whole on every in-sync copy. One that is not whole was not acknowledged: whoever
//!   takes the chunk over wipes it, so that its data is not taken for a header one day.
//!
//! What it must not know: disks, requests, who waits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use ferro_protocol::ids::{Seq, Version};
use ferro_protocol::peer::Run;
use ferro_protocol::units::{BLOCK_BYTES, BlockRange, IO_BLOCKS_MAX};

use crate::bugs::{Bug, Bugs};

/// Data blocks of a record at most; with its header it is one message.
pub(super) const RECORD_BLOCKS_MAX: u32 = IO_BLOCKS_MAX - 1;
/// Entries of a header at most.
const ENTRIES_MAX: usize = 256;
/// Zeroed blocks of a record at most, so that no record changes a whole chunk at once.
pub(super) const RECORD_ZEROS_MAX: u32 = 4_096;

const MAGIC: [u8; 8] = *b"FERROLOG";
/// Of headers without anything staged, which all releases know.
const VERSION: u16 = 1;
/// Of headers of what is staged.
const VERSION_STAGED: u16 = 2;
/// What an entry's count says besides: the blocks become zeros; they are staged.
const ZERO: u32 = 1 << 31;
const STAGED: u32 = 1 << 30;

/// Blocks that a record writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Written {
    pub first: u32,
    pub count: u32,
    pub what: What,
}

/// Where what a record writes is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    /// In the record's slots.
    Data,
    /// Nowhere: the blocks become zeros.
    Zeros,
    /// On the shards' disks, not in force yet.
    Staged,
}

impl Written {
    /// How many slots its blocks have.
    fn slots(&self) -> u32 {
        if self.what == What::Data { self.count } else { 0 }
    }

    pub(super) fn end(&self) -> u32 {
        self.first + self.count
    }
}

/// The header of a record that begins at `slot`.
pub(super) fn encode(slot: u32, seq: Seq, entries: &[Written]) -> Bytes {
    let mut block = BytesMut::with_capacity(BLOCK_BYTES);
    block.put_slice(&MAGIC);
    let staged = entries.iter().any(|e| e.what == What::Staged);
    block.put_u16_le(if staged { VERSION_STAGED } else { VERSION });
    block.put_u16_le(entries.len() as u16);
    block.put_u32_le(slot);
    block.put_u64_le(seq.0);
    for entry in entries {
        block.put_u32_le(entry.first);
        let what = match entry.what {
            What::Data => 0,
            What::Zeros => ZERO,
            What::Staged => STAGED,
        };
        block.put_u32_le(entry.count | what);
    }
    block.resize(BLOCK_BYTES, 0);
    block.freeze()
}

/// What a header says, if it is the header of a record of `slots` slots at `slot` with that version.
pub(super) fn decode(block: &[u8], slot: u32, slots: u32, seq: Seq) -> Option<Vec<Written>> {
    let bytes = |at: usize, len: usize| block.get(at..at + len);
    let word = |at: usize| Some(u16::from_le_bytes(bytes(at, 2)?.try_into().ok()?));
    let field = |at: usize| Some(u32::from_le_bytes(bytes(at, 4)?.try_into().ok()?));
    let count = usize::from(word(10)?);
    let said = u64::from_le_bytes(bytes(16, 8)?.try_into().ok()?);
    let version = word(8)?;
    let ours = bytes(0, 8)? == MAGIC && (VERSION..=VERSION_STAGED).contains(&version);
    if !ours || count > ENTRIES_MAX || field(12)? != slot || said != seq.0 {
        return None;
    }
    let mut entries = Vec::with_capacity(count);
    let (mut data, mut zeros) = (0_u32, 0_u32);
    for n in 0..count {
        let (first, word) = (field(24 + 8 * n)?, field(28 + 8 * n)?);
        let what = match word & (ZERO | STAGED) {
            0 => What::Data,
            ZERO => What::Zeros,
            STAGED if version == VERSION_STAGED => What::Staged,
            _ => return None,
        };
        let entry = Written { first, count: word & !(ZERO | STAGED), what };
        BlockRange::new(entry.first, entry.count).ok()?;
        match what {
            What::Data => data = data.checked_add(entry.count)?,
            What::Zeros => zeros = zeros.checked_add(entry.count)?,
            // Such a record has nothing else.
            What::Staged if count != 1 => return None,
            What::Staged => {}
        }
        entries.push(entry);
    }
    (data + 1 == slots && zeros <= RECORD_ZEROS_MAX).then_some(entries)
}

/// Where a block's data is, in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub seq: Seq,
    pub kept: Kept,
    /// The data itself, while there is memory for it; of what is staged always.
    pub cached: Option<Bytes>,
}

/// How the log keeps a block's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kept {
    Zeros,
    Slot(u32),
    Staged,
}

impl Entry {
    /// The slot that has to be read for it.
    pub(super) fn to_read(&self) -> Option<u32> {
        match self.kept {
            Kept::Slot(slot) if self.cached.is_none() => Some(slot),
            Kept::Slot(_) | Kept::Zeros | Kept::Staged => None,
        }
    }
}

/// One record.
#[derive(Debug)]
pub(super) struct Record {
    seq: Seq,
    first: u32,
    slots: u32,
    entries: Vec<Written>,
    /// Blocks that are not in the shards yet.
    pending: u32,
    /// It is on every copy.
    stable: bool,
    /// It names what is staged: a new owner has to ask all shards what of that is in force.
    staged: bool,
}

impl Record {
    pub(super) fn seq(&self) -> Seq {
        self.seq
    }

    /// Whether it is on every copy.
    pub(super) fn is_stable(&self) -> bool {
        self.stable
    }

    pub(super) fn written(&self) -> &[Written] {
        &self.entries
    }

    /// The blocks that it has staged.
    pub(super) fn staged(&self) -> Option<Written> {
        self.entries.first().filter(|e| e.what == What::Staged).copied()
    }
}

/// The log.
#[derive(Debug)]
pub(super) struct Ring {
    slots: u32,
    /// In the order of the ring, which is that of their versions.
    records: VecDeque<Record>,
    head: u32,
    /// Records that are being given back.
    trimming: usize,
    /// Each block's values, the latest last. Older ones are kept until the row was put into the shards: a parity of before a
    /// crash may be counted with one of them.
    blocks: BTreeMap<u32, Vec<Entry>>,
    /// The records of what is staged that are under way or not in force.
    staged: BTreeSet<Seq>,
}

impl Ring {
    /// An empty log of so many slots.
    pub(super) fn new(slots: u32) -> Self {
        Self {
            slots,
            records: VecDeque::new(),
            head: 0,
            trimming: 0,
            blocks: BTreeMap::new(),
            staged: BTreeSet::new(),
        }
    }

    /// Whether the log holds nothing that is not in the shards.
    pub(super) fn is_settled(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Whether no slot is taken.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The record with this version.
    pub(super) fn record(&self, seq: Seq) -> Option<&Record> {
        self.records.binary_search_by_key(&seq, |r| r.seq).ok().map(|at| &self.records[at])
    }

    /// How many slots are taken.
    pub(super) fn taken(&self) -> u32 {
        self.records.front().map_or(0, |tail| self.since(tail))
    }

    /// How full it is, in thousandths.
    pub(super) fn fullness(&self) -> u32 {
        self.thousandths(self.taken())
    }

    /// The slots from a record on to the head.
    fn since(&self, record: &Record) -> u32 {
        let first = record.first;
        if self.head > first { self.head - first } else { self.slots + self.head - first }
    }

    fn thousandths(&self, slots: u32) -> u32 {
        (u64::from(slots) * 1_000 / u64::from(self.slots)) as u32
    }

    /// Where a record with so many data blocks can go, if there is room for it.
    pub(super) fn room(&self, data_blocks: u32) -> Option<u32> {
        let slots = data_blocks + 1;
        let to_end = self.head + slots <= self.slots;
        match self.records.front().map(|r| r.first) {
            None => Some(if to_end { self.head } else { 0 }),
            Some(tail) if self.head > tail => {
                if to_end {
                    Some(self.head)
                } else {
                    (slots <= tail).then_some(0)
                }
            }
            Some(tail) => (self.head + slots <= tail).then_some(self.head),
        }
    }

    /// A record is on its way to the slots from `at` on.
    pub(super) fn append(&mut self, at: u32, seq: Seq, entries: Vec<Written>) {
        let data: u32 = entries.iter().map(Written::slots).sum();
        let pending = entries.iter().map(|e| e.count).sum();
        let slots = data + 1;
        self.head = (at + slots) % self.slots;
        let staged = entries.iter().any(|e| e.what == What::Staged);
        if staged {
            self.staged.insert(seq);
        }
        let stable = false;
        self.records.push_back(Record { seq, first: at, slots, entries, pending, stable, staged });
    }

    /// The record is on every copy: its blocks are what the guest wrote last. `data` has those of its slots, if there is memory for
    /// them, or all that it has staged.
    pub(super) fn appended(&mut self, seq: Seq, data: Option<&Cached>, bugs: Bugs) {
        let Ok(at) = self.records.binary_search_by_key(&seq, |r| r.seq) else { return };
        let record = &mut self.records[at];
        record.stable = true;
        if bugs.has(Bug::LogForgetsOverwritten) {
            let entries = record.entries.clone();
            for block in entries.iter().flat_map(|e| e.first..e.end()) {
                self.settled(block, seq);
            }
        }
        let record = &mut self.records[at];
        let mut slot = record.first + 1;
        for entry in &record.entries {
            for block in entry.first..entry.end() {
                let cached = || data.and_then(|data| data.block(block));
                let value = match entry.what {
                    What::Zeros => Entry { seq, kept: Kept::Zeros, cached: None },
                    What::Staged => Entry { seq, kept: Kept::Staged, cached: cached() },
                    What::Data => {
                        slot += 1;
                        Entry { seq, kept: Kept::Slot(slot - 1), cached: cached() }
                    }
                };
                put(&mut self.blocks, block, value);
            }
        }
    }

    /// What a record of a former owner has staged: these blocks of it are not in force yet.
    pub(super) fn found(&mut self, seq: Seq, blocks: BTreeMap<u32, Bytes>) {
        let Ok(at) = self.records.binary_search_by_key(&seq, |r| r.seq) else { return };
        let record = &mut self.records[at];
        record.stable = true;
        record.pending = blocks.len() as u32;
        if blocks.is_empty() {
            self.staged.remove(&seq);
        }
        for (block, data) in blocks {
            put(&mut self.blocks, block, Entry { seq, kept: Kept::Staged, cached: Some(data) });
        }
    }

    /// A record of what is staged was not written: it is given back like any other, and holds nothing.
    pub(super) fn abandoned(&mut self, seq: Seq) {
        self.staged.remove(&seq);
        if let Ok(at) = self.records.binary_search_by_key(&seq, |r| r.seq) {
            let record = &mut self.records[at];
            (record.stable, record.pending) = (true, 0);
            record.entries.clear();
        }
    }

    /// The records of what is staged that are under way or not in force.
    pub(super) fn staged(&self) -> impl Iterator<Item = &Record> {
        self.staged.iter().filter_map(|seq| self.record(*seq))
    }

    /// Forgets which of them are in force by now, and names them.
    pub(super) fn staged_settled(&mut self) -> Vec<Seq> {
        let settled = |seq: &Seq| self.record(*seq).is_none_or(|r| r.stable && r.pending == 0);
        let gone: Vec<Seq> = self.staged.iter().copied().filter(settled).collect();
        self.staged.retain(|seq| !gone.contains(seq));
        gone
    }

    /// Whether each of these blocks was staged, and nothing was written to it since.
    pub(super) fn is_all_staged(&self, blocks: std::ops::Range<u32>) -> bool {
        let mut next = blocks.start;
        for (block, values) in self.blocks.range(blocks.clone()) {
            if *block != next || values.last().is_none_or(|e| e.kept != Kept::Staged) {
                return false;
            }
            next += 1;
        }
        next == blocks.end
    }

    /// What the log has of a block, the latest.
    pub(super) fn latest(&self, block: u32) -> Option<&Entry> {
        self.blocks.get(&block)?.last()
    }

    /// What the log has of a block as of a parity of this version: the latest that is older.
    pub(super) fn before(&self, block: u32, seq: Seq) -> Option<&Entry> {
        self.blocks.get(&block)?.iter().rev().find(|e| e.seq < seq)
    }

    /// All that the log has of a block, the latest last.
    pub(super) fn values(&self, block: u32) -> &[Entry] {
        self.blocks.get(&block).map_or(&[], Vec::as_slice)
    }

    /// The first block from `from` on of which the log has something.
    pub(super) fn next_from(&self, from: u32) -> Option<u32> {
        self.blocks.range(from..).next().map(|(block, _)| *block)
    }

    /// A block of the oldest record that is not in the shards. Records with less than `behind` thousandths of the log from them on
    /// to the head are passed over, and blocks that are `busy`, which says up to where those behind it are, too.
    pub(super) fn oldest(&self, behind: u32, busy: impl Fn(u32) -> Option<u32>) -> Option<u32> {
        let old = self.records.iter().take_while(|r| self.thousandths(self.since(r)) >= behind);
        let waiting = old.filter(|r| r.stable && r.pending > 0);
        waiting.take(OLDEST_LOOK).find_map(|record| {
            let is_here =
                |block: &u32| self.blocks.get(block).is_some_and(|v| v.iter().any(|e| e.seq == record.seq));
            record.entries.iter().find_map(|entry| {
                let end = entry.end();
                let mut block = entry.first;
                while block < end {
                    match busy(block) {
                        Some(free) => block = free.max(block + 1),
                        None if is_here(&block) => return Some(block),
                        None => block += 1,
                    }
                }
                None
            })
        })
    }

    /// Whether the log holds anything that is older than this and not in the shards.
    pub(super) fn holds_before(&self, seq: Seq) -> bool {
        self.records.iter().take_while(|r| r.seq < seq).any(|r| r.pending > 0)
    }

    /// What was written to the block before `seq` is in the shards. How many blocks in memory that frees.
    pub(super) fn settled(&mut self, block: u32, seq: Seq) -> usize {
        let Some(values) = self.blocks.get_mut(&block) else { return 0 };
        let keep = values.partition_point(|e| e.seq < seq);
        let mut freed = 0;
        for entry in values.drain(..keep) {
            freed += usize::from(entry.cached.is_some());
            if let Ok(at) = self.records.binary_search_by_key(&entry.seq, |r| r.seq) {
                self.records[at].pending -= 1;
            }
        }
        if values.is_empty() {
            self.blocks.remove(&block);
        }
        freed
    }

    /// Whether the oldest record names what is staged, or was staged.
    pub(super) fn names_staged(&self) -> bool {
        self.records.front().is_some_and(|record| record.staged)
    }

    /// The oldest slots, if nothing needs them any more and they are no fewer than `least` or all there are. They count as taken
    /// until [`Self::trimmed`].
    pub(super) fn trimmable(&mut self, least: u32) -> Option<BlockRange> {
        if self.trimming > 0 {
            return None;
        }
        let first = self.records.front()?.first;
        let (mut slots, mut count) = (0, 0);
        for record in &self.records {
            if record.first != first + slots || record.pending > 0 || !record.stable {
                break;
            }
            slots += record.slots;
            count += 1;
        }
        // Where the ring turns over, or slots of a broken record were wiped, no more can follow.
        let goes_on = self.records.get(count).is_some_and(|r| r.first == first + slots);
        if count == 0 || (slots < least && goes_on) {
            return None;
        }
        self.trimming = count;
        BlockRange::new(first, slots).ok()
    }

    /// The slots that [`Self::trimmable`] named are unmapped on every copy.
    pub(super) fn trimmed(&mut self) {
        self.records.drain(..self.trimming);
        self.trimming = 0;
    }
}

fn put(blocks: &mut BTreeMap<u32, Vec<Entry>>, block: u32, value: Entry) {
    let values = blocks.entry(block).or_default();
    let place = values.partition_point(|e| e.seq < value.seq);
    values.insert(place, value);
}

/// Data of a record in memory: runs of blocks that follow each other.
#[derive(Clone, Default, Debug)]
pub(super) struct Cached(BTreeMap<u32, Bytes>);

impl Cached {
    /// The blocks from this one on.
    pub(super) fn add(&mut self, first: u32, data: Bytes) {
        self.0.insert(first, data);
    }

    pub(super) fn block(&self, block: u32) -> Option<Bytes> {
        let (first, data) = self.0.range(..=block).next_back()?;
        let at = (block - first) as usize * BLOCK_BYTES;
        (at + BLOCK_BYTES <= data.len()).then(|| data.slice(at..at + BLOCK_BYTES))
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.values().map(Bytes::len).sum()
    }
}

/// Records that are looked through for one whose rows are free.
const OLDEST_LOOK: usize = 256;

/// The slots can't be those of a log: records lie across each other's order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BadLog;

/// What a scan of the log's slots has found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Runs of mapped slots of one version.
    runs: Vec<(u32, u32, Version)>,
    headers: BTreeMap<u32, Bytes>,
}

impl Scan {
    /// A piece of the log, in order.
    pub(super) fn add(&mut self, runs: &[Run], data: &Bytes) {
        let mut at = 0;
        for run in runs.iter().filter(|run| run.mapped) {
            let (first, count, version) = (run.range.first(), run.range.count(), run.version);
            match self.runs.last_mut() {
                Some((f, c, v)) if *f + *c == first && *v == version => *c += count,
                _ => {
                    if let Some(block) = data.get(at..at + BLOCK_BYTES) {
                        // Not a slice: that would keep all of the piece.
                        self.headers.insert(first, Bytes::copy_from_slice(block));
                    }
                    self.runs.push((first, count, version));
                }
            }
            at += run.range.bytes();
        }
    }

    /// The log as it was found.
    pub(super) fn finish(self, slots: u32, bugs: Bugs) -> Result<Found, BadLog> {
        let mut ring = Ring::new(slots);
        let (mut wipe, mut staged) = (Vec::new(), Vec::new());
        let mut found = Vec::new();
        for (first, count, version) in self.runs {
            match self.headers.get(&first).and_then(|block| decode(block, first, count, version.seq)) {
                Some(entries) => found.push((version, first, entries)),
                None => wipe.extend(BlockRange::new(first, count)),
            }
        }
        found.sort_by_key(|(version, ..)| version.seq);
        let Some((_, tail, _)) = found.first().cloned() else { return Ok(Found { ring, wipe, staged }) };
        let mut before = 0;
        for (version, first, entries) in found {
            let seq = version.seq;
            // In the order of their versions they follow each other round the ring, once.
            let distance = (first + slots - tail) % slots;
            if distance < before {
                return Err(BadLog);
            }
            before = distance;
            let blocks = entries.first().filter(|e| e.what == What::Staged).copied();
            ring.append(first, seq, entries);
            match blocks {
                Some(blocks) => staged.push((version, blocks)),
                None => ring.appended(seq, None, bugs),
            }
        }
        Ok(Found { ring, wipe, staged })
    }
}

/// A log as it was found.
#[derive(Debug)]
pub(super) struct Found {
    pub ring: Ring,
    /// Slots that hold no record: to be unmapped.
    pub wipe: Vec<BlockRange>,
    /// What its records say is staged, with their versions; [`Ring::found`] is to be told what of it is not in force.
    pub staged: Vec<(Version, Written)>,
}

const _: () = assert!(24 + 8 * ENTRIES_MAX <= BLOCK_BYTES);

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
