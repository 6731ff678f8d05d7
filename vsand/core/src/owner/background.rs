//! What nobody asks for: components that stay away too long are built anew elsewhere, those on disks that are leaving are
//! moved, and what is left over from a move goes ([`crate::directory::leave`]).

use std::time::Duration;

use ferro_protocol::ids::{ChunkIndex, DiskId};

use super::group::Phase;
use super::stripes::Stripes;
use super::{Owner, Trouble};
use crate::bugs::Bug;
use crate::time::Now;

/// How often chunks are looked through.
const EVERY: Duration = Duration::from_secs(1);
/// So long has a disk to answer a new owner, or one that waited for it while its host was in maintenance, before it counts as away:
/// connections are made meanwhile.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

impl Owner {
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
        if !self.degraded && self.leaving.is_empty() {
            return;
        }
        let mut wanted: Vec<(ChunkIndex, Option<DiskId>)> = Vec::new();
        let mut spare: Vec<ChunkIndex> = Vec::new();
        let placed = |g: &&super::group::Group| self.record.chunks.contains_key(&g.index);
        for group in self.groups.values().filter(placed).filter(|g| matches!(g.phase, Phase::Serving)) {
            let needed = self.record.policy.components(group.index);
            let staying = || group.members.iter().filter(|(disk, _)| !self.leaving.contains(disk));
            if staying().count() < needed {
                wanted.push((group.index, None));
                continue;
            }
            let good = staying().filter(|(disk, m)| m.in_sync() && !m.failing && self.usable(**disk)).count();
            if group.members.len() > needed && good >= needed {
                spare.push(group.index);
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
