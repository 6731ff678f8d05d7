//! The threads of a VM's process, by what they do: each is started here, with its name and its confinement.

use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::thread::CpuSet;
use tracing::{Span, error};

use crate::confine::Filters;

/// A thread's stack: much less than 2 MiB, or a kernel that gives out huge pages unasked backs all of it with the first touch.
const STACK_BYTES: usize = 512 << 10;

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
#[derive(Debug, Clone)]
pub struct Threads {
    /// Whose messages a thread's are.
    span: Span,
    filters: Option<Arc<Filters>>,
}

impl Default for Threads {
    /// They may do what the process may.
    fn default() -> Self {
        Self::unconfined(Span::none())
    }
}

impl Threads {
    /// Threads that may do what the process may.
    pub fn unconfined(span: Span) -> Self {
        Self { span, filters: None }
    }

    /// Threads that may do what these filters say.
    pub fn confined(span: Span, filters: Filters) -> Self {
        Self { span, filters: Some(Arc::new(filters)) }
    }

    /// Puts this thread, the only one so far, and those that come under the filter of the start.
    pub fn confine_start(&self) -> Result<(), String> {
        self.filters.as_ref().map_or(Ok(()), |filters| filters.confine_start())
    }

    /// Puts the first thread under its own filter; no thread is started after that.
    pub fn confine_main(&self) -> Result<(), String> {
        self.filters.as_ref().map_or(Ok(()), |filters| filters.confine_main())
    }

    /// Starts a thread, on these processors of the host if there are any.
    pub fn spawn(
        &self,
        kind: ThreadKind,
        name: String,
        cpus: Option<Arc<CpuSet>>,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        let (span, filters) = (self.span.clone(), self.filters.clone());
        std::thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || {
            let _entered = span.enter();
            if let Some(cpus) = cpus
                && let Err(failed) = rustix::thread::sched_setaffinity(None, &cpus)
            {
                // They were there when the VM started: the host has lost them since, and the guest had better go on.
                error!("this thread can't be kept on its processors: {failed}");
            }
            if let Some(filters) = filters
                && let Err(failed) = filters.confine(kind)
            {
                // The filter of the start lets it be done, so the kernel is out of memory or not as it was.
                error!("this thread can't be confined: {failed}; the VM ends");
                std::process::abort();
            }
            body();
        })
    }
}

/// Gives all threads one heap, before there are any. They allocate little; heaps of their own would cost memory, and the C
/// library opens a file when one of them shrinks, which a confined thread may not.
#[allow(unsafe_code)]
pub fn share_heap() {
    // SAFETY: the call takes two numbers and changes a setting of the allocator. That it fails means that nothing changed.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
