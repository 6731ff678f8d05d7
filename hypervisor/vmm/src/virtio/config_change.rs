//! How a device tells its driver that something has changed outside of the rings: its configuration, or that it can't go
//! on. The transport shows both; whoever serves the device has a clone of this and signals.
//!
//! ```text
//!   changed      generation + 1, interrupt     the driver reads the configuration again (virtio 1.2, 4.1.4.3.2)
//!   needs_reset  a bit of the status, interrupt    the driver is to reset the device (virtio 1.2, 2.1.2)
//! ```
//!
//! Before the driver is ready nobody is interrupted: it reads both by itself then.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use crate::machine::lock;

#[derive(Debug, Default)]
struct Shared {
    generation: AtomicU8,
    broken: AtomicBool,
    call: Mutex<Option<Arc<EventFd>>>,
}

/// The connection between a device and its transport. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct ConfigChange(Arc<Shared>);

impl ConfigChange {
    /// The configuration is another one now.
    pub fn changed(&self) {
        self.0.generation.fetch_add(1, Ordering::AcqRel);
        self.signal();
    }

    /// The device can't go on before its driver resets it.
    pub fn needs_reset(&self) {
        self.0.broken.store(true, Ordering::Release);
        self.signal();
    }

    fn signal(&self) {
        if let Some(call) = lock(&self.0.call).as_ref() {
            // Full means that it is signalled already.
            let _ = call.write(1);
        }
    }

    /// How often it has changed, as the driver sees it.
    pub fn generation(&self) -> u8 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Whether it waits for its reset.
    pub fn is_broken(&self) -> bool {
        self.0.broken.load(Ordering::Acquire)
    }

    /// The driver is ready, and wants to be told this way.
    pub(super) fn connect(&self, call: Option<Arc<EventFd>>) {
        *lock(&self.0.call) = call;
    }

    /// As it was when it was saved.
    pub(super) fn restore(&self, generation: u8, broken: bool) {
        self.0.generation.store(generation, Ordering::Release);
        self.0.broken.store(broken, Ordering::Release);
    }

    /// After a reset.
    pub(super) fn reset(&self) {
        self.connect(None);
        self.0.broken.store(false, Ordering::Release);
    }
}
