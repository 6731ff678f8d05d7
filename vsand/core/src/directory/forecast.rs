//! What a loss would cost: which volumes could not be reached, and whether what is left has room to rebuild the rest. Pure,
//! and nothing changes by it.
//!
//! What it must not know: which hosts answer now. Who asks counts those that do not among the lost.

use std::collections::{BTreeMap, BTreeSet};

use ferro_protocol::ids::{ChunkIndex, DiskId, ObjectId, Role};

use super::State;
use super::records::{ChunkRecord, DiskHealth, ObjectRecord};
use super::room::Room;

/// What the loss of some disks would mean.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Forecast {
    /// How much would have to be built elsewhere, in extents of 1 MiB.
    pub extents: u64,
    /// The objects with components on these disks.
    pub touched: BTreeSet<ObjectId>,
    /// The objects of which a part could not be read.
    pub unavailable: BTreeSet<ObjectId>,
    /// The objects that could be read, and for some components of which there would be no place.
    pub homeless: BTreeSet<ObjectId>,
}

impl Forecast {
    /// Whether everything could be read and be rebuilt.
    pub fn is_safe(&self) -> bool {
        self.unavailable.is_empty() && self.homeless.is_empty()
    }
}

impl State {
    /// What it would mean if these disks were gone.
    pub fn without(&self, gone: &BTreeSet<DiskId>) -> Forecast {
        let mut forecast = Forecast::default();
        let mut free = self.room(gone);
        let promised = self.promised_by_disk();
        for (id, object) in &self.objects {
            let here = |c: &ChunkRecord| c.components.iter().any(|c| gone.contains(&c.disk));
            if !object.chunks.values().any(here) {
                continue;
            }
            forecast.touched.insert(*id);
            let unreadable = self.unreadable(object, gone);
            if !unreadable.is_empty() {
                forecast.unavailable.insert(*id);
            }
            if !self.rebuilt(object, gone, &unreadable, &promised, &mut free, &mut forecast.extents) {
                forecast.homeless.insert(*id);
            }
        }
        forecast
    }

    /// The chunks of which too few copies, shards or none of the log would be left.
    pub(super) fn unreadable(&self, object: &ObjectRecord, gone: &BTreeSet<DiskId>) -> BTreeSet<ChunkIndex> {
        let works = |disk: &DiskId| {
            !gone.contains(disk) && self.disks.get(disk).is_some_and(|d| d.health == DiskHealth::Healthy)
        };
        let bases: BTreeSet<ChunkIndex> = object.chunks.keys().map(|index| index.base()).collect();
        let good = |index: &ChunkIndex| {
            object.chunks.get(index).is_some_and(|chunk| chunk.in_sync().any(|disk| works(&disk)))
        };
        bases
            .into_iter()
            .filter(|base| {
                let records: Vec<ChunkIndex> = object.policy.records(*base).collect();
                let (shards, others): (Vec<_>, Vec<_>) =
                    records.into_iter().partition(|index| matches!(index.role(), Role::Shard(_)));
                let enough = shards.is_empty()
                    || shards.iter().filter(|index| good(index)).count() >= object.policy.sufficient();
                !(enough && others.iter().all(good))
            })
            .collect()
    }

    /// Places what would be missing of an object, as a trial.
    fn rebuilt<'a>(
        &'a self,
        object: &ObjectRecord,
        gone: &BTreeSet<DiskId>,
        unreadable: &BTreeSet<ChunkIndex>,
        promised: &BTreeMap<DiskId, u64>,
        free: &mut Room<'a>,
        extents: &mut u64,
    ) -> bool {
        let mut all = true;
        // Fault domains that shards of a chunk got in this trial.
        let mut given: BTreeMap<ChunkIndex, BTreeSet<&str>> = BTreeMap::new();
        for (index, chunk) in object.chunks.iter().filter(|(index, _)| !unreadable.contains(&index.base())) {
            let lost = chunk.components.iter().filter(|c| gone.contains(&c.disk));
            let stay = || chunk.components.iter().map(|c| c.disk).filter(|d| !gone.contains(d));
            let missing = object.policy.components(*index).saturating_sub(stay().count());
            let mut taken: BTreeSet<&str> = stay().filter_map(|d| self.fault_domain(d)).collect();
            let others = object.other_shards(*index).flat_map(|(_, shard)| &shard.components);
            taken
                .extend(others.filter(|c| !gone.contains(&c.disk)).filter_map(|c| self.fault_domain(c.disk)));
            let is_shard = matches!(index.role(), Role::Shard(_));
            if is_shard {
                taken.extend(given.get(&index.base()).into_iter().flatten());
            }
            for component in lost.take(missing) {
                let size = self.likely_extents(object, object.policy, *index, component.disk, promised);
                *extents = extents.saturating_add(size);
                match free.take(&mut taken, size, |_| true) {
                    Ok(domain) if is_shard => {
                        given.entry(index.base()).or_default().insert(domain);
                    }
                    Ok(_) => {}
                    Err(_) => all = false,
                }
            }
        }
        all
    }
}
