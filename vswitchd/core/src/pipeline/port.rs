//! A port that is attached.

use std::net::IpAddr;

use ferro_protocol::net::{Mac, NetName, Sequence};

use crate::bugs::Bugs;
use crate::config::{self, GroupIx, Learning, Policy, Vlan};
use crate::shaping::{Limit, Shaper};
use crate::table::{Key, PortIx};
use crate::time::Instant;

use super::count::Counters;

/// What is set up behind a port: a guest's wishes. The policy decides whether they are heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Guest {
    /// It took another address.
    pub(super) mac: Option<Mac>,
    /// It wants to see everything.
    pub(super) promiscuous: bool,
}

/// A port, in force.
#[derive(Clone, Debug)]
pub struct Port {
    pub(super) ix: PortIx,
    pub(super) attached: bool,
    pub(super) name: NetName,
    pub(super) config: config::Port,
    pub(super) guest: Guest,
    /// The address that the guest took is its gateway's: it is not heard.
    pub(super) mac_barred: bool,
    /// The place of its network.
    pub(super) domain: usize,
    pub(super) vlan: Vlan,
    pub(super) learning: Option<Learning>,
    /// How its group uses uplinks: when that changes, switches are told where it is now.
    pub(super) team: config::Team,
    pub(super) answer_neighbours: bool,
    pub(super) shaper_in: Option<Shaper>,
    pub(super) shaper_out: Option<Shaper>,
    pub(super) limits: [Option<Limit>; 3],
    /// Ports that get a copy of what it sends, and of what it gets.
    pub(super) copies_in: Vec<u32>,
    pub(super) copies_out: Vec<u32>,
    /// It only gets the copies of a mirror.
    pub(super) mirror_only: bool,
    /// What it claims in the table.
    pub(super) claim: Option<(Key, Sequence)>,
    /// The IP addresses that are known to be behind it.
    pub(super) known: Option<Vec<IpAddr>>,
    /// Bytes since the last look at the load of uplinks.
    pub(super) load: u64,
    pub(super) counters: Counters,
}

impl Port {
    /// Its place.
    pub fn ix(&self) -> PortIx {
        self.ix
    }

    /// Whether it is attached.
    pub fn attached(&self) -> bool {
        self.attached
    }

    /// Its name.
    pub fn name(&self) -> &NetName {
        &self.name
    }

    /// Its group.
    pub fn group(&self) -> GroupIx {
        self.config.group
    }

    /// What holds there.
    pub fn policy(&self) -> &Policy {
        &self.config.policy
    }

    /// What passed and what did not.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The address that it may send from and is reached at.
    pub fn mac(&self) -> Mac {
        let may = self.config.policy.security.mac_change && !self.mac_barred;
        let changed = self.guest.mac.filter(|mac| may && mac.is_station());
        changed.unwrap_or(self.config.mac)
    }

    /// Whether it sees frames that are not for it.
    pub(super) fn watches(&self) -> bool {
        self.guest.promiscuous && self.config.policy.security.promiscuous
    }

    /// Makes the rates those of the policy; those that did not change keep what they have counted.
    pub(super) fn set_rates(&mut self, bugs: Bugs) {
        let policy = self.config.policy;
        for (shaper, rate) in [(&mut self.shaper_in, policy.ingress), (&mut self.shaper_out, policy.egress)] {
            if shaper.map(|old| old.rate()) != rate {
                *shaper = rate.map(|rate| Shaper::new(rate, bugs));
            }
        }
        let storm = [policy.storm.broadcast, policy.storm.multicast, policy.storm.unknown];
        for (limit, wanted) in self.limits.iter_mut().zip(storm) {
            if limit.map(|old| old.per_second()) != wanted {
                *limit = wanted.map(Limit::new);
            }
        }
    }

    /// When a frame for this port may leave.
    pub(super) fn shape_out(&mut self, now: Instant, bytes: usize, live: bool) -> Option<Instant> {
        match &mut self.shaper_out {
            None => Some(now),
            Some(shaper) if live => shaper.admit(now, bytes as u64),
            Some(shaper) => shaper.when(now),
        }
    }
}
