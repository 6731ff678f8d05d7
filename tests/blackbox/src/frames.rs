//! Frames as hosts make them, and captures of those that hosts made.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};
use ferro_protocol::net::Mac;

/// A customer's tag (IEEE 802.1Q, table 9-1).
pub const VLAN: u16 = 0x8100;
/// A service tag (IEEE 802.1Q, table 9-1).
pub const SERVICE_VLAN: u16 = 0x88a8;
/// What service tags were before they were standard.
pub const OLD_SERVICE_VLAN: u16 = 0x9100;
/// For experiments (IEEE 802, 9.2.3).
pub const EXPERIMENT: u16 = 0x88b6;
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Bytes of both addresses.
const ADDRESSES: usize = 12;
/// The first word of a pcap file with times in microseconds, and the lengths of its headers.
const PCAP_MAGIC: [u8; 4] = [0xd4, 0xc3, 0xb2, 0xa1];
const PCAP_HEADER: usize = 24;
const PCAP_RECORD: usize = 16;

/// What a frame carries: its type, or its length, and the rest.
pub type Payload = (u16, Vec<u8>);

/// A frame without a tag.
pub fn ethernet(dst: Mac, src: Mac, (ether_type, payload): &Payload) -> Vec<u8> {
    [&dst.0[..], &src.0, &ether_type.to_be_bytes(), payload].concat()
}

/// A frame with one more tag in front.
pub fn tagged(frame: &[u8], tpid: u16, tci: u16) -> Vec<u8> {
    [&frame[..ADDRESSES], &tpid.to_be_bytes(), &tci.to_be_bytes(), &frame[ADDRESSES..]].concat()
}

/// Two bytes of a frame.
pub fn be16(frame: &[u8], at: usize) -> Option<u16> {
    frame.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// A question for the one who has an address (RFC 826).
pub fn who_has(src: Mac, from: Ipv4Addr, target: Ipv4Addr) -> Payload {
    let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
    (ARP, [&fixed[..], &src.0, &from.octets(), &[0; 6], &target.octets(), &[0; 18]].concat())
}

/// Something that is sent by UDP over IPv4.
pub fn udp4(from: Ipv4Addr, to: Ipv4Addr, data: &[u8]) -> Payload {
    let length = (8 + data.len()) as u16;
    let mut datagram =
        [&4000_u16.to_be_bytes()[..], &5000_u16.to_be_bytes(), &length.to_be_bytes(), &[0; 2], data].concat();
    let sum = checksum(&datagram, pseudo4(from, to, UDP, datagram.len()));
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    (IPV4, ipv4(from, to, UDP, &datagram))
}

/// A segment of a TCP stream over IPv4.
pub fn tcp4(from: Ipv4Addr, to: Ipv4Addr, data: &[u8]) -> Payload {
    let mut segment = tcp(data);
    let sum = checksum(&segment, pseudo4(from, to, TCP, segment.len()));
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    (IPV4, ipv4(from, to, TCP, &segment))
}

/// A segment of a TCP stream over IPv6.
pub fn tcp6(from: Ipv6Addr, to: Ipv6Addr, data: &[u8]) -> Payload {
    let mut segment = tcp(data);
    let sum = checksum(&segment, pseudo6(from, to, TCP, segment.len()));
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    (IPV6, ipv6(from, to, TCP, 64, &segment))
}

/// A neighbour solicitation (RFC 4861, section 4.3).
pub fn solicitation(src: Mac, from: Ipv6Addr, target: Ipv6Addr) -> Payload {
    let mut message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &[1, 1], &src.0].concat();
    let [.., a, b, c] = target.octets();
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    let sum = checksum(&message, pseudo6(from, to, ICMPV6, message.len()));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    (IPV6, ipv6(from, to, ICMPV6, 255, &message))
}

/// Something with a length in place of a type (IEEE 802.3, 3.2.6).
pub fn with_length(data: &[u8]) -> Payload {
    (data.len() as u16, data.to_vec())
}

fn tcp(data: &[u8]) -> Vec<u8> {
    let fixed = [0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 9, 0x50, 0x18, 1, 0, 0, 0, 0, 0];
    [&fixed[..], data].concat()
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, data: &[u8]) -> Vec<u8> {
    let length = (20 + data.len()) as u16;
    let mut header = [
        &[0x45, 0][..],
        &length.to_be_bytes(),
        &[0, 1, 0x40, 0, 64, protocol, 0, 0],
        &from.octets(),
        &to.octets(),
    ]
    .concat();
    let sum = checksum(&header, 0);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [header, data.to_vec()].concat()
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, hops: u8, data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0][..], &length, &[protocol, hops], &from.octets(), &to.octets(), data].concat()
}

fn pseudo4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, length: usize) -> u32 {
    words([from.octets(), to.octets()].as_flattened()) + u32::from(protocol) + length as u32
}

fn pseudo6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, length: usize) -> u32 {
    words([from.octets(), to.octets()].as_flattened()) + u32::from(protocol) + length as u32
}

fn words(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum()
}

/// The checksum of RFC 1071.
fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start + words(bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The frames of a capture: a pcap file as `tshark -F pcap` writes it on this kind of machine.
pub fn capture(file: &[u8]) -> Result<Vec<Vec<u8>>> {
    ensure!(file.starts_with(&PCAP_MAGIC), "it is no pcap file of a little-endian machine");
    let (mut rest, mut frames) = (file.get(PCAP_HEADER..).context("it has no header")?, Vec::new());
    while !rest.is_empty() {
        let lengths = rest.get(8..PCAP_RECORD).context("a record without its header")?;
        let [caught, whole] =
            [0, 4].map(|at| [lengths[at], lengths[at + 1], lengths[at + 2], lengths[at + 3]]);
        ensure!(caught == whole, "a frame was cut off");
        let end = PCAP_RECORD + u32::from_le_bytes(caught) as usize;
        frames.push(rest.get(PCAP_RECORD..end).context("a record without its frame")?.to_vec());
        rest = &rest[end..];
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Mac = Mac([2, 0, 0, 0, 0, 1]);

    #[test]
    fn checksums_are_right() {
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        for (protocol, (_, packet)) in [(TCP, tcp4(a, b, b"odd")), (UDP, udp4(a, b, b"even"))] {
            assert_eq!(checksum(&packet[..20], 0), 0);
            assert_eq!(checksum(&packet[20..], pseudo4(a, b, protocol, packet.len() - 20)), 0);
        }
        let (a, b) = (Ipv6Addr::LOCALHOST, "2001:db8::12:3456".parse().unwrap());
        let (_, packet) = tcp6(a, b, b"odd");
        assert_eq!(checksum(&packet[40..], pseudo6(a, b, TCP, packet.len() - 40)), 0);
        let (_, packet) = solicitation(ONE, a, b);
        let to: Ipv6Addr = "ff02::1:ff12:3456".parse().unwrap();
        assert_eq!(packet[24..40], to.octets());
        assert_eq!(checksum(&packet[40..], pseudo6(a, to, ICMPV6, packet.len() - 40)), 0);
    }

    #[test]
    fn tags_go_in_front() {
        let frame = ethernet(Mac::BROADCAST, ONE, &(EXPERIMENT, vec![7; 46]));
        let twice = tagged(&tagged(&frame, VLAN, 10), SERVICE_VLAN, 0x2014);
        assert_eq!(twice[12..22], [0x88, 0xa8, 0x20, 0x14, 0x81, 0, 0, 10, 0x88, 0xb6]);
        assert_eq!((&twice[..12], twice.len()), (&frame[..12], frame.len() + 8));
    }

    #[test]
    fn captures_are_read() {
        let record = |bytes: &[u8], whole: u8| {
            [&[0; 8][..], &[bytes.len() as u8, 0, 0, 0, whole, 0, 0, 0], bytes].concat()
        };
        let head = [&PCAP_MAGIC[..], &[0; 20]].concat();
        let file = [head.clone(), record(b"one", 3), record(b"two!", 4)].concat();
        assert_eq!(capture(&file).unwrap(), [b"one".to_vec(), b"two!".to_vec()]);
        assert!(capture(&[head, record(b"cut", 9)].concat()).is_err());
        assert!(capture(&file[..file.len() - 1]).is_err());
        assert!(capture(b"something else").is_err());
    }
}
