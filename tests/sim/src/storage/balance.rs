//! Components that move though their disk stays, while everything else goes wrong: which of them, where from and, as moves by load say
//! it, where to, by dice and not by fullness or load. In some runs only, by dice of its own, so that the others are as they would be without.

use ferro_protocol::ids::{ChunkIndex, DiskId};

use super::dice::Dice;
use super::world::{World, record_of};

/// What is moved.
#[derive(Debug)]
pub(super) struct Moves {
    dice: Dice,
    wanted: bool,
    /// Where to, if moves say it.
    named: Option<Dice>,
}

impl Moves {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x6576_656e_6f75_7421);
        let wanted = dice.permille(300);
        let mut to = Dice::new(seed ^ 0x6c6f_6164_206d_6f76);
        let named = to.permille(500).then_some(to);
        Self { dice, wanted, named }
    }
}

impl World {
    /// Now and then an owner is told to move something.
    pub(super) fn even_out(&mut self) {
        if !self.moves.wanted || !self.moves.dice.permille(80) {
            return;
        }
        let objects: Vec<usize> = (0..self.objects.len()).collect();
        let Some(object) = self.moves.dice.pick(&objects) else { return };
        let Some(host) = self.owner_of(object) else { return };
        let Some(record) = record_of(&self.directory.state, object) else { return };
        let components = record.chunks.iter().flat_map(|(index, c)| c.in_sync().map(|disk| (*index, disk)));
        let components: Vec<(ChunkIndex, DiskId)> = components.collect();
        let Some((chunk, from)) = self.moves.dice.pick(&components) else { return };
        let disks: Vec<DiskId> = self.directory.state.disks.keys().copied().collect();
        let to = self.moves.named.as_mut().and_then(|dice| dice.pick(&disks));
        self.trace(|| format!("h{host} is to move chunk {chunk} of o{object} from {from} to {to:?}"));
        self.with_owner(host, object, |owner, now| owner.main_mut().move_component(now, chunk, from, to));
    }
}
