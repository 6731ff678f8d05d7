//! Frames that a gateway sends, byte by byte, with the headers of `smoltcp`.

use std::net::{Ipv4Addr, Ipv6Addr};

use ferro_protocol::net::Mac;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr,
    Ipv6Packet, Ipv6Repr, UdpPacket, UdpRepr,
};

/// Bytes of an Ethernet header.
const ETHER: usize = 14;
/// What hosts begin with (RFC 1700); of ND it says that nobody forwarded it (RFC 4861, section 4.4).
const HOPS: u8 = 64;
const HOPS_ND: u8 = 255;

/// From where to where a frame goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hop {
    pub(super) from: Mac,
    pub(super) to: Mac,
}

fn frame(hop: Hop, ethertype: EthernetProtocol, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; ETHER + len];
    let repr = EthernetRepr {
        src_addr: EthernetAddress(hop.from.0),
        dst_addr: EthernetAddress(hop.to.0),
        ethertype,
    };
    repr.emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    bytes
}

/// "`ip` is at `hop.from`", for who asked from `asker`.
pub(super) fn arp_reply(hop: Hop, ip: Ipv4Addr, asker: Ipv4Addr) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(hop.from.0),
        source_protocol_addr: ip,
        target_hardware_addr: EthernetAddress(hop.to.0),
        target_protocol_addr: asker,
    };
    let mut bytes = frame(hop, EthernetProtocol::Arp, repr.buffer_len());
    repr.emit(&mut ArpPacket::new_unchecked(&mut bytes[ETHER..]));
    bytes
}

fn ipv4(hop: Hop, (from, to): (Ipv4Addr, Ipv4Addr), protocol: IpProtocol, len: usize) -> (Vec<u8>, usize) {
    let repr =
        Ipv4Repr { src_addr: from, dst_addr: to, next_header: protocol, payload_len: len, hop_limit: HOPS };
    let mut bytes = frame(hop, EthernetProtocol::Ipv4, repr.buffer_len() + len);
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[ETHER..]);
    repr.emit(&mut packet, &ChecksumCapabilities::default());
    (bytes, ETHER + repr.buffer_len())
}

/// An ICMP message.
pub(super) fn icmpv4(hop: Hop, ips: (Ipv4Addr, Ipv4Addr), repr: &Icmpv4Repr<'_>) -> Vec<u8> {
    let (mut bytes, at) = ipv4(hop, ips, IpProtocol::Icmp, repr.buffer_len());
    repr.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes[at..]), &ChecksumCapabilities::default());
    bytes
}

/// A datagram.
pub(super) fn udpv4(hop: Hop, ips: (Ipv4Addr, Ipv4Addr), ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let repr = UdpRepr { src_port: ports.0, dst_port: ports.1 };
    let (mut bytes, at) = ipv4(hop, ips, IpProtocol::Udp, repr.header_len() + payload.len());
    repr.emit(
        &mut UdpPacket::new_unchecked(&mut bytes[at..]),
        &IpAddress::Ipv4(ips.0),
        &IpAddress::Ipv4(ips.1),
        payload.len(),
        |room| room.copy_from_slice(payload),
        &ChecksumCapabilities::default(),
    );
    bytes
}

/// An ICMP message for IPv6.
pub(super) fn icmpv6(hop: Hop, (from, to): (Ipv6Addr, Ipv6Addr), repr: &Icmpv6Repr<'_>) -> Vec<u8> {
    let hop_limit = if matches!(repr, Icmpv6Repr::Ndisc(_)) { HOPS_ND } else { HOPS };
    let len = repr.buffer_len();
    let ip = Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: len,
        hop_limit,
    };
    let mut bytes = frame(hop, EthernetProtocol::Ipv6, ip.buffer_len() + len);
    ip.emit(&mut Ipv6Packet::new_unchecked(&mut bytes[ETHER..]));
    let at = ETHER + ip.buffer_len();
    let mut packet = Icmpv6Packet::new_unchecked(&mut bytes[at..]);
    repr.emit(&from, &to, &mut packet, &ChecksumCapabilities::default());
    bytes
}
