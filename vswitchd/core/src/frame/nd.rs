//! Neighbour discovery for IPv6 (RFC 4861), as far as a switch answers for others.

use std::net::Ipv6Addr;

use ferro_protocol::net::Mac;

use super::ip::{Ip, protocol};
use super::{Csum, Ether, Offload, ether_type, sum16};

/// Bytes of a neighbour advertisement with its link-layer option.
const ADVERTISEMENT_BYTES: usize = 32;
/// The type of the message that looks for routers (RFC 4861, section 4.1).
pub const ROUTER_SOLICITATION: u8 = 133;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Nobody may have forwarded it (RFC 4861, section 7.1.1).
const HOPS: u8 = 255;

/// A neighbour solicitation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Solicitation {
    /// Who asks; unspecified when it looks whether an address is free (RFC 4862, section 5.4).
    pub source: Ipv6Addr,
    /// Whom it asks about.
    pub target: Ipv6Addr,
}

fn address(bytes: &[u8], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[at..at + 16]);
    Ipv6Addr::from(octets)
}

/// The sum over the pseudo header of an `ICMPv6` message (RFC 8200, section 8.1).
fn pseudo_sum(addresses: &[u8], len: usize) -> u32 {
    sum16(addresses, len as u32 + u32::from(protocol::ICMP_V6))
}

impl Solicitation {
    /// Reads a solicitation; `None` if the frame holds none, or not a valid one (RFC 4861, section 7.1.1).
    pub fn parse(head: &[u8], ether: &Ether, offload: Offload) -> Option<Self> {
        let ip = Ip::parse(head, ether).filter(|ip| ip.v6 && ip.protocol == protocol::ICMP_V6)?;
        let message = head.get(ip.l4..ip.end).filter(|m| m.len() >= 24)?;
        if message[0] != SOLICITATION || message[1] != 0 || ip.hops != HOPS || ip.fragment {
            return None;
        }
        // A partial sum is completed by whoever takes the frame out of the host; it can't be looked at.
        let whole = offload.csum == Csum::None;
        let addresses = &head[ip.addresses..ip.addresses + 32];
        if whole && sum16(message, pseudo_sum(addresses, message.len())) != 0xffff {
            return None;
        }
        let target = address(message, 8);
        let source = address(addresses, 0);
        (!target.is_multicast() && !source.is_multicast()).then_some(Self { source, target })
    }

    /// Whether it asks where somebody else is, not whether an address is free: that must be heard by its owner.
    pub fn asks(&self) -> bool {
        !self.source.is_unspecified() && self.source != self.target
    }

    /// Writes the answer "`target` is at `mac`" to `asker`, untagged.
    pub fn put_reply(&self, asker: Mac, mac: Mac, out: &mut Vec<u8>) {
        // Solicited, override (RFC 4861, section 4.4).
        put(out, (asker, self.source), mac, self.target, 0x60);
    }
}

/// An advertisement whose target lies behind what is read of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a neighbour advertisement that ends before its target")]
pub struct CutOff;

/// Whose place a neighbour advertisement tells; `None` if it is none. Whether its sums are right is left to who believes it.
pub fn advertised(head: &[u8], ip: &Ip) -> Result<Option<Ipv6Addr>, CutOff> {
    if !ip.v6 || ip.protocol != protocol::ICMP_V6 || ip.fragment {
        return Ok(None);
    }
    match head.get(ip.l4) {
        Some(&ADVERTISEMENT) if head.len() >= ip.l4 + 24 => Ok(Some(address(head, ip.l4 + 8))),
        None | Some(&ADVERTISEMENT) => Err(CutOff),
        Some(_) => Ok(None),
    }
}

/// Writes an unsolicited advertisement of `mac` at `ip` to all nodes (RFC 4861, section 7.2.6).
pub fn put_announcement(mac: Mac, ip: Ipv6Addr, out: &mut Vec<u8>) {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    put(out, (Mac([0x33, 0x33, 0, 0, 0, 1]), all_nodes), mac, ip, 0x20);
}

fn put(out: &mut Vec<u8>, to: (Mac, Ipv6Addr), mac: Mac, target: Ipv6Addr, flags: u8) {
    out.extend_from_slice(&to.0.0);
    out.extend_from_slice(&mac.0);
    out.extend_from_slice(&ether_type::IPV6.to_be_bytes());
    out.extend_from_slice(&[0x60, 0, 0, 0, 0, ADVERTISEMENT_BYTES as u8, protocol::ICMP_V6, HOPS]);
    let addresses = out.len();
    out.extend_from_slice(&target.octets());
    out.extend_from_slice(&to.1.octets());
    let message = out.len();
    out.extend_from_slice(&[ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
    out.extend_from_slice(&target.octets());
    // The target's link-layer address (RFC 4861, section 4.6.1).
    out.extend_from_slice(&[2, 1]);
    out.extend_from_slice(&mac.0);
    let sum = sum16(&out[message..], pseudo_sum(&out[addresses..message], ADVERTISEMENT_BYTES));
    let sum = !(sum as u16);
    out[message + 2..message + 4].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A solicitation as RFC 4861 section 4.3 draws it.
    fn solicitation(source: Ipv6Addr, target: Ipv6Addr, mac: Mac) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, (Mac([0x33, 0x33, 0xff, 0, 0, 2]), target), mac, source, 0);
        let message = 14 + 40;
        out[message] = SOLICITATION;
        out[message + 2..message + 4].fill(0);
        out[message + 8..message + 24].copy_from_slice(&target.octets());
        out[message + 24] = 1;
        let sum = !(sum16(&out[message..], pseudo_sum(&out[22..54], 32)) as u16);
        out[message + 2..message + 4].copy_from_slice(&sum.to_be_bytes());
        out
    }

    #[test]
    fn an_advertisement_answers_the_solicitation() {
        let (asker, owner) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let (from, about): (Ipv6Addr, Ipv6Addr) = ("fe80::1".parse().unwrap(), "fe80::2".parse().unwrap());
        let bytes = solicitation(from, about, asker);
        let ether = Ether::parse(&bytes, bytes.len()).unwrap();
        let found = Solicitation::parse(&bytes, &ether, Offload::NONE).unwrap();
        assert_eq!((found.source, found.target), (from, about));
        assert!(found.asks());
        let mut reply = Vec::new();
        found.put_reply(asker, owner, &mut reply);
        let ether = Ether::parse(&reply, reply.len()).unwrap();
        assert_eq!((ether.dst, ether.src), (asker, owner));
        assert_eq!(sum16(&reply[54..], pseudo_sum(&reply[22..54], 32)), 0xffff);
        assert_eq!(address(&reply, 62), about);
        let mut wrong = bytes;
        wrong[60] ^= 1;
        assert_eq!(Solicitation::parse(&wrong, &ether, Offload::NONE), None, "its sum is wrong");
        let free = solicitation(Ipv6Addr::UNSPECIFIED, about, asker);
        let ether = Ether::parse(&free, free.len()).unwrap();
        assert!(!Solicitation::parse(&free, &ether, Offload::NONE).unwrap().asks());
    }
}
