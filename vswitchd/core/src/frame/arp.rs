//! ARP for IPv4 over Ethernet (RFC 826), as far as a switch answers for others, and the RARP frame that tells switches
//! where an address is now.

use std::net::Ipv4Addr;

use ferro_protocol::net::Mac;

use super::{Ether, be16, ether_type};

/// Bytes of an ARP packet for IPv4.
const ARP_BYTES: usize = 28;
/// The shortest Ethernet frame without its check sequence (IEEE 802.3, 3.2.8).
const FRAME_BYTES_MIN: usize = 60;

/// An ARP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arp {
    /// 1 request, 2 reply.
    pub operation: u16,
    /// Who sends it.
    pub sender_mac: Mac,
    /// The sender's address; unspecified in a probe (RFC 5227, section 2.1.1).
    pub sender_ip: Ipv4Addr,
    /// Whom it asks about.
    pub target_ip: Ipv4Addr,
}

impl Arp {
    /// A request.
    pub const REQUEST: u16 = 1;
    /// A reply.
    pub const REPLY: u16 = 2;

    /// Reads an ARP packet; `None` if the frame holds none.
    pub fn parse(head: &[u8], ether: &Ether) -> Option<Self> {
        if ether.ether_type != ether_type::ARP {
            return None;
        }
        let arp = head.get(ether.l3..ether.l3 + ARP_BYTES)?;
        // IPv4, six and four bytes of address; Ethernet, or IEEE 802, which Linux takes for the same.
        if !matches!(arp[..6], [0, 1 | 6, 8, 0, 6, 4]) {
            return None;
        }
        let ip = |at: usize| Ipv4Addr::new(arp[at], arp[at + 1], arp[at + 2], arp[at + 3]);
        Some(Self {
            operation: be16(arp, 6),
            sender_mac: Mac([arp[8], arp[9], arp[10], arp[11], arp[12], arp[13]]),
            sender_ip: ip(14),
            target_ip: ip(24),
        })
    }

    /// Whether it asks where somebody else is: neither a probe for a free address nor an announcement of the own one,
    /// which others must hear.
    pub fn asks(&self) -> bool {
        self.operation == Self::REQUEST
            && !self.sender_ip.is_unspecified()
            && self.sender_ip != self.target_ip
    }

    /// Writes the answer "`target_ip` is at `mac`", untagged.
    pub fn put_reply(&self, mac: Mac, out: &mut Vec<u8>) {
        put(
            out,
            self.sender_mac,
            mac,
            ether_type::ARP,
            Self::REPLY,
            (mac, self.target_ip),
            (self.sender_mac, self.sender_ip),
        );
    }
}

fn put(
    out: &mut Vec<u8>,
    dst: Mac,
    src: Mac,
    kind: u16,
    operation: u16,
    sender: (Mac, Ipv4Addr),
    target: (Mac, Ipv4Addr),
) {
    let start = out.len();
    out.extend_from_slice(&dst.0);
    out.extend_from_slice(&src.0);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&[0, 1, 8, 0, 6, 4]);
    out.extend_from_slice(&operation.to_be_bytes());
    for (mac, ip) in [sender, target] {
        out.extend_from_slice(&mac.0);
        out.extend_from_slice(&ip.octets());
    }
    out.resize(start + FRAME_BYTES_MIN, 0);
}

/// Writes an announcement of `mac` at `ip` (RFC 5227, section 3): everybody's caches and all switches on the way learn it.
pub fn put_announcement(mac: Mac, ip: Ipv4Addr, out: &mut Vec<u8>) {
    put(out, Mac::BROADCAST, mac, ether_type::ARP, Arp::REQUEST, (mac, ip), (Mac::ZERO, ip));
}

/// Writes a RARP request of `mac` for itself (RFC 903): tells switches where the address is, and asks nobody anything.
pub fn put_rarp(mac: Mac, out: &mut Vec<u8>) {
    let nobody = Ipv4Addr::UNSPECIFIED;
    put(out, Mac::BROADCAST, mac, ether_type::RARP, 3, (mac, nobody), (mac, nobody));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_answers_the_request() {
        let (asker, owner) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let (from, about) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let mut request = Vec::new();
        put(&mut request, Mac::BROADCAST, asker, ether_type::ARP, 1, (asker, from), (Mac::ZERO, about));
        let parse = |bytes: &[u8]| {
            let ether = Ether::parse(bytes, bytes.len()).unwrap();
            (ether, Arp::parse(bytes, &ether).unwrap())
        };
        let (_, arp) = parse(&request);
        assert!(arp.asks());
        let mut reply = Vec::new();
        arp.put_reply(owner, &mut reply);
        assert_eq!(reply.len(), 60);
        let (ether, answer) = parse(&reply);
        assert_eq!((ether.dst, ether.src), (asker, owner));
        assert_eq!((answer.operation, answer.sender_mac, answer.sender_ip), (2, owner, about));
        assert!(!answer.asks());
        let mut announcement = Vec::new();
        put_announcement(owner, about, &mut announcement);
        assert!(!parse(&announcement).1.asks(), "others must hear it");
    }
}
