//! One chunk's components and the writes that are under way to them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ferro_protocol::ids::{ChunkIndex, DiskId, Seq};
use ferro_protocol::peer::ChunkSummary;

use super::copy::CopyId;
use super::io::PartId;
use super::locks::RangeLocks;
use super::resync::Resync;
use crate::directory::{ChunkRecord, Sync};
use crate::time::Instant;

/// Who holds a range of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Holder {
    Part(PartId),
    Copy(CopyId),
}

/// How far a chunk is.
#[derive(Debug)]
pub(super) enum Phase {
    /// The chunk has no place yet; it reads as zeros.
    Unplaced,
    /// The in-sync disks are being sealed.
    Sealing,
    /// What is above the watermark is being made equal.
    Agreeing { copies: BTreeSet<CopyId>, seq_max: Seq },
    /// I/O runs.
    Serving,
}

/// What the owner knows of one component.
#[derive(Debug)]
pub(super) struct Member {
    pub sync: Sync,
    /// A returning component: it gets all new writes, and they wait for it.
    pub resync: Option<Resync>,
    /// It does not answer: it is to leave the in-sync set.
    pub failing: bool,
    /// No resync before this time.
    pub retry_at: Instant,
}

impl Member {
    pub(super) fn new(sync: Sync) -> Self {
        Self { sync, resync: None, failing: false, retry_at: Instant(0) }
    }

    pub(super) fn in_sync(&self) -> bool {
        self.sync == Sync::InSync
    }

    /// Whether a write must wait for it.
    pub(super) fn required(&self) -> bool {
        self.in_sync() || self.resync.is_some()
    }
}

/// A write that not every required component has.
#[derive(Debug)]
pub(super) struct Write {
    pub part: PartId,
    pub pending: BTreeSet<DiskId>,
    /// When a component last said that it has it; when it was sent, before.
    pub progress: Instant,
    /// What becomes of it if a component refuses: it ends, and whoever asked is told. All else is tried again.
    pub refusal: Refusable,
}

/// Whether a change may be refused, and was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusable {
    No,
    Yes,
    Refused,
}

/// One chunk.
#[derive(Debug)]
pub(super) struct Group {
    pub index: ChunkIndex,
    pub phase: Phase,
    pub members: BTreeMap<DiskId, Member>,
    pub next_seq: Seq,
    pub writes: BTreeMap<Seq, Write>,
    pub locks: RangeLocks<Holder>,
    /// Parts that wait until the chunk serves.
    pub backlog: VecDeque<PartId>,
    /// Reads that found no component to ask.
    pub stalled: Vec<PartId>,
    /// What the sealed disks said.
    pub summaries: BTreeMap<DiskId, ChunkSummary>,
    /// Of a record of a chunk with parity: up to where everything is stable. Its versions are taken elsewhere
    /// ([`super::stripes`]), so its own writes don't tell.
    pub floor: Option<Seq>,
}

impl Group {
    pub(super) fn recovering(index: ChunkIndex, record: &ChunkRecord) -> Self {
        Self { phase: Phase::Sealing, ..Self::fresh(index, Some(record)) }
    }

    /// A chunk that is empty: not placed yet, or placed just now.
    pub(super) fn fresh(index: ChunkIndex, record: Option<&ChunkRecord>) -> Self {
        let components = record.map(|r| r.components.as_slice()).unwrap_or_default();
        Self {
            index,
            phase: if record.is_some() { Phase::Serving } else { Phase::Unplaced },
            members: components.iter().map(|c| (c.disk, Member::new(c.sync))).collect(),
            next_seq: Seq(1),
            writes: BTreeMap::new(),
            locks: RangeLocks::default(),
            backlog: VecDeque::new(),
            stalled: Vec::new(),
            summaries: BTreeMap::new(),
            floor: None,
        }
    }

    pub(super) fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Unplaced)
    }

    /// Every write up to here is stable on every in-sync component. While sealing: as far as the answers prove it.
    pub(super) fn watermark(&self) -> Seq {
        match self.phase {
            Phase::Serving | Phase::Unplaced => match (self.floor, self.writes.first_key_value()) {
                (Some(floor), _) => floor,
                (None, Some((first, _))) => Seq(first.0 - 1),
                (None, None) => Seq(self.next_seq.0 - 1),
            },
            Phase::Sealing | Phase::Agreeing { .. } => {
                self.summaries.values().map(|s| s.watermark).max().unwrap_or_default()
            }
        }
    }

    pub(super) fn in_sync(&self) -> impl Iterator<Item = DiskId> {
        self.members.iter().filter(|(_, m)| m.in_sync()).map(|(d, _)| *d)
    }

    /// In-sync components that have not failed.
    pub(super) fn healthy(&self) -> impl Iterator<Item = DiskId> {
        self.members.iter().filter(|(_, m)| m.in_sync() && !m.failing).map(|(d, _)| *d)
    }

    /// The highest mark of a component that is not in sync. A former owner wrote it down, perhaps of versions that it took and never
    /// wrote, so no component that is in sync knows of them: whoever writes below it again writes what that component's resync
    /// will not look at.
    pub(super) fn stale_max(&self) -> Seq {
        let marks = self.members.values().filter_map(|member| match member.sync {
            Sync::Stale { stale_seq, .. } => Some(stale_seq),
            Sync::InSync => None,
        });
        marks.max().unwrap_or_default()
    }

    pub(super) fn required(&self) -> impl Iterator<Item = DiskId> {
        self.members.iter().filter(|(_, m)| m.required()).map(|(d, _)| *d)
    }
}
