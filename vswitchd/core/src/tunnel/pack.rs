//! From frames to datagrams.

use crate::frame::{Edit, FRAME_BYTES_MAX, HEAD_BYTES, Prefix};
use crate::hash::HashKey;

use super::{DATAGRAM_BYTES_MIN, HEAD, MARKER, Meta, PART, PART_BYTES, WHOLE};

/// A piece of a large frame is not begun in what is left of a datagram if less of it than this would fit.
const PIECE_MIN: usize = 128;

/// A frame's bytes, wherever they are: so they are copied once, from a guest's memory into the datagram. The first
/// [`HEAD_BYTES`] must be those that the pipeline saw.
pub trait Source {
    /// How many there are.
    fn len(&self) -> usize;

    /// Appends `len` of them from `at` on.
    fn copy(&self, at: usize, len: usize, out: &mut Vec<u8>);

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Source for [u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn copy(&self, at: usize, len: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self[at..at + len]);
    }
}

/// A frame in memory with its tag changed on the way.
#[derive(Clone, Copy, Debug)]
pub struct Edited<'a> {
    prefix: Prefix,
    rest: &'a [u8],
}

impl<'a> Edited<'a> {
    /// A frame that the pipeline took, and the edit of its delivery.
    pub fn new(frame: &'a [u8], edit: Edit) -> Self {
        let prefix = edit.prefix(frame);
        Self { prefix, rest: &frame[prefix.rest_from..] }
    }
}

impl Source for Edited<'_> {
    fn len(&self) -> usize {
        self.prefix.bytes().len() + self.rest.len()
    }

    fn copy(&self, at: usize, len: usize, out: &mut Vec<u8>) {
        let prefix = self.prefix.bytes();
        let (from, to) = (at.min(prefix.len()), (at + len).min(prefix.len()));
        out.extend_from_slice(&prefix[from..to]);
        let skip = at.max(prefix.len()) - prefix.len();
        out.extend_from_slice(&self.rest[skip..skip + len - (to - from)]);
    }
}

/// Puts frames into datagrams, one after the other in one buffer of the caller's. One packer a connection.
#[derive(Debug)]
pub struct Packer {
    datagram_max: usize,
    /// Of the datagram that is being filled.
    room: usize,
    id: u32,
    head: Vec<u8>,
}

impl Packer {
    /// A packer for datagrams of so many bytes.
    pub fn new(datagram_max: usize) -> Self {
        Self { datagram_max: datagram_max.max(DATAGRAM_BYTES_MIN), room: 0, id: 0, head: Vec::new() }
    }

    /// The path takes larger or smaller datagrams from the next on.
    pub fn set_datagram_max(&mut self, bytes: usize) {
        self.datagram_max = bytes.max(DATAGRAM_BYTES_MIN);
    }

    /// Appends a frame to `bytes`. `ends` are the ends of the datagrams that are full; what lies behind the last of them is
    /// still being filled, until [`Packer::finish`]. A frame that is longer than any is refused.
    #[must_use]
    pub fn push<S: Source + ?Sized>(
        &mut self,
        meta: &Meta,
        frame: &S,
        bytes: &mut Vec<u8>,
        ends: &mut Vec<usize>,
    ) -> bool {
        let len = frame.len();
        if len > FRAME_BYTES_MAX || len == 0 {
            return false;
        }
        let whole = 8 + meta.offload_bytes() + len;
        if whole <= self.room || whole < self.datagram_max {
            if whole > self.room {
                self.open(bytes, ends);
            }
            bytes.push(WHOLE | meta.flags());
            meta.put_network(bytes);
            bytes.extend_from_slice(&(len as u16).to_be_bytes());
            meta.put_offload(bytes);
            frame.copy(0, len, bytes);
            self.room -= whole;
            return true;
        }
        self.split(meta, frame, bytes, ends);
        true
    }

    /// Ends the datagram that is being filled: at the end of a batch.
    pub fn finish(&mut self, bytes: &[u8], ends: &mut Vec<usize>) {
        // Not by the room that is left: one that is filled to the last byte is not ended either.
        if ends.last().copied().unwrap_or(0) < bytes.len() {
            ends.push(bytes.len());
        }
        self.room = 0;
    }

    /// Begins a datagram.
    fn open(&mut self, bytes: &mut Vec<u8>, ends: &mut Vec<usize>) {
        if ends.last().copied().unwrap_or(0) < bytes.len() {
            ends.push(bytes.len());
        }
        bytes.push(MARKER);
        self.room = self.datagram_max - 1;
    }

    fn split<S: Source + ?Sized>(
        &mut self,
        meta: &Meta,
        frame: &S,
        bytes: &mut Vec<u8>,
        ends: &mut Vec<usize>,
    ) {
        let len = frame.len();
        self.id = self.id.wrapping_add(1);
        self.head.clear();
        frame.copy(0, len.min(HEAD_BYTES), &mut self.head);
        let layout = meta.offload.check(&self.head, len).ok().flatten();
        // Without a super-frame's headers a head is only the first piece.
        let head_len = layout.map_or(0, |layout| layout.head_len);
        let head_bytes = 16 + meta.offload_bytes();
        if self.room < head_bytes + head_len + PART_BYTES + PIECE_MIN {
            self.open(bytes, ends);
        }
        let first = if layout.is_some() { head_len } else { (self.room - head_bytes).min(len) };
        self.put_head(meta, len, bytes, first, frame);
        // Segments that fit into a datagram are not cut.
        let unit = layout.map_or(usize::MAX, |layout| layout.size());
        let whole_segments = unit.saturating_add(PART_BYTES + head_bytes + head_len) < self.datagram_max;
        let (mut at, mut repeated) = (first, false);
        while at < len {
            let rest = len - at;
            let wanted = if whole_segments { rest.min(unit) } else { rest };
            let least = if whole_segments { wanted } else { rest.min(PIECE_MIN) };
            if self.room < PART_BYTES + least {
                self.open(bytes, ends);
                if layout.is_some() && !repeated {
                    self.put_head(meta, len, bytes, head_len, frame);
                    repeated = true;
                }
            }
            // As many whole segments as fit, or all that fits.
            let fits = (self.room - PART_BYTES).min(rest);
            let piece = if whole_segments && fits < rest { fits / unit * unit } else { fits };
            bytes.push(PART);
            bytes.extend_from_slice(&self.id.to_be_bytes());
            bytes.extend_from_slice(&(at as u32).to_be_bytes());
            bytes.extend_from_slice(&(piece as u16).to_be_bytes());
            frame.copy(at, piece, bytes);
            self.room -= PART_BYTES + piece;
            at += piece;
        }
    }

    fn put_head<S: Source + ?Sized>(
        &mut self,
        meta: &Meta,
        total: usize,
        bytes: &mut Vec<u8>,
        first: usize,
        frame: &S,
    ) {
        bytes.push(HEAD | meta.flags());
        meta.put_network(bytes);
        bytes.extend_from_slice(&self.id.to_be_bytes());
        bytes.extend_from_slice(&(total as u32).to_be_bytes());
        bytes.extend_from_slice(&(first as u16).to_be_bytes());
        meta.put_offload(bytes);
        let known = first.min(self.head.len());
        bytes.extend_from_slice(&self.head[..known]);
        frame.copy(known, first - known, bytes);
        self.room -= 16 + meta.offload_bytes() + first;
    }
}

/// Which of several connections a flow takes: always the same as long as it works, and when one dies, only its flows move.
pub fn pin(key: HashKey, flow: u32, works: &[bool]) -> Option<usize> {
    let alive = works.iter().enumerate().filter(|(_, works)| **works);
    alive.map(|(at, _)| at).max_by_key(|at| key.of(u64::from(flow), *at as u64))
}
