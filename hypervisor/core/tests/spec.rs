//! What makes no VM: each fault is named, and all of them at once.

use ferro_protocol::api::vm::VmSpec;
use ferro_protocol::api::vm::spec::{BootSpec, DiskSpec, FilesBoot, HugePages, NicSpec, VolumeBoot};
use hypervisor_core::spec::{check, complete};
use proptest::prelude::*;

fn good() -> VmSpec {
    let mut spec = VmSpec::named("web1", 512 << 20);
    spec.disks.push(DiskSpec { volume: "web1-root".to_owned(), read_only: false });
    spec.nics.push(NicSpec { portgroup: "blue".to_owned(), mac: None, port: None });
    complete(&mut spec, || [1, 2, 3, 4, 5]);
    spec
}

#[test]
fn what_was_left_open_is_chosen() {
    let spec = good();
    assert_eq!(spec.nics[0].port.as_deref(), Some("web1.0"));
    assert_eq!(spec.nics[0].mac.as_deref(), Some("02:01:02:03:04:05"));
    let vm = check(&spec).unwrap();
    assert_eq!((vm.cpus, vm.memory_bytes, vm.disks.len(), vm.nics.len()), (1, 512 << 20, 1, 1));
    // A name that somebody chose is not chosen again.
    let mut spec = good();
    spec.nics.insert(
        0,
        NicSpec { portgroup: "red".to_owned(), mac: Some("52:54:00:00:00:01".into()), port: None },
    );
    complete(&mut spec, || [9; 5]);
    assert_eq!(spec.nics[0].port.as_deref(), Some("web1.1"));
    check(&spec).unwrap();
}

type Spoil = fn(&mut VmSpec);

#[test]
fn every_fault_is_named() {
    let faults: &[(&str, &str, &str, Spoil)] = &[
        ("VM", "", "not a VM's name", |s| s.name = String::new()),
        ("VM", "Web", "not a VM's name", |s| s.name = "Web".into()),
        ("VM", "a/b", "not a VM's name", |s| s.name = "a/b".into()),
        ("VM", "web1", "0 processors", |s| s.cpus = 0),
        ("VM", "web1", "65 processors", |s| s.cpus = 65),
        ("VM", "web1", "memory of 8 MiB", |s| s.memory_bytes = 8 << 20),
        ("VM", "web1", "memory of 2 TiB", |s| s.memory_bytes = 2 << 40),
        ("VM", "web1", "whole MiB", |s| s.memory_bytes += 1),
        ("VM", "web1", "17 disks", |s| {
            s.disks = (0..17).map(|n| DiskSpec { volume: format!("v{n}"), read_only: false }).collect();
        }),
        ("disk", "web1-root", "twice", |s| s.disks.push(s.disks[0].clone())),
        ("disk", "A", "not a volume name", |s| s.disks[0].volume = "A".into()),
        ("network card", "0", "is not a name", |s| s.nics[0].portgroup = "a b".into()),
        ("network card", "0", "is not a MAC", |s| s.nics[0].mac = Some("52:54".into())),
        ("network card", "0", "not the address of one card", |s| {
            s.nics[0].mac = Some("ff:ff:ff:ff:ff:ff".into())
        }),
        ("network card", "0", "is not a name", |s| s.nics[0].port = Some("-".into())),
        ("network card", "0", "has no address", |s| s.nics[0].mac = None),
        ("network card", "0", "has no port", |s| s.nics[0].port = None),
        ("network card", "1", "address of another card", |s| {
            s.nics.push(NicSpec { port: Some("other".into()), ..s.nics[0].clone() });
        }),
        ("network card", "1", "port of another card", |s| {
            s.nics.push(NicSpec { mac: Some("52:54:00:00:00:01".into()), ..s.nics[0].clone() });
        }),
        ("VM", "web1", "9 network cards", |s| {
            s.nics = (0..9).map(|_| NicSpec { portgroup: "blue".into(), mac: None, port: None }).collect();
            let mut last = 0;
            complete(s, || {
                last += 1;
                [0, 0, 0, 0, last]
            });
        }),
        ("boot", "", "has no disk", |s| s.disks.clear()),
        ("boot", "entry", "empty", |s| {
            s.boot = BootSpec::Volume(VolumeBoot { entry: Some(String::new()), cmdline_append: None });
        }),
        ("boot", "cmdline_append", "2048 bytes", |s| {
            s.boot = BootSpec::Volume(VolumeBoot { entry: None, cmdline_append: Some("x".repeat(2048)) });
        }),
        ("boot", "kernel", "not an absolute path", |s| s.boot = files("vmlinuz", None, "")),
        ("boot", "initrd", "not an absolute path", |s| s.boot = files("/vmlinuz", Some("../initrd"), "")),
        ("boot", "cmdline", "control character", |s| s.boot = files("/vmlinuz", None, "a\nb")),
        ("cpu", "shares", "0: choose", |s| s.cpu.shares = 0),
        ("cpu", "shares", "100001", |s| s.cpu.shares = 100_001),
        ("cpu", "reservation_percent", "at most 100 %", |s| s.cpu.reservation_percent = 101),
        ("cpu", "limit_percent", "0 %", |s| s.cpu.limit_percent = Some(0)),
        ("cpu", "limit_percent", "101 %", |s| s.cpu.limit_percent = Some(101)),
        ("cpu", "limit_percent", "below the reservation", |s| {
            (s.cpu.reservation_percent, s.cpu.limit_percent) = (50, Some(49));
        }),
        ("cpu", "affinity", "not a list of processors", |s| s.cpu.affinity = Some("3-1".into())),
        ("cpu", "affinity", "2 lists for 1", |s| s.cpu.affinity = Some("0;1".into())),
        ("memory", "shares", "0: choose", |s| s.memory.shares = 0),
        ("memory", "reservation_bytes", "more than the VM's", |s| s.memory.reservation_bytes = 513 << 20),
        ("memory", "limit_bytes", "choose from", |s| s.memory.limit_bytes = Some(513 << 20)),
        ("memory", "limit_bytes", "below the reservation", |s| {
            (s.memory.reservation_bytes, s.memory.limit_bytes) = (256 << 20, Some(128 << 20));
        }),
        ("memory", "limit_bytes", "without a balloon", |s| {
            (s.memory.balloon, s.memory.limit_bytes) = (false, Some(128 << 20));
        }),
        ("memory", "limit_bytes", "without a balloon", |s| {
            (s.memory.huge_pages, s.memory.limit_bytes) = (Some(HugePages::TwoMib), Some(128 << 20));
        }),
        ("memory", "huge_pages", "not made of whole pages", |s| {
            s.memory.huge_pages = Some(HugePages::OneGib)
        }),
    ];
    for (kind, name, problem, spoil) in faults {
        let mut spec = good();
        spoil(&mut spec);
        let found = check(&spec).unwrap_err();
        let named = found.iter().any(|f| f.kind == *kind && f.name == *name && f.problem.contains(problem));
        assert!(named, "{kind} {name:?} {problem}: {found:?}");
    }
    // All that belong to different things, at once.
    let mut spec = good();
    let spoils: [Spoil; 4] = [
        |s| s.cpus = 0,
        |s| s.disks[0].volume = "A".into(),
        |s| s.memory.shares = 0,
        |s| s.nics[0].mac = Some("x".into()),
    ];
    spoils.iter().for_each(|spoil| spoil(&mut spec));
    assert_eq!(check(&spec).unwrap_err().len(), 4);
}

fn files(kernel: &str, initrd: Option<&str>, cmdline: &str) -> BootSpec {
    let (kernel, cmdline) = (kernel.to_owned(), cmdline.to_owned());
    BootSpec::Files(FilesBoot { kernel, initrd: initrd.map(str::to_owned), cmdline })
}

#[test]
fn a_specification_is_read_as_it_was_written_and_misspelt_keys_are_refused() {
    let spec = good();
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<VmSpec>(&text).unwrap(), spec);
    let least: VmSpec = serde_json::from_str(r#"{"name":"a","memory_bytes":16777216}"#).unwrap();
    assert_eq!(least, VmSpec::named("a", 16 << 20));
    for bad in [
        r#"{"name":"a"}"#,
        r#"{"name":"a","memory_bytes":16777216,"cpu":{"share":1}}"#,
        r#"{"name":"a","memory_bytes":16777216,"boot":{"volume":{"kernel":"/x"}}}"#,
        r#"{"name":"a","memory_bytes":16777216,"vmm":"xen"}"#,
        r#"{"name":"a","memory_bytes":-1}"#,
    ] {
        assert!(serde_json::from_str::<VmSpec>(bad).is_err(), "{bad}");
    }
}

proptest! {
    /// Whatever is asked for, the check ends in a VM within its bounds or in faults that name something.
    #[test]
    fn nothing_gets_past_the_bounds(
        name in ".{0,70}", cpus in any::<u32>(), memory in any::<u64>(), shares in any::<u32>(),
        reserved in any::<u32>(), limit in proptest::option::of(any::<u32>()), bytes in any::<u64>(),
        affinity in proptest::option::of("[0-9,;-]{0,12}"),
    ) {
        let mut spec = VmSpec::named(&name, memory);
        spec.boot = files("/k", None, "");
        spec.cpus = cpus;
        (spec.cpu.shares, spec.cpu.reservation_percent, spec.cpu.limit_percent) = (shares, reserved, limit);
        spec.cpu.affinity = affinity;
        spec.memory.reservation_bytes = bytes;
        match check(&spec) {
            Ok(vm) => {
                prop_assert!(vm.cpus <= 64 && vm.memory_bytes <= 1 << 40);
                prop_assert!(vm.cpu.reservation_percent <= vm.cpus * 100);
                prop_assert!(vm.memory.reservation_bytes <= vm.memory_bytes);
            }
            Err(faults) => prop_assert!(faults.iter().all(|f| !f.problem.is_empty()) && !faults.is_empty()),
        }
    }
}
