//! What can go wrong, sorted by who has to act.

use std::time::Duration;

use ferro_protocol::ids::HostId;

use crate::machine::DecodeError;
use crate::storage::StoreError;

/// Why the directory did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Nobody leads, as far as this host can tell. Nothing was changed.
    #[error(
        "the cluster directory has no leader for {since:?}: are more than half of its voters running and reachable?"
    )]
    NoLeader {
        /// How long this call has waited for one.
        since: Duration,
    },
    /// The leader can't reach a majority. Nothing was changed.
    #[error(
        "the cluster directory's leader has not heard from a majority of the voters for {since:?}: bring hosts back or \
         repair the network"
    )]
    NoQuorum {
        /// How long the leader has been without a majority.
        since: Duration,
    },
    /// The deadline passed, or the leader was lost, after the command was handed over: it may have been applied or may
    /// still be. Look at the state before trying again.
    #[error("the cluster directory gave no answer in time; whether the change was made is not known")]
    Timeout,
    /// This host was removed from the cluster.
    #[error("this host was removed from the cluster; join it again to use it")]
    Removed,
    /// A command over [`crate::COMMAND_BYTES_MAX`].
    #[error("a directory command of {bytes} bytes is over the limit of {}", crate::COMMAND_BYTES_MAX)]
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
    },
    /// Hosts of different versions: one does not understand the other.
    #[error("the directory's messages do not decode: {0}; are all hosts on the same version?")]
    Encoding(#[from] DecodeError),
    /// This member has stopped for good: its disk failed, or it can't apply an entry. The host must be looked at.
    #[error("this host's part of the cluster directory has stopped: {0}")]
    Fatal(String),
    /// The storage can't be opened or written.
    #[error(transparent)]
    Storage(#[from] StoreError),
    /// The timers or paths given make no sense.
    #[error("the directory's configuration: {0}")]
    Config(String),
    /// There is a cluster already.
    #[error("this host is a member of a cluster already")]
    AlreadyBootstrapped,
    /// A membership change that can't be made.
    #[error(transparent)]
    Membership(#[from] MembershipError),
}

/// Why a host can't be added or removed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum MembershipError {
    /// The host does not answer at its address.
    #[error("host {host} does not answer: {reason}")]
    Unreachable {
        /// The host.
        host: HostId,
        /// What the transport says.
        reason: String,
    },
    /// The host is a member, but its storage is another than the one that was admitted: it has forgotten its vote.
    #[error("host {0} lost its directory storage; remove it from the cluster, then join it again")]
    LostStorage(HostId),
    /// The last host can't leave.
    #[error("host {0} is the last one of the cluster")]
    LastHost(HostId),
    /// Without this host, the voters that answer would be no majority.
    #[error(
        "without host {host} only {alive} of the remaining {voters} voters answer, which is no majority: bring one back first"
    )]
    WouldLoseQuorum {
        /// The host that was to leave.
        host: HostId,
        /// Remaining voters that answer.
        alive: usize,
        /// Remaining voters.
        voters: usize,
    },
    /// Another membership change is under way.
    #[error("another membership change is under way; try again")]
    Busy,
}
