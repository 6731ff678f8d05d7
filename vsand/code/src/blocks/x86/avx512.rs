//! A lane is one register, and GFNI multiplies all of its bytes by one: as a matrix of bits, for its own multiplication is modulo another
//! polynomial.

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_gf2p8affine_epi64_epi8, _mm512_loadu_si512, _mm512_set1_epi64,
    _mm512_setzero_si512, _mm512_storeu_si512, _mm512_xor_si512,
};

use crate::blocks::{Lane, plain};
use crate::field;

/// How many lanes ahead of the sums their blocks, read and written, are fetched into the cache. The processor does so by itself, but
/// not from one page to the next: without it, 62 GB/s instead of 76 where all is in the second-level cache (encoding 4+2).
const AHEAD: usize = 24;

/// By multiplier, what it does to the bits of a byte, as `vgf2p8affineqb` takes it: the bytes are the bits of the product, highest
/// in the lowest byte; each says which bits of the other factor are added up for it.
const MATRICES: [u64; 256] = {
    let mut matrices = [0; 256];
    let mut by = 0;
    while by < 256 {
        let mut bit = 0;
        while bit < 8 {
            let product = field::mul(by as u8, 1 << bit);
            let mut of_product = 0;
            while of_product < 8 {
                if product >> of_product & 1 == 1 {
                    matrices[by] |= 1 << (8 * (7 - of_product) + bit);
                }
                of_product += 1;
            }
            bit += 1;
        }
        by += 1;
    }
    matrices
};

#[target_feature(enable = "avx512f,avx512bw,gfni")]
pub(super) fn xor(blocks: &[&[Lane]], out: &mut [Lane]) {
    match blocks {
        [d0, d1] => plain::xor(&[d0, d1], out),
        [d0, d1, d2, d3] => plain::xor(&[d0, d1, d2, d3], out),
        _ => plain::xor(blocks, out),
    }
}

#[target_feature(enable = "avx512f,avx512bw,gfni")]
pub(super) fn pq(data: &[&[Lane]], p: &mut [Lane], q: &mut [Lane]) {
    match data {
        [d0, d1] => pq_of(&[d0, d1], p, q),
        [d0, d1, d2, d3] => pq_of(&[d0, d1, d2, d3], p, q),
        _ => plain::pq(data, p, q),
    }
}

#[target_feature(enable = "avx512f,avx512bw,gfni")]
fn pq_of<const DATA: usize>(data: &[&[Lane]; DATA], p: &mut [Lane], q: &mut [Lane]) {
    let two = matrix(2);
    for number in 0..p.len() {
        if let (Some(p), Some(q)) = (p.get(number + AHEAD), q.get(number + AHEAD)) {
            fetch(p);
            fetch(q);
        }
        let (mut plain, mut weighted) = (_mm512_setzero_si512(), _mm512_setzero_si512());
        for block in data.iter().rev() {
            if let Some(lane) = block.get(number + AHEAD) {
                fetch(lane);
            }
            let lane = load(&block[number]);
            plain = _mm512_xor_si512(plain, lane);
            weighted = _mm512_xor_si512(multiple(weighted, two), lane);
        }
        store(&mut p[number], plain);
        store(&mut q[number], weighted);
    }
}

#[target_feature(enable = "avx512f,avx512bw,gfni")]
pub(super) fn sum(blocks: &[&[Lane]], by: &[u8], out: &mut [Lane]) {
    let terms: Vec<_> = blocks.iter().zip(by).map(|(block, by)| (*block, matrix(*by))).collect();
    for (number, out) in out.iter_mut().enumerate() {
        let mut total = _mm512_setzero_si512();
        for (block, by) in &terms {
            total = _mm512_xor_si512(total, multiple(load(&block[number]), *by));
        }
        store(out, total);
    }
}

#[target_feature(enable = "avx512f,avx512bw,gfni")]
pub(super) fn two_sums(blocks: &[&[Lane]], by: [&[u8]; 2], first: &mut [Lane], second: &mut [Lane]) {
    let by = by[0].iter().zip(by[1]);
    let terms: Vec<_> =
        blocks.iter().zip(by).map(|(block, (a, b))| (*block, matrix(*a), matrix(*b))).collect();
    for (number, (first, second)) in first.iter_mut().zip(second).enumerate() {
        let mut totals = [_mm512_setzero_si512(); 2];
        for (block, a, b) in &terms {
            let lane = load(&block[number]);
            totals[0] = _mm512_xor_si512(totals[0], multiple(lane, *a));
            totals[1] = _mm512_xor_si512(totals[1], multiple(lane, *b));
        }
        store(first, totals[0]);
        store(second, totals[1]);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,gfni")]
fn matrix(by: u8) -> __m512i {
    _mm512_set1_epi64(MATRICES[usize::from(by)].cast_signed())
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,gfni")]
fn multiple(lane: __m512i, by: __m512i) -> __m512i {
    _mm512_gf2p8affine_epi64_epi8::<0>(lane, by)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,gfni")]
fn fetch(lane: &Lane) {
    // SAFETY: it is a hint, which changes nothing, and the lane is there.
    #[allow(unused_unsafe, reason = "newer compilers know")]
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(lane.as_ptr().cast())
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,gfni")]
fn load(lane: &Lane) -> __m512i {
    // SAFETY: a lane has the 64 bytes that are loaded, and they need not be aligned.
    unsafe { _mm512_loadu_si512(lane.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,gfni")]
fn store(lane: &mut Lane, vector: __m512i) {
    // SAFETY: a lane has the 64 bytes that are stored, and they need not be aligned.
    unsafe { _mm512_storeu_si512(lane.as_mut_ptr().cast(), vector) }
}
