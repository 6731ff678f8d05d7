//! What a hostile guest costs its neighbours: a pair of guests that talk at a moderate rate keep at least nine tenths of it,
//! whatever a third one does.
//!
//! ```text
//!   one ──paced, numbered frames──► two      what arrives of what was offered
//!   hostile ──flood, lies, junk───► sink     at full speed, as much as the worker takes
//! ```
//!
//! The rate is a part of what the pair gets through when it is alone, measured each time, and frames that were due and found no
//! room in the ring are offered again: so what is measured is the part of the worker's time that the pair gets, on slow
//! machines as on fast ones. The same is measured without the hostile guest, and both as often as the machine may need for one
//! run in which it is not busy with something else, up to a minute and a half.

mod rig;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ferro_protocol::net::Mac;
use ferro_vhost::frontend::{NetClient, NetClientOptions};
use ferro_vhost::net::{VirtioNetHdr, feature, gso_type, header_flag};
use rig::{LAN, PAIR, PLAIN, Rig, config, frame, mac, super_frame};
use vswitch_core::pipeline::Cause;

/// Of what the pair gets through alone.
const LOAD: f64 = 0.2;
const SPAN: Duration = Duration::from_millis(600);
/// Frames that may wait to be offered; further ones are lost.
const BACKLOG: u64 = 2048;
const FRAME_BYTES: usize = 200;
/// No further try is begun after so long.
const PATIENCE: Duration = Duration::from_secs(90);
/// Tests of rates don't run beside each other.
static ALONE: Mutex<()> = Mutex::new(());

/// Ports 1 and 2 are the pair, 3 is hostile, 4 gets what it sends. The hostile one's group lets it lie.
const LIARS: &str = "[[portgroup]]\nname = 'liars'\nswitch = 'sw'\nvlan = { access = 20 }\nmtu = 9000\n\
    security = { forged_transmits = true, mac_change = true, promiscuous = true }\nlearning = { limit = 64 }\n";

fn ring() -> NetClientOptions {
    NetClientOptions { queue_size: 1024, frame_bytes_max: 2048, ..NetClientOptions::default() }
}

struct Pair {
    one: NetClient,
    two: NetClient,
}

/// What came of a stream.
#[derive(Clone, Copy, Debug)]
struct Seen {
    offered: u64,
    delivered: u64,
}

impl Seen {
    fn part(self) -> f64 {
        self.delivered as f64 / self.offered as f64
    }
}

impl Pair {
    /// Frames as fast as they get through, or at a rate: `offered` is what was due.
    fn stream(&mut self, per_second: f64, span: Duration) -> Seen {
        let (began, mut sent, mut lost, mut delivered) = (Instant::now(), 0_u64, 0, 0);
        let mine = frame(mac(2), mac(1), FRAME_BYTES, 7);
        let mut bytes = Vec::new();
        loop {
            let elapsed = began.elapsed();
            let over = elapsed >= span;
            let due = (elapsed.min(span).as_secs_f64() * per_second) as u64;
            lost = due.saturating_sub(sent + BACKLOG).max(lost);
            while sent + lost < due && self.one.send_quietly(PAIR, PLAIN, &mine).unwrap() {
                sent += 1;
            }
            self.one.kick(PAIR).unwrap();
            while self.two.try_recv(PAIR, &mut bytes).unwrap().is_some() {
                assert_eq!(bytes, mine, "what is not for it");
                delivered += 1;
            }
            if over {
                // What the ring had no room for, when time was up, has not arrived.
                return Seen { offered: due, delivered };
            }
            // The worker may need the processor.
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// What the pair gets through alone, a second.
    fn capacity(&mut self) -> f64 {
        let span = SPAN / 3;
        let mine = frame(mac(2), mac(1), FRAME_BYTES, 7);
        let (began, mut delivered) = (Instant::now(), 0);
        while began.elapsed() < span {
            while self.one.send_quietly(PAIR, PLAIN, &mine).unwrap() {}
            self.one.kick(PAIR).unwrap();
            delivered += self.two.discard_rx(PAIR, 1024);
        }
        let rate = delivered as f64 / began.elapsed().as_secs_f64();
        self.drain();
        rate
    }

    /// Takes what is still under way.
    fn drain(&mut self) {
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(50) {
            if self.two.discard_rx(PAIR, 1024) > 0 {
                last = Instant::now();
            }
        }
    }
}

/// A pair beside a hostile guest, which does `attack` again and again. `worked` says from the rig's counters whether it did any
/// harm at all.
fn keeps_its_rate(
    groups: [&str; 4],
    [hostile, sink]: [NetClientOptions; 2],
    mut attack: impl FnMut(&mut NetClient, &mut NetClient) + Send,
    worked: impl Fn(&Rig) -> bool,
) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::new(config(&format!("{LAN}{LIARS}"), &groups));
    let mut pair = Pair { one: rig.guest(1, ring()), two: rig.guest(2, ring()) };
    let (mut hostile, mut sink) = (rig.guest(3, hostile), rig.guest(4, sink));
    let (mut tries, began) = (Vec::new(), Instant::now());
    while began.elapsed() < PATIENCE {
        let capacity = pair.capacity();
        let alone = pair.stream(capacity * LOAD, SPAN);
        pair.drain();
        let over = AtomicBool::new(false);
        let beside = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    attack(&mut hostile, &mut sink);
                }
            });
            // It has begun, and filled its rings.
            std::thread::sleep(Duration::from_millis(50));
            let beside = pair.stream(capacity * LOAD, SPAN);
            over.store(true, Ordering::Relaxed);
            beside
        });
        pair.drain();
        tries.push((capacity, alone, beside));
        if beside.part() >= 0.9 * alone.part() && alone.part() > 0.8 {
            assert!(worked(&rig), "the attack was none: {:?}", rig.port(3));
            println!(
                "{capacity:.0} frames/s alone; {alone:?}, {beside:?}; hostile: {:?}",
                rig.port(3).counters.from
            );
            return;
        }
    }
    panic!("the neighbour lost its rate: {tries:?}; {:?}", rig.port(3));
}

/// Sends what lies in the slots of its ring again, as fast as it goes.
fn again(hostile: &mut NetClient, bytes: usize) {
    if hostile.resend(PAIR, bytes, 64) > 0 {
        hostile.kick(PAIR).unwrap();
    } else {
        std::thread::yield_now();
    }
}

/// Fills the slots of a ring first, each with another frame, and sends them again from then on.
fn fill_once(
    mut make: impl FnMut(usize) -> (VirtioNetHdr, Vec<u8>) + Send,
) -> impl FnMut(&mut NetClient) + Send {
    let mut filled = None;
    move |hostile| {
        if let Some(bytes) = filled {
            return again(hostile, bytes);
        }
        for n in 0.. {
            let (header, frame) = make(n);
            filled = Some(frame.len());
            if !hostile.send_quietly(PAIR, header, &frame).unwrap() {
                return hostile.kick(PAIR).unwrap();
            }
        }
    }
}

fn sent(rig: &Rig) -> u64 {
    rig.port(3).counters.from.frames
}

#[test]
fn beside_a_flood() {
    let mut flood = fill_once(|n| (PLAIN, frame(mac(4), mac(3), 60, n)));
    keeps_its_rate(
        ["lan"; 4],
        [ring(), ring()],
        |hostile, sink| {
            flood(hostile);
            sink.discard_rx(PAIR, 1024);
        },
        |rig| sent(rig) > 10_000 && rig.port(4).counters.to.frames > 10_000,
    );
}

#[test]
fn beside_a_flood_to_a_guest_that_stopped_reading() {
    let mut flood = fill_once(|n| (PLAIN, frame(mac(4), mac(3), 1514, n)));
    keeps_its_rate(
        ["lan"; 4],
        [ring(), ring()],
        |hostile, _| flood(hostile),
        |rig| rig.port(4).drops.no_room > 10_000,
    );
}

#[test]
fn beside_a_guest_that_sends_in_all_names() {
    // Those of others, its neighbours' too, though its policy forbids it.
    let mut lies = fill_once(|n| (PLAIN, frame(mac(4), mac([1, 2, 77][n % 3]), 60, n)));
    keeps_its_rate(
        ["lan"; 4],
        [ring(), ring()],
        |hostile, _| lies(hostile),
        |rig| rig.dropped(3, Cause::Forged) > 10_000,
    );
    // And in a group where it may: more of them than may be learned, and its neighbours' again.
    let liar = |n: usize| match n % 8 {
        0 => mac(1),
        1 => mac(2),
        _ => Mac([2, 0x77, 0, 0, (n >> 8) as u8, n as u8]),
    };
    let mut lies = fill_once(|n| (PLAIN, frame(mac(4), liar(n), 60, n)));
    keeps_its_rate(
        ["lan", "lan", "liars", "liars"],
        [ring(), ring()],
        |hostile, sink| {
            lies(hostile);
            sink.discard_rx(PAIR, 1024);
        },
        |rig| rig.dropped(3, Cause::LearningLimit) > 10_000,
    );
}

fn large(features: u64) -> NetClientOptions {
    NetClientOptions { features, ..NetClientOptions::default() }
}

#[test]
fn beside_super_frames_that_the_switch_must_cut() {
    // Their receiver takes no super-frames and no open checksums, and reads none of what it gets.
    let plain = feature::ALL & !(feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_TSO6);
    let (mut header, mut bytes) = super_frame(65_000);
    header.gso_size = 536;
    bytes[..12].copy_from_slice(&[mac(4).0, mac(3).0].concat());
    let mut cut = fill_once(move |_| (header, bytes.clone()));
    keeps_its_rate(
        ["lan"; 4],
        [large(feature::ALL), large(plain)],
        |hostile, sink| {
            cut(hostile);
            sink.discard_rx(PAIR, 1024);
        },
        |rig| sent(rig) > 100 && rig.port(4).counters.to.frames > 100,
    );
}

#[test]
fn beside_junk_of_64_kib() {
    let junk = |n: usize| {
        let header = match n % 4 {
            // Longer than any MTU.
            0 => PLAIN,
            // Segments of one byte of what is no TCP.
            1 => VirtioNetHdr {
                gso_type: gso_type::TCPV4,
                gso_size: 1,
                flags: header_flag::NEEDS_CSUM,
                ..PLAIN
            },
            2 => VirtioNetHdr {
                gso_type: gso_type::TCPV6 | gso_type::ECN,
                gso_size: 9000,
                hdr_len: u16::MAX,
                flags: header_flag::NEEDS_CSUM,
                csum_start: 14,
                csum_offset: 60_000,
                ..PLAIN
            },
            _ => VirtioNetHdr { gso_type: 0x7f, flags: 0xff, ..PLAIN },
        };
        (header, frame(mac(4), mac(3), 65_535, n))
    };
    // Whole, and each in a thousand pieces.
    for tx_segment_bytes in [1 << 17, 65] {
        let mut junk = fill_once(junk);
        keeps_its_rate(
            ["lan"; 4],
            [NetClientOptions { tx_segment_bytes, ..large(feature::ALL) }, large(feature::ALL)],
            |hostile, _| junk(hostile),
            |rig| rig.dropped(3, Cause::TooLarge) > 100 && rig.port(3).drops.bad_header > 100,
        );
    }
}

#[test]
fn beside_a_guest_that_breaks_its_rings_again_and_again() {
    keeps_its_rate(
        ["lan"; 4],
        [ring(), ring()],
        |hostile, _| {
            for n in 0..64 {
                assert!(
                    hostile.send_quietly(PAIR, PLAIN, &frame(mac(4), mac(3), 60, n)).unwrap(),
                    "it has room"
                );
            }
            // Then a chain of four bytes, which hold no header.
            assert_eq!(hostile.resend(PAIR, u32::MAX as usize - 7, 1), 1);
            hostile.kick(PAIR).unwrap();
            let broken_by = Instant::now() + rig::PATIENCE;
            while !hostile.take_error(PAIR.tx()) {
                assert!(Instant::now() < broken_by, "its ring is not broken");
                std::thread::yield_now();
            }
            hostile.reset().unwrap();
        },
        |rig| sent(rig) > 1000,
    );
}
