//! What happened between two states of the directory. Pure. A host that was behind sees several changes at once, and what was
//! done and undone in between not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ferro_protocol::api::{EventKind, EventLevel, format_size};
use ferro_protocol::ids::{ChunkIndex, DiskId, HostId, ObjectId};
use ferro_protocol::units::EXTENT_BYTES;
use vsand_core::directory::conversion::lineage;
use vsand_core::directory::{DiskHealth, DiskRecord, Lock, LockKind, ObjectRecord, State};

use super::Draft;
use crate::plane::maintenance::api_mode;
use crate::plane::view::api_policy;
use EventKind as Kind;
use EventLevel::{Info, Warning};

/// What a host is called; its id, if the directory does not know it.
pub fn host_name(state: &State, host: HostId) -> String {
    state.hosts.get(&host).map_or_else(|| host.to_string(), |h| h.name.clone())
}

/// A disk for people: where it is.
pub fn disk_name(state: &State, disk: DiskId) -> String {
    match state.disks.get(&disk) {
        Some(record) => format!("disk {} of host {}", record.path, host_name(state, record.host)),
        None => format!("disk {disk}"),
    }
}

/// So many chunks.
pub fn chunks(number: usize) -> String {
    if number == 1 { "a chunk".to_owned() } else { format!("{number} chunks") }
}

/// What happened, hosts before disks before volumes.
pub fn diff(before: &State, after: &State) -> Vec<Draft> {
    let mut found = Vec::new();
    if after.level > before.level {
        let message = format!("the cluster is at feature level {}", after.level);
        found.push(Draft::new(Kind::LevelRaised, Info, "cluster".to_owned(), message));
    }
    hosts(before, after, &mut found);
    disks(before, after, &mut found);
    for record in after.volumes() {
        let id = &record.id;
        match before.objects.get(id) {
            _ if was(before, record).is_some() => {}
            None => found.push(Draft::new(
                Kind::VolumeCreated,
                Info,
                format!("volume {id}"),
                format!("volume {} of {} was made", record.name, format_size(record.size_bytes)),
            )),
            Some(known) if Arc::ptr_eq(known, record) || known.revision == record.revision => {}
            Some(known) => volume(before, after, known, record, &mut found),
        }
    }
    for record in before.volumes() {
        let id = &record.id;
        if let Some(now) = was(after, record) {
            let (policy, before) = (api_policy(now.policy), api_policy(record.policy));
            let message =
                format!("volume {} is {policy} now: all of it was copied; before it was {before}", now.name);
            found.push(Draft::new(Kind::PolicyChanged, Info, format!("volume {}", now.id), message));
            continue;
        }
        conversion(before, after, record, &mut found);
        if !after.objects.contains_key(id) {
            found.push(Draft::new(
                Kind::VolumeDeleted,
                Info,
                format!("volume {id}"),
                format!("volume {} was deleted", record.name),
            ));
        }
    }
    found
}

/// The object that the same volume is in the other state, if a conversion has made another of it.
fn was<'a>(other: &'a State, record: &ObjectRecord) -> Option<&'a Arc<ObjectRecord>> {
    let known = other.by_name(&record.name)?;
    (known.id != record.id && lineage(known.id) == lineage(record.id)).then_some(known)
}

/// A volume is to become another, or stays what it is.
fn conversion(before: &State, after: &State, record: &ObjectRecord, found: &mut Vec<Draft>) {
    let of = |state: &State| state.conversions.of(record.id).map(|conversion| conversion.to);
    let (name, is) = (&record.name, api_policy(record.policy));
    let message = match (of(before), of(after)) {
        (before, Some(to)) if before != Some(to) => {
            format!("volume {name} is to become {}: all of it is copied; it is {is}", api_policy(to))
        }
        (Some(to), None) if after.objects.get(&record.id).is_some_and(|o| o.policy == record.policy) => {
            format!("volume {name} stays {is}: it is not made into {} any more", api_policy(to))
        }
        _ => return,
    };
    found.push(Draft::new(Kind::PolicyChanged, Info, format!("volume {}", record.id), message));
}

fn hosts(before: &State, after: &State, found: &mut Vec<Draft>) {
    for (id, host) in &after.hosts {
        let subject = format!("host {id}");
        let Some(known) = before.hosts.get(id) else {
            let message = format!("host {} was let into the cluster", host.name);
            found.push(Draft::new(Kind::HostJoined, Info, subject, message));
            continue;
        };
        if (&known.name, &known.fault_domain) != (&host.name, &host.fault_domain) && known.lease > 0 {
            let message = format!(
                "host {} is called {} now, in fault domain {}",
                known.name, host.name, host.fault_domain
            );
            found.push(Draft::new(Kind::HostChanged, Info, &*subject, message));
        }
        match (before.is_host_leaving(*id), after.is_host_leaving(*id)) {
            (false, true) => {
                let message = format!("host {} is to leave the cluster", host.name);
                found.push(Draft::new(Kind::HostLeaving, Info, &*subject, message));
            }
            (true, false) => {
                let message = format!("host {} stays in the cluster", host.name);
                found.push(Draft::new(Kind::HostStays, Info, &*subject, message));
            }
            _ => {}
        }
        let given_up = |state: &State| state.absences.of(*id).is_some_and(|a| a.given_up);
        if given_up(after) && !given_up(before) {
            let message = format!(
                "host {} is given up: what it holds is built elsewhere, as far as the other hosts can hold it",
                host.name
            );
            found.push(Draft::new(Kind::HostGivenUp, Warning, &*subject, message));
        }
        match (before.maintenance(*id), after.maintenance(*id)) {
            (was, Some((mode, _))) if was.is_none_or(|(before, _)| before != mode) => {
                let mode = api_mode(mode);
                let message = format!("host {} enters maintenance, mode {mode}", host.name);
                found.push(Draft::new(Kind::MaintenanceEntered, Info, subject, message));
            }
            (Some(_), None) => {
                let message = format!("host {} has left maintenance", host.name);
                found.push(Draft::new(Kind::MaintenanceLeft, Info, subject, message));
            }
            _ => {}
        }
    }
    for (id, host) in &before.hosts {
        if !after.hosts.contains_key(id) {
            let message = format!("host {} has left the cluster", host.name);
            found.push(Draft::new(Kind::HostRemoved, Info, format!("host {id}"), message));
        }
    }
}

fn disks(before: &State, after: &State, found: &mut Vec<Draft>) {
    for (id, disk) in &after.disks {
        let (subject, name) = (format!("disk {id}"), disk_name(after, *id));
        let Some(known) = before.disks.get(id) else {
            let size = format_size(disk.capacity_extents.saturating_mul(EXTENT_BYTES));
            let message = format!("{name} was given to the cluster, with {size}");
            found.push(Draft::new(Kind::DiskAdded, Info, subject, message));
            continue;
        };
        if (known.host, &known.path) != (disk.host, &disk.path) {
            let message = format!("{} is {name} now", disk_name(before, *id));
            found.push(Draft::new(Kind::DiskMoved, Info, &*subject, message));
        }
        match (&known.health, &disk.health) {
            (DiskHealth::Healthy, DiskHealth::Dead(why)) => {
                let message = format!("{name} has failed: {why}");
                found.push(Draft::new(Kind::DiskDead, Warning, &*subject, message));
            }
            (DiskHealth::Dead(_), DiskHealth::Healthy) => {
                found.push(Draft::new(Kind::DiskRevived, Info, &*subject, format!("{name} is used again")));
            }
            _ => {}
        }
        match (before.leaving_disks.contains_key(id), after.leaving_disks.contains_key(id)) {
            (false, true) => {
                found.push(Draft::new(
                    Kind::DiskLeaving,
                    Info,
                    subject,
                    format!("{name} is to leave the cluster"),
                ));
            }
            (true, false) => {
                found.push(Draft::new(
                    Kind::DiskStays,
                    Info,
                    subject,
                    format!("{name} stays in the cluster"),
                ));
            }
            _ => {}
        }
    }
    let gone = |disk: &&DiskRecord| !after.disks.contains_key(&disk.id);
    for disk in before.disks.values().filter(gone) {
        let message = format!("{} has left the cluster", disk_name(before, disk.id));
        found.push(Draft::new(Kind::DiskRemoved, Info, format!("disk {}", disk.id), message));
    }
}

/// Which components of an object on each disk are not in sync.
pub fn stale(record: &ObjectRecord) -> BTreeMap<DiskId, BTreeSet<ChunkIndex>> {
    let mut stale: BTreeMap<DiskId, BTreeSet<_>> = BTreeMap::new();
    for (index, chunk) in &record.chunks {
        for component in chunk.components.iter().filter(|c| !c.in_sync()) {
            stale.entry(component.disk).or_default().insert(*index);
        }
    }
    stale
}

/// Whether a component fell out of the in-sync set, and is missed there: one that the others do without is about to go.
fn fell_out(known: &ObjectRecord, record: &ObjectRecord, index: ChunkIndex, disk: DiskId) -> bool {
    let missed =
        record.chunks.get(&index).is_some_and(|c| c.in_sync().count() < record.policy.components(index));
    missed && known.chunks.get(&index).is_some_and(|c| c.in_sync().any(|d| d == disk))
}

fn volume(
    before: &State,
    after: &State,
    known: &ObjectRecord,
    record: &ObjectRecord,
    found: &mut Vec<Draft>,
) {
    let (subject, name) = (format!("volume {}", record.id), &record.name);
    if known.size_bytes != record.size_bytes {
        let message = format!("volume {name} has {} now", format_size(record.size_bytes));
        found.push(Draft::new(Kind::VolumeResized, Info, &*subject, message));
    }
    if known.policy != record.policy {
        let (was, is) = (api_policy(known.policy), api_policy(record.policy));
        let message = format!("volume {name} was given the policy {is}; before it was {was}");
        found.push(Draft::new(Kind::PolicyChanged, Info, &*subject, message));
    }
    // A repair in the background is nobody's opening.
    let held = |record: &ObjectRecord| record.lock.filter(|lock| lock.kind != LockKind::Background);
    match (held(known), held(record)) {
        (None, Some(lock)) => {
            let message = format!("volume {name} {}", doing(after, lock));
            found.push(Draft::new(Kind::LockTaken, Info, &*subject, message));
        }
        (Some(lock), None) => {
            let host = host_name(before, lock.host);
            let message = format!("volume {name} is no longer open on host {host}");
            found.push(Draft::new(Kind::LockReleased, Info, &*subject, message));
        }
        (Some(old), Some(new)) if old.host != new.host => {
            let message = format!(
                "volume {name} {}; before it was host {}",
                doing(after, new),
                host_name(before, old.host)
            );
            found.push(Draft::new(Kind::OwnerChanged, Info, &*subject, message));
        }
        _ => {}
    }
    let (was, is) = (stale(known), stale(record));
    for (disk, mut chunks) in is {
        chunks.retain(|index| fell_out(known, record, *index, disk));
        // What was on a host that was given up is built elsewhere: that is told of the host.
        if !was.contains_key(&disk) && !chunks.is_empty() && !after.is_given_up(disk) {
            let message = format!(
                "volume {name}: copies of {} on {} have missed writes",
                self::chunks(chunks.len()),
                disk_name(after, disk)
            );
            found.push(Draft::new(Kind::CopiesStale, Warning, &*subject, message));
        }
    }
}

fn doing(state: &State, lock: Lock) -> String {
    let host = host_name(state, lock.host);
    match lock.kind {
        LockKind::Transfer => format!("is being imported or exported on host {host}"),
        LockKind::Exclusive { read_only: true } => format!("is open on host {host}, to be read only"),
        LockKind::Exclusive { read_only: false } | LockKind::Background => format!("is open on host {host}"),
    }
}

/// The resyncs that a host ran and that are over: the object, the disk, and whether the copies are good now.
pub fn resyncs_ended(before: &State, after: &State, host: HostId) -> Vec<(ObjectId, DiskId, bool)> {
    let owns = |record: &ObjectRecord| record.lock.is_some_and(|lock| lock.host == host);
    let mut ended = Vec::new();
    for (id, known) in &before.objects {
        let Some(record) = after.objects.get(id) else { continue };
        if known.revision == record.revision || !(owns(known) || owns(record)) {
            continue;
        }
        let still = stale(record);
        for (disk, chunks) in stale(known) {
            if still.contains_key(&disk) {
                continue;
            }
            let good = chunks.iter().all(|index| {
                let chunk = record.chunks.get(index);
                chunk.is_some_and(|c| c.components.iter().any(|c| c.disk == disk && c.in_sync()))
            });
            ended.push((*id, disk, good));
        }
    }
    ended
}
