//! Volumes, objects and locks.

use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::api::{
    ApiError, BrokenLock, DiskCounters, ErrorCode, EventKind, EventLevel, LockInfo, ObjectDetails,
    OpenedVolume, OperationCounters, Policy, ProvisionRequest, TopSample, VolumeCounters, VolumeInfo,
    VolumeLimits, VolumeOwner, VolumePlacement,
};
use ferro_protocol::ids::{ChunkIndex, HostId, ObjectId, VolumeName};
use ferro_protocol::units::EXTENT_BYTES;
use uuid::Uuid;
use vsand_core::directory::placement::has_room;
use vsand_core::directory::{
    Command, DiskHealth, LockKind, ObjectRecord, Outcome, Provision, Refused, State,
};

use super::capacity::USABLE_PERCENT;
use super::cluster::{latest, propose, settle, view};
use super::errors::{self, host_name};
use super::view::{core_policy, core_preference};
use crate::api::control::{NewVolume, Result};
use crate::api::fail;
use crate::data::clock;
use crate::data::port::Command as DataCommand;
use crate::data::stats::VolumeStats;
use crate::events::Draft;
use crate::member::Member;
use crate::member::kept::{KeptError, change};
use crate::member::limits::LimitBook;
use crate::member::ownership::QUEUES;

/// The volume as everybody agrees it is now; without a quorum, as this host last heard.
async fn find(member: &Member, name: &VolumeName) -> Result<Arc<ObjectRecord>> {
    if let Some(record) = member.state().by_name(name) {
        return Ok(Arc::clone(record));
    }
    // Perhaps it was made on another host just now.
    let state = latest(member, &format!("looking for volume {name}")).await?;
    state.by_name(name).cloned().ok_or_else(|| fail::volume_not_found(name))
}

/// How many fault domains have a disk that may take a component, and how many have one at all.
fn domains(state: &State) -> (u32, u32) {
    let count = |good: &dyn Fn(&vsand_core::directory::DiskRecord) -> bool| {
        let domains: std::collections::BTreeSet<&str> =
            state.disks.values().filter(|d| good(d)).filter_map(|d| state.fault_domain(d.id)).collect();
        domains.len() as u32
    };
    (count(&|d| has_room(d)), count(&|d| d.health == DiskHealth::Healthy))
}

pub(super) async fn create(member: &Member, volume: NewVolume) -> Result<VolumeInfo> {
    let NewVolume { name, size_bytes, policy, reserve_percent, force_provisioning, limits, placement } =
        volume;
    let what = format!("making volume {name}");
    let (object, unix_s) = (ObjectId(Uuid::new_v4()), clock::unix_s());
    let provision = Provision { percent: reserve_percent, forced: force_provisioning };
    let (named, kept, preference) = (name.clone(), core_policy(policy), core_preference(placement));
    // Hosts of releases before this one understand the first, or the first two.
    let command = if provision == Provision::default() && preference.is_none() {
        Command::CreateObject { object, name: named, size_bytes, policy: kept, unix_s }
    } else if preference.is_none() {
        Command::CreateProvisioned { object, name: named, size_bytes, policy: kept, provision, unix_s }
    } else {
        Command::CreatePreferred {
            object,
            name: named,
            size_bytes,
            policy: kept,
            provision,
            preference,
            unix_s,
        }
    };
    let record = match propose(member, &what, &command).await? {
        Ok(Outcome::Object(record)) => record,
        Ok(other) => return Err(fail::internal(what, format!("the directory answered {other:?}"))),
        Err(Refused::NoRoom { .. }) => {
            return Err(no_place(&member.state(), &name, policy, policy.raw_bytes(size_bytes)));
        }
        Err(Refused::NoSpaceToReserve { extents }) => {
            return Err(no_room_to_keep(&member.state(), &name, extents));
        }
        Err(refused) => return Err(errors::refused(&member.state(), &refused)),
    };
    tracing::info!(volume = %name, object = %record.id, size_bytes, %policy, ?provision, "a volume was made");
    if !limits.is_none()
        && let Err(error) = set_limits(member, record.id, limits).await
    {
        // Not without its limits.
        let gone = propose(member, &what, &Command::DeleteObject { object: record.id }).await;
        tracing::warn!(volume = %name, %error, removed = matches!(gone, Ok(Ok(_))), "a new volume got no limits");
        return Err(errors::kept(&member.state(), &what, &error));
    }
    settle(member).await;
    Ok(view(member).await.volume(&record))
}

/// The policy has no place for the volume: too few fault domains, or their disks are full.
fn no_place(state: &State, name: &VolumeName, policy: Policy, need_bytes: u64) -> ApiError {
    let (roomy, healthy) = domains(state);
    if healthy < u32::from(policy.domains()) {
        return fail::policy_unsatisfiable(name, policy, healthy);
    }
    tracing::debug!(roomy, healthy, "no room for a volume");
    let free = |d: &vsand_core::directory::DiskRecord| d.capacity_extents.saturating_sub(d.used_extents);
    let free_bytes = state.disks.values().map(free).sum::<u64>() * EXTENT_BYTES;
    fail::cluster_full(format!("volume {name}"), need_bytes, free_bytes)
}

/// What is to be kept for a volume finds no room.
fn no_room_to_keep(state: &State, name: &VolumeName, extents: u64) -> ApiError {
    let free = |d: &vsand_core::directory::DiskRecord| {
        (d.capacity_extents / 100 * USABLE_PERCENT).saturating_sub(d.used_extents)
    };
    let free_extents: u64 = state.disks.values().filter(|d| has_room(d)).map(free).sum();
    fail::no_room_to_keep(name, extents.saturating_mul(EXTENT_BYTES), free_extents * EXTENT_BYTES)
}

pub(super) async fn provision(
    member: &Member,
    name: &VolumeName,
    request: ProvisionRequest,
) -> Result<VolumeInfo> {
    let record = find(member, name).await?;
    let what = format!("finding room for volume {name} in another way");
    let now = latest(member, &what).await?.provisioning.of(record.id);
    let ProvisionRequest { reserve_percent, force } = request;
    let provision =
        Provision { percent: reserve_percent.unwrap_or(now.percent), forced: force.unwrap_or(now.forced) };
    match propose(member, &what, &Command::Provision { object: record.id, provision }).await? {
        Ok(Outcome::Object(record)) => {
            tracing::info!(volume = %name, ?provision, "room is found for a volume in another way");
            settle(member).await;
            Ok(view(member).await.volume(&record))
        }
        Ok(_) => show(member, name).await,
        Err(Refused::NoObject(_)) => Err(fail::volume_not_found(name)),
        Err(Refused::NoRoom { .. }) => {
            let policy = view(member).await.volume(&record).policy;
            Err(no_place(&member.state(), name, policy, policy.raw_bytes(record.size_bytes)))
        }
        Err(Refused::NoSpaceToReserve { extents }) => Err(no_room_to_keep(&member.state(), name, extents)),
        Err(refused) => Err(errors::refused(&member.state(), &refused)),
    }
}

pub(super) async fn show(member: &Member, name: &VolumeName) -> Result<VolumeInfo> {
    let record = find(member, name).await?;
    Ok(view(member).await.volume(&record))
}

pub(super) async fn open(member: &Member, name: &VolumeName, read_only: bool) -> Result<OpenedVolume> {
    let record = find(member, name).await?;
    let socket = member.open_volume(name, read_only).await.map_err(|error| {
        errors::own(&member.state(), member.host(), &format!("opening volume {name}"), &error)
    })?;
    tracing::info!(volume = %name, read_only, socket = %socket.display(), "a volume is open here");
    Ok(OpenedVolume {
        name: name.clone(),
        object: record.id,
        socket: socket.display().to_string(),
        size_bytes: record.size_bytes,
        read_only,
        queues: QUEUES,
    })
}

pub(super) async fn close(member: &Member, name: &VolumeName) -> Result<VolumeInfo> {
    find(member, name).await?;
    member.close_volume(name).await.map_err(|error| {
        errors::own(&member.state(), member.host(), &format!("closing volume {name}"), &error)
    })?;
    tracing::info!(volume = %name, "a volume was closed");
    settle(member).await;
    show(member, name).await
}

pub(super) async fn resize(member: &Member, name: &VolumeName, size_bytes: u64) -> Result<VolumeInfo> {
    let record = find(member, name).await?;
    let command = Command::ResizeObject { object: record.id, size_bytes };
    match propose(member, &format!("resizing volume {name}"), &command).await? {
        Ok(Outcome::Object(record)) => {
            settle(member).await;
            Ok(view(member).await.volume(&record))
        }
        Ok(_) => show(member, name).await,
        Err(Refused::NoSpaceToReserve { extents }) => Err(no_room_to_keep(&member.state(), name, extents)),
        Err(Refused::Shrink { now, wanted }) => Err(fail::shrink_refused(name, now, wanted)),
        Err(Refused::NoObject(_)) => Err(fail::volume_not_found(name)),
        Err(refused) => Err(errors::refused(&member.state(), &refused)),
    }
}

pub(super) async fn set_policy(member: &Member, name: &VolumeName, policy: Policy) -> Result<VolumeInfo> {
    let record = find(member, name).await?;
    let from = view(member).await.volume(&record).policy;
    let command = Command::SetPolicy { object: record.id, from: record.policy, to: core_policy(policy) };
    match propose(member, &format!("changing the policy of volume {name}"), &command).await? {
        Ok(Outcome::Object(record)) => {
            tracing::info!(volume = %name, %from, %policy, "a volume gets another policy");
            settle(member).await;
            Ok(view(member).await.volume(&record))
        }
        Ok(_) => show(member, name).await,
        Err(Refused::NoObject(_)) => Err(fail::volume_not_found(name)),
        Err(Refused::OtherMethod) => Err(fail::policy_not_convertible(name, from, policy)),
        Err(Refused::NoRoom { .. }) => {
            Err(no_place(&member.state(), name, policy, policy.raw_bytes(record.size_bytes)))
        }
        Err(Refused::NoSpaceFor { extents, .. }) => {
            Err(no_place(&member.state(), name, policy, extents.saturating_mul(EXTENT_BYTES)))
        }
        Err(refused) => Err(errors::refused(&member.state(), &refused)),
    }
}

async fn set_limits(
    member: &Member,
    object: ObjectId,
    limits: VolumeLimits,
) -> std::result::Result<(), KeptError> {
    change(member, |book: &mut LimitBook, state| book.set(state, object, limits)).await
}

pub(super) async fn limit(member: &Member, name: &VolumeName, limits: VolumeLimits) -> Result<VolumeInfo> {
    let record = find(member, name).await?;
    let set = set_limits(member, record.id, limits).await;
    set.map_err(|error| errors::kept(&member.state(), &format!("limiting volume {name}"), &error))?;
    tracing::info!(volume = %name, %limits, "a volume has other limits");
    settle(member).await;
    show(member, name).await
}

pub(super) async fn place(
    member: &Member,
    name: &VolumeName,
    placement: VolumePlacement,
) -> Result<VolumeInfo> {
    let record = find(member, name).await?;
    let said = placement.to_string();
    let command = Command::Prefer { object: record.id, preference: core_preference(placement) };
    match propose(member, &format!("placing volume {name}"), &command).await? {
        Ok(Outcome::Object(record)) => {
            tracing::info!(volume = %name, placement = said, "a volume is rather kept elsewhere");
            settle(member).await;
            Ok(view(member).await.volume(&record))
        }
        Ok(_) => show(member, name).await,
        Err(Refused::NoObject(_)) => Err(fail::volume_not_found(name)),
        Err(refused) => Err(errors::refused(&member.state(), &refused)),
    }
}

pub(super) async fn delete(member: &Member, name: &VolumeName) -> Result<()> {
    let record = find(member, name).await?;
    match propose(member, &format!("deleting volume {name}"), &Command::DeleteObject { object: record.id })
        .await?
    {
        Ok(_) => {
            tracing::info!(volume = %name, object = %record.id, "a volume was deleted");
            settle(member).await;
            Ok(())
        }
        Err(Refused::NoObject(_)) => Err(fail::volume_not_found(name)),
        Err(refused) => Err(errors::refused(&member.state(), &refused)),
    }
}

pub(super) async fn object(
    member: &Member,
    object: ObjectId,
    from: ChunkIndex,
    chunks_max: u32,
) -> Result<ObjectDetails> {
    let view = view(member).await;
    let record = view.state.objects.get(&object).ok_or_else(|| fail::object_not_found(object))?;
    let mut placed = record.chunks_from(from);
    let chunks = placed.by_ref().take(chunks_max as usize).flat_map(|chunk| record.policy.records(chunk));
    let chunks =
        chunks.filter_map(|index| Some(view.chunk(record, index, record.chunks.get(&index)?))).collect();
    let next_chunk = placed.next();
    Ok(ObjectDetails { object: view.object(record), chunks, next_chunk })
}

fn owner(state: &State, host: HostId) -> VolumeOwner {
    VolumeOwner { host, host_name: host_name(state, host) }
}

/// Whole seconds, rounded up: "wait 0 seconds" helps nobody.
fn seconds(time: Duration) -> u64 {
    time.as_millis().div_ceil(1_000).try_into().unwrap_or(u64::MAX)
}

pub(super) fn locks(member: &Member) -> Vec<LockInfo> {
    let (state, now) = (member.state(), clock::mono());
    let watcher = member.watcher();
    state
        .volumes()
        .filter_map(|record| Some((record, record.lock.filter(|l| l.kind != LockKind::Background)?)))
        .map(|(record, lock)| {
            let left = watcher.ended(now, lock.host).err();
            LockInfo {
                object: record.id,
                volume: Some(record.name.clone()),
                owner: owner(&state, lock.host),
                epoch: record.epoch,
                lease_running: left.is_some(),
                lease_seconds: left.map(seconds),
            }
        })
        .collect()
}

pub(super) async fn break_lock(member: &Member, object: ObjectId) -> Result<BrokenLock> {
    let what = format!("breaking the lock of object {object}");
    let state = latest(member, &what).await?;
    let record = state.objects.get(&object).ok_or_else(|| fail::object_not_found(object))?;
    let lock = record.lock.ok_or_else(|| fail::lock_not_found(object))?;
    let ended = member.watcher().ended(clock::mono(), lock.host);
    let lease = ended.map_err(|left| lease_running(&state, record, lock.host, Some(left)))?;
    let command = Command::BreakLock { object, epoch: record.epoch, holder: lock.host, lease };
    match propose(member, &what, &command).await? {
        Ok(_) => {
            tracing::warn!(volume = %record.name, holder = %lock.host, "a lock was broken");
            let (name, host) = (&record.name, host_name(&state, lock.host));
            let message = format!("the lock of volume {name} was taken from host {host}, which is gone");
            let broken =
                Draft::new(EventKind::LockBroken, EventLevel::Warning, format!("volume {object}"), message);
            member.events.add(vec![broken]).await;
            Ok(BrokenLock {
                object,
                volume: Some(record.name.clone()),
                previous_owner: owner(&state, lock.host),
            })
        }
        Err(Refused::LeaseAlive(host)) => Err(lease_running(&state, record, host, None)),
        Err(refused) => Err(errors::refused(&state, &refused)),
    }
}

fn lease_running(state: &State, record: &ObjectRecord, holder: HostId, left: Option<Duration>) -> ApiError {
    let (name, host) = (&record.name, host_name(state, holder));
    let error = ApiError::new(
        ErrorCode::LeaseRunning,
        format!("the lock of volume {name} can't be broken: the lease of host {host} may still be running"),
        match left {
            Some(left) => format!(
                "if {host} is alive, close the volume there; if it is dead, repeat in {} s",
                seconds(left)
            ),
            None => format!("{host} is alive: close the volume there with `vsanctl volume close {name}`"),
        },
    )
    .with("owner", &host);
    match left {
        Some(left) => error.with("seconds", seconds(left)),
        None => error,
    }
}

fn us(ns: u64) -> u64 {
    ns / 1_000
}

fn counters(stats: &VolumeStats, in_flight: usize) -> OperationCounters {
    OperationCounters {
        reads: stats.read.ops,
        read_bytes: stats.read.bytes,
        read_us_sum: us(stats.read.latency.sum_ns),
        writes: stats.write.ops,
        write_bytes: stats.write.bytes,
        write_us_sum: us(stats.write.latency.sum_ns),
        in_flight: u32::try_from(in_flight).unwrap_or(u32::MAX),
    }
}

pub(super) async fn top(member: &Member) -> Result<TopSample> {
    let snapshot = member.data.ask(DataCommand::Snapshot).await.map_err(errors::stopping)?;
    let state = member.state();
    let mut volumes: Vec<VolumeCounters> = snapshot
        .volumes
        .iter()
        .filter_map(|(view, stats)| {
            let name = state.objects.get(&view.object)?.name.clone();
            Some(VolumeCounters { name, counters: counters(stats, view.in_flight) })
        })
        .collect();
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    let disks = snapshot
        .disks
        .iter()
        .map(|(disk, stats, _)| DiskCounters {
            id: *disk,
            path: member.disks.path_of(*disk).map_or_else(String::new, |p| p.display().to_string()),
            counters: OperationCounters {
                reads: stats.files.read.latency.count,
                read_bytes: stats.files.read.bytes,
                read_us_sum: us(stats.files.read.latency.sum_ns),
                writes: stats.files.write.latency.count,
                write_bytes: stats.files.write.bytes,
                write_us_sum: us(stats.files.write.latency.sum_ns),
                in_flight: u32::try_from(stats.in_flight).unwrap_or(u32::MAX),
            },
        })
        .collect();
    Ok(TopSample {
        at_us: clock::mono().0 / 1_000,
        host_name: member.membership.name.clone(),
        volumes,
        disks,
    })
}
