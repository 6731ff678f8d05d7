//! Hosts in maintenance, and what it would mean to take out a host or a disk.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::VolumeName;

/// What is moved before a host may be switched off.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MaintenanceMode {
    /// What has no second copy: every volume can still be read.
    EnsureAccess,
    /// Everything: no volume has fewer copies.
    Full,
    /// Nothing.
    None,
}

impl MaintenanceMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::EnsureAccess, Self::Full, Self::None];

    /// As the API and the tools write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EnsureAccess => "ensure-access",
            Self::Full => "full",
            Self::None => "none",
        }
    }
}

impl fmt::Display for MaintenanceMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for MaintenanceMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == text);
        found.ok_or_else(|| format!("{text:?} is not a mode; use ensure-access, full or none"))
    }
}

/// Let a host enter maintenance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceRequest {
    /// What is moved first.
    pub mode: MaintenanceMode,
}

/// How a host in maintenance is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MaintenanceInfo {
    /// What is moved first.
    pub mode: MaintenanceMode,
    /// Since when, in seconds since 1970 (UTC).
    pub since_unix_s: u64,
    /// Whether the host may be switched off: what the mode moves is elsewhere, and every volume can be read without it.
    pub ready: bool,
    /// What is still to be moved.
    pub remaining_bytes: u64,
}

/// One thing that could be done with a host or a disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PossibleAction {
    /// The command for it.
    pub command: String,
    /// Whether it would be accepted now.
    pub possible: bool,
    /// How much would be copied to other disks first.
    pub moved_bytes: u64,
    /// Why it would be refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// What would make it possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_step: Option<String>,
}

/// What it would mean if a host or a disk went now, without more ado, and what can be done to prepare for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Safety {
    /// The host, or the disk, for people.
    pub name: String,
    /// Whether it could go now: every volume could still be read and changed.
    pub safe: bool,
    /// What is on it.
    pub used_bytes: u64,
    /// How many volumes have something there, which would have fewer copies.
    pub volumes: u32,
    /// How much would have to be rebuilt elsewhere.
    pub rebuild_bytes: u64,
    /// The volumes that could not be read, at most 20.
    pub unavailable_volumes: Vec<VolumeName>,
    /// The volumes for all of whose copies there would be no place, at most 20.
    pub unplaced_volumes: Vec<VolumeName>,
    /// The volumes that are open there, at most 20: their guests would lose their disks.
    pub open_volumes: Vec<VolumeName>,
    /// Whether the directory would have a quorum without it.
    pub keeps_quorum: bool,
    /// What can be done with it.
    pub actions: Vec<PossibleAction>,
}
