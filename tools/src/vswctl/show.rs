//! What the configuration says: switches, port groups, mirrors, all of it.

use ferro_protocol::api::switch::NetworkConfig;
use std::fmt::Write as _;

use ferro_protocol::api::switch::spec::{
    Detection, Direction, GroupSpec, LearningSpec, PrivateKind, SecuritySpec, ShapingSpec, Spec, StormSpec,
    SwitchSpec, TeamPolicy, TeamSpec, VlanSpec,
};

use super::Context;
use super::values::rate_text;
use crate::failure::{Exit, Failure, Result};
use crate::text::{Cell, Style, Table, facts, printable};

async fn config_of(context: &Context) -> Result<NetworkConfig> {
    context.client.get("/v1/config").await
}

pub(super) async fn config(context: &Context) -> Result<()> {
    let config = config_of(context).await?;
    if context.terminal.is_json() {
        return context.terminal.json(&config);
    }
    let text = toml::to_string(&config.spec).map_err(|error| {
        let message = format!("the configuration can't be written: {error}");
        Failure::new(Exit::Failure, "internal", message, "try `-o json`; this is worth a bug report")
    })?;
    context.terminal.print(&text)
}

fn missing(kind: &str, noun: &str, name: &str) -> Failure {
    let message = format!("there is no {kind} {name:?}");
    let code = format!("{}_not_found", kind.replace("port ", ""));
    Failure::new(Exit::NotFound, &code, message, format!("see `vswctl {noun} list` for those there are"))
}

pub(super) async fn switches(context: &Context) -> Result<()> {
    let spec = config_of(context).await?.spec;
    context.terminal.answer(&spec.switches, |switches, paint| {
        let mut table = Table::new(&["NAME", ">MTU", ">GROUPS", "UPLINKS", "TEAMING"]);
        for it in switches {
            let groups = spec.groups.iter().filter(|group| group.switch == it.name).count();
            table.row(vec![
                (&it.name).into(),
                it.mtu.to_string().into(),
                groups.to_string().into(),
                list(&it.uplinks).into(),
                it.team.as_ref().map_or("all active".to_owned(), team).into(),
            ]);
        }
        table.render(paint, 0)
    })
}

pub(super) async fn switch(context: &Context, name: &str) -> Result<()> {
    let spec = config_of(context).await?.spec;
    let it = spec.switches.iter().find(|it| it.name == name);
    let it = it.ok_or_else(|| missing("switch", "switch", name))?;
    context.terminal.answer(it, |it: &SwitchSpec, _| {
        let groups: Vec<String> = spec
            .groups
            .iter()
            .filter(|group| group.switch == it.name)
            .map(|group| group.name.clone())
            .collect();
        facts(&[
            ("name", printable(&it.name)),
            ("MTU", it.mtu.to_string()),
            ("uplinks", printable(&list(&it.uplinks))),
            ("teaming", printable(&it.team.as_ref().map_or("all active".to_owned(), team))),
            ("port groups", printable(&list(&groups))),
        ])
    })
}

pub(super) async fn groups(context: &Context) -> Result<()> {
    let spec = config_of(context).await?.spec;
    let wide = context.terminal.is_wide();
    context.terminal.answer(&spec.groups, |groups, paint| {
        let mut head = vec!["NAME", "SWITCH", ">VNI", "VLAN", ">PORTS", "GATEWAY"];
        if wide {
            head.extend(["MTU", "SECURITY", "SHAPING", "STORM", "LEARNING", "TEAMING"]);
        }
        let mut table = Table::new(&head);
        for it in groups {
            let ports = spec.ports.iter().filter(|port| port.group == it.name).count();
            let name = if it.blocked {
                Cell::styled(Style::Warn, format!("{} (blocked)", it.name))
            } else {
                (&it.name).into()
            };
            let mut row = vec![
                name,
                (&it.switch).into(),
                it.vni.map_or("-".to_owned(), |vni| vni.to_string()).into(),
                vlan(&it.vlan).into(),
                ports.to_string().into(),
                gateways(it).into(),
            ];
            if wide {
                row.extend([
                    it.mtu.map_or("switch's".to_owned(), |mtu| mtu.to_string()).into(),
                    security(it.security).into(),
                    shaping(&it.shaping).into(),
                    storm(&it.storm).into(),
                    it.learning.as_ref().map_or("-".to_owned(), learning).into(),
                    it.team.as_ref().map_or("switch's".to_owned(), team).into(),
                ]);
            }
            table.row(row);
        }
        table.render(paint, 0)
    })
}

pub(super) async fn group(context: &Context, name: &str) -> Result<()> {
    let spec = config_of(context).await?.spec;
    let it = spec.groups.iter().find(|it| it.name == name);
    let it = it.ok_or_else(|| missing("port group", "portgroup", name))?;
    context.terminal.answer(it, |it, _| one_group(&spec, it))
}

/// The addresses of its gateway.
fn gateways(it: &GroupSpec) -> String {
    let all: Vec<&str> = it.gateway.iter().map(|own| own.address.as_str()).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

fn one_group(spec: &Spec, it: &GroupSpec) -> String {
    let kind = match it.vni {
        Some(vni) => format!("distributed, VNI {vni}"),
        None => "standard".to_owned(),
    };
    let dhcp = it.gateway.iter().find_map(|own| {
        own.pool.as_ref().map(|(first, last)| format!("{first}-{last}, for {} s", own.lease_s))
    });
    let none = || "-".to_owned();
    let ports: Vec<String> =
        spec.ports.iter().filter(|port| port.group == it.name).map(|port| port.name.clone()).collect();
    facts(&[
        ("name", printable(&it.name)),
        ("kind", kind),
        ("switch", printable(&it.switch)),
        ("VLAN", vlan(&it.vlan)),
        ("bridge", it.bridge.map_or_else(none, |host| host.to_string())),
        ("MTU", it.mtu.map_or("that of the switch".to_owned(), |mtu| mtu.to_string())),
        ("blocked", yes_no(it.blocked)),
        ("security", security(it.security)),
        ("shaping", shaping(&it.shaping)),
        ("storm", storm(&it.storm)),
        ("learning", it.learning.as_ref().map_or_else(none, learning)),
        (
            "ARP and ND",
            if it.flood_neighbours { "asked on" } else { "answered from what is known" }.to_owned(),
        ),
        ("teaming", printable(&it.team.as_ref().map_or("that of the switch".to_owned(), team))),
        ("gateway", printable(&gateways(it))),
        ("DHCP", printable(&dhcp.unwrap_or_else(none))),
        ("ports", printable(&list(&ports))),
    ])
}

pub(super) async fn mirrors(context: &Context) -> Result<()> {
    let spec = config_of(context).await?.spec;
    context.terminal.answer(&spec.mirrors, |mirrors, paint| {
        let mut table = Table::new(&["NAME", "PORTS", "GROUPS", "DIRECTION", "TO"]);
        for it in mirrors {
            let direction = match it.direction {
                Direction::Both => "both",
                Direction::Ingress => "from the guest",
                Direction::Egress => "to the guest",
            };
            table.row(vec![
                (&it.name).into(),
                list(&it.ports).into(),
                list(&it.groups).into(),
                direction.into(),
                (&it.to).into(),
            ]);
        }
        table.render(paint, 0)
    })
}

pub(super) fn list(names: &[String]) -> String {
    if names.is_empty() { "-".to_owned() } else { names.join(",") }
}

pub(super) fn yes_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

fn vlan(vlan: &VlanSpec) -> String {
    match vlan {
        VlanSpec::None => "untagged".to_owned(),
        VlanSpec::Access(vlan) => vlan.to_string(),
        VlanSpec::Guest => "guest".to_owned(),
        VlanSpec::Trunk { ranges, native } => {
            let range = |(first, last): &(u32, u32)| {
                if first == last { first.to_string() } else { format!("{first}-{last}") }
            };
            let ranges: Vec<String> = ranges.iter().map(range).collect();
            let native = native.map_or(String::new(), |native| format!(" native {native}"));
            format!("trunk {}{native}", ranges.join(","))
        }
        VlanSpec::Private { primary, secondary, kind } => {
            let kind = match kind {
                PrivateKind::Promiscuous => "promiscuous",
                PrivateKind::Isolated => "isolated",
                PrivateKind::Community => "community",
            };
            let secondary = secondary.map_or(String::new(), |vlan| format!("/{vlan}"));
            format!("private {primary}{secondary} {kind}")
        }
    }
}

pub(super) fn security(it: SecuritySpec) -> String {
    let all = [
        ("promiscuous", it.promiscuous),
        ("MAC change", it.mac_change),
        ("forged transmits", it.forged_transmits),
    ];
    let allowed: Vec<&str> = all.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
    let mut parts = vec![if allowed.is_empty() {
        "all rejected".to_owned()
    } else {
        format!("{} allowed", allowed.join(", "))
    }];
    for (name, guard) in [("DHCP guard", it.dhcp_guard), ("router guard", it.router_guard)] {
        if let Some(on) = guard {
            parts.push(format!("{name} {}", if on { "on" } else { "off" }));
        }
    }
    parts.join(", ")
}

pub(super) fn shaping(it: &ShapingSpec) -> String {
    let of = |which: &str, rate: &Option<_>| rate.as_ref().map(|rate| format!("{which} {}", rate_text(rate)));
    let all: Vec<String> =
        [of("ingress", &it.ingress), of("egress", &it.egress)].into_iter().flatten().collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

pub(super) fn storm(it: &StormSpec) -> String {
    let all = [("broadcast", it.broadcast_pps), ("multicast", it.multicast_pps), ("unknown", it.unknown_pps)];
    let some: Vec<String> =
        all.iter().filter_map(|(name, limit)| limit.map(|limit| format!("{name} {limit}/s"))).collect();
    if some.is_empty() { "-".to_owned() } else { some.join(", ") }
}

fn learning(it: &LearningSpec) -> String {
    let beyond = match it.at_limit {
        ferro_protocol::api::switch::spec::AtLimit::Drop => "drop",
        ferro_protocol::api::switch::spec::AtLimit::Flood => "flood",
    };
    format!("up to {}, then {beyond}, {} s", it.limit, it.age_s)
}

fn team(it: &TeamSpec) -> String {
    let policy = match it.policy {
        TeamPolicy::PortId => "port-id",
        TeamPolicy::SourceMac => "source-mac",
        TeamPolicy::IpHash => "ip-hash",
        TeamPolicy::Explicit => "explicit",
        TeamPolicy::Load => "load",
    };
    let mut text = format!("{policy}, active {}", list(&it.active));
    if !it.standby.is_empty() {
        let _ = write!(text, ", standby {}", list(&it.standby));
    }
    if it.detection == Detection::Beacon {
        text += ", beacons";
    }
    for (flag, words) in [(it.no_failback, ", no failback"), (it.no_notify, ", no notice to switches")] {
        if flag {
            text += words;
        }
    }
    text
}
