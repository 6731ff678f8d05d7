//! Which physical extents are free.
//!
//! ```text
//!        take               free                checkpoint            last pin gone
//! free ────────► in use ───────────► deferred ──────────────► waiting ─────────────► free
//! ```
//!
//! An extent that was given up is not used again before the checkpoint that forgets it is stable (until then a crash
//! brings the old mapping back), nor while a read or a write is still under way on it (a pin).

use std::collections::HashMap;

/// The free extents of a disk.
#[derive(Debug)]
pub(crate) struct Allocator {
    free: Vec<u64>,
    free_count: u32,
    total: u32,
    next: u32,
    /// Promised to operations that have not taken theirs yet.
    reserved: u32,
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
            reserved: 0,
            pins: HashMap::new(),
            deferred: Vec::new(),
            releasing: Vec::new(),
            waiting: Vec::new(),
        }
    }

    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    /// Extents that nobody has been promised.
    pub(crate) fn available(&self) -> u32 {
        self.free_count.saturating_sub(self.reserved)
    }

    /// Whether more extents become free, or promises end, without anything new being asked of the disk.
    pub(crate) fn more_to_come(&self) -> bool {
        self.reserved > 0 || self.deferred.len() + self.releasing.len() + self.waiting.len() > 0
    }

    pub(crate) fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    pub(crate) fn reserve(&mut self, count: u32) -> bool {
        if self.available() < count {
            return false;
        }
        self.reserved += count;
        true
    }

    pub(crate) fn unreserve(&mut self, count: u32) {
        self.reserved -= count;
    }

    fn is_free(&self, extent: u32) -> bool {
        self.free[extent as usize / 64] >> (extent % 64) & 1 == 1
    }

    /// Takes this very extent, if it exists and is free.
    pub(crate) fn take(&mut self, extent: u32) -> bool {
        if extent >= self.total || !self.is_free(extent) {
            return false;
        }
        self.free[extent as usize / 64] &= !(1 << (extent % 64));
        self.free_count -= 1;
        true
    }

    /// Takes any extent, the next one behind the last if possible: what is written together lies together.
    pub(crate) fn allocate(&mut self) -> Option<u32> {
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
                self.take(extent);
                self.next = (extent + 1) % self.total;
                return Some(extent);
            }
        }
        None
    }

    /// Gives back an extent that nothing durable has ever named.
    pub(crate) fn untake(&mut self, extent: u32) {
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
    pub(crate) fn defer(&mut self, extent: u32) {
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

    #[test]
    fn every_extent_is_given_out_once() {
        let mut alloc = Allocator::new(70);
        let mut got: Vec<_> = std::iter::from_fn(|| alloc.allocate()).collect();
        got.sort_unstable();
        assert_eq!(got, (0..70).collect::<Vec<_>>());
        alloc.untake(33);
        assert_eq!((alloc.allocate(), alloc.allocate()), (Some(33), None));
        assert!(!alloc.take(70) && !alloc.take(1));
    }

    #[test]
    fn freed_extents_wait_for_the_checkpoint_and_the_last_pin() {
        let mut alloc = Allocator::new(2);
        let (a, b) = (alloc.allocate().unwrap(), alloc.allocate().unwrap());
        alloc.pin(a);
        alloc.pin(a);
        alloc.defer(a);
        alloc.checkpoint_begins();
        alloc.defer(b);
        alloc.checkpoint_ends();
        assert!(alloc.allocate().is_none() && alloc.more_to_come());
        alloc.unpin(a);
        assert!(alloc.allocate().is_none());
        alloc.unpin(a);
        assert_eq!(alloc.allocate(), Some(a));
        alloc.checkpoint_begins();
        alloc.checkpoint_ends();
        assert_eq!(alloc.allocate(), Some(b));
    }

    #[test]
    fn promises_are_kept() {
        let mut alloc = Allocator::new(3);
        assert!(alloc.reserve(2) && !alloc.reserve(2) && alloc.reserve(1));
        alloc.unreserve(3);
        assert_eq!(alloc.available(), 3);
    }
}
