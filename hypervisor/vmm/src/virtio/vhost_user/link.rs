//! The thread that keeps a device connected. It alone talks to the back end, so nobody else ever waits for one.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::{info, warn};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::connection::{Connection, InFlight};
use super::control::{self, Command};
use super::role::{self, NET_ANNOUNCE};
use super::{Role, VhostUserError};
use crate::events::borrow;
use crate::machine::lock;
use crate::outside::BackEnd;
use crate::virtio::ring::{Ring, RingFault};
use crate::virtio::{Active, ConfigChange};

/// Between two attempts to reach a back end that has gone.
const DIAL_EVERY: Duration = Duration::from_millis(100);
/// Failures in a row are told again after so many.
const TELL_EVERY: u32 = 600;

/// What the processors' half wants.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// The rings that should run.
    pub(super) wanted: Option<Active>,
    /// Counts resets.
    pub(super) resets: u64,
    /// Configuration and region are those of a machine that was saved.
    pub(super) restored: bool,
    /// Counts orders.
    pub(super) number: u64,
    /// The last order that was carried out.
    pub(super) done: u64,
    /// The VM is paused: no rings, whatever is wanted.
    pub(super) hold: bool,
    /// The thread has obeyed that.
    pub(super) held: bool,
    /// The VM has ended.
    pub(super) over: bool,
}

/// What both halves have.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) order: Mutex<Order>,
    pub(super) wake: EventFd,
    /// The configuration as the guest sees it.
    pub(super) config: Mutex<Vec<u8>>,
    /// Requests that a back end has taken.
    pub(super) in_flight: Mutex<InFlight>,
    /// Pairs of a network card's queues that are in use.
    pub(super) pairs: AtomicU16,
    /// Whether the back end is there.
    pub(super) connected: AtomicBool,
}

/// The thread's state.
pub(super) struct Link {
    back_end: BackEnd,
    role: Role,
    memory: GuestMemoryMmap,
    shared: Arc<Shared>,
    connection: Option<Connection>,
    /// Rings that this connection's back end has.
    running: Option<Active>,
    change: ConfigChange,
    /// A network card's control queue, and what was asked for by it.
    control: Option<Ring>,
    /// Features of the driver that has set up the rings.
    features: u64,
    /// The rings were lost, and with them what the network knew.
    lost: bool,
    seen: u64,
    resets: u64,
    /// The order that the guest made impossible.
    refused: Option<u64>,
    /// Dials, and starts of rings, that failed in a row.
    failures: u32,
    starts_failed: u32,
}

impl Link {
    pub(super) fn new(
        back_end: BackEnd,
        role: Role,
        memory: GuestMemoryMmap,
        connection: Connection,
        shared: Arc<Shared>,
        change: ConfigChange,
    ) -> Self {
        Self {
            back_end,
            role,
            memory,
            shared,
            connection: Some(connection),
            running: None,
            change,
            control: None,
            features: 0,
            lost: false,
            seen: 0,
            resets: 0,
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
        let (wanted, resets, restored, number, hold) = {
            let mut order = lock(&self.shared.order);
            let restored = std::mem::take(&mut order.restored);
            (order.wanted.clone(), order.resets, restored, order.number, order.hold)
        };
        if number != self.seen {
            // Two orders may have come at once, so each begins by stopping.
            self.stop();
            if resets != self.resets {
                self.forget();
            }
            (self.seen, self.resets) = (number, resets);
            self.begin(wanted.as_ref());
        }
        if restored {
            // The network believes the guest to be where it was, and the disk may have grown meanwhile.
            self.lost = true;
            self.refresh();
        }
        if hold {
            self.stop();
        } else if let (Some(active), None) = (&wanted, &self.running)
            && self.refused != Some(number)
        {
            self.start(active.clone());
        }
        // A reset is done even if nobody is there: a back end that has gone touches nothing.
        {
            let mut order = lock(&self.shared.order);
            order.done = number;
            order.held = hold;
        }
        if !hold {
            self.serve_control();
        }
    }

    fn path(&self) -> &Path {
        self.back_end.path()
    }

    /// The driver wants everything forgotten, also what was in flight: the next one has its own.
    fn forget(&mut self) {
        *lock(&self.shared.in_flight) = InFlight::default();
        self.shared.pairs.store(1, Ordering::Release);
        self.lost = false;
        role::set_announcing(&mut lock(&self.shared.config), false);
    }

    /// Another driver, or none.
    fn begin(&mut self, wanted: Option<&Active>) {
        self.control = None;
        let Some(active) = wanted else { return };
        self.features = active.features;
        let index = self.role.control_queue(active.features);
        let Some(queue) = active.queues.iter().find(|queue| Some(queue.index) == index) else { return };
        match Ring::new(queue, active.features, self.memory.clone()) {
            Ok(ring) => self.control = Some(ring),
            Err(fault) => self.lose_control(fault),
        }
    }

    /// A driver that breaks the rules of its control queue has none until the reset; its other queues go on.
    fn lose_control(&mut self, fault: RingFault) {
        warn!("{}: control queue: {fault}; it waits for the device's reset", self.path().display());
        self.control = None;
        self.change.needs_reset();
    }

    /// Carries out what the driver asks for by its control queue.
    fn serve_control(&mut self) {
        let Some(mut ring) = self.control.take() else { return };
        let pairs_max = self.role.data_queues(self.features) / 2;
        let served = control::serve(&mut ring, self.features, pairs_max, |command| self.obey(command));
        match served {
            Ok(again) => {
                if again {
                    // Full means that it rings already.
                    let _ = ring.kick().write(1);
                }
                self.control = Some(ring);
            }
            Err(fault) => self.lose_control(fault),
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Announced => role::set_announcing(&mut lock(&self.shared.config), false),
            Command::Pairs(pairs) => {
                self.shared.pairs.store(pairs, Ordering::Release);
                if let (Some(connection), Some(running)) = (&mut self.connection, &self.running)
                    && let Err(error) = connection.use_pairs(running, pairs)
                {
                    warn!("{error}");
                    self.hang_up();
                }
            }
        }
    }

    /// Has the driver tell the network where it is, if it can.
    fn announce(&mut self) {
        if self.features & NET_ANNOUNCE != 0 {
            role::set_announcing(&mut lock(&self.shared.config), true);
            self.change.changed();
        }
    }

    /// Asks for the configuration again, and tells the driver if it is another one.
    fn refresh(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let mut now = match connection.config() {
            Ok(now) => now,
            Err(error) => {
                warn!("{error}");
                self.hang_up();
                return;
            }
        };
        let mut config = lock(&self.shared.config);
        if role::is_announcing(&config) {
            role::set_announcing(&mut now, true);
        }
        if *config != now {
            info!("{}: the configuration has changed", self.path().display());
            *config = now;
            drop(config);
            self.change.changed();
        }
    }

    fn dial(&mut self) {
        match Connection::open(&self.back_end, self.role) {
            Ok(connection) => {
                if self.failures > 0 {
                    info!("{}: connected again", self.path().display());
                }
                self.failures = 0;
                self.connection = Some(connection);
                self.shared.connected.store(true, Ordering::Release);
                self.meet_again();
            }
            Err(error) => {
                if self.failures.is_multiple_of(TELL_EVERY) {
                    warn!("{error}; trying again, the guest waits meanwhile");
                }
                self.failures = self.failures.saturating_add(1);
            }
        }
    }

    /// What may have changed while the back end was away.
    fn meet_again(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        match connection.check_mtu() {
            Ok(()) => {}
            // The guest has its MTU already: larger frames are lost, and everything else goes on.
            Err(error @ VhostUserError::Mtu { .. }) => warn!("{error}"),
            Err(error) => {
                warn!("{error}");
                self.hang_up();
            }
        }
        self.refresh();
    }

    fn start(&mut self, active: Active) {
        let Some(connection) = &mut self.connection else { return };
        let pairs = self.shared.pairs.load(Ordering::Acquire);
        let mut in_flight = lock(&self.shared.in_flight);
        let started = connection.start(&active, &self.memory, &mut in_flight, pairs);
        drop(in_flight);
        match started {
            Ok(()) => {
                self.running = Some(active);
                self.starts_failed = 0;
                if std::mem::take(&mut self.lost) {
                    self.announce();
                }
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
        self.lost |= self.running.take().is_some();
        self.shared.connected.store(false, Ordering::Release);
    }

    /// For an order, the control queue, a notice, the other side's end, or the time to dial again.
    fn wait(&mut self) {
        let dial = Timespec { tv_sec: 0, tv_nsec: DIAL_EVERY.as_nanos() as i64 };
        let mut waited = vec![PollFd::from_borrowed_fd(borrow(&self.shared.wake), PollFlags::IN)];
        if let Some(ring) = &self.control {
            waited.push(PollFd::from_borrowed_fd(borrow(ring.kick()), PollFlags::IN));
        }
        let connection_at = waited.len();
        if let Some(connection) = &self.connection {
            // Nothing is said here without being asked; what comes is the end.
            waited.push(PollFd::new(connection, PollFlags::RDHUP | PollFlags::IN));
            if let Some(notices) = connection.notices() {
                waited.push(PollFd::new(notices, PollFlags::IN));
            }
        }
        let timeout = self.connection.is_none().then_some(&dial);
        // An interrupted wait is one that was too short.
        let _ = poll(&mut waited, timeout);
        let seen = |at: usize| waited.get(at).is_some_and(|fd| !fd.revents().is_empty());
        let (gone, noticed) = (seen(connection_at), seen(connection_at + 1));
        drop(waited);
        if let Some(ring) = &self.control {
            let _ = ring.kick().read();
        }
        if self.shared.wake.read().is_ok() {
            return;
        }
        if gone {
            warn!("{}: the back end has gone; the guest waits until it is back", self.path().display());
            self.failures = 1;
            self.hang_up();
        } else if noticed && self.connection.as_mut().is_some_and(Connection::take_notices) {
            self.refresh();
        }
    }
}
