//! Gateways: a port group's own address, answered at every host for the ports there.
//!
//! ```text
//!   port ──frame for it, question about it, DHCP──► Egress::Endpoint(group)      nothing else gets it
//!   Ingress::Endpoint(group) ──answer──► ports here                              no tunnel, no uplink
//! ```
//!
//! All hosts have the same gateway ("anycast"), so its address is never announced, never learned and never moves. Whoever
//! speaks in its name is refused wherever the frame came from: a guest could else take its neighbours' traffic.

use std::net::IpAddr;

use ferro_protocol::net::Mac;

use crate::bugs::Bug;
use crate::config::{self, Group, GroupIx, Vlan};
use crate::frame::arp::Arp;
use crate::frame::ip::{Ip, protocol};
use crate::frame::nd::{self, Solicitation};
use crate::frame::{Offload, Tci, Vid, be16, ether_type};

use super::count::Cause;
use super::forward::Way;
use super::lane::Lane;
use super::{Ingress, Switch};

/// The port that DHCP servers listen at (RFC 2131, section 4.1).
const DHCP_SERVER: u16 = 67;

/// A gateway, as the data path needs it.
#[derive(Clone, Debug)]
pub(super) struct Gateway {
    /// The VLAN that addresses are looked up in.
    pub(super) vid: Vid,
    pub(super) group: GroupIx,
    pub(super) mac: Mac,
    addresses: config::Gateway,
}

/// What a frame says of IP addresses, and asks about one.
#[derive(Default)]
struct Speech {
    /// It comes from this address, or says where it is.
    claims: [Option<IpAddr>; 2],
    asks: Option<IpAddr>,
    /// Its headers lead to where nobody looks here: it may say anything.
    obscure: bool,
}

impl Gateway {
    pub(super) fn of(group: &Group, ix: GroupIx) -> Option<Self> {
        let vid = match &group.vlan {
            Vlan::Access(vlan) => Vid::from(*vlan),
            Vlan::Private { primary, .. } => Vid::from(*primary),
            Vlan::Trunk { .. } | Vlan::Guest => return None,
        };
        let gateway = group.gateway.clone()?;
        Some(Self { vid, group: ix, mac: gateway.mac, addresses: gateway })
    }
}

impl Switch {
    /// The VLAN of what a gateway sends. As for a promiscuous port of a private VLAN, all may hear it.
    pub(super) fn enter_endpoint(&self, way: &mut Way<'_>, group: GroupIx) -> Result<u16, Cause> {
        way.domain = *self.of_group.get(group.0 as usize).ok_or(Cause::NotThere)?;
        let own = self.domains[way.domain].gateways.iter().find(|gateway| gateway.group == group);
        let own = own.ok_or(Cause::NotThere)?;
        if way.ether.src != own.mac {
            return Err(Cause::Forged);
        }
        if way.has.is_some() || way.nested {
            return Err(Cause::Tagged);
        }
        way.lane = Lane::plain(own.vid);
        way.priority = Tci::default();
        Ok(self.config.groups()[group.0 as usize].policy.mtu)
    }

    /// What a frame has to do with the gateway of its VLAN: nothing, or it is for it, and whether for it alone.
    pub(super) fn gateway(&self, way: &Way<'_>, offload: Offload) -> Result<Option<(GroupIx, bool)>, Cause> {
        let gateways = &self.domains[way.domain].gateways;
        if gateways.is_empty() || matches!(way.from, Ingress::Endpoint(_)) {
            return Ok(None);
        }
        let Ok(at) = gateways.binary_search_by_key(&way.lane.vid, |gateway| gateway.vid) else {
            return Ok(None);
        };
        let own = &gateways[at];
        let speech = speech(way, offload);
        let claims = speech.claims.iter().flatten().any(|ip| own.addresses.has(*ip));
        // An advertisement behind more headers than are read here would be believed all the same.
        let obscure = speech.obscure && own.addresses.is_v6();
        let refused = way.ether.src == own.mac || claims || obscure;
        if refused && !self.settings.bugs.has(Bug::GatewayClaimed) {
            return Err(Cause::GatewayClaimed);
        }
        let dst = way.ether.dst;
        let asked = dst.is_group() && speech.asks.is_some_and(|ip| own.addresses.has(ip));
        if dst == own.mac || asked {
            // Every host asks its own.
            let here = matches!(way.from, Ingress::Port(_));
            return if here { Ok(Some((own.group, true))) } else { Err(Cause::NotOurs) };
        }
        if !dst.is_group() || !matches!(way.from, Ingress::Port(_)) {
            return Ok(None);
        }
        let Some(ip) = Ip::parse(way.head, &way.ether).filter(|ip| !ip.fragment) else { return Ok(None) };
        let dhcp = !ip.v6 && ip.protocol == protocol::UDP && own.addresses.serves_dhcp();
        if dhcp && way.head.len() >= ip.l4 + 4 && be16(way.head, ip.l4 + 2) == DHCP_SERVER {
            return Ok(Some((own.group, true)));
        }
        // Who looks for routers may find more than this one.
        let solicits = ip.v6 && ip.protocol == protocol::ICMP_V6 && own.addresses.is_v6();
        if solicits && way.head.get(ip.l4) == Some(&nd::ROUTER_SOLICITATION) {
            return Ok(Some((own.group, false)));
        }
        Ok(None)
    }
}

fn speech(way: &Way<'_>, offload: Offload) -> Speech {
    let (head, ether) = (way.head, &way.ether);
    let mut it = Speech::default();
    if let Some(arp) = Arp::parse(head, ether) {
        // In a question, too, others take note of the sender (RFC 826); a probe for a free address has none.
        it.claims[0] = (!arp.sender_ip.is_unspecified()).then_some(arp.sender_ip.into());
        let asks = arp.operation == Arp::REQUEST && arp.sender_ip != arp.target_ip;
        it.asks = asks.then_some(arp.target_ip.into());
        return it;
    }
    let Some(ip) = Ip::parse(head, ether) else {
        it.obscure = ether.ether_type == ether_type::IPV6;
        return it;
    };
    it.claims[0] = Some(ip.source(head));
    if ip.v6 {
        it.obscure = !ip.is_whole();
        it.asks = Solicitation::parse(head, ether, offload).map(|it| it.target.into());
        match nd::advertised(head, &ip) {
            Ok(target) => it.claims[1] = target.map(IpAddr::V6),
            Err(_) => it.obscure = true,
        }
    }
    it
}
