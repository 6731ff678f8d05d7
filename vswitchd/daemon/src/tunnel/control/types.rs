//! What the control plane and the mesh say to each other.

use std::net::SocketAddr;

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Announcement, Vni, Withdrawal};
use serde::{Deserialize, Serialize};

use super::super::Path;

/// A revision of the configuration: higher is newer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// A host to be connected to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MeshPeer {
    /// Which.
    pub host: HostId,
    /// Where it listens for control connections. May be empty for a host that dials us.
    pub control: Vec<SocketAddr>,
}

/// What the mesh is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MeshCommand {
    /// These are the other hosts, and no others. Connections to those that are gone are closed; an unknown host that calls is
    /// refused. Those that did not change are not touched.
    Peers(Vec<MeshPeer>),
    /// Tell all: from `Effect::Announce`.
    Announce(Announcement),
    /// Tell all: from `Effect::Withdraw`.
    Withdraw(Withdrawal),
    /// Tell all: from `Effect::Networks`.
    Networks(Vec<Vni>),
    /// Tell all: where this host's tunnels are.
    DataAddresses(Vec<SocketAddr>),
    /// Tell all: what this host has applied.
    Applied(Revision),
}

/// What the mesh has to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MeshEvent {
    /// A host can be reached now. Its [`MeshEvent::Snapshot`] comes with it, sooner or later.
    Alive(HostId),
    /// A host can be reached no longer, on any path.
    Dead(HostId),
    /// A path to a host works now.
    PathUp(HostId, Path),
    /// A path to a host works no longer.
    PathDown(HostId, Path),
    /// Where the host's tunnels are. Before the first snapshot, and when it changes.
    DataAddresses(HostId, Vec<SocketAddr>),
    /// What the host has applied. Before the first snapshot, and when it changes.
    Applied(HostId, Revision),
    /// All that a host has to say, for `Switch::peer_snapshot`.
    Snapshot {
        /// Which.
        host: HostId,
        /// Its virtual networks.
        networks: Vec<Vni>,
        /// Its addresses.
        announcements: Vec<Announcement>,
    },
    /// For `Switch::peer_networks`.
    Networks(HostId, Vec<Vni>),
    /// For `Switch::peer_announce`.
    Announce(HostId, Announcement),
    /// For `Switch::peer_withdraw`.
    Withdraw(HostId, Withdrawal),
}

/// One path's figures.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathView {
    /// Between which addresses.
    pub path: Path,
    /// Whether its heartbeats arrive.
    pub alive: bool,
    /// The round trip, in microseconds; zero if it is not connected.
    pub round_trip_us: u64,
}

/// One peer as the mesh sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerView {
    /// Which.
    pub host: HostId,
    /// Whether any path works.
    pub alive: bool,
    /// What it has applied, if it ever said so.
    pub applied: Option<Revision>,
    /// Where its tunnels are.
    pub data: Vec<SocketAddr>,
    /// Its paths.
    pub paths: Vec<PathView>,
    /// Why the last attempt to connect failed, if one did since it was last connected.
    pub trouble: Option<String>,
}
