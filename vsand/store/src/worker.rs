//! The thread that writes checkpoints to `RocksDB`, which may block for milliseconds. The loop hands it batches over a
//! channel and learns of their end from an eventfd in its ring.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

use crate::meta::{Meta, MetaError, MetaOp};

/// The thread's niceness.
const NICE: i32 = 5;

pub(crate) struct Worker {
    jobs: Option<Sender<Vec<MetaOp>>>,
    results: Receiver<Result<(), MetaError>>,
    event: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(crate) fn start(meta: Arc<Meta>, name: &str) -> io::Result<Self> {
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (jobs, inbox) = channel::<Vec<MetaOp>>();
        let (outbox, results) = channel();
        let bell = Arc::clone(&event);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // A checkpoint has time; requests of guests have none. (`None` is the calling thread.)
            if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                tracing::warn!(%error, "the metadata thread keeps its priority: guests may see longer pauses");
            }
            for ops in inbox {
                if outbox.send(meta.commit(&ops)).is_err() {
                    return;
                }
                // Writing fails only when the counter is at its end, and then the loop has been rung anyway.
                let _ = rustix::io::write(&bell, &1_u64.to_ne_bytes());
            }
        })?;
        Ok(Self { jobs: Some(jobs), results, event, thread: Some(thread) })
    }

    /// Becomes readable when a batch has ended.
    pub(crate) fn event(&self) -> &OwnedFd {
        &self.event
    }

    /// Hands over a batch; there is at most one at a time.
    pub(crate) fn commit(&self, ops: Vec<MetaOp>) -> Result<(), MetaError> {
        let gone = || MetaError::Db("its thread has ended".to_owned());
        self.jobs.as_ref().ok_or_else(gone)?.send(ops).map_err(|_| gone())
    }

    /// The result of the batch, once it is there.
    pub(crate) fn result(&self) -> Option<Result<(), MetaError>> {
        let result = self.results.try_recv().ok()?;
        let _ = rustix::io::read(&self.event, &mut [0_u8; 8]);
        Some(result)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the metadata thread has panicked");
        }
    }
}
