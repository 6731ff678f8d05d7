//! The lease book of a port group: which machine has which address, and the rules by which one gets one. Pure; what comes
//! of a wish depends on nothing but the book, the rules, the time and the wish.
//!
//! The plane keeps it as a document of the directory, changed by compare-and-set: it applies wishes to the newest book,
//! writes the result, and only then tells the endpoint. So one address never goes to two machines, whichever hosts they
//! are at. When another host was faster, the same wishes are applied to its book anew.
//!
//! ```text
//!   free ──Lease──► held until T ──Lease──► held until T' ... ──T + margin──► free, but known: given to others last
//!                     │   │                                    (never, while the machine's port is in the configuration)
//!                  Release └─Decline──► set aside for an hour ──► free
//! ```
//!
//! A machine that the configuration knows keeps its address as long as it does. So its lease may be renewed by a host that
//! reaches nobody: no clock can take it away meanwhile. The others' leases end, and nobody promises them more than is
//! written here.
//!
//! What it must not know: DHCP, frames, who stores it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ferro_protocol::net::{Mac, NetName};
use serde::{Deserialize, Serialize};

use super::lease::{Lease, LeaseAnswer, LeaseWanted, Refusal, Rules, Use, WallSeconds, Wish};

/// The most leases of one port group: its book fits into a document of the directory, 1 MiB, whatever the ports are called.
pub const LEASES_MAX: usize = 6000;
/// The most leases of one port: of its own machine, and of those inside it.
pub const PORT_LEASES_MAX: usize = 16;
/// For how long nobody gets an address that was declined, in seconds.
pub const DECLINED_S: u64 = 3600;
/// So long after its end, in seconds, a lease may still be in use: clocks of hosts and machines differ.
pub const MARGIN_S: u64 = 300;
/// The version of the document.
const VERSION: u32 = 1;

/// Why a document is no book.
#[derive(Debug, thiserror::Error)]
pub enum BadBook {
    /// It can't be read.
    #[error("the lease book can't be read: {0}")]
    Text(#[from] serde_json::Error),
    /// Somebody newer wrote it.
    #[error("the lease book is of version {0}, known is {VERSION}: upgrade this host")]
    Version(u32),
    /// Too many.
    #[error("the lease book has {0} leases, at most {LEASES_MAX}")]
    TooMany(usize),
    /// Two leases of one machine or address.
    #[error("the lease book has {0} or its machine twice")]
    Twice(Ipv4Addr),
}

/// As it is written down. Version 1: the leases, by address.
#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    leases: Vec<Lease>,
}

/// The leases of a port group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Book {
    leases: BTreeMap<Ipv4Addr, Lease>,
    /// The address of each machine that holds one.
    by_mac: BTreeMap<Mac, Ipv4Addr>,
}

impl Book {
    /// Reads a document.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadBook> {
        let document: Document = serde_json::from_slice(bytes)?;
        if document.version != VERSION {
            return Err(BadBook::Version(document.version));
        }
        if document.leases.len() > LEASES_MAX {
            return Err(BadBook::TooMany(document.leases.len()));
        }
        let mut book = Self::default();
        for lease in document.leases {
            let ip = lease.ip;
            let again = lease.state == Use::Held && book.by_mac.contains_key(&lease.mac);
            if again || book.leases.contains_key(&ip) {
                return Err(BadBook::Twice(ip));
            }
            book.put(lease);
        }
        Ok(book)
    }

    /// Writes a document.
    pub fn encode(&self) -> Result<Vec<u8>, BadBook> {
        let leases = self.leases.values().cloned().collect();
        Ok(serde_json::to_vec(&Document { version: VERSION, leases })?)
    }

    /// All leases, by address.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// The lease of a machine.
    pub fn of(&self, mac: Mac) -> Option<&Lease> {
        self.leases.get(self.by_mac.get(&mac)?)
    }

    /// Takes a lease as it is: for a copy of the book that is elsewhere. What the machine had before is given back.
    pub fn put(&mut self, lease: Lease) {
        if lease.state == Use::Held
            && let Some(old) = self.by_mac.insert(lease.mac, lease.ip)
            && old != lease.ip
        {
            self.leases.remove(&old);
        }
        if let Some(old) = self.leases.insert(lease.ip, lease) {
            let new = &self.leases[&old.ip];
            let gone = new.mac != old.mac || new.state == Use::Declined;
            if gone && self.by_mac.get(&old.mac) == Some(&old.ip) {
                self.by_mac.remove(&old.mac);
            }
        }
    }

    /// Forgets a lease.
    pub fn remove(&mut self, ip: Ipv4Addr) {
        if let Some(old) = self.leases.remove(&ip)
            && self.by_mac.get(&old.mac) == Some(&ip)
        {
            self.by_mac.remove(&old.mac);
        }
    }

    /// Whether a lease keeps others from its address.
    pub fn is_held(lease: &Lease, rules: &Rules, now: WallSeconds) -> bool {
        match lease.state {
            Use::Declined => now < lease.until,
            Use::Held => rules.known.contains_key(&lease.mac) || now < lease.until.plus(MARGIN_S),
        }
    }

    /// Grants a wish or refuses it. The same wish again comes to the same.
    pub fn apply(&mut self, rules: &Rules, now: WallSeconds, wanted: &LeaseWanted) -> LeaseAnswer {
        let LeaseWanted { mac, ip, .. } = *wanted;
        let refused = |why| LeaseAnswer::Refused { mac, ip, why };
        if rules.known.get(&mac).is_some_and(|port| *port != wanted.port) {
            return refused(Refusal::NotYours);
        }
        match wanted.wish {
            Wish::Lease => match self.lease(rules, now, wanted) {
                Ok(lease) => LeaseAnswer::Granted(lease),
                Err(why) => refused(why),
            },
            Wish::Release | Wish::Decline => {
                let own = self.of(mac).filter(|lease| lease.ip == ip && lease.port == wanted.port).cloned();
                if let Some(lease) = own {
                    if wanted.wish == Wish::Release {
                        self.remove(ip);
                    } else {
                        self.put(Lease { state: Use::Declined, until: now.plus(DECLINED_S), ..lease });
                    }
                }
                LeaseAnswer::Ended { mac, ip }
            }
        }
    }

    fn lease(&mut self, rules: &Rules, now: WallSeconds, wanted: &LeaseWanted) -> Result<Lease, Refusal> {
        let LeaseWanted { mac, ip, ref port, .. } = *wanted;
        let until = now.plus(u64::from(rules.lease_s));
        let lease = Lease { ip, mac, port: port.clone(), until, state: Use::Held };
        match rules.reserved.get(&ip) {
            // It is written in the configuration already.
            Some(owner) if *owner == mac => return Ok(lease),
            Some(_) => return Err(Refusal::Taken),
            None if !rules.gives(ip) => return Err(Refusal::NotInPool),
            None => {}
        }
        if let Some(old) = self.leases.get(&ip) {
            let own = old.mac == mac && old.state == Use::Held;
            if !own && Self::is_held(old, rules, now) {
                return Err(Refusal::Taken);
            }
        }
        if self.count(rules, now, port, mac) >= PORT_LEASES_MAX {
            return Err(Refusal::PortLimit);
        }
        let replaces = self.leases.contains_key(&ip) || self.by_mac.contains_key(&mac);
        if !replaces && self.leases.len() >= LEASES_MAX {
            let ended = self.leases.values().filter(|old| !Self::is_held(old, rules, now));
            let oldest = ended.min_by_key(|old| old.until).map(|old| old.ip).ok_or(Refusal::Full)?;
            self.remove(oldest);
        }
        // A machine does not get less by asking again.
        let before = self.of(mac).filter(|old| old.ip == ip).map_or(until, |old| old.until);
        let lease = Lease { until: until.max(before), ..lease };
        self.put(lease.clone());
        Ok(lease)
    }

    /// How many addresses a port has.
    pub fn of_port(&self, rules: &Rules, now: WallSeconds, port: &NetName) -> usize {
        let own = self.leases.values().filter(|lease| lease.port == *port);
        own.filter(|lease| Self::is_held(lease, rules, now)).count()
    }

    /// How many addresses a port has for other machines than this.
    fn count(&self, rules: &Rules, now: WallSeconds, port: &NetName, but: Mac) -> usize {
        let others = self.leases.values().filter(|lease| lease.port == *port);
        others
            .filter(|lease| lease.mac != but || lease.state == Use::Declined)
            .filter(|lease| Self::is_held(lease, rules, now))
            .count()
    }

    /// The address to offer to a machine: what the configuration gives it, what it has, what it asks for, or a free one,
    /// of which those that nobody ever had come first. `avoid` are offered to others at the moment.
    pub fn candidate(
        &self,
        rules: &Rules,
        now: WallSeconds,
        mac: Mac,
        asks: Option<Ipv4Addr>,
        avoid: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<Ipv4Addr> {
        if let Some(ip) = rules.fixed(mac) {
            return Some(ip);
        }
        let usable = |ip: Ipv4Addr| rules.gives(ip) && !rules.reserved.contains_key(&ip) && !avoid(ip);
        if let Some(own) = self.of(mac).filter(|lease| usable(lease.ip)) {
            return Some(own.ip);
        }
        let ended = |lease: &&Lease| !Self::is_held(lease, rules, now);
        if let Some(ip) = asks.filter(|ip| usable(*ip))
            && self.leases.get(&ip).is_none_or(|lease| ended(&lease))
        {
            return Some(ip);
        }
        let (first, last) = (rules.pool.0.to_bits(), rules.pool.1.to_bits());
        let size = u64::from(last.saturating_sub(first)) + 1;
        // Machines begin at different places, so that hosts that have not heard of each other's offers rarely collide.
        let start = mix(mac.bits()) % size;
        // More can't be taken than are in the book, reserved, offered or no machine's.
        let tries = size.min((self.leases.len() + rules.reserved.len()) as u64 + TRIES);
        let mut oldest: Option<&Lease> = None;
        for n in 0..tries {
            let ip = Ipv4Addr::from_bits(first + ((start + n) % size) as u32);
            if !usable(ip) {
                continue;
            }
            match self.leases.get(&ip) {
                None => return Some(ip),
                Some(lease) if ended(&lease) && oldest.is_none_or(|old| lease.until < old.until) => {
                    oldest = Some(lease);
                }
                Some(_) => {}
            }
        }
        oldest.map(|lease| lease.ip)
    }

    /// Adds what another copy granted while both could not hear each other: renewals, and leases of addresses that are free
    /// here. What both gave away stays as it is here and is returned: somebody must be told.
    pub fn merge(&mut self, rules: &Rules, now: WallSeconds, granted: &[Lease]) -> Vec<Lease> {
        let mut clashes = Vec::new();
        for lease in granted {
            let here = self.leases.get(&lease.ip);
            let clash = here.is_some_and(|here| here.mac != lease.mac && Self::is_held(here, rules, now))
                || self.of(lease.mac).is_some_and(|here| here.ip != lease.ip)
                || (here.is_none() && self.leases.len() >= LEASES_MAX);
            if clash {
                clashes.push(lease.clone());
            } else if here.is_none_or(|here| here.mac != lease.mac || here.until < lease.until) {
                self.put(lease.clone());
            }
        }
        clashes
    }
}

/// How many more addresses than are taken are looked at: those on offer, and the edges of networks.
const TRIES: u64 = 2048;

/// Spreads numbers that differ little (Stafford's thirteenth variant of the `MurmurHash3` finaliser).
const fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}
