//! What the API asks of the daemon: one method a verb, implemented over the directory, the stores and the owner.
//!
//! The handlers have checked everything that can be checked without knowing the cluster's state: names, sizes, policies and
//! paths are well-formed, offsets are whole blocks, lengths within their bounds. Whatever depends on state (does it exist,
//! is it open, is there room) is the implementation's to answer, with an [`ApiError`] that names the object and the next step
//! ([`crate::api::fail`] words the common ones). A method that fails leaves nothing half-made behind.
//!
//! A client may go away in the middle of a call and the future is then dropped at its next `await`: what must not be left
//! half-done runs in a task of its own.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ferro_protocol::api::{
    AddedDisk, ApiError, BootstrapRequest, BrokenLock, CapacityReport, ChangedHost, ClusterInfo, DiskInfo,
    Document, DocumentList, EventList, HealthCheck, HealthReport, HostInfo, HostSupport, JoinRequest,
    LockInfo, MaintenanceMode, MuteRequest, ObjectDetails, ObjectInfo, OpenedVolume, Policy,
    ProvisionRequest, PutDocument, Removal, ResyncList, Safety, ScrubList, ScrubRequest, SetHostRequest,
    Status, TokenInfo, TopSample, Transfer, TransferDirection, TransferEnded, TransferOutcome, UpgradeReport,
    UpgradeRequest, VolumeInfo, VolumeLimits, VolumePlacement,
};
use ferro_protocol::document::DocumentName;
use ferro_protocol::ids::{ChunkIndex, DiskId, HostId, ObjectId, TransferId, VolumeName};

/// An answer or why there is none.
pub type Result<T> = std::result::Result<T, ApiError>;

/// A volume to make.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewVolume {
    /// Its name.
    pub name: VolumeName,
    /// Its size: whole blocks, above zero, at most [`ferro_protocol::units::VOLUME_BYTES_MAX`].
    pub size_bytes: u64,
    /// How its data is kept.
    pub policy: Policy,
    /// How much of its size is kept for it, in percent: 0 to 100.
    pub reserve_percent: u8,
    /// It is made although there is no place for all its copies.
    pub force_provisioning: bool,
    /// What its guest may ask for at most.
    pub limits: VolumeLimits,
    /// Where it is rather kept.
    pub placement: VolumePlacement,
}

/// A disk to add.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewDisk {
    /// An absolute path without `..`.
    pub path: PathBuf,
    /// How much of it to use, above zero; all that is free, unless given.
    pub size_bytes: Option<u64>,
    /// What a person typed who was told that the device is not empty. It counts only if it is the device's name.
    pub confirm: Option<String>,
}

/// A part of a volume: whole blocks, at least one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ByteSpan {
    /// The first byte.
    pub offset: u64,
    /// How many. For a read or write at most [`ferro_protocol::api::TRANSFER_BYTES_MAX`]; `offset + length` does not overflow.
    pub length: u64,
}

/// Which events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EventQuery {
    /// Only those from then on, in milliseconds since 1970.
    pub since_ms: u64,
    /// The newest of them, 1 to [`ferro_protocol::api::EVENTS_MAX`].
    pub limit: u32,
    /// Only what this host saw.
    pub local: bool,
}

/// What the API asks of the daemon.
#[async_trait]
pub trait ControlPlane: Send + Sync + 'static {
    /// The cluster at a glance. Answers before there is a cluster and without a quorum too, from what is known here.
    async fn status(&self) -> Result<Status>;

    /// All health checks with what they find.
    async fn health(&self) -> Result<HealthReport>;
    /// Mute a check for [`ferro_protocol::api::MUTE_SECONDS_MIN`] to [`ferro_protocol::api::MUTE_SECONDS_MAX`].
    async fn mute_check(&self, code: &str, request: MuteRequest) -> Result<HealthCheck>;
    /// Show a muted check again.
    async fn unmute_check(&self, code: &str) -> Result<()>;

    /// What happened, from the logs of all hosts that answer soon.
    async fn events(&self, query: EventQuery) -> Result<EventList>;

    /// The room there is, what takes it, and what a loss would mean.
    async fn capacity(&self) -> Result<CapacityReport>;
    /// What a support bundle has of one host.
    async fn host_support(&self, host: HostId) -> Result<HostSupport>;

    /// Make a cluster with this host as its first member.
    async fn bootstrap(&self, request: BootstrapRequest) -> Result<ClusterInfo>;
    /// Make a join token that is good for this long, 1 to [`ferro_protocol::api::TOKEN_SECONDS_MAX`].
    async fn create_token(&self, valid_seconds: u64) -> Result<TokenInfo>;
    /// Become a member of the cluster that the token is from.
    async fn join(&self, request: JoinRequest) -> Result<ClusterInfo>;
    /// The cluster that this host is in.
    async fn cluster(&self) -> Result<ClusterInfo>;

    /// Raise the cluster's feature level to what all hosts know, or say whether that could be done.
    async fn upgrade(&self, request: UpgradeRequest) -> Result<UpgradeReport>;

    /// All hosts, by name.
    async fn hosts(&self) -> Result<Vec<HostInfo>>;
    /// Take a host out of the cluster: what its disks hold is copied elsewhere first, and it goes by itself afterwards.
    /// Refused if the other hosts can't keep all volumes as their policies ask. With `force` it goes at once, unless that
    /// would lose data.
    async fn remove_host(&self, host: HostId, force: bool) -> Result<Removal>;
    /// Change what a host is called or what fails together with it; at least one of both is given.
    async fn set_host(&self, host: HostId, request: SetHostRequest) -> Result<ChangedHost>;
    /// Let a host enter maintenance: refused if something could not be read without it, or if what the mode moves finds no
    /// place.
    async fn enter_maintenance(&self, host: HostId, mode: MaintenanceMode) -> Result<HostInfo>;
    /// End a host's maintenance.
    async fn exit_maintenance(&self, host: HostId) -> Result<HostInfo>;
    /// What it would mean if a host went now.
    async fn host_safety(&self, host: HostId) -> Result<Safety>;
    /// What it would mean if a disk went now.
    async fn disk_safety(&self, disk: DiskId) -> Result<Safety>;
    /// Keep a host that is leaving after all.
    async fn keep_host(&self, host: HostId) -> Result<()>;

    /// Give a disk of this host to the cluster.
    async fn add_disk(&self, disk: NewDisk) -> Result<AddedDisk>;
    /// All disks, by host and path.
    async fn disks(&self) -> Result<Vec<DiskInfo>>;
    /// Take a disk out of the cluster, as [`Self::remove_host`] does with a host.
    async fn remove_disk(&self, disk: DiskId, force: bool) -> Result<Removal>;
    /// Keep a disk that is leaving after all.
    async fn keep_disk(&self, disk: DiskId) -> Result<()>;
    /// Use a disk of this host again that was taken for dead, if it can be opened and its content is right now.
    async fn revive_disk(&self, disk: DiskId) -> Result<DiskInfo>;

    /// All objects.
    async fn objects(&self) -> Result<Vec<ObjectInfo>>;
    /// One object with at most `chunks_max` of its chunks (at most [`ferro_protocol::api::CHUNKS_PAGE_MAX`]), beginning at
    /// `from`.
    async fn object(&self, object: ObjectId, from: ChunkIndex, chunks_max: u32) -> Result<ObjectDetails>;

    /// Make a volume.
    async fn create_volume(&self, volume: NewVolume) -> Result<VolumeInfo>;
    /// All volumes, by name.
    async fn volumes(&self) -> Result<Vec<VolumeInfo>>;
    /// One volume.
    async fn volume(&self, name: &VolumeName) -> Result<VolumeInfo>;
    /// Take the volume's lock and serve it on a socket. Of a volume that is open here already in the same way: the same answer.
    async fn open_volume(&self, name: &VolumeName, read_only: bool) -> Result<OpenedVolume>;
    /// Drop the socket and give the lock back. The volume must be open on this host.
    async fn close_volume(&self, name: &VolumeName) -> Result<VolumeInfo>;
    /// Have the volume kept in another way, open or not: its components come and go from then on.
    async fn set_volume_policy(&self, name: &VolumeName, policy: Policy) -> Result<VolumeInfo>;
    /// Have the volume's guest ask for no more than this, from now on, open or not.
    async fn limit_volume(&self, name: &VolumeName, limits: VolumeLimits) -> Result<VolumeInfo>;
    /// Have the volume's data rather kept there, open or not.
    async fn place_volume(&self, name: &VolumeName, placement: VolumePlacement) -> Result<VolumeInfo>;
    /// Find room for the volume in another way, open or not. A percentage is at most 100.
    async fn provision_volume(&self, name: &VolumeName, request: ProvisionRequest) -> Result<VolumeInfo>;
    /// Grow the volume; whole blocks, at most the limit. The implementation refuses to shrink it.
    async fn resize_volume(&self, name: &VolumeName, size_bytes: u64) -> Result<VolumeInfo>;
    /// Delete the volume and its data, unless somebody has it open.
    async fn delete_volume(&self, name: &VolumeName) -> Result<()>;

    /// Take the volume's lock for an import or export. An import marks the volume incomplete first. `image_bytes` is the
    /// size of an image to import, where known: refused if the volume is smaller, before anything changes.
    async fn begin_transfer(
        &self,
        name: &VolumeName,
        direction: TransferDirection,
        image_bytes: Option<u64>,
    ) -> Result<Transfer>;
    /// Read exactly the span, whatever the transfer's direction.
    async fn read_transfer(&self, name: &VolumeName, transfer: TransferId, span: ByteSpan) -> Result<Bytes>;
    /// Write at `offset`: whole blocks, at most [`ferro_protocol::api::TRANSFER_BYTES_MAX`]. Done when it is on stable storage.
    async fn write_transfer(
        &self,
        name: &VolumeName,
        transfer: TransferId,
        offset: u64,
        data: Bytes,
    ) -> Result<()>;
    /// Make the span read as zeros and free its space. Done when that is on stable storage.
    async fn discard_transfer(&self, name: &VolumeName, transfer: TransferId, span: ByteSpan) -> Result<()>;
    /// End the transfer and give the lock back. A completed import clears the mark.
    async fn end_transfer(
        &self,
        name: &VolumeName,
        transfer: TransferId,
        outcome: TransferOutcome,
    ) -> Result<TransferEnded>;

    /// All locks.
    async fn locks(&self) -> Result<Vec<LockInfo>>;
    /// Take the lock of an object from a holder whose lease has surely ended.
    async fn break_lock(&self, object: ObjectId) -> Result<BrokenLock>;

    /// The documents whose names begin with `prefix`, as this host knows them; with `after`, once any document has changed
    /// after that revision, but after `wait` in any case.
    async fn documents(&self, prefix: &str, after: Option<u64>, wait: Duration) -> Result<DocumentList>;
    /// One document, as this host knows it.
    async fn document(&self, name: &DocumentName) -> Result<Document>;
    /// Make or replace a document (at most [`ferro_protocol::document::DOCUMENT_BYTES_MAX`]) that is at revision `basis`.
    async fn put_document(&self, name: &DocumentName, basis: u64, content: String) -> Result<PutDocument>;
    /// Delete a document that is at revision `basis`.
    async fn delete_document(&self, name: &DocumentName, basis: u64) -> Result<()>;

    /// All resyncs, running ones first.
    async fn resyncs(&self) -> Result<ResyncList>;
    /// The latest scrub of each volume, by name.
    async fn scrubs(&self) -> Result<ScrubList>;
    /// Start or stop scrubs; those of the volumes that were meant.
    async fn change_scrubs(&self, request: &ScrubRequest) -> Result<ScrubList>;
    /// This host's counters now.
    async fn top(&self) -> Result<TopSample>;
    /// This host's counters now, as Prometheus reads them (`OpenMetrics` text).
    async fn metrics(&self) -> Result<String>;
}
