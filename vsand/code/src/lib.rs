//! The erasure code of RAID-5 and RAID-6: parity from data, and lost data from what is left.
//!
//! `k` data blocks D(0) .. D(k-1) of one length have `m` parity blocks, each a sum over GF(2^8), byte by byte:
//!
//! ```text
//!   parity p  =  2^(p*0) D(0)  +  2^(p*1) D(1)  +  ...  +  2^(p*(k-1)) D(k-1)
//! ```
//!
//! So parity 0 is the plain XOR (P), parity 1 is the Q of H. Peter Anvin's "The mathematics of RAID-6", and the further ones go on
//! the same way. Up to [`DATA_MAX`] data and [`PARITY_MAX`] parity blocks, every square part of these coefficients can be inverted:
//! any `k` of the `k + m` blocks give all others. (With four parities that ends at 21 data blocks; a test looks at each part.)
//!
//! What is lost is found by solving equations ([`Code::solve`]), each of them one parity with what its sum was made of. A parity that
//! was being updated when the power went may be one generation ahead of another: they are sums of different data, and only the blocks
//! nobody was writing are the same in both. To mix them up is the write hole. So each [`Equation`] has its own right-hand side, its
//! own known blocks and the name of its generation.
//!
//! **Invariant:** bytes in, bytes out. It knows no chunk, disk, version or host; which block is of which generation is for its caller
//! to know. What it returns depends on its arguments alone, whatever instructions the processor has. Arguments of a wrong shape are a
//! bug of the caller and panic, in release too; that there is not enough to solve is an answer.
#![deny(unsafe_code)]

mod blocks;
mod field;
mod solve;

pub use blocks::{Instructions, LANE};
pub use solve::Equation;

/// The most data blocks.
pub const DATA_MAX: usize = 16;
/// The most parity blocks.
pub const PARITY_MAX: usize = 4;

/// Why there is no such code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCode {
    /// Too few or too many data blocks.
    #[error("a code has 1 to {DATA_MAX} data shards, not {0}: choose another stripe width")]
    Data(usize),
    /// Too few or too many parity blocks.
    #[error(
        "a code has 1 to {PARITY_MAX} parity shards, not {0}: choose another number of failures to tolerate"
    )]
    Parity(usize),
}

/// A code: how many data and how many parity blocks. Blocks are slices of one length, a multiple of [`LANE`] bytes.
///
/// Shards are numbered as in a chunk: 0 .. `data` hold data, `data` .. `data + parity` hold parity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    data: usize,
    parity: usize,
    instructions: Instructions,
}

impl Code {
    /// The code with these numbers of data and parity blocks.
    pub fn new(data: usize, parity: usize) -> Result<Self, BadCode> {
        if !(1..=DATA_MAX).contains(&data) {
            return Err(BadCode::Data(data));
        }
        if !(1..=PARITY_MAX).contains(&parity) {
            return Err(BadCode::Parity(parity));
        }
        Ok(Self { data, parity, instructions: Instructions::best() })
    }

    /// The same code with other instructions than the fastest, to compare them. What the processor does not have is not used.
    #[must_use]
    pub fn with(self, instructions: Instructions) -> Self {
        Self { instructions, ..self }
    }

    /// What it computes with.
    pub fn instructions(&self) -> Instructions {
        self.instructions
    }

    /// How many data blocks.
    pub fn data(&self) -> usize {
        self.data
    }

    /// How many parity blocks; so many shards may be lost.
    pub fn parity(&self) -> usize {
        self.parity
    }

    /// How many blocks in all.
    pub fn shards(&self) -> usize {
        self.data + self.parity
    }

    /// What data block `shard` is multiplied by in parity `parity`: 2^(parity * shard).
    pub fn coefficient(&self, parity: usize, shard: usize) -> u8 {
        assert!(parity < self.parity && shard < self.data, "{self:?} has no ({parity}, {shard})");
        field::power(parity * shard)
    }

    /// All parity blocks of these data blocks.
    pub fn encode(&self, data: &[&[u8]]) -> Vec<Vec<u8>> {
        let len = data.first().map_or(0, |block| block.len());
        let mut parity = vec![vec![0; len]; self.parity];
        let mut out: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
        self.encode_into(data, &mut out);
        parity
    }

    /// The same, into blocks that are there already.
    pub fn encode_into(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) {
        assert_eq!((data.len(), parity.len()), (self.data, self.parity), "{self:?}: all blocks are given");
        match parity {
            [p] => self.instructions.xor(data, p),
            [p, q, more @ ..] => {
                self.instructions.sums_pq(data, p, q);
                let by: Vec<_> = (2..self.parity).map(|parity| self.coefficients(parity)).collect();
                self.instructions.sums(data, &by, more);
            }
            [] => unreachable!("every code has a parity"),
        }
    }

    /// One parity block.
    pub fn encode_one(&self, parity: usize, data: &[&[u8]], out: &mut [u8]) {
        assert_eq!(data.len(), self.data, "{self:?}: all data blocks are given");
        self.instructions.sums(data, &[self.coefficients(parity)], &mut [out]);
    }

    fn coefficients(&self, parity: usize) -> Vec<u8> {
        (0..self.data).map(|shard| self.coefficient(parity, shard)).collect()
    }

    /// The parity block after data block `shard` has changed, from the parity block before: nobody else's data is needed.
    pub fn change(&self, parity: usize, before: &[u8], shard: usize, old: &[u8], new: &[u8], out: &mut [u8]) {
        let by = self.coefficient(parity, shard);
        self.instructions.sums(&[before, old, new], &[vec![1, by, by]], &mut [out]);
    }

    /// The shards `lost`, data or parity, from the others, all of them of one generation: `shards[n]` is shard `n`'s block, None where
    /// it can't be read. None if fewer than `data` are left.
    pub fn rebuild(&self, shards: &[Option<&[u8]>], lost: &[usize]) -> Option<Vec<Vec<u8>>> {
        assert_eq!(shards.len(), self.shards(), "{self:?}: all shards are given, or that they are lost");
        solve::rebuild(*self, shards, lost)
    }

    /// The data blocks `wanted`, in this order, from parities that need not be of one generation (see [`Equation`]).
    ///
    /// A wanted block is the same in all generations: nobody was writing it. None if the equations don't determine all that are
    /// wanted; what they determine besides is not asked. Equations that are not needed are not looked at: this does not find out
    /// whether they contradict each other.
    pub fn solve(&self, equations: &[Equation<'_>], wanted: &[usize]) -> Option<Vec<Vec<u8>>> {
        solve::solve(*self, equations, wanted)
    }
}
