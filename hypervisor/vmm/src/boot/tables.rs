//! Segment descriptors and page tables for the first instructions.

use kvm_bindings::kvm_segment;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::Protocol;
use crate::layout::{GDT, PAGE_BYTES, PAGE_TABLES};

/// Access byte and flags of a descriptor, as the processor has them in bits 40 to 55.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Descriptor {
    selector: u16,
    limit: u32,
    /// Present, privilege, system, type.
    access: u8,
    /// Granularity, default size, long mode; the upper four bits.
    flags: u8,
}

/// Code in long mode.
const CODE_64: Descriptor = Descriptor { selector: 0x10, limit: 0xf_ffff, access: 0x9b, flags: 0xa };
/// Code in protected mode.
const CODE_32: Descriptor = Descriptor { selector: 0x10, limit: 0xf_ffff, access: 0x9b, flags: 0xc };
const DATA: Descriptor = Descriptor { selector: 0x18, limit: 0xf_ffff, access: 0x93, flags: 0xc };
const TASK: Descriptor = Descriptor { selector: 0x20, limit: 0x67, access: 0x8b, flags: 0 };

impl Descriptor {
    /// As it stands in the GDT; base 0.
    fn bits(self) -> u64 {
        let limit = u64::from(self.limit);
        (limit & 0xffff)
            | u64::from(self.access) << 40
            | (limit >> 16 & 0xf) << 48
            | u64::from(self.flags) << 52
    }

    fn segment(self) -> kvm_segment {
        let granular = self.flags & 8 != 0;
        kvm_segment {
            base: 0,
            limit: if granular { self.limit << 12 | 0xfff } else { self.limit },
            selector: self.selector,
            type_: self.access & 0xf,
            present: self.access >> 7,
            dpl: self.access >> 5 & 3,
            s: self.access >> 4 & 1,
            db: self.flags >> 2 & 1,
            l: self.flags >> 1 & 1,
            g: self.flags >> 3,
            ..Default::default()
        }
    }
}

/// The segments of a processor that begins.
#[derive(Debug, Clone, Copy)]
pub struct Segments {
    /// Code.
    pub code: kvm_segment,
    /// Data, stack and all others.
    pub data: kvm_segment,
    /// Task state.
    pub task: kvm_segment,
    /// Last byte of the GDT, counted from its first.
    pub gdt_limit: u16,
}

/// Writes the GDT for a protocol and returns what the segment registers have to hold.
pub fn write_descriptors(memory: &GuestMemoryMmap, protocol: Protocol) -> Result<Segments, GuestMemoryError> {
    let code = match protocol {
        Protocol::Linux64 => CODE_64,
        Protocol::Pvh => CODE_32,
    };
    let table = [0, 0, code.bits(), DATA.bits(), TASK.bits()];
    for (descriptor, at) in table.iter().zip((GDT.0..).step_by(8)) {
        memory.write_obj(*descriptor, GuestAddress(at))?;
    }
    Ok(Segments {
        code: code.segment(),
        data: DATA.segment(),
        task: TASK.segment(),
        gdt_limit: (table.len() * 8 - 1) as u16,
    })
}

/// Writes page tables that map the first 4 GiB one to one in pages of 2 MiB; their root is [`PAGE_TABLES`].
pub fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let page = |index: u64| PAGE_TABLES.0 + index * PAGE_BYTES;
    memory.write_obj(page(1) | PRESENT_WRITABLE, PAGE_TABLES)?;
    for gib in 0..4 {
        memory.write_obj(page(2 + gib) | PRESENT_WRITABLE, GuestAddress(page(1) + gib * 8))?;
        for entry in 0..512 {
            let address = gib << 30 | entry << 21;
            memory.write_obj(address | LARGE | PRESENT_WRITABLE, GuestAddress(page(2 + gib) + entry * 8))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that the kernel's documentation and the processors' manuals print for flat segments.
    #[test]
    fn descriptors_are_the_processor_s() {
        assert_eq!(CODE_64.bits(), 0x00af_9b00_0000_ffff);
        assert_eq!(CODE_32.bits(), 0x00cf_9b00_0000_ffff);
        assert_eq!(DATA.bits(), 0x00cf_9300_0000_ffff);
        assert_eq!(TASK.bits(), 0x0000_8b00_0000_0067);
        let code = CODE_64.segment();
        assert_eq!((code.limit, code.l, code.db, code.s, code.type_), (u32::MAX, 1, 0, 1, 0xb));
        let task = TASK.segment();
        assert_eq!((task.limit, task.s, task.type_, task.present), (0x67, 0, 0xb, 1));
    }
}
