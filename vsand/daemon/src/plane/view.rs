//! The cluster as the API shows it, put together from what the directory says, how long hosts have been silent, and what the
//! hosts that answer report. Pure: everything it goes by is in [`View`].
//!
//! What it must not know: how a report came here, what a terminal shows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::api::{
    Capacity, ChunkInfo, ComponentInfo, ComponentState, ConversionInfo, DiskInfo, DiskState, HostInfo,
    HostRole, HostState, ObjectInfo, Policy as ApiPolicy, VolumeInfo, VolumeOwner, VolumePlacement,
};
use ferro_protocol::ids::{ChunkIndex, DiskId, HostId, ObjectId};
use ferro_protocol::units::EXTENT_BYTES;
use vsand_core::directory::{
    ChunkRecord, Component, Content, DiskHealth, DiskRecord, HostRecord, LockKind, ObjectRecord, Policy,
    Preference, State, Sync,
};

use super::errors::host_name;
use super::remote::{DiskReport, HostReport, VolumeReport};
use crate::member::limits::LimitBook;

/// All that the API's answers are made of.
pub(super) struct View {
    pub state: Arc<State>,
    /// The host that answers.
    pub me: HostId,
    pub leader: Option<HostId>,
    pub voters: BTreeSet<HostId>,
    pub quorum: bool,
    /// This host was taken out of the cluster.
    pub removed: bool,
    /// How long each host's lease has stood still.
    pub silence: BTreeMap<HostId, Duration>,
    /// A lease that stood still for longer has ended.
    pub silence_max: Duration,
    pub reports: BTreeMap<HostId, HostReport>,
    /// The sockets of the volumes that are open here.
    pub sockets: BTreeMap<ObjectId, String>,
    pub repair_delay_s: u64,
    /// As this host is told; 0: never by themselves.
    pub scrub_every_days: u64,
    /// What guests may ask of volumes.
    pub limits: LimitBook,
    pub unix_s: u64,
}

/// The API's policy.
pub(crate) fn api_policy(policy: Policy) -> ApiPolicy {
    match policy {
        Policy::Mirror { copies } => ApiPolicy::Mirror { copies },
        Policy::Parity { data, parity } => ApiPolicy::Parity { data, parity },
    }
}

/// The directory's policy.
pub(super) fn core_policy(policy: ApiPolicy) -> Policy {
    match policy {
        ApiPolicy::Mirror { copies } => Policy::Mirror { copies },
        ApiPolicy::Parity { data, parity } => Policy::Parity { data, parity },
    }
}

/// The directory's preference.
pub(super) fn core_preference(placement: VolumePlacement) -> Preference {
    let VolumePlacement { prefer: places, across_sites } = placement;
    Preference { places, across_sites }
}

impl View {
    /// Whether a host takes part. Without a quorum no lease moves, so then only its answer counts.
    pub(super) fn is_online(&self, host: HostId) -> bool {
        if host == self.me {
            return !self.removed;
        }
        let lease_runs = self.silence.get(&host).is_some_and(|silent| *silent < self.silence_max);
        if self.quorum { lease_runs } else { self.reports.contains_key(&host) }
    }

    pub(super) fn host_state(&self, host: &HostRecord) -> HostState {
        match () {
            () if self.is_online(host.id) && (host.lease > 0 || host.id == self.me) => {
                if self.state.is_host_leaving(host.id) { HostState::Leaving } else { HostState::Online }
            }
            () if host.lease == 0 => HostState::Joining,
            () => HostState::Offline,
        }
    }

    pub(super) fn hosts(&self) -> Vec<HostInfo> {
        let mut hosts: Vec<HostInfo> = self.state.hosts.values().map(|host| self.host(host)).collect();
        hosts.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        hosts
    }

    fn host(&self, host: &HostRecord) -> HostInfo {
        let disks: Vec<&DiskRecord> = self.state.disks.values().filter(|d| d.host == host.id).collect();
        let state = self.host_state(host);
        let report = self.reports.get(&host.id);
        HostInfo {
            id: host.id,
            name: host.name.clone(),
            this_host: host.id == self.me,
            addresses: vec![host.address.to_string()],
            fault_domain: host.fault_domain.clone(),
            state,
            role: match () {
                () if self.leader == Some(host.id) => HostRole::Leader,
                () if self.voters.contains(&host.id) => HostRole::Voter,
                () => HostRole::Learner,
            },
            disks: disks.len() as u32,
            capacity_bytes: disks.iter().map(|d| d.capacity_extents * EXTENT_BYTES).sum(),
            used_bytes: disks.iter().map(|d| self.used_bytes_of_disk(d)).sum(),
            leaving_bytes: self
                .state
                .is_host_leaving(host.id)
                .then(|| disks.iter().map(|d| self.bytes_to_move(d)).sum()),
            maintenance: super::maintenance::info(self, host.id),
            last_seen_seconds: match state {
                HostState::Offline => self.silence.get(&host.id).map(Duration::as_secs),
                _ => None,
            },
            certificate_expires_unix_s: report.map(|r| r.certificate_expires_unix_s),
            version: report.map(|r| r.version.clone()),
        }
    }

    pub(super) fn disk_report(&self, disk: &DiskRecord) -> Option<&DiskReport> {
        self.reports.get(&disk.host)?.disks.iter().find(|d| d.disk == disk.id)
    }

    pub(super) fn used_bytes_of_disk(&self, disk: &DiskRecord) -> u64 {
        let reported = self.disk_report(disk).filter(|r| r.extents > 0).map(|r| r.extents_used);
        reported.unwrap_or(disk.used_extents) * EXTENT_BYTES
    }

    /// What a disk keeps for volumes beyond what they have written.
    pub(super) fn kept_bytes_of_disk(&self, disk: &DiskRecord) -> u64 {
        self.disk_report(disk).map_or(0, |r| r.extents_kept) * EXTENT_BYTES
    }

    /// How much of a disk's data still has to be copied before it can go: of the objects with components on it, what they
    /// take up there, less what is copied already.
    pub(super) fn bytes_to_move(&self, disk: &DiskRecord) -> u64 {
        let mut bytes = 0;
        let here = |record: &ObjectRecord| {
            record.chunks.values().flat_map(|c| &c.components).filter(|c| c.disk == disk.id).count()
        };
        let Some(report) = self.disk_report(disk).filter(|r| r.failure.is_none()) else {
            // It says nothing of its objects any more. As the directory reckons: all its components are alike.
            let placed: usize = self.state.objects.values().map(|o| here(o)).sum();
            return if placed > 0 { disk.used_extents.saturating_mul(EXTENT_BYTES) } else { 0 };
        };
        for record in self.state.objects.values() {
            let here = here(record);
            if here == 0 {
                continue;
            }
            // Components that have moved lie there until they are swept out, so a part of what is there may be theirs.
            let most = here as u64 * u64::from(ferro_protocol::units::CHUNK_EXTENTS);
            let reported = report.objects.iter().find(|(id, _)| *id == record.id);
            let takes = reported.map_or(0, |(_, extents)| (*extents).min(most)) * EXTENT_BYTES;
            let copied: u64 = self
                .volume_report(record)
                .map_or(0, |v| v.resyncs.iter().filter(|r| r.disk != disk.id).map(|r| r.done_bytes).sum());
            bytes += takes.saturating_sub(copied);
        }
        bytes
    }

    /// Whether a disk can be used, and why not.
    pub(super) fn disk_state(&self, disk: &DiskRecord) -> (DiskState, Option<String>) {
        if let DiskHealth::Dead(reason) = &disk.health {
            return (DiskState::Failed, Some(reason.clone()));
        }
        if !self.is_online(disk.host) {
            let reason = format!("host {} is offline", host_name(&self.state, disk.host));
            return (DiskState::Offline, Some(reason));
        }
        let serves = if self.state.is_leaving(disk.id) { DiskState::Leaving } else { DiskState::Online };
        // A host that did not answer in time still serves its disks as long as its lease runs.
        if !self.reports.contains_key(&disk.host) {
            return (serves, None);
        }
        match self.disk_report(disk) {
            Some(DiskReport { failure: None, .. }) => (serves, None),
            Some(DiskReport { failure, .. }) => (DiskState::Offline, failure.clone()),
            None => (DiskState::Offline, Some("its host does not serve it".to_owned())),
        }
    }

    pub(super) fn is_disk_online(&self, disk: DiskId) -> bool {
        let serves = |d| matches!(self.disk_state(d).0, DiskState::Online | DiskState::Leaving);
        self.state.disks.get(&disk).is_some_and(serves)
    }

    /// Whether a disk can be used and its host has just answered: a lease runs on for some seconds after its host's death.
    pub(super) fn is_disk_reachable(&self, disk: DiskId) -> bool {
        self.is_disk_online(disk)
            && self.state.disks.get(&disk).is_some_and(|d| self.reports.contains_key(&d.host))
    }

    pub(super) fn disks(&self) -> Vec<DiskInfo> {
        let components = self.state.components_by_disk();
        let mut disks: Vec<DiskInfo> = self
            .state
            .disks
            .values()
            .map(|disk| {
                let (state, reason) = self.disk_state(disk);
                DiskInfo {
                    id: disk.id,
                    host: disk.host,
                    host_name: host_name(&self.state, disk.host),
                    path: disk.path.clone(),
                    state,
                    reason,
                    capacity_bytes: disk.capacity_extents * EXTENT_BYTES,
                    used_bytes: self.used_bytes_of_disk(disk),
                    components: components.get(&disk.id).map_or(0, |n| u32::try_from(*n).unwrap_or(u32::MAX)),
                    leaving_bytes: self.state.is_leaving(disk.id).then(|| self.bytes_to_move(disk)),
                    checksum_errors: self.disk_report(disk).map_or(0, |r| r.bad_blocks),
                }
            })
            .collect();
        disks.sort_by(|a, b| (&a.host_name, &a.path, a.id).cmp(&(&b.host_name, &b.path, b.id)));
        disks
    }

    pub(super) fn capacity(&self) -> Capacity {
        let online: Vec<&DiskRecord> =
            self.state.disks.values().filter(|d| self.disk_state(d).0 == DiskState::Online).collect();
        Capacity {
            total_bytes: online.iter().map(|d| d.capacity_extents * EXTENT_BYTES).sum(),
            used_bytes: online.iter().map(|d| self.used_bytes_of_disk(d)).sum(),
            provisioned_bytes: self.state.volumes().map(|o| o.size_bytes).sum(),
            disks_online: online.len() as u32,
            disks: self.state.disks.len() as u32,
        }
    }

    /// What the object's owner reports, if it is the owner still.
    pub(super) fn volume_report(&self, record: &ObjectRecord) -> Option<&VolumeReport> {
        let owner = record.lock?.host;
        let reported = &self.reports.get(&owner)?.volumes;
        reported.iter().find(|v| v.object == record.id && v.epoch == record.epoch)
    }

    /// The host that has it open; a repair in the background gives way to everybody and is nobody's opening.
    fn owner(&self, record: &ObjectRecord) -> Option<VolumeOwner> {
        let lock = record.lock.filter(|lock| lock.kind != LockKind::Background)?;
        Some(VolumeOwner { host: lock.host, host_name: host_name(&self.state, lock.host) })
    }

    /// What the guest's data takes, if all hosts with a component have reported: all components together, less what the
    /// policy adds to it. With parity that is an estimate, as the log and what it has to hold are counted too.
    fn used_bytes(&self, record: &ObjectRecord) -> Option<u64> {
        let disks: BTreeSet<DiskId> =
            record.chunks.values().flat_map(|c| &c.components).map(|c| c.disk).collect();
        let mut extents = 0;
        for disk in disks {
            let report = self.disk_report(self.state.disks.get(&disk)?)?;
            if report.failure.is_some() {
                return None;
            }
            extents += report.objects.iter().find(|(object, _)| *object == record.id).map_or(0, |(_, n)| *n);
        }
        let (of, parts) = (record.policy.domains().max(1) as u64, record.policy.sufficient() as u64);
        Some((extents * parts).div_ceil(of) * EXTENT_BYTES)
    }

    pub(super) fn volume(&self, record: &ObjectRecord) -> VolumeInfo {
        let read_only = matches!(record.lock.map(|l| l.kind), Some(LockKind::Exclusive { read_only: true }));
        VolumeInfo {
            name: record.name.clone(),
            object: record.id,
            size_bytes: record.size_bytes,
            used_bytes: self.used_bytes(record),
            policy: api_policy(record.policy),
            redundancy: self.redundancy(record),
            failures_left: self.failures_left(record),
            reserve_percent: self.state.provisioning.of(record.id).percent,
            force_provisioning: self.state.provisioning.of(record.id).forced,
            limits: self.limits.get(record.id),
            placement: self.placement(record),
            misplaced: u32::try_from(self.state.misplaced(record)).unwrap_or(u32::MAX),
            owner: self.owner(record),
            epoch: record.epoch,
            read_only,
            socket: self.sockets.get(&record.id).cloned(),
            incomplete: record.content == Content::Importing,
            conversion: self.conversion(record),
        }
    }

    /// Where the volume is rather kept.
    pub(super) fn placement(&self, record: &ObjectRecord) -> VolumePlacement {
        let Preference { places: prefer, across_sites } = self.state.preferences.of(record.id).clone();
        VolumePlacement { prefer, across_sites }
    }

    /// What the volume is being made into.
    pub(super) fn conversion(&self, record: &ObjectRecord) -> Option<ConversionInfo> {
        let to = self.state.conversions.of(record.id)?.to;
        let said = self.volume_report(record).and_then(|report| report.conversion.as_ref());
        Some(ConversionInfo {
            policy: api_policy(to),
            copied_bytes: said.map(|said| said.copied_bytes),
            total_bytes: record.size_bytes,
            waits: said.and_then(|said| said.waits.clone()),
        })
    }

    pub(super) fn volumes(&self) -> Vec<VolumeInfo> {
        self.state.volumes().map(|volume| self.volume(volume)).collect()
    }

    pub(super) fn object(&self, record: &ObjectRecord) -> ObjectInfo {
        let in_sync = |c: &ChunkRecord| {
            c.components.iter().filter(|c| c.in_sync() && self.is_disk_online(c.disk)).count()
        };
        ObjectInfo {
            id: record.id,
            // What a volume is being made into is no volume yet.
            volume: (!self.state.is_target(record.id)).then(|| record.name.clone()),
            size_bytes: record.size_bytes,
            policy: api_policy(record.policy),
            redundancy: self.redundancy(record),
            owner: self.owner(record),
            epoch: record.epoch,
            chunks: record.chunks_total(),
            components_in_sync: record.chunks.values().map(in_sync).sum::<usize>() as u32,
            components: record.chunks.keys().map(|index| record.policy.components(*index)).sum::<usize>()
                as u32,
        }
    }

    pub(super) fn chunk(&self, record: &ObjectRecord, index: ChunkIndex, chunk: &ChunkRecord) -> ChunkInfo {
        let resyncing = self.volume_report(record).map(|r| r.resyncs.as_slice()).unwrap_or_default();
        let component = |component: &Component| {
            let host = self.state.disks.get(&component.disk).map(|d| d.host);
            let state = match component.sync {
                _ if !self.is_disk_online(component.disk) => ComponentState::Absent,
                Sync::InSync => ComponentState::InSync,
                Sync::Stale { .. } if resyncing.iter().any(|r| r.disk == component.disk) => {
                    ComponentState::Resyncing
                }
                Sync::Stale { .. } => ComponentState::Stale,
            };
            ComponentInfo {
                disk: component.disk,
                host: host.unwrap_or(HostId::from_bytes([0; 16])),
                host_name: host.map_or_else(String::new, |host| host_name(&self.state, host)),
                state,
                stale_seq: match component.sync {
                    Sync::InSync => None,
                    Sync::Stale { stale_seq, .. } => Some(stale_seq),
                },
            }
        };
        ChunkInfo {
            index: index.base(),
            part: super::parts::part(record.policy, index),
            components: chunk.components.iter().map(component).collect(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ferro_protocol::api::Redundancy;
    use ferro_protocol::ids::{Epoch, Seq};
    use vsand_core::directory::{FeatureLevel, Lock};

    pub(in crate::plane) fn host_id(n: u8) -> HostId {
        HostId::from_bytes([n; 16])
    }

    pub(in crate::plane) fn disk_id(n: u8) -> DiskId {
        DiskId::from_bytes([n; 16])
    }

    /// Hosts 1 to 3 with a disk each, one volume in three copies that host 1 has open; all is well.
    pub(in crate::plane) fn healthy() -> View {
        let mut state = State { level: FeatureLevel::NEWEST, ..State::default() };
        let mut view_reports = BTreeMap::new();
        for n in 1..=3 {
            let host = HostRecord {
                id: host_id(n),
                name: format!("host{n}"),
                address: format!("10.0.0.{n}:7400").parse().unwrap(),
                fault_domain: format!("host{n}"),
                joined_unix_s: 1_000,
                lease: 5,
            };
            let disk = DiskRecord {
                id: disk_id(n),
                host: host.id,
                path: "/disk".to_owned(),
                capacity_extents: 1_000,
                used_extents: 10,
                health: DiskHealth::Healthy,
            };
            let report = DiskReport {
                extents: 1_000,
                extents_used: 12,
                objects: vec![(ObjectId::from_bytes([7; 16]), 12)],
                ..DiskReport::new(disk.id)
            };
            let report = HostReport {
                version: "1".to_owned(),
                certificate_expires_unix_s: 10_000_000,
                volumes: Vec::new(),
                disks: vec![report],
                feature_level_known: FeatureLevel::NEWEST,
            };
            view_reports.insert(host.id, report);
            state.hosts.insert(host.id, host);
            state.disks.insert(disk.id, disk);
        }
        let components = (1..=3).map(|n| Component { disk: disk_id(n), sync: Sync::InSync }).collect();
        let record = ObjectRecord {
            id: ObjectId::from_bytes([7; 16]),
            name: "root".parse().unwrap(),
            size_bytes: 1 << 30,
            policy: Policy::Mirror { copies: 3 },
            content: Content::Whole,
            epoch: Epoch(1),
            lock: Some(Lock {
                host: host_id(1),
                kind: LockKind::Exclusive { read_only: false },
                since_unix_s: 1_000,
            }),
            chunks: BTreeMap::from([(ChunkIndex(0), ChunkRecord { components })]),
            created_unix_s: 1_000,
            revision: 1,
        };
        state.names.insert(record.name.clone(), record.id);
        state.objects.insert(record.id, Arc::new(record));
        View {
            state: Arc::new(state),
            me: host_id(1),
            leader: Some(host_id(1)),
            voters: (1..=3).map(host_id).collect(),
            quorum: true,
            removed: false,
            silence: (1..=3).map(|n| (host_id(n), Duration::from_secs(1))).collect(),
            silence_max: Duration::from_secs(6),
            reports: view_reports,
            sockets: BTreeMap::new(),
            repair_delay_s: 3_600,
            scrub_every_days: 14,
            limits: LimitBook::default(),
            unix_s: 2_000,
        }
    }

    /// Host `n` is dead.
    pub(in crate::plane) fn kill(view: &mut View, n: u8) {
        view.silence.insert(host_id(n), Duration::from_secs(30));
        view.reports.remove(&host_id(n));
    }

    impl View {
        /// Changes the one volume.
        pub(in crate::plane) fn change_volume(&mut self, change: impl FnOnce(&mut ObjectRecord)) {
            let state = Arc::make_mut(&mut self.state);
            change(Arc::make_mut(state.objects.values_mut().next().unwrap()));
        }
    }

    /// The same with the volume in two data shards on hosts 1 and 2 and one of parity on 3, its log on 1 and 3.
    pub(in crate::plane) fn parity() -> View {
        let mut view = healthy();
        view.change_volume(|record| {
            record.policy = Policy::Parity { data: 2, parity: 1 };
            let on = |disks: &[u8]| {
                let components = disks.iter().map(|n| Component { disk: disk_id(*n), sync: Sync::InSync });
                ChunkRecord { components: components.collect() }
            };
            let places: [&[u8]; 4] = [&[1], &[2], &[3], &[1, 3]];
            let records = record.policy.records(ChunkIndex(0)).zip(places.map(on));
            record.chunks = records.collect();
        });
        view
    }

    pub(in crate::plane) fn stale(view: &mut View, n: u8, stale_seq: u64) {
        view.change_volume(|record| {
            for component in record.chunks.values_mut().flat_map(|c| &mut c.components) {
                if component.disk == disk_id(n) {
                    component.sync = Sync::Stale { stale_seq: Seq(stale_seq), since_unix_s: 1_900 };
                }
            }
        });
    }

    fn redundancy(view: &View) -> Redundancy {
        view.volumes()[0].redundancy
    }

    #[test]
    fn redundancy_follows_hosts_and_components() {
        let mut view = healthy();
        assert_eq!(redundancy(&view), Redundancy::Healthy);
        assert_eq!(view.volumes()[0].used_bytes, Some(12 << 20));

        kill(&mut view, 3);
        assert_eq!(redundancy(&view), Redundancy::Degraded, "whether or not a write has missed it yet");
        assert_eq!(view.volumes()[0].used_bytes, None);
        stale(&mut view, 3, 5);
        assert_eq!(redundancy(&view), Redundancy::Degraded);
        kill(&mut view, 2);
        assert_eq!(redundancy(&view), Redundancy::Degraded);
        view.me = host_id(9);
        kill(&mut view, 1);
        assert_eq!(redundancy(&view), Redundancy::Unavailable);

        let mut view = healthy();
        stale(&mut view, 3, 5);
        assert_eq!(redundancy(&view), Redundancy::Resyncing, "its host is back");
        let report = view.reports.remove(&host_id(3)).unwrap();
        assert_eq!(redundancy(&view), Redundancy::Degraded, "its lease runs, but it does not answer");
        view.reports.insert(host_id(3), report);
        let state = Arc::make_mut(&mut view.state);
        Arc::make_mut(state.objects.values_mut().next().unwrap()).lock = None;
        assert_eq!(redundancy(&view), Redundancy::Degraded, "nobody repairs it yet");
    }

    #[test]
    fn without_a_quorum_an_answer_counts_and_not_the_lease() {
        let mut view = healthy();
        view.quorum = false;
        for n in 1..=3 {
            view.silence.insert(host_id(n), Duration::from_secs(100));
        }
        view.reports.remove(&host_id(3));
        let states: Vec<HostState> = view.hosts().into_iter().map(|h| h.state).collect();
        assert_eq!(states, [HostState::Online, HostState::Online, HostState::Offline]);
    }

    #[test]
    fn a_disk_that_its_host_can_not_open_is_offline_with_the_reason() {
        let mut view = healthy();
        view.reports.get_mut(&host_id(2)).unwrap().disks[0].failure = Some("no such directory".to_owned());
        let disks = view.disks();
        assert_eq!(disks[1].state, DiskState::Offline);
        assert_eq!(disks[1].reason.as_deref(), Some("no such directory"));
        assert_eq!(view.capacity().disks_online, 2);
        assert_eq!(redundancy(&view), Redundancy::Degraded);
    }
}
