//! Disks and hosts that leave the cluster, and disks that come back to life.
//!
//! What is proposed here is only that they leave, or that they stay after all. Moving the data is the business of the volumes'
//! owners ([`vsand_core::directory::leave`]), the last step that of [`crate::member::departure`].

use std::time::Duration;

use ferro_protocol::api::{ApiError, DiskInfo, ErrorCode, Removal};
use ferro_protocol::ids::{DiskId, HostId};
use vsand_core::directory::{Command, Departure, DiskHealth, Refused, State};

use super::cluster::{carry_out, latest, settle, view};
use super::errors::{self, host_name};
use crate::api::control::Result;
use crate::api::fail;
use crate::member::Member;
use crate::member::departure::{self, RemoveError};

/// An answer waits so long for something that has nothing left to move to be gone.
const GONE_MAX: Duration = Duration::from_secs(5);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What `force` means.
pub(super) fn how(force: bool) -> Departure {
    if force { Departure::AtOnce } else { Departure::WhenEmpty }
}

/// Waits a little for what has nothing left to move.
async fn is_gone(member: &Member, gone: impl Fn(&State) -> bool) -> bool {
    let waited = async {
        while !gone(&member.state()) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(GONE_MAX, waited).await.is_ok()
}

/// A disk is to leave the cluster.
pub(super) async fn disk(member: &Member, disk: DiskId, departure: Departure) -> Result<Removal> {
    let what = format!("removing disk {disk}");
    let state = latest(member, &what).await?;
    let record = state.disks.get(&disk).ok_or_else(|| fail::disk_not_found(disk))?.clone();
    carry_out(member, &what, &state, &Command::LeaveDisk { disk, departure: Some(departure) }).await?;
    tracing::info!(%disk, ?departure, "a disk is to leave the cluster");
    let soon = departure == Departure::AtOnce || !member.state().holds_components(&[disk]);
    if soon && is_gone(member, |state| !state.disks.contains_key(&disk)).await {
        return Ok(Removal { removed: true, remaining_bytes: 0 });
    }
    let remaining_bytes = view(member).await.bytes_to_move(&record);
    Ok(Removal { removed: false, remaining_bytes })
}

/// A host is to leave the cluster, with all its disks.
pub(super) async fn host(member: &Member, host: HostId, departure: Departure) -> Result<Removal> {
    let state = latest(member, "removing the host").await?;
    let what = format!("removing host {}", host_name(&state, host));
    if !state.hosts.contains_key(&host) {
        // A removal that was cut off half-way is completed.
        return match departure::remove_host(member, host).await {
            Ok(()) => Ok(Removal { removed: true, remaining_bytes: 0 }),
            Err(RemoveError::Refused(refused)) => Err(errors::refused(&state, &refused)),
            Err(RemoveError::Directory(error)) => Err(errors::directory(&what, &error)),
        };
    }
    super::maintenance::check_voters(&view(member).await, host)?;
    carry_out(member, &what, &state, &Command::LeaveHost { host, departure: Some(departure) }).await?;
    tracing::info!(%host, ?departure, "a host is to leave the cluster");
    let now = member.state();
    let soon = departure == Departure::AtOnce || !now.holds_components(&now.disks_in(host));
    if soon && host != member.host() {
        match departure::remove_host(member, host).await {
            Ok(()) => {
                settle(member).await;
                return Ok(Removal { removed: true, remaining_bytes: 0 });
            }
            // Somebody else was faster.
            Err(RemoveError::Refused(Refused::NoHost(_))) => {
                return Ok(Removal { removed: true, remaining_bytes: 0 });
            }
            Err(RemoveError::Refused(refused)) => return Err(errors::refused(&state, &refused)),
            Err(RemoveError::Directory(error)) => return Err(errors::directory(&what, &error)),
        }
    }
    let view = view(member).await;
    let remaining_bytes =
        state.disks.values().filter(|d| d.host == host).map(|d| view.bytes_to_move(d)).sum();
    Ok(Removal { removed: false, remaining_bytes })
}

/// A disk that is leaving stays.
pub(super) async fn keep_disk(member: &Member, disk: DiskId) -> Result<()> {
    let what = format!("keeping disk {disk}");
    let state = latest(member, &what).await?;
    let record = state.disks.get(&disk).ok_or_else(|| fail::disk_not_found(disk))?;
    if !state.leaving_disks.contains_key(&disk) {
        let next = if state.is_host_leaving(record.host) {
            let host = host_name(&state, record.host);
            format!("its host is leaving, with all its disks: `vsanctl host remove {host} --cancel`")
        } else {
            "there is nothing to cancel; see `vsanctl disk list`".to_owned()
        };
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("disk {disk} is not leaving by itself"),
            next,
        ));
    }
    carry_out(member, &what, &state, &Command::LeaveDisk { disk, departure: None }).await?;
    tracing::info!(%disk, "a disk that was leaving stays");
    Ok(())
}

/// A host that is leaving stays.
pub(super) async fn keep_host(member: &Member, host: HostId) -> Result<()> {
    let what = format!("keeping host {host}");
    let state = latest(member, &what).await?;
    let record = state.hosts.get(&host).ok_or_else(|| fail::host_not_found(host))?;
    if !state.is_host_leaving(host) {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("host {} is not leaving", record.name),
            "there is nothing to cancel; see `vsanctl host list`",
        ));
    }
    carry_out(member, &what, &state, &Command::LeaveHost { host, departure: None }).await?;
    tracing::info!(%host, "a host that was leaving stays");
    Ok(())
}

/// A disk that was taken for dead is used again.
pub(super) async fn revive(member: &Member, disk: DiskId) -> Result<DiskInfo> {
    let what = format!("reviving disk {disk}");
    let state = latest(member, &what).await?;
    let record = state.disks.get(&disk).ok_or_else(|| fail::disk_not_found(disk))?.clone();
    if record.host != member.host() {
        let host = host_name(&state, record.host);
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("disk {disk} is in host {host}, and only that host can open it"),
            format!("run `vsanctl disk revive {disk}` on {host}"),
        ));
    }
    let failed_here = member.disks.failures().contains_key(&disk);
    if record.health == DiskHealth::Healthy && !failed_here {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("disk {disk} was not taken for dead"),
            "there is nothing to revive; see `vsanctl disk list`",
        ));
    }
    let reopened = member.disks.reopen(member, disk).await;
    reopened.map_err(|error| errors::disk(&state, &what, &error))?;
    let command = Command::PutDisk {
        disk,
        host: record.host,
        path: record.path,
        capacity_extents: record.capacity_extents,
        used_extents: record.used_extents,
    };
    carry_out(member, &what, &state, &command).await?;
    tracing::info!(%disk, "a disk that was taken for dead is used again");
    let found = view(member).await.disks().into_iter().find(|d| d.id == disk);
    found.ok_or_else(|| fail::disk_not_found(disk))
}
