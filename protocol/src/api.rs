//! Types of the local HTTP API that `vsand` serves on its Unix socket and `vsanctl` speaks; those of `vswitchd` and `vswctl`
//! are in [`switch`], those of `hypervisord` and `vmctl` in [`vm`], those of each `vmm` in [`vmm`].
//!
//! Only the wire: what a request and an answer look like in JSON. Sizes are bytes, times are seconds unless the name
//! says otherwise, ids are UUIDs in their hyphenated form. New fields may be added to answers at any time and a client ignores
//! those it does not know; requests with unknown fields are refused, so that a misspelt option never passes silently.
//!
//! What it must not know: how the daemon does any of it, and how a terminal shows it.
//!
//! Versions of the API (the first element of each path):
//! - `v1`: the first.

mod capacity;
mod cluster;
mod disk;
mod document;
mod error;
mod event;
mod health;
mod limits;
mod maintenance;
mod object;
mod placement;
mod policy;
mod scrub;
mod size;
mod status;
mod support;
pub mod switch;
mod transfer;
pub mod vm;
pub mod vmm;
mod volume;

pub use capacity::{
    CapacityReport, CapacityTotals, HostCapacity, LOSS_VOLUMES_MAX, LossForecast, LossKind, PolicyCapacity,
};
pub use cluster::{
    BootstrapRequest, ChangedHost, ClusterInfo, HostInfo, HostLevel, HostList, HostRole, HostState,
    JoinRequest, JoinToken, Removal, SetHostRequest, TOKEN_SECONDS_DEFAULT, TOKEN_SECONDS_MAX, TokenInfo,
    TokenRequest, UpgradeReport, UpgradeRequest,
};
pub use disk::{AddDiskRequest, AddedDisk, DiskInfo, DiskList, DiskState};
pub use document::{DOCUMENTS_WAIT_MAX_S, Document, DocumentInfo, DocumentList, PutDocument};
pub use error::{ApiError, ErrorClass, ErrorCode, FaultLine};
pub use event::{EVENTS_MAX, EventInfo, EventKind, EventLevel, EventList, EventWitness};
pub use health::{
    HealthCheck, HealthMute, HealthReport, MUTE_REASON_BYTES_MAX, MUTE_SECONDS_MAX, MUTE_SECONDS_MIN,
    MuteRequest,
};
pub use limits::{BadLimits, LIMIT_BURST_MAX, LIMIT_BYTES_MIN, LIMIT_IOPS_MIN, VolumeLimits};
pub use maintenance::{MaintenanceInfo, MaintenanceMode, MaintenanceRequest, PossibleAction, Safety};
pub use object::{
    BrokenLock, CHUNKS_PAGE_MAX, ChunkInfo, ChunkPart, ComponentInfo, ComponentState, LockInfo, LockList,
    ObjectDetails, ObjectInfo, ObjectList,
};
pub use placement::{BadPlacement, VolumePlacement};
pub use policy::{BadPolicy, MIRROR_COPIES_MAX, Policy, PolicySpec};
pub use scrub::{ScrubAction, ScrubInfo, ScrubList, ScrubRequest, ScrubState};
pub use size::{BadSize, format_size, parse_size};
pub use status::{
    Capacity, DiskCounters, Health, HealthLevel, HealthReason, OperationCounters, ResyncInfo, ResyncKind,
    ResyncList, ResyncState, ResyncTotals, Status, TopSample, VolumeCounters,
};
pub use support::{HostSupport, MissingPart, SupportFile};
pub use transfer::{
    BeginTransferRequest, DiscardRequest, Transfer, TransferDirection, TransferEnded, TransferOutcome,
};
pub use volume::{
    ConversionInfo, CreateVolumeRequest, OpenVolumeRequest, OpenedVolume, ProvisionRequest, Redundancy,
    ResizeVolumeRequest, SetPolicyRequest, VolumeInfo, VolumeList, VolumeOwner,
};

/// Where the daemon's socket is unless configured otherwise.
pub const SOCKET_DEFAULT: &str = "/run/vsand/api.sock";
/// The most bytes that one request of a transfer carries, either way.
pub const TRANSFER_BYTES_MAX: u64 = 4 << 20;
