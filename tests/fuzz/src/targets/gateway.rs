//! What guests send to the gateway of their port group, and the document in which its leases are written.

use std::collections::BTreeMap;
use std::time::Duration;

use ferro_protocol::net::{Mac, NetName};
use vswitch_core::config::spec::Spec;
use vswitch_core::config::{Config, GroupIx, validate};
use vswitch_core::frame::{Csum, Ether, FRAME_BYTES_MAX, Offload};
use vswitch_core::time::Instant;
use vswitchd::endpoint::{
    Book, Endpoints, LEASES_MAX, LeaseAnswer, PORT_LEASES_MAX, Refusal, Rules, WallSeconds,
};

use crate::Source;

/// Two networks, IPv4 with few addresses and IPv6.
const SPEC: &str = r#"{
    "switch": [{ "name": "sw" }],
    "portgroup": [
        { "name": "four", "switch": "sw", "vni": 1,
          "gateway": { "address": "10.0.0.1/24", "pool": ["10.0.0.8", "10.0.0.15"], "lease_s": 60 } },
        { "name": "six", "switch": "sw", "vni": 2, "gateway": { "address": "fd00::1/64" } }
    ],
    "port": [
        { "name": "a", "group": "four", "mac": "02:00:00:00:00:01" },
        { "name": "b", "group": "four", "mac": "02:00:00:00:00:02", "addresses": ["10.0.0.9"] },
        { "name": "c", "group": "six", "mac": "02:00:00:00:00:03" }
    ]
}"#;

const WALL: WallSeconds = WallSeconds(1_800_000_000);

fn config() -> Config {
    let spec: Spec = serde_json::from_str(SPEC).expect("it is written above");
    validate(&spec).expect("it is right")
}

/// Frames, each with its port, how much time passes, whether its sums are looked at and its wishes are granted, and its
/// length in front.
pub(super) fn frames(data: &[u8]) {
    let config = config();
    let group: NetName = "four".parse().expect("a name");
    let rules = Rules::of(&config, GroupIx(0)).expect("it gives addresses");
    let macs: BTreeMap<u32, Mac> = (0_u32..)
        .zip(config.groups())
        .filter_map(|(at, group)| Some((at, group.gateway.as_ref()?.mac)))
        .collect();
    let (mut endpoints, mut book, mut now) = (Endpoints::new(), Book::default(), Instant(0));
    endpoints.configure(now, &config);
    endpoints.set_book(now, &group, WALL, book.clone());
    let mut check = |from: GroupIx, bytes: &[u8]| {
        let ether = Ether::parse(bytes, bytes.len()).expect("it sends frames");
        assert_eq!(Some(&ether.src), macs.get(&from.0), "in its own name");
        assert!(bytes.len() <= 9230 && ether.tag.is_none());
    };
    let mut source = Source::new(data);
    while !source.is_empty() {
        let (how, wait) = (source.byte(), source.byte());
        now = now + Duration::from_millis(u64::from(wait) * u64::from(wait));
        let (ix, port) =
            [(0, "a"), (0, "b"), (1, "c"), (0, "a")].get(usize::from(how & 3)).copied().unwrap_or((0, "a"));
        let len = usize::from(u16::from_be_bytes([source.byte(), source.byte()]));
        let frame = source.take(len.min(FRAME_BYTES_MAX));
        let csum = if how & 4 == 0 { Csum::Valid } else { Csum::None };
        let port: NetName = port.parse().expect("a name");
        endpoints.handle(now, GroupIx(ix), &port, frame, Offload { csum, gso: None }, &mut check);
        while let Some(wanted) = endpoints.poll_wanted() {
            let wall = WALL.plus(now.0 / 1_000_000_000);
            let answer = if how & 8 == 0 {
                book.apply(&rules, wall, &wanted)
            } else {
                LeaseAnswer::Refused { mac: wanted.mac, ip: wanted.ip, why: Refusal::Unavailable }
            };
            endpoints.answer(now, &group, answer, &mut check);
        }
        endpoints.handle_time(now, &mut check);
    }
    for lease in book.leases() {
        assert!(rules.gives(lease.ip) && !rules.reserved.contains_key(&lease.ip), "{lease:?}");
        assert!(lease.mac.is_station());
    }
    assert!(book.leases().filter(|lease| lease.port.as_str() == "a").count() <= PORT_LEASES_MAX);
    assert_eq!(Book::decode(&book.encode().expect("it can be written")).expect("it can be read"), book);
}

fn record(how: u8, wait: u8, frame: &[u8]) -> Vec<u8> {
    [&[how, wait][..], &(frame.len() as u16).to_be_bytes(), frame].concat()
}

/// A DHCP message of machine `n`, whose sums nobody looks at but that of the IP header.
fn dhcp(n: u8, kind: u8, ciaddr: [u8; 4], asks: Option<u8>, server: bool) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0, 0];
    message.extend(ciaddr);
    message.extend([0; 12]);
    message.extend([2, 0, 0, 0, 0, n]);
    message.resize(236, 0);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind]);
    message.extend(asks.into_iter().flat_map(|last| [50, 4, 10, 0, 0, last]));
    if server {
        message.extend([54, 4, 10, 0, 0, 1]);
    }
    message.extend([61, 3, 1, 2, n, 255]);
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, n, 8, 0]);
    let mut header = vec![0x45, 0];
    header.extend((28 + message.len() as u16).to_be_bytes());
    header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend(ciaddr);
    header.extend([0xff; 4]);
    let sum: u32 = header.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(header);
    frame.extend([0, 68, 0, 67]);
    frame.extend((8 + message.len() as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(message);
    frame
}

/// Conversations that end well, and single questions.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let unset = [0; 4];
    let get = [
        record(0, 5, &dhcp(1, 1, unset, None, false)),
        record(0, 5, &dhcp(1, 3, unset, Some(10), true)),
        record(0, 200, &dhcp(1, 3, [10, 0, 0, 10], None, false)),
        record(8, 200, &dhcp(1, 3, [10, 0, 0, 10], None, false)),
        record(0, 50, &dhcp(1, 4, unset, Some(10), true)),
        record(0, 5, &dhcp(1, 3, unset, Some(11), false)),
        record(0, 5, &dhcp(1, 7, [10, 0, 0, 11], None, true)),
        record(1, 5, &dhcp(2, 3, unset, Some(9), false)),
        record(1, 5, &dhcp(2, 8, [10, 0, 0, 9], None, false)),
    ];
    let mut arp = vec![0xff; 6];
    arp.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 8]);
    arp.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
    let icmpv6 = |message: &[u8]| {
        let mut frame = vec![0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 3, 0x86, 0xdd, 0x60, 0, 0, 0, 0];
        frame.extend([message.len() as u8, 58, 255]);
        frame.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        frame.extend(message);
        frame
    };
    let mut solicit = vec![135, 0, 0, 0, 0, 0, 0, 0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    solicit.extend([1, 1, 2, 0, 0, 0, 0, 3]);
    let router = [133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 3];
    let ping = [128, 0, 0, 0, 0, 1, 0, 2, b'h', b'i'];
    let mut all: Vec<Vec<u8>> = get.to_vec();
    all.push(get.concat());
    all.push(record(0, 1, &arp));
    all.extend([&solicit[..], &router, &ping].map(|message| record(2, 1, &icmpv6(message))));
    all
}

/// A document that any host may have written: what is understood is written again as it is.
pub(super) fn book(data: &[u8]) {
    let Ok(book) = Book::decode(data) else { return };
    assert!(book.leases().count() <= LEASES_MAX);
    let again = Book::decode(&book.encode().expect("it can be written")).expect("it can be read");
    assert_eq!(book, again);
    let rules = Rules::of(&config(), GroupIx(0)).expect("it gives addresses");
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    if let Some(ip) = book.candidate(&rules, WALL, mac, None, |_| false) {
        assert!(
            book.leases()
                .all(|lease| lease.ip != ip || lease.mac == mac || !Book::is_held(lease, &rules, WALL))
        );
    }
}

pub(super) fn book_seeds() -> Vec<Vec<u8>> {
    let lease = |n: u8, state: &str| {
        format!(
            r#"{{"ip":"10.0.0.{n}","mac":"02:00:00:00:01:{n:02x}","port":"a","until":180000000{n},"state":"{state}"}}"#
        )
    };
    let leases = [lease(8, "held"), lease(9, "declined"), lease(10, "held")].join(",");
    vec![b"{\"version\":1,\"leases\":[]}".to_vec(), format!("{{\"version\":1,\"leases\":[{leases}]}}").into()]
}
