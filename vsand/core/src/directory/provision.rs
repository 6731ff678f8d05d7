//! How room is found for an object: how much is kept for it, and what becomes of it where there is no place for all its copies.
//!
//! *Kept* is a share of the object's size, from nothing (thin) to all of it (thick), so that its guest can write where it has never
//! written although others have filled the disks.
//!
//! ```text
//!   CreateProvisioned, Provision ──▶ every chunk gets a place, on disks with room for the share of each of its components
//!   ResizeObject                 ──▶ the same for what is added
//!        │
//!        └─ a disk's host counts what is kept on it and not yet written as used, so nothing else is placed there, and its
//!           store gives those extents to nobody else
//! ```
//!
//! *Forced*: a mirror is made, and its chunks are placed, with as many copies as there are fault domains with room for them, one at least. Its
//! owner goes on asking for the others, as for any that are missing. Shards can't do with fewer.
//!
//! Invariants:
//! - each chunk of an object for which something is kept has a place;
//! - what has been kept is part of its disk's `used_extents` from the same command on: two reservations never count on the same
//!   room. A host that has not heard of the last reservation can make that number only larger ([`Command::ReportRoom`]).
//!
//! What it must not know: how much of a component has been written. Its host does.
//!
//! [`Command::ReportRoom`]: super::Command::ReportRoom

use std::collections::BTreeMap;

use ferro_protocol::ids::{ChunkIndex, DiskId, HostId, ObjectId};
use serde::{Deserialize, Serialize};

use super::State;
use super::apply::Applied;
use super::command::{Outcome, Refused};
use super::conversion::Conversion;
use super::placement;
use super::records::{ObjectRecord, Policy};

/// How room is found for an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Provision {
    /// How much of its size is kept for it, in percent, up to 100.
    pub percent: u8,
    /// It is made although there is no place for all its copies.
    pub forced: bool,
}

impl Provision {
    pub(super) fn check(self, policy: Policy) -> Result<(), Refused> {
        if self.percent > 100 {
            let percent = self.percent;
            return Err(Refused::TooMuch(format!(
                "{percent} percent of a volume can't be kept for it, only up to 100"
            )));
        }
        match policy {
            Policy::Parity { .. } if self.forced => Err(Refused::CantForce),
            _ => Ok(()),
        }
    }
}

/// How room is found for all objects.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Provisioning {
    /// What is not in here is as by default.
    objects: BTreeMap<ObjectId, Provision>,
    /// The index of the last command that kept anything more, or less, on a disk.
    changed: u64,
}

impl Provisioning {
    /// How room is found for this object.
    pub fn of(&self, object: ObjectId) -> Provision {
        self.objects.get(&object).copied().unwrap_or_default()
    }

    /// The index of the last command that kept anything more, or less, on a disk.
    pub fn changed(&self) -> u64 {
        self.changed
    }

    pub(super) fn touch(&mut self, index: u64) {
        self.changed = index;
    }

    fn set(&mut self, object: ObjectId, provision: Provision) {
        if provision == Provision::default() {
            self.objects.remove(&object);
        } else {
            self.objects.insert(object, provision);
        }
    }

    /// As it was before [`Self::forget`].
    pub(super) fn put_back(&mut self, object: ObjectId, provision: Provision) {
        self.set(object, provision);
    }

    pub(super) fn forget(&mut self, object: ObjectId) {
        self.objects.remove(&object);
    }
}

impl State {
    /// How many extents each disk keeps for each object, written or not.
    pub fn kept_by_disk(&self) -> BTreeMap<DiskId, BTreeMap<ObjectId, u64>> {
        let mut kept: BTreeMap<DiskId, BTreeMap<ObjectId, u64>> = BTreeMap::new();
        let with_share = self.provisioning.objects.iter().filter(|(_, it)| it.percent > 0);
        for object in with_share.filter_map(|(id, _)| self.objects.get(id)) {
            for (index, chunk) in &object.chunks {
                let extents = u64::from(self.kept_extents(object, *index));
                for component in &chunk.components {
                    *kept.entry(component.disk).or_default().entry(object.id).or_insert(0) += extents;
                }
            }
        }
        kept
    }

    /// How many extents are kept for each component of this record.
    pub(super) fn kept_extents(&self, object: &ObjectRecord, index: ChunkIndex) -> u32 {
        share(object, index, self.provisioning.of(object.id).percent)
    }

    /// Room is found for an object in this way from now on.
    pub(super) fn provision(&mut self, index: u64, object: ObjectId, provision: Provision) -> Applied {
        let record = self.object(object)?;
        let before = self.provisioning.of(object);
        if before == provision {
            return Ok(Outcome::Object(record.clone()));
        }
        provision.check(record.policy)?;
        if let Some(Conversion { to, .. }) = self.conversions.of(object) {
            provision.check(to)?;
        }
        let mut changed = ObjectRecord::clone(record);
        if before.percent != provision.percent {
            self.keep(&mut changed, provision)?;
            self.provisioning.touch(index);
        }
        self.provisioning.set(object, provision);
        // What is being filled was given room in the other way.
        self.drop_target(object);
        self.change(index, object, |record| record.chunks = changed.chunks)
    }

    /// Gives the chunks of an object that have none a place with room for its share, and counts as used what is kept in addition
    /// to before. The record's size and policy are those that it is to have; nothing but disks' use changes here, and
    /// nothing at all if it is refused.
    pub(super) fn keep(&mut self, record: &mut ObjectRecord, provision: Provision) -> Result<(), Refused> {
        let percent = provision.percent;
        if percent == 0 {
            return Ok(());
        }
        let mut more = self.kept_in_addition(record, percent);
        let near: Option<HostId> = record.lock.map(|lock| lock.host);
        let placed = placement::place_rest(self, record, provision, near, &mut more)?;
        let fits = |(disk, extents): (&DiskId, &u64)| {
            self.disks.get(disk).is_none_or(|d| *extents == 0 || placement::holds(d, *extents))
        };
        let Some(placed) = placed.filter(|_| more.iter().all(fits)) else {
            let records = (0..record.chunks_total()).flat_map(|n| record.policy.records(ChunkIndex(n)));
            let extents =
                |index| u64::from(share(record, index, percent)) * record.policy.components(index) as u64;
            return Err(Refused::NoSpaceToReserve { extents: records.map(extents).sum() });
        };
        for (disk, extents) in more {
            if let Some(disk) = self.disks.get_mut(&disk) {
                disk.used_extents = disk.used_extents.saturating_add(extents);
            }
        }
        record.put(placed);
        Ok(())
    }

    /// What this share takes, beyond what is likely written or was kept before, of each disk that has a component already.
    fn kept_in_addition(&self, record: &ObjectRecord, percent: u8) -> BTreeMap<DiskId, u64> {
        let promised = self.promised_by_disk();
        let before = self.objects.get(&record.id).map_or(record, |before| before);
        let mut more = BTreeMap::new();
        for (index, chunk) in &record.chunks {
            let kept = u64::from(share(record, *index, percent));
            for component in &chunk.components {
                let there = self.likely_extents(before, before.policy, *index, component.disk, &promised);
                *more.entry(component.disk).or_insert(0) += kept.saturating_sub(there);
            }
        }
        more
    }

    /// A component of the object's gets a place on this disk: what is kept for it counts there from now on.
    pub(super) fn keep_on(&mut self, index: u64, object: ObjectId, chunk: ChunkIndex, disk: DiskId) {
        let kept = self.objects.get(&object).map_or(0, |record| self.kept_extents(record, chunk));
        if kept > 0
            && let Some(disk) = self.disks.get_mut(&disk)
        {
            disk.used_extents = disk.used_extents.saturating_add(kept.into());
            self.provisioning.touch(index);
        }
    }

    /// What a host says of its disks that had heard of reservations up to the command `seen`.
    pub(super) fn report_room(&mut self, seen: u64, used_extents: &[(DiskId, u64)]) -> Applied {
        let knows_all = seen >= self.provisioning.changed;
        for (disk, used) in used_extents {
            if let Some(record) = self.disks.get_mut(disk) {
                record.used_extents = if knows_all { *used } else { record.used_extents.max(*used) };
            }
        }
        Ok(Outcome::Done)
    }
}

/// The extents that this share of an object takes of each component of the record.
pub(super) fn share(object: &ObjectRecord, index: ChunkIndex, percent: u8) -> u32 {
    let all = u64::from(object.extents_reached(index));
    u32::try_from((all * u64::from(percent)).div_ceil(100)).unwrap_or(u32::MAX)
}
