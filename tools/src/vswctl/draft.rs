//! From the options of verbs to changes, on a copy of the configuration.
//!
//! A verb that changes something replaces the whole thing, so it begins from what is there, earlier changes of the same
//! transaction included. Something that is not there is asked to be changed all the same: the daemon names it then, together
//! with every other fault.

use ferro_protocol::api::switch::spec::{
    GatewaySpec, GroupSpec, LEARNING_AGE_S_DEFAULT, LEASE_S_DEFAULT, LearningSpec, MirrorSpec, OverrideSpec,
    PortSpec, SecuritySpec, ShapingSpec, StormSpec, SwitchSpec, TeamSpec, VlanSpec,
};
use ferro_protocol::api::switch::{Change, Spec};
use ferro_protocol::ids::HostId;

use super::args::{GroupVerb, MirrorVerb, Noun, PortVerb, SwitchVerb};
use super::options::{
    GatewayOptions, GroupOptions, Inherit, LearningOptions, MirrorOptions, PortOptions, RateOptions,
    SecurityOptions, SwitchOptions, TeamOptions,
};
use crate::failure::{Exit, Failure, Result};
use crate::values::OrNone;

/// A verb that changes the configuration.
#[derive(Debug, Clone, Copy)]
pub(super) enum Edit<'a> {
    Switch(&'a SwitchVerb),
    Group(&'a GroupVerb),
    Port(&'a PortVerb),
    Mirror(&'a MirrorVerb),
}

impl<'a> Edit<'a> {
    /// The edit that a verb is, if it is one.
    pub(super) fn of(noun: &'a Noun) -> Option<Self> {
        match noun {
            Noun::Switch { verb: SwitchVerb::List | SwitchVerb::Show { .. } }
            | Noun::Portgroup { verb: GroupVerb::List | GroupVerb::Show { .. } }
            | Noun::Mirror { verb: MirrorVerb::List } => None,
            Noun::Switch { verb } => Some(Self::Switch(verb)),
            Noun::Portgroup { verb } => Some(Self::Group(verb)),
            Noun::Mirror { verb } => Some(Self::Mirror(verb)),
            Noun::Port {
                verb: verb @ (PortVerb::Create { .. } | PortVerb::Set { .. } | PortVerb::Delete { .. }),
            } => Some(Self::Port(verb)),
            _ => None,
        }
    }

    /// The host that it names, if it does: its id has to be found first.
    pub(super) fn host(self) -> Option<&'a str> {
        match self {
            Self::Group(GroupVerb::Create { options, .. } | GroupVerb::Set { options, .. }) => {
                match &options.bridge {
                    Some(OrNone::Some(host)) => Some(host),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// What was done, for people.
    pub(super) fn sentence(self) -> String {
        let (verb, what, name) = match self {
            Self::Switch(SwitchVerb::Create { name, .. }) => ("created", "switch", name),
            Self::Switch(SwitchVerb::Set { name, .. }) => ("changed", "switch", name),
            Self::Switch(SwitchVerb::Delete { name }) => ("deleted", "switch", name),
            Self::Group(GroupVerb::Create { name, .. }) => ("created", "port group", name),
            Self::Group(GroupVerb::Set { name, .. }) => ("changed", "port group", name),
            Self::Group(GroupVerb::Delete { name }) => ("deleted", "port group", name),
            Self::Port(PortVerb::Create { name, .. }) => ("created", "port", name),
            Self::Port(PortVerb::Set { name, .. }) => ("changed", "port", name),
            Self::Port(PortVerb::Delete { name }) => ("deleted", "port", name),
            Self::Mirror(MirrorVerb::Create { name, .. }) => ("created", "mirror", name),
            Self::Mirror(MirrorVerb::Set { name, .. }) => ("changed", "mirror", name),
            Self::Mirror(MirrorVerb::Delete { name }) => ("deleted", "mirror", name),
            // They are no edits.
            Self::Switch(_) | Self::Group(_) | Self::Port(_) | Self::Mirror(_) => return String::new(),
        };
        format!("{verb} {what} {name}")
    }
}

/// A copy of the configuration, and the changes that led to it.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) spec: Spec,
    pub(super) changes: Vec<Change>,
    /// Hosts with their names.
    pub(super) hosts: Vec<(HostId, String)>,
}

fn find<'a, T>(list: &'a [T], name: &str, of: impl Fn(&T) -> &str) -> Option<&'a T> {
    list.iter().find(|it| of(it) == name)
}

/// Puts it in the place of what has its name, or at the end.
fn put<T>(list: &mut Vec<T>, new: T, of: impl Fn(&T) -> &str) {
    match list.iter().position(|it| of(it) == of(&new)) {
        Some(at) => list[at] = new,
        None => list.push(new),
    }
}

impl Draft {
    /// Adds what a verb asks for.
    pub(super) fn edit(&mut self, edit: Edit<'_>) -> Result<()> {
        match edit {
            Edit::Switch(verb) => self.switch(verb),
            Edit::Group(verb) => return self.group(verb),
            Edit::Port(verb) => self.port(verb),
            Edit::Mirror(verb) => self.mirror(verb),
        }
        Ok(())
    }

    fn switch(&mut self, verb: &SwitchVerb) {
        let (name, options, create) = match verb {
            SwitchVerb::Create { name, options } => (name, options, true),
            SwitchVerb::Set { name, options } => (name, options, false),
            SwitchVerb::Delete { name } => {
                self.spec.switches.retain(|it| it.name != *name);
                return self.changes.push(Change::RemoveSwitch(name.clone()));
            }
            SwitchVerb::List | SwitchVerb::Show { .. } => return,
        };
        let old = find(&self.spec.switches, name, |it| &it.name).filter(|_| !create);
        let mut new = old.cloned().unwrap_or_else(|| SwitchSpec::named(name));
        let SwitchOptions { mtu, uplinks, team } = options;
        new.mtu = mtu.unwrap_or(new.mtu);
        new.uplinks = uplinks.clone().unwrap_or(new.uplinks);
        let all = new.uplinks.clone();
        set_team(&mut new.team, team, || TeamSpec { active: all, ..TeamSpec::default() });
        put(&mut self.spec.switches, new.clone(), |it| &it.name);
        self.changes.push(if create { Change::AddSwitch(new) } else { Change::SetSwitch(new) });
    }

    fn group(&mut self, verb: &GroupVerb) -> Result<()> {
        let (name, options, create) = match verb {
            GroupVerb::Create { name, options, .. } => (name, options, true),
            GroupVerb::Set { name, options } => (name, options, false),
            GroupVerb::Delete { name } => {
                self.spec.groups.retain(|it| it.name != *name);
                self.changes.push(Change::RemoveGroup(name.clone()));
                return Ok(());
            }
            GroupVerb::List | GroupVerb::Show { .. } => return Ok(()),
        };
        let old = find(&self.spec.groups, name, |it| &it.name).filter(|_| !create);
        let mut new =
            old.cloned().unwrap_or_else(|| GroupSpec { name: name.clone(), ..GroupSpec::default() });
        if let GroupVerb::Create { switch, .. } = verb {
            new.switch.clone_from(switch);
        }
        if let Some(vni) = &options.vni {
            new.vni = vni.clone().get();
        }
        new.vlan = vlan(&new, options)?;
        if let Some(bridge) = &options.bridge {
            new.bridge = bridge.clone().get().map(|host| self.host(&host)).transpose()?;
        }
        if let Some(mtu) = &options.mtu {
            new.mtu = mtu.clone().get();
        }
        new.blocked = options.blocked.map_or(new.blocked, |word| word.is_yes());
        new.flood_neighbours = options.flood_neighbours.map_or(new.flood_neighbours, |word| word.is_yes());
        set_security(&mut new.security, &options.security);
        set_shaping(&mut new.shaping, &options.rates);
        set_storm(&mut new.storm, &options.rates);
        set_learning(&mut new, &options.learning)?;
        set_gateway(&mut new, &options.gateway)?;
        // A team of its own begins as that of the switch.
        let of_switch = || {
            let switch = find(&self.spec.switches, &new.switch, |it| &it.name);
            switch.map_or_else(TeamSpec::default, |switch| {
                switch
                    .team
                    .clone()
                    .unwrap_or_else(|| TeamSpec { active: switch.uplinks.clone(), ..TeamSpec::default() })
            })
        };
        let mut team = new.team.take();
        set_team(&mut team, &options.team, of_switch);
        new.team = team;
        put(&mut self.spec.groups, new.clone(), |it| &it.name);
        self.changes.push(if create { Change::AddGroup(new) } else { Change::SetGroup(new) });
        Ok(())
    }

    fn host(&self, text: &str) -> Result<HostId> {
        let named = self.hosts.iter().find(|(id, name)| name == text || id.to_string() == text);
        match (named, text.parse::<HostId>()) {
            (Some((id, _)), _) => Ok(*id),
            // A host that has not joined yet may be named by its id.
            (None, Ok(id)) => Ok(id),
            (None, Err(_)) => {
                let message = format!("there is no host {text:?}");
                let next = "give the name or the id of a host, as `vswctl status` shows it";
                Err(Failure::new(Exit::NotFound, "host_not_found", message, next))
            }
        }
    }

    fn port(&mut self, verb: &PortVerb) {
        let (name, options, create) = match verb {
            PortVerb::Create { name, options, .. } => (name, options, true),
            PortVerb::Set { name, options, .. } => (name, options, false),
            PortVerb::Delete { name } => {
                self.spec.ports.retain(|it| it.name != *name);
                return self.changes.push(Change::RemovePort(name.clone()));
            }
            _ => return,
        };
        let old = find(&self.spec.ports, name, |it| &it.name).filter(|_| !create);
        let mut new = old.cloned().unwrap_or_else(|| PortSpec { name: name.clone(), ..PortSpec::default() });
        let (group, mac) = match verb {
            PortVerb::Create { group, mac, .. } => (Some(group), Some(mac)),
            PortVerb::Set { group, mac, .. } => (group.as_ref(), mac.as_ref()),
            _ => (None, None),
        };
        new.group = group.cloned().unwrap_or(new.group);
        new.mac = mac.cloned().unwrap_or(new.mac);
        new.addresses = options.address.clone().unwrap_or(new.addresses);
        let group = find(&self.spec.groups, &new.group, |it| &it.name);
        new.overrides = overrides(new.overrides, group, options);
        // A port in two groups is named as such: what is there stays in the copy.
        if !create || old_is_missing(&self.spec.ports, name) {
            put(&mut self.spec.ports, new.clone(), |it| &it.name);
        }
        self.changes.push(if create { Change::AddPort(new) } else { Change::SetPort(new) });
    }

    fn mirror(&mut self, verb: &MirrorVerb) {
        let (name, options, create) = match verb {
            MirrorVerb::Create { name, options, .. } => (name, options, true),
            MirrorVerb::Set { name, options, .. } => (name, options, false),
            MirrorVerb::Delete { name } => {
                self.spec.mirrors.retain(|it| it.name != *name);
                return self.changes.push(Change::RemoveMirror(name.clone()));
            }
            MirrorVerb::List => return,
        };
        let old = find(&self.spec.mirrors, name, |it| &it.name).filter(|_| !create);
        let mut new = old.cloned().unwrap_or_else(|| MirrorSpec {
            name: name.clone(),
            ports: Vec::new(),
            groups: Vec::new(),
            direction: ferro_protocol::api::switch::spec::Direction::default(),
            to: String::new(),
        });
        let to = match verb {
            MirrorVerb::Create { to, .. } => Some(to),
            MirrorVerb::Set { to, .. } => to.as_ref(),
            _ => None,
        };
        let MirrorOptions { port, group, direction } = options;
        new.to = to.cloned().unwrap_or(new.to);
        new.ports = port.clone().unwrap_or(new.ports);
        new.groups = group.clone().unwrap_or(new.groups);
        new.direction = direction.map_or(new.direction, Into::into);
        put(&mut self.spec.mirrors, new.clone(), |it| &it.name);
        self.changes.push(if create { Change::AddMirror(new) } else { Change::SetMirror(new) });
    }
}

fn old_is_missing(ports: &[PortSpec], name: &str) -> bool {
    !ports.iter().any(|it| it.name == name)
}

fn vlan(group: &GroupSpec, options: &GroupOptions) -> Result<VlanSpec> {
    let native = options.native.clone();
    let new = if let Some(vlan) = options.vlan {
        VlanSpec::Access(vlan)
    } else if options.untagged {
        VlanSpec::None
    } else if options.guest_tagging {
        VlanSpec::Guest
    } else if let Some(ranges) = &options.trunk {
        let kept = match &group.vlan {
            VlanSpec::Trunk { native, .. } => *native,
            _ => None,
        };
        VlanSpec::Trunk { ranges: ranges.0.clone(), native: native.clone().map_or(kept, OrNone::get) }
    } else if let (Some(primary), Some(kind)) = (options.private_vlan, options.private_kind) {
        VlanSpec::Private { primary, secondary: options.secondary, kind: kind.into() }
    } else {
        match (&group.vlan, native.clone()) {
            (VlanSpec::Trunk { ranges, .. }, Some(native)) => {
                VlanSpec::Trunk { ranges: ranges.clone(), native: native.get() }
            }
            (vlan, _) => vlan.clone(),
        }
    };
    if native.is_some() && !matches!(new, VlanSpec::Trunk { .. }) {
        let message = format!("port group {:?}: a native VLAN is a trunk's", group.name);
        return Err(Failure::usage(message, "give --trunk too, or leave out --native"));
    }
    Ok(new)
}

fn set_team(team: &mut Option<TeamSpec>, options: &TeamOptions, begin: impl FnOnce() -> TeamSpec) {
    if options.no_teaming {
        *team = None;
        return;
    }
    if *options == TeamOptions::default() {
        return;
    }
    let team = team.get_or_insert_with(begin);
    let TeamOptions { active, standby, teaming, detection, failback, notify_switches, no_teaming: _ } =
        options.clone();
    if let Some(standby) = standby {
        // What is put into reserve is in use no longer, unless the list of those in use says so.
        team.active.retain(|it| !standby.contains(it));
        team.standby = standby;
    }
    if let Some(active) = active {
        if options.standby.is_none() {
            team.standby.retain(|it| !active.contains(it));
        }
        team.active = active;
    }
    team.policy = teaming.map_or(team.policy, Into::into);
    team.detection = detection.map_or(team.detection, Into::into);
    team.no_failback = failback.map_or(team.no_failback, |word| !word.is_yes());
    team.no_notify = notify_switches.map_or(team.no_notify, |word| !word.is_yes());
}

fn set_security(security: &mut SecuritySpec, options: &SecurityOptions) {
    let SecurityOptions { promiscuous, mac_change, forged_transmits, dhcp_guard, router_guard } = options;
    for (field, word) in [
        (&mut security.promiscuous, promiscuous),
        (&mut security.mac_change, mac_change),
        (&mut security.forged_transmits, forged_transmits),
    ] {
        *field = word.map_or(*field, |word| word.is_allowed());
    }
    for (field, word) in [(&mut security.dhcp_guard, dhcp_guard), (&mut security.router_guard, router_guard)]
    {
        *field = word.map_or(*field, |word| word.get());
    }
}

fn set_shaping(shaping: &mut ShapingSpec, options: &RateOptions) {
    for (field, rate) in [(&mut shaping.ingress, &options.ingress), (&mut shaping.egress, &options.egress)] {
        if let Some(rate) = rate {
            *field = rate.clone().get();
        }
    }
}

fn set_storm(storm: &mut StormSpec, options: &RateOptions) {
    for (field, limit) in [
        (&mut storm.broadcast_pps, &options.storm_broadcast),
        (&mut storm.multicast_pps, &options.storm_multicast),
        (&mut storm.unknown_pps, &options.storm_unknown),
    ] {
        if let Some(limit) = limit {
            *field = limit.clone().get();
        }
    }
}

fn set_learning(group: &mut GroupSpec, options: &LearningOptions) -> Result<()> {
    let LearningOptions { learn, learn_at_limit, learn_age } = options;
    match learn {
        Some(OrNone::None) => group.learning = None,
        Some(OrNone::Some(limit)) => {
            let old = group.learning.unwrap_or(LearningSpec {
                limit: *limit,
                at_limit: ferro_protocol::api::switch::spec::AtLimit::default(),
                age_s: LEARNING_AGE_S_DEFAULT,
            });
            group.learning = Some(LearningSpec { limit: *limit, ..old });
        }
        None => {}
    }
    if learn_at_limit.is_none() && learn_age.is_none() {
        return Ok(());
    }
    let Some(learning) = &mut group.learning else {
        let message = format!("port group {:?} does not learn addresses", group.name);
        return Err(Failure::usage(message, "say how many it may learn with --learn"));
    };
    learning.at_limit = learn_at_limit.map_or(learning.at_limit, Into::into);
    learning.age_s = learn_age.unwrap_or(learning.age_s);
    Ok(())
}

fn set_gateway(group: &mut GroupSpec, options: &GatewayOptions) -> Result<()> {
    let GatewayOptions { gateway, dhcp, lease } = options;
    // As it is written; whether it is one is the daemon's to say.
    let is_v6 = |address: &str| address.contains(':');
    for address in gateway {
        let OrNone::Some(address) = address else {
            group.gateway.clear();
            continue;
        };
        if let Some(old) = group.gateway.iter_mut().find(|own| is_v6(&own.address) == is_v6(address)) {
            old.address.clone_from(address);
        } else {
            let new = GatewaySpec { address: address.clone(), pool: None, lease_s: LEASE_S_DEFAULT };
            group.gateway.push(new);
        }
    }
    if dhcp.is_none() && lease.is_none() {
        return Ok(());
    }
    // DHCP is IPv4's; of a group that has none, the daemon says so.
    let at = group.gateway.iter().position(|own| !is_v6(&own.address)).unwrap_or(0);
    let Some(own) = group.gateway.get_mut(at) else {
        let message =
            format!("port group {:?} has no gateway, so there is no DHCP server either", group.name);
        return Err(Failure::usage(message, "give it an address with --gateway"));
    };
    if let Some(pool) = dhcp {
        own.pool = pool.clone().get().map(|pool| (pool.0, pool.1));
    }
    own.lease_s = lease.unwrap_or(own.lease_s);
    Ok(())
}

/// What a port has of its own. A part that it begins to have of its own begins as that of its group.
fn overrides(
    old: Option<OverrideSpec>,
    group: Option<&GroupSpec>,
    options: &PortOptions,
) -> Option<OverrideSpec> {
    let mut new = old.unwrap_or_default();
    for inherit in &options.inherit {
        match inherit {
            Inherit::Security => new.security = None,
            Inherit::Shaping => new.shaping = None,
            Inherit::Storm => new.storm = None,
            Inherit::Blocked => new.blocked = None,
            Inherit::All => new = OverrideSpec::default(),
        }
    }
    if let Some(word) = options.blocked {
        new.blocked = Some(word.is_yes());
    }
    if options.security != SecurityOptions::default() {
        let of_group = group.map(|it| it.security).unwrap_or_default();
        set_security(new.security.get_or_insert(of_group), &options.security);
    }
    let RateOptions { ingress, egress, storm_broadcast, storm_multicast, storm_unknown } = &options.rates;
    if ingress.is_some() || egress.is_some() {
        let of_group = group.map(|it| it.shaping).unwrap_or_default();
        set_shaping(new.shaping.get_or_insert(of_group), &options.rates);
    }
    if storm_broadcast.is_some() || storm_multicast.is_some() || storm_unknown.is_some() {
        let of_group = group.map(|it| it.storm).unwrap_or_default();
        set_storm(new.storm.get_or_insert(of_group), &options.rates);
    }
    (new != OverrideSpec::default()).then_some(new)
}
