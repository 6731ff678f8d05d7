//! Where an object's components rather are: sites, and other fault domains.
//!
//! The names of fault domains are paths ([`ferro_protocol::fault_domain`]): `lyon/rack3` is in the site `lyon`. What is said of a *place*
//! holds for all fault domains whose paths begin with it.
//!
//! ```text
//!   CreatePreferred, Prefer ──▶ new components: of the disks that can take one, those of the least rank first
//!                           ──▶ a component that could be of less rank elsewhere: moved there, one after the other (super::balance)
//! ```
//!
//! The *rank* of a disk for a component says how far it is from what is preferred: first how many of the others share its site, if the
//! object is to be spread over sites, then whether it is outside of the places that are preferred.
//!
//! A preference is no condition. Where no preferred disk has room, or its host is away, components are elsewhere, because a copy there is better
//! than none; they move when there is room. Fault domains are a condition as always.
//!
//! Invariants:
//! - a move for preference lowers its component's rank, and no other move raises one: so they come to an end;
//! - what a volume prefers holds for all objects that it is or becomes ([`super::conversion`]);
//! - an object without a preference is placed as if there were none at all.
//!
//! What it must not know: which disks have room, who moves.

use std::collections::{BTreeMap, BTreeSet};

use ferro_protocol::fault_domain::{PLACE_BYTES_MAX, PLACES_MAX, is_within, site};
use ferro_protocol::ids::{ChunkIndex, DiskId, HostId, ObjectId};
use serde::{Deserialize, Serialize};

use super::State;
use super::apply::Applied;
use super::command::{Outcome, Refused};
use super::conversion::lineage;
use super::records::{ChunkRecord, DiskRecord, ObjectRecord};

/// Where an object's components rather are.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Preference {
    /// Fault domains, or the beginnings of their paths: disks there come before others, and all of them alike.
    pub places: Vec<String>,
    /// As few as possible in the same site.
    pub across_sites: bool,
}

impl Preference {
    /// Anywhere is as good as anywhere else.
    pub const NONE: &'static Self = &Self { places: Vec::new(), across_sites: false };

    /// Whether it prefers nothing.
    pub fn is_none(&self) -> bool {
        self.places.is_empty() && !self.across_sites
    }

    /// The rank of a fault domain for a component, when the others are in these.
    pub fn rank(&self, domain: &str, others: &[&str]) -> Rank {
        let shared = |other: &&&str| site(other) == site(domain);
        let crowd = if self.across_sites { others.iter().filter(shared).count() } else { 0 };
        let outside = !self.places.is_empty() && !self.places.iter().any(|place| is_within(domain, place));
        Rank { crowd, outside }
    }
}

/// How far a component would be from what is preferred; the default is not at all.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Rank {
    /// How many others would be in the same site, if that matters.
    crowd: usize,
    /// Whether it would be outside of the places that are preferred.
    outside: bool,
}

/// What all objects prefer: an entry for each volume that prefers anything, by what the ids have in common that it has one after the
/// other.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Preferences(BTreeMap<[u8; 8], Preference>);

impl Preferences {
    /// What this object prefers.
    pub fn of(&self, object: ObjectId) -> &Preference {
        self.0.get(&lineage(object)).unwrap_or(Preference::NONE)
    }

    /// Whether no object prefers anything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn forget(&mut self, object: ObjectId) {
        self.0.remove(&lineage(object));
    }

    pub(super) fn set(&mut self, object: ObjectId, preference: Preference) {
        if preference.is_none() {
            self.forget(object);
        } else {
            self.0.insert(lineage(object), preference);
        }
    }
}

impl State {
    /// Refuses what can't be preferred, and what no host would ever be.
    pub(super) fn check_preference(&self, preference: &Preference) -> Result<(), Refused> {
        let Preference { places, across_sites } = preference;
        if places.len() > PLACES_MAX {
            return Err(Refused::TooMuch(format!("a volume may prefer up to {PLACES_MAX} places")));
        }
        let named = |place: &String| (1..=PLACE_BYTES_MAX).contains(&place.len());
        if !places.iter().all(named) {
            return Err(Refused::TooMuch(format!("a place's name has 1 to {PLACE_BYTES_MAX} bytes")));
        }
        let domains = || self.hosts.values().map(|host| host.fault_domain.as_str());
        if let Some(nowhere) = places.iter().find(|place| !domains().any(|domain| is_within(domain, place))) {
            return Err(Refused::NoSuchPlace(nowhere.clone()));
        }
        let first = domains().next().map(site);
        if *across_sites && domains().all(|domain| Some(site(domain)) == first) {
            return Err(Refused::OneSite(first.unwrap_or_default().to_owned()));
        }
        Ok(())
    }

    pub(super) fn prefer(&mut self, index: u64, object: ObjectId, preference: Preference) -> Applied {
        let record = self.volume(object)?;
        if *self.preferences.of(object) == preference {
            return Ok(Outcome::Object(record.clone()));
        }
        self.check_preference(&preference)?;
        self.preferences.set(object, preference);
        self.change(index, object, |_| {})
    }

    /// The rank of a disk that takes the place of the one that has the component now, which it may be itself.
    pub(super) fn rank(&self, object: &ObjectRecord, index: ChunkIndex, now: DiskId, disk: DiskId) -> Rank {
        let beside = self.domains_beside(object, index, now);
        let rank = |domain| self.preferences.of(object.id).rank(domain, &beside);
        self.fault_domain(disk).map_or_else(Rank::default, rank)
    }

    /// Whether a component would be farther from what its volume prefers on the other disk.
    pub(super) fn is_farther(
        &self,
        object: &ObjectRecord,
        index: ChunkIndex,
        from: DiskId,
        to: DiskId,
    ) -> bool {
        self.rank(object, index, from, to) > self.rank(object, index, from, from)
    }

    /// The fault domains that a component on this disk leaves to others: those of the record's other components, and of the chunk's other shards.
    fn domains_beside(&self, object: &ObjectRecord, index: ChunkIndex, disk: DiskId) -> Vec<&str> {
        let own = object.chunks.get(&index).into_iter().flat_map(|c| &c.components).map(|c| c.disk);
        let others = object.other_shards(index).flat_map(|(_, shard)| &shard.components).map(|c| c.disk);
        own.filter(|other| *other != disk).chain(others).filter_map(|d| self.fault_domain(d)).collect()
    }

    /// The disks in this host's site: its own, and those that are reached without leaving the site.
    pub fn disks_near(&self, host: HostId) -> BTreeSet<DiskId> {
        let Some(here) = self.hosts.get(&host).map(|host| site(&host.fault_domain)) else {
            return BTreeSet::new();
        };
        let near = |disk: &DiskId| self.fault_domain(*disk).is_some_and(|domain| site(domain) == here);
        self.disks.keys().copied().filter(near).collect()
    }

    /// How many components of an object could be nearer to what it prefers, if all disks had room.
    pub fn misplaced(&self, object: &ObjectRecord) -> usize {
        if self.preferences.of(object.id).is_none() {
            return 0;
        }
        let better = |index, disk| self.has_better(object, index, disk, |_| true);
        let of = |(index, chunk): (&ChunkIndex, &ChunkRecord)| {
            chunk.components.iter().filter(|c| better(*index, c.disk)).count()
        };
        object.chunks.iter().map(of).sum()
    }

    /// Whether a component would be of less rank on a disk that is there to stay and `takes` it.
    pub(super) fn has_better(
        &self,
        object: &ObjectRecord,
        index: ChunkIndex,
        from: DiskId,
        takes: impl Fn(&DiskRecord) -> bool,
    ) -> bool {
        let (preference, beside) = (self.preferences.of(object.id), self.domains_beside(object, index, from));
        let now = self.rank(object, index, from, from);
        let better = |domain: &str| !beside.contains(&domain) && preference.rank(domain, &beside) < now;
        let good = |disk: &DiskRecord| self.is_balanced(disk) && takes(disk);
        now > Rank::default()
            && self.disks.values().any(|disk| good(disk) && self.fault_domain(disk.id).is_some_and(better))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_in_a_site_count_before_the_place() {
        let both = Preference { places: vec!["lyon".to_owned()], across_sites: true };
        let others = ["lyon/a", "brest/b"];
        let rank = |domain| both.rank(domain, &others);
        assert!(rank("lyon/c") < rank("brest/c"), "as many in either");
        assert!(rank("nice/c") < rank("lyon/c"), "nobody is there yet");
        let place = Preference { across_sites: false, ..both.clone() };
        assert_eq!(place.rank("lyon/c", &others), Rank::default());
        assert!(place.rank("nice/c", &others) > Rank::default());
        assert!(Preference::default().is_none() && !place.is_none());
    }
}
