//! What the control plane and the worker know, as the API shows it.

use std::collections::{BTreeMap, BTreeSet};

use ferro_protocol::api::switch::{
    FrozenMac, LinkState, MacInfo, MacKind, MacPage, MacPlace, PortInfo, PortTotals, SwitchStatus,
    TunnelInfo, TunnelPath, Unconfirmed, UplinkInfo,
};
use ferro_protocol::api::{ApiError, ErrorCode, Health, HealthLevel, HealthReason};
use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Mac, NetName, VlanId};
use ferro_vhost::net::feature;
use vswitch_core::config::{GroupIx, Port as Configured, UplinkIx};
use vswitch_core::table::{PeerIx, PortIx};

use super::keeper::Open;
use super::state::State;
use crate::api::control::MacQuery;
use crate::api::view::counters;
use crate::data::clock;
use crate::data::snapshot::{MacView, Names, PlaceView, PortLink, PortView, Snapshot};
use crate::trace;
use crate::tunnel::control::PeerView as MeshPeer;
use crate::tunnel::data::ConnectionStats;

/// The features that a guest may have taken, by the names that the standard gives them in lower case.
const FEATURES: [(u64, &str); 15] = [
    (feature::CSUM, "csum"),
    (feature::GUEST_CSUM, "guest_csum"),
    (feature::MTU, "mtu"),
    (feature::MAC, "mac"),
    (feature::GUEST_TSO4, "guest_tso4"),
    (feature::GUEST_TSO6, "guest_tso6"),
    (feature::GUEST_ECN, "guest_ecn"),
    (feature::HOST_TSO4, "host_tso4"),
    (feature::HOST_TSO6, "host_tso6"),
    (feature::HOST_ECN, "host_ecn"),
    (feature::MRG_RXBUF, "mrg_rxbuf"),
    (feature::STATUS, "status"),
    (feature::CTRL_VQ, "ctrl_vq"),
    (feature::GUEST_ANNOUNCE, "guest_announce"),
    (feature::MQ, "mq"),
];

// ---- ports ----

/// All ports, by name.
pub(super) fn ports(state: &State, snapshot: &Snapshot) -> Vec<PortInfo> {
    let views: BTreeMap<&NetName, &PortView> = snapshot.ports.iter().map(|view| (&view.name, view)).collect();
    let elsewhere: BTreeMap<&NetName, HostId> =
        state.claims.iter().map(|((host, _), port)| (port, *host)).collect();
    let each = |(name, port): (&NetName, &Configured)| {
        one_port(state, name, port, views.get(name).copied(), elsewhere.get(name).copied())
    };
    state.network.ports().iter().map(each).collect()
}

/// One of them.
pub(super) fn port(state: &State, snapshot: &Snapshot, name: &NetName) -> Option<PortInfo> {
    let port = state.network.ports().get(name)?;
    let view = snapshot.ports.iter().find(|view| view.name == *name);
    let elsewhere = state.claims.iter().find(|(_, it)| *it == name).map(|((host, _), _)| *host);
    Some(one_port(state, name, port, view, elsewhere))
}

fn one_port(
    state: &State,
    name: &NetName,
    port: &Configured,
    view: Option<&PortView>,
    elsewhere: Option<HostId>,
) -> PortInfo {
    let group = state.network.groups().get(port.group.0 as usize);
    let switch = group.and_then(|group| state.network.switches().get(usize::from(group.switch.0)));
    let here = state.ports.get(name);
    let (link, detail) = match (view.map(|view| &view.link), here) {
        (Some(link), _) => link_of(link),
        (None, Some(port)) => (LinkState::Missing, port.trouble.clone()),
        (None, None) => (LinkState::Down, None),
    };
    let host = if here.is_some() { Some(state.host) } else { elsewhere };
    let features = view.map_or(0, |view| view.features);
    PortInfo {
        name: name.to_string(),
        group: group.map(|group| group.name.to_string()).unwrap_or_default(),
        switch: switch.map(|switch| switch.name.to_string()).unwrap_or_default(),
        mac: view.map_or(port.mac, |view| view.mac),
        addresses: port.addresses.iter().map(ToString::to_string).collect(),
        mtu: port.policy.mtu.into(),
        blocked: port.policy.blocked,
        attachment: here.map(|port| port.to.clone()),
        link: here.map(|_| link),
        detail,
        host,
        host_name: host.map(|host| state.host_name(host)),
        features: FEATURES
            .iter()
            .filter(|(bit, _)| features & bit != 0)
            .map(|(_, it)| (*it).to_owned())
            .collect(),
        queue_pairs: view.map_or(0, |view| view.pairs as u16),
        counters: view.map(|view| counters(&view.counters, view.drops.all())),
    }
}

fn link_of(link: &PortLink) -> (LinkState, Option<String>) {
    match link {
        PortLink::Running => (LinkState::Up, None),
        PortLink::Waiting => (LinkState::Down, Some("nobody is connected to its socket".to_owned())),
        PortLink::Connected => (LinkState::Down, Some("its guest does not take frames yet".to_owned())),
        PortLink::Broken(why) => (LinkState::Broken, Some(why.clone())),
        PortLink::Detached | PortLink::Removed => (LinkState::Missing, None),
    }
}

// ---- uplinks ----

/// The uplinks of this host, by switch and name.
pub(super) fn uplinks(state: &State, snapshot: &Snapshot) -> Vec<UplinkInfo> {
    let mut uplinks: Vec<UplinkInfo> = snapshot
        .uplinks
        .iter()
        .map(|view| {
            let known = state.uplinks.get(&view.name);
            let trouble = known.and_then(|it| it.trouble.clone());
            let link = match (&view.interface, view.up) {
                (None, _) => LinkState::Missing,
                (Some(_), true) => LinkState::Up,
                (Some(_), false) => LinkState::Down,
            };
            let uses = |team: &&crate::data::snapshot::TeamView| team.used.contains(&view.name);
            UplinkInfo {
                name: view.name.to_string(),
                switch: view.switch.to_string(),
                link,
                detail: trouble,
                speed_mbit_s: speed(view.name.as_str()),
                used_by: snapshot.teams.iter().filter(uses).map(|team| team.group.to_string()).collect(),
                counters: counters(&view.counters, view.drops.all()),
            }
        })
        .collect();
    uplinks.sort_by(|a, b| (&a.switch, &a.name).cmp(&(&b.switch, &b.name)));
    uplinks
}

/// What the interface says of its speed; many, such as virtual ones, say nothing.
fn speed(interface: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{interface}/speed")).ok()?;
    text.trim().parse::<i64>().ok().and_then(|speed| u64::try_from(speed).ok())
}

// ---- tunnels ----

/// The ways to the other hosts, by their names.
pub(super) fn tunnels(state: &State, snapshot: &Snapshot, mesh: &[MeshPeer]) -> Vec<TunnelInfo> {
    let now = clock::now();
    let each = |(host, peer): (&HostId, &super::state::Peer)| {
        let seen = mesh.iter().find(|it| it.host == *host);
        let view = snapshot.peers.iter().find(|it| it.host == *host);
        let data = snapshot.tunnels.as_ref().zip(view);
        let stats = data.and_then(|(stats, view)| stats.peers.iter().find(|it| it.peer == view.peer));
        let connections = stats.map_or(&[][..], |stats| &stats.connections);
        let drops = stats.map(|it| {
            [("tunnel_no_path", it.no_path), ("tunnel_full", it.full), ("tunnel_unsendable", it.unsendable)]
        });
        TunnelInfo {
            host: *host,
            host_name: state.host_name(*host),
            alive: peer.alive,
            since_s: peer.since.map(|since| now.since(since).as_secs()),
            detail: seen.and_then(|it| it.trouble.clone()),
            networks: peer.networks.iter().map(|vni| vni.get()).collect(),
            paths: paths(seen, connections, stats.map_or(0, |it| it.full)),
            counters: view
                .map_or_else(Default::default, |view| counters(&view.counters, drops.into_iter().flatten())),
        }
    };
    let mut tunnels: Vec<TunnelInfo> = state.peers.iter().map(each).collect();
    tunnels.sort_by(|a, b| (&a.host_name, a.host).cmp(&(&b.host_name, b.host)));
    tunnels
}

/// Control and data connections between the same two addresses are one path, whatever their ports.
fn paths(seen: Option<&MeshPeer>, connections: &[ConnectionStats], dropped: u64) -> Vec<TunnelPath> {
    let path = |local: std::net::SocketAddr, remote: std::net::SocketAddr| TunnelPath {
        local: local.ip().to_string(),
        remote: remote.ip().to_string(),
        alive: false,
        rtt_us: None,
        datagram_bytes_max: None,
        sent: 0,
        received: 0,
        lost: 0,
        dropped: 0,
    };
    let mut done: BTreeMap<(String, String), TunnelPath> = BTreeMap::new();
    for view in seen.map_or(&[][..], |it| &it.paths) {
        let mut it = path(view.path.local, view.path.remote);
        it.alive = view.alive;
        it.rtt_us = (view.round_trip_us > 0).then_some(view.round_trip_us);
        done.insert((it.local.clone(), it.remote.clone()), it);
    }
    for one in connections {
        let first = path(one.path.local, one.path.remote);
        let it = done.entry((first.local.clone(), first.remote.clone())).or_insert(first);
        it.datagram_bytes_max = Some(it.datagram_bytes_max.unwrap_or(0).max(one.payload.into()));
        it.rtt_us = it.rtt_us.or(Some(one.round_trip.as_micros() as u64));
        it.sent += one.sent.count;
        it.received += one.received.count;
        it.lost += one.lost;
    }
    // What waited too long is counted for the host; with one path it is that one's.
    if let Some(only) = done.values_mut().next() {
        only.dropped = dropped;
    }
    done.into_values().collect()
}

// ---- addresses ----

/// A page of the table of addresses.
pub(super) fn macs(state: &State, all: Vec<MacView>, query: &MacQuery) -> Result<MacPage, ApiError> {
    type At = (Option<u32>, Option<u16>, Mac);
    let at = |view: &MacView| -> At { (view.vni.map(|vni| vni.get()), view.vlan, view.mac) };
    let bad = |text: &str| {
        let message = format!("{text:?} is not where a page begins");
        ApiError::new(
            ErrorCode::BadRequest,
            message,
            "use `next` of the page before, or nothing for the first",
        )
    };
    let after: Option<At> = match &query.after {
        Some(text) => Some(serde_json::from_str(text).map_err(|_| bad(text))?),
        None => None,
    };
    let wanted = |view: &MacView| {
        query.vni.is_none_or(|vni| view.vni.is_some_and(|it| it.get() == vni))
            && query.mac.is_none_or(|mac| view.mac == mac)
            && (!query.frozen || view.frozen)
            && after.is_none_or(|after| at(view) > after)
    };
    let mut rows: Vec<MacView> = all.into_iter().filter(wanted).collect();
    rows.sort_by_key(at);
    let more = rows.len() > query.rows_max;
    rows.truncate(query.rows_max);
    let next = rows
        .last()
        .filter(|_| more)
        .map(|last| serde_json::to_string(&at(last)).map_err(|_| bad("the last row")));
    let macs = rows.into_iter().map(|view| mac(state, view)).collect();
    Ok(MacPage { macs, next: next.transpose()? })
}

fn mac(state: &State, view: MacView) -> MacInfo {
    let switch_of = |name: &NetName| -> Option<String> {
        let group = state.network.groups().get(state.network.ports().get(name)?.group.0 as usize)?;
        Some(state.network.switches().get(usize::from(group.switch.0))?.name.to_string())
    };
    let switch = match &view.place {
        _ if view.vni.is_some() => None,
        PlaceView::Port(name) => switch_of(name),
        PlaceView::Uplink(name) => {
            let uplink = state.network.uplinks().iter().find(|uplink| uplink.name == *name);
            let ix = uplink.map(|uplink| usize::from(uplink.switch.0));
            ix.and_then(|ix| state.network.switches().get(ix)).map(|switch| switch.name.to_string())
        }
        PlaceView::Host(_) => None,
    };
    MacInfo {
        vni: view.vni.map(|vni| vni.get()),
        switch,
        vlan: view.vlan.and_then(|vlan| VlanId::new(vlan.into()).ok()),
        all_vlans: view.vlan.is_none(),
        mac: view.mac,
        place: match view.place {
            PlaceView::Port(name) => MacPlace::Port { name: name.to_string() },
            PlaceView::Host(id) => MacPlace::Host { id, name: state.host_name(id) },
            PlaceView::Uplink(name) => MacPlace::Uplink { name: name.to_string() },
        },
        kind: if view.learned { MacKind::Learned } else { MacKind::Known },
        frozen: view.frozen,
    }
}

// ---- a trace's places ----

/// What the places of a trace are called.
pub(super) struct Places<'a> {
    pub(super) names: &'a Names,
    pub(super) state: &'a State,
}

impl trace::Names for Places<'_> {
    fn port(&self, ix: PortIx) -> String {
        self.names.ports.get(&ix).map_or_else(|| format!("{ix:?}"), ToString::to_string)
    }

    fn uplink(&self, ix: UplinkIx) -> String {
        self.names.uplink(ix).map_or_else(|| format!("{ix:?}"), ToString::to_string)
    }

    fn peer(&self, ix: PeerIx) -> String {
        self.names.peers.get(&ix).map_or_else(|| format!("{ix:?}"), |host| self.state.host_name(*host))
    }

    fn group(&self, ix: GroupIx) -> String {
        self.names.group(ix).map_or_else(|| format!("{ix:?}"), ToString::to_string)
    }
}

// ---- all of it ----

/// The switch of this host at a glance.
pub(super) fn status(state: &State, snapshot: &Snapshot, mesh: &[MeshPeer]) -> SwitchStatus {
    let kept = state.keeper.kept();
    let (uplinks, tunnels) = (uplinks(state, snapshot), tunnels(state, snapshot, mesh));
    let up = snapshot.ports.iter().filter(|port| port.link == PortLink::Running).count();
    SwitchStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: state.host,
        host_name: state.name.clone(),
        health: health(state, snapshot, &uplinks, &tunnels),
        source: state.source(),
        revision: state.keeper.newest(),
        applied_revision: kept.current.revision,
        unconfirmed: state.keeper.open().map(unconfirmed),
        hosts: if state.alone && state.peers.is_empty() {
            Vec::new()
        } else {
            state.applied(state.keeper.newest()).hosts
        },
        switches: state.network.switches().len() as u32,
        groups: state.network.groups().len() as u32,
        ports: PortTotals {
            defined: state.network.ports().len() as u32,
            attached: state.ports.len() as u32,
            up: up as u32,
        },
        uplinks,
        tunnels,
        frozen: state
            .frozen
            .iter()
            .map(|(vni, mac)| FrozenMac { vni: vni.map(|vni| vni.get()), mac: *mac })
            .collect(),
    }
}

fn unconfirmed(open: Open) -> Unconfirmed {
    let reason = if open.asked {
        "the change asked to be confirmed"
    } else {
        "this host has lost most of the other hosts since the change"
    };
    let left = open.until.since(clock::now());
    Unconfirmed {
        revision: open.revision,
        seconds_left: left.as_millis().div_ceil(1000) as u32,
        reason: reason.to_owned(),
    }
}

/// So long after the last machine that got no address.
const POOL_FULL_FOR: std::time::Duration = std::time::Duration::from_secs(600);

fn health(state: &State, snapshot: &Snapshot, uplinks: &[UplinkInfo], tunnels: &[TunnelInfo]) -> Health {
    use HealthLevel::{Critical, Warning};
    let mut reasons = Vec::new();
    let mut say = |level, code: &str, message: String, next: &str| {
        reasons.push(HealthReason { level, code: code.to_owned(), message, next_step: next.to_owned() });
    };
    if !state.configured {
        let next = "if it stays so, see the daemon's log (`journalctl -u vswitchd`)";
        say(Critical, "not_configured", "the worker has not taken the network over yet".to_owned(), next);
    }
    if let Some((revision, why)) = state.keeper.failed() {
        let message = format!("revision {revision} of the network can't be taken over here: {why}");
        say(Critical, "network_refused", message, "bring this host to the cluster's version");
    }
    if let Some(revision) = state.keeper.kept().rolled_back {
        let message = format!("revision {revision} cut this host off from the others and was gone back on");
        say(Warning, "rolled_back", message, "change the network so that the other hosts stay reachable");
    }
    if !state.alone {
        if let Some(why) = &state.lost {
            let message = format!("the cluster directory can't be asked, the last copy holds: {why}");
            say(Warning, "directory_lost", message, "see `systemctl status vsand`; forwarding goes on");
        } else if state.view.as_ref().is_some_and(|view| !view.quorum) {
            let message = "the cluster directory has no quorum: the network can't be changed".to_owned();
            say(Warning, "no_quorum", message, "see `vsanctl status`; forwarding goes on");
        }
    }
    for problem in &state.problems {
        say(
            Warning,
            "state_damaged",
            problem.clone(),
            "it was written anew; attach ports again if some are missing",
        );
    }
    if let Some(problem) = &state.copy_problem {
        let next = "make room or repair the file system: after a restart this host would have an old network";
        say(Warning, "copy_not_written", problem.clone(), next);
    }
    for uplink in uplinks.iter().filter(|uplink| uplink.link != LinkState::Up) {
        let why = uplink.detail.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let message = format!("uplink {} of switch {} is down{why}", uplink.name, uplink.switch);
        say(Warning, "uplink_down", message, "check cable and switch (`ip link show`)");
    }
    let used: BTreeSet<&NetName> =
        snapshot.teams.iter().filter(|team| team.used.is_empty()).map(|team| &team.group).collect();
    for group in state.network.groups().iter().filter(|group| used.contains(&group.name)) {
        if !group.team.active.is_empty() || !group.team.standby.is_empty() {
            let message = format!("port group {} has no uplink left", group.name);
            say(Critical, "group_without_uplink", message, "bring one of its uplinks back");
        }
    }
    for tunnel in tunnels.iter().filter(|tunnel| !tunnel.alive) {
        let why = tunnel.detail.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let message = format!("host {} can't be reached{why}", tunnel.host_name);
        say(
            Warning,
            "host_unreachable",
            message,
            "see whether vswitchd runs there and the network between works",
        );
    }
    for (name, port) in &state.ports {
        if let Some(why) = &port.trouble {
            let message = format!("port {name} can't be attached: {why}");
            say(
                Warning,
                "port_not_attached",
                message,
                "it is tried again; or detach it (`vswctl port detach`)",
            );
        }
    }
    for (vni, mac) in &state.frozen {
        let network = vni.map(|vni| format!(" of VNI {}", vni.get())).unwrap_or_default();
        let message = format!("address {mac}{network} moved too often: two machines have it");
        say(Warning, "mac_frozen", message, "turn one of them off, then `vswctl mac release`");
    }
    let now = clock::now();
    for (group, seen) in &snapshot.gateways {
        if seen.pool_full_at.is_some_and(|at| now.since(at) < POOL_FULL_FOR) {
            let message = format!("all addresses that port group {group} gives by DHCP are taken");
            let next = format!(
                "make the pool larger (`vswctl portgroup set {group} --dhcp FIRST-LAST`), or remove ports that are gone"
            );
            say(Warning, "dhcp_pool_full", message, &next);
        }
    }
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.level));
    Health { level: reasons.first().map_or(HealthLevel::Ok, |worst| worst.level), reasons }
}
