//! The common configuration (virtio 1.2, 4.1.4.3) and the device's status (2.1): the registers by which driver and device
//! agree on features and queues.
//!
//! ```text
//!   0 ──► ACKNOWLEDGE ──► DRIVER ──► FEATURES_OK ──► DRIVER_OK      each bit stays until the reset
//!   ▲                     features    queues, vectors     │ Activate
//!   └── quiet ◄── resetting ◄───────── a write of 0 ◄─────┘ Reset
//! ```
//!
//! Pure. A driver may write anything in any order: what is not its turn is ignored.

use super::{ConfigChange, VERSION_1};
use crate::state::{QueueState, RestoreError, TransportState};

/// "No vector" in the registers for vectors.
pub const NO_VECTOR: u16 = 0xffff;
/// Bytes of the structure.
pub const COMMON_BYTES: u32 = 56;

const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;
const NEEDS_RESET: u8 = 0x40;

/// A queue's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueRegisters {
    /// Most entries.
    pub size_max: u16,
    /// Entries.
    pub size: u16,
    /// Vector of its interrupt.
    pub vector: u16,
    /// In use.
    pub enabled: bool,
    /// Descriptor table, available ring, used ring.
    pub addresses: [u64; 3],
}

impl QueueRegisters {
    fn new(size_max: u16) -> Self {
        Self { size_max, size: size_max, vector: NO_VECTOR, enabled: false, addresses: [0; 3] }
    }
}

/// What has to happen after a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The driver is ready.
    Activate,
    /// The driver wants a reset.
    Reset,
}

/// The registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transport {
    offered: u64,
    vectors: u16,
    status: u8,
    offered_select: u32,
    accepted_select: u32,
    accepted: u64,
    config_vector: u16,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
    resetting: bool,
}

impl Transport {
    /// A device that offers these features, with so many vectors, and queues of at most these sizes.
    pub fn new(offered: u64, vectors: u16, queue_sizes: &[u16]) -> Self {
        Self {
            offered: offered | VERSION_1,
            vectors,
            status: 0,
            offered_select: 0,
            accepted_select: 0,
            accepted: 0,
            config_vector: NO_VECTOR,
            queue_select: 0,
            queues: queue_sizes.iter().map(|size| QueueRegisters::new(*size)).collect(),
            resetting: false,
        }
    }

    /// Features that were agreed on.
    pub fn features(&self) -> u64 {
        self.accepted
    }

    /// The queues.
    pub fn queues(&self) -> &[QueueRegisters] {
        &self.queues
    }

    /// The device has forgotten everything.
    pub fn reset_done(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.size_max).collect();
        *self = Self::new(self.offered, self.vectors, &sizes);
    }

    /// Whether a reset is under way.
    pub fn is_resetting(&self) -> bool {
        self.resetting
    }

    fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The registers, with what the device itself tells.
    pub fn save(&self, change: &ConfigChange) -> TransportState {
        let queue = |queue: &QueueRegisters| {
            let [descriptors, driver, device] = queue.addresses;
            let QueueRegisters { size, vector, enabled, .. } = *queue;
            QueueState { size, vector, enabled, descriptors, driver, device }
        };
        TransportState {
            offered: self.offered,
            status: self.status,
            broken: change.is_broken(),
            resetting: self.resetting,
            offered_select: self.offered_select,
            accepted_select: self.accepted_select,
            accepted: self.accepted,
            config_vector: self.config_vector,
            config_generation: change.generation(),
            queue_select: self.queue_select,
            queues: self.queues.iter().map(queue).collect(),
        }
    }

    /// Whether these are registers that a driver of this device could have come to.
    pub fn check(&self, state: &TransportState) -> Result<(), RestoreError> {
        let missing = state.accepted & !self.offered;
        if missing != 0 && state.status & FEATURES_OK != 0 {
            let what = format!("its guest uses features {missing:#x} that this device does not offer");
            return Err(RestoreError::OtherMachine(what));
        }
        if state.queues.len() != self.queues.len() {
            return Err(RestoreError::OtherMachine(format!("a device has {} queues", state.queues.len())));
        }
        let vector = |vector: u16| vector < self.vectors || vector == NO_VECTOR;
        let fair = state.queues.iter().zip(&self.queues).all(|(saved, ours)| {
            saved.size.is_power_of_two() && saved.size <= ours.size_max && vector(saved.vector)
        });
        let ready = state.status & DRIVER_OK == 0 || state.status & FEATURES_OK != 0;
        if fair && ready && vector(state.config_vector) && state.status & NEEDS_RESET == 0 {
            Ok(())
        } else {
            Err(RestoreError::Damaged("registers that no driver comes to"))
        }
    }

    /// As it was when it was saved. Whether the driver is ready.
    pub fn restore(&mut self, state: &TransportState, change: &ConfigChange) -> bool {
        change.restore(state.config_generation, state.broken);
        self.status = state.status;
        self.resetting = state.resetting;
        (self.offered_select, self.accepted_select) = (state.offered_select, state.accepted_select);
        self.accepted = state.accepted;
        (self.config_vector, self.queue_select) = (state.config_vector, state.queue_select);
        for (queue, saved) in self.queues.iter_mut().zip(&state.queues) {
            queue.size = saved.size;
            (queue.vector, queue.enabled) = (saved.vector, saved.enabled);
            queue.addresses = [saved.descriptors, saved.driver, saved.device];
        }
        self.status & DRIVER_OK != 0 && !self.resetting
    }

    /// Which vector tells of changes; none is [`NO_VECTOR`].
    pub fn config_vector(&self) -> u16 {
        self.config_vector
    }

    /// A read; `change` has what the device itself tells. Fields are read whole, those of 64 bits also by halves; anything else reads as zeros.
    pub fn read(&self, offset: u32, change: &ConfigChange, data: &mut [u8]) {
        data.fill(0);
        let half = |value: u64, select: u32| if select < 2 { value >> (32 * select) } else { 0 };
        let queue = self.queue();
        let of_queue = |field: fn(&QueueRegisters) -> u16| queue.map_or(0, |queue| u64::from(field(queue)));
        let value: u64 = match (offset, data.len()) {
            (0, 4) => u64::from(self.offered_select),
            (4, 4) => half(self.offered, self.offered_select) & 0xffff_ffff,
            (8, 4) => u64::from(self.accepted_select),
            (12, 4) => half(self.accepted, self.accepted_select) & 0xffff_ffff,
            (16, 2) => u64::from(self.config_vector),
            (18, 2) => self.queues.len() as u64,
            (20, 1) if change.is_broken() => u64::from(self.status | NEEDS_RESET),
            (20, 1) => u64::from(self.status),
            (21, 1) => u64::from(change.generation()),
            (22, 2) => u64::from(self.queue_select),
            (24, 2) => of_queue(|queue| queue.size),
            (26, 2) => queue.map_or(u64::from(NO_VECTOR), |queue| u64::from(queue.vector)),
            (28, 2) => of_queue(|queue| u16::from(queue.enabled)),
            (30, 2) if queue.is_some() => u64::from(self.queue_select),
            (32..56, 4 | 8) if offset.is_multiple_of(data.len() as u32) => {
                let address = queue.map_or(0, |queue| queue.addresses[(offset as usize - 32) / 8]);
                address >> (8 * (offset % 8))
            }
            _ => 0,
        };
        for (byte, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = from;
        }
    }

    /// A write.
    pub fn write(&mut self, offset: u32, data: &[u8]) -> Effect {
        let mut bytes = [0; 8];
        let Some(place) = bytes.get_mut(..data.len()) else { return Effect::None };
        place.copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        if self.resetting {
            return Effect::None;
        }
        match (offset, data.len()) {
            (0, 4) => self.offered_select = value as u32,
            (8, 4) => self.accepted_select = value as u32,
            (12, 4) => self.accept(value),
            (16, 2) => self.config_vector = self.checked_vector(value as u16),
            (20, 1) => return self.set_status(value as u8),
            (22, 2) => self.queue_select = value as u16,
            (24..56, _) => self.set_queue(offset, data.len(), value),
            _ => {}
        }
        Effect::None
    }

    fn accept(&mut self, value: u64) {
        if self.accepted_select < 2 && self.status & FEATURES_OK == 0 {
            let shift = 32 * self.accepted_select;
            self.accepted = self.accepted & !(0xffff_ffff << shift) | value << shift;
        }
    }

    fn checked_vector(&self, vector: u16) -> u16 {
        if vector < self.vectors { vector } else { NO_VECTOR }
    }

    fn set_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            self.resetting = true;
            return Effect::Reset;
        }
        let had = self.status;
        // Bits are only ever added, and the device's own is not the driver's to set.
        self.status |= value & !NEEDS_RESET;
        let agreeable = self.accepted & !self.offered == 0 && self.accepted & VERSION_1 != 0;
        if had & FEATURES_OK == 0 && !agreeable {
            self.status &= !FEATURES_OK;
        }
        if self.status & FEATURES_OK == 0 {
            self.status &= !DRIVER_OK;
        }
        if had & DRIVER_OK == 0 && self.status & DRIVER_OK != 0 { Effect::Activate } else { Effect::None }
    }

    fn set_queue(&mut self, offset: u32, bytes: usize, value: u64) {
        let vector = self.checked_vector(value as u16);
        let ready = self.status & FEATURES_OK != 0 && self.status & DRIVER_OK == 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        if queue.enabled || !ready {
            return;
        }
        match (offset, bytes) {
            (24, 2) if (value as u16).is_power_of_two() && value as u16 <= queue.size_max => {
                queue.size = value as u16;
            }
            (26, 2) => queue.vector = vector,
            (28, 2) if value == 1 => queue.enabled = true,
            (32..56, 8) if offset.is_multiple_of(8) => queue.addresses[(offset as usize - 32) / 8] = value,
            (32..56, 4) if offset.is_multiple_of(4) => {
                let address = &mut queue.addresses[(offset as usize - 32) / 8];
                let shift = 8 * (offset % 8);
                *address = *address & !(0xffff_ffff << shift) | value << shift;
            }
            _ => {}
        }
    }
}
