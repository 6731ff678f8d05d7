//! What the directory no longer knows: components of deleted or moved chunks, and promises to objects that are gone. The driver
//! looks the directory up, the replica sees to it that nothing comes to be placed here meanwhile.

use ferro_protocol::ids::{ChunkId, ObjectId};

use super::{Effect, Pending, Replica};
use crate::disk::DiskOp;

impl Replica {
    /// From now on everything about this chunk is refused, until [`Self::remove_condemned`] or [`Self::pardon`]: its
    /// component may be a leftover that the directory no longer knows. The driver looks the directory up *after* this
    /// call, so nothing can be placed here anew and written in between.
    pub fn condemn(&mut self, chunk: ChunkId) {
        self.condemned.insert(chunk);
    }

    /// The directory still knows the condemned component.
    pub fn pardon(&mut self, chunk: ChunkId) {
        self.condemned.remove(&chunk);
    }

    /// The directory does not know the condemned component: its data goes. Requests are accepted again when it is gone.
    pub fn remove_condemned(&mut self, chunk: ChunkId) {
        if self.dead.is_some() || !self.condemned.contains(&chunk) {
            return;
        }
        self.entry(chunk.object).changes += 1;
        let ticket = self.ticket(Pending::Removal { chunk });
        self.effects.push_back(Effect::Disk(
            ticket,
            DiskOp::Remove { object: chunk.object, chunk: Some(chunk.index) },
        ));
    }

    /// The chunks that are condemned now.
    pub fn condemned(&self) -> impl Iterator<Item = ChunkId> {
        self.condemned.iter().copied()
    }

    /// The objects whose epochs the disk has promised.
    pub fn promises(&self) -> impl Iterator<Item = ObjectId> {
        self.objects.iter().filter(|(_, object)| !object.leaving).map(|(id, _)| *id)
    }

    /// The promise of an object goes, and whatever the disk has of it. Right only if the directory, looked up *after* the object
    /// was seen in [`Self::promises`], does not know it: then it was deleted, or never was, and as no name is given twice
    /// nobody will ever own it. Does nothing while requests of it are under way; the driver will see it again.
    pub fn forget_object(&mut self, object: ObjectId) {
        if self.dead.is_some() {
            return;
        }
        let Some(entry) = self.objects.get_mut(&object) else { return };
        if entry.leaving || entry.closing.is_some() || entry.changes > 0 {
            return;
        }
        entry.leaving = true;
        let ticket = self.ticket(Pending::Forgetting { object });
        self.effects.push_back(Effect::Disk(ticket, DiskOp::Remove { object, chunk: None }));
    }
}
