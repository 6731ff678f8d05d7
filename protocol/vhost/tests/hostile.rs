//! Guests and front ends that break the rules. Failing cases are to be kept here by seed.

mod common;

use common::{Backend, Disk, eventually, socket_dir};
use ferro_vhost::blk::{RequestKind, Sector};
use ferro_vhost::frontend::{BlkClient, ClientOptions, Op};
use ferro_vhost::fuzz::{
    IMAGE_AVAIL, IMAGE_BYTES, IMAGE_RING_SIZE, IMAGE_SECTORS, IMAGE_USED, ImageOptions, Verdict, messages,
    ring_image,
};
use ferro_vhost::{ChainFault, RingFault};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use vm_memory::{Bytes, GuestAddress};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const HEADER: u64 = 0x4000;
const DATA: u64 = 0x8000;
const STATUS: u64 = 0x7000;
const SIDE_TABLE: u64 = 0x6000;

/// A guest memory image under construction.
struct Image(Vec<u8>);

impl Image {
    fn new() -> Self {
        Self(vec![0; IMAGE_BYTES])
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> &mut Self {
        self.0[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn descriptor(
        &mut self,
        table: u64,
        index: u16,
        addr: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) -> &mut Self {
        let at = table + 16 * u64::from(index);
        self.put(at, &addr.to_le_bytes())
            .put(at + 8, &len.to_le_bytes())
            .put(at + 12, &flags.to_le_bytes())
            .put(at + 14, &next.to_le_bytes())
    }

    fn header(&mut self, kind: u32, sector: u64) -> &mut Self {
        self.put(HEADER, &kind.to_le_bytes()).put(HEADER + 8, &sector.to_le_bytes())
    }

    fn avail(&mut self, heads: &[u16]) -> &mut Self {
        for (at, head) in heads.iter().enumerate() {
            self.put(IMAGE_AVAIL + 4 + 2 * at as u64, &head.to_le_bytes());
        }
        self.put(IMAGE_AVAIL + 2, &(heads.len() as u16).to_le_bytes())
    }

    fn run(&self) -> Verdict {
        ring_image(&self.0, ImageOptions::default()).unwrap()
    }

    /// A good read of one sector: the base of most cases.
    fn read() -> Self {
        let mut image = Self::new();
        image
            .header(0, 3)
            .descriptor(0, 0, HEADER, 16, NEXT, 1)
            .descriptor(0, 1, DATA, 512, NEXT | WRITE, 2)
            .descriptor(0, 2, STATUS, 1, WRITE, 0)
            .avail(&[0]);
        image
    }
}

#[track_caller]
fn breaks(image: &Image, fault: &RingFault) {
    let verdict = image.run();
    assert_eq!(verdict.broken.as_ref().map(|broken| &broken.fault), Some(fault));
}

#[test]
fn a_good_image_is_understood() {
    let verdict = Image::read().run();
    assert_eq!(verdict.requests, [RequestKind::Read { sector: Sector(3), bytes: 512 }]);
    assert_eq!(verdict.broken, None);
}

#[test]
fn chains_that_break_the_rules_break_the_device() {
    use ChainFault as C;
    let mut loops = Image::read();
    loops.descriptor(0, 2, STATUS, 1, WRITE | NEXT, 1);
    breaks(&loops, &C::TooLong(IMAGE_RING_SIZE).into());
    let mut next = Image::read();
    next.descriptor(0, 1, DATA, 512, NEXT | WRITE, 64);
    breaks(&next, &C::NextOutOfRange(64).into());
    let mut order = Image::read();
    order.descriptor(0, 2, STATUS, 1, 0, 0);
    breaks(&order, &C::Order.into());
    let mut empty = Image::read();
    empty.descriptor(0, 1, DATA, 0, NEXT | WRITE, 2);
    breaks(&empty, &C::Empty.into());
    let mut nested = Image::new();
    nested
        .descriptor(0, 0, SIDE_TABLE, 32, INDIRECT, 0)
        .descriptor(SIDE_TABLE, 0, SIDE_TABLE, 32, INDIRECT, 0)
        .avail(&[0]);
    breaks(&nested, &C::NestedIndirect.into());
    let mut next = Image::new();
    next.descriptor(0, 0, SIDE_TABLE, 32, INDIRECT | NEXT, 0).avail(&[0]);
    breaks(&next, &C::IndirectWithNext.into());
    for len in [0, 15, 17, u32::MAX, 16 * 1025] {
        let mut length = Image::new();
        length.descriptor(0, 0, SIDE_TABLE, len, INDIRECT, 0).avail(&[0]);
        breaks(&length, &C::IndirectLength(len).into());
    }
    for addr in [u64::MAX, u64::MAX - 15, IMAGE_BYTES as u64, 1 << 60] {
        let mut wild = Image::new();
        wild.descriptor(0, 0, addr, 32, INDIRECT, 0).avail(&[0]);
        breaks(&wild, &C::Unreadable(addr).into());
    }
    let indirect = Image::new().descriptor(0, 0, SIDE_TABLE, 32, INDIRECT, 0).avail(&[0]).0.clone();
    let options = ImageOptions { no_indirect: true, ..ImageOptions::default() };
    let verdict = ring_image(&indirect, options).unwrap();
    assert_eq!(verdict.broken.unwrap().fault, C::IndirectNotNegotiated.into());
}

#[test]
fn rings_that_break_the_rules_break_the_device() {
    let mut head = Image::read();
    head.avail(&[64]);
    breaks(&head, &RingFault::HeadOutOfRange(64));
    let mut jump = Image::read();
    jump.put(IMAGE_AVAIL + 2, &65u16.to_le_bytes());
    breaks(&jump, &RingFault::AvailIndex { avail: 65, next: 0 });
    let mut twice = Image::read();
    twice.avail(&[0, 0]);
    breaks(&twice, &RingFault::HeadInFlight(0));
    let mut no_status = Image::new();
    no_status.header(4, 0).descriptor(0, 0, HEADER, 16, 0, 0).avail(&[0]);
    breaks(&no_status, &RingFault::NoStatus);
    for addr in [u64::MAX, IMAGE_BYTES as u64] {
        let mut wild = Image::read();
        wild.descriptor(0, 2, addr, 1, WRITE, 0);
        breaks(&wild, &RingFault::NoStatus);
    }
    let mut short = Image::read();
    short.descriptor(0, 0, HEADER, 15, NEXT, 1);
    breaks(&short, &RingFault::NoHeader);
    let mut wild = Image::read();
    wild.descriptor(0, 0, u64::MAX - 8, 16, NEXT, 1);
    breaks(&wild, &RingFault::NoHeader);
}

#[test]
fn wild_data_fail_the_request_alone() {
    for (addr, len) in [
        (u64::MAX - 100, 512),
        (IMAGE_BYTES as u64 - 100, 512),
        (1 << 63, 512),
        (DATA, u32::MAX),
        (DATA, 511),
        (DATA, (4 << 20) + 512),
    ] {
        let mut image = Image::read();
        image.descriptor(0, 1, addr, len, NEXT | WRITE, 2);
        let verdict = image.run();
        assert_eq!((verdict.taken, verdict.requests.len(), verdict.broken), (1, 0, None), "{addr:#x}+{len}");
    }
    // Lengths whose sum leaves 32 bits.
    let mut sum = Image::read();
    sum.descriptor(0, 1, DATA, u32::MAX, NEXT | WRITE, 5).descriptor(0, 5, DATA, u32::MAX, NEXT | WRITE, 2);
    let verdict = sum.run();
    assert_eq!((verdict.taken, verdict.requests.len(), verdict.broken), (1, 0, None));
}

fn within_disk(kind: &RequestKind) -> bool {
    let fits = |first: Sector, sectors: u64| {
        sectors > 0 && first.0.checked_add(sectors).is_some_and(|end| end <= IMAGE_SECTORS)
    };
    match kind {
        RequestKind::Read { sector, bytes } | RequestKind::Write { sector, bytes } => {
            bytes % 512 == 0 && *bytes <= 4 << 20 && fits(*sector, u64::from(bytes / 512))
        }
        RequestKind::Flush => true,
        RequestKind::Discard(ranges) => ranges.iter().all(|range| fits(range.first, u64::from(range.count))),
        RequestKind::WriteZeroes { ranges } => {
            ranges.iter().all(|(range, _)| fits(range.first, u64::from(range.count)))
        }
    }
}

/// A plausible ring with random faults in it.
fn random_image(rng: &mut ChaCha8Rng) -> (Vec<u8>, ImageOptions) {
    let mut image = Image::new();
    let heads = rng.random_range(1..6u16);
    let mut list = Vec::new();
    for request in 0..heads {
        let first = request * 8;
        list.push(first);
        let header = HEADER + 64 * u64::from(request);
        let kind = [0u32, 1, 0, 1, 4, 8, 11, 13, 2, u32::MAX][rng.random_range(0..10)];
        let sector = [0, 7, 8, 9, 99, IMAGE_SECTORS - 1, IMAGE_SECTORS, u64::MAX][rng.random_range(0..8)];
        image.put(header, &kind.to_le_bytes()).put(header + 8, &sector.to_le_bytes());
        let table = if rng.random_bool(0.4) {
            let side = SIDE_TABLE + 256 * u64::from(request);
            image.descriptor(0, first, side, 16 * rng.random_range(4..12), INDIRECT, 0);
            side
        } else {
            0
        };
        let base = if table == 0 { first } else { 0 };
        let segments = rng.random_range(0..4u16);
        let writes = if matches!(kind, 0 | 8) { WRITE } else { 0 };
        image.descriptor(table, base, header, 16, NEXT, base + 1);
        for segment in 0..segments {
            let len = [512u32, 512, 1024, 4096, 512, 16, 20, 1, 48][rng.random_range(0..9)];
            let at = DATA + 4096 * u64::from(first + segment);
            image.put(at, &rng.random::<u64>().to_le_bytes()[..1]);
            image.descriptor(table, base + 1 + segment, at, len, NEXT | writes, base + 2 + segment);
        }
        image.descriptor(table, base + 1 + segments, STATUS + u64::from(request), 1, WRITE, 0);
    }
    image.avail(&list);
    // Faults: interesting values in the structures, now and then anywhere.
    for _ in 0..rng.random_range(0..4) {
        let (from, to) =
            [(0, 1024), (IMAGE_AVAIL, IMAGE_AVAIL + 64), (IMAGE_USED, IMAGE_USED + 64), (HEADER, DATA)]
                [rng.random_range(0..4)];
        let at = rng.random_range(from..to - 8);
        let value =
            [0, 1, 2, 0xff, 0xffff, u64::MAX, IMAGE_BYTES as u64, rng.random()][rng.random_range(0..8)];
        let width = [1, 2, 4, 8][rng.random_range(0..4)];
        image.put(at, &value.to_le_bytes()[..width]);
    }
    let options = ImageOptions {
        event_idx: rng.random(),
        no_indirect: rng.random_bool(0.1),
        inflight: rng.random_bool(0.3),
    };
    let mut bytes = image.0;
    if options.inflight {
        let mut region: Vec<u8> = (0..16 + 16 * 64).map(|_| rng.random_range(0..2)).collect();
        region[..16].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
        for _ in 0..rng.random_range(0..3) {
            let at = rng.random_range(8..region.len());
            region[at] = rng.random();
        }
        bytes.extend_from_slice(&region);
    }
    (bytes, options)
}

#[test]
fn eight_thousand_hostile_rings_are_survived() {
    let (mut good, mut broken, mut refused) = (0, 0, 0);
    for seed in 0..8_000u64 {
        let (image, options) = random_image(&mut ChaCha8Rng::seed_from_u64(seed));
        match ring_image(&image, options) {
            Ok(verdict) => {
                assert!(verdict.requests.iter().all(within_disk), "seed {seed}: {verdict:?}");
                good += verdict.requests.len();
                broken += usize::from(verdict.broken.is_some());
            }
            Err(_) => refused += 1,
        }
    }
    // The generator has to reach all outcomes, or it tests nothing.
    assert!(good > 1_500 && broken > 1_000 && refused > 0, "{good} {broken} {refused}");
}

#[test]
fn random_messages_are_survived() {
    // A good conversation, to be damaged: code, flags, descriptors, length, payload.
    let mut base: Vec<(u8, u8, Vec<u8>)> = vec![
        (1, 0, vec![]),
        (3, 0, vec![]),
        (15, 0, vec![]),
        (16, 0, 0x9229u64.to_le_bytes().to_vec()),
        (2, 0, (1u64 << 32 | 1 << 30 | 1 << 29 | 1 << 28).to_le_bytes().to_vec()),
        (17, 0, vec![]),
        (21, 3, vec![]),
        (36, 0, vec![]),
    ];
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    base.push((5, 1, words(&[1, 0, 0x8000, 0x1000_0000, 0])));
    base.push((31, 0, words(&[0, 0, 0x0080_0002])));
    base.push((32, 1, words(&[0x2000, 0, 0x0080_0002])));
    for queue in 0..2u64 {
        base.push((8, 0, words(&[queue | 64 << 32])));
        base.push((10, 0, words(&[queue])));
        let at = 0x1000_0000 + queue * 0x2000;
        base.push((9, 0, words(&[queue, at, at + 0x1800, at + 0x1000, 0])));
        base.push((13, 2, words(&[queue])));
        base.push((14, 2, words(&[queue])));
        base.push((12, 2, words(&[queue])));
        base.push((18, 0, words(&[queue | 1 << 32])));
    }
    base.push((24, 0, [words(&[96 << 32])[..].to_vec(), vec![0; 4 + 96]].concat()));
    base.push((37, 1, words(&[0, 0x10_0000, 0x1000, 0x2000_0000, 0])));
    base.push((38, 0, words(&[0, 0x10_0000, 0x1000, 0x2000_0000, 0])));
    base.push((11, 0, words(&[0])));
    base.push((11, 0, words(&[1])));
    let encode = |base: &[(u8, u8, Vec<u8>)]| -> Vec<u8> {
        base.iter()
            .flat_map(|(code, attach, payload)| {
                [&[*code, 8, *attach, payload.len() as u8][..], payload].concat()
            })
            .collect()
    };
    assert_eq!(messages(&encode(&base)).unwrap(), base.len(), "the good conversation is accepted");

    // A kick that is memory, not an eventfd: reading it could block.
    let mut memory_kick = base.clone();
    memory_kick[16].1 = 1;
    assert_eq!((memory_kick[16].0, messages(&encode(&memory_kick)).unwrap()), (12, 16));
    // Each accepted start needs what comes before it.
    for needed in [8, 11, 13] {
        let mut lacking = base.clone();
        lacking.remove(needed);
        assert!(messages(&encode(&lacking)).unwrap() < 16, "{needed}");
    }

    let mut deep = 0;
    for seed in 0..1_500u64 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut bad = base.clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..bad.len());
            match rng.random_range(0..5) {
                0 => bad[at].0 = rng.random_range(0..48),
                1 => bad[at].1 = rng.random_range(0..64),
                2 => {
                    bad.remove(at);
                }
                3 => {
                    let other = rng.random_range(0..bad.len());
                    bad.swap(at, other);
                }
                _ => {
                    let payload = &mut bad[at].2;
                    if !payload.is_empty() {
                        let byte = rng.random_range(0..payload.len());
                        payload[byte] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)];
                    }
                }
            }
        }
        deep += usize::from(messages(&encode(&bad)).unwrap() > 15);
    }
    assert!(deep > 250, "{deep}");
}

#[test]
fn a_broken_device_tells_its_front_end_and_serves_again_after_a_reset() {
    let (_dir, path) = socket_dir();
    let disk = Disk::new(1024);
    let _backend = Backend::start(&path, &disk);
    let mut client =
        BlkClient::connect(&path, ClientOptions { queues: 2, ..ClientOptions::default() }).unwrap();
    client.write(Sector(1), &[1; 512]).unwrap();
    assert!(!client.take_error(1));
    // A head outside the table, on the second queue.
    let (_, avail, _) = client.ring_addrs(1);
    client.ram().mem().write_obj(999u16, GuestAddress(avail.0 + 4)).unwrap();
    client.ram().mem().write_obj(1u16, GuestAddress(avail.0 + 2)).unwrap();
    // Any kick makes the back end look at all rings.
    client.submit(0, &Op::Flush).unwrap();
    eventually("the device to break", || disk.broken.lock().unwrap().is_some());
    assert!(client.take_error(1));
    assert!(disk.broken.lock().unwrap().as_ref().unwrap().contains("999"));
    client.reset().unwrap();
    client.write(Sector(2), &[2; 512]).unwrap();
    assert!(disk.broken.lock().unwrap().is_none());
}
