//! A control plane in memory: just enough state for the verbs to mean something, with faults on demand.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ferro_protocol::api::{
    AddedDisk, ApiError, BootstrapRequest, BrokenLock, Capacity, CapacityReport, ChangedHost, ChunkInfo,
    ChunkPart, ClusterInfo, ComponentInfo, ComponentState, ConversionInfo, DiskCounters, DiskInfo, DiskState,
    Document, DocumentInfo, DocumentList, ErrorCode, EventList, Health, HealthCheck, HealthLevel,
    HealthReport, HostInfo, HostLevel, HostState, HostSupport, JoinRequest, JoinToken, LockInfo,
    MaintenanceInfo, MaintenanceMode, MissingPart, MuteRequest, ObjectDetails, ObjectInfo, OpenedVolume,
    OperationCounters, Policy, ProvisionRequest, PutDocument, Redundancy, Removal, ResyncList, Safety,
    ScrubList, ScrubRequest, SetHostRequest, Status, SupportFile, TokenInfo, TopSample, Transfer,
    TransferDirection, TransferEnded, TransferOutcome, UpgradeReport, UpgradeRequest, VolumeCounters,
    VolumeInfo, VolumeLimits, VolumePlacement,
};
use ferro_protocol::document::DocumentName;
use ferro_protocol::ids::{ChunkIndex, DiskId, Epoch, HostId, ObjectId, Seq, TransferId, VolumeName};
use vsand::api::control::{ByteSpan, ControlPlane, EventQuery, NewDisk, NewVolume, Result};
use vsand::api::fail;

use super::fixtures::{cluster, host, hosts, object_of, owner, resync_list, scrub_list};
use super::insight;

pub(crate) const HERE: HostId = HostId::from_bytes([1; 16]);
pub(crate) const THERE: HostId = HostId::from_bytes([2; 16]);
pub(crate) const DISK: DiskId = DiskId::from_bytes([0xd1; 16]);
/// The host name of [`HERE`].
pub(crate) const HERE_NAME: &str = "alpha";
/// More than this does not fit.
pub(crate) const ROOM: u64 = 1 << 40;

#[derive(Default)]
pub(crate) struct Memory(pub(crate) Mutex<State>, pub(crate) tokio::sync::watch::Sender<u64>);

#[derive(Default)]
pub(crate) struct State {
    pub(crate) volumes: BTreeMap<VolumeName, Volume>,
    pub(crate) disks: Vec<DiskInfo>,
    pub(crate) documents: BTreeMap<DocumentName, Document>,
    pub(crate) transfer: Option<(TransferId, VolumeName, TransferDirection)>,
    pub(crate) joined: bool,
    pub(crate) no_quorum: bool,
    /// Answer nothing.
    pub(crate) hang: bool,
    /// Fail the write after so many.
    pub(crate) writes_left: Option<u32>,
    pub(crate) write_delay: Duration,
    pub(crate) writes_begun: u32,
    pub(crate) writes: u32,
    pub(crate) discards: u32,
    pub(crate) samples: u64,
    pub(crate) mute: Option<MuteRequest>,
    /// Of host beta.
    pub(crate) maintenance: Option<MaintenanceInfo>,
    ids: u8,
}

pub(crate) struct Volume {
    pub(crate) info: VolumeInfo,
    pub(crate) data: Vec<u8>,
}

impl State {
    fn find(&mut self, name: &VolumeName) -> Result<&mut Volume> {
        self.volumes.get_mut(name).ok_or_else(|| fail::volume_not_found(name))
    }

    fn closed(&mut self, name: &VolumeName) -> Result<&mut Volume> {
        let volume = self.find(name)?;
        match &volume.info.owner {
            Some(owner) => Err(fail::object_in_use(name, &owner.host_name)),
            None => Ok(volume),
        }
    }

    fn writable(&self, what: &str) -> Result<()> {
        if self.no_quorum { Err(fail::no_quorum(what)) } else { Ok(()) }
    }

    fn at_revision(&self, name: &DocumentName, basis: u64) -> Result<()> {
        self.writable("changing a document")?;
        let now = self.documents.get(name).map_or(0, |document| document.revision);
        if now == basis {
            return Ok(());
        }
        let message = format!("document {name} is at revision {now}");
        Err(ApiError::new(ErrorCode::Conflict, message, "read it again").with("revision", now))
    }

    fn transfer_volume(&mut self, name: &VolumeName, transfer: TransferId) -> Result<&mut Volume> {
        match &self.transfer {
            Some((id, of, _)) if *id == transfer && of == name => self.find(name),
            _ => Err(fail::transfer_not_found(name, transfer)),
        }
    }
}

impl Memory {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

#[async_trait]
impl ControlPlane for Memory {
    async fn health(&self) -> Result<HealthReport> {
        let state = self.state();
        let level = if state.mute.is_some() { HealthLevel::Ok } else { HealthLevel::Warning };
        Ok(HealthReport { level, checks: insight::checks(state.mute.as_ref()) })
    }

    async fn events(&self, query: EventQuery) -> Result<EventList> {
        Ok(insight::events(query))
    }

    async fn host_support(&self, host: HostId) -> Result<HostSupport> {
        if host == THERE {
            let message = "host beta does not give its part of a support bundle: it does not answer";
            return Err(ApiError::new(ErrorCode::HostUnreachable, message, "run it there"));
        }
        let file = |name: &str, text: &str| SupportFile { name: name.to_owned(), text: text.to_owned() };
        Ok(HostSupport {
            host,
            host_name: HERE_NAME.to_owned(),
            files: vec![file("version.txt", "vsand 0.1.0\n"), file("../../etc/passwd", "x\n")],
            missing: vec![MissingPart { what: "journal.txt".to_owned(), why: "no journald".to_owned() }],
        })
    }

    async fn capacity(&self) -> Result<CapacityReport> {
        Ok(insight::capacity(hosts()))
    }

    async fn enter_maintenance(&self, id: HostId, mode: MaintenanceMode) -> Result<HostInfo> {
        if id == HERE {
            let message = "without host alpha, 1 volumes could not be read, web among them";
            return Err(ApiError::new(ErrorCode::WouldLoseData, message, "wait for the resync to end"));
        }
        let remaining_bytes = 3 << 30;
        let info = MaintenanceInfo { mode, since_unix_s: 1, ready: false, remaining_bytes };
        self.state().maintenance = Some(info.clone());
        let mut beta = host(THERE, "beta", HostState::Online);
        beta.maintenance = Some(info);
        Ok(beta)
    }

    async fn exit_maintenance(&self, _: HostId) -> Result<HostInfo> {
        match self.state().maintenance.take() {
            Some(_) => Ok(host(THERE, "beta", HostState::Online)),
            None => Err(ApiError::new(ErrorCode::Conflict, "host beta is not in maintenance", "nothing")),
        }
    }

    async fn host_safety(&self, id: HostId) -> Result<Safety> {
        Ok(insight::safety(id == THERE))
    }

    async fn disk_safety(&self, disk: DiskId) -> Result<Safety> {
        if self.state().disks.iter().any(|d| d.id == disk) {
            return self.host_safety(THERE).await;
        }
        Err(fail::disk_not_found(disk))
    }

    async fn mute_check(&self, code: &str, request: MuteRequest) -> Result<HealthCheck> {
        if code != "host_offline" {
            let message = format!("there is no health check {code:?}");
            return Err(ApiError::new(ErrorCode::CheckNotFound, message, "see `vsanctl health -o wide`"));
        }
        let mut state = self.state();
        state.mute = Some(request);
        Ok(insight::checks(state.mute.as_ref()).remove(0))
    }

    async fn unmute_check(&self, code: &str) -> Result<()> {
        if self.state().mute.take().is_some() {
            return Ok(());
        }
        let message = format!("health check {code} is not muted");
        Err(ApiError::new(ErrorCode::CheckNotFound, message, "see `vsanctl health`"))
    }

    async fn metrics(&self) -> Result<String> {
        Ok("# EOF\n".to_owned())
    }

    async fn status(&self) -> Result<Status> {
        if self.state().hang {
            std::future::pending::<()>().await;
        }
        let state = self.state();
        Ok(Status {
            version: "0.1.0".to_owned(),
            health: match state.mute {
                None => Health { level: HealthLevel::Warning, reasons: vec![insight::offline()] },
                Some(_) => Health { level: HealthLevel::Ok, reasons: Vec::new() },
            },
            muted: state.mute.iter().map(|_| "host_offline".to_owned()).collect(),
            cluster: Some(cluster(!state.no_quorum)),
            hosts: hosts(),
            capacity: Capacity {
                total_bytes: 200 << 30,
                used_bytes: 24 << 30,
                provisioned_bytes: 40 << 30,
                disks_online: 1,
                disks: 2,
            },
            volumes: state.volumes.values().map(|volume| volume.info.clone()).collect(),
            resync: resync_list().totals,
        })
    }

    async fn bootstrap(&self, _: BootstrapRequest) -> Result<ClusterInfo> {
        let mut state = self.state();
        if std::mem::replace(&mut state.joined, true) {
            return Err(fail::already_in_cluster());
        }
        Ok(cluster(true))
    }

    async fn create_token(&self, valid_seconds: u64) -> Result<TokenInfo> {
        if !self.state().joined {
            return Err(fail::not_in_cluster());
        }
        Ok(TokenInfo {
            token: JoinToken(format!("ferro1-{valid_seconds}")),
            expires_unix_s: valid_seconds,
            addresses: vec!["10.0.0.1:7400".to_owned()],
            ca_fingerprint: "ab".repeat(32),
        })
    }

    async fn join(&self, request: JoinRequest) -> Result<ClusterInfo> {
        if request.token.0 != "ferro1-3600" {
            return Err(ApiError::new(ErrorCode::TokenRefused, "the join token was used", "make a new one"));
        }
        Ok(cluster(true))
    }

    async fn cluster(&self) -> Result<ClusterInfo> {
        Ok(cluster(true))
    }

    async fn upgrade(&self, request: UpgradeRequest) -> Result<UpgradeReport> {
        let hosts = hosts()
            .into_iter()
            .map(|host| HostLevel {
                id: host.id,
                name: host.name,
                version: "0.2.0".to_owned(),
                feature_level_known: 2,
            })
            .collect();
        Ok(UpgradeReport { from: 1, to: 2, done: !request.check, hosts })
    }

    async fn hosts(&self) -> Result<Vec<HostInfo>> {
        let mut hosts = hosts();
        let mut state = self.state();
        if let Some(maintenance) = &mut state.maintenance {
            hosts[1].maintenance = Some(maintenance.clone());
            // The next look finds it done.
            (maintenance.ready, maintenance.remaining_bytes) = (true, 0);
        }
        Ok(hosts)
    }

    async fn set_host(&self, id: HostId, request: SetHostRequest) -> Result<ChangedHost> {
        let SetHostRequest { name, fault_domain } = request;
        let state = if id == HERE { HostState::Online } else { HostState::Offline };
        let mut changed = host(id, name.as_deref().unwrap_or("beta"), state);
        changed.fault_domain = fault_domain.unwrap_or(changed.fault_domain);
        let shares = changed.fault_domain == HERE_NAME;
        let sharing_volumes =
            if shares { vec!["db".parse().unwrap(), "web".parse().unwrap()] } else { vec![] };
        Ok(ChangedHost { host: changed, sharing_volumes })
    }

    async fn keep_host(&self, _: HostId) -> Result<()> {
        Ok(())
    }

    async fn remove_host(&self, host: HostId, _: bool) -> Result<Removal> {
        if host == HERE {
            return Err(fail::would_lose_data("host alpha", "it holds the only good copy of volume web"));
        }
        Ok(Removal { removed: true, remaining_bytes: 0 })
    }

    async fn add_disk(&self, disk: NewDisk) -> Result<AddedDisk> {
        let path = disk.path.as_path();
        if path.starts_with("/nowhere") {
            return Err(fail::device_not_found(path));
        }
        if path.starts_with("/dev") && disk.confirm.as_deref() != Some("sdb") {
            return Err(fail::disk_not_empty(path, "sdb", "an ext4 file system"));
        }
        let size = disk.size_bytes.unwrap_or(100 << 30);
        if size < 1 << 30 {
            return Err(fail::disk_too_small(path, size, 1 << 30));
        }
        let disk = DiskInfo {
            id: DISK,
            host: HERE,
            host_name: HERE_NAME.to_owned(),
            path: path.display().to_string(),
            state: DiskState::Online,
            reason: None,
            capacity_bytes: size,
            used_bytes: 0,
            components: 0,
            leaving_bytes: None,
            checksum_errors: 0,
        };
        self.state().disks.push(disk.clone());
        Ok(AddedDisk { disk, adopted: false })
    }

    async fn disks(&self) -> Result<Vec<DiskInfo>> {
        Ok(self.state().disks.clone())
    }

    async fn remove_disk(&self, disk: DiskId, force: bool) -> Result<Removal> {
        let mut state = self.state();
        if force {
            state.disks.retain(|d| d.id != disk);
            return Ok(Removal { removed: true, remaining_bytes: 0 });
        }
        let found =
            state.disks.iter_mut().find(|d| d.id == disk).ok_or_else(|| fail::disk_not_found(disk))?;
        found.state = DiskState::Leaving;
        found.leaving_bytes = Some(3 << 30);
        Ok(Removal { removed: false, remaining_bytes: 3 << 30 })
    }

    async fn keep_disk(&self, disk: DiskId) -> Result<()> {
        let mut state = self.state();
        let found =
            state.disks.iter_mut().find(|d| d.id == disk).ok_or_else(|| fail::disk_not_found(disk))?;
        found.state = DiskState::Online;
        found.leaving_bytes = None;
        Ok(())
    }

    async fn revive_disk(&self, disk: DiskId) -> Result<DiskInfo> {
        let mut state = self.state();
        let found =
            state.disks.iter_mut().find(|d| d.id == disk).ok_or_else(|| fail::disk_not_found(disk))?;
        found.state = DiskState::Online;
        Ok(found.clone())
    }

    async fn objects(&self) -> Result<Vec<ObjectInfo>> {
        Ok(self.state().volumes.values().map(|volume| object_of(&volume.info)).collect())
    }

    async fn object(&self, object: ObjectId, from: ChunkIndex, _: u32) -> Result<ObjectDetails> {
        let state = self.state();
        let volume = state.volumes.values().find(|volume| volume.info.object == object);
        let volume = volume.ok_or_else(|| fail::object_not_found(object))?;
        let component = |disk: u8, state, stale_seq| ComponentInfo {
            disk: DiskId::from_bytes([disk; 16]),
            host: HERE,
            host_name: HERE_NAME.to_owned(),
            state,
            stale_seq,
        };
        // One chunk a page, three pages.
        let chunk = ChunkInfo {
            index: from,
            part: ChunkPart::Whole,
            components: vec![
                component(1, ComponentState::InSync, None),
                component(2, ComponentState::Stale, Some(Seq(7))),
            ],
        };
        let next_chunk = (from.0 < 2).then(|| ChunkIndex(from.0 + 1));
        Ok(ObjectDetails { object: object_of(&volume.info), chunks: vec![chunk], next_chunk })
    }

    async fn create_volume(&self, volume: NewVolume) -> Result<VolumeInfo> {
        let mut state = self.state();
        state.writable(&format!("creating volume {}", volume.name))?;
        if state.volumes.contains_key(&volume.name) {
            return Err(fail::name_taken(&volume.name));
        }
        if volume.policy.domains() > 2 {
            return Err(fail::policy_unsatisfiable(&volume.name, volume.policy, 2));
        }
        if volume.size_bytes > ROOM {
            return Err(fail::cluster_full(format!("volume {}", volume.name), volume.size_bytes, ROOM));
        }
        state.ids += 1;
        let info = VolumeInfo {
            name: volume.name.clone(),
            object: ObjectId::from_bytes([state.ids; 16]),
            size_bytes: volume.size_bytes,
            used_bytes: None,
            policy: volume.policy,
            redundancy: Redundancy::Healthy,
            failures_left: volume.policy.failures_to_tolerate(),
            reserve_percent: volume.reserve_percent,
            force_provisioning: volume.force_provisioning,
            limits: volume.limits,
            placement: volume.placement,
            misplaced: 0,
            owner: None,
            epoch: Epoch(0),
            read_only: false,
            socket: None,
            incomplete: false,
            conversion: None,
        };
        state.volumes.insert(volume.name, Volume { info: info.clone(), data: Vec::new() });
        Ok(info)
    }

    async fn volumes(&self) -> Result<Vec<VolumeInfo>> {
        Ok(self.state().volumes.values().map(|volume| volume.info.clone()).collect())
    }

    async fn volume(&self, name: &VolumeName) -> Result<VolumeInfo> {
        Ok(self.state().find(name)?.info.clone())
    }

    async fn open_volume(&self, name: &VolumeName, read_only: bool) -> Result<OpenedVolume> {
        let mut state = self.state();
        let info = &mut state.closed(name)?.info;
        let socket = format!("/run/vsand/volumes/{name}.sock");
        info.owner = Some(owner(HERE, HERE_NAME));
        info.epoch = Epoch(info.epoch.0 + 1);
        info.read_only = read_only;
        info.socket = Some(socket.clone());
        Ok(OpenedVolume {
            name: name.clone(),
            object: info.object,
            socket,
            size_bytes: info.size_bytes,
            read_only,
            queues: 4,
        })
    }

    async fn close_volume(&self, name: &VolumeName) -> Result<VolumeInfo> {
        let mut state = self.state();
        let info = &mut state.find(name)?.info;
        if info.owner.take().is_none() {
            return Err(fail::volume_not_open(name));
        }
        info.socket = None;
        Ok(info.clone())
    }

    async fn set_volume_policy(&self, name: &VolumeName, policy: Policy) -> Result<VolumeInfo> {
        let mut state = self.state();
        let info = &mut state.find(name)?.info;
        if policy.domains() > 3 {
            return Err(fail::policy_unsatisfiable(name, policy, 3));
        }
        // What lies elsewhere is copied, and here a quarter of it is.
        let in_place = std::mem::discriminant(&info.policy) == std::mem::discriminant(&policy);
        info.conversion = (!in_place).then_some(ConversionInfo {
            policy,
            copied_bytes: Some(info.size_bytes / 4),
            total_bytes: info.size_bytes,
            waits: None,
        });
        if in_place {
            info.policy = policy;
        }
        Ok(info.clone())
    }

    async fn limit_volume(&self, name: &VolumeName, limits: VolumeLimits) -> Result<VolumeInfo> {
        let mut state = self.state();
        let info = &mut state.find(name)?.info;
        info.limits = limits;
        Ok(info.clone())
    }

    async fn place_volume(&self, name: &VolumeName, placement: VolumePlacement) -> Result<VolumeInfo> {
        let mut state = self.state();
        let info = &mut state.find(name)?.info;
        // As if one copy were elsewhere already.
        info.misplaced = u32::from(!placement.is_none()) * 2;
        info.placement = placement;
        Ok(info.clone())
    }

    async fn provision_volume(&self, name: &VolumeName, request: ProvisionRequest) -> Result<VolumeInfo> {
        let mut state = self.state();
        let info = &mut state.find(name)?.info;
        info.reserve_percent = request.reserve_percent.unwrap_or(info.reserve_percent);
        info.force_provisioning = request.force.unwrap_or(info.force_provisioning);
        Ok(info.clone())
    }

    async fn resize_volume(&self, name: &VolumeName, size_bytes: u64) -> Result<VolumeInfo> {
        let mut state = self.state();
        let info = &mut state.find(name)?.info;
        if size_bytes < info.size_bytes {
            return Err(fail::shrink_refused(name, info.size_bytes, size_bytes));
        }
        info.size_bytes = size_bytes;
        Ok(info.clone())
    }

    async fn delete_volume(&self, name: &VolumeName) -> Result<()> {
        let mut state = self.state();
        state.closed(name)?;
        state.volumes.remove(name);
        Ok(())
    }

    async fn begin_transfer(
        &self,
        name: &VolumeName,
        direction: TransferDirection,
        image_bytes: Option<u64>,
    ) -> Result<Transfer> {
        let mut state = self.state();
        let volume = state.closed(name)?;
        let size_bytes = volume.info.size_bytes;
        if image_bytes.is_some_and(|image| image > size_bytes) {
            return Err(fail::image_too_large(name, size_bytes, image_bytes.unwrap_or(0)));
        }
        volume.info.owner = Some(owner(HERE, HERE_NAME));
        volume.info.epoch = Epoch(volume.info.epoch.0 + 1);
        volume.info.incomplete |= direction == TransferDirection::Import;
        volume.data.resize(size_bytes as usize, 0);
        state.ids += 1;
        let id = TransferId::from_bytes([state.ids; 16]);
        state.transfer = Some((id, name.clone(), direction));
        Ok(Transfer { id, volume: name.clone(), direction, size_bytes, idle_seconds_max: 60 })
    }

    async fn read_transfer(&self, name: &VolumeName, transfer: TransferId, span: ByteSpan) -> Result<Bytes> {
        let mut state = self.state();
        let volume = state.transfer_volume(name, transfer)?;
        let range = span.offset as usize..(span.offset + span.length) as usize;
        Ok(Bytes::copy_from_slice(&volume.data[range]))
    }

    async fn write_transfer(
        &self,
        name: &VolumeName,
        transfer: TransferId,
        offset: u64,
        data: Bytes,
    ) -> Result<()> {
        let delay = {
            let mut state = self.state();
            state.writes_begun += 1;
            state.write_delay
        };
        tokio::time::sleep(delay).await;
        let mut state = self.state();
        state.writes += 1;
        if let Some(left) = state.writes_left {
            state.writes_left = Some(left.saturating_sub(1));
            if left == 0 {
                let message = format!("writing volume {name} at {offset}: the last good disk failed");
                return Err(ApiError::new(ErrorCode::DiskFailed, message, "see `vsanctl disk list`"));
            }
        }
        let volume = state.transfer_volume(name, transfer)?;
        volume.data[offset as usize..][..data.len()].copy_from_slice(&data);
        Ok(())
    }

    async fn discard_transfer(&self, name: &VolumeName, transfer: TransferId, span: ByteSpan) -> Result<()> {
        let mut state = self.state();
        state.discards += 1;
        let volume = state.transfer_volume(name, transfer)?;
        volume.data[span.offset as usize..][..span.length as usize].fill(0);
        Ok(())
    }

    async fn end_transfer(
        &self,
        name: &VolumeName,
        transfer: TransferId,
        outcome: TransferOutcome,
    ) -> Result<TransferEnded> {
        let mut state = self.state();
        let volume = state.transfer_volume(name, transfer)?;
        volume.info.owner = None;
        if outcome == TransferOutcome::Complete {
            volume.info.incomplete = false;
        }
        let incomplete = volume.info.incomplete;
        state.transfer = None;
        Ok(TransferEnded { incomplete })
    }

    async fn locks(&self) -> Result<Vec<LockInfo>> {
        let state = self.state();
        let held = state.volumes.values().filter_map(|volume| {
            let info = &volume.info;
            Some(LockInfo {
                object: info.object,
                volume: Some(info.name.clone()),
                owner: info.owner.clone()?,
                epoch: info.epoch,
                lease_running: info.name.as_str().starts_with("live"),
                lease_seconds: None,
            })
        });
        Ok(held.collect())
    }

    async fn break_lock(&self, object: ObjectId) -> Result<BrokenLock> {
        let mut state = self.state();
        let volume = state.volumes.values_mut().find(|volume| volume.info.object == object);
        let info = &mut volume.ok_or_else(|| fail::object_not_found(object))?.info;
        if info.name.as_str().starts_with("live") {
            let message = format!("the lease of the holder of volume {} still runs", info.name);
            return Err(ApiError::new(ErrorCode::LeaseRunning, message, "wait 12 s").with("seconds", 12));
        }
        let previous_owner = info.owner.take().ok_or_else(|| fail::lock_not_found(object))?;
        Ok(BrokenLock { object, volume: Some(info.name.clone()), previous_owner })
    }

    async fn documents(&self, prefix: &str, after: Option<u64>, wait: Duration) -> Result<DocumentList> {
        let mut changes = self.1.subscribe();
        let newer = |revision: &u64| after.is_none_or(|after| *revision > after);
        let _in_time = tokio::time::timeout(wait, changes.wait_for(newer)).await;
        let revision = *self.1.borrow();
        let state = self.state();
        let under = state.documents.values().filter(|d| d.name.as_str().starts_with(prefix));
        let info = |d: &Document| DocumentInfo {
            name: d.name.clone(),
            revision: d.revision,
            bytes: d.content.len() as u64,
        };
        Ok(DocumentList { revision, documents: under.map(info).collect() })
    }

    async fn document(&self, name: &DocumentName) -> Result<Document> {
        self.state().documents.get(name).cloned().ok_or_else(|| fail::document_not_found(name))
    }

    async fn put_document(&self, name: &DocumentName, basis: u64, content: String) -> Result<PutDocument> {
        let mut state = self.state();
        state.at_revision(name, basis)?;
        let revision = *self.1.borrow() + 1;
        let document = Document { name: name.clone(), revision, content };
        state.documents.insert(name.clone(), document);
        drop(state);
        self.1.send_replace(revision);
        Ok(PutDocument { revision })
    }

    async fn delete_document(&self, name: &DocumentName, basis: u64) -> Result<()> {
        let mut state = self.state();
        state.at_revision(name, basis)?;
        state.documents.remove(name);
        drop(state);
        self.1.send_modify(|revision| *revision += 1);
        Ok(())
    }

    async fn resyncs(&self) -> Result<ResyncList> {
        Ok(resync_list())
    }

    async fn scrubs(&self) -> Result<ScrubList> {
        Ok(scrub_list())
    }

    async fn change_scrubs(&self, request: &ScrubRequest) -> Result<ScrubList> {
        let mut list = scrub_list();
        list.scrubs.retain(|scrub| request.volume.as_ref().is_none_or(|volume| *volume == scrub.volume));
        match &request.volume {
            Some(volume) if list.scrubs.is_empty() => Err(fail::volume_not_found(volume)),
            _ => Ok(list),
        }
    }

    async fn top(&self) -> Result<TopSample> {
        let mut state = self.state();
        state.samples += 1;
        let n = state.samples;
        let counters = OperationCounters {
            reads: n * 1000,
            read_bytes: n * 4_096_000,
            read_us_sum: n * 180_000,
            ..OperationCounters::default()
        };
        Ok(TopSample {
            at_us: n * 1_000_000,
            host_name: HERE_NAME.to_owned(),
            volumes: vec![VolumeCounters { name: "web".parse().unwrap(), counters }],
            disks: vec![DiskCounters { id: DISK, path: "/disk0".to_owned(), counters }],
        })
    }
}
