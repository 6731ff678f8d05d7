//! The command line, and how it becomes a [`VmConfig`].

mod device;

use std::path::PathBuf;

use clap::Parser;

use crate::config::{
    BootSource, CPUS_MAX, ConsoleLog, ConsoleTarget, CpuCount, CpuList, DeviceConfig, HugePages, VmConfig,
};
use crate::confine::{Confinement, User};
use crate::layout::{LayoutError, MemorySize};
use crate::volume::{CONSOLE, ShowBoot, VolumeBoot};
use device::{parse_disk, parse_nic};

/// Runs one virtual machine and ends with it.
///
/// The status tells how it ended: 0 the guest switched it off, 3 the guest reset it, 4 the guest crashed its processor,
/// 5 KVM could not go on, 6 a signal ended it, 7 its kernel panicked; 1 it could not be started, 2 the arguments are wrong.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Arguments {
    /// What to call it in messages and in the list of processes.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME", value_parser = parse_name)]
    name: String,
    /// A socket for the control API: HTTP/1.1 and JSON.
    #[arg(long, value_name = "SOCKET")]
    api: Option<PathBuf>,
    /// Virtual processors, 1 to 64.
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    cpus: u8,
    /// Memory, with a suffix of K, M or G.
    #[arg(long, default_value = "256M", value_name = "SIZE", value_parser = parse_size)]
    memory: u64,
    /// The kernel: a bzImage (vmlinuz) or an ELF image with a PVH entry. Without it, kernel, initrd and command line come
    /// out of the first disk's own /boot.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The kernel's initial RAM disk.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The kernel's command line ("console=ttyS0" by default), or what is put behind that of the disk's entry (which gets
    /// "console=ttyS0" if it names no console).
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// The entry of the disk's boot menu, by identifier, title or position, instead of the menu's own default.
    #[arg(long, value_name = "NAME", conflicts_with = "kernel")]
    boot_entry: Option<String>,
    /// Prints what the first disk would boot, as JSON (entry, kernel, initrd, cmdline), and runs nothing.
    #[arg(long, conflicts_with = "kernel")]
    show_boot: bool,
    /// With --show-boot: writes the files "kernel" and "initrd" into this folder.
    #[arg(long, value_name = "FOLDER", requires = "show_boot")]
    extract: Option<PathBuf>,
    /// Where the serial console is: "stdio", "socket:PATH" or "none".
    #[arg(long, default_value = "stdio", value_name = "WHERE", value_parser = parse_console)]
    console: ConsoleTarget,
    /// A file for all that the guest prints. At its size (4M by default) it is renamed to FILE.1, and a new one is begun.
    #[arg(long, value_name = "FILE[,size=BYTES]", value_parser = parse_log)]
    console_log: Option<ConsoleLog>,
    /// Memory out of the host's huge pages of this size, "2M" or "1G", all of it taken when the VM starts.
    #[arg(long, value_name = "SIZE", value_parser = parse_huge_pages)]
    huge_pages: Option<HugePages>,
    /// Processors of the host to run on: a list like "0-3,8" for all, or one for each virtual processor, as "0-3,8;4".
    #[arg(long, value_name = "LISTS", value_delimiter = ';', value_parser = parse_cpus)]
    cpu_affinity: Vec<CpuList>,
    /// Whether the VM runs in a process of its own that can do nothing else: "full" (what root gets) or "none".
    #[arg(long, value_name = "HOW", value_parser = parse_confine)]
    confine: Option<bool>,
    /// Numbers of the user and group that a confined VM becomes. Best none that anything else runs as.
    #[arg(long, value_name = "UID:GID", value_parser = parse_user)]
    user: Option<User>,
    /// This process is the confined one, and its broker is at this descriptor.
    #[arg(long, hide = true, value_name = "DESCRIPTOR")]
    jailed: Option<i32>,
    /// A source of random numbers (virtio-rng): the host's own, at most 1 MiB a second.
    #[arg(long)]
    rng: bool,
    /// A memory balloon (virtio-balloon), with statistics, free page reporting, and deflation before the guest kills
    /// programs for want of memory.
    #[arg(long)]
    balloon: bool,
    /// A disk: the vhost-user-blk socket of its back end, how many queues it has (1 by default), and whether the back
    /// end has to serve it read-only. Its serial number is the back end's.
    #[arg(long = "disk", value_name = "SOCKET[,queues=N][,read-only]", value_parser = parse_disk)]
    disks: Vec<DeviceConfig>,
    /// A network card: the vhost-user-net socket of its back end, its address, how many pairs of queues it has (1 by
    /// default), and the MTU that the guest is told.
    #[arg(long = "nic", value_name = "SOCKET,mac=ADDRESS[,queues=N][,mtu=N]", value_parser = parse_nic)]
    nics: Vec<DeviceConfig>,
}

/// Longest name.
const NAME_BYTES_MAX: usize = 63;
/// Sizes of a console's log.
const LOG_BYTES_DEFAULT: u64 = 4 << 20;
const LOG_BYTES_MIN: u64 = 4 << 10;
const LOG_BYTES_MAX: u64 = 1 << 30;

/// Why arguments make no VM.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentsError {
    /// The number of processors.
    #[error("--cpus {0}: a VM has 1 to {CPUS_MAX} processors")]
    Cpus(u8),
    /// The memory.
    #[error("--memory: {0}")]
    Memory(#[from] LayoutError),
    /// Neither a kernel nor a disk that may have one.
    #[error("there is nothing to boot: give a disk with a system on it (--disk SOCKET), or a --kernel FILE")]
    NothingToBoot,
    /// Memory that is no whole huge pages.
    #[error("--memory: {bytes} bytes are no whole pages of {size}, which --huge-pages {size} asks for")]
    HugePages {
        /// The memory.
        bytes: u64,
        /// The size of a page.
        size: HugePages,
    },
    /// Full confinement takes root.
    #[error("--confine full: only root can confine a VM. Start it as root, or with --confine none")]
    ConfineNotRoot,
    /// A user for nothing.
    #[error("--user {0}: only a confined VM (--confine full) becomes another user")]
    UserUnconfined(User),
    /// Neither one list nor as many as processors.
    #[error(
        "--cpu-affinity: there are {lists} lists for {cpus} processors: give one for all, or one for each"
    )]
    Affinity {
        /// Lists.
        lists: usize,
        /// Processors.
        cpus: u8,
    },
}

impl Arguments {
    /// What is to be shown instead of running a VM.
    pub fn show_boot(&self) -> Result<Option<ShowBoot>, ArgumentsError> {
        if !self.show_boot {
            return Ok(None);
        }
        Ok(Some(ShowBoot { volume: self.volume_boot()?, extract: self.extract.clone() }))
    }

    /// How the VM is confined.
    pub fn confinement(&self) -> Result<Confinement, ArgumentsError> {
        let root = rustix::process::geteuid().is_root();
        match (self.confine.unwrap_or(root), root, self.user) {
            (true, true, user) => Ok(Confinement::Full(user.unwrap_or_default())),
            (true, false, _) => Err(ArgumentsError::ConfineNotRoot),
            (false, _, Some(user)) => Err(ArgumentsError::UserUnconfined(user)),
            (false, _, None) => Ok(Confinement::None),
        }
    }

    /// In the confined process: where its broker is.
    pub fn jailed(&self) -> Option<i32> {
        self.jailed
    }

    fn boot_source(&self) -> Result<BootSource, ArgumentsError> {
        let Some(kernel) = self.kernel.clone() else { return self.volume_boot().map(BootSource::Volume) };
        let command_line = self.cmdline.clone().unwrap_or_else(|| CONSOLE.to_owned());
        Ok(BootSource::Files { kernel, initrd: self.initrd.clone(), command_line })
    }

    fn volume_boot(&self) -> Result<VolumeBoot, ArgumentsError> {
        let disk = self.disks.first().ok_or(ArgumentsError::NothingToBoot)?;
        let (entry, append) = (self.boot_entry.clone(), self.cmdline.clone());
        Ok(VolumeBoot { socket: disk.socket.clone(), entry, append })
    }

    /// The VM that they describe.
    pub fn config(self) -> Result<VmConfig, ArgumentsError> {
        let boot = self.boot_source()?;
        let cpus = CpuCount::new(self.cpus).ok_or(ArgumentsError::Cpus(self.cpus))?;
        let memory = MemorySize::new(self.memory)?;
        if let Some(size) = self.huge_pages
            && !memory.bytes().is_multiple_of(size.bytes())
        {
            return Err(ArgumentsError::HugePages { bytes: memory.bytes(), size });
        }
        let lists = self.cpu_affinity.len();
        if lists > 1 && lists != usize::from(cpus.get()) {
            return Err(ArgumentsError::Affinity { lists, cpus: cpus.get() });
        }
        Ok(VmConfig {
            name: self.name,
            cpus,
            memory,
            boot,
            console: self.console,
            console_log: self.console_log,
            api: self.api,
            huge_pages: self.huge_pages,
            affinity: self.cpu_affinity,
            rng: self.rng,
            balloon: self.balloon,
            devices: self.disks.into_iter().chain(self.nics).collect(),
        })
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) if text.ends_with('K') => (digits, 10),
        Some(digits) if text.ends_with('M') => (digits, 20),
        Some(digits) => (digits, 30),
        None => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is no size like 512M"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too large"))
}

/// Also a name for the process, so nothing in it that a terminal would obey.
fn parse_name(text: &str) -> Result<String, String> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.len() <= NAME_BYTES_MAX && text.bytes().all(fine) {
        Ok(text.to_owned())
    } else {
        Err(format!("a name is up to {NAME_BYTES_MAX} letters, digits, '-', '_' and '.'"))
    }
}

fn parse_log(text: &str) -> Result<ConsoleLog, String> {
    let (path, size) = match text.rsplit_once(",size=") {
        Some((path, size)) => (path, parse_size(size)?),
        None => (text, LOG_BYTES_DEFAULT),
    };
    if path.is_empty() {
        return Err("the path of the file is missing".into());
    }
    if !(LOG_BYTES_MIN..=LOG_BYTES_MAX).contains(&size) {
        return Err("a console's log has a size of 4K to 1G".into());
    }
    Ok(ConsoleLog { path: path.into(), bytes: size })
}

/// Whether it is full.
fn parse_confine(text: &str) -> Result<bool, String> {
    match text {
        "full" => Ok(true),
        "none" => Ok(false),
        _ => Err(format!("{text:?} is none of full and none")),
    }
}

fn parse_user(text: &str) -> Result<User, String> {
    let user = text.split_once(':').and_then(|(uid, gid)| User::new(uid.parse().ok()?, gid.parse().ok()?));
    user.ok_or_else(|| format!("{text:?} is no pair of numbers like 900:900, neither of them root's"))
}

fn parse_huge_pages(text: &str) -> Result<HugePages, String> {
    match text {
        "2M" => Ok(HugePages::Mib2),
        "1G" => Ok(HugePages::Gib1),
        _ => Err(format!("{text:?} is none of 2M and 1G")),
    }
}

fn parse_cpus(text: &str) -> Result<CpuList, String> {
    CpuList::parse(text).ok_or_else(|| format!("{text:?} is no list of processors like 0-3,8"))
}

fn parse_console(text: &str) -> Result<ConsoleTarget, String> {
    match text {
        "stdio" => Ok(ConsoleTarget::Standard),
        "none" => Ok(ConsoleTarget::Nowhere),
        _ => match text.strip_prefix("socket:") {
            Some(path) if !path.is_empty() => Ok(ConsoleTarget::Socket(path.into())),
            _ => Err(format!("{text:?} is none of stdio, none and socket:PATH")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::vhost_user::{Mac, Role};

    fn config(arguments: &[&str]) -> Result<VmConfig, String> {
        let all = ["vmm"].iter().chain(arguments);
        let parsed = Arguments::try_parse_from(all).map_err(|error| error.to_string())?;
        parsed.config().map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_become_a_vm() {
        let vm = config(&["--kernel", "k", "--cpus", "64", "--memory", "3G", "--console", "socket:/run/c"])
            .unwrap();
        assert_eq!((vm.cpus.get(), vm.memory.bytes()), (64, 3 << 30));
        assert_eq!(vm.console, ConsoleTarget::Socket("/run/c".into()));
        let BootSource::Files { kernel, initrd, command_line } = vm.boot else { panic!("no files") };
        assert_eq!((kernel, initrd, command_line.as_str()), ("k".into(), None, "console=ttyS0"));
    }

    #[test]
    fn without_a_kernel_the_first_disk_brings_one() {
        let vm =
            config(&["--nic", "n,mac=52:54:00:12:34:56", "--disk", "a,queues=2", "--disk", "b"]).unwrap();
        let volume = |entry: Option<&str>, append: Option<&str>| VolumeBoot {
            socket: "a".into(),
            entry: entry.map(str::to_owned),
            append: append.map(str::to_owned),
        };
        assert_eq!(vm.boot, BootSource::Volume(volume(None, None)));
        let vm = config(&["--disk", "a", "--boot-entry", "old", "--cmdline", "debug"]).unwrap();
        assert_eq!(vm.boot, BootSource::Volume(volume(Some("old"), Some("debug"))));
        let arguments = ["vmm", "--show-boot", "--disk", "a", "--extract", "/d"];
        let shown = Arguments::try_parse_from(arguments).unwrap().show_boot().unwrap();
        assert_eq!(shown, Some(ShowBoot { volume: volume(None, None), extract: Some("/d".into()) }));
        for (wrong, word) in [
            (&["--kernel", "k", "--boot-entry", "e"][..], "--boot-entry"),
            (&["--kernel", "k", "--show-boot"], "--show-boot"),
            (&["--disk", "a", "--initrd", "i"], "--kernel"),
            (&["--disk", "a", "--extract", "d"], "--show-boot"),
            (&["--boot-entry", "e"], "nothing to boot"),
        ] {
            let error = config(wrong).unwrap_err();
            assert!(error.contains(word), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn processors_are_kept_where_the_lists_say() {
        let arguments = ["--kernel", "k", "--cpus", "2", "--cpu-affinity", "0-3,8,2;4"];
        let vm = config(&arguments).unwrap();
        let words: Vec<String> = vm.affinity.iter().map(ToString::to_string).collect();
        assert_eq!(words, ["0-3,8", "4"]);
        let all = config(&["--kernel", "k", "--cpus", "2", "--cpu-affinity", "1"]).unwrap();
        assert_eq!((all.affinity_of(0), all.affinity_of(1)), (all.affinity.first(), all.affinity.first()));
        assert_eq!(vm.affinity_of(1), vm.affinity.last());
    }

    #[test]
    fn a_user_is_for_a_confined_vm() {
        let parse =
            |text: &[&str]| Arguments::try_parse_from([&["vmm", "--kernel", "k"], text].concat()).unwrap();
        let refused = parse(&["--confine", "none", "--user", "900:901"]).confinement().unwrap_err();
        assert!(refused.to_string().starts_with("--user 900:901"), "{refused}");
        assert_eq!(parse(&["--confine", "none"]).confinement().unwrap(), Confinement::None);
        let full = parse(&["--confine", "full", "--user", "900:901"]).confinement();
        if rustix::process::geteuid().is_root() {
            assert_eq!(full.unwrap(), Confinement::Full(User::new(900, 901).unwrap()));
            assert_eq!(parse(&[]).confinement().unwrap(), Confinement::Full(User::default()));
        } else {
            assert!(matches!(full, Err(ArgumentsError::ConfineNotRoot)));
            assert_eq!(parse(&[]).confinement().unwrap(), Confinement::None);
        }
    }

    #[test]
    fn a_log_has_a_size_and_a_path_that_may_have_commas() {
        let log = |text| config(&["--kernel", "k", "--console-log", text]).unwrap().console_log.unwrap();
        assert_eq!(log("a,b"), ConsoleLog { path: "a,b".into(), bytes: 4 << 20 });
        assert_eq!(log("a,size=64K"), ConsoleLog { path: "a".into(), bytes: 64 << 10 });
    }

    #[test]
    fn devices_keep_their_order() {
        let vm = config(&[
            "--kernel",
            "k",
            "--nic",
            "n,mac=52:54:00:12:34:56",
            "--disk",
            "a",
            "--disk",
            "b,queues=4",
        ])
        .unwrap();
        let disk = |queues| Role::Block { queues, read_only: false };
        let role = |index: usize| vm.devices[index].role;
        assert_eq!((role(0), role(1)), (disk(1), disk(4)));
        assert_eq!(role(2), Role::Net { mac: Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]), pairs: 1, mtu: None });
        assert_eq!(vm.devices[1].socket, PathBuf::from("b"));
    }

    #[test]
    fn what_makes_no_vm_is_refused_with_its_name() {
        for (arguments, word) in [
            (&["--kernel", "k", "--cpus", "0"][..], "--cpus 0"),
            (&["--kernel", "k", "--cpus", "65"], "--cpus 65"),
            (&["--kernel", "k", "--memory", "1M"], "too few"),
            (&["--kernel", "k", "--memory", "4194305"], "no whole pages"),
            (&["--kernel", "k", "--memory", "99999999999G"], "too large"),
            (&["--kernel", "k", "--memory", "lots"], "no size"),
            (&["--kernel", "k", "--console", "socket:"], "none of stdio"),
            (&["--kernel", "k", "--confine", "half"], "none of full and none"),
            (&["--kernel", "k", "--user", "0:0"], "no pair of numbers"),
            (&["--kernel", "k", "--user", "900"], "no pair of numbers"),
            (&["--kernel", "k", "--name", "web 1"], "a name is"),
            (&["--kernel", "k", "--huge-pages", "4M"], "none of 2M and 1G"),
            (&["--kernel", "k", "--huge-pages", "1G"], "no whole pages of 1G"),
            (&["--kernel", "k", "--console-log", "f,size=1K"], "4K to 1G"),
            (&["--kernel", "k", "--console-log", ",size=1M"], "path of the file"),
            (&["--kernel", "k", "--cpu-affinity", "3-1"], "no list of processors"),
            (&["--kernel", "k", "--cpu-affinity", "1;"], "no list of processors"),
            (&["--kernel", "k", "--cpu-affinity", "+1"], "no list of processors"),
            (&["--kernel", "k", "--cpu-affinity", "99999999999"], "no list of processors"),
            (&["--kernel", "k", "--cpu-affinity", "0;1", "--cpus", "3"], "2 lists for 3"),
            (&[], "--kernel FILE"),
        ] {
            let error = config(arguments).unwrap_err();
            assert!(error.contains(word), "{arguments:?}: {error}");
        }
    }
}
