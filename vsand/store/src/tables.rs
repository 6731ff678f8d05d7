//! What the disk holds, in memory: components, extents, versions, the overlay. One place where a journal record takes
//! effect, the same for a batch that has just become stable and for one that is replayed; so replay rebuilds exactly.
//!
//! It knows nothing of I/O under way, tickets or time. It reads `RocksDB` when the metadata of an extent is not in memory.
//!
//! A checkpoint needs the metadata as of one batch while records go on taking effect. [`Tables::checkpoint_begins`] marks
//! what is dirty; a marked extent is encoded by [`Tables::freeze`], at leisure or just before it changes.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use bytes::Bytes;
use ferro_protocol::ids::{ChunkId, ChunkIndex, Epoch, ObjectId, Seq, Version};
use ferro_protocol::units::{BLOCK_BYTES, BlockRange, CHUNK_EXTENTS, EXTENT_BLOCKS};

use crate::alloc::Allocator;
use crate::blocks::{BlockSet, Blocks, GROUP_BLOCKS, GROUPS};
use crate::gate::Gate;
use crate::journal::{Place, Record};
use crate::meta::{self, Loaded, MapRow, Meta, MetaError, MetaOp};
use crate::overlay::Overlay;

/// A quick hash for small integer keys of our own making: nobody outside chooses them.
#[derive(Default)]
pub(crate) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// An extent of a component: the component's place in the table, and which of its extents.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ExtentKey(u64);

impl std::hash::Hash for ExtentKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

impl ExtentKey {
    fn new(component: usize, extent: u32) -> Self {
        Self((component as u64) << 16 | u64::from(extent))
    }
    fn component(self) -> usize {
        (self.0 >> 16) as usize
    }
    pub(crate) fn extent(self) -> u16 {
        self.0 as u16
    }
}

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

/// One extent of a component.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) phys: Option<u32>,
    /// Given to writes under way that will map it.
    pub(crate) pending: Option<u32>,
    pub(crate) seq_max: Seq,
    pub(crate) blocks: Option<Box<Blocks>>,
    pub(crate) overlay: Option<Box<Overlay>>,
    pub(crate) gate: Gate,
    /// `RocksDB` has rows of it.
    stored: bool,
    /// Groups that changed since the last checkpoint began.
    dirty: u8,
    /// Groups that the checkpoint under way still has to encode.
    frozen: u8,
    in_checkpoint: bool,
    used: bool,
}

impl Slot {
    pub(crate) fn mapped(&self) -> Option<&BlockSet> {
        self.blocks.as_ref().map(|b| &b.mapped)
    }
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
    pub(crate) slots: HashMap<ExtentKey, Slot, BuildHasherDefault<Mix>>,
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
    /// Replay claims physical extents as it meets them; later they were taken before their record was written.
    pub(crate) replaying: bool,
}

impl Tables {
    pub(crate) fn new(loaded: Loaded, extents: u32, cached_max: usize) -> Result<Self, ApplyError> {
        let mut tables = Self {
            components: Vec::new(),
            by_chunk: HashMap::new(),
            slots: HashMap::default(),
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
            let slot = Slot { phys: row.phys, seq_max: row.seq_max, stored: true, ..Slot::default() };
            tables.slots.insert(key, slot);
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

    /// The extents of a component, in order, with the first block of each.
    pub(crate) fn extents(&self, chunk: ChunkId) -> impl Iterator<Item = (ExtentKey, &Slot)> {
        let component = self.by_chunk.get(&chunk).copied();
        (0..CHUNK_EXTENTS).filter_map(move |extent| {
            let key = ExtentKey::new(component?, extent);
            self.slots.get(&key).map(|slot| (key, slot))
        })
    }

    /// The slot with its block metadata in memory. `None` if the extent was never touched.
    pub(crate) fn load(&mut self, meta: &Meta, key: ExtentKey) -> Result<Option<&mut Slot>, MetaError> {
        let Some(slot) = self.slots.get_mut(&key) else { return Ok(None) };
        slot.used = true;
        if slot.blocks.is_none() {
            slot.blocks = Some(if slot.stored {
                meta.blocks(self.components[key.component()].chunk, key.extent())?
            } else {
                Blocks::never()
            });
            self.cached.push_back(key);
            self.evict(key);
        }
        Ok(self.slots.get_mut(&key))
    }

    /// As `load`, making the slot if need be.
    pub(crate) fn load_or_new(&mut self, meta: &Meta, key: ExtentKey) -> Result<&mut Slot, MetaError> {
        self.slots.entry(key).or_default();
        Ok(self.load(meta, key)?.expect("it was just made"))
    }

    /// Drops clean block metadata that was not used lately; dirty metadata stays until its checkpoint is stable.
    fn evict(&mut self, keep: ExtentKey) {
        let mut looks = 8;
        while self.cached.len() > self.cached_max && looks > 0 {
            looks -= 1;
            let Some(key) = self.cached.pop_front() else { return };
            let Some(slot) = self.slots.get_mut(&key) else { continue };
            let clean = slot.dirty == 0 && !slot.in_checkpoint;
            if key == keep || slot.used || !clean {
                slot.used = false;
                self.cached.push_back(key);
            } else {
                slot.blocks = None;
            }
        }
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
        if self.slots[&key].frozen != 0 {
            self.freeze(key);
        }
        Ok(self.slots.get_mut(&key).expect("it was just loaded"))
    }

    fn mark(&mut self, key: ExtentKey, range: BlockRange, force: bool, version: Version) {
        let slot = self.slots.get_mut(&key).expect("the caller has opened it");
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
        let slot = self.slots.get_mut(&key).expect("the caller has opened it");
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
                let key = ExtentKey::new(component, extent);
                if self.slots.get(&key).is_some_and(|s| s.frozen != 0) {
                    self.freeze(key);
                }
                let Some(slot) = self.slots.remove(&key) else { continue };
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
        self.to_freeze.retain(|key| self.slots.contains_key(key));
        for key in &self.to_freeze {
            let slot = self.slots.get_mut(key).expect("the others were dropped");
            slot.frozen = std::mem::take(&mut slot.dirty);
            slot.in_checkpoint = true;
        }
        self.in_checkpoint.clone_from(&self.to_freeze);
    }

    /// The extents that the checkpoint under way stores.
    pub(crate) fn checkpoint_extents(&self) -> &[ExtentKey] {
        &self.in_checkpoint
    }

    fn freeze(&mut self, key: ExtentKey) {
        let Some(slot) = self.slots.get_mut(&key) else { return };
        let groups = std::mem::take(&mut slot.frozen);
        let Some(blocks) = slot.blocks.as_ref().filter(|_| groups != 0) else { return };
        let chunk = self.components[key.component()].chunk;
        let row = MapRow { chunk, extent: key.extent(), phys: slot.phys, seq_max: slot.seq_max };
        self.frozen.push(meta::put_map(row));
        for group in (0..GROUPS).filter(|g| groups >> g & 1 == 1) {
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
        for key in std::mem::take(&mut self.in_checkpoint) {
            if let Some(slot) = self.slots.get_mut(&key) {
                slot.in_checkpoint = false;
                slot.stored = true;
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
