//! The checks of port groups: VLANs, networks, teams, gateways.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ferro_protocol::net::{NetName, VlanId, Vni};

use super::check::{self, Faults, uplinks_of};
use super::gateway;
use super::spec::{GroupSpec, LearningSpec, PrivateKind, Spec, TeamSpec, VlanSpec};
use super::{
    Config, Detection, Group, GroupIx, LEARNING_MAX, LIST_MAX, Learning, Policy, Problem, SwitchIx, Team,
    UplinkIx, Vlan, VlanSet,
};

pub(super) const KIND: &str = "port group";

/// What is separate from everything else: a virtual network, or the VLANs of a switch on its hosts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Domain {
    Virtual(Vni),
    Switch(SwitchIx),
}

/// One layer-2 network: a domain's VLAN; trunks are in all of them.
pub(super) type Network = (Domain, Option<u16>);

pub(super) fn domain(group: &Group) -> Domain {
    group.vni.map_or(Domain::Switch(group.switch), Domain::Virtual)
}

pub(super) fn network(group: &Group) -> Network {
    let vid = match &group.vlan {
        Vlan::Access(vlan) => Some(vlan.map_or(0, VlanId::get)),
        Vlan::Private { primary, .. } => Some(primary.get()),
        Vlan::Trunk { .. } | Vlan::Guest => None,
    };
    (domain(group), vid)
}

/// Builds all groups; returns the place of each name that was written, if it could be built.
pub(super) fn groups<'a>(
    spec: &'a Spec,
    config: &mut Config,
    faults: &mut Faults,
) -> BTreeMap<&'a str, Option<GroupIx>> {
    let mut places = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for it in &spec.groups {
        let name = check::name(KIND, &it.name, &mut seen, faults);
        let group = group(it, name, spec, config, faults);
        let place = group.map(|group| {
            config.groups.push(group);
            GroupIx(config.groups.len() as u32 - 1)
        });
        places.entry(it.name.as_str()).or_insert(place);
    }
    networks(config, faults);
    private(config, faults);
    bridges(config, faults);
    gateway::gateways(config, faults);
    guards(config);
    places
}

/// Where a network has a gateway, nobody else is its router or gives its addresses, unless somebody says so.
fn guards(config: &mut Config) {
    let own = config.groups.iter().filter(|group| group.gateway.is_some()).map(network);
    let own: BTreeSet<Network> = own.collect();
    for group in &mut config.groups {
        let has = own.contains(&network(group));
        let security = group.policy.security;
        group.policy.dhcp_guard = security.dhcp_guard.unwrap_or(has);
        group.policy.router_guard = security.router_guard.unwrap_or(has);
    }
}

fn group(
    it: &GroupSpec,
    name: Option<NetName>,
    spec: &Spec,
    config: &Config,
    faults: &mut Faults,
) -> Option<Group> {
    let at = spec.switches.iter().position(|switch| switch.name == it.switch);
    if at.is_none() {
        faults.add(KIND, &it.name, Problem::UnknownSwitch(it.switch.clone()));
    }
    let vni = it.vni.map(|vni| {
        let good = Vni::new(vni);
        if good.is_err() {
            faults.add(KIND, &it.name, Problem::Vni(vni));
        }
        good
    });
    let vlan = vlan(it, faults);
    let learning = it.learning.and_then(|learning| self::learning(it, learning, faults));
    let gateway = gateway::gateway(it, faults);
    let mtu = it.mtu.and_then(|mtu| check::mtu(KIND, &it.name, mtu, faults));
    if it.bridge.is_some() && it.vni.is_none() {
        faults.add(KIND, &it.name, Problem::BridgeStandard);
    }
    if it.bridge.is_some() && !matches!(it.vlan, VlanSpec::None | VlanSpec::Access(_)) {
        faults.add(KIND, &it.name, Problem::BridgeTrunk);
    }
    let policy = |mtu| Policy {
        security: it.security,
        dhcp_guard: false,
        router_guard: false,
        ingress: None,
        egress: None,
        storm: super::Storm::default(),
        mtu,
        blocked: it.blocked,
    };
    let mut policy = policy(mtu.unwrap_or(0));
    policy.ingress = check::rate(KIND, &it.name, "ingress", it.shaping.ingress, faults);
    policy.egress = check::rate(KIND, &it.name, "egress", it.shaping.egress, faults);
    policy.storm = check::storm(KIND, &it.name, it.storm, faults);
    let at = at?;
    let switch = SwitchIx(at as u16);
    let of_switch = config.switches.get(at)?;
    if mtu.is_some_and(|mtu| mtu > of_switch.mtu) {
        let problem = Problem::MtuOfSwitch(u32::from(policy.mtu), of_switch.mtu, it.switch.clone());
        faults.add(KIND, &it.name, problem);
    }
    policy.mtu = mtu.unwrap_or(of_switch.mtu);
    let uplinks = uplinks_of(config, switch);
    let team = match (&it.team, &spec.switches[at].team) {
        (Some(team), _) => self::team(KIND, &it.name, team, &it.switch, &uplinks, faults),
        // Its faults were named at the switch.
        (None, Some(team)) => {
            self::team("switch", &it.switch, team, &it.switch, &uplinks, &mut Faults { list: Vec::new() })
        }
        (None, None) => Team {
            active: uplinks.values().copied().collect(),
            failback: true,
            notify: true,
            ..Team::default()
        },
    };
    let vni = vni.transpose().ok()?;
    let vlan = vlan?;
    let gateway = gateway.map(|gateway| gateway.with_mac(vni, &it.switch, &vlan));
    Some(Group {
        name: name?,
        switch,
        vni,
        bridge: it.bridge,
        vlan,
        policy,
        learning,
        answer_neighbours: !it.flood_neighbours,
        team,
        gateway,
    })
}

fn vlan(it: &GroupSpec, faults: &mut Faults) -> Option<Vlan> {
    let mut id = |vlan: u32| {
        let good = VlanId::new(vlan).ok();
        if good.is_none() {
            faults.add(KIND, &it.name, Problem::Vlan(vlan));
        }
        good
    };
    match &it.vlan {
        VlanSpec::None => Some(Vlan::Access(None)),
        VlanSpec::Access(vlan) => id(*vlan).map(|vlan| Vlan::Access(Some(vlan))),
        VlanSpec::Guest => Some(Vlan::Guest),
        VlanSpec::Trunk { ranges, native } => {
            let native = native.map(&mut id);
            let mut carries = VlanSet::EMPTY;
            let mut good = native != Some(None);
            if ranges.is_empty() {
                faults.add(KIND, &it.name, Problem::EmptyTrunk);
            }
            if ranges.len() > LIST_MAX {
                let problem = Problem::TooMany { what: "VLAN ranges", count: ranges.len(), max: LIST_MAX };
                faults.add(KIND, &it.name, problem);
                return None;
            }
            for (first, last) in ranges {
                let ends: BTreeSet<u32> = [*first, *last].into();
                for vlan in ends.iter().filter(|vlan| VlanId::new(**vlan).is_err()) {
                    faults.add(KIND, &it.name, Problem::Vlan(*vlan));
                    good = false;
                }
                if first > last {
                    faults.add(KIND, &it.name, Problem::Backwards(*first, *last));
                    good = false;
                }
                if good {
                    (*first..=*last).filter_map(|v| VlanId::new(v).ok()).for_each(|v| carries.insert(v));
                }
            }
            let native = native.flatten();
            native.into_iter().for_each(|vlan| carries.insert(vlan));
            good.then(|| Vlan::Trunk { carries: Box::new(carries), native })
        }
        VlanSpec::Private { primary, secondary, kind } => {
            let primary = id(*primary);
            let secondary = secondary.map(&mut id);
            match (kind, secondary) {
                (PrivateKind::Promiscuous, None) => {
                    primary.map(|primary| Vlan::Private { primary, sends: primary, kind: *kind })
                }
                (PrivateKind::Promiscuous, Some(_)) => {
                    faults.add(KIND, &it.name, Problem::SecondaryGiven);
                    None
                }
                (_, None) => {
                    faults.add(KIND, &it.name, Problem::SecondaryMissing);
                    None
                }
                (_, Some(secondary)) => {
                    let (primary, sends) = (primary?, secondary?);
                    if primary == sends {
                        faults.add(KIND, &it.name, Problem::SecondaryIsPrimary(sends.get()));
                        return None;
                    }
                    Some(Vlan::Private { primary, sends, kind: *kind })
                }
            }
        }
    }
}

fn learning(it: &GroupSpec, spec: LearningSpec, faults: &mut Faults) -> Option<Learning> {
    let before = faults.list.len();
    if !(1..=LEARNING_MAX).contains(&spec.limit) {
        faults.add(KIND, &it.name, Problem::LearningLimit(spec.limit));
    }
    if !(10..=86_400).contains(&spec.age_s) {
        faults.add(KIND, &it.name, Problem::LearningAge(spec.age_s));
    }
    if !it.security.forged_transmits {
        faults.add(KIND, &it.name, Problem::LearningForged);
    }
    let age = Duration::from_secs(u64::from(spec.age_s));
    (faults.list.len() == before).then_some(Learning { limit: spec.limit, at_limit: spec.at_limit, age })
}

pub(super) fn team(
    kind: &'static str,
    name: &str,
    spec: &TeamSpec,
    switch: &str,
    uplinks: &BTreeMap<String, UplinkIx>,
    faults: &mut Faults,
) -> Team {
    let mut used = BTreeSet::new();
    let mut list = |names: &[String]| {
        let mut list = Vec::new();
        for uplink in names {
            match uplinks.get(uplink) {
                None => {
                    faults.add(kind, name, Problem::UnknownUplink(uplink.clone(), switch.to_owned()));
                }
                Some(_) if !used.insert(uplink.clone()) => {
                    faults.add(kind, name, Problem::UplinkTwice(uplink.clone()));
                }
                Some(ix) => list.push(*ix),
            }
        }
        list
    };
    let (active, standby) = (list(&spec.active), list(&spec.standby));
    let count = active.len() + standby.len();
    if spec.detection == Detection::Beacon && count < 3 {
        faults.add(kind, name, Problem::Beacons(count));
    }
    Team {
        active,
        standby,
        policy: spec.policy,
        detection: spec.detection,
        failback: !spec.no_failback,
        notify: !spec.no_notify,
    }
}

/// A VNI belongs to one group, or to those of one private VLAN.
fn networks(config: &Config, faults: &mut Faults) {
    let mut owners: BTreeMap<Vni, &Group> = BTreeMap::new();
    for group in &config.groups {
        let Some(vni) = group.vni else { continue };
        let Some(owner) = owners.insert(vni, group) else { continue };
        let together = match (&owner.vlan, &group.vlan) {
            (Vlan::Private { primary: a, .. }, Vlan::Private { primary: b, .. }) => {
                a == b && owner.switch == group.switch
            }
            _ => false,
        };
        if !together {
            let problem = Problem::VniTaken(vni.get(), owner.name.to_string());
            faults.add(KIND, group.name.as_str(), problem);
        }
    }
}

/// What a VLAN is used as in its domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    Ordinary,
    Primary,
    Isolated(VlanId),
    Community(VlanId),
}

fn uses(group: &Group) -> Vec<(u16, Use)> {
    match &group.vlan {
        Vlan::Access(None) => Vec::new(),
        Vlan::Access(Some(vlan)) => vec![(vlan.get(), Use::Ordinary)],
        Vlan::Trunk { carries, .. } => carries.iter().map(|vid| (vid, Use::Ordinary)).collect(),
        Vlan::Guest => (1..=VlanId::MAX).map(|vid| (vid, Use::Ordinary)).collect(),
        Vlan::Private { primary, sends, kind } => {
            let own = match kind {
                PrivateKind::Promiscuous => return vec![(primary.get(), Use::Primary)],
                PrivateKind::Isolated => Use::Isolated(*primary),
                PrivateKind::Community => Use::Community(*primary),
            };
            vec![(primary.get(), Use::Primary), (sends.get(), own)]
        }
    }
}

/// The VLANs of a private one are its own, and it has one isolated VLAN.
fn private(config: &Config, faults: &mut Faults) {
    let mut seen: BTreeMap<(Domain, u16), (Use, &NetName)> = BTreeMap::new();
    let mut isolated: BTreeMap<(Domain, VlanId), (u16, &NetName)> = BTreeMap::new();
    for group in &config.groups {
        let domain = domain(group);
        let mut clash = None;
        for (vid, it) in uses(group) {
            match seen.get(&(domain, vid)) {
                Some((other, name)) if *other != it => clash = clash.or(Some((vid, (*name).clone()))),
                Some(_) => {}
                None => drop(seen.insert((domain, vid), (it, &group.name))),
            }
            if let Use::Isolated(primary) = it {
                let (first, name) = *isolated.entry((domain, primary)).or_insert((vid, &group.name));
                if first != vid {
                    let problem = Problem::TwoIsolated(primary.get(), name.to_string());
                    faults.add(KIND, group.name.as_str(), problem);
                }
            }
        }
        // One line a group, though a trunk may clash in thousands of VLANs.
        if let Some((vid, name)) = clash {
            faults.add(KIND, group.name.as_str(), Problem::PrivateClash(vid, name.to_string()));
        }
    }
}

/// The physical VLAN that a distributed group is bridged to is nobody else's.
fn bridges(config: &Config, faults: &mut Faults) {
    let carried = |group: &Group, vid: Option<u16>| match &group.vlan {
        Vlan::Access(vlan) => vlan.map(VlanId::get) == vid,
        Vlan::Guest => true,
        _ => vid.is_some_and(|vid| uses(group).iter().any(|(used, _)| *used == vid)),
    };
    for (at, group) in config.groups.iter().enumerate() {
        let (Some(host), Vlan::Access(vlan)) = (group.bridge, &group.vlan) else { continue };
        let vid = vlan.map(VlanId::get);
        let other = config.groups.iter().enumerate().find(|(other_at, other)| {
            let physical = other.vni.is_none() || (other.bridge == Some(host) && *other_at < at);
            *other_at != at && physical && other.switch == group.switch && carried(other, vid)
        });
        if let Some((_, other)) = other {
            let what = vid.map_or("the untagged network".to_owned(), |vid| format!("VLAN {vid}"));
            let switch = config.switches[usize::from(group.switch.0)].name.to_string();
            faults.add(KIND, group.name.as_str(), Problem::BridgeClash(what, switch, other.name.to_string()));
        }
    }
}
