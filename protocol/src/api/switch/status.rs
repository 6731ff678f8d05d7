//! The switch at a glance, and its configuration.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::port::{TunnelInfo, UplinkInfo};
use super::spec::Spec;
use super::transaction::HostApplied;
use crate::api::Health;
use crate::ids::HostId;
use crate::net::Mac;

/// Where the configuration in force is from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConfigSource {
    /// The cluster directory.
    Directory,
    /// This host's copy of what the directory had: the directory can't be reached.
    LocalCopy,
    /// The settings file: this host is alone.
    File,
}

/// The configuration.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NetworkConfig {
    /// Counts the changes.
    pub revision: u64,
    /// Where it is from.
    pub source: ConfigSource,
    /// What it says.
    pub spec: Spec,
}

/// A change that undoes itself unless somebody confirms it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Unconfirmed {
    /// The revision to confirm.
    pub revision: u64,
    /// So many seconds are left.
    pub seconds_left: u32,
    /// Why it has to be confirmed, for people.
    pub reason: String,
}

/// How many ports there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct PortTotals {
    /// In the configuration.
    pub defined: u32,
    /// Attached to this host.
    pub attached: u32,
    /// Of those, with a guest or an interface that takes frames.
    pub up: u32,
}

/// An address that too many claim: it stays where it is until somebody decides.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct FrozenMac {
    /// The virtual network, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// The address.
    pub mac: Mac,
}

/// The switch of this host at a glance.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SwitchStatus {
    /// The version of the `vswitchd` that answers.
    pub version: String,
    /// This host.
    pub host: HostId,
    /// Its name, where known; its id else.
    pub host_name: String,
    /// How well the network is, as seen from here.
    pub health: Health,
    /// Where the configuration in force is from.
    pub source: ConfigSource,
    /// The newest revision that is known.
    pub revision: u64,
    /// The revision in force here.
    pub applied_revision: u64,
    /// A change that has to be confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed: Option<Unconfirmed>,
    /// How far all hosts are with the newest revision; empty when this host is alone.
    pub hosts: Vec<HostApplied>,
    /// How many switches there are.
    pub switches: u32,
    /// How many port groups there are.
    pub groups: u32,
    /// The ports.
    pub ports: PortTotals,
    /// The uplinks of this host, by switch and name.
    pub uplinks: Vec<UplinkInfo>,
    /// The tunnels to the other hosts, by their names.
    pub tunnels: Vec<TunnelInfo>,
    /// Addresses that too many claim.
    pub frozen: Vec<FrozenMac>,
}
