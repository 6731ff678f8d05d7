//! After a change of owner: the in-sync components of a chunk may differ in writes that were under way when the old owner
//! went. For each block above the watermark the highest version that can be read wins, on all of them, before anything is
//! served (DESIGN.md, Storage, rule 5).
//!
//! Why the watermark is enough: it is only ever a sequence number up to which every in-sync component had everything, so the
//! highest one that any of them remembers is true for all. Why the highest version: a write that was acknowledged is on all
//! of them, so nothing lower than it can be the highest; one that was not may be kept or lost, but after this it is either
//! on all of them or on none.

use std::collections::{BTreeMap, BTreeSet};

use ferro_protocol::ids::{ChunkIndex, DiskId, Seq, Version};
use ferro_protocol::units::{BlockRange, IO_BLOCKS_MAX};

use super::Owner;
use super::copy::{CopyId, Why};
use super::group::{Group, Member, Phase};
use super::links::Seal;
use crate::bugs::Bug;
use crate::time::Instant;

/// Blocks that not all components have alike: which, and from whom they are taken.
#[derive(Debug, PartialEq, Eq)]
struct Repair {
    range: BlockRange,
    /// Best last.
    sources: Vec<DiskId>,
}

impl Owner {
    /// If every in-sync component of the chunk has said what it has, makes them agree.
    pub(super) fn try_agree(&mut self, now: Instant, index: ChunkIndex) {
        let Some(group) = self.groups.get_mut(&index) else { return };
        if !matches!(group.phase, Phase::Sealing) {
            return;
        }
        let in_sync: Vec<DiskId> = group.in_sync().collect();
        group.summaries.retain(|disk, _| in_sync.contains(disk));
        if in_sync.is_empty() {
            self.serve_without_component(index);
            return self.stripes_ready(now, index);
        }
        if in_sync.iter().any(|disk| !group.summaries.contains_key(disk)) {
            return;
        }
        let seq_max = group.summaries.values().map(|s| s.seq_max.max(s.watermark)).max().unwrap_or_default();
        let repairs = if self.bugs.has(Bug::ServeBeforeAgreement) { Vec::new() } else { repairs(group) };
        group.phase = Phase::Agreeing { copies: BTreeSet::new(), seq_max };
        let mut ids = BTreeSet::new();
        let targets: BTreeSet<DiskId> = in_sync.into_iter().collect();
        for Repair { range, sources } in repairs {
            let targets = targets.clone();
            ids.insert(self.start_copy(now, index, range, Why::Agree, sources, targets));
        }
        if let Some(Group { phase: Phase::Agreeing { copies, .. }, .. }) = self.groups.get_mut(&index) {
            copies.extend(ids.into_iter().filter(|id| self.copies.contains_key(id)));
        }
        self.agreed(now, index);
    }

    pub(super) fn agree_copied(&mut self, now: Instant, index: ChunkIndex, id: CopyId, good: bool) {
        let Some(group) = self.groups.get_mut(&index) else { return };
        let Phase::Agreeing { copies, .. } = &mut group.phase else { return };
        if !good {
            return self.agree_again(now, index);
        }
        copies.remove(&id);
        self.agreed(now, index);
    }

    fn agreed(&mut self, now: Instant, index: ChunkIndex) {
        let forget = self.bugs.has(Bug::MarksForgotten);
        let Some(group) = self.groups.get_mut(&index) else { return };
        let Phase::Agreeing { copies, seq_max } = &group.phase else { return };
        if !copies.is_empty() {
            return;
        }
        let marks = if forget { Seq(0) } else { group.stale_max() };
        group.next_seq = seq_max.max(&marks).next();
        group.phase = Phase::Serving;
        group.summaries.clear();
        self.start_backlog(now, index);
        self.stripes_ready(now, index);
    }

    /// A component failed, or the copies did: everything is asked anew, since some may have changed already.
    pub(super) fn agree_again(&mut self, now: Instant, index: ChunkIndex) {
        let Some(group) = self.groups.get_mut(&index) else { return };
        if let Phase::Agreeing { copies, .. } = &group.phase {
            let copies = copies.clone();
            group.phase = Phase::Sealing;
            for copy in copies {
                self.end_copy(now, copy, false);
            }
        }
        let Some(group) = self.groups.get_mut(&index) else { return };
        group.summaries.clear();
        let disks: Vec<DiskId> = group.in_sync().collect();
        let retry = now + self.config.retry_after;
        for disk in disks {
            let link = self.link(now, disk);
            if link.seal == Seal::Done {
                link.seal = Seal::No;
                // A block that no component can read would otherwise be asked for without a pause.
                link.seal_after = retry;
            }
        }
    }

    /// Whether an in-sync disk must still say what it has of some chunk.
    pub(super) fn summary_wanted(&self, disk: DiskId) -> bool {
        self.groups.values().any(|group| {
            matches!(group.phase, Phase::Sealing)
                && group.members.get(&disk).is_some_and(Member::in_sync)
                && !group.summaries.contains_key(&disk)
        })
    }
}

/// What must be copied so that all in-sync components agree above the watermark.
fn repairs(group: &Group) -> Vec<Repair> {
    let watermark = group.summaries.values().map(|s| s.watermark).max().unwrap_or_default();
    let mut blocks: BTreeMap<u32, BTreeMap<DiskId, Version>> = BTreeMap::new();
    for (disk, summary) in &group.summaries {
        for run in summary.tail.iter().filter(|run| run.version.seq > watermark) {
            for block in run.range.blocks() {
                blocks.entry(block).or_default().insert(*disk, run.version);
            }
        }
    }
    let mut repairs: Vec<Repair> = Vec::new();
    for (block, have) in blocks {
        let Some(best) = have.values().max().copied() else { continue };
        if group.summaries.keys().all(|disk| have.get(disk) == Some(&best)) {
            continue;
        }
        // Where no holder of the best version can read it, the next best is taken: it was never acknowledged.
        let mut sources: Vec<DiskId> = group.summaries.keys().copied().collect();
        sources.sort_by_key(|disk| have.get(disk).copied().unwrap_or_default());
        match repairs.last_mut() {
            Some(last)
                if last.range.end() == block
                    && last.range.count() < IO_BLOCKS_MAX
                    && last.sources == sources =>
            {
                if let Ok(range) = BlockRange::new(last.range.first(), last.range.count() + 1) {
                    last.range = range;
                }
            }
            _ => {
                if let Ok(range) = BlockRange::one(block) {
                    repairs.push(Repair { range, sources });
                }
            }
        }
    }
    repairs
}
