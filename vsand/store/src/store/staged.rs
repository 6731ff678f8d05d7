//! Changes of whole extents without data: `Promote` and `Forget`.
//!
//! ```text
//! promote ─┬► gate of `to` ───┬► staged? ── yes ─► record ─► stable, applied ─┬► both gates left
//!          └► gate of `from` ─┘    └────── no ──► NotStaged ────────────────┘
//! forget, for each extent that is there ──► gate ──► still there? ── yes ─► record ─► stable, applied ─► gate left
//! ```
//!
//! - Both are alone with the extents that they change: what was admitted to one of them earlier has taken effect, what comes
//!   later waits.
//! - Who needs two gates joins both lines at once. So everybody waits only for those who came earlier, and nobody for each other,
//!   whoever is to be promoted to whom.
//! - Neither needs space, nor writes data.
//!
//! `Promote` is refused also while data of the extent is on its way to its place, see [`Tables::is_staged`]: for data that was written
//! by whole extents, or by 16 blocks and more to where there was nothing, that is never so.
//!
//! [`Tables::is_staged`]: crate::tables::Tables::is_staged

use std::ops::Range;

use ferro_protocol::ids::{ChunkId, ChunkIndex, Seq};
use ferro_protocol::units::{CHUNK_EXTENTS, EXTENT_BLOCKS};
use vsand_core::disk::{DiskError, Ticket};

use super::Store;
use super::batch::{Queued, Target};
use super::change::Part;
use crate::journal::Record;
use crate::ring::Ring;
use crate::slots::ExtentKey;

/// What becomes of a whole extent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Whole {
    Promote {
        to: ExtentKey,
        from: ExtentKey,
        source: ChunkIndex,
        /// How many of the gates have not let it in yet.
        gates_left: u8,
    },
    Forget,
}

impl Store {
    pub(super) fn start_promote(
        &mut self,
        ring: &mut Ring,
        ticket: Ticket,
        to: ChunkId,
        source: ChunkIndex,
        extent: u32,
        watermark: Seq,
    ) {
        let from = ChunkId { object: to.object, index: source };
        let known = (from != to && extent < CHUNK_EXTENTS)
            .then(|| self.tables.find(from, extent * EXTENT_BLOCKS))
            .flatten()
            .filter(|&from| self.tables.slots.is_here(from));
        // Nothing is made for the sake of what is not there.
        let Some(from) = known else {
            self.answer(ticket, Err(DiskError::NotStaged));
            return self.leave_object(to.object);
        };
        let key = self.tables.key_of(to, extent * EXTENT_BLOCKS);
        let whole = Whole::Promote { to: key, from, source, gates_left: 2 };
        let part = Part::of_whole(key, to, watermark, whole);
        self.start_parts(ring, ticket, to.object, vec![part]);
    }

    pub(super) fn start_forget(
        &mut self,
        ring: &mut Ring,
        ticket: Ticket,
        chunk: ChunkId,
        extents: Range<u32>,
    ) {
        let there: Vec<ExtentKey> = self
            .tables
            .extents(chunk)
            .map(|extent| extent.key)
            .filter(|key| extents.contains(&u32::from(key.extent())) && self.tables.slots.is_here(*key))
            .collect();
        let part = |key| Part::of_whole(key, chunk, Seq(0), Whole::Forget);
        self.start_parts(ring, ticket, chunk.object, there.into_iter().map(part).collect());
    }

    /// A gate has let the part in.
    pub(super) fn start_whole(&mut self, index: u32) {
        let Some(part) = self.parts.get_mut(index) else { return };
        let (key, chunk, watermark) = (part.key, part.chunk, part.watermark);
        let record = match &mut part.whole {
            None => return,
            Some(Whole::Forget) => {
                if self.tables.slots.get(key).is_none_or(|slot| slot.is_untouched()) {
                    return self.part_done(index);
                }
                Record::Forget { chunk, extent: u32::from(key.extent()) }
            }
            Some(Whole::Promote { to, from, source, gates_left }) => {
                let (to, from, source) = (*to, *from, *source);
                *gates_left -= 1;
                if *gates_left > 0 {
                    return;
                }
                match self.tables.is_staged(&self.meta, to, from) {
                    Ok(true) => {}
                    Ok(false) => return self.refuse_part(index, DiskError::NotStaged),
                    Err(error) => return self.die(error.to_string()),
                }
                self.stats.promoted_extents += 1;
                Record::Promote { to: chunk, from: source, extent: u32::from(to.extent()), watermark }
            }
        };
        if let Some(part) = self.parts.get_mut(index) {
            part.records_left = 1;
            self.queue.push_back(Queued { record, data: None, target: Target::Part(index) });
        }
    }
}
