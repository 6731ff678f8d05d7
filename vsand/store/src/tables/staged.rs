//! Extents that change hands and extents that are forgotten.
//!
//! ```text
//!                  promote                                    forget
//! from ┌ place ┐ ──────────► to, whose old place is deferred         ┌ place ┐ ──► deferred
//!      └ blocks┘                                                     └ blocks┘ ──► gone
//! ```
//!
//! What is left behind is *erased*: as if it had never been touched, at once for all who ask. In the metadata it is so from
//! the next checkpoint on, which deletes the rows and then puts those of the groups that were written again since. A checkpoint
//! that is under way gets the extents as they were: they are frozen before they change.
//!
//! Nothing of a promoted extent's data may be in the overlay: see [`Tables::is_staged`].

use ferro_protocol::ids::{ChunkId, ChunkIndex, Seq};
use ferro_protocol::units::EXTENT_BLOCKS;

use super::{ApplyError, EVICT_LOOKS, Tables};
use crate::blocks::Blocks;
use crate::meta::{Meta, MetaError};
use crate::overlay::Overlay;
use crate::slots::{ALL_GROUPS, ERASED, ExtentKey};

/// What an extent was before it was erased.
struct Erased {
    phys: Option<u32>,
    /// `None`: they were not in memory.
    blocks: Option<Box<Blocks>>,
    /// Still counted in [`Tables::overlay_blocks`].
    overlay: Overlay,
}

impl Tables {
    /// Whether `from` can take the place of `to`: every block of it is mapped and of a higher version, and all its data is in
    /// its place. Both must be kept from changing and from resting meanwhile, by their gates.
    ///
    /// Data that lies in the journal and the overlay only is not enough. A checkpoint as of batch J may be under way that
    /// has yet to bring data of batches up to J to its place. It would find it no more, and nevertheless store rows of `from` that say
    /// that it is there; after a crash, replay begins behind J, promotes those rows, and the data is lost. The same is why
    /// a write to the place that is still under way counts as missing.
    pub(crate) fn is_staged(
        &mut self,
        meta: &Meta,
        to: ExtentKey,
        from: ExtentKey,
    ) -> Result<bool, MetaError> {
        self.load_or_new(meta, to)?;
        self.load_or_new(meta, from)?;
        let (Some(to), Some(from)) = (self.slots.get(to), self.slots.get(from)) else { return Ok(false) };
        let in_place = from.overlay.as_ref().is_none_or(|overlay| overlay.is_empty());
        let (Some(old), Some(new)) = (&to.blocks, &from.blocks) else { return Ok(false) };
        Ok(from.phys.is_some() && in_place && new.supersede(old))
    }

    /// Makes the extent one that was never touched. It must be awake.
    fn erase(&mut self, key: ExtentKey) -> Erased {
        self.freeze(key);
        let slot = self.slots.get_mut(key).expect("the caller has woken it");
        if slot.dirty == 0 {
            self.dirty_slots.push(key);
        }
        // What was to be stored of it before is gone with the rest.
        slot.dirty = ERASED;
        slot.seq_max = Seq(0);
        slot.used = true;
        let erased = Erased {
            phys: slot.phys.take(),
            blocks: slot.blocks.replace(Blocks::never()),
            overlay: slot.overlay.as_mut().map(|overlay| overlay.take()).unwrap_or_default(),
        };
        if erased.blocks.is_none() {
            self.cached.push_back(key);
            self.evict(Some(key), EVICT_LOOKS, self.cached_max);
        }
        erased
    }

    pub(super) fn apply_promote(
        &mut self,
        meta: &Meta,
        to: ChunkId,
        from: ChunkIndex,
        extent: u32,
        watermark: Seq,
    ) -> Result<(), ApplyError> {
        let source = ChunkId { object: to.object, index: from };
        let Some(source) = self.find(source, extent * EXTENT_BLOCKS) else {
            return Err(ApplyError::Misfit("a component that is not there is promoted"));
        };
        self.load_or_new(meta, source)?;
        let Erased { phys: Some(phys), blocks: Some(blocks), overlay } = self.erase(source) else {
            return Err(ApplyError::Misfit("an extent that is not there is promoted"));
        };
        // In replay it is: what had gone to its place before the crash has not yet in this life. No checkpoint is under way then.
        if !overlay.is_empty() && !self.replaying {
            return Err(ApplyError::Misfit("a promoted extent is not in its place"));
        }
        let component = self.touch(to, watermark);
        let key = ExtentKey::new(component, extent);
        let slot = self.open(meta, key)?;
        if !slot.blocks.as_ref().is_some_and(|old| blocks.supersede(old)) {
            return Err(ApplyError::Misfit("what is promoted is older than what is there"));
        }
        slot.seq_max = blocks.seq_max();
        slot.blocks = Some(blocks);
        let old = slot.phys.replace(phys);
        let gone = slot.overlay.as_mut().map_or(0, |overlay| overlay.clear());
        if !overlay.is_empty() {
            slot.overlay = Some(Box::new(overlay));
        }
        let clean = slot.dirty == 0;
        slot.dirty |= ALL_GROUPS;
        if clean {
            self.dirty_slots.push(key);
        }
        self.overlay_blocks -= gone;
        if let Some(old) = old {
            self.alloc.defer(to.object, old);
        }
        Ok(())
    }

    pub(super) fn apply_forget(&mut self, chunk: ChunkId, extent: u32) -> Result<(), ApplyError> {
        let key = self.find(chunk, extent * EXTENT_BLOCKS);
        let Some(key) = key.filter(|&key| self.slots.wake(key).is_some_and(|slot| !slot.is_untouched()))
        else {
            return Err(ApplyError::Misfit("an extent that is not there is forgotten"));
        };
        let erased = self.erase(key);
        self.overlay_blocks -= erased.overlay.len();
        if let Some(phys) = erased.phys {
            self.alloc.defer(chunk.object, phys);
        }
        Ok(())
    }
}
