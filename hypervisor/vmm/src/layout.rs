//! Where everything is in the guest's physical address space.
//!
//! ```text
//!  0x0000_0500  GDT                              0x0000_7000  boot_params, or PVH's start info
//!  0x0000_8000  PVH module list and memory map   0x0000_9000  page tables of the first 4 GiB (6 pages)
//!  0x0002_0000  command line, up to 64 KiB       0x000e_0000  ACPI tables, reset vector
//!  0x0010_0000  RAM again: kernel, initrd        0xc000_0000  end of low RAM at the latest
//!  0xc000_0000  window of 32-bit PCI memory      0xe000_0000  ECAM of bus 0, 1 MiB
//!  0xfec0_0000  IOAPIC                           0xfee0_0000  local APICs
//!  0x1_0000_0000  the rest of the RAM
//! ```
//!
//! The addresses are part of what a saved VM looks like: they never change for a machine version. This module only
//! computes; it maps nothing and knows no KVM.

use vm_memory::GuestAddress;

/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;
/// Where low RAM ends at the latest and the 32-bit PCI window begins.
pub const LOW_RAM_MAX: u64 = 0xc000_0000;
/// Where the RAM goes on that does not fit below.
pub const HIGH_RAM_START: u64 = 1 << 32;
/// First address of the window that PCI BARs are placed in.
pub const PCI_WINDOW_START: u32 = 0xc000_0000;
/// Bytes of the window that PCI BARs are placed in.
pub const PCI_WINDOW_BYTES: u32 = 0x2000_0000;
/// First address of the memory-mapped configuration space (PCI Express base specification, 7.2.2).
pub const ECAM_START: u64 = 0xe000_0000;
/// Bytes of it: one bus.
pub const ECAM_BYTES: u64 = 1 << 20;
/// The IOAPIC's registers.
pub const IOAPIC_START: u32 = 0xfec0_0000;
/// The local APICs' registers.
pub const LAPIC_START: u32 = 0xfee0_0000;
/// A page that KVM on Intel processors wants for a page table of its own.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM on Intel processors wants for a task state segment of its own.
pub const KVM_TSS: usize = 0xfffb_d000;

/// The boot's GDT.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// The zero page of the Linux boot protocol, or the start info of PVH.
pub const BOOT_INFO: GuestAddress = GuestAddress(0x7000);
/// PVH: the list of modules, then the memory map.
pub const PVH_TABLES: GuestAddress = GuestAddress(0x8000);
/// A stack that ends here, for kernels that push before they have one.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page tables of the boot: one page for level 4, one for level 3, four for level 2.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The kernel's command line.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// Most bytes of a command line, with its final zero.
pub const COMMAND_LINE_MAX: usize = 0x1_0000;
/// Where conventional memory ends.
pub const LOW_MEMORY_END: u64 = 0xa_0000;
/// ACPI tables, the RSDP first, where guests also look for it.
pub const ACPI_START: GuestAddress = GuestAddress(0xe_0000);
/// Most bytes of ACPI tables.
pub const ACPI_MAX: usize = 0x1_fff0;
/// Where a processor begins after its reset, and where kernels jump in real mode to have the firmware restart the machine.
pub const RESET_VECTOR: GuestAddress = GuestAddress(0xf_fff0);
/// Where RAM goes on above the firmware's place; kernels are loaded at this address or higher.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// A VM has at least this much memory.
pub const RAM_MIN: u64 = 4 << 20;

/// Bytes of guest memory: a multiple of the page size, and not too few to hold what the boot needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize(u64);

/// Why a VM can't have that much memory.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LayoutError {
    /// Too little.
    #[error("{0} bytes of memory are too few: give the VM at least {RAM_MIN}")]
    TooSmall(u64),
    /// Not whole pages.
    #[error("{0} bytes of memory are no whole pages: give the VM a multiple of 4 KiB")]
    Uneven(u64),
    /// More than the processor can address.
    #[error("{bytes} bytes of memory are more than this host's processors can address ({address_bits} bits)")]
    TooLarge {
        /// What was asked for.
        bytes: u64,
        /// Bits of a physical address.
        address_bits: u8,
    },
}

impl MemorySize {
    /// Checks a size in bytes.
    pub fn new(bytes: u64) -> Result<Self, LayoutError> {
        if bytes < RAM_MIN {
            return Err(LayoutError::TooSmall(bytes));
        }
        if !bytes.is_multiple_of(PAGE_BYTES) {
            return Err(LayoutError::Uneven(bytes));
        }
        Ok(Self(bytes))
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

/// One piece of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRegion {
    /// Where the guest sees it.
    pub start: GuestAddress,
    /// Bytes.
    pub bytes: u64,
    /// Where it is in the file of the VM's memory.
    pub file_offset: u64,
}

/// What the memory map says of a range; the numbers are those of E820 and of PVH alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// Usable.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// An entry of the memory map that the guest gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapRange {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
    /// What it is.
    pub kind: RangeKind,
}

/// A VM's memory, laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    regions: Vec<RamRegion>,
}

impl Layout {
    /// Lays out so much RAM for a processor with that many bits of physical address.
    pub fn new(size: MemorySize, address_bits: u8) -> Result<Self, LayoutError> {
        let low = size.bytes().min(LOW_RAM_MAX);
        let mut regions = vec![RamRegion { start: GuestAddress(0), bytes: low, file_offset: 0 }];
        let high = size.bytes() - low;
        let too_large = LayoutError::TooLarge { bytes: size.bytes(), address_bits };
        let end = if high > 0 { HIGH_RAM_START.checked_add(high) } else { Some(low) };
        if address_bits < 64 && end.is_none_or(|end| end > 1 << address_bits) {
            return Err(too_large);
        }
        if high > 0 {
            regions.push(RamRegion { start: GuestAddress(HIGH_RAM_START), bytes: high, file_offset: low });
        }
        Ok(Self { regions })
    }

    /// The pieces of RAM, by address.
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// Where RAM below 4 GiB ends.
    pub fn low_end(&self) -> u64 {
        self.regions[0].bytes
    }

    /// The memory map for the guest, by address.
    pub fn memory_map(&self) -> Vec<MapRange> {
        let range = |start, end, kind| MapRange { start, bytes: end - start, kind };
        let mut map = vec![
            range(0, LOW_MEMORY_END, RangeKind::Ram),
            range(ACPI_START.0, HIGH_MEMORY, RangeKind::Reserved),
            range(HIGH_MEMORY, self.low_end(), RangeKind::Ram),
            // Linux uses a memory-mapped configuration space only where the map says that nothing else is there.
            range(ECAM_START, ECAM_START + ECAM_BYTES, RangeKind::Reserved),
        ];
        for high in &self.regions[1..] {
            map.push(range(high.start.0, high.start.0 + high.bytes, RangeKind::Ram));
        }
        map
    }
}
