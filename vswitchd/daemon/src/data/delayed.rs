//! Frames that wait for their time: what shaping lets leave later.
//!
//! Bounded in bytes, in all and for each destination, so that one port's queue can't take the room of all others. How long
//! a frame waits is bounded by the core ([`vswitch_core::shaping::WAIT_MAX`]).

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use ferro_protocol::time::Instant;
use vswitch_core::config::{GroupIx, UplinkIx};
use vswitch_core::frame::Offload;
use vswitch_core::pipeline::Egress;
use vswitch_core::table::{PeerIx, PortIx};

/// Bytes of all frames that wait.
const BYTES_MAX: usize = 256 << 20;
/// Bytes for one destination.
const BYTES_MAX_EACH: usize = 64 << 20;
/// What a frame costs besides its bytes.
const OVERHEAD: usize = 128;

/// A frame that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    at: Instant,
    /// Frames of the same time leave in the order in which they came.
    order: u64,
    pub(super) to: Egress,
    pub(super) flow: u32,
    pub(super) offload: Offload,
    pub(super) bytes: Vec<u8>,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    /// The first to leave is the greatest: that is what a heap gives out.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Destination {
    Port(PortIx),
    Uplink(UplinkIx),
    Peer(PeerIx),
    Gateway(GroupIx),
}

impl Destination {
    fn of(to: Egress) -> Self {
        match to {
            Egress::Port(ix) => Self::Port(ix),
            Egress::Uplink(ix) => Self::Uplink(ix),
            Egress::Tunnel { to, .. } => Self::Peer(to),
            Egress::Endpoint(group) => Self::Gateway(group),
        }
    }
}

/// All that wait.
#[derive(Debug, Default)]
pub(super) struct Delayed {
    heap: BinaryHeap<Waiting>,
    bytes: usize,
    each: BTreeMap<Destination, usize>,
    order: u64,
    /// Frames that found no room.
    refused: u64,
}

impl Delayed {
    /// Keeps a frame until its time; `false` if there is no room for it.
    pub(super) fn keep(
        &mut self,
        at: Instant,
        to: Egress,
        flow: u32,
        offload: Offload,
        pieces: &[&[u8]],
    ) -> bool {
        let cost = pieces.iter().map(|piece| piece.len()).sum::<usize>() + OVERHEAD;
        let each = self.each.entry(Destination::of(to)).or_default();
        if self.bytes + cost > BYTES_MAX || *each + cost > BYTES_MAX_EACH {
            self.refused += 1;
            return false;
        }
        *each += cost;
        self.bytes += cost;
        self.order += 1;
        self.heap.push(Waiting { at, order: self.order, to, flow, offload, bytes: pieces.concat() });
        true
    }

    /// The next frame whose time has come.
    pub(super) fn due(&mut self, now: Instant) -> Option<Waiting> {
        if self.heap.peek()?.at > now {
            return None;
        }
        let waiting = self.heap.pop()?;
        let cost = waiting.bytes.len() + OVERHEAD;
        self.bytes -= cost;
        let to = Destination::of(waiting.to);
        if let Some(each) = self.each.get_mut(&to) {
            *each -= cost;
            if *each == 0 {
                self.each.remove(&to);
            }
        }
        Some(waiting)
    }

    /// When the next leaves.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.heap.peek().map(|waiting| waiting.at)
    }

    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(slot: u32) -> Egress {
        Egress::Port(PortIx { slot, generation: 0 })
    }

    #[test]
    fn frames_leave_in_time_and_in_order() {
        let mut delayed = Delayed::default();
        for (at, byte) in [(30, 3), (10, 1), (20, 2), (10, 9)] {
            assert!(delayed.keep(Instant(at), to(1), 0, Offload::NONE, &[&[byte], &[byte]]));
        }
        assert_eq!(delayed.next_at(), Some(Instant(10)));
        let mut left = Vec::new();
        for now in [5, 10, 25, 40] {
            while let Some(waiting) = delayed.due(Instant(now)) {
                left.push((now, waiting.bytes[1]));
            }
        }
        assert_eq!(left, [(10, 1), (10, 9), (25, 2), (40, 3)]);
        assert_eq!((delayed.len(), delayed.bytes(), delayed.each.len()), (0, 0, 0));
    }

    #[test]
    fn one_destination_does_not_take_all_room() {
        let mut delayed = Delayed::default();
        let large = vec![0; 65_000];
        let mut kept = 0;
        while delayed.keep(Instant(1), to(1), 0, Offload::NONE, &[&large]) {
            kept += 1;
        }
        assert!(kept > 900 && delayed.bytes() <= BYTES_MAX_EACH);
        assert!(delayed.keep(Instant(1), to(2), 0, Offload::NONE, &[&large]), "another has room");
    }
}
