//! The arguments: a verb, then a machine. The doc comments are the help texts and the man pages.

use std::path::PathBuf;

use clap::{ArgGroup, Parser, Subcommand, ValueHint};
use ferro_protocol::api::vm::{LOG_LINES_MAX, SOCKET_DEFAULT, VmName};

use super::escape::EscapeKey;
use super::options::MachineOptions;
use super::values::{DiskWord, NicWord};
use crate::common::Options;
use crate::docs::CompletionShell;
use crate::terminal::WatchOptions;

/// The exit codes for `--help` and the man page.
pub const EXIT_CODES_HELP: &str = "\
Exit codes:
  0  done
  1  failed: a virtual machine monitor, a disk, a file, or a fault of the daemon
  2  asked wrongly: bad option, or a machine that can't be like that (every fault has a line)
  3  not found: no such VM, volume, port group, host, disk, network card or log
  4  in conflict: name taken, running where it must be off or off where it must run, on another host, volume in use
  5  refused: not enough processors or memory free, no KVM and no QEMU
  6  not available now: no quorum in the cluster directory, another daemon or host can't be reached
  7  timed out; it may still happen
  8  the daemon can't be reached on its socket
  9  not confirmed";

/// Administer virtual machines on a Ferrosphere cluster.
///
/// vmctl speaks to the hypervisord of this host over its local socket, which answers for the VMs of every host; a console, its
/// log as it grows, and what a VM uses are to be had on the VM's own host. Sizes are a number and a unit, as in 512M or 4G;
/// units are powers of 1024.
#[derive(Parser, Debug)]
#[command(name = "vmctl", version, propagate_version = true, after_help = EXIT_CODES_HELP, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Args {
    #[allow(missing_docs)]
    #[command(flatten)]
    pub common: Common,
    #[allow(missing_docs)]
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Common options")]
pub struct Common {
    /// The daemon's socket
    #[arg(long, global = true, value_name = "PATH", env = "HYPERVISORD_SOCKET", default_value = SOCKET_DEFAULT)]
    #[arg(value_hint = ValueHint::FilePath)]
    pub socket: PathBuf,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub options: Options,
}

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Make a VM out of volumes and port groups
    ///
    /// It boots the kernel that its first volume brings in its own /boot, unless --kernel names a file.
    Create(Box<CreateOptions>),
    /// List the VMs of all hosts
    List {
        /// Only those of this host, by name or id
        #[arg(long, value_name = "HOST")]
        host: Option<String>,
    },
    /// Show one VM
    Show {
        /// Its name
        name: VmName,
    },
    /// Start a VM and wait until it runs
    ///
    /// Its volumes are opened and its ports attached first. If any step fails, those before it are undone.
    Start(StartOptions),
    /// Press a VM's power button and wait until it is off
    ///
    /// --timeout says how long to wait for the guest, an hour at most.
    Stop(StopOptions),
    /// Pull a VM's plug; what its guest has not written is lost
    Kill {
        /// Its name
        name: VmName,
    },
    /// Press a VM's reset button; what its guest has not written is lost
    Reset {
        /// Its name
        name: VmName,
    },
    /// Have a VM's processors stand still
    Pause {
        /// Its name
        name: VmName,
    },
    /// Have a paused VM go on
    Resume {
        /// Its name
        name: VmName,
    },
    /// Talk to a VM over its serial console
    ///
    /// At a terminal every key goes to the guest but the escape key, which leaves; the VM goes on. Where the input is a file or a
    /// pipe there is no escape key, all of it is sent, and the output goes on after its end. The last that was printed is shown
    /// first. After a reset it goes on with the new machine. The newest client has the console; the one before is told.
    Console(ConsoleOptions),
    /// Change a VM that is off; what is not given stays as it is
    Set {
        /// Its name
        name: VmName,
        #[allow(missing_docs)]
        #[command(flatten)]
        options: Box<MachineOptions>,
    },
    /// Give a VM that is off one more disk or network card
    Attach(AttachOptions),
    /// Take a disk or a network card from a VM that is off; a volume keeps its data
    Detach(DetachOptions),
    /// Delete a VM that is off; its volumes stay. Asks for its name, or takes --yes
    Delete {
        /// Its name
        name: VmName,
    },
    /// Watch what the VMs of this host use
    Top(TopOptions),
    /// Print what a VM's console has shown
    Logs(LogsOptions),
    /// Show what this host has for VMs, and what is free
    Host,
    /// Show the hypervisor at a glance: health, hosts, VMs
    Status(WatchOptions),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: CompletionShell,
    },
    /// Print the manual page, or write all of them to a directory
    Man {
        /// Write vmctl.1, vmctl-create.1 and so on here
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
}

/// Options of `create`.
#[derive(clap::Args, Debug, Clone)]
pub struct CreateOptions {
    /// Its name: 1 to 63 of a-z, 0-9, '-', '_' and '.'
    pub name: VmName,
    /// A disk: a volume's name, with ,ro to be only read. Can be repeated; the first is the one that is booted, and the host that
    /// has it open has the VM
    #[arg(long = "volume", value_name = "VOLUME[,ro]")]
    pub volumes: Vec<DiskWord>,
    /// A network card in a port group. Can be repeated. Unless given, its address is made up, and its port is called after the VM
    #[arg(long = "portgroup", value_name = "GROUP[,mac=MAC][,port=NAME]")]
    pub portgroups: Vec<NicWord>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub machine: MachineOptions,
    /// Start it, too
    #[arg(long)]
    pub start: bool,
}

/// Options of `start`.
#[derive(clap::Args, Debug, Clone)]
pub struct StartOptions {
    /// Its name
    pub name: VmName,
    /// The host that is to run it, by name [default: the one that is asked]
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// Return at once, not when it runs
    #[arg(long)]
    pub no_wait: bool,
}

/// Options of `stop`.
#[derive(clap::Args, Debug, Clone)]
pub struct StopOptions {
    /// Its name
    pub name: VmName,
    /// Pull the plug if it is not off by then
    #[arg(long)]
    pub force: bool,
}

/// Options of `console`.
#[derive(clap::Args, Debug, Clone)]
pub struct ConsoleOptions {
    /// The VM's name
    pub name: VmName,
    /// The key that leaves: ctrl-] or ^], and so on with any letter or one of [ \ ] ^ _; none has no such key
    #[arg(long, value_name = "KEY", default_value = "ctrl-]")]
    pub escape: EscapeKey,
    /// Leave after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: Option<u32>,
}

/// Options of `attach`.
#[derive(clap::Args, Debug, Clone)]
#[command(group = ArgGroup::new("what").args(["volume", "portgroup"]).required(true))]
pub struct AttachOptions {
    /// The VM's name
    pub name: VmName,
    /// A disk: a volume's name, with ,ro to be only read
    #[arg(long, value_name = "VOLUME[,ro]")]
    pub volume: Option<DiskWord>,
    /// A network card in a port group
    #[arg(long, value_name = "GROUP[,mac=MAC][,port=NAME]")]
    pub portgroup: Option<NicWord>,
}

/// Options of `detach`.
#[derive(clap::Args, Debug, Clone)]
#[command(group = ArgGroup::new("what").args(["volume", "nic"]).required(true))]
pub struct DetachOptions {
    /// The VM's name
    pub name: VmName,
    /// The volume
    #[arg(long, value_name = "VOLUME")]
    pub volume: Option<String>,
    /// The network card's number, as `show` has it; the first is 0
    #[arg(long, value_name = "INDEX")]
    pub nic: Option<u32>,
}

/// Options of `top`.
#[derive(clap::Args, Debug, Clone)]
pub struct TopOptions {
    /// Only these VMs [default: all that run on this host]
    pub names: Vec<VmName>,
    /// How many seconds apart
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
    /// Stop after so many times
    #[arg(short = 'n', long, value_name = "N")]
    pub count: Option<u64>,
}

/// Options of `logs`.
#[derive(clap::Args, Debug, Clone)]
pub struct LogsOptions {
    /// The VM's name
    pub name: VmName,
    /// What the console showed before it last ended
    #[arg(short, long, conflicts_with = "follow")]
    pub previous: bool,
    /// Go on with what is printed until the VM ends or this is interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// At most so many lines of the end
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(LOG_LINES_MAX)))]
    pub lines: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_hang_together() {
        Args::command().debug_assert();
    }
}
