//! What a volume's policy makes of its chunks, as the API shows it: the parts of a chunk, how much of what it asks for is
//! there, and how many failures are left. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ferro_protocol::api::{ChunkPart, Redundancy};
use ferro_protocol::ids::{ChunkIndex, DiskId, Role};
use vsand_core::directory::{ChunkRecord, Component, ObjectRecord, Policy};

use super::view::View;

/// What a record of an object keeps.
pub(super) fn part(policy: Policy, index: ChunkIndex) -> ChunkPart {
    match (index.role(), policy) {
        (Role::Whole, _) => ChunkPart::Whole,
        (Role::Log, _) => ChunkPart::Log,
        (Role::Shard(number), Policy::Parity { data, .. }) if number >= data => {
            ChunkPart::Parity { number: number - data }
        }
        (Role::Shard(number), _) => ChunkPart::Data { number },
    }
}

/// Copies that one failure would take together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct SharedDomain {
    /// How many chunks have copies that share a fault domain.
    pub chunks: usize,
    /// The fault domain of the first of them.
    pub domain: String,
    /// The disks of the copies that share it there.
    pub disks: Vec<DiskId>,
}

impl View {
    /// Whether the component's data is being brought up to date, or its turn comes.
    fn is_being_repaired(&self, record: &ObjectRecord, component: &Component) -> bool {
        !component.in_sync() && record.lock.is_some() && self.is_disk_reachable(component.disk)
    }

    pub(super) fn redundancy(&self, record: &ObjectRecord) -> Redundancy {
        let mut worst = Redundancy::Healthy;
        let good = |chunk: &ChunkRecord| {
            chunk.components.iter().filter(|c| c.in_sync() && self.is_disk_online(c.disk)).count()
        };
        for (index, chunk) in &record.chunks {
            let count = good(chunk);
            let enough = match index.role() {
                Role::Whole | Role::Log => count > 0,
                Role::Shard(_) => {
                    let answer = || record.shards(*index).filter(|(_, shard)| good(shard) > 0).count();
                    count > 0 || answer() >= record.policy.sufficient()
                }
            };
            if !enough {
                return Redundancy::Unavailable;
            }
            // More than enough while one of them moves.
            if count >= record.policy.components(*index) {
                continue;
            }
            if chunk.components.iter().any(|c| self.is_being_repaired(record, c)) {
                worst = Redundancy::Resyncing;
            } else if worst == Redundancy::Healthy {
                worst = Redundancy::Degraded;
            }
        }
        worst
    }

    /// Whether chunks have fewer fault domains than copies: those of hosts were changed after they were placed. Copies that
    /// are leaving, or too many, don't count.
    pub(super) fn shared_domain(&self, record: &ObjectRecord) -> Option<SharedDomain> {
        let mut shared: Option<SharedDomain> = None;
        for (index, chunk) in &record.chunks {
            // The shards of a chunk are looked at together, once.
            let (needed, components): (usize, Vec<&Component>) = match index.role() {
                Role::Whole | Role::Log => {
                    (record.policy.components(*index), chunk.components.iter().collect())
                }
                Role::Shard(0) => {
                    let shards = record.shards(*index).flat_map(|(_, shard)| &shard.components);
                    (record.policy.domains(), shards.collect())
                }
                Role::Shard(_) => continue,
            };
            let mut by_domain: BTreeMap<&str, Vec<DiskId>> = BTreeMap::new();
            let stays = components.into_iter().map(|c| c.disk).filter(|d| !self.state.is_leaving(*d));
            for disk in stays {
                if let Some(domain) = self.state.fault_domain(disk) {
                    by_domain.entry(domain).or_default().push(disk);
                }
            }
            if by_domain.len() >= needed.min(by_domain.values().map(Vec::len).sum()) {
                continue;
            }
            let Some((domain, disks)) = by_domain.into_iter().find(|(_, disks)| disks.len() > 1) else {
                continue;
            };
            let domain = domain.to_owned();
            shared.get_or_insert(SharedDomain { chunks: 0, domain, disks }).chunks += 1;
        }
        shared
    }

    /// How many more hosts or disks may fail before data can't be reached.
    pub(super) fn failures_left(&self, record: &ObjectRecord) -> u8 {
        let good = |chunk: &ChunkRecord| -> BTreeSet<&str> {
            let good = |c: &&Component| c.in_sync() && self.is_disk_online(c.disk);
            let disks = chunk.components.iter().filter(good).map(|c| c.disk);
            disks.filter_map(|d| self.state.fault_domain(d)).collect()
        };
        let left = record.chunks.iter().map(|(index, chunk)| match index.role() {
            Role::Whole | Role::Log => good(chunk).len().saturating_sub(1),
            Role::Shard(_) => {
                let domains: BTreeSet<&str> =
                    record.shards(*index).flat_map(|(_, shard)| good(shard)).collect();
                domains.len().saturating_sub(record.policy.sufficient())
            }
        });
        let most = super::view::api_policy(record.policy).failures_to_tolerate();
        left.min().map_or(most, |left| u8::try_from(left).unwrap_or(u8::MAX).min(most))
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::{healthy, host_id, kill, parity, stale};
    use super::*;

    fn state(view: &View) -> (Redundancy, u8) {
        let volume = &view.volumes()[0];
        (volume.redundancy, volume.failures_left)
    }

    #[test]
    fn a_mirror_stands_the_loss_of_all_copies_but_one() {
        let mut view = healthy();
        assert_eq!(state(&view), (Redundancy::Healthy, 2));
        kill(&mut view, 3);
        assert_eq!(state(&view), (Redundancy::Degraded, 1));
        kill(&mut view, 2);
        assert_eq!(state(&view), (Redundancy::Degraded, 0));
    }

    #[test]
    fn shards_and_log_count_for_parity() {
        // Data on hosts 1 and 2, parity on 3, the log on 1 and 3.
        let mut view = parity();
        assert_eq!(state(&view), (Redundancy::Healthy, 1));
        stale(&mut view, 2, 5);
        assert_eq!(state(&view), (Redundancy::Resyncing, 0));
        kill(&mut view, 2);
        assert_eq!(state(&view), (Redundancy::Degraded, 0));
        kill(&mut view, 3);
        assert_eq!(
            state(&view),
            (Redundancy::Unavailable, 0),
            "one shard is not enough, though the log is there"
        );
        let mut view = parity();
        let log = ChunkIndex(0).log();
        view.change_volume(|record| record.chunks.get_mut(&log).unwrap().components.truncate(1));
        view.me = host_id(9);
        kill(&mut view, 1);
        assert_eq!(state(&view), (Redundancy::Unavailable, 0), "two shards, and no log");
    }

    #[test]
    fn a_shard_without_a_component_is_shown_and_missed() {
        let mut view = parity();
        let shard = ChunkIndex(0).shard(1);
        view.change_volume(|record| record.chunks.get_mut(&shard).unwrap().components.clear());
        assert_eq!(state(&view), (Redundancy::Degraded, 0));
        let record = view.state.objects.values().next().unwrap();
        let object = view.object(record);
        assert_eq!((object.components_in_sync, object.components), (4, 5));
        assert!(view.chunk(record, shard, &record.chunks[&shard]).components.is_empty());
    }

    #[test]
    fn a_volume_takes_what_its_guest_wrote() {
        // 12 MiB on each of three hosts: two thirds of that are data.
        assert_eq!(parity().volumes()[0].used_bytes, Some(24 << 20));
    }

    #[test]
    fn chunks_come_with_all_their_parts_in_order() {
        let mut view = parity();
        view.change_volume(|record| {
            let more: Vec<_> =
                record.policy.records(ChunkIndex(7)).map(|i| (i, ChunkRecord::default())).collect();
            record.chunks.extend(more);
        });
        let record = view.state.objects.values().next().unwrap();
        let chunks = |from: u32| record.chunks_from(ChunkIndex(from)).map(|c| c.0).collect::<Vec<u32>>();
        assert_eq!(chunks(0), [0, 7]);
        assert_eq!((chunks(1), chunks(8), chunks(u32::MAX)), (vec![7], vec![], vec![]));
        let parts: Vec<_> = record.policy.records(ChunkIndex(7)).map(|i| part(record.policy, i)).collect();
        let parity = ChunkPart::Parity { number: 0 };
        assert_eq!(
            parts,
            [ChunkPart::Data { number: 0 }, ChunkPart::Data { number: 1 }, parity, ChunkPart::Log]
        );
        let mirror = healthy();
        let record = mirror.state.objects.values().next().unwrap();
        assert_eq!(record.chunks_from(ChunkIndex(0)).collect::<Vec<_>>(), [ChunkIndex(0)]);
        assert_eq!(record.chunks_from(ChunkIndex(1)).count(), 0);
    }
}
