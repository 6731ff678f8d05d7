//! Changes to the directory, and what became of them. Each is a compare-and-set: what the proposer believed stands in the
//! command, and where it no longer holds the command is refused and changes nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use ferro_protocol::document::DocumentName;
use ferro_protocol::ids::{ChunkIndex, DiskId, Epoch, HostId, ObjectId, Seq, VolumeName};
use serde::{Deserialize, Serialize};

use super::absence::Absence;
use super::level::FeatureLevel;
use super::load::Load;
use super::preference::Preference;
use super::provision::Provision;
use super::records::{Content, Departure, HostRecord, LockKind, ObjectRecord, Policy, TokenEntry};
pub use super::refused::{Refused, TokenRefused};

/// What an owner bases a change of its object's components on: a command of a former owner, or one that was overtaken, is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Basis {
    /// The object.
    pub object: ObjectId,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// The record's revision that the owner has seen.
    pub revision: u64,
}

/// One change of a chunk's in-sync set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SyncChange {
    /// The component missed a write (rule 6). Refused if it is the last one in sync; of a shard, if too few shards of its
    /// chunk would be left that have one in sync.
    Remove {
        /// The chunk.
        chunk: ChunkIndex,
        /// The component's disk.
        disk: DiskId,
        /// It has everything up to here.
        stale_seq: Seq,
    },
    /// The component has everything again (rule 7).
    Add {
        /// The chunk.
        chunk: ChunkIndex,
        /// The component's disk.
        disk: DiskId,
    },
}

/// What the owner of an object that is to become another does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ConversionStep {
    /// A new target is made, empty and owned as the object is; a former one goes. Refused while the object is imported or exported.
    Begin,
    /// The target goes: it was not filled.
    Drop,
    /// The target has everything, and takes the object's place. Refused while a component of it is missing or not in sync.
    End {
        /// The target.
        target: ObjectId,
    },
}

/// A change to the directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Command {
    /// A host joins, or says anew what it is called, where it listens and what would fail with it.
    PutHost {
        /// The host; its lease counter is kept if it was known.
        host: HostRecord,
    },
    /// A host leaves for good. Refused while data or locks depend on it.
    RemoveHost {
        /// The host.
        host: HostId,
        /// When, in seconds since 1970.
        unix_s: u64,
    },
    /// A host says that it lives.
    RenewLease {
        /// The host.
        host: HostId,
    },
    /// A disk is there: new, moved from another host, or grown.
    PutDisk {
        /// The disk.
        disk: DiskId,
        /// The host it is in now.
        host: HostId,
        /// Where on that host.
        path: String,
        /// Its size in extents.
        capacity_extents: u64,
        /// Extents in use.
        used_extents: u64,
    },
    /// How full disks are.
    ReportUsage {
        /// Extents in use, a disk each.
        used_extents: Vec<(DiskId, u64)>,
    },
    /// A disk has failed.
    DiskDied {
        /// The disk.
        disk: DiskId,
        /// What its host saw.
        reason: String,
    },
    /// A disk leaves for good. Refused while data depends on it.
    RemoveDisk {
        /// The disk.
        disk: DiskId,
        /// When, in seconds since 1970.
        unix_s: u64,
    },
    /// A new, empty object.
    CreateObject {
        /// Its id, chosen by the proposer.
        object: ObjectId,
        /// Its name.
        name: VolumeName,
        /// Its size.
        size_bytes: u64,
        /// How it is kept.
        policy: Policy,
        /// When, in seconds since 1970.
        unix_s: u64,
    },
    /// An object and all its data go. Refused while it is open.
    DeleteObject {
        /// The object.
        object: ObjectId,
    },
    /// An object grows.
    ResizeObject {
        /// The object.
        object: ObjectId,
        /// Its new size, not below the old one.
        size_bytes: u64,
    },
    /// An import begins or ends.
    SetContent {
        /// The object, epoch and revision.
        object: ObjectId,
        /// The importing owner's epoch.
        epoch: Epoch,
        /// What it is now.
        content: Content,
    },
    /// A host takes an object (rule 2): the epoch becomes one higher.
    Acquire {
        /// The object.
        object: ObjectId,
        /// The epoch that the host has seen.
        epoch: Epoch,
        /// The host.
        host: HostId,
        /// What for.
        kind: LockKind,
        /// When, in seconds since 1970.
        unix_s: u64,
    },
    /// The owner gives the object back.
    Release {
        /// The object.
        object: ObjectId,
        /// The owner's epoch.
        epoch: Epoch,
        /// The owner.
        host: HostId,
    },
    /// Someone takes a lock from a host whose lease has surely ended ([`crate::lease`]).
    BreakLock {
        /// The object.
        object: ObjectId,
        /// The epoch that the breaker has seen.
        epoch: Epoch,
        /// The host that holds the lock.
        holder: HostId,
        /// That host's lease counter, as it stood still.
        lease: u64,
    },
    /// A chunk gets its components, all in sync because all are empty: with parity, those of its shards and of its log.
    PlaceChunk {
        /// On what the owner bases it.
        basis: Basis,
        /// The chunk, by its plain index.
        chunk: ChunkIndex,
        /// The owner: one copy goes to it, with parity one of the data shards and one copy of the log, where there is room.
        near: HostId,
    },
    /// Components leave or join in-sync sets.
    ChangeSync {
        /// On what the owner bases it.
        basis: Basis,
        /// The changes, all or none.
        changes: Vec<SyncChange>,
        /// When, in seconds since 1970.
        unix_s: u64,
    },
    /// A chunk gets a new, empty, stale component on another disk, and `drop`, which must be stale, goes.
    Repair {
        /// On what the owner bases it.
        basis: Basis,
        /// The chunk.
        chunk: ChunkIndex,
        /// The component that is given up.
        drop: Option<DiskId>,
        /// When, in seconds since 1970.
        unix_s: u64,
    },
    /// A join token is given out.
    PutToken {
        /// Its id.
        id: [u8; 16],
        /// Its secret's hash and its end.
        entry: TokenEntry,
    },
    /// A join token is used up, if it is there, fits and has not ended.
    UseToken {
        /// Its id.
        id: [u8; 16],
        /// The hash of the secret that was shown.
        secret_hash: [u8; 32],
        /// When, in seconds since 1970.
        unix_s: u64,
    },
    /// A document of another daemon (port groups, VM specs) is made or changed.
    PutDocument {
        /// Its name.
        name: DocumentName,
        /// The revision that the proposer has seen; 0 if there was none.
        basis: u64,
        /// What it is to say.
        content: String,
    },
    /// A disk is to leave, or, with `None`, to stay after all. Nothing new is placed on one that leaves. Refused if what it
    /// holds can't be kept as its policies ask without it; if it leaves at once, only if a last copy would be lost.
    LeaveDisk {
        /// The disk.
        disk: DiskId,
        /// How it leaves.
        departure: Option<Departure>,
    },
    /// The same of a host with all its disks. Refused too while a volume is open there. Maintenance is refused if something
    /// could not be read without the host, or if what its mode moves finds no place.
    LeaveHost {
        /// The host.
        host: HostId,
        /// How it leaves.
        departure: Option<Departure>,
    },
    /// A component goes that its chunk does not need: the others that are in sync on disks that stay are as many as the
    /// policy asks for, in as many fault domains.
    Trim {
        /// On what the owner bases it.
        basis: Basis,
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// A document goes.
    DeleteDocument {
        /// Its name.
        name: DocumentName,
        /// The revision that the proposer has seen.
        basis: u64,
    },
    /// Something of a host's record changes; what is `None` stays. Components stay where they are: a new fault domain counts
    /// for what is placed from now on.
    SetHost {
        /// The host.
        host: HostId,
        /// Where its `vsand` listens.
        address: Option<SocketAddr>,
        /// What people call it; no other host may be called so. Refused until the host has come up and said what it is called.
        name: Option<String>,
        /// What it shares with the hosts that would fail with it. Refused as the name.
        fault_domain: Option<String>,
    },
    /// An object is to be kept in another way. Of a mirror that stays one, its owner gives its chunks the components that they need, and
    /// trims others; everything else is a conversion ([`super::conversion`]), which the policy that the object has ends. Refused if
    /// that has no place or no room.
    SetPolicy {
        /// The object.
        object: ObjectId,
        /// The policy that the proposer has seen.
        from: Policy,
        /// The new one.
        to: Policy,
    },
    /// A component that is in sync is to be elsewhere, because its disk is fuller than others: the chunk gets one more, empty
    /// and stale, and when that is in sync a [`Self::Trim`] takes the one on the fullest disk. Refused while
    /// the chunk has not exactly the components that it needs, all in sync.
    Move {
        /// On what the owner bases it.
        basis: Basis,
        /// The chunk.
        chunk: ChunkIndex,
        /// Where the component is.
        from: DiskId,
        /// When, in seconds since 1970.
        unix_s: u64,
    },
    /// A new, empty object, with how room is found for it ([`super::provision`]). Refused if there is not so much.
    CreateProvisioned {
        /// Its id, chosen by the proposer.
        object: ObjectId,
        /// Its name.
        name: VolumeName,
        /// Its size.
        size_bytes: u64,
        /// How it is kept.
        policy: Policy,
        /// How room is found for it.
        provision: Provision,
        /// When, in seconds since 1970.
        unix_s: u64,
    },
    /// Room is to be found for an object in another way. Refused if there is not so much as is to be kept.
    Provision {
        /// The object.
        object: ObjectId,
        /// In which way.
        provision: Provision,
    },
    /// As [`Self::ReportUsage`], with what is kept for objects and not yet written counted as used.
    ReportRoom {
        /// What [`super::Provisioning::changed`] said when the host counted. If more has been kept since, its numbers can only
        /// raise those that are known.
        seen: u64,
        /// Extents in use, a disk each.
        used_extents: Vec<(DiskId, u64)>,
    },
    /// All hosts understand more from now on. Only who has asked them proposes it: a host that does not understand the
    /// level stops.
    RaiseLevel {
        /// The level that the proposer has seen.
        from: FeatureLevel,
        /// The new one, above it.
        to: FeatureLevel,
        /// The hosts that were asked, ascending. Refused if the cluster has others by now.
        hosts: Vec<HostId>,
    },
    /// A disk that was removed may be put again.
    ReturnDisk {
        /// The disk.
        disk: DiskId,
        /// What [`super::RemovedDisks::at`] says of it. Refused if it has been returned, or removed once more, since.
        removed: u64,
    },
    /// An object that is to become another goes a step on.
    Convert {
        /// The object.
        object: ObjectId,
        /// Its owner's epoch.
        epoch: Epoch,
        /// The step.
        step: ConversionStep,
    },
    /// A host is away, or so long that what it holds is to be built elsewhere. Its next renewal of its lease ends that.
    HostAway {
        /// The host.
        host: HostId,
        /// Its lease counter, as it stood still. Refused if the host has renewed it since.
        lease: u64,
        /// How it is away; of what was said before, the earlier time counts.
        absence: Absence,
    },
    /// A volume's components are rather to be elsewhere. Those that could be nearer to it move, one after the other. Refused if no host is
    /// where it says.
    Prefer {
        /// The object.
        object: ObjectId,
        /// Where they are to be; all that counts from then on.
        preference: Preference,
    },
    /// A new, empty object as [`Self::CreateProvisioned`] makes it, with where its components are rather to be.
    CreatePreferred {
        /// Its id, chosen by the proposer.
        object: ObjectId,
        /// Its name.
        name: VolumeName,
        /// Its size.
        size_bytes: u64,
        /// How it is kept.
        policy: Policy,
        /// How room is found for it.
        provision: Provision,
        /// Where.
        preference: Preference,
        /// When, in seconds since 1970.
        unix_s: u64,
    },
    /// What disks have had to serve of late.
    ReportLoad {
        /// A disk each.
        loads: Vec<(DiskId, Load)>,
    },
    /// As [`Self::Move`], to this disk, because that is nearer to what the volume prefers, or because the one where the component is has
    /// much more to serve; when it is in sync there, a [`Self::TrimFrom`] takes the one that it was copied for. Refused if the disk is none
    /// where it could be placed.
    MoveTo {
        /// On what the owner bases it.
        basis: Basis,
        /// The chunk.
        chunk: ChunkIndex,
        /// Where the component is.
        from: DiskId,
        /// Where it is to be.
        to: DiskId,
        /// When, in seconds since 1970.
        unix_s: u64,
    },
    /// As [`Self::Trim`], of the component on this disk. Refused if the chunk needs it.
    TrimFrom {
        /// On what the owner bases it.
        basis: Basis,
        /// The chunk.
        chunk: ChunkIndex,
        /// Where the component is.
        disk: DiskId,
        /// When, in seconds since 1970.
        unix_s: u64,
    },
}

/// What an accepted command brought.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// It is done.
    Done,
    /// The object as it is now.
    Object(Arc<ObjectRecord>),
    /// The lease is renewed.
    Lease {
        /// The counter.
        counter: u64,
        /// The locks that the host holds, with their epochs.
        locks: Vec<(ObjectId, Epoch)>,
    },
    /// The revision of the document that was put.
    Revision(u64),
}
