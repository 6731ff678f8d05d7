//! The thread that serves the rings of a device in this process. Processors only say what they want, and go on.
//!
//! ```text
//!            processors                            thread
//!   activate ──► wanted = Active(…) ── wake ──►  rings are made, Service::begin
//!   reset    ──► wanted = Nothing   ── wake ──►  rings are dropped ──► quiet
//!   hold     ──► hold               ── wake ──►  rings are dropped ──► quiet; afterwards made again where they were
//!   doorbell ─────────────────────────────────►  Service::serve
//! ```
//!
//! **Invariants.** A service works in bounded rounds and never waits; between two rounds the thread looks whether it is
//! wanted elsewhere. Rings that break the rules are dropped, the driver is told that the device needs a reset, and nothing
//! else of the VM notices.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::warn;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ring::{Ring, RingFault};
use super::{Active, ConfigChange};
use crate::events::borrow;
use crate::machine::lock;
use crate::threads::{ThreadKind, Threads};

/// What a device does with its rings.
pub trait Service: Send + 'static {
    /// The driver is ready, with these features. Nothing of an earlier time counts.
    fn begin(&mut self, features: u64);
    /// Serves what is there, in a bounded round. When it wants to be called again though nobody rings.
    fn serve(&mut self, rings: &mut [Ring], now: Instant) -> Result<Option<Instant>, RingFault>;
}

#[derive(Debug, Default)]
struct Order {
    wanted: Option<Active>,
    hold: bool,
    number: u64,
    done: u64,
    over: bool,
}

#[derive(Debug)]
struct Shared {
    order: Mutex<Order>,
    wake: EventFd,
}

/// The processors' half.
#[derive(Debug)]
pub struct Worker(Arc<Shared>);

/// Wakes the thread, for a round of its service.
#[derive(Debug, Clone)]
pub struct Waker(Arc<Shared>);

impl Waker {
    /// Wakes it.
    pub fn wake(&self) {
        // Full means that it is awake.
        let _ = self.0.wake.write(1);
    }
}

impl Worker {
    /// Starts the thread. It ends when this is dropped.
    pub fn start(
        name: &str,
        service: impl Service,
        memory: GuestMemoryMmap,
        change: ConfigChange,
        threads: &Threads,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { order: Mutex::default(), wake: EventFd::new(EFD_NONBLOCK)? });
        let thread = Thread {
            name: name.to_owned(),
            shared: Arc::clone(&shared),
            service,
            memory,
            change,
            rings: Vec::new(),
            seen: 0,
        };
        // Nobody waits for its end: it ends when this is dropped.
        let _ = threads.spawn(ThreadKind::Device, name.to_owned(), None, move || thread.run())?;
        Ok(Self(shared))
    }

    /// What wakes it.
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.0))
    }

    fn order(&self, change: impl FnOnce(&mut Order)) {
        let mut order = lock(&self.0.order);
        change(&mut order);
        order.number += 1;
        drop(order);
        self.waker().wake();
    }

    /// The driver is ready.
    pub fn activate(&self, active: Active) {
        self.order(|order| order.wanted = Some(active));
    }

    /// The driver wants everything forgotten; over when [`Self::is_quiet`].
    pub fn reset(&self) {
        self.order(|order| order.wanted = None);
    }

    /// Nothing is served while it holds still; so it is when [`Self::is_quiet`]. What was taken is given back by then.
    pub fn hold(&self, still: bool) {
        self.order(|order| order.hold = still);
    }

    /// Whether the last order was carried out.
    pub fn is_quiet(&self) -> bool {
        let order = lock(&self.0.order);
        order.done == order.number
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.order(|order| order.over = true);
    }
}

struct Thread<S> {
    name: String,
    shared: Arc<Shared>,
    service: S,
    memory: GuestMemoryMmap,
    change: ConfigChange,
    rings: Vec<Ring>,
    seen: u64,
}

impl<S: Service> Thread<S> {
    fn run(mut self) {
        while !lock(&self.shared.order).over {
            self.obey();
            let again = match self.service.serve(&mut self.rings, Instant::now()) {
                Ok(again) => again,
                Err(fault) => {
                    self.give_up(fault);
                    None
                }
            };
            self.wait(again);
        }
    }

    fn obey(&mut self) {
        let (wanted, hold, number) = {
            let order = lock(&self.shared.order);
            (order.wanted.clone(), order.hold, order.number)
        };
        if number == self.seen {
            return;
        }
        self.rings.clear();
        if let Some(active) = wanted.filter(|_| !hold) {
            let memory = &self.memory;
            let rings = active.queues.iter().map(|queue| Ring::new(queue, active.features, memory.clone()));
            match rings.collect() {
                Ok(rings) => {
                    self.rings = rings;
                    self.service.begin(active.features);
                }
                Err(fault) => self.give_up(fault),
            }
        }
        self.seen = number;
        lock(&self.shared.order).done = number;
    }

    fn give_up(&mut self, fault: RingFault) {
        warn!("{}: {fault}; the device waits for its reset", self.name);
        self.rings.clear();
        self.change.needs_reset();
    }

    /// For an order, a doorbell, or the time that the service named.
    fn wait(&self, again: Option<Instant>) {
        let time = again.map(|again| {
            let left = again.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) }
        });
        let bells = std::iter::once(&self.shared.wake).chain(self.rings.iter().map(Ring::kick));
        let mut waited: Vec<_> =
            bells.clone().map(|bell| PollFd::from_borrowed_fd(borrow(bell), PollFlags::IN)).collect();
        // An interrupted wait is one that was too short.
        let _ = poll(&mut waited, time.as_ref());
        for bell in bells {
            let _ = bell.read();
        }
    }
}
