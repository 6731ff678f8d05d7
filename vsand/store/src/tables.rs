//! What the disk holds, in memory: components, extents, versions, the overlay. One place where a journal record takes
//! effect, the same for a batch that has just become stable and for one that is replayed; so replay rebuilds exactly.
//!
//! It knows nothing of I/O under way, tickets or time. It reads `RocksDB` when the metadata of an extent is not in memory.
//!
//! A checkpoint needs the metadata as of one batch while records go on taking effect. [`Tables::checkpoint_begins`] marks
//! what is dirty; a marked extent is encoded by [`Tables::freeze`], at leisure or just before it changes.

mod staged;

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use ferro_protocol::ids::{ChunkId, ChunkIndex, Epoch, ObjectId, Seq, Version};
use ferro_protocol::units::{BLOCK_BYTES, BlockRange, CHUNK_EXTENTS, EXTENT_BLOCKS};

use crate::alloc::Allocator;
use crate::blocks::{Blocks, GROUP_BLOCKS, GROUPS};
use crate::journal::{Place, Record};
use crate::meta::{self, Loaded, MapRow, Meta, MetaError, MetaOp};
use crate::slots::{ALL_GROUPS, ERASED, Extent, ExtentKey, Slot, Slots};

/// Extents that are looked at, whether they may rest, each time that another's metadata is loaded.
const EVICT_LOOKS: usize = 8;

/// A component of a chunk on this disk.
#[derive(Debug)]
struct Component {
    chunk: ChunkId,
    watermark: Seq,
    /// Some change of it is stable. Until then it is only a name that operations under way go by.
    exists: bool,
    dirty: bool,
    removed: bool,
}

/// A record that does not fit what is there: the disk can't be trusted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error(transparent)]
    Meta(#[from] MetaError),
    #[error("a journal record does not fit the disk's state: {0}")]
    Misfit(&'static str),
}

/// The tables.
pub(crate) struct Tables {
    components: Vec<Component>,
    by_chunk: HashMap<ChunkId, usize>,
    pub(crate) slots: Slots,
    pub(crate) epochs: HashMap<ObjectId, Epoch>,
    pub(crate) alloc: Allocator,
    pub(crate) overlay_blocks: usize,
    /// Blocks that were written again before they had gone to their place.
    pub(crate) absorbed: u64,
    dirty_slots: Vec<ExtentKey>,
    dirty_components: Vec<usize>,
    dirty_epochs: Vec<ObjectId>,
    removed: Vec<(ObjectId, Option<ChunkIndex>)>,
    to_freeze: Vec<ExtentKey>,
    in_checkpoint: Vec<ExtentKey>,
    frozen: Vec<MetaOp>,
    cached: VecDeque<ExtentKey>,
    cached_max: usize,
    /// How many more are to be looked at, whether they may rest, before somebody loads one.
    to_evict: usize,
    /// Replay claims physical extents as it meets them; later they were taken before their record was written.
    pub(crate) replaying: bool,
}

impl Tables {
    pub(crate) fn new(loaded: Loaded, extents: u32, cached_max: usize) -> Result<Self, ApplyError> {
        let mut tables = Self {
            components: Vec::new(),
            by_chunk: HashMap::new(),
            slots: Slots::default(),
            epochs: loaded.epochs.into_iter().collect(),
            alloc: Allocator::new(extents),
            overlay_blocks: 0,
            absorbed: 0,
            dirty_slots: Vec::new(),
            dirty_components: Vec::new(),
            dirty_epochs: Vec::new(),
            removed: Vec::new(),
            to_freeze: Vec::new(),
            in_checkpoint: Vec::new(),
            frozen: Vec::new(),
            cached: VecDeque::new(),
            cached_max,
            to_evict: 0,
            replaying: true,
        };
        for (chunk, watermark) in loaded.components {
            let component = tables.component(chunk);
            tables.components[component].watermark = watermark;
            tables.components[component].exists = true;
        }
        for row in loaded.map {
            let component = *tables.by_chunk.get(&row.chunk).ok_or(MetaError::Row("map"))?;
            let key = ExtentKey::new(component, u32::from(row.extent));
            if row.phys.is_some_and(|p| !tables.alloc.take(row.chunk.object, p)) {
                return Err(ApplyError::Misfit("two extents share a place"));
            }
            tables.slots.insert(key, row.phys, row.seq_max);
        }
        Ok(tables)
    }

    fn component(&mut self, chunk: ChunkId) -> usize {
        if let Some(&at) = self.by_chunk.get(&chunk) {
            return at;
        }
        self.components.push(Component {
            chunk,
            watermark: Seq(0),
            exists: false,
            dirty: false,
            removed: false,
        });
        self.by_chunk.insert(chunk, self.components.len() - 1);
        self.components.len() - 1
    }

    /// The key of the extent that this block lies in; makes the component known.
    pub(crate) fn key_of(&mut self, chunk: ChunkId, block: u32) -> ExtentKey {
        ExtentKey::new(self.component(chunk), block / EXTENT_BLOCKS)
    }

    /// The object that the extent is of.
    pub(crate) fn object_of(&self, key: ExtentKey) -> ObjectId {
        self.components[key.component()].chunk.object
    }

    /// The same, if the component is known.
    pub(crate) fn find(&self, chunk: ChunkId, block: u32) -> Option<ExtentKey> {
        self.by_chunk.get(&chunk).map(|&c| ExtentKey::new(c, block / EXTENT_BLOCKS))
    }

    /// The components that exist, of one object or of all.
    pub(crate) fn components(&self, object: Option<ObjectId>) -> impl Iterator<Item = (ChunkId, Seq)> {
        let of = move |c: &&Component| c.exists && !c.removed && object.is_none_or(|o| o == c.chunk.object);
        self.components.iter().filter(of).map(|c| (c.chunk, c.watermark))
    }

    /// The extents of a component, in order.
    pub(crate) fn extents(&self, chunk: ChunkId) -> impl Iterator<Item = Extent> {
        self.by_chunk.get(&chunk).into_iter().flat_map(|&component| self.slots.of(component))
    }

    /// The slot with its block metadata in memory. `None` if the extent was never touched.
    pub(crate) fn load(&mut self, meta: &Meta, key: ExtentKey) -> Result<Option<&mut Slot>, MetaError> {
        let Some(slot) = self.slots.wake(key) else { return Ok(None) };
        slot.used = true;
        if slot.blocks.is_none() {
            slot.blocks = Some(if slot.stored {
                meta.blocks(self.components[key.component()].chunk, key.extent())?
            } else {
                Blocks::never()
            });
            self.cached.push_back(key);
            self.evict(Some(key), EVICT_LOOKS, self.cached_max);
        }
        Ok(self.slots.get_mut(key))
    }

    /// As `load`, making the slot if need be.
    pub(crate) fn load_or_new(&mut self, meta: &Meta, key: ExtentKey) -> Result<&mut Slot, MetaError> {
        self.slots.wake_or_new(key);
        Ok(self.load(meta, key)?.expect("it was just made"))
    }

    /// Lets extents rest that were not used lately, if more than so many have their metadata in memory. Dirty metadata stays until its
    /// checkpoint is stable.
    fn evict(&mut self, keep: Option<ExtentKey>, looks: usize, cached_max: usize) {
        for _ in 0..looks.min(self.cached.len()) {
            if self.cached.len() <= cached_max {
                return;
            }
            let Some(key) = self.cached.pop_front() else { return };
            let Some(slot) = self.slots.get_mut(key) else { continue };
            if Some(key) == keep || slot.used || !slot.may_rest() {
                slot.used = false;
                self.cached.push_back(key);
            } else {
                self.slots.rest(key);
            }
        }
    }

    /// Whether a checkpoint has left more in memory than is to stay there.
    pub(crate) fn has_to_evict(&self) -> bool {
        self.to_evict > 0 && self.cached.len() > self.cached_max
    }

    /// Lets some of that rest.
    pub(crate) fn evict_some(&mut self, count: usize) {
        let looks = count.min(self.to_evict);
        self.to_evict -= looks;
        self.evict(None, looks, self.cached_max);
    }

    /// Nobody has asked for anything for a while: all rest, so many at a time.
    pub(crate) fn evict_idle(&mut self, count: usize) {
        self.evict(None, count, 0);
        self.slots.shrink();
    }

    /// How many extents have changed since the last checkpoint began.
    pub(crate) fn dirty_count(&self) -> usize {
        self.dirty_slots.len()
    }

    /// Whether there is anything for a checkpoint to store.
    pub(crate) fn is_dirty(&self) -> bool {
        !(self.dirty_slots.is_empty()
            && self.dirty_components.is_empty()
            && self.dirty_epochs.is_empty()
            && self.removed.is_empty())
            || self.alloc.has_deferred()
    }

    fn touch(&mut self, chunk: ChunkId, watermark: Seq) -> usize {
        let at = self.component(chunk);
        let component = &mut self.components[at];
        if !component.exists || watermark > component.watermark {
            component.exists = true;
            component.watermark = component.watermark.max(watermark);
            if !std::mem::replace(&mut component.dirty, true) {
                self.dirty_components.push(at);
            }
        }
        at
    }

    /// Lets a record that is stable in batch `batch` take effect. `data` is what its batch brought for it.
    pub(crate) fn apply(
        &mut self,
        meta: &Meta,
        record: &Record,
        data: Option<&Bytes>,
        batch: u64,
    ) -> Result<(), ApplyError> {
        match record {
            Record::SetEpoch { object, epoch } => {
                let known = self.epochs.entry(*object).or_default();
                *known = (*known).max(*epoch);
                self.dirty_epochs.push(*object);
                Ok(())
            }
            Record::Remove { object, chunk } => {
                self.remove(*object, *chunk);
                Ok(())
            }
            Record::Promote { to, from, extent, watermark } => {
                self.apply_promote(meta, *to, *from, *extent, *watermark)
            }
            Record::Forget { chunk, extent } => self.apply_forget(*chunk, *extent),
            Record::Zero { chunk, range, version, watermark, force } => {
                let component = self.touch(*chunk, *watermark);
                self.apply_zero(meta, component, *range, *version, *force)
            }
            Record::Write { chunk, range, version, watermark, phys, place, force, crcs } => {
                let component = self.touch(*chunk, *watermark);
                let key = ExtentKey::new(component, range.first() / EXTENT_BLOCKS);
                let write = Write { key, range: *range, version: *version, phys: *phys, force: *force, crcs };
                match place {
                    Place::Journal => {
                        self.apply_journaled(meta, &write, data.ok_or(ApplyError::Misfit("no data"))?, batch)
                    }
                    Place::InPlace | Place::Remap => self.apply_direct(meta, &write, *place == Place::Remap),
                }
            }
        }
    }

    /// The slot, ready to be changed.
    fn open(&mut self, meta: &Meta, key: ExtentKey) -> Result<&mut Slot, MetaError> {
        self.load_or_new(meta, key)?;
        self.freeze(key);
        Ok(self.slots.get_mut(key).expect("it was just loaded"))
    }

    fn mark(&mut self, key: ExtentKey, range: BlockRange, force: bool, version: Version) {
        let slot = self.slots.get_mut(key).expect("the caller has opened it");
        if slot.dirty == 0 {
            self.dirty_slots.push(key);
        }
        let first = (range.first() % EXTENT_BLOCKS) as usize;
        for group in first / GROUP_BLOCKS..=(first + range.count() as usize - 1) / GROUP_BLOCKS {
            slot.dirty |= 1 << group;
        }
        slot.seq_max = match (&slot.blocks, force) {
            (Some(blocks), true) => blocks.seq_max(),
            _ => slot.seq_max.max(version.seq),
        };
    }

    /// Maps the extent to the place that the record names.
    fn attach(&mut self, key: ExtentKey, phys: u32) -> Result<(), ApplyError> {
        let slot = self.slots.get_mut(key).expect("the caller has opened it");
        match slot.phys {
            Some(p) if p == phys => Ok(()),
            Some(_) => Err(ApplyError::Misfit("the extent lies elsewhere")),
            None => {
                slot.pending = slot.pending.filter(|&p| p != phys);
                slot.phys = Some(phys);
                self.claim(key, phys)
            }
        }
    }

    fn claim(&mut self, key: ExtentKey, phys: u32) -> Result<(), ApplyError> {
        let object = self.object_of(key);
        if self.replaying && !self.alloc.take(object, phys) {
            return Err(ApplyError::Misfit("the place is not free"));
        }
        Ok(())
    }

    fn apply_journaled(
        &mut self,
        meta: &Meta,
        w: &Write<'_>,
        data: &Bytes,
        batch: u64,
    ) -> Result<(), ApplyError> {
        let slot = self.open(meta, w.key)?;
        let blocks = slot.blocks.as_mut().expect("open loads them");
        let overlay = slot.overlay.get_or_insert_default();
        let (mut taken, mut added) = (0, 0);
        for (n, block) in w.blocks().enumerate() {
            if !w.force && blocks.version(block) >= w.version {
                continue;
            }
            taken += 1;
            blocks.set(block, w.version, Some(w.crcs[n]));
            let bytes = data.slice(n * BLOCK_BYTES..(n + 1) * BLOCK_BYTES);
            added += usize::from(!overlay.insert(block, batch, bytes));
        }
        self.overlay_blocks += added;
        self.absorbed += (taken - added) as u64;
        if taken > 0 {
            self.attach(w.key, w.phys)?;
            self.mark(w.key, w.range, w.force, w.version);
        }
        Ok(())
    }

    /// The data is in its place already; whoever put it there made sure that no block here was newer.
    fn apply_direct(&mut self, meta: &Meta, w: &Write<'_>, remap: bool) -> Result<(), ApplyError> {
        let slot = self.open(meta, w.key)?;
        let blocks = slot.blocks.as_mut().expect("open loads them");
        let mut gone = 0;
        for (n, block) in w.blocks().enumerate() {
            if !w.force && blocks.version(block) >= w.version {
                return Err(ApplyError::Misfit("a direct write is older than what is there"));
            }
            if !remap && blocks.mapped.has(block) {
                return Err(ApplyError::Misfit("a direct write overwrites a mapped block"));
            }
            blocks.set(block, w.version, Some(w.crcs[n]));
        }
        if remap {
            if let Some(overlay) = &mut slot.overlay {
                gone = overlay.clear();
            }
            let old = slot.phys.replace(w.phys);
            self.overlay_blocks -= gone;
            if let Some(old) = old {
                let object = self.object_of(w.key);
                self.alloc.defer(object, old);
            }
            self.claim(w.key, w.phys)?;
        } else {
            self.attach(w.key, w.phys)?;
        }
        self.mark(w.key, w.range, w.force, w.version);
        Ok(())
    }

    fn apply_zero(
        &mut self,
        meta: &Meta,
        component: usize,
        range: BlockRange,
        version: Version,
        force: bool,
    ) -> Result<(), ApplyError> {
        let key = ExtentKey::new(component, range.first() / EXTENT_BLOCKS);
        let slot = self.open(meta, key)?;
        let blocks = slot.blocks.as_mut().expect("open loads them");
        let (mut taken, mut gone) = (false, 0);
        for block in range.blocks().map(|b| (b % EXTENT_BLOCKS) as usize) {
            if !force && blocks.version(block) >= version {
                continue;
            }
            taken = true;
            blocks.set(block, version, None);
            if let Some(overlay) = &mut slot.overlay {
                gone += usize::from(overlay.remove(block));
            }
        }
        let freed = if blocks.mapped.is_empty() { slot.phys.take() } else { None };
        self.overlay_blocks -= gone;
        if let Some(phys) = freed {
            let object = self.object_of(key);
            self.alloc.defer(object, phys);
        }
        if taken {
            self.mark(key, range, force, version);
        }
        Ok(())
    }

    fn remove(&mut self, object: ObjectId, chunk: Option<ChunkIndex>) {
        let of = |c: &Component| {
            !c.removed && c.chunk.object == object && chunk.is_none_or(|i| i == c.chunk.index)
        };
        let gone: Vec<_> = (0..self.components.len()).filter(|&at| of(&self.components[at])).collect();
        for component in gone {
            for extent in 0..CHUNK_EXTENTS {
                self.freeze(ExtentKey::new(component, extent));
            }
            for slot in self.slots.remove(component) {
                self.overlay_blocks -= slot.overlay.as_ref().map_or(0, |o| o.len());
                if let Some(phys) = slot.phys {
                    self.alloc.defer(object, phys);
                }
            }
            // Its place in the table is never used again, so that keys of operations under way can't name another.
            self.components[component].removed = true;
            self.by_chunk.remove(&self.components[component].chunk);
        }
        if chunk.is_none() {
            self.epochs.remove(&object);
        }
        self.removed.push((object, chunk));
    }

    /// A checkpoint begins: it shall hold exactly what has taken effect by now.
    pub(crate) fn checkpoint_begins(&mut self) {
        debug_assert!(self.to_freeze.is_empty() && self.frozen.is_empty());
        self.alloc.checkpoint_begins();
        for (object, chunk) in std::mem::take(&mut self.removed) {
            meta::remove(object, chunk, &mut self.frozen);
        }
        for object in std::mem::take(&mut self.dirty_epochs) {
            if let Some(&epoch) = self.epochs.get(&object) {
                self.frozen.push(meta::put_epoch(object, epoch));
            }
        }
        for at in std::mem::take(&mut self.dirty_components) {
            let component = &mut self.components[at];
            component.dirty = false;
            if !component.removed {
                self.frozen.push(meta::put_component(component.chunk, component.watermark));
            }
        }
        self.to_freeze = std::mem::take(&mut self.dirty_slots);
        self.to_freeze.retain(|&key| self.slots.get(key).is_some());
        for &key in &self.to_freeze {
            let slot = self.slots.get_mut(key).expect("the others were dropped");
            slot.frozen = std::mem::take(&mut slot.dirty);
            slot.in_checkpoint = true;
            slot.will_be_stored = slot.frozen & ALL_GROUPS != 0;
        }
        self.in_checkpoint.clone_from(&self.to_freeze);
    }

    /// The extents that the checkpoint under way stores.
    pub(crate) fn checkpoint_extents(&self) -> &[ExtentKey] {
        &self.in_checkpoint
    }

    fn freeze(&mut self, key: ExtentKey) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let changed = std::mem::take(&mut slot.frozen);
        let Some(blocks) = slot.blocks.as_ref().filter(|_| changed != 0) else { return };
        let chunk = self.components[key.component()].chunk;
        if changed & ERASED != 0 && slot.stored {
            // Before the rows of what was written since.
            meta::remove_extent(chunk, key.extent(), &mut self.frozen);
        }
        if changed & ALL_GROUPS == 0 {
            return;
        }
        let row = MapRow { chunk, extent: key.extent(), phys: slot.phys, seq_max: slot.seq_max };
        self.frozen.push(meta::put_map(row));
        for group in (0..GROUPS).filter(|g| changed >> g & 1 == 1) {
            self.frozen.push(meta::put_group(chunk, key.extent(), group, blocks.encode(group)));
        }
    }

    /// Whether the checkpoint needs more to be encoded.
    pub(crate) fn has_to_freeze(&self) -> bool {
        !self.to_freeze.is_empty()
    }

    /// Encodes some of what the checkpoint needs. Returns whether all is done.
    pub(crate) fn freeze_some(&mut self, count: usize) -> bool {
        for _ in 0..count {
            let Some(key) = self.to_freeze.pop() else { return true };
            self.freeze(key);
        }
        self.to_freeze.is_empty()
    }

    /// The rows of the checkpoint, once all is frozen.
    pub(crate) fn take_frozen(&mut self) -> Vec<MetaOp> {
        std::mem::take(&mut self.frozen)
    }

    /// The checkpoint is stable.
    pub(crate) fn checkpoint_ends(&mut self) {
        // Each of them once, and once more if it was used just then.
        self.to_evict = self.cached.len() * 2;
        for key in std::mem::take(&mut self.in_checkpoint) {
            if let Some(slot) = self.slots.get_mut(key) {
                slot.in_checkpoint = false;
                slot.stored = slot.will_be_stored;
            }
        }
        self.alloc.checkpoint_ends();
    }
}

/// The parts of a write record that say what happens to its extent.
struct Write<'a> {
    key: ExtentKey,
    range: BlockRange,
    version: Version,
    phys: u32,
    force: bool,
    crcs: &'a [u32],
}

impl Write<'_> {
    fn blocks(&self) -> impl Iterator<Item = usize> + use<> {
        self.range.blocks().map(|b| (b % EXTENT_BLOCKS) as usize)
    }
}
