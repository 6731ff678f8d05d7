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
        write!(f, "{}/{}", self.object, self.index.0)
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
