//! Guests that write one block after the other, so that full stripes go straight to the shards: an area of whole extents is written
//! through in large pieces, now and then again, with small requests in between.

use std::collections::BTreeMap;

use ferro_protocol::units::EXTENT_BLOCKS;
use vsand_core::directory::Policy;

use super::dice::{Dice, MS};

/// Rows of a unit: no stripe that goes straight has fewer.
const UNIT_ROWS: u64 = 16;

/// The streams of a run.
#[derive(Debug)]
pub(super) struct Streams {
    dice: Dice,
    /// Whether this run has any.
    on: bool,
    /// Full stripes of so many rows go straight.
    pub rows_min: u32,
    /// What an object's logs hold together says when jobs begin, too.
    together: bool,
    /// Where each object's stream goes on.
    next: BTreeMap<usize, u64>,
}

impl Streams {
    pub(super) fn new(seed: u64) -> Self {
        // Dice of its own, so that runs without streams stay what they were.
        let mut dice = Dice::new(seed ^ 0x57e4_3a11);
        let on = dice.permille(500);
        let rows_min = UNIT_ROWS as u32 * dice.between(1, 4) as u32;
        let together = Dice::new(seed ^ 0x109e_d000).permille(300);
        Self { dice, on, rows_min, together, next: BTreeMap::new() }
    }

    /// How full a log is, in thousandths, when jobs begin: late, where the guest is to have the time for whole extents.
    pub(super) fn destage_permille(&mut self, otherwise: u32) -> u32 {
        if self.on { self.dice.pick(&[0, 250, 250, 500]).unwrap_or(0) } else { otherwise }
    }

    /// How many slots of all logs count like a full one.
    pub(super) fn logged_slots(&self, log_slots: u32) -> u32 {
        if self.together { log_slots } else { u32::MAX }
    }

    /// How long a disk takes to begin with putting an extent in force: now and then so long that its owner may well die meanwhile.
    pub(super) fn promotion_held(&mut self) -> u64 {
        if self.dice.permille(200) { self.dice.between(50, 400) * MS } else { 0 }
    }

    /// The area of an object: its first block and how many.
    pub(super) fn area(&self, policy: Policy) -> Option<(u64, u64)> {
        let Policy::Parity { data, .. } = policy else { return None };
        let extent = u64::from(EXTENT_BLOCKS) * u64::from(data);
        self.on.then_some((2 * extent, extent))
    }

    /// A small piece of the area, to be read or written in between; rarely.
    pub(super) fn within(&mut self, policy: Policy) -> Option<(u64, u64)> {
        let (first, count) = self.area(policy)?;
        let at = self.dice.between(0, count - 8);
        self.dice.permille(50).then_some((first + at, 8))
    }

    /// The blocks that the object's guest streams next, if it does.
    pub(super) fn next(&mut self, object: usize, policy: Policy) -> Option<(u64, u64)> {
        let Policy::Parity { data, .. } = policy else { return None };
        let (first, count) = self.area(policy)?;
        let begins = self.dice.permille(40);
        let at = match self.next.get(&object) {
            Some(at) => *at,
            None if begins => 0,
            None => return None,
        };
        if self.dice.permille(150) {
            // It takes its time.
            return None;
        }
        let stripe = UNIT_ROWS * u64::from(data);
        let odd = if self.dice.permille(100) { self.dice.between(1, stripe - 1) } else { 0 };
        let blocks = (stripe * self.dice.between(1, 8) - odd).min(count - at);
        let ends = at + blocks == count || self.dice.permille(20);
        if ends {
            self.next.remove(&object);
        } else {
            self.next.insert(object, at + blocks);
        }
        Some((first + at, blocks))
    }
}
