//! What a host promises it can keep.

use ferro_protocol::api::vm::spec::HugePages;
use ferro_protocol::api::vm::{VmSpec, VmmKind};
use hypervisor_core::admission::{Claim, Room, Shortage, VMM_OVERHEAD_BYTES, admit, capacity};
use hypervisor_core::cgroup::limits;
use hypervisor_core::cpus::CpuSet;
use hypervisor_core::spec::{Vm, check};
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

fn vm(memory: u64, change: impl FnOnce(&mut VmSpec)) -> Vm {
    let mut spec = VmSpec::named("a", memory);
    spec.boot = serde_json::from_str(r#"{"files":{"kernel":"/k"}}"#).unwrap();
    change(&mut spec);
    check(&spec).unwrap()
}

fn room() -> Room {
    Room {
        cpus: CpuSet::new(0..4),
        memory_bytes: 9 * GIB,
        kept_bytes: GIB,
        overcommit_percent: 100,
        huge_2m_free_bytes: GIB,
        huge_1g_free_bytes: 0,
    }
}

#[test]
fn what_does_not_fit_is_refused_with_what_is_free() {
    let room = room();
    let claim = admit(&room, [], &vm(6 * GIB, |_| {}), VmmKind::Kvm).unwrap();
    assert_eq!(claim.memory_bytes, 6 * GIB + VMM_OVERHEAD_BYTES);
    let short = admit(&room, [&claim], &vm(2 * GIB, |_| {}), VmmKind::Kvm).unwrap_err();
    let text = short[0].to_string();
    assert!(text.contains("8 GiB") && text.contains("1.9 GiB are free"), "{text}");
    // Twice as much may be promised, and still no VM can be larger than the host.
    let double = Room { overcommit_percent: 200, ..room.clone() };
    assert!(admit(&double, [&claim], &vm(2 * GIB, |_| {}), VmmKind::Kvm).is_ok());
    assert!(admit(&double, [], &vm(9 * GIB, |_| {}), VmmKind::Kvm).is_err());
    // What is reserved is never promised twice.
    let reserved = vm(6 * GIB, |s| s.memory.reservation_bytes = 6 * GIB);
    let claim = admit(&double, [], &reserved, VmmKind::Kvm).unwrap();
    let short = admit(&double, [&claim], &reserved, VmmKind::Kvm).unwrap_err();
    assert!(matches!(short[..], [Shortage::ReservedMemory { .. }]), "{short:?}");
    // A limit is what it gets, not what it sees.
    assert!(admit(&room, [], &vm(10 * GIB, |s| s.memory.limit_bytes = Some(GIB)), VmmKind::Kvm).is_ok());
}

#[test]
fn every_shortage_is_named_at_once() {
    let greedy = vm(2 * GIB, |s| {
        s.cpus = 8;
        s.memory.huge_pages = Some(HugePages::OneGib);
        s.cpu.reservation_percent = 401;
        s.cpu.affinity = Some("2-5".into());
    });
    let short = admit(&room(), [], &greedy, VmmKind::Kvm).unwrap_err();
    assert_eq!(short.len(), 3, "{short:?}");
    let text: String = short.iter().map(ToString::to_string).collect();
    for words in ["huge pages of 1G", "400 % of 400 %", "4-5"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // Huge pages are no ordinary memory.
    let huge = vm(GIB, |s| s.memory.huge_pages = Some(HugePages::TwoMib));
    let claim = admit(&room(), [], &huge, VmmKind::Kvm).unwrap();
    assert_eq!(claim.memory_bytes, VMM_OVERHEAD_BYTES);
}

#[test]
fn a_group_says_what_was_asked_for() {
    let small = vm(GIB, |s| {
        s.cpus = 2;
        s.cpu.limit_percent = Some(150);
        s.cpu.affinity = Some("0-1;3".into());
        s.memory.reservation_bytes = GIB / 2;
        s.memory.limit_bytes = Some(GIB / 2);
    });
    let [limits] = &limits(&[(&small, VmmKind::Kvm)], 4, 8 * GIB)[..] else { panic!() };
    let files = limits.files();
    let value = |name: &str| files.iter().find(|(file, _)| *file == name).unwrap().1.clone();
    assert_eq!(value("cpu.max"), "150000 100000");
    assert_eq!(value("cpu.weight"), "10000");
    assert_eq!(value("cpuset.cpus"), "0-1,3");
    assert_eq!(value("memory.min"), (GIB / 2 + VMM_OVERHEAD_BYTES).to_string());
    assert_eq!(value("memory.max"), (GIB / 2 + VMM_OVERHEAD_BYTES).to_string());
    assert!(limits.properties().contains(&"CPUQuota=150%".to_owned()));
    let free = limits_of_one_without_limits();
    assert!(
        free.contains(&("cpu.max", "max 100000".to_owned()))
            && free.contains(&("memory.max", "max".to_owned()))
    );
}

fn limits_of_one_without_limits() -> Vec<(&'static str, String)> {
    limits(&[(&vm(GIB, |_| {}), VmmKind::Kvm)], 4, 8 * GIB)[0].files()
}

proptest! {
    /// Weights give each VM at least its reservation when all want everything, and protections never exceed what there is.
    #[test]
    fn weights_keep_reservations(vms in proptest::collection::vec((1u32..=4, 0u32..100, 1u32..=100_000, 0u64..1024), 1..12)) {
        let vms: Vec<Vm> = vms.into_iter().map(|(cpus, percent, shares, reserved)| vm(GIB, |s| {
            s.cpus = cpus;
            (s.cpu.reservation_percent, s.cpu.shares) = (cpus * percent, shares);
            s.memory.reservation_bytes = reserved << 20;
        })).collect();
        let room = Room { memory_bytes: 1 << 50, ..room() };
        let mut admitted: Vec<(&Vm, Claim)> = Vec::new();
        for vm in &vms {
            if let Ok(claim) = admit(&room, admitted.iter().map(|(_, claim)| claim), vm, VmmKind::Kvm) {
                admitted.push((vm, claim));
            }
        }
        let with_kind: Vec<_> = admitted.iter().map(|(vm, _)| (*vm, VmmKind::Kvm)).collect();
        let set = limits(&with_kind, 4, 1 << 50);
        let all: u64 = set.iter().map(|limits| limits.cpu_weight).sum();
        for ((vm, _), limits) in admitted.iter().zip(&set) {
            prop_assert!((1..=10_000).contains(&limits.cpu_weight));
            // Weights are whole numbers up to 10000: a thousandth is lost to that.
            let gets = 400_000 * limits.cpu_weight / all + 1_000;
            prop_assert!(gets >= u64::from(vm.cpu.reservation_percent) * 1_000, "{gets}: {:?}", vm.cpu);
            prop_assert!(limits.memory_low <= GIB && limits.memory_low >= vm.memory.reservation_bytes);
        }
        let claims: Vec<Claim> = admitted.iter().map(|(_, claim)| *claim).collect();
        let (cpu, memory) = capacity(&room, &claims);
        prop_assert!(cpu.reserved_percent + cpu.free_percent == cpu.reservable_percent);
        prop_assert!(memory.reserved_bytes <= memory.usable_bytes);
    }
}
