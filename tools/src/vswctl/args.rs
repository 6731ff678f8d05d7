//! The arguments: noun, then verb. The doc comments are the help texts and the man pages.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueHint};
use ferro_protocol::api::switch::{CONFIRM_SECONDS_MAX, SNAP_BYTES_MAX, SOCKET_DEFAULT};

use super::options::{GroupOptions, MirrorOptions, PortOptions, SwitchOptions};
use super::values::AttachDevice;
use crate::common::Options;
use crate::docs::CompletionShell;
use crate::terminal::WatchOptions;

/// The exit codes for `--help` and the man page.
pub const EXIT_CODES_HELP: &str = "\
Exit codes:
  0  done; on every host that can be reached, if it is a change
  1  failed: a file, a device, a host that can't take a change over, or a fault of the daemon
  2  asked wrongly: bad option, or a network that can't be like that (every fault has a line)
  3  not found: no such switch, port group, port, uplink, mirror or revision
  4  in conflict: name taken, port attached already, changed by somebody else meanwhile
  5  refused: a bound on how many of something there may be
  6  not available now: the cluster directory can't be reached or has no quorum
  7  timed out; it may still happen
  8  the daemon can't be reached on its socket
  9  not confirmed";

/// Administer a Ferrosphere virtual switch.
///
/// vswctl speaks to the vswitchd of this host over its local socket. What it changes is the configuration of all hosts (of
/// this one only, if it is alone), and it waits until every host that can be reached has taken it over. Attachments of
/// ports are this host's. A change that cuts a host off from the others undoes itself after 30 seconds.
#[derive(Parser, Debug)]
#[command(name = "vswctl", version, propagate_version = true, after_help = EXIT_CODES_HELP, max_term_width = 100)]
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
    #[arg(long, global = true, value_name = "PATH", env = "VSWITCHD_SOCKET", default_value = SOCKET_DEFAULT)]
    #[arg(value_hint = ValueHint::FilePath)]
    pub socket: PathBuf,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub options: Options,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub change: ChangeOptions,
}

/// How changes of the configuration are made.
#[derive(clap::Args, Debug, Clone, Default, PartialEq, Eq)]
#[command(next_help_heading = "Options of changes")]
pub struct ChangeOptions {
    /// Only check: say what would change, and change nothing
    #[arg(long, global = true)]
    pub dry_run: bool,
    /// Undo the change after so many seconds unless `vswctl confirm` is run
    #[arg(long, global = true, value_name = "SECONDS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(CONFIRM_SECONDS_MAX)))]
    pub confirm_within: Option<u32>,
    /// Wait at most so many seconds for the hosts [default: 30]
    #[arg(long, global = true, value_name = "SECONDS")]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub wait: Option<u64>,
    /// Return when the change is durable, without waiting for the hosts
    #[arg(long, global = true, conflicts_with = "wait")]
    pub no_wait: bool,
}

/// The nouns.
#[derive(Subcommand, Debug)]
pub enum Noun {
    /// Show the switch at a glance: health, hosts, uplinks, tunnels
    Status(WatchOptions),
    /// Virtual switches: they bind port groups to uplinks
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Switch {
        #[allow(missing_docs)]
        #[command(subcommand)]
        verb: SwitchVerb,
    },
    /// Port groups: VLANs, policies, and the segments that hosts share
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Portgroup {
        #[allow(missing_docs)]
        #[command(subcommand)]
        verb: GroupVerb,
    },
    /// Ports: the network cards of virtual machines
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Port {
        #[allow(missing_docs)]
        #[command(subcommand)]
        verb: PortVerb,
    },
    /// Mirrors: copies of what ports send and get
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Mirror {
        #[allow(missing_docs)]
        #[command(subcommand)]
        verb: MirrorVerb,
    },
    /// The network cards of this host that switches use
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Uplink {
        #[allow(missing_docs)]
        #[command(subcommand)]
        verb: UplinkVerb,
    },
    /// The ways to the other hosts
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Tunnel {
        #[allow(missing_docs)]
        #[command(subcommand)]
        verb: TunnelVerb,
    },
    /// Where addresses are
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Mac {
        #[allow(missing_docs)]
        #[command(subcommand)]
        verb: MacVerb,
    },
    /// Capture frames at a port, a port group or an uplink of this host, as pcapng
    Capture(CaptureArgs),
    /// Show what would happen to a frame, step by step; nothing is sent
    Trace(TraceArgs),
    /// Print the whole configuration, as `apply` takes it
    Config,
    /// Make the configuration what a file says: what it has no more is removed, after a question
    Apply(ApplyArgs),
    /// Make several changes, all or none
    ///
    /// Commands are verbs that change the configuration, as they are typed after `vswctl`, apart by `;` or on lines of their
    /// own; `#` begins a comment. They are checked together: what is wrong between two of them does not matter.
    Transaction(TransactionArgs),
    /// Keep a change that would undo itself
    Confirm {
        /// Its revision [default: the one that waits]
        revision: Option<u64>,
    },
    /// Undo a change that would undo itself, now
    Undo {
        /// Its revision [default: the one that waits]
        revision: Option<u64>,
    },
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: CompletionShell,
    },
    /// Print the manual page, or write all of them to a directory
    Man {
        /// Write vswctl.1, vswctl-port-create.1 and so on here
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
}

/// The verbs of `switch`.
#[derive(Subcommand, Debug)]
pub enum SwitchVerb {
    /// List the switches
    List,
    /// Show one switch
    Show {
        /// Its name
        name: String,
    },
    /// Make a switch
    Create {
        /// Its name: 1 to 63 letters, digits, '-', '_' and '.'
        name: String,
        #[allow(missing_docs)]
        #[command(flatten)]
        options: SwitchOptions,
    },
    /// Change a switch; what is not given stays as it is
    Set {
        /// Its name
        name: String,
        #[allow(missing_docs)]
        #[command(flatten)]
        options: SwitchOptions,
    },
    /// Delete a switch without port groups
    Delete {
        /// Its name
        name: String,
    },
}

/// The verbs of `portgroup`.
#[derive(Subcommand, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one of it")]
pub enum GroupVerb {
    /// List the port groups
    List,
    /// Show one port group
    Show {
        /// Its name
        name: String,
    },
    /// Make a port group
    ///
    /// With a VNI it is distributed: one segment on all hosts, through tunnels. Without, it is a standard group of each host,
    /// and hosts reach each other through the uplinks.
    Create {
        /// Its name: 1 to 63 letters, digits, '-', '_' and '.'
        name: String,
        /// The switch that it belongs to
        #[arg(long, value_name = "NAME")]
        switch: String,
        #[allow(missing_docs)]
        #[command(flatten)]
        options: GroupOptions,
    },
    /// Change a port group; what is not given stays as it is
    Set {
        /// Its name
        name: String,
        #[allow(missing_docs)]
        #[command(flatten)]
        options: GroupOptions,
    },
    /// Delete a port group without ports
    Delete {
        /// Its name
        name: String,
    },
}

/// The verbs of `port`.
#[derive(Subcommand, Debug)]
pub enum PortVerb {
    /// List the ports
    List {
        /// Only those of this port group
        #[arg(long, value_name = "NAME")]
        group: Option<String>,
    },
    /// Show one port, with what it dropped and why
    Show {
        /// Its name
        name: String,
    },
    /// Make a port
    Create {
        /// Its name: 1 to 63 letters, digits, '-', '_' and '.'
        name: String,
        /// The port group that it belongs to
        #[arg(long, value_name = "NAME")]
        group: String,
        /// The address of its network card, as in 52:54:00:12:34:56
        #[arg(long, value_name = "MAC")]
        mac: String,
        #[allow(missing_docs)]
        #[command(flatten)]
        options: PortOptions,
    },
    /// Change a port; what is not given stays as it is
    Set {
        /// Its name
        name: String,
        /// Move it to another port group
        #[arg(long, value_name = "NAME")]
        group: Option<String>,
        /// The address of its network card
        #[arg(long, value_name = "MAC")]
        mac: Option<String>,
        #[allow(missing_docs)]
        #[command(flatten)]
        options: PortOptions,
    },
    /// Delete a port; what is attached to it loses its network
    Delete {
        /// Its name
        name: String,
    },
    /// Attach a port to a virtual machine or a TAP interface of this host
    ///
    /// Kept over restarts of the host, until it is detached.
    Attach(AttachArgs),
    /// Take a port off this host
    Detach {
        /// Its name
        name: String,
    },
}

/// Options of `port attach`.
#[derive(clap::Args, Debug, Clone)]
pub struct AttachArgs {
    /// The port's name
    pub name: String,
    /// To what
    #[arg(long = "to", value_enum, value_name = "KIND", default_value_t)]
    pub device: AttachDevice,
    /// The vhost-user socket [default: one of the port's name under /run/vswitchd/ports]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub vhost_socket: Option<String>,
    /// The virtual machine monitor listens on the socket, and the switch connects
    #[arg(long, requires = "vhost_socket")]
    pub connect: bool,
    /// Pairs of queues
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub queues: u16,
    /// The TAP interface, with --to tap
    #[arg(long, value_name = "NAME", required_if_eq("device", "tap"), conflicts_with_all = ["vhost_socket", "connect"])]
    pub interface: Option<String>,
}

/// The verbs of `mirror`.
#[derive(Subcommand, Debug)]
pub enum MirrorVerb {
    /// List the mirrors
    List,
    /// Make a mirror
    Create {
        /// Its name
        name: String,
        /// The port that gets the copies and, as long as it does, nothing else
        #[arg(long, value_name = "PORT")]
        to: String,
        #[allow(missing_docs)]
        #[command(flatten)]
        options: MirrorOptions,
    },
    /// Change a mirror; what is not given stays as it is
    Set {
        /// Its name
        name: String,
        /// The port that gets the copies
        #[arg(long, value_name = "PORT")]
        to: Option<String>,
        #[allow(missing_docs)]
        #[command(flatten)]
        options: MirrorOptions,
    },
    /// Delete a mirror
    Delete {
        /// Its name
        name: String,
    },
}

/// The verbs of `uplink`.
#[derive(Subcommand, Debug)]
pub enum UplinkVerb {
    /// List the uplinks of this host
    List,
}

/// The verbs of `tunnel`.
#[derive(Subcommand, Debug)]
pub enum TunnelVerb {
    /// List the tunnels of this host, a line a path
    List,
}

/// The verbs of `mac`.
#[derive(Subcommand, Debug)]
pub enum MacVerb {
    /// List addresses and where they are
    List(MacListArgs),
    /// Let an address move again that was frozen because two machines had it
    Release {
        /// The address
        mac: String,
        /// Its virtual network; none for standard port groups
        #[arg(long, value_name = "VNI")]
        vni: Option<u32>,
    },
}

/// Options of `mac list`.
#[derive(clap::Args, Debug, Clone)]
pub struct MacListArgs {
    /// Only this virtual network
    #[arg(long, value_name = "VNI")]
    pub vni: Option<u32>,
    /// Only this address
    #[arg(long, value_name = "MAC")]
    pub mac: Option<String>,
    /// Only addresses that are frozen because two machines have them
    #[arg(long)]
    pub frozen: bool,
}

/// Options of `capture`.
#[derive(clap::Args, Debug, Clone)]
pub struct CaptureArgs {
    /// A port, a port group or an uplink; port:NAME, group:NAME and uplink:NAME where names are the same
    pub place: String,
    /// The file to write; - is the standard output, as for `tshark -r -`
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub write: PathBuf,
    /// Only the first bytes of each frame [default: all]
    #[arg(short, long, value_name = "BYTES")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(SNAP_BYTES_MAX)))]
    pub snap: Option<u32>,
    /// End after so many frames
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: Option<u32>,
}

/// Options of `trace`: where a frame comes from, and the frame.
#[derive(clap::Args, Debug, Clone)]
pub struct TraceArgs {
    /// The port, or uplink:NAME, that it comes from
    pub from: String,
    /// Its destination address, or the name of a port [default: broadcast]
    #[arg(long, value_name = "MAC|PORT")]
    pub dst: Option<String>,
    /// Its source address [default: the port's]
    #[arg(long, value_name = "MAC")]
    pub src: Option<String>,
    /// The VLAN that it is tagged with
    #[arg(long, value_name = "VLAN", value_parser = clap::value_parser!(u16).range(0..=4095))]
    pub vlan: Option<u16>,
    /// An ARP question for this address
    #[arg(long, value_name = "IPV4", conflicts_with = "to_ip")]
    pub arp: Option<std::net::Ipv4Addr>,
    /// The sender's IP address [default: the port's first, or none]
    #[arg(long, value_name = "IPV4")]
    pub from_ip: Option<std::net::Ipv4Addr>,
    /// A ping to this address
    #[arg(long, value_name = "IPV4")]
    pub to_ip: Option<std::net::Ipv4Addr>,
    /// Its length in bytes, with its header
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(60..=9234))]
    pub length: Option<u16>,
    /// All of the frame, in hexadecimal digits
    #[arg(long, value_name = "HEX", conflicts_with_all = ["dst", "src", "vlan", "arp", "from_ip", "to_ip", "length"])]
    pub frame: Option<String>,
}

/// Options of `apply`.
#[derive(clap::Args, Debug, Clone)]
pub struct ApplyArgs {
    /// The configuration, as `config` prints it: TOML, or JSON; - is the standard input
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// Options of `transaction`.
#[derive(clap::Args, Debug, Clone)]
pub struct TransactionArgs {
    /// The commands, as in 'portgroup create web --switch s --vlan 10; port create p --group web --mac 52:54:00:00:00:01'
    #[arg(required_unless_present = "file")]
    pub commands: Option<String>,
    /// A file with the commands; - is the standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "commands", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
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
