//! The thread that keeps a device connected. It alone talks to the back end, so nobody else ever waits for one.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::{info, warn};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::connection::{Connection, InFlight};
use super::{Role, VhostUserError};
use crate::events::borrow;
use crate::machine::lock;
use crate::virtio::Active;

/// Between two attempts to reach a back end that has gone.
const DIAL_EVERY: Duration = Duration::from_millis(100);
/// Failures in a row are told again after so many.
const TELL_EVERY: u32 = 600;

/// What the processors' half wants.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// The rings that should run.
    pub(super) wanted: Option<Active>,
    /// Counts orders.
    pub(super) number: u64,
    /// The last order that was carried out.
    pub(super) done: u64,
    /// The VM has ended.
    pub(super) over: bool,
}

/// What both halves have.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) order: Mutex<Order>,
    pub(super) wake: EventFd,
}

/// The thread's state.
pub(super) struct Link {
    path: PathBuf,
    role: Role,
    memory: GuestMemoryMmap,
    shared: Arc<Shared>,
    connection: Option<Connection>,
    /// Rings that this connection's back end has.
    running: Option<Active>,
    in_flight: InFlight,
    seen: u64,
    /// The order that the guest made impossible.
    refused: Option<u64>,
    /// Dials, and starts of rings, that failed in a row.
    failures: u32,
    starts_failed: u32,
}

impl Link {
    pub(super) fn new(
        path: PathBuf,
        role: Role,
        memory: GuestMemoryMmap,
        connection: Connection,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            path,
            role,
            memory,
            shared,
            connection: Some(connection),
            running: None,
            in_flight: None,
            seen: 0,
            refused: None,
            failures: 0,
            starts_failed: 0,
        }
    }

    /// Until the VM ends.
    pub(super) fn run(mut self) {
        while !lock(&self.shared.order).over {
            self.turn();
            self.wait();
        }
    }

    fn turn(&mut self) {
        if self.connection.is_none() {
            self.dial();
        }
        let (wanted, number) = {
            let order = lock(&self.shared.order);
            (order.wanted.clone(), order.number)
        };
        if number != self.seen {
            // Between two orders there is a reset, also when the thread saw neither.
            self.stop();
            self.in_flight = None;
            self.seen = number;
        }
        if let (Some(active), None) = (&wanted, &self.running)
            && self.refused != Some(number)
        {
            self.start(active.clone());
        }
        // A reset is done even if nobody is there: a back end that has gone touches nothing.
        lock(&self.shared.order).done = number;
    }

    fn dial(&mut self) {
        match Connection::open(&self.path, self.role) {
            Ok(connection) => {
                if self.failures > 0 {
                    info!("{}: connected again", self.path.display());
                }
                self.failures = 0;
                self.connection = Some(connection);
            }
            Err(error) => {
                if self.failures.is_multiple_of(TELL_EVERY) {
                    warn!("{error}; trying again, the guest waits meanwhile");
                }
                self.failures = self.failures.saturating_add(1);
            }
        }
    }

    fn start(&mut self, active: Active) {
        let Some(connection) = &mut self.connection else { return };
        match connection.start(&active, &self.memory, &mut self.in_flight, self.role) {
            Ok(()) => {
                self.running = Some(active);
                self.starts_failed = 0;
            }
            // Trying again would not help: only the guest can.
            Err(error @ VhostUserError::Rings { .. }) => {
                warn!("{error}");
                self.refused = Some(self.seen);
                self.hang_up();
            }
            Err(error) => {
                if self.starts_failed.is_multiple_of(TELL_EVERY) {
                    warn!("{error}; trying again, the guest waits meanwhile");
                }
                self.starts_failed = self.starts_failed.saturating_add(1);
                self.hang_up();
            }
        }
    }

    fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
        if let Some(connection) = &mut self.connection
            && let Err(error) = connection.stop(&running)
        {
            warn!("{error}");
            self.hang_up();
        }
    }

    /// A back end whose connection has ended gives the guest's memory back.
    fn hang_up(&mut self) {
        self.connection = None;
        self.running = None;
    }

    /// For an order, the other side's end, or the time to dial again.
    fn wait(&mut self) {
        let dial = Timespec { tv_sec: 0, tv_nsec: DIAL_EVERY.as_nanos() as i64 };
        let mut waited = vec![PollFd::from_borrowed_fd(borrow(&self.shared.wake), PollFlags::IN)];
        if let Some(connection) = &self.connection {
            // Nothing is said without being asked; what comes is the end.
            waited.push(PollFd::new(connection, PollFlags::RDHUP | PollFlags::IN));
        }
        let timeout = self.connection.is_none().then_some(&dial);
        // An interrupted wait is one that was too short.
        let _ = poll(&mut waited, timeout);
        let gone = waited.get(1).is_some_and(|connection| !connection.revents().is_empty());
        drop(waited);
        if self.shared.wake.read().is_ok() {
            return;
        }
        if gone {
            warn!("{}: the back end has gone; the guest waits until it is back", self.path.display());
            self.failures = 1;
            self.hang_up();
        }
    }
}
