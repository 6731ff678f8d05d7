//! Full stripes go straight to the shards, in place of the log.
//!
//! ```text
//!   full stripes ──▶ staged, on every shard's disk ──▶ a record in the log that names them ──▶ acknowledged
//!                        │ refused (a disk is full)                  │ when an extent of each shard is staged whole
//!                        ▼                                           ▼
//!                    the log, as all else            parities in force ──▶ data in force ──▶ the log may forget the record
//!                                                        │ refused: it is written as any job writes
//! ```
//!
//! What a shard's disk stages lies beside the shard ([`ChunkIndex::staged`]) and is no part of it: whatever becomes of the owner, the old
//! stripe is whole until the new one is acknowledged. Then the new one is whole, staged, as well protected as any stripe. Putting an extent
//! in force copies nothing. So a megabyte with 2+1 is a megabyte and a half of writes in all; through the log it is three and a half.
//!
//! Invariants:
//! - a record of what is staged is written when all shards have it staged, and acknowledged when the record is on every copy of the log;
//! - its data stays in memory until it is in force, so reads, and jobs that have to write after all, never ask for what is staged. Only a new
//!   owner does ([`super::found`]);
//! - record *v* is staged with the versions *v* + 1 to *v* + shards, one a shard, taken together with *v*: to who decodes, a parity that is in
//!   force was counted with *v* and with nothing later;
//! - parities are put in force before data, as jobs write them: while any parity is old, all of the old data is in place;
//! - nothing is staged over what is staged and not in force, nor beside remains of it in the same extent: a whole staged extent is of
//!   records that the log has;
//! - stripes are staged only while each shard has one component, in sync and well, and put in force only on the same ones. No
//!   component joins a shard while anything is staged: it would not have it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use ferro_protocol::ids::{ChunkIndex, DiskId, Role, Seq};
use ferro_protocol::units::{BLOCK_BYTES, BlockRange, EXTENT_BLOCKS};

use super::append::Append;
use super::geometry::UNIT_BLOCKS;
use super::ring::{self, Cached, Record, What, Written};
use super::{Queued, Stage, Stripes, Wanted, Work, buffer, zeroed_buffer};
use crate::owner::Owner;
use crate::owner::group::Phase;
use crate::owner::guest::PieceKind;
use crate::owner::io::{Fault, Got, PartId};
use crate::time::Instant;

/// Records of full stripes under way at once.
const STAGES_MAX: usize = 8;
/// Nothing is staged for so long after a disk has refused to.
const REFUSED_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// Full stripes on their way to be staged.
#[derive(Debug)]
pub(super) struct Staging {
    seq: Seq,
    slot: u32,
    blocks: Written,
    /// The guest's writes, each with the blocks of it that are among these.
    parts: Vec<(PartId, u32, u32)>,
    cached: Cached,
}

/// Remains of what was staged, on their way to be forgotten.
#[derive(Debug)]
pub(super) struct Forgetting;

/// What a chunk's disks have staged, besides what its log says.
#[derive(Debug, Default)]
pub(super) struct Staged {
    /// By record: each shard's disk.
    on: BTreeMap<Seq, Vec<DiskId>>,
    /// Extents that may be staged whole by now.
    ready: BTreeSet<u32>,
    /// Extents with remains: not in force, and not needed any more.
    remains: BTreeSet<u32>,
    /// Those that are being forgotten.
    forgetting: BTreeSet<u32>,
    /// Nothing is staged before this time.
    not_before: Instant,
}

impl Staged {
    /// Whether there is something to forget.
    pub(super) fn has_remains(&self) -> bool {
        !self.remains.is_empty()
    }
}

/// The extents that rows lie in.
fn extents(rows: BlockRange) -> std::ops::Range<u32> {
    rows.first() / EXTENT_BLOCKS..(rows.end() - 1) / EXTENT_BLOCKS + 1
}

impl Stripes {
    /// The rows of blocks that are full stripes.
    fn rows_of(&self, blocks: Written) -> Option<BlockRange> {
        self.geometry.full_rows(blocks.first, blocks.end())
    }

    /// The rows of records that have something staged.
    fn staged_rows(&self) -> impl Iterator<Item = BlockRange> {
        self.ring.staged().filter_map(|record| self.rows_of(record.staged()?))
    }

    /// The full stripes at or behind the front of the queue, as far as it goes on without a gap: their blocks.
    fn full_stripes(&self) -> Option<(u32, u32)> {
        let stripe = self.geometry.stripe();
        let most = EXTENT_BLOCKS * u32::from(self.geometry.data);
        let front = self.queue.front()?;
        let mut end = front.first;
        for queued in &self.queue {
            if queued.first != end || queued.data.is_none() || queued.logged || end - front.first > most {
                break;
            }
            end = queued.end;
        }
        let first = front.first.next_multiple_of(stripe);
        let end = (end / stripe * stripe).min(first + most);
        (first < end).then_some((first, end))
    }

    /// Whether an extent was staged whole, and nothing was written there since.
    fn is_staged_whole(&self, extent: u32) -> bool {
        let blocks = EXTENT_BLOCKS * u32::from(self.geometry.data);
        self.ring.is_all_staged(extent * blocks..(extent + 1) * blocks)
    }

    /// Rows were put into the shards, by being put in force or not: records of which nothing is left to do are closed.
    pub(super) fn staged_settled(&mut self, rows: BlockRange, promoted: bool) {
        if !promoted && self.staged_rows().any(|staged| staged.overlaps(rows)) {
            self.staged.remains.extend(extents(rows));
        }
    }

    /// Closes the records of what is staged that are settled.
    pub(super) fn close_staged(&mut self) {
        for seq in self.ring.staged_settled() {
            self.jobs_open.remove(&seq.next());
            self.staged.on.remove(&seq);
        }
    }

    /// All that the shards' disks may have staged is to be forgotten, as soon as the log has none of it.
    pub(super) fn forget_all_staged(&mut self) {
        let extents = self.geometry.rows() / EXTENT_BLOCKS;
        self.staged.remains.extend(0..extents);
    }
}

impl Owner {
    /// Whether full stripes go straight to the shards: all hosts of the cluster know how.
    pub fn handle_straight(&mut self, straight: bool) {
        self.straight = straight;
    }

    /// Each shard's disk, if every shard has one component and no more, in sync and well.
    fn calm_shards(&self, chunk: ChunkIndex) -> Option<Vec<DiskId>> {
        let stripes = self.stripes.get(&chunk)?;
        let disk = |n: u8| {
            let group = self.groups.get(&chunk.shard(n))?;
            let (disk, member) = group.members.first_key_value().filter(|_| group.members.len() == 1)?;
            let well = matches!(group.phase, Phase::Serving) && member.in_sync() && !member.failing;
            (well && self.usable(*disk) && self.trusted(*disk)).then_some(*disk)
        };
        (0..stripes.geometry.shards()).map(disk).collect()
    }

    /// Whether something is staged for the chunk and not in force.
    fn holds_staged(&self, chunk: ChunkIndex) -> bool {
        self.stripes.get(&chunk).is_some_and(|s| s.ring.staged().next().is_some())
    }

    /// Whether a component of this record may be the only one of its shard that has something staged: what is, or it is not known yet what a
    /// former owner has left.
    pub(in crate::owner) fn keeps_staged(&self, index: ChunkIndex) -> bool {
        let known = |s: &Stripes| s.stage == Stage::Ready || !self.straight;
        let chunk = index.base();
        let unknown = self.stripes.get(&chunk).is_some_and(|s| !known(s));
        matches!(index.role(), Role::Shard(_)) && (unknown || self.holds_staged(chunk))
    }

    /// Whether what is staged should be put into the shards now: some shard is not as it was.
    pub(super) fn staged_presses(&self, chunk: ChunkIndex) -> bool {
        self.holds_staged(chunk) && self.calm_shards(chunk).is_none()
    }

    /// Blocks of full stripes that can be staged now, at or behind the front of the queue.
    pub(super) fn straight_run(&self, now: Instant, chunk: ChunkIndex) -> Option<(u32, u32)> {
        let stripes = self.stripes.get(&chunk)?;
        if !self.straight || stripes.stage != Stage::Ready || !stripes.is_healed() {
            return None;
        }
        let (first, end) = stripes.full_stripes()?;
        let rows = stripes.rows_of(Written { first, count: end - first, what: What::Staged })?;
        let bytes = (end - first) as usize * BLOCK_BYTES;
        if rows.count() < self.config.straight_rows
            || now < stripes.staged.not_before
            || self.cached_bytes + bytes > super::append::CACHE_BYTES_MAX
            || stripes.staged_rows().any(|staged| staged.overlaps(rows))
        {
            return None;
        }
        let in_the_way = |extent: u32| {
            stripes.staged.remains.contains(&extent) || stripes.staged.forgetting.contains(&extent)
        };
        if extents(rows).any(in_the_way) {
            return None;
        }
        self.calm_shards(chunk)?;
        Some((first, end))
    }

    /// Sends the full stripes at the front of the queue to be staged. False if they have to wait.
    pub(super) fn stage(&mut self, now: Instant, chunk: ChunkIndex, (first, end): (u32, u32)) -> bool {
        let Some(disks) = self.calm_shards(chunk) else { return false };
        let Some(stripes) = self.stripes.get_mut(&chunk) else { return false };
        let under_way = stripes.ring.staged().filter(|r| !r.is_stable()).count();
        let Some(slot) = stripes.ring.room(0).filter(|_| under_way < STAGES_MAX) else { return false };
        let geometry = stripes.geometry;
        let blocks = Written { first, count: end - first, what: What::Staged };
        let Some(rows) = stripes.rows_of(blocks) else { return false };
        let mut columns: Vec<BytesMut> = geometry.data_shards().map(|_| buffer(rows.bytes())).collect();
        let mut parts = Vec::new();
        let mut at = first;
        while at < end {
            let Some(next) = stripes.queue.front_mut() else { return false };
            let count = (next.end - next.first).min(end - at);
            let Some(data) = &mut next.data else { return false };
            let mut data = data.split_to(count as usize * BLOCK_BYTES);
            parts.push((next.part, at, at + count));
            *stripes.under_way.entry(next.part).or_default() += 1;
            next.first += count;
            if next.first == next.end {
                stripes.queue.pop_front();
            }
            for from in (at..at + count).filter(|block| *block == at || block % UNIT_BLOCKS == 0) {
                let to = (from / UNIT_BLOCKS + 1) * UNIT_BLOCKS;
                let unit = data.split_to((to.min(at + count) - from) as usize * BLOCK_BYTES);
                columns[usize::from(geometry.locate(from).0)].extend_from_slice(&unit);
            }
            at += count;
        }
        let columns: Vec<Bytes> = columns.into_iter().map(BytesMut::freeze).collect();
        let mut cached = Cached::default();
        for unit in (first..end).step_by(UNIT_BLOCKS as usize) {
            let (shard, row) = geometry.locate(unit);
            let from = (row - rows.first()) as usize * BLOCK_BYTES;
            let column = &columns[usize::from(shard)];
            cached.add(unit, column.slice(from..from + UNIT_BLOCKS as usize * BLOCK_BYTES));
        }
        let mut parities: Vec<BytesMut> =
            geometry.parity_shards().map(|_| zeroed_buffer(rows.bytes())).collect();
        let data: Vec<&[u8]> = columns.iter().map(AsRef::as_ref).collect();
        let mut out: Vec<&mut [u8]> = parities.iter_mut().map(AsMut::as_mut).collect();
        stripes.code.encode_into(&data, &mut out);
        self.cached_bytes += cached.bytes();
        let seq = self.take_seqs(chunk, 1 + u64::from(geometry.shards()));
        if let Some(stripes) = self.stripes.get_mut(&chunk) {
            stripes.ring.append(slot, seq, vec![blocks]);
            stripes.log_open.insert(seq);
            stripes.jobs_open.insert(seq.next());
            stripes.staged.on.insert(seq, disks);
            stripes.appended_at = now;
        }
        self.set_floors(chunk);
        let all = columns.into_iter().chain(parities.into_iter().map(BytesMut::freeze));
        let wanted = (0_u8..).zip(all).map(|(n, data)| {
            let seq = Some(staged_version(seq, n));
            Wanted { chunk: chunk.shard(n), range: rows, kind: PieceKind::Stage { data }, seq }
        });
        let wanted = wanted.collect();
        let staging = Staging { seq, slot, blocks, parts, cached };
        let id = self.begin_task(chunk, Work::Stage(Box::new(staging)));
        self.want(now, id, wanted);
        true
    }

    /// All shards have answered: what is staged is named in the log, or goes there.
    pub(super) fn staged(
        &mut self,
        now: Instant,
        chunk: ChunkIndex,
        staging: Staging,
        got: &[Result<Got, Fault>],
    ) {
        let Staging { seq, slot, blocks, parts, cached } = staging;
        if got.iter().any(Result::is_err) {
            return self.stage_refused(now, chunk, seq, blocks, &parts, &cached);
        }
        let Ok(slots) = BlockRange::one(slot) else { return };
        let header = ring::encode(slot, seq, &[blocks]);
        let parts = parts.into_iter().map(|(part, ..)| part).collect();
        let id = self.begin_task(chunk, Work::Append(Append { seq, parts, cached, reserved: true }));
        self.want(now, id, vec![Wanted::change(chunk.log(), slots, Some(header), seq)]);
    }

    /// A disk would not stage it: it goes through the log.
    fn stage_refused(
        &mut self,
        now: Instant,
        chunk: ChunkIndex,
        seq: Seq,
        blocks: Written,
        parts: &[(PartId, u32, u32)],
        cached: &Cached,
    ) {
        self.cached_bytes = self.cached_bytes.saturating_sub(cached.bytes());
        let Some(stripes) = self.stripes.get_mut(&chunk) else { return };
        stripes.ring.abandoned(seq);
        stripes.log_open.remove(&seq);
        stripes.jobs_open.remove(&seq.next());
        stripes.staged.on.remove(&seq);
        stripes.staged.not_before = now + REFUSED_PAUSE;
        if let Some(rows) = stripes.rows_of(blocks) {
            stripes.staged.remains.extend(extents(rows));
        }
        for (part, first, end) in parts.iter().rev().copied() {
            let mut data = buffer((end - first) as usize * BLOCK_BYTES);
            for block in first..end {
                data.extend_from_slice(&cached.block(block).unwrap_or_default());
            }
            if let Some(left) = stripes.under_way.get_mut(&part) {
                *left -= 1;
            }
            stripes.queue.push_front(Queued { part, first, end, data: Some(data.freeze()), logged: true });
        }
        self.set_floors(chunk);
        self.stripes_busy.insert(chunk);
    }

    /// A record of what is staged is on every copy of the log.
    pub(super) fn staged_appended(&mut self, chunk: ChunkIndex, seq: Seq) {
        let Some(stripes) = self.stripes.get_mut(&chunk) else { return };
        if let Some(rows) = stripes.ring.record(seq).and_then(Record::staged).and_then(|b| stripes.rows_of(b))
        {
            stripes.staged.ready.extend(extents(rows));
        }
    }

    /// The rows of an extent that is staged whole and that nothing else is under way with, if there is one.
    pub(super) fn next_promotion(&mut self, chunk: ChunkIndex) -> Option<BlockRange> {
        let stripes = self.stripes.get_mut(&chunk)?;
        let mut ready = std::mem::take(&mut stripes.staged.ready);
        ready.retain(|extent| stripes.is_staged_whole(*extent));
        let free = |extent: u32| {
            let rows = BlockRange::new(extent * EXTENT_BLOCKS, EXTENT_BLOCKS).ok()?;
            let busy = stripes.jobs.values().copied().chain(stripes.appending()).any(|r| r.overlaps(rows));
            (!busy).then_some((extent, rows))
        };
        let next = ready.iter().copied().find_map(free);
        stripes.staged.ready = ready;
        let (extent, rows) = next.filter(|_| self.calm_shards(chunk).is_some())?;
        self.stripes.get_mut(&chunk)?.staged.ready.remove(&extent);
        Some(rows)
    }

    /// Whether these rows, an extent, can be put in force: they are staged whole, on the disks that the shards have now.
    pub(super) fn can_promote(&self, chunk: ChunkIndex, rows: BlockRange) -> bool {
        let (Some(stripes), Some(disks)) = (self.stripes.get(&chunk), self.calm_shards(chunk)) else {
            return false;
        };
        let here = |record: &Record| {
            let within = record.staged().and_then(|b| stripes.rows_of(b)).is_some_and(|r| r.overlaps(rows));
            !within || stripes.staged.on.get(&record.seq()) == Some(&disks)
        };
        stripes.is_staged_whole(rows.first() / EXTENT_BLOCKS) && stripes.ring.staged().all(here)
    }

    /// Remains of what was staged are forgotten, once the log has none of it and every shard's disk can hear that.
    pub(super) fn forget_remains(&mut self, now: Instant, chunk: ChunkIndex) {
        let Some(stripes) = self.stripes.get(&chunk) else { return };
        let Some(first) = stripes.staged.remains.first().copied() else { return };
        let free = |extent: &u32| !stripes.staged_rows().any(|rows| extents(rows).contains(extent));
        let follows = |extent: &u32| stripes.staged.remains.contains(extent) && free(extent);
        let Some(first) = stripes.staged.remains.range(first..).copied().find(|e| free(e)) else { return };
        let most = stripes.geometry.rows() / EXTENT_BLOCKS;
        let end = (first..most).find(|extent| !follows(extent)).unwrap_or(most);
        let waits = !stripes.staged.forgetting.is_empty() || stripes.stage != Stage::Ready || !self.straight;
        if waits || self.calm_shards(chunk).is_none() {
            return;
        }
        let Ok(range) = BlockRange::new(first * EXTENT_BLOCKS, (end - first) * EXTENT_BLOCKS) else { return };
        let shards = stripes.geometry.shards();
        let seq = self.take_seqs(chunk, shards.into());
        let Some(stripes) = self.stripes.get_mut(&chunk) else { return };
        stripes.staged.remains.retain(|extent| !(first..end).contains(extent));
        stripes.staged.forgetting = (first..end).collect();
        let wanted = (0..shards).map(|n| Wanted {
            chunk: chunk.shard(n),
            range,
            kind: PieceKind::Forget,
            seq: Some(Seq(seq.0 + u64::from(n))),
        });
        let wanted = wanted.collect();
        self.set_floors(chunk);
        let id = self.begin_task(chunk, Work::Forget(Forgetting));
        self.want(now, id, wanted);
    }

    pub(super) fn forgotten(&mut self, chunk: ChunkIndex) {
        if let Some(stripes) = self.stripes.get_mut(&chunk) {
            stripes.staged.forgetting.clear();
        }
        self.stripes_busy.insert(chunk);
    }

    /// The disk of a shard has something staged, as it said when it was sealed: perhaps from a former owner.
    pub(in crate::owner) fn has_staged(&mut self, shard: ChunkIndex) {
        if let Some(stripes) = self.stripes.get_mut(&shard.base()) {
            stripes.forget_all_staged();
            self.stripes_busy.insert(shard.base());
        }
    }
}

/// Asks for an extent to be put in force on these shards, each under a version of its own.
pub(super) fn promotions(
    chunk: ChunkIndex,
    shards: std::ops::Range<u8>,
    rows: BlockRange,
    seq: Seq,
) -> Vec<Wanted> {
    let promote = |(n, shard)| Wanted {
        chunk: chunk.shard(shard),
        range: rows,
        kind: PieceKind::Promote,
        seq: Some(Seq(seq.0 + n)),
    };
    (0..).zip(shards).map(promote).collect()
}

/// The version that a shard stages under for record `seq`.
pub(super) fn staged_version(seq: Seq, shard: u8) -> Seq {
    Seq(seq.0 + 1 + u64::from(shard))
}
