//! What there is to save of a device at a socket: its configuration, where its rings are, and the region of requests that
//! a back end had taken. The back end has nothing that it would not learn again from these.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use rustix::fs::MemfdFlags;
use tracing::warn;
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::connection::InFlight;
use super::link::Shared;
use super::role::Role;
use crate::machine::lock;
use crate::state::{IN_FLIGHT_MAX, InFlightState, RestoreError, RingIndex, VhostUserState};
use crate::virtio::Active;

/// Where to look for the rings.
#[derive(Debug)]
pub(super) struct Kept {
    memory: GuestMemoryMmap,
    /// Queue and used ring of those that run.
    rings: Vec<(u16, GuestAddress)>,
}

impl Kept {
    pub(super) fn new(memory: GuestMemoryMmap) -> Self {
        Self { memory, rings: Vec::new() }
    }

    /// The driver has set up its rings.
    pub(super) fn begin(&mut self, role: Role, active: &Active) {
        self.rings = role.served(active).map(|queue| (queue.index, queue.device)).collect();
    }

    /// It has reset the device.
    pub(super) fn end(&mut self) {
        self.rings.clear();
    }

    /// Of a device that holds still.
    pub(super) fn save(&self, shared: &Shared) -> VhostUserState {
        let index = |(queue, used): &(u16, GuestAddress)| {
            // Behind the flags (virtio 1.2, 2.7.8). A ring outside of the guest's memory is nowhere.
            let at = GuestAddress(used.0.checked_add(2)?);
            let index: u16 = self.memory.load(at, Ordering::Acquire).ok()?;
            Some(RingIndex { queue: *queue, index })
        };
        VhostUserState {
            config: lock(&shared.config).clone(),
            pairs: shared.pairs.load(Ordering::Acquire),
            used: self.rings.iter().filter_map(index).collect(),
            in_flight: save_region(&lock(&shared.in_flight)),
        }
    }

    /// Whether a device of this role could have come to this.
    pub(super) fn check(role: Role, state: &VhostUserState, config: &[u8]) -> Result<(), RestoreError> {
        let pairs = (role.data_queues_max() / 2).max(1);
        if !(1..=pairs).contains(&state.pairs) || state.config.len() != config.len() {
            return Err(RestoreError::Damaged("a device at a socket with another configuration"));
        }
        match &state.in_flight {
            Some(region) if region.bytes.is_empty() || region.bytes.len() as u64 > IN_FLIGHT_MAX => {
                Err(RestoreError::Damaged("a region of requests in flight that is none"))
            }
            _ => Ok(()),
        }
    }

    /// As it was, for the thread to start from.
    pub(super) fn restore(state: &VhostUserState, shared: &Shared) -> Result<(), RestoreError> {
        let region = state.in_flight.as_ref().map(restore_region).transpose();
        *lock(&shared.in_flight) = InFlight(region.map_err(|error| RestoreError::System(error.to_string()))?);
        shared.pairs.store(state.pairs, Ordering::Release);
        lock(&shared.config).clone_from(&state.config);
        Ok(())
    }
}

fn save_region(region: &InFlight) -> Option<InFlightState> {
    let (place, file) = region.0.as_ref()?;
    let mut bytes = vec![0; place.mmap_size.min(IN_FLIGHT_MAX) as usize];
    match file.read_exact_at(&mut bytes, place.mmap_offset) {
        Ok(()) => Some(InFlightState { queues: place.num_queues, queue_size: place.queue_size, bytes }),
        // The back end has given us a file that is shorter than it says: there is nothing in it to be done again.
        Err(error) => {
            warn!("the region of requests in flight can't be read: {error}");
            None
        }
    }
}

fn restore_region(state: &InFlightState) -> std::io::Result<(VhostUserInflight, File)> {
    let file = File::from(rustix::fs::memfd_create("in-flight", MemfdFlags::CLOEXEC)?);
    file.write_all_at(&state.bytes, 0)?;
    let place = VhostUserInflight::new(state.bytes.len() as u64, 0, state.queues, state.queue_size);
    Ok((place, file))
}
