//! Where components could go, as a trial: the room that disks have by what they last reported, taken bit by bit. Nothing changes by it.
//!
//! What it must not know: why something is to be placed.

use std::collections::{BTreeMap, BTreeSet};

use ferro_protocol::ids::{ChunkIndex, DiskId};
use ferro_protocol::units::CHUNK_EXTENTS;

use super::State;
use super::placement::{FULL_PERCENT, has_room};
use super::records::{DiskRecord, ObjectRecord, Policy};

/// Why a component has no place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lacking {
    /// No disk outside the fault domains that have one already.
    Place,
    /// None of them has room for it.
    Room,
}

/// The disks that can take something, with the extents that they still take, and their fault domains.
#[derive(Debug)]
pub(super) struct Room<'a> {
    disks: BTreeMap<DiskId, (u64, &'a str)>,
}

impl<'a> Room<'a> {
    /// Takes room for a component of `size` extents on the disk that has most, of those that are `usable` and outside the fault
    /// domains `taken`, which its own joins.
    pub(super) fn take(
        &mut self,
        taken: &mut BTreeSet<&'a str>,
        size: u64,
        usable: impl Fn(DiskId) -> bool,
    ) -> Result<&'a str, Lacking> {
        let places =
            self.disks.iter_mut().filter(|(disk, (_, domain))| !taken.contains(*domain) && usable(**disk));
        let most = places.max_by_key(|(disk, (room, _))| (*room, **disk));
        let (_, (room, domain)) = most.ok_or(Lacking::Place)?;
        *room = room.checked_sub(size).ok_or(Lacking::Room)?;
        taken.insert(domain);
        Ok(domain)
    }
}

impl State {
    /// The room on the disks that stay, as a beginning for trials.
    pub(super) fn room(&self, gone: &BTreeSet<DiskId>) -> Room<'_> {
        let goes = |disk| gone.contains(&disk) || self.is_leaving(disk) || self.is_given_up(disk);
        let stays = |d: &&DiskRecord| has_room(d) && !goes(d.id);
        let room = |disk: &DiskRecord| {
            let usable = disk.capacity_extents.saturating_mul(FULL_PERCENT) / 100;
            usable.saturating_sub(disk.used_extents)
        };
        let disks = self.disks.values().filter(stays);
        Room { disks: disks.filter_map(|d| Some((d.id, (room(d), self.fault_domain(d.id)?)))).collect() }
    }

    /// How many extents a component of the object takes up is not in the directory: its part of what its disk holds, and no less
    /// than what is kept for it.
    pub(super) fn likely_extents(
        &self,
        object: &ObjectRecord,
        policy: Policy,
        index: ChunkIndex,
        disk: DiskId,
        promised: &BTreeMap<DiskId, u64>,
    ) -> u64 {
        let most = u64::from(policy.extents_max(index));
        let part = self.disks.get(&disk).map_or(0, |disk| {
            let all = promised.get(&disk.id).copied().unwrap_or(0).max(1);
            disk.used_extents.saturating_mul(most).div_ceil(all).min(u64::from(CHUNK_EXTENTS))
        });
        part.max(u64::from(self.kept_extents(object, index)))
    }
}
