//! The log and the vote.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, EntryPayload, LogState, OptionalSend, RaftLogReader};
use rocksdb::{Direction, IteratorMode, WriteBatch, WriteOptions};

use super::{COMMITTED, LOG, META, PURGED, Store, StoreError, VOTE, to_bytes};
use crate::machine;
use crate::types::{Entry, LogId, StorageError, StorageIoError, Types, Vote};

/// At most about this much is read for one message to a member that catches up.
const READ_BYTES_MAX: usize = 1 << 20;

/// The log of one member. Clones read the same log.
#[derive(Clone)]
pub(crate) struct LogStore {
    store: Arc<Store>,
}

impl LogStore {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// Entries `from..until` in order, stopping once `bytes_max` are exceeded (at least one entry is read).
    fn read(&self, from: u64, until: u64, bytes_max: usize) -> Result<Vec<Entry>, StoreError> {
        let mut entries = Vec::new();
        if from >= until {
            return Ok(entries);
        }
        let mut bytes_read = 0;
        let start = from.to_be_bytes();
        let mode = IteratorMode::From(&start, Direction::Forward);
        for item in self.store.db.iterator_cf(self.store.column(LOG)?, mode) {
            let (key, value) = item?;
            if index_of(&key)? >= until || (bytes_read > 0 && bytes_read + value.len() > bytes_max) {
                break;
            }
            bytes_read += value.len();
            entries.push(decode_entry(&value)?);
        }
        Ok(entries)
    }

    fn last(&self) -> Result<Option<LogId>, StoreError> {
        match self.store.db.iterator_cf(self.store.column(LOG)?, IteratorMode::End).next() {
            Some(item) => Ok(Some(decode_entry(&item?.1)?.log_id)),
            None => Ok(None),
        }
    }

    fn purged(&self) -> Result<Option<LogId>, StoreError> {
        self.store.get(META, PURGED, "purged log id")
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let from = match range.start_bound() {
            Bound::Included(n) => *n,
            Bound::Excluded(n) => n.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let until = match range.end_bound() {
            Bound::Included(n) => n.saturating_add(1),
            Bound::Excluded(n) => *n,
            Bound::Unbounded => u64::MAX,
        };
        self.read(from, until, usize::MAX).map_err(|error| reading(&error))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.read(start, end, READ_BYTES_MAX).map_err(|error| reading(&error))
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let purged = self.purged().map_err(|error| reading(&error))?;
        let last = self.last().map_err(|error| reading(&error))?.or(purged);
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let failed =
            |error: StoreError| StorageError::from(StorageIoError::write_vote(AnyError::new(&error)));
        let mut batch = WriteBatch::default();
        batch.put_cf(self.store.column(META).map_err(failed)?, VOTE, to_bytes(vote).map_err(failed)?);
        self.store.writer.write(batch, true).await.map_err(failed)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let failed = |error: StoreError| StorageError::from(StorageIoError::read_vote(AnyError::new(&error)));
        self.store.get(META, VOTE, "vote").map_err(failed)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        // A hint, so neither synced nor sent through the thread: it is one copy into the page cache, and the entries it
        // speaks of lie before it in the same write-ahead log.
        let save = || -> Result<(), StoreError> {
            let mut options = WriteOptions::default();
            options.set_sync(false);
            self.store.db.put_cf_opt(self.store.column(META)?, COMMITTED, to_bytes(&committed)?, &options)?;
            Ok(())
        };
        save().map_err(|error| writing(&error))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let committed: Option<Option<LogId>> =
            self.store.get(META, COMMITTED, "commit index").map_err(|error| reading(&error))?;
        let state = self.get_log_state().await?;
        // Never beyond the log, whatever a power cut left behind.
        Ok(committed.flatten().min(state.last_log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = WriteBatch::default();
        {
            let log = self.store.column(LOG).map_err(|error| writing(&error))?;
            for entry in entries {
                if let EntryPayload::Normal(proposal) = &entry.payload {
                    proposal.ticket.stamp();
                }
                batch.put_cf(
                    log,
                    entry.log_id.index.to_be_bytes(),
                    to_bytes(&entry).map_err(|error| writing(&error))?,
                );
            }
        }
        // Raft's loop waits for the flush before it does anything else, so the callback need not come from the thread.
        let result = self.store.writer.write(batch, true).await;
        callback.log_io_completed(result.clone().map_err(std::io::Error::other));
        result.map_err(|error| writing(&error))
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        let log = self.store.column(LOG).map_err(|error| writing(&error))?;
        batch.delete_range_cf(log, log_id.index.to_be_bytes(), u64::MAX.to_be_bytes());
        self.store.writer.write(batch, true).await.map_err(|error| writing(&error))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        batch.put_cf(
            self.store.column(META).map_err(|error| writing(&error))?,
            PURGED,
            to_bytes(&log_id).map_err(|error| writing(&error))?,
        );
        let log = self.store.column(LOG).map_err(|error| writing(&error))?;
        batch.delete_range_cf(log, 0u64.to_be_bytes(), log_id.index.saturating_add(1).to_be_bytes());
        // Not synced: a purge that a power cut undoes is only done again.
        self.store.writer.write(batch, false).await.map_err(|error| writing(&error))
    }
}

fn decode_entry(bytes: &[u8]) -> Result<Entry, StoreError> {
    machine::decode(bytes).map_err(|source| StoreError::Damaged { what: "log entry", source })
}

fn index_of(key: &[u8]) -> Result<u64, StoreError> {
    let bytes = key
        .try_into()
        .map_err(|_| StoreError::Damaged { what: "log index", source: machine::DecodeError::Short })?;
    Ok(u64::from_be_bytes(bytes))
}

fn reading(error: &StoreError) -> StorageError {
    StorageIoError::read_logs(AnyError::new(error)).into()
}

fn writing(error: &StoreError) -> StorageError {
    StorageIoError::write_logs(AnyError::new(error)).into()
}
