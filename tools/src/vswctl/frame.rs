//! Frames to trace, as bytes.

use std::net::Ipv4Addr;

use ferro_protocol::net::Mac;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_VLAN: u16 = 0x8100;
/// For experiments (IEEE 802, clause 9.2.3).
const ETHERTYPE_EXPERIMENT: u16 = 0x88b5;
/// The shortest frame, without its check sequence.
const FRAME_BYTES_MIN: usize = 60;
const IPV4_BYTES: usize = 20;
const ICMP_BYTES: usize = 8;

/// What a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Payload {
    /// Nothing that means anything.
    Nothing,
    /// An ARP question (RFC 826).
    Arp { from: Ipv4Addr, to: Ipv4Addr },
    /// A ping (RFC 792).
    Ping { from: Ipv4Addr, to: Ipv4Addr },
}

/// A frame of at least `length` bytes.
pub(super) fn build(dst: Mac, src: Mac, vlan: Option<u16>, payload: Payload, length: Option<u16>) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend_from_slice(&dst.0);
    frame.extend_from_slice(&src.0);
    if let Some(vlan) = vlan {
        frame.extend_from_slice(&ETHERTYPE_VLAN.to_be_bytes());
        frame.extend_from_slice(&(vlan & 0x0fff).to_be_bytes());
    }
    let length = usize::from(length.unwrap_or(0)).max(FRAME_BYTES_MIN);
    match payload {
        Payload::Nothing => frame.extend_from_slice(&ETHERTYPE_EXPERIMENT.to_be_bytes()),
        Payload::Arp { from, to } => {
            frame.extend_from_slice(&ETHERTYPE_ARP.to_be_bytes());
            // Ethernet, IPv4, lengths 6 and 4, a question.
            frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
            frame.extend_from_slice(&src.0);
            frame.extend_from_slice(&from.octets());
            frame.extend_from_slice(&[0; 6]);
            frame.extend_from_slice(&to.octets());
        }
        Payload::Ping { from, to } => {
            frame.extend_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
            ping(&mut frame, from, to, length);
        }
    }
    frame.resize(frame.len().max(length), 0);
    frame
}

fn ping(frame: &mut Vec<u8>, from: Ipv4Addr, to: Ipv4Addr, length: usize) {
    let l3 = frame.len();
    let total = (length.saturating_sub(l3)).max(IPV4_BYTES + ICMP_BYTES);
    frame.extend_from_slice(&[0x45, 0]);
    frame.extend_from_slice(&(total as u16).to_be_bytes());
    // No fragment, time to live 64, ICMP.
    frame.extend_from_slice(&[0, 0, 0x40, 0, 64, 1, 0, 0]);
    frame.extend_from_slice(&from.octets());
    frame.extend_from_slice(&to.octets());
    let sum = checksum(&frame[l3..]);
    frame[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
    // An echo request; the rest of it is zeros.
    let icmp = [8_u8, 0, 0, 0, 0, 1, 0, 1];
    let sum = checksum(&icmp);
    frame.extend_from_slice(&icmp);
    frame[l3 + IPV4_BYTES + 2..l3 + IPV4_BYTES + 4].copy_from_slice(&sum.to_be_bytes());
    frame.resize(l3 + total, 0);
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_laid_out_as_the_standards_say() {
        let (a, b) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let (from, to) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let arp = build(Mac::BROADCAST, a, Some(10), Payload::Arp { from, to }, None);
        assert_eq!(arp.len(), 60);
        assert_eq!(arp[12..18], [0x81, 0, 0, 10, 8, 6]);
        assert_eq!(arp[42..46], to.octets());
        let ping = build(b, a, None, Payload::Ping { from, to }, Some(1514));
        assert_eq!(ping.len(), 1514);
        assert_eq!(ping[16..18], 1500_u16.to_be_bytes());
        assert_eq!(checksum(&ping[14..34]), 0, "a header with its checksum sums to nothing");
        assert_eq!(checksum(&ping[34..]), 0);
        assert_eq!(build(b, a, None, Payload::Nothing, None).len(), 60);
    }
}
