//! Which blocks of a returning component must be copied: those that it and the source of its resync do not have alike.
//!
//! Both are asked what has changed since the component fell out, one page at a time, the source first:
//!
//! ```text
//!   source lists a page ──▶ all of it must be copied ──▶ component lists the same blocks ──┬─▶ next page
//!                                                         same version: need not           └─▶ done
//!                                                         another, or only there: must
//! ```
//!
//! The component often has more than its mark says: the mark is as careful as a watermark, and an earlier resync may have got
//! far. A version names one write, so a block of the same version is the same block.
//!
//! Blocks that are zeros on the source cost a message and no data: they are copied in longer runs, and do not count as data.
//!
//! What it must not know: disks, requests, time.

use ferro_protocol::peer::Run;
use ferro_protocol::units::{BlockRange, CHUNK_BLOCKS, IO_BLOCKS_MAX};

/// Blocks in one copy of data.
const COPY_BLOCKS: u32 = 128;
/// Blocks that need no copy, between two that do, are copied too when they are no more than this: one copy is cheaper than two.
const GAP_BLOCKS: u32 = 4;

/// What is to be listed next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// By the source, from this block on.
    Source(u32),
    /// By the returning component, from this block on.
    Target(u32),
    /// All is known.
    Done,
}

/// A list that can't be the answer to what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BadList;

/// A run of blocks to be copied together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub range: BlockRange,
    /// How many of the blocks hold data, as far as is known.
    pub data_blocks: u32,
}

/// The blocks of one chunk that must be copied.
#[derive(Debug)]
pub(super) struct Dirty {
    blocks: Bits,
    /// Those of them that are not known to be zeros.
    data: Bits,
    /// The first block that [`Self::take`] has not looked at.
    next: u32,
    /// What the source has listed of the blocks up to `page_end`; the component has listed those before `listed`.
    page: Vec<Run>,
    page_end: u32,
    listed: u32,
}

impl Dirty {
    pub(super) fn new() -> Self {
        let (blocks, data) = (Bits::new(), Bits::new());
        Self { blocks, data, next: 0, page: Vec::new(), page_end: 0, listed: 0 }
    }

    /// Whether nothing is left to copy.
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.count == 0
    }

    /// Blocks with data that are left to copy.
    pub(super) fn data_blocks(&self) -> u32 {
        self.data.count
    }

    /// The source's list of the blocks from `page_end` on.
    pub(super) fn source_lists(&mut self, runs: Vec<Run>, next_block: Option<u32>) -> Result<Next, BadList> {
        let end = end_of(&runs, self.page_end, next_block)?;
        for run in &runs {
            for block in run.range.blocks() {
                self.blocks.insert(block);
                if run.mapped {
                    self.data.insert(block);
                }
            }
        }
        self.page = runs;
        self.listed = self.page_end;
        self.page_end = end;
        Ok(Next::Target(self.listed))
    }

    /// The component's list of the blocks from `listed` on.
    pub(super) fn target_lists(&mut self, runs: &[Run], next_block: Option<u32>) -> Result<Next, BadList> {
        let end = end_of(runs, self.listed, next_block)?;
        let mut page = self.page.iter().peekable();
        for run in runs {
            for block in run.range.blocks().take_while(|block| *block < self.page_end) {
                while page.next_if(|known| known.range.end() <= block).is_some() {}
                match page.peek().filter(|known| known.range.contains(block)) {
                    Some(known) if (known.version, known.mapped) == (run.version, run.mapped) => {
                        self.blocks.remove(block);
                        self.data.remove(block);
                    }
                    Some(_) => {}
                    // What the source has there is older than the list goes back.
                    None => {
                        self.blocks.insert(block);
                        self.data.insert(block);
                    }
                }
            }
        }
        self.listed = end.min(self.page_end);
        if self.listed < self.page_end {
            return Ok(Next::Target(self.listed));
        }
        self.page = Vec::new();
        Ok(if self.page_end < CHUNK_BLOCKS { Next::Source(self.page_end) } else { Next::Done })
    }

    /// A list of which each block must be copied, whoever has it; where its next page begins, if there is one.
    pub(super) fn mark(&mut self, runs: &[Run], next_block: Option<u32>) -> Result<Option<u32>, BadList> {
        end_of(runs, self.listed, next_block)?;
        for run in runs {
            for block in run.range.blocks() {
                self.blocks.insert(block);
                self.data.insert(block);
            }
        }
        self.listed = next_block.unwrap_or(0);
        Ok(next_block)
    }

    /// Takes the next run of blocks to copy.
    pub(super) fn take(&mut self) -> Option<Piece> {
        let first = self.blocks.first_from(self.next)?;
        let zeros = !self.data.has(first);
        let (mut end, mut at, mut data_blocks) = (first, first, 0);
        let (blocks_max, gap) = if zeros { (IO_BLOCKS_MAX, 0) } else { (COPY_BLOCKS, GAP_BLOCKS) };
        while at < CHUNK_BLOCKS && at - first < blocks_max && at - end <= gap {
            if self.blocks.has(at) {
                if zeros && self.data.has(at) {
                    break;
                }
                self.blocks.remove(at);
                data_blocks += u32::from(self.data.remove(at));
                end = at + 1;
            } else if zeros {
                break;
            }
            at += 1;
        }
        self.next = end;
        let range = BlockRange::new(first, end - first).ok()?;
        Some(Piece { range, data_blocks })
    }
}

/// Where a list of the blocks from `from` on ends, if it is one.
fn end_of(runs: &[Run], from: u32, next_block: Option<u32>) -> Result<u32, BadList> {
    let end = next_block.unwrap_or(CHUNK_BLOCKS);
    let mut at = from;
    for run in runs {
        if run.range.first() < at {
            return Err(BadList);
        }
        at = run.range.end();
    }
    // A list that does not get on would be asked for without end.
    if at > end || end > CHUNK_BLOCKS || (end <= from && next_block.is_some()) {
        Err(BadList)
    } else {
        Ok(end)
    }
}

/// A set of blocks of one chunk.
#[derive(Debug)]
struct Bits {
    words: Vec<u64>,
    count: u32,
}

impl Bits {
    fn new() -> Self {
        Self { words: vec![0; CHUNK_BLOCKS as usize / 64], count: 0 }
    }

    fn has(&self, block: u32) -> bool {
        self.words[block as usize / 64] & (1 << (block % 64)) != 0
    }

    fn insert(&mut self, block: u32) {
        if !self.has(block) {
            self.words[block as usize / 64] |= 1 << (block % 64);
            self.count += 1;
        }
    }

    /// True if it was there.
    fn remove(&mut self, block: u32) -> bool {
        let had = self.has(block);
        if had {
            self.words[block as usize / 64] &= !(1 << (block % 64));
            self.count -= 1;
        }
        had
    }

    fn first_from(&self, block: u32) -> Option<u32> {
        let mut at = block;
        while at < CHUNK_BLOCKS {
            let rest = self.words[at as usize / 64] >> (at % 64);
            if rest != 0 {
                return Some(at + rest.trailing_zeros());
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use ferro_protocol::ids::{Epoch, Seq, Version};

    use super::*;

    fn run(first: u32, count: u32, seq: u64, mapped: bool) -> Run {
        let version = Version { epoch: Epoch(1), seq: Seq(seq) };
        Run { range: BlockRange::new(first, count).unwrap(), version, mapped }
    }

    fn taken(dirty: &mut Dirty) -> Vec<(u32, u32, u32)> {
        let pieces = std::iter::from_fn(|| dirty.take());
        pieces.map(|p| (p.range.first(), p.range.count(), p.data_blocks)).collect()
    }

    #[test]
    fn what_both_have_alike_is_not_copied() {
        let mut dirty = Dirty::new();
        // A chunk that was zeroed by write 7, and then written here and there, once while the component was away.
        let source = vec![
            run(0, 1_000, 7, false),
            run(1_000, 10, 9, true),
            run(1_010, CHUNK_BLOCKS - 1_010, 7, false),
        ];
        assert_eq!(dirty.source_lists(source, None), Ok(Next::Target(0)));
        assert_eq!(dirty.data_blocks(), 10);
        assert_eq!(dirty.target_lists(&[run(0, CHUNK_BLOCKS, 7, false)], None), Ok(Next::Done));
        assert_eq!(taken(&mut dirty), [(1_000, 10, 10)]);
        assert!(dirty.is_empty() && dirty.data_blocks() == 0);
    }

    #[test]
    fn zeros_are_copied_in_long_runs_and_are_no_data() {
        let mut dirty = Dirty::new();
        dirty.source_lists(vec![run(0, 600, 7, false), run(600, 1, 8, true)], None).unwrap();
        assert_eq!(dirty.target_lists(&[], None), Ok(Next::Done));
        assert_eq!(dirty.data_blocks(), 1);
        assert_eq!(taken(&mut dirty), [(0, 256, 0), (256, 256, 0), (512, 88, 0), (600, 1, 1)]);
    }

    #[test]
    fn what_only_the_component_has_must_go() {
        let mut dirty = Dirty::new();
        dirty.source_lists(vec![run(5, 1, 8, true)], None).unwrap();
        dirty.target_lists(&[run(4, 1, 9, true), run(5, 1, 9, true), run(70, 1, 8, false)], None).unwrap();
        assert_eq!(taken(&mut dirty), [(4, 2, 2), (70, 1, 1)]);
    }

    #[test]
    fn pages_of_both_are_matched() {
        let mut dirty = Dirty::new();
        assert_eq!(dirty.source_lists(vec![run(10, 10, 7, true)], Some(20)), Ok(Next::Target(0)));
        assert_eq!(dirty.target_lists(&[run(10, 5, 7, true)], Some(15)), Ok(Next::Target(15)));
        // The component's list goes on past the page: what lies behind is asked for again.
        assert_eq!(dirty.target_lists(&[run(15, 85, 7, true)], None), Ok(Next::Source(20)));
        assert_eq!(dirty.source_lists(vec![run(20, 20, 7, true)], None), Ok(Next::Target(20)));
        assert_eq!(dirty.target_lists(&[run(20, 80, 7, true)], None), Ok(Next::Done));
        assert_eq!(taken(&mut dirty), [(40, 60, 60)]);
    }

    #[test]
    fn an_empty_page_is_not_the_end() {
        let mut dirty = Dirty::new();
        assert_eq!(dirty.source_lists(Vec::new(), Some(16_384)), Ok(Next::Target(0)));
        assert_eq!(dirty.target_lists(&[], None), Ok(Next::Source(16_384)));
    }

    #[test]
    fn lists_that_can_not_be_are_refused() {
        let mut dirty = Dirty::new();
        assert_eq!(dirty.source_lists(Vec::new(), Some(0)), Err(BadList), "it does not get on");
        assert_eq!(
            dirty.source_lists(vec![run(8, 4, 1, true)], Some(10)),
            Err(BadList),
            "it overlaps the next page"
        );
        assert_eq!(dirty.source_lists(vec![run(8, 4, 1, true), run(9, 1, 1, true)], None), Err(BadList));
        assert_eq!(dirty.source_lists(Vec::new(), Some(u32::MAX)), Err(BadList));
    }
}
