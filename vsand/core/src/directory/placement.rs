//! Where components go. A pure function of the directory, so that each host comes to the same answer.
//!
//! A record's components are in different fault domains, and so are the shards of a chunk. Among the disks of a domain, and
//! among the domains, the one that is least full goes first, counted by what is placed there, not by what is used: thin
//! volumes fill up later.
//!
//! A chunk with parity: the owner's host gets the first data shard, where there is room, so that part of the reads stays
//! there; the other shards take turns from chunk to chunk, so that parity, which nobody reads, is not always on the same
//! hosts. The log is kept on the owner's host too, and rather where there is parity of the chunk or nothing of it: who has
//! one of the other data shards has its reads to answer.

use std::collections::{BTreeMap, BTreeSet};

use ferro_protocol::ids::{ChunkIndex, DiskId, HostId, Role};

use super::State;
use super::command::Refused;
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

/// Disks for all records of a new chunk; one of its copies, or a data shard and a copy of the log, in `near`, if it has room.
pub fn place(
    state: &State,
    policy: Policy,
    chunk: ChunkIndex,
    near: Option<HostId>,
) -> Result<Vec<(ChunkIndex, Vec<DiskId>)>, Refused> {
    let search = Search { state, policy, promised: state.promised_by_disk(), near };
    let mut disks = search.spread(policy.domains(), &BTreeSet::new())?;
    let Policy::Parity { data, .. } = policy else {
        return Ok(vec![(chunk.base(), disks)]);
    };
    let here = |disk: &DiskId| near.is_some() && state.disks.get(disk).map(|d| d.host) == near;
    let fixed = usize::from(disks.first().is_some_and(here));
    if let Some(others) = disks.get_mut(fixed..).filter(|others| !others.is_empty()) {
        others.rotate_left(chunk.base().0 as usize % others.len());
    }
    let reading = disks.iter().take(usize::from(data)).filter_map(|d| state.fault_domain(*d)).collect();
    let log = search.spread(policy.components(chunk.log()), &reading)?;
    let mut shards = disks.into_iter();
    let records = policy.records(chunk).map(|index| match index.role() {
        Role::Log => (index, log.clone()),
        Role::Shard(_) | Role::Whole => (index, shards.next().into_iter().collect()),
    });
    Ok(records.collect())
}

/// A disk for one more component of a record, in a fault domain of its own, and not `drop`. Components that go, by
/// `drop` or because their disk is leaving, keep no fault domain; those of the chunk's other shards do.
pub fn place_one_more(
    state: &State,
    object: &ObjectRecord,
    index: ChunkIndex,
    drop: Option<DiskId>,
) -> Result<DiskId, Refused> {
    let own = object.chunks.get(&index).into_iter().flat_map(|c| &c.components).map(|c| c.disk);
    let kept = own.filter(|d| Some(*d) != drop && !state.is_emptied(object.policy, *d));
    let others = object.other_shards(index).flat_map(|(_, shard)| &shard.components).map(|c| c.disk);
    let taken: BTreeSet<&str> = kept.chain(others).filter_map(|d| state.fault_domain(d)).collect();
    let search = Search { state, policy: object.policy, promised: state.promised_by_disk(), near: None };
    search.best(&taken, &BTreeSet::new(), drop).map(|(disk, _)| disk).ok_or_else(|| Refused::NoRoom {
        needed: match index.role() {
            Role::Shard(_) => object.policy.domains(),
            Role::Whole | Role::Log => object.policy.components(index),
        },
        found: taken.len(),
    })
}

struct Search<'a> {
    state: &'a State,
    /// How the object is kept whose components are placed.
    policy: Policy,
    /// How many extents each disk has promised.
    promised: BTreeMap<DiskId, u64>,
    /// The host that comes first.
    near: Option<HostId>,
}

impl<'a> Search<'a> {
    /// So many disks in different fault domains, `near` first; after it, rather not in the domains `busy`.
    fn spread(&self, needed: usize, busy: &BTreeSet<&str>) -> Result<Vec<DiskId>, Refused> {
        let mut chosen = Vec::with_capacity(needed);
        let mut taken = BTreeSet::new();
        while chosen.len() < needed {
            let Some((disk, domain)) = self.best(&taken, busy, None) else {
                return Err(Refused::NoRoom { needed, found: chosen.len() });
            };
            taken.insert(domain);
            chosen.push(disk);
        }
        Ok(chosen)
    }

    fn best(
        &self,
        taken: &BTreeSet<&str>,
        busy: &BTreeSet<&str>,
        avoid: Option<DiskId>,
    ) -> Option<(DiskId, &'a str)> {
        // Only the first disk is sought near the owner.
        let near = self.near.filter(|_| taken.is_empty());
        let fullness = |disk: &DiskRecord| {
            let promised = self.promised.get(&disk.id).copied().unwrap_or(0);
            // In thousandths; a disk may be promised many times over, so this is no percentage of anything.
            promised.max(disk.used_extents).saturating_mul(1_000) / disk.capacity_extents.max(1)
        };
        let stays = |disk: &DiskRecord| !self.state.is_emptied(self.policy, disk.id);
        self.state
            .disks
            .values()
            .filter(|disk| has_room(disk) && Some(disk.id) != avoid && stays(disk))
            .filter_map(|disk| Some((disk, self.state.hosts.get(&disk.host)?.fault_domain.as_str())))
            .filter(|(_, domain)| !taken.contains(*domain))
            .min_by_key(|(disk, domain)| {
                let elsewhere = near.is_some() && Some(disk.host) != near;
                let rests = self.state.maintenance(disk.host).is_some();
                (rests, elsewhere, busy.contains(*domain), fullness(disk), disk.id)
            })
            .map(|(disk, domain)| (disk.id, domain))
    }
}
