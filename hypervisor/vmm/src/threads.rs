//! The threads of a VM's process, by what they do: each is started here, with its name and its confinement.

use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::thread::CpuSet;
use tracing::{Span, error};

/// What a thread does, and so what it may ask of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs a virtual processor.
    Processor,
    /// Keeps a device connected to its back end.
    Link,
    /// Serves a device's queues in this process.
    Device,
    /// Serves the control API.
    Api,
}

/// Who starts threads. Clones are the same.
/// By default they may do what the process may.
#[derive(Debug, Clone, Default)]
pub struct Threads {
    /// Whose messages a thread's are.
    span: Span,
}

impl Threads {
    /// Threads that may do what the process may.
    pub fn unconfined(span: Span) -> Self {
        Self { span }
    }

    /// Starts a thread, on these processors of the host if there are any.
    pub fn spawn(
        &self,
        kind: ThreadKind,
        name: String,
        cpus: Option<Arc<CpuSet>>,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        let span = self.span.clone();
        let _ = kind;
        std::thread::Builder::new().name(name).spawn(move || {
            let _entered = span.enter();
            if let Some(cpus) = cpus
                && let Err(failed) = rustix::thread::sched_setaffinity(None, &cpus)
            {
                // They were there when the VM started: the host has lost them since, and the guest had better go on.
                error!("this thread can't be kept on its processors: {failed}");
            }
            body();
        })
    }
}
