//! The extents of all components of a disk: those that something is under way with or whose metadata is in memory, and those at rest,
//! of which there are millions.
//!
//! ```text
//!             wake: it is read, changed, or asked about
//!   at rest ─────────────────────────────────────────────▶ awake
//!     ▲  16 bytes                                            │  some hundreds, and its blocks' metadata
//!     └──────────────────────────────────────────────────────┘
//!             rest: `RocksDB` has all of it, nothing is under way, and it was not used lately
//! ```
//!
//! Invariants:
//! - an extent is awake, at rest, or was never touched: never two of them;
//! - one at rest is what the metadata has of it, to the byte: its place, and the highest sequence number of its blocks;
//! - one that was erased and not written since is as if it had never been touched, once a checkpoint has deleted its rows.
//!
//! What it must not know: when an extent should rest.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use ferro_protocol::ids::Seq;
use ferro_protocol::units::CHUNK_EXTENTS;

use crate::blocks::{BlockSet, Blocks, GROUPS};
use crate::gate::Gate;
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
    pub(crate) fn new(component: usize, extent: u32) -> Self {
        Self((component as u64) << 16 | u64::from(extent))
    }
    pub(crate) fn component(self) -> usize {
        (self.0 >> 16) as usize
    }
    pub(crate) fn extent(self) -> u16 {
        self.0 as u16
    }
}

/// What of an extent's metadata has changed: a bit for each group, and one that says that the rows it had go first.
pub(crate) type Changed = u16;

/// Every group has changed.
pub(crate) const ALL_GROUPS: Changed = (1 << GROUPS) - 1;
/// It was erased: only the groups that have changed since are anything at all.
pub(crate) const ERASED: Changed = 1 << GROUPS;

/// One extent of a component, awake.
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
    pub(crate) stored: bool,
    /// What changed since the last checkpoint began.
    pub(crate) dirty: Changed,
    /// What the checkpoint under way still has to encode.
    pub(crate) frozen: Changed,
    pub(crate) in_checkpoint: bool,
    /// Whether `RocksDB` will have rows of it when the checkpoint under way is stable.
    pub(crate) will_be_stored: bool,
    pub(crate) used: bool,
}

impl Slot {
    pub(crate) fn mapped(&self) -> Option<&BlockSet> {
        self.blocks.as_ref().map(|b| &b.mapped)
    }

    /// Whether nothing is under way with it and the metadata has all that is known of it.
    pub(crate) fn may_rest(&self) -> bool {
        let clean = self.dirty == 0 && self.frozen == 0 && !self.in_checkpoint;
        let in_place = self.overlay.as_ref().is_none_or(|overlay| overlay.is_empty());
        clean && self.pending.is_none() && in_place && self.gate.is_idle()
    }

    /// Whether nothing was ever written to it, or nothing since it was erased.
    pub(crate) fn is_untouched(&self) -> bool {
        let stored = if self.in_checkpoint { self.will_be_stored } else { self.stored };
        self.dirty == ERASED || (self.dirty == 0 && !stored)
    }
}

/// An extent, awake or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) key: ExtentKey,
    pub(crate) phys: Option<u32>,
    pub(crate) seq_max: Seq,
}

/// An extent at rest, in its component's row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rest {
    seq_max: Seq,
    /// A place, or one of the two below, which no disk is large enough to have.
    phys: u32,
}

const NO_PLACE: u32 = u32::MAX - 1;
const NOT_HERE: u32 = u32::MAX;

impl Rest {
    const ABSENT: Self = Self { seq_max: Seq(0), phys: NOT_HERE };

    fn of(phys: Option<u32>, seq_max: Seq) -> Self {
        Self { seq_max, phys: phys.unwrap_or(NO_PLACE) }
    }

    fn is_here(self) -> bool {
        self.phys != NOT_HERE
    }

    fn place(self) -> Option<u32> {
        Some(self.phys).filter(|&phys| phys < NO_PLACE)
    }
}

/// All extents.
#[derive(Default)]
pub(crate) struct Slots {
    awake: HashMap<ExtentKey, Slot, BuildHasherDefault<Mix>>,
    /// By component, then by extent.
    resting: Vec<Vec<Rest>>,
}

impl Slots {
    /// One that is awake.
    pub(crate) fn get(&self, key: ExtentKey) -> Option<&Slot> {
        self.awake.get(&key)
    }

    /// One that is awake.
    pub(crate) fn get_mut(&mut self, key: ExtentKey) -> Option<&mut Slot> {
        self.awake.get_mut(&key)
    }

    /// Whether anything was written to it, or may be about to be.
    pub(crate) fn is_here(&self, key: ExtentKey) -> bool {
        if let Some(slot) = self.awake.get(&key) {
            return !slot.is_untouched() || !slot.gate.is_idle();
        }
        let row = self.resting.get(key.component());
        row.and_then(|row| row.get(usize::from(key.extent()))).is_some_and(|rest| rest.is_here())
    }

    fn resting_mut(&mut self, key: ExtentKey) -> Option<&mut Rest> {
        let rest = self.resting.get_mut(key.component())?.get_mut(usize::from(key.extent()))?;
        rest.is_here().then_some(rest)
    }

    /// Wakes it, if it is there.
    pub(crate) fn wake(&mut self, key: ExtentKey) -> Option<&mut Slot> {
        if let Some(rest) = self.resting_mut(key) {
            let Rest { seq_max, .. } = *rest;
            let phys = std::mem::replace(rest, Rest::ABSENT).place();
            self.awake.insert(key, Slot { phys, seq_max, stored: true, ..Slot::default() });
        }
        self.awake.get_mut(&key)
    }

    /// Wakes it, or makes it.
    pub(crate) fn wake_or_new(&mut self, key: ExtentKey) -> &mut Slot {
        self.wake(key);
        self.awake.entry(key).or_default()
    }

    /// Lets one rest that may.
    pub(crate) fn rest(&mut self, key: ExtentKey) {
        let Some(slot) = self.awake.remove(&key) else { return };
        debug_assert!(slot.may_rest(), "{key:?} may not rest: {slot:?}");
        // One that was looked at and never changed is as if it had never been touched.
        if slot.stored {
            self.insert(key, slot.phys, slot.seq_max);
        }
    }

    /// Puts one in, at rest, as the metadata has it.
    pub(crate) fn insert(&mut self, key: ExtentKey, phys: Option<u32>, seq_max: Seq) {
        let (component, extent) = (key.component(), usize::from(key.extent()));
        if self.resting.len() <= component {
            self.resting.resize_with(component + 1, Vec::new);
        }
        let row = &mut self.resting[component];
        if row.len() <= extent {
            row.resize(extent + 1, Rest::ABSENT);
        }
        row[extent] = Rest::of(phys, seq_max);
    }

    /// Gives back what the table of those awake took when there were many more.
    pub(crate) fn shrink(&mut self) {
        if self.awake.capacity() > 1024 + 8 * self.awake.len() {
            self.awake.shrink_to(2 * self.awake.len());
        }
    }

    /// How many are awake.
    pub(crate) fn awake(&self) -> usize {
        self.awake.len()
    }

    /// Takes a component's extents out.
    pub(crate) fn remove(&mut self, component: usize) -> Vec<Slot> {
        let keys = (0..CHUNK_EXTENTS).map(|extent| ExtentKey::new(component, extent));
        let mut gone: Vec<Slot> = keys.filter_map(|key| self.awake.remove(&key)).collect();
        let row = self.resting.get_mut(component).map(std::mem::take).unwrap_or_default();
        let there = row.into_iter().filter(|rest| rest.is_here());
        gone.extend(there.map(|rest| Slot { phys: rest.place(), seq_max: rest.seq_max, ..Slot::default() }));
        gone
    }

    /// A component's extents, in order.
    pub(crate) fn of(&self, component: usize) -> impl Iterator<Item = Extent> {
        let row = self.resting.get(component).map_or(&[][..], Vec::as_slice);
        (0..CHUNK_EXTENTS).filter_map(move |extent| {
            let key = ExtentKey::new(component, extent);
            if let Some(rest) = row.get(extent as usize).filter(|rest| rest.is_here()) {
                return Some(Extent { key, phys: rest.place(), seq_max: rest.seq_max });
            }
            self.awake.get(&key).map(|slot| Extent { key, phys: slot.phys, seq_max: slot.seq_max })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(extent: u32) -> ExtentKey {
        ExtentKey::new(3, extent)
    }

    fn all(slots: &Slots) -> Vec<(u16, Option<u32>, u64)> {
        slots.of(3).map(|it| (it.key.extent(), it.phys, it.seq_max.0)).collect()
    }

    #[test]
    fn an_extent_is_the_same_awake_and_at_rest() {
        let mut slots = Slots::default();
        slots.insert(key(5), Some(7), Seq(9));
        slots.insert(key(2), None, Seq(4));
        let (there, never) = (vec![(2, None, 4), (5, Some(7), 9)], key(1));
        assert_eq!(all(&slots), there);
        assert!(slots.get(key(5)).is_none() && slots.wake(never).is_none());
        let slot = slots.wake(key(5)).expect("it is there");
        assert!(slot.stored && slot.may_rest());
        slots.wake(key(2)).expect("it is there");
        assert_eq!(all(&slots), there);
        assert!(slots.get(key(5)).is_some() && slots.wake(key(5)).is_some());
        slots.rest(key(5));
        slots.rest(key(2));
        assert_eq!(all(&slots), there);
        assert!(slots.get(key(5)).is_none() && slots.get(key(2)).is_none());
        assert_eq!(slots.of(4).count(), 0, "of another component");
    }

    #[test]
    fn what_was_only_looked_at_leaves_nothing() {
        let mut slots = Slots::default();
        slots.wake_or_new(key(1));
        assert_eq!(all(&slots), [(1, None, 0)]);
        slots.rest(key(1));
        assert_eq!(all(&slots), []);
    }

    #[test]
    fn a_removed_component_gives_all_its_places_back() {
        let mut slots = Slots::default();
        slots.insert(key(1), Some(1), Seq(1));
        slots.insert(key(1023), Some(2), Seq(1));
        slots.wake(key(1));
        slots.wake_or_new(key(8)).phys = Some(3);
        let mut places: Vec<_> = slots.remove(3).into_iter().map(|slot| slot.phys).collect();
        places.sort_unstable();
        assert_eq!(places, [Some(1), Some(2), Some(3)]);
        assert_eq!((all(&slots), slots.remove(3).len()), (vec![], 0));
    }

    #[test]
    fn an_extent_at_rest_is_small() {
        assert_eq!(size_of::<Rest>(), 16);
    }
}
