//! The switch of one host: frames in batches, and the control plane that tells it what it must know.
//!
//! ```text
//!   parse ─► port security ─► VLAN ─► ACL ─► (VNI, VLAN, MAC) look-up ─► shaping ─► output
//!     a batch of Frame<'_>: head, length, offload, where from          Output: deliveries, frames made here
//! ```
//!
//! **For the driver.** One [`Switch`] belongs to one worker thread, which calls [`Switch::process`] with what its ports,
//! uplinks and tunnels brought, and then writes each [`Delivery`] straight from where the frame lies to where it goes:
//! [`Edit::prefix`] first, then the rest. No frame is copied or cut here, nothing is locked, and in the steady state
//! nothing is allocated: `Output` is the driver's and is used again. A delivery with a later time than now is kept by the
//! driver until then (at most [`crate::shaping::WAIT_MAX`]); better still, it asks [`Switch::ready_at`] before it takes
//! frames from a port. What was kept for a port that is detached must be thrown away.
//!
//! The control plane's methods are sorted like this: `configure`, `attach`, `detach`, `set_guest` for what is here;
//! `peer_*` for other hosts, `handle_link`, `handle_time` for what happens; then [`Switch::poll_effect`] until it is empty.
//! They may be called between any two batches by the same thread.
//!
//! **Networks.** A [`Domain`] is what nothing crosses: a virtual network (distributed port groups), or the VLANs of one
//! switch on its hosts (standard port groups). A frame from a tunnel never leaves by a tunnel, one from an uplink never by
//! an uplink, and a distributed group meets the physical network at one host only: so there are no loops.
//!
//! **Gateways.** A port group's own address is the same on every host and answered at each ([`Egress::Endpoint`]): what is
//! for it never leaves the host, and nobody else may speak in its name.
//!
//! **Guards.** Where a network has a gateway, ports may not speak as routers or DHCP servers, unless their policy says so (`guard`).
//!
//! What it must not know: how frames get in and out, guest memory, QUIC, the directory.

mod control;
mod count;
mod domain;
mod forward;
mod gateway;
mod guard;
mod lane;
mod neighbour;
mod output;
mod peer;
mod port;
mod trace;

use std::collections::{BTreeMap, VecDeque};

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Announcement, Mac, NetName, Sequence, Vni, Withdrawal};

use crate::bugs::Bugs;
use crate::config::{Config, GroupIx, UplinkIx};
use crate::frame::{Edit, Offload, Tci};
use crate::hash::{HashKey, Map};
use crate::table::{Key, PeerIx, PortIx, Table};
use crate::team::Team;
use crate::time::Instant;
use crate::tunnel::FlowKey;

pub use control::AttachError;
pub use count::{Cause, Counters, Flow};
pub use domain::Domain;
pub use lane::{Lane, Sender};
pub use peer::Peer;
pub use port::Port;
pub use trace::{Step, Trace};

/// Where a frame comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ingress {
    /// A port.
    Port(PortIx),
    /// An uplink.
    Uplink(UplinkIx),
    /// A tunnel. The frame's bytes have no tag of their network; `tci` is it.
    Tunnel {
        /// Whose.
        from: PeerIx,
        /// The virtual network.
        vni: Vni,
        /// Priority, and the VLAN on the wire; 0 is none.
        tci: Tci,
    },
    /// The gateway of a port group at this host. Its frames are untagged, reach the ports here and leave by nothing else.
    Endpoint(GroupIx),
}

/// One frame of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Where it comes from.
    pub from: Ingress,
    /// A private copy of its first bytes, at least [`crate::frame::HEAD_BYTES`] if it is that long.
    pub head: &'a [u8],
    /// How long it is.
    pub len: usize,
    /// What is still to be done to it.
    pub offload: Offload,
}

/// Where a frame goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Egress {
    /// To a port.
    Port(PortIx),
    /// To an uplink.
    Uplink(UplinkIx),
    /// To another host.
    Tunnel {
        /// Whom.
        to: PeerIx,
        /// The virtual network.
        vni: Vni,
        /// Priority, and the VLAN on the wire; 0 is none.
        tci: Tci,
        /// Its flow, and the port that it came from.
        flow: FlowKey,
    },
    /// To the gateway of a port group at this host: untagged, and only what a port here sent.
    Endpoint(GroupIx),
}

/// One copy of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delivery {
    /// Which frame of the batch.
    pub frame: u32,
    /// Where it goes.
    pub to: Egress,
    /// How its tag changes.
    pub edit: Edit,
    /// When it may leave.
    pub at: Instant,
    /// Whether it is a mirror's copy.
    pub mirror: bool,
}

/// A frame that was made here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Made {
    /// Where it goes.
    pub to: Egress,
    /// Where it lies in [`Output::bytes`].
    pub bytes: std::ops::Range<usize>,
}

/// What becomes of a batch. Kept by the driver and used again.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Output {
    /// Copies of the batch's frames, in the order of the batch.
    pub deliveries: Vec<Delivery>,
    /// Frames that were made here.
    pub made: Vec<Made>,
    /// Their bytes.
    pub bytes: Vec<u8>,
}

impl Output {
    /// Empties it and keeps its room.
    pub fn clear(&mut self) {
        self.deliveries.clear();
        self.made.clear();
        self.bytes.clear();
    }
}

/// Something that the driver is to do, or tell somebody.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Tell all peers.
    Announce(Announcement),
    /// Tell all peers.
    Withdraw(Withdrawal),
    /// Tell all peers that this host is in these virtual networks, and no others.
    Networks(Vec<Vni>),
    /// Send a frame by an uplink.
    Send {
        /// Which.
        uplink: UplinkIx,
        /// The frame.
        bytes: Vec<u8>,
    },
    /// The port is gone from the configuration: it was detached, and what is kept for it must be thrown away.
    Detached(PortIx),
    /// An address moved too often: most likely two machines have it. It stays where it is until somebody decides.
    Frozen {
        /// The virtual network, if it is one.
        vni: Option<Vni>,
        /// The address.
        mac: Mac,
    },
}

/// What a switch is made with.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// This host.
    pub host: HostId,
    /// Drawn at random when the daemon starts.
    pub hash: HashKey,
    /// The wall clock, in microseconds, at `Instant(0)`. Claims are numbered by it, but always above all that were seen (a
    /// hybrid logical clock): so the later of two wins also when their hosts had no contact.
    pub sequence: Sequence,
    /// A deliberate bug.
    pub bugs: Bugs,
}

/// So many effects between two polls, and no further frames and alarms are added.
const EFFECTS_MAX: usize = 65_536;

/// How many addresses that nobody claims are remembered, to know their frames when an uplink brings them back.
const ECHOES: usize = 4096;

/// The switch of one host.
#[derive(Debug)]
pub struct Switch {
    settings: Settings,
    config: Config,
    ports: Vec<Port>,
    free: Vec<u32>,
    by_name: BTreeMap<NetName, PortIx>,
    domains: Vec<Domain>,
    /// The place in `domains` of each group's network.
    of_group: Vec<usize>,
    /// Numbers of switches, by name.
    names_of_switches: BTreeMap<NetName, u32>,
    /// The place of each virtual network in `domains`.
    by_vni: Map<usize>,
    /// The place in `domains` of each VLAN of each switch that belongs to a bridged group.
    bridged: BTreeMap<(u16, u16), usize>,
    /// The place in `domains` of each switch's standard groups.
    standard: BTreeMap<u16, usize>,
    table: Table,
    /// Which addresses are known to be where: (network, IP address, VLAN, MAC address), and how often it was said.
    neighbours: BTreeMap<neighbour::Neighbour, u32>,
    /// One for each port group.
    teams: Vec<Team>,
    links: BTreeMap<NetName, bool>,
    uplinks: Vec<Counters>,
    /// One for each port group: what passed to and from its gateway.
    endpoints: Vec<Counters>,
    peers: Vec<Peer>,
    by_host: BTreeMap<HostId, PeerIx>,
    sequence: Sequence,
    effects: VecDeque<Effect>,
    networks: Vec<Vni>,
    /// What left by uplinks from addresses that nobody claims: the hash of network and address, and when.
    echoes: Vec<(u64, Instant)>,
    beacon_at: Instant,
    rebalance_at: Instant,
}

impl Switch {
    /// A switch without any configuration.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            config: Config::default(),
            ports: Vec::new(),
            free: Vec::new(),
            by_name: BTreeMap::new(),
            domains: Vec::new(),
            of_group: Vec::new(),
            names_of_switches: BTreeMap::new(),
            by_vni: Map::new(settings.hash),
            bridged: BTreeMap::new(),
            standard: BTreeMap::new(),
            table: Table::new(settings.hash, settings.bugs),
            neighbours: BTreeMap::new(),
            teams: Vec::new(),
            links: BTreeMap::new(),
            uplinks: Vec::new(),
            endpoints: Vec::new(),
            peers: Vec::new(),
            by_host: BTreeMap::new(),
            sequence: settings.sequence,
            effects: VecDeque::new(),
            networks: Vec::new(),
            echoes: vec![(0, Instant(0)); ECHOES],
            beacon_at: Instant(0),
            rebalance_at: Instant(0),
        }
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The table of addresses.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// A port that is attached.
    pub fn port(&self, ix: PortIx) -> Option<&Port> {
        self.ports.get(ix.slot as usize).filter(|port| port.ix() == ix && port.attached())
    }

    /// The attached port of this name.
    pub fn port_named(&self, name: &NetName) -> Option<PortIx> {
        self.by_name.get(name).copied()
    }

    /// A peer.
    pub fn peer(&self, ix: PeerIx) -> Option<&Peer> {
        self.peers.get(usize::from(ix.0))
    }

    /// The counters of an uplink.
    pub fn uplink_counters(&self, uplink: UplinkIx) -> Option<&Counters> {
        self.uplinks.get(usize::from(uplink.0))
    }

    /// The counters of a port group's gateway.
    pub fn endpoint_counters(&self, group: GroupIx) -> Option<&Counters> {
        self.endpoints.get(group.0 as usize)
    }

    /// The uplinks that a port group uses now.
    pub fn uplinks_used(&self, group: GroupIx) -> &[UplinkIx] {
        self.teams.get(group.0 as usize).map_or(&[], Team::used)
    }

    /// When the port's next frame may be taken: as long as that lies ahead, leave it where it is.
    pub fn ready_at(&self, ix: PortIx) -> Instant {
        let shaper = self.port(ix).and_then(|port| port.shaper_in.as_ref());
        shaper.map_or(Instant(0), crate::shaping::Shaper::ready_at)
    }

    /// What is to be done, one by one.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn effect(&mut self, effect: Effect) {
        // What peers and the driver must hear is bounded by the number of ports; what guests can cause is bounded here.
        let optional = matches!(effect, Effect::Send { .. } | Effect::Frozen { .. });
        if !optional || self.effects.len() < EFFECTS_MAX {
            self.effects.push_back(effect);
        }
    }

    /// The address that a frame is for, as it stands in the table.
    fn look(&self, domain: &Domain, lane: Lane, mac: Mac) -> Option<crate::table::Place> {
        self.table.find(Key::new(domain.id, lane.vid, mac), domain.has_trunks).map(|(place, _)| place)
    }
}
