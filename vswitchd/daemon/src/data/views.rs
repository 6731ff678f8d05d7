//! The loop's state as plain data.

use vswitch_core::config::{GroupIx, UplinkIx};
use vswitch_core::frame::Tci;
use vswitch_core::pipeline::Counters;
use vswitch_core::table::{Key, Place};

use ferro_protocol::net::Vni;

use super::Loop;
use super::snapshot::{MacView, PeerView, PlaceView, PortView, Snapshot, TeamView, UplinkView};
use crate::tunnel::data::Tunnels;

impl Loop {
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            ports: self.port_views(),
            uplinks: self.uplink_views(),
            peers: self.peer_views(),
            teams: self.team_views(),
            gateways: self.endpoints.seen().map(|(group, seen)| (group.clone(), *seen)).collect(),
            addresses: self.forwarder.switch.table().len(),
            turns: self.turns,
            sleeps: self.sleeps,
            capture_missed: self.devices.captures.missed,
            delayed: self.devices.delayed.len(),
            delayed_bytes: self.devices.delayed.bytes(),
            delayed_refused: self.devices.delayed.refused(),
            tunnels: self.tunnels.as_ref().map(Tunnels::stats),
        }
    }

    fn port_views(&self) -> Vec<PortView> {
        let switch = &self.forwarder.switch;
        let slots = self.devices.by_name.values();
        let ports = slots.filter_map(|slot| self.devices.ports.get(*slot)?.as_ref());
        let view = |port: &super::devices::LocalPort| {
            let config = switch.config().ports().get(&port.name)?;
            let group = switch.config().groups().get(config.group.0 as usize)?;
            let live = port.ix.and_then(|ix| switch.port(ix));
            let mut counters = port.past;
            if let Some(live) = live {
                counters.add(live.counters());
            }
            Some(PortView {
                name: port.name.clone(),
                group: group.name.clone(),
                mac: live.map_or(config.mac, |live| live.mac()),
                kind: port.device.kind(),
                link: port.link.clone(),
                pairs: port.device.pairs(),
                features: port.device.features(),
                counters,
                drops: port.drops,
            })
        };
        ports.filter_map(view).collect()
    }

    fn uplink_views(&self) -> Vec<UplinkView> {
        let switch = &self.forwarder.switch;
        let config = switch.config();
        let view = |(at, uplink): (usize, &vswitch_core::config::Uplink)| {
            let place = self.devices.uplink_named(&uplink.name);
            let local = place.and_then(|place| self.devices.uplinks[place].as_ref());
            UplinkView {
                name: uplink.name.clone(),
                switch: config.switches()[usize::from(uplink.switch.0)].name.clone(),
                interface: local.map(|local| local.device.interface().to_owned()),
                up: self.links.get(&uplink.name).copied().unwrap_or(false),
                counters: switch.uplink_counters(UplinkIx(at as u16)).copied().unwrap_or_default(),
                drops: local.map(|local| local.drops).unwrap_or_default(),
            }
        };
        config.uplinks().iter().enumerate().map(view).collect()
    }

    fn peer_views(&self) -> Vec<PeerView> {
        let view = |(host, peer): (&ferro_protocol::ids::HostId, &vswitch_core::table::PeerIx)| {
            let it = self.forwarder.switch.peer(*peer)?;
            Some(PeerView { host: *host, peer: *peer, alive: it.alive(), counters: *it.counters() })
        };
        self.peers.iter().filter_map(view).collect()
    }

    fn team_views(&self) -> Vec<TeamView> {
        let switch = &self.forwarder.switch;
        let config = switch.config();
        let name = |uplink: &UplinkIx| config.uplinks().get(usize::from(uplink.0)).map(|it| it.name.clone());
        let view = |(at, group): (usize, &vswitch_core::config::Group)| TeamView {
            group: group.name.clone(),
            used: switch.uplinks_used(GroupIx(at as u32)).iter().filter_map(name).collect(),
        };
        config.groups().iter().enumerate().map(view).collect()
    }

    /// At most so many addresses, and whether there are more.
    pub(super) fn macs(&self, limit: usize) -> (Vec<MacView>, bool) {
        let switch = &self.forwarder.switch;
        let table = switch.table();
        let frozen: std::collections::BTreeSet<Key> = table.frozen().collect();
        let place = |place: Place| match place {
            Place::Port(ix) => switch.port(ix).map(|port| PlaceView::Port(port.name().clone())),
            Place::Peer(ix) => switch.peer(ix).map(|peer| PlaceView::Host(peer.host())),
            Place::Uplink(ix) => {
                let uplink = switch.config().uplinks().get(usize::from(ix.0));
                uplink.map(|uplink| PlaceView::Uplink(uplink.name.clone()))
            }
        };
        let view = |(key, at, learned): (Key, Place, bool)| {
            Some(MacView {
                vni: Vni::new(key.domain.0).ok(),
                vlan: (key.vid != Key::ALL).then(|| Tci(key.vid).raw_vid()),
                mac: key.mac,
                place: place(at)?,
                learned,
                frozen: frozen.contains(&key),
            })
        };
        let mut all = table.iter().filter_map(view);
        let views = all.by_ref().take(limit).collect();
        (views, all.next().is_some())
    }
}

/// Adds up what was counted at different times.
pub(super) trait Sum {
    fn add(&mut self, other: &Self);
}

impl Sum for Counters {
    fn add(&mut self, other: &Self) {
        for (flow, more) in [(&mut self.from, other.from), (&mut self.to, other.to)] {
            flow.frames += more.frames;
            flow.bytes += more.bytes;
        }
        for (dropped, more) in self.dropped.iter_mut().zip(other.dropped) {
            *dropped += more;
        }
    }
}
