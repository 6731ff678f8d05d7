//! What a guest writes into its rings, and what its VMM says on the control socket.

use ferro_vhost::blk::{RequestKind, Sector};
use ferro_vhost::fuzz::{
    self, IMAGE_AVAIL, IMAGE_BYTES, IMAGE_RING_SIZE, IMAGE_SECTORS, IMAGE_TABLE, ImageOptions,
};

use crate::Source;

const HEADERS: usize = 0x4000;
const SIDE_TABLE: usize = 0x6000;
const STATUS: usize = 0x7000;
const DATA: u64 = 0x8000;
/// Descriptors, avail ring, request headers, indirect table: how much of each an input brings.
const PARTS: [(usize, usize); 4] =
    [(IMAGE_TABLE as usize, 384), (IMAGE_AVAIL as usize, 136), (HEADERS, 128), (SIDE_TABLE, 256)];

/// An image of guest memory; the input fills only what the device looks at.
pub(super) fn rings(data: &[u8]) {
    let mut source = Source::new(data);
    let flags = source.byte();
    let options =
        ImageOptions { event_idx: flags & 1 != 0, no_indirect: flags & 2 != 0, inflight: flags & 4 != 0 };
    let mut image = vec![0; IMAGE_BYTES];
    for (at, len) in PARTS {
        let part = source.take(len);
        image[at..at + part.len()].copy_from_slice(part);
    }
    image.extend_from_slice(source.rest());
    let Ok(verdict) = fuzz::ring_image(&image, options) else { return };
    for request in &verdict.requests {
        assert!(within_disk(request), "{request:?} leaves the disk");
    }
    assert!(verdict.requests.len() <= verdict.taken.max(usize::from(IMAGE_RING_SIZE)));
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
        RequestKind::Discard(ranges) => ranges.iter().all(|r| fits(r.first, u64::from(r.count))),
        RequestKind::WriteZeroes { ranges } => ranges.iter().all(|(r, _)| fits(r.first, u64::from(r.count))),
    }
}

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

pub(super) fn ring_seeds() -> Vec<Vec<u8>> {
    let padded = |mut part: Vec<u8>, len: usize| {
        part.resize(len, 0);
        part
    };
    // Eight chains of three descriptors: read, write, flush, discard, id …; the last one indirect.
    let kinds = [0_u32, 1, 4, 8, 11, 13, 0, 1];
    let (mut table, mut heads, mut headers) = (Vec::new(), Vec::new(), Vec::new());
    for (n, kind) in (0_u16..).zip(kinds) {
        let writes = if matches!(kind, 0 | 8) { 2 } else { 0 };
        let len = if matches!(kind, 11 | 13) { 16 } else { 512 };
        table.extend(descriptor(HEADERS as u64 + u64::from(n) * 16, 16, 1, 3 * n + 1));
        table.extend(descriptor(DATA + u64::from(n) * 4096, len, 1 | writes, 3 * n + 2));
        table.extend(descriptor(STATUS as u64 + u64::from(n), 1, 2, 0));
        heads.extend((3 * n).to_le_bytes());
        headers.extend(header(kind, u64::from(n) * 8));
    }
    let indirect = descriptor(SIDE_TABLE as u64, 48, 4, 0);
    table[21 * 16..22 * 16].copy_from_slice(&indirect);
    let side = [
        descriptor(HEADERS as u64, 16, 1, 1),
        descriptor(DATA, 4096, 3, 2),
        descriptor(STATUS as u64 + 9, 1, 2, 0),
    ]
    .concat();
    let avail = [&[0, 0][..], &8_u16.to_le_bytes(), &heads].concat();
    let parts = [padded(table, 384), padded(avail, 136), padded(headers, 128), padded(side, 256)].concat();
    // Features 0, version 1, 64 descriptors, and some of them in flight.
    let mut region = vec![0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 64, 0, 0, 0, 0, 0];
    region
        .extend((0..64_u8).flat_map(|n| [u8::from(n % 9 == 0), 0, 0, 0, 0, 0, 0, 0, n, 0, 0, 0, 0, 0, 0, 0]));
    let seed = |flags: u8| [&[flags][..], &parts, if flags & 4 == 0 { &[] } else { &region }].concat();
    (0..8).map(seed).collect()
}

/// Records of vhost-user messages; the form is that of [`fuzz::messages`].
pub(super) fn messages(data: &[u8]) {
    // An error is the test's own trouble with its descriptors, or the end of the conversation: both may be.
    let _accepted = fuzz::messages(data);
}

/// A whole good conversation and its parts.
pub(super) fn message_seeds() -> Vec<Vec<u8>> {
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let mut records: Vec<(u8, u8, Vec<u8>)> = vec![
        (1, 0, vec![]),
        (3, 0, vec![]),
        (15, 0, vec![]),
        (16, 0, words(&[0x9229])),
        (2, 0, words(&[1 << 32 | 1 << 30 | 1 << 29 | 1 << 28])),
        (17, 0, vec![]),
        (21, 3, vec![]),
        (36, 0, vec![]),
        (5, 1, words(&[1, 0, 0x8000, 0x1000_0000, 0])),
        (31, 0, words(&[0, 0, 0x0080_0002])),
        (32, 1, words(&[0x2000, 0, 0x0080_0002])),
    ];
    for queue in 0..2_u64 {
        let at = 0x1000_0000 + queue * 0x2000;
        records.push((8, 0, words(&[queue | 64 << 32])));
        records.push((10, 0, words(&[queue])));
        records.push((9, 0, words(&[queue, at, at + 0x1800, at + 0x1000, 0])));
        records.extend([13, 14, 12].map(|code| (code, 2, words(&[queue]))));
        records.push((18, 0, words(&[queue | 1 << 32])));
    }
    records.push((24, 0, [words(&[96 << 32]), vec![0; 4 + 96]].concat()));
    records.push((37, 1, words(&[0, 0x10_0000, 0x1000, 0x2000_0000, 0])));
    records.push((38, 0, words(&[0, 0x10_0000, 0x1000, 0x2000_0000, 0])));
    records.extend([(11, 0, words(&[0])), (11, 0, words(&[1]))]);
    let encode = |records: &[(u8, u8, Vec<u8>)]| -> Vec<u8> {
        let record = |(code, attach, payload): &(u8, u8, Vec<u8>)| {
            [&[*code, 8, *attach, payload.len() as u8][..], payload].concat()
        };
        records.iter().flat_map(record).collect()
    };
    vec![encode(&records), encode(&records[..11]), encode(&records[..18])]
}
