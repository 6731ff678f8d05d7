//! The switch as its driver sees it: one test a promise. (That nothing goes where it must not, in any topology, is the
//! simulator's to show: `ferro-sim switch`.)

use std::time::Duration;

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Announcement, Lanes, Mac, NetName, Sequence, VlanId, Vni, Withdrawal};
use vswitch_core::bugs::Bugs;
use vswitch_core::config::{GroupIx, UplinkIx, validate};
use vswitch_core::frame::{Csum, Offload, Tci};
use vswitch_core::hash::HashKey;
use vswitch_core::pipeline::{Cause, Effect, Egress, Frame, Ingress, Output, Settings, Step, Switch};
use vswitch_core::table::{PeerIx, PortIx};
use vswitch_core::time::Instant;

const NOW: Instant = Instant(1_000_000_000);
const HERE: HostId = HostId::from_bytes([1; 16]);
const THERE: HostId = HostId::from_bytes([2; 16]);

/// Port n has the address 02:..:n and, with `ips`, 10.0.0.n.
fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

fn name(text: &str) -> NetName {
    text.parse().expect("a name")
}

/// A host with one switch, these groups, and a port for each name of a group, all attached.
fn host(groups: &str, ports: &[&str]) -> (Switch, Vec<PortIx>) {
    let mut text = "[[switch]]\nname = 'sw'\nmtu = 9000\nuplinks = ['eth0', 'eth1']\n\
        team = { active = ['eth0'], standby = ['eth1'], policy = 'explicit' }\n"
        .to_owned();
    text.push_str(groups);
    for (n, group) in ports.iter().enumerate() {
        let n = n + 1;
        let addresses = format!("['10.0.0.{n}', 'fe80::{n}']");
        let mac = mac(n as u8);
        text.push_str("\n[[port]]\n");
        for (key, value) in [("name", format!("'p{n}'")), ("group", format!("'{group}'"))] {
            text.extend([key, " = ", &value, "\n"]);
        }
        text.extend(["mac = '", &mac.to_string(), "'\naddresses = ", &addresses, "\n"]);
    }
    let config = validate(&toml::from_str(&text).expect("it can be read")).expect("it is right");
    let settings = Settings { host: HERE, hash: HashKey(3, 5), sequence: Sequence(7), bugs: Bugs::NONE };
    let mut switch = Switch::new(settings);
    switch.configure(NOW, config);
    for uplink in ["eth0", "eth1"] {
        switch.handle_link(NOW, &name(uplink), true);
    }
    let ports = (1..=ports.len()).map(|n| switch.attach(NOW, &name(&format!("p{n}"))).expect("it is there"));
    let ports = ports.collect();
    (switch, ports)
}

const WEB: &str =
    "[[portgroup]]\nname = 'web'\nswitch = 'sw'\nvni = 5000\nvlan = { access = 10 }\nmtu = 1500\n";
const LAN: &str = "[[portgroup]]\nname = 'lan'\nswitch = 'sw'\nvlan = { access = 20 }\nmtu = 1500\n";

fn frame(dst: Mac, src: Mac, len: usize) -> Vec<u8> {
    let mut bytes = [dst.0, src.0].concat();
    bytes.extend([0x88, 0xb6]);
    bytes.resize(len, 7);
    bytes
}

fn arp(src: Mac, from: u8, about: u8) -> Vec<u8> {
    let mut bytes = [[0xff; 6], src.0].concat();
    bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.extend(src.0);
    bytes.extend([10, 0, 0, from, 0, 0, 0, 0, 0, 0, 10, 0, 0, about]);
    bytes.resize(60, 0);
    bytes
}

fn send(switch: &mut Switch, at: Instant, from: Ingress, bytes: &[u8]) -> Output {
    let head = &bytes[..bytes.len().min(192)];
    let mut output = Output::default();
    switch.process(at, &[Frame { from, head, len: bytes.len(), offload: Offload::NONE }], &mut output);
    output
}

fn to(output: &Output) -> Vec<Egress> {
    output.deliveries.iter().map(|delivery| delivery.to).collect()
}

fn effects(switch: &mut Switch) -> Vec<Effect> {
    std::iter::from_fn(|| switch.poll_effect()).collect()
}

fn dropped(switch: &Switch, ix: PortIx, cause: Cause) -> u64 {
    switch.port(ix).expect("it is attached").counters().of(cause)
}

fn announcement(vni: u32, n: u8, sequence: u64) -> Announcement {
    Announcement {
        vni: Vni::new(vni).unwrap(),
        lanes: Lanes::One(VlanId::new(10).ok()),
        mac: mac(n),
        ips: vec![format!("10.0.0.{n}").parse().unwrap()],
        port: name("far"),
        sequence: Sequence(sequence),
    }
}

fn peer(switch: &mut Switch, vnis: &[u32]) -> PeerIx {
    let peer = switch.peer_add(THERE).unwrap();
    switch.peer_alive(peer, true);
    let vnis: Vec<Vni> = vnis.iter().map(|vni| Vni::new(*vni).unwrap()).collect();
    switch.peer_networks(peer, &vnis);
    peer
}

#[test]
fn known_addresses_get_their_frames_and_nobody_else() {
    let (mut switch, p) = host(WEB, &["web", "web", "web"]);
    let output = send(&mut switch, NOW, Ingress::Port(p[0]), &frame(mac(2), mac(1), 100));
    assert_eq!(to(&output), [Egress::Port(p[1])]);
    let counters = *switch.port(p[1]).unwrap().counters();
    assert_eq!((counters.to.frames, counters.to.bytes), (1, 100));
    let output = send(&mut switch, NOW, Ingress::Port(p[0]), &frame(Mac::BROADCAST, mac(1), 100));
    assert_eq!(to(&output), [Egress::Port(p[1]), Egress::Port(p[2])]);
    switch.detach(NOW, p[1]);
    let output = send(&mut switch, NOW, Ingress::Port(p[0]), &frame(mac(2), mac(1), 100));
    assert!(output.deliveries.is_empty(), "unplugged: flushed at once");
    assert_eq!(dropped(&switch, p[0], Cause::NoReceiver), 1);
    let again = switch.attach(NOW, &name("p2")).unwrap();
    assert_ne!(again, p[1], "the same place, another generation");
    assert!(switch.port(p[1]).is_none());
}

#[test]
fn security_rejects_by_default() {
    let (mut switch, p) = host(LAN, &["lan", "lan"]);
    let forged = frame(mac(2), mac(9), 100);
    assert!(send(&mut switch, NOW, Ingress::Port(p[0]), &forged).deliveries.is_empty());
    assert_eq!(dropped(&switch, p[0], Cause::Forged), 1);
    // A guest that takes another address is not heard, and one that wants to see everything does not.
    switch.set_guest(NOW, p[1], Some(mac(9)), true);
    assert_eq!(switch.port(p[1]).unwrap().mac(), mac(2));
    let output = send(&mut switch, NOW, Ingress::Port(p[0]), &frame(mac(77), mac(1), 100));
    assert_eq!(to(&output), [Egress::Uplink(UplinkIx(0))]);
    let allowed = format!("{LAN}security = {{ promiscuous = true, mac_change = true }}\n");
    let (mut switch, p) = host(&allowed, &["lan", "lan"]);
    switch.set_guest(NOW, p[1], Some(mac(9)), true);
    assert_eq!(switch.port(p[1]).unwrap().mac(), mac(9));
    let output = send(&mut switch, NOW, Ingress::Port(p[0]), &frame(mac(77), mac(1), 100));
    assert_eq!(to(&output), [Egress::Port(p[1]), Egress::Uplink(UplinkIx(0))]);
}

#[test]
fn tunnels_reach_only_hosts_in_the_network() {
    let (mut switch, p) = host(WEB, &["web", "web"]);
    let far = peer(&mut switch, &[6000]);
    let output = send(&mut switch, NOW, Ingress::Port(p[0]), &frame(Mac::BROADCAST, mac(1), 100));
    assert_eq!(to(&output), [Egress::Port(p[1])]);
    peer(&mut switch, &[5000]);
    let output = send(&mut switch, NOW, Ingress::Port(p[0]), &frame(Mac::BROADCAST, mac(1), 100));
    let vni = Vni::new(5000).unwrap();
    assert!(
        matches!(output.deliveries[1].to, Egress::Tunnel { to, vni: v, tci: Tci(10), .. } if to == far && v == vni)
    );
    // From a tunnel never to a tunnel, and only into networks that are here.
    let from = |vni| Ingress::Tunnel { from: far, vni: Vni::new(vni).unwrap(), tci: Tci(10) };
    let broadcast = frame(Mac::BROADCAST, mac(50), 100);
    assert_eq!(to(&send(&mut switch, NOW, from(5000), &broadcast)), [Egress::Port(p[0]), Egress::Port(p[1])]);
    assert!(to(&send(&mut switch, NOW, from(5001), &broadcast)).is_empty());
    assert_eq!(switch.peer(far).unwrap().counters().of(Cause::NotThere), 1);
    switch.peer_alive(far, false);
    switch.peer_announce(NOW, far, &announcement(5000, 50, 90));
    assert!(to(&send(&mut switch, NOW, Ingress::Port(p[0]), &frame(mac(50), mac(1), 100))).is_empty());
    assert_eq!(dropped(&switch, p[0], Cause::TunnelDown), 1);
}

#[test]
fn a_move_takes_effect_at_once_and_is_announced() {
    let (mut switch, p) = host(WEB, &["web", "web"]);
    let said = effects(&mut switch);
    let own = said.iter().find_map(|it| match it {
        Effect::Announce(it) if it.mac == mac(2) => Some(it.clone()),
        _ => None,
    });
    let own = own.expect("it was announced");
    assert!(own.sequence > Sequence(7) && said.contains(&Effect::Networks(vec![own.vni])));
    let far = peer(&mut switch, &[5000]);
    let unicast = frame(mac(2), mac(1), 100);
    switch.peer_announce(NOW, far, &announcement(5000, 2, own.sequence.0 - 1));
    assert_eq!(to(&send(&mut switch, NOW, Ingress::Port(p[0]), &unicast)), [Egress::Port(p[1])], "old news");
    let newer = announcement(5000, 2, own.sequence.0 + 5_000_000);
    switch.peer_announce(NOW, far, &newer);
    let output = send(&mut switch, NOW, Ingress::Port(p[0]), &unicast);
    assert!(matches!(output.deliveries[0].to, Egress::Tunnel { .. }));
    let withdrawal = Withdrawal { vni: own.vni, lanes: own.lanes, mac: mac(2), sequence: newer.sequence };
    switch.peer_withdraw(NOW, far, &withdrawal);
    assert_eq!(to(&send(&mut switch, NOW, Ingress::Port(p[0]), &unicast)), [Egress::Port(p[1])]);
    switch.detach(NOW, p[1]);
    assert!(effects(&mut switch).iter().any(|it| matches!(it, Effect::Withdraw(it) if it.mac == mac(2))));
    let back = switch.attach(NOW, &name("p2")).unwrap();
    assert!(switch.port(back).is_some());
    let again = effects(&mut switch);
    assert!(again.iter().any(|it| matches!(it, Effect::Announce(it) if it.sequence > newer.sequence)));
}

#[test]
fn an_address_that_moves_too_often_is_frozen_and_reported() {
    let (mut switch, _) = host(WEB, &["web"]);
    let far = peer(&mut switch, &[5000]);
    effects(&mut switch);
    for n in 0..3 {
        let mut it = announcement(5000, 1, 10_000_000 + n);
        switch.peer_announce(NOW, far, &it);
        it.sequence.0 += 100;
        let Announcement { vni, lanes, mac, sequence, .. } = it;
        switch.peer_withdraw(NOW, far, &Withdrawal { vni, lanes, mac, sequence });
    }
    let frozen = Effect::Frozen { vni: Vni::new(5000).ok(), mac: mac(1) };
    assert!(effects(&mut switch).contains(&frozen));
    assert_eq!(switch.table().frozen().count(), 1);
    switch.release(NOW, Vni::new(5000).ok(), mac(1));
    assert_eq!(switch.table().frozen().count(), 0);
}

#[test]
fn neighbours_are_answered_from_what_is_known() {
    let (mut switch, p) = host(WEB, &["web", "web"]);
    let output = send(&mut switch, NOW, Ingress::Port(p[0]), &arp(mac(1), 1, 2));
    assert!(output.deliveries.is_empty(), "nobody else is asked");
    let reply = &output.bytes[output.made[0].bytes.clone()];
    assert_eq!(output.made[0].to, Egress::Port(p[0]));
    assert_eq!(
        (&reply[..6], &reply[6..12], &reply[28..32]),
        (&mac(1).0[..], &mac(2).0[..], &[10, 0, 0, 2][..])
    );
    // At another host, too.
    let far = peer(&mut switch, &[5000]);
    switch.peer_announce(NOW, far, &announcement(5000, 50, 90));
    assert_eq!(send(&mut switch, NOW, Ingress::Port(p[0]), &arp(mac(1), 1, 50)).made.len(), 1);
    // Unknown ones, announcements and probes are everybody's.
    for (from, about) in [(1, 99), (1, 1), (0, 2)] {
        let mut question = arp(mac(1), from, about);
        if from == 0 {
            question[28..32].fill(0);
        }
        let output = send(&mut switch, NOW, Ingress::Port(p[0]), &question);
        assert!(output.made.is_empty() && output.deliveries.len() == 2, "{from} about {about}");
    }
    // In a private VLAN, isolated ports don't learn of each other.
    let private = "[[portgroup]]\nname = 'iso'\nswitch = 'sw'\nvlan = { private = { primary = 100, secondary = 101, kind = \
                   'isolated' } }\n";
    let (mut switch, p) = host(private, &["iso", "iso"]);
    let output = send(&mut switch, NOW, Ingress::Port(p[0]), &arp(mac(1), 1, 2));
    assert!(output.made.is_empty());
    assert_eq!(to(&output), [Egress::Uplink(UplinkIx(0))]);
}

#[test]
fn storms_and_sizes_are_limited() {
    let (mut switch, p) = host(&format!("{LAN}storm = {{ broadcast_pps = 50 }}\n"), &["lan", "lan"]);
    for _ in 0..20 {
        send(&mut switch, NOW, Ingress::Port(p[0]), &frame(Mac::BROADCAST, mac(1), 100));
    }
    assert_eq!(dropped(&switch, p[0], Cause::StormBroadcast), 14, "a tenth of a second's worth, and one");
    assert_eq!(send(&mut switch, NOW, Ingress::Port(p[0]), &frame(mac(2), mac(1), 100)).deliveries.len(), 1);
    assert!(send(&mut switch, NOW, Ingress::Port(p[0]), &frame(mac(2), mac(1), 1515)).deliveries.is_empty());
    assert_eq!(dropped(&switch, p[0], Cause::TooLarge), 1);
    let wild = Offload { csum: Csum::Partial { start: 90, offset: 90 }, gso: None };
    let bytes = frame(mac(2), mac(1), 100);
    let mut output = Output::default();
    let bad = Frame { from: Ingress::Port(p[0]), head: &bytes, len: 100, offload: wild };
    switch.process(NOW, &[bad], &mut output);
    assert_eq!((output.deliveries.len(), dropped(&switch, p[0], Cause::BadOffload)), (0, 1));
}

#[test]
fn rates_hold_back_and_then_drop() {
    let rate = "{ average_kbit_s = 800, peak_kbit_s = 800, burst_kib = 1 }";
    let (mut switch, p) = host(&format!("{LAN}shaping = {{ ingress = {rate} }}\n"), &["lan", "lan"]);
    let bytes = frame(mac(2), mac(1), 1000);
    let times: Vec<Option<Instant>> = (0..9)
        .map(|_| {
            send(&mut switch, NOW, Ingress::Port(p[0]), &bytes).deliveries.first().map(|delivery| delivery.at)
        })
        .collect();
    assert_eq!(times[0], Some(NOW));
    assert!(times[3] > times[2] && times[3] > Some(NOW), "100,000 bytes a second: 10 ms each");
    assert_eq!(times[8], None, "beyond 50 ms they are dropped");
    assert!(switch.ready_at(p[0]) > NOW);
    assert!(dropped(&switch, p[0], Cause::ShapedIngress) > 0);
}

#[test]
fn learning_is_opted_into_and_has_limits() {
    let group = "[[portgroup]]\nname = 'nest'\nswitch = 'sw'\nvlan = { access = 20 }\nsecurity = { forged_transmits = true \
                 }\nlearning = { limit = 2, age_s = 10 }\n";
    let (mut switch, p) = host(group, &["nest", "nest"]);
    for n in 100..103 {
        send(&mut switch, NOW, Ingress::Port(p[0]), &frame(mac(2), mac(n), 100));
    }
    assert_eq!(dropped(&switch, p[0], Cause::LearningLimit), 1);
    assert_eq!(
        to(&send(&mut switch, NOW, Ingress::Port(p[1]), &frame(mac(100), mac(2), 100))),
        [Egress::Port(p[0])]
    );
    switch.handle_time(NOW + Duration::from_secs(11));
    let unknown = send(&mut switch, NOW, Ingress::Port(p[1]), &frame(mac(100), mac(2), 100));
    assert_eq!(
        to(&unknown),
        [Egress::Port(p[0]), Egress::Uplink(UplinkIx(0))],
        "forgotten: all who learn, and outside"
    );
}

#[test]
fn a_failover_is_told_and_echoes_are_not_taken() {
    let (mut switch, p) = host(LAN, &["lan", "lan"]);
    effects(&mut switch);
    let outside = frame(mac(77), mac(1), 100);
    assert_eq!(to(&send(&mut switch, NOW, Ingress::Port(p[0]), &outside)), [Egress::Uplink(UplinkIx(0))]);
    switch.handle_link(NOW, &name("eth0"), false);
    assert_eq!(switch.uplinks_used(GroupIx(0)), [UplinkIx(1)]);
    let told = effects(&mut switch);
    let rarp = told.iter().filter(|it| {
        matches!(it, Effect::Send { uplink: UplinkIx(1), bytes } if bytes[12..18] == [0x81, 0, 0, 20, 0x80, 0x35])
    });
    assert_eq!(rarp.count(), 2, "one for each port, in its VLAN: {told:?}");
    assert_eq!(to(&send(&mut switch, NOW, Ingress::Port(p[0]), &outside)), [Egress::Uplink(UplinkIx(1))]);
    let mut back = [[0xff; 6], mac(1).0].concat();
    back.extend([0x81, 0, 0, 20, 0x88, 0xb6]);
    back.resize(64, 0);
    assert!(to(&send(&mut switch, NOW, Ingress::Uplink(UplinkIx(1)), &back)).is_empty());
    assert_eq!(switch.uplink_counters(UplinkIx(1)).unwrap().of(Cause::Reflected), 1);
    back[11] = 99;
    let both = [Egress::Port(p[0]), Egress::Port(p[1])];
    assert_eq!(to(&send(&mut switch, NOW, Ingress::Uplink(UplinkIx(1)), &back)), both);
    assert!(
        to(&send(&mut switch, NOW, Ingress::Uplink(UplinkIx(0)), &back)).is_empty(),
        "once, by one uplink"
    );
}

#[test]
fn mirrors_copy_and_their_ports_are_silent() {
    let mirror = format!("{LAN}\n[[mirror]]\nname = 'm'\nports = ['p1']\nto = 'p3'\n");
    let (mut switch, p) = host(&mirror, &["lan", "lan", "lan"]);
    let output = send(&mut switch, NOW, Ingress::Port(p[0]), &frame(mac(2), mac(1), 100));
    assert_eq!(to(&output), [Egress::Port(p[2]), Egress::Port(p[1])]);
    assert!(output.deliveries[0].mirror && !output.deliveries[1].mirror);
    let output = send(&mut switch, NOW, Ingress::Port(p[1]), &frame(Mac::BROADCAST, mac(2), 100));
    assert_eq!(
        output.deliveries.iter().filter(|it| it.to == Egress::Port(p[2])).count(),
        1,
        "the copy, nothing else"
    );
    assert!(to(&send(&mut switch, NOW, Ingress::Port(p[2]), &frame(mac(1), mac(3), 100))).is_empty());
}

#[test]
fn a_trace_tells_and_changes_nothing() {
    let (mut switch, p) = host(&format!("{WEB}storm = {{ broadcast_pps = 10 }}\n"), &["web", "web"]);
    let bytes = frame(Mac::BROADCAST, mac(1), 100);
    let it = Frame { from: Ingress::Port(p[0]), head: &bytes, len: 100, offload: Offload::NONE };
    for _ in 0..50 {
        let trace = switch.trace(NOW, &it);
        assert_eq!(trace.steps.len(), 4, "parsed, entered, to all, sent: {:?}", trace.steps);
        assert_eq!(trace.steps[3], Step::Sent(Egress::Port(p[1])));
    }
    assert_eq!(switch.port(p[0]).unwrap().counters().from.frames, 0);
    let forged = frame(mac(2), mac(9), 100);
    let it = Frame { head: &forged, ..it };
    assert_eq!(switch.trace(NOW, &it).steps.last(), Some(&Step::Dropped(Cause::Forged)));
}
