//! Scrubs: in some runs while everything else goes wrong, and in each run at the end, when all is well.
//!
//! At the end blocks rot, as many of each row or block as the policy stands, every chunk is scrubbed by its owner, and then no
//! block may be rotten any more, and components must be alike to the last one. By dice of its own, so that runs are as they
//! would be without, up to there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ferro_protocol::ids::{ChunkId, ChunkIndex, Role};
use vsand_core::directory::Policy;
use vsand_core::owner::ScrubEnd;

use super::dice::Dice;
use super::world::{World, disk_of, object_of, record_of};

/// Rows or blocks of each chunk's component that rot.
const ROTS: u64 = 4;

/// What is scrubbed.
#[derive(Debug)]
pub(super) struct Scrubs {
    dice: Dice,
    /// Whether there are scrubs while there are faults.
    early: bool,
    last: Last,
}

/// The scrub at the end.
#[derive(Debug)]
enum Last {
    NotYet,
    /// Chunks that were not scrubbed, by object.
    Running(BTreeMap<usize, VecDeque<ChunkIndex>>),
    Done,
}

impl Scrubs {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x7363_7275_6262_6564);
        let early = dice.permille(250);
        Self { dice, early, last: Last::NotYet }
    }
}

impl World {
    /// Now and then an owner is told to scrub something.
    pub(super) fn scrub_early(&mut self) {
        if !self.scrubs.early || !self.scrubs.dice.permille(60) {
            return;
        }
        let objects: Vec<usize> = (0..self.objects.len()).collect();
        let Some(object) = self.scrubs.dice.pick(&objects) else { return };
        let Some(host) = self.owner_of(object) else { return };
        let Some(record) = record_of(&self.directory.state, object) else { return };
        let chunks: Vec<ChunkIndex> = record.chunks.keys().map(|index| index.base()).collect();
        let Some(chunk) = self.scrubs.dice.pick(&chunks) else { return };
        let bytes_per_s = 1 << self.scrubs.dice.between(22, 34);
        self.trace(|| format!("h{host} scrubs chunk {chunk} of o{object}"));
        self.with_owner(host, object, |owner, now| owner.main_mut().scrub(now, chunk, bytes_per_s));
    }

    pub(super) fn owner_of(&self, object: usize) -> Option<usize> {
        let epoch = record_of(&self.directory.state, object)?.epoch;
        let owns = |h: &super::host::Host| h.owners.get(&object).is_some_and(|r| r.owner.epoch() == epoch);
        self.hosts.iter().position(|h| h.running && !h.paused && owns(h))
    }

    /// A scrub has ended.
    pub(super) fn scrubbed(&mut self, object: usize, end: ScrubEnd) {
        self.trace(|| format!("o{object} scrubbed: {end:?}"));
        let Last::Running(left) = &mut self.scrubs.last else { return };
        let Some(left) = left.get_mut(&object).filter(|l| l.front() == Some(&end.chunk)) else { return };
        if end.skipped == 0 {
            left.pop_front();
        }
    }

    /// All is well: everything is scrubbed. What is missing, or nothing if that is done.
    pub(super) fn scrub_all(&mut self) -> Option<String> {
        match &mut self.scrubs.last {
            Last::Done => return None,
            Last::NotYet => {
                let left = self.rot_all();
                self.scrubs.last = Last::Running(left);
            }
            Last::Running(left) => left.retain(|_, chunks| !chunks.is_empty()),
        }
        let Last::Running(left) = &self.scrubs.last else { return None };
        let next: Vec<(usize, ChunkIndex)> =
            left.iter().filter_map(|(object, chunks)| Some((*object, *chunks.front()?))).collect();
        if next.is_empty() {
            self.scrubs.last = Last::Done;
            if let Some(what) = self.still_rotten() {
                self.violate(format!("after a whole scrub {what}"));
            }
            return None;
        }
        for (object, chunk) in &next {
            let Some(host) = self.owner_of(*object) else { continue };
            if self.hosts[host].owners[object].owner.main().scrub_view().is_none() {
                self.with_owner(host, *object, |owner, now| owner.main_mut().scrub(now, *chunk, 1 << 34));
            }
        }
        let placed = |(object, chunk): &(usize, ChunkIndex)| {
            let record = record_of(&self.directory.state, *object)?;
            Some(record.chunks.iter().filter(|(index, _)| index.base() == *chunk).collect::<Vec<_>>())
        };
        let placed: Vec<_> = next.iter().map(placed).collect();
        Some(format!("these are not scrubbed: {next:?}, which are {placed:?}"))
    }

    /// Blocks rot, never so many that their content is lost. The chunks that there are, by object.
    fn rot_all(&mut self) -> BTreeMap<usize, VecDeque<ChunkIndex>> {
        let mut rots: Vec<(usize, ChunkId, u32)> = Vec::new();
        let mut chunks: BTreeMap<usize, VecDeque<ChunkIndex>> = BTreeMap::new();
        let looked_at = |o: &usize| !self.objects[*o].doomed && !self.departed.closed.contains(o);
        for object in (0..self.objects.len()).filter(looked_at) {
            let Some(record) = record_of(&self.directory.state, object) else { continue };
            let bases: BTreeSet<ChunkIndex> = record.chunks.keys().map(|index| index.base()).collect();
            for base in &bases {
                // Components that are alike, or a row's: of each so many may be bad.
                let of = |index: ChunkIndex| {
                    let chunk = ChunkId { object: record.id, index };
                    let disks = record.chunks.get(&index).into_iter().flat_map(|c| c.in_sync()).map(disk_of);
                    disks.map(|disk| (disk, chunk)).collect::<Vec<_>>()
                };
                let mut sets: Vec<(Vec<(usize, ChunkId)>, usize)> = Vec::new();
                match record.policy {
                    Policy::Mirror { .. } => sets.push((of(*base), usize::MAX)),
                    Policy::Parity { data, parity } => {
                        sets.push((of(base.log()), usize::MAX));
                        let shards = (0..data + parity).flat_map(|n| of(base.shard(n)));
                        sets.push((shards.collect(), usize::from(parity)));
                    }
                }
                for (components, stands) in sets {
                    let held = components
                        .iter()
                        .filter_map(|(disk, chunk)| self.disks[*disk].durable.components.get(chunk));
                    let all = held.flat_map(|c| &c.blocks);
                    let bad: BTreeSet<u32> =
                        all.clone().filter(|(_, b)| b.rotten).map(|(at, _)| *at).collect();
                    let blocks: BTreeSet<u32> =
                        all.map(|(at, _)| *at).filter(|at| !bad.contains(at)).collect();
                    let blocks: Vec<u32> = blocks.into_iter().collect();
                    for _ in 0..ROTS {
                        let Some(block) = self.scrubs.dice.pick(&blocks) else { break };
                        let most = stands.min(components.len().saturating_sub(1));
                        let known = |(disk, chunk, at): &&(usize, ChunkId, u32)| {
                            *at == block && components.contains(&(*disk, *chunk))
                        };
                        if most == 0 || rots.iter().any(|r| known(&r)) {
                            continue;
                        }
                        let first = self.scrubs.dice.below(components.len());
                        let count = self.scrubs.dice.between(1, most as u64) as usize;
                        let bad = (first..first + count).map(|n| components[n % components.len()]);
                        rots.extend(bad.map(|(disk, chunk)| (disk, chunk, block)));
                    }
                }
            }
            chunks.insert(object, bases.into_iter().collect());
        }
        for (disk, chunk, block) in rots {
            if self.disks[disk].rot(chunk, block) {
                self.trace(|| format!("block {block} of chunk {} rots on d{disk}", chunk.index));
            }
        }
        chunks
    }

    /// A block that is bad though there is a good one, or components that are not alike.
    fn still_rotten(&self) -> Option<String> {
        // Nobody scrubs what is closed: the daemon does, here the owners are asked.
        let closed = |id| self.departed.closed.contains(&object_of(id));
        for record in self.directory.state.objects.values().filter(|record| !closed(record.id)) {
            for (index, chunk) in &record.chunks {
                let id = ChunkId { object: record.id, index: *index };
                let disks: Vec<usize> = chunk.in_sync().map(disk_of).collect();
                if disks.len() < 2 && !matches!(index.role(), Role::Shard(_)) {
                    continue;
                }
                for disk in disks {
                    let held = self.disks[disk].durable.components.get(&id);
                    let bad = held.into_iter().flat_map(|c| &c.blocks).find(|(_, block)| block.rotten);
                    if let Some((block, _)) = bad {
                        return Some(format!("block {block} of {id} on d{disk} is bad"));
                    }
                }
            }
        }
        self.differing().err()
    }
}
