//! The one thread that writes: batches in, in order, each answered when it is on disk.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rocksdb::{DB, WriteBatch, WriteOptions};
use tokio::sync::oneshot;

use super::StoreError;

/// Raft's loop waits for each of its writes, a snapshot and the mark of removal may stand beside it: this never fills.
const QUEUE_MAX: usize = 16;

struct Job {
    batch: WriteBatch,
    sync: bool,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// The handle to the thread. Dropping it lets the thread finish what is queued and waits for that.
pub(super) struct Writer {
    queue: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(db: Arc<DB>) -> Result<Self, StoreError> {
        let (queue, jobs) = sync_channel(QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name("directory-write".into())
            .spawn(move || run(&db, &jobs))
            .map_err(|error| StoreError::Internal(format!("can't start the writing thread: {error}")))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Writes a batch, and returns when it is in the log of the database; with `sync`, on stable storage.
    pub(super) async fn write(&self, batch: WriteBatch, sync: bool) -> Result<(), StoreError> {
        let done = self.enqueue(batch, sync)?;
        done.await.map_err(|_| StoreError::Closed)?
    }

    /// Like [`Self::write`] with `sync`, for when there is no runtime yet.
    pub(super) fn write_blocking(&self, batch: WriteBatch) -> Result<(), StoreError> {
        // `blocking_recv` refuses to run on a runtime's thread, where opening a database is already a blocking act.
        let mut done = self.enqueue(batch, true)?;
        loop {
            match done.try_recv() {
                Ok(result) => return result,
                Err(oneshot::error::TryRecvError::Empty) => std::thread::yield_now(),
                Err(oneshot::error::TryRecvError::Closed) => return Err(StoreError::Closed),
            }
        }
    }

    fn enqueue(
        &self,
        batch: WriteBatch,
        sync: bool,
    ) -> Result<oneshot::Receiver<Result<(), StoreError>>, StoreError> {
        let (done, waiting) = oneshot::channel();
        let queue = self.queue.as_ref().ok_or(StoreError::Closed)?;
        queue.send(Job { batch, sync, done }).map_err(|_| StoreError::Closed)?;
        Ok(waiting)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the directory's writing thread panicked");
        }
    }
}

fn run(db: &DB, jobs: &Receiver<Job>) {
    while let Ok(Job { batch, sync, done }) = jobs.recv() {
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        // Whoever no longer waits has been dropped with the runtime: the write stands all the same.
        let _ = done.send(db.write_opt(batch, &options).map_err(StoreError::from));
    }
}
