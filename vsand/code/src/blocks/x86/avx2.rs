//! A lane is two registers, and a product is looked up by halves of a byte: `vpshufb` is a table of 16 bytes for 32 of them at once.

use std::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_loadu_si256,
    _mm256_set1_epi8, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_srli_epi64, _mm256_storeu_si256,
    _mm256_xor_si256,
};

use crate::blocks::{LANE, Lane, plain};
use crate::field;

type Half = [u8; LANE / 2];

/// By multiplier, its products with 0 to 15, and with 16 times these.
const PRODUCTS: [[[u8; 16]; 2]; 256] = {
    let mut products = [[[0; 16]; 2]; 256];
    let mut by = 0;
    while by < 256 {
        let mut x = 0;
        while x < 16 {
            products[by][0][x] = field::mul(by as u8, x as u8);
            products[by][1][x] = field::mul(by as u8, (x as u8) << 4);
            x += 1;
        }
        by += 1;
    }
    products
};

#[target_feature(enable = "avx2")]
pub(super) fn xor(blocks: &[&[Lane]], out: &mut [Lane]) {
    match blocks {
        [d0, d1] => plain::xor(&[d0, d1], out),
        [d0, d1, d2, d3] => plain::xor(&[d0, d1, d2, d3], out),
        _ => plain::xor(blocks, out),
    }
}

#[target_feature(enable = "avx2")]
pub(super) fn pq(data: &[&[Lane]], p: &mut [Lane], q: &mut [Lane]) {
    match data {
        [d0, d1] => plain::pq(&[d0, d1], p, q),
        [d0, d1, d2, d3] => plain::pq(&[d0, d1, d2, d3], p, q),
        _ => plain::pq(data, p, q),
    }
}

#[target_feature(enable = "avx2")]
pub(super) fn sum(blocks: &[&[Lane]], by: &[u8], out: &mut [Lane]) {
    let terms: Vec<_> = blocks.iter().zip(by).map(|(block, by)| (*block, table(*by))).collect();
    for (number, out) in out.iter_mut().enumerate() {
        for (half, out) in halves_mut(out).iter_mut().enumerate() {
            let mut total = _mm256_setzero_si256();
            for (block, by) in &terms {
                let parts = split(load(&halves(&block[number])[half]));
                total = _mm256_xor_si256(total, multiple(parts, *by));
            }
            store(out, total);
        }
    }
}

#[target_feature(enable = "avx2")]
pub(super) fn two_sums(blocks: &[&[Lane]], by: [&[u8]; 2], first: &mut [Lane], second: &mut [Lane]) {
    let by = by[0].iter().zip(by[1]);
    let terms: Vec<_> = blocks.iter().zip(by).map(|(block, (a, b))| (*block, table(*a), table(*b))).collect();
    for (number, (first, second)) in first.iter_mut().zip(second).enumerate() {
        let outs = halves_mut(first).iter_mut().zip(halves_mut(second));
        for (half, (first, second)) in outs.enumerate() {
            let mut totals = [_mm256_setzero_si256(); 2];
            for (block, a, b) in &terms {
                let parts = split(load(&halves(&block[number])[half]));
                totals[0] = _mm256_xor_si256(totals[0], multiple(parts, *a));
                totals[1] = _mm256_xor_si256(totals[1], multiple(parts, *b));
            }
            store(first, totals[0]);
            store(second, totals[1]);
        }
    }
}

/// The low four bits of each byte, and the high ones.
#[inline]
#[target_feature(enable = "avx2")]
fn split(bytes: __m256i) -> [__m256i; 2] {
    let low = _mm256_set1_epi8(15);
    [_mm256_and_si256(bytes, low), _mm256_and_si256(_mm256_srli_epi64::<4>(bytes), low)]
}

#[inline]
#[target_feature(enable = "avx2")]
fn multiple(parts: [__m256i; 2], by: [__m256i; 2]) -> __m256i {
    _mm256_xor_si256(_mm256_shuffle_epi8(by[0], parts[0]), _mm256_shuffle_epi8(by[1], parts[1]))
}

#[inline]
#[target_feature(enable = "avx2")]
fn table(by: u8) -> [__m256i; 2] {
    let [low, high] = &PRODUCTS[usize::from(by)];
    // SAFETY: a table has the 16 bytes that are loaded, and they need not be aligned.
    let (low, high) =
        unsafe { (_mm_loadu_si128(low.as_ptr().cast()), _mm_loadu_si128(high.as_ptr().cast())) };
    [_mm256_broadcastsi128_si256(low), _mm256_broadcastsi128_si256(high)]
}

fn halves(lane: &Lane) -> &[Half] {
    lane.as_chunks().0
}

fn halves_mut(lane: &mut Lane) -> &mut [Half] {
    lane.as_chunks_mut().0
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(half: &Half) -> __m256i {
    // SAFETY: there are the 32 bytes that are loaded, and they need not be aligned.
    unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(half: &mut Half, vector: __m256i) {
    // SAFETY: there are the 32 bytes that are stored, and they need not be aligned.
    unsafe { _mm256_storeu_si256(half.as_mut_ptr().cast(), vector) }
}
