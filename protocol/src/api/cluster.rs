//! The cluster and its hosts.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::maintenance::MaintenanceInfo;
use crate::ids::{ClusterId, HostId, VolumeName};

/// How long a join token is good for unless asked otherwise: one hour.
pub const TOKEN_SECONDS_DEFAULT: u64 = 3600;
/// The longest that a join token may be good for: one week.
pub const TOKEN_SECONDS_MAX: u64 = 7 * 24 * 3600;

/// Make a new cluster of which this host is the first member.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BootstrapRequest {
    /// What the host is called; its host name, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<String>,
    /// What fails together with this host, such as a rack; the host alone, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault_domain: Option<String>,
}

/// Print a token with which one host may join.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// How long it is good for, 1 to [`TOKEN_SECONDS_MAX`].
    #[serde(default = "token_seconds_default")]
    pub valid_seconds: u64,
}

impl Default for TokenRequest {
    fn default() -> Self {
        Self { valid_seconds: TOKEN_SECONDS_DEFAULT }
    }
}

fn token_seconds_default() -> u64 {
    TOKEN_SECONDS_DEFAULT
}

/// A join token as text. A secret: it never shows in a log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct JoinToken(pub String);

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(…)")
    }
}

/// A new token.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TokenInfo {
    /// What `vsanctl cluster join` takes.
    pub token: JoinToken,
    /// When it ends, in seconds since 1970 (UTC).
    pub expires_unix_s: u64,
    /// Where the new host will knock.
    pub addresses: Vec<String>,
    /// SHA-256 of the cluster's CA certificate, in hexadecimal.
    pub ca_fingerprint: String,
}

/// Make this host a member of the cluster that the token is from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The token.
    pub token: JoinToken,
    /// As in [`BootstrapRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<String>,
    /// As in [`BootstrapRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault_domain: Option<String>,
}

/// The cluster that this host is in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ClusterInfo {
    /// Its id.
    pub id: ClusterId,
    /// SHA-256 of its CA certificate, in hexadecimal.
    pub ca_fingerprint: String,
    /// The host that answers.
    pub this_host: HostId,
    /// The leader of the directory, where one is known.
    pub leader: Option<HostId>,
    /// Whether the directory has a quorum: without one nothing can be changed.
    pub quorum: bool,
    /// How many hosts vote in the directory.
    pub voters: u32,
    /// How many hosts there are.
    pub hosts: u32,
    /// What all hosts understand: the cluster's feature level.
    #[serde(default = "first_level")]
    pub feature_level: u16,
    /// The last level that the host that answers knows.
    #[serde(default = "first_level")]
    pub feature_level_known: u16,
}

/// The level of what is of before there were any.
fn first_level() -> u16 {
    1
}

/// Raise the cluster's feature level to the last one that all hosts know. There is no way back.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpgradeRequest {
    /// Only say whether it could be done.
    #[serde(default)]
    pub check: bool,
}

/// What a host said of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostLevel {
    /// The host.
    pub id: HostId,
    /// What it is called.
    pub name: String,
    /// The version of its `vsand`.
    pub version: String,
    /// The last feature level that it knows.
    pub feature_level_known: u16,
}

/// What an upgrade did, or would do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct UpgradeReport {
    /// The level before.
    pub from: u16,
    /// The level after it: the same if all hosts know nothing later.
    pub to: u16,
    /// Whether the cluster is at that level now.
    pub done: bool,
    /// What the hosts said, by name.
    pub hosts: Vec<HostLevel>,
}

/// Whether a host takes part.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Its lease runs.
    Online,
    /// Its lease has ended: it is down, cut off or frozen.
    Offline,
    /// It has a certificate and was not seen yet.
    Joining,
    /// Its data is being moved away.
    Leaving,
}

/// What a host does in the directory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostRole {
    /// A voter, and the leader now.
    Leader,
    /// Votes.
    Voter,
    /// Follows.
    Learner,
}

/// One host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// Its id.
    pub id: HostId,
    /// What people call it.
    pub name: String,
    /// Whether it is the one that answers.
    pub this_host: bool,
    /// Where the other hosts reach it.
    pub addresses: Vec<String>,
    /// What fails together with it.
    pub fault_domain: String,
    /// Whether it takes part.
    pub state: HostState,
    /// What it does in the directory.
    pub role: HostRole,
    /// How many disks it has.
    pub disks: u32,
    /// The size of its disks together.
    pub capacity_bytes: u64,
    /// How much of that is taken.
    pub used_bytes: u64,
    /// How much of that is still to be copied elsewhere, of one that is leaving, whatever its state is.
    #[serde(default)]
    pub leaving_bytes: Option<u64>,
    /// How it is in maintenance, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<MaintenanceInfo>,
    /// How long ago it was last seen, unless it is online.
    pub last_seen_seconds: Option<u64>,
    /// When its certificate ends, in seconds since 1970 (UTC), where known.
    pub certificate_expires_unix_s: Option<u64>,
    /// The version of its `vsand`, where known.
    pub version: Option<String>,
}

/// All hosts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostList {
    /// By name.
    pub hosts: Vec<HostInfo>,
}

/// Change what a host is called or what fails together with it; what is left out stays.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetHostRequest {
    /// What people call it from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What fails together with it from now on, such as a rack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault_domain: Option<String>,
}

/// A host that was changed, and what that means.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ChangedHost {
    /// The host as it is now.
    pub host: HostInfo,
    /// The volumes that have copies of a chunk in one fault domain now, by name. Nothing is moved because of that.
    pub sharing_volumes: Vec<VolumeName>,
}

/// How far the removal of a host or a disk has come.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Removal {
    /// Whether it is gone. If not, its data is being copied elsewhere and it goes by itself afterwards.
    pub removed: bool,
    /// What is left to copy.
    pub remaining_bytes: u64,
}
