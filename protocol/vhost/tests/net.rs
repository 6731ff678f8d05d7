//! Frames between guests over the network device: what is negotiated, how frames lie in memory, what can be set.

mod netlab;

use std::io::Read;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ferro_protocol::net::Mac;
use ferro_vhost::QueueIndex;
use ferro_vhost::frontend::{NetClient, NetClientOptions, NetDestination};
use ferro_vhost::net::{
    FRAME_BYTES_MAX, NetEvent, NetSettings, QueuePair, RxRefusal, VirtioNetHdr, feature, gso_type,
    header_flag,
};
use netlab::{PATIENCE, PLAIN, Switch, eventually, pattern, sockets};

const PAIR: QueuePair = QueuePair(0);
const TSO: VirtioNetHdr = VirtioNetHdr {
    flags: header_flag::NEEDS_CSUM,
    gso_type: gso_type::TCPV4,
    hdr_len: 54,
    gso_size: 1448,
    csum_start: 34,
    csum_offset: 16,
    num_buffers: 0,
};

fn client(path: &Path, options: NetClientOptions) -> NetClient {
    NetClient::new(NetDestination::Connect(path.to_owned()), options).unwrap()
}

fn two(
    settings: &NetSettings,
    options: [NetClientOptions; 2],
) -> (tempfile::TempDir, Switch, [NetClient; 2]) {
    let (dir, paths) = sockets::<2>();
    let switch = Switch::listening(&paths, settings);
    let [a, b] = options;
    let clients = [client(&paths[0], a), client(&paths[1], b)];
    (dir, switch, clients)
}

/// Sends one frame and receives it.
#[track_caller]
fn pass(from: &mut NetClient, to: &mut NetClient, pair: QueuePair, header: VirtioNetHdr, frame: &[u8]) {
    assert!(from.send(pair, header, frame).unwrap());
    let mut got = Vec::new();
    let received = to.recv(pair, &mut got, PATIENCE).unwrap();
    assert!(got == frame, "{} bytes sent, {} received", frame.len(), got.len());
    assert_eq!(VirtioNetHdr { num_buffers: 0, ..received }, header);
}

#[test]
fn frames_arrive_whole_however_they_lie_in_memory() {
    let lengths = [14, 15, 60, 1514, 2035, 2036, 2037, 4083, 4084, 4085, 9014, 65_550, FRAME_BYTES_MAX];
    for (event_idx, indirect, mergeable, tx_segment_bytes) in [
        (true, true, true, 1 << 17),
        (true, true, false, 100),
        (false, false, true, 4096),
        (false, true, false, 1 << 17),
        (true, false, true, 517),
    ] {
        let options = NetClientOptions {
            event_idx,
            indirect,
            tx_segment_bytes,
            rx_buffer_bytes: if mergeable { 2048 } else { FRAME_BYTES_MAX as u32 + 12 },
            features: if mergeable { feature::ALL } else { feature::ALL & !feature::MRG_RXBUF },
            ..NetClientOptions::default()
        };
        let (_dir, switch, [mut a, mut b]) = two(&NetSettings::default(), [options.clone(), options]);
        assert_eq!(a.features() & feature::MRG_RXBUF != 0, mergeable);
        // More frames than the rings have entries, so that they wrap.
        for round in 0..30 {
            for (number, len) in lengths.into_iter().enumerate() {
                let frame = pattern(round * 100 + number, len);
                let header = if len > 2000 { TSO } else { PLAIN };
                pass(&mut a, &mut b, PAIR, header, &frame);
            }
            (a.sleep, b.sleep) = (!a.sleep, !b.sleep);
        }
        pass(&mut b, &mut a, PAIR, PLAIN, &pattern(1, 60));
        assert!(switch.shared.refused.lock().unwrap().is_empty());
        assert!(!a.take_error(PAIR.tx()) && !b.take_error(PAIR.rx()));
    }
}

#[test]
fn a_header_of_tiny_descriptors_is_a_header() {
    let options = NetClientOptions {
        tx_segment_bytes: 5,
        rx_buffer_bytes: 64,
        frame_bytes_max: 1514,
        ..NetClientOptions::default()
    };
    let (_dir, _switch, [mut a, mut b]) = two(&NetSettings::default(), [options.clone(), options]);
    for len in [14, 52, 53, 500, 1514] {
        let header = VirtioNetHdr { gso_type: 0, hdr_len: 0, gso_size: 0, ..TSO };
        let header = if len > 60 { header } else { PLAIN };
        pass(&mut a, &mut b, PAIR, header, &pattern(len, len));
    }
}

#[test]
fn checksum_and_segmentation_travel_with_the_frame() {
    let options = NetClientOptions::default();
    let (_dir, _switch, [mut a, mut b]) = two(&NetSettings::default(), [options.clone(), options]);
    let csum = VirtioNetHdr { gso_type: 0, hdr_len: 0, gso_size: 0, ..TSO };
    for header in [
        csum,
        TSO,
        VirtioNetHdr { gso_type: gso_type::TCPV6, csum_start: 54, hdr_len: 74, ..TSO },
        VirtioNetHdr { gso_type: gso_type::TCPV4 | gso_type::ECN, ..TSO },
    ] {
        pass(&mut a, &mut b, PAIR, header, &pattern(7, 64_000));
    }
}

#[test]
fn a_driver_gets_only_what_it_negotiated_and_may_ask_only_for_that() {
    let plain = NetClientOptions {
        features: feature::ALL & !(feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::HOST_TSO6),
        ..NetClientOptions::default()
    };
    let (_dir, switch, [mut a, mut b]) = two(&NetSettings::default(), [plain, NetClientOptions::default()]);
    // B may send super-frames, A may not get them.
    assert!(b.send(PAIR, TSO, &pattern(1, 5000)).unwrap());
    eventually("the refusal", || !switch.shared.refused.lock().unwrap().is_empty());
    assert!(matches!(switch.shared.refused.lock().unwrap()[..], [RxRefusal::Offload(_)]));
    // A asks for what it did not negotiate: thrown away, and nothing worse.
    assert!(a.send(PAIR, VirtioNetHdr { gso_type: gso_type::TCPV6, ..TSO }, &pattern(1, 5000)).unwrap());
    assert!(a.send(PAIR, VirtioNetHdr { csum_start: 4990, ..TSO }, &pattern(1, 5000)).unwrap());
    assert!(a.send(PAIR, PLAIN, &[0; 13]).unwrap());
    pass(&mut a, &mut b, PAIR, TSO, &pattern(1, 5000));
    pass(&mut b, &mut a, PAIR, PLAIN, &pattern(1, 60));
    let outcome = *switch.shared.outcome.lock().unwrap();
    assert_eq!((outcome.bad_header, outcome.bad_length), (2, 1));
}

#[test]
fn a_switch_offers_what_it_was_told_to() {
    let settings = NetSettings {
        features: feature::ALL & !(feature::HOST_TSO4 | feature::GUEST_TSO6),
        pairs: 2,
        mtu: Some(9000),
        ..NetSettings::default()
    };
    let (_dir, _switch, [a, _b]) = two(&settings, [NetClientOptions::default(), NetClientOptions::default()]);
    assert_eq!(a.features() & feature::ALL, settings.offered());
    assert_eq!(settings.offered() & (feature::HOST_TSO4 | feature::GUEST_TSO6 | feature::MAC), 0);
    assert_ne!(settings.offered() & feature::MTU, 0);
}

#[test]
fn several_pairs_carry_frames_side_by_side() {
    let options =
        NetClientOptions { pairs: 4, queue_size: 64, frame_bytes_max: 9014, ..NetClientOptions::default() };
    let settings = NetSettings { pairs: 4, ..NetSettings::default() };
    let (_dir, switch, [mut a, mut b]) = two(&settings, [options.clone(), options]);
    for pair in 0..4 {
        pass(&mut a, &mut b, QueuePair(pair), PLAIN, &pattern(pair.into(), 600));
    }
    // The guest uses two pairs only: what comes for the others goes to those, what it sends on them goes nowhere.
    for pair in [2, 3] {
        b.set_enabled(QueuePair(pair), false).unwrap();
    }
    let receiving = || switch.shared.receiving.lock().unwrap()[1].clone();
    eventually("two pairs", || receiving() == [QueuePair(0), QueuePair(1)]);
    assert!(a.send(QueuePair(3), PLAIN, &pattern(9, 700)).unwrap());
    let mut got = Vec::new();
    b.recv(QueuePair(1), &mut got, PATIENCE).unwrap();
    assert_eq!(got, pattern(9, 700));
    for _ in 0..100 {
        assert!(b.send(QueuePair(2), PLAIN, &pattern(9, 60)).unwrap(), "its buffers come back");
        eventually("the slot", || b.reap_tx(QueuePair(2)) == 1);
    }
    assert_eq!(switch.shared.outcome.lock().unwrap().disabled, 100);
    assert!(a.try_recv(QueuePair(2), &mut got).unwrap().is_none());
    b.set_enabled(QueuePair(2), true).unwrap();
    pass(&mut b, &mut a, QueuePair(2), PLAIN, &pattern(3, 60));
}

#[test]
fn more_pairs_than_there_are_are_refused() {
    let (_dir, paths) = sockets::<1>();
    let _switch = Switch::listening(&paths, &NetSettings { pairs: 2, ..NetSettings::default() });
    let options = NetClientOptions { pairs: 3, queue_size: 16, ..NetClientOptions::default() };
    assert!(NetClient::new(NetDestination::Connect(paths[0].clone()), options).is_err());
    let _fits =
        client(&paths[0], NetClientOptions { pairs: 2, queue_size: 16, ..NetClientOptions::default() });
}

#[test]
fn a_guest_without_buffers_costs_frames_and_nothing_else() {
    let options = NetClientOptions { queue_size: 32, frame_bytes_max: 9014, ..NetClientOptions::default() };
    let (_dir, switch, [mut a, mut b]) = two(&NetSettings::default(), [options.clone(), options]);
    // 40 frames for 32 buffers; the sender's ring has 32 as well.
    for number in 0..40usize {
        eventually("room to send", || a.send(PAIR, PLAIN, &pattern(number, 60)).unwrap());
    }
    eventually("all forwarded", || switch.shared.frames.load(Ordering::SeqCst) == 40);
    assert_eq!(*switch.shared.refused.lock().unwrap(), [RxRefusal::NoRoom; 8]);
    let mut got = Vec::new();
    for number in 0..32 {
        b.recv(PAIR, &mut got, PATIENCE).unwrap();
        assert_eq!(got, pattern(number, 60));
    }
    // A frame that needs five buffers when four are left: none is used, and smaller frames still come.
    for _ in 0..28 {
        assert!(a.send(PAIR, PLAIN, &pattern(1, 60)).unwrap());
    }
    assert!(a.send(PAIR, PLAIN, &pattern(1, 9000)).unwrap());
    assert!(a.send(PAIR, PLAIN, &pattern(2, 8000)).unwrap());
    // Only then are buffers given back, or there would be more than four.
    eventually("all forwarded", || switch.shared.frames.load(Ordering::SeqCst) == 70);
    for _ in 0..28 {
        b.recv(PAIR, &mut got, PATIENCE).unwrap();
    }
    let header = b.recv(PAIR, &mut got, PATIENCE).unwrap();
    assert_eq!((got, header.num_buffers), (pattern(2, 8000), 4));
    assert_eq!(switch.shared.refused.lock().unwrap().len(), 9);
}

#[test]
fn a_frame_longer_than_unmergeable_buffers_is_too_long() {
    let small = NetClientOptions {
        features: feature::ALL & !feature::MRG_RXBUF,
        rx_buffer_bytes: 1526,
        ..NetClientOptions::default()
    };
    let (_dir, switch, [mut a, mut b]) = two(&NetSettings::default(), [NetClientOptions::default(), small]);
    assert!(a.send(PAIR, PLAIN, &pattern(1, 1515)).unwrap());
    pass(&mut a, &mut b, PAIR, PLAIN, &pattern(1, 1514));
    assert_eq!(*switch.shared.refused.lock().unwrap(), [RxRefusal::TooLong]);
}

#[test]
fn a_batch_is_one_call_and_one_kick() {
    for event_idx in [true, false] {
        let options = NetClientOptions { event_idx, ..NetClientOptions::default() };
        let (_dir, switch, [mut a, mut b]) = two(&NetSettings::default(), [options.clone(), options]);
        switch.hold(true);
        b.want_rx_calls(PAIR, true);
        b.take_calls(PAIR.rx());
        for number in 0..50 {
            assert!(a.send_quietly(PAIR, PLAIN, &pattern(number, 60)).unwrap());
        }
        a.kick(PAIR).unwrap();
        switch.hold(false);
        let mut got = Vec::new();
        eventually("the frames", || switch.shared.frames.load(Ordering::SeqCst) == 50);
        eventually("the call", || b.take_calls(PAIR.rx()) == 1);
        for number in 0..50 {
            assert!(b.try_recv(PAIR, &mut got).unwrap().is_some());
            assert_eq!(got, pattern(number, 60));
        }
        // A driver that polls is not called.
        b.want_rx_calls(PAIR, false);
        b.sleep = false;
        for number in 0..50 {
            pass(&mut a, &mut b, PAIR, PLAIN, &pattern(number, 60));
        }
        assert_eq!(b.take_calls(PAIR.rx()), 0);
    }
}

#[test]
fn rings_stop_where_they_are_and_start_again() {
    let options = NetClientOptions { queue_size: 64, ..NetClientOptions::default() };
    let (_dir, switch, [mut a, mut b]) = two(&NetSettings::default(), [options.clone(), options]);
    for number in 0..10 {
        pass(&mut a, &mut b, PAIR, PLAIN, &pattern(number, 60));
    }
    assert_eq!(a.stop(PAIR).unwrap(), [0, 10]);
    assert_eq!(b.stop(PAIR).unwrap(), [10, 0]);
    assert!(a.send(PAIR, PLAIN, &pattern(11, 60)).unwrap());
    b.restart(PAIR).unwrap();
    a.restart(PAIR).unwrap();
    let mut got = Vec::new();
    b.recv(PAIR, &mut got, PATIENCE).unwrap();
    assert_eq!(got, pattern(11, 60), "what was on the ring is sent when it runs");
    a.reset().unwrap();
    b.reset().unwrap();
    pass(&mut a, &mut b, PAIR, PLAIN, &pattern(12, 60));
    assert!(switch.shared.refused.lock().unwrap().is_empty());
}

#[test]
fn mtu_announcement_and_status_are_understood() {
    let (_dir, paths) = sockets::<1>();
    let settings = NetSettings { mtu: Some(9000), ..NetSettings::default() };
    let switch = Switch::listening(&paths, &settings);
    let mut a = client(&paths[0], NetClientOptions::default());
    eventually("the front end", || switch.saw(0, &NetEvent::Attached));
    assert!(a.set_mtu(9000).unwrap());
    assert!(!a.set_mtu(9001).unwrap() && !a.set_mtu(67).unwrap() && !a.set_mtu(70_000).unwrap());
    let mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
    assert!(a.send_rarp(mac).unwrap());
    assert!(a.send_rarp(Mac::BROADCAST).unwrap());
    eventually("the events", || {
        switch.saw(0, &NetEvent::Mtu(9000)) && switch.saw(0, &NetEvent::Announce(mac))
    });
    assert_eq!(switch.shared.events.lock().unwrap().len(), 3, "nothing of what was refused");
    assert!(a.set_status(0x0f).unwrap());
    assert_eq!(a.status().unwrap(), 0x0f);
}

#[test]
fn the_configuration_space_tells_of_link_mtu_and_announcements() {
    let (_dir, paths) = sockets::<1>();
    let settings = NetSettings {
        mac: Some(Mac([2, 0, 0, 0, 0, 9])),
        mtu: Some(1500),
        pairs: 2,
        config_space: true,
        ..NetSettings::default()
    };
    let switch = Switch::listening(&paths, &settings);
    let mut a = client(&paths[0], NetClientOptions { config_space: true, ..NetClientOptions::default() });
    assert_ne!(a.features() & feature::MAC, 0);
    assert_eq!(a.config(12).unwrap(), [2, 0, 0, 0, 0, 9, 1, 0, 2, 0, 0xdc, 5]);
    let mut notice = [0; 12];
    for (errand, status) in [
        ((|device| device.set_link(false)) as fn(&mut ferro_vhost::net::NetDevice), 0),
        (|device| device.set_link(true), 1),
        (|device| device.ask_to_announce(), 3),
        (|device| device.set_mtu(Some(1400)), 1),
    ] {
        switch.run(errand);
        a.back_channel().set_read_timeout(Some(PATIENCE)).unwrap();
        let mut channel = a.back_channel();
        channel.read_exact(&mut notice).unwrap();
        assert_eq!(notice[0], 2, "CONFIG_CHANGE_MSG");
        assert_eq!(a.config(12).unwrap()[6], status);
    }
    assert_eq!(a.config(12).unwrap()[10..], [0x78, 5]);
}

#[test]
fn polling_and_sleeping_clients_share_a_switch() {
    let options = NetClientOptions::default();
    let (_dir, _switch, [mut a, mut b]) = two(&NetSettings::default(), [options.clone(), options]);
    a.sleep = false;
    for number in 0..500 {
        pass(&mut a, &mut b, PAIR, PLAIN, &pattern(number, 60 + number));
        pass(&mut b, &mut a, PAIR, PLAIN, &pattern(number, 61 + number));
    }
    let mut got = Vec::new();
    assert!(b.recv(PAIR, &mut got, Duration::from_millis(5)).is_err(), "nothing comes twice");
    assert_eq!(b.take_calls(QueueIndex(40 % 2)) & !1, 0);
}
