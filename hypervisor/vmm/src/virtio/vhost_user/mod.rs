//! Devices whose queues another process serves over vhost-user: `vsand`'s volumes, `vswitchd`'s ports, or anybody else's.
//!
//! The front end has two halves. [`VhostUser`] is what the guest's processors see: features and configuration as they were
//! when the VM started, and switches that are thrown at once. Its thread ([`link`]) has the socket, and throws them.
//!
//! ```text
//!            processors                                thread
//!   activate ──► wanted = Active(…) ──── wake ──►  rings are started
//!   reset    ──► wanted = Nothing   ──── wake ──►  rings are stopped ──► quiet
//!                                                  back end gone: dial again, for as long as it takes, and start
//!                                                  the rings where they were
//! ```
//!
//! **In flight.** Requests that a back end had taken when it died are in a region of memory that we keep for it; the next
//! one does them again. Rings go on at the used index, as the region's protocol wants it. To the guest it is a pause.

mod connection;
mod link;
pub mod reader;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tracing::warn;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Active, ConfigChange, Device, DeviceKind};
use crate::machine::lock;
use link::{Link, Shared};

/// Most queues of a block device.
pub const QUEUES_MAX: u16 = 16;
/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 256;
/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Indirect descriptors, event index, version 1: what a transport of ours has.
const TRANSPORT_FEATURES: u64 = 1 << 28 | 1 << 29 | super::VERSION_1;
/// The MAC address is in the configuration.
const NET_MAC: u64 = 1 << 5;
/// Checksums, segmentation and merged buffers; no control queue, which a back end does not serve.
const NET_FEATURES: u64 = 0x0001_ff83 & !(1 << 16);
/// All of a block device's but the switch of its cache, which would be ours to pass on.
const BLOCK_FEATURES: u64 = 0x00ff_ffff & !(1 << 11);
/// More queues than one.
const BLOCK_MQ: u64 = 1 << 12;
/// Bytes of a block device's configuration that we ask for.
const BLOCK_CONFIG_BYTES: u32 = 60;
/// Where the number of queues is in it.
const BLOCK_CONFIG_QUEUES: usize = 34;

/// A MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

/// What the device is, with what only the front end knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A block device with so many queues.
    Block {
        /// Queues.
        queues: u16,
    },
    /// A network card with one pair of queues.
    Net {
        /// Its address.
        mac: Mac,
    },
}

impl Role {
    fn queues(self) -> u16 {
        match self {
            Self::Block { queues } => queues,
            Self::Net { .. } => 2,
        }
    }

    /// Features that the front end has itself, whatever the back end offers.
    fn own_features(self) -> u64 {
        match self {
            Self::Block { .. } => 0,
            Self::Net { .. } => NET_MAC,
        }
    }

    /// Which of a back end's features may be offered to the guest.
    fn features(self) -> u64 {
        TRANSPORT_FEATURES
            | match self {
                Self::Block { queues: 1 } => BLOCK_FEATURES & !BLOCK_MQ,
                Self::Block { .. } => BLOCK_FEATURES,
                Self::Net { .. } => NET_FEATURES,
            }
    }
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
    role: Role,
    features: u64,
    config: Vec<u8>,
    shared: Arc<Shared>,
    change: ConfigChange,
}

impl VhostUser {
    /// Connects to the socket, learns what the back end offers, and starts the thread.
    pub fn connect(path: PathBuf, role: Role, memory: GuestMemoryMmap) -> Result<Self, VhostUserError> {
        let mut connection = connection::Connection::open(&path, role)?;
        if matches!(role, Role::Block { .. }) && !connection.tracks_requests() {
            warn!(
                "{}: no tracking of requests: those in flight are lost if the back end dies",
                path.display()
            );
        }
        let offered = connection.features() & role.features();
        let (features, config) = match role {
            Role::Block { queues } => (offered, block_config(connection.block_config()?, queues)),
            Role::Net { mac } => (offered | role.own_features(), mac.0.to_vec()),
        };
        let system = |source| VhostUserError::System { path: path.clone(), source };
        let shared =
            Arc::new(Shared { wake: EventFd::new(EFD_NONBLOCK).map_err(system)?, order: Mutex::default() });
        let name =
            path.file_stem().map_or_else(|| "vhost".into(), |stem| stem.to_string_lossy().into_owned());
        let link = Link::new(path.clone(), role, memory, connection, Arc::clone(&shared));
        std::thread::Builder::new()
            .name(format!("vhost-{name}"))
            .spawn(move || link.run())
            .map_err(|source| VhostUserError::System { path, source })?;
        Ok(Self { role, features, config, shared, change: ConfigChange::default() })
    }

    fn order(&self, wanted: Option<Active>) {
        let mut order = lock(&self.shared.order);
        order.wanted = wanted;
        order.number += 1;
        // A full counter wakes it too.
        let _ = self.shared.wake.write(1);
    }
}

/// The number of queues that the guest is told is the smaller of both sides'.
fn block_config(mut config: Vec<u8>, queues: u16) -> Vec<u8> {
    if let Some(place) = config.get_mut(BLOCK_CONFIG_QUEUES..BLOCK_CONFIG_QUEUES + 2) {
        let theirs = u16::from_le_bytes([place[0], place[1]]).max(1);
        place.copy_from_slice(&theirs.min(queues).to_le_bytes());
    }
    config
}

impl Drop for VhostUser {
    fn drop(&mut self) {
        lock(&self.shared.order).over = true;
        let _ = self.shared.wake.write(1);
    }
}

impl Device for VhostUser {
    fn kind(&self) -> DeviceKind {
        match self.role {
            Role::Block { .. } => DeviceKind::Block,
            Role::Net { .. } => DeviceKind::Net,
        }
    }

    fn features(&self) -> u64 {
        self.features & !PROTOCOL_FEATURES
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; usize::from(self.role.queues())]
    }

    fn config_read(&self, offset: usize, data: &mut [u8]) {
        for (byte, from) in data.iter_mut().zip(self.config.iter().skip(offset)) {
            *byte = *from;
        }
    }

    fn activate(&mut self, active: Active) {
        self.order(Some(active));
    }

    fn reset(&mut self) {
        self.order(None);
    }

    fn config_change(&self) -> ConfigChange {
        self.change.clone()
    }

    fn is_quiet(&self) -> bool {
        let order = lock(&self.shared.order);
        order.done == order.number
    }
}
