//! The sums in Rust alone, in a form of which compilers make vector instructions. `xor` and `pq` are inlined where they are used, so
//! that they can be compiled for more than what all processors have.
#![allow(clippy::inline_always)]

use super::{Kernel, LANE, Lane};
use crate::field::double;

pub(super) const KERNEL: Kernel = Kernel { xor, pq, sum, two_sums };

#[inline(always)]
pub(super) fn xor(blocks: &[&[Lane]], out: &mut [Lane]) {
    for (number, out) in out.iter_mut().enumerate() {
        let mut total = [0; LANE];
        for block in blocks {
            add(&mut total, &block[number]);
        }
        *out = total;
    }
}

#[inline(always)]
pub(super) fn pq(data: &[&[Lane]], p: &mut [Lane], q: &mut [Lane]) {
    for (number, (p, q)) in p.iter_mut().zip(q).enumerate() {
        let (mut plain, mut weighted) = ([0; LANE], [0; LANE]);
        for block in data.iter().rev() {
            add(&mut plain, &block[number]);
            twice(&mut weighted);
            add(&mut weighted, &block[number]);
        }
        (*p, *q) = (plain, weighted);
    }
}

/// By Horner's rule over the bits of the multipliers, highest first.
fn sum(blocks: &[&[Lane]], by: &[u8], out: &mut [Lane]) {
    for (number, out) in out.iter_mut().enumerate() {
        let mut total = [0; LANE];
        for bit in (0..8).rev() {
            twice(&mut total);
            for (block, by) in blocks.iter().zip(by) {
                if by >> bit & 1 == 1 {
                    add(&mut total, &block[number]);
                }
            }
        }
        *out = total;
    }
}

fn two_sums(blocks: &[&[Lane]], by: [&[u8]; 2], first: &mut [Lane], second: &mut [Lane]) {
    for (by, out) in by.into_iter().zip([first, second]) {
        sum(blocks, by, out);
    }
}

#[inline(always)]
fn add(total: &mut Lane, other: &Lane) {
    for (a, b) in total.iter_mut().zip(other) {
        *a ^= b;
    }
}

#[inline(always)]
fn twice(lane: &mut Lane) {
    for x in lane {
        *x = double(*x);
    }
}
