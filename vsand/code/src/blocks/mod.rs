//! Arithmetic on whole blocks: sums of multiples. Everything the code does to many bytes goes through here.
//!
//! `plain` says it in Rust, for any processor. `x86` has the same for processors with wider vectors and with instructions that multiply
//! many bytes at once. The bytes are the same: a test compares all that the machine at hand can do.
//!
//! What it must not know: what a block means, which shard it is, whether a sum is a parity or a lost block found again.

mod plain;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86;

/// How many bytes are worked on at once. Blocks are multiples of it.
pub const LANE: usize = 64;

type Lane = [u8; LANE];

/// The sums, for one kind of processor. All blocks have as many lanes as the sums.
#[derive(Clone, Copy)]
struct Kernel {
    /// The blocks, one into the other.
    xor: fn(blocks: &[&[Lane]], out: &mut [Lane]),
    /// P and Q in one pass.
    pq: fn(data: &[&[Lane]], p: &mut [Lane], q: &mut [Lane]),
    /// Each block times its multiplier.
    sum: fn(blocks: &[&[Lane]], by: &[u8], out: &mut [Lane]),
    /// Two such sums of the same blocks in one pass.
    two_sums: TwoSums,
}

type TwoSums = fn(blocks: &[&[Lane]], by: [&[u8]; 2], first: &mut [Lane], second: &mut [Lane]);

/// What blocks are added up with. The bytes do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// AVX-512 and GFNI.
    Avx512,
    /// AVX2.
    Avx2,
    /// What every processor of the architecture has.
    Plain,
}

impl Instructions {
    /// All of them that this processor has, the fastest first.
    pub fn available() -> impl Iterator<Item = Self> {
        [Self::Avx512, Self::Avx2, Self::Plain].into_iter().filter(|it| it.kernel().is_some())
    }

    /// The fastest that this processor has.
    pub(crate) fn best() -> Self {
        Self::available().next().unwrap_or(Self::Plain)
    }

    /// None if this processor does not have these instructions.
    fn kernel(self) -> Option<Kernel> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => x86::avx512_kernel(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86::avx2_kernel(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 | Self::Avx2 => None,
            Self::Plain => Some(plain::KERNEL),
        }
    }

    fn kernel_or_plain(self) -> Kernel {
        self.kernel().unwrap_or(plain::KERNEL)
    }

    /// The sum of the blocks.
    pub(crate) fn xor(self, blocks: &[&[u8]], out: &mut [u8]) {
        let out = lanes_mut(out);
        (self.kernel_or_plain().xor)(&lanes_of_all(blocks, out.len()), out);
    }

    /// P = the sum of all, Q = the sum of 2^i times the i-th.
    pub(crate) fn sums_pq(self, data: &[&[u8]], p: &mut [u8], q: &mut [u8]) {
        let (p, q) = (lanes_mut(p), lanes_mut(q));
        assert_eq!(p.len(), q.len(), "blocks are of one length");
        (self.kernel_or_plain().pq)(&lanes_of_all(data, p.len()), p, q);
    }

    /// Each of `out` = the sum of the blocks, each block times its multiplier in this sum.
    pub(crate) fn sums(self, blocks: &[&[u8]], by: &[Vec<u8>], out: &mut [&mut [u8]]) {
        assert_eq!(by.len(), out.len(), "each sum has its multipliers");
        let kernel = self.kernel_or_plain();
        let mut by = by.iter();
        for pair in out.chunks_mut(2) {
            let mut next = || {
                let by = by.next().expect("counted above");
                assert_eq!(by.len(), blocks.len(), "each block has its multiplier");
                by.as_slice()
            };
            match pair {
                [first, second] => {
                    let (first, second) = (lanes_mut(first), lanes_mut(second));
                    assert_eq!(first.len(), second.len(), "blocks are of one length");
                    let blocks = lanes_of_all(blocks, first.len());
                    (kernel.two_sums)(&blocks, [next(), next()], first, second);
                }
                [one] => {
                    let one = lanes_mut(one);
                    let by = next();
                    if by.iter().all(|by| *by == 1) {
                        (kernel.xor)(&lanes_of_all(blocks, one.len()), one);
                    } else {
                        (kernel.sum)(&lanes_of_all(blocks, one.len()), by, one);
                    }
                }
                _ => unreachable!("chunks of two"),
            }
        }
    }
}

/// A byte that no lane covers would be left out of the sum: wrong bytes. So this holds in release too.
fn lanes(block: &[u8]) -> &[Lane] {
    let (lanes, rest) = block.as_chunks();
    assert!(rest.is_empty(), "blocks are multiples of {LANE} bytes, this one has {}", block.len());
    lanes
}

fn lanes_mut(block: &mut [u8]) -> &mut [Lane] {
    let len = block.len();
    let (lanes, rest) = block.as_chunks_mut();
    assert!(rest.is_empty(), "blocks are multiples of {LANE} bytes, this one has {len}");
    lanes
}

fn lanes_of_all<'a>(blocks: &[&'a [u8]], count: usize) -> Vec<&'a [Lane]> {
    let lanes = |block: &&'a [u8]| {
        let lanes = lanes(block);
        assert_eq!(lanes.len(), count, "blocks are of one length");
        lanes
    };
    blocks.iter().map(lanes).collect()
}
