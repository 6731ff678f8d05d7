//! QEMU's command line for the same VM: its emulation, with our daemons' sockets (docs/operations.md has what each option of
//! the devices is for).
//!
//! A kernel in a volume is taken out of it before: what is booted here is always files.

use super::{Machine, queues};
use crate::command::DiskSocket;

/// What is booted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kernel {
    /// The kernel's file.
    pub kernel: String,
    /// The initial RAM disk's.
    pub initrd: Option<String>,
    /// The command line.
    pub cmdline: String,
}

/// The arguments. `reconnect` is the option that makes a disk come back after its back end did, as this QEMU spells it:
/// `reconnect=1` or, from 9.2 on, `reconnect-ms=1000`.
pub fn arguments(machine: Machine<'_>, boot: &Kernel, reconnect: &str) -> Vec<String> {
    let Machine { vm, paths, .. } = machine;
    let mut all: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| all.extend([format!("-{option}"), value]);
    add("name", format!("{},process=vm-{}", vm.name, vm.name));
    add("accel", "tcg,thread=multi".to_owned());
    add("machine", "q35,memory-backend=ram".to_owned());
    add("cpu", "max".to_owned());
    add("smp", vm.cpus.to_string());
    add("m", format!("{}M", vm.memory_bytes >> 20));
    let huge = vm.memory.huge_pages.map(|pages| format!(",hugetlb=on,hugetlbsize={}", pages.as_str()));
    let size = format!("memory-backend-memfd,id=ram,share=on,size={}M", vm.memory_bytes >> 20);
    add("object", size + &huge.unwrap_or_default());
    add("display", "none".to_owned());
    let (serial, log) = (escaped(&paths.serial()), escaped(&paths.console_log()));
    add("chardev", format!("socket,id=console,path={serial},server=on,wait=off,logfile={log},logappend=on"));
    add("serial", "chardev:console".to_owned());
    add("chardev", format!("socket,id=qmp,path={},server=on,wait=off", escaped(&paths.api())));
    add("mon", "chardev=qmp,mode=control".to_owned());
    add("device", "pvpanic-pci".to_owned());
    add("device", "virtio-rng-pci".to_owned());
    if vm.memory.balloon {
        add("device", "virtio-balloon-pci,id=balloon,free-page-reporting=on,deflate-on-oom=on".to_owned());
    }
    for (index, disk) in machine.disks.iter().enumerate() {
        let DiskSocket { path, queues: offered, .. } = disk;
        add("chardev", format!("socket,id=disk{index},path={},{reconnect}", escaped(path)));
        let queues = queues(*offered, vm.cpus);
        add("device", format!("vhost-user-blk-pci,chardev=disk{index},num-queues={queues}"));
    }
    for (index, nic) in machine.nics.iter().enumerate() {
        add("chardev", format!("socket,id=nic{index},path={},{reconnect}", escaped(&nic.path)));
        add("netdev", format!("vhost-user,id=net{index},chardev=nic{index}"));
        // Without vectors: QEMU 7.2 crashes under emulation when a guest uses message-signalled interrupts here.
        let (mac, mtu) = (nic.mac, nic.mtu);
        add("device", format!("virtio-net-pci,netdev=net{index},mac={mac},host_mtu={mtu},vectors=0"));
    }
    add("kernel", boot.kernel.clone());
    if let Some(initrd) = &boot.initrd {
        add("initrd", initrd.clone());
    }
    add("append", boot.cmdline.clone());
    // A reset is heard by the daemon, which starts the VM anew; without one here, QEMU resets its machine by itself. A panic is an
    // end, with a status of its own.
    add("action", "reboot=reset,panic=exit-failure".to_owned());
    all.extend(["-nodefaults", "-no-user-config"].map(str::to_owned));
    all
}

/// In QEMU's options a comma in a value is written twice.
fn escaped(path: &str) -> String {
    path.replace(',', ",,")
}
