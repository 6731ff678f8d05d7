//! What the worker says of itself when it is asked: plain data with names in place of numbers.

use std::collections::BTreeMap;

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Mac, NetName, Vni};
use vswitch_core::config::{GroupIx, UplinkIx};
use vswitch_core::pipeline::{Counters, Egress, Step, Trace};
use vswitch_core::table::{PeerIx, Place, PortIx};

/// How a port's device is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PortLink {
    /// Nobody is connected to its socket.
    Waiting,
    /// A front end is connected, but its guest takes no frames yet.
    Connected,
    /// Frames pass.
    Running,
    /// The guest broke the rules of its rings, or the device failed: nothing passes until it is reset.
    Broken(String),
    /// The device was unplugged on demand.
    Detached,
    /// The port left the configuration, and its device with it.
    Removed,
}

/// What a port's or uplink's device did not let pass, apart from what the switch counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceDrops {
    /// To it: nobody takes frames.
    pub not_ready: u64,
    /// To it: no room in its rings or buffers.
    pub no_room: u64,
    /// To it: longer than its buffers or its MTU.
    pub too_long: u64,
    /// To it: a checksum or super-frame that could not be made what it takes.
    pub offload: u64,
    /// To it: the delayed frames of all ports took too much room.
    pub delayed: u64,
    /// To it: the system refused.
    pub failed: u64,
    /// From it: too short or too long to be a frame.
    pub bad_length: u64,
    /// From it: its header can't be that of its frame.
    pub bad_header: u64,
    /// From it: its queue is disabled.
    pub disabled: u64,
    /// From it: there was no room before we looked.
    pub overrun: u64,
}

impl DeviceDrops {
    /// All of them, with the names that metrics have.
    pub fn all(&self) -> [(&'static str, u64); 10] {
        [
            ("device_not_ready", self.not_ready),
            ("device_no_room", self.no_room),
            ("device_too_long", self.too_long),
            ("device_offload", self.offload),
            ("device_delayed", self.delayed),
            ("device_failed", self.failed),
            ("device_bad_length", self.bad_length),
            ("device_bad_header", self.bad_header),
            ("device_disabled", self.disabled),
            ("device_overrun", self.overrun),
        ]
    }
}

/// One port with a device.
#[derive(Clone, PartialEq, Debug)]
pub struct PortView {
    /// Its name.
    pub name: NetName,
    /// Its group.
    pub group: NetName,
    /// Its address.
    pub mac: Mac,
    /// What is plugged in: `vhost-user` or `tap`.
    pub kind: &'static str,
    /// How that is.
    pub link: PortLink,
    /// Pairs of queues in use.
    pub pairs: usize,
    /// The virtio features that its guest took; 0 if that means nothing here.
    pub features: u64,
    /// What passed the switch, since it was plugged in.
    pub counters: Counters,
    /// What its device refused.
    pub drops: DeviceDrops,
}

/// One uplink of the configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct UplinkView {
    /// Its name.
    pub name: NetName,
    /// The switch that it belongs to.
    pub switch: NetName,
    /// The interface, if there is one.
    pub interface: Option<String>,
    /// Whether it can be used.
    pub up: bool,
    /// What passed the switch, since it was configured.
    pub counters: Counters,
    /// What its device refused.
    pub drops: DeviceDrops,
}

/// Another host.
#[derive(Clone, PartialEq, Debug)]
pub struct PeerView {
    /// Which.
    pub host: HostId,
    /// Its place, which the tunnels' figures name.
    pub peer: PeerIx,
    /// Whether its control connection says that it is there.
    pub alive: bool,
    /// What passed the switch.
    pub counters: Counters,
}

/// Which uplinks a port group uses now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TeamView {
    /// The group.
    pub group: NetName,
    /// Its uplinks.
    pub used: Vec<NetName>,
}

/// How everything is.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Snapshot {
    /// Ports with a device, by name.
    pub ports: Vec<PortView>,
    /// Uplinks of the configuration.
    pub uplinks: Vec<UplinkView>,
    /// Other hosts.
    pub peers: Vec<PeerView>,
    /// Which uplinks groups use.
    pub teams: Vec<TeamView>,
    /// What the gateways of port groups have seen.
    pub gateways: Vec<(NetName, crate::endpoint::Seen)>,
    /// How many addresses are known.
    pub addresses: usize,
    /// Turns of the worker's loop since it began.
    pub turns: u64,
    /// How often it slept.
    pub sleeps: u64,
    /// Frames that captures missed, because nobody took them fast enough.
    pub capture_missed: u64,
    /// Frames that wait for their time.
    pub delayed: usize,
    /// Their bytes.
    pub delayed_bytes: usize,
    /// Frames that were to wait and found no room.
    pub delayed_refused: u64,
    /// The data connections to other hosts, if there are any.
    pub tunnels: Option<crate::tunnel::data::Stats>,
}

/// Where an address is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PlaceView {
    /// At a port of this host.
    Port(NetName),
    /// At another host.
    Host(HostId),
    /// In the physical network.
    Uplink(NetName),
}

/// An address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MacView {
    /// The virtual network, if it is one.
    pub vni: Option<Vni>,
    /// The VLAN; 0 is none, `None` all of a trunk.
    pub vlan: Option<u16>,
    /// The address.
    pub mac: Mac,
    /// Where it is.
    pub place: PlaceView,
    /// Whether it was learned from a frame.
    pub learned: bool,
    /// Whether it moved too often and stays where it is.
    pub frozen: bool,
}

/// The names of places.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names {
    /// Ports.
    pub ports: BTreeMap<PortIx, NetName>,
    /// Uplinks, by their places.
    pub uplinks: Vec<NetName>,
    /// Port groups, by their places.
    pub groups: Vec<NetName>,
    /// Hosts.
    pub peers: BTreeMap<PeerIx, HostId>,
}

impl Names {
    /// The name of an uplink.
    pub fn uplink(&self, ix: UplinkIx) -> Option<&NetName> {
        self.uplinks.get(usize::from(ix.0))
    }

    /// The name of a port group.
    pub fn group(&self, ix: GroupIx) -> Option<&NetName> {
        self.groups.get(ix.0 as usize)
    }

    /// The ports and hosts that a trace mentions, by what `port` and `peer` say of them.
    pub(super) fn mention(
        &mut self,
        trace: &Trace,
        port: impl Fn(PortIx) -> Option<NetName>,
        peer: impl Fn(PeerIx) -> Option<HostId>,
    ) {
        let mut places = Vec::new();
        let egress = |to: Egress, places: &mut Vec<Place>| match to {
            Egress::Port(ix) => places.push(Place::Port(ix)),
            Egress::Tunnel { to, .. } => places.push(Place::Peer(to)),
            Egress::Uplink(_) | Egress::Endpoint(_) => {}
        };
        for step in &trace.steps {
            match step {
                Step::Found(Some(place)) => places.push(*place),
                Step::Sent(to) | Step::Mirrored(to) | Step::Withheld(to, _) => egress(*to, &mut places),
                _ => {}
            }
        }
        for delivery in &trace.output.deliveries {
            egress(delivery.to, &mut places);
        }
        for made in &trace.output.made {
            egress(made.to, &mut places);
        }
        for place in places {
            match place {
                Place::Port(ix) => self.ports.extend(port(ix).map(|name| (ix, name))),
                Place::Peer(ix) => self.peers.extend(peer(ix).map(|host| (ix, host))),
                Place::Uplink(_) => {}
            }
        }
    }
}
