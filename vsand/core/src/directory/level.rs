//! Which releases the cluster's hosts may be of: its feature level.
//!
//! ```text
//!   hosts of two releases              all hosts of the later one, an operator says so
//!        level 1 ─────────────────────────────── RaiseLevel ─────────────────────────────▶ level 2
//!   the earlier release takes part:                  it does not any more: what it would not understand
//!   nothing is proposed or written                   is proposed and written from now on
//!   that it would not understand
//! ```
//!
//! A release knows the levels from [`FeatureLevel::OLDEST`] to [`FeatureLevel::NEWEST`] and behaves, at each of them, as every other
//! release that knows it: the same command brings the same change on all hosts, and the same snapshot can be read by all. So programs can be
//! replaced one host after the other, and put back, until the level is raised. There is no way down: what was written since may be what
//! the earlier release can't read.
//!
//! | level | what it brings |
//! |---|---|
//! | 1 | all that there was before clusters had a level |
//! | 2 | the level itself; disks that were removed are remembered, and come back only if they are given to the cluster again |
//! | 3 | conversions between mirrors and shards |
//! | 4 | hosts that are away are known as such, and what they hold is built elsewhere also where nobody writes; a component that is in sync goes in two steps |
//! | 5 | what volumes prefer: sites and other places; how much disks have to serve is known, and components move from busy ones to idle ones |
//! | 6 | full stripes go straight to the shards: disks stage them, and a log names what is staged |
//!
//! Invariants:
//! - the level only grows, one command after the other, and only while the hosts are those that were asked;
//! - what a level brings leaves no trace in the state below it.
//!
//! What it must not know: which program a host runs now. Who proposes to raise the level has asked.

use std::collections::BTreeMap;
use std::fmt;

use ferro_protocol::ids::{DiskId, HostId};
use serde::{Deserialize, Serialize};

use super::State;
use super::apply::Applied;
use super::command::{Command, Outcome, Refused};

/// So many disks that were removed are remembered; of more, those that were removed last.
const REMOVED_MAX: usize = 4_096;

/// What all hosts of a cluster understand.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct FeatureLevel(pub u16);

impl FeatureLevel {
    /// The first level that this release knows.
    pub const OLDEST: Self = Self(1);
    /// The last one.
    pub const NEWEST: Self = Self(6);
    /// Disks that were removed are remembered.
    pub const REMOVED_DISKS: Self = Self(2);
    /// Mirrors become shards, and shards mirrors or others.
    pub const CONVERSIONS: Self = Self(3);
    /// Hosts that are away are known as such.
    pub const ABSENCES: Self = Self(4);
    /// A component that is in sync leaves the in-sync set before it goes.
    pub const TRIMMED_IN_STEPS: Self = Self(4);
    /// Volumes prefer places.
    pub const PREFERENCES: Self = Self(5);
    /// How much disks have to serve is known.
    pub const LOADS: Self = Self(5);
    /// Disks stage full stripes, and logs name them.
    pub const STAGED: Self = Self(6);

    /// Whether this release can be in a cluster of this level.
    pub fn is_known(self) -> bool {
        (Self::OLDEST..=Self::NEWEST).contains(&self)
    }
}

impl Default for FeatureLevel {
    /// A directory that says nothing of levels is of before there were any.
    fn default() -> Self {
        Self(1)
    }
}

impl fmt::Display for FeatureLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Command {
    /// The level from which on all hosts understand it; below, it must not be proposed.
    pub fn since(&self) -> FeatureLevel {
        match self {
            Self::ReturnDisk { .. } => FeatureLevel::REMOVED_DISKS,
            Self::Convert { .. } => FeatureLevel::CONVERSIONS,
            Self::HostAway { .. } => FeatureLevel::ABSENCES,
            Self::Prefer { .. } | Self::CreatePreferred { .. } => FeatureLevel::PREFERENCES,
            Self::ReportLoad { .. } | Self::MoveTo { .. } | Self::TrimFrom { .. } => FeatureLevel::LOADS,
            // Who proposes it has made sure.
            _ => FeatureLevel(1),
        }
    }
}

/// Disks that were removed, each with the index of the command that did it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RemovedDisks(BTreeMap<DiskId, u64>);

impl RemovedDisks {
    /// The index of the command that removed this disk, unless it was returned since.
    pub fn at(&self, disk: DiskId) -> Option<u64> {
        self.0.get(&disk).copied()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = DiskId> {
        self.0.keys().copied()
    }

    fn add(&mut self, index: u64, disk: DiskId) {
        self.0.insert(disk, index);
        while self.0.len() > REMOVED_MAX
            && let Some((first, _)) = self.0.iter().min_by_key(|(_, at)| **at)
        {
            let first = *first;
            self.0.remove(&first);
        }
    }
}

impl State {
    pub(super) fn raise_level(&mut self, from: FeatureLevel, to: FeatureLevel, asked: &[HostId]) -> Applied {
        if self.level != from || to <= from {
            return Err(Refused::OtherLevel { now: self.level });
        }
        if !self.hosts.keys().eq(asked) {
            return Err(Refused::OtherHosts);
        }
        self.level = to;
        Ok(Outcome::Done)
    }

    /// A disk has left the cluster.
    pub(super) fn remember_removed(&mut self, index: u64, disk: DiskId) {
        if self.level >= FeatureLevel::REMOVED_DISKS {
            self.removed_disks.add(index, disk);
        }
    }

    pub(super) fn return_disk(&mut self, disk: DiskId, removed: u64) -> Applied {
        if self.removed_disks.at(disk) != Some(removed) {
            return Err(Refused::NoDisk(disk));
        }
        self.removed_disks.0.remove(&disk);
        Ok(Outcome::Done)
    }
}
