//! One gateway: which frames it understands, and what it says to them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ferro_protocol::net::{Mac, NetName};
use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Packet,
    Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr,
    NdiscNeighborFlags, NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr, NdiscRouterFlags, UdpPacket,
    UdpRepr,
};
use vswitch_core::config::{Config, Gateway, GatewayV6, GroupIx};
use vswitch_core::frame::{Csum, Offload};
use vswitch_core::time::Instant;

use super::book::Book;
use super::budget::Budgets;
use super::dhcp::Dhcp;
use super::lease::{LeaseAnswer, LeaseWanted, Rules, WallSeconds};
use super::message::{Network, Reply, Request};
use super::wire::{self, Hop};

/// The longest frame that is looked at: the largest MTU that network cards commonly take, and its header.
const FRAME_BYTES_MAX: usize = 9216 + 14;
/// UDP ports of DHCP (RFC 2131, section 4.1).
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
/// How often routers are advertised without being asked for, and for how long guests believe it (RFC 4861, section 6.2.1:
/// the default of the longest interval, and three of them).
const ADVERT_EVERY: Duration = Duration::from_secs(600);
const ROUTER_S: u64 = 1800;
/// For how long a prefix is good, and preferred (RFC 4861, section 6.2.1).
const VALID_S: u64 = 2_592_000;
const PREFERRED_S: u64 = 604_800;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// What a gateway has seen and said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// Frames that came.
    pub frames: u64,
    /// Of them, those beyond what one port may send.
    pub limited: u64,
    /// Of them, those that are nothing that is served here.
    pub unserved: u64,
    /// Questions for its MAC address that were answered.
    pub neighbours: u64,
    /// Pings that were answered.
    pub pings: u64,
    /// Router advertisements.
    pub adverts: u64,
    /// Addresses offered.
    pub offers: u64,
    /// Addresses acknowledged.
    pub acks: u64,
    /// Addresses refused.
    pub naks: u64,
    /// Addresses that guests found to be somebody else's.
    pub declines: u64,
    /// Questions that found no free address.
    pub pool_full: u64,
    /// When the last of those came.
    pub pool_full_at: Option<Instant>,
    /// Questions of ports that have as many addresses as one may have.
    pub port_limit: u64,
}

impl Seen {
    /// A question found no free address.
    pub(super) fn found_none(&mut self, now: Instant) {
        self.pool_full += 1;
        self.pool_full_at = Some(now);
    }

    /// All numbers, with the names that metrics have.
    pub fn all(&self) -> [(&'static str, u64); 12] {
        [
            ("frames", self.frames),
            ("limited", self.limited),
            ("unserved", self.unserved),
            ("neighbours", self.neighbours),
            ("pings", self.pings),
            ("router_advertisements", self.adverts),
            ("dhcp_offers", self.offers),
            ("dhcp_acks", self.acks),
            ("dhcp_naks", self.naks),
            ("dhcp_declines", self.declines),
            ("dhcp_pool_full", self.pool_full),
            ("dhcp_port_limit", self.port_limit),
        ]
    }
}

type Send<'a> = &'a mut dyn FnMut(&[u8]);

/// The gateway of a port group at this host.
#[derive(Debug)]
pub struct Endpoint {
    group: NetName,
    gateway: Gateway,
    mtu: u16,
    dhcp: Option<Dhcp>,
    budgets: Budgets,
    advert_at: Instant,
    seen: Seen,
}

impl Endpoint {
    /// The gateway of a group, if it has one.
    pub fn new(now: Instant, config: &Config, ix: GroupIx) -> Option<Self> {
        let group = config.groups().get(ix.0 as usize)?;
        let gateway = group.gateway.clone()?;
        let mut endpoint = Self {
            group: group.name.clone(),
            gateway,
            mtu: group.policy.mtu,
            dhcp: None,
            budgets: Budgets::default(),
            advert_at: now,
            seen: Seen::default(),
        };
        endpoint.configure(now, config, ix);
        Some(endpoint)
    }

    /// Makes it what a configuration says; false if it has no gateway any more.
    pub fn configure(&mut self, now: Instant, config: &Config, ix: GroupIx) -> bool {
        let Some(group) = config.groups().get(ix.0 as usize) else { return false };
        let Some(gateway) = &group.gateway else { return false };
        if *gateway != self.gateway {
            self.advert_at = now;
        }
        self.gateway = gateway.clone();
        self.mtu = group.policy.mtu;
        self.dhcp = match (Rules::of(config, ix), self.dhcp.take()) {
            (None, _) => None,
            (Some(rules), old) => {
                let network = Network { gateway: rules.gateway, mask: rules.mask(), mtu: self.mtu };
                Some(match old {
                    None => Dhcp::new(self.group.clone(), rules, network),
                    Some(mut dhcp) => {
                        dhcp.configure(rules, network);
                        dhcp
                    }
                })
            }
        };
        self.budgets.retain(|port| config.ports().contains_key(port));
        true
    }

    /// The name of its group.
    pub fn group(&self) -> &NetName {
        &self.group
    }

    /// What it has seen.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// See [`super::Endpoints::set_book`].
    pub fn set_book(&mut self, now: Instant, wall: WallSeconds, book: Book) {
        if let Some(dhcp) = &mut self.dhcp {
            dhcp.set_book(now, wall, book);
        }
    }

    /// What is to be written down, one by one.
    pub fn poll_wanted(&mut self) -> Option<LeaseWanted> {
        self.dhcp.as_mut()?.poll_wanted()
    }

    /// What came of a wish.
    pub fn answer(&mut self, now: Instant, answer: LeaseAnswer, send: Send<'_>) {
        let Some(dhcp) = &mut self.dhcp else { return };
        if let Some((request, reply)) = dhcp.answer(now, answer) {
            self.send_reply(&request, reply, send);
        }
    }

    /// When [`Endpoint::handle_time`] is to be called next, if ever.
    pub fn next_at(&self) -> Option<Instant> {
        let advert = self.gateway.link_local().map(|_| self.advert_at);
        advert.into_iter().chain(self.dhcp.as_ref().and_then(Dhcp::next_at)).min()
    }

    /// Time has passed.
    pub fn handle_time(&mut self, now: Instant, send: Send<'_>) {
        if let Some(dhcp) = &mut self.dhcp {
            dhcp.handle_time(now);
        }
        if let Some(own) = self.gateway.link_local()
            && now >= self.advert_at
        {
            self.advert_at = now + ADVERT_EVERY;
            self.advertise(own, ALL_NODES_MAC, ALL_NODES, send);
        }
    }

    /// A frame from a port: whole, untagged, and with this still to be done to it.
    pub fn handle(&mut self, now: Instant, port: &NetName, frame: &[u8], offload: Offload, send: Send<'_>) {
        self.seen.frames += 1;
        if !self.budgets.frame(now, port) {
            self.seen.limited += 1;
            return;
        }
        if self.understand(now, port, frame, offload, send).is_none() {
            self.seen.unserved += 1;
        }
    }

    fn understand(
        &mut self,
        now: Instant,
        port: &NetName,
        frame: &[u8],
        offload: Offload,
        send: Send<'_>,
    ) -> Option<()> {
        // A super-frame is of a stream, and nothing here has any.
        if frame.len() > FRAME_BYTES_MAX || offload.gso.is_some() {
            return None;
        }
        let ether = EthernetFrame::new_checked(frame).ok()?;
        let asker = Mac(ether.src_addr().0);
        if !asker.is_station() {
            return None;
        }
        // A sum that is still to be made, or was looked at by who received the frame, is not looked at.
        let mut caps = ChecksumCapabilities::default();
        if offload.csum != Csum::None {
            (caps.udp, caps.icmpv4, caps.icmpv6) = (Checksum::Tx, Checksum::Tx, Checksum::Tx);
        }
        match ether.ethertype() {
            EthernetProtocol::Arp => self.arp(asker, ether.payload(), send),
            EthernetProtocol::Ipv4 => self.ipv4(now, port, asker, ether.payload(), &caps, send),
            EthernetProtocol::Ipv6 => self.ipv6(asker, ether.payload(), &caps, send),
            EthernetProtocol::Unknown(_) => None,
        }
    }

    fn hop(&self, to: Mac) -> Hop {
        Hop { from: self.gateway.mac, to }
    }

    fn arp(&mut self, asker: Mac, payload: &[u8], send: Send<'_>) -> Option<()> {
        let own = self.gateway.v4.as_ref()?.address;
        let packet = ArpPacket::new_checked(payload).ok()?;
        let ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        } = ArpRepr::parse(&packet).ok()?
        else {
            return None;
        };
        if target_protocol_addr != own || Mac(source_hardware_addr.0) != asker {
            return None;
        }
        self.seen.neighbours += 1;
        send(&wire::arp_reply(self.hop(asker), own, source_protocol_addr));
        Some(())
    }

    fn ipv4(
        &mut self,
        now: Instant,
        port: &NetName,
        asker: Mac,
        payload: &[u8],
        caps: &ChecksumCapabilities,
        send: Send<'_>,
    ) -> Option<()> {
        let own = self.gateway.v4.as_ref()?.address;
        let packet = Ipv4Packet::new_checked(payload).ok()?;
        let ip = Ipv4Repr::parse(&packet, caps).ok()?;
        match ip.next_header {
            IpProtocol::Icmp if ip.dst_addr == own && self.may_ask(ip.src_addr.into()) => {
                let packet = Icmpv4Packet::new_checked(packet.payload()).ok()?;
                let Icmpv4Repr::EchoRequest { ident, seq_no, data } =
                    Icmpv4Repr::parse(&packet, caps).ok()?
                else {
                    return None;
                };
                self.seen.pings += 1;
                let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
                send(&wire::icmpv4(self.hop(asker), (own, ip.src_addr), &reply));
                Some(())
            }
            IpProtocol::Udp => {
                let datagram = UdpPacket::new_checked(packet.payload()).ok()?;
                let (from, to) = (IpAddress::Ipv4(ip.src_addr), IpAddress::Ipv4(ip.dst_addr));
                let udp = UdpRepr::parse(&datagram, &from, &to, caps).ok()?;
                let ours = ip.dst_addr == own || ip.dst_addr.is_broadcast();
                if udp.dst_port != DHCP_SERVER || udp.src_port != DHCP_CLIENT || !ours {
                    return None;
                }
                self.dhcp(now, port, asker, datagram.payload(), send)
            }
            _ => None,
        }
    }

    /// Machines of its network and their own links ask; others have no way here.
    fn may_ask(&self, ip: IpAddr) -> bool {
        let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        !ip.is_unspecified() && !ip.is_multicast() && (link_local || self.gateway.reaches(ip))
    }

    fn dhcp(
        &mut self,
        now: Instant,
        port: &NetName,
        asker: Mac,
        payload: &[u8],
        send: Send<'_>,
    ) -> Option<()> {
        let dhcp = self.dhcp.as_mut()?;
        if !self.budgets.dhcp(now, port) {
            self.seen.limited += 1;
            return Some(());
        }
        let request = Request::parse(payload, asker)?;
        if let Some(reply) = dhcp.handle(now, port, &request, &mut self.budgets, &mut self.seen) {
            self.send_reply(&request, reply, send);
        }
        Some(())
    }

    /// To the guest's card, whatever the IP address: nobody else needs to hear it.
    fn send_reply(&mut self, request: &Request, reply: Reply, send: Send<'_>) {
        let Some(dhcp) = &self.dhcp else { return };
        let network = dhcp.network();
        let Some(payload) = request.answer(reply, network) else { return };
        match reply {
            Reply::Offer(..) => self.seen.offers += 1,
            Reply::Ack(..) | Reply::Informed => self.seen.acks += 1,
            Reply::Nak => self.seen.naks += 1,
        }
        let ips: (Ipv4Addr, Ipv4Addr) = (network.gateway, request.answer_to(reply));
        send(&wire::udpv4(self.hop(request.mac), ips, (DHCP_SERVER, DHCP_CLIENT), &payload));
    }

    fn ipv6(
        &mut self,
        asker: Mac,
        payload: &[u8],
        caps: &ChecksumCapabilities,
        send: Send<'_>,
    ) -> Option<()> {
        let own = self.gateway.link_local()?;
        let packet = Ipv6Packet::new_checked(payload).ok()?;
        let ip = Ipv6Repr::parse(&packet).ok()?;
        if ip.next_header != IpProtocol::Icmpv6 {
            return None;
        }
        let message = Icmpv6Packet::new_checked(packet.payload()).ok()?;
        match Icmpv6Repr::parse(&ip.src_addr, &ip.dst_addr, &message, caps).ok()? {
            Icmpv6Repr::EchoRequest { ident, seq_no, data }
                if self.gateway.has(ip.dst_addr.into()) && self.may_ask(ip.src_addr.into()) =>
            {
                self.seen.pings += 1;
                let reply = Icmpv6Repr::EchoReply { ident, seq_no, data };
                send(&wire::icmpv6(self.hop(asker), (ip.dst_addr, ip.src_addr), &reply));
            }
            // RFC 4861, sections 6.1.1 and 7.1.1: nobody may have forwarded it.
            Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, .. })
                if ip.hop_limit == 255 && self.gateway.has(target_addr.into()) =>
            {
                self.advertise_neighbour(asker, ip.src_addr, target_addr, send);
            }
            Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { .. }) if ip.hop_limit == 255 => {
                let to = if ip.src_addr.is_unspecified() { ALL_NODES } else { ip.src_addr };
                self.advertise(own, asker, to, send);
            }
            _ => return None,
        }
        Some(())
    }

    /// "It is here": to who asked, or, if that was about whether the address is free, to all of its link (RFC 4861, section
    /// 7.2.4).
    fn advertise_neighbour(&mut self, asker: Mac, to: Ipv6Addr, target: Ipv6Addr, send: Send<'_>) {
        self.seen.neighbours += 1;
        let (to, solicited) = if to.is_unspecified() {
            (ALL_NODES, NdiscNeighborFlags::empty())
        } else {
            (to, NdiscNeighborFlags::SOLICITED)
        };
        let repr = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
            flags: NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE | solicited,
            target_addr: target,
            lladdr: Some(EthernetAddress(self.gateway.mac.0).into()),
        });
        send(&wire::icmpv6(self.hop(asker), (target, to), &repr));
    }

    /// Tells of the network: its router, MTU and prefix, from which guests make addresses if it is of 64 bits.
    fn advertise(&mut self, own: Ipv6Addr, mac: Mac, to: Ipv6Addr, send: Send<'_>) {
        let Some(GatewayV6 { address, prefix: bits }) = self.gateway.v6 else { return };
        self.seen.adverts += 1;
        let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
        let mut flags = NdiscPrefixInfoFlags::ON_LINK;
        flags.set(NdiscPrefixInfoFlags::ADDRCONF, bits == 64);
        let prefix = NdiscPrefixInformation {
            prefix_len: bits,
            flags,
            valid_lifetime: smoltcp::time::Duration::from_secs(VALID_S),
            preferred_lifetime: smoltcp::time::Duration::from_secs(PREFERRED_S),
            prefix: Ipv6Addr::from_bits(address.to_bits() & mask),
        };
        let repr = Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
            hop_limit: 64,
            flags: NdiscRouterFlags::empty(),
            router_lifetime: smoltcp::time::Duration::from_secs(ROUTER_S),
            reachable_time: smoltcp::time::Duration::from_secs(0),
            retrans_time: smoltcp::time::Duration::from_secs(0),
            lladdr: Some(EthernetAddress(self.gateway.mac.0).into()),
            // A link of less has no IPv6 (RFC 8200, section 5).
            mtu: (self.mtu >= 1280).then_some(u32::from(self.mtu)),
            prefix_info: Some(prefix),
        });
        send(&wire::icmpv6(self.hop(mac), (own, to), &repr));
    }
}
