//! The worker with guests on one host.

mod rig;

use std::time::Duration;

use ferro_protocol::net::Mac;
use ferro_vhost::frontend::{NetClient, NetClientOptions, NetDestination};
use ferro_vhost::net::{VirtioNetHdr, feature};
use rig::{LAN, PAIR, PLAIN, Rig, config, eventually, frame, mac, name, receive, send};
use vswitch_core::frame::Offload;
use vswitch_core::pipeline::{Cause, Step};
use vswitchd::data::capture::{CaptureOf, CaptureOptions, Direction};
use vswitchd::data::port::{AttachRefused, Command, Event, TraceFrom};
use vswitchd::data::snapshot::PortLink;
use vswitchd::ports::vhost::{VhostSettings, VhostSocket};
use vswitchd::ports::{PortDevice, VhostPort};

fn small() -> NetClientOptions {
    NetClientOptions { queue_size: 64, frame_bytes_max: 16_384, ..NetClientOptions::default() }
}

#[test]
fn frames_pass_from_guest_to_guest_and_to_nobody_else() {
    let rig = Rig::new(config(LAN, &["lan", "lan", "lan"]));
    let mut guests: Vec<_> = (1..=3).map(|n| rig.guest(n, small())).collect();
    for round in 0..200 {
        let len = 60 + round * 13 % 1400;
        let there = frame(mac(2), mac(1), len, round);
        send(&mut guests[0], PLAIN, &there);
        let (header, bytes) = receive(&mut guests[1]);
        assert_eq!((header.flags, header.gso_type, &bytes), (0, 0, &there));
        let back = frame(mac(1), mac(2), len, round + 1);
        send(&mut guests[1], PLAIN, &back);
        assert_eq!(receive(&mut guests[0]).1, back);
    }
    let all = frame(Mac::BROADCAST, mac(1), 100, 9);
    send(&mut guests[0], PLAIN, &all);
    assert_eq!(receive(&mut guests[1]).1, all);
    assert_eq!(receive(&mut guests[2]).1, all, "the first that it gets at all");
    let port = rig.port(2);
    assert_eq!((port.counters.from.frames, port.counters.to.frames), (200, 201));
    assert_eq!((port.kind, port.group.as_str()), ("vhost-user", "lan"));
}

#[test]
fn what_a_guest_may_not_send_is_counted_and_goes_nowhere() {
    let rig = Rig::new(config(LAN, &["lan", "lan"]));
    let (mut one, mut two) = (rig.guest(1, small()), rig.guest(2, small()));
    send(&mut one, PLAIN, &frame(mac(2), mac(9), 100, 1));
    let long = frame(mac(2), mac(1), 9015, 1);
    send(&mut one, PLAIN, &long);
    let bad = VirtioNetHdr { flags: 1, csum_start: 5, csum_offset: 90, ..PLAIN };
    send(&mut one, bad, &frame(mac(2), mac(1), 60, 1));
    let fine = frame(mac(2), mac(1), 9014, 2);
    send(&mut one, PLAIN, &fine);
    assert_eq!(receive(&mut two).1, fine, "the only one that arrives");
    assert_eq!((rig.dropped(1, Cause::Forged), rig.dropped(1, Cause::TooLarge)), (1, 1));
    assert_eq!(rig.port(1).drops.bad_header, 1);
}

#[test]
fn a_guest_that_stops_reading_harms_nobody() {
    let rig = Rig::new(config(LAN, &["lan", "lan", "lan"]));
    let mut one = rig.guest(1, small());
    let _deaf = rig.guest(2, small());
    let mut three = rig.guest(3, small());
    for round in 0..500 {
        send(&mut one, PLAIN, &frame(mac(2), mac(1), 1000, round));
        let mine = frame(mac(3), mac(1), 1000, round);
        send(&mut one, PLAIN, &mine);
        assert_eq!(receive(&mut three).1, mine);
    }
    let deaf = rig.port(2);
    assert!(deaf.drops.no_room >= 400, "{:?}", deaf.drops);
    assert_eq!(rig.port(3).drops.no_room, 0);
}

#[test]
fn a_flood_does_not_starve_a_neighbour() {
    let rig = Rig::new(config(LAN, &["lan", "lan", "lan"]));
    let (mut flooder, mut one, mut two) =
        (rig.guest(1, small()), rig.guest(2, small()), rig.guest(3, small()));
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flood = std::thread::spawn({
        let stop = std::sync::Arc::clone(&stop);
        move || {
            let junk = frame(Mac([2, 9, 9, 9, 9, 9]), mac(1), 1514, 3);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                if !flooder.send(PAIR, PLAIN, &junk).unwrap() {
                    std::thread::yield_now();
                }
            }
        }
    });
    let (deadline, mut round) = (std::time::Instant::now() + rig::PATIENCE, 0);
    while round < 500 || rig.dropped(1, Cause::NoUplink) <= 500 {
        assert!(std::time::Instant::now() < deadline, "no flood in time");
        let mine = frame(mac(3), mac(2), 200, round);
        send(&mut one, PLAIN, &mine);
        assert_eq!(receive(&mut two).1, mine);
        round += 1;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    flood.join().unwrap();
    let two = rig.port(3);
    assert_eq!((two.drops.no_room, two.drops.not_ready), (0, 0));
}

#[test]
fn ports_come_and_go_under_traffic() {
    let mut rig = Rig::new(config(LAN, &["lan", "lan"]));
    let mut one = rig.guest(1, small());
    assert!(matches!(rig.try_plug(3, 1, "p3.sock"), Err(AttachRefused::Unknown(_))));
    for _ in 0..5 {
        let mut two = rig.guest(2, small());
        assert!(matches!(rig.try_plug(1, 1, "other.sock"), Err(AttachRefused::Attached(_))));
        let mine = frame(mac(2), mac(1), 300, 1);
        send(&mut one, PLAIN, &mine);
        assert_eq!(receive(&mut two).1, mine);
        assert!(rig.unplug(2));
        assert!(!rig.unplug(2), "nothing is plugged in");
        send(&mut one, PLAIN, &mine);
        rig.event("it is out", |event| {
            matches!(event, Event::Port { name: it, link: PortLink::Detached } if it.as_str() == "p2")
        });
    }
    eventually("all were counted", || rig.dropped(1, Cause::NoUplink) == 5);
    // A guest that hangs up without a word, and comes again.
    let mut two = rig.guest(2, small());
    two.hang_up().unwrap();
    eventually("it is gone", || rig.port(2).link == PortLink::Waiting);
    two.reconnect().unwrap();
    eventually("it is back", || rig.port(2).link == PortLink::Running);
    let mine = frame(mac(2), mac(1), 300, 1);
    send(&mut one, PLAIN, &mine);
    assert_eq!(receive(&mut two).1, mine);
    // Out of the configuration, out of the worker.
    rig.configure(config(LAN, &["lan"]));
    rig.event("it is out", |event| matches!(event, Event::Port { link: PortLink::Removed, .. }));
    assert_eq!(rig.snapshot().ports.len(), 1);
}

#[test]
fn rates_delay_frames_and_lose_none() {
    let shaped = "[[portgroup]]\nname = 'slow'\nswitch = 'sw'\nvlan = { access = 20 }\nmtu = 1500\n\
        shaping = { egress = { average_kbit_s = 20000, peak_kbit_s = 200000, burst_kib = 3 } }\n";
    let rig = Rig::new(config(&format!("{LAN}{shaped}"), &["lan", "slow"]));
    let (mut one, mut two) = (rig.guest(1, small()), rig.guest(2, small()));
    let started = std::time::Instant::now();
    // 40 kB at 20 Mbit/s: 16 ms, but for the burst of 3 kB.
    for round in 0..40 {
        send(&mut one, PLAIN, &frame(mac(2), mac(1), 1000, round));
    }
    for round in 0..40 {
        assert_eq!(receive(&mut two).1, frame(mac(2), mac(1), 1000, round), "in order");
    }
    assert!(started.elapsed() >= Duration::from_millis(12), "{:?}", started.elapsed());
    assert_eq!(rig.dropped(2, Cause::ShapedEgress), 0);
    assert_eq!((rig.snapshot().delayed, rig.snapshot().delayed_bytes), (0, 0));
}

#[test]
fn a_rate_from_a_guest_holds_its_frames_back() {
    let shaped = "[[portgroup]]\nname = 'slow'\nswitch = 'sw'\nvlan = { access = 20 }\nmtu = 1500\n\
        shaping = { ingress = { average_kbit_s = 8000, peak_kbit_s = 80000, burst_kib = 2 } }\n";
    let rig = Rig::new(config(&format!("{LAN}{shaped}"), &["slow", "lan"]));
    let (mut one, mut two) = (rig.guest(1, small()), rig.guest(2, small()));
    // 60 kB at 8 Mbit/s is more than a frame may wait: they stay in the guest's ring.
    for round in 0..60 {
        send(&mut one, PLAIN, &frame(mac(2), mac(1), 1000, round));
    }
    for round in 0..60 {
        assert_eq!(receive(&mut two).1, frame(mac(2), mac(1), 1000, round));
    }
    assert_eq!(rig.dropped(1, Cause::ShapedIngress), 0);
}

#[test]
fn an_idle_worker_sleeps() {
    let ports: Vec<&str> = vec!["lan"; 50];
    let rig = Rig::new(config(LAN, &ports));
    let mut tiny = small();
    (tiny.queue_size, tiny.frame_bytes_max) = (16, 2048);
    let mut guests: Vec<_> = (1..=50).map(|n| rig.guest(n, tiny.clone())).collect();
    let mine = frame(mac(2), mac(1), 100, 1);
    send(&mut guests[0], PLAIN, &mine);
    assert_eq!(receive(&mut guests[1]).1, mine);
    std::thread::sleep(Duration::from_millis(50));
    let before = rig.snapshot();
    std::thread::sleep(Duration::from_secs(1));
    let after = rig.snapshot();
    // Ten ticks a second, and the questions.
    assert!(after.turns - before.turns < 100, "{} turns in an idle second", after.turns - before.turns);
    send(&mut guests[48], PLAIN, &frame(mac(50), mac(49), 100, 1));
    receive(&mut guests[49]);
}

#[test]
fn captures_and_traces_show_what_passes() {
    let rig = Rig::new(config(LAN, &["lan", "lan"]));
    let (mut one, mut two) = (rig.guest(1, small()), rig.guest(2, small()));
    let capture = |of: CaptureOf, options: CaptureOptions| {
        rig.data.ask_blocking(|answer| Command::CaptureStart { of, options, answer }).unwrap()
    };
    let mut group = capture(CaptureOf::Group(name("lan")), CaptureOptions::default()).unwrap();
    let brief = CaptureOptions { bytes_max: 20, frames_max: 1 };
    let mut port = capture(CaptureOf::Port(name("p2")), brief).unwrap();
    assert!(capture(CaptureOf::Port(name("p9")), brief).is_err());
    let frames: Vec<_> = (0..3).map(|n| frame(mac(2), mac(1), 100 + n, n)).collect();
    for frame in &frames {
        send(&mut one, PLAIN, frame);
        assert_eq!(&receive(&mut two).1, frame);
    }
    for frame in &frames {
        for (at, direction) in [("p1", Direction::In), ("p2", Direction::Out)] {
            let seen = group.frames.blocking_recv().unwrap();
            assert_eq!((seen.at.as_str(), seen.direction, &seen.bytes), (at, direction, frame));
        }
    }
    let seen = port.frames.blocking_recv().unwrap();
    assert_eq!((seen.bytes.len(), seen.len), (20, 100));
    assert_eq!(port.missed.load(std::sync::atomic::Ordering::Relaxed), 2, "nobody took them");

    let from = TraceFrom::Port(name("p1"));
    let bytes = frame(mac(2), mac(1), 100, 1);
    let traced =
        rig.data.ask_blocking(|answer| Command::Trace { from, frame: bytes, offload: Offload::NONE, answer });
    let (trace, names) = traced.unwrap().unwrap();
    assert!(matches!(trace.steps.last(), Some(Step::Sent(_))));
    assert!(names.ports.values().any(|port| port.as_str() == "p2"));
}

#[test]
fn the_switch_connects_to_a_guest_that_listens() {
    let rig = Rig::new(config(LAN, &["lan", "lan"]));
    let mut two = rig.guest(2, small());
    let listener = std::os::unix::net::UnixListener::bind(rig.path(1)).unwrap();
    let mut settings = VhostSettings::new(VhostSocket::Connect(rig.path(1)), mac(1), 9000);
    settings.pairs = 1;
    let device = PortDevice::Vhost(Box::new(VhostPort::open(&name("p1"), &settings).unwrap()));
    rig.data.ask_blocking(|answer| Command::Attach { name: name("p1"), device, answer }).unwrap().unwrap();
    let mut one = NetClient::new(NetDestination::Listen(listener), small()).unwrap();
    eventually("the guest runs", || rig.port(1).link == PortLink::Running);
    let mine = frame(mac(2), mac(1), 300, 1);
    send(&mut one, PLAIN, &mine);
    assert_eq!(receive(&mut two).1, mine);
    one.hang_up().unwrap();
    one.reconnect().unwrap();
    eventually("the guest runs again", || rig.port(1).link == PortLink::Running && rig.port(1).pairs == 1);
    assert!(rig.unplug(1));
    assert!(rig.path(1).exists(), "the file is the guest's");
}

#[test]
fn a_gateway_answers_its_guests() {
    let group = format!("{LAN}gateway = {{ address = '10.0.0.1/24' }}\n");
    let rig = Rig::new(config(&group, &["lan", "lan"]));
    let mut one = rig.guest(1, small());
    let mut question = [[0xff; 6], mac(1).0].concat();
    question.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    question.extend(mac(1).0);
    question.extend([10, 0, 0, 5, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
    question.resize(60, 0);
    send(&mut one, PLAIN, &question);
    let (_, answer) = receive(&mut one);
    assert_eq!((&answer[..6], &answer[20..22]), (&mac(1).0[..], &[0, 2][..]), "an ARP reply to us");
    assert_eq!(&answer[28..32], [10, 0, 0, 1]);
}

#[test]
fn a_guest_that_breaks_its_rings_loses_its_port_only() {
    let rig = Rig::new(config(LAN, &["lan", "lan", "lan"]));
    let (mut one, mut two) = (rig.guest(1, small()), rig.guest(2, small()));
    let mut bad = rig.guest(3, NetClientOptions { features: feature::ALL & !feature::MRG_RXBUF, ..small() });
    // A frame for it that no buffer of it can hold is refused, not cut.
    send(&mut one, PLAIN, &frame(mac(3), mac(1), 5000, 1));
    eventually("it was refused", || rig.port(3).drops.too_long == 1);
    send(&mut one, PLAIN, &frame(mac(3), mac(1), 500, 1));
    assert_eq!(receive(&mut bad).1.len(), 500);
    send(&mut one, PLAIN, &frame(mac(2), mac(1), 500, 1));
    receive(&mut two);
}
