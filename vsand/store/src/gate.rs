//! Who may change an extent at the same time as whom.
//!
//! | | journaled | direct | exclusive |
//! |---|---|---|---|
//! | journaled: data goes through the journal | yes | if they don't overlap | no |
//! | direct: data goes straight to unmapped blocks | if they don't overlap | if they don't overlap | no |
//! | exclusive: blocks may be unmapped or the extent moved | no | no | no |
//!
//! First come, first served: whoever must wait makes all later ones wait, so nobody starves.

use std::collections::VecDeque;
use std::ops::Range;

/// How a change goes about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Journaled,
    Direct,
    Exclusive,
}

#[derive(Clone, Debug)]
struct Active {
    part: u32,
    mode: Mode,
    range: Range<u32>,
}

/// The changes of one extent that are under way, and those that wait.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    active: Vec<Active>,
    waiting: VecDeque<(u32, Mode, Range<u32>)>,
}

impl Gate {
    fn compatible(&self, mode: Mode, range: &Range<u32>) -> bool {
        self.active.iter().all(|a| match (a.mode, mode) {
            (Mode::Exclusive, _) | (_, Mode::Exclusive) => false,
            (Mode::Journaled, Mode::Journaled) => true,
            _ => a.range.end <= range.start || range.end <= a.range.start,
        })
    }

    /// Whether a change may begin at once.
    pub(crate) fn admits(&self, mode: Mode, range: &Range<u32>) -> bool {
        self.waiting.is_empty() && self.compatible(mode, range)
    }

    /// Whether nothing is under way or waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.active.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    pub(crate) fn enter(&mut self, part: u32, mode: Mode, range: Range<u32>) {
        debug_assert!(self.compatible(mode, &range));
        self.active.push(Active { part, mode, range });
    }

    pub(crate) fn wait(&mut self, part: u32, mode: Mode, range: Range<u32>) {
        self.waiting.push_back((part, mode, range));
    }

    pub(crate) fn leave(&mut self, part: u32) {
        if let Some(at) = self.active.iter().position(|a| a.part == part) {
            self.active.swap_remove(at);
        }
    }

    /// The next one that waits and may begin now; it has entered.
    pub(crate) fn admit_next(&mut self) -> Option<u32> {
        let (_, mode, range) = self.waiting.front()?;
        if !self.compatible(*mode, range) {
            return None;
        }
        let (part, mode, range) = self.waiting.pop_front()?;
        self.enter(part, mode, range);
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds() {
        let mut gate = Gate::default();
        gate.enter(1, Mode::Journaled, 0..8);
        assert!(gate.admits(Mode::Journaled, &(0..8)) && gate.admits(Mode::Direct, &(8..9)));
        assert!(!gate.admits(Mode::Direct, &(7..9)) && !gate.admits(Mode::Exclusive, &(100..101)));
        gate.enter(2, Mode::Direct, 8..16);
        assert!(!gate.admits(Mode::Journaled, &(15..16)));
        gate.wait(3, Mode::Exclusive, 0..256);
        assert!(!gate.admits(Mode::Journaled, &(0..1)), "the one that waits comes first");
        gate.wait(4, Mode::Journaled, 0..1);
        gate.leave(1);
        assert_eq!(gate.admit_next(), None);
        gate.leave(2);
        assert_eq!((gate.admit_next(), gate.admit_next()), (Some(3), None));
        gate.leave(3);
        assert_eq!((gate.admit_next(), gate.admit_next()), (Some(4), None));
        gate.leave(4);
        assert!(gate.is_idle());
    }
}
