//! Scrubbing: all that the components of one chunk hold is read by their disks and its checksums looked at, so that a block
//! that has gone bad is found while there are others to mend it from, and not when those have failed.
//!
//! ```text
//!   component by component, extent by extent, those without data left out:
//!
//!   next ──Verify──▶ asked ──Verified────────────────────────▶ next extent; after the last the next component
//!    ▲                 │ bad blocks: mended as those that a read finds ([`super::copy`], [`super::stripes`])
//!    │                 ▼
//!    └─Verify again── mending      in sight of an end each time fewer are bad, or given up
//! ```
//!
//! No data travels, but for what is mended. One chunk is scrubbed at a time, one request is under way: what else there is to
//! pace, and which chunk is next, is the driver's.
//!
//! Invariants:
//! - only components that are in sync are looked at; what is bad on another is copied anew when it comes back;
//! - a component that can't be asked yet, because the owner is new or the connection just broke, is waited for a few seconds
//!   ([`PATIENCE`]): else the first chunk of a volume that is owned only for its scrub would never be looked at;
//! - one that can't be asked for longer, or stops answering, is skipped and counted: a scrub waits for nothing without end.
//!   So a host that does not know the request, and drops the connection for it, is asked once a chunk;
//! - what is mended goes through the copies that reads use, with their locks: nothing here writes.
//!
//! What it must not know: schedules, what a disk's bad blocks mean for it.

use std::collections::VecDeque;

use bytes::Bytes;
use ferro_protocol::ids::{ChunkIndex, DiskId};
use ferro_protocol::peer::{Refusal, Reply, Request};
use ferro_protocol::units::{BLOCK_BYTES, CHUNK_BLOCKS, EXTENT_BLOCKS};

use super::background::PATIENCE;
use super::copy::Why;
use super::group::Phase;
use super::links::Purpose;
use super::resync::Budget;
use super::{Effect, Owner};
use crate::bugs::Bug;
use crate::time::Instant;

/// A request costs as much as so many bytes, also one that finds nothing to read.
const ASK_COST_BYTES: usize = 4 * BLOCK_BYTES;
/// Bad blocks that did not get fewer so many times, one after the other, are left.
const ROUNDS_MAX: u32 = 3;

/// How a scrub of a chunk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrubEnd {
    /// The chunk.
    pub chunk: ChunkIndex,
    /// Blocks with data that were read, on all components together.
    pub blocks: u64,
    /// Those of them that were bad.
    pub found: u32,
    /// Those of the bad ones that were mended; the others have nothing to be mended from now.
    pub mended: u32,
    /// Components that were not looked at, or not to their end: they are not in sync, or do not answer.
    pub skipped: u32,
    /// Those of them whose disk went away while it was being asked. Who goes on at once may do harm: it may be because the
    /// host does not know the request.
    pub lost: u32,
}

/// How far a scrub is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScrubView {
    /// What was found so far.
    pub so_far: ScrubEnd,
    /// Components in all.
    pub components: u32,
    /// Components that are done with.
    pub components_done: u32,
}

/// A scrub under way.
#[derive(Debug)]
pub(super) struct Scrub {
    bytes_per_s: u64,
    budget: Budget,
    /// Components to look at, the one that is looked at now first.
    left: VecDeque<(ChunkIndex, DiskId)>,
    components: u32,
    /// The first block of that one that was not looked at.
    at: u32,
    step: Step,
    end: ScrubEnd,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Next,
    Asked(Option<Bad>),
    Mending(Bad),
}

/// What is bad in the extent that is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Bad {
    /// At first, and the last time.
    first: u32,
    last: u32,
    /// How often it did not get less.
    rounds: u32,
    /// Not looked at again before this time.
    again: Instant,
}

/// Whether a component can be looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scrubbable {
    Now,
    Soon,
    No,
}

impl Owner {
    /// Begins to scrub a chunk, at most so fast; what was being scrubbed before is dropped. The end is told by
    /// [`Effect::Scrubbed`], of a chunk without a place at once.
    pub fn scrub(&mut self, now: crate::time::Now, chunk: ChunkIndex, bytes_per_s: u64) {
        if self.fenced {
            return;
        }
        self.stop_scrub();
        let chunk = chunk.base();
        let components = |index: ChunkIndex| {
            let members = self.groups.get(&index).into_iter().flat_map(|group| group.members.keys());
            members.map(move |disk| (index, *disk))
        };
        let mut left: VecDeque<_> = self.record.policy.records(chunk).flat_map(components).collect();
        if self.bugs.has(Bug::ScrubSkipsCopies) {
            left.truncate(1);
        }
        self.scrub = Some(Scrub {
            bytes_per_s,
            budget: Budget::new(now.mono),
            components: left.len() as u32,
            left,
            at: 0,
            step: Step::Next,
            end: ScrubEnd { chunk, ..ScrubEnd::default() },
        });
        self.settle(now);
    }

    /// Drops the scrub that runs, if one does; nothing more is told of it.
    pub fn stop_scrub(&mut self) {
        self.scrub = None;
        self.cancel_asks(|a| a.purpose == Purpose::Scrub);
    }

    /// The scrub that runs.
    pub fn scrub_view(&self) -> Option<ScrubView> {
        let scrub = self.scrub.as_ref()?;
        let components_done = scrub.components - scrub.left.len() as u32;
        Some(ScrubView { so_far: scrub.end, components: scrub.components, components_done })
    }

    /// Moves the scrub that runs, if it can move.
    pub(super) fn run_scrub(&mut self, now: Instant) {
        while let Some(scrub) = &mut self.scrub {
            let Some((index, disk)) = scrub.left.front().copied() else {
                self.effects.push_back(Effect::Scrubbed(scrub.end));
                self.scrub = None;
                return;
            };
            let bad = match scrub.step {
                Step::Asked(_) => return,
                Step::Next => None,
                Step::Mending(bad) => Some(bad),
            };
            if bad.is_some_and(|bad| now < bad.again) {
                return;
            }
            scrub.budget.refill(now, scrub.bytes_per_s);
            if scrub.budget.is_spent() {
                return;
            }
            let from_block = scrub.at;
            match self.scrubbable(now, index, disk) {
                Scrubbable::Now => {}
                Scrubbable::Soon => return,
                Scrubbable::No => {
                    self.scrub_lost(disk);
                    continue;
                }
            }
            let mends =
                |c: &super::copy::Copy| c.chunk == index && c.why == Why::Mend && c.targets.contains(&disk);
            if bad.is_some() && self.copies.values().any(mends) {
                return;
            }
            let Some(scrub) = &mut self.scrub else { return };
            scrub.step = Step::Asked(bad);
            let request = Request::Verify { chunk: self.chunk_id(index), epoch: self.epoch, from_block };
            self.ask(now, disk, Purpose::Scrub, request, Bytes::new());
            return;
        }
    }

    /// Whether a component can be looked at.
    fn scrubbable(&self, now: Instant, index: ChunkIndex, disk: DiskId) -> Scrubbable {
        let group = self.groups.get(&index);
        let member = group.and_then(|g| g.members.get(&disk)).filter(|m| m.in_sync() && !m.failing);
        let (Some(group), Some(_), Some(link)) = (group, member, self.links.get(&disk)) else {
            return Scrubbable::No;
        };
        let serving = matches!(group.phase, Phase::Serving);
        let soon = (serving || now < self.patient_until) && (link.up || now < link.away_since + PATIENCE);
        match (serving && link.trusted(), soon && link.promising()) {
            (true, _) => Scrubbable::Now,
            (false, true) => Scrubbable::Soon,
            (false, false) => Scrubbable::No,
        }
    }

    pub(super) fn scrub_answered(&mut self, now: Instant, disk: DiskId, reply: Result<Reply, Refusal>) {
        let leaves_bad = self.bugs.has(Bug::ScrubLeavesBad);
        let again = now + self.config.retry_after * 5;
        let Some(scrub) = &mut self.scrub else { return };
        let Some((index, _)) = scrub.left.front().copied().filter(|(_, at)| *at == disk) else { return };
        let Step::Asked(before) = scrub.step else { return };
        let (last, next_block) = match &reply {
            Ok(Reply::Verified { blocks, next_block }) => {
                let blocks = (*blocks).min(EXTENT_BLOCKS);
                scrub.end.blocks += u64::from(blocks);
                scrub.budget.spend(blocks as usize * BLOCK_BYTES + ASK_COST_BYTES);
                (0, *next_block)
            }
            Err(Refusal::BadBlocks { bad }) => {
                scrub.budget.spend(EXTENT_BLOCKS as usize * BLOCK_BYTES);
                let next_block = bad.iter().max().map(|block| (block / EXTENT_BLOCKS).saturating_add(1));
                let next_block = next_block.and_then(|extent| extent.checked_mul(EXTENT_BLOCKS));
                ((bad.len() as u32).clamp(1, EXTENT_BLOCKS), next_block)
            }
            _ => return self.scrub_lost(disk),
        };
        let first = before.map_or(last, |bad| bad.first);
        let rounds = before.filter(|bad| last >= bad.last).map_or(0, |bad| bad.rounds + 1);
        if before.is_none() {
            scrub.end.found += first;
        }
        if last == 0 || rounds >= ROUNDS_MAX || leaves_bad {
            scrub.end.mended += first.saturating_sub(last);
            scrub.step = Step::Next;
            // Only forward, whatever a disk says.
            let next = next_block.filter(|next| *next > scrub.at && *next < CHUNK_BLOCKS);
            scrub.at = next.unwrap_or(0);
            if next.is_none() {
                scrub.left.pop_front();
            }
            return;
        }
        scrub.step = Step::Mending(Bad { first, last, rounds, again });
        if let Err(Refusal::BadBlocks { bad }) = reply {
            self.mend(now, index, disk, &bad);
        }
    }

    /// The connection to a disk broke. If it was being asked it is not asked again: that might cost the next connection too,
    /// should the host not know the request.
    pub(super) fn scrub_cut(&mut self, disk: DiskId) {
        if self.scrub.as_ref().is_some_and(|scrub| matches!(scrub.step, Step::Asked(_))) {
            self.scrub_lost(disk);
        }
    }

    /// The component that is looked at, if it is on this disk, can't be any more: the next.
    pub(super) fn scrub_lost(&mut self, disk: DiskId) {
        let Some(scrub) = &mut self.scrub else { return };
        if scrub.left.front().is_some_and(|(_, at)| *at == disk) {
            scrub.left.pop_front();
            scrub.end.skipped += 1;
            scrub.end.lost += u32::from(matches!(scrub.step, Step::Asked(_)));
            (scrub.at, scrub.step) = (0, Step::Next);
            self.cancel_asks(|a| a.purpose == Purpose::Scrub);
        }
    }
}
