//! What guests may ask of each volume at most: a document of the cluster directory, so that a limit goes with its volume to whatever
//! host opens it, and takes effect there without anything being opened anew (docs/decisions/0025-limits.md). The data loop keeps
//! guests to it ([`vsand_core::limits`]).
//!
//! The document (`storage/limits`) has an entry for each volume that has limits, by the id of the object that it was when they were set: what
//! it has been made into since has the same [`lineage`].

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;
use std::time::Duration;

use ferro_protocol::api::VolumeLimits;
use ferro_protocol::ids::ObjectId;
use serde::{Deserialize, Serialize};
use vsand_core::directory::State;
use vsand_core::directory::conversion::{kin, lineage};
use vsand_core::limits::Limits;

use super::kept::Kept;

/// The document's content.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LimitBook {
    format: u8,
    volumes: BTreeMap<ObjectId, VolumeLimits>,
}

impl Default for LimitBook {
    fn default() -> Self {
        Self { format: Self::FORMAT, volumes: BTreeMap::new() }
    }
}

impl LimitBook {
    /// The limits of a volume.
    pub fn get(&self, object: ObjectId) -> VolumeLimits {
        self.volumes.range(kin(object)).next().map(|(_, limits)| *limits).unwrap_or_default()
    }

    /// Gives a volume others; those of volumes that are gone go. False if it has them already.
    pub fn set(&mut self, state: &State, object: ObjectId, limits: VolumeLimits) -> bool {
        if self.get(object) == limits {
            return false;
        }
        let is_there = |id: ObjectId| state.objects.range(kin(id)).next().is_some();
        self.volumes.retain(|id, _| is_there(*id) && !kin(object).contains(id));
        if !limits.is_none() {
            self.volumes.insert(object, limits);
        }
        true
    }
}

impl Kept for LimitBook {
    const WHAT: &'static str = "the list of limits";
    const DOCUMENT: &'static str = "storage/limits";
    const FORMAT: u8 = 1;

    fn format(&self) -> u8 {
        self.format
    }
}

/// Tells the data loop when limits have changed.
#[derive(Debug, Default)]
pub struct Follower {
    revision: u64,
}

impl Follower {
    /// All limits that there are, if the document is another than the last time.
    pub fn follow(&mut self, state: &State) -> Option<HashMap<[u8; 8], Limits>> {
        let revision = state.documents.get(&LimitBook::document()).map_or(0, |d| d.revision);
        if std::mem::replace(&mut self.revision, revision) == revision {
            return None;
        }
        let Some(book) = LimitBook::of(state) else {
            tracing::warn!(
                "a later version wrote the limits of volumes: this one keeps to those that it knew"
            );
            return None;
        };
        Some(book.volumes.iter().map(|(object, limits)| (lineage(*object), core_limits(*limits))).collect())
    }
}

/// As the data loop keeps to them.
fn core_limits(limits: VolumeLimits) -> Limits {
    Limits {
        requests_per_s: limits.iops.and_then(|n| NonZeroU64::new(n.into())),
        bytes_per_s: limits.bytes_per_second.and_then(NonZeroU64::new),
        burst: Duration::from_secs(limits.burst_seconds.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vsand_core::directory::Document;

    use super::*;

    fn iops(iops: u32) -> VolumeLimits {
        VolumeLimits { iops: Some(iops), ..VolumeLimits::default() }
    }

    #[test]
    fn limits_are_kept_and_those_of_volumes_that_are_gone_forgotten() {
        let (one, other) = (ObjectId::from_bytes([1; 16]), ObjectId::from_bytes([2; 16]));
        let mut book = LimitBook::default();
        let mut state = State::default();
        assert!(book.set(&state, one, iops(100)));
        assert!(!book.set(&state, one, iops(100)), "it has them");
        assert_eq!((book.get(one), book.get(other)), (iops(100), VolumeLimits::default()));
        let content = serde_json::to_string(&book).unwrap();
        state.documents.insert(LimitBook::document(), Arc::new(Document { revision: 1, content }));
        assert_eq!(LimitBook::of(&state), Some(book.clone()));
        // The directory knows neither.
        assert!(book.set(&state, other, iops(50)));
        assert_eq!((book.get(one), book.get(other)), (VolumeLimits::default(), iops(50)));
        assert!(book.set(&state, other, VolumeLimits::default()));
        assert_eq!(book, LimitBook::default());
    }

    #[test]
    fn what_a_later_version_wrote_is_left_alone() {
        let mut state = State::default();
        let content = r#"{"format":2,"volumes":{}}"#.to_owned();
        state.documents.insert(LimitBook::document(), Arc::new(Document { revision: 1, content }));
        assert_eq!(LimitBook::of(&state), None);
    }
}
