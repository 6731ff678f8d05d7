//! Our vmm's command line (`vmm --help`), and what its exit status says (docs/decisions/0014-vmm.md).

use ferro_protocol::api::vm::ExitCause;
use ferro_protocol::api::vm::spec::BootSpec;

use super::{BadArgument, Machine, queues};

/// What its log may hold until it is renamed and begun anew: 4 MiB.
pub const CONSOLE_LOG_BYTES: u64 = 4 << 20;

/// How far a vmm is shut in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Confinement {
    /// Not at all: for daemons that are not root, and can't.
    None,
    /// As far as it can be, as this user where one is set up for it.
    Full(Option<User>),
}

/// As whom a vmm runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct User {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// The arguments.
pub fn arguments(machine: Machine<'_>, confinement: Confinement) -> Result<Vec<String>, BadArgument> {
    let Machine { vm, paths, .. } = machine;
    let mut all: Vec<String> = Vec::new();
    // In one word: a value of its own that begins with a dash, such as the kernel's "-- single", would be taken for an option.
    let mut add = |option: &str, value: String| all.push(format!("--{option}={value}"));
    add("name", vm.name.to_string());
    add("cpus", vm.cpus.to_string());
    add("memory", format!("{}M", vm.memory_bytes >> 20));
    add("api", paths.api());
    add("console", format!("socket:{}", paths.console()));
    add("console-log", format!("{},size={CONSOLE_LOG_BYTES}", plain(paths.console_log())?));
    match &vm.boot {
        BootSpec::Volume(boot) => {
            if let Some(entry) = &boot.entry {
                add("boot-entry", entry.clone());
            }
            if let Some(more) = &boot.cmdline_append {
                add("cmdline", more.clone());
            }
        }
        BootSpec::Files(boot) => {
            add("kernel", boot.kernel.clone());
            if let Some(initrd) = &boot.initrd {
                add("initrd", initrd.clone());
            }
            add("cmdline", boot.cmdline.clone());
        }
    }
    if let Some(pages) = vm.memory.huge_pages {
        add("huge-pages", pages.as_str().to_owned());
    }
    if let Some(affinity) = &vm.cpu.affinity {
        add("cpu-affinity", affinity.to_string());
    }
    for disk in machine.disks {
        let read_only = if disk.read_only { ",read-only" } else { "" };
        let queues = queues(disk.queues, vm.cpus);
        add("disk", format!("{},queues={queues}{read_only}", plain(disk.path.clone())?));
    }
    for nic in machine.nics {
        let queues = queues(nic.queues, vm.cpus);
        let path = plain(nic.path.clone())?;
        add("nic", format!("{path},mac={},queues={queues},mtu={}", nic.mac, nic.mtu));
    }
    match confinement {
        Confinement::Full(user) => {
            if let Some(User { uid, gid }) = user {
                add("user", format!("{uid}:{gid}"));
            }
            add("confine", "full".to_owned());
        }
        Confinement::None => add("confine", "none".to_owned()),
    }
    all.push("--rng".to_owned());
    if vm.memory.balloon {
        all.push("--balloon".to_owned());
    }
    Ok(all)
}

fn plain(path: String) -> Result<String, BadArgument> {
    if path.contains(',') { Err(BadArgument::Comma(path)) } else { Ok(path) }
}

/// What its exit status says.
pub const fn cause(status: i32) -> ExitCause {
    match status {
        0 => ExitCause::PoweredOff,
        3 => ExitCause::Reset,
        4 => ExitCause::CpuCrashed,
        5 => ExitCause::KvmFailed,
        7 => ExitCause::Panicked,
        1 | 2 => ExitCause::NotStarted,
        _ => ExitCause::Died,
    }
}

/// The same for people.
pub fn words(status: i32) -> String {
    match status {
        0 => "the guest switched the machine off".to_owned(),
        3 => "the guest reset the machine".to_owned(),
        4 => "the guest crashed its processor (status 4)".to_owned(),
        5 => "KVM could not go on, or the VM's process was killed (status 5): the last line of its vmm.log says which"
            .to_owned(),
        7 => "the guest's kernel panicked (status 7)".to_owned(),
        1 => "the vmm could not start the machine (status 1)".to_owned(),
        2 => {
            "the vmm does not take these arguments (status 2): vmm and hypervisord are of different versions"
                .to_owned()
        }
        6 => "a signal told the vmm to end (status 6)".to_owned(),
        other => format!("the vmm ended with status {other}"),
    }
}
