//! Components that are to be on other disks: those that could be nearer to what their volumes prefer ([`super::preference`]), and those of
//! disks that are much fuller than others.
//!
//! ```text
//!   even ──a disk is fuller by the spread──▶ Move (one more component elsewhere) ─▶ resync ─▶ ChangeSync Add ─▶ Trim (that of
//!    ▲                                                                                              the fullest disk goes)
//!    └───────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! So a move is what the removal of a disk does for each of its components ([`super::leave`]), and redundancy never falls. Who owns
//! the object remembers from where it moves; when that owner is lost half-way, the next one trims what is not in sync, and
//! the move has not been. Fullness is what disks last reported to be in use, not what volumes may still come to take:
//! thin ones are only moved once they weigh something.
//!
//! Invariants:
//! - a move for preference comes first, and makes its component's rank less; none makes it more;
//! - any other goes from a fuller disk to one that is emptier by the spread, so what was moved is never moved back before somebody
//!   writes, deletes or prefers something else.
//!
//! What it must not know: when it is looked, who copies.

use std::collections::BTreeMap;

use ferro_protocol::ids::{ChunkIndex, DiskId, ObjectId, Seq};

use super::State;
use super::apply::Applied;
use super::command::{Basis, Refused};
use super::placement;
use super::records::{ChunkRecord, Component, DiskHealth, DiskRecord, Lock, LockKind, ObjectRecord, Sync};

/// So many components of a disk are tried at most in one look.
pub(super) const TRIES: usize = 64;

/// A disk this full, in thousandths, gives components away for a smaller difference: what is placed on it has not much room left.
const NEARLY_FULL: u64 = 800;
/// For that one, in thousandths of a disk's size.
const NEARLY_FULL_SPREAD: u64 = 50;

/// A component that should be elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// The object.
    pub object: ObjectId,
    /// The chunk, or the shard or log of one.
    pub chunk: ChunkIndex,
    /// Where it is.
    pub from: DiskId,
    /// Where it would go, as things are.
    pub to: DiskId,
    /// Why it should be there.
    pub why: Why,
}

/// Why a component should be on another disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// That is nearer to what its volume prefers.
    Nearer,
    /// Its disk is much fuller.
    Fuller,
    /// Its disk has much more to serve.
    Busier,
}

/// By how much a disk that is so full must be fuller than the emptiest one to give components away, both in thousandths.
pub(super) fn spread(full: u64, spread_percent: u64) -> u64 {
    let most = if full >= NEARLY_FULL { NEARLY_FULL_SPREAD } else { u64::MAX };
    spread_percent.saturating_mul(10).min(most)
}

/// How full a disk is, in thousandths.
pub(super) fn fullness(disk: &DiskRecord) -> u64 {
    disk.used_extents.saturating_mul(1_000) / disk.capacity_extents.max(1)
}

impl State {
    /// The component to move next, of those objects that may be moved now: one that could be nearer to what its volume prefers, or
    /// else, unless the percentage is 0, one from the fullest disk that has one to a disk that is emptier by so many percent of its size, or
    /// by a few if it is nearly full; rather not one of the host that has the volume open, which reads it there. Nothing while any object is
    /// repaired or could be: that comes first, and moves come one after the other.
    pub fn next_move(&self, spread_percent: u64, may: impl Fn(&ObjectRecord) -> bool) -> Option<Move> {
        self.next_to_preferred(&may)
            .or_else(|| (spread_percent > 0).then(|| self.next_by_fullness(spread_percent, &may)).flatten())
    }

    /// A component for which there is room nearer to what its volume prefers.
    fn next_to_preferred(&self, may: &impl Fn(&ObjectRecord) -> bool) -> Option<Move> {
        if self.preferences.is_empty() {
            return None;
        }
        let preferring = self.objects.values().filter(|o| !self.preferences.of(o.id).is_none() && may(o));
        let components = preferring.flat_map(|object| {
            object.chunks.iter().flat_map(move |(index, chunk)| {
                chunk.components.iter().map(move |c| (object, *index, c.disk))
            })
        });
        // Those for which there is no room now must not keep others waiting.
        let better = components.filter(|(object, chunk, from)| {
            self.disks.get(from).is_some_and(|disk| self.is_balanced(disk))
                && self.has_better(object, *chunk, *from, placement::has_room)
        });
        let mut better = better.take(TRIES).peekable();
        better.peek()?;
        if self.repairs_first() {
            return None;
        }
        let promised = self.promised_by_disk();
        better.find_map(|(object, chunk, from)| {
            let to = placement::place_one_more(self, object, chunk, Some(from), None).ok()?;
            let target = self.disks.get(&to).filter(|target| self.is_balanced(target))?;
            let size = self.likely_extents(object, object.policy, chunk, from, &promised);
            let nearer = self.rank(object, chunk, from, to) < self.rank(object, chunk, from, from);
            (nearer && placement::holds(target, size)).then_some(Move {
                object: object.id,
                chunk,
                from,
                to,
                why: Why::Nearer,
            })
        })
    }

    fn next_by_fullness(&self, spread_percent: u64, may: &impl Fn(&ObjectRecord) -> bool) -> Option<Move> {
        let spread = |disk: &DiskRecord| spread(fullness(disk), spread_percent);
        let takes = |disk: &&DiskRecord| self.is_balanced(disk);
        let emptiest = self.disks.values().filter(takes).map(fullness).min()?;
        let mut fullest: Vec<&DiskRecord> =
            self.disks.values().filter(takes).filter(|d| fullness(d) >= emptiest + spread(d)).collect();
        if fullest.is_empty() || self.repairs_first() {
            return None;
        }
        fullest.sort_unstable_by_key(|disk| (std::cmp::Reverse(fullness(disk)), disk.id));
        let promised = self.promised_by_disk();
        fullest.into_iter().find_map(|disk| self.move_from(disk, spread(disk), &promised, may))
    }

    /// Whether there is something to be put right that can be.
    pub(super) fn repairs_first(&self) -> bool {
        self.objects.values().any(|object| self.is_repairable(object))
    }

    /// Whether there is something to be put right of an object that can be: nobody does it while the host is away that has it open,
    /// or all that have what is missing.
    fn is_repairable(&self, object: &ObjectRecord) -> bool {
        let held = |lock: &Lock| lock.kind != LockKind::Background && self.absences.of(lock.host).is_some();
        if self.is_settled(object) || object.lock.as_ref().is_some_and(held) {
            return false;
        }
        let emptied = self.emptied(object.policy);
        let there = |c: &Component| {
            let disk = self.disks.get(&c.disk)?;
            (disk.health == DiskHealth::Healthy && !self.is_away(disk.id)).then_some(disk.host)
        };
        let wrong = |(index, chunk): &(&ChunkIndex, &ChunkRecord)| {
            chunk.components.len() != object.policy.components(**index)
                || chunk.components.iter().any(|c| !c.in_sync() || emptied.contains(&c.disk))
        };
        self.conversions.of(object.id).is_some()
            || object.chunks.iter().filter(wrong).any(|(index, _)| object.source(*index, &there).is_some())
    }

    /// Whether the disk takes part: it works, stays, and its host is there and not being worked on.
    pub(super) fn is_balanced(&self, disk: &DiskRecord) -> bool {
        let gone = self.is_leaving(disk.id) || self.is_resting(disk.id) || self.is_away(disk.id);
        disk.health == DiskHealth::Healthy && !gone
    }

    fn move_from(
        &self,
        disk: &DiskRecord,
        spread: u64,
        promised: &BTreeMap<DiskId, u64>,
        may: &impl Fn(&ObjectRecord) -> bool,
    ) -> Option<Move> {
        let here = |record: &ObjectRecord| record.lock.is_some_and(|lock| lock.host == disk.host);
        let objects = || self.objects.values().filter(|o| may(o));
        let ordered = objects().filter(|o| !here(o)).chain(objects().filter(|o| here(o)));
        let on_disk = |chunk: &ChunkRecord| chunk.components.iter().any(|c| c.disk == disk.id);
        let components = ordered.flat_map(|object| {
            let chunks = object.chunks.iter().filter(|(_, chunk)| on_disk(chunk));
            chunks.map(move |(index, _)| (object, *index))
        });
        components.take(TRIES).find_map(|(object, chunk)| {
            let to = placement::place_one_more(self, object, chunk, Some(disk.id), None).ok()?;
            let target = self.disks.get(&to).filter(|target| self.is_balanced(target))?;
            let size = self.likely_extents(object, object.policy, chunk, disk.id, promised);
            let after = size.saturating_mul(1_000) / target.capacity_extents.max(1);
            let gap = fullness(disk).saturating_sub(fullness(target));
            let fits = placement::holds(target, size) && !self.is_farther(object, chunk, disk.id, to);
            (size > 0 && fits && gap >= spread && after < gap).then_some(Move {
                object: object.id,
                chunk,
                from: disk.id,
                to,
                why: Why::Fuller,
            })
        })
    }

    /// A component is to be elsewhere: on this disk, if that is said.
    pub(super) fn move_component(
        &mut self,
        index: u64,
        basis: Basis,
        chunk: ChunkIndex,
        from: DiskId,
        to: Option<DiskId>,
        unix_s: u64,
    ) -> Applied {
        let record = self.owned(basis)?;
        let needed = record.policy.components(chunk);
        let now = record.chunks.get(&chunk).ok_or(Refused::NoComponent(chunk))?;
        if !now.components.iter().any(|c| c.disk == from && c.in_sync()) {
            return Err(Refused::NoComponent(chunk));
        }
        if now.components.len() != needed || !now.components.iter().all(Component::in_sync) {
            return Err(Refused::TooMuch(format!("chunk {chunk} is being repaired or moved already")));
        }
        let disk = placement::place_one_more(self, record, chunk, Some(from), to)?;
        self.moved_at(unix_s);
        self.keep_on(index, basis.object, chunk, disk);
        self.change(index, basis.object, |record| {
            let components = &mut record.chunks.entry(chunk).or_default().components;
            components
                .push(Component { disk, sync: Sync::Stale { stale_seq: Seq(0), since_unix_s: unix_s } });
        })
    }
}
