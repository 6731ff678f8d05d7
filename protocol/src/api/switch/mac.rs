//! The table of addresses, in pages.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::HostId;
use crate::net::{Mac, VlanId};

/// The most rows of one page.
pub const MAC_PAGE_MAX: u32 = 1000;

/// Where an address is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MacPlace {
    /// At a port of this host.
    Port {
        /// Which.
        name: String,
    },
    /// At another host.
    Host {
        /// Which.
        id: HostId,
        /// Its name, where known; its id else.
        name: String,
    },
    /// In the physical network.
    Uplink {
        /// Behind this uplink.
        name: String,
    },
}

/// How an address is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MacKind {
    /// It is that of an attached port, here or as another host says.
    Known,
    /// It was learned from frames.
    Learned,
}

/// One row.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MacInfo {
    /// The virtual network; of a standard port group's address there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// The switch whose standard port groups it is in, if there is no virtual network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<String>,
    /// The VLAN; none for the untagged one and for all of a trunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u16>)]
    pub vlan: Option<VlanId>,
    /// In all VLANs: its port is a trunk.
    #[serde(default)]
    pub all_vlans: bool,
    /// The address.
    pub mac: Mac,
    /// Where it is.
    pub place: MacPlace,
    /// How that is known.
    pub kind: MacKind,
    /// It moved too often and stays where it is until it is released.
    #[serde(default)]
    pub frozen: bool,
}

/// A part of the table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MacPage {
    /// The rows, in a fixed order: by network, VLAN and address.
    pub macs: Vec<MacInfo>,
    /// Where the next page begins; none at the end. Its form is the daemon's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A frozen address may move again: the one machine too many is gone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MacRelease {
    /// The virtual network; none for the standard port groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// The address.
    pub mac: Mac,
}
