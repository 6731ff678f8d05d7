//! Which physical extents are free.
//!
//! ```text
//!        take               free                checkpoint            last pin gone
//! free ────────► in use ───────────► deferred ──────────────► waiting ─────────────► free
//! ```
//!
//! An extent that was given up is not used again before the checkpoint that forgets it is stable (until then a crash
//! brings the old mapping back), nor while a read or a write is still under way on it (a pin).
//!
//! Some are kept for an object: others get none of those that it has not taken yet. What an object has is counted
//! from the promise on, so that nothing is counted twice.

use std::collections::HashMap;

use ferro_protocol::ids::ObjectId;

/// The free extents of a disk.
#[derive(Debug)]
pub(crate) struct Allocator {
    free: Vec<u64>,
    free_count: u32,
    total: u32,
    next: u32,
    /// Promised to operations that have not taken theirs yet.
    promised: u32,
    /// What each object has taken or been promised.
    held: HashMap<ObjectId, u32>,
    /// What is kept for objects, taken or not.
    kept: HashMap<ObjectId, u32>,
    pins: HashMap<u32, u32>,
    deferred: Vec<u32>,
    releasing: Vec<u32>,
    waiting: Vec<u32>,
}

impl Allocator {
    /// All of `total` extents are free.
    pub(crate) fn new(total: u32) -> Self {
        let mut free = vec![u64::MAX; (total as usize).div_ceil(64)];
        if !total.is_multiple_of(64) {
            *free.last_mut().expect("total is above 0") = (1 << (total % 64)) - 1;
        }
        Self {
            free,
            free_count: total,
            total,
            next: 0,
            promised: 0,
            held: HashMap::new(),
            kept: HashMap::new(),
            pins: HashMap::new(),
            deferred: Vec::new(),
            releasing: Vec::new(),
            waiting: Vec::new(),
        }
    }

    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    /// Extents that the object can have: those that nobody has been promised and that are kept for no other.
    pub(crate) fn available(&self, object: ObjectId) -> u32 {
        let free = self.free_count.saturating_sub(self.promised);
        free.saturating_sub(
            self.kept.keys().filter(|other| **other != object).map(|o| self.untaken(*o)).sum(),
        )
    }

    /// What is kept for the object and not taken yet.
    fn untaken(&self, object: ObjectId) -> u32 {
        let of = |counts: &HashMap<ObjectId, u32>| counts.get(&object).copied().unwrap_or(0);
        of(&self.kept).saturating_sub(of(&self.held))
    }

    /// Keeps so many for each of these objects, and none for others.
    pub(crate) fn keep(&mut self, kept: HashMap<ObjectId, u32>) {
        self.kept = kept;
    }

    /// Extents that are kept and not taken yet: as many as there should be, whether they are free or not.
    pub(crate) fn kept(&self) -> u32 {
        self.kept.keys().map(|object| self.untaken(*object)).fold(0, u32::saturating_add)
    }

    fn hold(&mut self, object: ObjectId, count: u32) {
        if count > 0 {
            *self.held.entry(object).or_insert(0) += count;
        }
    }

    fn let_go(&mut self, object: ObjectId, count: u32) {
        if let Some(held) = self.held.get_mut(&object) {
            *held = held.saturating_sub(count);
            if *held == 0 {
                self.held.remove(&object);
            }
        }
    }

    /// Whether more extents become free, or promises end, without anything new being asked of the disk.
    pub(crate) fn more_to_come(&self) -> bool {
        self.promised > 0 || self.deferred.len() + self.releasing.len() + self.waiting.len() > 0
    }

    pub(crate) fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    /// Promises the object so many, if it can have them.
    pub(crate) fn promise(&mut self, object: ObjectId, count: u32) -> bool {
        if self.available(object) < count {
            return false;
        }
        self.promised += count;
        self.hold(object, count);
        true
    }

    /// One that was promised is taken now, or not needed.
    pub(crate) fn redeem(&mut self, object: ObjectId) {
        self.promised -= 1;
        self.let_go(object, 1);
    }

    fn is_free(&self, extent: u32) -> bool {
        self.free[extent as usize / 64] >> (extent % 64) & 1 == 1
    }

    /// Takes this very extent, if it exists and is free.
    pub(crate) fn take(&mut self, object: ObjectId, extent: u32) -> bool {
        if extent >= self.total || !self.is_free(extent) {
            return false;
        }
        self.free[extent as usize / 64] &= !(1 << (extent % 64));
        self.free_count -= 1;
        self.hold(object, 1);
        true
    }

    /// Takes any extent, the next one behind the last if possible: what is written together lies together.
    pub(crate) fn allocate(&mut self, object: ObjectId) -> Option<u32> {
        if self.free_count == 0 {
            return None;
        }
        let words = self.free.len();
        let start = self.next as usize / 64;
        let mask = u64::MAX << (self.next % 64);
        for step in 0..=words {
            let word = (start + step) % words;
            let bits = self.free[word] & if step == 0 { mask } else { u64::MAX };
            if bits != 0 {
                let extent = (word * 64) as u32 + bits.trailing_zeros();
                self.take(object, extent);
                self.next = (extent + 1) % self.total;
                return Some(extent);
            }
        }
        None
    }

    /// Gives back an extent that nothing durable has ever named.
    pub(crate) fn untake(&mut self, object: ObjectId, extent: u32) {
        self.let_go(object, 1);
        self.release(extent);
    }

    fn release(&mut self, extent: u32) {
        if self.pins.contains_key(&extent) {
            self.waiting.push(extent);
            return;
        }
        assert!(!self.is_free(extent), "extent {extent} is freed twice");
        self.free[extent as usize / 64] |= 1 << (extent % 64);
        self.free_count += 1;
    }

    /// The extent is no longer mapped; it is free after the next checkpoint.
    pub(crate) fn defer(&mut self, object: ObjectId, extent: u32) {
        self.let_go(object, 1);
        self.deferred.push(extent);
    }

    /// A checkpoint begins that covers all that was deferred so far.
    pub(crate) fn checkpoint_begins(&mut self) {
        debug_assert!(self.releasing.is_empty());
        self.releasing = std::mem::take(&mut self.deferred);
    }

    /// The checkpoint is stable.
    pub(crate) fn checkpoint_ends(&mut self) {
        for extent in std::mem::take(&mut self.releasing) {
            self.release(extent);
        }
    }

    pub(crate) fn pin(&mut self, extent: u32) {
        *self.pins.entry(extent).or_insert(0) += 1;
    }

    pub(crate) fn unpin(&mut self, extent: u32) {
        let count = self.pins.get_mut(&extent).expect("an unpin follows a pin");
        *count -= 1;
        if *count == 0 {
            self.pins.remove(&extent);
            if let Some(at) = self.waiting.iter().position(|&e| e == extent) {
                self.waiting.swap_remove(at);
                self.release(extent);
            }
        }
    }

    /// Extents that are in use or not free again yet, without those that a checkpoint will release.
    pub(crate) fn used(&self) -> u32 {
        self.total
            - self.free_count
            - (self.deferred.len() + self.releasing.len() + self.waiting.len()) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ObjectId = ObjectId::from_bytes([1; 16]);
    const B: ObjectId = ObjectId::from_bytes([2; 16]);

    #[test]
    fn every_extent_is_given_out_once() {
        let mut alloc = Allocator::new(70);
        let mut got: Vec<_> = std::iter::from_fn(|| alloc.allocate(A)).collect();
        got.sort_unstable();
        assert_eq!(got, (0..70).collect::<Vec<_>>());
        alloc.untake(A, 33);
        assert_eq!((alloc.allocate(A), alloc.allocate(A)), (Some(33), None));
        assert!(!alloc.take(A, 70) && !alloc.take(A, 1));
    }

    #[test]
    fn freed_extents_wait_for_the_checkpoint_and_the_last_pin() {
        let mut alloc = Allocator::new(2);
        let (a, b) = (alloc.allocate(A).unwrap(), alloc.allocate(A).unwrap());
        alloc.pin(a);
        alloc.pin(a);
        alloc.defer(A, a);
        alloc.checkpoint_begins();
        alloc.defer(A, b);
        alloc.checkpoint_ends();
        assert!(alloc.allocate(A).is_none() && alloc.more_to_come());
        alloc.unpin(a);
        assert!(alloc.allocate(A).is_none());
        alloc.unpin(a);
        assert_eq!(alloc.allocate(A), Some(a));
        alloc.checkpoint_begins();
        alloc.checkpoint_ends();
        assert_eq!(alloc.allocate(A), Some(b));
    }

    #[test]
    fn promises_are_kept() {
        let mut alloc = Allocator::new(3);
        assert!(alloc.promise(A, 2) && !alloc.promise(A, 2) && alloc.promise(A, 1));
        (0..3).for_each(|_| alloc.redeem(A));
        assert_eq!(alloc.available(A), 3);
    }

    #[test]
    fn what_is_kept_for_one_is_not_given_to_another() {
        let mut alloc = Allocator::new(10);
        alloc.keep(HashMap::from([(A, 4), (B, 3)]));
        let other = ObjectId::from_bytes([3; 16]);
        assert_eq!((alloc.available(A), alloc.available(B), alloc.available(other)), (7, 6, 3));
        assert!(!alloc.promise(other, 4) && alloc.promise(other, 3) && !alloc.promise(other, 1));
        // Whether it is promised, taken or written makes no difference to what others can have.
        assert!(alloc.promise(A, 2));
        assert_eq!((alloc.kept(), alloc.available(A), alloc.available(B)), (5, 2, 3));
        alloc.redeem(A);
        let taken = alloc.allocate(A).unwrap();
        assert_eq!((alloc.kept(), alloc.available(A), alloc.available(B)), (5, 2, 3));
        // Above what is kept it is like all others.
        assert!(alloc.promise(A, 2) && !alloc.promise(A, 1) && alloc.promise(B, 3));
        assert_eq!(alloc.kept(), 0);
        // What it gives up is kept again.
        alloc.defer(A, taken);
        assert_eq!(alloc.kept(), 1);
        alloc.checkpoint_begins();
        alloc.checkpoint_ends();
        assert_eq!((alloc.available(A), alloc.available(other)), (1, 0));
        // More can be asked to be kept than there is; what it holds counts.
        alloc.keep(HashMap::from([(other, 100)]));
        assert_eq!((alloc.kept(), alloc.available(other), alloc.available(A)), (97, 1, 0));
    }
}
