//! Blocks of one extent that are stable in the journal and not yet in their place in `data`.
//!
//! ```text
//!            insert            issue             done (still the newest)
//! (absent) ─────────► waiting ───────► under way ────────────────────────► (absent)
//!                        ▲                 │ insert of a newer one
//!                        └── done ◄────────┘  (waiting, but not issued before the older write is over)
//! ```
//!
//! So there is never more than one write to a block's place under way, and the last one written is the newest.

use bytes::Bytes;

use crate::blocks::BlockSet;

/// The newest data of one block.
#[derive(Clone, Debug)]
struct Entry {
    block: u16,
    batch: u64,
    data: Bytes,
}

/// The overlay of one extent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overlay {
    entries: Vec<Entry>,
    under_way: BlockSet,
}

/// Adjacent blocks to be written to their place.
#[derive(Debug)]
pub(crate) struct DestageRun {
    pub(crate) first: usize,
    /// The batch of each block.
    pub(crate) batches: Vec<u64>,
    pub(crate) data: Vec<Bytes>,
}

impl Overlay {
    fn find(&self, block: usize) -> Result<usize, usize> {
        self.entries.binary_search_by_key(&(block as u16), |e| e.block)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.under_way.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn get(&self, block: usize) -> Option<&Bytes> {
        self.find(block).ok().map(|at| &self.entries[at].data)
    }

    /// Keeps the data that batch number `batch` brought. Returns whether it replaced an older one.
    pub(crate) fn insert(&mut self, block: usize, batch: u64, data: Bytes) -> bool {
        let entry = Entry { block: block as u16, batch, data };
        match self.find(block) {
            Ok(at) => {
                self.entries[at] = entry;
                true
            }
            Err(at) => {
                self.entries.insert(at, entry);
                false
            }
        }
    }

    /// Forgets the block. Returns whether it was there.
    pub(crate) fn remove(&mut self, block: usize) -> bool {
        match self.find(block) {
            Ok(at) => {
                self.entries.remove(at);
                true
            }
            Err(_) => false,
        }
    }

    /// Whether a write to the place of one of these blocks is under way.
    pub(crate) fn busy(&self, range: std::ops::Range<usize>) -> bool {
        self.under_way.any_in(range)
    }

    /// Takes the next run of adjacent blocks from `from` on, of batches up to `batch_max`, and marks it as under way.
    pub(crate) fn next_run(&mut self, from: usize, batch_max: u64) -> Option<DestageRun> {
        let start = self.find(from).unwrap_or_else(|at| at);
        let eligible =
            |e: &Entry, under_way: &BlockSet| e.batch <= batch_max && !under_way.has(e.block as usize);
        let offset = self.entries[start..].iter().position(|e| eligible(e, &self.under_way))?;
        let first = self.entries[start + offset].block as usize;
        let mut run = DestageRun { first, batches: Vec::new(), data: Vec::new() };
        for entry in &self.entries[start + offset..] {
            if entry.block as usize != first + run.batches.len() || !eligible(entry, &self.under_way) {
                break;
            }
            run.batches.push(entry.batch);
            run.data.push(entry.data.clone());
        }
        for block in first..first + run.batches.len() {
            self.under_way.insert(block);
        }
        Some(run)
    }

    /// The run is in its place. Returns how many blocks are no longer needed here.
    pub(crate) fn done(&mut self, first: usize, batches: &[u64]) -> usize {
        let mut gone = 0;
        for (block, &batch) in (first..).zip(batches) {
            self.under_way.remove(block);
            if let Ok(at) = self.find(block)
                && self.entries[at].batch == batch
            {
                self.entries.remove(at);
                gone += 1;
            }
        }
        gone
    }

    /// Takes all data out; writes under way stay known here until they are done.
    pub(crate) fn take(&mut self) -> Self {
        Self { entries: std::mem::take(&mut self.entries), under_way: BlockSet::default() }
    }

    /// Drops all data; writes under way stay known until they are done.
    pub(crate) fn clear(&mut self) -> usize {
        let gone = self.entries.len();
        self.entries.clear();
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(byte: u8) -> Bytes {
        Bytes::from(vec![byte; 4])
    }

    #[test]
    fn runs_are_adjacent_blocks_and_issued_once() {
        let mut overlay = Overlay::default();
        for block in [5, 3, 4, 9] {
            assert!(!overlay.insert(block, 1, data(block as u8)));
        }
        overlay.insert(10, 2, data(10));
        let run = overlay.next_run(0, 1).unwrap();
        assert_eq!((run.first, run.batches.len()), (3, 3));
        let second = overlay.next_run(6, 1).unwrap();
        assert_eq!((second.first, second.batches.len()), (9, 1));
        assert!(overlay.next_run(0, 1).is_none());
        assert_eq!(overlay.done(run.first, &run.batches), 3);
        assert_eq!(overlay.done(second.first, &second.batches), 1);
        assert_eq!(overlay.len(), 1);
    }

    #[test]
    fn a_newer_block_waits_for_the_older_write_and_stays() {
        let mut overlay = Overlay::default();
        overlay.insert(7, 1, data(1));
        let run = overlay.next_run(0, 9).unwrap();
        assert!(overlay.insert(7, 2, data(2)));
        assert!(overlay.busy(0..8) && overlay.next_run(0, 9).is_none());
        assert_eq!(overlay.done(run.first, &run.batches), 0);
        assert_eq!(overlay.get(7), Some(&data(2)));
        assert!(overlay.next_run(0, 9).is_some());
        assert!(overlay.remove(7) && !overlay.remove(7));
        assert!(!overlay.is_empty(), "its write is still under way");
    }
}
