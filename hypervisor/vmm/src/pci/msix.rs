//! MSI-X (PCI local bus specification 3.0, 6.8.2): a table of messages in a BAR, each of which may be masked.
//!
//! Only the table. What a message does, and what becomes of one that is sent while it is masked, is [`Vectors`]' matter.

use std::fmt::Debug;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::Capability;
use crate::state::{MsixState, RestoreError};

/// Id of the capability.
pub const CAPABILITY_ID: u8 = 0x11;
/// Bytes of an entry.
pub const ENTRY_BYTES: u32 = 16;
/// Most vectors that a device of ours has.
pub const VECTORS_MAX: u16 = 64;

const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;
const ENTRY_MASKED: u32 = 1;
const ENTRY_CONTROL: usize = 12;

/// What is written where to interrupt a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Address.
    pub address: u64,
    /// Data.
    pub data: u32,
}

/// The vectors of a device, as something that can be signalled.
pub trait Vectors: Send + Debug {
    /// From now on the vector sends this message; `None`: it keeps what is signalled until it has one.
    fn route(&mut self, vector: u16, message: Option<Message>);
    /// Whether the vector was signalled while it had no message.
    fn pending(&self, vector: u16) -> bool;
    /// What signals the vector; whoever has it, signals.
    fn signal(&self, vector: u16) -> Option<Arc<EventFd>>;
}

/// The table, with the two switches of the capability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MsixTable {
    entries: Vec<[u8; ENTRY_BYTES as usize]>,
    control: u16,
}

impl MsixTable {
    /// A table after its reset: all masked, switched off.
    pub fn new(vectors: u16) -> Self {
        assert!((1..=VECTORS_MAX).contains(&vectors), "a device of ours has 1 to {VECTORS_MAX} vectors");
        let mut masked = [0; ENTRY_BYTES as usize];
        masked[ENTRY_CONTROL] = ENTRY_MASKED as u8;
        Self { entries: vec![masked; usize::from(vectors)], control: 0 }
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        self.entries.len() as u16
    }

    /// The capability's body: where in BAR `bar` the table and the pending bits are.
    pub fn capability(&self, bar: u8, table: u32, pending: u32) -> [u8; 10] {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.vectors() - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pending | u32::from(bar)).to_le_bytes());
        body
    }

    /// The same as something to add to a configuration space; the guest may change the two switches.
    pub fn as_capability(body: &[u8; 10]) -> Capability<'_> {
        Capability { id: CAPABILITY_ID, body, writable: &[0, 0xc0] }
    }

    /// The guest has written the capability's control word; whether a switch has changed.
    pub fn set_control(&mut self, control: u16) -> bool {
        let switches = control & (CONTROL_ENABLE | CONTROL_MASK_ALL);
        std::mem::replace(&mut self.control, switches) != switches
    }

    fn place(&self, offset: u32, bytes: usize) -> Option<(usize, usize)> {
        let within = (offset % ENTRY_BYTES) as usize;
        let entry = (offset / ENTRY_BYTES) as usize;
        let whole = matches!(bytes, 4 | 8) && within.is_multiple_of(bytes);
        (whole && entry < self.entries.len()).then_some((entry, within))
    }

    /// A read from the table. Only aligned words and double words are answered.
    pub fn read(&self, offset: u32, data: &mut [u8]) {
        if let Some((entry, within)) = self.place(offset, data.len()) {
            data.copy_from_slice(&self.entries[entry][within..within + data.len()]);
        }
    }

    /// A write to the table; which vector has changed.
    pub fn write(&mut self, offset: u32, data: &[u8]) -> Option<u16> {
        let (entry, within) = self.place(offset, data.len())?;
        self.entries[entry][within..within + data.len()].copy_from_slice(data);
        Some(entry as u16)
    }

    /// The table, but for what is pending.
    pub fn save(&self) -> MsixState {
        MsixState { control: self.control, table: self.entries.concat(), pending: Vec::new() }
    }

    /// Whether this is a table of as many vectors.
    pub fn check(&self, state: &MsixState) -> Result<(), RestoreError> {
        let fits = state.table.len() == self.entries.len() * ENTRY_BYTES as usize
            && state.pending.iter().all(|vector| *vector < self.vectors());
        if fits { Ok(()) } else { Err(RestoreError::Damaged("another number of vectors")) }
    }

    /// As it was when it was saved.
    pub fn restore(&mut self, state: &MsixState) {
        for (entry, saved) in self.entries.iter_mut().zip(state.table.as_chunks().0) {
            *entry = *saved;
        }
        self.set_control(state.control);
    }

    /// What a vector sends now; `None` while it is masked.
    pub fn message(&self, vector: u16) -> Option<Message> {
        let entry = self.entries.get(usize::from(vector))?;
        let word = |at: usize| entry[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let on = self.control & CONTROL_ENABLE != 0 && self.control & CONTROL_MASK_ALL == 0;
        (on && word(ENTRY_CONTROL) & ENTRY_MASKED == 0)
            .then(|| Message { address: u64::from(word(0) & !3) | u64::from(word(4)) << 32, data: word(8) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_sends_only_when_all_three_masks_are_off() {
        let mut table = MsixTable::new(3);
        assert_eq!(table.write(16, &0xfee0_1000_u64.to_le_bytes()), Some(1));
        assert_eq!(table.write(24, &0x41_u32.to_le_bytes()), Some(1));
        for (entry, control, sends) in
            [(1u32, 0x8000, false), (0, 0, false), (0, 0xc000, false), (0, 0x4000, false), (0, 0x8000, true)]
        {
            table.write(28, &entry.to_le_bytes());
            table.set_control(control);
            let message = Message { address: 0xfee0_1000, data: 0x41 };
            assert_eq!(table.message(1), sends.then_some(message), "{entry} {control:#x}");
        }
        assert_eq!(table.message(0), None);
        assert_eq!(table.message(3), None);
        assert!(!table.set_control(0x8007), "the size is no switch");
    }

    #[test]
    fn only_whole_words_of_the_table_are_there() {
        let mut table = MsixTable::new(1);
        let mut data = [0x55; 16];
        for (offset, bytes) in [(0, 1), (0, 2), (2, 4), (4, 8), (16, 4), (0, 16), (12, 8), (u32::MAX, 4)] {
            assert_eq!(table.write(offset, &data[..bytes]), None);
            table.read(offset, &mut data[..bytes]);
            assert_eq!(data, [0x55; 16]);
        }
        table.read(12, &mut data[..4]);
        assert_eq!(data[..4], [1, 0, 0, 0], "masked after the reset");
    }
}
