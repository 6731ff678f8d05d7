//! How fast this host's disks have been of late, for those who compare them with the others of the cluster.
//!
//! Counters that only grow are looked at every so often; what lies between the oldest and the newest look is what a disk did
//! of late. Pure, but for the lock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ferro_protocol::ids::DiskId;
use vsand_core::time::Instant;
use vsand_store::StoreStats;

/// Looks are so far apart.
const EVERY: Duration = Duration::from_secs(20);
/// What is longer ago is not late.
const LOOKS_MAX: usize = 15;

/// What disks did of late.
#[derive(Debug, Default)]
pub struct Paces {
    looks: Mutex<BTreeMap<DiskId, VecDeque<Look>>>,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    requests: u64,
    sum_ns: u64,
}

/// Requests of one disk, of late.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pace {
    /// How many.
    pub requests: u64,
    /// How long one took, on average.
    pub mean_us: u64,
    /// Over how long.
    pub over_s: u64,
}

impl Paces {
    /// The disks' counters now.
    pub fn look<'a>(&self, now: Instant, disks: impl Iterator<Item = (DiskId, &'a StoreStats)>) {
        let mut known = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *known);
        for (disk, stats) in disks {
            let (read, write) = (&stats.files.read.latency, &stats.files.write.latency);
            let look = Look {
                at: now,
                requests: read.count + write.count,
                sum_ns: read.sum_ns.saturating_add(write.sum_ns),
            };
            known.insert(disk, add(before.remove(&disk).unwrap_or_default(), look));
        }
    }

    /// What a disk did of late.
    pub fn of(&self, disk: DiskId) -> Pace {
        let known = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&disk).map(pace).unwrap_or_default()
    }
}

fn add(mut looks: VecDeque<Look>, look: Look) -> VecDeque<Look> {
    if looks.back().is_some_and(|last| look.requests < last.requests) {
        // It was opened anew.
        looks.clear();
    }
    if looks.back().is_none_or(|last| look.at.since(last.at) >= EVERY) {
        looks.push_back(look);
    }
    if looks.len() > LOOKS_MAX {
        looks.pop_front();
    }
    looks
}

fn pace(looks: &VecDeque<Look>) -> Pace {
    let (Some(first), Some(last)) = (looks.front(), looks.back()) else { return Pace::default() };
    let requests = last.requests - first.requests;
    let mean_us = last.sum_ns.saturating_sub(first.sum_ns) / 1_000 / requests.max(1);
    Pace { requests, mean_us, over_s: last.at.since(first.at).as_secs() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_of_late_counts() {
        let disk = DiskId::from_bytes([1; 16]);
        let paces = Paces::default();
        let mut stats = StoreStats::default();
        for minute in 0..60_u64 {
            // Slow for the first half of an hour, fast since.
            for _ in 0..100 {
                stats.files.read.latency.add(Duration::from_millis(if minute < 30 { 200 } else { 2 }));
            }
            for _ in 0..3 {
                let now = Instant((minute * 60 + 1) * 1_000_000_000);
                paces.look(now, std::iter::once((disk, &stats)));
            }
        }
        let late = paces.of(disk);
        assert_eq!(late, Pace { requests: 1_400, mean_us: 2_000, over_s: 14 * 60 });
        paces.look(Instant(1 << 50), std::iter::once((disk, &StoreStats::default())));
        assert_eq!(paces.of(disk), Pace::default(), "opened anew");
        assert_eq!(paces.of(DiskId::from_bytes([2; 16])), Pace::default());
    }
}
