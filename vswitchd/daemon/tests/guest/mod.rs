//! A host's endpoints with the plane as a book in memory, and frames as a guest makes and reads them.
#![allow(dead_code)]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Message, MessageType};
use dhcproto::{Decodable, Encodable, Encoder};
use ferro_protocol::net::{Mac, NetName};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr,
    Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscPrefixInfoFlags, NdiscRepr, UdpPacket, UdpRepr,
};
use vswitch_core::config::spec::Spec;
use vswitch_core::config::{Config, GroupIx, validate};
use vswitch_core::frame::Offload;
use vswitch_core::time::Instant;
use vswitchd::endpoint::{
    Book, Endpoints, LeaseAnswer, LeaseWanted, Refusal, Rules, Seen, WallSeconds, Wish,
};

pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const LEASE_S: u32 = 3600;

const SPEC: &str = r#"
[[switch]]
name = "sw"

[[portgroup]]
name = "web"
switch = "sw"
vni = 5000
mtu = 1450
security = { forged_transmits = true }
gateway = { address = "10.0.0.1/24", pool = ["10.0.0.10", "10.0.0.29"], lease_s = 3600 }

[[portgroup]]
name = "six"
switch = "sw"
vni = 6000
gateway = { address = "fd00::1/64" }

[[port]]
name = "vm1"
group = "web"
mac = "52:00:00:00:00:01"

[[port]]
name = "vm2"
group = "web"
mac = "52:00:00:00:00:02"

[[port]]
name = "in1"
group = "web"
mac = "52:00:00:00:00:05"

[[port]]
name = "in2"
group = "web"
mac = "52:00:00:00:00:06"

[[port]]
name = "fixed"
group = "web"
mac = "52:00:00:00:00:09"
addresses = ["10.0.0.20", "fe80::9"]

[[port]]
name = "six1"
group = "six"
mac = "52:00:00:00:00:07"
"#;

pub(crate) fn mac(n: u8) -> Mac {
    Mac([0x52, 0, 0, 0, 0, n])
}

pub(crate) fn name(text: &str) -> NetName {
    text.parse().expect("a name")
}

/// What a guest was told by DHCP.
pub(crate) struct Said {
    pub(crate) to_mac: Mac,
    pub(crate) from_ip: Ipv4Addr,
    pub(crate) to_ip: Ipv4Addr,
    pub(crate) message: Message,
}

/// A host.
pub(crate) struct Host {
    pub(crate) endpoints: Endpoints,
    pub(crate) book: Book,
    /// Whether wishes can be written down.
    pub(crate) available: bool,
    config: Config,
    now: Instant,
}

fn config(change: impl Fn(&mut Spec)) -> Config {
    let mut spec: Spec = toml::from_str(SPEC).expect("it can be read");
    change(&mut spec);
    validate(&spec).expect("it is right")
}

impl Host {
    pub(crate) fn endpoints() -> Endpoints {
        let mut endpoints = Endpoints::new();
        endpoints.configure(Instant(0), &config(|_| {}));
        endpoints
    }

    pub(crate) fn new() -> Self {
        Self::with(Book::default())
    }

    /// One that finds this book when it starts.
    pub(crate) fn with(book: Book) -> Self {
        let mut host = Self {
            endpoints: Self::endpoints(),
            book,
            available: true,
            config: config(|_| {}),
            now: Instant(1_000_000_000),
        };
        host.tell();
        host
    }

    pub(crate) fn configure(&mut self, change: impl Fn(&mut Spec)) {
        self.config = config(change);
        self.endpoints.configure(self.now, &self.config);
    }

    fn wall(&self) -> WallSeconds {
        WallSeconds(1_800_000_000 + self.now.0 / 1_000_000_000)
    }

    pub(crate) fn tell(&mut self) {
        self.endpoints.set_book(self.now, &name("web"), self.wall(), self.book.clone());
    }

    pub(crate) fn pass(&mut self, by: Duration) {
        self.now = self.now + by;
    }

    pub(crate) fn seen(&self) -> Seen {
        *self.endpoints.seen().find(|(group, _)| group.as_str() == "web").expect("it is there").1
    }

    fn group(&self, group: &str) -> GroupIx {
        let at = self.config.groups().iter().position(|it| it.name.as_str() == group);
        GroupIx(at.expect("a group") as u32)
    }

    pub(crate) fn mac(&self, group: &str) -> Mac {
        let at = self.group(group).0 as usize;
        self.config.groups()[at].gateway.as_ref().expect("it has one").mac
    }

    /// How long an address is promised still.
    pub(crate) fn left(&self, ip: Ipv4Addr) -> u64 {
        let lease = self.book.leases().find(|lease| lease.ip == ip).expect("it is given");
        lease.until.since(self.wall())
    }

    pub(crate) fn frame_in(&mut self, group: &str, port: &str, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut said = Vec::new();
        let group = self.group(group);
        let mut emit = |from: GroupIx, bytes: &[u8]| {
            assert_eq!(from, group);
            said.push(bytes.to_vec());
        };
        self.endpoints.handle(self.now, group, &name(port), bytes, Offload::NONE, &mut emit);
        said
    }

    pub(crate) fn frame(&mut self, port: &str, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.frame_in("web", port, bytes)
    }

    pub(crate) fn time(&mut self) -> Vec<Vec<u8>> {
        let mut said = Vec::new();
        self.endpoints.handle_time(self.now, &mut |_, bytes| said.push(bytes.to_vec()));
        said
    }

    /// A message, and what is said to it, the plane's answer waited for.
    pub(crate) fn dhcp(&mut self, port: &str, message: &Message) -> Vec<Said> {
        let mut said = self.dhcp_unanswered(port, message);
        said.extend(self.settle());
        said
    }

    /// A message, and what is said to it at once.
    pub(crate) fn dhcp_unanswered(&mut self, port: &str, message: &Message) -> Vec<Said> {
        let source = Mac(message.chaddr().try_into().expect("six bytes"));
        let bytes = frame(source, Mac::BROADCAST, message);
        self.frame(port, &bytes).iter().map(|bytes| said(bytes)).collect()
    }

    pub(crate) fn wishes(&mut self) -> Vec<LeaseWanted> {
        std::iter::from_fn(|| self.endpoints.poll_wanted()).collect()
    }

    pub(crate) fn answer(&mut self, answer: LeaseAnswer) -> Vec<Said> {
        let mut out = Vec::new();
        let mut emit = |_: GroupIx, bytes: &[u8]| out.push(said(bytes));
        self.endpoints.answer(self.now, &name("web"), answer, &mut emit);
        out
    }

    /// The plane does what is wished for.
    pub(crate) fn settle(&mut self) -> Vec<Said> {
        let mut out = Vec::new();
        for wanted in self.wishes() {
            let rules = Rules::of(&self.config, self.group("web")).expect("it gives addresses");
            let answer = if self.available {
                self.book.apply(&rules, self.wall(), &wanted)
            } else if wanted.wish == Wish::Lease {
                LeaseAnswer::Refused { mac: wanted.mac, ip: wanted.ip, why: Refusal::Unavailable }
            } else {
                continue;
            };
            out.extend(self.answer(answer));
        }
        out
    }

    /// Gets an address.
    pub(crate) fn lease(&mut self, port: &str, mac: Mac) -> Ipv4Addr {
        let own = self.dhcp(port, &discover(mac))[0].message.yiaddr();
        let said = self.dhcp(port, &request(mac, Some(GATEWAY), Some(own), Ipv4Addr::UNSPECIFIED));
        assert_eq!(said[0].message.opts().msg_type(), Some(MessageType::Ack));
        own
    }
}

pub(crate) fn message(mac: Mac, kind: MessageType) -> Message {
    let unset = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(u32::from(mac.0[5]) + 77, unset, unset, unset, unset, &mac.0);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    message
}

pub(crate) fn discover(mac: Mac) -> Message {
    message(mac, MessageType::Discover)
}

pub(crate) fn request(
    mac: Mac,
    server: Option<Ipv4Addr>,
    asks: Option<Ipv4Addr>,
    ciaddr: Ipv4Addr,
) -> Message {
    let mut message = message(mac, MessageType::Request);
    message.set_ciaddr(ciaddr);
    let options = message.opts_mut();
    server.into_iter().for_each(|ip| drop(options.insert(DhcpOption::ServerIdentifier(ip))));
    asks.into_iter().for_each(|ip| drop(options.insert(DhcpOption::RequestedIpAddress(ip))));
    message
}

fn ether(from: Mac, to: Mac, ethertype: EthernetProtocol, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; 14 + len];
    let repr = EthernetRepr { src_addr: EthernetAddress(from.0), dst_addr: EthernetAddress(to.0), ethertype };
    repr.emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    bytes
}

fn ip4(from: Mac, to: Mac, ips: (Ipv4Addr, Ipv4Addr), next_header: IpProtocol, len: usize) -> Vec<u8> {
    let mut bytes = ether(from, to, EthernetProtocol::Ipv4, 20 + len);
    let repr = Ipv4Repr { src_addr: ips.0, dst_addr: ips.1, next_header, payload_len: len, hop_limit: 64 };
    repr.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[14..]), &ChecksumCapabilities::default());
    bytes
}

/// A DHCP message in its frame.
pub(crate) fn frame(from: Mac, to: Mac, message: &Message) -> Vec<u8> {
    let mut payload = Vec::new();
    message.encode(&mut Encoder::new(&mut payload)).expect("it can be written");
    let ips = (message.ciaddr(), Ipv4Addr::BROADCAST);
    let mut bytes = ip4(from, to, ips, IpProtocol::Udp, 8 + payload.len());
    UdpRepr { src_port: 68, dst_port: 67 }.emit(
        &mut UdpPacket::new_unchecked(&mut bytes[34..]),
        &IpAddress::Ipv4(ips.0),
        &IpAddress::Ipv4(ips.1),
        payload.len(),
        |room| room.copy_from_slice(&payload),
        &ChecksumCapabilities::default(),
    );
    bytes
}

/// What stands in a frame that holds a DHCP answer.
pub(crate) fn said(bytes: &[u8]) -> Said {
    let ether = EthernetFrame::new_checked(bytes).expect("a frame");
    let packet = Ipv4Packet::new_checked(ether.payload()).expect("a packet");
    let caps = ChecksumCapabilities::default();
    let ip = Ipv4Repr::parse(&packet, &caps).expect("a header whose sum is right");
    let datagram = UdpPacket::new_checked(packet.payload()).expect("a datagram");
    let ips = (IpAddress::Ipv4(ip.src_addr), IpAddress::Ipv4(ip.dst_addr));
    let udp = UdpRepr::parse(&datagram, &ips.0, &ips.1, &caps).expect("a header whose sum is right");
    assert_eq!((udp.src_port, udp.dst_port), (67, 68));
    assert!(datagram.payload().len() >= 300, "some clients take no less");
    let message = Message::from_bytes(datagram.payload()).expect("a message");
    Said { to_mac: Mac(ether.dst_addr().0), from_ip: ip.src_addr, to_ip: ip.dst_addr, message }
}

fn arp(operation: ArpOperation, from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr), dst: Mac) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: EthernetAddress(from.0.0),
        source_protocol_addr: from.1,
        target_hardware_addr: EthernetAddress(to.0.0),
        target_protocol_addr: to.1,
    };
    let mut bytes = ether(from.0, dst, EthernetProtocol::Arp, 28);
    repr.emit(&mut ArpPacket::new_unchecked(&mut bytes[14..]));
    bytes
}

pub(crate) fn arp_request(from: Mac, own: Ipv4Addr, about: Ipv4Addr) -> Vec<u8> {
    arp(ArpOperation::Request, (from, own), (Mac::ZERO, about), Mac::BROADCAST)
}

pub(crate) fn arp_reply(from: Mac, own: Ipv4Addr, to: Mac, asker: Ipv4Addr) -> Vec<u8> {
    arp(ArpOperation::Reply, (from, own), (to, asker), to)
}

fn icmp4(from: Mac, to: Mac, ips: (Ipv4Addr, Ipv4Addr), repr: &Icmpv4Repr<'_>) -> Vec<u8> {
    let mut bytes = ip4(from, to, ips, IpProtocol::Icmp, repr.buffer_len());
    repr.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes[34..]), &ChecksumCapabilities::default());
    bytes
}

pub(crate) fn ping4(from: Mac, to: Mac, own: Ipv4Addr, whom: Ipv4Addr, data: &[u8]) -> Vec<u8> {
    icmp4(from, to, (own, whom), &Icmpv4Repr::EchoRequest { ident: 3, seq_no: 4, data })
}

pub(crate) fn pong4(from: Mac, to: Mac, own: Ipv4Addr, whom: Ipv4Addr, data: &[u8]) -> Vec<u8> {
    icmp4(from, to, (own, whom), &Icmpv4Repr::EchoReply { ident: 3, seq_no: 4, data })
}

fn icmp6(from: Mac, to: Mac, (own, whom): (Ipv6Addr, Ipv6Addr), repr: &Icmpv6Repr<'_>) -> Vec<u8> {
    let len = repr.buffer_len();
    let mut bytes = ether(from, to, EthernetProtocol::Ipv6, 40 + len);
    let hop_limit = if matches!(repr, Icmpv6Repr::Ndisc(_)) { 255 } else { 64 };
    let ip = Ipv6Repr {
        src_addr: own,
        dst_addr: whom,
        next_header: IpProtocol::Icmpv6,
        payload_len: len,
        hop_limit,
    };
    ip.emit(&mut Ipv6Packet::new_unchecked(&mut bytes[14..]));
    let mut packet = Icmpv6Packet::new_unchecked(&mut bytes[54..]);
    repr.emit(&own, &whom, &mut packet, &ChecksumCapabilities::default());
    bytes
}

pub(crate) fn solicit(from: Mac, own: Ipv6Addr, whom: Ipv6Addr) -> Vec<u8> {
    let lladdr = Some(EthernetAddress(from.0).into());
    let repr = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr: whom, lladdr });
    let [.., a, b, c] = whom.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    icmp6(from, Mac([0x33, 0x33, 0xff, a, b, c]), (own, group), &repr)
}

pub(crate) fn solicit_router(from: Mac, own: Ipv6Addr) -> Vec<u8> {
    let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    let repr = Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr: None });
    icmp6(from, Mac([0x33, 0x33, 0, 0, 0, 2]), (own, routers), &repr)
}

pub(crate) fn ping6(from: Mac, to: Mac, own: Ipv6Addr, whom: Ipv6Addr) -> Vec<u8> {
    icmp6(from, to, (own, whom), &Icmpv6Repr::EchoRequest { ident: 3, seq_no: 4, data: b"hello" })
}

pub(crate) fn pong6(from: Mac, to: Mac, own: Ipv6Addr, whom: Ipv6Addr) -> Vec<u8> {
    icmp6(from, to, (own, whom), &Icmpv6Repr::EchoReply { ident: 3, seq_no: 4, data: b"hello" })
}

/// Reads the one ND message that was said; gives it to `check`.
fn nd(said: &[Vec<u8>], from: Mac, to: Mac, check: impl FnOnce(&NdiscRepr<'_>)) {
    assert_eq!(said.len(), 1);
    let ether = EthernetFrame::new_checked(&said[0][..]).expect("a frame");
    assert_eq!((ether.src_addr().0, ether.dst_addr().0), (from.0, to.0));
    let packet = Ipv6Packet::new_checked(ether.payload()).expect("a packet");
    let ip = Ipv6Repr::parse(&packet).expect("a header");
    assert_eq!(ip.hop_limit, 255);
    let message = Icmpv6Packet::new_checked(packet.payload()).expect("a message");
    let caps = ChecksumCapabilities::default();
    match Icmpv6Repr::parse(&ip.src_addr, &ip.dst_addr, &message, &caps).expect("its sum is right") {
        Icmpv6Repr::Ndisc(repr) => check(&repr),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn is_advertisement(said: &[Vec<u8>], from: Mac, to: Mac, target: Ipv6Addr) {
    nd(said, from, to, |repr| {
        let NdiscRepr::NeighborAdvert { flags, target_addr, lladdr } = repr else { panic!("{repr:?}") };
        assert!(flags.contains(NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE));
        assert_eq!(
            (*target_addr, lladdr.as_ref().map(|it| it.as_bytes().to_vec())),
            (target, Some(from.0.to_vec()))
        );
    });
}

pub(crate) fn is_router(said: &[Vec<u8>], from: Mac, to: Mac, prefix: Ipv6Addr, size: u32) {
    nd(said, from, to, |repr| {
        let NdiscRepr::RouterAdvert { mtu, prefix_info, router_lifetime, .. } = repr else {
            panic!("{repr:?}")
        };
        let info = prefix_info.expect("it has a prefix");
        assert_eq!((*mtu, info.prefix, info.prefix_len), (Some(size), prefix, 64));
        assert!(info.flags.contains(NdiscPrefixInfoFlags::ADDRCONF) && router_lifetime.secs() > 0);
    });
}
