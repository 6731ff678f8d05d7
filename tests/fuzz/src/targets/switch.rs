//! What guests, the physical network and peers send to the virtual switch.

use std::time::Duration;

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{NetName, Sequence, Vni};
use vswitch_core::bugs::Bugs;
use vswitch_core::config::spec::Spec;
use vswitch_core::config::{GroupIx, UplinkIx, validate};
use vswitch_core::frame::{
    Csum, Edit, Ether, FRAME_BYTES_MAX, Gso, GsoKind, HEAD_BYTES, Offload, Run, Tci, VIRTIO_NET_HDR_BYTES,
};
use vswitch_core::hash::HashKey;
use vswitch_core::pipeline::{Egress, Frame, Ingress, Output, Settings, Switch};
use vswitch_core::table::{PeerIx, PortIx};
use vswitch_core::time::Instant;
use vswitch_core::tunnel::{MARKER, Meta, Packer, Unpacker};

use crate::Source;

/// Ports of every kind, in one virtual and one physical network.
const SPEC: &str = r#"{
    "switch": [{ "name": "sw", "mtu": 9000, "uplinks": ["eth0", "eth1"] }],
    "portgroup": [
        { "name": "a", "switch": "sw", "vlan": { "access": 10 }, "security": { "forged_transmits": true },
          "learning": { "limit": 4 },
          "gateway": { "address": "10.0.0.254/24", "pool": ["10.0.0.100", "10.0.0.120"] } },
        { "name": "t", "switch": "sw", "vlan": { "trunk": { "ranges": [[10, 12]], "native": 11 } } },
        { "name": "g", "switch": "sw", "vni": 7, "vlan": "guest" },
        { "name": "p", "switch": "sw", "vni": 8, "vlan": { "private": { "primary": 100, "secondary": 101, "kind": "isolated" } } },
        { "name": "q", "switch": "sw", "vni": 8, "vlan": { "private": { "primary": 100, "kind": "promiscuous" } },
          "gateway": { "address": "fd00::1/64" } }
    ],
    "port": [
        { "name": "p0", "group": "a", "mac": "02:00:00:00:00:01", "addresses": ["10.0.0.1"] },
        { "name": "p1", "group": "t", "mac": "02:00:00:00:00:02", "addresses": ["10.0.0.2", "fe80::2"] },
        { "name": "p2", "group": "g", "mac": "02:00:00:00:00:03" },
        { "name": "p3", "group": "p", "mac": "02:00:00:00:00:04", "addresses": ["10.0.0.4"] },
        { "name": "p4", "group": "q", "mac": "02:00:00:00:00:05", "addresses": ["10.0.0.5"] },
        { "name": "p5", "group": "a", "mac": "02:00:00:00:00:06", "addresses": ["10.0.0.6"] }
    ]
}"#;

const NOW: Instant = Instant(1_000_000_000);

fn switch() -> (Switch, Vec<PortIx>) {
    let spec: Spec = serde_json::from_str(SPEC).expect("it is written above");
    let config = validate(&spec).expect("it is right");
    let host = HostId::from_bytes([1; 16]);
    let settings = Settings { host, hash: HashKey(1, 2), sequence: Sequence(0), bugs: Bugs::NONE };
    let mut switch = Switch::new(settings);
    switch.configure(NOW, config);
    let peer = switch.peer_add(HostId::from_bytes([2; 16])).expect("there is room");
    switch.peer_alive(peer, true);
    let vnis: Vec<Vni> = [7, 8].iter().filter_map(|vni| Vni::new(*vni).ok()).collect();
    switch.peer_networks(peer, &vnis);
    for n in 0..2 {
        let name: NetName = format!("eth{n}").parse().expect("a name");
        switch.handle_link(NOW, &name, true);
    }
    let name = |n: usize| format!("p{n}").parse::<NetName>().expect("a name");
    let ports = (0..6).map(|n| switch.attach(NOW, &name(n)).expect("it is there")).collect();
    (switch, ports)
}

/// A frame from anywhere: it is forwarded as a trace says, and what leaves is what came, but for its tag.
pub(super) fn frames(data: &[u8]) {
    let mut source = Source::new(data);
    let (mut switch, ports) = switch();
    let from = match source.below(10) {
        n @ 0..=5 => Ingress::Port(ports[n]),
        6 => Ingress::Uplink(UplinkIx(u16::from(source.byte() % 3))),
        7 => Ingress::Endpoint(GroupIx(u32::from(source.byte() % 6))),
        _ => {
            let vni = Vni::new(7 + u32::from(source.byte() % 3)).expect("small");
            let tci = Tci(u16::from_be_bytes([source.byte(), source.byte()]));
            Ingress::Tunnel { from: PeerIx(u16::from(source.byte() % 2)), vni, tci }
        }
    };
    let mut header = [0; VIRTIO_NET_HDR_BYTES];
    let taken = source.take(VIRTIO_NET_HDR_BYTES);
    header[..taken.len()].copy_from_slice(taken);
    let offload = Offload::from_virtio(header).unwrap_or_default();
    let bytes = source.rest();
    let head = &bytes[..bytes.len().min(HEAD_BYTES)];
    // A frame's length is another's word, too.
    let frame = Frame { from, head, len: bytes.len(), offload };
    let trace = switch.trace(NOW, &frame);
    let mut output = Output::default();
    switch.process(NOW, &[frame], &mut output);
    assert_eq!(trace.output, output, "a trace says what happens");
    assert!(output.deliveries.len() <= 16);
    for delivery in &output.deliveries {
        match (from, delivery.to) {
            (Ingress::Endpoint(_), to) => {
                assert!(matches!(to, Egress::Port(_)), "a gateway stays where it is")
            }
            (from, Egress::Endpoint(_)) => {
                assert!(matches!(from, Ingress::Port(_)), "every host asks its own")
            }
            _ => {}
        }
        let mut out = Vec::new();
        delivery.edit.apply(bytes, &mut out);
        assert_eq!(out.len(), delivery.edit.len(bytes.len()));
        assert_eq!(out[..12], bytes[..12]);
        assert!(Ether::parse(&out, out.len()).is_ok());
        let before = offload.check(bytes, bytes.len()).map(|layout| layout.map(|it| it.segments()));
        let after = delivery
            .edit
            .offload(offload)
            .check(&out, out.len())
            .map(|layout| layout.map(|it| it.segments()));
        assert_eq!(before, after, "the offload moves with the tag");
    }
    segments(bytes, offload);
    switch.handle_time(NOW + Duration::from_secs(400));
}

/// Every segment of a super-frame is a frame.
fn segments(bytes: &[u8], offload: Offload) {
    let Ok(Some(layout)) = offload.check(bytes, bytes.len()) else { return };
    let mut sum = 0;
    for first in 0..layout.segments() {
        let run = Run { first, count: 1 };
        let mut out = Vec::new();
        let offload = layout.put_head(bytes, run, &mut out);
        let payload = layout.bytes(run);
        sum += payload.len();
        out.extend_from_slice(&bytes[layout.head_len + payload.start..layout.head_len + payload.end]);
        assert_eq!(offload.check(&out, out.len()), Ok(None));
    }
    assert_eq!(sum, layout.payload);
}

/// Datagrams of a peer, each with its length in front; then honest ones, which still arrive.
pub(super) fn datagrams(data: &[u8]) {
    let mut rest = data;
    let mut it = Unpacker::new(Bugs::NONE);
    let mut now = NOW;
    let bounded = |frame: vswitch_core::tunnel::Arrived<'_>| assert!(frame.bytes.len() <= FRAME_BYTES_MAX);
    while let Some((len, behind)) = rest.split_first_chunk::<2>() {
        let len = usize::from(u16::from_be_bytes(*len)).min(behind.len());
        let (datagram, behind) = behind.split_at(len);
        rest = behind;
        // Wrong or not, it returns.
        let _ = it.handle(now, datagram, bounded);
        now = now + Duration::from_millis(3);
        it.handle_time(now, bounded);
    }
    it.handle_time(now + Duration::from_secs(1), bounded);
    assert!(!it.is_waiting(), "nothing waits for ever");
    let meta = Meta { vni: Vni::new(9).expect("small"), tci: Tci(3), offload: Offload::NONE };
    let frame = vec![7; 3000];
    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    let mut packer = Packer::new(1400);
    assert!(packer.push(&meta, frame.as_slice(), &mut bytes, &mut ends));
    packer.finish(&bytes, &mut ends);
    let mut honest = Unpacker::new(Bugs::NONE);
    let (mut from, mut arrived) = (0, 0);
    for end in ends {
        honest
            .handle(now, &bytes[from..end], |it| arrived += usize::from(it.bytes == frame.as_slice()))
            .expect("ours can be read");
        from = end;
    }
    assert_eq!(arrived, 1);
}

fn tcp(payload: usize) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    bytes.extend(((40 + payload) as u16).to_be_bytes());
    bytes.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 4, 210, 0, 80]);
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 9, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    bytes.resize(bytes.len() + payload, 0x5a);
    bytes
}

fn super_offload() -> Offload {
    let csum = Csum::Partial { start: 34, offset: 16 };
    Offload { csum, gso: Some(Gso { kind: GsoKind::TcpV4, ecn: false, size: 500 }) }
}

pub(super) fn frame_seeds() -> Vec<Vec<u8>> {
    let with = |from: &[u8], offload: Offload, frame: &[u8]| {
        let mut input = from.to_vec();
        input.extend(offload.to_virtio(0, 0));
        input.extend_from_slice(frame);
        input
    };
    let plain = tcp(100);
    let mut arp = vec![0xff; 6];
    arp.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1]);
    arp.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 6]);
    arp.resize(60, 0);
    let mut tagged = Vec::new();
    Edit { strip: false, insert: Some(Tci(0x600a)) }.apply(&plain, &mut tagged);
    let mut double = Vec::new();
    Edit { strip: false, insert: Some(Tci(11)) }.apply(&tagged, &mut double);
    let mut v6 = vec![0x33, 0x33, 0xff, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255];
    v6.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    v6.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 2, 135, 0, 0x7b, 0x2c, 0, 0, 0, 0]);
    v6.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1, 1, 2, 0, 0, 0, 0, 1]);
    vec![
        with(&[0], Offload::NONE, &plain),
        with(&[0], super_offload(), &tcp(3000)),
        with(&[0], Offload::NONE, &arp),
        with(&[1], Offload::NONE, &tagged),
        with(&[2], Offload::NONE, &double),
        with(&[1], Offload::NONE, &v6),
        with(&[3], Offload::NONE, &arp),
        with(&[6, 0], Offload::NONE, &tagged),
        with(&[7, 0, 0, 10, 0], super_offload(), &tcp(1200)),
        with(&[8, 1, 0, 101, 0], Offload::NONE, &double),
    ]
}

pub(super) fn datagram_seeds() -> Vec<Vec<u8>> {
    let meta = |offload| Meta { vni: Vni::new(7).expect("small"), tci: Tci(0x2003), offload };
    let seed = |frames: &[(Offload, Vec<u8>)]| {
        let (mut packer, mut bytes, mut ends) = (Packer::new(700), Vec::new(), Vec::new());
        for (offload, frame) in frames {
            assert!(packer.push(&meta(*offload), frame.as_slice(), &mut bytes, &mut ends));
        }
        packer.finish(&bytes, &mut ends);
        let (mut input, mut from) = (Vec::new(), 0);
        for end in ends {
            input.extend(((end - from) as u16).to_be_bytes());
            input.extend_from_slice(&bytes[from..end]);
            from = end;
        }
        input
    };
    let valid = Offload { csum: Csum::Valid, gso: None };
    vec![
        seed(&[(Offload::NONE, tcp(60)), (valid, tcp(10)), (Offload::NONE, tcp(200))]),
        seed(&[(super_offload(), tcp(2600))]),
        seed(&[(Offload::NONE, tcp(1460)), (Offload::NONE, tcp(1460))]),
        vec![0, 1, MARKER],
    ]
}
