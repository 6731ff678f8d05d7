//! Identifiers. Each is a newtype, so that a disk can't be passed where a host is meant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(transparent)]
        #[schema(value_type = String, format = "uuid")]
        pub struct $name(pub Uuid);

        impl $name {
            /// The identifier made of these 16 bytes; the caller supplies the randomness.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// The 16 bytes, in the order that sorts like the identifier.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text = self.0.simple().to_string();
                write!(f, concat!(stringify!($name), "({})"), &text[..8])
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

uuid_id!(
    /// One cluster: a CA and the hosts it has admitted.
    ClusterId
);
uuid_id!(
    /// One host. The same text stands in the subject alternative name of its certificate.
    HostId
);
uuid_id!(
    /// One disk, named by its superblock: it keeps its id when it is moved to another host.
    DiskId
);
uuid_id!(
    /// One object: a virtual disk.
    ObjectId
);
uuid_id!(
    /// One import or export, from its beginning to its end.
    TransferId
);

/// The position of a chunk in its object's address space: chunk `n` starts at `n` × the chunk size.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct ChunkIndex(pub u32);

/// What a record of a chunk keeps, told by the top 8 bits of its [`ChunkIndex`]. What is staged for a shard is the shard's.
///
/// A mirrored chunk is one record under its plain index. One of an object with parity is kept as several: a shard each, and
/// the log in which writes wait until they are put into the shards. To disks they are chunks like any other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// The chunk itself, mirrored.
    Whole,
    /// Shard `n`, counted from 0: the data shards first, then those of parity.
    Shard(u8),
    /// The log.
    Log,
}

impl ChunkIndex {
    const ROLE_SHIFT: u32 = 24;
    const LOG: u32 = 0xff;
    const STAGED: u32 = 0x80;
    /// The most shards that an index can tell apart.
    pub const SHARDS_MAX: u8 = 0x7e;

    /// The chunk of the address space that this record belongs to.
    #[must_use]
    pub const fn base(self) -> Self {
        Self(self.0 & ((1 << Self::ROLE_SHIFT) - 1))
    }

    /// The record of shard `n` (below [`Self::SHARDS_MAX`]) of this chunk.
    #[must_use]
    pub const fn shard(self, n: u8) -> Self {
        Self(self.base().0 | (n as u32 + 1) << Self::ROLE_SHIFT)
    }

    /// Where a shard's disk keeps what is staged for the shard: full stripes that are not in force yet. A component as any other, of
    /// which the directory knows nothing. Of anything but a shard: itself.
    #[must_use]
    pub const fn staged(self) -> Self {
        match self.role() {
            Role::Shard(_) => Self(self.0 | Self::STAGED << Self::ROLE_SHIFT),
            Role::Whole | Role::Log => self,
        }
    }

    /// Whether this names what is staged for a shard.
    pub const fn is_staged(self) -> bool {
        matches!(self.role(), Role::Shard(_)) && self.0 >> Self::ROLE_SHIFT & Self::STAGED != 0
    }

    /// The record that a component on a disk belongs to: of what is staged the shard's, of all else its own.
    #[must_use]
    pub const fn record(self) -> Self {
        if self.is_staged() { Self(self.0 & !(Self::STAGED << Self::ROLE_SHIFT)) } else { self }
    }

    /// The record of this chunk's log.
    #[must_use]
    pub const fn log(self) -> Self {
        Self(self.base().0 | Self::LOG << Self::ROLE_SHIFT)
    }

    /// What the record keeps.
    pub const fn role(self) -> Role {
        match self.0 >> Self::ROLE_SHIFT {
            0 => Role::Whole,
            Self::LOG => Role::Log,
            // The bit alone was never given out, and is taken for shard 0.
            n => Role::Shard(((n & !Self::STAGED) as u8).saturating_sub(1)),
        }
    }
}

impl fmt::Display for ChunkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chunk = self.base().0;
        match self.role() {
            Role::Whole => write!(f, "{chunk}"),
            Role::Shard(n) if self.is_staged() => write!(f, "{chunk} shard {n}, staged"),
            Role::Shard(n) => write!(f, "{chunk} shard {n}"),
            Role::Log => write!(f, "{chunk} log"),
        }
    }
}

/// One chunk of one object. Together with a disk it names a component.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ChunkId {
    /// The object that the chunk belongs to.
    pub object: ObjectId,
    /// Which of its chunks.
    pub index: ChunkIndex,
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.object, self.index)
    }
}

/// How often an object has changed hands. Only the owner of the highest epoch may write or read; `0` means that the
/// object was never opened. Compared, never guessed: a new one comes out of the directory's compare-and-set.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch after this one; `None` after four billion changes of owner.
    pub const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }
}

/// The position of a write in its chunk's history, given out by the owner, never given twice within an epoch.
/// `0` stands before the first write.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The next position. A chunk written a million times a second wraps after half a million years.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Which write a block's content comes from. The order is the order of writes: epoch first, then sequence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Version {
    /// The owner's epoch when it wrote.
    pub epoch: Epoch,
    /// The write's place in the chunk's history.
    pub seq: Seq,
}

impl Version {
    /// A block that was never written.
    pub const NEVER: Self = Self { epoch: Epoch(0), seq: Seq(0) };
}

crate::name::name!(
    /// A volume's name: 1 to 63 characters of `a-z`, `0-9`, `-`, `_`, `.`; the first a letter or a digit (it becomes part of
    /// the name of a socket).
    VolumeName,
    u8::is_ascii_lowercase,
    /// Why a text is no volume name.
    BadVolumeName,
    "{0:?} is not a volume name: use 1 to 63 characters of a-z, 0-9, '-', '_' and '.', beginning with a letter or a digit"
);
