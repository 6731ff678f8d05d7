//! A shard that fell out, or whose blocks are bad, is made anew from the others of its chunk.
//!
//! It is a resync like any other ([`super::super::resync`]) but for two things. What has changed is asked of a shard of parity,
//! since every job writes all of those, or, if none is in sync, of all data shards, which then all are. And a copy is not
//! fetched from one source: its rows are taken, the other shards' blocks are read, and what they make is installed before the
//! rows are given back, so no job comes in between.

use std::collections::BTreeSet;

use bytes::Bytes;
use ferro_protocol::ids::{ChunkIndex, DiskId, Role};
use ferro_protocol::peer::Run;
use ferro_protocol::units::BlockRange;

use super::decode::For;
use crate::owner::Owner;
use crate::owner::copy::{Copy, CopyId, Why};
use crate::owner::io::Fault;
use crate::time::Instant;

impl Owner {
    /// Whether blocks of this record are made from other shards: no component of it is in sync.
    pub(in crate::owner) fn is_rebuilt(&self, index: ChunkIndex) -> bool {
        matches!(index.role(), Role::Shard(_)) && self.groups.contains_key(&index) && !self.has_in_sync(index)
    }

    /// Whether the record's shard can be made from others now: no row is in between.
    pub(in crate::owner) fn can_rebuild(&self, index: ChunkIndex) -> bool {
        self.stripes.get(&index.base()).is_some_and(super::Stripes::is_healed)
    }

    /// Whether a job that began before this version still runs.
    pub(in crate::owner) fn has_older_job(&self, index: ChunkIndex, seq: ferro_protocol::ids::Seq) -> bool {
        self.stripes.get(&index.base()).is_some_and(|s| s.jobs_open.first().is_some_and(|first| *first < seq))
    }

    /// The next version that a job of the record's chunk takes.
    pub(in crate::owner) fn next_job(&self, index: ChunkIndex) -> ferro_protocol::ids::Seq {
        self.groups.get(&index.base().log()).map_or_else(Default::default, |log| log.next_seq)
    }

    /// Who knows what changed in the record's rows: disks of shards, with their records. Empty while that can't be asked.
    pub(in crate::owner) fn rebuild_sources(&self, index: ChunkIndex) -> Vec<(ChunkIndex, DiskId)> {
        let Some(stripes) = self.stripes.get(&index.base()) else { return Vec::new() };
        let geometry = stripes.geometry;
        let ask = |n: u8| {
            let shard = index.base().shard(n);
            (shard != index).then(|| Some((shard, self.shard_disk(shard)?)))?
        };
        if let Some(source) = geometry.parity_shards().find_map(ask) {
            return vec![source];
        }
        if geometry.parity_shards().any(|n| self.has_in_sync(index.base().shard(n))) {
            // Only it knows of rows of which a shard that was away is all that changed.
            return Vec::new();
        }
        let all: Vec<_> =
            geometry.data_shards().filter(|n| index.base().shard(*n) != index).map(ask).collect();
        all.into_iter().collect::<Option<Vec<_>>>().unwrap_or_default()
    }

    /// Whether blocks of this record could be read from other shards now.
    pub(in crate::owner) fn can_decode(&self, index: ChunkIndex) -> bool {
        let Some(stripes) = self.stripes.get(&index.base()) else { return false };
        let geometry = stripes.geometry;
        let others = (0..geometry.shards()).map(|n| index.base().shard(n)).filter(|shard| *shard != index);
        matches!(index.role(), Role::Shard(_))
            && others.filter(|shard| self.shard_disk(*shard).is_some()).count() >= usize::from(geometry.data)
    }

    /// Starts to make blocks of a shard and to install them on a disk.
    pub(in crate::owner) fn start_rebuild(
        &mut self,
        index: ChunkIndex,
        range: BlockRange,
        why: Why,
        target: DiskId,
    ) -> Option<CopyId> {
        let Role::Shard(shard) = index.role() else { return None };
        let id = CopyId(self.fresh_id());
        let copy = Copy {
            chunk: index,
            range,
            why,
            sources: Vec::new(),
            source: None,
            targets: BTreeSet::from([target]),
            pending: BTreeSet::new(),
            fetch: None,
            rows: None,
        };
        self.copies.insert(id, copy);
        let task = self.start_decode(index.base(), range, shard, Fault::Bad, For::Copy(id));
        if let Some(copy) = self.copies.get_mut(&id) {
            copy.rows = Some(task);
        }
        Some(id)
    }

    pub(super) fn decoded_for_copy(&mut self, now: Instant, id: CopyId, done: Option<(Vec<Run>, Bytes)>) {
        match done {
            Some((runs, data)) => self.install(now, id, &runs, &data),
            None => self.end_copy(now, id, false),
        }
    }

    /// Blocks of a shard failed their checksums.
    pub(in crate::owner) fn mend_shard(&mut self, index: ChunkIndex, disk: DiskId, bad: &[u32]) {
        let in_sync = self.groups.get(&index).and_then(|g| g.members.get(&disk)).is_some_and(|m| m.in_sync());
        if !in_sync || !self.can_rebuild(index) {
            return;
        }
        for block in bad {
            let busy = self.copies.values().any(|c| c.chunk == index && c.range.contains(*block));
            if busy || self.copies.len() >= self.config.copies_max * 8 {
                continue;
            }
            if let Ok(range) = BlockRange::one(*block) {
                self.start_rebuild(index, range, Why::Mend, disk);
            }
        }
    }
}
