//! Volumes that prefer places, and change their minds, while everything else goes wrong: new components go there, and owners move those that
//! could be nearer. In some runs only, by dice of its own, so that the others are as they would be without.

use vsand_core::directory::{Command, Preference};

use super::dice::Dice;
use super::world::{World, record_of};

/// What the operator asks for.
#[derive(Debug)]
pub(super) struct Places {
    dice: Dice,
    wanted: bool,
}

impl Places {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x706c_6163_6573_2121);
        let wanted = dice.permille(250);
        Self { dice, wanted }
    }

    /// A fault domain of its own for each host, in one of two sites where that matters.
    pub(super) fn fault_domain(&self, host: usize) -> String {
        if self.wanted { format!("s{}/h{host}", host % 2) } else { format!("h{host}") }
    }
}

impl World {
    /// Now and then an object prefers something else, and what could be nearer to that is moved.
    pub(super) fn place_elsewhere(&mut self) {
        if !self.places.wanted {
            return;
        }
        if self.places.dice.permille(60) {
            self.prefer_something_else();
        }
        if !self.places.dice.permille(300) {
            return;
        }
        let Some(next) = self.directory.state.next_move(0, |_| true) else { return };
        let Some(object) = (0..self.objects.len())
            .find(|n| record_of(&self.directory.state, *n).is_some_and(|record| record.id == next.object))
        else {
            return;
        };
        let Some(host) = self.owner_of(object) else { return };
        self.trace(|| {
            format!("h{host} is to move chunk {} of o{object} nearer to what it prefers", next.chunk)
        });
        self.with_owner(host, object, |owner, now| {
            owner.main_mut().move_component(now, next.chunk, next.from, Some(next.to))
        });
    }

    fn prefer_something_else(&mut self) {
        let running: Vec<usize> = (0..self.hosts.len()).filter(|h| self.hosts[*h].running).collect();
        let objects: Vec<usize> = (0..self.objects.len()).collect();
        let hosts = self.hosts.len();
        let dice = &mut self.places.dice;
        let (Some(by), Some(object)) = (dice.pick(&running), dice.pick(&objects)) else { return };
        let places = match dice.below(4) {
            0 => Vec::new(),
            1 => vec![format!("s{}", dice.below(2))],
            _ => {
                let host = dice.below(hosts);
                vec![self.places.fault_domain(host)]
            }
        };
        let across_sites = self.places.dice.permille(400);
        let Some(object) = record_of(&self.hosts[by].view, object).map(|record| record.id) else { return };
        self.operate(by, Command::Prefer { object, preference: Preference { places, across_sites } });
    }
}
