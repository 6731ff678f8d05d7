//! Where components go. A pure function of the directory, so that each host comes to the same answer.
//!
//! A chunk's components are in different fault domains. Among the disks of a domain, and among the domains, the one
//! that is least full goes first, counted by what is placed there, not by what is used: thin volumes fill up later.

use std::collections::{BTreeMap, BTreeSet};

use ferro_protocol::ids::{DiskId, HostId};
use ferro_protocol::units::CHUNK_EXTENTS;

use super::State;
use super::command::Refused;
use super::records::{ChunkRecord, DiskHealth, DiskRecord};

/// A disk this full takes no new components: the rest is for the chunks that are there already.
pub(super) const FULL_PERCENT: u64 = 95;

/// Whether a disk may take another component.
pub fn has_room(disk: &DiskRecord) -> bool {
    disk.health == DiskHealth::Healthy
        && disk.used_extents.saturating_mul(100) < disk.capacity_extents.saturating_mul(FULL_PERCENT)
}

/// Disks for a new chunk with so many components; one of them in `near`, if it has room.
pub fn place(state: &State, needed: usize, near: Option<HostId>) -> Result<Vec<DiskId>, Refused> {
    let placed = state.components_by_disk();
    let mut chosen = Vec::with_capacity(needed);
    let mut domains = BTreeSet::new();
    while chosen.len() < needed {
        let near = near.filter(|_| chosen.is_empty());
        let Some((disk, domain)) = best(state, &placed, &domains, near, None) else {
            return Err(Refused::NoRoom { needed, found: chosen.len() });
        };
        domains.insert(domain.to_owned());
        chosen.push(disk);
    }
    Ok(chosen)
}

/// A disk for one more component of a chunk, in a fault domain of its own, and not `drop`. Components that go, by
/// `drop` or because their disk is leaving, keep no fault domain.
pub fn place_one_more(
    state: &State,
    chunk: &ChunkRecord,
    drop: Option<DiskId>,
    needed: usize,
) -> Result<DiskId, Refused> {
    let kept =
        || chunk.components.iter().map(|c| c.disk).filter(|d| Some(*d) != drop && !state.is_leaving(*d));
    let domains: BTreeSet<String> =
        kept().filter_map(|d| state.fault_domain(d)).map(ToOwned::to_owned).collect();
    best(state, &state.components_by_disk(), &domains, None, drop)
        .map(|(disk, _)| disk)
        .ok_or(Refused::NoRoom { needed, found: kept().count() })
}

fn best<'a>(
    state: &'a State,
    placed: &BTreeMap<DiskId, u64>,
    taken: &BTreeSet<String>,
    near: Option<HostId>,
    avoid: Option<DiskId>,
) -> Option<(DiskId, &'a str)> {
    let fullness = |disk: &DiskRecord| {
        let reserved = placed.get(&disk.id).copied().unwrap_or(0) * u64::from(CHUNK_EXTENTS);
        // In thousandths; a disk may be promised many times over, so this is no percentage of anything.
        reserved.max(disk.used_extents).saturating_mul(1_000) / disk.capacity_extents.max(1)
    };
    state
        .disks
        .values()
        .filter(|disk| has_room(disk) && Some(disk.id) != avoid && !state.is_leaving(disk.id))
        .filter_map(|disk| Some((disk, state.hosts.get(&disk.host)?.fault_domain.as_str())))
        .filter(|(_, domain)| !taken.contains(*domain))
        .min_by_key(|(disk, _)| (near.is_some() && Some(disk.host) != near, fullness(disk), disk.id))
        .map(|(disk, domain)| (disk.id, domain))
}
