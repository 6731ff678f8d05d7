//! The sums for x86-64 processors with more than every one of them has: AVX2, or AVX-512 with GFNI.
//!
//! All `unsafe` of the crate is here and below. It is of two kinds: a call of a function that uses instructions which the processor was found
//! to have, and loads and stores of a vector from and to a reference of its size.

mod avx2;
mod avx512;

use super::{Kernel, Lane};

macro_rules! call {
    ($module:ident :: $name:ident ($($argument:ident : $type:ty),*)) => {{
        fn call($($argument: $type),*) {
            // SAFETY: it is called by way of the kernel alone, which is given out after the processor was asked for these features.
            unsafe { $module::$name($($argument),*) }
        }
        call
    }};
}

macro_rules! kernel {
    ($module:ident) => {
        Kernel {
            xor: call!($module::xor(blocks: &[&[Lane]], out: &mut [Lane])),
            pq: call!($module::pq(data: &[&[Lane]], p: &mut [Lane], q: &mut [Lane])),
            sum: call!($module::sum(blocks: &[&[Lane]], by: &[u8], out: &mut [Lane])),
            two_sums: call!($module::two_sums(blocks: &[&[Lane]], by: [&[u8]; 2], first: &mut [Lane], second: &mut [Lane])),
        }
    };
}

/// None if this processor lacks what it needs.
pub(super) fn avx512_kernel() -> Option<Kernel> {
    let there = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("gfni");
    there.then_some(kernel!(avx512))
}

/// None if this processor lacks what it needs.
pub(super) fn avx2_kernel() -> Option<Kernel> {
    is_x86_feature_detected!("avx2").then_some(kernel!(avx2))
}
