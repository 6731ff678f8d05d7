//! What a member keeps on disk: its identity, its vote, its log and one snapshot, in one `RocksDB`.
//!
//! ```text
//! column   key              value (the first byte of each is a version)
//! meta     identity         cluster, host, incarnation: written once, when the storage is made
//!          vote             the vote; synced before it is answered
//!          committed        how far the log was known to be committed; not synced, a hint for the restart
//!          purged           the last log id that a snapshot has made unnecessary
//!          removed          present when the group told this host that it is no member any more
//! log      index, 8 bytes   one entry; synced before it is acknowledged
//! snapshot m                the snapshot's metadata and its length in bytes
//!          d + n, 4 bytes   the n-th MiB of the snapshot; carries its own version and CRC-32
//! ```
//!
//! Every write goes through one thread, in order, so that an fsync never holds up the runtime's threads. A snapshot
//! replaces the one before in a single batch. The state machine itself is not on disk: a restart loads the snapshot and
//! applies the log up to `committed` again.
//!
//! A write that fails is fatal for this member: it stops, and the group goes on without it. What it must not know: the
//! network, elections, what the commands mean.

mod log;
mod snapshot;
#[cfg(test)]
mod suite;
mod writer;

use std::path::Path;
use std::sync::Arc;

use ferro_protocol::ids::{ClusterId, HostId};
use rand::TryRngCore;
use rand::rngs::OsRng;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode,
    LogLevel, Options, WriteBatch,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::machine::{self, DecodeError};
use crate::types::{Incarnation, LogId};
use writer::Writer;

pub(crate) use log::LogStore;
pub(crate) use snapshot::MachineStore;

const META: &str = "meta";
const LOG: &str = "log";
const SNAPSHOT: &str = "snapshot";

const IDENTITY: &[u8] = b"identity";
const VOTE: &[u8] = b"vote";
const COMMITTED: &[u8] = b"committed";
const PURGED: &[u8] = b"purged";
const REMOVED: &[u8] = b"removed";

/// Memory for the entries that were not yet written to a table, per column.
const WRITE_BUFFER_BYTES: usize = 4 << 20;
/// The log is read from memory as a rule; this serves a member that catches up.
const CACHE_BYTES: usize = 2 << 20;

/// Why the storage can't be opened or used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The database reports an error: the disk, the file system, or damage.
    #[error("the directory's database: {0}")]
    Database(#[from] rocksdb::Error),
    /// A value does not decode.
    #[error("the directory's database holds a damaged {what}: {source}")]
    Damaged {
        /// Which value.
        what: &'static str,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The storage belongs to another host or cluster.
    #[error("the directory's database belongs to host {host} of cluster {cluster}")]
    Foreign {
        /// The cluster it belongs to.
        cluster: ClusterId,
        /// The host it belongs to.
        host: HostId,
    },
    /// There is no storage, although this host was a member.
    #[error(
        "the directory's database is gone although this host was a member of the cluster; a member that forgot its vote \
         could vote twice: remove the host from the cluster and join it again"
    )]
    Lost,
    /// The thread that writes has ended.
    #[error("the directory's database is closed")]
    Closed,
    /// Something could not be encoded or a helper thread ended: a bug, reported rather than hidden.
    #[error("the directory's database: {0}")]
    Internal(String),
}

/// Whose storage this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) cluster: ClusterId,
    pub(crate) host: HostId,
    pub(crate) incarnation: Incarnation,
}

/// One member's database.
pub(crate) struct Store {
    // The writer is declared first so that its thread has ended before the database is let go.
    writer: Writer,
    db: Arc<DB>,
    identity: Identity,
    /// What the stored snapshot covers; held while one is written, so that an older one never replaces a newer one.
    snapshot_at: tokio::sync::Mutex<Option<LogId>>,
}

impl Store {
    /// Opens or makes the storage. With `must_exist`, an empty place is refused instead of being made new.
    pub(crate) fn open(
        path: &Path,
        cluster: ClusterId,
        host: HostId,
        must_exist: bool,
    ) -> Result<Self, StoreError> {
        // RocksDB creates its `CURRENT` file last: without it there never was a complete database here.
        if must_exist && !path.join("CURRENT").exists() {
            return Err(StoreError::Lost);
        }
        let cache = Cache::new_lru_cache(CACHE_BYTES);
        let columns =
            [META, LOG, SNAPSHOT].map(|name| ColumnFamilyDescriptor::new(name, column_options(&cache)));
        let db = Arc::new(DB::open_cf_descriptors(&database_options(), path, columns)?);
        let writer = Writer::start(Arc::clone(&db))?;
        let identity = match get(&db, META, IDENTITY, "identity")? {
            Some(identity) => identity,
            None if must_exist => return Err(StoreError::Lost),
            None => {
                let drawn = OsRng.try_next_u64().map_err(|error| StoreError::Internal(error.to_string()))?;
                let identity = Identity { cluster, host, incarnation: Incarnation(drawn) };
                let mut batch = WriteBatch::default();
                batch.put_cf(column(&db, META)?, IDENTITY, to_bytes(&identity)?);
                writer.write_blocking(batch)?;
                identity
            }
        };
        if identity.cluster != cluster || identity.host != host {
            return Err(StoreError::Foreign { cluster: identity.cluster, host: identity.host });
        }
        let store = Self { writer, db, identity, snapshot_at: tokio::sync::Mutex::new(None) };
        let at = store.read_snapshot_head()?.and_then(|head| head.meta.last_log_id);
        Ok(Self { snapshot_at: tokio::sync::Mutex::new(at), ..store })
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether the group has told this host that it is no member any more.
    pub(crate) fn removed(&self) -> Result<bool, StoreError> {
        Ok(self.get::<u64>(META, REMOVED, "mark of removal")?.is_some())
    }

    /// Stores or clears the mark of removal; `at` is the index of the membership entry that removed this host.
    pub(crate) async fn set_removed(&self, at: Option<u64>) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        match at {
            Some(index) => batch.put_cf(self.column(META)?, REMOVED, to_bytes(&index)?),
            None => batch.delete_cf(self.column(META)?, REMOVED),
        }
        self.writer.write(batch, true).await
    }

    fn column(&self, name: &'static str) -> Result<&ColumnFamily, StoreError> {
        column(&self.db, name)
    }

    fn get<T: DeserializeOwned>(
        &self,
        name: &'static str,
        key: &[u8],
        what: &'static str,
    ) -> Result<Option<T>, StoreError> {
        get(&self.db, name, key, what)
    }
}

fn column<'a>(db: &'a DB, name: &'static str) -> Result<&'a ColumnFamily, StoreError> {
    db.cf_handle(name).ok_or_else(|| StoreError::Internal(format!("column {name} is missing")))
}

fn get<T: DeserializeOwned>(
    db: &DB,
    name: &'static str,
    key: &[u8],
    what: &'static str,
) -> Result<Option<T>, StoreError> {
    let Some(bytes) = db.get_pinned_cf(column(db, name)?, key)? else { return Ok(None) };
    machine::decode(&bytes).map(Some).map_err(|source| StoreError::Damaged { what, source })
}

fn to_bytes<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    machine::encode(value).map_err(|error| StoreError::Internal(error.to_string()))
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_max_background_jobs(2);
    options.set_max_open_files(64);
    options.set_max_file_opening_threads(1);
    options.set_max_total_wal_size(4 * WRITE_BUFFER_BYTES as u64);
    // Damage in the middle of the write-ahead log must not pass for its end: what was acknowledged would be forgotten.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_log_level(LogLevel::Error);
    options.set_keep_log_file_num(1);
    options.set_max_log_file_size(1 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

fn column_options(cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(2);
    options
}
