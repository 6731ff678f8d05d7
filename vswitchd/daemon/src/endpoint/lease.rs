//! Leases of IPv4 addresses: what is asked for, what is answered, and what must be known of a network to answer.
//!
//! ```text
//!   guest ─DHCP─► Endpoint ──LeaseWanted──► plane: Book::apply, then the directory (or a file)
//!                    ▲  └─── LeaseAnswer ◄──┘ only after it is written
//!                    └────── Book ◄── whenever it changed anywhere
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ferro_protocol::net::{Mac, NetName};
use serde::{Deserialize, Serialize};
use vswitch_core::config::{Config, GroupIx};

/// The wall clock: seconds since 1970. What is written down outlives every monotonic clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallSeconds(pub u64);

impl WallSeconds {
    /// So much later.
    #[must_use]
    pub const fn plus(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// Seconds from an earlier time; 0 from a later one.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// What became of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// A machine has it.
    Held,
    /// A machine found that somebody else has it; nobody gets it for a while.
    Declined,
}

/// An address that was given away.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// The address.
    pub ip: Ipv4Addr,
    /// Whose it is.
    pub mac: Mac,
    /// The port behind which that is.
    pub port: NetName,
    /// Until when that was promised.
    pub until: WallSeconds,
    /// What became of it.
    pub state: Use,
}

/// What an endpoint wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// The address for this machine: anew, or for longer.
    Lease,
    /// The machine no longer needs it.
    Release,
    /// The machine says that somebody else has it.
    Decline,
}

/// Something that an endpoint wants to be written down. It never waits: the machine asks again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseWanted {
    /// The port group whose gateway it is.
    pub group: NetName,
    /// The port that asks.
    pub port: NetName,
    /// The machine behind it.
    pub mac: Mac,
    /// The address.
    pub ip: Ipv4Addr,
    /// What is wanted.
    pub wish: Wish,
}

/// Why not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Another machine has it, or may still have it.
    #[error("another machine has the address")]
    Taken,
    /// It is none that is given away here.
    #[error("the address is not in the pool")]
    NotInPool,
    /// The machine's address belongs to another port.
    #[error("the MAC address is another port's")]
    NotYours,
    /// The port has as many as one may have.
    #[error("the port has as many leases as one may have")]
    PortLimit,
    /// The book is full.
    #[error("the port group has as many leases as one may have")]
    Full,
    /// It can't be written down now: no directory, no quorum, no disk. What is promised already stays.
    #[error("leases can't be written down now")]
    Unavailable,
}

/// What came of a wish.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeaseAnswer {
    /// It is written: the machine may have it.
    Granted(Lease),
    /// The machine may not have it.
    Refused {
        /// Which machine.
        mac: Mac,
        /// Which address.
        ip: Ipv4Addr,
        /// Why not.
        why: Refusal,
    },
    /// It was given back, or set aside.
    Ended {
        /// Which machine.
        mac: Mac,
        /// Which address.
        ip: Ipv4Addr,
    },
}

/// What the configuration says of a network's addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    /// The gateway's own.
    pub gateway: Ipv4Addr,
    /// Bits of the network.
    pub prefix: u8,
    /// First and last that are given away.
    pub pool: (Ipv4Addr, Ipv4Addr),
    /// For how long, in seconds.
    pub lease_s: u32,
    /// Machines that the configuration knows, and the ports that they are behind. What they have is theirs as long as they
    /// are in the configuration.
    pub known: BTreeMap<Mac, NetName>,
    /// Addresses that the configuration gives, and to whom.
    pub reserved: BTreeMap<Ipv4Addr, Mac>,
}

impl Rules {
    /// The rules of a port group; none if it gives no addresses.
    pub fn of(config: &Config, group: GroupIx) -> Option<Self> {
        let gateway = config.groups().get(group.0 as usize)?.gateway.as_ref()?;
        let own = gateway.v4.as_ref()?;
        let mut rules = Self {
            gateway: own.address,
            prefix: own.prefix,
            pool: own.pool?,
            lease_s: u32::try_from(own.lease.as_secs()).unwrap_or(u32::MAX),
            known: BTreeMap::new(),
            reserved: BTreeMap::new(),
        };
        for (name, port) in config.ports().iter().filter(|(_, port)| config.meet(port.group, group)) {
            rules.known.insert(port.mac, name.clone());
            let inside = port.addresses.iter().filter(|ip| gateway.reaches(**ip));
            for ip in inside {
                if let IpAddr::V4(ip) = ip {
                    rules.reserved.insert(*ip, port.mac);
                }
            }
        }
        Some(rules)
    }

    /// Whether an address is one that is given away.
    pub fn gives(&self, ip: Ipv4Addr) -> bool {
        (self.pool.0..=self.pool.1).contains(&ip) && ip != self.gateway && !self.is_edge(ip)
    }

    /// The first and the last address of a network are no machine's (RFC 1122, section 3.2.1.3; not so in a /31, RFC 3021).
    fn is_edge(&self, ip: Ipv4Addr) -> bool {
        let host = !self.mask().to_bits();
        let low = ip.to_bits() & host;
        self.prefix < 31 && (low == 0 || low == host)
    }

    /// The network's mask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0))
    }

    /// The address that the configuration gives to a machine: the lowest, if it gives several.
    pub fn fixed(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.reserved.iter().find(|(_, owner)| **owner == mac).map(|(ip, _)| *ip)
    }
}
