//! Every feature on every path: guest × guest × {checksum, TSO, mergeable buffers, VLAN, MTU, several queues}, over IPv4 and
//! IPv6. What a guest negotiated is what it gets and what it may send; the bytes are the same whatever the other one can do.

mod rig;

use std::time::Instant;

use ferro_vhost::frontend::{NetClient, NetClientOptions};
use ferro_vhost::net::{HEADER_BYTES, QueuePair, VirtioNetHdr, feature, gso_type, header_flag};
use rig::{PAIR, PATIENCE, Rig, config, mac, sum};

/// What a guest can do with checksums and segments.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Level {
    Nothing,
    Checksums,
    SuperFrames,
}

const LEVELS: [Level; 3] = [Level::Nothing, Level::Checksums, Level::SuperFrames];
const PAYLOAD: usize = 20_001;

#[derive(Clone, Copy, Debug)]
struct Case {
    v6: bool,
    tagged: bool,
    mtu: usize,
    from: Level,
    to: Level,
    mergeable: bool,
    pairs: u16,
}

impl Case {
    fn l3(self) -> usize {
        if self.tagged { 18 } else { 14 }
    }

    fn headers(self, l3: usize) -> usize {
        l3 + if self.v6 { 60 } else { 40 }
    }

    /// Payload bytes of the largest packet.
    fn segment(self) -> usize {
        self.mtu - self.headers(0)
    }
}

fn features(level: Level, mergeable: bool) -> u64 {
    let csum = feature::CSUM | feature::GUEST_CSUM;
    let tso = feature::HOST_TSO4 | feature::HOST_TSO6 | feature::GUEST_TSO4 | feature::GUEST_TSO6;
    let level = match level {
        Level::Nothing => 0,
        Level::Checksums => csum,
        Level::SuperFrames => csum | tso,
    };
    let base = feature::MTU | feature::MQ | feature::CTRL_VQ;
    base | level | if mergeable { feature::MRG_RXBUF } else { 0 }
}

fn options(level: Level, mergeable: bool, pairs: u16, mtu: usize) -> NetClientOptions {
    let whole = if level == Level::SuperFrames { 65_562 } else { mtu + 18 };
    NetClientOptions {
        pairs,
        queue_size: 64,
        features: features(level, mergeable),
        rx_buffer_bytes: if mergeable { 2048 } else { (whole + HEADER_BYTES) as u32 },
        frame_bytes_max: 32_768,
        ..NetClientOptions::default()
    }
}

fn pseudo(frame: &[u8], l3: usize, v6: bool) -> u16 {
    let (addresses, l4) = if v6 { (8..40, 40) } else { (12..20, 20) };
    let transport = (frame.len() - l3 - l4) as u32;
    sum(&frame[l3..][addresses], transport + 6)
}

/// TCP from guest 1 to guest 2, the sum of the pseudo header where the checksum goes.
fn tcp(case: Case, at: usize, payload: &[u8]) -> Vec<u8> {
    let mut frame = [mac(2).0, mac(1).0].concat();
    if case.tagged {
        frame.extend([0x81, 0, 0, 20]);
    }
    let transport = 20 + payload.len();
    if case.v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((transport as u16).to_be_bytes());
        frame.extend([6, 64]);
        for last in [1, 2] {
            frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
    } else {
        frame.extend([8, 0]);
        let mut ip = vec![0x45, 0];
        ip.extend(((20 + transport) as u16).to_be_bytes());
        ip.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let check = !sum(&ip, 0);
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        frame.extend(ip);
    }
    let l4 = frame.len();
    frame.extend([0x04, 0xd2, 0, 80]);
    frame.extend((1000 + at as u32).to_be_bytes());
    frame.extend([0, 0, 0, 9, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    frame.extend(payload);
    let pseudo = pseudo(&frame, case.l3(), case.v6);
    frame[l4 + 16..l4 + 18].copy_from_slice(&pseudo.to_be_bytes());
    frame
}

fn finish(frame: &mut [u8], l4: usize) {
    let check = !sum(&frame[l4..], 0);
    frame[l4 + 16..l4 + 18].copy_from_slice(&check.to_be_bytes());
}

/// Sends all of it as this guest would.
fn send_all(case: Case, client: &mut NetClient, data: &[u8]) {
    let l4 = case.headers(case.l3()) - 20;
    let partial = VirtioNetHdr {
        flags: header_flag::NEEDS_CSUM,
        csum_start: l4 as u16,
        csum_offset: 16,
        ..VirtioNetHdr::default()
    };
    if case.from == Level::SuperFrames {
        let header = VirtioNetHdr {
            gso_type: if case.v6 { gso_type::TCPV6 } else { gso_type::TCPV4 },
            hdr_len: (l4 + 20) as u16,
            gso_size: case.segment() as u16,
            ..partial
        };
        assert!(client.send(PAIR, header, &tcp(case, 0, data)).unwrap());
        return;
    }
    for (n, segment) in data.chunks(case.segment()).enumerate() {
        let mut frame = tcp(case, n * case.segment(), segment);
        let mut header = partial;
        if case.from == Level::Nothing {
            finish(&mut frame, l4);
            header = VirtioNetHdr::default();
        }
        assert!(client.send(PAIR, header, &frame).unwrap());
    }
}

/// The next frame on any pair.
fn receive_any(client: &mut NetClient, pairs: u16, bytes: &mut Vec<u8>) -> (VirtioNetHdr, u16) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for pair in 0..pairs {
            if let Some(header) = client.try_recv(QueuePair(pair), bytes).unwrap() {
                return (header, pair);
            }
        }
        assert!(Instant::now() < deadline, "no frame in time");
        std::thread::yield_now();
    }
}

/// Receives all of it, and looks at each frame as this guest would. The receiver gets no tag: it is in an access group.
fn receive_all(case: Case, client: &mut NetClient) -> Vec<u8> {
    let (mut data, mut bytes, mut on) = (Vec::new(), Vec::new(), None);
    let l4 = case.headers(14) - 20;
    while data.len() < PAYLOAD {
        let (header, pair) = receive_any(client, case.pairs, &mut bytes);
        assert_eq!(*on.get_or_insert(pair), pair, "all of a flow on one queue");
        let ether_type = if case.v6 { [0x86, 0xdd] } else { [8, 0] };
        assert_eq!(bytes[12..14], ether_type, "no tag");
        let payload = &bytes[l4 + 20..];
        let seq = u32::from_be_bytes(bytes[l4 + 4..l4 + 8].try_into().unwrap());
        assert_eq!(seq as usize, 1000 + data.len(), "in order");
        if header.gso_type == gso_type::NONE {
            assert!(payload.len() <= case.segment(), "it fits the MTU");
        } else {
            assert_eq!(case.to, Level::SuperFrames, "only if it was negotiated");
            assert_eq!(usize::from(header.gso_size), case.segment());
            assert_eq!(usize::from(header.hdr_len), l4 + 20);
        }
        let buffers = if case.mergeable { (bytes.len() + HEADER_BYTES).div_ceil(2048) } else { 1 };
        assert_eq!(usize::from(header.num_buffers), buffers);
        if case.from == case.to && case.to == Level::SuperFrames {
            assert_eq!(payload.len(), PAYLOAD, "nobody cuts it");
        }
        data.extend_from_slice(payload);
        if header.flags & header_flag::NEEDS_CSUM != 0 {
            assert!(case.to >= Level::Checksums, "only if it was negotiated");
            assert_eq!((usize::from(header.csum_start), header.csum_offset), (l4, 16));
            finish(&mut bytes, l4);
        }
        let pseudo = pseudo(&bytes, 14, case.v6);
        assert_eq!(sum(&bytes[l4..], u32::from(pseudo)), 0xffff, "the checksum is right");
        if !case.v6 {
            assert_eq!(sum(&bytes[14..34], 0), 0xffff, "that of the header, too");
        }
    }
    data
}

fn groups(mtu: usize) -> String {
    let mut text = String::new();
    for (name, vlan) in [("flat", "{ access = 20 }"), ("tags", "{ trunk = { ranges = [[10, 30]] } }")] {
        for part in ["[[portgroup]]\nswitch = 'sw'\nname = '", name, "'\nvlan = ", vlan, "\nmtu = "] {
            text.push_str(part);
        }
        text.push_str(&mtu.to_string());
        text.push('\n');
    }
    text
}

fn matrix(mtu: usize, tagged: bool) {
    let rig = Rig::new(config(&groups(mtu), &[if tagged { "tags" } else { "flat" }, "flat"]));
    let data: Vec<u8> = (0..PAYLOAD).map(|n| (n * 7 + n / 251) as u8).collect();
    for from in LEVELS {
        let mut one = rig.guest(1, options(from, true, 1, mtu));
        for (to, mergeable, pairs) in
            LEVELS.into_iter().flat_map(|to| [(to, true, 1), (to, true, 2), (to, false, 1), (to, false, 4)])
        {
            let mut two = rig.guest(2, options(to, mergeable, pairs, mtu));
            for v6 in [false, true] {
                let case = Case { v6, tagged, mtu, from, to, mergeable, pairs };
                println!("{case:?}");
                send_all(case, &mut one, &data);
                assert!(receive_all(case, &mut two) == data, "the bytes are the same");
            }
            let port = rig.port(2);
            assert!(port.drops.all().iter().all(|(_, n)| *n == 0), "{:?}", port.drops);
            drop(two);
            assert!(rig.unplug(2));
        }
        drop(one);
        assert!(rig.unplug(1));
    }
}

#[test]
fn every_pair_of_guests_at_mtu_1500() {
    matrix(1500, false);
}

#[test]
fn every_pair_of_guests_at_mtu_9000() {
    matrix(9000, false);
}

#[test]
fn every_pair_of_guests_with_tags() {
    matrix(1500, true);
    matrix(9000, true);
}

#[test]
fn flows_spread_over_queues_and_stay_on_theirs() {
    let rig = Rig::new(config(&groups(1500), &["flat", "flat"]));
    let mut one = rig.guest(1, options(Level::Nothing, true, 1, 1500));
    let mut two = rig.guest(2, options(Level::Nothing, true, 4, 1500));
    let case = Case {
        v6: false,
        tagged: false,
        mtu: 1500,
        from: Level::Nothing,
        to: Level::Nothing,
        mergeable: true,
        pairs: 4,
    };
    let (mut bytes, mut queues) = (Vec::new(), std::collections::BTreeMap::new());
    for round in 0..3 {
        for flow in 0..32_u16 {
            let mut frame = tcp(case, 0, &[round; 100]);
            frame[34..36].copy_from_slice(&(1000 + flow).to_be_bytes());
            assert!(one.send(PAIR, VirtioNetHdr::default(), &frame).unwrap());
            let (_, pair) = receive_any(&mut two, 4, &mut bytes);
            assert_eq!(bytes, frame);
            assert_eq!(*queues.entry(flow).or_insert(pair), pair);
        }
    }
    let used: std::collections::BTreeSet<_> = queues.values().collect();
    assert_eq!(used.len(), 4, "32 flows, 4 queues");
    // The guest takes two of its queues out of use: nobody's frames go there any more.
    for pair in [1, 3] {
        two.set_enabled(QueuePair(pair), false).unwrap();
    }
    for flow in 0..32_u16 {
        let mut frame = tcp(case, 0, &[9; 100]);
        frame[34..36].copy_from_slice(&(1000 + flow).to_be_bytes());
        assert!(one.send(PAIR, VirtioNetHdr::default(), &frame).unwrap());
        let (_, pair) = receive_any(&mut two, 4, &mut bytes);
        assert!(bytes == frame && [0, 2].contains(&pair));
    }
}
