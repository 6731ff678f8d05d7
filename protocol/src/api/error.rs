//! What went wrong: one body for every failure, with a code for machines and two sentences for people.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of every answer whose status is not 2xx.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ApiError {
    /// What kind of failure; stable, for programs.
    pub code: ErrorCode,
    /// What failed, and for which object.
    pub message: String,
    /// What to do about it.
    pub next_step: String,
    /// Further facts, by name; which ones depends on the code.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
    /// Every single fault, if it was several things that were checked together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FaultLine>,
}

/// One fault of several.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct FaultLine {
    /// What kind of thing it is at, such as `port group`.
    pub kind: String,
    /// The thing's name.
    pub name: String,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for FaultLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, name, problem } = self;
        if name.is_empty() { write!(f, "{kind}: {problem}") } else { write!(f, "{kind} {name:?}: {problem}") }
    }
}

impl ApiError {
    /// A failure: what failed for which object, and what to do next.
    pub fn new(code: ErrorCode, message: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            next_step: next_step.into(),
            details: BTreeMap::new(),
            faults: Vec::new(),
        }
    }

    /// The same with one more fact.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.details.insert(name.to_owned(), value.to_string());
        self
    }

    /// The same with every single fault.
    #[must_use]
    pub fn with_faults(mut self, faults: Vec<FaultLine>) -> Self {
        self.faults = faults;
        self
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.next_step)
    }
}

impl std::error::Error for ApiError {}

/// What kind of failure. Codes are only ever added; a client treats one it does not know by the HTTP status.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request can't be understood: bad JSON, a missing or unknown field, an offset that is not whole blocks.
    BadRequest,
    /// No such path, or no such method on it.
    NoSuchRoute,
    /// Not a name that a volume can have.
    BadName,
    /// A size of zero, over the limit, or not of whole blocks.
    BadSize,
    /// Not a policy.
    BadPolicy,
    /// Limits that would stop a guest, or are none.
    BadLimits,
    /// Not a place where a volume's data could rather be.
    BadPlacement,
    /// Not a path that a disk can be at.
    BadPath,
    /// The network can't be configured like this. `faults` has all that is wrong.
    InvalidNetwork,
    /// Not a socket, interface or number of queues that a port can be attached to.
    BadAttachment,
    /// Not a frame.
    BadFrame,
    /// A VM can't be like this. `faults` has all that is wrong.
    InvalidVm,

    /// No such host in the cluster.
    HostNotFound,
    /// No such disk in the cluster, or no such device on the host.
    DiskNotFound,
    /// No such object.
    ObjectNotFound,
    /// No such volume.
    VolumeNotFound,
    /// Nobody holds a lock on this object.
    LockNotFound,
    /// No such document in the cluster directory.
    DocumentNotFound,
    /// No such health check, or it is not muted.
    CheckNotFound,
    /// No such import or export; it may have ended because nobody used it.
    TransferNotFound,
    /// No such switch.
    SwitchNotFound,
    /// No such port group.
    GroupNotFound,
    /// No such port.
    PortNotFound,
    /// No such uplink on this host.
    UplinkNotFound,
    /// No such mirror.
    MirrorNotFound,
    /// The address is not frozen.
    MacNotFrozen,
    /// No such revision waits to be confirmed.
    RevisionNotFound,
    /// No such VM.
    VmNotFound,
    /// The VM has no such disk or network card.
    DeviceNotFound,
    /// There is no log of that VM's console.
    LogNotFound,

    /// Another volume has this name.
    NameTaken,
    /// A host has the object open, or an import or export is using it.
    ObjectInUse,
    /// The volume is not open on this host.
    VolumeNotOpen,
    /// This daemon belongs to a cluster already.
    AlreadyInCluster,
    /// The disk belongs to a cluster already.
    DiskInUse,
    /// The device holds a file system or partitions. `details`: `device` (the name to type back), `found` (what it holds).
    DiskNotEmpty,
    /// The disk belongs to another cluster.
    DiskForeign,
    /// Something else changed the same thing meanwhile. `details` of a document: `revision`, the one it is at.
    Conflict,
    /// The holder's lease may still be running, so its lock can't be broken yet. `details`: `seconds`, where known.
    LeaseRunning,
    /// The volume holds an import that was never completed.
    VolumeIncomplete,
    /// The volume is open read-only, or the transfer is an export.
    ReadOnly,
    /// The port is attached to something else already.
    PortAttached,
    /// The port is not attached to this host.
    PortNotAttached,
    /// The VM has to be paused first.
    NotPaused,
    /// The VM has to be off for this. `details`: `state`, `host`.
    VmNotOff,
    /// The VM has to run for this. `details`: `state`.
    VmNotRunning,
    /// The VM is on another host. `details`: `host`.
    VmElsewhere,

    /// Not enough hosts, fault domains or disks for the policy.
    PolicyUnsatisfiable,
    /// A volume that is kept as this one can't become one that is kept so at the cluster's feature level.
    PolicyNotConvertible,
    /// The cluster is at a feature level, or a host of a release, that does not have this.
    UpgradeNeeded,
    /// The disks have no room for this.
    ClusterFull,
    /// The disk is below the least size.
    DiskTooSmall,
    /// Volumes only grow.
    ShrinkRefused,
    /// The image is larger than the volume.
    ImageTooLarge,
    /// It would leave an object without a good copy, or without the copies that its policy asks for.
    WouldLoseData,
    /// The join token is malformed, forged, expired or was used.
    TokenRefused,
    /// A bound on how many of something there may be.
    LimitReached,
    /// The host has not so many processors, or not so much memory left. `details`: what was wanted, what there is, what is free.
    NoCapacity,
    /// The host can't run VMs like this: no KVM, no QEMU. `details`: `vmm`.
    NotSupported,

    /// This daemon is in no cluster yet.
    NotInCluster,
    /// The cluster directory has no quorum, so nothing can be changed.
    NoQuorum,
    /// No good copy of the data can be reached.
    DataUnavailable,
    /// Another host is needed and does not answer.
    HostUnreachable,
    /// The daemon is starting or stopping, or busy.
    Unavailable,
    /// It was not done in time; it may still happen.
    TimedOut,

    /// A disk failed.
    DiskFailed,
    /// A socket or an interface can't be used.
    DeviceFailed,
    /// The vmm could not be started, ended at once, or does not answer. `details`: `log`, the end of what it said.
    VmmFailed,
    /// An input or output error that is none of the above.
    Io,
    /// A fault of the daemon's own.
    Internal,
    /// A code that this client does not know.
    #[serde(other)]
    Unknown,
}

/// Codes by what the caller can do about them. The tools have an exit code for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorClass {
    /// Ask differently.
    Usage,
    /// It is not there.
    NotFound,
    /// It is in the way of something that is there; change that first.
    Conflict,
    /// Policy or capacity forbids it.
    Refused,
    /// Wait, or bring hosts back.
    Unavailable,
    /// It took too long.
    TimedOut,
    /// It broke.
    Failure,
}

impl ErrorCode {
    /// What the caller can do about it.
    pub const fn class(self) -> ErrorClass {
        match self {
            Self::BadRequest
            | Self::NoSuchRoute
            | Self::BadName
            | Self::BadSize
            | Self::BadPolicy
            | Self::BadLimits
            | Self::BadPlacement
            | Self::BadPath
            | Self::InvalidNetwork
            | Self::BadAttachment
            | Self::BadFrame
            | Self::InvalidVm => ErrorClass::Usage,
            Self::HostNotFound
            | Self::DiskNotFound
            | Self::ObjectNotFound
            | Self::VolumeNotFound
            | Self::LockNotFound
            | Self::DocumentNotFound
            | Self::CheckNotFound
            | Self::TransferNotFound
            | Self::SwitchNotFound
            | Self::GroupNotFound
            | Self::PortNotFound
            | Self::UplinkNotFound
            | Self::MirrorNotFound
            | Self::MacNotFrozen
            | Self::RevisionNotFound
            | Self::VmNotFound
            | Self::DeviceNotFound
            | Self::LogNotFound => ErrorClass::NotFound,
            Self::NameTaken
            | Self::ObjectInUse
            | Self::VolumeNotOpen
            | Self::AlreadyInCluster
            | Self::DiskInUse
            | Self::DiskNotEmpty
            | Self::DiskForeign
            | Self::Conflict
            | Self::LeaseRunning
            | Self::VolumeIncomplete
            | Self::ReadOnly
            | Self::PortAttached
            | Self::PortNotAttached
            | Self::NotPaused
            | Self::VmNotOff
            | Self::VmNotRunning
            | Self::VmElsewhere => ErrorClass::Conflict,
            Self::PolicyUnsatisfiable
            | Self::PolicyNotConvertible
            | Self::UpgradeNeeded
            | Self::ClusterFull
            | Self::DiskTooSmall
            | Self::ShrinkRefused
            | Self::ImageTooLarge
            | Self::WouldLoseData
            | Self::TokenRefused
            | Self::LimitReached
            | Self::NoCapacity
            | Self::NotSupported => ErrorClass::Refused,
            Self::NotInCluster
            | Self::NoQuorum
            | Self::DataUnavailable
            | Self::HostUnreachable
            | Self::Unavailable => ErrorClass::Unavailable,
            Self::TimedOut => ErrorClass::TimedOut,
            Self::DiskFailed
            | Self::DeviceFailed
            | Self::VmmFailed
            | Self::Io
            | Self::Internal
            | Self::Unknown => ErrorClass::Failure,
        }
    }

    /// The status of an answer with this code.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::NoSuchRoute => 404,
            _ => match self.class() {
                ErrorClass::Usage => 400,
                ErrorClass::NotFound => 404,
                ErrorClass::Conflict => 409,
                ErrorClass::Refused => 422,
                ErrorClass::Unavailable => 503,
                ErrorClass::TimedOut => 504,
                ErrorClass::Failure => 500,
            },
        }
    }
}
