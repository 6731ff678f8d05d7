//! What the directory holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ferro_protocol::ids::{ChunkIndex, DiskId, Epoch, HostId, ObjectId, Role, Seq, VolumeName};
use ferro_protocol::units::{CHUNK_BYTES, CHUNK_EXTENTS, EXTENT_BYTES, VOLUME_BYTES_MAX, chunks_of};
use serde::{Deserialize, Serialize};

use super::command::Refused;
use super::placement::Placed;

/// A host that has joined the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostRecord {
    /// The host.
    pub id: HostId,
    /// Its name, for people.
    pub name: String,
    /// Where its `vsand` listens for other hosts.
    pub address: SocketAddr,
    /// What it shares with the hosts that would fail with it: a rack, a room. Its own id's text unless told otherwise.
    pub fault_domain: String,
    /// When it joined, in seconds since 1970.
    pub joined_unix_s: u64,
    /// How often it has renewed its lease ([`crate::lease`]).
    pub lease: u64,
}

/// How a disk is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DiskHealth {
    /// It works.
    Healthy,
    /// Its host has said that it failed; it will not come back by itself.
    Dead(String),
}

/// How a disk or a host leaves the cluster, or stands aside for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Departure {
    /// What it holds is built elsewhere first; until then it keeps its components in step.
    WhenEmpty,
    /// At once, unless a last copy would go with it: volumes may have fewer copies than their policy asks for afterwards.
    AtOnce,
    /// Of a host only: it does not leave, somebody works on it.
    Maintenance {
        /// What is moved first.
        mode: MaintenanceMode,
        /// Since when, in seconds since 1970.
        since_unix_s: u64,
    },
}

/// What is moved before a host in maintenance may be switched off ([`super::maintenance`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MaintenanceMode {
    /// What has no second copy.
    EnsureAccess,
    /// Everything.
    Full,
    /// Nothing.
    NoMove,
}

/// A disk that was given to the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskRecord {
    /// The disk, as its superblock says.
    pub id: DiskId,
    /// The host that it is in.
    pub host: HostId,
    /// Where it is on that host, for people.
    pub path: String,
    /// Its size in extents of 1 MiB.
    pub capacity_extents: u64,
    /// Extents in use when its host last reported.
    pub used_extents: u64,
    /// How it is.
    pub health: DiskHealth,
}

/// How an object is kept. [`Self::check`] tells which numbers make sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Policy {
    /// So many full copies, 1 to 4, each in another fault domain: it survives the loss of all but one.
    Mirror {
        /// How many.
        copies: u8,
    },
    /// RAID-5 and RAID-6: each chunk in `data` + `parity` shards, each in another fault domain, of which any `data` make the
    /// rest; and a log of `parity` + 1 copies.
    Parity {
        /// Shards that hold the data: 2 or 4.
        data: u8,
        /// Shards that hold parity: 1 or 2.
        parity: u8,
    },
}

impl Policy {
    /// The most copies a mirror may have.
    pub const COPIES_MAX: u8 = 4;
    /// What the log of a chunk with parity is reckoned to take of each of its disks, in extents: its owner empties it all the
    /// time. It counts only where disks are compared.
    const LOG_EXTENTS: u32 = CHUNK_EXTENTS / 16;

    /// Refuses what objects can't be kept as.
    pub fn check(self) -> Result<(), Refused> {
        match self {
            Self::Mirror { copies: 1..=Self::COPIES_MAX } | Self::Parity { data: 2 | 4, parity: 1 | 2 } => {
                Ok(())
            }
            Self::Mirror { copies } => Err(Refused::BadPolicy { copies }),
            Self::Parity { data, parity } => Err(Refused::BadParity { data, parity }),
        }
    }

    /// How many fault domains each chunk needs.
    pub const fn domains(self) -> usize {
        match self {
            Self::Mirror { copies } => copies as usize,
            Self::Parity { data, parity } => data as usize + parity as usize,
        }
    }

    /// How many of a chunk's copies, or of its shards, its content can be had from.
    pub const fn sufficient(self) -> usize {
        match self {
            Self::Mirror { .. } => 1,
            Self::Parity { data, .. } => data as usize,
        }
    }

    /// How many extents a component of the record with this index may come to take.
    pub const fn extents_max(self, index: ChunkIndex) -> u32 {
        match (self, index.role()) {
            (Self::Parity { .. }, Role::Log) => Self::LOG_EXTENTS,
            (Self::Parity { data: data @ 1.., .. }, Role::Shard(_)) => CHUNK_EXTENTS.div_ceil(data as u32),
            _ => CHUNK_EXTENTS,
        }
    }

    /// How many components the record with this index has when it is whole.
    pub const fn components(self, index: ChunkIndex) -> usize {
        match self {
            Self::Mirror { copies } => copies as usize,
            Self::Parity { parity, .. } => match index.role() {
                Role::Log => parity as usize + 1,
                Role::Whole | Role::Shard(_) => 1,
            },
        }
    }

    /// The records that a chunk with a place has.
    pub fn records(self, chunk: ChunkIndex) -> impl Iterator<Item = ChunkIndex> {
        let (whole, shards) = match self {
            Self::Mirror { .. } => (Some(chunk.base()), 0),
            Self::Parity { data, parity } => (None, data.saturating_add(parity)),
        };
        let log = whole.is_none().then(|| chunk.log());
        whole.into_iter().chain((0..shards).map(move |n| chunk.shard(n))).chain(log)
    }
}

/// Why a host holds an object's lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LockKind {
    /// A guest's disk: served on a socket.
    Exclusive {
        /// The guest may only read.
        read_only: bool,
    },
    /// An import or an export.
    Transfer,
    /// To repair a closed object; gives way to anyone who wants to open it.
    Background,
}

/// Who owns an object now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lock {
    /// The owner.
    pub host: HostId,
    /// What for.
    pub kind: LockKind,
    /// Since when, in seconds since 1970.
    pub since_unix_s: u64,
}

/// Whether a component has all that was acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Sync {
    /// It has.
    InSync,
    /// It fell out, or was never filled.
    Stale {
        /// It has all acknowledged writes up to this one; what came after must be copied.
        stale_seq: Seq,
        /// Since when, in seconds since 1970.
        since_unix_s: u64,
    },
}

/// One component of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Component {
    /// The disk it is on.
    pub disk: DiskId,
    /// Whether it is in the in-sync set.
    pub sync: Sync,
}

impl Component {
    /// Whether it is in the in-sync set.
    pub fn in_sync(&self) -> bool {
        self.sync == Sync::InSync
    }
}

/// Where a chunk is, or one of its shards, or its log.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ChunkRecord {
    /// Its components, at least one of them in sync. A shard's record may have none in sync, or none at all, as long as
    /// [`Policy::sufficient`] shards of its chunk have one.
    pub components: Vec<Component>,
}

impl ChunkRecord {
    /// The disks of the in-sync set.
    pub fn in_sync(&self) -> impl Iterator<Item = DiskId> {
        self.components.iter().filter(|c| c.in_sync()).map(|c| c.disk)
    }
}

/// Whether an object's content is whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Content {
    /// It is what its owner wrote.
    Whole,
    /// An import began and has not ended.
    Importing,
}

/// A virtual disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ObjectRecord {
    /// The object.
    pub id: ObjectId,
    /// Its name, unique in the cluster.
    pub name: VolumeName,
    /// Its size in bytes: a multiple of 4096, above zero, at most [`VOLUME_BYTES_MAX`].
    pub size_bytes: u64,
    /// How it is kept.
    pub policy: Policy,
    /// Whether its content is whole.
    pub content: Content,
    /// How often it has changed hands.
    pub epoch: Epoch,
    /// Who owns it, if anyone.
    pub lock: Option<Lock>,
    /// The chunks that have a place, each with all of [`Policy::records`]; the others read as zeros.
    pub chunks: BTreeMap<ChunkIndex, ChunkRecord>,
    /// When it was made, in seconds since 1970.
    pub created_unix_s: u64,
    /// Changes with each change of this record, never twice the same.
    pub revision: u64,
}

impl ObjectRecord {
    /// Its placed chunks from one on, ascending, by their plain indices.
    pub fn chunks_from(&self, from: ChunkIndex) -> impl Iterator<Item = ChunkIndex> {
        // All records of a chunk are there or none: one of them stands for it.
        let first = |chunk: ChunkIndex| self.policy.records(chunk).next().unwrap_or(chunk);
        let last = ChunkIndex(u32::MAX).base();
        let range = (from <= last).then(|| self.chunks.range(first(from)..=first(last)));
        range.into_iter().flatten().map(|(index, _)| index.base())
    }

    /// How many chunks its address space has.
    pub fn chunks_total(&self) -> u32 {
        chunks_of(self.size_bytes)
    }

    /// Whether a size is one that an object may have.
    pub fn good_size(size_bytes: u64) -> bool {
        size_bytes > 0 && size_bytes.is_multiple_of(4096) && size_bytes <= VOLUME_BYTES_MAX
    }

    /// The shards of a chunk that have a place, by number; none of a mirror.
    pub fn shards(&self, chunk: ChunkIndex) -> impl Iterator<Item = (ChunkIndex, &ChunkRecord)> {
        let shards = self.policy.records(chunk).filter(|index| matches!(index.role(), Role::Shard(_)));
        shards.filter_map(|index| self.chunks.get(&index).map(|record| (index, record)))
    }

    /// The other shards of the chunk that this one belongs to; none if it is no shard. No two of them may share a fault
    /// domain, not even with one that is about to leave it.
    pub fn other_shards(&self, index: ChunkIndex) -> impl Iterator<Item = (ChunkIndex, &ChunkRecord)> {
        let is_shard = matches!(index.role(), Role::Shard(_));
        self.shards(index).filter(move |(other, _)| is_shard && *other != index)
    }

    /// The first host that a missing component of this record can be made from, of those that `host_of` names for the components
    /// that are in sync: one with another copy, or for a shard one with another shard, if enough of them are left.
    pub fn source(
        &self,
        index: ChunkIndex,
        host_of: &dyn Fn(&Component) -> Option<HostId>,
    ) -> Option<HostId> {
        let good =
            |chunk: &ChunkRecord| chunk.components.iter().filter(|c| c.in_sync()).filter_map(host_of).min();
        match index.role() {
            Role::Whole | Role::Log => self.chunks.get(&index).and_then(good),
            Role::Shard(_) => {
                let answering = self.shards(index).filter_map(|(_, shard)| good(shard));
                let answering: BTreeSet<HostId> = answering.collect();
                answering.first().filter(|_| answering.len() >= self.policy.sufficient()).copied()
            }
        }
    }

    /// How many extents a component of the record with this index may come to take: of the last chunk, what the object's size
    /// reaches of it.
    pub(super) fn extents_reached(&self, index: ChunkIndex) -> u32 {
        let begin = u64::from(index.base().0) * CHUNK_BYTES;
        let bytes = self.size_bytes.saturating_sub(begin).min(CHUNK_BYTES);
        let whole = u32::try_from(bytes.div_ceil(EXTENT_BYTES)).unwrap_or(CHUNK_EXTENTS);
        let reached = match (self.policy, index.role()) {
            // The stripes go round over the shards: the last may reach into one extent more.
            (Policy::Parity { data: data @ 1.., .. }, Role::Shard(_)) => whole.div_ceil(data.into()) + 1,
            _ => whole,
        };
        reached.min(self.policy.extents_max(index))
    }

    /// Gives records their components, all in sync because all are empty.
    pub(super) fn put(&mut self, placed: Placed) {
        self.chunks.extend(placed.into_iter().map(|(index, disks)| {
            let components = disks.into_iter().map(|disk| Component { disk, sync: Sync::InSync });
            (index, ChunkRecord { components: components.collect() })
        }));
    }

    /// Whether all components that there are, enough or not, are in sync.
    pub fn in_step(&self) -> bool {
        self.chunks.values().flat_map(|chunk| &chunk.components).all(Component::in_sync)
    }

    /// Whether each placed chunk has all its components in sync.
    pub fn fully_redundant(&self) -> bool {
        let complete =
            |(index, c): (&ChunkIndex, &ChunkRecord)| c.components.len() >= self.policy.components(*index);
        self.chunks.iter().all(complete) && self.in_step()
    }

    /// Whether each placed chunk has all its components in sync and none that is left over from a move.
    pub fn settled(&self) -> bool {
        let spare =
            |(index, c): (&ChunkIndex, &ChunkRecord)| c.components.len() > self.policy.components(*index);
        self.fully_redundant() && !self.chunks.iter().any(spare)
    }
}

/// A join token that was given out and not yet used. The secret itself is not kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TokenEntry {
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
    /// When it ends, in seconds since 1970.
    pub expires_unix_s: u64,
}
