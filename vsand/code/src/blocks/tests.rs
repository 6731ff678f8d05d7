//! Every kernel that this machine can run gives the bytes that the field says.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::field::{mul, power};

fn kernels() -> Vec<(Instructions, Kernel)> {
    Instructions::available().map(|it| (it, it.kernel().expect("it is available"))).collect()
}

fn expected(blocks: &[Vec<Lane>], by: &[u8]) -> Vec<Lane> {
    let byte = |lane: usize, at: usize| {
        blocks.iter().zip(by).fold(0, |sum, (block, by)| sum ^ mul(block[lane][at], *by))
    };
    (0..blocks[0].len()).map(|lane| std::array::from_fn(|at| byte(lane, at))).collect()
}

fn lanes_from(bytes: &[u8], lanes: usize) -> Vec<Lane> {
    (0..lanes).map(|lane| std::array::from_fn(|at| bytes[(lane * 41 + at) % bytes.len()])).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_kernels_agree_with_the_field(
        bytes in vec(vec(any::<u8>(), 200), 1..9),
        lanes in 1_usize..6,
        multipliers in vec(any::<u8>(), 18),
    ) {
        let blocks: Vec<Vec<Lane>> = bytes.iter().map(|bytes| lanes_from(bytes, lanes)).collect();
        let views: Vec<&[Lane]> = blocks.iter().map(Vec::as_slice).collect();
        let (first, second) = (&multipliers[..blocks.len()], &multipliers[9..9 + blocks.len()]);
        let powers: Vec<u8> = (0..blocks.len()).map(power).collect();
        for (name, kernel) in kernels() {
            let mut out = [vec![[1; LANE]; lanes], vec![[2; LANE]; lanes]];
            let [a, b] = &mut out;
            (kernel.two_sums)(&views, [first, second], a, b);
            prop_assert_eq!(&out, &[expected(&blocks, first), expected(&blocks, second)], "{:?}", name);
            let [a, b] = &mut out;
            (kernel.pq)(&views, a, b);
            prop_assert_eq!(&out, &[expected(&blocks, &vec![1; blocks.len()]), expected(&blocks, &powers)], "{:?}", name);
            let [a, b] = &mut out;
            (kernel.sum)(&views, second, a);
            (kernel.xor)(&views, b);
            prop_assert_eq!(&out, &[expected(&blocks, second), expected(&blocks, &vec![1; blocks.len()])], "{:?}", name);
        }
    }
}

#[test]
fn every_product_of_every_kernel_is_that_of_the_field() {
    let all: Vec<Lane> = (0..4).map(|lane| std::array::from_fn(|at| (lane * LANE + at) as u8)).collect();
    for (name, kernel) in kernels() {
        for by in 0..=255 {
            let mut out = vec![[7; LANE]; 4];
            (kernel.sum)(&[&all], &[by], &mut out);
            assert_eq!(out, expected(std::slice::from_ref(&all), &[by]), "{name:?}: {by}");
        }
    }
}
