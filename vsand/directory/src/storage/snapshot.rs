//! The state machine as Raft sees it, and its snapshots.

use std::io::Cursor;
use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder};
use rocksdb::WriteBatch;
use serde::{Deserialize, Serialize};

use super::{SNAPSHOT, Store, StoreError, to_bytes};
use crate::machine::{DecodeError, Frozen, Machine};
use crate::types::{
    Applied, Entry, LogId, Snapshot, SnapshotMeta, StorageError, StorageIoError, StoredMembership, Types,
};

/// Snapshots are stored in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;
const HEAD_KEY: &[u8] = b"m";
const PIECE_PREFIX: u8 = b'd';

/// What is known of the stored snapshot without reading it.
#[derive(Serialize, Deserialize)]
pub(super) struct SnapshotHead {
    pub(super) meta: SnapshotMeta,
    bytes: u64,
}

impl Store {
    pub(super) fn read_snapshot_head(&self) -> Result<Option<SnapshotHead>, StoreError> {
        self.get(SNAPSHOT, HEAD_KEY, "snapshot head")
    }

    fn read_snapshot(&self) -> Result<Option<(SnapshotMeta, Vec<u8>)>, StoreError> {
        // Head and pieces of one moment, even if a newer snapshot is written meanwhile.
        let view = self.db.snapshot();
        let column = self.column(SNAPSHOT)?;
        let damaged = |source| StoreError::Damaged { what: "snapshot", source };
        let Some(head) = view.get_pinned_cf(column, HEAD_KEY)? else { return Ok(None) };
        let head: SnapshotHead = crate::machine::decode(&head).map_err(damaged)?;
        let mut data = Vec::new();
        for piece in 0..head.bytes.div_ceil(PIECE_BYTES as u64) {
            match view.get_pinned_cf(column, piece_key(piece as u32))? {
                Some(bytes) => data.extend_from_slice(&bytes),
                None => return Err(damaged(DecodeError::Short)),
            }
        }
        if data.len() as u64 != head.bytes {
            return Err(damaged(DecodeError::Short));
        }
        Ok(Some((head.meta, data)))
    }

    /// Stores a snapshot in place of the one before, unless that one is newer.
    async fn write_snapshot(&self, meta: &SnapshotMeta, data: &[u8]) -> Result<(), StoreError> {
        let mut at = self.snapshot_at.lock().await;
        if *at > meta.last_log_id {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        {
            let column = self.column(SNAPSHOT)?;
            batch.delete_range_cf(column, piece_key(0), [PIECE_PREFIX + 1].as_slice().to_vec());
            for (piece, bytes) in data.chunks(PIECE_BYTES).enumerate() {
                batch.put_cf(column, piece_key(piece as u32), bytes);
            }
            let head = SnapshotHead { meta: meta.clone(), bytes: data.len() as u64 };
            batch.put_cf(column, HEAD_KEY, to_bytes(&head)?);
        }
        self.writer.write(batch, true).await?;
        *at = meta.last_log_id;
        Ok(())
    }
}

fn piece_key(piece: u32) -> Vec<u8> {
    let mut key = vec![PIECE_PREFIX];
    key.extend_from_slice(&piece.to_be_bytes());
    key
}

/// The state machine of one member, with what Raft wants to know about it.
pub(crate) struct MachineStore {
    store: Arc<Store>,
    machine: Arc<dyn Machine>,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl MachineStore {
    /// Loads the stored snapshot, if there is one, into the machine.
    pub(crate) fn open(store: Arc<Store>, machine: Arc<dyn Machine>) -> Result<Self, StoreError> {
        let mut this = Self { store, machine, applied: None, membership: StoredMembership::default() };
        if let Some((meta, data)) = this.store.read_snapshot()? {
            let place = this
                .machine
                .prepare(&data)
                .map_err(|source| StoreError::Damaged { what: "snapshot", source })?;
            place(meta.last_log_id.map_or(0, |id| id.index));
            (this.applied, this.membership) = (meta.last_log_id, meta.last_membership);
        }
        Ok(this)
    }
}

impl RaftStateMachine<Types> for MachineStore {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = Vec::new();
        for Entry { log_id, payload } in entries {
            self.applied = Some(log_id);
            let proposal = match payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(proposal) => Some(proposal),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(log_id), membership);
                    None
                }
            };
            batch.push((log_id.index, proposal));
        }
        let (Some(last), Some(&(index, _))) = (self.applied, batch.last()) else { return Ok(Vec::new()) };
        self.machine
            .apply(batch, index)
            .map_err(|error| StorageIoError::apply(last, AnyError::new(&error)).into())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            store: Arc::clone(&self.store),
            frozen: self.machine.freeze(),
            applied: self.applied,
            membership: self.membership.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let failed = |error: StoreError| {
            StorageError::from(StorageIoError::write_snapshot(Some(meta.signature()), AnyError::new(&error)))
        };
        let data = snapshot.into_inner();
        // Checked before it is stored, stored before it is used.
        let place = self
            .machine
            .prepare(&data)
            .map_err(|source| failed(StoreError::Damaged { what: "received snapshot", source }))?;
        self.store.write_snapshot(meta, &data).await.map_err(failed)?;
        place(meta.last_log_id.map_or(0, |id| id.index));
        (self.applied, self.membership) = (meta.last_log_id, meta.last_membership.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let failed = |error: StoreError| {
            StorageError::from(StorageIoError::read_snapshot(None, AnyError::new(&error)))
        };
        let store = Arc::clone(&self.store);
        let read = tokio::task::spawn_blocking(move || store.read_snapshot()).await;
        let found = read.map_err(|error| failed(StoreError::Internal(error.to_string())))?.map_err(failed)?;
        Ok(found.map(|(meta, data)| Snapshot { meta, snapshot: Box::new(Cursor::new(data)) }))
    }
}

/// Builds a snapshot of the state that was present when it was asked for.
pub(crate) struct Builder {
    store: Arc<Store>,
    frozen: Frozen,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        // Who built it stands in the name, so that pieces of two hosts' snapshots are never put together.
        let host = self.store.identity().host;
        let snapshot_id = self.applied.map_or_else(|| format!("empty-{host}"), |id| format!("{id}-{host}"));
        let meta =
            SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone(), snapshot_id };
        let failed = |error: StoreError| {
            StorageError::from(StorageIoError::write_snapshot(Some(meta.signature()), AnyError::new(&error)))
        };
        let frozen = Arc::clone(&self.frozen);
        let data = tokio::task::spawn_blocking(move || frozen())
            .await
            .map_err(|error| failed(StoreError::Internal(error.to_string())))?
            .map_err(|error| failed(StoreError::Internal(error.to_string())))?;
        self.store.write_snapshot(&meta, &data).await.map_err(failed)?;
        tracing::debug!(bytes = data.len(), id = %meta.snapshot_id, "snapshot of the directory written");
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(data)) })
    }
}
