//! The state of a machine's devices, as something to keep or to send: everything that a guest could find changed, and
//! nothing of the process that serves it (descriptors, threads, sockets, addresses of this host).
//!
//! ```text
//!   Machine ── save ──► MachineState ── JSON ──► MachineState ── restore ──► a machine of the same devices
//! ```
//!
//! It is taken while the machine is paused: processors stand still, and no request of a device is half done. What is not
//! in it: memory, processors and interrupt controllers, which are KVM's to give.
//!
//! **Format.** The first field says which one; another one is refused. A field is never given another meaning: what comes
//! new is a new format, with the step from the one before.
//!
//! - 1: the first.
//!
//! **Restoring** checks everything before it changes anything, as far as it is about what the state says: it has to be a
//! machine with the same devices in the same slots. What a device's registers say afterwards is what they said before.

use serde::{Deserialize, Serialize};

/// The format that is written.
pub const FORMAT: u32 = 1;
/// Most bytes of a region of requests in flight: sixteen queues of 256 take a quarter of a mebibyte.
pub const IN_FLIGHT_MAX: u64 = 1 << 20;

/// A machine's devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    /// [`FORMAT`] of who wrote it.
    pub format: u32,
    /// The serial port.
    pub serial: SerialState,
    /// Events that the guest has not read from the generic event device.
    pub events_pending: u8,
    /// Whether a crash kernel has taken over (pvpanic).
    pub crash_kernel: bool,
    /// The address register of the PCI configuration ports.
    pub pci_address: u32,
    /// The devices on the bus, by slot.
    pub functions: Vec<FunctionState>,
}

/// The registers of a 16550, and what is in its FIFO.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialState {
    /// Divisor latch, low byte.
    pub divisor_low: u8,
    /// Divisor latch, high byte.
    pub divisor_high: u8,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Interrupt identification register.
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Line status register.
    pub line_status: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register.
    pub modem_status: u8,
    /// Scratch register.
    pub scratch: u8,
    /// What was received and not read yet.
    #[serde(with = "hex")]
    pub received: Vec<u8>,
}

/// A function on the PCI bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionState {
    /// Its slot.
    pub slot: u8,
    /// Its configuration space, 256 bytes.
    #[serde(with = "hex")]
    pub config: Vec<u8>,
    /// What is behind it, if it is a virtio device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtio: Option<VirtioState>,
}

/// A virtio device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtioState {
    /// The registers of the common configuration.
    pub transport: TransportState,
    /// Interrupts.
    pub msix: MsixState,
    /// What the device itself knows.
    pub device: DeviceState,
}

/// The common configuration of a virtio device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransportState {
    /// What it offered.
    pub offered: u64,
    /// The device's status.
    pub status: u8,
    /// Whether it waits for its reset since it can't go on.
    pub broken: bool,
    /// Whether a reset is under way.
    pub resetting: bool,
    /// Which half of the offered features is shown.
    pub offered_select: u32,
    /// Which half of the accepted features is shown.
    pub accepted_select: u32,
    /// The accepted features.
    pub accepted: u64,
    /// The vector for changes of the configuration.
    pub config_vector: u16,
    /// How often the configuration has changed.
    pub config_generation: u8,
    /// Which queue is shown.
    pub queue_select: u16,
    /// The queues.
    pub queues: Vec<QueueState>,
}

/// A queue's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    /// Entries.
    pub size: u16,
    /// Vector of its interrupt.
    pub vector: u16,
    /// Whether it is in use.
    pub enabled: bool,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub driver: u64,
    /// Used ring.
    pub device: u64,
}

/// The table of messages, with its switches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixState {
    /// The switches of the capability.
    pub control: u16,
    /// The entries, 16 bytes each.
    #[serde(with = "hex")]
    pub table: Vec<u8>,
    /// Vectors that were signalled while they were masked.
    pub pending: Vec<u16>,
}

/// What a virtio device itself knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum DeviceState {
    /// A source of random numbers: nothing.
    Rng,
    /// A balloon.
    Balloon(BalloonState),
    /// A disk, served by another process.
    Block(VhostUserState),
    /// A network card, served by another process.
    Net(VhostUserState),
}

/// What a balloon knows. Statistics are not in it: their buffer is in its ring, and comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonState {
    /// Pages that the guest should give back.
    pub target_pages: u32,
    /// Pages that it says it has given back.
    pub actual_pages: u32,
    /// What it fills free pages with.
    pub poison: u32,
    /// Bytes that it has reported as free.
    pub reported_bytes: u64,
}

/// What the front end of a device knows that another process serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VhostUserState {
    /// The configuration as the guest sees it.
    #[serde(with = "hex")]
    pub config: Vec<u8>,
    /// Pairs of a network card's queues that are in use; 1 for others.
    pub pairs: u16,
    /// Where the rings are: the used indices, by queue. The guest's memory has them too, and what it has counts.
    pub used: Vec<RingIndex>,
    /// Requests that a back end had taken, in the form that its protocol gives them; absent without a region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<InFlightState>,
}

/// Where a ring is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingIndex {
    /// The queue.
    pub queue: u16,
    /// Index of the next entry that will be used.
    pub index: u16,
}

/// A region of requests in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InFlightState {
    /// Queues.
    pub queues: u16,
    /// Entries of each.
    pub queue_size: u16,
    /// What is in it.
    #[serde(with = "hex")]
    pub bytes: Vec<u8>,
}

/// Why a state can't be that of this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// A format of another version.
    #[error("the state has format {0} and this version reads {FORMAT}: use the version that wrote it")]
    Format(u32),
    /// Not the same devices.
    #[error("the state is of another machine: {0}; start this one with the same devices in the same order")]
    OtherMachine(String),
    /// Something that no device of ours says.
    #[error("the state is damaged: {0}; take it anew")]
    Damaged(&'static str),
    /// The host is out of something.
    #[error("restoring the state: {0}")]
    System(String),
}

/// Bytes as hexadecimal digits.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
        let text: String = bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect();
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let digit =
            |byte: u8| char::from(byte).to_digit(16).ok_or_else(|| D::Error::custom("no hexadecimal digit"));
        if !text.len().is_multiple_of(2) {
            return Err(D::Error::custom("half a byte"));
        }
        let byte = |pair: &[u8]| Ok((digit(pair[0])? << 4 | digit(pair[1])?) as u8);
        text.as_bytes().chunks_exact(2).map(byte).collect()
    }
}
