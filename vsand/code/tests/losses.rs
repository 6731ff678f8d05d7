//! Bytes that come back: from every loss that a code stands, and from every moment of an update at which the power can go.

use proptest::collection::vec;
use proptest::prelude::*;
use reed_solomon_erasure::galois_8 as field;
use vsand_code::{Code, Equation, LANE};

/// The codes of the product.
const PRODUCT: [(usize, usize); 4] = [(2, 1), (4, 1), (2, 2), (4, 2)];

type Block = Vec<u8>;

fn slices(blocks: &[Block]) -> Vec<&[u8]> {
    blocks.iter().map(Vec::as_slice).collect()
}

fn has(set: usize, shard: usize) -> bool {
    set >> shard & 1 == 1
}

fn members(set: usize) -> Vec<usize> {
    (0..usize::BITS as usize).filter(|shard| has(set, *shard)).collect()
}

/// All sets of at most `most` of `of` things.
fn sets(of: usize, most: usize) -> impl Iterator<Item = usize> {
    (0..1_usize << of).filter(move |set| set.count_ones() as usize <= most)
}

/// Some blocks of one length, of a few lanes.
fn blocks(count: usize) -> impl Strategy<Value = Vec<Block>> {
    (1_usize..5).prop_flat_map(move |lanes| vec(vec(any::<u8>(), lanes * LANE), count))
}

/// Byte by byte, with another implementation of the field.
fn parity_by_hand(data: &[Block], parity: usize) -> Block {
    let byte = |at: usize| {
        data.iter().enumerate().fold(0, |sum, (i, d)| sum ^ field::mul(field::exp(2, parity * i), d[at]))
    };
    (0..data[0].len()).map(byte).collect()
}

fn every_loss_comes_back(code: Code, data: &[Block]) {
    let parity = code.encode(&slices(data));
    let all: Vec<Block> = data.iter().chain(&parity).cloned().collect();
    for lost in sets(code.shards(), code.shards()) {
        let left: Vec<Option<&[u8]>> =
            all.iter().enumerate().map(|(n, block)| (!has(lost, n)).then_some(block.as_slice())).collect();
        let found = code.rebuild(&left, &members(lost));
        if lost.count_ones() as usize <= code.parity() {
            let expected: Vec<Block> = members(lost).iter().map(|n| all[*n].clone()).collect();
            assert_eq!(found, Some(expected), "{code:?} without {lost:b}");
            // One alone, of several that are lost.
            for one in members(lost) {
                assert_eq!(code.rebuild(&left, &[one]), Some(vec![all[one].clone()]), "{one} of {lost:b}");
            }
        } else {
            assert_eq!(found, None, "{code:?} without {lost:b}: too much is lost");
        }
    }
}

/// A row of blocks in the middle of an update.
struct Torn<'a> {
    code: Code,
    old: &'a [Block],
    new: &'a [Block],
    /// The data shards that are being written. Their new blocks are in the log.
    updated: usize,
    /// The parities that are written already.
    ahead: usize,
    /// The shards that are lost then.
    lost: usize,
}

impl Torn<'_> {
    fn is_lost(&self, shard: usize) -> bool {
        has(self.lost, shard)
    }

    /// Shard `shard`'s block as a parity of this generation was made of it, if it is to be had.
    fn known(&self, generation: u8, shard: usize) -> Option<&[u8]> {
        match generation {
            1 if has(self.updated, shard) => Some(&self.new[shard]),
            _ => (!self.is_lost(shard)).then_some(&self.old[shard]),
        }
    }

    /// What the lost blocks that nobody was writing are found to be.
    fn found(&self, tell_apart: bool) -> Option<Vec<Block>> {
        let code = self.code;
        let after: Vec<Block> = (0..code.data())
            .map(|shard| if has(self.updated, shard) { &self.new[shard] } else { &self.old[shard] }.clone())
            .collect();
        let parities = [code.encode(&slices(self.old)), code.encode(&slices(&after))];
        let left = (0..code.parity()).filter(|parity| !self.is_lost(code.data() + parity));
        let equations: Vec<Equation<'_>> = left
            .map(|parity| {
                let generation = u8::from(has(self.ahead, parity));
                let taken = if tell_apart { generation } else { 1 };
                Equation {
                    parity,
                    block: &parities[usize::from(generation)][parity],
                    known: (0..code.data()).map(|shard| self.known(taken, shard)).collect(),
                    generation: taken,
                }
            })
            .collect();
        code.solve(&equations, &self.wanted())
    }

    fn wanted(&self) -> Vec<usize> {
        let idle = |shard: &usize| self.is_lost(*shard) && !has(self.updated, *shard);
        (0..self.code.data()).filter(idle).collect()
    }

    fn expected(&self) -> Vec<Block> {
        self.wanted().iter().map(|shard| self.old[*shard].clone()).collect()
    }

    fn told(&self) -> String {
        let Self { code, updated, ahead, lost, .. } = self;
        format!("{code:?}: {updated:b} written, parities {ahead:b} done, {lost:b} lost")
    }
}

/// Each crash: which shards were being written, which parities were done, what is lost. The count of those looked at.
fn every_crash(code: Code, old: &[Block], new: &[Block], mut look: impl FnMut(&Torn<'_>)) -> usize {
    let mut count = 0;
    for updated in 1..1_usize << code.data() {
        for ahead in 0..1_usize << code.parity() {
            for lost in sets(code.shards(), code.parity()) {
                look(&Torn { code, old, new, updated, ahead, lost });
                count += 1;
            }
        }
    }
    count
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn parities_are_the_sums_they_should_be(data in blocks(16)) {
        for width in 1..=16 {
            for parities in 1..=4 {
                let code = Code::new(width, parities).expect("in bounds");
                let data = &data[..width];
                let parity = code.encode(&slices(data));
                for (number, block) in parity.iter().enumerate() {
                    prop_assert_eq!(block, &parity_by_hand(data, number), "{:?}, parity {}", code, number);
                    let mut single = vec![7; block.len()];
                    code.encode_one(number, &slices(data), &mut single);
                    prop_assert_eq!(&single, block);
                }
            }
        }
    }

    #[test]
    fn what_the_product_s_codes_lose_comes_back(data in blocks(4)) {
        for (width, parities) in PRODUCT {
            every_loss_comes_back(Code::new(width, parities).expect("of the product"), &data[..width]);
        }
    }

    #[test]
    fn what_wider_codes_lose_comes_back(data in blocks(7)) {
        for (width, parities) in [(1, 1), (3, 3), (5, 4), (7, 3)] {
            every_loss_comes_back(Code::new(width, parities).expect("in bounds"), &data[..width]);
        }
    }

    /// The write hole: no crash in the middle of an update, followed by the loss of as much as the code stands, harms a block
    /// nobody was writing.
    #[test]
    fn no_crash_in_an_update_harms_a_block_at_rest(old in blocks(4), seed in vec(any::<u8>(), LANE * 4 * 4)) {
        let len = old[0].len();
        let new: Vec<Block> = seed.chunks(LANE * 4).map(|chunk| chunk[..len].to_vec()).collect();
        let mut count = 0;
        for (width, parities) in PRODUCT {
            let code = Code::new(width, parities).expect("of the product");
            count += every_crash(code, &old[..width], &new[..width], |torn| {
                assert_eq!(torn.found(true), Some(torn.expected()), "{}", torn.told());
            });
        }
        assert_eq!(count, 3 * 2 * 4 + 15 * 2 * 6 + 3 * 4 * 11 + 15 * 4 * 22);
    }

    /// A change of one block, told to each parity by itself.
    #[test]
    fn a_change_of_one_block_gives_the_parity_of_all(data in blocks(5)) {
        let (new, data) = data.split_last().expect("five");
        let code = Code::new(4, 3).expect("in bounds");
        let before = code.encode(&slices(data));
        for shard in 0..4 {
            let mut changed = data.to_vec();
            changed[shard].clone_from(new);
            for (number, expected) in code.encode(&slices(&changed)).iter().enumerate() {
                let mut after = vec![0; new.len()];
                code.change(number, &before[number], shard, &data[shard], new, &mut after);
                prop_assert_eq!(&after, expected);
            }
        }
    }
}

fn numbered(count: usize, from: u8) -> Vec<Block> {
    (0..count).map(|n| (0..LANE).map(|at| (at as u8).wrapping_mul(37) ^ (from + n as u8)).collect()).collect()
}

/// Why equations have generations: to take the old and the new for one gives wrong bytes, or finds nothing.
#[test]
fn generations_taken_for_one_give_wrong_bytes() {
    let (old, new) = (numbered(4, 0), numbered(4, 100));
    let (mut wrong, mut good) = (0, 0);
    every_crash(Code::new(4, 2).expect("4+2"), &old, &new, |torn| {
        let right = torn.found(false) == Some(torn.expected());
        *(if right { &mut good } else { &mut wrong }) += 1;
    });
    assert!(wrong > 100 && good > 100, "{wrong} wrong, {good} right");
}

#[test]
fn what_is_known_in_one_generation_is_known_in_all_if_it_is_wanted() {
    let data = numbered(2, 0);
    let code = Code::new(2, 2).expect("2+2");
    let parity = code.encode(&slices(&data));
    let equation = |parity_number: usize, known: Vec<Option<_>>| Equation {
        parity: parity_number,
        block: &parity[parity_number],
        known,
        generation: parity_number as u8,
    };
    // Shard 0 from the first; with it, shard 1 from the second.
    let equations = [equation(0, vec![Some(&data[0][..]), None]), equation(1, vec![None, None])];
    assert_eq!(code.solve(&equations, &[1, 0]), Some(vec![data[1].clone(), data[0].clone()]));
    // Two unknowns, and each equation for itself has one too many.
    let passing = [equation(0, vec![None, None]), equation(1, vec![None, None])];
    assert_eq!(code.solve(&passing, &[0]), None);
    assert_eq!(code.solve(&passing, &[0, 1]), Some(data.clone()));
    assert_eq!(code.solve(&[], &[0]), None);
    assert_eq!(code.solve(&[], &[]), Some(vec![]));
}

/// Blocks may stand anywhere in memory.
#[test]
fn alignment_changes_nothing() {
    for (width, parities) in [(2, 1), (4, 2), (3, 4)] {
        let code = Code::new(width, parities).expect("in bounds");
        let data = numbered(width, 3);
        let expected = code.encode(&slices(&data));
        for shift in 1..LANE {
            let moved: Vec<Block> = data.iter().map(|block| [&vec![0; shift][..], block].concat()).collect();
            let moved: Vec<&[u8]> = moved.iter().map(|block| &block[shift..]).collect();
            let mut parity = vec![vec![1; shift + LANE]; parities];
            let mut out: Vec<&mut [u8]> = parity.iter_mut().map(|block| &mut block[shift..]).collect();
            code.encode_into(&moved, &mut out);
            let found: Vec<&[u8]> = out.iter().map(|block| &**block).collect();
            assert_eq!(found, slices(&expected), "{code:?} {shift} bytes on");
            assert!(parity.iter().all(|block| block[..shift] == vec![1; shift]), "it wrote before the block");
        }
    }
}

#[test]
#[should_panic(expected = "blocks are of one length")]
fn blocks_of_two_lengths_are_a_bug() {
    Code::new(2, 1).expect("2+1").encode(&[&[0; 128], &[0; 64]]);
}

#[test]
#[should_panic(expected = "blocks are multiples of 64 bytes")]
fn blocks_with_a_rest_are_a_bug() {
    Code::new(2, 1).expect("2+1").encode(&[&[0; 100], &[0; 100]]);
}
