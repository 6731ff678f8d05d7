//! The DSDT: the devices that are not found by looking, as AML.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, Name, Notify, OpRegion,
    OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::{OEM, OEM_REVISION, OEM_TABLE};
use crate::config::CpuCount;
use crate::devices::{generic_event, power, pvpanic, serial};
use crate::layout::{ECAM_BYTES, ECAM_START, PCI_WINDOW_BYTES, PCI_WINDOW_START};
use crate::pci::{CONFIG_PORTS, CONFIG_PORTS_COUNT};

/// Bytes of a table's header (ACPI 6.5, 5.2.6).
const HEADER_BYTES: u32 = 36;

pub(super) fn dsdt(cpus: CpuCount) -> Vec<u8> {
    let mut aml = Vec::new();
    // S5, soft off, is the one sleep state. Its value is what the guest writes to the sleep control register.
    Name::new("_S5_".into(), &Package::new(vec![&power::SLEEP_TYPE_OFF, &0u8, &0u8, &0u8]))
        .to_aml_bytes(&mut aml);
    processors(cpus, &mut aml);
    host_bridge(&mut aml);
    serial_port(&mut aml);
    power_button(&mut aml);
    panic_port(&mut aml);
    reserved(&mut aml);
    let mut table = Sdt::new(*b"DSDT", HEADER_BYTES, 6, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&aml);
    table.as_slice().to_vec()
}

/// Processors as devices, each with the number that the MADT calls it by.
fn processors(cpus: CpuCount, aml: &mut Vec<u8>) {
    let mut devices = Vec::new();
    for cpu in cpus.indices() {
        Device::new(
            format!("C{cpu:03}").as_str().into(),
            vec![&Name::new("_HID".into(), &"ACPI0007"), &Name::new("_UID".into(), &cpu)],
        )
        .to_aml_bytes(&mut devices);
    }
    aml.extend(Scope::raw("\\_SB_".into(), devices));
}

/// A PCI Express host bridge with bus 0 and the one window that BARs are in. No `_PRT`: all interrupts are messages.
fn host_bridge(aml: &mut Vec<u8>) {
    let window_last = PCI_WINDOW_START + (PCI_WINDOW_BYTES - 1);
    let bus = AddressSpace::new_bus_number(0u16, 0u16);
    let ports = IO::new(CONFIG_PORTS, CONFIG_PORTS, 1, CONFIG_PORTS_COUNT);
    let window = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        PCI_WINDOW_START,
        window_last,
        None,
    );
    Scope::new(
        "\\_SB_".into(),
        vec![&Device::new(
            "PCI0".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
                &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
                &Name::new("_SEG".into(), &0u8),
                &Name::new("_BBN".into(), &0u8),
                &Name::new("_UID".into(), &0u8),
                &Name::new("_CCA".into(), &1u8),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&bus, &ports, &window])),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

fn serial_port(aml: &mut Vec<u8>) {
    Scope::new(
        "\\_SB_".into(),
        vec![&Device::new(
            "COM1".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                &Name::new("_UID".into(), &0u8),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &Interrupt::new(true, true, false, false, serial::GSI),
                        &IO::new(serial::PORTS, serial::PORTS, 1, serial::PORTS_COUNT),
                    ]),
                ),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

/// The button, and the device whose interrupt says that it was pressed (ACPI 6.5, 4.8.2.2.1.2 and 5.6.9). Reading the
/// register empties it, so an interrupt too many finds nothing.
fn power_button(aml: &mut Vec<u8>) {
    let button = Path::new("\\_SB_.PWRB");
    let register = Path::new("EVTS");
    let pressed = And::new(&ZERO, &Local(0), &generic_event::POWER_BUTTON);
    Scope::new(
        "\\_SB_".into(),
        vec![
            &Device::new(
                "PWRB".into(),
                vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C")), &Name::new("_UID".into(), &0u8)],
            ),
            &Device::new(
                "GED_".into(),
                vec![
                    &Name::new("_HID".into(), &"ACPI0013"),
                    &Name::new("_UID".into(), &0u8),
                    &Name::new(
                        "_CRS".into(),
                        &ResourceTemplate::new(vec![&Interrupt::new(
                            true,
                            true,
                            false,
                            false,
                            generic_event::GSI,
                        )]),
                    ),
                    &OpRegion::new(
                        "EVTR".into(),
                        OpRegionSpace::SystemIO,
                        &generic_event::PORT,
                        &generic_event::PORTS_COUNT,
                    ),
                    &Field::new(
                        "EVTR".into(),
                        FieldAccessType::Byte,
                        FieldLockRule::NoLock,
                        FieldUpdateRule::WriteAsZeroes,
                        vec![FieldEntry::Named(*b"EVTS", 8)],
                    ),
                    &Method::new(
                        "_EVT".into(),
                        1,
                        true,
                        vec![
                            &Store::new(&Local(0), &register),
                            &If::new(&pressed, vec![&Notify::new(&button, &0x80u8)]),
                        ],
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// The port for panics, under the name that drivers know from QEMU.
fn panic_port(aml: &mut Vec<u8>) {
    Scope::new(
        "\\_SB_".into(),
        vec![&Device::new(
            "PEVT".into(),
            vec![
                &Name::new("_HID".into(), &"QEMU0001"),
                &Name::new("_UID".into(), &0u8),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![&IO::new(
                        pvpanic::PORT,
                        pvpanic::PORT,
                        1,
                        pvpanic::PORTS_COUNT,
                    )]),
                ),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

/// Ranges that belong to no device: the ECAM and the power registers.
fn reserved(aml: &mut Vec<u8>) {
    Scope::new(
        "\\_SB_".into(),
        vec![&Device::new(
            "MRES".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
                &Name::new("_UID".into(), &0u8),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &Memory32Fixed::new(true, ECAM_START as u32, ECAM_BYTES as u32),
                        &IO::new(power::PORTS, power::PORTS, 1, power::PORTS_COUNT),
                    ]),
                ),
            ],
        )],
    )
    .to_aml_bytes(aml);
}
