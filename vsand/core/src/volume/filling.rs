//! What is written to the target of a conversion, and when: copies from one end to the other, and the guest's writes beside them.
//!
//! ```text
//!   0 ────────────── cursor ───────────────────────── size
//!     copied, or       │     not looked at yet
//!     being copied:    │     a write goes to the source only
//!     a write goes to  └▶ pieces of 1 MiB, a few at a time
//!     both
//! ```
//!
//! Invariants:
//! - below the cursor, outside of pieces under way and writes under way, source and target read the same; above it nothing was ever
//!   written to the target;
//! - a piece, and each write, holds its range: what overlaps is done in one order, the same for both. So two writes that a guest has
//!   under way at once can't leave them different;
//! - a write has ended when it has on both, where it goes to both. One that failed breaks the filling: nobody knows what it left.
//!
//! What it must not know: owners, disks, the directory.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ferro_protocol::ids::ChunkIndex;
use ferro_protocol::units::{CHUNK_BYTES, EXTENT_BYTES};

use crate::bugs::{Bug, Bugs};
use crate::owner::guest::{GuestRequest, GuestResult, GuestTag};
use crate::owner::locks::{Mode, Range, RangeLocks};
use crate::owner::resync::Budget;
use crate::time::Instant;

/// What is copied at once.
const PIECE_BYTES: u64 = EXTENT_BYTES;
/// Pieces under way at once.
const PIECES_MAX: usize = 4;
/// A piece of zeros costs as much as so many bytes of data.
const ZEROS_COST_BYTES: usize = 64 << 10;
/// A guest's write waits no longer than this for the target.
const PATIENCE: Duration = Duration::from_secs(5);
/// Tags of pieces have this bit.
const OURS: u64 = 1 << 63;

/// Bytes of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stretch {
    start: u64,
    end: u64,
}

impl Range for Stretch {
    fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

impl Stretch {
    fn of(request: &GuestRequest) -> Self {
        let (start, bytes) = match request {
            GuestRequest::Read { offset, bytes } | GuestRequest::Zero { offset, bytes } => (*offset, *bytes),
            GuestRequest::Write { offset, data } => (*offset, data.len() as u64),
            GuestRequest::Flush => (0, 0),
        };
        Self { start, end: start + bytes }
    }
}

/// The part of a write below `end`; nothing if it begins there or above.
fn below(request: &GuestRequest, end: u64) -> Option<GuestRequest> {
    match request {
        GuestRequest::Write { offset, data } if *offset < end => {
            let len = data.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
            Some(GuestRequest::Write { offset: *offset, data: data.slice(..len) })
        }
        GuestRequest::Zero { offset, bytes } if *offset < end => {
            Some(GuestRequest::Zero { offset: *offset, bytes: (*bytes).min(end - offset) })
        }
        _ => None,
    }
}

#[derive(Debug)]
struct Write {
    request: GuestRequest,
    /// It has its range.
    runs: bool,
    /// How it ended on the source, and when.
    first: Option<(GuestResult, Instant)>,
    /// The target has yet to answer.
    second: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Waiting,
    Ready,
    Reading,
    Writing(Instant),
}

#[derive(Debug)]
struct Piece {
    stretch: Stretch,
    step: Step,
}

/// What is to be done, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Do {
    /// Ask the source.
    First(GuestTag, GuestRequest),
    /// Ask the target.
    Second(GuestTag, GuestRequest),
    /// The guest's request has ended.
    End(GuestTag, GuestResult),
}

/// The filling of one target.
#[derive(Debug)]
pub(super) struct Filling {
    size: u64,
    cursor: u64,
    locks: RangeLocks<GuestTag, Stretch>,
    writes: BTreeMap<GuestTag, Write>,
    pieces: BTreeMap<GuestTag, Piece>,
    next: u64,
    budget: Budget,
    broken: bool,
    bugs: Bugs,
    to_do: Vec<Do>,
}

impl Filling {
    pub(super) fn new(now: Instant, size: u64, bugs: Bugs) -> Self {
        Self {
            size,
            cursor: 0,
            locks: RangeLocks::default(),
            writes: BTreeMap::new(),
            pieces: BTreeMap::new(),
            next: OURS,
            budget: Budget::new(now),
            broken: false,
            bugs,
            to_do: Vec::new(),
        }
    }

    /// How far it has come, in bytes of the address space.
    pub(super) fn copied(&self) -> u64 {
        let under_way = self.pieces.values().map(|piece| piece.stretch.start).min();
        under_way.unwrap_or(self.cursor)
    }

    /// Whether everything is on the target, but for writes under way.
    pub(super) fn is_complete(&self) -> bool {
        self.cursor == self.size && self.pieces.is_empty()
    }

    /// Whether no write is under way or waits.
    pub(super) fn is_idle(&self) -> bool {
        self.writes.is_empty()
    }

    /// Whether this request of the source's or the target's is one of those that are followed here.
    pub(super) fn knows(&self, tag: GuestTag) -> bool {
        self.writes.contains_key(&tag) || self.pieces.contains_key(&tag)
    }

    /// Whether the target can't become what the source is, or keeps the guest waiting.
    pub(super) fn has_failed(&self, now: Instant) -> bool {
        let long = |since: Instant| now.since(since) > PATIENCE;
        let waits = self.writes.values().any(|write| !write.runs);
        let late = |write: &Write| write.second && write.first.as_ref().is_some_and(|(_, at)| long(*at));
        let held = |piece: &Piece| matches!(piece.step, Step::Writing(since) if long(since));
        self.broken || self.writes.values().any(late) || waits && self.pieces.values().any(held)
    }

    /// What has been decided since the last call.
    pub(super) fn take(&mut self) -> Vec<Do> {
        std::mem::take(&mut self.to_do)
    }

    /// The guest writes, or makes something read as zeros.
    pub(super) fn write(&mut self, tag: GuestTag, request: GuestRequest) {
        let stretch = Stretch::of(&request);
        self.writes.insert(tag, Write { request, runs: false, first: None, second: false });
        if self.locks.lock(tag, stretch, Mode::Exclusive) {
            self.begin(tag);
        }
    }

    fn begin(&mut self, tag: GuestTag) {
        let Some(write) = self.writes.get_mut(&tag) else { return };
        write.runs = true;
        self.to_do.push(Do::First(tag, write.request.clone()));
        let both = below(&write.request, self.cursor);
        if let Some(both) = both.filter(|_| !self.bugs.has(Bug::ConversionMissesWrites)) {
            write.second = true;
            self.to_do.push(Do::Second(tag, both));
        }
    }

    /// The source has answered.
    pub(super) fn first_answered(&mut self, now: Instant, tag: GuestTag, result: GuestResult) {
        if let Some(write) = self.writes.get_mut(&tag) {
            self.broken |= matches!(result, GuestResult::Failed(_));
            write.first = Some((result, now));
            return self.finish(tag);
        }
        let Some(piece) = self.pieces.get_mut(&tag) else { return };
        match result {
            GuestResult::Data(pieces) if pieces.iter().any(|p| p.iter().any(|byte| *byte != 0)) => {
                piece.step = Step::Writing(now);
                let data = joined(pieces);
                self.budget.spend(data.len());
                self.to_do.push(Do::Second(tag, GuestRequest::Write { offset: piece.stretch.start, data }));
            }
            // Above the cursor nothing was written to the target: there it reads as zeros already. What was written since went to both.
            GuestResult::Data(_) => {
                self.budget.spend(ZEROS_COST_BYTES);
                self.end_piece(tag);
            }
            GuestResult::Done | GuestResult::Failed(_) => self.broken = true,
        }
    }

    /// The target has answered.
    pub(super) fn second_answered(&mut self, tag: GuestTag, result: &GuestResult) {
        self.broken |= matches!(result, GuestResult::Failed(_));
        if let Some(write) = self.writes.get_mut(&tag) {
            write.second = false;
            self.finish(tag);
        } else if self.pieces.contains_key(&tag) && !self.broken {
            self.end_piece(tag);
        }
    }

    /// Ends a write that has ended wherever it went.
    fn finish(&mut self, tag: GuestTag) {
        let done = self.writes.get(&tag).is_some_and(|write| !write.second && write.first.is_some());
        if done && let Some((result, _)) = self.writes.remove(&tag).and_then(|write| write.first) {
            self.to_do.push(Do::End(tag, result));
            self.unlock(tag);
        }
    }

    fn end_piece(&mut self, tag: GuestTag) {
        self.pieces.remove(&tag);
        self.unlock(tag);
    }

    /// What held this range, of a write or a piece, does so no more.
    fn unlock(&mut self, holder: GuestTag) {
        for next in self.locks.unlock(holder) {
            if let Some(piece) = self.pieces.get_mut(&next) {
                piece.step = Step::Ready;
            } else {
                self.begin(next);
            }
        }
    }

    /// Copies on, so fast at most. `placed` tells whether a chunk of the source has a place.
    pub(super) fn run(&mut self, now: Instant, bytes_per_s: u64, placed: impl Fn(ChunkIndex) -> bool) {
        self.budget.refill(now, bytes_per_s);
        let chunk = |at: u64| ChunkIndex(u32::try_from(at / CHUNK_BYTES).unwrap_or(u32::MAX));
        let is_long = |piece: &Piece| piece.stretch.end - piece.stretch.start > PIECE_BYTES;
        loop {
            let ready = self.pieces.iter().find(|(_, piece)| piece.step == Step::Ready);
            if let Some((tag, piece)) = ready.map(|(tag, piece)| (*tag, piece)) {
                let stretch = piece.stretch;
                let there = placed(chunk(stretch.start));
                if there && !is_long(piece) {
                    if let Some(piece) = self.pieces.get_mut(&tag) {
                        piece.step = Step::Reading;
                    }
                    let (offset, bytes) = (stretch.start, stretch.end - stretch.start);
                    self.to_do.push(Do::First(tag, GuestRequest::Read { offset, bytes }));
                } else {
                    if there {
                        // It has got a place meanwhile. Nothing was begun behind it: once more from here, piece by piece.
                        self.cursor = stretch.start;
                    }
                    self.end_piece(tag);
                }
                continue;
            }
            let full = self.pieces.len() >= PIECES_MAX || self.pieces.values().any(is_long);
            if self.broken || full || self.cursor >= self.size || self.budget.is_spent() {
                return;
            }
            let start = self.cursor;
            let long = !placed(chunk(start));
            if long && !self.pieces.is_empty() {
                return;
            }
            let step = if long { CHUNK_BYTES } else { PIECE_BYTES };
            let end = (start / step + 1).saturating_mul(step).min(self.size);
            let (tag, stretch) = (GuestTag(self.next), Stretch { start, end });
            self.next += 1;
            self.cursor = end;
            let free = self.locks.lock(tag, stretch, Mode::Exclusive);
            let step = if free { Step::Ready } else { Step::Waiting };
            self.pieces.insert(tag, Piece { stretch, step });
        }
    }

    /// The target is given up: writes that wait for it alone have ended, those that wait for their turn go to the source, in their order. What is
    /// under way there has to be followed by the caller from now on; these are the guest's requests of that.
    pub(super) fn give_up(mut self) -> (Vec<Do>, Vec<GuestTag>) {
        let mut under_way = Vec::new();
        for (tag, write) in std::mem::take(&mut self.writes) {
            if let Some((result, _)) = write.first {
                self.to_do.push(Do::End(tag, result));
                continue;
            }
            under_way.push(tag);
            if !write.runs {
                self.to_do.push(Do::First(tag, write.request));
            }
        }
        let ours = |what: &Do| matches!(what, Do::First(tag, _) if is_ours(*tag));
        self.to_do.retain(|what| !matches!(what, Do::Second(..)) && !ours(what));
        (self.to_do, under_way)
    }
}

/// Whether a request was made here, and not by a guest.
pub(super) fn is_ours(tag: GuestTag) -> bool {
    tag.0 & OURS != 0
}

fn joined(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() == 1 {
        return pieces.remove(0);
    }
    let mut all = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| all.extend_from_slice(piece));
    all.freeze()
}
