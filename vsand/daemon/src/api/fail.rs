//! The words of the common failures, so that the same thing is always said in the same way: what failed, for which object,
//! what to do next.

use std::fmt::Display;
use std::path::Path;

use ferro_protocol::api::{ApiError, ErrorCode, Policy, format_size};
use ferro_protocol::document::DocumentName;
use ferro_protocol::ids::{DiskId, HostId, ObjectId, TransferId, VolumeName};

/// There is no volume of this name.
pub fn volume_not_found(name: &VolumeName) -> ApiError {
    ApiError::new(
        ErrorCode::VolumeNotFound,
        format!("there is no volume {name}"),
        "see `vsanctl volume list` for those there are",
    )
}

/// There is no such host.
pub fn host_not_found(host: HostId) -> ApiError {
    ApiError::new(
        ErrorCode::HostNotFound,
        format!("there is no host {host} in the cluster"),
        "see `vsanctl host list` for those there are",
    )
}

/// There is no such disk.
pub fn disk_not_found(disk: DiskId) -> ApiError {
    ApiError::new(
        ErrorCode::DiskNotFound,
        format!("there is no disk {disk} in the cluster"),
        "see `vsanctl disk list` for those there are",
    )
}

/// There is nothing at the path where a disk should be.
pub fn device_not_found(path: &Path) -> ApiError {
    ApiError::new(
        ErrorCode::DiskNotFound,
        format!("there is no directory and no block device at {}", path.display()),
        "check the path (`lsblk` lists block devices), or make the directory first",
    )
}

/// There is no such object.
pub fn object_not_found(object: ObjectId) -> ApiError {
    ApiError::new(
        ErrorCode::ObjectNotFound,
        format!("there is no object {object}"),
        "see `vsanctl object list` for those there are",
    )
}

/// There is no such document.
pub fn document_not_found(name: &DocumentName) -> ApiError {
    ApiError::new(
        ErrorCode::DocumentNotFound,
        format!("there is no document {name} in the cluster directory"),
        "GET /v1/documents lists those there are",
    )
}

/// Nobody holds the object.
pub fn lock_not_found(object: ObjectId) -> ApiError {
    ApiError::new(
        ErrorCode::LockNotFound,
        format!("nobody holds a lock on object {object}"),
        "there is nothing to break: open the volume",
    )
}

/// The transfer has ended or never was.
pub fn transfer_not_found(name: &VolumeName, transfer: TransferId) -> ApiError {
    ApiError::new(
        ErrorCode::TransferNotFound,
        format!(
            "volume {name} has no transfer {transfer}; it may have ended because it was idle for too long"
        ),
        "begin the import or export again",
    )
}

/// Another volume has the name.
pub fn name_taken(name: &VolumeName) -> ApiError {
    ApiError::new(
        ErrorCode::NameTaken,
        format!("there is a volume {name} already"),
        "choose another name, or delete that volume first",
    )
}

/// Somebody has the volume open.
pub fn object_in_use(name: &VolumeName, owner: &str) -> ApiError {
    ApiError::new(
        ErrorCode::ObjectInUse,
        format!("volume {name} is open on host {owner}"),
        format!("stop its virtual machine and close it there: `vsanctl volume close {name}` on {owner}"),
    )
    .with("owner", owner)
}

/// The volume is not open on this host.
pub fn volume_not_open(name: &VolumeName) -> ApiError {
    ApiError::new(
        ErrorCode::VolumeNotOpen,
        format!("volume {name} is not open on this host"),
        format!("see `vsanctl volume show {name}` for who has it open"),
    )
}

/// An import into the volume was never completed.
pub fn volume_incomplete(name: &VolumeName) -> ApiError {
    ApiError::new(
        ErrorCode::VolumeIncomplete,
        format!("volume {name} holds an import that was never completed"),
        format!("repeat `vsanctl volume import {name} FILE`, or delete the volume"),
    )
}

/// A volume can't become smaller.
pub fn shrink_refused(name: &VolumeName, have_bytes: u64, want_bytes: u64) -> ApiError {
    let (have, want) = (format_size(have_bytes), format_size(want_bytes));
    ApiError::new(
        ErrorCode::ShrinkRefused,
        format!("volume {name} has {have} and can't be shrunk to {want}: what lies behind would be lost"),
        "volumes only grow; to make a smaller one, create it and copy the data inside a guest",
    )
}

/// The image does not fit the volume.
pub fn image_too_large(name: &VolumeName, volume_bytes: u64, image_bytes: u64) -> ApiError {
    let (volume, image) = (format_size(volume_bytes), format_size(image_bytes));
    ApiError::new(
        ErrorCode::ImageTooLarge,
        format!(
            "the image has {image} ({image_bytes} bytes) and volume {name} only {volume} ({volume_bytes} bytes)"
        ),
        format!("grow it first: `vsanctl volume resize {name} --size SIZE`; nothing was changed"),
    )
}

/// Too few fault domains for the policy.
pub fn policy_unsatisfiable(name: &VolumeName, policy: Policy, domains_have: u32) -> ApiError {
    let needed = policy.domains();
    ApiError::new(
        ErrorCode::PolicyUnsatisfiable,
        format!(
            "volume {name} can't be {policy}: that needs usable disks in {needed} fault domains and there are {domains_have}"
        ),
        "add hosts or disks, or choose a policy that needs fewer",
    )
}

/// What helps against disks that are full.
pub const MAKE_ROOM: &str = "add disks (`vsanctl disk add`), or delete volumes that nobody needs";

/// What leads from a policy to one that not all hosts can make of it.
pub const CONVERT_AFTER_UPGRADE: &str =
    "when all hosts run this release, `vsanctl cluster upgrade` makes it possible; nothing was changed";

/// Not all hosts know how a mirror becomes shards, or shards something else.
pub fn policy_not_convertible(name: &VolumeName, from: Policy, to: Policy) -> ApiError {
    ApiError::new(
        ErrorCode::PolicyNotConvertible,
        format!(
            "volume {name} is {from} and can't become {to} at the cluster's feature level: only the copies of a mirror can be more or fewer"
        ),
        CONVERT_AFTER_UPGRADE,
    )
}

/// The disks are full.
pub fn cluster_full(what: impl Display, need_bytes: u64, free_bytes: u64) -> ApiError {
    let (need, free) = (format_size(need_bytes), format_size(free_bytes));
    ApiError::new(
        ErrorCode::ClusterFull,
        format!("{what} needs {need} on the disks and {free} are free where its policy lets it go"),
        MAKE_ROOM,
    )
}

/// Shards can't do with fewer fault domains.
pub fn cant_force() -> ApiError {
    ApiError::new(
        ErrorCode::BadPolicy,
        "only a mirror can be made where there is no place for all of it: each shard of raid5 and raid6 needs a fault domain of its own",
        "leave --force-provisioning out, or choose a mirror",
    )
}

/// There is less than is to be kept for a volume.
pub fn no_room_to_keep(volume: &VolumeName, need_bytes: u64, free_bytes: u64) -> ApiError {
    let (need, free) = (format_size(need_bytes), format_size(free_bytes));
    ApiError::new(
        ErrorCode::ClusterFull,
        format!(
            "{need} can't be kept for volume {volume} with all its copies: {free} are free, each copy or shard in a fault domain of its own"
        ),
        format!("keep less of it, or none; {MAKE_ROOM}"),
    )
}

/// The device holds something: its name must be typed back.
pub fn disk_not_empty(path: &Path, device: &str, found: &str) -> ApiError {
    ApiError::new(
        ErrorCode::DiskNotEmpty,
        format!("{} is not empty: it holds {found}", path.display()),
        format!("if all of that may be erased, repeat with `--confirm {device}`"),
    )
    .with("device", device)
    .with("found", found)
}

/// The disk is too small to be of use.
pub fn disk_too_small(path: &Path, have_bytes: u64, least_bytes: u64) -> ApiError {
    let (have, least) = (format_size(have_bytes), format_size(least_bytes));
    ApiError::new(
        ErrorCode::DiskTooSmall,
        format!("the disk at {} has {have} and must have at least {least}", path.display()),
        "use a larger disk, or a larger --size",
    )
}

/// It would cost data.
pub fn would_lose_data(what: impl Display, reason: impl Display) -> ApiError {
    ApiError::new(
        ErrorCode::WouldLoseData,
        format!("{what} can't be removed: {reason}"),
        "see `vsanctl status`; wait for the resync to end or add disks elsewhere, then try again",
    )
}

/// No cluster yet.
pub fn not_in_cluster() -> ApiError {
    ApiError::new(
        ErrorCode::NotInCluster,
        "this host is in no cluster yet",
        "make one with `vsanctl cluster bootstrap`, or join one with `vsanctl cluster join TOKEN`",
    )
}

/// In a cluster already.
pub fn already_in_cluster() -> ApiError {
    ApiError::new(
        ErrorCode::AlreadyInCluster,
        "this host is in a cluster already",
        "see `vsanctl cluster show`; to leave it, run `vsanctl host remove` on another of its hosts",
    )
}

/// Nothing can be changed.
pub fn no_quorum(what: impl Display) -> ApiError {
    ApiError::new(
        ErrorCode::NoQuorum,
        format!("{what}: the cluster directory has no quorum, so nothing can be changed"),
        "bring back enough of its voters; `vsanctl status` says which are missing",
    )
}

/// It took too long.
pub fn timed_out(what: impl Display) -> ApiError {
    ApiError::new(
        ErrorCode::TimedOut,
        format!("{what} was not done in time; it may still happen"),
        "look with `vsanctl status` whether it did before you repeat it",
    )
}

/// A fault of ours.
pub fn internal(what: impl Display, cause: impl Display) -> ApiError {
    ApiError::new(
        ErrorCode::Internal,
        format!("{what}: {cause}"),
        "see the daemon's log (`journalctl -u vsand`); this is worth a bug report",
    )
}
