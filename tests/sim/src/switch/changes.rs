//! What happens to the world: moves, cuts, changes of the configuration.

use std::time::Duration;

use ferro_protocol::net::{Mac, NetName};
use vswitch_core::config::spec::{OverrideSpec, SecuritySpec, VlanSpec};
use vswitch_core::config::{Change, Detection, transact};

use super::topology::vlan;
use super::world::World;

impl World {
    pub(super) fn change(&mut self) -> Result<(), String> {
        match self.dice.below(12) {
            0..=3 => self.change_place(),
            4 | 5 => self.change_link(),
            6 | 7 => self.change_tunnel(),
            8 | 9 => self.change_config(),
            10 => self.change_guest(),
            _ => {
                let seconds = self.dice.between(1, 90);
                self.pass(Duration::from_secs(u64::from(seconds)))
            }
        }
    }

    pub(super) fn some_port(&mut self) -> Option<String> {
        let names: Vec<String> = self.spec.ports.iter().map(|port| port.name.clone()).collect();
        self.dice.pick(&names).cloned()
    }

    /// A port is plugged in, unplugged, or moves.
    pub(super) fn change_place(&mut self) -> Result<(), String> {
        let Some(name) = self.some_port() else { return Ok(()) };
        if let Some(old) = self.left.get(&name).copied() {
            return self.detach(&name, old);
        }
        let to = self.dice.below(self.hosts.len());
        let Some(at) = self.places.get(&name).copied() else { return self.attach(&name, to) };
        let group = self.spec.ports.iter().find(|port| port.name == name).map(|port| port.group.clone());
        let distributed = self.spec.groups.iter().any(|g| Some(&g.name) == group.as_ref() && g.vni.is_some());
        if to == at {
            return self.detach(&name, at);
        }
        // A machine that moves while it runs is at both hosts for a moment; in a standard group it must not be.
        if !distributed || self.dice.permille(500) {
            self.detach(&name, at)?;
        }
        self.attach(&name, to)
    }

    pub(super) fn change_link(&mut self) -> Result<(), String> {
        let host = self.dice.below(self.hosts.len());
        if self.links[host].is_empty() {
            return Ok(());
        }
        let number = self.dice.below(self.links[host].len());
        let beacons =
            self.spec.switches[0].team.as_ref().is_some_and(|team| team.detection == Detection::Beacon);
        if let Some((host, number)) = self.isolated.take() {
            self.log(|| format!("host {host}: uplink {number} leads somewhere again"));
        } else if beacons && self.links[host].iter().all(|up| *up) && self.dice.permille(500) {
            self.isolated = Some((host, number));
            self.log(|| format!("host {host}: uplink {number} leads nowhere"));
        } else {
            let up = !self.links[host][number];
            self.links[host][number] = up;
            let name = super::topology::uplink(number).parse::<NetName>().map_err(|e| e.to_string())?;
            self.hosts[host].switch.handle_link(self.now, &name, up);
            self.log(|| format!("host {host}: uplink {number} up: {up}"));
        }
        self.effects()?;
        if beacons { self.pass(Duration::from_secs(2)) } else { Ok(()) }
    }

    pub(super) fn change_tunnel(&mut self) -> Result<(), String> {
        let (a, b) = (self.dice.below(self.hosts.len()), self.dice.below(self.hosts.len()));
        if a == b {
            return Ok(());
        }
        // What was said before reaches those who can be reached.
        self.settle()?;
        let works = !self.tunnels[a][b];
        self.log(|| format!("tunnel {a}-{b} works: {works}"));
        for (me, other) in [(a, b), (b, a)] {
            self.tunnels[me][other] = works;
            let Some(peer) = self.hosts[me].peer(other) else { continue };
            self.hosts[me].switch.peer_alive(peer, works);
            if works {
                let (networks, all) = self.hosts[other].switch.snapshot();
                self.hosts[me].switch.peer_snapshot(self.now, peer, &networks, &all);
            }
        }
        self.effects()
    }

    pub(super) fn change_config(&mut self) -> Result<(), String> {
        let change = if self.dice.permille(500) {
            let at = self.dice.below(self.spec.groups.len());
            let mut group = self.spec.groups[at].clone();
            match self.dice.below(3) {
                0 => group.blocked = !group.blocked,
                1 => group.security.promiscuous = !group.security.promiscuous,
                _ => group.vlan = vlan(&mut self.dice),
            }
            Change::SetGroup(group)
        } else {
            let Some(name) = self.some_port() else { return Ok(()) };
            let Some(mut port) = self.spec.ports.iter().find(|port| port.name == name).cloned() else {
                return Ok(());
            };
            let groups: Vec<String> = self.spec.groups.iter().map(|group| group.name.clone()).collect();
            match self.dice.below(3) {
                0 => port.overrides = None,
                1 => {
                    let router_guard = self.dice.permille(300).then_some(false);
                    let security = Some(SecuritySpec { router_guard, ..SecuritySpec::default() });
                    let blocked = self.dice.permille(500).then_some(true);
                    port.overrides = Some(OverrideSpec { security, blocked, ..OverrideSpec::default() });
                }
                _ => port.group = self.dice.pick(&groups).cloned().unwrap_or_default(),
            }
            Change::SetPort(port)
        };
        // Where a port is at two hosts, or the physical switch would have to know what nobody tells it, there is none.
        let guest = matches!(&change, Change::SetGroup(group) if group.vlan == VlanSpec::Guest);
        if !self.left.is_empty() || (guest && self.topology.physical_learns) {
            return Ok(());
        }
        let Ok((spec, _)) = transact(&self.spec, std::slice::from_ref(&change)) else { return Ok(()) };
        self.log(|| format!("{change:?}"));
        self.spec = spec;
        self.rates.clear();
        self.configure();
        self.effects()
    }

    pub(super) fn change_guest(&mut self) -> Result<(), String> {
        let Some(name) = self.some_port() else { return Ok(()) };
        let Some(host) = self.places.get(&name).copied() else { return Ok(()) };
        let mac = self.dice.permille(400).then(|| Mac([0x52, 9, 0, 0, 0, self.dice.between(1, 255) as u8]));
        let mac = mac.filter(|mac| !self.taken.values().any(|other| other == mac));
        let curious = self.dice.permille(500);
        let Some(ix) = self.hosts[host].ports.get(&name).copied() else { return Ok(()) };
        self.hosts[host].switch.set_guest(self.now, ix, mac, curious);
        self.taken.remove(&name);
        self.taken.extend(mac.map(|mac| (name.clone(), mac)));
        self.curious.remove(&name);
        if curious {
            self.curious.insert(name.clone());
        }
        self.log(|| format!("{name}: the guest takes {mac:?}, sees everything: {curious}"));
        self.effects()
    }
}
