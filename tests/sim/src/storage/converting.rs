//! Objects that are to be kept in another way, while everything else goes wrong: mirrors with more or fewer copies, mirrors that
//! become shards, and shards that become mirrors or others. Only some runs have it, by dice of its own, so that
//! the others are as they would be without; nothing rots in them, since of fewer copies the rotten one may be what is left.

use vsand_core::directory::{Command, Policy};

use super::dice::{Dice, S};
use super::event::Event;
use super::faults::Profile;
use super::world::{World, record_of};

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
        let single = |policy| matches!(policy, Policy::Mirror { copies: 0..=1 });
        self.converting.in_use &=
            self.profile != Profile::Single && self.objects.iter().any(|o| !single(o.policy));
        if self.converting.in_use {
            let first = self.converting.dice.between(3 * S, 12 * S);
            self.at(first, Event::Convert);
        }
    }

    /// What an object may become: nothing that needs more fault domains than it began with, for so many there are. What began with
    /// shards stands a lost disk whatever it becomes.
    fn choose_policy(&mut self, began: Policy) -> Policy {
        let mirror = |copies| Policy::Mirror { copies };
        let parity = |data, parity| Policy::Parity { data, parity };
        let shards = [parity(2, 1), parity(2, 2), parity(4, 1), parity(4, 2)];
        let least = if matches!(began, Policy::Mirror { .. }) { 1 } else { 2 };
        let mirrors = (least..=3).map(mirror);
        let fits = |policy: &Policy| policy.domains() <= began.domains();
        let all: Vec<Policy> = mirrors.chain(shards).filter(fits).collect();
        self.converting.dice.pick(&all).unwrap_or(began)
    }

    /// The operator has an object kept in another way, or as it is after all.
    pub(super) fn convert(&mut self) {
        let running: Vec<usize> = (0..self.hosts.len()).filter(|h| self.hosts[*h].running).collect();
        let object = self.converting.dice.below(self.objects.len());
        // While a disk dies, nothing else goes wrong: fewer copies would.
        let calm = self.now >= self.hold_until;
        if let Some(by) = self.converting.dice.pick(&running).filter(|_| calm)
            && let Some(record) = record_of(&self.hosts[by].view, object).cloned()
        {
            let to = self.choose_policy(self.objects[object].policy);
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
