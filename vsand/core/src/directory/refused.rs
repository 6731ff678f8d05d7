//! Why commands are refused.

use std::net::SocketAddr;
use std::sync::Arc;

use ferro_protocol::ids::{ChunkIndex, DiskId, Epoch, HostId, ObjectId, VolumeName};
use serde::{Deserialize, Serialize};

use super::level::FeatureLevel;
use super::records::{LockKind, ObjectRecord, Policy};

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
    /// Not all hosts know how the one is made from the other.
    #[error("below feature level {level} a mirror can't become shards with parity, nor these a mirror or others", level = FeatureLevel::CONVERSIONS)]
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
    /// The object is not to become another, or its target is none any more.
    #[error("object {0} is not being converted")]
    NotConverting(ObjectId),
    /// A component of the target is missing or not in sync.
    #[error("object {0} has not all its components in sync")]
    NotWhole(ObjectId),
    /// No host is in the place that is preferred.
    #[error("no host has the fault domain {0:?}, or one in it")]
    NoSuchPlace(String),
    /// All hosts are in one site, so nothing can be spread over several.
    #[error("all hosts are in one site, {0:?}")]
    OneSite(String),
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
