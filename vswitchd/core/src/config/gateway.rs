//! The checks of gateways: a switch's own address in a port group, the same on every host.
//!
//! A gateway's MAC address is made from its network, so that all hosts come to the same without asking each other, and a
//! machine that moves finds its gateway where it was. Nobody else may have it, nor its IP address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ferro_protocol::net::{Mac, NetName, VlanId, Vni};

use super::check::Faults;
use super::group::{Domain, KIND, Network, network};
use super::spec::{GatewaySpec, GroupSpec, VlanSpec};
use super::{Config, Gateway, GatewayV4, GatewayV6, Group, GroupIx, Problem, Vlan};
use crate::hash::HashKey;

/// What gateways' addresses begin with: locally administered (IEEE 802, clause 8.4); the third octet says whether the rest
/// is a VNI, or made from a switch's name and a VLAN.
const VIRTUAL: [u8; 3] = [0x02, 0xfe, 0x76];
const STANDARD: [u8; 3] = [0x02, 0xfe, 0x73];

impl Gateway {
    /// Gives it the MAC address of its network.
    pub(super) fn with_mac(mut self, vni: Option<Vni>, switch: &str, vlan: &Vlan) -> Self {
        let (head, rest) = if let Some(vni) = vni {
            (VIRTUAL, vni.get())
        } else {
            let vid = match vlan {
                Vlan::Access(vlan) => vlan.map_or(0, VlanId::get),
                Vlan::Private { primary, .. } => primary.get(),
                Vlan::Trunk { .. } | Vlan::Guest => 0,
            };
            // The same on all hosts, so with a key that everybody has. Networks that meet by chance in the lower 24 bits
            // still do not meet in any segment.
            let key = HashKey(0x6665_7272_6f73, 0x0070_6865_7265);
            let hash = switch.bytes().fold(u64::from(vid), |hash, byte| key.of(hash, u64::from(byte)));
            (STANDARD, hash as u32)
        };
        let [_, a, b, c] = rest.to_be_bytes();
        self.mac = Mac([head[0], head[1], head[2], a, b, c]);
        self
    }

    /// Its address on the link, if it speaks IPv6 (RFC 4291, appendix A).
    pub fn link_local(&self) -> Option<Ipv6Addr> {
        let mac = self.mac.0;
        let id = u64::from_be_bytes([mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]]);
        self.v6.as_ref().map(|_| Ipv6Addr::from(0xfe80 << 112 | u128::from(id)))
    }

    /// All of its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.as_ref().map(|own| IpAddr::V4(own.address));
        let v6 = self.v6.as_ref().map(|own| IpAddr::V6(own.address));
        [v4, v6, self.link_local().map(IpAddr::V6)].into_iter().flatten()
    }

    /// Whether an address is one of its own.
    pub fn has(&self, ip: IpAddr) -> bool {
        self.addresses().any(|own| own == ip)
    }

    /// Whether an address is in its network.
    pub fn reaches(&self, ip: IpAddr) -> bool {
        let v4 = self.v4.as_ref().map(|own| (IpAddr::V4(own.address), own.prefix));
        let v6 = self.v6.as_ref().map(|own| (IpAddr::V6(own.address), own.prefix));
        let own = if ip.is_ipv4() { v4 } else { v6 };
        own.is_some_and(|(own, prefix)| network_of(ip, prefix) == network_of(own, prefix))
    }

    /// Whether it speaks IPv6.
    pub fn is_v6(&self) -> bool {
        self.v6.is_some()
    }

    /// Whether machines get addresses from it.
    pub fn serves_dhcp(&self) -> bool {
        self.v4.as_ref().is_some_and(|own| own.pool.is_some())
    }
}

/// Whether an address is the first or the last of its network, where these are no machine's (RFC 3021: not in /31).
pub(super) fn is_edge(ip: Ipv4Addr, prefix: u8) -> bool {
    let host = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    let low = u32::from(ip) & host;
    prefix < 31 && (low == 0 || low == host)
}

/// The gateway of a group, as far as it can be told without the others. It has no MAC address yet.
pub(super) fn gateway(it: &GroupSpec, faults: &mut Faults) -> Option<Gateway> {
    let mut own = Gateway { mac: Mac::ZERO, v4: None, v6: None };
    for spec in &it.gateway {
        let twice = match address(it, spec, faults) {
            Some(Address::V4(v4)) => own.v4.replace(v4).map(|_| 4),
            Some(Address::V6(v6)) => own.v6.replace(v6).map(|_| 6),
            None => None,
        };
        if let Some(family) = twice {
            faults.add(KIND, &it.name, Problem::GatewayFamily(family));
            break;
        }
    }
    if !it.gateway.is_empty() && matches!(it.vlan, VlanSpec::Trunk { .. } | VlanSpec::Guest) {
        faults.add(KIND, &it.name, Problem::GatewayOnTrunk);
    }
    (own.v4.is_some() || own.v6.is_some()).then_some(own)
}

enum Address {
    V4(GatewayV4),
    V6(GatewayV6),
}

fn address(it: &GroupSpec, spec: &GatewaySpec, faults: &mut Faults) -> Option<Address> {
    let mut fault = |problem| faults.add(KIND, &it.name, problem);
    let parsed = spec.address.split_once('/').and_then(|(address, prefix)| {
        let address: IpAddr = address.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        // The first and the last of an IPv4 network are no machine's (RFC 1122, section 3.2.1.3).
        let host = match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !is_edge(v4, prefix),
            IpAddr::V6(v6) => !v6.is_loopback(),
        };
        (prefix >= 1 && prefix <= bits && host && !address.is_unspecified() && !address.is_multicast())
            .then_some((address, prefix))
    });
    if parsed.is_none() {
        fault(Problem::Prefix(spec.address.clone()));
    }
    if !(60..=2_592_000).contains(&spec.lease_s) {
        fault(Problem::Lease(spec.lease_s));
    }
    let mut pool = None;
    if let Some((first, last)) = &spec.pool {
        if parsed.is_some_and(|(address, _)| address.is_ipv6()) {
            fault(Problem::PoolV6);
        }
        let mut ip = |text: &String| {
            let ip = text.parse::<IpAddr>().ok();
            if ip.is_none() {
                fault(Problem::Ip(text.clone()));
            }
            ip
        };
        if let (Some(first), Some(last), Some((address, prefix))) = (ip(first), ip(last), parsed) {
            let within = |ip| network_of(ip, prefix) == network_of(address, prefix);
            if !within(first) || !within(last) {
                fault(Problem::PoolOutside(first, last, address, prefix));
            } else if first > last {
                fault(Problem::PoolBackwards(first, last));
            } else if (first..=last).contains(&address) {
                fault(Problem::PoolHoldsGateway(first, last));
            } else if let (IpAddr::V4(first), IpAddr::V4(last)) = (first, last) {
                pool = Some((first, last));
            }
        }
    }
    let lease = Duration::from_secs(u64::from(spec.lease_s));
    parsed.map(|(address, prefix)| match address {
        IpAddr::V4(address) => Address::V4(GatewayV4 { address, prefix, pool, lease }),
        IpAddr::V6(address) => Address::V6(GatewayV6 { address, prefix }),
    })
}

/// The network part of an address, and its family.
fn network_of(ip: IpAddr, prefix: u8) -> (bool, u128) {
    match ip {
        IpAddr::V4(v4) => {
            (true, u128::from(u32::from(v4)).checked_shr(32 - u32::from(prefix.min(32))).unwrap_or(0))
        }
        IpAddr::V6(v6) => (false, u128::from(v6).checked_shr(128 - u32::from(prefix)).unwrap_or(0)),
    }
}

/// Checks the gateways of all groups against each other.
pub(super) fn gateways(config: &Config, faults: &mut Faults) {
    let mut seen: BTreeMap<Network, &NetName> = BTreeMap::new();
    for group in config.groups.iter().filter(|group| group.gateway.is_some()) {
        if let Some(other) = seen.insert(network(group), &group.name) {
            faults.add(KIND, group.name.as_str(), Problem::GatewayTwice(other.to_string()));
        }
    }
    pools(config, faults);
}

impl Config {
    /// Whether ports of two groups are in one network: a trunk is in all VLANs of its own.
    pub fn meet(&self, a: GroupIx, b: GroupIx) -> bool {
        let network = |ix: GroupIx| self.groups.get(ix.0 as usize).map(network);
        let (Some((a, a_vid)), Some((b, b_vid))) = (network(a), network(b)) else { return false };
        a == b && (a_vid == b_vid || a_vid.is_none() || b_vid.is_none())
    }
}

/// The MAC addresses of all gateways, and whose they are.
pub(super) fn macs(config: &Config) -> BTreeMap<Mac, NetName> {
    let own = |group: &Group| Some((group.gateway.as_ref()?.mac, group.name.clone()));
    config.groups.iter().filter_map(own).collect()
}

/// The IP addresses of all gateways, and whose they are.
pub(super) struct Owners(BTreeMap<(Domain, IpAddr, Option<u16>), NetName>);

impl Owners {
    pub(super) fn of(config: &Config) -> Self {
        let mut owners = BTreeMap::new();
        for group in &config.groups {
            let Some(gateway) = &group.gateway else { continue };
            let (domain, vid) = network(group);
            for ip in gateway.addresses() {
                owners.insert((domain, ip, vid), group.name.clone());
            }
        }
        Self(owners)
    }

    /// Whose an address is, where a port of this group would meet it: a trunk is in all VLANs.
    pub(super) fn find(&self, of: &Group, ip: IpAddr) -> Option<&NetName> {
        let (domain, vid) = network(of);
        if vid.is_some() {
            return self.0.get(&(domain, ip, vid));
        }
        self.0.range((domain, ip, None)..=(domain, ip, Some(u16::MAX))).next().map(|(_, name)| name)
    }
}

/// No address is in two pools.
fn pools(config: &Config, faults: &mut Faults) {
    // By their first addresses; none of them overlaps another.
    let mut seen: BTreeMap<IpAddr, (IpAddr, &NetName)> = BTreeMap::new();
    for group in &config.groups {
        let v4 = group.gateway.as_ref().and_then(|gateway| gateway.v4.as_ref());
        let Some((first, last)) = v4.and_then(|own| own.pool) else { continue };
        let (first, last) = (IpAddr::V4(first), IpAddr::V4(last));
        match seen.range(..=last).next_back().filter(|(_, (end, _))| *end >= first) {
            Some((_, (_, other))) => {
                faults.add(KIND, group.name.as_str(), Problem::PoolTaken(first, last, other.to_string()));
            }
            None => drop(seen.insert(first, (last, &group.name))),
        }
    }
}
