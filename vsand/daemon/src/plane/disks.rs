//! Disks: adding directories and devices.

use std::path::{Path, PathBuf};

use ferro_protocol::api::{AddedDisk, ApiError, ErrorCode, format_size};
use ferro_protocol::ids::DiskId;
use uuid::Uuid;
use vsand_store::{Store, format::CAPACITY_BYTES_MIN};

use super::cluster::{settle, view};
use super::errors;
use crate::api::control::{NewDisk, Result};
use crate::api::fail;
use crate::member::Member;
use crate::member::devices::{self, DeviceError};
use crate::member::disks::Listed;

/// So much of the free space is used unless a size is given: the rest is left for the file system.
const SHARE_PERCENT: u64 = 90;

/// Makes a disk of a directory or a device, or takes up one that is there.
pub(super) async fn add(member: &Member, disk: NewDisk) -> Result<AddedDisk> {
    let path = disk.path.clone();
    let state_dir = member.config.state_dir.clone();
    let size_bytes = disk.size_bytes;
    let prepared = tokio::task::spawn_blocking(move || prepare(&state_dir, &disk)).await;
    let prepared = prepared.map_err(|panicked| fail::internal("adding the disk", panicked))??;
    let what = format!("adding the disk at {}", path.display());
    let capacity = match capacity(&prepared.new.path, size_bytes) {
        Ok(capacity) => capacity,
        Err(error) => {
            prepared.undo();
            return Err(error);
        }
    };
    let (id, adopted) = match member.disks.add(member, &prepared.new, capacity).await {
        Ok(added) => added,
        Err(error) => {
            prepared.undo();
            return Err(errors::disk(&member.state(), &what, &error));
        }
    };
    tracing::info!(disk = %id, path = %path.display(), adopted, "a disk was added");
    settle(member).await;
    let view = view(member).await;
    let found = view.disks().into_iter().find(|d| d.id == id);
    let disk = found.ok_or_else(|| {
        // It is served and told of again and again until the directory has heard.
        ApiError::new(
            ErrorCode::NoQuorum,
            format!("{what}: the disk is there, but the cluster directory could not be told of it yet"),
            "it is told again by itself as soon as the directory has a quorum; see `vsanctl disk list`",
        )
    })?;
    Ok(AddedDisk { disk, adopted })
}

/// A directory that can become a disk, and what was done for that.
struct Prepared {
    new: Listed,
    mounted: bool,
}

impl Prepared {
    fn undo(&self) {
        if self.mounted
            && let Err(error) = devices::unmount(&self.new.path)
        {
            tracing::warn!(%error, "a device that was not added could not be unmounted");
        }
    }
}

fn prepare(state_dir: &Path, disk: &NewDisk) -> Result<Prepared> {
    let path = &disk.path;
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            let new = Listed { path: path.clone(), disk: DiskId(Uuid::new_v4()), device_uuid: None };
            Ok(Prepared { new, mounted: false })
        }
        Ok(_) if devices::is_device(path) => device(state_dir, disk),
        Ok(_) => Err(fail::device_not_found(path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(fail::device_not_found(path)),
        Err(error) => Err(ApiError::new(
            ErrorCode::Io,
            format!("{} can't be looked at: {error}", path.display()),
            "check the path and its permissions",
        )),
    }
}

fn device(state_dir: &Path, new: &NewDisk) -> Result<Prepared> {
    let failed = |error: DeviceError| device_error(&new.path, &error);
    let probe = devices::probe(&new.path).map_err(failed)?;
    let disks = state_dir.join("disks");
    // A file system that vsand made may hold a disk that was moved here: looked at before anything is erased.
    if let Some(uuid) = &probe.ours
        && let Some(prepared) = moved(&disks, uuid).map_err(failed)?
    {
        return Ok(prepared);
    }
    if probe.bytes < CAPACITY_BYTES_MIN {
        return Err(fail::disk_too_small(&new.path, probe.bytes, CAPACITY_BYTES_MIN));
    }
    let uuid = devices::make_file_system(&new.path, &probe, new.confirm.as_deref()).map_err(failed)?;
    let disk = DiskId(Uuid::new_v4());
    let path = disks.join(disk.to_string());
    devices::mount(&uuid, &path).map_err(failed)?;
    Ok(Prepared { new: Listed { path, disk, device_uuid: Some(uuid) }, mounted: true })
}

/// Mounts a device that vsand made on this host or another; nothing if there is no disk on it.
fn moved(disks: &Path, uuid: &str) -> std::result::Result<Option<Prepared>, DeviceError> {
    let look: PathBuf = disks.join(format!("look-{uuid}"));
    devices::mount(uuid, &look)?;
    let found = Store::identify(&look);
    devices::unmount(&look)?;
    let Ok(superblock) = found else { return Ok(None) };
    let path = disks.join(superblock.disk.to_string());
    devices::mount(uuid, &path)?;
    let new = Listed { path, disk: superblock.disk, device_uuid: Some(uuid.to_owned()) };
    Ok(Some(Prepared { new, mounted: true }))
}

fn device_error(path: &Path, error: &DeviceError) -> ApiError {
    let what = format!("{} can't become a disk: {error}", path.display());
    match error {
        DeviceError::NotEmpty { device, found, .. } => fail::disk_not_empty(path, device, found),
        DeviceError::InUse { .. } => ApiError::new(
            ErrorCode::DiskInUse,
            what,
            "unmount it, or choose another device; `lsblk` lists them",
        ),
        DeviceError::NoTool { tool, package, .. } => ApiError::new(
            ErrorCode::Io,
            what,
            format!("install {tool} (`apt install {package}`), then repeat"),
        ),
        DeviceError::Tool { .. } | DeviceError::Answer { .. } | DeviceError::Io { .. } => ApiError::new(
            ErrorCode::Io,
            what,
            "check the device and the kernel's log (`dmesg`); the daemon needs the right to mount",
        ),
    }
}

/// How much a new disk at this path may take up.
fn capacity(path: &Path, asked: Option<u64>) -> Result<u64> {
    let stat = rustix::fs::statvfs(path).map_err(|error| {
        ApiError::new(
            ErrorCode::Io,
            format!("the file system of {} can't be asked for its free space: {error}", path.display()),
            "check the path and its permissions",
        )
    })?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if Store::identify(path).is_ok() {
        // It is there already and has its size.
        return Ok(free);
    }
    let capacity = asked.unwrap_or(free / 100 * SHARE_PERCENT);
    if capacity < CAPACITY_BYTES_MIN {
        return Err(fail::disk_too_small(path, capacity, CAPACITY_BYTES_MIN));
    }
    if capacity > free {
        return Err(ApiError::new(
            ErrorCode::BadSize,
            format!(
                "a disk of {} does not fit {}: its file system has {} free",
                format_size(capacity),
                path.display(),
                format_size(free)
            ),
            "choose a smaller --size, or leave it out to use 90 % of what is free",
        ));
    }
    Ok(capacity)
}
