//! ARP and ND are answered by the switch from what is known, instead of being asked of everybody on all hosts.
//!
//! Only when the answer is certain: one address is known for it in the network, its port is known, and the one who asks may
//! reach it. Questions about whether an address is free, and announcements, always go to everybody.

use std::net::IpAddr;

use ferro_protocol::net::Mac;

use crate::frame::arp::Arp;
use crate::frame::nd::Solicitation;
use crate::frame::{Edit, Ether, Tci, ether_type};
use crate::table::{DomainId, Key, Place};

use super::lane::{self, Sender};
use super::{Domain, Egress, Frame, Lane, Made, Output, Switch};

/// An address that is known: its network, itself, the VLAN, and the MAC address.
pub(super) type Neighbour = (DomainId, IpAddr, u16, Mac);

enum Question {
    Arp(Arp),
    Nd(Solicitation),
}

impl Switch {
    pub(super) fn know_neighbours(&mut self, key: Key, ips: &[IpAddr]) {
        for ip in ips {
            *self.neighbours.entry((key.domain, *ip, key.vid, key.mac)).or_insert(0) += 1;
        }
    }

    pub(super) fn forget_neighbours(&mut self, key: Key, ips: &[IpAddr]) {
        for ip in ips {
            let neighbour = (key.domain, *ip, key.vid, key.mac);
            let Some(count) = self.neighbours.get_mut(&neighbour) else { continue };
            *count -= 1;
            if *count == 0 {
                self.neighbours.remove(&neighbour);
            }
        }
    }

    /// Who has the address, if exactly one has.
    fn neighbour(&self, domain: &Domain, lane: Lane, ip: IpAddr) -> Option<(Key, Mac)> {
        let mut found = None;
        for vid in [lane.vid.get(), Key::ALL] {
            let from = (domain.id, ip, vid, Mac::ZERO);
            let to = (domain.id, ip, vid, Mac::BROADCAST);
            for (_, _, vid, mac) in self.neighbours.range(from..=to).map(|(neighbour, _)| *neighbour) {
                if found.is_some() {
                    return None;
                }
                found = Some((Key { domain: domain.id, vid, mac }, mac));
            }
        }
        found
    }

    /// Answers a question, if it is one and the answer is known. True if nobody else needs to hear it.
    pub(super) fn answer(
        &self,
        slot: u32,
        frame: &Frame<'_>,
        ether: &Ether,
        lane: Lane,
        out: &mut Output,
    ) -> bool {
        let port = &self.ports[slot as usize];
        let asked_of_many = ether.dst.is_group() && port.answer_neighbours;
        if !asked_of_many || !matches!(ether.ether_type, ether_type::ARP | ether_type::IPV6) {
            return false;
        }
        let question = match Arp::parse(frame.head, ether) {
            Some(arp) if arp.asks() && arp.sender_mac == ether.src => Question::Arp(arp),
            Some(_) => return false,
            None => match Solicitation::parse(frame.head, ether, frame.offload) {
                Some(it) if it.asks() => Question::Nd(it),
                _ => return false,
            },
        };
        let ip = match &question {
            Question::Arp(arp) => IpAddr::from(arp.target_ip),
            Question::Nd(it) => IpAddr::from(it.target),
        };
        let domain = &self.domains[port.domain];
        let Some((key, mac)) = self.neighbour(domain, lane, ip) else { return false };
        let reachable = match self.table.look(key) {
            Some(Place::Port(ix)) => {
                let Some(target) = self.port(ix) else { return false };
                ix.slot != slot
                    && !target.config.policy.blocked
                    && lane::leave(&target.vlan, lane, self.settings.bugs).is_ok()
            }
            // Only its own host knows who may reach it in a private VLAN.
            Some(Place::Peer(peer)) => {
                lane.sender == Sender::Open && self.peers.get(usize::from(peer.0)).is_some_and(|p| p.alive)
            }
            _ => false,
        };
        if !reachable || mac == ether.src {
            return false;
        }
        let start = out.bytes.len();
        match question {
            Question::Arp(arp) => arp.put_reply(mac, &mut out.bytes),
            Question::Nd(it) => it.put_reply(ether.src, mac, &mut out.bytes),
        }
        if let Some(tag) = ether.tag {
            put_tag(&mut out.bytes, start, tag);
        }
        let bytes = start..out.bytes.len();
        out.made.push(Made { to: Egress::Port(port.ix), bytes });
        true
    }
}

/// Puts a tag into the frame that begins at `start`: the one who asked with it gets its answer with it.
fn put_tag(bytes: &mut Vec<u8>, start: usize, tag: Tci) {
    let prefix = Edit { strip: false, insert: Some(tag) }.prefix(&bytes[start..]);
    let rest = start + prefix.rest_from;
    bytes.splice(start..rest, prefix.bytes().iter().copied());
}
