//! What happened in the cluster.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::HostId;

/// The most events of one answer.
pub const EVENTS_MAX: u32 = 10_000;

/// How much an event matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventLevel {
    /// Good to know.
    Info,
    /// Redundancy or room was lost.
    Warning,
    /// Data could not be reached, or nothing could be changed.
    Critical,
}

/// What happened. Kinds are only ever added.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// `vsand` has started on a host.
    DaemonStarted,
    /// `vsand` has stopped on a host, because it was told to.
    DaemonStopped,
    /// A host was let into the cluster.
    HostJoined,
    /// A host has left the cluster for good.
    HostRemoved,
    /// A host's lease runs again.
    HostUp,
    /// A host's lease has ended.
    HostDown,
    /// A host is away for so long that what it holds is built elsewhere.
    HostGivenUp,
    /// A host is called otherwise, or fails together with others.
    HostChanged,
    /// A host is to leave.
    HostLeaving,
    /// A host that was leaving stays.
    HostStays,
    /// A host is in maintenance.
    MaintenanceEntered,
    /// A host is no longer in maintenance.
    MaintenanceLeft,
    /// The cluster's feature level was raised.
    LevelRaised,
    /// A disk was given to the cluster.
    DiskAdded,
    /// A disk is in another host, or elsewhere on the same.
    DiskMoved,
    /// A disk has failed.
    DiskDead,
    /// A disk that was taken for dead is used again.
    DiskRevived,
    /// A disk is to leave.
    DiskLeaving,
    /// A disk that was leaving stays.
    DiskStays,
    /// A disk has left the cluster.
    DiskRemoved,
    /// A volume was made.
    VolumeCreated,
    /// A volume and its data were deleted.
    VolumeDeleted,
    /// A volume has grown.
    VolumeResized,
    /// A volume's lock was taken: a host has it open, or imports or exports it.
    LockTaken,
    /// A volume's lock was given back.
    LockReleased,
    /// A volume's lock was taken from a host that is gone.
    LockBroken,
    /// A volume has another owner than before.
    OwnerChanged,
    /// Copies have missed writes.
    CopiesStale,
    /// Copies are being brought up to date.
    ResyncBegun,
    /// Copies are up to date, or were given up.
    ResyncEnded,
    /// The directory can't change anything.
    QuorumLost,
    /// The directory can change things again.
    QuorumRegained,
    /// A health check finds something that it did not find before.
    HealthRaised,
    /// A health check does not find something any more.
    HealthCleared,
    /// Blocks of a disk were bad, and were mended.
    BlocksMended,
    /// Blocks of a disk are bad, and could not be mended so far.
    BlocksBad,
    /// A disk errs too often: it is to leave by itself.
    DiskEvacuated,
    /// All of a volume was scrubbed.
    ScrubEnded,
    /// A volume was given another policy.
    PolicyChanged,
    /// Components were moved from fuller disks to emptier ones.
    Rebalanced,
    /// A kind that this version does not know.
    #[serde(other)]
    Unknown,
}

/// A host that saw an event, and which of its own that is: both together name it for good.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
pub struct EventWitness {
    /// The host.
    pub host: HostId,
    /// What it is called.
    pub host_name: String,
    /// Counted from 1 on that host.
    pub seq: u64,
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct EventInfo {
    /// When, in milliseconds since 1970 (UTC), by the clock of the first that saw it.
    pub at_unix_ms: u64,
    /// What happened.
    pub kind: EventKind,
    /// How much it matters.
    pub level: EventLevel,
    /// What it happened to: `host`, `disk`, `volume` or `cluster`, and the id of the first three.
    pub subject: String,
    /// The health check that it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    /// The same for people.
    pub message: String,
    /// Who saw it, the first of them first.
    pub seen_by: Vec<EventWitness>,
}

/// Events of all hosts that answered, put together.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct EventList {
    /// By time.
    pub events: Vec<EventInfo>,
    /// The hosts that did not answer: what only they saw is missing.
    pub silent_hosts: Vec<String>,
    /// Whether there are older ones that were asked for and left out.
    pub more: bool,
}
