//! Ports, uplinks and tunnels: where frames go in and out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::HostId;
use crate::net::Mac;

/// Where the sockets of ports are unless configured otherwise: `<this>/<port>.sock`.
pub const PORT_SOCKETS_DEFAULT: &str = "/run/vswitchd/ports";

/// What a port is attached to, on one host. Kept by that host over restarts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Attachment {
    /// A virtual machine, over vhost-user.
    VhostUser {
        /// The socket's absolute path; in an answer always there. Unless given: `<run_dir>/ports/<port>.sock`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        socket: Option<String>,
        /// The virtual machine monitor listens on the socket and the switch connects to it; unless given, the other way round.
        #[serde(default)]
        connect: bool,
        /// Pairs of queues that are offered, 1 to 16.
        #[serde(default = "one")]
        queue_pairs: u16,
    },
    /// A TAP interface of this host.
    Tap {
        /// Its name, up to 15 bytes. Made if there is none, and removed at the end if it was made.
        interface: String,
    },
}

fn one() -> u16 {
    1
}

/// Whether frames can pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// They can.
    Up,
    /// They can't: no virtual machine on the socket, no carrier.
    Down,
    /// There is no such interface on this host, or it can't be used.
    Missing,
    /// The other side broke the rules; the port waits for it to begin anew.
    Broken,
}

/// Frames and bytes. What is segmented later counts as one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Flow {
    /// Frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What passed and what did not.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Counters {
    /// What came from the port, uplink or host.
    pub from: Flow,
    /// What went to it.
    pub to: Flow,
    /// What was dropped, by cause; causes without a frame are left out.
    #[serde(default)]
    pub dropped: BTreeMap<String, u64>,
}

impl Counters {
    /// All that was dropped.
    pub fn drops(&self) -> u64 {
        self.dropped.values().sum()
    }
}

/// A port, as this host sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PortInfo {
    /// Its name.
    pub name: String,
    /// Its port group.
    pub group: String,
    /// The group's switch.
    pub switch: String,
    /// The address in force: the configured one, unless the guest took another and may.
    pub mac: Mac,
    /// The IP addresses that are known to be behind it.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Bytes of the largest packet.
    pub mtu: u32,
    /// Nothing passes.
    pub blocked: bool,
    /// What it is attached to on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
    /// Whether frames can pass, if it is attached here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkState>,
    /// What is in the way, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The host that it is attached to, as far as that is known here (a distributed group's hosts say so).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// That host's name, where known; its id else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<String>,
    /// Virtio features that the guest took, as in `csum` and `host_tso4`.
    #[serde(default)]
    pub features: Vec<String>,
    /// How many pairs of queues the guest uses.
    #[serde(default)]
    pub queue_pairs: u16,
    /// What passed, if it is attached here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<Counters>,
}

/// All ports, by name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PortList {
    /// The ports.
    pub ports: Vec<PortInfo>,
}

/// An uplink of this host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct UplinkInfo {
    /// The interface.
    pub name: String,
    /// Its switch.
    pub switch: String,
    /// Whether frames can pass.
    pub link: LinkState,
    /// What is in the way, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Megabits (10⁶) a second, where the interface says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed_mbit_s: Option<u64>,
    /// The port groups that use it now.
    #[serde(default)]
    pub used_by: Vec<String>,
    /// What passed.
    #[serde(default)]
    pub counters: Counters,
}

/// All uplinks of this host, by switch and name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct UplinkList {
    /// The uplinks.
    pub uplinks: Vec<UplinkInfo>,
}

/// The way to another host.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TunnelInfo {
    /// The other host.
    pub host: HostId,
    /// Its name, where known; its id else.
    pub host_name: String,
    /// Whether it answers on any path.
    pub alive: bool,
    /// Seconds since that last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_s: Option<u64>,
    /// What is in the way, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The virtual networks that it has ports in.
    #[serde(default)]
    pub networks: Vec<u32>,
    /// One for each pair of addresses.
    #[serde(default)]
    pub paths: Vec<TunnelPath>,
    /// Guests' frames.
    #[serde(default)]
    pub counters: Counters,
}

/// One path to another host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TunnelPath {
    /// The address here.
    pub local: String,
    /// The address there.
    pub remote: String,
    /// Whether it works.
    pub alive: bool,
    /// Round trip in microseconds, where measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Bytes of the largest datagram that gets through, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datagram_bytes_max: Option<u32>,
    /// Datagrams sent.
    #[serde(default)]
    pub sent: u64,
    /// Datagrams received.
    #[serde(default)]
    pub received: u64,
    /// Datagrams lost on the way there, as its congestion control sees it.
    #[serde(default)]
    pub lost: u64,
    /// Datagrams thrown away here, because the path did not take them fast enough.
    #[serde(default)]
    pub dropped: u64,
}

/// All tunnels, by the other host's name.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TunnelList {
    /// The tunnels.
    pub tunnels: Vec<TunnelInfo>,
}
