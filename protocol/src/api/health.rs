//! The checks that a cluster's health is made of, what they found, and which of them are muted.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::status::{HealthLevel, HealthReason};

/// The shortest that a check may be muted: one minute.
pub const MUTE_SECONDS_MIN: u64 = 60;
/// The longest that a check may be muted: 30 days.
pub const MUTE_SECONDS_MAX: u64 = 30 * 24 * 3600;
/// The longest text that may say why a check is muted, in bytes.
pub const MUTE_REASON_BYTES_MAX: usize = 256;

/// One check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HealthCheck {
    /// Which one; stable, for programs, such as `host_offline`.
    pub code: String,
    /// What it looks at, in a few words.
    pub title: String,
    /// What it means when it finds something, and what that costs.
    pub explanation: String,
    /// The worst of what it found; `ok` if that is nothing to worry about.
    pub level: HealthLevel,
    /// What it found, the worst first.
    pub reasons: Vec<HealthReason>,
    /// Who has muted it, if anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mute: Option<HealthMute>,
}

/// A check that is not to be shown for a while.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HealthMute {
    /// When it ends, in seconds since 1970 (UTC).
    pub until_unix_s: u64,
    /// How long that is from now.
    pub seconds_left: u64,
    /// When it was muted, in seconds since 1970 (UTC).
    pub since_unix_s: u64,
    /// The host that it was muted on.
    pub by: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether it holds. It does not when more is wrong than when it was muted: then the check is shown all the same.
    pub in_force: bool,
}

/// All checks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HealthReport {
    /// The worst that is not muted.
    pub level: HealthLevel,
    /// Those that found something first, the worst of them at the top; then by code.
    pub checks: Vec<HealthCheck>,
}

/// Mute a check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MuteRequest {
    /// For how long, [`MUTE_SECONDS_MIN`] to [`MUTE_SECONDS_MAX`].
    pub seconds: u64,
    /// Why, in at most [`MUTE_REASON_BYTES_MAX`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
