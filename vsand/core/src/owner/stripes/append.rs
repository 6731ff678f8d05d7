//! What a guest writes goes into the log: gathered into records, and given back when it is in the shards.
//!
//! While some records are under way, writes that arrive are gathered for the next: the busier the guest, the fewer and larger
//! they are. A write that has no room waits for jobs to make some; jobs begin long before the log is full, and more of them the
//! fuller it is ([`super::destage`]), so that writers slow down and do not stop.

use std::iter::successors;

use bytes::Bytes;
use ferro_protocol::ids::{ChunkIndex, Seq};
use ferro_protocol::units::{BLOCK_BYTES, BlockRange};

use super::ring::{self, Cached, RECORD_BLOCKS_MAX, RECORD_ZEROS_MAX, Record, What, Written};
use super::{Queued, Stripes, Wanted, Work, buffer};
use crate::owner::Owner;
use crate::owner::guest::PieceKind;
use crate::owner::io::{Fault, Got, PartId};
use crate::time::Instant;

/// Records under way at once.
const APPENDS_MAX: usize = 3;
/// Slots that are given back together, while there is more in the log: this part of it.
const TRIM_DIVISOR: u32 = 16;
/// Records of what was staged that are given back together.
const STAGED_TRIM: u32 = 8;
/// Data of records that is kept in memory for jobs and reads, of all chunks of an owner.
pub(super) const CACHE_BYTES_MAX: usize = 48 << 20;

/// A record on its way.
#[derive(Debug)]
pub(super) struct Append {
    pub seq: Seq,
    pub parts: Vec<PartId>,
    pub cached: Cached,
    /// The memory for `cached` was taken already: it names what is staged.
    pub reserved: bool,
}

/// Slots on their way to be unmapped.
#[derive(Debug)]
pub(super) struct Trim {
    seq: Seq,
}

impl Stripes {
    /// The rows that records under way touch.
    pub(super) fn appending(&self) -> impl Iterator<Item = BlockRange> {
        let written = self.appends().flat_map(Record::written);
        written.flat_map(|w| self.geometry.spread(w.first, w.first + w.count)).map(|piece| piece.rows)
    }

    /// The records under way.
    fn appends(&self) -> impl Iterator<Item = &Record> {
        self.log_open.iter().filter_map(|seq| self.ring.record(*seq))
    }
}

impl Owner {
    /// A guest's write has its range: it goes into the next record.
    pub(super) fn queue_write(
        &mut self,
        chunk: ChunkIndex,
        part: PartId,
        range: BlockRange,
        data: Option<Bytes>,
    ) {
        let Some(stripes) = self.stripes.get_mut(&chunk) else { return };
        let queued = Queued { part, first: range.first(), end: range.end(), data, logged: false };
        stripes.queue.push_back(queued);
        self.stripes_busy.insert(chunk);
    }

    /// Makes records of what waits, as long as they may go and have room.
    pub(super) fn pump(&mut self, now: Instant, chunk: ChunkIndex) {
        loop {
            let Some(stripes) = self.stripes.get(&chunk) else { return };
            let Some(front) = stripes.queue.front().map(|q| q.first) else { return };
            let straight = self.straight_run(now, chunk);
            if let Some(run) = straight.filter(|(first, _)| *first == front) {
                if !self.stage(now, chunk, run) {
                    return;
                }
                continue;
            }
            let appending = stripes.appends().filter(|r| r.staged().is_none()).count();
            if appending >= APPENDS_MAX {
                return;
            }
            // What came while nothing was under way goes at once, what comes later is gathered.
            let blocks: u32 = stripes.queue.iter().map(|q| q.end - q.first).take(64).sum();
            if appending > 0 && blocks < RECORD_BLOCKS_MAX / 4 && appending + 1 >= APPENDS_MAX {
                return;
            }
            let before_stripes = straight.map_or(u32::MAX, |(first, _)| first - front);
            if !self.append(now, chunk, before_stripes) {
                return;
            }
        }
    }

    /// Makes one record, of so many blocks at most.
    fn append(&mut self, now: Instant, chunk: ChunkIndex, most: u32) -> bool {
        let Some(stripes) = self.stripes.get_mut(&chunk) else { return false };
        let wanted: u32 = stripes.queue.iter().filter(|q| q.data.is_some()).map(|q| q.end - q.first).sum();
        let wanted = wanted.min(most);
        // A record of any size that fits, but not one block at a time while the log is full.
        let sizes = successors(Some(wanted.min(RECORD_BLOCKS_MAX)), |size| (*size > 1).then_some(size / 2));
        let fits = |size: u32| Some((size, stripes.ring.room(size)?));
        let Some((room, slot)) = sizes.into_iter().find_map(fits) else { return false };
        let (mut entries, mut parts, mut payload) = (Vec::new(), Vec::new(), Vec::new());
        let (mut blocks, mut zeros) = (0, 0);
        while let Some(next) = stripes.queue.front_mut() {
            let left = if next.data.is_some() { room - blocks } else { RECORD_ZEROS_MAX - zeros };
            let count = left.min(next.end - next.first);
            if count == 0 || parts.len() == RECORD_BLOCKS_MAX as usize {
                break;
            }
            let what = if next.data.is_some() { What::Data } else { What::Zeros };
            entries.push(Written { first: next.first, count, what });
            match &mut next.data {
                Some(data) => {
                    payload.push((next.first, data.split_to(count as usize * BLOCK_BYTES)));
                    blocks += count;
                }
                None => zeros += count,
            }
            next.first += count;
            parts.push(next.part);
            *stripes.under_way.entry(next.part).or_default() += 1;
            if next.first < next.end {
                break;
            }
            stripes.queue.pop_front();
        }
        let Ok(slots) = BlockRange::new(slot, blocks + 1) else { return false };
        let seq = self.take_seqs(chunk, 1);
        let mut data = buffer(slots.bytes());
        data.extend_from_slice(&ring::encode(slot, seq, &entries));
        let mut at = vec![(0, 0); 0];
        for (first, piece) in payload {
            at.push((first, data.len()));
            data.extend_from_slice(&piece);
        }
        let data = data.freeze();
        let mut cached = Cached::default();
        for (n, (first, from)) in at.iter().enumerate() {
            let to = at.get(n + 1).map_or(data.len(), |(_, next)| *next);
            cached.add(*first, data.slice(*from..to));
        }
        if let Some(stripes) = self.stripes.get_mut(&chunk) {
            stripes.ring.append(slot, seq, entries);
            stripes.log_open.insert(seq);
            stripes.appended_at = now;
        }
        self.set_floors(chunk);
        let id = self.begin_task(chunk, Work::Append(Append { seq, parts, cached, reserved: false }));
        self.want(now, id, vec![Wanted::change(chunk.log(), slots, Some(data), seq)]);
        true
    }

    /// The record is on every copy: the guest may know.
    pub(super) fn append_done(
        &mut self,
        now: Instant,
        chunk: ChunkIndex,
        append: Append,
        got: &[Result<Got, Fault>],
    ) {
        let Some(stripes) = self.stripes.get_mut(&chunk) else { return };
        let failed = got.iter().find_map(|g| g.as_ref().err()).copied();
        stripes.log_open.remove(&append.seq);
        let bytes = append.cached.bytes();
        let keep = append.reserved || self.cached_bytes + bytes <= CACHE_BYTES_MAX;
        if keep && !append.reserved {
            self.cached_bytes += bytes;
        }
        stripes.ring.appended(append.seq, keep.then_some(&append.cached), self.bugs);
        let mut ended = Vec::new();
        for part in append.parts {
            let Some(left) = stripes.under_way.get_mut(&part) else { continue };
            *left -= 1;
            if *left == 0 && stripes.queue.iter().all(|q| q.part != part) {
                stripes.under_way.remove(&part);
                ended.push(part);
            }
        }
        if append.reserved {
            self.staged_appended(chunk, append.seq);
        }
        self.set_floors(chunk);
        self.stripes_busy.insert(chunk);
        for part in ended {
            self.end_guest(now, chunk, part, failed.map_or(Ok(Got::Done), Err));
        }
    }

    /// Gives slots back whose blocks are in the shards.
    pub(super) fn trim(&mut self, now: Instant, chunk: ChunkIndex) {
        let Some(stripes) = self.stripes.get_mut(&chunk) else { return };
        let least = match (stripes.ring.is_settled(), stripes.ring.names_staged()) {
            (true, _) => 1,
            // A new owner asks all shards about each of them.
            (false, true) => STAGED_TRIM,
            (false, false) => self.config.log_slots / TRIM_DIVISOR,
        };
        let Some(slots) = stripes.ring.trimmable(least) else { return };
        let seq = self.take_seqs(chunk, 1);
        if let Some(stripes) = self.stripes.get_mut(&chunk) {
            stripes.log_open.insert(seq);
        }
        self.set_floors(chunk);
        let id = self.begin_task(chunk, Work::Trim(Trim { seq }));
        self.want(
            now,
            id,
            vec![Wanted { chunk: chunk.log(), range: slots, kind: PieceKind::Zero, seq: Some(seq) }],
        );
    }

    pub(super) fn trim_done(&mut self, chunk: ChunkIndex, trim: Trim) {
        let Some(stripes) = self.stripes.get_mut(&chunk) else { return };
        stripes.log_open.remove(&trim.seq);
        stripes.ring.trimmed();
        self.set_floors(chunk);
        self.stripes_busy.insert(chunk);
    }
}
