//! Disks and hosts that leave: what they hold is built elsewhere first, and only then they go.
//!
//! ```text
//!   stays ──LeaveDisk, LeaveHost──▶ leaving ──no component left: RemoveDisk, RemoveHost──▶ gone
//!     ▲                               │
//!     └────────── departure: None ────┘
//!
//!   per chunk:  Repair (one more component elsewhere) ─▶ resync ─▶ ChangeSync Add ─▶ Trim (the one that leaves is not in
//!               sync any more) ─▶ Trim (it goes)
//! ```
//!
//! A component on a disk that leaves stays in the in-sync set, and writes wait for it, until those that stay are as many as
//! the policy asks for: so the redundancy never falls. Whether the others can take all of it is checked before anything
//! begins, by what disks last reported; where that turns out wrong the move waits, and can be taken back.
//!
//! A component that goes is removed from its disk by whoever has it, and reads as zeros from then on. So its owner must know first that
//! nothing may be read there: it proposes the second `Trim` on the basis of the record that the first one made.
//!
//! What it must not know: who copies, how far a copy is.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use ferro_protocol::ids::{ChunkIndex, DiskId, HostId, Seq};

use super::State;
use super::apply::Applied;
use super::balance;
use super::command::{Basis, Outcome, Refused};
use super::level::FeatureLevel;
use super::placement::has_room;
use super::records::{
    Component, Departure, DiskHealth, DiskRecord, LockKind, MaintenanceMode, ObjectRecord, Policy, Sync,
};
use super::room::Lacking;

impl State {
    /// Whether a disk is leaving, by itself or with its host, or is emptied because its host is in full maintenance.
    pub fn is_leaving(&self, disk: DiskId) -> bool {
        self.leaving_disks.contains_key(&disk)
            || self.disks.get(&disk).and_then(|d| self.leaving_hosts.get(&d.host)).is_some_and(|departure| {
                use Departure::{AtOnce, Maintenance, WhenEmpty};
                matches!(departure, WhenEmpty | AtOnce | Maintenance { mode: MaintenanceMode::Full, .. })
            })
    }

    /// The disks that are leaving.
    pub fn leaving(&self) -> BTreeSet<DiskId> {
        if self.leaving_disks.is_empty() && self.leaving_hosts.is_empty() {
            return BTreeSet::new();
        }
        self.disks.keys().copied().filter(|disk| self.is_leaving(*disk)).collect()
    }

    /// Whether an object is as its policy asks, with nothing on a disk that it is to go from, and is not to become another.
    pub fn is_settled(&self, object: &ObjectRecord) -> bool {
        if !object.settled() || self.conversions.of(object.id).is_some() {
            return false;
        }
        let emptied = self.emptied(object.policy);
        let mut components = object.chunks.values().flat_map(|c| &c.components);
        emptied.is_empty() || !components.any(|c| emptied.contains(&c.disk))
    }

    /// Whether a component of any object is on one of these disks.
    pub fn holds_components(&self, disks: &[DiskId]) -> bool {
        let chunks = self.objects.values().flat_map(|o| o.chunks.values());
        chunks.flat_map(|c| &c.components).any(|c| disks.contains(&c.disk))
    }

    /// The disks that are in a host.
    pub fn disks_in(&self, host: HostId) -> Vec<DiskId> {
        self.disks.values().filter(|d| d.host == host).map(|d| d.id).collect()
    }

    pub(super) fn leave_disk(&mut self, disk: DiskId, departure: Option<Departure>) -> Applied {
        let record = self.disks.get(&disk).ok_or(Refused::NoDisk(disk))?;
        let what = format!("disk {}", record.path);
        match departure {
            None => {
                self.leaving_disks.remove(&disk);
            }
            Some(departure) => {
                if matches!(departure, Departure::Maintenance { .. }) {
                    return Err(Refused::NotOfDisks);
                }
                self.check_departure(&what, &[disk], departure)?;
                self.leaving_disks.insert(disk, departure);
            }
        }
        Ok(Outcome::Done)
    }

    pub(super) fn leave_host(&mut self, host: HostId, departure: Option<Departure>) -> Applied {
        let record = self.hosts.get(&host).ok_or(Refused::NoHost(host))?;
        let what = format!("host {}", record.name);
        match departure {
            None => {
                self.leaving_hosts.remove(&host);
            }
            Some(departure @ Departure::Maintenance { mode, .. }) => {
                self.check_maintenance(host, mode)?;
                self.leaving_hosts.insert(host, departure);
            }
            Some(departure) => {
                if self.hosts.keys().all(|h| *h == host || self.is_host_leaving(*h)) {
                    return Err(Refused::LastHost(host));
                }
                self.check_closed(host)?;
                self.check_departure(&what, &self.disks_in(host), departure)?;
                self.leaving_hosts.insert(host, departure);
            }
        }
        Ok(Outcome::Done)
    }

    /// Refuses while a volume is open on the host; repairs in the background are nobody's opening.
    pub(super) fn check_closed(&self, host: HostId) -> Result<(), Refused> {
        let open = |o: &&std::sync::Arc<ObjectRecord>| {
            o.lock.is_some_and(|l| l.host == host && l.kind != LockKind::Background)
        };
        match self.objects.values().find(open) {
            Some(object) => Err(Refused::HoldsLock { host, volume: object.name.clone() }),
            None => Ok(()),
        }
    }

    fn check_departure(&self, what: &str, disks: &[DiskId], departure: Departure) -> Result<(), Refused> {
        match departure {
            Departure::AtOnce => self.check_expendable(what, disks),
            Departure::WhenEmpty => self.check_movable(what, disks, |_| true),
            // It is checked by itself.
            Departure::Maintenance { .. } => Ok(()),
        }
    }

    /// Refuses if the other disks can't hold what is on these, or could not hold any longer what volumes may still write.
    pub(super) fn check_movable(
        &self,
        what: &str,
        disks: &[DiskId],
        moves: impl Fn(&ObjectRecord) -> bool,
    ) -> Result<(), Refused> {
        let before = self.leaving();
        let mut leaving = before.clone();
        leaving.extend(disks);
        let domains = |leaving: &BTreeSet<DiskId>, policy| {
            let stays = |d: &&DiskRecord| !leaving.contains(&d.id) && !self.is_emptied(policy, d.id);
            let usable = self.disks.values().filter(|d| has_room(d)).filter(stays);
            usable.filter_map(|d| self.fault_domain(d.id)).collect::<BTreeSet<&str>>().len()
        };
        // Of each policy, before and after.
        let mut counted: Vec<(Policy, usize, usize)> = Vec::new();
        for object in self.objects.values().filter(|o| moves(o)) {
            let (policy, needed) = (object.policy, object.policy.domains());
            let known = counted.iter().find(|(of, ..)| *of == policy).copied();
            let (_, had, found) = known.unwrap_or_else(|| {
                let count = (policy, domains(&before, policy), domains(&leaving, policy));
                counted.push(count);
                count
            });
            if found < needed && found < had {
                let example = object.name.clone();
                return Err(Refused::CantMove { what: what.to_owned(), example, needed, found });
            }
        }
        self.try_moves(what, &leaving, disks, moves)
    }

    /// Places every component of the disks that leave on those that stay, as a trial.
    fn try_moves(
        &self,
        what: &str,
        leaving: &BTreeSet<DiskId>,
        disks: &[DiskId],
        moves: impl Fn(&ObjectRecord) -> bool,
    ) -> Result<(), Refused> {
        let promised = self.promised_by_disk();
        let total = disks
            .iter()
            .filter_map(|d| self.disks.get(d))
            .map(|d| d.used_extents)
            .fold(0, u64::saturating_add);
        let mut free = self.room(leaving);
        for object in self.objects.values().filter(|o| moves(o)) {
            // Where the shards are that were moved already: their former fault domains are free for the others.
            let mut moved: BTreeMap<ChunkIndex, BTreeSet<&str>> = BTreeMap::new();
            for (index, chunk) in &object.chunks {
                let goes = |c: &&Component| leaving.contains(&c.disk);
                let stay = chunk.components.iter().filter(|c| !goes(c)).map(|c| c.disk);
                let mut own: BTreeSet<&str> = stay.filter_map(|d| self.fault_domain(d)).collect();
                let mut taken = own.clone();
                for (other, shard) in object.other_shards(*index) {
                    match moved.get(&other) {
                        Some(domains) => taken.extend(domains),
                        None => {
                            taken.extend(shard.components.iter().filter_map(|c| self.fault_domain(c.disk)))
                        }
                    }
                }
                let needed = object.policy.components(*index);
                let staying = chunk.components.iter().filter(|c| !goes(c)).count();
                let going = chunk.components.iter().filter(goes).take(needed.saturating_sub(staying));
                for component in going {
                    let size = self.likely_extents(object, object.policy, *index, component.disk, &promised);
                    let usable = |disk| !self.is_emptied(object.policy, disk);
                    let domain = free.take(&mut taken, size, usable).map_err(|lacking| {
                        let (what, example) = (what.to_owned(), object.name.clone());
                        match lacking {
                            Lacking::Place => {
                                let needed = object.policy.domains();
                                Refused::CantMove { what, example, needed, found: taken.len() }
                            }
                            Lacking::Room => Refused::NoSpaceElsewhere { what, example, extents: total },
                        }
                    })?;
                    own.insert(domain);
                }
                moved.insert(*index, own);
            }
        }
        Ok(())
    }

    /// A component goes that its chunk does not need: of this disk, if that is said.
    pub(super) fn trim(
        &mut self,
        index: u64,
        basis: Basis,
        chunk: ChunkIndex,
        which: Option<DiskId>,
    ) -> Applied {
        let record = self.owned(basis)?;
        let spare = self.spare(record, chunk, which)?;
        let in_steps = self.level >= FeatureLevel::TRIMMED_IN_STEPS;
        self.change(index, basis.object, |record| {
            let since_unix_s = record.lock.map_or(0, |lock| lock.since_unix_s);
            let Some(chunk) = record.chunks.get_mut(&chunk) else { return };
            match chunk.components.iter_mut().find(|c| c.disk == spare) {
                Some(component) if in_steps && component.in_sync() => {
                    component.sync = Sync::Stale { stale_seq: Seq(0), since_unix_s };
                }
                _ => chunk.components.retain(|c| c.disk != spare),
            }
        })
    }

    /// A component that the others can do without, and those are there: first of a disk that leaves, then one that is not in sync, then
    /// one whose host is away, then one whose host is in maintenance and may be, then the one that is farthest from what the volume prefers,
    /// then the one on the fullest disk. Only that of `which`, if it is given.
    fn spare(
        &self,
        object: &ObjectRecord,
        index: ChunkIndex,
        which: Option<DiskId>,
    ) -> Result<DiskId, Refused> {
        let (policy, needed) = (object.policy, object.policy.components(index));
        let chunk = object.chunks.get(&index).ok_or(Refused::NoComponent(index))?;
        let good = |c: &&Component| {
            let works = self.disks.get(&c.disk).is_some_and(|d| d.health == DiskHealth::Healthy);
            c.in_sync() && works && !self.is_emptied(policy, c.disk) && !self.is_away(c.disk)
        };
        let without = |disk: Option<DiskId>| {
            chunk.components.iter().filter(good).map(|c| c.disk).filter(move |d| Some(*d) != disk)
        };
        let spread = |disk: Option<DiskId>| {
            without(disk).filter_map(|d| self.fault_domain(d)).collect::<BTreeSet<&str>>().len()
        };
        let wanted = spread(None).min(needed);
        chunk
            .components
            .iter()
            .filter(|c| which.is_none_or(|which| which == c.disk))
            .filter(|c| without(Some(c.disk)).count() >= needed && spread(Some(c.disk)) >= wanted)
            .min_by_key(|c| {
                let fullness = Reverse(self.disks.get(&c.disk).map(balance::fullness));
                let waits = (!self.is_away(c.disk), !self.is_resting(c.disk));
                let far = Reverse(self.rank(object, index, c.disk, c.disk));
                (!self.is_emptied(policy, c.disk), c.in_sync(), waits, far, fullness, c.disk)
            })
            .map(|c| c.disk)
            .ok_or(Refused::NothingSpare(index))
    }
}
