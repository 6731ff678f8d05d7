//! The first 256 bytes of a function (PCI local bus specification 3.0, chapter 6): which bits a guest may change, where
//! the BARs are, the list of capabilities. There is no extended space: what lies above reads as zeros.

use crate::layout::{PCI_WINDOW_BYTES, PCI_WINDOW_START};

/// Bytes of it.
pub const CONFIG_BYTES: usize = 256;
/// BARs of a function.
pub const BARS_MAX: usize = 6;

const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_MASTER: u8 = 1 << 2;
/// In the upper byte: bit 10 of the register.
const COMMAND_NO_INTERRUPT_LINE: u8 = 1 << 2;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const BARS: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const CAPABILITIES_START: usize = 0x40;

/// Number of a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BarIndex(pub u8);

/// What a function says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Vendor and device of the subsystem.
    pub subsystem: (u16, u16),
    /// Revision.
    pub revision: u8,
    /// Class, sub-class, programming interface.
    pub class: [u8; 3],
}

/// A capability to be listed.
#[derive(Debug, Clone, Copy)]
pub struct Capability<'a> {
    /// Its id.
    pub id: u8,
    /// What follows the id and the pointer to the next.
    pub body: &'a [u8],
    /// Which bits of the body a guest may change; shorter than the body: none of the rest.
    pub writable: &'a [u8],
}

/// A BAR that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedBar {
    /// Which.
    pub index: BarIndex,
    /// Where.
    pub address: u32,
    /// Bytes.
    pub bytes: u32,
}

/// The configuration space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
    writable: [u8; CONFIG_BYTES],
    /// Bytes of each BAR; 0 is none.
    bars: [u32; BARS_MAX],
    capabilities_end: usize,
}

impl ConfigSpace {
    /// A function without BARs and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            bars: [0; BARS_MAX],
            capabilities_end: CAPABILITIES_START,
        };
        let Identity { vendor, device, subsystem, revision, class } = identity;
        space.put(0, &vendor.to_le_bytes());
        space.put(2, &device.to_le_bytes());
        space.put(REVISION, &[revision]);
        space.put(CLASS, &[class[2], class[1], class[0]]);
        space.put(SUBSYSTEM, &subsystem.0.to_le_bytes());
        space.put(SUBSYSTEM + 2, &subsystem.1.to_le_bytes());
        space.writable[COMMAND] = COMMAND_MEMORY | COMMAND_MASTER;
        space.writable[COMMAND + 1] = COMMAND_NO_INTERRUPT_LINE;
        space.writable[INTERRUPT_LINE] = 0xff;
        space
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Adds a BAR of 32-bit memory. `bytes` is a power of two of at least 16; our own devices' sizes are constants.
    pub fn add_bar(&mut self, index: BarIndex, bytes: u32) {
        assert!(bytes.is_power_of_two() && bytes >= 16, "BARs have a power of two of bytes");
        let slot = usize::from(index.0);
        self.bars[slot] = bytes;
        let at = BARS + 4 * slot;
        self.writable[at..at + 4].copy_from_slice(&(!(bytes - 1)).to_le_bytes());
    }

    /// Bytes of each BAR that there is.
    pub fn bars(&self) -> impl Iterator<Item = (BarIndex, u32)> + '_ {
        (0..).map(BarIndex).zip(self.bars).filter(|(_, bytes)| *bytes > 0)
    }

    /// Sets the address of a BAR, as firmware does.
    pub fn place_bar(&mut self, index: BarIndex, address: u32) {
        self.put(BARS + 4 * usize::from(index.0), &address.to_le_bytes());
    }

    /// The BARs that answer: memory is switched on, and they lie in the window as a whole.
    pub fn mapped_bars(&self) -> impl Iterator<Item = MappedBar> + '_ {
        let on = self.bytes[COMMAND] & COMMAND_MEMORY != 0;
        self.bars().filter(move |_| on).filter_map(|(index, bytes)| {
            let address = self.bar_address(index);
            let offset = address.checked_sub(PCI_WINDOW_START)?;
            let inside = offset.checked_add(bytes).is_some_and(|end| end <= PCI_WINDOW_BYTES);
            inside.then_some(MappedBar { index, address, bytes })
        })
    }

    fn bar_address(&self, index: BarIndex) -> u32 {
        let at = BARS + 4 * usize::from(index.0);
        // The lowest four bits say what kind of BAR it is; all of ours are zero there.
        self.bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    /// Lists a capability and returns where its id stands. Ours fit; that they do is a matter of constants.
    pub fn add_capability(&mut self, capability: Capability<'_>) -> u8 {
        let at = self.capabilities_end;
        let end = at + 2 + capability.body.len();
        assert!(end <= CONFIG_BYTES, "the capabilities do not fit");
        let previous = self.last_capability();
        self.put(at, &[capability.id, 0]);
        self.put(at + 2, capability.body);
        for (place, bits) in self.writable[at + 2..end].iter_mut().zip(capability.writable) {
            *place = *bits;
        }
        self.put(previous, &[at as u8]);
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.capabilities_end = end.next_multiple_of(4);
        at as u8
    }

    /// Where the pointer stands that ends the list.
    fn last_capability(&self) -> usize {
        let mut pointer = CAPABILITIES;
        while self.bytes[pointer] != 0 {
            pointer = usize::from(self.bytes[pointer]) + 1;
        }
        pointer
    }

    /// A read; what lies outside reads as zeros.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// A guest's write: only what it may change changes.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (byte, at) in data.iter().zip(offset..) {
            if let (Some(old), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *old = *old & !mask | byte & mask;
            }
        }
    }

    /// All of it.
    pub fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Whether this is what a function like this one had: what no guest can change is the same.
    pub fn is_like(&self, saved: &[u8]) -> bool {
        let ours = self.bytes.iter().zip(&self.writable);
        saved.len() == CONFIG_BYTES
            && saved.iter().zip(ours).all(|(saved, (ours, mask))| (saved ^ ours) & !mask == 0)
    }

    /// As it was when it was saved; what no guest can change stays.
    pub fn restore(&mut self, saved: &[u8]) {
        self.write(0, saved);
    }

    /// One byte; 0 outside.
    pub fn byte(&self, offset: usize) -> u8 {
        self.bytes.get(offset).copied().unwrap_or(0)
    }
}
