//! Guests that break the rules of network rings: they lose their device, nobody else loses anything.

mod netlab;

use ferro_vhost::frontend::{NetClient, NetClientOptions, NetDestination};
use ferro_vhost::fuzz::{
    IMAGE_AVAIL, IMAGE_BYTES, IMAGE_RING_SIZE, NetImageOptions, NetVerdict, RX_RING, net_image,
};
use ferro_vhost::net::{
    FRAME_BYTES_MAX, NetEvent, NetSettings, QueuePair, RxRefusal, VirtioNetHdr, header_flag,
};
use ferro_vhost::{ChainFault, QueueIndex, RingFault};
use netlab::{PATIENCE, PLAIN, Switch, eventually, pattern, sockets};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use vm_memory::{Bytes, GuestAddress};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const SIDE_TABLE: u64 = 0x6000;
const FRAMES: u64 = 0x4000;
const BUFFERS: u64 = 0x2_0000;

/// A guest memory image under construction: one ring with frames at 0, one with buffers at [`RX_RING`].
struct Image(Vec<u8>);

impl Image {
    fn new() -> Self {
        Self(vec![0; IMAGE_BYTES])
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> &mut Self {
        self.0[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn descriptor(&mut self, at: u64, addr: u64, len: u32, flags: u16, next: u16) -> &mut Self {
        self.put(at, &addr.to_le_bytes())
            .put(at + 8, &len.to_le_bytes())
            .put(at + 12, &flags.to_le_bytes())
            .put(at + 14, &next.to_le_bytes())
    }

    fn avail(&mut self, ring: u64, heads: &[u16]) -> &mut Self {
        for (at, head) in heads.iter().enumerate() {
            self.put(ring + IMAGE_AVAIL + 4 + 2 * at as u64, &head.to_le_bytes());
        }
        self.put(ring + IMAGE_AVAIL + 2, &(heads.len() as u16).to_le_bytes())
    }

    /// Two frames, of 60 and 1,000 bytes, the second in two descriptors; 60 buffers of 1,536 bytes.
    fn good() -> Self {
        let mut image = Self::new();
        image
            .descriptor(0, FRAMES, 72, 0, 0)
            .descriptor(16, FRAMES, 12, NEXT, 2)
            .descriptor(32, FRAMES + 0x100, 1000, 0, 0)
            .avail(0, &[0, 1]);
        for number in 0..60u64 {
            image.descriptor(RX_RING + 16 * number, BUFFERS + 1536 * number, 1536, WRITE, 0);
        }
        image.avail(RX_RING, &(0..60).collect::<Vec<_>>());
        image
    }

    fn run(&self) -> NetVerdict {
        net_image(&self.0, MERGEABLE).unwrap()
    }
}

const MERGEABLE: NetImageOptions =
    NetImageOptions { event_idx: false, no_indirect: false, mergeable: true, legacy: false };

#[track_caller]
fn breaks(image: &Image, queue: u16, fault: &RingFault) {
    let broken = image.run().broken.expect("broken");
    assert_eq!((broken.queue, &broken.fault), (QueueIndex(queue), fault));
}

#[test]
fn a_good_image_is_understood() {
    let verdict = Image::good().run();
    assert_eq!(verdict.frames, [(PLAIN, 60), (PLAIN, 1000)]);
    assert_eq!(verdict.broken, None);
    assert!(verdict.given.iter().all(|(_, result)| result.is_ok()), "{verdict:?}");
    let legacy = NetImageOptions { legacy: true, mergeable: false, ..MERGEABLE };
    let verdict = net_image(&Image::good().0, legacy).unwrap();
    // Two bytes fewer of header; nothing that needs an offload, nothing longer than a buffer.
    assert_eq!(verdict.frames, [(PLAIN, 62), (PLAIN, 1002)]);
    let given: Vec<bool> = verdict.given.iter().map(|(_, result)| result.is_ok()).collect();
    assert_eq!(given, [true, true, false, true, false, true]);
}

#[test]
fn rings_that_break_the_rules_break_the_device() {
    for (ring, queue) in [(0, 1), (RX_RING, 0)] {
        let mut head = Image::good();
        head.avail(ring, &[64]);
        breaks(&head, queue, &RingFault::HeadOutOfRange(64));
        let mut jump = Image::good();
        jump.put(ring + IMAGE_AVAIL + 2, &(IMAGE_RING_SIZE + 1).to_le_bytes());
        breaks(&jump, queue, &RingFault::AvailIndex { avail: IMAGE_RING_SIZE + 1, next: 0 });
        let mut loops = Image::good();
        let write = if queue == 0 { WRITE } else { 0 };
        loops.descriptor(ring, FRAMES, 72, NEXT | write, 0);
        breaks(&loops, queue, &ChainFault::TooLong(IMAGE_RING_SIZE).into());
        let mut next = Image::good();
        next.descriptor(ring, FRAMES, 72, NEXT | write, 64);
        breaks(&next, queue, &ChainFault::NextOutOfRange(64).into());
        let mut direction = Image::good();
        direction.descriptor(ring, FRAMES, 72, write ^ WRITE, 0);
        breaks(&direction, queue, &RingFault::Direction);
        let mut empty = Image::good();
        empty.descriptor(ring, FRAMES, 0, write, 0);
        breaks(&empty, queue, &ChainFault::Empty.into());
        for addr in [u64::MAX, u64::MAX - 40, 1 << 60, IMAGE_BYTES as u64, IMAGE_BYTES as u64 - 20] {
            let mut wild = Image::good();
            wild.descriptor(ring, addr, 72, write, 0);
            breaks(&wild, queue, &RingFault::BufferOutside);
        }
        let mut short = Image::good();
        short.descriptor(ring, FRAMES, 11, write, 0);
        breaks(&short, queue, &RingFault::NoHeader);
        let mut nested = Image::good();
        nested
            .descriptor(ring, SIDE_TABLE, 32, INDIRECT, 0)
            .descriptor(SIDE_TABLE, SIDE_TABLE, 32, INDIRECT, 0);
        breaks(&nested, queue, &ChainFault::NestedIndirect.into());
        for addr in [u64::MAX, IMAGE_BYTES as u64] {
            let mut wild = Image::good();
            wild.descriptor(ring, addr, 32, INDIRECT, 0);
            breaks(&wild, queue, &ChainFault::Unreadable(addr).into());
        }
        let options = NetImageOptions { no_indirect: true, ..MERGEABLE };
        let verdict = net_image(&nested.0, options).unwrap();
        assert_eq!(verdict.broken.unwrap().fault, ChainFault::IndirectNotNegotiated.into());
    }
}

#[test]
fn frames_that_make_no_sense_are_thrown_away_alone() {
    for len in [12, 25, FRAME_BYTES_MAX as u32 + 13, u32::MAX] {
        let mut image = Image::good();
        image.descriptor(0, FRAMES, len, 0, 0);
        let verdict = image.run();
        assert_eq!(
            (verdict.outcome.bad_length, verdict.outcome.frames, verdict.broken),
            (1, 1, None),
            "{len}"
        );
    }
    // A sum of lengths that leaves 32 bits, and is never read.
    let mut sum = Image::good();
    sum.descriptor(16, FRAMES, u32::MAX, NEXT, 2).descriptor(32, FRAMES, u32::MAX, 0, 0);
    assert_eq!(sum.run().outcome.bad_length, 1);
    let header = VirtioNetHdr { flags: header_flag::NEEDS_CSUM, csum_start: 50, csum_offset: 9, ..PLAIN };
    let mut csum = Image::good();
    // The second frame has its header at the same place, and is long enough for it.
    csum.put(FRAMES, &header.encode());
    let verdict = csum.run();
    assert_eq!((verdict.outcome.bad_header, verdict.frames.len(), verdict.broken), (1, 1, None));
    assert_eq!(verdict.frames[0], (header, 1000));
}

#[test]
fn crumbs_for_buffers_are_refused() {
    // One indirect table of 1,024 buffers of 16 bytes would be walked for every frame.
    let mut image = Image::good();
    image.descriptor(RX_RING, BUFFERS, 16 * 1024, INDIRECT, 0).avail(RX_RING, &[0; 60]);
    for number in 0..1024u64 {
        let next = if number == 1023 { 0 } else { NEXT };
        let at = BUFFERS + 16 * number;
        image.descriptor(at, BUFFERS + 0x8000 + 16 * number, 16, WRITE | next, number as u16 + 1);
    }
    breaks(&image, 0, &RingFault::Fragmented(512));
    // Too few bytes in what is left of the ring are no fault; a first buffer without room for a header is.
    let mut bytes = Image::good();
    for number in 3..60u64 {
        bytes.descriptor(RX_RING + 16 * number, BUFFERS + number, 1, WRITE, 0);
    }
    let verdict = bytes.run();
    let given: Vec<_> = verdict.given.iter().map(|(_, result)| *result).collect();
    assert_eq!(given[..4], [Ok(()), Ok(()), Err(RxRefusal::NoRoom), Ok(())]);
    assert_eq!(given[4..], [Err(RxRefusal::NotReady); 2]);
    assert_eq!(verdict.broken.unwrap().fault, RingFault::NoHeader);
}

#[test]
fn random_faults_in_rings_never_get_further_than_their_device() {
    let (mut broken, mut sound) = (0, 0);
    for seed in 0..6_000u64 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut image = Image::good();
        for number in 0..8u64 {
            let at = SIDE_TABLE + 16 * number;
            let more = if number == 7 { 0 } else { NEXT };
            image.descriptor(
                at,
                BUFFERS + 100 * number,
                100,
                (rng.random_range(0..2) * WRITE) | more,
                number as u16 + 1,
            );
        }
        for _ in 0..rng.random_range(1..6) {
            let ring = [0, RX_RING][rng.random_range(0..2)];
            let table = [ring, SIDE_TABLE][usize::from(rng.random_range(0..4) == 0)];
            let entry = table + 16 * rng.random_range(0..8u64);
            let wild = [0, 8, 0x3_fff0, 0x4_0000, 1 << 32, u64::MAX - 4, u64::MAX][rng.random_range(0..7)];
            match rng.random_range(0..7) {
                0 => image.put(entry, &wild.to_le_bytes()),
                1 => {
                    let len = [0, 1, 11, 12, 4096, 70_000, u32::MAX][rng.random_range(0..7)];
                    image.put(entry + 8, &len.to_le_bytes())
                }
                2 => image.put(entry + 12, &[rng.random_range(0..8), 0]),
                3 => image.put(entry + 14, &[rng.random_range(0..70), 0]),
                4 => image.descriptor(entry, SIDE_TABLE, 16 * rng.random_range(0..10), INDIRECT, 0),
                5 => image.put(FRAMES + rng.random_range(0..12), &[rng.random()]),
                _ => {
                    let at = ring + IMAGE_AVAIL + rng.random_range(0..20u64);
                    image.put(at, &[rng.random_range(0..80)])
                }
            };
        }
        let options = NetImageOptions {
            event_idx: rng.random(),
            no_indirect: rng.random_range(0..8) == 0,
            mergeable: rng.random_range(0..4) > 0,
            legacy: rng.random_range(0..8) == 0,
        };
        let verdict = net_image(&image.0, options).unwrap();
        assert!(verdict.frames.iter().all(|(_, bytes)| (14..=FRAME_BYTES_MAX).contains(bytes)), "{seed}");
        assert_eq!(verdict.frames.len(), verdict.outcome.frames, "{seed}");
        if verdict.broken.is_some() {
            broken += 1;
        } else {
            sound += 1;
        }
    }
    assert!(broken > 1000 && sound > 1000, "{broken} broken, {sound} not");
}

#[test]
fn a_broken_guest_harms_no_other_and_serves_again_after_a_reset() {
    let (_dir, paths) = sockets::<3>();
    let switch = Switch::listening(&paths, &NetSettings::default());
    let connect = |port: usize| {
        let options =
            NetClientOptions { queue_size: 64, pairs: 2, frame_bytes_max: 2000, ..Default::default() };
        NetClient::new(NetDestination::Connect(paths[port].clone()), options).unwrap()
    };
    let (mut bad, mut a, mut b) = (connect(0), connect(1), connect(2));
    let pair = QueuePair(1);
    let (_, avail, _) = bad.ring_addrs(pair.tx());
    bad.ram().mem().write_obj(999u16, GuestAddress(avail.0 + 4)).unwrap();
    bad.ram().mem().write_obj(1u16, GuestAddress(avail.0 + 2)).unwrap();
    // Any kick makes the switch look at all rings.
    assert!(bad.send(QueuePair(0), PLAIN, &pattern(1, 60)).unwrap());
    eventually("the device to break", || {
        let events = switch.shared.events.lock().unwrap();
        events.iter().any(|(port, event)| *port == 0 && matches!(event, NetEvent::Broken(_)))
    });
    assert!(bad.take_error(pair.tx()));
    let mut got = Vec::new();
    // What it sent before it broke may have come through; what others send does.
    b.recv(QueuePair(0), &mut got, PATIENCE).unwrap();
    a.recv(QueuePair(0), &mut got, PATIENCE).unwrap();
    for number in 0..20 {
        assert!(a.send(QueuePair(0), PLAIN, &pattern(number, 600)).unwrap());
        b.recv(QueuePair(0), &mut got, PATIENCE).unwrap();
        assert_eq!(got, pattern(number, 600));
    }
    assert!(switch.shared.refused.lock().unwrap().iter().all(|refusal| *refusal == RxRefusal::NotReady));
    bad.reset().unwrap();
    assert!(bad.send(pair, PLAIN, &pattern(5, 99)).unwrap());
    b.recv(pair, &mut got, PATIENCE).unwrap();
    assert_eq!(got, pattern(5, 99));
    assert!(a.send(QueuePair(0), PLAIN, &pattern(6, 99)).unwrap());
    bad.recv(QueuePair(0), &mut got, PATIENCE).unwrap();
    assert_eq!(got, pattern(6, 99));
}

#[test]
fn rings_have_to_be_where_they_can_be_used() {
    let (_dir, paths) = sockets::<1>();
    let _switch = Switch::listening(&paths, &NetSettings::default());
    let options = NetClientOptions { queue_size: 64, frame_bytes_max: 2000, ..NetClientOptions::default() };
    let mut client = NetClient::new(NetDestination::Connect(paths[0].clone()), options).unwrap();
    let (table, avail, used) = client.ring_addrs(QueueIndex(0));
    let bytes = client.ram().bytes();
    client.stop(QueuePair(0)).unwrap();
    let good = [table.0, avail.0, used.0];
    for bad in [
        [table.0 + 8, avail.0, used.0],
        [table.0, avail.0 + 1, used.0],
        [table.0, avail.0, used.0 + 2],
        [bytes - 16, avail.0, used.0],
        [table.0, bytes - 8, used.0],
        [table.0, avail.0, bytes - 8],
    ] {
        assert!(client.start_ring_at(QueueIndex(0), bad.map(GuestAddress)).is_err(), "{bad:?}");
        // Whoever asks for that is dropped, and may come again.
        eventually("to be let in again", || client.reconnect().is_ok());
        client.stop(QueuePair(0)).unwrap();
    }
    client.start_ring_at(QueueIndex(0), good.map(GuestAddress)).unwrap();
}
