//! What other hosts say: which networks they are in, where addresses are, whether their tunnel works.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Announcement, Lanes, Sequence, Vni, Withdrawal};

use crate::frame::Vid;
use crate::table::{Key, Moved, PeerIx, Place};
use crate::time::Instant;

use super::count::Counters;
use super::{Effect, Switch};

/// The most virtual networks of one peer.
const NETWORKS_MAX: usize = 65_536;

/// Another host.
#[derive(Clone, Debug)]
pub struct Peer {
    pub(super) host: HostId,
    pub(super) alive: bool,
    pub(super) networks: BTreeSet<Vni>,
    /// What it announced: also of networks that are not here yet.
    pub(super) announced: BTreeMap<(Vni, Lanes, ferro_protocol::net::Mac), (Sequence, Vec<IpAddr>)>,
    pub(super) counters: Counters,
}

impl Peer {
    /// Which host it is.
    pub fn host(&self) -> HostId {
        self.host
    }

    /// Whether its tunnel works.
    pub fn alive(&self) -> bool {
        self.alive
    }

    /// What passed and what did not.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

pub(super) fn key(domain: crate::table::DomainId, lanes: Lanes, mac: ferro_protocol::net::Mac) -> Key {
    let vid = match lanes {
        Lanes::One(vlan) => Vid::from(vlan).get(),
        Lanes::All => Key::ALL,
    };
    Key { domain, vid, mac }
}

impl Switch {
    /// The place of another host; it is down until [`Switch::peer_alive`] says otherwise. `None` if there are too many.
    pub fn peer_add(&mut self, host: HostId) -> Option<PeerIx> {
        if let Some(ix) = self.by_host.get(&host) {
            return Some(*ix);
        }
        let ix = PeerIx(u16::try_from(self.peers.len()).ok()?);
        let peer = Peer {
            host,
            alive: false,
            networks: BTreeSet::new(),
            announced: BTreeMap::new(),
            counters: Counters::default(),
        };
        self.peers.push(peer);
        self.by_host.insert(host, ix);
        Some(ix)
    }

    /// Its tunnel works, or no longer does. What it announced stays: it says where addresses are, not whether they can be
    /// reached.
    pub fn peer_alive(&mut self, ix: PeerIx, alive: bool) {
        if let Some(peer) = self.peers.get_mut(usize::from(ix.0)) {
            peer.alive = alive;
        }
    }

    /// It is in these networks and no others.
    pub fn peer_networks(&mut self, ix: PeerIx, networks: &[Vni]) {
        if let Some(peer) = self.peers.get_mut(usize::from(ix.0)) {
            let new: BTreeSet<Vni> = networks.iter().copied().take(NETWORKS_MAX).collect();
            let left = !peer.networks.is_subset(&new);
            peer.networks = new;
            if left {
                self.table.flush_learned(Place::Peer(ix));
            }
            self.place_peers();
        }
    }

    /// Who is in which network.
    pub(super) fn place_peers(&mut self) {
        for domain in &mut self.domains {
            let Some(vni) = domain.vni else { continue };
            let there = self.peers.iter().enumerate().filter(|(_, peer)| peer.networks.contains(&vni));
            domain.peers = there.map(|(at, _)| PeerIx(at as u16)).collect();
        }
    }

    /// It has an address.
    pub fn peer_announce(&mut self, now: Instant, ix: PeerIx, announcement: &Announcement) {
        let Announcement { vni, lanes, mac, ips, sequence, .. } = announcement;
        if !mac.is_station() || ips.len() > Announcement::IPS_MAX {
            return;
        }
        self.sequence = self.sequence.max(*sequence);
        let Some(peer) = self.peers.get_mut(usize::from(ix.0)) else { return };
        let name = (*vni, *lanes, *mac);
        let old = peer.announced.get(&name);
        if old.is_some_and(|(old, _)| old > sequence)
            || (old.is_none() && peer.announced.len() >= crate::table::CLAIMS_MAX)
        {
            return;
        }
        let old = peer.announced.insert(name, (*sequence, ips.clone()));
        self.peer_claim(now, ix, name, *sequence, old.map_or(Vec::new(), |(_, ips)| ips), ips);
    }

    /// Puts an announcement into the table, if its network is here.
    pub(super) fn peer_claim(
        &mut self,
        now: Instant,
        ix: PeerIx,
        (vni, lanes, mac): (Vni, Lanes, ferro_protocol::net::Mac),
        sequence: Sequence,
        old_ips: Vec<IpAddr>,
        ips: &[IpAddr],
    ) {
        let Some(at) = self.by_vni.get((u64::from(vni.get()), 0)).copied() else { return };
        // Every host has its own.
        if self.domains[at].gateways.iter().any(|gateway| gateway.mac == mac) {
            return;
        }
        let host = self.peers[usize::from(ix.0)].host;
        let key = key(self.domains[at].id, lanes, mac);
        self.domains[at].has_trunks |= lanes == Lanes::All;
        self.forget_neighbours(key, &old_ips);
        self.know_neighbours(key, ips);
        let moved = self.table.claim(now, key, Place::Peer(ix), host, sequence);
        self.report(Some(vni), key, moved);
        if moved == Moved::Yes && self.table.look(key) == Some(Place::Peer(ix)) {
            self.tell_bridged(at, key);
        }
    }

    /// It no longer has an address.
    pub fn peer_withdraw(&mut self, now: Instant, ix: PeerIx, withdrawal: &Withdrawal) {
        let Withdrawal { vni, lanes, mac, sequence } = *withdrawal;
        self.sequence = self.sequence.max(sequence);
        let Some(peer) = self.peers.get_mut(usize::from(ix.0)) else { return };
        let name = (vni, lanes, mac);
        if peer.announced.get(&name).is_none_or(|(announced, _)| *announced > sequence) {
            return;
        }
        let ips = peer.announced.remove(&name).map_or(Vec::new(), |(_, ips)| ips);
        let Some(at) = self.by_vni.get((u64::from(vni.get()), 0)).copied() else { return };
        let key = key(self.domains[at].id, lanes, mac);
        self.forget_neighbours(key, &ips);
        let moved = self.table.unclaim(now, key, Place::Peer(ix), sequence);
        self.report(Some(vni), key, moved);
    }

    /// Its control connection is new: this is all that it has to say. What it does not repeat is withdrawn.
    pub fn peer_snapshot(&mut self, now: Instant, ix: PeerIx, networks: &[Vni], all: &[Announcement]) {
        self.peer_networks(ix, networks);
        let Some(peer) = self.peers.get(usize::from(ix.0)) else { return };
        let said: BTreeSet<_> = all.iter().map(|a| (a.vni, a.lanes, a.mac)).collect();
        let gone: Vec<Withdrawal> = peer
            .announced
            .iter()
            .filter(|(name, _)| !said.contains(*name))
            .map(|((vni, lanes, mac), (sequence, _))| Withdrawal {
                vni: *vni,
                lanes: *lanes,
                mac: *mac,
                sequence: *sequence,
            })
            .collect();
        gone.iter().for_each(|it| self.peer_withdraw(now, ix, it));
        all.iter().for_each(|it| self.peer_announce(now, ix, it));
    }

    /// The host has left the cluster: all that it said is forgotten.
    pub fn peer_remove(&mut self, now: Instant, ix: PeerIx) {
        self.peer_snapshot(now, ix, &[], &[]);
        self.table.flush_learned(Place::Peer(ix));
        self.peer_alive(ix, false);
    }

    /// What this host has to say on a new control connection.
    pub fn snapshot(&self) -> (Vec<Vni>, Vec<Announcement>) {
        let ports = self.ports.iter().filter(|port| port.attached);
        (self.networks.clone(), ports.filter_map(super::control::announcement).collect())
    }

    /// An address moved: says so, if it is frozen now.
    pub(super) fn report(&mut self, vni: Option<Vni>, key: Key, moved: Moved) {
        if moved == Moved::Froze {
            self.effect(Effect::Frozen { vni, mac: key.mac });
        }
    }
}
