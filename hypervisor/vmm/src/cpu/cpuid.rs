//! CPUID of each virtual processor: what KVM can do on this host, with this VM's topology written over it.
//!
//! One socket, one thread a core, APIC id = the processor's number. The performance counters are taken out: a guest that
//! used them could not be moved, and they tell it about its neighbours.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::config::CpuCount;

/// What is asked of one processor's CPUID.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The processor's number.
    pub cpu: u8,
    /// How many there are.
    pub cpus: CpuCount,
    /// KVM emulates the TSC deadline timer; it does not say so in its supported CPUID.
    pub tsc_deadline: bool,
}

/// Bits of a guest's physical address if the processor does not say.
const ADDRESS_BITS_DEFAULT: u8 = 36;

/// Bits of a physical address, according to what KVM supports.
pub fn address_bits(supported: &[kvm_cpuid_entry2]) -> u8 {
    let sizes = supported.iter().find(|entry| entry.function == 0x8000_0008);
    sizes.map_or(ADDRESS_BITS_DEFAULT, |entry| entry.eax as u8)
}

/// Bits of an APIC id that tell cores apart.
fn core_bits(cpus: CpuCount) -> u32 {
    u32::from(cpus.get()).next_power_of_two().trailing_zeros()
}

/// One processor's CPUID.
pub fn for_processor(supported: &[kvm_cpuid_entry2], wanted: Wanted) -> Vec<kvm_cpuid_entry2> {
    let leaf_max = supported.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
    let mut entries: Vec<_> =
        supported.iter().filter(|entry| !matches!(entry.function, 0xb | 0x1f)).copied().collect();
    for entry in &mut entries {
        change(entry, wanted);
    }
    if leaf_max >= 0xb {
        entries.extend(extended_topology(wanted));
    }
    entries
}

fn change(entry: &mut kvm_cpuid_entry2, wanted: Wanted) {
    let cpu = u32::from(wanted.cpu);
    let cpus = u32::from(wanted.cpus.get());
    match entry.function {
        0x1 => {
            entry.ebx = entry.ebx & 0xff00 | cpu << 24 | cpus << 16;
            // Under a hypervisor; the timer.
            entry.ecx |= 1 << 31 | u32::from(wanted.tsc_deadline) << 24;
            set_bit(&mut entry.edx, 28, cpus > 1);
        }
        // Caches: Intel's leaf, and AMD's of the same form. Which processors share one, and how many cores there are.
        0x4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { cpus - 1 } else { 0 };
            let cores = if entry.function == 0x4 { cpus - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | cores << 26;
        }
        // Performance counters.
        0xa | 0x8000_0022 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 => {
            entry.ecx &= !(1 << 23 | 1 << 24 | 1 << 28);
        }
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | (cpus - 1) | core_bits(wanted.cpus) << 12,
        // AMD's topology: APIC id, core id with one thread, node 0 of one.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (cpu, cpu, 0, 0),
        _ => {}
    }
}

fn set_bit(word: &mut u32, bit: u32, on: bool) {
    *word = *word & !(1 << bit) | u32::from(on) << bit;
}

/// Leaf 0xb (Intel SDM volume 2, CPUID): threads, cores, end.
fn extended_topology(wanted: Wanted) -> [kvm_cpuid_entry2; 3] {
    let cpus = u32::from(wanted.cpus.get());
    let level = |index, shift, below, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: below,
        ecx: kind << 8 | index,
        edx: u32::from(wanted.cpu),
        ..Default::default()
    };
    [level(0, 0, 1, 1), level(1, core_bits(wanted.cpus), cpus, 2), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries.iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn each_processor_finds_itself_among_the_others() {
        let ones = u32::MAX;
        let host = [
            entry(0, 0xd, 0, 0, 0),
            entry(1, 0x00a2_0f12, 0x0708_0800, 0, 0),
            entry(0xa, ones, ones, ones, ones),
            entry(0xb, 7, 7, 7, 7),
            entry(0x1f, 7, 7, 7, 7),
            entry(0x8000_0008, 0x3028, 0, 0x700f, 0),
            entry(0x8000_001d, 0x0001_c121, 1, 2, 3),
            entry(0x8000_001d, 0x0001_c163, 1, 2, 3),
            entry(0x8000_001e, 9, 9, 9, 9),
        ];
        let cpus = CpuCount::new(6).unwrap();
        let guest = for_processor(&host, Wanted { cpu: 5, cpus, tsc_deadline: true });
        let one = find(&guest, 1, 0);
        assert_eq!(one.ebx, 0x0506_0800);
        assert_eq!(one.ecx, 1 << 31 | 1 << 24);
        assert_eq!(one.edx, 1 << 28);
        assert_eq!(find(&guest, 0xa, 0).eax, 0);
        assert_eq!(find(&guest, 0xb, 1).eax, 3, "six cores need three bits");
        assert_eq!(find(&guest, 0xb, 1).ebx, 6);
        assert_eq!(find(&guest, 0xb, 2).ecx, 2);
        assert!(guest.iter().filter(|e| e.function == 0xb).all(|e| e.edx == 5));
        assert!(guest.iter().all(|e| e.function != 0x1f));
        assert_eq!(find(&guest, 0x8000_0008, 0).ecx, 0x3005);
        assert_eq!(find(&guest, 0x8000_001e, 0).eax, 5);
        let caches: Vec<u32> =
            guest.iter().filter(|e| e.function == 0x8000_001d).map(|e| e.eax >> 14 & 0xfff).collect();
        assert_eq!(caches, [0, 5], "level 1 is a core's own, level 3 everybody's");
        assert_eq!(address_bits(&host), 40);
    }

    #[test]
    fn a_single_processor_has_no_siblings() {
        let host = [entry(0, 1, 0, 0, 0), entry(1, 0, 0x0708_0800, 0, u32::MAX)];
        let cpus = CpuCount::new(1).unwrap();
        let guest = for_processor(&host, Wanted { cpu: 0, cpus, tsc_deadline: false });
        assert_eq!(find(&guest, 1, 0).ebx, 0x0001_0800);
        assert_eq!(find(&guest, 1, 0).edx & 1 << 28, 0);
        assert_eq!(find(&guest, 1, 0).ecx, 1 << 31);
        assert_eq!(guest.len(), 2, "no leaf above the highest");
    }
}
