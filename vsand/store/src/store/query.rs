//! `List` and `Summarise`: from the tables, without I/O on the data.

use ferro_protocol::ids::{ChunkId, ObjectId, Seq};
use ferro_protocol::peer::{ChunkSummary, Run};
use ferro_protocol::units::{BlockRange, CHUNK_BLOCKS, EXTENT_BLOCKS};
use vsand_core::disk::{DiskReply, Ticket};

use super::Store;
use crate::meta::MetaError;
use crate::slots::{Extent, ExtentKey};

/// The most extents whose blocks one `List` looks at: their metadata may have to be read, and the loop waits meanwhile.
const LIST_EXTENTS_MAX: usize = 64;

/// Adds a run, joining it to the last one if they are alike and adjacent.
pub(super) fn push_run(runs: &mut Vec<Run>, run: Run) {
    if let Some(last) = runs.last_mut()
        && last.range.end() == run.range.first()
        && (last.version, last.mapped) == (run.version, run.mapped)
        && let Ok(joined) = BlockRange::new(last.range.first(), last.range.count() + run.range.count())
    {
        last.range = joined;
        return;
    }
    runs.push(run);
}

impl Store {
    /// The runs of one extent above `since`, from a block on, until there are `runs_max`. Returns the block to go on with.
    fn runs_of(
        &mut self,
        key: ExtentKey,
        since: Seq,
        from: u32,
        runs_max: usize,
        runs: &mut Vec<Run>,
    ) -> Result<Option<u32>, MetaError> {
        let first = u32::from(key.extent()) * EXTENT_BLOCKS;
        let Some(slot) = self.tables.load(&self.meta, key)? else { return Ok(None) };
        let Some(blocks) = &slot.blocks else { return Ok(None) };
        for block in from.max(first)..first + EXTENT_BLOCKS {
            let at = (block - first) as usize;
            let version = blocks.version(at);
            if version.seq <= since {
                continue;
            }
            let Ok(range) = BlockRange::one(block) else { continue };
            let count = runs.len();
            push_run(runs, Run { range, version, mapped: blocks.mapped.has(at) });
            if runs.len() > runs_max.max(1) {
                runs.truncate(count);
                return Ok(Some(block));
            }
        }
        Ok(None)
    }

    pub(super) fn list(
        &mut self,
        ticket: Ticket,
        chunk: ChunkId,
        since: Seq,
        from_block: u32,
        runs_max: usize,
    ) {
        let keys: Vec<ExtentKey> = self
            .tables
            .extents(chunk)
            .filter(|extent| {
                extent.seq_max > since && (u32::from(extent.key.extent()) + 1) * EXTENT_BLOCKS > from_block
            })
            .map(|extent| extent.key)
            .take(LIST_EXTENTS_MAX + 1)
            .collect();
        let mut runs = Vec::new();
        let mut next = None;
        for (n, key) in keys.into_iter().enumerate() {
            if n == LIST_EXTENTS_MAX {
                next = Some(u32::from(key.extent()) * EXTENT_BLOCKS);
                break;
            }
            match self.runs_of(key, since, from_block, runs_max, &mut runs) {
                Ok(None) => {}
                Ok(more) => {
                    next = more;
                    break;
                }
                Err(error) => {
                    self.die(error.to_string());
                    return self.answer_dead(ticket);
                }
            }
        }
        self.answer(ticket, Ok(DiskReply::List(runs, next.filter(|&b| b < CHUNK_BLOCKS))));
    }

    pub(super) fn summarise(&mut self, ticket: Ticket, object: ObjectId) {
        let components: Vec<(ChunkId, Seq)> = self.tables.components(Some(object)).collect();
        let mut summary = Vec::with_capacity(components.len());
        for (chunk, watermark) in components {
            let extents: Vec<Extent> = self.tables.extents(chunk).collect();
            let seq_max = extents.iter().map(|extent| extent.seq_max).max().unwrap_or_default();
            let mut tail = Vec::new();
            for Extent { key, .. } in extents.into_iter().filter(|extent| extent.seq_max > watermark) {
                if let Err(error) = self.runs_of(key, watermark, 0, usize::MAX, &mut tail) {
                    self.die(error.to_string());
                    return self.answer_dead(ticket);
                }
            }
            summary.push(ChunkSummary { index: chunk.index, watermark, seq_max, tail });
        }
        summary.sort_by_key(|s| s.index);
        self.answer(ticket, Ok(DiskReply::Summary(summary)));
    }
}
