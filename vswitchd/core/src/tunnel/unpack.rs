//! From datagrams to frames.
//!
//! Small frames are handed on where they lie. Pieces of large ones are put together in one of [`SLOTS`] slots: a frame's
//! number says in which, so the newer of two frames throws out the older, and nobody can make this take more memory than
//! [`REASSEMBLY_MAX`]. A frame that is done gives its buffer back, and the next one takes the buffer that was given back
//! last: it is still in the cache. A frame whose pieces don't all come is given up when
//! [`PATIENCE`] is over or [`OVERTAKEN_MAX`] later ones are complete; of a super-frame, the segments that came are
//! delivered then.

use std::time::Duration;

use ferro_protocol::net::Vni;

use crate::bugs::{Bug, Bugs};
use crate::frame::{Csum, FRAME_BYTES_MAX, Offload, Run, SuperFrame, Tci, be16, be32};
use crate::time::Instant;

use super::{CSUM_PARTIAL, CSUM_VALID, GSO, HEAD, KIND_MASK, MARKER, Meta, PART, PART_BYTES, WHOLE, gso};

/// Frames that are being put together at a time, of one connection.
pub const SLOTS: usize = 32;
/// The most memory that one connection's reassembly takes, in bytes, but for some bookkeeping.
pub const REASSEMBLY_MAX: usize = (SLOTS + 1) * FRAME_BYTES_MAX;
/// How long a frame may wait for its pieces.
pub const PATIENCE: Duration = Duration::from_millis(20);
/// A frame that so many later ones have overtaken has lost a piece: datagrams rarely overtake each other.
pub const OVERTAKEN_MAX: u32 = 3;
/// The most gaps in a frame.
const RANGES_MAX: usize = 128;

/// A frame that has arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrived<'a> {
    /// What it is.
    pub meta: Meta,
    /// Its bytes, untagged.
    pub bytes: &'a [u8],
}

/// What makes a datagram none of ours. The peer is broken or hostile: what came before in the datagram was delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// It does not begin with our marker and version.
    #[error("the datagram begins with {0:#04x}, not with f1: another version, or not a tunnel")]
    Marker(u8),
    /// A record of an unknown kind, or one that is cut off.
    #[error("a record is unknown or cut off")]
    Record,
    /// A network, VLAN or offload that can't be.
    #[error("a frame's network, VLAN or offload can't be")]
    Meta,
    /// A frame longer than any, or a piece outside of its frame.
    #[error("a piece lies outside of its frame, or the frame is longer than any")]
    Bounds,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Empty,
    Open,
    /// Delivered or given up; late pieces are ignored.
    Done,
}

#[derive(Debug)]
struct Slot {
    state: State,
    id: u32,
    since: Instant,
    /// What it is, how long, and how it is built if it is a super-frame: known when its head came.
    meta: Option<(Meta, usize, Option<SuperFrame>)>,
    /// Empty unless the frame is open. Never cleared: only what lies in `ranges` is this frame's.
    bytes: Vec<u8>,
    /// What has come: ascending, apart from each other.
    ranges: Vec<(usize, usize)>,
}

impl Slot {
    fn new() -> Self {
        let (bytes, ranges) = (Vec::new(), Vec::new());
        Self { state: State::Empty, id: 0, since: Instant(0), meta: None, bytes, ranges }
    }

    fn add(&mut self, at: usize, piece: &[u8]) {
        let end = at + piece.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[at..end].copy_from_slice(piece);
        // Nearly always it continues the last one.
        match self.ranges.last_mut() {
            Some(last) if last.1 == at => last.1 = end,
            Some(last) if last.1 > at => self.merge(at, end),
            _ => {
                if self.ranges.len() < RANGES_MAX {
                    self.ranges.push((at, end));
                }
            }
        }
    }

    fn merge(&mut self, at: usize, end: usize) {
        let (mut at, mut end) = (at, end);
        self.ranges.retain(|(from, to)| {
            let touches = *from <= end && at <= *to;
            if touches {
                (at, end) = (at.min(*from), end.max(*to));
            }
            !touches
        });
        if self.ranges.len() < RANGES_MAX {
            let place = self.ranges.partition_point(|(from, _)| *from < at);
            self.ranges.insert(place, (at, end));
        }
    }

    fn has(&self, from: usize, to: usize) -> bool {
        self.ranges.iter().any(|(a, b)| *a <= from && to <= *b)
    }
}

/// Takes frames out of datagrams. One unpacker a connection.
#[derive(Debug)]
pub struct Unpacker {
    bugs: Bugs,
    slots: Vec<Slot>,
    /// Buffers that no slot has now; with those of open slots at most [`SLOTS`].
    spare: Vec<Vec<u8>>,
    open: usize,
    scratch: Vec<u8>,
    given_up: u64,
}

impl Unpacker {
    /// An unpacker.
    pub fn new(bugs: Bugs) -> Self {
        let slots = (0..SLOTS).map(|_| Slot::new()).collect();
        Self { bugs, slots, spare: Vec::new(), open: 0, scratch: Vec::new(), given_up: 0 }
    }

    /// How many frames came with pieces missing.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    /// Reads a datagram and hands on the frames that are complete with it.
    pub fn handle(
        &mut self,
        now: Instant,
        datagram: &[u8],
        mut deliver: impl FnMut(Arrived<'_>),
    ) -> Result<(), Malformed> {
        let Some((marker, mut rest)) = datagram.split_first() else { return Err(Malformed::Record) };
        if *marker != MARKER {
            return Err(Malformed::Marker(*marker));
        }
        while let Some(first) = rest.first() {
            rest = match first & KIND_MASK {
                WHOLE => Self::whole(rest, &mut deliver)?,
                HEAD => self.head(now, rest, &mut deliver)?,
                PART => self.part(now, rest, &mut deliver)?,
                _ => return Err(Malformed::Record),
            };
        }
        Ok(())
    }

    fn whole<'a>(record: &'a [u8], deliver: &mut impl FnMut(Arrived<'_>)) -> Result<&'a [u8], Malformed> {
        let head = record.get(..8).ok_or(Malformed::Record)?;
        let len = usize::from(be16(head, 6));
        let (offload, rest) = offload(head[0], &record[8..])?;
        let meta = Meta { offload, ..network(head)? };
        let (bytes, rest) = rest.split_at_checked(len).ok_or(Malformed::Record)?;
        deliver(Arrived { meta, bytes });
        Ok(rest)
    }

    fn head<'a>(
        &mut self,
        now: Instant,
        record: &'a [u8],
        deliver: &mut impl FnMut(Arrived<'_>),
    ) -> Result<&'a [u8], Malformed> {
        let head = record.get(..16).ok_or(Malformed::Record)?;
        let (id, total, len) = (be32(head, 6), be32(head, 10) as usize, usize::from(be16(head, 14)));
        let (offload, rest) = offload(head[0], &record[16..])?;
        let meta = Meta { offload, ..network(head)? };
        let (bytes, rest) = rest.split_at_checked(len).ok_or(Malformed::Record)?;
        if total > FRAME_BYTES_MAX || len > total {
            return Err(Malformed::Bounds);
        }
        let layout = match offload.gso {
            None => None,
            // Its headers are in the head, and the rest of it comes in parts.
            Some(_) => offload.check(bytes, total.max(bytes.len())).map_err(|_| Malformed::Meta)?,
        };
        let Some(at) = self.slot(now, id, deliver) else { return Ok(rest) };
        let slot = &mut self.slots[at];
        // A part that came first may lie outside of what its head says.
        if slot.ranges.last().is_some_and(|last| last.1 > total) {
            return Err(Malformed::Bounds);
        }
        slot.meta = Some((meta, total, layout));
        if !bytes.is_empty() {
            slot.add(0, bytes);
        }
        self.complete(at, deliver);
        Ok(rest)
    }

    fn part<'a>(
        &mut self,
        now: Instant,
        record: &'a [u8],
        deliver: &mut impl FnMut(Arrived<'_>),
    ) -> Result<&'a [u8], Malformed> {
        let head = record.get(..PART_BYTES).ok_or(Malformed::Record)?;
        if head[0] != PART {
            return Err(Malformed::Record);
        }
        let (id, from, len) = (be32(head, 1), be32(head, 5) as usize, usize::from(be16(head, 9)));
        let (bytes, rest) = record[PART_BYTES..].split_at_checked(len).ok_or(Malformed::Record)?;
        let Some(at) = self.slot(now, id, deliver) else { return Ok(rest) };
        let slot = &mut self.slots[at];
        let total = slot.meta.map_or(FRAME_BYTES_MAX, |(_, total, _)| total);
        if len == 0 || from > total || len > total - from {
            return Err(Malformed::Bounds);
        }
        slot.add(from, bytes);
        self.complete(at, deliver);
        Ok(rest)
    }

    /// The slot of a frame; none if the frame is done with or older than what is there.
    fn slot(&mut self, now: Instant, id: u32, deliver: &mut impl FnMut(Arrived<'_>)) -> Option<usize> {
        let at = id as usize % SLOTS;
        let slot = &self.slots[at];
        if slot.state != State::Empty {
            if slot.id == id {
                return (slot.state == State::Open).then_some(at);
            }
            // Numbers wrap: the nearer half is the past.
            if slot.id.wrapping_sub(id) < u32::MAX / 2 {
                return None;
            }
            if slot.state == State::Open {
                self.give_up(at, deliver);
            }
        }
        let slot = &mut self.slots[at];
        (slot.state, slot.id, slot.since, slot.meta) = (State::Open, id, now, None);
        slot.ranges.clear();
        slot.bytes = self.spare.pop().unwrap_or_default();
        self.open += 1;
        Some(at)
    }

    /// Delivers a frame if nothing of it is missing.
    fn complete(&mut self, at: usize, deliver: &mut impl FnMut(Arrived<'_>)) {
        let slot = &mut self.slots[at];
        let Some((meta, total, _)) = slot.meta else { return };
        if slot.ranges.as_slice() != [(0, total)] {
            return;
        }
        slot.state = State::Done;
        let id = slot.id;
        self.open -= 1;
        deliver(Arrived { meta, bytes: &self.slots[at].bytes[..total] });
        self.spare.push(std::mem::take(&mut self.slots[at].bytes));
        if self.open > 0 {
            for other in 0..SLOTS {
                let behind = id.wrapping_sub(self.slots[other].id);
                let overtaken = (OVERTAKEN_MAX..u32::MAX / 2).contains(&behind);
                if overtaken && self.slots[other].state == State::Open {
                    self.give_up(other, deliver);
                }
            }
        }
    }

    /// Time has passed: gives up what has waited too long. To be called every few milliseconds while
    /// [`Unpacker::is_waiting`].
    pub fn handle_time(&mut self, now: Instant, mut deliver: impl FnMut(Arrived<'_>)) {
        for at in 0..SLOTS {
            let slot = &self.slots[at];
            if slot.state == State::Open && now.since(slot.since) > PATIENCE {
                self.give_up(at, &mut deliver);
            }
        }
    }

    /// Whether a frame waits for its pieces.
    pub fn is_waiting(&self) -> bool {
        self.open > 0
    }

    /// A frame will not become complete.
    fn give_up(&mut self, at: usize, deliver: &mut impl FnMut(Arrived<'_>)) {
        self.open -= 1;
        self.given_up += 1;
        self.slots[at].state = State::Done;
        self.salvage(at, deliver);
        self.spare.push(std::mem::take(&mut self.slots[at].bytes));
    }

    /// Delivers the segments of a frame that are there.
    fn salvage(&mut self, at: usize, deliver: &mut impl FnMut(Arrived<'_>)) {
        let slot = &self.slots[at];
        let Some((meta, _, Some(layout))) = slot.meta else { return };
        if !slot.has(0, layout.head_len) {
            return;
        }
        let mut next = 0;
        while next < layout.segments() {
            let there = |n: usize| {
                let bytes = layout.bytes(Run { first: n, count: 1 });
                slot.has(layout.head_len + bytes.start, layout.head_len + bytes.end)
            };
            let first = next;
            while next < layout.segments() && there(next) {
                next += 1;
            }
            if next == first {
                next += 1;
                continue;
            }
            let run = Run { first, count: next - first };
            self.scratch.clear();
            let offload = layout.put_head(&slot.bytes, run, &mut self.scratch);
            if self.bugs.has(Bug::RunSequence) {
                let head = layout.head_len.min(42);
                self.scratch[..head].copy_from_slice(&slot.bytes[..head]);
            }
            let payload = layout.bytes(run);
            let (from, to) = (layout.head_len + payload.start, layout.head_len + payload.end);
            self.scratch.extend_from_slice(&slot.bytes[from..to]);
            deliver(Arrived { meta: Meta { offload, ..meta }, bytes: &self.scratch });
        }
    }
}

/// The network of a record, without its offload.
fn network(head: &[u8]) -> Result<Meta, Malformed> {
    let vni = Vni::new(be32(head, 0) & 0x00ff_ffff).map_err(|_| Malformed::Meta)?;
    let tci = Tci(be16(head, 4));
    tci.vid().map_err(|_| Malformed::Meta)?;
    Ok(Meta { vni, tci, offload: Offload::NONE })
}

/// The offload behind a record's header, and what follows it.
fn offload(flags: u8, rest: &[u8]) -> Result<(Offload, &[u8]), Malformed> {
    let (mut offload, mut rest) = (Offload::NONE, rest);
    match flags & (CSUM_PARTIAL | CSUM_VALID) {
        0 => {}
        CSUM_VALID => offload.csum = Csum::Valid,
        CSUM_PARTIAL => {
            let (csum, behind) = rest.split_at_checked(4).ok_or(Malformed::Record)?;
            offload.csum = Csum::Partial { start: be16(csum, 0), offset: be16(csum, 2) };
            rest = behind;
        }
        _ => return Err(Malformed::Meta),
    }
    if flags & GSO != 0 {
        let (kind, behind) = rest.split_at_checked(3).ok_or(Malformed::Record)?;
        offload.gso = Some(gso(kind[0], be16(kind, 1)).ok_or(Malformed::Meta)?);
        rest = behind;
    }
    if flags & 0x80 != 0 {
        return Err(Malformed::Record);
    }
    Ok((offload, rest))
}
