//! Hosts in maintenance: somebody works on them, and they come back.
//!
//! ```text
//!            LeaveHost(Maintenance{mode})                     may be switched off
//!   in use ───────────────────────────────▶ entering ───────▶ in maintenance
//!     ▲                                        │  what the mode moves is elsewhere │
//!     └──────────── LeaveHost(None) ───────────┴───────────────────────────────────┘
//! ```
//!
//! - `NoMove`: nothing is moved. Refused if something could not be read without the host.
//! - `EnsureAccess`: what has no second copy is moved, the rest stays. Refused as well if something could not be read.
//! - `Full`: everything is moved, as if the host left the cluster.
//!
//! In each mode, no component that stays is built elsewhere because its host is in maintenance and away, however long that
//! takes: a repair that would take one away is refused, also of an owner that has not heard of the maintenance yet. A disk
//! that is known dead is no maintenance. New components go there only where nothing else has room. With the last two no
//! volume is opened there. Whether a host is still *entering* is no state: it follows from where the components are.
//!
//! What it must not know: who moves, which hosts answer (who knows gives those that do not as `away`).

use std::collections::BTreeSet;

use ferro_protocol::ids::{DiskId, HostId, ObjectId};

use super::State;
use super::command::Refused;
use super::records::{ChunkRecord, Departure, DiskHealth, MaintenanceMode, ObjectRecord, Policy};

/// [`State::resting`], [`State::emptied`] and [`State::disks_near`], reckoned once for all owners that are told.
#[derive(Debug)]
pub struct Departures<'a> {
    state: &'a State,
    resting: BTreeSet<DiskId>,
    emptied: Vec<(Policy, BTreeSet<DiskId>)>,
    near: Option<(HostId, BTreeSet<DiskId>)>,
}

impl<'a> Departures<'a> {
    /// Whose they are.
    pub fn state(&self) -> &'a State {
        self.state
    }

    /// The disks in hosts that are in maintenance.
    pub fn resting(&self) -> &BTreeSet<DiskId> {
        &self.resting
    }

    /// The disks in this host's site.
    pub fn near(&mut self, host: HostId) -> &BTreeSet<DiskId> {
        let state = self.state;
        let known = self.near.take().filter(|(of, _)| *of == host);
        &self.near.insert(known.unwrap_or_else(|| (host, state.disks_near(host)))).1
    }

    /// The disks that components of objects with this policy are to go from.
    pub fn emptied(&mut self, policy: Policy) -> &BTreeSet<DiskId> {
        let known = self.emptied.iter().position(|(of, _)| *of == policy);
        let at = known.unwrap_or_else(|| {
            self.emptied.push((policy, self.state.emptied(policy)));
            self.emptied.len() - 1
        });
        &self.emptied[at].1
    }
}

impl State {
    /// How a host is in maintenance, and since when, in seconds since 1970.
    pub fn maintenance(&self, host: HostId) -> Option<(MaintenanceMode, u64)> {
        match self.leaving_hosts.get(&host)? {
            Departure::Maintenance { mode, since_unix_s } => Some((*mode, *since_unix_s)),
            Departure::WhenEmpty | Departure::AtOnce => None,
        }
    }

    /// Whether a host is to leave the cluster for good.
    pub fn is_host_leaving(&self, host: HostId) -> bool {
        self.leaving_hosts.contains_key(&host) && self.maintenance(host).is_none()
    }

    /// Whether a disk is in a host that is in maintenance.
    pub fn is_resting(&self, disk: DiskId) -> bool {
        self.disks.get(&disk).is_some_and(|d| self.maintenance(d.host).is_some())
    }

    /// The disks in hosts that are in maintenance.
    pub fn resting(&self) -> BTreeSet<DiskId> {
        if self.leaving_hosts.is_empty() {
            return BTreeSet::new();
        }
        self.disks.keys().copied().filter(|disk| self.is_resting(*disk)).collect()
    }

    /// Whether a component of an object with this policy is waited for: its disk works and is in a host that somebody works
    /// on, and it is not to go from there.
    pub(super) fn is_waited_for(&self, policy: Policy, disk: DiskId) -> bool {
        let works = self.disks.get(&disk).is_some_and(|d| d.health == DiskHealth::Healthy);
        works && self.is_resting(disk) && !self.is_emptied(policy, disk)
    }

    /// Whether components of objects with this policy are to go from a disk: it is departing, or its host was given up and the others
    /// can hold them.
    pub fn is_emptied(&self, policy: Policy, disk: DiskId) -> bool {
        self.is_departing(policy, disk) || (self.is_given_up(disk) && self.can_spare_the_absent(policy))
    }

    /// Whether a disk is leaving, or what has no second copy is to go from it because of its host's maintenance.
    pub(super) fn is_departing(&self, policy: Policy, disk: DiskId) -> bool {
        self.is_leaving(disk) || (is_unprotected(policy) && self.keeps_access(disk))
    }

    /// Whether components may be on their way from some disk.
    pub(super) fn empties_some(&self) -> bool {
        !(self.leaving_disks.is_empty() && self.leaving_hosts.is_empty() && self.absences.is_empty())
    }

    /// The disks that components of objects with this policy are to go from.
    pub fn emptied(&self, policy: Policy) -> BTreeSet<DiskId> {
        if !self.empties_some() {
            return BTreeSet::new();
        }
        let spared = self.can_spare_the_absent(policy);
        let goes = |disk: &DiskId| self.is_departing(policy, *disk) || (spared && self.is_given_up(*disk));
        self.disks.keys().copied().filter(goes).collect()
    }

    /// What owners must know of disks that components are to go from, or are waited for on.
    pub fn departures(&self) -> Departures<'_> {
        Departures { state: self, resting: self.resting(), emptied: Vec::new(), near: None }
    }

    fn keeps_access(&self, disk: DiskId) -> bool {
        let mode = self.disks.get(&disk).and_then(|d| self.maintenance(d.host));
        mode.is_some_and(|(mode, _)| mode == MaintenanceMode::EnsureAccess)
    }

    /// Whether a host in maintenance may be switched off: what its mode moves is elsewhere, and everything could be read
    /// without it and the other hosts in maintenance. `None` if it is in none.
    pub fn maintenance_ready(&self, host: HostId) -> Option<bool> {
        let (mode, _) = self.maintenance(host)?;
        let disks = self.disks_in(host);
        let moved = !self.objects.values().any(|object| {
            mode.moves(object.policy)
                && object.chunks.values().flat_map(|c| &c.components).any(|c| disks.contains(&c.disk))
        });
        Some(moved && self.lost_without(&disks, &BTreeSet::new()).is_empty())
    }

    /// Refuses maintenance that would make something unreadable, or whose moves the other disks can't take.
    pub(super) fn check_maintenance(&self, host: HostId, mode: MaintenanceMode) -> Result<(), Refused> {
        let record = self.hosts.get(&host).ok_or(Refused::NoHost(host))?;
        if self.is_host_leaving(host) {
            return Err(Refused::HostLeaves(host));
        }
        let (what, disks) = (format!("host {}", record.name), self.disks_in(host));
        if mode != MaintenanceMode::NoMove {
            self.check_closed(host)?;
            self.check_movable(&what, &disks, |object| mode.moves(object.policy))?;
        }
        // What is moved away first is not lost.
        let lost = self.lost_without(&disks, &BTreeSet::new());
        let mut lost =
            lost.iter().filter_map(|id| self.objects.get(id)).filter(|object| !mode.moves(object.policy));
        match lost.next() {
            Some(first) => {
                let (volumes, example) = (1 + lost.count(), first.name.clone());
                Err(Refused::WouldBeUnreadable { what, volumes, example })
            }
            None => Ok(()),
        }
    }

    /// The objects with a chunk that could not be read without these disks, those that are away and those of hosts in
    /// maintenance, and that can be read with these disks.
    pub fn lost_without(&self, disks: &[DiskId], away: &BTreeSet<DiskId>) -> BTreeSet<ObjectId> {
        let mut gone = self.resting();
        gone.extend(away);
        // These disks alone are asked about: what others keep from being read is not their doing.
        gone.retain(|disk| !disks.contains(disk));
        let others = gone.clone();
        gone.extend(disks);
        let here = |c: &ChunkRecord| c.components.iter().any(|c| disks.contains(&c.disk));
        let lost = |object: &ObjectRecord| {
            // Chunk by chunk: of an object that has lost one already there may be others to lose.
            object.chunks.values().any(here)
                && !self.unreadable(object, &gone).is_subset(&self.unreadable(object, &others))
        };
        self.objects.iter().filter(|(_, object)| lost(object)).map(|(id, _)| *id).collect()
    }

    /// The objects that a mode would have to move from these disks and can't, because with what is away now they can't be read:
    /// who waited for them would wait until somebody brings that back.
    pub fn immovable(
        &self,
        disks: &[DiskId],
        mode: MaintenanceMode,
        away: &BTreeSet<DiskId>,
    ) -> BTreeSet<ObjectId> {
        let stuck = |object: &ObjectRecord| {
            let unreadable = self.unreadable(object, away);
            let here = |c: &ChunkRecord| c.components.iter().any(|c| disks.contains(&c.disk));
            object.chunks.iter().any(|(index, chunk)| unreadable.contains(&index.base()) && here(chunk))
        };
        let moved = self.objects.iter().filter(|(_, object)| mode.moves(object.policy));
        moved.filter(|(_, object)| stuck(object)).map(|(id, _)| *id).collect()
    }
}

impl MaintenanceMode {
    /// Whether what objects with this policy have on a host is moved elsewhere first.
    pub fn moves(self, policy: Policy) -> bool {
        match self {
            Self::NoMove => false,
            Self::EnsureAccess => is_unprotected(policy),
            Self::Full => true,
        }
    }
}

/// Whether the loss of one disk loses data.
fn is_unprotected(policy: Policy) -> bool {
    policy.domains() <= policy.sufficient()
}
