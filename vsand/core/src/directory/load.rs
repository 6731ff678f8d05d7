//! Disks that have much more to serve than others give hot components to them.
//!
//! ```text
//!   even ──a disk is busier by so much──▶ MoveTo (one more component on a cold disk) ─▶ resync ─▶ ChangeSync Add ─▶ TrimFrom (that of
//!    ▲                                                                                                  the hot disk goes)
//!    └── averages settle ◀──────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A move by load is what one by fullness is ([`super::balance`]), but that its two disks stand in the commands: what is hot is known only
//! to the owner, which counts what it asks of each component. What disks have to serve is in the directory, so that all
//! count in the same way.
//!
//! Invariants:
//! - of the two disks of a move, the busier one is less busy after it by a quarter, as far as is known. So it is less busy in truth, also when
//!   what is known of the disks is off by an eighth each, as reports are ([`Load::is_news`]), and of the component by an eighth that its
//!   owner has not seen yet. Each move so makes the sum of the squares smaller, and nothing is moved back and forth;
//! - a move leaves nothing for the fullness balancer to take from the disk that it fills, and takes nothing farther from what its volume
//!   prefers;
//! - a disk that serves less than [`Load::FLOOR`] gives nothing away;
//! - below [`FeatureLevel::LOADS`] nothing is known and nothing moves.
//!
//! What it must not know: how load is counted and averaged, what time it is, who copies.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use ferro_protocol::ids::{ChunkIndex, DiskId, HostId, ObjectId};
use serde::{Deserialize, Serialize};

use super::State;
use super::apply::Applied;
use super::balance::{self, Move, TRIES, Why};
use super::command::{Basis, Outcome, Refused};
use super::level::FeatureLevel;
use super::placement;
use super::records::{DiskRecord, ObjectRecord};

/// The busier of two disks has at most so many percent of its load after a move.
const AFTER_PERCENT: u128 = 75;

/// What a disk, or a component on it, has to serve, as an average of some minutes: work a second. A request is one, and one more for each
/// 64 KiB that it reads or writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Load(pub u64);

impl Load {
    /// What any disk serves without effort, a slow one among them.
    pub const FLOOR: Self = Self(128);

    /// Whether this differs from what was said before by an eighth, or by an eighth of the floor where that is more: idle disks have nothing
    /// to say.
    pub fn is_news(self, said: Self) -> bool {
        self.0.abs_diff(said.0) >= said.max(Self::FLOOR).0 / 8
    }
}

/// What disks have to serve, as their hosts last said.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Loads {
    /// Of those that have something to serve.
    of: BTreeMap<DiskId, Load>,
    /// When a component last began or ceased to be moved, in seconds since 1970: what is known is of before.
    moved_unix_s: u64,
}

impl Loads {
    /// What this disk has to serve.
    pub fn of(&self, disk: DiskId) -> Load {
        self.of.get(&disk).copied().unwrap_or_default()
    }

    /// When a component last began or ceased to be moved, in seconds since 1970.
    pub fn moved_unix_s(&self) -> u64 {
        self.moved_unix_s
    }

    pub(super) fn forget(&mut self, disk: DiskId) {
        self.of.remove(&disk);
    }
}

/// What an owner asks of a component.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heat {
    /// The object.
    pub object: ObjectId,
    /// The chunk, or the shard or log of one.
    pub chunk: ChunkIndex,
    /// Where it is.
    pub disk: DiskId,
    /// How much.
    pub load: Load,
}

/// When components move by load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoadRules {
    /// From disks that have so many percent more to serve than the others on average. 0: never.
    pub percent: u64,
    /// By how many percent of its size a disk is fuller than the emptiest one when it gives components away ([`State::next_move`]). 0: never.
    pub spread_percent: u64,
    /// So long after a move averages are again what they would have been, in seconds.
    pub settle_s: u64,
}

/// Two disks and what would go from the one to the other.
struct Pair<'a> {
    from: &'a DiskRecord,
    to: &'a DiskRecord,
    /// Extents.
    size: u64,
}

impl State {
    /// The component to move next by load, of those objects that may be moved now: from the busiest disk that has one which makes the
    /// two disks more even, to the idlest one that may take it. Rather not away from the host that has the volume open, which reads it
    /// there; of what is left, what makes them most even. Nothing while any object is repaired or could be, and nothing until averages
    /// have settled since the last move of any host.
    pub fn next_move_by_load(
        &self,
        rules: LoadRules,
        heats: &[Heat],
        unix_s: u64,
        may: impl Fn(&ObjectRecord) -> bool,
    ) -> Option<Move> {
        // A clock that was ahead, or is, must not keep everything where it is for good.
        let settled = self.loads.moved_unix_s.abs_diff(unix_s) >= rules.settle_s;
        if rules.percent == 0 || self.level < FeatureLevel::LOADS || !settled {
            return None;
        }
        let mut disks: Vec<&DiskRecord> = self.disks.values().filter(|d| self.is_balanced(d)).collect();
        disks.sort_by_key(|disk| (Reverse(self.loads.of(disk.id)), disk.id));
        let total: u128 = disks.iter().map(|disk| u128::from(self.loads.of(disk.id).0)).sum();
        let hot = |disk: &&&DiskRecord| {
            let (load, others) = (self.loads.of(disk.id), disks.len() as u128 - 1);
            let own = u128::from(load.0);
            let more = u128::from(rules.percent) + 100;
            let rest = total.saturating_sub(own);
            load >= Load::FLOOR && others > 0 && own * others * 100 >= rest.saturating_mul(more)
        };
        let hottest: Vec<&DiskRecord> = disks.iter().filter(hot).copied().collect();
        if hottest.is_empty() || self.repairs_first() {
            return None;
        }
        let promised = self.promised_by_disk();
        hottest.into_iter().find_map(|from| {
            let mut here: Vec<&Heat> = heats.iter().filter(|heat| heat.disk == from.id).collect();
            here.sort_by_key(|heat| (Reverse(heat.load), heat.object, heat.chunk));
            let places = here.into_iter().take(TRIES).filter_map(|heat| {
                let record = self.objects.get(&heat.object).filter(|record| may(record))?;
                let there = record.chunks.get(&heat.chunk)?.in_sync().any(|disk| disk == from.id);
                let size = self.likely_extents(record, record.policy, heat.chunk, from.id, &promised);
                if there {
                    self.cooler_place(record, heat, heats, size, &disks, rules.spread_percent)
                } else {
                    None
                }
            });
            places.min_by_key(|(key, _)| *key).map(|(_, next)| next)
        })
    }

    /// The idlest of the disks, which descend by load, that may take a component of this size and makes the two more even, with how well
    /// that does: whether the component goes away from the host that has it open, and what the busier one has to serve then.
    fn cooler_place(
        &self,
        record: &ObjectRecord,
        heat: &Heat,
        heats: &[Heat],
        size: u64,
        disks: &[&DiskRecord],
        spread_percent: u64,
    ) -> Option<((bool, u128), Move)> {
        let from = self.disks.get(&heat.disk)?;
        let reader = record.lock.map(|lock| lock.host);
        let leaves = |to: &DiskRecord| reader == Some(from.host) && to.host != from.host;
        let mut targets: Vec<&DiskRecord> =
            disks.iter().rev().copied().filter(|to| to.id != from.id).collect();
        targets.sort_by_key(|to| leaves(to));
        targets.into_iter().find_map(|to| {
            let pair = Pair { from, to, size };
            let after = self.busier_after(&pair, heat, heats, reader);
            let before = u128::from(self.loads.of(from.id).0);
            let chunk = heat.chunk;
            let good = after * 100 <= before * AFTER_PERCENT
                && placement::holds(to, size)
                && stays_even(&pair, disks, spread_percent)
                && !self.is_farther(record, chunk, from.id, to.id)
                && placement::place_one_more(self, record, chunk, Some(from.id), Some(to.id)).is_ok();
            let next = Move { object: record.id, chunk, from: from.id, to: to.id, why: Why::Busier };
            good.then_some(((leaves(to), after), next))
        })
    }

    /// What the busier of the two would have to serve after the move, at most. The copy on the host that has the volume open is the one that
    /// is read, so what goes there may bring the others' reads.
    fn busier_after(&self, pair: &Pair<'_>, heat: &Heat, heats: &[Heat], reader: Option<HostId>) -> u128 {
        let of_chunk = heats.iter().filter(|h| (h.object, h.chunk) == (heat.object, heat.chunk));
        let all: u128 = of_chunk.map(|h| u128::from(h.load.0)).sum();
        let own = u128::from(heat.load.0);
        let comes_home = reader == Some(pair.to.host) && pair.from.host != pair.to.host;
        let brought = if comes_home { all } else { own };
        let load = |disk: &DiskRecord| u128::from(self.loads.of(disk.id).0);
        (load(pair.from).saturating_sub(own)).max(load(pair.to) + brought)
    }

    pub(super) fn report_load(&mut self, loads: &[(DiskId, Load)]) -> Applied {
        self.knows_loads()?;
        for (disk, load) in loads {
            if *load == Load::default() || !self.disks.contains_key(disk) {
                self.loads.of.remove(disk);
            } else {
                self.loads.of.insert(*disk, *load);
            }
        }
        Ok(Outcome::Done)
    }

    pub(super) fn move_to(
        &mut self,
        index: u64,
        basis: Basis,
        chunk: ChunkIndex,
        from: DiskId,
        to: DiskId,
        unix_s: u64,
    ) -> Applied {
        self.knows_loads()?;
        self.move_component(index, basis, chunk, from, Some(to), unix_s)
    }

    pub(super) fn trim_from(
        &mut self,
        index: u64,
        basis: Basis,
        chunk: ChunkIndex,
        disk: DiskId,
        unix_s: u64,
    ) -> Applied {
        self.knows_loads()?;
        let trimmed = self.trim(index, basis, chunk, Some(disk))?;
        self.moved_at(unix_s);
        Ok(trimmed)
    }

    /// A component begins to be moved, or has been.
    pub(super) fn moved_at(&mut self, unix_s: u64) {
        if self.level >= FeatureLevel::LOADS {
            self.loads.moved_unix_s = unix_s;
        }
    }

    fn knows_loads(&self) -> Result<(), Refused> {
        let now = self.level;
        if now >= FeatureLevel::LOADS { Ok(()) } else { Err(Refused::OtherLevel { now }) }
    }
}

/// Whether the fullness balancer would take nothing from the disk that is filled.
fn stays_even(pair: &Pair<'_>, disks: &[&DiskRecord], spread_percent: u64) -> bool {
    let Pair { from, to, size } = pair;
    let after = |disk: &DiskRecord| {
        let used = match disk.id {
            id if id == from.id => disk.used_extents.saturating_sub(*size),
            id if id == to.id => disk.used_extents.saturating_add(*size),
            _ => disk.used_extents,
        };
        used.saturating_mul(1_000) / disk.capacity_extents.max(1)
    };
    let (full, emptiest) = (after(to), disks.iter().map(|disk| after(disk)).min().unwrap_or(0));
    // Where nothing is moved by fullness, disks that are nearly full are spared all the same.
    let never = spread_percent == 0;
    let spread = balance::spread(full, if never { u64::MAX } else { spread_percent });
    full < emptiest.saturating_add(spread)
}
