//! The network's words: addresses, VLANs, segments, names, and what one host's switch tells another's about where a MAC
//! address is.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A MAC address (IEEE 802, clause 8.2: the first octet's lowest bit says group, the second lowest says local).
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct Mac(pub [u8; 6]);

/// Why a text is no MAC address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a MAC address: write six pairs of hexadecimal digits, as in 52:54:00:12:34:56")]
pub struct BadMac(pub String);

impl Mac {
    /// All hosts.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// No address.
    pub const ZERO: Self = Self([0; 6]);

    /// Whether it names a group (broadcast is one).
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it is the broadcast address.
    pub fn is_broadcast(self) -> bool {
        self == Self::BROADCAST
    }

    /// Whether a network card may have it: not a group, not zero.
    pub fn is_station(self) -> bool {
        !self.is_group() && self != Self::ZERO
    }

    /// As a number, the first octet highest.
    pub const fn bits(self) -> u64 {
        let mut bits = [0; 8];
        let mut at = 0;
        while at < self.0.len() {
            bits[at + 2] = self.0[at];
            at += 1;
        }
        u64::from_be_bytes(bits)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, octet) in self.0.iter().enumerate() {
            let colon = if at == 0 { "" } else { ":" };
            write!(f, "{colon}{octet:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = BadMac;
    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *octet = u8::from_str_radix(part.ok_or_else(bad)?, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(octets)) }
    }
}

impl TryFrom<String> for Mac {
    type Error = BadMac;
    fn try_from(text: String) -> Result<Self, BadMac> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// A VLAN, 1 to 4094 (IEEE 802.1Q, 9.6: 0 says "no VLAN, only a priority", 4095 is reserved).
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(try_from = "u32", into = "u32")]
#[schema(value_type = u16)]
pub struct VlanId(u16);

/// A number that is no VLAN.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("VLAN {0} is not from 1 to 4094")]
pub struct BadVlan(pub u32);

impl VlanId {
    /// The highest.
    pub const MAX: u16 = 4094;

    /// This VLAN.
    pub const fn new(id: u32) -> Result<Self, BadVlan> {
        if id == 0 || id > Self::MAX as u32 { Err(BadVlan(id)) } else { Ok(Self(id as u16)) }
    }

    /// Its number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u32> for VlanId {
    type Error = BadVlan;
    fn try_from(id: u32) -> Result<Self, BadVlan> {
        Self::new(id)
    }
}

impl From<VlanId> for u32 {
    fn from(vlan: VlanId) -> Self {
        u32::from(vlan.0)
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A virtual network: the number that makes a port group the same segment on every host. 24 bits, as in VXLAN (RFC 7348,
/// section 5), and not 0.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(try_from = "u32", into = "u32")]
#[schema(value_type = u32)]
pub struct Vni(u32);

/// A number that is no virtual network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("VNI {0} is not from 1 to 16777215")]
pub struct BadVni(pub u32);

impl Vni {
    /// The highest.
    pub const MAX: u32 = 0x00ff_ffff;

    /// This network.
    pub const fn new(id: u32) -> Result<Self, BadVni> {
        if id == 0 || id > Self::MAX { Err(BadVni(id)) } else { Ok(Self(id)) }
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vni {
    type Error = BadVni;
    fn try_from(id: u32) -> Result<Self, BadVni> {
        Self::new(id)
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

crate::name::name!(
    /// The name of a switch, port group, port, uplink or mirror: 1 to 63 characters of `A-Z`, `a-z`, `0-9`, `-`, `_`, `.`; the
    /// first a letter or a digit (a port's becomes part of the name of a socket).
    NetName,
    u8::is_ascii_alphabetic,
    /// Why a text is no such name.
    BadNetName,
    "{0:?} is not a name: use 1 to 63 letters, digits, '-', '_' and '.', beginning with a letter or a digit"
);

/// Orders what hosts say about one MAC address: the higher one wins. Each host gives a new claim a number above all that it
/// has seen, so whoever attached a vNIC last wins.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct Sequence(pub u64);

/// In which of a virtual network's VLANs an address is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Lanes {
    /// In one; `None` is the untagged one.
    One(Option<VlanId>),
    /// In all that its port carries: a trunk.
    All,
}

/// "This address is at my port", from a host to its peers, on the control connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Announcement {
    /// The virtual network.
    pub vni: Vni,
    /// Where in it.
    pub lanes: Lanes,
    /// The address.
    pub mac: Mac,
    /// IP addresses that are known to be behind it, for answering ARP and ND. At most [`Announcement::IPS_MAX`].
    pub ips: Vec<IpAddr>,
    /// The port's name, for people.
    pub port: NetName,
    /// How new this is.
    pub sequence: Sequence,
}

impl Announcement {
    /// The most IP addresses of one announcement.
    pub const IPS_MAX: usize = 16;
}

/// "It is no longer here." Only takes back what is not newer than `sequence`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Withdrawal {
    /// The virtual network.
    pub vni: Vni,
    /// Where in it.
    pub lanes: Lanes,
    /// The address.
    pub mac: Mac,
    /// That of the announcement that ends.
    pub sequence: Sequence,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let mac: Mac = "52:54:00:aB:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:00:01");
        assert_eq!("52-54-00-ab-00-01".parse(), Ok(mac));
        assert_eq!(mac.bits(), 0x5254_00ab_0001);
        for bad in
            ["", "52:54:00:ab:00", "52:54:00:ab:00:01:02", "5:254:00:ab:00:01", "+1:54:00:ab:00:01", "é:"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
        assert!(Mac::BROADCAST.is_group() && !Mac::ZERO.is_station());
    }

    #[test]
    fn numbers_and_names_have_bounds() {
        assert!(VlanId::new(0).is_err() && VlanId::new(4095).is_err() && VlanId::new(65_537).is_err());
        assert_eq!(VlanId::new(4094).map(VlanId::get), Ok(4094));
        assert!(Vni::new(0).is_err() && Vni::new(1 << 24).is_err() && Vni::new(Vni::MAX).is_ok());
        assert!("vm-1.eth0".parse::<NetName>().is_ok());
        for bad in ["", "-a", "a/b", &"x".repeat(64)] {
            assert!(bad.parse::<NetName>().is_err(), "{bad}");
        }
    }
}
