//! The virtual machine monitors and how each is told of the same machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use serde::Serialize;

/// Who runs the machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Monitor {
    /// Our `vmm`.
    Ours,
    /// QEMU with its small machine, without legacy devices, and the firmware it has for that machine.
    Microvm,
    /// QEMU with the machine that it has by default.
    Pc,
}

impl Monitor {
    /// The peers.
    pub(super) const PEERS: [Self; 2] = [Self::Microvm, Self::Pc];

    /// Its name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "vmm",
            Self::Microvm => "microvm",
            Self::Pc => "pc",
        }
    }
}

/// The programs.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    /// Ours.
    pub(super) vmm: PathBuf,
    /// QEMU.
    pub(super) qemu: PathBuf,
}

/// What every monitor is to run: one processor, a serial console on standard output, and nothing else but what is named.
#[derive(Clone, Debug)]
pub(super) struct Machine<'a> {
    /// Its memory.
    pub(super) memory_mib: u32,
    /// A bzImage.
    pub(super) kernel: &'a Path,
    /// Its initial RAM disk.
    pub(super) initrd: &'a Path,
    /// Its command line.
    pub(super) command_line: &'a str,
    /// Its disk's vhost-user socket.
    pub(super) disk: Option<&'a Path>,
    /// Its card's.
    pub(super) nic: Option<&'a Nic>,
}

/// A card: the switch's vhost-user socket and the address of its port, `SOCKET,MAC`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Nic {
    socket: String,
    mac: String,
}

impl FromStr for Nic {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((socket, mac)) =
            text.rsplit_once(',').filter(|(socket, mac)| !socket.is_empty() && !mac.is_empty())
        else {
            return Err(format!("{text:?} is not SOCKET,MAC"));
        };
        Ok(Self { socket: socket.to_owned(), mac: mac.to_owned() })
    }
}

/// The command that runs a machine.
pub(super) fn command(monitor: Monitor, programs: &Programs, machine: &Machine<'_>) -> Command {
    let memory = format!("{}M", machine.memory_mib);
    if monitor == Monitor::Ours {
        let mut command = Command::new(&programs.vmm);
        command.args(["--cpus", "1", "--memory", &memory, "--console", "stdio"]);
        command.arg("--kernel").arg(machine.kernel).arg("--initrd").arg(machine.initrd);
        command.args(["--cmdline", machine.command_line]).env("VMM_LOG", "warn");
        if let Some(disk) = machine.disk {
            command.arg("--disk").arg(disk);
        }
        if let Some(Nic { socket, mac }) = machine.nic {
            command.args(["--nic", &format!("{socket},mac={mac}")]);
        }
        return command;
    }
    let mut command = Command::new(&programs.qemu);
    command.args([
        "-machine",
        qemu_machine(monitor, machine.disk.is_some() || machine.nic.is_some()),
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-smp",
        "1",
        "-m",
        &memory,
    ]);
    // The memory that vhost-user needs, as ours is.
    command.args(["-object", &format!("memory-backend-memfd,id=ram,size={memory},share=on")]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    command.arg("-kernel").arg(machine.kernel).arg("-initrd").arg(machine.initrd);
    command.args(["-append", machine.command_line]);
    if let Some(disk) = machine.disk {
        command.args(["-chardev", &format!("socket,id=disk,path={}", disk.display())]);
        command.args(["-device", "vhost-user-blk-pci,chardev=disk"]);
    }
    if let Some(Nic { socket, mac }) = machine.nic {
        command.args(["-chardev", &format!("socket,id=nic,path={socket}")]);
        command.args(["-netdev", "vhost-user,id=nic,chardev=nic"]);
        command.args(["-device", &format!("virtio-net-pci,netdev=nic,mac={mac},romfile=")]);
    }
    command
}

/// Without a clock to read, a kernel on `microvm` waits for one for seconds, so it gets one. And PCI where there is something to
/// be on it: drivers and interrupts are then the same for all.
fn qemu_machine(monitor: Monitor, devices: bool) -> &'static str {
    match (monitor, devices) {
        (Monitor::Microvm, false) => "microvm,x-option-roms=off,rtc=on,memory-backend=ram",
        (Monitor::Microvm, true) => "microvm,x-option-roms=off,rtc=on,pcie=on,memory-backend=ram",
        _ => "pc,memory-backend=ram",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_monitor_gets_the_same_machine() {
        let programs = Programs { vmm: "vmm".into(), qemu: "qemu".into() };
        let nic: Nic = "n,52:54:00:00:00:01".parse().unwrap();
        let (kernel, initrd, disk) = (Path::new("k"), Path::new("i"), Some(Path::new("d")));
        let nic = Some(&nic);
        let machine = Machine { memory_mib: 128, kernel, initrd, command_line: "quiet", disk, nic };
        for monitor in [Monitor::Ours, Monitor::Microvm, Monitor::Pc] {
            let command = command(monitor, &programs, &machine);
            let arguments: Vec<_> = command.get_args().map(|it| it.to_str().unwrap()).collect();
            for wanted in ["1", "128M", "k", "i", "quiet", "stdio"] {
                assert!(arguments.contains(&wanted), "{monitor:?} lacks {wanted}: {arguments:?}");
            }
            let all = arguments.join(" ");
            assert!(all.contains("mac=52:54:00:00:00:01") && all.contains("disk"), "{all}");
        }
    }
}
