//! Mirrors that get more or fewer copies while everything else goes wrong. Only some runs have it, by dice of its own, so that
//! the others are as they would be without; nothing rots in them, since of fewer copies the rotten one may be what is left.

use vsand_core::directory::{Command, Policy};

use super::dice::{Dice, S};
use super::event::Event;
use super::faults::Profile;
use super::world::{World, object_id};

/// What the operator is about.
#[derive(Debug)]
pub(super) struct Converting {
    dice: Dice,
    /// How often he still changes a policy.
    left: u32,
    /// Whether he does so in this run at all.
    pub(super) in_use: bool,
}

impl Converting {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x636f_6e76_6572_7421);
        let left = if dice.permille(300) { dice.between(1, 6) as u32 } else { 0 };
        Self { dice, left, in_use: left > 0 }
    }
}

impl World {
    pub(super) fn plan_converting(&mut self) {
        let mirrors = self.objects.iter().any(|o| matches!(o.policy, Policy::Mirror { copies: 2.. }));
        self.converting.in_use &= mirrors && self.profile != Profile::Single;
        if self.converting.in_use {
            let first = self.converting.dice.between(3 * S, 12 * S);
            self.at(first, Event::Convert);
        }
    }

    /// The operator has an object kept in another number of copies, at most as many as it began with: so many there is place for.
    pub(super) fn convert(&mut self) {
        let running: Vec<usize> = (0..self.hosts.len()).filter(|h| self.hosts[*h].running).collect();
        let object = self.converting.dice.below(self.objects.len());
        // While a disk dies, nothing else goes wrong: fewer copies would.
        let calm = self.now >= self.hold_until;
        if let Some(by) = self.converting.dice.pick(&running).filter(|_| calm)
            && let Policy::Mirror { copies } = self.objects[object].policy
            && let Some(record) = self.hosts[by].view.objects.get(&object_id(object)).cloned()
        {
            let to = Policy::Mirror { copies: self.converting.dice.between(1, u64::from(copies)) as u8 };
            self.converting.left -= 1;
            self.faults += 1;
            self.operate(by, Command::SetPolicy { object: record.id, from: record.policy, to });
        }
        if self.faulty && self.converting.left > 0 {
            let next = self.converting.dice.between(S / 2, 12 * S);
            self.after(next, Event::Convert);
        }
    }
}
