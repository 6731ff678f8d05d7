//! Devices whose queues another process serves over vhost-user: `vsand`'s volumes, `vswitchd`'s ports, or anybody else's.
//!
//! The front end has two halves. [`VhostUser`] is what the guest's processors see: features as they were when the VM
//! started, the configuration, and switches that are thrown at once. Its thread ([`link`]) has the socket, and throws them.
//!
//! ```text
//!            processors                                thread
//!   activate ──► wanted = Active(…) ──── wake ──►  rings are started
//!   reset    ──► wanted = Nothing   ──── wake ──►  rings are stopped ──► quiet
//!                                                  back end gone: dial again, for as long as it takes, and start
//!                                                  the rings where they were
//!   hold     ──► no rings for now ──── wake ──►  rings are stopped, which finishes what is in flight; then started again
//!                                                  configuration changed: asked for again, the driver is interrupted
//!   control queue of a network card ────────────►  served: which pairs of queues are in use, announcements
//! ```
//!
//! **In flight.** Requests that a back end had taken when it died are in a region of memory that we keep for it; the next
//! one does them again. Rings go on at the used index, as the region's protocol wants it. To the guest it is a pause.

mod connection;
mod control;
mod kept;
mod link;
mod notices;
pub mod reader;
mod role;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use tracing::warn;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ring::{Ring, RingFault};
use super::{Active, ConfigChange, Device, DeviceKind};
use crate::machine::lock;
use crate::outside::BackEnd;
use crate::state::{DeviceState, RestoreError};
use crate::threads::{ThreadKind, Threads};
use kept::Kept;
use link::{Link, Order, Shared};
use role::PROTOCOL_FEATURES;
pub use role::{MTU_MIN, Mac, PAIRS_MAX, QUEUES_MAX, Role};

/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 256;

/// Answers what is in a network card's control queue and carries nothing out; whether there is more.
pub(super) fn serve_control(ring: &mut Ring, features: u64, pairs_max: u16) -> Result<bool, RingFault> {
    control::serve(ring, features, pairs_max, |_| {})
}

/// Why a device can't be connected when the VM starts.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// Nobody listens.
    #[error("{path}: {source}. Is the daemon up, and the volume or port opened for this VM?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The conversation failed.
    #[error("{path}: {what}: {source}")]
    Talk {
        /// The socket.
        path: PathBuf,
        /// What was said.
        what: &'static str,
        /// What came back.
        source: vhost::Error,
    },
    /// The back end lacks something.
    #[error("{path}: the back end does not offer {what}")]
    Missing {
        /// The socket.
        path: PathBuf,
        /// What.
        what: &'static str,
    },
    /// The back end's network has a smaller MTU.
    #[error(
        "{path}: the port refuses an MTU of {mtu}: give the VM a smaller one, or its port group a larger one"
    )]
    Mtu {
        /// The socket.
        path: PathBuf,
        /// What was wanted, in bytes.
        mtu: u16,
    },
    /// The guest has put its rings where it has no memory.
    #[error("{path}: the guest's rings are outside of its memory; the device waits for its next reset")]
    Rings {
        /// The socket.
        path: PathBuf,
    },
    /// Out of descriptors or threads.
    #[error("{path}: {source}")]
    System {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// The processors' half.
#[derive(Debug)]
pub struct VhostUser {
    path: PathBuf,
    role: Role,
    kept: Kept,
    features: u64,
    shared: Arc<Shared>,
    change: ConfigChange,
}

impl VhostUser {
    /// Connects to the socket, learns what the back end offers, and starts the thread.
    pub fn connect(
        back_end: BackEnd,
        role: Role,
        memory: GuestMemoryMmap,
        threads: &Threads,
    ) -> Result<Self, VhostUserError> {
        let mut connection = connection::Connection::open(&back_end, role)?;
        let path = back_end.path().to_owned();
        if matches!(role, Role::Block { .. }) && !connection.tracks_requests() {
            warn!(
                "{}: no tracking of requests: those in flight are lost if the back end dies",
                path.display()
            );
        }
        let features = role.offer(connection.features(), connection.has_config());
        let config = Mutex::new(connection.config()?);
        connection.check_mtu()?;
        let change = ConfigChange::default();
        let system = |source| VhostUserError::System { path: path.clone(), source };
        let shared = Arc::new(Shared {
            wake: EventFd::new(EFD_NONBLOCK).map_err(system)?,
            order: Mutex::default(),
            config,
            in_flight: Mutex::default(),
            pairs: AtomicU16::new(1),
            connected: AtomicBool::new(true),
        });
        let name =
            path.file_stem().map_or_else(|| "vhost".into(), |stem| stem.to_string_lossy().into_owned());
        let kept = Kept::new(memory.clone());
        let link = Link::new(back_end, role, memory, connection, Arc::clone(&shared), change.clone());
        // Nobody waits for its end: it may be in the middle of a conversation.
        let _ = threads
            .spawn(ThreadKind::Link, format!("vhost-{name}"), None, move || link.run())
            .map_err(system)?;
        Ok(Self { path, role, kept, features, shared, change })
    }

    fn order(&self, change: impl FnOnce(&mut Order)) {
        let mut order = lock(&self.shared.order);
        change(&mut order);
        order.number += 1;
        // A full counter wakes it too.
        let _ = self.shared.wake.write(1);
    }
}

impl Drop for VhostUser {
    fn drop(&mut self) {
        lock(&self.shared.order).over = true;
        let _ = self.shared.wake.write(1);
    }
}

impl Device for VhostUser {
    fn kind(&self) -> DeviceKind {
        self.role.kind()
    }

    fn features(&self) -> u64 {
        self.features & !PROTOCOL_FEATURES
    }

    fn queue_sizes(&self) -> Vec<u16> {
        // The control queue is behind all others, or behind those of a guest that uses one pair.
        let control = self.role.control_queue(self.features);
        vec![QUEUE_SIZE; usize::from(self.role.data_queues_max() + u16::from(control.is_some()))]
    }

    fn config_read(&self, offset: usize, data: &mut [u8]) {
        for (byte, from) in data.iter_mut().zip(lock(&self.shared.config).iter().skip(offset)) {
            *byte = *from;
        }
    }

    fn activate(&mut self, active: Active) {
        self.kept.begin(self.role, &active);
        self.order(|order| order.wanted = Some(active));
    }

    fn reset(&mut self) {
        self.kept.end();
        self.order(|order| {
            order.wanted = None;
            order.resets += 1;
        });
    }

    fn config_change(&self) -> ConfigChange {
        self.change.clone()
    }

    fn save(&self) -> DeviceState {
        let state = self.kept.save(&self.shared);
        match self.role.kind() {
            DeviceKind::Net => DeviceState::Net(state),
            _ => DeviceState::Block(state),
        }
    }

    fn check(&self, state: &DeviceState) -> Result<(), RestoreError> {
        match (self.role, state) {
            (Role::Net { .. }, DeviceState::Net(state)) | (Role::Block { .. }, DeviceState::Block(state)) => {
                Kept::check(self.role, state, &lock(&self.shared.config))
            }
            _ => Err(RestoreError::Damaged("a device at a socket with another device's state")),
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Net(state) | DeviceState::Block(state) => {
                Kept::restore(state, &self.shared)?;
                self.order(|order| order.restored = true);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn is_quiet(&self) -> bool {
        let order = lock(&self.shared.order);
        order.done == order.number
    }

    fn id(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    fn is_connected(&self) -> bool {
        self.shared.connected.load(Ordering::Acquire)
    }

    fn hold(&mut self, still: bool) {
        let mut order = lock(&self.shared.order);
        order.hold = still;
        order.held = false;
        // A full counter wakes it too.
        let _ = self.shared.wake.write(1);
    }

    fn is_held(&self) -> bool {
        let order = lock(&self.shared.order);
        order.held == order.hold
    }
}
