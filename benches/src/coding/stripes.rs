//! Stripes in memory, and what is done to them here: by ours and by the crate.

use std::hint::black_box;
use std::time::Instant;

use reed_solomon_erasure::galois_8::ReedSolomon;
use vsand_code::{Code, Instructions};

use super::{Case, Task};

/// Everything begins at a page, as what is read from a disk does.
const PAGE: usize = 4096;

/// A speed, and a hash of what came of the first stripe.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    /// Data a second, in 10^9 bytes.
    pub(super) speed: f64,
    pub(super) result: u64,
}

/// Blocks of data and parity, stripe after stripe.
#[derive(Debug)]
pub(super) struct Stripes {
    case: Case,
    memory: Vec<u8>,
    /// Where the first begins.
    start: usize,
}

/// The hash of the peer's program (FNV-1a).
fn hash<'a>(blocks: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let bytes = blocks.into_iter().flatten();
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

impl Stripes {
    /// Filled with numbers that look random (`SplitMix64`), the same as in the peer's program.
    pub(super) fn new(case: &Case) -> Self {
        let len = case.stripes() * (case.data + case.parity) * case.block;
        let mut memory = vec![0; len + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        let mut x = 0_u64;
        for word in memory[start..start + len].as_chunks_mut::<8>().0 {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *word = (z ^ (z >> 31)).to_le_bytes();
        }
        Self { case: *case, memory, start }
    }

    /// The blocks of one, data first.
    fn stripe(&mut self, number: usize) -> Vec<&mut [u8]> {
        let len = (self.case.data + self.case.parity) * self.case.block;
        self.memory[self.start + number * len..][..len].chunks_mut(self.case.block).collect()
    }

    /// Does the work on the first, then on all in turn for a time, of which the fastest short part counts: what else the machine does falls
    /// into the others. `work` says what came of it by a hash, if it is asked.
    fn time(&mut self, seconds: f64, mut work: impl FnMut(&mut [&mut [u8]], bool) -> u64) -> Measured {
        let Case { data, block, .. } = self.case;
        let count = self.case.stripes();
        let result = work(&mut self.stripe(0), true);
        let batch = 1 + (8 << 20) / (data * block);
        let (begun, mut done, mut best) = (Instant::now(), 0, 0.0_f64);
        loop {
            let from = Instant::now();
            for _ in 0..batch {
                work(&mut self.stripe(done % count), false);
                done += 1;
            }
            best = best.max((batch * data * block) as f64 / from.elapsed().as_secs_f64() / 1e9);
            if begun.elapsed().as_secs_f64() >= seconds {
                return Measured { speed: best, result };
            }
        }
    }

    fn each(&mut self, mut work: impl FnMut(&mut [&mut [u8]])) {
        (0..self.case.stripes()).for_each(|number| work(&mut self.stripe(number)));
    }

    pub(super) fn ours(&mut self, with: Instructions, seconds: f64) -> Measured {
        let Case { data, parity, task, .. } = self.case;
        let code = Code::new(data, parity).expect("a code of the product").with(with);
        let encode = |stripe: &mut [&mut [u8]]| {
            let (data, parity) = stripe.split_at_mut(code.data());
            let data: Vec<&[u8]> = data.iter().map(|block| &**block).collect();
            code.encode_into(&data, parity);
        };
        match task {
            Task::Encode => self.time(seconds, |stripe, asked| {
                encode(stripe);
                if asked { hash(stripe[data..].iter().map(|block| &**block)) } else { 0 }
            }),
            Task::Find(lost) => {
                self.each(encode);
                let wanted: Vec<usize> = (0..lost).collect();
                self.time(seconds, |stripe, asked| {
                    let left: Vec<Option<&[u8]>> =
                        stripe.iter().enumerate().map(|(n, block)| (n >= lost).then_some(&**block)).collect();
                    let found = code.rebuild(&left, &wanted).expect("there is enough left");
                    let found = black_box(found);
                    if asked { hash(found.iter().map(Vec::as_slice)) } else { 0 }
                })
            }
        }
    }
}

/// The crate's code of the same shape. Its parities are other sums.
#[derive(Debug)]
pub(super) struct TheirCode {
    code: ReedSolomon,
    case: Case,
}

impl TheirCode {
    pub(super) fn new(case: &Case) -> anyhow::Result<Self> {
        let code = ReedSolomon::new(case.data, case.parity)
            .map_err(|error| anyhow::anyhow!("reed-solomon-erasure: {error:?}"))?;
        Ok(Self { code, case: *case })
    }

    fn encode(&self, stripe: &mut [&mut [u8]]) {
        let (data, parity) = stripe.split_at_mut(self.case.data);
        self.code.encode_sep(data, parity).expect("the shape is right");
    }

    pub(super) fn measure(&self, stripes: &mut Stripes, seconds: f64) -> anyhow::Result<f64> {
        let lost = match self.case.task {
            Task::Encode => {
                let encoded = stripes.time(seconds, |stripe, _| {
                    self.encode(stripe);
                    0
                });
                return Ok(encoded.speed);
            }
            Task::Find(lost) => lost,
        };
        stripes.each(|stripe| self.encode(stripe));
        let expected = hash(stripes.stripe(0)[..lost].iter().map(|block| &**block));
        let mut found = vec![vec![0; self.case.block]; lost];
        let measured = stripes.time(seconds, |stripe, asked| {
            let there = stripe[lost..].iter_mut().map(|block| (&mut **block, true));
            let missing = found.iter_mut().map(|block| (block.as_mut_slice(), false));
            let mut shards: Vec<(&mut [u8], bool)> = missing.chain(there).collect();
            self.code.reconstruct_data(&mut shards).expect("there is enough left");
            if asked { hash(shards[..lost].iter().map(|(block, _)| &**block)) } else { 0 }
        });
        anyhow::ensure!(measured.result == expected, "reed-solomon-erasure found other bytes");
        Ok(measured.speed)
    }
}
