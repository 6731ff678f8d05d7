//! The in-flight region after a kill between any two stores, and regions and memory that must be refused.

use std::fs::File;

use ferro_vhost::blk::{RequestKind, Sector};
use ferro_vhost::fuzz::{
    IMAGE_AVAIL, IMAGE_BYTES, IMAGE_RING_SIZE, IMAGE_USED, ImageOptions, Verdict, ring_image,
};
use ferro_vhost::inflight::{InflightRegion, InflightShape, create};
use ferro_vhost::memory::{GuestMap, RegionSpec, SealPolicy};
use ferro_vhost::{InflightError, MemoryError};

const HEADER: usize = 0x4000;
const STATUS: usize = 0x7000;
const DATA: usize = 0x8000;

type Store<'a> = &'a mut dyn FnMut(&mut Vec<u8>);

/// The ring and the region of a back end, as the stores of its life leave them.
struct Life {
    image: Vec<u8>,
    region: Vec<u8>,
}

impl Life {
    /// A ring on which each of `heads` is a read of the sector of the same number.
    fn new(heads: &[u16]) -> Self {
        let mut life =
            Self { image: vec![0; IMAGE_BYTES], region: vec![0; 16 + 16 * usize::from(IMAGE_RING_SIZE)] };
        life.region[8] = 1;
        life.region[10] = IMAGE_RING_SIZE as u8;
        for (at, head) in heads.iter().enumerate() {
            let head = usize::from(*head);
            life.image[HEADER + 16 * head + 8] = head as u8;
            for (link, (addr, len, flags)) in
                [(HEADER + 16 * head, 16u16, 1u8), (DATA, 512, 3), (STATUS + head, 1, 2)]
                    .into_iter()
                    .enumerate()
            {
                let index = head + link;
                let descriptor = &mut life.image[16 * index..16 * index + 16];
                descriptor[..8].copy_from_slice(&(addr as u64).to_le_bytes());
                descriptor[8..10].copy_from_slice(&len.to_le_bytes());
                descriptor[12] = flags;
                descriptor[14] = index as u8 + 1;
            }
            life.image[IMAGE_AVAIL as usize + 4 + 2 * at] = head as u8;
        }
        life.image[IMAGE_AVAIL as usize + 2] = heads.len() as u8;
        life
    }

    fn take(&mut self, head: u16, counter: u8) {
        let entry = 16 + 16 * usize::from(head);
        self.region[entry + 8] = counter;
        self.region[entry] = 1;
    }

    /// The stores of giving back one head, up to the `cut`th.
    fn give_back(&mut self, head: u16, cut: usize) {
        let entry = 16 + 16 * usize::from(head);
        let used = &mut self.image[IMAGE_USED as usize + 2];
        let steps: [Store<'_>; 5] = [
            &mut |region| region[entry + 6] = region[12],
            &mut |region| region[12] = head as u8,
            &mut |_| *used += 1,
            &mut |region| region[entry] = 0,
            &mut |region| region[14] += 1,
        ];
        for step in steps.into_iter().take(cut) {
            step(&mut self.region);
        }
    }

    fn reborn(&self) -> Verdict {
        let input = [&self.image[..], &self.region[..]].concat();
        ring_image(&input, ImageOptions { inflight: true, ..ImageOptions::default() }).unwrap()
    }
}

fn reads(verdict: &Verdict) -> Vec<u64> {
    assert_eq!(verdict.broken, None);
    verdict
        .requests
        .iter()
        .map(|request| match request {
            RequestKind::Read { sector: Sector(sector), bytes: 512 } => *sector,
            other => panic!("not ours: {other:?}"),
        })
        .collect()
}

#[test]
fn a_kill_between_any_two_stores_loses_nothing_and_repeats_no_answer() {
    for cut in 0..=5 {
        let mut life = Life::new(&[6, 3, 9, 12]);
        for (counter, head) in [6, 3, 9].into_iter().enumerate() {
            life.take(head, counter as u8);
        }
        life.give_back(6, 5);
        life.give_back(9, cut);
        // Once the driver can see the used index, the answer must not come again; before, it must.
        let wanted: &[u64] = if cut >= 3 { &[3, 12] } else { &[3, 9, 12] };
        assert_eq!(reads(&life.reborn()), wanted, "cut {cut}");
    }
}

#[test]
fn a_batch_of_another_back_end_is_settled() {
    let mut life = Life::new(&[3, 6, 9, 12]);
    for (counter, head) in [3, 6, 9, 12].into_iter().enumerate() {
        life.take(head, counter as u8);
    }
    // Three in one batch: linked, the used index moved over all, killed before the marks were cleared.
    for (head, before) in [(12u8, 0), (3, 12), (9, 3)] {
        life.region[16 + 16 * usize::from(head) + 6] = before;
        life.region[12] = head;
    }
    life.image[IMAGE_USED as usize + 2] = 3;
    assert_eq!(reads(&life.reborn()), [6]);
}

#[test]
fn in_flight_requests_are_done_again_in_the_order_of_their_counters() {
    let mut life = Life::new(&[3, 6, 9, 12]);
    for (head, counter) in [(3, 7), (6, 5), (9, 6)] {
        life.take(head, counter);
    }
    assert_eq!(reads(&life.reborn()), [6, 9, 3, 12]);
}

#[test]
fn regions_that_could_kill_us_are_refused() {
    let shape = InflightShape { queues: 2, queue_size: 128 };
    let map = |file: File, bytes| InflightRegion::map(file, 0, bytes, shape);
    assert!(map(create(shape).unwrap(), shape.bytes()).is_ok());
    assert!(matches!(map(create(shape).unwrap(), shape.bytes() - 1), Err(InflightError::Short { .. })));
    let small = create(InflightShape { queues: 1, ..shape }).unwrap();
    assert!(matches!(map(small, shape.bytes()), Err(InflightError::Short { .. })));
    let offset = InflightRegion::map(create(shape).unwrap(), u64::MAX, shape.bytes(), shape);
    assert!(matches!(offset, Err(InflightError::Short { .. })));
    // An ordinary file can be truncated at any time.
    let ordinary = tempfile::tempfile().unwrap();
    ordinary.set_len(shape.bytes()).unwrap();
    assert!(matches!(map(ordinary, shape.bytes()), Err(InflightError::NotSealed)));
    for (queues, queue_size) in [(0, 1), (1, 0), (17, 128), (1, 1025), (u16::MAX, u16::MAX)] {
        assert!(matches!(create(InflightShape { queues, queue_size }), Err(InflightError::Shape { .. })));
    }
}

#[test]
fn memory_that_could_kill_us_is_refused() {
    let spec = RegionSpec { guest_addr: 0, user_addr: 0x10_0000, file_offset: 0, size: 8192 };
    let file = |len: u64| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    };
    let map = |spec, file, policy| GuestMap::new([(spec, file)], policy);
    assert!(map(spec, file(8192), SealPolicy::Warn).is_ok());
    assert!(matches!(map(spec, file(8191), SealPolicy::Warn), Err(MemoryError::ShortFile { .. })));
    assert!(matches!(map(spec, file(8192), SealPolicy::Require), Err(MemoryError::NotSealed)));
    for wild in [
        RegionSpec { file_offset: u64::MAX, ..spec },
        RegionSpec { guest_addr: u64::MAX - 8191, ..spec },
        RegionSpec { size: 0, ..spec },
    ] {
        assert!(map(wild, file(8192), SealPolicy::Warn).is_err(), "{wild:?}");
    }
    let (reader, _writer) = std::io::pipe().unwrap();
    let pipe = File::from(std::os::fd::OwnedFd::from(reader));
    assert!(matches!(map(spec, pipe, SealPolicy::Warn), Err(MemoryError::NotAFile)));

    let table = map(spec, file(8192), SealPolicy::Warn).unwrap();
    let more = table.with_region(RegionSpec { guest_addr: 4096, ..spec }, file(8192), SealPolicy::Warn);
    assert!(matches!(more, Err(MemoryError::Overlap)));
    let second = RegionSpec { guest_addr: 1 << 40, user_addr: 0x20_0000, ..spec };
    let table = table.with_region(second, file(8192), SealPolicy::Warn).unwrap();
    assert_eq!(table.guest_addr_of(0x20_1000).unwrap().0, (1 << 40) + 0x1000);
    assert_eq!(table.guest_addr_of(0x20_2000), None);
    let table = table.without_region(spec).unwrap();
    assert_eq!(table.guest_addr_of(0x10_0000), None);
    assert!(matches!(table.without_region(spec), Err(MemoryError::NoSuchRegion)));
}
