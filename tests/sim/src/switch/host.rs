//! One host: its switch, and the two ends of its tunnels.

use std::collections::BTreeMap;

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Announcement, NetName, Sequence, Vni, Withdrawal};
use vswitch_core::bugs::Bugs;
use vswitch_core::config::{Config, UplinkIx};
use vswitch_core::hash::HashKey;
use vswitch_core::pipeline::{Settings, Switch};
use vswitch_core::table::{PeerIx, PortIx};
use vswitch_core::time::Instant;
use vswitch_core::tunnel::{Packer, Unpacker};

/// What one host tells another.
#[derive(Clone, Debug)]
pub(super) enum Message {
    Announce(Announcement),
    Withdraw(Withdrawal),
    Networks(Vec<Vni>),
}

#[derive(Debug)]
pub(super) struct Host {
    pub(super) switch: Switch,
    /// Attached ports.
    pub(super) ports: BTreeMap<String, PortIx>,
    /// Other hosts' places in the switch, by their number; its own is none.
    peers: Vec<Option<PeerIx>>,
    pub(super) packers: Vec<Packer>,
    pub(super) unpackers: Vec<Unpacker>,
}

impl Host {
    pub(super) fn new(me: usize, hosts: &[HostId], hash: HashKey, bugs: Bugs, datagram_max: usize) -> Self {
        let settings = Settings { host: hosts[me], hash, sequence: Sequence(0), bugs };
        let mut switch = Switch::new(settings);
        let peers = hosts.iter().enumerate().map(|(n, id)| if n == me { None } else { switch.peer_add(*id) });
        let peers: Vec<_> = peers.collect();
        for peer in peers.iter().flatten() {
            switch.peer_alive(*peer, true);
        }
        let packers = hosts.iter().map(|_| Packer::new(datagram_max)).collect();
        let unpackers = hosts.iter().map(|_| Unpacker::new(bugs)).collect();
        Self { switch, ports: BTreeMap::new(), peers, packers, unpackers }
    }

    pub(super) fn peer(&self, host: usize) -> Option<PeerIx> {
        self.peers[host]
    }

    /// The number of the host at this place.
    pub(super) fn host_of(&self, peer: PeerIx) -> Option<usize> {
        self.peers.iter().position(|it| *it == Some(peer))
    }

    pub(super) fn port_name(&self, ix: PortIx) -> Option<&str> {
        self.ports.iter().find(|(_, it)| **it == ix).map(|(name, _)| name.as_str())
    }

    pub(super) fn hear(&mut self, now: Instant, from: usize, message: &Message) {
        let Some(peer) = self.peers[from] else { return };
        match message {
            Message::Announce(it) => self.switch.peer_announce(now, peer, it),
            Message::Withdraw(it) => self.switch.peer_withdraw(now, peer, it),
            Message::Networks(it) => self.switch.peer_networks(peer, it),
        }
    }

    /// The number of an uplink: `eth2` is 2.
    pub(super) fn uplink_number(config: &Config, uplink: UplinkIx) -> Option<usize> {
        config.uplinks().get(usize::from(uplink.0))?.name.as_str().strip_prefix("eth")?.parse().ok()
    }

    pub(super) fn uplink_ix(&self, number: usize) -> Option<UplinkIx> {
        let name: NetName = super::topology::uplink(number).parse().ok()?;
        self.switch.config().uplink(&name)
    }
}
