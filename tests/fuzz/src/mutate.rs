//! Changes to inputs, the same for the same seed.

use rand::Rng;

const BYTES: [u8; 8] = [0, 1, 2, 0x7f, 0x80, 0xfe, 0xff, b'.'];
const WORDS: [u64; 10] =
    [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 32, 4096, 1 << 20, u64::MAX, u64::MAX >> 1];

/// Changes one to eight things in `input`, which stays within `len_max`; `other` is another input to take parts from.
pub fn mutate(rng: &mut impl Rng, input: &mut Vec<u8>, other: &[u8], len_max: usize) {
    for _ in 0..rng.random_range(1..=8_u32) >> rng.random_range(0..3_u32) {
        change(rng, input, other);
    }
    input.truncate(len_max);
}

fn change(rng: &mut impl Rng, input: &mut Vec<u8>, other: &[u8]) {
    if input.is_empty() {
        input.extend((0..rng.random_range(1..64)).map(|_| rng.random::<u8>()));
        return;
    }
    let at = rng.random_range(0..input.len());
    match rng.random_range(0..10) {
        0 => input[at] ^= 1 << rng.random_range(0..8),
        1 => input[at] = rng.random(),
        2 => input[at] = BYTES[rng.random_range(0..BYTES.len())],
        3 => {
            let word = WORDS[rng.random_range(0..WORDS.len())].to_le_bytes();
            let width = 1 << rng.random_range(0..4_u32);
            let end = (at + width).min(input.len());
            input[at..end].copy_from_slice(&word[..end - at]);
        }
        4 => input[at] = input[at].wrapping_add(rng.random_range(0..5)).wrapping_sub(2),
        5 => {
            let end = (at + rng.random_range(1..32)).min(input.len());
            input.drain(at..end);
        }
        6 => {
            let more: Vec<u8> = (0..rng.random_range(1..16)).map(|_| rng.random()).collect();
            input.splice(at..at, more);
        }
        7 => {
            let end = (at + rng.random_range(1..64)).min(input.len());
            let copy = input[at..end].to_vec();
            let to = rng.random_range(0..=input.len());
            input.splice(to..to, copy);
        }
        8 => input.truncate(at),
        _ if !other.is_empty() => {
            let from = rng.random_range(0..other.len());
            let end = (from + rng.random_range(1..256)).min(other.len());
            let to = (at + (end - from)).min(input.len());
            input.splice(at..to, other[from..end].iter().copied());
        }
        _ => {}
    }
}
