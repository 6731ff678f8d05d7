//! What nobody asks for: components that stay away too long are built anew elsewhere, those on disks that are leaving
//! ([`crate::directory::leave`]) or in hosts that were given up ([`crate::directory::absence`]) are
//! moved, one at a time also those on disks that are fuller than others ([`crate::directory::balance`]) or have more to serve
//! ([`crate::directory::load`]), and what is left over from a move goes.

use std::time::Duration;

use ferro_protocol::ids::{ChunkIndex, DiskId, Role};

use super::group::{Group, Member, Phase};
use super::stripes::Stripes;
use super::{Owner, Trouble};
use crate::bugs::Bug;
use crate::directory::{Basis, Command};
use crate::time::Now;

/// How often chunks are looked through.
const EVERY: Duration = Duration::from_secs(1);
/// A shard's disk that is to be emptied has so long to come back before the shard is made of the others.
const SHARD_PATIENCE: Duration = Duration::from_secs(30);
/// So long has a disk to answer a new owner, or one that waited for it while its host was in maintenance, before it counts as away:
/// connections are made meanwhile.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// A component that is to be elsewhere, though its disk stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Moving {
    pub chunk: ChunkIndex,
    pub from: DiskId,
    /// To where, if it is not for the directory to say.
    pub to: Option<DiskId>,
    /// The directory has not answered yet.
    pub wanted: bool,
}

impl Owner {
    /// Begins to move a component to another disk, unless one is being moved already: to `to`, or to where the directory says. It ends
    /// when the directory says that the chunk has one more in sync, or has no place for it.
    pub fn move_component(&mut self, now: Now, chunk: ChunkIndex, from: DiskId, to: Option<DiskId>) {
        let there = |c: &crate::directory::ChunkRecord| c.in_sync().any(|disk| disk == from);
        if !self.fenced && self.moving.is_none() && self.record.chunks.get(&chunk).is_some_and(there) {
            self.moving = Some(Moving { chunk, from, to, wanted: true });
            self.settle(now);
        }
    }

    /// Whether a component is being moved from a disk that stays.
    pub fn is_moving(&self) -> bool {
        self.moving.is_some()
    }

    /// The directory has answered, or nobody knows whether it has: whoever wants the move still asks again.
    pub(super) fn move_answered(&mut self) {
        if let Some(moving) = &mut self.moving {
            moving.wanted = false;
        }
        self.check_move();
    }

    /// The move is over when there is one more in sync, of which one goes, or when nothing came of it.
    pub(super) fn check_move(&mut self) {
        self.vacated = self.vacated.filter(|(chunk, disk)| self.is_beyond_need(*chunk, *disk));
        let Some(moving) = self.moving else { return };
        let more = self.is_beyond_need(moving.chunk, moving.from);
        let chunk = self.record.chunks.get(&moving.chunk);
        let there = chunk.is_some_and(|c| c.components.iter().any(|c| c.disk == moving.from));
        let needed = self.record.policy.components(moving.chunk);
        let copied = chunk.is_some_and(|c| c.in_sync().count() > needed);
        if there && (moving.wanted || (more && !copied)) {
            return;
        }
        self.moving = None;
        if more && copied && moving.to.is_some() {
            self.vacated = Some((moving.chunk, moving.from));
        }
    }

    /// No disk can take a component of this chunk: if one is being moved and where it was to go has failed, it stays where it is.
    pub(super) fn no_room_elsewhere(&mut self, chunk: ChunkIndex) {
        self.moving = self.moving.filter(|moving| moving.chunk != chunk);
    }

    /// Whether a chunk has a component on this disk and more of them than it needs.
    fn is_beyond_need(&self, index: ChunkIndex, disk: DiskId) -> bool {
        let needed = self.record.policy.components(index);
        self.record
            .chunks
            .get(&index)
            .is_some_and(|c| c.components.len() > needed && c.components.iter().any(|c| c.disk == disk))
    }

    /// What takes a component from a chunk that has one too many: the one that was moved, if it is known which that is.
    pub(super) fn trim_command(&self, basis: Basis, chunk: ChunkIndex, unix_s: u64) -> Command {
        match self.vacated {
            Some((moved, disk)) if moved == chunk => Command::TrimFrom { basis, chunk, disk, unix_s },
            _ => Command::Trim { basis, chunk },
        }
    }

    /// Finds chunks that need another component.
    pub(super) fn check_stale(&mut self, now: Now) {
        if now.mono < self.next_check {
            return;
        }
        self.next_check = now.mono + EVERY;
        self.refresh_troubles();
        self.repair_wanted.clear();
        self.trim_wanted.clear();
        self.drop_dead(now);
        self.give_up_shards(now);
        if !self.degraded && self.leaving.is_empty() {
            return;
        }
        let mut wanted: Vec<(ChunkIndex, Option<DiskId>)> = Vec::new();
        let mut spare: Vec<ChunkIndex> = Vec::new();
        let mut lame: Vec<(ChunkIndex, DiskId)> = Vec::new();
        let placed = |g: &&super::group::Group| self.record.chunks.contains_key(&g.index);
        for group in self.groups.values().filter(placed).filter(|g| matches!(g.phase, Phase::Serving)) {
            let staying = || self.staying(group);
            if staying().count() < self.record.policy.components(group.index) {
                if self.can_fill(group.index) {
                    wanted.push((group.index, None));
                }
                continue;
            }
            if self.has_spare(group) {
                // What the others do without, and does not answer, goes first: the directory does not know that it does not.
                let before = lame.len();
                lame.extend(group.healthy().filter(|d| !self.usable(*d)).map(|d| (group.index, d)));
                if lame.len() == before {
                    spare.push(group.index);
                }
                continue;
            }
            let overdue = staying().find(|(disk, member)| {
                let Some(since) = member.sync.stale_since() else { return false };
                let dead = self.links.get(disk).is_some_and(|l| l.dead);
                let late = now.unix_s.saturating_sub(since) >= self.config.repair_delay_s
                    && now.mono >= self.patient_until;
                // One that is being filled is left alone, however old its mark.
                let waited = self.resting.contains(*disk) && !self.bugs.has(Bug::MaintenanceRebuilds);
                member.resync.is_none() && (dead || (late && !waited && !self.trusted(**disk)))
            });
            if let Some((disk, _)) = overdue {
                wanted.push((group.index, Some(*disk)));
            }
        }
        self.repair_wanted.extend(wanted);
        self.trim_wanted.extend(spare);
        for (chunk, disk) in lame {
            self.member_failed(now.mono, chunk, disk);
        }
    }

    /// Whether there is something now that another component of the record could be filled from.
    fn can_fill(&self, index: ChunkIndex) -> bool {
        self.resync_source(index).is_some() || self.can_decode(index)
    }

    /// The components of a chunk that are not on their way to another disk.
    fn staying<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = (&'a DiskId, &'a Member)> {
        let more = group.members.len() > self.record.policy.components(group.index);
        let moving = self.moving.filter(|m| m.chunk == group.index && more).map(|m| m.from);
        group.members.iter().filter(move |(disk, _)| !self.leaving.contains(disk) && moving != Some(**disk))
    }

    /// Whether a chunk has components enough without one of those that it has: what is not in sync of it is not filled any more.
    pub(super) fn has_spare(&self, group: &Group) -> bool {
        let needed = self.record.policy.components(group.index);
        let good =
            |(disk, member): &(&DiskId, &Member)| member.in_sync() && !member.failing && self.usable(**disk);
        group.members.len() > needed && self.staying(group).filter(good).count() >= needed
    }

    /// Components on disks that are dead leave the in-sync set, also of chunks that nobody writes to: else they would be
    /// missed only when another one fails.
    fn drop_dead(&mut self, now: Now) {
        let dead = |disk: &DiskId| self.links.get(disk).is_some_and(|l| l.dead);
        let serving = self.groups.values().filter(|g| matches!(g.phase, Phase::Serving));
        let gone: Vec<(ChunkIndex, DiskId)> =
            serving.flat_map(|g| g.healthy().filter(dead).map(|d| (g.index, d))).collect();
        for (chunk, disk) in gone {
            self.member_failed(now.mono, chunk, disk);
        }
    }

    /// A shard is made of the others only when none of its own components is in sync: one that is to go from a disk which is not
    /// there would be waited for. It may be needed as long as it counts, so only where the others are there, and a few at a time.
    fn give_up_shards(&mut self, now: Now) {
        if self.leaving.is_empty() || now.mono < self.patient_until {
            return;
        }
        let away = |disk: &DiskId| {
            let long = |link: &super::links::Link| !link.up && now.mono >= link.away_since + SHARD_PATIENCE;
            self.leaving.contains(disk) && self.links.get(disk).is_some_and(long)
        };
        let replaced = |group: &&Group| {
            let shard = matches!(group.index.role(), Role::Shard(_));
            shard && group.members.len() > 1 && matches!(group.phase, Phase::Serving)
        };
        let shards = || self.groups.values().filter(replaced);
        let under_way = shards().filter(|g| g.healthy().next().is_none()).count();
        let waits = |g: &&Group| g.healthy().all(|disk| away(&disk)) && self.can_decode(g.index);
        let gone: Vec<(ChunkIndex, DiskId)> = shards()
            .filter(waits)
            .flat_map(|g| g.healthy().map(|disk| (g.index, disk)))
            .take((2 * self.config.resyncs_max).saturating_sub(under_way))
            .collect();
        for (chunk, disk) in gone {
            self.member_failed(now.mono, chunk, disk);
        }
    }

    /// Takes back what is no trouble any more.
    fn refresh_troubles(&mut self) {
        let (groups, stripes, asks, links) = (&self.groups, &self.stripes, &self.asks, &self.links);
        self.troubles.retain(|trouble| match trouble {
            Trouble::Unreachable(chunk) => {
                groups.get(chunk).is_some_and(|g| !g.stalled.is_empty())
                    || stripes.get(chunk).is_some_and(Stripes::is_stuck)
            }
            Trouble::Full(disk) => asks.values().any(|a| a.disk == *disk && a.not_before.0 > 0),
            // One that has nothing of this object any more troubles nobody.
            Trouble::Stuck(disk) => {
                links.get(disk).is_some_and(|l| !l.stuck.is_empty())
                    && groups.values().any(|g| g.members.contains_key(disk))
            }
            Trouble::NoPlace(_) | Trouble::NoDirectory => true,
        });
    }
}
