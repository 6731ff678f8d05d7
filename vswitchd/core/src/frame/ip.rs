//! IPv4 and IPv6 headers: where the next one begins, and which flow a frame belongs to.

use std::net::IpAddr;

use super::{Ether, be16, be32, ether_type};
use crate::hash::HashKey;

/// Protocol numbers (IANA).
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMP_V6: u8 = 58;
}

/// The most extension headers that are walked. More is legal and unheard of; such a packet has no known transport.
const EXTENSIONS_MAX: usize = 8;

/// What an IP header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ip {
    /// IPv6?
    pub v6: bool,
    /// Where its addresses stand: source, then destination.
    pub addresses: usize,
    /// The transport's protocol.
    pub protocol: u8,
    /// Where the transport's header begins.
    pub l4: usize,
    /// Whether it is a fragment other than a whole packet: the ports of a later one are not there.
    pub fragment: bool,
    /// A fragment other than the first: no transport's header is in it.
    pub later: bool,
    /// IPv6 hop limit, IPv4 time to live.
    pub hops: u8,
    /// Where the packet ends by its own length; what is behind is padding.
    pub end: usize,
}

impl Ip {
    /// Reads the IP header of a frame; `None` if there is none or it is cut off.
    pub fn parse(head: &[u8], ether: &Ether) -> Option<Self> {
        match ether.ether_type {
            ether_type::IPV4 => Self::parse_v4(head, ether.l3),
            ether_type::IPV6 => Self::parse_v6(head, ether.l3),
            _ => None,
        }
    }

    /// RFC 791, section 3.1.
    fn parse_v4(head: &[u8], l3: usize) -> Option<Self> {
        let header = head.get(l3..l3 + 20)?;
        let bytes = usize::from(header[0] & 0x0f) * 4;
        if header[0] >> 4 != 4 || bytes < 20 || head.len() < l3 + bytes {
            return None;
        }
        // More fragments, or an offset.
        let (fragment, later) = (be16(header, 6) & 0x3fff != 0, be16(header, 6) & 0x1fff != 0);
        let end = l3 + usize::from(be16(header, 2));
        let (protocol, hops) = (header[9], header[8]);
        Some(Self { v6: false, addresses: l3 + 12, protocol, l4: l3 + bytes, fragment, later, hops, end })
    }

    /// RFC 8200, sections 3 and 4.
    fn parse_v6(head: &[u8], l3: usize) -> Option<Self> {
        let header = head.get(l3..l3 + 40)?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let (mut protocol, mut l4, mut fragment, mut later) = (header[6], l3 + 40, false, false);
        for _ in 0..EXTENSIONS_MAX {
            match protocol {
                // Hop-by-hop, routing, destination options: length in units of 8 bytes, the first not counted.
                0 | 43 | 60 => {
                    let extension = head.get(l4..l4 + 2)?;
                    protocol = extension[0];
                    l4 += 8 + usize::from(extension[1]) * 8;
                }
                44 => {
                    let header = head.get(l4..l4 + 8)?;
                    protocol = header[0];
                    (fragment, later) = (true, be16(header, 2) & 0xfff8 != 0);
                    l4 += 8;
                    if later {
                        break;
                    }
                }
                _ => break,
            }
        }
        if l4 > head.len() {
            return None;
        }
        let end = l3 + 40 + usize::from(be16(header, 4));
        Some(Self { v6: true, addresses: l3 + 8, protocol, l4, fragment, later, hops: header[7], end })
    }

    /// Who sends it.
    pub fn source(&self, head: &[u8]) -> IpAddr {
        if self.v6 {
            let mut octets = [0; 16];
            octets.copy_from_slice(&head[self.addresses..self.addresses + 16]);
            return IpAddr::from(octets);
        }
        IpAddr::from(be32(head, self.addresses).to_be_bytes())
    }

    /// Whether the walk over its headers came to a transport's: not if there are too many.
    pub const fn is_whole(&self) -> bool {
        !(self.v6 && !self.later && matches!(self.protocol, 0 | 43 | 44 | 60))
    }

    /// Bytes of one address.
    pub const fn address_bytes(&self) -> usize {
        if self.v6 { 16 } else { 4 }
    }
}

/// A number that all frames of a flow share and others most likely do not: addresses, protocol and ports, or the MAC
/// addresses where there is no IP. Fragments go by addresses alone, so that all of a packet's go the same way.
pub fn flow_hash(key: HashKey, head: &[u8], ether: &Ether) -> u32 {
    let Some(ip) = Ip::parse(head, ether) else {
        let both = key.of(ether.src.bits(), ether.dst.bits());
        return fold32(key.of(both, u64::from(ether.ether_type)));
    };
    let mut hash = address_hash(key, head, &ip);
    if !ip.fragment && matches!(ip.protocol, protocol::TCP | protocol::UDP) && head.len() >= ip.l4 + 4 {
        hash = key.of(hash, u64::from(be32(head, ip.l4)));
    }
    fold32(key.of(hash, u64::from(ip.protocol)))
}

/// A number that all frames between two addresses share, one way.
pub fn pair_hash(key: HashKey, head: &[u8], ether: &Ether) -> u32 {
    match Ip::parse(head, ether) {
        Some(ip) => fold32(address_hash(key, head, &ip)),
        None => fold32(key.of(ether.src.bits(), ether.dst.bits())),
    }
}

fn address_hash(key: HashKey, head: &[u8], ip: &Ip) -> u64 {
    let bytes = &head[ip.addresses..ip.addresses + 2 * ip.address_bytes()];
    bytes.chunks_exact(4).fold(0, |hash, word| key.of(hash, u64::from(be32(word, 0))))
}

const fn fold32(hash: u64) -> u32 {
    (hash ^ (hash >> 32)) as u32
}
