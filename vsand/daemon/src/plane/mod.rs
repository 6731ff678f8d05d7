//! The control plane: what the API asks, done over the directory, the disks and the data loop of this host.
//!
//! ```text
//!   no member ──bootstrap / join──▶ member ──────────────▶ stop
//!               (one at a time, in a task of its own)
//! ```
//!
//! Reading builds a [`view::View`]: the directory's state, how long hosts have been silent, and the reports of those that
//! answer. Changing goes through [`Member`]; what must not be left half-done when a client goes away runs in a task of its own
//! ([`detached`]).
//!
//! What it must not know: HTTP, how the data loop works inside, Raft.

mod capacity;
mod cluster;
mod departures;
mod disks;
mod documents;
mod errors;
pub mod events;
mod health;
pub mod maintenance;
mod parts;
pub mod remote;
mod resync;
mod scrub;
pub mod support;
mod transfers;
mod upgrade;
pub(crate) mod view;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ferro_protocol::api::{
    AddedDisk, BootstrapRequest, BrokenLock, CapacityReport, ChangedHost, ClusterInfo, DiskInfo, Document,
    DocumentList, EventList, HealthCheck, HealthReport, HostInfo, HostSupport, JoinRequest, LockInfo,
    MaintenanceMode, MuteRequest, ObjectDetails, ObjectInfo, OpenedVolume, Policy, ProvisionRequest,
    PutDocument, Removal, ResyncList, Safety, ScrubList, ScrubRequest, SetHostRequest, Status, TokenInfo,
    TopSample, Transfer, TransferDirection, TransferEnded, TransferOutcome, UpgradeReport, UpgradeRequest,
    VolumeInfo, VolumeLimits, VolumePlacement,
};
use ferro_protocol::document::DocumentName;
use ferro_protocol::ids::{ChunkIndex, DiskId, HostId, ObjectId, TransferId, VolumeName};
use tokio::sync::watch;

use crate::api::control::{ByteSpan, ControlPlane, EventQuery, NewDisk, NewVolume, Result};
use crate::api::fail;
use crate::config::Config;
use crate::data::port::Command;
use crate::events::watch::Finding;
use crate::member::{Member, Membership, Start, StartError};
use transfers::Transfers;

/// The data loop turns many times a second; if it does not answer for so long it hangs.
const TURN_MAX: Duration = Duration::from_secs(5);

/// The control plane of this host.
pub struct Plane {
    config: Arc<Config>,
    /// There is none before bootstrap or join.
    member: Arc<watch::Sender<Option<Arc<Member>>>>,
    /// Bootstrap and join are done one at a time.
    founding: Arc<tokio::sync::Mutex<()>>,
    transfers: Arc<Transfers>,
}

impl Plane {
    /// The control plane; if this host is a member of a cluster it takes part again.
    pub async fn new(config: Arc<Config>) -> std::result::Result<Self, StartError> {
        let mut member = None;
        if let Some(membership) = Membership::load(&config.state_dir)? {
            if cluster::identity_dir(&config).is_member() {
                // A founder that was cut off before it made the directory makes it now.
                let bootstrap = membership.founder && !membership.took_part;
                let start = Start { config: Arc::clone(&config), membership, bootstrap };
                member = Some(Member::start(start).await?);
            } else {
                tracing::warn!(
                    "a bootstrap or join was cut off before this host was a member; it can be repeated"
                );
            }
        }
        Ok(Self {
            config,
            member: Arc::new(watch::Sender::new(member)),
            founding: Arc::default(),
            transfers: Arc::default(),
        })
    }

    fn current(&self) -> Option<Arc<Member>> {
        self.member.borrow().clone()
    }

    fn member(&self) -> Result<Arc<Member>> {
        self.current().ok_or_else(fail::not_in_cluster)
    }

    /// Waits until this host can't go on, and says why.
    pub async fn failed(&self) -> String {
        let mut changes = self.member.subscribe();
        loop {
            let member = changes.borrow_and_update().clone();
            if let Some(member) = member {
                return member.directory.stopped().await;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether the data loop answers; true if there is none yet.
    pub async fn turns(&self) -> bool {
        let Some(member) = self.current() else { return true };
        matches!(tokio::time::timeout(TURN_MAX, member.data.ask(Command::Snapshot)).await, Ok(Ok(_)))
    }

    /// Stops taking part. Returns the disks that did not answer and were left as they are.
    pub async fn stop(&self) -> Vec<DiskId> {
        match self.current() {
            Some(member) => member.stop().await,
            None => Vec::new(),
        }
    }
}

/// Runs to its end even if whoever waits for it goes away.
async fn detached<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(fail::internal("the request", error)),
    }
}

/// What health checks find now, muted or not.
pub(crate) async fn findings(member: &Member) -> Vec<Finding> {
    let found = health::findings(&cluster::view(member).await);
    let one = |f: health::Finding| Finding {
        found: (f.reason.code, f.subject),
        level: f.reason.level,
        message: f.reason.message,
    };
    found.into_iter().map(one).collect()
}

#[async_trait]
impl ControlPlane for Plane {
    async fn status(&self) -> Result<Status> {
        match self.current() {
            Some(member) => Ok(cluster::status(&member).await),
            None => Ok(cluster::status_without()),
        }
    }

    async fn health(&self) -> Result<HealthReport> {
        Ok(health::report(&cluster::view(&*self.member()?).await))
    }

    async fn mute_check(&self, code: &str, request: MuteRequest) -> Result<HealthCheck> {
        health::mutes::mute(&*self.member()?, code, &request).await
    }

    async fn unmute_check(&self, code: &str) -> Result<()> {
        health::mutes::unmute(&*self.member()?, code).await
    }

    async fn events(&self, query: EventQuery) -> Result<EventList> {
        Ok(events::list(&*self.member()?, query).await)
    }

    async fn host_support(&self, host: HostId) -> Result<HostSupport> {
        support::of_host(&*self.member()?, host).await
    }

    async fn capacity(&self) -> Result<CapacityReport> {
        let view = cluster::view(&*self.member()?).await;
        // Every chunk is looked at once for each host and disk: too long for a thread that others wait for.
        let made = tokio::task::spawn_blocking(move || capacity::report(&view)).await;
        made.map_err(|error| fail::internal("reckoning the capacity", error))
    }

    async fn enter_maintenance(&self, host: HostId, mode: MaintenanceMode) -> Result<HostInfo> {
        let member = self.member()?;
        detached(async move { maintenance::enter(&member, host, mode).await }).await
    }

    async fn exit_maintenance(&self, host: HostId) -> Result<HostInfo> {
        maintenance::exit(&*self.member()?, host).await
    }

    async fn host_safety(&self, host: HostId) -> Result<Safety> {
        maintenance::of_host(&cluster::view(&*self.member()?).await, host)
    }

    async fn disk_safety(&self, disk: DiskId) -> Result<Safety> {
        maintenance::of_disk(&cluster::view(&*self.member()?).await, disk)
    }

    async fn bootstrap(&self, request: BootstrapRequest) -> Result<ClusterInfo> {
        let (config, slot, founding) =
            (Arc::clone(&self.config), Arc::clone(&self.member), Arc::clone(&self.founding));
        detached(async move { cluster::bootstrap(config, &slot, &founding, request).await }).await
    }

    async fn create_token(&self, valid_seconds: u64) -> Result<TokenInfo> {
        let member = self.member()?;
        cluster::create_token(&member, valid_seconds).await
    }

    async fn join(&self, request: JoinRequest) -> Result<ClusterInfo> {
        let (config, slot, founding) =
            (Arc::clone(&self.config), Arc::clone(&self.member), Arc::clone(&self.founding));
        detached(async move { cluster::join(config, &slot, &founding, request).await }).await
    }

    async fn cluster(&self) -> Result<ClusterInfo> {
        Ok(cluster::info(&*self.member()?))
    }

    async fn upgrade(&self, request: UpgradeRequest) -> Result<UpgradeReport> {
        let member = self.member()?;
        detached(async move { upgrade::upgrade(&member, request.check).await }).await
    }

    async fn hosts(&self) -> Result<Vec<HostInfo>> {
        Ok(cluster::view(&*self.member()?).await.hosts())
    }

    async fn remove_host(&self, host: HostId, force: bool) -> Result<Removal> {
        let member = self.member()?;
        detached(async move { departures::host(&member, host, departures::how(force)).await }).await
    }

    async fn set_host(&self, host: HostId, request: SetHostRequest) -> Result<ChangedHost> {
        cluster::set_host(&*self.member()?, host, request).await
    }

    async fn keep_host(&self, host: HostId) -> Result<()> {
        departures::keep_host(&*self.member()?, host).await
    }

    async fn add_disk(&self, disk: NewDisk) -> Result<AddedDisk> {
        let member = self.member()?;
        detached(async move { disks::add(&member, disk).await }).await
    }

    async fn disks(&self) -> Result<Vec<DiskInfo>> {
        Ok(cluster::view(&*self.member()?).await.disks())
    }

    async fn remove_disk(&self, disk: DiskId, force: bool) -> Result<Removal> {
        let member = self.member()?;
        detached(async move { departures::disk(&member, disk, departures::how(force)).await }).await
    }

    async fn keep_disk(&self, disk: DiskId) -> Result<()> {
        departures::keep_disk(&*self.member()?, disk).await
    }

    async fn revive_disk(&self, disk: DiskId) -> Result<DiskInfo> {
        let member = self.member()?;
        detached(async move { departures::revive(&member, disk).await }).await
    }

    async fn objects(&self) -> Result<Vec<ObjectInfo>> {
        let view = cluster::view(&*self.member()?).await;
        Ok(view.state.objects.values().map(|record| view.object(record)).collect())
    }

    async fn object(&self, object: ObjectId, from: ChunkIndex, chunks_max: u32) -> Result<ObjectDetails> {
        volumes::object(&*self.member()?, object, from, chunks_max).await
    }

    async fn create_volume(&self, volume: NewVolume) -> Result<VolumeInfo> {
        volumes::create(&*self.member()?, volume).await
    }

    async fn volumes(&self) -> Result<Vec<VolumeInfo>> {
        Ok(cluster::view(&*self.member()?).await.volumes())
    }

    async fn volume(&self, name: &VolumeName) -> Result<VolumeInfo> {
        volumes::show(&*self.member()?, name).await
    }

    async fn open_volume(&self, name: &VolumeName, read_only: bool) -> Result<OpenedVolume> {
        let (member, name) = (self.member()?, name.clone());
        detached(async move { volumes::open(&member, &name, read_only).await }).await
    }

    async fn close_volume(&self, name: &VolumeName) -> Result<VolumeInfo> {
        let (member, name) = (self.member()?, name.clone());
        detached(async move { volumes::close(&member, &name).await }).await
    }

    async fn set_volume_policy(&self, name: &VolumeName, policy: Policy) -> Result<VolumeInfo> {
        volumes::set_policy(&*self.member()?, name, policy).await
    }

    async fn limit_volume(&self, name: &VolumeName, limits: VolumeLimits) -> Result<VolumeInfo> {
        volumes::limit(&*self.member()?, name, limits).await
    }

    async fn place_volume(&self, name: &VolumeName, placement: VolumePlacement) -> Result<VolumeInfo> {
        volumes::place(&*self.member()?, name, placement).await
    }

    async fn provision_volume(&self, name: &VolumeName, request: ProvisionRequest) -> Result<VolumeInfo> {
        volumes::provision(&*self.member()?, name, request).await
    }

    async fn resize_volume(&self, name: &VolumeName, size_bytes: u64) -> Result<VolumeInfo> {
        volumes::resize(&*self.member()?, name, size_bytes).await
    }

    async fn delete_volume(&self, name: &VolumeName) -> Result<()> {
        volumes::delete(&*self.member()?, name).await
    }

    async fn begin_transfer(
        &self,
        name: &VolumeName,
        direction: TransferDirection,
        image_bytes: Option<u64>,
    ) -> Result<Transfer> {
        let (member, name, transfers) = (self.member()?, name.clone(), Arc::clone(&self.transfers));
        detached(async move { transfers::begin(&transfers, &member, &name, direction, image_bytes).await })
            .await
    }

    async fn read_transfer(&self, name: &VolumeName, transfer: TransferId, span: ByteSpan) -> Result<Bytes> {
        self.transfers.read(name, transfer, span).await
    }

    async fn write_transfer(
        &self,
        name: &VolumeName,
        transfer: TransferId,
        offset: u64,
        data: Bytes,
    ) -> Result<()> {
        self.transfers.write(name, transfer, offset, data).await
    }

    async fn discard_transfer(&self, name: &VolumeName, transfer: TransferId, span: ByteSpan) -> Result<()> {
        self.transfers.discard(name, transfer, span).await
    }

    async fn end_transfer(
        &self,
        name: &VolumeName,
        transfer: TransferId,
        outcome: TransferOutcome,
    ) -> Result<TransferEnded> {
        let (name, transfers) = (name.clone(), Arc::clone(&self.transfers));
        detached(async move { transfers.end(&name, transfer, outcome).await }).await
    }

    async fn locks(&self) -> Result<Vec<LockInfo>> {
        Ok(volumes::locks(&*self.member()?))
    }

    async fn break_lock(&self, object: ObjectId) -> Result<BrokenLock> {
        volumes::break_lock(&*self.member()?, object).await
    }

    async fn documents(&self, prefix: &str, after: Option<u64>, wait: Duration) -> Result<DocumentList> {
        documents::list(&*self.member()?, prefix, after, wait).await
    }

    async fn document(&self, name: &DocumentName) -> Result<Document> {
        documents::show(&*self.member()?, name)
    }

    async fn put_document(&self, name: &DocumentName, basis: u64, content: String) -> Result<PutDocument> {
        documents::put(&*self.member()?, name, basis, content).await
    }

    async fn delete_document(&self, name: &DocumentName, basis: u64) -> Result<()> {
        documents::delete(&*self.member()?, name, basis).await
    }

    async fn resyncs(&self) -> Result<ResyncList> {
        Ok(resync::list(&cluster::view(&*self.member()?).await))
    }

    async fn scrubs(&self) -> Result<ScrubList> {
        scrub::list(&*self.member()?)
    }

    async fn change_scrubs(&self, request: &ScrubRequest) -> Result<ScrubList> {
        scrub::act(&*self.member()?, request).await
    }

    async fn top(&self) -> Result<TopSample> {
        volumes::top(&*self.member()?).await
    }

    async fn metrics(&self) -> Result<String> {
        crate::metrics::text(self.current().as_deref()).await
    }
}
