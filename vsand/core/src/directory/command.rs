//! Changes to the directory, and what became of them. Each is a compare-and-set: what the proposer believed stands in the
//! command, and where it no longer holds the command is refused and changes nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use ferro_protocol::document::DocumentName;
use ferro_protocol::ids::{ChunkIndex, DiskId, Epoch, HostId, ObjectId, Seq, VolumeName};
use serde::{Deserialize, Serialize};

use super::level::FeatureLevel;
use super::provision::Provision;
use super::records::{Content, Departure, HostRecord, LockKind, ObjectRecord, Policy, TokenEntry};

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
    /// An object is to be kept in another way: its owner gives its chunks the components that they need, and trims others.
    /// Refused if that has no place or no room, and between a mirror and shards.
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

/// Why a command was refused. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Refused {
    /// No such host.
    #[error("no host {0} in the cluster")]
    NoHost(HostId),
    /// No such disk.
    #[error("no disk {0} in the cluster")]
    NoDisk(DiskId),
    /// No such object.
    #[error("no object {0} in the cluster")]
    NoObject(ObjectId),
    /// No such chunk or component.
    #[error("chunk {0} has no such component")]
    NoComponent(ChunkIndex),
    /// The name belongs to another object.
    #[error("the name {name} is taken by object {by}")]
    NameTaken {
        /// The name.
        name: VolumeName,
        /// Who has it.
        by: ObjectId,
    },
    /// Another host has this address.
    #[error("host {by} already has the address {address}")]
    AddressTaken {
        /// The address.
        address: SocketAddr,
        /// Who has it.
        by: HostId,
    },
    /// The size is zero, not a multiple of 4096, or over the limit.
    #[error("{0} bytes is not a size that a volume can have")]
    BadSize(u64),
    /// Volumes can't shrink.
    #[error("the volume has {now} bytes and can't shrink to {wanted}")]
    Shrink {
        /// Its size.
        now: u64,
        /// What was asked.
        wanted: u64,
    },
    /// Not enough disks in different fault domains have room.
    #[error("the policy needs {needed} fault domains with a healthy disk that has room, there are {found}")]
    NoRoom {
        /// How many the policy needs.
        needed: usize,
        /// How many there are.
        found: usize,
    },
    /// The policy makes no sense.
    #[error("a mirror has 1 to {max} copies, not {copies}", max = Policy::COPIES_MAX)]
    BadPolicy {
        /// What was asked.
        copies: u8,
    },
    /// Somebody holds the object's lock.
    #[error("object {object} is in use by host {holder}")]
    Locked {
        /// The object.
        object: ObjectId,
        /// Who.
        holder: HostId,
        /// What for.
        kind: LockKind,
    },
    /// The lock is not what the proposer believed.
    #[error("host {0} does not hold this lock any more")]
    NotHolder(HostId),
    /// The lease moved: its holder lives.
    #[error("host {0} has renewed its lease")]
    LeaseAlive(HostId),
    /// The epoch has moved on: the proposer is not the owner any more.
    #[error("the object is at epoch {}", .now.0)]
    WrongEpoch {
        /// The epoch.
        now: Epoch,
    },
    /// The record has changed since the proposer looked: look again.
    #[error("the record has changed")]
    Overtaken(Arc<ObjectRecord>),
    /// The last in-sync component can't be taken away.
    #[error("chunk {0} has no other component in sync")]
    LastInSync(ChunkIndex),
    /// Data would be lost.
    #[error("{chunks} chunks can't be had without {what}, of volume {example} among others")]
    WouldLoseData {
        /// Host or disk.
        what: String,
        /// How many chunks.
        chunks: usize,
        /// The name of a volume that would lose data.
        example: VolumeName,
    },
    /// The host still holds locks.
    #[error("host {host} still has {volume} open")]
    HoldsLock {
        /// The host.
        host: HostId,
        /// One of the volumes.
        volume: VolumeName,
    },
    /// It is the only host.
    #[error("host {0} is the only one in the cluster")]
    LastHost(HostId),
    /// The token is unknown, used, ended, or its secret is another.
    #[error("{0}")]
    Token(TokenRefused),
    /// The document has another revision; 0 if there is none.
    #[error("the document has changed: it is at revision {0}")]
    WrongRevision(u64),
    /// Something is over its bound.
    #[error("{0}")]
    TooMuch(String),
    /// The other hosts can't keep a volume as its policy asks.
    #[error(
        "without {what}, volume {example} has a healthy disk with room in {found} fault domains and needs {needed}"
    )]
    CantMove {
        /// Host or disk.
        what: String,
        /// A volume that would have too few copies.
        example: VolumeName,
        /// How many fault domains its policy needs.
        needed: usize,
        /// How many are left.
        found: usize,
    },
    /// The other disks have no room for what is to be moved.
    #[error(
        "the disks that stay have no room for the {extents} MiB that {what} holds; volume {example} does not fit"
    )]
    NoSpaceElsewhere {
        /// Host or disk.
        what: String,
        /// A volume whose data finds no place.
        example: VolumeName,
        /// How much is to be moved, in extents of 1 MiB.
        extents: u64,
    },
    /// The host is leaving the cluster.
    #[error("host {0} is leaving the cluster")]
    HostLeaves(HostId),
    /// The chunk needs all its components.
    #[error("chunk {0} needs all its components")]
    NothingSpare(ChunkIndex),
    /// The name belongs to another host.
    #[error("host {by} is called {name} already")]
    HostNameTaken {
        /// The name.
        name: String,
        /// Who has it.
        by: HostId,
    },
    /// The host was let in and has not come up yet.
    #[error("host {0} has not come up yet")]
    HostNotUp(HostId),
    /// No such numbers of shards.
    #[error("parity is kept as 2+1, 4+1, 2+2 or 4+2 shards, not {data}+{parity}")]
    BadParity {
        /// How many data shards were asked for.
        data: u8,
        /// How many parity shards.
        parity: u8,
    },
    /// The chunk's content could not be had from what would be left in sync.
    #[error("chunk {chunk} needs {needed} of its shards in sync, {left} would be left")]
    TooFewShards {
        /// The chunk, by its plain index.
        chunk: ChunkIndex,
        /// How many shards it needs.
        needed: usize,
        /// How many would have an in-sync component.
        left: usize,
    },
    /// The one can't be made from the other in place.
    #[error("a mirror can't become shards with parity in place, nor these a mirror or others")]
    OtherMethod,
    /// The disks have no room for the components that the policy asks for in addition.
    #[error("the disks have no room for the {extents} MiB more that the policy takes")]
    NoSpaceFor {
        /// The policy.
        policy: Policy,
        /// How much is to be placed, in extents of 1 MiB.
        extents: u64,
    },
    /// Without these disks, and those of other hosts in maintenance, objects could not be read.
    #[error("without {what}, {volumes} volumes could not be read, {example} among them")]
    WouldBeUnreadable {
        /// The host.
        what: String,
        /// How many objects.
        volumes: usize,
        /// The name of one.
        example: VolumeName,
    },
    /// The host is in maintenance: volumes are not opened there, and what it holds is not built elsewhere.
    #[error("host {0} is in maintenance")]
    InMaintenance(HostId),
    /// Disks have no maintenance of their own.
    #[error("a disk can't be in maintenance, only a host")]
    NotOfDisks,
    /// Shards can't do with fewer fault domains.
    #[error("only mirrors can be made where there is no place for all of it")]
    CantForce,
    /// The disks have no room for what is to be kept.
    #[error("the disks have no room to keep {extents} MiB for the volume")]
    NoSpaceToReserve {
        /// How much is to be kept, in extents of 1 MiB, all components together.
        extents: u64,
    },
    /// The cluster is not at the level that the proposer believed, or at none below the one asked for.
    #[error("the cluster is at feature level {now}")]
    OtherLevel {
        /// Its level.
        now: FeatureLevel,
    },
    /// Hosts came or went since the proposer looked.
    #[error("hosts have joined or left meanwhile")]
    OtherHosts,
    /// The disk was removed, and nobody has given it to the cluster again.
    #[error("disk {0} was removed from the cluster")]
    DiskRemoved(DiskId),
}

/// Why a join token is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum TokenRefused {
    /// Not known: never given out, or used.
    #[error("the join token is unknown or was used already")]
    Unknown,
    /// It has ended.
    #[error("the join token has expired")]
    Expired,
    /// The secret does not fit.
    #[error("the join token's secret is wrong")]
    Forged,
}
