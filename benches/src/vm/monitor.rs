//! The virtual machine monitors and how each is told of the same machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

/// Guest memory of every machine here, MiB.
pub(super) const MEMORY_MIB: u32 = 128;

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
    /// A bzImage.
    pub(super) kernel: &'a Path,
    /// Its initial RAM disk.
    pub(super) initrd: &'a Path,
    /// Its command line.
    pub(super) command_line: &'a str,
}

/// The command that runs a machine.
pub(super) fn command(monitor: Monitor, programs: &Programs, machine: &Machine<'_>) -> Command {
    let memory = format!("{MEMORY_MIB}M");
    if monitor == Monitor::Ours {
        let mut command = Command::new(&programs.vmm);
        command.args(["--cpus", "1", "--memory", &memory, "--console", "stdio"]);
        command.arg("--kernel").arg(machine.kernel).arg("--initrd").arg(machine.initrd);
        command.args(["--cmdline", machine.command_line]).env("VMM_LOG", "warn");
        return command;
    }
    let mut command = Command::new(&programs.qemu);
    command.args([
        "-machine",
        qemu_machine(monitor),
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
    command
}

/// Without a clock to read, a kernel on `microvm` waits for one for seconds, so it gets one.
fn qemu_machine(monitor: Monitor) -> &'static str {
    match monitor {
        Monitor::Microvm => "microvm,x-option-roms=off,rtc=on,memory-backend=ram",
        _ => "pc,memory-backend=ram",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_monitor_gets_the_same_machine() {
        let programs = Programs { vmm: "vmm".into(), qemu: "qemu".into() };
        let machine = Machine { kernel: Path::new("k"), initrd: Path::new("i"), command_line: "quiet" };
        for monitor in [Monitor::Ours, Monitor::Microvm, Monitor::Pc] {
            let command = command(monitor, &programs, &machine);
            let arguments: Vec<_> = command.get_args().map(|it| it.to_str().unwrap()).collect();
            for wanted in ["1", "128M", "k", "i", "quiet", "stdio"] {
                assert!(arguments.contains(&wanted), "{monitor:?} lacks {wanted}: {arguments:?}");
            }
        }
    }
}
