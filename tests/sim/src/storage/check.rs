//! What must hold, at each step and at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ferro_protocol::ids::{ChunkId, ChunkIndex, ObjectId, Role};
use ferro_protocol::units::{BLOCK_BYTES, CHUNK_BYTES, SECTOR_BYTES};
use vsand_code::Code;
use vsand_core::directory::{ChunkRecord, ObjectRecord, Policy};
use vsand_core::owner::guest::GuestError;

use super::dice::{MS, S};
use super::event::{Event, OwnerKey};
use super::guest::decode_sector;
use super::history::{Kind, OpId};
use super::world::{World, disk_id, disk_of, object_of, record_of};

const BLOCK_SECTORS: u64 = BLOCK_BYTES as u64 / SECTOR_BYTES;
const CHUNK_SECTORS: u64 = CHUNK_BYTES / SECTOR_BYTES;
/// So long after the faults have ended everything must be well.
const QUIET_WITHIN: u64 = 90 * S;

impl World {
    /// A completed write is on stable storage of every component that the directory calls in sync.
    pub(super) fn check_stable(&mut self, key: OwnerKey, op_id: OpId) {
        let op = &self.history.ops[op_id.0];
        let Kind::Write(id) = op.kind else { return };
        let Some(record) = record_of(&self.directory.state, key.object).cloned() else { return };
        if record.epoch != key.epoch {
            // There is a newer owner: what it made of this write is checked by the history.
            return;
        }
        if matches!(record.policy, Policy::Parity { .. }) {
            // It is in the log: what becomes of it there is checked by the history.
            return;
        }
        let (first, end) = (op.first_sector, op.first_sector + op.sectors);
        for sector in first..end {
            let index = ChunkIndex((sector / CHUNK_SECTORS) as u32);
            let chunk = ChunkId { object: record.id, index };
            let block = (sector % CHUNK_SECTORS / BLOCK_SECTORS) as u32;
            let Some(components) = record.chunks.get(&index) else {
                if id != 0 {
                    return self
                        .violate(format!("a write to chunk {} was completed that has no place", index.0));
                }
                continue;
            };
            for disk in components.in_sync().map(disk_of) {
                let found = self.disks[disk].durable.block(chunk, block);
                let within = (sector % BLOCK_SECTORS * SECTOR_BYTES) as usize;
                let holds = match found {
                    Some(block) if block.rotten => continue,
                    Some(block) => block.data.as_ref().map_or(Ok(0), |data| {
                        decode_sector(&data[within..within + SECTOR_BYTES as usize], sector, self.next_write)
                    }),
                    None => Ok(0),
                };
                let concurrent = |other: &u64| self.history.overlapped(op_id, *other, sector);
                if holds.as_ref() != Ok(&id) && !holds.as_ref().is_ok_and(concurrent) {
                    let epoch = key.epoch.0;
                    return self.violate(format!(
                        "write {id} of o{} (epoch {epoch}, sector {sector}, block {block} of chunk {}) was completed, \
                         and d{disk}, which is in sync, holds {holds:?} ({:?})",
                        key.object,
                        index.0,
                        self.disks[disk].durable.block(chunk, block).map(|b| b.version),
                    ));
                }
            }
        }
    }

    /// A guest's request failed: only right where a block has rotted, and the other copies were away.
    pub(super) fn check_failure(&mut self, object: usize, op: OpId, error: GuestError) {
        let (first, end) = {
            let op = &self.history.ops[op.0];
            (op.first_sector, op.first_sector + op.sectors)
        };
        let spoilt = |sector: u64| {
            let index = ChunkIndex((sector / CHUNK_SECTORS) as u32);
            let block = (sector % CHUNK_SECTORS / BLOCK_SECTORS) as u32;
            if matches!(self.objects[object].policy, Policy::Parity { .. }) {
                // One of its row is enough, with as many shards away as may be.
                return self
                    .rotted
                    .iter()
                    .any(|(c, _)| object_of(c.object) == object && c.index.base() == index);
            }
            self.rotted.iter().any(|(c, b)| object_of(c.object) == object && (c.index, *b) == (index, block))
        };
        // It may have been written anew since.
        let lost = error == GuestError::Lost && (first / BLOCK_SECTORS * BLOCK_SECTORS..end).any(spoilt);
        if !lost {
            self.violate(format!("o{object} op {} failed: {error}", op.0));
        }
    }

    /// A change of the directory kept its invariants.
    pub(super) fn check_directory(&mut self, before: &BTreeMap<ObjectId, Arc<ObjectRecord>>) {
        let mut wrong = None;
        for (id, record) in &self.directory.state.objects {
            let Some(old) = before.get(id) else { continue };
            if Arc::ptr_eq(old, record) {
                continue;
            }
            if record.epoch < old.epoch || record.revision < old.revision {
                wrong = Some(format!("an epoch or revision went back: {record:?}"));
            }
            for (index, chunk) in &record.chunks {
                let disks: BTreeSet<_> = chunk.components.iter().map(|c| c.disk).collect();
                let in_sync = |chunk: &ChunkRecord| chunk.in_sync().next().is_some();
                let enough = match index.role() {
                    Role::Whole | Role::Log => in_sync(chunk),
                    Role::Shard(_) => {
                        record.shards(*index).filter(|(_, shard)| in_sync(shard)).count()
                            >= record.policy.sufficient()
                    }
                };
                if !enough || disks.len() != chunk.components.len() {
                    wrong = Some(format!("chunk {index} has a bad set of components: {chunk:?}"));
                }
            }
        }
        let back =
            |n: &usize| self.disks[*n].removed && self.directory.state.disks.contains_key(&disk_id(*n));
        if let Some(disk) = (0..self.disks.len()).find(back) {
            wrong = Some(format!("d{disk} was removed and is in the directory again"));
        }
        if let Some(what) = wrong {
            self.violate(what);
        }
    }

    /// While an owner changes no row of a chunk, its in-sync shards make up rows.
    fn check_rows(&mut self) {
        let mut wrong = None;
        for (object, record) in
            (0..self.objects.len()).filter_map(|o| Some((o, record_of(&self.directory.state, o)?)))
        {
            let owners = self.hosts.iter().filter(|h| h.running).filter_map(|h| h.owners.get(&object));
            for running in owners.filter(|r| r.owner.record().revision == record.revision) {
                for chunk in running.owner.main().chunks_at_rest() {
                    wrong = wrong.or(self.parity_holds(record, chunk).err());
                }
            }
        }
        if let Some(what) = wrong {
            self.violate(what);
        }
    }

    /// Whether everything is well again; waits for it, but not for ever.
    pub(super) fn check_end(&mut self) {
        if self.faulty {
            if self.profile.one_at_a_time() {
                self.check_waits();
            }
            if (self.now / (100 * MS)).is_multiple_of(5) {
                self.check_rows();
            }
            self.scrub_early();
            self.even_out();
            self.keep_room();
            self.place_elsewhere();
            return self.after(100 * MS, Event::Check);
        }
        let gone_at = self.departed.gone.map_or(0, |(_, at)| at);
        let missing = self
            .not_quiet()
            .or_else(|| self.left_behind())
            .or_else(|| self.differing().err())
            .or_else(|| self.scrub_all());
        match missing {
            None => self.done = true,
            Some(what) if self.now > self.healed_at.max(gone_at) + QUIET_WITHIN => {
                self.violate(format!("long after the last fault: {what}"));
            }
            Some(_) => self.after(500 * MS, Event::Check),
        }
    }

    pub(super) fn not_quiet(&self) -> Option<String> {
        if !self.stopping {
            return Some("guests still run".to_owned());
        }
        for (object, layout) in self.objects.iter().enumerate() {
            if layout.doomed {
                let owned = self.hosts.iter().any(|h| h.running && h.owners.contains_key(&object));
                if owned || record_of(&self.directory.state, object).is_some() {
                    return Some(format!(
                        "o{object} is still there, {}",
                        if owned { "and owned" } else { "unowned" }
                    ));
                }
                continue;
            }
            let Some(record) = record_of(&self.directory.state, object) else {
                return Some(format!("o{object} is gone"));
            };
            if self.departed.closed.contains(&object) {
                if record.lock.is_some() || !self.directory.state.is_settled(record) {
                    return Some(format!("o{object} is not whole and closed: {record:?}"));
                }
                continue;
            }
            let owner = self.hosts.iter().enumerate().find_map(|(n, h)| {
                let running = h.owners.get(&object).filter(|r| r.owner.epoch() == record.epoch)?;
                Some((n, running))
            });
            let Some((host, running)) = owner else {
                return Some(format!("o{object} has no owner: {record:?}"));
            };
            let idle = running.session.as_ref().is_none_or(super::guest::Session::is_idle);
            if !idle || !running.owner.is_idle() || !running.owner.main().is_serving() {
                return Some(format!("o{object} on h{host} does not answer: {}", brief(&running.owner)));
            }
            if !running.owner.main().is_destaged() {
                return Some(format!(
                    "o{object} on h{host} has not destaged its log: {}",
                    brief(&running.owner)
                ));
            }
            if !self.directory.state.is_settled(record) {
                return Some(format!(
                    "o{object} ({:?}) on h{host} is not whole: {:?}; its owner: {}",
                    layout.policy,
                    record.chunks,
                    brief(&running.owner)
                ));
            }
        }
        None
    }

    /// Components of a chunk that are not the same, or that nobody knows.
    pub(super) fn differing(&self) -> Result<(), String> {
        let mut known = BTreeSet::new();
        for record in self.directory.state.objects.values() {
            for (index, chunk_record) in &record.chunks {
                let chunk = ChunkId { object: record.id, index: *index };
                let disks: Vec<usize> = chunk_record.in_sync().map(disk_of).collect();
                known.extend(disks.iter().map(|d| (*d, chunk)));
                self.same(chunk, &disks)?;
                // What is closed may be in between: the log says what belongs there.
                let closed = self.departed.closed.contains(&object_of(record.id));
                if index.role() == Role::Log && !closed {
                    self.parity_holds(record, index.base())?;
                }
            }
        }
        for (n, disk) in self.disks.iter().enumerate().filter(|(_, d)| !d.removed && d.dead.is_none()) {
            if disk.carried {
                return Err(format!("d{n} is in no host"));
            }
            if !self.hosts[disk.host].running || !self.directory.state.disks.contains_key(&disk_id(n)) {
                continue;
            }
            let record = |c: &ChunkId| ChunkId { index: c.index.record(), ..*c };
            let unknown = |c: &&ChunkId| !known.contains(&(n, record(c)));
            if let Some(chunk) = disk.durable.components.keys().find(unknown) {
                return Err(format!("d{n} still has a component of {chunk} that nobody knows"));
            }
            let promised = |object: &&ObjectId| !self.directory.state.objects.contains_key(*object);
            if let Some(object) = disk.durable.epochs.keys().find(promised) {
                return Err(format!("d{n} still promises {object} an epoch, and nobody knows it"));
            }
        }
        Ok(())
    }

    /// Whether the shards of a chunk make up rows: what is in them all is data with its parity.
    fn parity_holds(&self, record: &ObjectRecord, chunk: ChunkIndex) -> Result<(), String> {
        let Policy::Parity { data, parity } = record.policy else { return Ok(()) };
        let code = Code::new(data.into(), parity.into()).map_err(|error| error.to_string())?;
        let shards: Vec<_> = (0..data + parity)
            .map(|n| {
                let index = chunk.shard(n);
                let disk = record.chunks.get(&index).and_then(|c| c.in_sync().next()).map(disk_of)?;
                Some(self.disks[disk].durable.components.get(&ChunkId { object: record.id, index }))
            })
            .collect();
        let rows: BTreeSet<u32> =
            shards.iter().flatten().flatten().flat_map(|c| c.blocks.keys().copied()).collect();
        for row in rows {
            let blocks: Vec<_> =
                shards.iter().map(|c| c.flatten().and_then(|c| c.blocks.get(&row))).collect();
            if blocks.iter().flatten().any(|b| b.rotten) {
                continue;
            }
            let zeros = vec![0; BLOCK_BYTES];
            let bytes: Vec<&[u8]> = blocks
                .iter()
                .map(|b| b.and_then(|b| b.data.as_deref()).map_or(zeros.as_slice(), AsRef::as_ref))
                .collect();
            let expected = code.encode(&bytes[..usize::from(data)]);
            let in_sync = |n: usize| shards[n].is_some();
            if (0..usize::from(data)).any(|n| !in_sync(n)) {
                // What the shard that is away would have is what the parity says.
                continue;
            }
            let differs =
                |n: &usize| in_sync(usize::from(data) + n) && expected[*n] != bytes[usize::from(data) + n];
            if let Some(n) = (0..usize::from(parity)).find(differs) {
                return Err(format!(
                    "parity {n} of row {row} of chunk {chunk} is not that of its data: {:?}",
                    blocks.iter().map(|b| b.map(|b| b.version)).collect::<Vec<_>>()
                ));
            }
        }
        Ok(())
    }

    fn same(&self, chunk: ChunkId, disks: &[usize]) -> Result<(), String> {
        let blocks: BTreeSet<u32> = disks
            .iter()
            .filter_map(|d| self.disks[*d].durable.components.get(&chunk))
            .flat_map(|c| c.blocks.keys().copied())
            .collect();
        for block in blocks {
            let mut first = None;
            for disk in disks {
                let found = self.disks[*disk].durable.block(chunk, block);
                if found.is_some_and(|b| b.rotten) {
                    continue;
                }
                let has = found.map(|b| (b.version, b.data.as_ref()));
                match &first {
                    None => first = Some((disk, has)),
                    Some((_, other)) if *other == has => {}
                    Some((with, other)) => {
                        let version = |v: &Option<(ferro_protocol::ids::Version, _)>| v.as_ref().map(|v| v.0);
                        return Err(format!(
                            "block {block} of {chunk} is {:?} on d{with} and {:?} on d{disk}",
                            version(other),
                            version(&has)
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

/// A state for people: without the bytes and without the zeros of bitmaps.
fn brief(owner: &vsand_core::volume::VolumeOwner) -> String {
    let text = format!("{owner:?}").replace("0, 0, ", "");
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find("b\"") {
        out.push_str(&rest[..at]);
        out.push('B');
        let tail = &rest[at + 2..];
        let mut end = tail.len();
        let mut escaped = false;
        for (n, c) in tail.char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => {
                    end = n + 1;
                    break;
                }
                _ => {}
            }
        }
        rest = &tail[end..];
    }
    out + rest
}
