//! The messages between members: version byte, then postcard.
//!
//! Every question names the cluster, the host it is meant for and, where a vote or a log depends on it, the incarnation
//! of that host's storage; the other side refuses what is not meant for it. So a re-used address, a host of another
//! cluster, or a host that lost its storage can't take part by accident.

use ferro_protocol::ids::{ClusterId, HostId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::MESSAGE_BYTES_MAX;
use crate::error::MembershipError;
use crate::machine::{self, DecodeError};
use crate::types::{Incarnation, ProposalId};

/// The services of the directory, as the control channel numbers them.
pub mod service {
    /// Raft: append entries, or a heartbeat.
    pub const APPEND: u16 = 0x0100;
    /// Raft: ask for a vote.
    pub const VOTE: u16 = 0x0101;
    /// Raft: a piece of a snapshot.
    pub const SNAPSHOT: u16 = 0x0102;
    /// Propose a command to the leader.
    pub const PROPOSE: u16 = 0x0103;
    /// Ask the leader up to where a reader must have applied the log.
    pub const READ: u16 = 0x0104;
    /// Ask the leader for a membership change.
    pub const CHANGE: u16 = 0x0105;
    /// Ask a host who it is.
    pub const HELLO: u16 = 0x0106;
    /// Ask whether one is still a member.
    pub const STANDING: u16 = 0x0107;

    /// Whether [`crate::Directory::handle`] answers this service.
    pub fn is_ours(service: u16) -> bool {
        (APPEND..=STANDING).contains(&service)
    }
}

/// A question, with whom it is meant for.
#[derive(Serialize, Deserialize)]
pub(crate) struct Question<T> {
    pub(crate) cluster: ClusterId,
    pub(crate) to: HostId,
    /// `None`: any.
    pub(crate) incarnation: Option<Incarnation>,
    pub(crate) body: T,
}

/// Why a question was not looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Rejection {
    #[error("the message does not decode there: {0}")]
    Malformed(String),
    #[error("no such service")]
    Service,
    #[error("that host belongs to cluster {0}")]
    Cluster(ClusterId),
    #[error("that is host {0}")]
    Host(HostId),
    #[error("that host lost its directory storage and has a new one")]
    Incarnation,
    #[error("this host is no member, as far as that one knows")]
    Stranger,
    #[error("its part of the directory has stopped: {0}")]
    Stopped(String),
}

/// Where the leader is, as far as the one who was asked knows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) host: HostId,
    pub(crate) address: String,
}

/// Why a leader did not do it. All but `Unknown` and `Stopped` mean that nothing was changed and nothing will be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum NotDone {
    NotLeader(Option<Peer>),
    NoQuorum {
        silent_ms: u64,
    },
    /// Handed to the group; the outcome is not known.
    Unknown,
    /// The proposer's base is too far behind this index for a copy to be recognised.
    Behind {
        index: u64,
    },
    Membership(MembershipError),
    Stopped(String),
    Undecodable(String),
}

/// A command for the leader.
#[derive(Serialize, Deserialize)]
pub(crate) struct Propose {
    pub(crate) id: ProposalId,
    pub(crate) base: u64,
    #[serde(with = "crate::types::raw")]
    pub(crate) command: Vec<u8>,
    pub(crate) within_ms: u64,
}

/// A membership change for the leader.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum Change {
    Add { host: HostId, address: String, fault_domain: String },
    Remove { host: HostId },
}

/// How far a membership change got.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Changed {
    Done,
    /// One step was made; ask again for the next.
    Step,
}

/// Who a host is.
#[derive(Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) incarnation: Incarnation,
}

/// What a leader says about a host that asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Verdict {
    Member,
    /// Not a member, by the membership entry at this index.
    Stranger {
        at: u64,
    },
    /// The one who was asked does not lead, or can't be sure that it does.
    AskAnother(Option<Peer>),
}

pub(crate) type Answer<T> = Result<T, Rejection>;

pub(crate) fn to_bytes<T: Serialize>(value: &T) -> Result<Vec<u8>, DecodeError> {
    Ok(machine::encode(value)?)
}

pub(crate) fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(DecodeError::Content(postcard::Error::DeserializeBadEncoding));
    }
    machine::decode(bytes)
}
