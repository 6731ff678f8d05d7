//! The types that the Raft group is made of: how a node is named and described, and what travels in its log.
//!
//! Commands and answers are opaque bytes here. So the whole of Raft is compiled once, in this crate, and not again for
//! each state machine; [`crate::Directory`] puts the types back on.

use std::fmt;
use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ferro_protocol::ids::HostId;
use serde::{Deserialize, Serialize};

/// A host as a Raft node. It exists only because Raft wants a default, which a [`HostId`] rightly has not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct MemberId(pub(crate) HostId);

impl Default for MemberId {
    fn default() -> Self {
        Self(HostId::from_bytes([0; 16]))
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which life of a host's directory storage: drawn at random when the storage is made. A host whose storage was lost
/// comes back with another one, and the group can tell it from the member it knew.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// What the group knows of a member; it stands in the membership entries of the log.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Member {
    /// Where its control channel listens, as the [`crate::Transport`] understands it.
    pub address: String,
    /// What fails together with it: a rack, a room. Voters are spread over fault domains.
    pub fault_domain: String,
    /// The storage that was admitted.
    pub incarnation: Incarnation,
}

/// Names one proposal, however often it is sent: drawn at random when a member starts, then counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct ProposalId {
    pub(crate) run: u64,
    pub(crate) count: u64,
}

/// A command in the log.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Proposal {
    /// A command that is in the log twice under one id is applied once.
    pub(crate) id: ProposalId,
    /// The index that the proposer knew of when it first sent the command: every copy lies after it.
    pub(crate) base: u64,
    /// The command, encoded by [`crate::machine::encode`].
    #[serde(with = "raw")]
    pub(crate) command: Vec<u8>,
    /// Set when the entry reaches the local log, so that the proposer knows whether a refusal is certain. Never leaves
    /// this process.
    #[serde(skip)]
    pub(crate) ticket: Ticket,
}

/// What became of an entry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Applied {
    /// It held no command.
    Nothing,
    /// The state machine's response, encoded.
    Answer(#[serde(with = "raw")] Vec<u8>),
    /// It came so late that an earlier copy may have been applied and forgotten: it was not applied.
    Expired,
}

/// Bytes as one run: postcard's same format, without a call for each byte.
pub(crate) mod raw {
    use std::fmt;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }

        from.deserialize_bytes(Bytes)
    }
}

/// Tells the proposer whether its command ever reached the log.
///
/// Raft answers "not the leader" both when it refuses a command at once and when it has to drop one that it had
/// appended. After the second, another node may still hold the entry and commit it, so only the first is a sure no.
#[derive(Clone, Default)]
pub(crate) struct Ticket(Arc<AtomicBool>);

impl Ticket {
    pub(crate) fn stamp(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(crate) fn is_stamped(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({:?}, {} bytes)", self.id, self.command.len())
    }
}

openraft::declare_raft_types!(
    /// The Raft group's types.
    pub(crate) Types:
        D = Proposal,
        R = Applied,
        NodeId = MemberId,
        Node = Member,
        Entry = openraft::Entry<Types>,
        SnapshotData = Cursor<Vec<u8>>,
);

pub(crate) type Raft = openraft::Raft<Types>;
pub(crate) type Entry = openraft::Entry<Types>;
pub(crate) type LogId = openraft::LogId<MemberId>;
pub(crate) type Vote = openraft::Vote<MemberId>;
pub(crate) type StorageError = openraft::StorageError<MemberId>;
pub(crate) type StorageIoError = openraft::StorageIOError<MemberId>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<MemberId, Member>;
pub(crate) type Snapshot = openraft::Snapshot<Types>;
pub(crate) type StoredMembership = openraft::StoredMembership<MemberId, Member>;
pub(crate) type Metrics = openraft::RaftMetrics<MemberId, Member>;

#[cfg(test)]
impl From<u64> for MemberId {
    fn from(n: u64) -> Self {
        Self(HostId::from_bytes((n as u128).to_be_bytes()))
    }
}
