//! What a guest writes into the rings of its network card.

use ferro_vhost::fuzz::{
    self, IMAGE_AVAIL, IMAGE_BYTES, IMAGE_RING_SIZE, IMAGE_TABLE, NetImageOptions, RX_RING,
};
use ferro_vhost::net::FRAME_BYTES_MAX;

use crate::Source;

const HEADERS: usize = 0x4000;
const SIDE_TABLE: usize = 0x6000;
const DATA: u64 = 0x8000;
/// Above both rings.
const BUFFERS: u64 = 0x2_0000;
/// Of the ring with the guest's frames: descriptors, avail ring, headers, indirect table; of the other: descriptors, avail
/// ring. How much of each an input brings.
const PARTS: [(usize, usize); 6] = [
    (IMAGE_TABLE as usize, 384),
    (IMAGE_AVAIL as usize, 136),
    (HEADERS, 128),
    (SIDE_TABLE, 256),
    ((IMAGE_TABLE + RX_RING) as usize, 384),
    ((IMAGE_AVAIL + RX_RING) as usize, 136),
];

fn options(flags: u8) -> NetImageOptions {
    NetImageOptions {
        event_idx: flags & 1 != 0,
        no_indirect: flags & 2 != 0,
        mergeable: flags & 4 != 0,
        legacy: flags & 8 != 0,
    }
}

/// An image of guest memory; the input fills only what the device looks at.
fn image(data: &[u8]) -> Vec<u8> {
    let mut source = Source::new(data.get(1..).unwrap_or_default());
    let mut image = vec![0; IMAGE_BYTES];
    for (at, len) in PARTS {
        let part = source.take(len);
        image[at..at + part.len()].copy_from_slice(part);
    }
    image
}

/// All frames of a guest are taken, and some given to it.
pub(super) fn rings(data: &[u8]) {
    let (image, options) = (image(data), options(data.first().copied().unwrap_or(0)));
    let Ok(verdict) = fuzz::net_image(&image, options) else { return };
    for (_, bytes) in &verdict.frames {
        assert!((14..=FRAME_BYTES_MAX).contains(bytes), "a frame of {bytes} bytes");
    }
    assert_eq!(verdict.frames.len(), verdict.outcome.frames, "what was counted was given");
    // Nobody writes while it is looked at, so a ring has no more than fits into it, once for each time that it is looked at.
    assert!(verdict.frames.len() <= usize::from(u16::MAX) + usize::from(IMAGE_RING_SIZE));
}

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
}

fn padded(mut part: Vec<u8>, len: usize) -> Vec<u8> {
    part.resize(len, 0);
    part
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    // Eight frames, each a header and its bytes; the last one indirect.
    let (mut table, mut heads, mut headers) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..8_u16 {
        table.extend(descriptor(HEADERS as u64 + u64::from(n) * 16, 12, 1, 2 * n + 1));
        table.extend(descriptor(DATA + u64::from(n) * 4096, 60 + 200 * u32::from(n), 0, 0));
        heads.extend((2 * n).to_le_bytes());
        // Every second wants a checksum, every fourth is a super-frame.
        let (flags, kind) = (u8::from(n % 2 == 1), u8::from(n % 4 == 3));
        headers.extend([flags, kind, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0, 0, 0, 0, 0]);
    }
    let plain = table.clone();
    table[14 * 16..15 * 16].copy_from_slice(&descriptor(SIDE_TABLE as u64, 32, 4, 0));
    let side = [descriptor(HEADERS as u64, 12, 1, 1), descriptor(DATA, 1000, 0, 0)].concat();
    let avail = |heads: &[u8]| [&[0, 0][..], &8_u16.to_le_bytes(), heads].concat();
    // Buffers: short ones to be merged, and long ones in pairs.
    let (mut rx_table, mut rx_heads) = (Vec::new(), Vec::new());
    for n in 0..8_u16 {
        let long = if n % 2 == 0 { 2048 } else { 0x1_2000 };
        rx_table.extend(descriptor(BUFFERS + 0x1000 * u64::from(n), 12, 3, 2 * n + 1));
        rx_table.extend(descriptor(BUFFERS + 0x1000 * u64::from(n) + 12, long, 2, 0));
        rx_heads.extend((2 * n).to_le_bytes());
    }
    let rest = [
        padded(avail(&heads), 136),
        padded(headers, 128),
        padded(side, 256),
        padded(rx_table, 384),
        padded(avail(&rx_heads), 136),
    ]
    .concat();
    let seed = |flags: u8| {
        let table = if options(flags).no_indirect { plain.clone() } else { table.clone() };
        [vec![flags], padded(table, 384), rest.clone()].concat()
    };
    (0..16).map(seed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What mutations begin from is what a guest would do.
    #[test]
    fn seeds_pass_frames_both_ways() {
        for seed in seeds() {
            let flags = seed[0];
            let verdict = fuzz::net_image(&image(&seed), options(flags)).expect("it runs");
            assert_eq!(verdict.broken, None, "{flags}");
            // Without offloads, those that want some are refused.
            let least = if options(flags).legacy { 4 } else { 8 };
            assert!(verdict.frames.len() >= least, "{flags}: {:?}", verdict.outcome);
            assert!(
                verdict.given.iter().filter(|(_, it)| it.is_ok()).count() >= 3,
                "{flags}: {:?}",
                verdict.given
            );
        }
    }
}
