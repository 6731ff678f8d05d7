//! The ACPI tables, looked at as a guest would and by ACPICA's own disassembler.

use std::path::Path;
use std::process::Command;

use vmm::acpi::{Table, tables};
use vmm::config::{CPUS_MAX, CpuCount};
use vmm::layout::{ACPI_MAX, ACPI_START};

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn at(all: &[Table], address: u64) -> &Table {
    all.iter().find(|table| table.address.0 == address).expect("a table stands where another points")
}

#[test]
fn every_table_is_found_from_the_rsdp_and_sums_up() {
    for count in [1, 2, CPUS_MAX] {
        let all = tables(CpuCount::new(count).unwrap());
        let rsdp = &all[0];
        assert_eq!((rsdp.name, rsdp.address), ("RSDP", ACPI_START));
        assert_eq!(&rsdp.bytes[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp.bytes[..20]), sum(&rsdp.bytes)), (0, 0));
        let mut found = vec!["RSDP"];
        let xsdt = at(&all, u64_at(&rsdp.bytes, 24));
        found.push(xsdt.name);
        for entry in xsdt.bytes[36..].chunks(8) {
            let table = at(&all, u64_at(entry, 0));
            found.push(table.name);
            if table.name == "FACP" {
                found.push(at(&all, u64_at(&table.bytes, 140)).name);
            }
        }
        found.sort_unstable();
        assert_eq!(found, ["APIC", "DSDT", "FACP", "MCFG", "RSDP", "XSDT"]);
        for table in &all[1..] {
            assert_eq!(&table.bytes[..4], table.name.as_bytes());
            assert_eq!(u32_at(&table.bytes, 4) as usize, table.bytes.len(), "{}", table.name);
            assert_eq!(sum(&table.bytes), 0, "{}", table.name);
        }
    }
}

#[test]
fn tables_do_not_overlap_and_stay_in_their_place() {
    let mut all = tables(CpuCount::new(CPUS_MAX).unwrap());
    all.sort_by_key(|table| table.address);
    let end = |table: &Table| table.address.0 + table.bytes.len() as u64;
    assert!(all.windows(2).all(|pair| end(&pair[0]) <= pair[1].address.0));
    assert!(end(all.last().unwrap()) <= ACPI_START.0 + ACPI_MAX as u64);
}

fn iasl(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("iasl")
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("iasl is needed: install acpica-tools (deploy/test does)");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "iasl {arguments:?}: {text}");
    text
}

/// Every table is taken apart without a complaint, and what comes out of the DSDT compiles to the same device tree without
/// an error or a warning.
#[test]
fn acpica_understands_every_table() {
    let folder = tempfile::tempdir().unwrap();
    for table in tables(CpuCount::new(3).unwrap()).iter().filter(|table| table.name != "RSDP") {
        let file = format!("{}.dat", table.name);
        std::fs::write(folder.path().join(&file), &table.bytes).unwrap();
        let said = iasl(folder.path(), &["-d", &file]);
        assert!(!said.contains("Error") && !said.contains("nvalid"), "{}: {said}", table.name);
        let source = std::fs::read_to_string(folder.path().join(format!("{}.dsl", table.name))).unwrap();
        assert!(!source.contains("incorrect checksum"), "{source}");
        assert!(!source.contains("**** "), "{}: {source}", table.name);
    }
    let fadt = std::fs::read_to_string(folder.path().join("FACP.dsl")).unwrap();
    for line in ["Hardware Reduced (V5) : 1", "Reset Register Supported (V2) : 1"] {
        assert!(fadt.contains(line), "{line}: {fadt}");
    }
    let said = iasl(folder.path(), &["-p", "again", "DSDT.dsl"]);
    assert!(said.contains("0 Errors, 0 Warnings"), "{said}");
    let dsdt = std::fs::read_to_string(folder.path().join("DSDT.dsl")).unwrap();
    for name in ["PNP0A08", "PNP0501", "PNP0C02", "_S5", "ACPI0007", "ACPI0013", "PNP0C0C", "QEMU0001"] {
        assert!(dsdt.contains(name), "{name}: {dsdt}");
    }
}
