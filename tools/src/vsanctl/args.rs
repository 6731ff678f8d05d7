//! The arguments: noun, then verb. The doc comments are the help texts and the man pages.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueHint};
use ferro_protocol::api::{Policy, SOCKET_DEFAULT, TOKEN_SECONDS_MAX, parse_size};
use ferro_protocol::ids::VolumeName;

use crate::common::Options;
use crate::docs::CompletionShell;
use crate::failure::EXIT_CODES_HELP;
use crate::terminal::WatchOptions;

/// Administer a Ferrosphere storage cluster.
///
/// vsanctl speaks to the vsand of this host over its local socket. Sizes are a number and a unit, as in 512M, 10G or 1.5T;
/// units are powers of 1024.
#[derive(Parser, Debug)]
#[command(name = "vsanctl", version, propagate_version = true, after_help = EXIT_CODES_HELP, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Args {
    #[allow(missing_docs)]
    #[command(flatten)]
    pub common: Common,
    #[allow(missing_docs)]
    #[command(subcommand)]
    pub noun: Noun,
}

/// Options of every verb.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Common options")]
pub struct Common {
    /// The daemon's socket
    #[arg(long, global = true, value_name = "PATH", env = "VSAND_SOCKET", default_value = SOCKET_DEFAULT)]
    #[arg(value_hint = ValueHint::FilePath)]
    pub socket: PathBuf,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub options: Options,
}

/// The nouns.
#[derive(Subcommand, Debug)]
pub enum Noun {
    /// Show the cluster at a glance: health, hosts, capacity, volumes, resync
    Status(WatchOptions),
    /// Make a cluster, or join one
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Cluster {
        #[allow(missing_docs)]
        #[command(subcommand)]
        verb: ClusterVerb,
    },
    /// The hosts of the cluster
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Host {
        #[allow(missing_docs)]
        #[command(subcommand)]
        verb: HostVerb,
    },
    /// The disks that hold the data
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Disk {
        #[allow(missing_docs)]
        #[command(subcommand)]
        verb: DiskVerb,
    },
    /// What volumes are made of: where each chunk is
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Object {
        #[allow(missing_docs)]
        #[command(subcommand)]
        verb: ObjectVerb,
    },
    /// Virtual disks
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Volume {
        #[allow(missing_docs)]
        #[command(subcommand)]
        verb: VolumeVerb,
    },
    /// Which host holds which volume
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Lock {
        #[allow(missing_docs)]
        #[command(subcommand)]
        verb: LockVerb,
    },
    /// Copies that are being brought up to date
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Resync {
        #[allow(missing_docs)]
        #[command(subcommand)]
        verb: ResyncVerb,
    },
    /// Watch the I/O of this host's volumes and disks
    Top(TopOptions),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: CompletionShell,
    },
    /// Print the manual page, or write all of them to a directory
    Man {
        /// Write vsanctl.1, vsanctl-volume-create.1 and so on here
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
}

/// Options of `top`.
#[derive(clap::Args, Debug, Clone, Copy)]
pub struct TopOptions {
    /// How many seconds apart
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
    /// Stop after so many times
    #[arg(short = 'n', long, value_name = "N")]
    pub count: Option<u64>,
}

/// The verbs of `cluster`.
#[derive(Subcommand, Debug)]
pub enum ClusterVerb {
    /// Make a new cluster with this host as its first member
    Bootstrap(MemberOptions),
    /// Print a token with which one other host can join
    ///
    /// The token is a secret. It can be used once.
    Token {
        /// How long it is good for, as in 90s, 30m, 1h or 2d
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_valid)]
        valid: u64,
    },
    /// Make this host a member of the cluster that a token is from
    Join {
        /// The token, or - to read it from the standard input
        token: String,
        #[allow(missing_docs)]
        #[command(flatten)]
        options: MemberOptions,
    },
    /// Show the cluster that this host is in
    Show,
}

/// How a host presents itself to its cluster.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct MemberOptions {
    /// What the host is called [default: its host name]
    #[arg(long, value_name = "NAME")]
    pub host_name: Option<String>,
    /// What fails together with this host, such as a rack [default: the host alone]
    #[arg(long, value_name = "NAME")]
    pub fault_domain: Option<String>,
}

/// The verbs of `host`.
#[derive(Subcommand, Debug)]
pub enum HostVerb {
    /// List the hosts
    List,
    /// Show one host
    Show {
        /// Its name, its id or the beginning of its id
        host: String,
    },
    /// Change what a host is called, or what fails together with it
    ///
    /// Both hold at once and everywhere, for a host that is away too. Copies that are placed already stay where they are; the
    /// volumes whose copies share a fault domain then are named, here and in `status`.
    #[command(group(clap::ArgGroup::new("change").required(true).multiple(true)))]
    Set {
        /// Its name, its id or the beginning of its id
        host: String,
        /// What it is called from now on
        #[arg(long, value_name = "NAME", group = "change")]
        name: Option<String>,
        /// What fails together with it from now on, such as a rack
        #[arg(long, value_name = "NAME", group = "change")]
        fault_domain: Option<String>,
    },
    /// Take a host out of the cluster, with its disks
    ///
    /// What its disks hold is copied to others first, then it goes by itself. Refused at once if the other hosts can't keep
    /// all volumes as their policies ask, and while a volume is open there.
    Remove {
        /// Its name, its id or the beginning of its id
        host: String,
        /// How
        #[command(flatten)]
        options: RemoveOptions,
    },
}

/// How a host or a disk is removed.
#[derive(clap::Args, Debug, Clone, Copy)]
pub struct RemoveOptions {
    /// Go at once: volumes have fewer copies until they are repaired. Still refused if a last copy would be lost
    #[arg(long, conflicts_with = "cancel")]
    pub force: bool,
    /// Return when it has begun to leave, not when it is gone
    #[arg(long, conflicts_with = "cancel")]
    pub no_wait: bool,
    /// Keep one that is leaving
    #[arg(long)]
    pub cancel: bool,
}

/// The verbs of `disk`.
#[derive(Subcommand, Debug)]
pub enum DiskVerb {
    /// Give a directory or a block device of this host to the cluster
    ///
    /// A block device is erased. One that holds a file system or partitions is refused unless its name is typed back.
    Add {
        /// A directory on a file system of its own, or a block device
        #[arg(value_hint = ValueHint::AnyPath)]
        path: PathBuf,
        /// How much of it to use [default: all that is free]
        #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
        size: Option<u64>,
        /// Erase what the device holds: its name, as in sdb
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
    },
    /// List the disks
    List,
    /// Show one disk
    Show {
        /// Its id, the beginning of its id, or its path on this host
        disk: String,
    },
    /// Take a disk out of the cluster
    ///
    /// What it holds is copied to others first, then it goes by itself. Refused at once if the other disks can't keep all
    /// volumes as their policies ask.
    Remove {
        /// Its id, the beginning of its id, or its path on this host
        disk: String,
        /// How
        #[command(flatten)]
        options: RemoveOptions,
    },
    /// Use a disk of this host again that was taken for dead
    ///
    /// Once the cause is removed, a loose cable for example. It is opened and all of it is checked first; what it missed is
    /// then copied to it.
    Revive {
        /// Its id, the beginning of its id, or its path on this host
        disk: String,
    },
}

/// The verbs of `object`.
#[derive(Subcommand, Debug)]
pub enum ObjectVerb {
    /// List the objects
    List,
    /// Show an object with the disks that each of its chunks is on
    Show {
        /// Its volume's name, its id or the beginning of its id
        object: String,
    },
}

/// The verbs of `volume`.
#[derive(Subcommand, Debug)]
pub enum VolumeVerb {
    /// Make a volume
    Create {
        /// Its name: 1 to 63 of a-z, 0-9, '-', '_' and '.'
        name: VolumeName,
        /// Its size, as in 10G
        #[arg(short, long, value_name = "SIZE", value_parser = parse_bytes)]
        size: u64,
        /// How its data is kept: mirror:N has N copies, 1 to 3, and survives N-1 failures
        #[arg(short, long, value_name = "POLICY")]
        policy: Policy,
    },
    /// List the volumes
    List,
    /// Show one volume
    Show {
        /// Its name
        name: VolumeName,
    },
    /// Serve a volume on a vhost-user socket of this host, for one virtual machine
    Open {
        /// Its name
        name: VolumeName,
        /// The guest may only read
        #[arg(long)]
        read_only: bool,
        /// The guest's memory, for the QEMU arguments that are printed
        #[arg(long, value_name = "SIZE", default_value = "2G", value_parser = parse_bytes)]
        memory: u64,
    },
    /// Stop serving a volume and give it back
    Close {
        /// Its name
        name: VolumeName,
    },
    /// Grow a volume, in use or not; volumes don't shrink
    Resize {
        /// Its name
        name: VolumeName,
        /// Its new size, as in 20G
        #[arg(short, long, value_name = "SIZE", value_parser = parse_bytes)]
        size: u64,
    },
    /// Delete a volume and its data; asks for its name, or takes --yes
    Delete {
        /// Its name
        name: VolumeName,
    },
    /// Fill a volume with an image
    Import(ImportOptions),
    /// Write a volume to an image
    Export(ExportOptions),
}

/// A format of images.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum ImageFormat {
    /// The bytes of the disk.
    Raw,
    /// QEMU's format.
    Qcow2,
}

/// Options of `volume import`.
#[derive(clap::Args, Debug, Clone)]
pub struct ImportOptions {
    /// The volume's name
    pub name: VolumeName,
    /// The image, or a block device
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The image's format [default: told from its first bytes]
    #[arg(short, long, value_enum)]
    pub format: Option<ImageFormat>,
    /// Make the volume first, as large as the image or as --size says
    #[arg(long, requires = "policy")]
    pub create: bool,
    /// With --create: how its data is kept, as in mirror:3
    #[arg(short, long, value_name = "POLICY", requires = "create")]
    pub policy: Option<Policy>,
    /// With --create: its size [default: the image's]
    #[arg(short, long, value_name = "SIZE", value_parser = parse_bytes, requires = "create")]
    pub size: Option<u64>,
}

/// Options of `volume export`.
#[derive(clap::Args, Debug, Clone)]
pub struct ExportOptions {
    /// The volume's name
    pub name: VolumeName,
    /// The image to write
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The image's format [default: qcow2 if the file is called so, else raw]
    #[arg(short, long, value_enum)]
    pub format: Option<ImageFormat>,
}

/// The verbs of `lock`.
#[derive(Subcommand, Debug)]
pub enum LockVerb {
    /// List the locks
    List,
    /// Take a volume from a host that is gone; refused while its lease runs
    Break {
        /// The volume's name, or the object's id or the beginning of it
        target: String,
    },
}

/// The verbs of `resync`.
#[derive(Subcommand, Debug)]
pub enum ResyncVerb {
    /// List the resyncs with progress, rate and time left
    #[command(visible_alias = "status")]
    List,
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(0) => Err("a size is above 0".to_owned()),
        Ok(bytes) => Ok(bytes),
        Err(bad) => Err(bad.to_string()),
    }
}

fn parse_valid(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a time from 1s to 7d; write 90s, 30m, 1h or 2d");
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    match number.checked_mul(factor) {
        Some(seconds @ 1..=TOKEN_SECONDS_MAX) => Ok(seconds),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_hang_together() {
        Args::command().debug_assert();
    }

    #[test]
    fn times_have_a_unit_and_a_bound() {
        assert_eq!(parse_valid("90s"), Ok(90));
        assert_eq!(parse_valid("7d"), Ok(604_800));
        for text in ["", "0s", "8d", "60", "1w", "h", "-1h", "99999999999999999999d"] {
            assert!(parse_valid(text).is_err(), "{text}");
        }
    }
}
