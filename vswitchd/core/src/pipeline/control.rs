//! What the control plane does to a switch: its configuration, what is plugged in, links, time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Announcement, Lanes, Mac, NetName, Sequence, Vni, Withdrawal};

use crate::bugs::Bug;
use crate::config::{Config, UplinkIx, Vlan};
use crate::frame::{Edit, Tci, Vid, arp, nd};
use crate::hash::Map;
use crate::table::{Key, Place, PortIx};
use crate::team::{BEACON_EVERY, REBALANCE_EVERY, Team, put_beacon};
use crate::time::Instant;

use super::domain::{self, Domains};
use super::lane;
use super::port::Guest;
use super::{Counters, Effect, Port, Switch};

/// The most frames that tell switches of what moved to another uplink, for one port group.
const NOTIFY_MAX: usize = 16_384;
/// The most VLANs of a trunk in which they are told; in the others the guest's own next frame tells them.
const NOTIFY_VLANS_MAX: usize = 256;
/// For how long what a domain without learning has learned is kept: none is.
const AGE_NONE: Duration = Duration::ZERO;

/// Why a port can't be attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AttachError {
    /// It is not in the configuration.
    #[error("the port is not in the configuration")]
    Unknown,
    /// It is attached.
    #[error("the port is attached already")]
    Attached,
}

impl Switch {
    /// Puts a configuration into force. Ports stay attached if it still has them.
    pub fn configure(&mut self, now: Instant, config: Config) {
        let gone: Vec<PortIx> = self
            .by_name
            .iter()
            .filter(|(name, _)| !config.ports().contains_key(*name))
            .map(|(_, ix)| *ix)
            .collect();
        for ix in gone {
            self.detach(now, ix);
            self.effect(Effect::Detached(ix));
        }
        let teams = self.teams_of(now, &config);
        self.config = config;
        self.teams = teams;
        // Places of uplinks may have changed.
        for at in 0..self.uplinks.len() {
            self.table.flush_learned(Place::Uplink(UplinkIx(at as u16)));
        }
        self.uplinks = vec![Counters::default(); self.config.uplinks().len()];
        self.endpoints = vec![Counters::default(); self.config.groups().len()];
        let built = domain::build(&self.config, self.settings.host, &mut self.names_of_switches);
        let kept: BTreeSet<_> = built.all.iter().map(|domain| domain.id).collect();
        self.table.purge(|id| kept.contains(&id));
        let Domains { all, by_vni, standard, bridged, of_group } = built;
        (self.domains, self.standard, self.bridged, self.of_group) = (all, standard, bridged, of_group);
        self.by_vni = Map::new(self.settings.hash);
        for (vni, place) in by_vni {
            self.by_vni.insert((u64::from(vni.get()), 0), place);
        }
        self.neighbours.clear();
        let attached: Vec<PortIx> = self.by_name.values().copied().collect();
        for ix in attached {
            self.refresh(now, ix);
        }
        self.mirrors();
        self.place_peers();
        self.repeat_peers(now);
        self.say_networks();
    }

    /// The teams of a configuration; those that did not change keep what they know.
    fn teams_of(&self, now: Instant, config: &Config) -> Vec<Team> {
        let same_uplinks = config.uplinks() == self.config.uplinks();
        let old: BTreeMap<&NetName, &Team> =
            self.config.groups().iter().map(|group| &group.name).zip(&self.teams).collect();
        let team = |group: &crate::config::Group| match old.get(&group.name) {
            Some(old) if same_uplinks && *old.config() == group.team => (*old).clone(),
            _ => {
                let up = |uplink: UplinkIx| {
                    let name = &config.uplinks()[usize::from(uplink.0)].name;
                    self.links.get(name).copied().unwrap_or(false)
                };
                Team::new(now, group.team.clone(), self.settings.hash, up)
            }
        };
        config.groups().iter().map(team).collect()
    }

    /// What peers announced, into networks that may be new here.
    fn repeat_peers(&mut self, now: Instant) {
        for at in 0..self.peers.len() {
            for ((vni, lanes, mac), (sequence, ips)) in self.peers[at].announced.clone() {
                let ix = crate::table::PeerIx(at as u16);
                self.peer_claim(now, ix, (vni, lanes, mac), sequence, Vec::new(), &ips);
            }
        }
    }

    /// Plugs in a port of the configuration.
    pub fn attach(&mut self, now: Instant, name: &NetName) -> Result<PortIx, AttachError> {
        if self.by_name.contains_key(name) {
            return Err(AttachError::Attached);
        }
        let config = self.config.ports().get(name).ok_or(AttachError::Unknown)?.clone();
        let slot = self.free.pop().unwrap_or(self.ports.len() as u32);
        let generation = self.ports.get(slot as usize).map_or(0, |old| old.ix.generation.wrapping_add(1));
        let ix = PortIx { slot, generation };
        let group = &self.config.groups()[config.group.0 as usize];
        let port = Port {
            ix,
            attached: true,
            name: name.clone(),
            guest: Guest::default(),
            mac_barred: false,
            domain: 0,
            vlan: group.vlan.clone(),
            config,
            learning: None,
            team: group.team.clone(),
            answer_neighbours: true,
            shaper_in: None,
            shaper_out: None,
            limits: [None; 3],
            copies_in: Vec::new(),
            copies_out: Vec::new(),
            mirror_only: false,
            claim: None,
            known: None,
            load: 0,
            counters: Counters::default(),
        };
        match self.ports.get_mut(slot as usize) {
            Some(old) => *old = port,
            None => self.ports.push(port),
        }
        self.by_name.insert(name.clone(), ix);
        self.refresh(now, ix);
        self.mirrors();
        self.say_networks();
        Ok(ix)
    }

    /// Unplugs a port. Its addresses are forgotten at once, here and, when they hear of it, at all peers.
    pub fn detach(&mut self, now: Instant, ix: PortIx) {
        let Some(port) = self.port(ix) else { return };
        let name = port.name.clone();
        self.unclaim(now, ix);
        self.table.flush_learned(Place::Port(ix));
        // What it sent from others' addresses may come from elsewhere now.
        self.echoes.fill((0, Instant(0)));
        self.by_name.remove(&name);
        self.ports[ix.slot as usize].attached = false;
        for domain in &mut self.domains {
            domain.ports.retain(|slot| *slot != ix.slot);
            domain.watchers.retain(|slot| *slot != ix.slot);
        }
        self.free.push(ix.slot);
        self.mirrors();
        self.say_networks();
    }

    /// What the guest behind a port wishes: another address, to see everything. Its policy decides.
    pub fn set_guest(&mut self, now: Instant, ix: PortIx, mac: Option<Mac>, promiscuous: bool) {
        if self.port(ix).is_none() {
            return;
        }
        self.ports[ix.slot as usize].guest = Guest { mac, promiscuous };
        self.refresh(now, ix);
    }

    /// Makes a port what the configuration says.
    fn refresh(&mut self, now: Instant, ix: PortIx) {
        let slot = ix.slot as usize;
        let port = &mut self.ports[slot];
        let Some(config) = self.config.ports().get(&port.name) else { return };
        let group = &self.config.groups()[config.group.0 as usize];
        let place = self.of_group[config.group.0 as usize];
        let vlan_changed = port.vlan != group.vlan;
        port.config = config.clone();
        if !self.settings.bugs.has(Bug::StaleVlan) {
            port.vlan = group.vlan.clone();
        }
        let learning_changed = port.learning != group.learning;
        let team_changed = port.team != group.team;
        if team_changed {
            port.team = group.team.clone();
        }
        port.learning = group.learning;
        port.answer_neighbours = group.answer_neighbours;
        port.domain = place;
        // A guest does not get its gateway's address.
        let wanted = port.guest.mac;
        port.mac_barred = self.domains[place].gateways.iter().any(|gateway| wanted == Some(gateway.mac));
        port.set_rates(self.settings.bugs);
        let domain = &self.domains[place];
        let (key, vni) = (claim_key(domain.id, &port.vlan, port.mac()), domain.vni);
        if vlan_changed || learning_changed || port.claim.is_some_and(|(old, _)| old.domain != key.domain) {
            self.table.flush_learned(Place::Port(ix));
        }
        let changed = self.ports[slot].claim.map(|(old, _)| old) != Some(key);
        if changed {
            self.unclaim(now, ix);
            let clock = self.settings.sequence.0.saturating_add(now.0 / 1000);
            self.sequence = Sequence(self.sequence.0.saturating_add(1).max(clock));
            self.ports[slot].claim = Some((key, self.sequence));
            let moved = self.table.claim(now, key, Place::Port(ix), self.settings.host, self.sequence);
            self.report(vni, key, moved);
            if let Some(announcement) = announcement(&self.ports[slot]) {
                self.effect(Effect::Announce(announcement));
            }
        } else {
            // Already forgotten when everything is built anew; else nothing changes.
            let ips = self.ports[slot].known.take().unwrap_or_default();
            self.forget_neighbours(key, &ips);
        }
        let ips = self.ports[slot].config.addresses.clone();
        self.know_neighbours(key, &ips);
        self.ports[slot].known = Some(ips);
        if changed || vlan_changed || team_changed {
            self.tell_port(ix, key);
        }
        let watches = self.ports[slot].watches();
        for (at, domain) in self.domains.iter_mut().enumerate() {
            domain.ports.retain(|other| *other != ix.slot);
            domain.watchers.retain(|other| *other != ix.slot);
            if at == place {
                domain.ports.push(ix.slot);
                if watches {
                    domain.watchers.push(ix.slot);
                }
            }
        }
    }

    /// Takes back what a port claims.
    fn unclaim(&mut self, now: Instant, ix: PortIx) {
        let port = &mut self.ports[ix.slot as usize];
        let Some((key, sequence)) = port.claim.take() else { return };
        let ips = port.known.take().unwrap_or_default();
        self.forget_neighbours(key, &ips);
        let moved = self.table.unclaim(now, key, Place::Port(ix), sequence);
        let vni = virtual_network(key);
        self.report(vni, key, moved);
        if let Some(vni) = vni {
            self.effect(Effect::Withdraw(Withdrawal { vni, lanes: lanes(key), mac: key.mac, sequence }));
        }
    }

    /// Who gets copies of whom.
    fn mirrors(&mut self) {
        for port in &mut self.ports {
            port.copies_in.clear();
            port.copies_out.clear();
            port.mirror_only = false;
        }
        for mirror in self.config.mirrors() {
            let Some(to) = self.by_name.get(&mirror.to) else { continue };
            self.ports[to.slot as usize].mirror_only = true;
            for name in &mirror.ports {
                let Some(from) = self.by_name.get(name) else { continue };
                let port = &mut self.ports[from.slot as usize];
                if mirror.ingress {
                    port.copies_in.push(to.slot);
                }
                if mirror.egress {
                    port.copies_out.push(to.slot);
                }
            }
        }
    }

    /// Tells peers in which networks this host is, if that changed.
    fn say_networks(&mut self) {
        let here = |domain: &&super::Domain| !domain.ports.is_empty() || domain.bridge.is_some();
        let mut networks: Vec<Vni> =
            self.domains.iter().filter(here).filter_map(|domain| domain.vni).collect();
        networks.sort_unstable();
        if networks != self.networks {
            self.networks.clone_from(&networks);
            self.effect(Effect::Networks(networks));
        }
    }

    /// An uplink's link came up or went down. It is down until it is said to be up.
    pub fn handle_link(&mut self, now: Instant, uplink: &NetName, up: bool) {
        self.links.insert(uplink.clone(), up);
        let Some(ix) = self.config.uplink(uplink) else { return };
        self.change_teams(|team| team.handle_link(now, ix, up));
        if !up {
            self.table.flush_learned(Place::Uplink(ix));
        }
    }

    /// A beacon of this host's arrived.
    pub(super) fn handle_beacon(&mut self, now: Instant, host: HostId, from: UplinkIx, at: UplinkIx) {
        if host == self.settings.host {
            self.change_teams(|team| team.handle_beacon(now, from, at));
        }
    }

    /// Time has passed: to be called every 100 ms.
    pub fn handle_time(&mut self, now: Instant) {
        let ages: BTreeMap<_, _> = self
            .domains
            .iter()
            .map(|d| (d.id, d.learning.map_or(AGE_NONE, |learning| learning.age)))
            .collect();
        self.table.expire(now, |id| ages.get(&id).copied().unwrap_or(AGE_NONE));
        self.change_teams(|team| team.handle_time(now));
        if now >= self.beacon_at {
            self.beacon_at = now + BEACON_EVERY;
            let uplinks: BTreeSet<UplinkIx> = self.teams.iter().flat_map(Team::beacons).collect();
            for uplink in uplinks {
                let mut bytes = Vec::new();
                put_beacon(self.settings.host, uplink, &mut bytes);
                self.effect(Effect::Send { uplink, bytes });
            }
        }
        if now >= self.rebalance_at {
            self.rebalance_at = now + REBALANCE_EVERY;
            self.rebalance();
        }
    }

    fn rebalance(&mut self) {
        for group in 0..self.teams.len() {
            let ports = self.ports.iter().filter(|p| p.attached && p.config.group.0 as usize == group);
            let loads: Vec<(u32, u64)> = ports.map(|port| (port.ix.slot, port.load)).collect();
            let before = self.teams[group].clone();
            if self.teams[group].rebalance(&loads).is_some() {
                self.notify(group, &before);
            }
        }
        self.ports.iter_mut().for_each(|port| port.load = 0);
    }

    fn change_teams(&mut self, change: impl Fn(&mut Team) -> bool) {
        for group in 0..self.teams.len() {
            let before = self.teams[group].clone();
            if change(&mut self.teams[group]) {
                self.notify(group, &before);
            }
        }
    }

    /// Tells the physical switches where addresses are now that take another uplink than before.
    fn notify(&mut self, group: usize, before: &Team) {
        let team = &self.teams[group];
        if !team.config().notify {
            return;
        }
        let mut told = Vec::new();
        for (key, place, _) in self.table.iter() {
            let (vids, port) = match place {
                Place::Port(ix) => {
                    let Some(port) = self.port(ix).filter(|port| port.config.group.0 as usize == group)
                    else {
                        continue;
                    };
                    if !self.domains[port.domain].is_physical() {
                        continue;
                    }
                    (wire_vids(port, key), ix.slot)
                }
                Place::Peer(_) => {
                    let bridged = |d: &&super::Domain| {
                        d.id == key.domain && d.bridge.is_some_and(|g| g.0 as usize == group)
                    };
                    let Some(domain) = self.domains.iter().find(bridged) else { continue };
                    (vec![Vid::from(lane::vlan_of(key.vid))], domain.team_port())
                }
                Place::Uplink(_) => continue,
            };
            let team_key = crate::team::TeamKey { port, mac: key.mac, pair: 0 };
            let Some(uplink) = team.pick(&team_key) else { continue };
            if before.pick(&team_key) != Some(uplink) {
                told.extend(vids.into_iter().map(|vid| (uplink, vid, key)));
            }
        }
        // The table's order depends on the key of its hashes; what goes out should not.
        told.sort_unstable_by_key(|(uplink, vid, key)| (*uplink, *vid, *key));
        for (uplink, vid, key) in told.into_iter().take(NOTIFY_MAX) {
            self.tell(uplink, vid, key);
        }
    }

    /// Tells them where a port is that is new, or in another VLAN.
    fn tell_port(&mut self, ix: PortIx, key: Key) {
        let port = &self.ports[ix.slot as usize];
        let team = &self.teams[port.config.group.0 as usize];
        if !team.config().notify || !self.domains[port.domain].is_physical() {
            return;
        }
        let team_key = crate::team::TeamKey { port: ix.slot, mac: key.mac, pair: 0 };
        let Some(uplink) = team.pick(&team_key) else { return };
        for vid in wire_vids(port, key) {
            self.tell(uplink, vid, key);
        }
    }

    /// Tells them where an address of another host is: behind this one, which is the bridge.
    pub(super) fn tell_bridged(&mut self, domain: usize, key: Key) {
        let domain = &self.domains[domain];
        let Some(team) = domain.bridge.map(|group| &self.teams[group.0 as usize]) else { return };
        let team_key = crate::team::TeamKey { port: domain.team_port(), mac: key.mac, pair: 0 };
        if let (true, Some(uplink)) = (team.config().notify, team.pick(&team_key)) {
            self.tell(uplink, Vid::from(lane::vlan_of(key.vid)), key);
        }
    }

    /// Somebody has looked at an address that was frozen: it may move again.
    pub fn release(&mut self, now: Instant, vni: Option<Vni>, mac: Mac) {
        let keys: Vec<Key> = self.table.frozen().filter(|key| key.mac == mac).collect();
        for key in keys.into_iter().filter(|key| virtual_network(*key) == vni) {
            self.table.release(now, key);
        }
    }

    fn tell(&mut self, uplink: UplinkIx, vid: Vid, key: Key) {
        let mut frames = vec![Vec::new()];
        arp::put_rarp(key.mac, &mut frames[0]);
        let ips = self
            .neighbours
            .keys()
            .filter(|(domain, _, v, mac)| (*domain, *v, *mac) == (key.domain, key.vid, key.mac));
        for (_, ip, ..) in ips {
            let mut bytes = Vec::new();
            match ip {
                std::net::IpAddr::V4(ip) => arp::put_announcement(key.mac, *ip, &mut bytes),
                std::net::IpAddr::V6(ip) => nd::put_announcement(key.mac, *ip, &mut bytes),
            }
            frames.push(bytes);
        }
        let insert = (vid != Vid::NONE).then(|| Tci::default().with(vid));
        for frame in frames {
            let mut bytes = Vec::with_capacity(frame.len() + 4);
            Edit { strip: false, insert }.apply(&frame, &mut bytes);
            self.effect(Effect::Send { uplink, bytes });
        }
    }
}

/// What a port says of itself to other hosts.
pub(super) fn announcement(port: &Port) -> Option<Announcement> {
    let (key, sequence) = port.claim?;
    let vni = virtual_network(key)?;
    let ips = port.config.addresses.clone();
    Some(Announcement { vni, lanes: lanes(key), mac: key.mac, ips, port: port.name.clone(), sequence })
}

/// The VLANs in which a port's address is told on the wire.
fn wire_vids(port: &Port, key: Key) -> Vec<Vid> {
    match &port.vlan {
        Vlan::Private { sends, .. } => vec![Vid::from(*sends)],
        Vlan::Trunk { carries, .. } if key.vid == Key::ALL => {
            carries.iter().filter_map(|vid| Tci(vid).vid().ok()).take(NOTIFY_VLANS_MAX).collect()
        }
        Vlan::Guest if key.vid == Key::ALL => vec![Vid::NONE],
        _ => vec![Vid::from(lane::vlan_of(key.vid))],
    }
}

fn claim_key(domain: crate::table::DomainId, vlan: &Vlan, mac: Mac) -> Key {
    let vid = match vlan {
        Vlan::Access(vlan) => Vid::from(*vlan).get(),
        Vlan::Private { primary, .. } => primary.get(),
        Vlan::Trunk { .. } | Vlan::Guest => Key::ALL,
    };
    Key { domain, vid, mac }
}

fn lanes(key: Key) -> Lanes {
    if key.vid == Key::ALL { Lanes::All } else { Lanes::One(lane::vlan_of(key.vid)) }
}

fn virtual_network(key: Key) -> Option<Vni> {
    Vni::new(key.domain.0).ok()
}
