//! Gateways as the driver sees them: what is for one goes to it alone and stays at its host, and nobody else is one.

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Mac, NetName, Sequence, Vni};
use vswitch_core::bugs::Bugs;
use vswitch_core::config::spec::Spec;
use vswitch_core::config::{Config, Gateway, GroupIx, validate};
use vswitch_core::frame::{Edit, Offload, Tci};
use vswitch_core::hash::HashKey;
use vswitch_core::pipeline::{Cause, Effect, Egress, Frame, Ingress, Output, Settings, Step, Switch};
use vswitch_core::table::PortIx;
use vswitch_core::time::Instant;

const NOW: Instant = Instant(1_000_000_000);
const HERE: HostId = HostId::from_bytes([1; 16]);
const THERE: HostId = HostId::from_bytes([2; 16]);

const GROUPS: &str = r#"
[[switch]]
name = "sw"
uplinks = ["eth0"]

[[portgroup]]
name = "web"
switch = "sw"
vni = 5000
security = { forged_transmits = true, mac_change = true, promiscuous = true }
gateway = { address = "10.0.0.1/24", pool = ["10.0.0.10", "10.0.0.99"] }

[[portgroup]]
name = "lan"
switch = "sw"
vlan = { access = 20 }
gateway = { address = "10.0.0.1/24" }

[[portgroup]]
name = "six"
switch = "sw"
vlan = { access = 30 }
security = { forged_transmits = true }
gateway = { address = "fd00::1/64" }

[[portgroup]]
name = "trunk"
switch = "sw"
vlan = { trunk = { ranges = [[20, 30]] } }
"#;

const WEB: GroupIx = GroupIx(0);
const LAN: GroupIx = GroupIx(1);
const SIX: GroupIx = GroupIx(2);

fn mac(n: u8) -> Mac {
    Mac([0x52, 0, 0, 0, 0, n])
}

fn name(text: &str) -> NetName {
    text.parse().expect("a name")
}

fn spec(ports: &[&str]) -> Spec {
    let mut text = GROUPS.to_owned();
    for (n, group) in ports.iter().enumerate() {
        let mac = mac(n as u8 + 1);
        let lines =
            ["[[port]]", &format!("name = 'p{n}'"), &format!("group = '{group}'"), &format!("mac = '{mac}'")];
        text.extend(lines.iter().flat_map(|line| [line, "\n"]));
    }
    toml::from_str(&text).expect("it can be read")
}

fn host(ports: &[&str]) -> (Switch, Vec<PortIx>) {
    let settings = Settings { host: HERE, hash: HashKey(3, 5), sequence: Sequence(7), bugs: Bugs::NONE };
    let mut switch = Switch::new(settings);
    switch.configure(NOW, validate(&spec(ports)).expect("it is right"));
    switch.handle_link(NOW, &name("eth0"), true);
    let attach = |n| switch.attach(NOW, &name(&format!("p{n}"))).expect("it is there");
    let ports = (0..ports.len()).map(attach).collect();
    let peer = switch.peer_add(THERE).expect("there is room");
    switch.peer_alive(peer, true);
    switch.peer_networks(peer, &[Vni::new(5000).expect("a VNI")]);
    while switch.poll_effect().is_some() {}
    (switch, ports)
}

fn gateway(config: &Config, group: GroupIx) -> &Gateway {
    config.groups()[group.0 as usize].gateway.as_ref().expect("it has one")
}

fn send(switch: &mut Switch, from: Ingress, bytes: &[u8]) -> Vec<Egress> {
    let head = &bytes[..bytes.len().min(192)];
    let frame = Frame { from, head, len: bytes.len(), offload: Offload::NONE };
    let mut output = Output::default();
    switch.process(NOW, &[frame], &mut output);
    assert!(output.made.is_empty(), "the gateway answers itself");
    output.deliveries.iter().map(|delivery| delivery.to).collect()
}

fn frame(dst: Mac, src: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [dst.0, src.0].concat();
    bytes.extend(kind.to_be_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().max(60), 0);
    bytes
}

/// Operation 1 asks, 2 answers.
fn arp(src: Mac, hardware: u8, operation: u8, from: [u8; 4], about: [u8; 4]) -> Vec<u8> {
    let mut arp = vec![0, hardware, 8, 0, 6, 4, 0, operation];
    arp.extend(src.0);
    arp.extend(from);
    arp.extend([0; 6]);
    arp.extend(about);
    frame(Mac::BROADCAST, src, 0x0806, &arp)
}

fn ipv4(dst: Mac, src: Mac, from: [u8; 4], to: [u8; 4], ports: (u16, u16)) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 48, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(from);
    packet.extend(to);
    packet.extend(ports.0.to_be_bytes());
    packet.extend(ports.1.to_be_bytes());
    packet.resize(48, 0);
    frame(dst, src, 0x0800, &packet)
}

/// An ICMP message, behind so many hop-by-hop headers of so many times eight bytes.
fn icmpv6(src: Mac, from: [u8; 16], headers: &[u8], message: &[u8]) -> Vec<u8> {
    let extra: usize = headers.iter().map(|eights| usize::from(*eights) * 8).sum();
    let mut packet = vec![0x60, 0, 0, 0, 0, (extra + message.len()) as u8];
    packet.extend([if headers.is_empty() { 58 } else { 60 }, 255]);
    packet.extend(from);
    packet.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    for (at, eights) in headers.iter().enumerate() {
        let next = if at + 1 == headers.len() { 58 } else { 60 };
        let start = packet.len();
        packet.extend([next, eights - 1]);
        packet.resize(start + usize::from(*eights) * 8, 0);
    }
    packet.extend(message);
    frame(Mac([0x33, 0x33, 0, 0, 0, 1]), src, 0x86dd, &packet)
}

fn advertisement(target: [u8; 16]) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(target);
    message.extend([2, 1, 0x52, 0, 0, 0, 0, 1]);
    message
}

const GATEWAY: [u8; 4] = [10, 0, 0, 1];
const GUEST: [u8; 4] = [10, 0, 0, 10];

fn fd00(n: u8) -> [u8; 16] {
    [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]
}

#[test]
fn what_is_for_the_gateway_goes_to_it_alone() {
    let (mut switch, p) = host(&["web", "web", "lan", "lan"]);
    let own = gateway(switch.config(), WEB).mac;
    let alone = [Egress::Endpoint(WEB)];
    let from = Ingress::Port(p[0]);
    assert_eq!(send(&mut switch, from, &arp(mac(1), 1, 1, GUEST, GATEWAY)), alone);
    assert_eq!(send(&mut switch, from, &arp(mac(1), 1, 1, [0; 4], GATEWAY)), alone, "whether it is free");
    assert_eq!(send(&mut switch, from, &ipv4(own, mac(1), GUEST, GATEWAY, (5, 6))), alone);
    let discover = ipv4(Mac::BROADCAST, mac(1), [0; 4], [255; 4], (68, 67));
    assert_eq!(send(&mut switch, from, &discover), alone, "no server beside it hears of it");
    assert_eq!(switch.endpoint_counters(WEB).unwrap().to.frames, 4);
    // A question about somebody else is everybody's, and so is DHCP where the gateway does not serve it.
    let others = send(&mut switch, from, &arp(mac(1), 1, 1, GUEST, [10, 0, 0, 7]));
    assert!(others.contains(&Egress::Port(p[1])) && !others.contains(&Egress::Endpoint(WEB)));
    let mut bytes = discover;
    bytes[6..12].copy_from_slice(&mac(3).0);
    let others = send(&mut switch, Ingress::Port(p[2]), &bytes);
    assert!(others.contains(&Egress::Port(p[3])) && !others.contains(&Egress::Endpoint(LAN)));
    // Who sees everything sees what goes to it from here.
    switch.set_guest(NOW, p[1], None, true);
    let seen = send(&mut switch, from, &ipv4(own, mac(1), GUEST, GATEWAY, (5, 6)));
    assert_eq!(seen, [Egress::Endpoint(WEB), Egress::Port(p[1])]);
}

#[test]
fn a_trunk_reaches_the_gateways_of_its_vlans() {
    let (mut switch, p) = host(&["trunk"]);
    let mut question = arp(mac(1), 1, 1, GUEST, GATEWAY);
    question.splice(12..12, [0x81, 0, 0x60, 20]);
    let head = &question[..64];
    let frame = Frame { from: Ingress::Port(p[0]), head, len: 64, offload: Offload::NONE };
    let mut output = Output::default();
    switch.process(NOW, &[frame], &mut output);
    assert_eq!(output.deliveries.len(), 1);
    assert_eq!(output.deliveries[0].to, Egress::Endpoint(LAN));
    assert_eq!(output.deliveries[0].edit, Edit { strip: true, insert: None });
    let own = gateway(switch.config(), LAN).mac;
    let answer = frame_from(&mut switch, LAN, &frame_to(mac(1), own));
    assert_eq!(answer[0].1.insert, Some(Tci(20)));
    // A second tag would speak for itself once the first is off.
    question.splice(16..16, [0x81, 0, 0, 30]);
    question[..6].copy_from_slice(&own.0);
    assert!(send(&mut switch, Ingress::Port(p[0]), &question).is_empty());
    assert_eq!(switch.port(p[0]).unwrap().counters().of(Cause::HiddenTag), 1);
}

fn frame_to(dst: Mac, src: Mac) -> Vec<u8> {
    frame(dst, src, 0x88b6, &[1; 50])
}

fn frame_from(switch: &mut Switch, group: GroupIx, bytes: &[u8]) -> Vec<(Egress, Edit)> {
    let mut output = Output::default();
    let frame =
        Frame { from: Ingress::Endpoint(group), head: bytes, len: bytes.len(), offload: Offload::NONE };
    switch.process(NOW, &[frame], &mut output);
    output.deliveries.iter().map(|delivery| (delivery.to, delivery.edit)).collect()
}

#[test]
fn what_the_gateway_sends_stays_at_its_host() {
    let (mut switch, p) = host(&["web", "web", "lan"]);
    let (web, lan) = (gateway(switch.config(), WEB).mac, gateway(switch.config(), LAN).mac);
    let none = Edit::NONE;
    let all = frame_from(&mut switch, WEB, &frame_to(Mac::BROADCAST, web));
    assert_eq!(all, [(Egress::Port(p[0]), none), (Egress::Port(p[1]), none)], "no tunnel");
    let all = frame_from(&mut switch, LAN, &frame_to(Mac::BROADCAST, lan));
    assert_eq!(all, [(Egress::Port(p[2]), none)], "no uplink, and no other network");
    assert_eq!(frame_from(&mut switch, WEB, &frame_to(mac(1), web)), [(Egress::Port(p[0]), none)]);
    assert!(frame_from(&mut switch, WEB, &frame_to(mac(99), web)).is_empty());
    assert!(frame_from(&mut switch, WEB, &frame_to(mac(1), mac(5))).is_empty(), "it has its own address");
    assert!(frame_from(&mut switch, GroupIx(3), &frame_to(mac(1), web)).is_empty(), "a group without one");
    assert!(frame_from(&mut switch, GroupIx(77), &frame_to(mac(1), web)).is_empty());
    assert_eq!(switch.poll_effect(), None, "its address is told to nobody");
    assert_eq!(switch.table().len(), 3, "and not learned");
    // The other hosts' gateways have the same address.
    let peer = switch.peer_add(THERE).unwrap();
    let tunnel = Ingress::Tunnel { from: peer, vni: Vni::new(5000).unwrap(), tci: Tci(0) };
    assert!(send(&mut switch, tunnel, &frame_to(web, mac(9))).is_empty());
    assert_eq!(switch.peer(peer).unwrap().counters().of(Cause::NotOurs), 1);
}

#[test]
fn nobody_speaks_in_its_name() {
    let (mut switch, p) = host(&["web", "web", "six", "six"]);
    let (web, six) = (gateway(switch.config(), WEB).clone(), gateway(switch.config(), SIX).clone());
    let local = six.link_local().expect("it speaks IPv6").octets();
    let from_web = [
        frame_to(mac(2), web.mac),
        arp(mac(1), 1, 1, GATEWAY, [10, 0, 0, 7]),
        arp(mac(1), 1, 1, GATEWAY, GATEWAY),
        arp(mac(1), 1, 2, GATEWAY, GUEST),
        // IEEE 802 in place of Ethernet: Linux believes it.
        arp(mac(1), 6, 2, GATEWAY, GUEST),
        ipv4(mac(2), mac(1), GATEWAY, GUEST, (67, 68)),
    ];
    let long = icmpv6(mac(3), fd00(9), &[30], &advertisement(fd00(1)));
    let from_six = [
        frame_to(mac(4), six.mac),
        icmpv6(mac(3), fd00(1), &[], &[128, 0, 0, 0]),
        // A redirect, or a router's advertisement, is believed of the gateway only (RFC 4861, section 8.1).
        icmpv6(mac(3), local, &[], &[137, 0, 0, 0]),
        icmpv6(mac(3), fd00(9), &[], &advertisement(fd00(1))),
        icmpv6(mac(3), fd00(9), &[], &advertisement(local)),
        icmpv6(mac(3), fd00(9), &[1, 1, 1], &advertisement(fd00(1))),
        icmpv6(mac(3), fd00(9), &[1; 10], &advertisement(fd00(1))),
        long,
    ];
    for (port, frames) in [(0, &from_web[..]), (2, &from_six[..])] {
        for (at, bytes) in frames.iter().enumerate() {
            assert!(send(&mut switch, Ingress::Port(p[port]), bytes).is_empty(), "frame {at} of port {port}");
        }
        let counted = switch.port(p[port]).unwrap().counters().of(Cause::GatewayClaimed);
        assert_eq!(counted, frames.len() as u64);
    }
    let peer = switch.peer_add(THERE).unwrap();
    let tunnel = Ingress::Tunnel { from: peer, vni: Vni::new(5000).unwrap(), tci: Tci(0) };
    assert!(send(&mut switch, tunnel, &arp(mac(9), 1, 2, GATEWAY, GUEST)).is_empty());
    assert_eq!(switch.peer(peer).unwrap().counters().of(Cause::GatewayClaimed), 1);
    // What is the guest's own passes.
    assert!(!send(&mut switch, Ingress::Port(p[0]), &arp(mac(1), 1, 2, GUEST, [10, 0, 0, 7])).is_empty());
    let own = icmpv6(mac(3), fd00(9), &[1], &advertisement(fd00(9)));
    assert!(!send(&mut switch, Ingress::Port(p[2]), &own).is_empty());
}

#[test]
fn neighbours_and_routers_are_asked_for_over_ipv6() {
    let (mut switch, p) = host(&["six", "six"]);
    let from = Ingress::Port(p[0]);
    let solicit = icmpv6(mac(1), fd00(9), &[], &[133, 0, 0, 0, 0, 0, 0, 0]);
    let to = send(&mut switch, from, &solicit);
    assert_eq!(to[..2], [Egress::Endpoint(SIX), Egress::Port(p[1])], "it may not be the only router");
    // Whether the gateway's address is free: its sum is right.
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(fd00(1));
    let mut probe = icmpv6(mac(1), [0; 16], &[], &message);
    let words = probe[22..54].chunks(2).chain(message.chunks(2));
    let sum: u32 = words.map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum::<u32>() + 24 + 58;
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    probe[56..58].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(send(&mut switch, from, &probe), [Egress::Endpoint(SIX)]);
}

#[test]
fn a_guest_does_not_get_its_gateways_address() {
    let (mut switch, p) = host(&["web"]);
    let own = gateway(switch.config(), WEB).mac;
    switch.set_guest(NOW, p[0], Some(own), false);
    assert_eq!(switch.port(p[0]).unwrap().mac(), mac(1));
    switch.set_guest(NOW, p[0], Some(mac(50)), false);
    assert_eq!(switch.port(p[0]).unwrap().mac(), mac(50), "others it may take");
    let told: Vec<Effect> = std::iter::from_fn(|| switch.poll_effect()).collect();
    let told = told.iter().filter_map(|it| if let Effect::Announce(it) = it { Some(it.mac) } else { None });
    assert_eq!(told.collect::<Vec<_>>(), [mac(50)]);
}

#[test]
fn a_trace_says_that_it_is_for_the_gateway() {
    let (mut switch, p) = host(&["web"]);
    let question = arp(mac(1), 1, 1, GUEST, GATEWAY);
    let frame = Frame { from: Ingress::Port(p[0]), head: &question, len: 60, offload: Offload::NONE };
    let trace = switch.trace(NOW, &frame);
    assert_eq!(trace.steps.last(), Some(&Step::Sent(Egress::Endpoint(WEB))));
    assert_eq!(switch.endpoint_counters(WEB).unwrap().to.frames, 0);
}

#[test]
fn all_hosts_come_to_the_same_address() {
    let config = validate(&spec(&[])).unwrap();
    assert_eq!(gateway(&config, WEB).mac, Mac([0x02, 0xfe, 0x76, 0x00, 0x13, 0x88]));
    let lan = gateway(&config, LAN).mac;
    assert_eq!(lan.0[..3], [0x02, 0xfe, 0x73]);
    let mut other = spec(&[]);
    other.groups.reverse();
    other.groups.remove(3);
    assert_eq!(gateway(&validate(&other).unwrap(), GroupIx(2)).mac, lan, "whatever else there is");
    assert_ne!(gateway(&config, SIX).mac, lan);
}

#[test]
fn what_would_clash_with_a_gateway_is_refused() {
    let faults = |change: &dyn Fn(&mut Spec)| {
        let mut spec = spec(&["web", "trunk"]);
        change(&mut spec);
        let faults = validate(&spec).expect_err("it must be refused");
        faults.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        faults(&|s| s.ports[0].mac = "02:fe:76:00:13:88".into()),
        ["port \"p0\": MAC address 02:fe:76:00:13:88 is that of the gateway of port group \"web\""]
    );
    assert_eq!(
        faults(&|s| s.ports[0].addresses = vec!["10.0.0.1".into()]),
        ["port \"p0\": IP address 10.0.0.1 is that of the gateway of port group \"web\""]
    );
    assert_eq!(
        faults(&|s| s.ports[1].addresses = vec!["fd00::1".into()]),
        ["port \"p1\": IP address fd00::1 is that of the gateway of port group \"six\""],
        "a trunk carries its VLAN"
    );
    let twice = |s: &mut Spec| {
        let mut second = s.groups[1].clone();
        second.name = "lan2".into();
        second.gateway[0].address = "10.0.9.1/24".into();
        s.groups.push(second);
    };
    assert_eq!(
        faults(&twice),
        ["port group \"lan2\": its network has its gateway in port group \"lan\" already: a network has one"]
    );
    let pool = |s: &mut Spec| {
        s.groups[2].gateway[0].pool = Some(("fd00::10".into(), "fd00::20".into()));
    };
    assert_eq!(
        faults(&pool),
        [
            "port group \"six\": there is no DHCP for IPv6: leave the pool out, guests make their addresses from the gateway's \
             prefix"
        ]
    );
    for edge in ["10.0.0.0/24", "10.0.0.255/24", "127.0.0.1/8"] {
        let set = |s: &mut Spec| s.groups[1].gateway[0].address = edge.into();
        assert_eq!(faults(&set).len(), 1, "{edge} is no machine's");
    }
}

#[test]
fn a_group_has_one_gateway_of_each_family() {
    let mut both = spec(&["web"]);
    let v6 = both.groups[2].gateway[0].clone();
    both.groups[0].gateway.push(v6.clone());
    both.groups[2].gateway.clear();
    let config = validate(&both).expect("it may have both");
    let own = gateway(&config, WEB);
    assert!(own.serves_dhcp() && own.is_v6() && own.link_local().is_some());
    for (ip, reached) in [("10.0.0.1", true), ("fd00::1", true), ("10.0.0.77", false), ("fd00::2", false)] {
        let ip = ip.parse().unwrap();
        assert_eq!(own.has(ip), reached, "{ip}");
        assert!(own.reaches(ip), "{ip}");
    }
    assert!(!own.reaches("fd01::1".parse().unwrap()) && !own.reaches("10.0.1.1".parse().unwrap()));
    let faults = |change: &dyn Fn(&mut Spec)| {
        let mut spec = both.clone();
        change(&mut spec);
        validate(&spec).expect_err("it must be refused").iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        faults(&|s| s.groups[0].gateway.push(v6.clone())),
        [
            "port group \"web\": it has two gateways of IPv6: a port group has one of IPv4 and one of IPv6 at most"
        ]
    );
    assert_eq!(
        faults(&|s| s.ports[0].addresses = vec!["10.0.0.1".into(), "fd00::1".into()]).len(),
        2,
        "neither is a guest's"
    );
}

#[test]
fn one_gateway_is_written_as_when_there_could_be_one() {
    let mut all = spec(&[]);
    assert!(all.groups.iter().take(3).all(|group| group.gateway.len() == 1), "it was written without a list");
    let text = toml::to_string(&all).expect("it can be written");
    assert!(text.contains("[portgroup.gateway]") && !text.contains("[[portgroup.gateway]]"), "{text}");
    let second = all.groups[2].gateway[0].clone();
    all.groups[0].gateway.push(second);
    let text = toml::to_string(&all).expect("it can be written");
    let read: Spec = toml::from_str(&text).expect("it can be read");
    assert_eq!(read, all);
    let wrong = text.replace("address = \"fd00::1/64\"", "adress = \"fd00::1/64\"");
    let error = toml::from_str::<Spec>(&wrong).expect_err("it is misspelt").to_string();
    assert!(error.contains("adress"), "{error}");
}
