//! What a member is told when it starts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::ids::{ClusterId, HostId};
use openraft::SnapshotPolicy;

use crate::error::DirectoryError;

/// The longest command, encoded, in bytes: the largest value that the directory takes, and room for its name.
pub const COMMAND_BYTES_MAX: usize = (1 << 20) + (64 << 10);
/// The longest message between members, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// The longest snapshot that is accepted, in bytes.
pub const SNAPSHOT_BYTES_MAX: u64 = 1 << 30;
/// The piece in which a snapshot is sent, in bytes.
pub(crate) const CHUNK_BYTES: u64 = 1 << 20;

/// Settings of one member.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster that this host belongs to.
    pub cluster: ClusterId,
    /// This host.
    pub host: HostId,
    /// The folder of the database.
    pub path: PathBuf,
    /// Where this host's control channel listens, as its peers reach it.
    pub address: String,
    /// This host's fault domain.
    pub fault_domain: String,
    /// The identity files say that this host was a member before: then missing storage is refused
    /// ([`crate::StoreError::Lost`]), because a member that forgot its vote could vote twice.
    pub was_member: bool,
    /// How often and how patiently.
    pub timing: Timing,
    /// A snapshot is made, and the log before it dropped, after this many entries.
    pub snapshot_every: u64,
    /// So many entries before a snapshot are kept, so that a member that is a little behind needs no snapshot.
    pub entries_kept: u64,
}

/// The timers.
///
/// A follower stands for election when it has heard nothing from the leader for `election_max` (until then it also
/// refuses its vote to others) plus its own random time between `election_min` and `election_max`; the clock is looked
/// at every 1½ heartbeats. So a dead leader is replaced within 2 × `election_max` + 1.5 × `heartbeat` and a round trip:
/// 1.4 s with the default, while a live one may be silent for 0.95 s.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// The leader's heartbeat.
    pub heartbeat: Duration,
    /// Lower bound of the election time-out.
    pub election_min: Duration,
    /// Upper bound of the election time-out; also how long a leader is trusted without a word.
    pub election_max: Duration,
    /// The longest that a message to another member may take.
    pub call_max: Duration,
    /// How long `propose` and the other calls wait if they are not told otherwise.
    pub propose_max: Duration,
    /// A member that hears no leader for so long asks the others whether it still belongs to them.
    pub lonely_after: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(400),
            election_max: Duration::from_millis(550),
            call_max: Duration::from_secs(2),
            propose_max: Duration::from_secs(5),
            lonely_after: Duration::from_secs(3),
        }
    }
}

impl Config {
    /// The defaults for a host.
    pub fn new(
        cluster: ClusterId,
        host: HostId,
        path: impl Into<PathBuf>,
        address: impl Into<String>,
    ) -> Self {
        Self {
            cluster,
            host,
            path: path.into(),
            address: address.into(),
            fault_domain: host.to_string(),
            was_member: false,
            timing: Timing::default(),
            snapshot_every: 5000,
            entries_kept: 1000,
        }
    }

    /// After this long without a majority's answer a leader takes no more commands.
    pub(crate) fn quorum_patience(&self) -> Duration {
        self.timing.election_max * 2
    }

    /// How long one attempt at the leader may take before the leader is looked for again.
    pub(crate) fn attempt_max(&self) -> Duration {
        self.timing.call_max
    }

    pub(crate) fn raft(&self) -> Result<Arc<openraft::Config>, DirectoryError> {
        let ms = |duration: Duration| duration.as_millis() as u64;
        let config = openraft::Config {
            cluster_name: self.cluster.to_string(),
            heartbeat_interval: ms(self.timing.heartbeat),
            election_timeout_min: ms(self.timing.election_min),
            election_timeout_max: ms(self.timing.election_max),
            install_snapshot_timeout: ms(self.timing.call_max),
            max_payload_entries: 256,
            replication_lag_threshold: self.snapshot_every,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            snapshot_max_chunk_size: CHUNK_BYTES,
            max_in_snapshot_log_to_keep: self.entries_kept,
            purge_batch_size: (self.entries_kept / 2).max(1),
            ..openraft::Config::default()
        };
        config.validate().map(Arc::new).map_err(|error| DirectoryError::Config(error.to_string()))
    }
}
