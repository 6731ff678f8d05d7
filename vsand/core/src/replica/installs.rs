//! The order among changes of one chunk while there are installs: one that overlaps an install waits for it, since an install
//! replaces even what is newer, and the disk may carry out two changes in any order.

use std::collections::VecDeque;

use ferro_protocol::units::{BlockRange, EXTENT_BLOCKS};

use crate::disk::{DiskOp, Ticket};

/// Order among changes of one chunk while there are installs.
#[derive(Debug, Default)]
pub(super) struct Installs {
    pub running: Vec<(Ticket, BlockRange)>,
    /// In the order of their arrival.
    pub waiting: VecDeque<(Ticket, BlockRange, DiskOp)>,
}

impl Installs {
    /// Whether an install that runs, or one of the first `ahead` that wait, overlaps the span.
    pub(super) fn blocks(&self, span: BlockRange, ahead: usize) -> bool {
        let waiting = self.waiting.iter().take(ahead);
        self.running.iter().any(|(_, range)| range.overlaps(span))
            || waiting
                .filter(|(.., op)| matches!(op, DiskOp::Install { .. }))
                .any(|(_, range, _)| range.overlaps(span))
    }
}

/// The blocks from the first to the last that a change touches.
pub(super) fn span(op: &DiskOp) -> Option<BlockRange> {
    match op {
        DiskOp::Write { range, .. } | DiskOp::Zero { range, .. } => Some(*range),
        DiskOp::Install { runs, .. } => {
            let (first, last) = (runs.first()?.range.first(), runs.last()?.range.end());
            BlockRange::new(first, last.checked_sub(first)?).ok()
        }
        DiskOp::Promote { extent, .. } => BlockRange::new(extent * EXTENT_BLOCKS, EXTENT_BLOCKS).ok(),
        DiskOp::Forget { first, end, .. } => {
            BlockRange::new(first * EXTENT_BLOCKS, end.checked_sub(*first)? * EXTENT_BLOCKS).ok()
        }
        _ => None,
    }
}
