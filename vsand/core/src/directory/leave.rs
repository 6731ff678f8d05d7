//! Disks and hosts that leave: what they hold is built elsewhere first, and only then they go.
//!
//! ```text
//!   stays ──LeaveDisk, LeaveHost──▶ leaving ──no component left: RemoveDisk, RemoveHost──▶ gone
//!     ▲                               │
//!     └────────── departure: None ────┘
//!
//!   per chunk:  Repair (one more component elsewhere) ─▶ resync ─▶ ChangeSync Add ─▶ Trim (the one that leaves goes)
//! ```
//!
//! A component on a disk that leaves stays in the in-sync set, and writes wait for it, until those that stay are as many as
//! the policy asks for: so the redundancy never falls. Whether the others can take all of it is checked before anything
//! begins, by what disks last reported; where that turns out wrong the move waits, and can be taken back.
//!
//! What it must not know: who copies, how far a copy is.

use std::collections::{BTreeMap, BTreeSet};

use ferro_protocol::ids::{ChunkIndex, DiskId, HostId};
use ferro_protocol::units::CHUNK_EXTENTS;

use super::State;
use super::apply::Applied;
use super::command::{Basis, Outcome, Refused};
use super::placement::{FULL_PERCENT, has_room};
use super::records::{ChunkRecord, Component, Departure, DiskHealth, DiskRecord, LockKind, ObjectRecord};

impl State {
    /// Whether a disk is leaving, by itself or with its host.
    pub fn is_leaving(&self, disk: DiskId) -> bool {
        self.leaving_disks.contains_key(&disk)
            || self.disks.get(&disk).is_some_and(|d| self.leaving_hosts.contains_key(&d.host))
    }

    /// The disks that are leaving.
    pub fn leaving(&self) -> BTreeSet<DiskId> {
        if self.leaving_disks.is_empty() && self.leaving_hosts.is_empty() {
            return BTreeSet::new();
        }
        self.disks.keys().copied().filter(|disk| self.is_leaving(*disk)).collect()
    }

    /// Whether an object is as its policy asks, with nothing on a disk that is leaving.
    pub fn is_settled(&self, object: &ObjectRecord) -> bool {
        object.settled()
            && (self.leaving_disks.is_empty() && self.leaving_hosts.is_empty()
                || !object.chunks.values().flat_map(|c| &c.components).any(|c| self.is_leaving(c.disk)))
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
            Some(departure) => {
                if self.hosts.keys().all(|h| *h == host || self.leaving_hosts.contains_key(h)) {
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
            Departure::WhenEmpty => self.check_movable(what, disks),
        }
    }

    /// Refuses if the other disks can't hold what is on these, or could not hold any longer what volumes may still write.
    fn check_movable(&self, what: &str, disks: &[DiskId]) -> Result<(), Refused> {
        let before = self.leaving();
        let mut leaving = before.clone();
        leaving.extend(disks);
        let domains = |leaving: &BTreeSet<DiskId>| {
            let usable = self.disks.values().filter(|d| has_room(d) && !leaving.contains(&d.id));
            usable.filter_map(|d| self.fault_domain(d.id)).collect::<BTreeSet<&str>>().len()
        };
        let (had, found) = (domains(&before), domains(&leaving));
        for object in self.objects.values() {
            let needed = object.policy.components();
            if found < needed && found < had {
                let example = object.name.clone();
                return Err(Refused::CantMove { what: what.to_owned(), example, needed, found });
            }
        }
        self.try_moves(what, &leaving, disks)
    }

    /// Places every component of the disks that leave on those that stay, as a trial.
    fn try_moves(&self, what: &str, leaving: &BTreeSet<DiskId>, disks: &[DiskId]) -> Result<(), Refused> {
        let components = self.components_by_disk();
        // How many extents a component takes up is not in the directory: as many as the disk's others.
        let extents = |disk: &DiskRecord| {
            let count = components.get(&disk.id).copied().unwrap_or(0).max(1);
            disk.used_extents.div_ceil(count).min(u64::from(CHUNK_EXTENTS))
        };
        let total = disks
            .iter()
            .filter_map(|d| self.disks.get(d))
            .map(|d| d.used_extents)
            .fold(0, u64::saturating_add);
        let mut free: BTreeMap<DiskId, (u64, &str)> = BTreeMap::new();
        for disk in self.disks.values().filter(|d| has_room(d) && !leaving.contains(&d.id)) {
            let Some(domain) = self.fault_domain(disk.id) else { continue };
            let usable = disk.capacity_extents.saturating_mul(FULL_PERCENT) / 100;
            free.insert(disk.id, (usable.saturating_sub(disk.used_extents), domain));
        }
        for object in self.objects.values() {
            let needed = object.policy.components();
            for chunk in object.chunks.values() {
                let goes = |c: &&Component| leaving.contains(&c.disk);
                let mut taken: BTreeSet<&str> = chunk
                    .components
                    .iter()
                    .filter(|c| !goes(c))
                    .filter_map(|c| self.fault_domain(c.disk))
                    .collect();
                let staying = chunk.components.iter().filter(|c| !goes(c)).count();
                let moves = chunk.components.iter().filter(goes).take(needed.saturating_sub(staying));
                for component in moves {
                    let size = self.disks.get(&component.disk).map_or(0, extents);
                    let others = free.iter_mut().filter(|(_, (_, domain))| !taken.contains(*domain));
                    let Some((_, (room, domain))) = others.max_by_key(|(disk, (room, _))| (*room, **disk))
                    else {
                        let (what, example) = (what.to_owned(), object.name.clone());
                        return Err(Refused::CantMove { what, example, needed, found: taken.len() });
                    };
                    if *room < size {
                        let (what, example) = (what.to_owned(), object.name.clone());
                        return Err(Refused::NoSpaceElsewhere { what, example, extents: total });
                    }
                    *room -= size;
                    taken.insert(domain);
                }
            }
        }
        Ok(())
    }

    pub(super) fn trim(&mut self, index: u64, basis: Basis, chunk: ChunkIndex) -> Applied {
        let record = self.owned(basis)?;
        let now = record.chunks.get(&chunk).ok_or(Refused::NoComponent(chunk))?;
        let spare = self.spare(now, record.policy.components()).ok_or(Refused::NothingSpare(chunk))?;
        self.change(index, basis.object, |record| {
            if let Some(chunk) = record.chunks.get_mut(&chunk) {
                chunk.components.retain(|c| c.disk != spare);
            }
        })
    }

    /// A component that the others can do without: first of a disk that leaves, then one that is not in sync.
    fn spare(&self, chunk: &ChunkRecord, needed: usize) -> Option<DiskId> {
        let good = |c: &&Component| {
            let works = self.disks.get(&c.disk).is_some_and(|d| d.health == DiskHealth::Healthy);
            c.in_sync() && works && !self.is_leaving(c.disk)
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
            .filter(|c| without(Some(c.disk)).count() >= needed && spread(Some(c.disk)) >= wanted)
            .min_by_key(|c| (!self.is_leaving(c.disk), c.in_sync(), c.disk))
            .map(|c| c.disk)
    }
}
