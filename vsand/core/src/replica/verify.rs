//! A scrub asks: two operations of the disk, one to find where there is something, one to read it.

use bytes::Bytes;
use ferro_protocol::ids::ChunkId;
use ferro_protocol::peer::{Reply, RequestId};
use ferro_protocol::units::{BlockRange, EXTENT_BLOCKS};

use super::{Asker, Effect, Pending, Replica};
use crate::disk::{DiskError, DiskOp, DiskReply};

impl Replica {
    /// The disk says which blocks come first.
    pub(super) fn looked(
        &mut self,
        to: Asker,
        id: RequestId,
        chunk: ChunkId,
        from_block: u32,
        result: Result<DiskReply, DiskError>,
    ) {
        let (runs, more) = match result {
            Ok(DiskReply::List(runs, more)) => (runs, more),
            other => return self.answer(to, id, other),
        };
        let first = runs.first().map(|run| run.range.first().max(from_block));
        let range = first.and_then(|first| {
            let end = (first / EXTENT_BLOCKS + 1) * EXTENT_BLOCKS;
            BlockRange::new(first, end - first).ok()
        });
        let Some(range) = range else { return self.answer_verified(to, id, 0, more) };
        let ticket = self.ticket(Pending::Verify { to, id, chunk, next_block: range.end() });
        self.effects.push_back(Effect::Disk(ticket, DiskOp::Fetch { chunk, range }));
    }

    /// The disk has read them.
    pub(super) fn verified(
        &mut self,
        to: Asker,
        id: RequestId,
        chunk: ChunkId,
        next_block: u32,
        result: Result<DiskReply, DiskError>,
    ) {
        match result {
            Ok(DiskReply::Runs(runs, _)) => {
                let blocks = runs.iter().filter(|run| run.mapped).map(|run| run.range.count()).sum();
                self.answer_verified(to, id, blocks, Some(next_block));
            }
            other => {
                if let Err(DiskError::BadBlocks(bad)) = &other {
                    self.bad.found(chunk, bad);
                }
                self.answer(to, id, other);
            }
        }
    }

    fn answer_verified(&mut self, to: Asker, id: RequestId, blocks: u32, next_block: Option<u32>) {
        let reply = Ok(Reply::Verified { blocks, next_block });
        self.effects.push_back(Effect::Answer { to, id, reply, payload: Bytes::new() });
    }
}
