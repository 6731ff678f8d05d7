//! Bringing a component back: what changed since it fell out is copied while new writes go to it as well, and it joins the
//! in-sync set last (DESIGN.md, Storage, rule 7).
//!
//! ```text
//!  stale ──▶ barrier ──▶ listing ──▶ copying ──▶ joining ──directory: Add──▶ in sync
//!             │ from here on every new write goes to it and waits for it
//!             └─ writes that began before have ended: the lists below contain them
//! ```
//!
//! Listing asks the source *and* the component for blocks above `stale_seq` ([`super::dirty`]): what the component has alike is
//! not copied, and it may hold writes of an old owner that nobody else kept, which must go. A copy holds its range against
//! writes, so nothing older replaces anything newer. When the component fails, the resync is dropped and begins anew later; so
//! it is when the source fails while it lists.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use ferro_protocol::ids::{ChunkIndex, DiskId, Role, Seq};
use ferro_protocol::peer::{Refusal, Reply, Request};
use ferro_protocol::units::BLOCK_BYTES;

use super::Owner;
use super::copy::{CopyId, Why};
use super::dirty::{BadList, Dirty, Next, Piece};
use super::group::Phase;
use super::io::Op;
use super::links::Purpose;
use crate::bugs::Bug;
use crate::directory::Sync;
use crate::time::{Instant, Now};

/// Resyncs are looked at no more often: with guest I/O in between there is nothing new to see.
const RUN_EVERY: Duration = Duration::from_millis(5);
/// A small copy costs as much as so many bytes of a large one.
const COPY_COST_BYTES: usize = 4 * BLOCK_BYTES;
/// A guest that asked for something within this time, or waits for it, is yielded to.
const GUEST_QUIET: Duration = Duration::from_millis(200);

/// A component that is coming back.
#[derive(Debug)]
pub(super) struct Resync {
    stage: Stage,
    since: Seq,
    source: DiskId,
    /// Of a shard that is made from others: who is still to be asked what has changed, the one that is asked now first.
    siblings: Vec<(ChunkIndex, DiskId)>,
    dirty: Dirty,
    /// Blocks with data that were copied.
    copied: u32,
    /// Copies under way, and how many blocks with data each copies.
    copies: BTreeMap<CopyId, u32>,
    began: Instant,
    joining: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Barrier(Seq),
    ListSource,
    ListTarget,
    Copying,
    Join,
}

/// How a resync is getting on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResyncView {
    /// The chunk.
    pub chunk: ChunkIndex,
    /// The component's disk.
    pub disk: DiskId,
    /// Blocks with data to copy in all, as far as is known. Zeros are not counted: they cost next to nothing.
    pub blocks_total: u32,
    /// Blocks with data copied.
    pub blocks_done: u32,
    /// How long it has run.
    pub running: Duration,
}

/// What resyncs may copy now: bytes that build up with time while the guest is busy, nearly without limit while it is not.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Below zero after a copy that was larger than what was left.
    bytes: i64,
    at: Instant,
}

impl Budget {
    pub(crate) fn new(now: Instant) -> Self {
        Self { bytes: 0, at: now }
    }

    pub(crate) fn refill(&mut self, now: Instant, bytes_per_s: u64) {
        let earned = u128::from(bytes_per_s) * now.since(self.at).as_nanos() / 1_000_000_000;
        let burst = i64::try_from(bytes_per_s / 10).unwrap_or(i64::MAX);
        self.bytes = self.bytes.saturating_add(i64::try_from(earned).unwrap_or(i64::MAX)).min(burst);
        self.at = now;
    }

    pub(crate) fn is_spent(&self) -> bool {
        self.bytes <= 0
    }

    pub(crate) fn spend(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

impl Resync {
    fn new(now: Instant, since: Seq, source: DiskId, barrier: Seq) -> Self {
        Self {
            stage: Stage::Barrier(barrier),
            since,
            source,
            siblings: Vec::new(),
            dirty: Dirty::new(),
            copied: 0,
            copies: BTreeMap::new(),
            began: now,
            joining: false,
        }
    }

    /// It was proposed to the directory: from now on only the answer can end it.
    pub(super) fn set_joining(&mut self) {
        self.joining = true;
    }

    /// The directory did not take it up, and never will take that proposal.
    pub(super) fn not_joined(&mut self) {
        self.joining = false;
    }

    pub(super) fn is_joining(&self) -> bool {
        self.joining
    }

    /// Blocks with data: copied, being copied, and left to copy.
    fn total(&self) -> u32 {
        self.copied + self.copies.values().sum::<u32>() + self.dirty.data_blocks()
    }
}

impl Owner {
    /// The resyncs that run now.
    pub fn resyncs(&self, now: Instant) -> Vec<ResyncView> {
        let mut views = Vec::new();
        for group in self.groups.values() {
            for (disk, resync) in group.members.iter().filter_map(|(d, m)| Some((*d, m.resync.as_ref()?))) {
                views.push(ResyncView {
                    chunk: group.index,
                    disk,
                    blocks_total: resync.total(),
                    blocks_done: resync.copied,
                    running: now.since(resync.began),
                });
            }
        }
        views
    }

    pub(super) fn resyncing(&self) -> bool {
        self.degraded && self.groups.values().any(|g| g.members.values().any(|m| m.resync.is_some()))
    }

    /// Begins resyncs that can begin and moves those that can move.
    pub(super) fn run_resyncs(&mut self, now: Now) {
        if !self.degraded || now.mono < self.resync_after {
            return;
        }
        self.resync_after = now.mono + RUN_EVERY;
        let degraded: Vec<(ChunkIndex, DiskId)> = self
            .groups
            .values()
            .filter(|g| matches!(g.phase, Phase::Serving))
            .flat_map(|g| g.members.iter().filter(|(_, m)| !m.in_sync()).map(|(d, _)| (g.index, *d)))
            .collect();
        // One that waits is not quiet: copies without limit would keep it waiting.
        let busy = now.mono.since(self.guest_io_at) < GUEST_QUIET || self.ops.values().any(Op::is_guests);
        let rate = if busy { self.config.resync_bytes_per_s } else { u64::MAX / 4_000_000_000 };
        self.budget.refill(now.mono, rate);
        let mut running =
            self.groups.values().flat_map(|g| g.members.values()).filter(|m| m.resync.is_some()).count();
        for (index, disk) in degraded {
            let Some(group) = self.groups.get(&index) else { continue };
            let Some(member) = group.members.get(&disk) else { continue };
            if member.resync.is_none() {
                let later = running >= self.config.resyncs_max || now.mono < member.retry_at;
                if later || !self.trusted(disk) || self.has_spare(group) {
                    continue;
                }
                if self.begin_resync(now.mono, index, disk) {
                    running += 1;
                }
            }
            self.move_resync(now.mono, index, disk);
        }
    }

    fn begin_resync(&mut self, now: Instant, index: ChunkIndex, disk: DiskId) -> bool {
        let rebuilt = self.is_rebuilt(index);
        if rebuilt && !self.can_rebuild(index) {
            return false;
        }
        let source = self.resync_source(index);
        let next_job = self.next_job(index);
        let Some(group) = self.groups.get_mut(&index) else { return false };
        let barrier = if rebuilt { next_job } else { group.next_seq };
        let Some(member) = group.members.get_mut(&disk) else { return false };
        let (Some(source), Sync::Stale { stale_seq, .. }) = (source, member.sync) else { return false };
        member.resync = Some(Resync::new(now, stale_seq, source, barrier));
        true
    }

    /// Whom to ask what has changed: an in-sync component that answers.
    pub(super) fn resync_source(&self, index: ChunkIndex) -> Option<DiskId> {
        if self.is_rebuilt(index) {
            return self.rebuild_sources(index).first().map(|(_, disk)| *disk);
        }
        self.groups
            .get(&index)?
            .healthy()
            .filter_map(|d| Some((d, self.links.get(&d)?)))
            .filter(|(_, link)| link.usable())
            .min_by_key(|(d, link)| (!link.trusted(), !link.local, *d))
            .map(|(d, _)| d)
    }

    /// Drops the resyncs that wait for one of these disks to say what has changed: it does not answer, or it is not in sync
    /// any more and does not know all.
    pub(super) fn abort_listings_of(&mut self, now: Instant, index: ChunkIndex, sources: &BTreeSet<DiskId>) {
        let Some(group) = self.groups.get(&index) else { return };
        // Also while the component lists: the source's next page would lack what it misses from now on.
        let listing = |r: &Resync| matches!(r.stage, Stage::ListSource | Stage::ListTarget);
        let waits = |r: &Resync| listing(r) && sources.contains(&r.source);
        let members = group.members.iter().filter(|(_, m)| m.resync.as_ref().is_some_and(waits));
        let disks: Vec<DiskId> = members.map(|(disk, _)| *disk).collect();
        for disk in disks {
            self.abort_resync(now, index, disk);
        }
    }

    fn move_resync(&mut self, now: Instant, index: ChunkIndex, disk: DiskId) {
        let Some(resync) = self.resync_mut(index, disk) else { return };
        let (stage, since) = (resync.stage, resync.since);
        match stage {
            Stage::Barrier(barrier) => {
                // Only writes that went out after the resync began go to the component by themselves.
                let rebuilt = self.is_rebuilt(index);
                let writes = self.groups.get(&index).map(|g| &g.writes);
                let older = if rebuilt {
                    self.has_older_job(index, barrier)
                } else {
                    writes.and_then(|w| w.first_key_value()).is_some_and(|(seq, _)| *seq < barrier)
                };
                // The source must have those writes too: one that was in sync when the resync began may have missed them.
                if !older && let Some(source) = self.resync_source(index) {
                    let siblings = if rebuilt { self.rebuild_sources(index) } else { Vec::new() };
                    let at = siblings.first().copied().unwrap_or((index, source));
                    let Some(resync) = self.resync_mut(index, disk) else { return };
                    resync.stage = Stage::ListSource;
                    resync.source = source;
                    resync.siblings = siblings;
                    self.list(now, index, disk, at, since, 0);
                }
            }
            Stage::ListSource | Stage::ListTarget | Stage::Join => {}
            Stage::Copying => self.copy_more(now, index, disk),
        }
    }

    fn list(
        &mut self,
        now: Instant,
        chunk: ChunkIndex,
        disk: DiskId,
        (record, at): (ChunkIndex, DiskId),
        since: Seq,
        from_block: u32,
    ) {
        let request = Request::List { chunk: self.chunk_id(record), epoch: self.epoch, since, from_block };
        self.ask(now, at, Purpose::List { chunk, disk }, request, Bytes::new());
    }

    pub(super) fn list_answered(
        &mut self,
        now: Now,
        index: ChunkIndex,
        disk: DiskId,
        reply: Result<Reply, Refusal>,
    ) {
        let keep_divergent = self.bugs.has(Bug::ResyncKeepsDivergent);
        let Some(resync) = self.resync_mut(index, disk) else { return };
        let Ok(Reply::List { runs, next_block }) = reply else {
            return self.abort_resync(now.mono, index, disk);
        };
        if let Some(at) = resync.siblings.first().copied() {
            let listed = resync.dirty.mark(&runs, next_block);
            return self.rebuild_listed(now.mono, index, disk, at, listed);
        }
        let next = match resync.stage {
            Stage::ListSource => resync.dirty.source_lists(runs, next_block),
            Stage::ListTarget if keep_divergent => resync.dirty.target_lists(&[], next_block),
            _ => resync.dirty.target_lists(&runs, next_block),
        };
        let (since, source) = (resync.since, resync.source);
        match next {
            Ok(Next::Source(from)) => {
                resync.stage = Stage::ListSource;
                self.list(now.mono, index, disk, (index, source), since, from);
            }
            Ok(Next::Target(from)) => {
                resync.stage = Stage::ListTarget;
                self.list(now.mono, index, disk, (index, disk), since, from);
            }
            Ok(Next::Done) => {
                resync.stage = Stage::Copying;
                self.copy_more(now.mono, index, disk);
            }
            Err(_) => self.abort_resync(now.mono, index, disk),
        }
    }

    /// A shard, or the component itself, has listed what changed: what any of them names is made anew.
    fn rebuild_listed(
        &mut self,
        now: Instant,
        index: ChunkIndex,
        disk: DiskId,
        at: (ChunkIndex, DiskId),
        listed: Result<Option<u32>, BadList>,
    ) {
        let Some(resync) = self.resync_mut(index, disk) else { return };
        let since = resync.since;
        match listed {
            Err(BadList) => self.abort_resync(now, index, disk),
            Ok(Some(from)) => self.list(now, index, disk, at, since, from),
            Ok(None) if resync.stage == Stage::ListTarget => {
                resync.stage = Stage::Copying;
                self.copy_more(now, index, disk);
            }
            Ok(None) => {
                if resync.siblings.len() > 1 {
                    resync.siblings.remove(0);
                    resync.source = resync.siblings[0].1;
                } else {
                    resync.siblings = vec![(index, disk)];
                    resync.stage = Stage::ListTarget;
                }
                let at = resync.siblings[0];
                self.list(now, index, disk, at, since, 0);
            }
        }
    }

    /// The records of which a component may be listing for a resync of this one, or of one beside it.
    pub(super) fn listed_at(&self, index: ChunkIndex) -> Vec<ChunkIndex> {
        match (index.role(), self.geometry()) {
            (Role::Shard(_), Some(geometry)) => {
                (0..geometry.shards()).map(|n| index.base().shard(n)).collect()
            }
            _ => vec![index],
        }
    }

    fn copy_more(&mut self, now: Instant, index: ChunkIndex, disk: DiskId) {
        loop {
            if self.copies.len() >= self.config.copies_max {
                return;
            }
            let sources: Vec<DiskId> = match self.groups.get(&index) {
                Some(group) => group.healthy().collect(),
                None => return,
            };
            // What is staged is not copied, and who joins must not be the one that has it.
            let staged = self.keeps_staged(index);
            let Some(resync) = self.resync_mut(index, disk) else { return };
            if resync.stage != Stage::Copying {
                return;
            }
            if resync.dirty.is_empty() {
                if resync.copies.is_empty() && !staged {
                    resync.stage = Stage::Join;
                    self.join_wanted.insert((index, disk));
                }
                return;
            }
            if self.budget.is_spent() {
                return;
            }
            let Some(resync) = self.resync_mut(index, disk) else { return };
            let Some(Piece { range, data_blocks }) = resync.dirty.take() else { return };
            let bytes = if data_blocks > 0 { range.bytes() } else { 0 };
            self.budget.spend(bytes + COPY_COST_BYTES);
            if self.is_rebuilt(index) {
                if let Some(id) = self.start_rebuild(index, range, Why::Resync(disk), disk)
                    && let Some(resync) = self.resync_mut(index, disk)
                {
                    resync.copies.insert(id, data_blocks);
                }
                continue;
            }
            let mut sources = sources;
            sources.sort_by_key(|d| self.links.get(d).map(|l| (l.trusted(), l.local, *d)));
            let id = self.start_copy(now, index, range, Why::Resync(disk), sources, BTreeSet::from([disk]));
            if self.copies.contains_key(&id)
                && let Some(resync) = self.resync_mut(index, disk)
            {
                resync.copies.insert(id, data_blocks);
            }
        }
    }

    pub(super) fn resync_copied(
        &mut self,
        now: Instant,
        index: ChunkIndex,
        disk: DiskId,
        copy: CopyId,
        good: bool,
    ) {
        let Some(resync) = self.resync_mut(index, disk) else { return };
        let data_blocks = resync.copies.remove(&copy).unwrap_or(0);
        if !good {
            return self.abort_resync(now, index, disk);
        }
        resync.copied += data_blocks;
        self.copy_more(now, index, disk);
    }

    /// The component is one no more.
    pub(super) fn drop_resync(&mut self, now: Instant, index: ChunkIndex, disk: DiskId) {
        if let Some(resync) = self.resync_mut(index, disk) {
            resync.not_joined();
            self.abort_resync(now, index, disk);
        }
    }

    /// What was asked for a resync that is over must not be taken for an answer to another one that may come.
    pub(super) fn forget_lists(&mut self, index: ChunkIndex, of: impl Fn(DiskId) -> bool) {
        self.cancel_asks(
            |a| matches!(a.purpose, Purpose::List { chunk, disk } if chunk == index && of(disk)),
        );
    }

    /// The component can't come back now; it stays stale, and nothing waits for it.
    pub(super) fn abort_resync(&mut self, now: Instant, index: ChunkIndex, disk: DiskId) {
        let retry = now + self.config.retry_after * 5;
        let Some(group) = self.groups.get_mut(&index) else { return };
        let Some(member) = group.members.get_mut(&disk) else { return };
        if member.resync.as_ref().is_some_and(Resync::is_joining) {
            // It may be in sync already: only the directory can say, and can take it out again.
            member.failing = true;
            self.shrink_wanted.insert(index);
            return;
        }
        if member.resync.take().is_none() {
            return;
        }
        member.retry_at = retry;
        self.join_wanted.remove(&(index, disk));
        let copies: Vec<CopyId> = self
            .copies
            .iter()
            .filter(|(_, c)| c.chunk == index && c.why == Why::Resync(disk))
            .map(|(id, _)| *id)
            .collect();
        for copy in copies {
            self.end_copy(now, copy, false);
        }
        self.forget_lists(index, |listed| listed == disk);
        self.cancel_asks(|a| {
            a.disk == disk && matches!(a.purpose, Purpose::Write { chunk, .. } if chunk == index)
        });
        let Some(group) = self.groups.get_mut(&index) else { return };
        let seqs: Vec<Seq> = group.writes.keys().copied().collect();
        for seq in seqs {
            if let Some(write) = self.groups.get_mut(&index).and_then(|g| g.writes.get_mut(&seq)) {
                write.pending.remove(&disk);
            }
            self.finish_write(now, index, seq);
        }
    }

    fn resync_mut(&mut self, index: ChunkIndex, disk: DiskId) -> Option<&mut Resync> {
        self.groups.get_mut(&index)?.members.get_mut(&disk)?.resync.as_mut()
    }
}
