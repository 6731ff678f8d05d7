//! Words into types: what can be refused without knowing the cluster is refused here.

use std::path::{Component, PathBuf};
use std::str::FromStr;

use ferro_protocol::api::{
    ApiError, ErrorCode, Policy, PolicySpec, VolumeLimits, VolumePlacement, format_size,
};
use ferro_protocol::ids::VolumeName;
use ferro_protocol::units::{BLOCK_BYTES, VOLUME_BYTES_MAX};
use ferro_transport::http::bad_request;

/// The longest path that a disk may be at.
const PATH_BYTES_MAX: usize = 4095;

/// A volume's name.
pub(super) fn volume_name(text: &str) -> Result<VolumeName, ApiError> {
    VolumeName::from_str(text).map_err(|bad| {
        let next = "choose a name of that form, such as `web-01`";
        ApiError::new(ErrorCode::BadName, bad.to_string(), next)
    })
}

/// An id in a path; `what` says of what.
pub(super) fn id<T: FromStr>(text: &str, what: &str) -> Result<T, ApiError> {
    T::from_str(text).map_err(|_| {
        let message = format!("{text:?} is not the id of a {what}");
        bad_request(message, "use the id as the lists give it: 36 characters, such as 8c1e…-…")
    })
}

/// A volume's size.
pub(super) fn volume_size(name: &VolumeName, bytes: u64) -> Result<u64, ApiError> {
    let bad = |message, next: String| Err(ApiError::new(ErrorCode::BadSize, message, next));
    let block = BLOCK_BYTES as u64;
    if bytes == 0 {
        return bad(format!("volume {name} can't have size 0"), "choose a size, such as 10G".to_owned());
    }
    if bytes > VOLUME_BYTES_MAX {
        let (asked, most) = (format_size(bytes), format_size(VOLUME_BYTES_MAX));
        return bad(
            format!("volume {name} can't have {asked}: a volume has at most {most}"),
            format!("choose a size up to {most}"),
        );
    }
    if !bytes.is_multiple_of(block) {
        return bad(
            format!("volume {name} can't have {bytes} bytes: a size is a multiple of {block}"),
            format!("choose {} bytes, the next that is", bytes.next_multiple_of(block)),
        );
    }
    Ok(bytes)
}

/// A volume's limits.
pub(super) fn limits(name: &VolumeName, limits: VolumeLimits) -> Result<VolumeLimits, ApiError> {
    match limits.check() {
        Ok(()) => Ok(limits),
        Err(bad) => Err(ApiError::new(
            ErrorCode::BadLimits,
            format!("volume {name} can't have these limits: {bad}"),
            "choose others; leave both out for none",
        )),
    }
}

/// Where a volume is rather kept.
pub(super) fn placement(name: &VolumeName, placement: VolumePlacement) -> Result<VolumePlacement, ApiError> {
    match placement.check() {
        Ok(()) => Ok(placement),
        Err(bad) => Err(ApiError::new(
            ErrorCode::BadPlacement,
            format!("volume {name} can't be placed like this: {bad}"),
            "name sites or fault domains as `vsanctl host list` shows them, such as lyon or lyon/rack3",
        )),
    }
}

/// How much of a volume is kept for it.
pub(super) fn reserve_percent(name: &VolumeName, percent: u8) -> Result<u8, ApiError> {
    if percent <= 100 {
        return Ok(percent);
    }
    Err(ApiError::new(
        ErrorCode::BadPolicy,
        format!("{percent} % of volume {name} can't be kept for it"),
        "choose 0 (thin) to 100 (thick)",
    ))
}

/// A volume's policy.
pub(super) fn policy(name: &VolumeName, spec: PolicySpec) -> Result<Policy, ApiError> {
    Policy::try_from(spec).map_err(|bad| {
        let why = format!("volume {name} can't be made: {bad}");
        ApiError::new(ErrorCode::BadPolicy, why, "choose another policy")
    })
}

/// Where a disk is.
pub(super) fn disk_path(text: &str) -> Result<PathBuf, ApiError> {
    let path = PathBuf::from(text);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if text.len() > PATH_BYTES_MAX || text.contains('\0') || !path.is_absolute() || !plain || text == "/" {
        return Err(ApiError::new(
            ErrorCode::BadPath,
            format!("{text:?} is not a path that a disk can be at"),
            "give an absolute path without `..`, such as /var/lib/vsand/disk0 or /dev/sdb",
        ));
    }
    Ok(path)
}
