//! The command lines, word by word.

use ferro_protocol::api::vm::VmSpec;
use ferro_protocol::api::vm::spec::{BootSpec, DiskSpec, NicSpec, VolumeBoot};
use hypervisor_core::command::qemu::{self, Kernel};
use hypervisor_core::command::vmm::{self, Confinement, User};
use hypervisor_core::command::{DiskSocket, Machine, NicSocket};
use hypervisor_core::documents::{RunDocument, Subject, host_name, run_name, spec_name, subject};
use hypervisor_core::paths::Paths;
use hypervisor_core::spec::{Vm, check, complete};

fn vm() -> Vm {
    let mut spec = VmSpec::named("web1", 512 << 20);
    spec.cpus = 2;
    spec.disks = vec![DiskSpec { volume: "root".into(), read_only: true }];
    spec.nics = vec![NicSpec { portgroup: "blue".into(), mac: None, port: None }];
    spec.cpu.affinity = Some("0-1".into());
    complete(&mut spec, || [0, 0, 0, 0, 7]);
    check(&spec).unwrap()
}

fn with<T>(vm: &Vm, work: impl FnOnce(Machine<'_>) -> T) -> T {
    let paths = Paths::new("/r", "/s", &vm.name).unwrap();
    let disks = [DiskSocket { path: "/v/root.sock".into(), queues: 4, read_only: true }];
    let nics = [NicSocket { path: "/p/web1.0.sock".into(), mac: vm.nics[0].mac, mtu: 1500, queues: 1 }];
    work(Machine { vm, paths: &paths, disks: &disks, nics: &nics })
}

#[test]
fn the_vmms() {
    let vm = vm();
    let said = with(&vm, |machine| vmm::arguments(machine, Confinement::Full(Some(User { uid: 7, gid: 8 }))))
        .unwrap()
        .join(" ");
    assert_eq!(
        said,
        "--name=web1 --cpus=2 --memory=512M --api=/r/vms/web1/api.sock --console=socket:/r/vms/web1/console.sock \
         --console-log=/s/vms/web1/console.log,size=4194304 --cpu-affinity=0-1 --disk=/v/root.sock,queues=2,read-only \
         --nic=/p/web1.0.sock,mac=02:00:00:00:00:07,queues=1,mtu=1500 --user=7:8 --confine=full --rng --balloon"
    );
    let disks = [DiskSocket { path: "/a,b".into(), queues: 1, read_only: false }];
    let comma = with(&vm, |machine| vmm::arguments(Machine { disks: &disks, ..machine }, Confinement::None));
    assert!(comma.unwrap_err().to_string().contains("/a,b"));
}

/// What begins with a dash is no option: "-- single" goes to the guest's init.
#[test]
fn values_are_not_taken_for_options() {
    let mut vm = vm();
    let (entry, more) = (Some("-1".to_owned()), Some("-- single".to_owned()));
    vm.boot = BootSpec::Volume(VolumeBoot { entry, cmdline_append: more });
    let said = with(&vm, |machine| vmm::arguments(machine, Confinement::None)).unwrap();
    for word in ["--boot-entry=-1", "--cmdline=-- single"] {
        assert!(said.iter().any(|it| it == word), "{said:?}");
    }
}

#[test]
fn qemus() {
    let vm = vm();
    let kernel = Kernel { kernel: "/k".into(), initrd: None, cmdline: "console=ttyS0".into() };
    let said = with(&vm, |machine| qemu::arguments(machine, &kernel, "reconnect=1"));
    let pair =
        |option: &str, value: &str| said.windows(2).any(|two| two[0] == option && two[1].contains(value));
    for (option, value) in [
        ("-object", "memory-backend-memfd,id=ram,share=on,size=512M"),
        ("-chardev", "socket,id=disk0,path=/v/root.sock,reconnect=1"),
        ("-device", "vhost-user-blk-pci,chardev=disk0,num-queues=2"),
        ("-device", "virtio-net-pci,netdev=net0,mac=02:00:00:00:00:07,host_mtu=1500,vectors=0"),
        ("-device", "pvpanic-pci"),
        ("-kernel", "/k"),
    ] {
        assert!(pair(option, value), "{option} {value}: {said:?}");
    }
}

#[test]
fn documents_have_names_that_lead_back() {
    let name = vm().name;
    assert_eq!(subject(&spec_name(&name)), Some(Subject::Spec(name.clone())));
    assert_eq!(subject(&run_name(&name)), Some(Subject::Run(name)));
    let host = ferro_protocol::ids::HostId::from_bytes([3; 16]);
    assert_eq!(subject(&host_name(host)), Some(Subject::Host(host)));
    for other in ["vm/spec", "vm/spec/A", "vm/host/x", "switch/network"] {
        assert_eq!(subject(&other.parse().unwrap()), None, "{other}");
    }
    let text = r#"{"format":1,"host":"00000000-0000-0000-0000-000000000001","wanted":"on","incarnation":3,
        "order":4,"verb":{"stop":{"timeout_s":60,"force":true}}}"#;
    let run: RunDocument = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::from_str::<RunDocument>(&serde_json::to_string(&run).unwrap()).unwrap(), run);
}
