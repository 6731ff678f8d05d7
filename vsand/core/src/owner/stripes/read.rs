//! A guest's read: from the log what is there, from the shards the rest, decoded where a shard can't be read.
//!
//! The guest's range is held all the while, so no write of these blocks ends meanwhile. A job may put some of them into
//! the shards and give their slots back: the slots are held too, from the moment they were asked for.

use bytes::{Bytes, BytesMut};
use ferro_protocol::ids::ChunkIndex;
use ferro_protocol::units::{BLOCK_BYTES, BlockRange};

use super::decode::For;
use super::geometry::OnShard;
use super::ring::Kept;
use super::{Stripes, TaskId, Wanted, Work};
use crate::owner::Owner;
use crate::owner::guest::{PieceKind, merge};
use crate::owner::io::{Fault, Got, PartId};
use crate::time::Instant;

/// Where an answer belongs.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Source {
    /// So many blocks from this one of the range on.
    Log {
        at: u32,
        count: u32,
    },
    Shard(OnShard),
}

/// A read under way.
#[derive(Debug)]
pub(super) struct Read {
    part: PartId,
    range: BlockRange,
    sources: Vec<Source>,
    data: BytesMut,
    /// What is asked for now: these of the sources.
    asked: Vec<usize>,
    /// They are decoded: what fails now is lost.
    decoding: bool,
}

impl Owner {
    /// A guest's part has its range.
    pub(in crate::owner) fn run_striped(&mut self, now: Instant, part: PartId) {
        let Some(piece) = self.parts.get(&part).map(|p| p.piece.clone()) else { return };
        if self.stripes.get(&piece.chunk).is_some_and(Stripes::is_lost) {
            return self.end_guest(now, piece.chunk, part, Err(Fault::Bad));
        }
        match piece.kind {
            PieceKind::Write { data } => self.queue_write(piece.chunk, part, piece.range, Some(data)),
            PieceKind::Zero => self.queue_write(piece.chunk, part, piece.range, None),
            PieceKind::Read { .. } | PieceKind::Merge { .. } | PieceKind::Fetch => {
                self.read_striped(now, piece.chunk, part, piece.range);
            }
            // Only of shards.
            PieceKind::Stage { .. } | PieceKind::FetchStaged | PieceKind::Promote | PieceKind::Forget => {
                self.end_guest(now, piece.chunk, part, Err(Fault::Bad));
            }
        }
    }

    fn read_striped(&mut self, now: Instant, chunk: ChunkIndex, part: PartId, range: BlockRange) {
        let Some(stripes) = self.stripes.get(&chunk) else { return };
        let (geometry, log) = (stripes.geometry, chunk.log());
        let mut data = BytesMut::zeroed(range.bytes());
        let (mut sources, mut wanted) = (Vec::new(), Vec::new());
        let mut block = range.first();
        while block < range.end() {
            let at = block - range.first();
            let Some(entry) = stripes.ring.latest(block) else {
                let end = stripes.ring.next_from(block).unwrap_or(u32::MAX).min(range.end());
                for on in geometry.spread(block, end) {
                    wanted.push(Wanted::read(chunk.shard(on.shard), on.rows));
                    sources.push(Source::Shard(on));
                }
                block = end;
                continue;
            };
            match (entry.kept, &entry.cached) {
                (Kept::Zeros, _) => {}
                // Never: its data is kept in memory.
                (Kept::Staged, None) => return self.end_guest(now, chunk, part, Err(Fault::Bad)),
                (_, Some(cached)) => put(&mut data, at, cached),
                (Kept::Slot(slot), None) => {
                    // Blocks that were written together lie together.
                    let mut count = 1;
                    while block + count < range.end()
                        && let Some(next) = stripes.ring.latest(block + count)
                        && next.to_read() == Some(slot + count)
                    {
                        count += 1;
                    }
                    if let Ok(slots) = BlockRange::new(slot, count) {
                        wanted.push(Wanted::read(log, slots));
                        sources.push(Source::Log { at, count });
                    }
                    block += count;
                    continue;
                }
            }
            block += 1;
        }
        let asked = (0..sources.len()).collect();
        let id =
            self.begin_task(chunk, Work::Read(Read { part, range, sources, data, asked, decoding: false }));
        self.want(now, id, wanted);
    }

    pub(super) fn read_done(
        &mut self,
        now: Instant,
        id: TaskId,
        chunk: ChunkIndex,
        mut read: Read,
        got: Vec<Result<Got, Fault>>,
    ) {
        let Some(geometry) = self.stripes.get(&chunk).map(|s| s.geometry) else { return };
        let mut decode = Vec::new();
        let mut lost = false;
        for (n, got) in std::mem::take(&mut read.asked).into_iter().zip(got) {
            match (got, &read.sources[n]) {
                (Ok(Got::Data(bytes)), Source::Log { at, count }) => {
                    debug_assert_eq!(bytes.len(), *count as usize * BLOCK_BYTES);
                    put(&mut read.data, *at, &bytes);
                }
                (Ok(Got::Data(bytes)), Source::Shard(on)) => {
                    if read.sources.len() == 1
                        && bytes.len() == read.range.bytes()
                        && on.rows.count() == read.range.count()
                    {
                        // Nothing to put together.
                        let first = geometry.block(on.shard, on.rows.first());
                        if on.rows.count() == 1
                            || geometry.block(on.shard, on.rows.end() - 1) == first + on.rows.count() - 1
                        {
                            return self.answer_read(now, chunk, &read, bytes);
                        }
                    }
                    for (row, block) in on.rows.blocks().zip(bytes.chunks(BLOCK_BYTES)) {
                        put(&mut read.data, geometry.block(on.shard, row) - read.range.first(), block);
                    }
                }
                (Err(fault), Source::Shard(on)) if !read.decoding => decode.push((n, on.clone(), fault)),
                _ => lost = true,
            }
        }
        if lost {
            return self.end_guest(now, chunk, read.part, Err(Fault::Bad));
        }
        if decode.is_empty() {
            let data = std::mem::take(&mut read.data).freeze();
            return self.answer_read(now, chunk, &read, data);
        }
        read.asked = decode.iter().map(|(n, ..)| *n).collect();
        read.decoding = true;
        self.put_back(id, chunk, Work::Read(read));
        self.expect(id, decode.len());
        for (place, (_, on, fault)) in decode.into_iter().enumerate() {
            self.start_decode(chunk, on.rows, on.shard, fault, For::Task(id, place));
        }
    }

    fn answer_read(&mut self, now: Instant, chunk: ChunkIndex, read: &Read, data: Bytes) {
        let merged = self.parts.get(&read.part).and_then(|part| match &part.piece.kind {
            PieceKind::Merge { skip, data: new } => Some(merge(&data, *skip, new)),
            _ => None,
        });
        match merged {
            Some(merged) => self.queue_write(chunk, read.part, read.range, Some(merged)),
            None if self.lease_runs(now) => self.end_guest(now, chunk, read.part, Ok(Got::Data(data))),
            None => {
                self.lease_wait.push(read.part);
                self.unlock(now, chunk, crate::owner::group::Holder::Part(read.part));
            }
        }
    }
}

fn put(data: &mut BytesMut, at: u32, block: &[u8]) {
    let at = at as usize * BLOCK_BYTES;
    data[at..at + block.len()].copy_from_slice(block);
}
