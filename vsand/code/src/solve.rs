//! Lost blocks as the unknowns of a few linear equations.
//!
//! The elimination is done on coefficients, a few bytes; what comes of it says by what each block at hand has to be multiplied, and
//! then the blocks are gone over once.
//!
//! Unknowns are of two kinds. One that is *wanted* is one unknown, whichever generation an equation is of. Any other is an unknown of
//! its generation alone: the old and the new content of a block that was being written are as different as two blocks. The latter are
//! eliminated first; of what is then free of them, the wanted ones have to follow.

use crate::{Code, Instructions, field};

/// One parity block and what its sum was made of.
#[derive(Clone, Debug)]
pub struct Equation<'a> {
    /// Which parity: 0 is P, 1 is Q.
    pub parity: usize,
    /// What is read from its shard.
    pub block: &'a [u8],
    /// Each data block as it was when this parity was made; None where that is not to be had.
    pub known: Vec<Option<&'a [u8]>>,
    /// Which state of the data this parity is a sum of: any numbers, the same for equations of the same state.
    pub generation: u8,
}

/// An unknown of the equations, in the order in which they are eliminated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Unknown {
    /// A data block as it was in one generation.
    Passing { shard: usize, generation: u8 },
    /// A data block that is the same in all.
    Wanted { shard: usize },
}

/// Sums of blocks at hand, not added up yet.
#[derive(Debug, Default)]
struct Sums<'a> {
    /// What is added up, each block once.
    blocks: Vec<&'a [u8]>,
    /// By sum, the multipliers of the blocks; those that are left out at the end are 0.
    by: Vec<Vec<u8>>,
}

impl<'a> Sums<'a> {
    /// Adds `by` times the block to a sum.
    fn add(&mut self, sum: usize, by: u8, block: &'a [u8]) {
        if by == 0 {
            return;
        }
        let known = self.blocks.iter().position(|other| std::ptr::eq(*other, block));
        let number = known.unwrap_or_else(|| {
            self.blocks.push(block);
            self.blocks.len() - 1
        });
        if self.by.len() <= sum {
            self.by.resize(sum + 1, Vec::new());
        }
        let multipliers = &mut self.by[sum];
        if multipliers.len() <= number {
            multipliers.resize(number + 1, 0);
        }
        multipliers[number] ^= by;
    }

    /// Adds `by` times what `other` has as its sum number `from`.
    fn add_sum(&mut self, sum: usize, by: u8, other: &Self, from: usize) {
        for (times, block) in other.by[from].iter().zip(&other.blocks) {
            self.add(sum, field::mul(*times, by), block);
        }
    }

    fn add_up(mut self, with: Instructions, count: usize, len: usize) -> Vec<Vec<u8>> {
        // Blocks whose multiples cancelled each other out in all sums need not be read.
        let used = |number: usize| self.by.iter().any(|by| by.get(number).is_some_and(|by| *by != 0));
        let used: Vec<usize> = (0..self.blocks.len()).filter(|number| used(*number)).collect();
        self.by.resize(count, Vec::new());
        let multipliers = |by: &Vec<u8>| used.iter().map(|it| by.get(*it).copied().unwrap_or(0)).collect();
        let by: Vec<Vec<u8>> = self.by.iter().map(multipliers).collect();
        let blocks: Vec<&[u8]> = used.iter().map(|it| self.blocks[*it]).collect();
        let mut found = vec![vec![0; len]; count];
        let mut out: Vec<&mut [u8]> = found.iter_mut().map(Vec::as_mut_slice).collect();
        with.sums(&blocks, &by, &mut out);
        found
    }
}

/// An equation as the elimination sees it.
#[derive(Debug)]
struct Row {
    /// By unknown: what it is multiplied by.
    coefficients: Vec<u8>,
    /// By equation given: how often it is in this one.
    mixture: Vec<u8>,
}

impl Row {
    fn multiply(&mut self, by: u8) {
        self.coefficients.iter_mut().chain(&mut self.mixture).for_each(|x| *x = field::mul(*x, by));
    }

    fn add(&mut self, other: &Self, by: u8) {
        let theirs = other.coefficients.iter().chain(&other.mixture);
        let ours = self.coefficients.iter_mut().chain(&mut self.mixture);
        ours.zip(theirs).for_each(|(a, b)| *a ^= field::mul(*b, by));
    }
}

pub(crate) fn solve(code: Code, equations: &[Equation<'_>], wanted: &[usize]) -> Option<Vec<Vec<u8>>> {
    let len = equations.first().map_or(0, |equation| equation.block.len());
    Some(sums_for(code, equations, wanted)?.add_up(code.instructions(), wanted.len(), len))
}

pub(crate) fn rebuild(code: Code, shards: &[Option<&[u8]>], lost: &[usize]) -> Option<Vec<Vec<u8>>> {
    let (data, parity) = shards.split_at(code.data());
    let len = shards.iter().flatten().next().map_or(0, |block| block.len());
    let unread: Vec<usize> = (0..code.data()).filter(|shard| data[*shard].is_none()).collect();
    let there = parity.iter().enumerate().filter_map(|(number, block)| Some((number, (*block)?)));
    // No more equations than unknowns: what is not needed is not gone over.
    let equations: Vec<_> = there
        .take(unread.len())
        .map(|(parity, block)| Equation { parity, block, known: data.to_vec(), generation: 0 })
        .collect();
    // For a parity all data blocks are needed; else only those that were asked for.
    let all = lost.iter().any(|shard| *shard >= code.data());
    let wanted: Vec<usize> = unread.into_iter().filter(|shard| all || lost.contains(shard)).collect();
    let found = sums_for(code, &equations, &wanted)?;

    let mut sums = Sums::default();
    for (sum, shard) in lost.iter().enumerate() {
        let mut add_data = |shard: usize, by: u8| {
            if let Some(block) = data[shard] {
                sums.add(sum, by, block);
            } else {
                let place = wanted.iter().position(|it| *it == shard).expect("what is lost is wanted");
                sums.add_sum(sum, by, &found, place);
            }
        };
        match shard.checked_sub(code.data()) {
            None => add_data(*shard, 1),
            Some(parity) => {
                (0..code.data()).for_each(|shard| add_data(shard, code.coefficient(parity, shard)));
            }
        }
    }
    Some(sums.add_up(code.instructions(), lost.len(), len))
}

/// For each wanted block, the blocks at hand that it is a sum of.
fn sums_for<'a>(code: Code, equations: &[Equation<'a>], wanted: &[usize]) -> Option<Sums<'a>> {
    for equation in equations {
        assert_eq!(equation.known.len(), code.data(), "{code:?}: each data block is known or not");
    }
    // What is the same in all generations and known in one is known in all.
    let known = |equation: &Equation<'a>, shard: usize| {
        let elsewhere = || equations.iter().find_map(|other| other.known[shard]);
        equation.known[shard].or_else(|| wanted.contains(&shard).then(elsewhere).flatten())
    };
    let unknown = |equation: &Equation<'a>, shard: usize| {
        let generation = equation.generation;
        known(equation, shard).is_none().then_some(if wanted.contains(&shard) {
            Unknown::Wanted { shard }
        } else {
            Unknown::Passing { shard, generation }
        })
    };
    let of = |equation| (0..code.data()).filter_map(move |shard| unknown(equation, shard));
    let mut unknowns: Vec<Unknown> = equations.iter().flat_map(of).collect();
    unknowns.sort_unstable();
    unknowns.dedup();

    let row = |(number, equation): (usize, &Equation<'a>)| {
        let mut row = Row { coefficients: vec![0; unknowns.len()], mixture: vec![0; equations.len()] };
        row.mixture[number] = 1;
        for shard in 0..code.data() {
            if let Some(it) = unknown(equation, shard) {
                let column = unknowns.binary_search(&it).expect("all unknowns were collected");
                row.coefficients[column] = code.coefficient(equation.parity, shard);
            }
        }
        row
    };
    let solved = eliminate(equations.iter().enumerate().map(row).collect(), &unknowns);

    let mut sums = Sums::default();
    for (sum, shard) in wanted.iter().enumerate() {
        if let Some(block) = equations.iter().find_map(|equation| equation.known[*shard]) {
            sums.add(sum, 1, block);
            continue;
        }
        let column = unknowns.binary_search(&Unknown::Wanted { shard: *shard }).ok()?;
        for (equation, by) in equations.iter().zip(&solved[column].as_ref()?.mixture) {
            sums.add(sum, *by, equation.block);
            for other in 0..code.data() {
                if let Some(block) = known(equation, other) {
                    sums.add(sum, field::mul(*by, code.coefficient(equation.parity, other)), block);
                }
            }
        }
    }
    Some(sums)
}

/// By unknown: for the wanted ones, a row that has it once. If no wanted one is without a row, the rows have nothing else. A passing
/// unknown takes a row out of the game; it is of no interest itself.
fn eliminate(mut rows: Vec<Row>, unknowns: &[Unknown]) -> Vec<Option<Row>> {
    let mut solved: Vec<Option<Row>> = unknowns.iter().map(|_| None).collect();
    for (column, unknown) in unknowns.iter().enumerate() {
        let Some(found) = rows.iter().position(|row| row.coefficients[column] != 0) else {
            continue;
        };
        let mut pivot = rows.swap_remove(found);
        pivot.multiply(field::inverse(pivot.coefficients[column]));
        for row in rows.iter_mut().chain(solved.iter_mut().flatten()) {
            let by = row.coefficients[column];
            row.add(&pivot, by);
        }
        if matches!(unknown, Unknown::Wanted { .. }) {
            solved[column] = Some(pivot);
        }
    }
    solved
}
