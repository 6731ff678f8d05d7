//! Room that is kept for objects while everything else goes wrong: all their chunks get places at once, also under an owner that
//! has them open and knows nothing of it. In some runs only, by dice of its own, so that the others are as they would be without.

use vsand_core::directory::{Command, Policy, Provision};

use super::dice::Dice;
use super::world::{World, record_of};

/// What the operator asks for.
#[derive(Debug)]
pub(super) struct Provisions {
    dice: Dice,
    wanted: bool,
}

impl Provisions {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x6b65_6570_726f_6f6d);
        let wanted = dice.permille(200);
        Self { dice, wanted }
    }
}

impl World {
    /// Now and then another part of an object is to be kept for it.
    pub(super) fn keep_room(&mut self) {
        if !self.provisions.wanted || !self.provisions.dice.permille(60) {
            return;
        }
        let running: Vec<usize> = (0..self.hosts.len()).filter(|h| self.hosts[*h].running).collect();
        let objects: Vec<usize> = (0..self.objects.len()).collect();
        let dice = &mut self.provisions.dice;
        let (Some(by), Some(object)) = (dice.pick(&running), dice.pick(&objects)) else { return };
        let percent = dice.pick(&[0, 1, 50, 100]).unwrap_or(0);
        let mirror = matches!(self.objects[object].policy, Policy::Mirror { .. });
        let provision = Provision { percent, forced: mirror && self.provisions.dice.permille(300) };
        let Some(object) = record_of(&self.hosts[by].view, object).map(|record| record.id) else { return };
        self.operate(by, Command::Provision { object, provision });
    }
}
