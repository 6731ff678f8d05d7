//! What must and must not arrive, told from the specification as it was written. It knows nothing of tables, lanes or
//! tunnels' chunks, and shares no code with the switch.

use std::collections::{BTreeMap, BTreeSet};

use ferro_protocol::ids::HostId;
use ferro_protocol::net::Mac;
use vswitch_core::config::spec::{
    GroupSpec, MirrorSpec, PortSpec, PrivateKind, SecuritySpec, Spec, SwitchSpec, TeamSpec, VlanSpec,
};

use super::frames::{Rogue, Sent};
use super::topology::{GATEWAY, Station};

/// Who sends or gets a frame.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Party {
    /// A port at a host.
    Port { name: String, host: usize },
    /// A station in the physical network.
    Station(usize),
    /// The gateway of a group, as it is at a host.
    Gateway { group: String, host: usize },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Deny,
    May,
    Must,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Network {
    Virtual(u32),
    Standard,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Speaker {
    Open,
    Isolated,
    Community(u32),
}

/// The segment that a frame is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Segment {
    network: Network,
    vid: u32,
    /// In the physical network.
    wire: u32,
    speaker: Speaker,
}

/// The state of the world that matters.
#[derive(Debug)]
pub(super) struct Model<'a> {
    pub(super) spec: &'a Spec,
    pub(super) hosts: &'a [HostId],
    pub(super) stations: &'a [Station],
    /// The MAC addresses of groups' gateways.
    pub(super) gateways: &'a BTreeMap<String, Mac>,
    /// Where each port is; a port that has just moved may be at two hosts, of which this is the new one.
    pub(super) places: &'a BTreeMap<String, usize>,
    /// Ports whose guest took another address.
    pub(super) taken: &'a BTreeMap<String, Mac>,
    /// Ports whose guest wants to see everything.
    pub(super) curious: &'a BTreeSet<String>,
    /// Links that are up, by host and number.
    pub(super) links: &'a [Vec<bool>],
    /// Tunnels that work, by hosts.
    pub(super) tunnels: &'a [Vec<bool>],
    /// Datagrams get lost: of a super-frame that is too large for a port, its small last segment may come alone.
    pub(super) lossy: bool,
}

impl<'a> Model<'a> {
    fn port(&self, name: &str) -> Option<(&'a PortSpec, &'a GroupSpec)> {
        let port = self.spec.ports.iter().find(|port| port.name == name)?;
        Some((port, self.spec.groups.iter().find(|group| group.name == port.group)?))
    }

    fn security(port: &PortSpec, group: &GroupSpec) -> SecuritySpec {
        port.overrides.and_then(|it| it.security).unwrap_or(group.security)
    }

    fn blocked(port: &PortSpec, group: &GroupSpec) -> bool {
        port.overrides.and_then(|it| it.blocked).unwrap_or(group.blocked)
    }

    /// The address that a port has now.
    pub(super) fn mac(&self, name: &str) -> Mac {
        let Some((port, group)) = self.port(name) else { return Mac::ZERO };
        let taken = self.taken.get(name).filter(|_| Self::security(port, group).mac_change);
        taken.copied().unwrap_or_else(|| port.mac.parse().unwrap_or(Mac::ZERO))
    }

    pub(super) fn may_forge(&self, name: &str) -> bool {
        self.port(name).is_some_and(|(port, group)| Self::security(port, group).forged_transmits)
    }

    /// The mirror that copies to this port, if it is one's. A mirror works while its port is attached.
    pub(super) fn mirror_to(&self, name: &str) -> Option<&'a MirrorSpec> {
        self.spec.mirrors.iter().find(|mirror| mirror.to == name)
    }

    /// The gateway of a segment: its group and MAC address.
    fn gateway(&self, segment: &Segment) -> Option<(&'a GroupSpec, Mac)> {
        let own = |group: &&GroupSpec| !group.gateway.is_empty() && Self::home(group) == Some(segment.vid);
        let mut groups = self.spec.groups.iter().filter(|group| Self::network(group) == segment.network);
        let group = groups.find(own)?;
        Some((group, *self.gateways.get(&group.name)?))
    }

    /// The VLAN that all of a group's ports are in.
    fn home(group: &GroupSpec) -> Option<u32> {
        match &group.vlan {
            VlanSpec::None => Some(0),
            VlanSpec::Access(vid) | VlanSpec::Private { primary: vid, .. } => Some(*vid),
            VlanSpec::Trunk { .. } | VlanSpec::Guest => None,
        }
    }

    /// Whether a frame speaks in the name of the gateway of its segment.
    fn poses(&self, segment: &Segment, sent: &Sent) -> bool {
        self.gateway(segment).is_some_and(|(_, mac)| sent.src == mac || sent.claims == Some(GATEWAY))
    }

    /// Whether a frame of a port is for the gateway of its segment.
    fn for_gateway(&self, segment: &Segment, sent: &Sent) -> bool {
        let asks = sent.dst.is_group() && sent.asks == Some(GATEWAY);
        self.gateway(segment).is_some_and(|(_, mac)| sent.dst == mac || asks)
    }

    /// Whether a gateway must get a frame.
    fn gateway_verdict(&self, from: &Party, sent: &Sent, segment: &Segment, to: (&str, usize)) -> Verdict {
        let Party::Port { name, host } = from else { return Verdict::Deny };
        let own = self.gateway(segment).is_some_and(|(group, _)| group.name == to.0);
        if !own || *host != to.1 || sent.hides() || !self.for_gateway(segment, sent) {
            return Verdict::Deny;
        }
        if self.shaped(name) { Verdict::May } else { Verdict::Must }
    }

    /// Whether a port may not say what only a server or a router says.
    fn guards(&self, port: &PortSpec, group: &GroupSpec, rogue: Rogue) -> bool {
        let said = |it: SecuritySpec| if rogue == Rogue::Router { it.router_guard } else { it.dhcp_guard };
        let own = port.overrides.and_then(|it| it.security).and_then(said);
        own.or_else(|| said(group.security)).unwrap_or_else(|| {
            let home = Self::home(group);
            let shares = |other: &&GroupSpec| {
                Self::network(other) == Self::network(group) && Self::home(other) == home
            };
            home.is_some() && self.spec.groups.iter().filter(shares).any(|other| !other.gateway.is_empty())
        })
    }

    fn network(group: &GroupSpec) -> Network {
        group.vni.map_or(Network::Standard, Network::Virtual)
    }

    fn mtu(group: &GroupSpec) -> usize {
        group.mtu.unwrap_or(9000) as usize
    }

    /// The segment of what a port sends; none if it may not send it.
    fn enters(&self, name: &str, sent: &Sent) -> Option<Segment> {
        let (port, group) = self.port(name)?;
        let reserved = reserved(sent.dst);
        let forged = sent.src != self.mac(name) && !Self::security(port, group).forged_transmits;
        if Self::blocked(port, group) || self.mirror_to(name).is_some() || reserved || forged {
            return None;
        }
        if sent.src.is_group() || sent.src == Mac::ZERO || sent.packet() > Self::mtu(group) {
            return None;
        }
        // Behind a tag that it does not see, nobody looks.
        if sent.rogue.is_some_and(|rogue| !sent.hides() && self.guards(port, group, rogue)) {
            return None;
        }
        if sent.tags.first().is_some_and(|(kind, _)| *kind != 0x8100) {
            return None;
        }
        let vid = sent.tag().map_or(0, |tci| u32::from(tci & 0x0fff));
        if vid == 4095 || (sent.tag().is_some() && vid == 0 && sent.hides()) {
            return None;
        }
        let open = |vid| Segment { network: Self::network(group), vid, wire: vid, speaker: Speaker::Open };
        match &group.vlan {
            VlanSpec::None => (vid == 0).then(|| open(0)),
            VlanSpec::Access(own) => (vid == 0).then(|| open(*own)),
            VlanSpec::Guest => Some(open(vid)),
            VlanSpec::Trunk { native, .. } if vid == 0 => native.map(open),
            VlanSpec::Trunk { ranges, native } => {
                let carried = ranges.iter().any(|(a, b)| (*a..=*b).contains(&vid)) || *native == Some(vid);
                carried.then(|| open(vid))
            }
            VlanSpec::Private { .. } if vid != 0 => None,
            VlanSpec::Private { primary, secondary, kind } => {
                let wire = secondary.unwrap_or(*primary);
                let speaker = match kind {
                    PrivateKind::Promiscuous => Speaker::Open,
                    PrivateKind::Isolated => Speaker::Isolated,
                    PrivateKind::Community => Speaker::Community(wire),
                };
                Some(Segment { vid: *primary, wire, speaker, ..open(0) })
            }
        }
    }

    /// The segment of what a station sends.
    fn enters_station(&self, station: Station) -> Segment {
        let bridged = self.spec.groups.iter().find(|group| {
            group.bridge.is_some()
                && group.vlan == if station.vid == 0 { VlanSpec::None } else { VlanSpec::Access(station.vid) }
        });
        let network = bridged.map_or(Network::Standard, Self::network);
        // A secondary VLAN on the wire is its primary's; stations are in none of them.
        Segment { network, vid: station.vid, wire: station.vid, speaker: Speaker::Open }
    }

    /// The VLAN of the tag that a port gets to see; none if it must not see the frame.
    fn exits(&self, name: &str, segment: &Segment, hides: bool) -> Option<u32> {
        let (port, group) = self.port(name)?;
        if Self::blocked(port, group) { None } else { Self::sees(group, segment, hides) }
    }

    /// The same, whether or not the port is blocked.
    fn sees(group: &GroupSpec, segment: &Segment, hides: bool) -> Option<u32> {
        if Self::network(group) != segment.network {
            return None;
        }
        let vid = segment.vid;
        let seen = match &group.vlan {
            VlanSpec::None => (vid == 0).then_some(0),
            VlanSpec::Access(own) => (vid == *own).then_some(0),
            VlanSpec::Guest => Some(vid),
            VlanSpec::Trunk { native, .. } if *native == Some(vid) => Some(0),
            VlanSpec::Trunk { ranges, .. } => {
                ranges.iter().any(|(a, b)| (*a..=*b).contains(&vid)).then_some(vid)
            }
            VlanSpec::Private { primary, secondary, kind } => {
                let hears = match segment.speaker {
                    Speaker::Open => true,
                    Speaker::Isolated => *kind == PrivateKind::Promiscuous,
                    Speaker::Community(own) => *kind == PrivateKind::Promiscuous || *secondary == Some(own),
                };
                (*primary == vid && hears).then_some(0)
            }
        };
        seen.filter(|vid| *vid != 0 || !hides)
    }

    fn team(&self, group: &'a GroupSpec) -> Option<&'a TeamSpec> {
        let switch: &SwitchSpec = self.spec.switches.first()?;
        group.team.as_ref().or(switch.team.as_ref())
    }

    fn outside(&self, host: usize, group: &'a GroupSpec) -> bool {
        let Some(team) = self.team(group) else { return false };
        team.active.iter().chain(&team.standby).any(|name| {
            let number = name.strip_prefix("eth").and_then(|n| n.parse::<usize>().ok());
            number.is_some_and(|n| self.links[host].get(n).copied().unwrap_or(false))
        })
    }

    fn bridge(&self, group: &GroupSpec) -> Option<usize> {
        self.hosts.iter().position(|host| Some(*host) == group.bridge)
    }

    fn tunnel(&self, a: usize, b: usize) -> bool {
        a == b || self.tunnels[a][b]
    }

    /// Whether there is a way between two.
    fn way(&self, from: &Party, to: &Party) -> bool {
        let group = |name: &str| self.port(name).map(|(_, group)| group);
        match (from, to) {
            (Party::Port { name: a, host: at_a }, Party::Port { name: b, host: at_b }) => {
                let (Some(a), Some(b)) = (group(a), group(b)) else { return false };
                at_a == at_b
                    || match Self::network(a) {
                        Network::Virtual(_) => self.tunnel(*at_a, *at_b),
                        Network::Standard => self.outside(*at_a, a) && self.outside(*at_b, b),
                    }
            }
            (Party::Port { name, host }, Party::Station(_))
            | (Party::Station(_), Party::Port { name, host }) => {
                let Some(group) = group(name) else { return false };
                match Self::network(group) {
                    Network::Standard => self.outside(*host, group),
                    Network::Virtual(_) => self
                        .bridge(group)
                        .is_some_and(|bridge| self.tunnel(*host, bridge) && self.outside(bridge, group)),
                }
            }
            (Party::Station(_), Party::Station(_)) => true,
            (Party::Gateway { host, .. }, Party::Port { host: at, .. }) => host == at,
            (Party::Gateway { .. }, _) | (_, Party::Gateway { .. }) => false,
        }
    }

    fn shaped(&self, name: &str) -> bool {
        self.port(name)
            .is_some_and(|(_, group)| group.shaping != vswitch_core::config::spec::ShapingSpec::default())
    }

    fn segment(&self, from: &Party, sent: &Sent) -> Option<Segment> {
        let segment = self.segment_of(from, sent)?;
        let own = matches!(from, Party::Gateway { .. });
        (own || !self.poses(&segment, sent)).then_some(segment)
    }

    fn segment_of(&self, from: &Party, sent: &Sent) -> Option<Segment> {
        match from {
            Party::Port { name, .. } => self.enters(name, sent),
            Party::Station(_) if reserved(sent.dst) => None,
            Party::Station(n) => Some(self.enters_station(self.stations[*n])),
            Party::Gateway { group, .. } => self.enters_gateway(group, sent),
        }
    }

    /// Whether a frame is sent in the name of the gateway of its segment.
    pub(super) fn impersonates(&self, from: &Party, sent: &Sent) -> bool {
        self.segment_of(from, sent).is_some_and(|segment| self.poses(&segment, sent))
    }

    /// The segment of what a gateway sends.
    fn enters_gateway(&self, name: &str, sent: &Sent) -> Option<Segment> {
        let group = self.spec.groups.iter().find(|group| group.name == name)?;
        let vid = Self::home(group)?;
        let good = !reserved(sent.dst) && sent.packet() <= Self::mtu(group);
        let segment = Segment { network: Self::network(group), vid, wire: vid, speaker: Speaker::Open };
        (!group.gateway.is_empty() && good).then_some(segment)
    }

    /// Whether a frame may or must arrive, and with which tag.
    pub(super) fn verdict(&self, from: &Party, sent: &Sent, to: &Party) -> (Verdict, Option<u16>) {
        let deny = (Verdict::Deny, None);
        if from == to {
            return deny;
        }
        if let (Party::Station(_), Party::Station(n)) = (from, to) {
            // Between themselves.
            let vid = self.stations[*n].vid;
            return (Verdict::May, (vid != 0).then_some(sent.tag().unwrap_or(0) & 0xf000 | vid as u16));
        }
        if sent.dst == sent.src {
            return deny;
        }
        let Some(segment) = self.segment(from, sent) else { return deny };
        let hides = sent.hides();
        let priority = sent.tag().unwrap_or(0) & 0xf000;
        let tagged = |vid: u32| (vid != 0).then_some(priority | vid as u16);
        let alone = !matches!(from, Party::Gateway { .. }) && self.for_gateway(&segment, sent);
        let (verdict, vid) = match to {
            Party::Gateway { group, host } => {
                return (self.gateway_verdict(from, sent, &segment, (group, *host)), None);
            }
            Party::Station(_) if alone || matches!(from, Party::Gateway { .. }) => return deny,
            Party::Station(n) => {
                let station = self.stations[*n];
                let there = self.enters_station(station);
                if there.network != segment.network
                    || segment.wire != station.vid
                    || (hides && station.vid == 0)
                {
                    return deny;
                }
                let mine = sent.dst.is_group() || sent.dst == station.mac;
                (if mine { Verdict::Must } else { Verdict::May }, station.vid)
            }
            Party::Port { name, host } => {
                let Some(vid) = self.exits(name, &segment, hides) else { return deny };
                let Some((port, group)) = self.port(name) else { return deny };
                let part = self.lossy && sent.offload.gso.is_some();
                if sent.packet() > Self::mtu(group) {
                    return if part { (Verdict::May, tagged(vid)) } else { deny };
                }
                let here = matches!(from, Party::Port { host: source, .. } | Party::Gateway { host: source, .. } if source == host);
                if matches!(from, Party::Gateway { .. }) && !here {
                    return deny;
                }
                let curious = self.curious.contains(name) && Self::security(port, group).promiscuous;
                let verdict = if alone {
                    // Every host asks its own, and what is asked of all is answered there.
                    if sent.dst.is_group() || !(curious && here) {
                        return deny;
                    }
                    Verdict::Must
                } else if sent.dst.is_group() || sent.dst == self.mac(name) || (curious && here) {
                    Verdict::Must
                } else if curious || group.learning.is_some() {
                    Verdict::May
                } else {
                    return deny;
                };
                let settled = self.places.get(name) == Some(host) && !self.shaped(name);
                (if settled { verdict } else { Verdict::May }, vid)
            }
        };
        let sender_shaped = matches!(from, Party::Port { name, .. } if self.shaped(name));
        let required = self.way(from, to) && !sender_shaped;
        (if required { verdict } else { Verdict::May }, tagged(vid))
    }

    /// Who has an IP address that this sender could reach, if anybody.
    pub(super) fn owner(&self, from: &Party, sent: &Sent, ip: [u8; 4]) -> Option<Mac> {
        let segment = self.segment(from, sent)?;
        let text = std::net::Ipv4Addr::from(ip).to_string();
        let port = self.spec.ports.iter().find(|port| port.addresses.contains(&text))?;
        // That it is blocked, only its own host knows.
        Self::sees(self.port(&port.name)?.1, &segment, false)?;
        Some(self.mac(&port.name))
    }
}

/// For the next bridge only.
fn reserved(dst: Mac) -> bool {
    dst.0[..5] == [1, 0x80, 0xc2, 0, 0] && dst.0[5] < 16
}
