//! The ACPI tables that the guest finds: everything it has to know that PCI does not tell.
//!
//! Hardware-reduced ACPI (ACPI 6.5, 4.1): no timer, no event blocks, no SCI, no firmware control structure. A power
//! state is entered by a write to the sleep control register, and a reset is one to the reset register; both are I/O
//! ports of [`crate::devices::power`].
//!
//! ```text
//!   RSDP ──► XSDT ──┬──► FADT ──► DSDT   processors, host bridge, serial port, power button, \_S5, …
//!                   ├──► MADT            local APICs, IOAPIC
//!                   └──► MCFG            ECAM of bus 0
//! ```
//!
//! Pure: bytes come out, and whoever boots the VM writes them. It knows neither KVM nor guest memory.

mod dsdt;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::GuestAddress;

use crate::config::CpuCount;
use crate::devices::power;
use crate::layout::{ACPI_MAX, ACPI_START, ECAM_START, IOAPIC_START, LAPIC_START};

const OEM: [u8; 6] = *b"FERRO ";
const OEM_TABLE: [u8; 8] = *b"FERROVMM";
const OEM_REVISION: u32 = 1;
/// "VGA not present" and "CMOS RTC not present" (ACPI 6.5, 5.2.9.3); the 8042 is absent because its bit is not set.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 5;

/// A table and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `RSDP`, or the table's signature.
    pub name: &'static str,
    /// Its place.
    pub address: GuestAddress,
    /// Its content, checksum included.
    pub bytes: Vec<u8>,
}

/// All tables of a machine with so many processors. The first is the RSDP, at [`ACPI_START`].
pub fn tables(cpus: CpuCount) -> Vec<Table> {
    let mut place = Place { next: ACPI_START.0 + 64, tables: Vec::new() };
    let dsdt = place.put("DSDT", &dsdt::dsdt(cpus));
    let fadt = place.put("FACP", &bytes(&fadt(dsdt)));
    let madt = place.put("APIC", &bytes(&madt(cpus)));
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(ECAM_START, 0, 0, 0);
    let mcfg = place.put("MCFG", &bytes(&mcfg));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table.0);
    }
    let xsdt = place.put("XSDT", &bytes(&xsdt));
    let rsdp = Table { name: "RSDP", address: ACPI_START, bytes: bytes(&Rsdp::new(OEM, xsdt.0)) };
    assert!(place.next <= ACPI_START.0 + ACPI_MAX as u64, "64 processors need a few KiB");
    place.tables.insert(0, rsdp);
    place.tables
}

struct Place {
    next: u64,
    tables: Vec<Table>,
}

impl Place {
    fn put(&mut self, name: &'static str, bytes: &[u8]) -> GuestAddress {
        let address = GuestAddress(self.next);
        self.next += (bytes.len() as u64).next_multiple_of(64);
        self.tables.push(Table { name, address, bytes: bytes.to_vec() });
        address
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut out = Vec::new();
    table.to_aml_bytes(&mut out);
    out
}

fn port(number: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(number))
}

fn fadt(dsdt: GuestAddress) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt.0)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = port(power::RESET_PORT);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS_PORT);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"FERROVMM").into();
    fadt.finalize()
}

fn madt(cpus: CpuCount) -> MADT {
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(LAPIC_START));
    for cpu in cpus.indices() {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IOAPIC_START, 0));
    madt
}
