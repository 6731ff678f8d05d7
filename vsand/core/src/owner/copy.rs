//! Copies: blocks of one chunk, fetched from a component that has them and installed on others that don't. Recovery,
//! resync and the repair of bad blocks all do their work by them.
//!
//! ```text
//!   range locked ──Fetch──▶ source answered ──Install──▶ every target answered ──▶ range unlocked, ended
//!                  │ bad blocks, failed: the next source; none left: ended as failed
//! ```

use std::collections::BTreeSet;

use bytes::Bytes;
use ferro_protocol::ids::{ChunkIndex, DiskId, Role};
use ferro_protocol::peer::{Refusal, Reply, Request, RequestId, Run};
use ferro_protocol::units::BlockRange;

use super::group::Holder;
use super::links::{Purpose, SEQ_MAX};
use super::locks::Mode;
use super::stripes::TaskId;
use super::{Owner, Trouble};
use crate::time::{Instant, Now};

/// Names a copy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct CopyId(pub u64);

/// What a copy is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Why {
    /// To make a chunk's components agree after a change of owner.
    Agree,
    /// To bring this component up to date.
    Resync(DiskId),
    /// To mend blocks that failed their checksums.
    Mend,
}

/// A copy under way.
#[derive(Debug)]
pub(super) struct Copy {
    pub chunk: ChunkIndex,
    pub range: BlockRange,
    pub why: Why,
    /// Where it may come from; the last is next.
    pub sources: Vec<DiskId>,
    /// Where it is read from now.
    pub source: Option<DiskId>,
    pub targets: BTreeSet<DiskId>,
    /// Targets that have not answered.
    pub pending: BTreeSet<DiskId>,
    /// Its current request to the source.
    pub fetch: Option<RequestId>,
    /// Of one that is made from other shards ([`super::stripes`]): who makes it, and holds the rows.
    pub rows: Option<TaskId>,
}

impl Owner {
    /// Starts a copy; it waits for its range.
    pub(super) fn start_copy(
        &mut self,
        now: Instant,
        chunk: ChunkIndex,
        range: BlockRange,
        why: Why,
        sources: Vec<DiskId>,
        targets: BTreeSet<DiskId>,
    ) -> CopyId {
        let id = CopyId(self.fresh_id());
        let copy = Copy {
            chunk,
            range,
            why,
            sources,
            source: None,
            targets,
            pending: BTreeSet::new(),
            fetch: None,
            rows: None,
        };
        self.copies.insert(id, copy);
        if let Some(group) = self.groups.get_mut(&chunk)
            && group.locks.lock(Holder::Copy(id), range, Mode::Exclusive)
        {
            self.fetch(now, id);
        }
        id
    }

    /// The copy has its range, or its last source failed: ask the next.
    pub(super) fn fetch(&mut self, now: Instant, id: CopyId) {
        let Some(copy) = self.copies.get_mut(&id) else { return };
        let (chunk, range) = (copy.chunk, copy.range);
        // While the copy waited for its range, a source may have missed a write to it, and left the in-sync set.
        let in_sync: BTreeSet<DiskId> =
            self.groups.get(&chunk).map(|g| g.in_sync().collect()).unwrap_or_default();
        let good =
            |disk| in_sync.contains(&disk) && self.links.get(&disk).is_some_and(super::links::Link::usable);
        let mut source = copy.sources.pop();
        while source.is_some_and(|disk| !good(disk)) {
            source = copy.sources.pop();
        }
        copy.source = source;
        copy.fetch = None;
        let Some(disk) = source else { return self.end_copy(now, id, false) };
        let request = Request::Fetch { chunk: self.chunk_id(chunk), epoch: self.epoch, range };
        let fetch = self.ask(now, disk, Purpose::Copy(id), request, Bytes::new());
        if let Some(copy) = self.copies.get_mut(&id) {
            copy.fetch = Some(fetch);
        }
    }

    pub(super) fn copy_answered(
        &mut self,
        now: Now,
        id: CopyId,
        from: DiskId,
        reply: Result<Reply, Refusal>,
        payload: Bytes,
    ) {
        let Some(copy) = self.copies.get_mut(&id) else { return };
        if copy.fetch.is_some() && copy.source == Some(from) {
            copy.fetch = None;
            return match reply {
                Ok(Reply::Runs(runs)) if covers(&runs, copy.range, payload.len()) => {
                    self.install(now.mono, id, &runs, &payload);
                }
                _ => self.fetch(now.mono, id),
            };
        }
        match reply {
            Ok(Reply::Done) => {
                copy.pending.remove(&from);
                if copy.pending.is_empty() {
                    self.end_copy(now.mono, id, true);
                }
            }
            Err(Refusal::Full) => {
                self.troubles.insert(Trouble::Full(from));
                self.end_copy(now.mono, id, false);
            }
            _ => self.end_copy(now.mono, id, false),
        }
    }

    pub(super) fn install(&mut self, now: Instant, id: CopyId, runs: &[Run], payload: &Bytes) {
        let Some(copy) = self.copies.get_mut(&id) else { return };
        let mut targets = copy.targets.clone();
        if let Some(source) = copy.source {
            targets.remove(&source);
        }
        copy.pending.clone_from(&targets);
        let chunk = copy.chunk;
        if targets.is_empty() {
            return self.end_copy(now, id, true);
        }
        let request =
            Request::Install { chunk: self.chunk_id(chunk), epoch: self.epoch, runs: runs.to_vec() };
        for disk in targets {
            self.ask(now, disk, Purpose::Copy(id), request.clone(), payload.clone());
        }
    }

    /// A copy can't wait for a disk that failed.
    pub(super) fn fail_copies_of(&mut self, now: Instant, disk: DiskId) {
        let touched: Vec<(CopyId, bool)> = self
            .copies
            .iter()
            .filter(|(_, c)| c.pending.contains(&disk) || c.source == Some(disk) || c.targets.contains(&disk))
            .map(|(id, c)| (*id, c.fetch.is_some() && c.source == Some(disk)))
            .collect();
        for (id, fetching) in touched {
            let target = self.copies.get(&id).is_some_and(|c| c.targets.contains(&disk));
            if target {
                self.end_copy(now, id, false);
            } else if fetching {
                self.cancel_asks(|a| a.purpose == Purpose::Copy(id));
                self.fetch(now, id);
            }
        }
    }

    pub(super) fn end_copy(&mut self, now: Instant, id: CopyId, good: bool) {
        let Some(copy) = self.copies.remove(&id) else { return };
        self.cancel_asks(|a| a.purpose == Purpose::Copy(id));
        self.unlock(now, copy.chunk, Holder::Copy(id));
        if let Some(task) = copy.rows {
            self.tasks.remove(&task);
            self.give_rows_back(copy.chunk.base(), task);
        }
        match copy.why {
            Why::Agree => self.agree_copied(now, copy.chunk, id, good),
            Why::Resync(disk) => self.resync_copied(now, copy.chunk, disk, id, good),
            Why::Mend => {}
        }
    }

    /// Blocks of a component failed their checksums: they are copied from another one.
    pub(super) fn mend(&mut self, now: Instant, chunk: ChunkIndex, disk: DiskId, bad: &[u32]) {
        let Some(group) = self.groups.get(&chunk) else { return };
        let sources: Vec<DiskId> = group.healthy().filter(|d| *d != disk).collect();
        if sources.is_empty() && matches!(chunk.role(), Role::Shard(_)) {
            return self.mend_shard(chunk, disk, bad);
        }
        if sources.is_empty() || !group.members.get(&disk).is_some_and(super::group::Member::in_sync) {
            return;
        }
        for block in bad {
            let busy = self
                .copies
                .values()
                .any(|c| c.chunk == chunk && c.range.contains(*block) && c.targets.contains(&disk));
            let Ok(range) = BlockRange::one(*block) else { continue };
            if !busy && self.copies.len() < self.config.copies_max * 8 {
                let targets = BTreeSet::from([disk]);
                self.start_copy(now, chunk, range, Why::Mend, sources.clone(), targets);
            }
        }
    }
}

/// Whether the runs are exactly the range, can be, and the payload is theirs.
pub(super) fn covers(runs: &[Run], range: BlockRange, payload: usize) -> bool {
    let mut at = range.first();
    let mut bytes = 0;
    for run in runs {
        if run.range.first() != at || run.version.seq > SEQ_MAX {
            return false;
        }
        at = run.range.end();
        if run.mapped {
            bytes += run.range.bytes();
        }
    }
    at == range.end() && bytes == payload
}
