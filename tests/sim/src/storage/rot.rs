//! Blocks that go bad on their disks by themselves.

use ferro_protocol::ids::{ChunkId, Role};
use vsand_core::directory::ChunkRecord;

use super::world::{World, disk_of};

impl World {
    /// A block rots where two failures are tolerated and there is none: of a 3-way mirror, or of a shard beside two of parity.
    pub(super) fn rot_some(&mut self) {
        if self.converting.in_use {
            return;
        }
        let mut candidates = Vec::new();
        for (id, record) in &self.directory.state.objects {
            for (index, chunk) in &record.chunks {
                let chunk_id = ChunkId { object: *id, index: *index };
                let disks: Vec<usize> = chunk.in_sync().map(disk_of).collect();
                let rotten = disks.iter().any(|d| {
                    self.disks[*d]
                        .durable
                        .components
                        .get(&chunk_id)
                        .is_some_and(|c| c.blocks.values().any(|b| b.rotten))
                });
                let spare = match index.role() {
                    Role::Whole | Role::Log => disks.len() >= 3,
                    Role::Shard(_) => {
                        let shards = record
                            .chunks
                            .iter()
                            .filter(|(i, _)| i.base() == index.base() && matches!(i.role(), Role::Shard(_)));
                        let good = |c: &ChunkRecord| c.in_sync().next().is_some();
                        let rots = self
                            .rotted
                            .iter()
                            .any(|(c, _)| c.object == *id && c.index.base() == index.base());
                        let tolerated = record.policy.domains() - record.policy.sufficient();
                        tolerated >= 2 && !rots && shards.clone().all(|(_, c)| good(c))
                    }
                };
                if !spare || rotten {
                    continue;
                }
                for disk in disks {
                    let blocks = self.disks[disk].durable.components.get(&chunk_id);
                    candidates
                        .extend(blocks.iter().flat_map(|c| c.blocks.keys()).map(|b| (disk, chunk_id, *b)));
                }
            }
        }
        for _ in 0..3 {
            if let Some((disk, chunk, block)) = self.dice.pick(&candidates)
                && self.disks[disk].rot(chunk, block)
            {
                self.rotted.insert((chunk, block));
                self.trace(|| format!("block {block} of chunk {} rots on d{disk}", chunk.index.0));
                return;
            }
        }
    }

    /// Blocks of which nothing else is left are restored by the operator.
    pub(super) fn unrot(&mut self) {
        for (id, record) in &self.directory.state.objects {
            for (index, chunk) in &record.chunks {
                let chunk_id = ChunkId { object: *id, index: *index };
                let disks: Vec<usize> = chunk.in_sync().map(disk_of).collect();
                for disk in &disks {
                    let disk = &mut self.disks[*disk];
                    if disks.len() > 1 {
                        continue;
                    }
                    for image in [&mut disk.volatile, &mut disk.durable] {
                        for block in image
                            .components
                            .get_mut(&chunk_id)
                            .into_iter()
                            .flat_map(|c| c.blocks.values_mut())
                        {
                            block.rotten = false;
                        }
                    }
                }
            }
        }
    }
}
