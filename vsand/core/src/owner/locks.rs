//! Order among overlapping I/O: reads share, everything else excludes, first come first served.
//!
//! Invariant: two holders never overlap unless both share; a waiter is never passed by a later one that overlaps it.

use std::collections::VecDeque;

use ferro_protocol::units::BlockRange;

/// What is locked.
pub(crate) trait Range: Copy {
    /// Whether some of it is in both.
    fn overlaps(self, other: Self) -> bool;
}

impl Range for BlockRange {
    fn overlaps(self, other: Self) -> bool {
        Self::overlaps(self, other)
    }
}

/// How a range is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

#[derive(Clone, Copy, Debug)]
struct Entry<H, R> {
    holder: H,
    range: R,
    mode: Mode,
}

impl<H, R: Range> Entry<H, R> {
    fn conflicts(&self, range: R, mode: Mode) -> bool {
        self.range.overlaps(range) && (self.mode == Mode::Exclusive || mode == Mode::Exclusive)
    }
}

/// The ranges, of one chunk unless said otherwise, that are held and waited for.
#[derive(Debug)]
pub(crate) struct RangeLocks<H, R = BlockRange> {
    held: Vec<Entry<H, R>>,
    waiting: VecDeque<Entry<H, R>>,
}

impl<H, R> Default for RangeLocks<H, R> {
    fn default() -> Self {
        Self { held: Vec::new(), waiting: VecDeque::new() }
    }
}

impl<H: Copy + PartialEq, R: Range> RangeLocks<H, R> {
    /// Takes the range at once and returns true, or queues for it and returns false.
    pub(crate) fn lock(&mut self, holder: H, range: R, mode: Mode) -> bool {
        let free = !self.held.iter().chain(&self.waiting).any(|entry| entry.conflicts(range, mode));
        let entry = Entry { holder, range, mode };
        if free {
            self.held.push(entry);
        } else {
            self.waiting.push_back(entry);
        }
        free
    }

    /// Gives up what the holder has or waits for, and returns those that have their range now.
    pub(crate) fn unlock(&mut self, holder: H) -> Vec<H> {
        if let Some(at) = self.held.iter().position(|entry| entry.holder == holder) {
            self.held.swap_remove(at);
        } else {
            self.waiting.retain(|entry| entry.holder != holder);
        }
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let mut granted = Vec::new();
        let mut still = VecDeque::with_capacity(self.waiting.len());
        for entry in std::mem::take(&mut self.waiting) {
            let blocked =
                self.held.iter().chain(&still).any(|other| other.conflicts(entry.range, entry.mode));
            if blocked {
                still.push_back(entry);
            } else {
                granted.push(entry.holder);
                self.held.push(entry);
            }
        }
        self.waiting = still;
        granted
    }

    /// Whether nothing is held or waited for.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u32, count: u32) -> BlockRange {
        BlockRange::new(first, count).unwrap()
    }

    #[test]
    fn readers_share_and_writers_wait_their_turn() {
        let mut locks: RangeLocks<i32> = RangeLocks::default();
        assert!(locks.lock(1, range(0, 8), Mode::Shared));
        assert!(locks.lock(2, range(4, 8), Mode::Shared));
        assert!(!locks.lock(3, range(7, 1), Mode::Exclusive));
        assert!(!locks.lock(4, range(7, 1), Mode::Shared), "a later reader does not pass a waiting writer");
        assert!(locks.lock(5, range(100, 1), Mode::Exclusive));
        assert!(locks.unlock(1).is_empty());
        assert_eq!(locks.unlock(2), vec![3]);
        assert_eq!(locks.unlock(3), vec![4]);
        assert!(locks.unlock(4).is_empty());
        assert!(locks.unlock(5).is_empty());
        assert!(locks.is_empty());
    }

    #[test]
    fn a_waiter_may_give_up() {
        let mut locks: RangeLocks<i32> = RangeLocks::default();
        assert!(locks.lock(1, range(0, 8), Mode::Exclusive));
        assert!(!locks.lock(2, range(0, 8), Mode::Exclusive));
        assert!(!locks.lock(3, range(0, 8), Mode::Exclusive));
        assert!(locks.unlock(2).is_empty());
        assert_eq!(locks.unlock(1), vec![3]);
    }
}
