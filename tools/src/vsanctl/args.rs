//! The arguments: noun, then verb. The doc comments are the help texts and the man pages.

mod volume;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueHint};
use ferro_protocol::api::{
    EVENTS_MAX, MUTE_SECONDS_MAX, MUTE_SECONDS_MIN, SOCKET_DEFAULT, TOKEN_SECONDS_MAX, parse_size,
};

use super::maintenance::{MaintenanceVerb, SafetyOf};
use super::policy::PolicyVerb;
use super::scrub::ScrubVerb;
use crate::common::Options;
use crate::docs::CompletionShell;
use crate::failure::EXIT_CODES_HELP;
use crate::terminal::WatchOptions;
pub use volume::{ExportOptions, ImageFormat, ImportOptions, VolumeVerb};

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
    /// Show what each health check finds, and mute those that are known
    ///
    /// `status` shows the same without what is muted.
    Health {
        #[allow(missing_docs)]
        #[command(subcommand)]
        verb: Option<HealthVerb>,
    },
    /// Show the room there is, what takes it, and what the loss of a host or a disk would mean
    Capacity {
        /// Also what the loss of each disk would mean
        #[arg(long)]
        disks: bool,
    },
    /// Show what happened in the cluster, with times
    ///
    /// Every host keeps a log of bounded size of what it saw; the logs of all hosts that answer are put together. Times are UTC.
    Events(EventOptions),
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
    /// Policies with names, and what the hosts at hand can hold
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Policy {
        #[allow(missing_docs)]
        #[command(subcommand)]
        verb: PolicyVerb,
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
    /// Say whether a host or a disk could go now, what that would cost, and what can be done to prepare for it
    ///
    /// Ends with 0 if every volume could still be read and changed, and with 5 if not.
    #[command(subcommand_required = true, arg_required_else_help = true)]
    SafeToRemove {
        #[allow(missing_docs)]
        #[command(subcommand)]
        what: SafetyOf,
    },
    /// The search for blocks that have gone bad
    ///
    /// Each volume is scrubbed every 14 days, unless vsand.toml says otherwise: all its copies are read by the disks that have them, and
    /// blocks whose checksums are wrong are mended from other copies.
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Scrub {
        #[allow(missing_docs)]
        #[command(subcommand)]
        verb: ScrubVerb,
    },
    /// Watch the I/O of this host's volumes and disks
    Top(TopOptions),
    /// Write a file for those who look for a fault
    ///
    /// From every host that can be reached: versions, settings, state, health, events, metrics, and logs where journald keeps them.
    /// There are no secrets in it, but names and addresses: look before you give it away. What could not be had is listed in it.
    SupportBundle {
        /// The file to write, which must not be there: a name that ends in .tar.gz
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
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

/// Options of `events`.
#[derive(clap::Args, Debug, Clone)]
pub struct EventOptions {
    /// Only of so long ago and later, as in 30m, 2h or 7d
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    pub since: Option<u64>,
    /// Only the newest
    #[arg(short = 'n', long, value_name = "N", default_value_t = 200)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(EVENTS_MAX)))]
    pub limit: u32,
    /// Go on with what happens from now on, until interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// Only what matters so much, or more
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = EventFloor::Info)]
    pub level: EventFloor,
    /// Only what this host saw
    #[arg(long)]
    pub local: bool,
    /// With --follow: stop after so many seconds
    #[arg(long, value_name = "SECONDS", requires = "follow", hide = true)]
    pub stop_after: Option<u64>,
}

/// How much an event has to matter to be shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum EventFloor {
    /// Everything.
    Info,
    /// What cost redundancy or room, or worse.
    Warning,
    /// What made data or changes impossible.
    Critical,
}

/// The verbs of `health`.
#[derive(Subcommand, Debug)]
pub enum HealthVerb {
    /// Do not show what a check finds now in `status` for a while
    ///
    /// It is shown again when the time is up, when it finds more than now or something else, or when it gets more severe.
    Mute {
        /// The check's code, as in `host_offline`
        code: String,
        /// For how long, as in 30m, 2h or 1d; at most 30d
        #[arg(long = "for", value_name = "TIME", value_parser = parse_mute)]
        seconds: u64,
        /// Why, for the others
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Show a muted check again
    Unmute {
        /// The check's code
        code: String,
    },
    /// Say what a check means and what it finds
    Explain {
        /// The check's code
        code: String,
    },
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
    /// End an upgrade: make use of what all hosts know by now
    ///
    /// Until then the cluster is at the feature level of before, and hosts can be put back to the earlier release. There is no way back
    /// afterwards. Refused if a host does not answer or knows less than others.
    Upgrade {
        /// Only say whether it could be done
        #[arg(long)]
        check: bool,
    },
}

/// How a host presents itself to its cluster.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct MemberOptions {
    /// What the host is called [default: its host name]
    #[arg(long, value_name = "NAME")]
    pub host_name: Option<String>,
    /// What fails together with this host, such as a rack, or with its site before it, as in lyon/rack3 [default: the host alone]
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
        /// What fails together with it from now on, such as a rack, or with its site before it, as in lyon/rack3
        #[arg(long, value_name = "NAME", group = "change")]
        fault_domain: Option<String>,
    },
    /// Let a host stand aside while somebody works on it
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Maintenance {
        #[allow(missing_docs)]
        #[command(subcommand)]
        verb: MaintenanceVerb,
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

pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(0) => Err("a size is above 0".to_owned()),
        Ok(bytes) => Ok(bytes),
        Err(bad) => Err(bad.to_string()),
    }
}

fn parse_valid(text: &str) -> Result<u64, String> {
    parse_time(text, 1..=TOKEN_SECONDS_MAX)
        .ok_or_else(|| format!("{text:?} is not a time from 1s to 7d; write 90s, 30m, 1h or 2d"))
}

fn parse_mute(text: &str) -> Result<u64, String> {
    parse_time(text, MUTE_SECONDS_MIN..=MUTE_SECONDS_MAX)
        .ok_or_else(|| format!("{text:?} is not a time from 1m to 30d; write 30m, 2h or 1d"))
}

fn parse_since(text: &str) -> Result<u64, String> {
    parse_time(text, 1..=10 * 365 * 24 * 3600)
        .ok_or_else(|| format!("{text:?} is not a length of time; write 90s, 30m, 2h or 7d"))
}

pub(super) fn parse_time(text: &str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor).filter(|seconds| range.contains(seconds))
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
        assert_eq!((parse_mute("30d"), parse_mute("1m")), (Ok(2_592_000), Ok(60)));
        assert!(parse_mute("59s").is_err() && parse_mute("31d").is_err());
        for text in ["", "0s", "8d", "60", "1w", "h", "-1h", "99999999999999999999d"] {
            assert!(parse_valid(text).is_err(), "{text}");
        }
    }
}
