//! Registers of the first processor. The others wait for the guest's start-up message, which KVM handles.

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_sregs};

use crate::boot::{Entry, Protocol, Segments};
use crate::layout::{BOOT_STACK, GDT, PAGE_TABLES};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 is always set; interrupts are off.
const RFLAGS: u64 = 2;

/// General registers at the entry.
pub fn general(entry: &Entry) -> kvm_regs {
    let mut regs = kvm_regs {
        rflags: RFLAGS,
        rip: entry.instruction.0,
        rsp: BOOT_STACK,
        rbp: BOOT_STACK,
        ..Default::default()
    };
    match entry.protocol {
        Protocol::Linux64 => regs.rsi = entry.info.0,
        Protocol::Pvh => regs.rbx = entry.info.0,
    }
    regs
}

/// Changes the system registers that the processor has after its reset to those of the entry.
pub fn system(sregs: &mut kvm_sregs, entry: &Entry, segments: &Segments) {
    sregs.cs = segments.code;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = segments.data;
    }
    sregs.tr = segments.task;
    sregs.gdt.base = GDT.0;
    sregs.gdt.limit = segments.gdt_limit;
    // No interrupt comes before the kernel has a table of its own.
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    match entry.protocol {
        Protocol::Linux64 => {
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = PAGE_TABLES.0;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
        }
        Protocol::Pvh => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
        }
    }
}

/// The floating-point unit as `FNINIT` leaves it.
pub fn floating_point() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}
