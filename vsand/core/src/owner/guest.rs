//! Guest requests: cut into parts that each stay in one chunk and one message, and put together again.

use bytes::{Bytes, BytesMut};
use ferro_protocol::ids::ChunkIndex;
use ferro_protocol::units::{BLOCK_BYTES, BlockRange, CHUNK_BLOCKS, CHUNK_BYTES, IO_BLOCKS_MAX};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Names a guest request; given out by the driver.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GuestTag(pub u64);

/// What a guest asks. Offsets and lengths are in bytes and multiples of 512.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GuestRequest {
    /// Read.
    Read {
        /// Where.
        offset: u64,
        /// How much.
        bytes: u64,
    },
    /// Write.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Bytes,
    },
    /// Make a range read as zeros and free its space.
    Zero {
        /// Where.
        offset: u64,
        /// How much.
        bytes: u64,
    },
    /// Make sure that all completed writes are stable.
    Flush,
}

/// How a guest request ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GuestResult {
    /// It is done; a change is stable on every in-sync component.
    Done,
    /// The bytes read, in pieces that follow each other.
    Data(Vec<Bytes>),
    /// It failed.
    Failed(GuestError),
}

/// Why a guest request failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GuestError {
    /// Outside of the disk, or not a multiple of 512.
    #[error("outside of the disk or not aligned to its sectors")]
    BadRange,
    /// The disk was opened read-only.
    #[error("the disk is open for reading only")]
    ReadOnly,
    /// No good copy of the data is left.
    #[error("no good copy of the data is left")]
    Lost,
}

/// One piece of a guest request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub chunk: ChunkIndex,
    pub range: BlockRange,
    pub kind: PieceKind,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum PieceKind {
    /// Read the range and give `len` bytes from `skip` on.
    Read { skip: usize, len: usize },
    /// Write the range.
    Write { data: Bytes },
    /// Read the range, put `data` at `skip`, write it back: the request does not begin or end at a block.
    Merge { skip: usize, data: Bytes },
    /// Unmap the range.
    Zero,
    /// Read the range with its versions.
    Fetch,
    /// Of a shard ([`super::stripes`]): write the range beside it, where it is not in force.
    Stage { data: Bytes },
    /// Read what is staged with its versions.
    FetchStaged,
    /// Put what is staged in force: the range is a whole extent.
    Promote,
    /// Forget what is staged: the range is of whole extents.
    Forget,
}

impl PieceKind {
    /// Whether it changes nothing.
    pub(super) fn reads(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Fetch | Self::FetchStaged)
    }

    /// Whether a disk may say no to it, and nothing is wrong.
    pub(super) fn is_refusable(&self) -> bool {
        matches!(self, Self::Stage { .. } | Self::Promote | Self::Forget)
    }
}

/// Checks a request against the disk's size; true if it may be carried out.
pub(crate) fn in_bounds(request: &GuestRequest, size_bytes: u64) -> bool {
    let (offset, bytes) = match request {
        GuestRequest::Read { offset, bytes } | GuestRequest::Zero { offset, bytes } => (*offset, *bytes),
        GuestRequest::Write { offset, data } => (*offset, data.len() as u64),
        GuestRequest::Flush => return true,
    };
    offset.is_multiple_of(512)
        && bytes.is_multiple_of(512)
        && bytes > 0
        && offset.checked_add(bytes).is_some_and(|end| end <= size_bytes)
}

/// Cuts a request, which is in bounds, into pieces in the order of their offsets.
pub(super) fn pieces(request: &GuestRequest) -> Vec<Piece> {
    match request {
        GuestRequest::Read { offset, bytes } => spans(*offset, *bytes, false)
            .map(|s| s.piece(PieceKind::Read { skip: s.skip, len: s.len }))
            .collect(),
        GuestRequest::Write { offset, data } => spans(*offset, data.len() as u64, false)
            .map(|s| {
                let data = data.slice(s.at..s.at + s.len);
                let whole = s.skip == 0 && s.len.is_multiple_of(BLOCK_BYTES);
                s.piece(if whole {
                    PieceKind::Write { data }
                } else {
                    PieceKind::Merge { skip: s.skip, data }
                })
            })
            .collect(),
        GuestRequest::Zero { offset, bytes } => {
            let (start, end) = (*offset, offset + bytes);
            let (first, last) = (start.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
            let zeros = |from: u64, to: u64| {
                spans(from, to - from, false)
                    .map(|s| s.piece(PieceKind::Merge { skip: s.skip, data: Bytes::from(vec![0; s.len]) }))
            };
            if first > last {
                return zeros(start, end).collect();
            }
            let mut all: Vec<Piece> = Vec::new();
            if start < first {
                all.extend(zeros(start, first));
            }
            if first < last {
                all.extend(spans(first, last - first, true).map(|s| s.piece(PieceKind::Zero)));
            }
            if last < end {
                all.extend(zeros(last, end));
            }
            all
        }
        GuestRequest::Flush => Vec::new(),
    }
}

/// Puts `data` over `old` at `skip`.
pub(super) fn merge(old: &[u8], skip: usize, data: &[u8]) -> Bytes {
    let mut merged = BytesMut::from(old);
    merged[skip..skip + data.len()].copy_from_slice(data);
    merged.freeze()
}

struct Span {
    chunk: ChunkIndex,
    range: BlockRange,
    /// Bytes from the range's start to the request's.
    skip: usize,
    len: usize,
    /// Bytes from the request's start to this span's.
    at: usize,
}

impl Span {
    fn piece(&self, kind: PieceKind) -> Piece {
        Piece { chunk: self.chunk, range: self.range, kind }
    }
}

/// The chunk and block ranges under a run of bytes; each at most a message long unless `long`.
fn spans(offset: u64, bytes: u64, long: bool) -> impl Iterator<Item = Span> {
    let end = offset + bytes;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let first = (at % CHUNK_BYTES / BLOCK) as u32;
        let limit = if long { CHUNK_BLOCKS } else { IO_BLOCKS_MAX };
        let blocks_left = (end.div_ceil(BLOCK) - at / BLOCK).min(u64::from(CHUNK_BLOCKS)) as u32;
        let count = limit.min(CHUNK_BLOCKS - first).min(blocks_left);
        let range = BlockRange::new(first, count).ok()?;
        let skip = (at % BLOCK) as usize;
        let len = (range.bytes() - skip).min((end - at) as usize);
        let span = Span {
            chunk: ChunkIndex((at / CHUNK_BYTES) as u32),
            range,
            skip,
            len,
            at: (at - offset) as usize,
        };
        at += len as u64;
        Some(span)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_off_the_block_grid_merges_only_where_it_must() {
        let request = GuestRequest::Write { offset: 3584, data: Bytes::from(vec![1; 1 << 20]) };
        let all = pieces(&request);
        let total: usize = all
            .iter()
            .map(|p| match &p.kind {
                PieceKind::Merge { data, .. } | PieceKind::Write { data } => data.len(),
                _ => 0,
            })
            .sum();
        assert_eq!(total, 1 << 20);
        assert!(all.iter().all(|p| p.range.count() <= IO_BLOCKS_MAX));
    }

    #[test]
    fn zeroing_touches_partial_blocks_by_merging() {
        let all = pieces(&GuestRequest::Zero { offset: 512, bytes: 8192 });
        let kinds: Vec<_> =
            all.iter().map(|p| (p.range.first(), matches!(p.kind, PieceKind::Zero))).collect();
        assert_eq!(kinds, [(0, false), (1, true), (2, false)]);
        let all = pieces(&GuestRequest::Zero { offset: 512, bytes: 512 });
        assert_eq!(all.len(), 1);
    }

    #[test]
    fn pieces_end_at_chunks() {
        let all = pieces(&GuestRequest::Read { offset: CHUNK_BYTES - 4096, bytes: 8192 });
        assert_eq!(
            all.iter().map(|p| (p.chunk.0, p.range.first())).collect::<Vec<_>>(),
            [(0, CHUNK_BLOCKS - 1), (1, 0)]
        );
    }

    #[test]
    fn bounds_do_not_wrap() {
        assert!(!in_bounds(&GuestRequest::Read { offset: u64::MAX - 511, bytes: 512 }, 4096));
        assert!(!in_bounds(&GuestRequest::Read { offset: 4096, bytes: 512 }, 4096));
        assert!(!in_bounds(&GuestRequest::Read { offset: 1, bytes: 512 }, 4096));
        assert!(in_bounds(&GuestRequest::Read { offset: 3584, bytes: 512 }, 4096));
    }
}
