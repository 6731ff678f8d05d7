//! Where components go. A pure function of the directory, so that each host comes to the same answer.
//!
//! A record's components are in different fault domains, and so are the shards of a chunk. Among the disks of a domain, and
//! among the domains, the one that is least full goes first, counted by what is placed there, not by what is used: thin
//! volumes fill up later. Hosts that are away, or that somebody works on, come last; of the others, what the volume prefers comes
//! first ([`super::preference`]).
//!
//! A chunk with parity: the owner's host gets the first data shard, where there is room, so that part of the reads stays
//! there; the other shards take turns from chunk to chunk, so that parity, which nobody reads, is not always on the same
//! hosts. The log is kept on the owner's host too, and rather where there is parity of the chunk or nothing of it: who has
//! one of the other data shards has its reads to answer.

use std::collections::{BTreeMap, BTreeSet};

use ferro_protocol::ids::{ChunkIndex, DiskId, HostId, Role};

use super::State;
use super::command::Refused;
use super::preference::Preference;
use super::provision::{Provision, share};
use super::records::{DiskHealth, DiskRecord, ObjectRecord, Policy};

/// A disk this full takes no new components: the rest is for the chunks that are there already.
pub(super) const FULL_PERCENT: u64 = 95;

/// Whether a disk may take another component.
pub fn has_room(disk: &DiskRecord) -> bool {
    disk.health == DiskHealth::Healthy && holds(disk, 0)
}

/// Whether a disk would still take new components with so many extents more.
pub(super) fn holds(disk: &DiskRecord, extents: u64) -> bool {
    let used = disk.used_extents.saturating_add(extents);
    used.saturating_mul(100) < disk.capacity_extents.saturating_mul(FULL_PERCENT)
}

/// Records, with the disks that their components are on or are to be on.
pub type Placed = Vec<(ChunkIndex, Vec<DiskId>)>;

/// Refuses a policy for which no chunk would find a place. With `forced` a mirror has fewer copies where there is no place for all, but
/// one.
pub(super) fn check_place(state: &State, policy: Policy, forced: bool) -> Result<(), Refused> {
    let (kept, promised) = (&BTreeMap::new(), state.promised_by_disk());
    let (prefers, near) = (Preference::NONE, None);
    let search = Search { state, policy, promised, prefers, kept, near, forced, present: false, only: None };
    search.chunk(ChunkIndex(0), |_| 0).map(drop)
}

/// Disks for all records of a new chunk of an object, by what it prefers; one of its copies, or a data shard and a copy of the log, in
/// `near`, if that has room and is as good. A mirror that may have fewer copies has them where there is no place for all.
pub(super) fn place_chunk(
    state: &State,
    object: &ObjectRecord,
    chunk: ChunkIndex,
    near: HostId,
) -> Result<Placed, Refused> {
    let (policy, promised, near) = (object.policy, state.promised_by_disk(), Some(near));
    let (prefers, kept) = (state.preferences.of(object.id), &BTreeMap::new());
    let forced = state.provisioning.of(object.id).forced;
    let search = Search { state, policy, promised, prefers, kept, near, forced, present: false, only: None };
    search.chunk(chunk, |_| 0)
}

/// Disks for all chunks of an object that have no place yet, with room for this share of each component; what is taken for it is
/// added to `kept`, which begins with what is kept beside it. `None` if there is not so much room.
pub(super) fn place_rest(
    state: &State,
    object: &ObjectRecord,
    provision: Provision,
    near: Option<HostId>,
    kept: &mut BTreeMap<DiskId, u64>,
) -> Result<Option<Placed>, Refused> {
    let (policy, Provision { percent, forced }) = (object.policy, provision);
    let prefers = state.preferences.of(object.id);
    // Whether the hosts can hold it at all is another question.
    check_place(state, policy, forced)?;
    let mut promised = state.promised_by_disk();
    let mut all = Placed::new();
    for chunk in (0..object.chunks_total()).map(ChunkIndex) {
        if policy.records(chunk).any(|index| object.chunks.contains_key(&index)) {
            continue;
        }
        let size = |index| u64::from(share(object, index, percent));
        let search =
            Search { state, policy, promised, prefers, kept, near, forced, present: false, only: None };
        let placed = search.chunk(chunk, size);
        promised = search.promised;
        let Ok(placed) = placed else { return Ok(None) };
        for (index, disks) in &placed {
            for disk in disks {
                *promised.entry(*disk).or_insert(0) += u64::from(policy.extents_max(*index));
                *kept.entry(*disk).or_insert(0) += size(*index);
            }
        }
        all.extend(placed);
    }
    Ok(Some(all))
}

/// A disk for one more component of a record, in a fault domain of its own, and not `drop`; never of a host that is away. Components
/// that go, by `drop` or because they are to go from their disk, keep no fault domain; those of the chunk's other shards do. Only the disk `only`, if
/// it is given.
pub(super) fn place_one_more(
    state: &State,
    object: &ObjectRecord,
    index: ChunkIndex,
    drop: Option<DiskId>,
    only: Option<DiskId>,
) -> Result<DiskId, Refused> {
    let own = object.chunks.get(&index).into_iter().flat_map(|c| &c.components).map(|c| c.disk);
    let kept = own.filter(|d| Some(*d) != drop && !state.is_emptied(object.policy, *d));
    let others = object.other_shards(index).flat_map(|(_, shard)| &shard.components).map(|c| c.disk);
    let taken: Vec<&str> = kept.chain(others).filter_map(|d| state.fault_domain(d)).collect();
    let (prefers, kept) = (state.preferences.of(object.id), &BTreeMap::new());
    // Among one there is nothing to choose by it.
    let promised = if only.is_some() { BTreeMap::new() } else { state.promised_by_disk() };
    let policy = object.policy;
    let search =
        Search { state, policy, promised, prefers, kept, near: None, forced: false, present: true, only };
    let size = u64::from(state.kept_extents(object, index));
    search.best(&taken, &BTreeSet::new(), drop, size).map(|(disk, _)| disk).ok_or_else(|| Refused::NoRoom {
        needed: match index.role() {
            Role::Shard(_) => object.policy.domains(),
            Role::Whole | Role::Log => object.policy.components(index),
        },
        found: taken.iter().collect::<BTreeSet<_>>().len(),
    })
}

struct Search<'a> {
    state: &'a State,
    /// How the object is kept whose components are placed.
    policy: Policy,
    /// How many extents each disk has promised.
    promised: BTreeMap<DiskId, u64>,
    /// Where that is rather to be.
    prefers: &'a Preference,
    /// How many of each disk are to be kept by the same command, beyond what it has in use.
    kept: &'a BTreeMap<DiskId, u64>,
    /// The host that comes first.
    near: Option<HostId>,
    /// A mirror may have fewer copies.
    forced: bool,
    /// Only hosts that are not away.
    present: bool,
    /// Only this disk.
    only: Option<DiskId>,
}

impl<'a> Search<'a> {
    /// Disks for all records of a chunk, each with room for `size` extents.
    fn chunk(&self, chunk: ChunkIndex, size: impl Fn(ChunkIndex) -> u64) -> Result<Placed, Refused> {
        let first = self.policy.records(chunk).next().unwrap_or(chunk);
        let mut disks = self.spread(self.policy.domains(), &BTreeSet::new(), size(first))?;
        let Policy::Parity { data, .. } = self.policy else {
            return Ok(vec![(chunk.base(), disks)]);
        };
        let here =
            |disk: &DiskId| self.near.is_some() && self.state.disks.get(disk).map(|d| d.host) == self.near;
        let fixed = usize::from(disks.first().is_some_and(here));
        if let Some(others) = disks.get_mut(fixed..).filter(|others| !others.is_empty()) {
            others.rotate_left(chunk.base().0 as usize % others.len());
        }
        let reading =
            disks.iter().take(usize::from(data)).filter_map(|d| self.state.fault_domain(*d)).collect();
        // One of its disks may hold a shard too.
        let with_shard = size(first) + size(chunk.log());
        let log = self.spread(self.policy.components(chunk.log()), &reading, with_shard)?;
        let mut shards = disks.into_iter();
        let records = self.policy.records(chunk).map(|index| match index.role() {
            Role::Log => (index, log.clone()),
            Role::Shard(_) | Role::Whole => (index, shards.next().into_iter().collect()),
        });
        Ok(records.collect())
    }

    /// So many disks in different fault domains with room for `size` extents, `near` first; after it, rather not in the
    /// domains `busy`.
    fn spread(&self, needed: usize, busy: &BTreeSet<&str>, size: u64) -> Result<Vec<DiskId>, Refused> {
        let mut chosen = Vec::with_capacity(needed);
        let mut taken = Vec::with_capacity(needed);
        while chosen.len() < needed {
            let Some((disk, domain)) = self.best(&taken, busy, None, size) else {
                if self.forced && !chosen.is_empty() && matches!(self.policy, Policy::Mirror { .. }) {
                    break;
                }
                return Err(Refused::NoRoom { needed, found: chosen.len() });
            };
            taken.push(domain);
            chosen.push(disk);
        }
        Ok(chosen)
    }

    fn best(
        &self,
        taken: &[&str],
        busy: &BTreeSet<&str>,
        avoid: Option<DiskId>,
        size: u64,
    ) -> Option<(DiskId, &'a str)> {
        // Only the first disk is sought near the owner.
        let near = self.near.filter(|_| taken.is_empty());
        let fullness = |disk: &DiskRecord| {
            let promised = self.promised.get(&disk.id).copied().unwrap_or(0);
            // In thousandths; a disk may be promised many times over, so this is no percentage of anything.
            promised.max(disk.used_extents).saturating_mul(1_000) / disk.capacity_extents.max(1)
        };
        // What is to be new on a host that was given up is so because there are no others.
        let goes = |disk: &DiskRecord| {
            self.state.is_departing(self.policy, disk.id) || (self.present && self.state.is_away(disk.id))
        };
        let has_room = |disk: &DiskRecord| {
            let kept = self.kept.get(&disk.id).copied().unwrap_or(0);
            has_room(disk) && holds(disk, kept.saturating_add(size))
        };
        self.state
            .disks
            .values()
            .filter(|disk| self.only.is_none_or(|only| only == disk.id))
            .filter(|disk| has_room(disk) && Some(disk.id) != avoid && !goes(disk))
            .filter_map(|disk| Some((disk, self.state.hosts.get(&disk.host)?.fault_domain.as_str())))
            .filter(|(_, domain)| !taken.contains(domain))
            .min_by_key(|(disk, domain)| {
                let elsewhere = near.is_some() && Some(disk.host) != near;
                let rests = self.state.maintenance(disk.host).is_some();
                (
                    self.state.is_away(disk.id),
                    rests,
                    self.prefers.rank(domain, taken),
                    elsewhere,
                    busy.contains(*domain),
                    fullness(disk),
                    disk.id,
                )
            })
            .map(|(disk, domain)| (disk.id, domain))
    }
}
