//! What this host's disks keep for volumes: told to the data loop, which sees to it, when the directory says something else.

use std::collections::{BTreeMap, HashMap};

use ferro_protocol::ids::{DiskId, HostId, ObjectId};
use vsand_core::directory::State;

/// By disk and object, in extents.
type Kept = BTreeMap<DiskId, HashMap<ObjectId, u32>>;

/// Tells when what is kept has changed.
#[derive(Debug, Default)]
pub struct Follower {
    told: (u64, Kept),
}

impl Follower {
    /// What all disks of this host keep and the revision of the provisioning that says so, if either is another than the last time.
    pub fn follow(&mut self, state: &State, me: HostId) -> Option<(u64, Kept)> {
        let seen = state.provisioning.changed();
        if seen == 0 {
            // Nothing was ever kept in this cluster.
            return None;
        }
        let here = |disk: &DiskId| state.disks.get(disk).is_some_and(|d| d.host == me);
        let extents = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let kept: Kept = state
            .kept_by_disk()
            .into_iter()
            .filter(|(disk, _)| here(disk))
            .map(|(disk, of)| (disk, of.into_iter().map(|(object, n)| (object, extents(n))).collect()))
            .collect();
        let now = (seen, kept);
        if now == self.told {
            return None;
        }
        self.told.clone_from(&now);
        Some(now)
    }
}

#[cfg(test)]
mod tests {
    use ferro_protocol::units::CHUNK_BYTES;
    use vsand_core::directory::{Command, HostRecord, Policy, Provision};

    use super::*;

    #[test]
    fn what_is_kept_here_is_told_once() {
        let mut state = State::default();
        let host = |n: u8| HostId::from_bytes([n; 16]);
        let disk = |n: u8| DiskId::from_bytes([n; 16]);
        let object = ObjectId::from_bytes([9; 16]);
        let mut index = 0;
        let mut apply = |state: &mut State, command| {
            index += 1;
            state.apply(index, command).unwrap();
        };
        for n in 1..=2 {
            let record = HostRecord {
                id: host(n),
                name: format!("h{n}"),
                address: ([10, 0, 0, n], 7_000).into(),
                fault_domain: format!("h{n}"),
                joined_unix_s: 0,
                lease: 0,
            };
            apply(&mut state, Command::PutHost { host: record });
            let (path, disk) = (format!("/d{n}"), disk(n));
            let (capacity_extents, used_extents) = (1 << 20, 0);
            apply(&mut state, Command::PutDisk { disk, host: host(n), path, capacity_extents, used_extents });
        }
        let mut follower = Follower::default();
        assert_eq!(follower.follow(&state, host(1)), None);
        let (name, policy) = ("v".parse().unwrap(), Policy::Mirror { copies: 2 });
        let size_bytes = CHUNK_BYTES;
        let half = Provision { percent: 50, forced: false };
        apply(
            &mut state,
            Command::CreateProvisioned { object, name, size_bytes, policy, provision: half, unix_s: 0 },
        );
        let kept = |extents| BTreeMap::from([(disk(1), HashMap::from([(object, extents)]))]);
        assert_eq!(follower.follow(&state, host(1)), Some((state.provisioning.changed(), kept(512))));
        assert_eq!(follower.follow(&state, host(1)), None);
        apply(&mut state, Command::Provision { object, provision: Provision::default() });
        assert_eq!(follower.follow(&state, host(1)), Some((state.provisioning.changed(), BTreeMap::new())));
    }
}
