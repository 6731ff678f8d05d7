//! From what was written to what holds, with every fault on the way.
//!
//! A thing with a fault is left out of what is built, and what refers to it is still checked against the names that were
//! written, so that one mistake is one line and not ten.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ferro_protocol::net::{Mac, NetName};

use super::spec::{MirrorSpec, OverrideSpec, PortSpec, RateSpec, Spec, StormSpec};
use super::{
    Config, Direction, Fault, GroupIx, LIST_MAX, MTU_MAX, MTU_MIN, Mirror, PORTS_MAX, Policy, Port, Problem,
    Rate, Storm, Switch, SwitchIx, UPLINKS_MAX, Uplink, UplinkIx,
};
use super::{gateway, group};

/// The highest rate: 10 Tbit/s; the largest burst: 1 TiB.
const RATE_KBIT_S_MAX: u64 = 10_000_000_000;

/// Collects faults of one kind of thing.
pub(super) struct Faults {
    pub(super) list: Vec<Fault>,
}

impl Faults {
    pub(super) fn add(&mut self, kind: &'static str, name: &str, problem: Problem) {
        self.list.push(Fault::new(kind, name, problem));
    }
}

/// Checks a specification. Every fault is named; with none, this is the configuration.
pub fn validate(spec: &Spec) -> Result<Config, Vec<Fault>> {
    let mut faults = Faults { list: Vec::new() };
    let mut config = Config::default();
    for (what, count) in [("port groups", spec.groups.len()), ("ports", spec.ports.len())] {
        if count > PORTS_MAX {
            faults.add("network", "", Problem::TooMany { what, count, max: PORTS_MAX });
        }
    }
    if !faults.list.is_empty() {
        return Err(faults.list);
    }
    switches(spec, &mut config, &mut faults);
    let names = group::groups(spec, &mut config, &mut faults);
    ports(spec, &names, &mut config, &mut faults);
    mirrors(spec, &mut config, &mut faults);
    if faults.list.is_empty() { Ok(config) } else { Err(faults.list) }
}

/// The name, if it can be one and is the first of its kind.
pub(super) fn name<'a>(
    kind: &'static str,
    text: &'a str,
    seen: &mut BTreeSet<&'a str>,
    faults: &mut Faults,
) -> Option<NetName> {
    if !seen.insert(text) {
        faults.add(kind, text, Problem::Twice);
        return None;
    }
    let name = text.parse().ok();
    if name.is_none() {
        faults.add(kind, text, Problem::Name);
    }
    name
}

pub(super) fn mtu(kind: &'static str, name: &str, mtu: u32, faults: &mut Faults) -> Option<u16> {
    if (MTU_MIN..=MTU_MAX).contains(&mtu) {
        return Some(mtu as u16);
    }
    faults.add(kind, name, Problem::Mtu(mtu));
    None
}

fn switches(spec: &Spec, config: &mut Config, faults: &mut Faults) {
    const KIND: &str = "switch";
    let mut seen = BTreeSet::new();
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    for it in &spec.switches {
        let (name, mtu) = (name(KIND, &it.name, &mut seen, faults), mtu(KIND, &it.name, it.mtu, faults));
        if it.uplinks.len() > UPLINKS_MAX {
            let problem = Problem::TooMany { what: "uplinks", count: it.uplinks.len(), max: UPLINKS_MAX };
            faults.add(KIND, &it.name, problem);
        }
        let switch = SwitchIx(config.switches.len() as u16);
        for uplink in &it.uplinks {
            match owners.insert(uplink, &it.name) {
                Some(owner) if owner == it.name => {
                    faults.add(KIND, &it.name, Problem::UplinkTwice(uplink.clone()));
                }
                Some(owner) => {
                    faults.add(KIND, &it.name, Problem::UplinkTaken(uplink.clone(), owner.to_owned()));
                }
                None => match uplink.parse() {
                    Ok(name) => config.uplinks.push(Uplink { name, switch }),
                    Err(_) => faults.add("uplink", uplink, Problem::Name),
                },
            }
        }
        if let (Some(name), Some(mtu)) = (name, mtu) {
            config.switches.push(Switch { name, mtu });
        } else if let Ok(name) = "unusable".parse() {
            // Keeps the places right for what is checked later; there is a fault, so it is never used.
            config.switches.push(Switch { name, mtu: MTU_MAX as u16 });
        }
        if let Some(team) = &it.team {
            group::team(KIND, &it.name, team, &it.name, &uplinks_of(config, switch), faults);
        }
    }
}

/// The uplinks of a switch, by name.
pub(super) fn uplinks_of(config: &Config, switch: SwitchIx) -> BTreeMap<String, UplinkIx> {
    let all = config.uplinks.iter().enumerate().filter(|(_, it)| it.switch == switch);
    all.map(|(at, it)| (it.name.to_string(), UplinkIx(at as u16))).collect()
}

/// Rates, as they are used.
pub(super) fn rate(
    kind: &'static str,
    name: &str,
    which: &'static str,
    spec: Option<RateSpec>,
    faults: &mut Faults,
) -> Option<Rate> {
    let RateSpec { average_kbit_s, peak_kbit_s, burst_kib } = spec?;
    if [average_kbit_s, peak_kbit_s, burst_kib].iter().any(|n| *n == 0 || *n > RATE_KBIT_S_MAX) {
        faults.add(kind, name, Problem::Rate(which, RATE_KBIT_S_MAX));
        return None;
    }
    if peak_kbit_s < average_kbit_s {
        faults.add(kind, name, Problem::Peak(which, peak_kbit_s, average_kbit_s));
        return None;
    }
    // Kilobits are 125 bytes.
    let bytes = |kbit: u64| kbit * 125;
    Some(Rate {
        average_bytes_s: bytes(average_kbit_s),
        peak_bytes_s: bytes(peak_kbit_s),
        burst_bytes: burst_kib * 1024,
    })
}

pub(super) fn storm(kind: &'static str, name: &str, spec: StormSpec, faults: &mut Faults) -> Storm {
    let limits = [
        ("broadcast", spec.broadcast_pps),
        ("multicast", spec.multicast_pps),
        ("unknown addresses", spec.unknown_pps),
    ];
    for (which, limit) in limits {
        if limit == Some(0) {
            faults.add(kind, name, Problem::StormZero(which));
        }
    }
    Storm { broadcast: spec.broadcast_pps, multicast: spec.multicast_pps, unknown: spec.unknown_pps }
}

/// The policy of a port: its group's, but for what it says itself.
fn overridden(group: Policy, name: &str, spec: Option<OverrideSpec>, faults: &mut Faults) -> Policy {
    let mut policy = group;
    let Some(over) = spec else { return policy };
    if let Some(security) = over.security {
        policy.security = security;
        // What it does not say is as in its group.
        policy.dhcp_guard = security.dhcp_guard.unwrap_or(policy.dhcp_guard);
        policy.router_guard = security.router_guard.unwrap_or(policy.router_guard);
    }
    policy.blocked = over.blocked.unwrap_or(policy.blocked);
    if let Some(shaping) = over.shaping {
        policy.ingress = rate("port", name, "ingress", shaping.ingress, faults);
        policy.egress = rate("port", name, "egress", shaping.egress, faults);
    }
    if let Some(limits) = over.storm {
        policy.storm = storm("port", name, limits, faults);
    }
    policy
}

fn ports(spec: &Spec, groups: &BTreeMap<&str, Option<GroupIx>>, config: &mut Config, faults: &mut Faults) {
    const KIND: &str = "port";
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    let mut macs: BTreeMap<Mac, &str> = BTreeMap::new();
    let mut ips: BTreeMap<(group::Network, IpAddr), &str> = BTreeMap::new();
    let (gateways, owners) = (gateway::macs(config), gateway::Owners::of(config));
    for it in &spec.ports {
        match seen.insert(&it.name, &it.group) {
            Some(other) if other == it.group => faults.add(KIND, &it.name, Problem::Twice),
            Some(other) => {
                faults.add(KIND, &it.name, Problem::TwoGroups(other.to_owned(), it.group.clone()));
            }
            None => {}
        }
        let name = it.name.parse::<NetName>().ok();
        if name.is_none() {
            faults.add(KIND, &it.name, Problem::Name);
        }
        let mac = mac(it, &mut macs, faults);
        if let Some((mac, owner)) = mac.and_then(|mac| Some((mac, gateways.get(&mac)?))) {
            faults.add(KIND, &it.name, Problem::MacOfGateway(mac, owner.to_string()));
        }
        let group = groups.get(it.group.as_str());
        if group.is_none() {
            faults.add(KIND, &it.name, Problem::UnknownGroup(it.group.clone()));
        }
        let group = group.copied().flatten();
        let network = group.map(|ix| group::network(&config.groups[ix.0 as usize]));
        let addresses = addresses(it, network, &mut ips, faults);
        if let Some(group) = group.map(|ix| &config.groups[ix.0 as usize]) {
            for ip in &addresses {
                if let Some(owner) = owners.find(group, *ip) {
                    faults.add(KIND, &it.name, Problem::IpOfGateway(*ip, owner.to_string()));
                }
            }
        }
        let (Some(name), Some(mac), Some(group)) = (name, mac, group) else { continue };
        let policy = overridden(config.groups[group.0 as usize].policy, &it.name, it.overrides, faults);
        config.ports.insert(name, Port { group, mac, addresses, policy });
    }
}

fn mac<'a>(it: &'a PortSpec, seen: &mut BTreeMap<Mac, &'a str>, faults: &mut Faults) -> Option<Mac> {
    let Ok(mac) = it.mac.parse::<Mac>() else {
        faults.add("port", &it.name, Problem::Mac(it.mac.clone()));
        return None;
    };
    if !mac.is_station() {
        faults.add("port", &it.name, Problem::MacKind(mac));
        return None;
    }
    match seen.insert(mac, &it.name) {
        // The same port written twice is a fault of its own.
        Some(other) if other != it.name => {
            faults.add("port", &it.name, Problem::MacTaken(mac, other.to_owned()));
            None
        }
        _ => Some(mac),
    }
}

fn addresses<'a>(
    it: &'a PortSpec,
    network: Option<group::Network>,
    seen: &mut BTreeMap<(group::Network, IpAddr), &'a str>,
    faults: &mut Faults,
) -> Vec<IpAddr> {
    if it.addresses.len() > ferro_protocol::net::Announcement::IPS_MAX {
        let max = ferro_protocol::net::Announcement::IPS_MAX;
        faults.add("port", &it.name, Problem::TooMany { what: "addresses", count: it.addresses.len(), max });
    }
    let mut list = Vec::new();
    for text in &it.addresses {
        let Ok(ip) = text.parse::<IpAddr>() else {
            faults.add("port", &it.name, Problem::Ip(text.clone()));
            continue;
        };
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || broadcast {
            faults.add("port", &it.name, Problem::IpKind(ip));
            continue;
        }
        if let Some(network) = network {
            match seen.insert((network, ip), &it.name) {
                Some(other) if other != it.name => {
                    faults.add("port", &it.name, Problem::IpTaken(ip, other.to_owned()));
                }
                _ => {}
            }
        }
        list.push(ip);
    }
    list
}

fn mirrors(spec: &Spec, config: &mut Config, faults: &mut Faults) {
    const KIND: &str = "mirror";
    let mut seen = BTreeSet::new();
    let known: BTreeSet<&str> = spec.ports.iter().map(|it| it.name.as_str()).collect();
    let targets: BTreeMap<&str, &str> =
        spec.mirrors.iter().rev().map(|it| (it.to.as_str(), it.name.as_str())).collect();
    for it in &spec.mirrors {
        let name = name(KIND, &it.name, &mut seen, faults);
        if it.ports.is_empty() && it.groups.is_empty() {
            faults.add(KIND, &it.name, Problem::MirrorEmpty);
        }
        for (what, list) in [("ports", &it.ports), ("groups", &it.groups)] {
            if list.len() > LIST_MAX {
                let problem = Problem::TooMany { what, count: list.len(), max: LIST_MAX };
                faults.add(KIND, &it.name, problem);
            }
        }
        for port in it.ports.iter().chain([&it.to]).filter(|port| !known.contains(port.as_str())) {
            faults.add(KIND, &it.name, Problem::UnknownPort(port.clone()));
        }
        for group in &it.groups {
            if !spec.groups.iter().any(|known| known.name == *group) {
                faults.add(KIND, &it.name, Problem::UnknownGroup(group.clone()));
            }
        }
        let sources = sources(it, spec);
        for port in sources.iter().filter(|port| ***port == *it.to) {
            faults.add(KIND, &it.name, Problem::MirrorSelf((*port).to_owned()));
        }
        // A copy of a copy, or two mirrors into one port.
        for port in sources.iter().copied().chain([it.to.as_str()]) {
            if let Some(other) = targets.get(port).filter(|other| **other != it.name) {
                faults.add(KIND, &it.name, Problem::MirrorTaken(port.to_owned(), (*other).to_owned()));
            }
        }
        let (Some(name), Ok(to)) = (name, it.to.parse()) else { continue };
        config.mirrors.push(Mirror {
            name,
            ports: sources.iter().filter_map(|port| port.parse().ok()).collect(),
            ingress: it.direction != Direction::Egress,
            egress: it.direction != Direction::Ingress,
            to,
        });
    }
}

/// The ports that a mirror copies.
fn sources<'a>(it: &'a MirrorSpec, spec: &'a Spec) -> BTreeSet<&'a str> {
    let of_groups = spec.ports.iter().filter(|port| it.groups.contains(&port.group));
    it.ports.iter().map(String::as_str).chain(of_groups.map(|port| port.name.as_str())).collect()
}
