//! The DHCP server of a gateway (RFC 2131, section 4.3). It decides; `message` reads and writes.
//!
//! ```text
//!   DISCOVER ──► an address that is free as far as is known here ──► OFFER        nothing is written
//!   REQUEST  ──► configured for it ──► ACK
//!            ──► its own in the book, and renewed lately ──► ACK for what is left
//!            ──► else LeaseWanted; the answer comes later ──► ACK, or NAK
//!   RELEASE, DECLINE ──► LeaseWanted                                               no answer
//! ```
//!
//! A guest is known by its MAC address, which port security vouches for. A client identifier is given back and means
//! nothing: copies of one image have the same.
//!
//! An address is acknowledged only when that is written in the book, and for no longer than is written there; but a machine
//! that the configuration knows keeps its address as long as it is known, so its renewal is acknowledged at once and
//! written afterwards. So renewals go on when nothing can be written down.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::MessageType;
use ferro_protocol::net::{Mac, NetName};
use vswitch_core::time::Instant;

use super::book::{Book, DECLINED_S, PORT_LEASES_MAX};
use super::budget::Budgets;
use super::gateway::Seen;
use super::lease::{Lease, LeaseAnswer, LeaseWanted, Refusal, Rules, Use, WallSeconds, Wish};
use super::message::{Network, Reply, Request};

/// The most offers, and the most wishes under way, of all ports together.
const OFFERS_MAX: usize = 1024;
const PENDING_MAX: usize = 1024;
/// The most of either for one port.
const PORT_MAX: usize = PORT_LEASES_MAX;
/// For how long an address is kept for who was offered it, and for how long an answer to a wish may take.
const OFFER: Duration = Duration::from_secs(30);
const PENDING: Duration = Duration::from_secs(10);
/// A guest that asks again before is not passed on again.
const AGAIN: Duration = Duration::from_secs(2);
/// When the pool was full, nobody looks again before.
const FULL: Duration = Duration::from_secs(1);
/// Less than this is not worth acknowledging, in seconds.
const LEFT_MIN_S: u64 = 30;

#[derive(Clone, Debug)]
struct Offer {
    ip: Ipv4Addr,
    port: NetName,
    until: Instant,
}

#[derive(Clone, Debug)]
struct Pending {
    request: Request,
    ip: Ipv4Addr,
    port: NetName,
    since: Instant,
}

/// A server.
#[derive(Debug)]
pub(super) struct Dhcp {
    group: NetName,
    rules: Rules,
    network: Network,
    book: Option<Book>,
    /// The wall clock at a time of the other.
    clock: (Instant, WallSeconds),
    offers: BTreeMap<Mac, Offer>,
    offered: BTreeMap<Ipv4Addr, Mac>,
    pending: BTreeMap<Mac, Pending>,
    wanted: VecDeque<LeaseWanted>,
    full_until: Instant,
}

impl Dhcp {
    pub(super) fn new(group: NetName, rules: Rules, network: Network) -> Self {
        Self {
            group,
            rules,
            network,
            book: None,
            clock: (Instant(0), WallSeconds(0)),
            offers: BTreeMap::new(),
            offered: BTreeMap::new(),
            pending: BTreeMap::new(),
            wanted: VecDeque::new(),
            full_until: Instant(0),
        }
    }

    pub(super) fn configure(&mut self, rules: Rules, network: Network) {
        (self.rules, self.network) = (rules, network);
        self.full_until = Instant(0);
    }

    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    pub(super) fn set_book(&mut self, now: Instant, wall: WallSeconds, book: Book) {
        (self.book, self.clock, self.full_until) = (Some(book), (now, wall), Instant(0));
    }

    fn wall(&self, now: Instant) -> WallSeconds {
        self.clock.1.plus(now.since(self.clock.0).as_secs())
    }

    pub(super) fn poll_wanted(&mut self) -> Option<LeaseWanted> {
        self.wanted.pop_front()
    }

    /// When something here comes to its end.
    pub(super) fn next_at(&self) -> Option<Instant> {
        let offers = self.offers.values().map(|offer| offer.until);
        offers.chain(self.pending.values().map(|pending| pending.since + PENDING)).min()
    }

    pub(super) fn handle_time(&mut self, now: Instant) {
        let offered = &mut self.offered;
        self.offers.retain(|_, offer| {
            let stays = now < offer.until;
            if !stays {
                offered.remove(&offer.ip);
            }
            stays
        });
        self.pending.retain(|_, pending| now < pending.since + PENDING);
    }

    /// A guest's message, and what it is told at once.
    pub(super) fn handle(
        &mut self,
        now: Instant,
        port: &NetName,
        request: &Request,
        budgets: &mut Budgets,
        seen: &mut Seen,
    ) -> Option<Reply> {
        match request.kind {
            MessageType::Discover => self.discover(now, port, request, seen),
            MessageType::Request => self.request(now, port, request, budgets),
            MessageType::Release => {
                self.end(now, port, request.mac, request.ciaddr, Wish::Release, budgets);
                None
            }
            MessageType::Decline => {
                seen.declines += 1;
                let ip = request.asks?;
                self.end(now, port, request.mac, ip, Wish::Decline, budgets);
                None
            }
            MessageType::Inform => self.reaches(request.ciaddr).then_some(Reply::Informed),
            // A server's, or of no kind that is known.
            _ => None,
        }
    }

    /// Whether the machine is another port's, by the configuration.
    fn strange(&self, port: &NetName, mac: Mac) -> bool {
        self.rules.known.get(&mac).is_some_and(|own| own != port)
    }

    fn reaches(&self, ip: Ipv4Addr) -> bool {
        let mask = self.network.mask.to_bits();
        ip.to_bits() & mask == self.network.gateway.to_bits() & mask
    }

    fn discover(
        &mut self,
        now: Instant,
        port: &NetName,
        request: &Request,
        seen: &mut Seen,
    ) -> Option<Reply> {
        let mac = request.mac;
        if self.strange(port, mac) {
            return None;
        }
        if let Some(ip) = self.rules.fixed(mac) {
            return Some(Reply::Offer(ip, self.rules.lease_s));
        }
        self.handle_time(now);
        let wall = self.wall(now);
        let book = self.book.as_ref()?;
        let new = book.of(mac).is_none() && !self.offers.contains_key(&mac);
        let of_port = self.offers.values().filter(|offer| offer.port == *port).count();
        let many = of_port + book.of_port(&self.rules, wall, port) >= PORT_MAX;
        if new && (many || self.offers.len() >= OFFERS_MAX) {
            seen.port_limit += 1;
            return None;
        }
        let before = self.offers.get(&mac).map(|offer| offer.ip);
        if now < self.full_until && before.is_none() {
            seen.found_none(now);
            return None;
        }
        let others = |ip: Ipv4Addr| self.offered.get(&ip).is_some_and(|other| *other != mac);
        let Some(ip) = book.candidate(&self.rules, wall, mac, before.or(request.asks), others) else {
            self.full_until = now + FULL;
            seen.found_none(now);
            return None;
        };
        self.forget_offer(mac);
        self.offers.insert(mac, Offer { ip, port: port.clone(), until: now + OFFER });
        self.offered.insert(ip, mac);
        Some(Reply::Offer(ip, self.rules.lease_s))
    }

    fn forget_offer(&mut self, mac: Mac) {
        if let Some(offer) = self.offers.remove(&mac) {
            self.offered.remove(&offer.ip);
        }
    }

    fn request(
        &mut self,
        now: Instant,
        port: &NetName,
        request: &Request,
        budgets: &mut Budgets,
    ) -> Option<Reply> {
        let mac = request.mac;
        if request.server.is_some_and(|server| server != self.network.gateway) {
            // It took another server's offer.
            self.forget_offer(mac);
            return None;
        }
        let ip = if request.ciaddr.is_unspecified() { request.asks? } else { request.ciaddr };
        if self.strange(port, mac) || !self.reaches(ip) {
            return Some(Reply::Nak);
        }
        let full = self.rules.lease_s;
        match self.rules.reserved.get(&ip) {
            Some(owner) if *owner == mac => return Some(Reply::Ack(ip, full)),
            None if self.rules.fixed(mac).is_none() && self.rules.gives(ip) => {}
            // Another's, none that is given, or not the one that the configuration gives it.
            _ => return Some(Reply::Nak),
        }
        let wall = self.wall(now);
        let own = self.book.as_ref()?.of(mac).filter(|lease| lease.ip == ip);
        let left = own.map_or(0, |lease| lease.until.since(wall));
        if left * 8 >= u64::from(full) * 7 {
            return Some(Reply::Ack(ip, full.min(left as u32)));
        }
        if own.is_some() && self.rules.known.contains_key(&mac) {
            self.want(now, port, mac, ip, Wish::Lease, budgets);
            return Some(Reply::Ack(ip, full));
        }
        if let Some(pending) = self.pending.get_mut(&mac)
            && pending.ip == ip
            && now < pending.since + AGAIN
        {
            pending.request = request.clone();
            return None;
        }
        self.handle_time(now);
        let of_port = self.pending.values().filter(|pending| pending.port == *port).count();
        let room = of_port < PORT_MAX && self.pending.len() < PENDING_MAX;
        if (room || self.pending.contains_key(&mac)) && self.want(now, port, mac, ip, Wish::Lease, budgets) {
            let pending = Pending { request: request.clone(), ip, port: port.clone(), since: now };
            self.pending.insert(mac, pending);
        }
        None
    }

    /// A guest gives its address back, or says that somebody else has it.
    fn end(
        &mut self,
        now: Instant,
        port: &NetName,
        mac: Mac,
        ip: Ipv4Addr,
        wish: Wish,
        budgets: &mut Budgets,
    ) {
        let until = self.wall(now).plus(DECLINED_S);
        let Some(book) = &mut self.book else { return };
        let Some(lease) = book.of(mac).filter(|lease| lease.ip == ip && lease.port == *port).cloned() else {
            return;
        };
        if wish == Wish::Decline {
            book.put(Lease { until, state: Use::Declined, ..lease });
        } else {
            book.remove(ip);
        }
        self.forget_offer(mac);
        self.want(now, port, mac, ip, wish, budgets);
    }

    /// Passes a wish on; whether it did.
    fn want(
        &mut self,
        now: Instant,
        port: &NetName,
        mac: Mac,
        ip: Ipv4Addr,
        wish: Wish,
        budgets: &mut Budgets,
    ) -> bool {
        if self.wanted.len() >= PENDING_MAX || !budgets.wish(now, port) {
            return false;
        }
        let (group, port) = (self.group.clone(), port.clone());
        self.wanted.push_back(LeaseWanted { group, port, mac, ip, wish });
        true
    }

    /// What came of a wish, and who is told what.
    pub(super) fn answer(&mut self, now: Instant, answer: LeaseAnswer) -> Option<(Request, Reply)> {
        let wall = self.wall(now);
        let full = u64::from(self.rules.lease_s);
        match answer {
            LeaseAnswer::Granted(lease) => {
                let (mac, ip, left) = (lease.mac, lease.ip, lease.until.since(wall));
                if let Some(book) = &mut self.book {
                    book.put(lease);
                }
                self.forget_offer(mac);
                let request = self.settled(mac, ip)?;
                Some((request, Reply::Ack(ip, left.min(full) as u32)))
            }
            LeaseAnswer::Refused { mac, ip, why } => {
                let request = self.settled(mac, ip)?;
                if why != Refusal::Unavailable {
                    self.forget_offer(mac);
                    return Some((request, Reply::Nak));
                }
                // What was promised is kept; of what is new nothing is said, so that the guest asks again.
                let own = self.book.as_ref()?.of(mac).filter(|lease| lease.ip == ip)?;
                let left = own.until.since(wall).min(full);
                (left >= LEFT_MIN_S).then_some((request, Reply::Ack(ip, left as u32)))
            }
            LeaseAnswer::Ended { .. } => None,
        }
    }

    /// The request that waited for this.
    fn settled(&mut self, mac: Mac, ip: Ipv4Addr) -> Option<Request> {
        if self.pending.get(&mac)?.ip != ip {
            return None;
        }
        self.pending.remove(&mac).map(|pending| pending.request)
    }
}
