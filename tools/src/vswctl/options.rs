//! The options of switches, port groups, ports and mirrors. All of them can be left out: a thing that is made gets its
//! defaults then, and one that is changed stays as it is.

use clap::ArgGroup;
use ferro_protocol::api::switch::spec::RateSpec;

use super::values::{
    Allow, AtLimitWord, DetectionWord, DirectionWord, PolicyWord, Pool, PrivateWord, Ranges, YesNo,
    pool_or_none, rate_or_none,
};
use crate::values::{OrNone, number_or_none, text_or_none};

/// How uplinks are used together.
#[derive(clap::Args, Debug, Clone, Default, PartialEq)]
#[command(next_help_heading = "Teaming")]
pub struct TeamOptions {
    /// Uplinks in use, in order [default: all of the switch]
    #[arg(long, value_name = "UPLINK,…", value_delimiter = ',')]
    pub active: Option<Vec<String>>,
    /// Uplinks in reserve, in order; what is in neither list is not used
    #[arg(long, value_name = "UPLINK,…", value_delimiter = ',', num_args = 0..=1)]
    pub standby: Option<Vec<String>>,
    /// Which uplink a frame takes
    #[arg(long, value_enum, value_name = "POLICY")]
    pub teaming: Option<PolicyWord>,
    /// How a dead uplink is noticed
    #[arg(long, value_enum, value_name = "HOW")]
    pub detection: Option<DetectionWord>,
    /// Whether an active uplink that comes back is used at once [default: yes]
    #[arg(long, value_enum, value_name = "YES|NO")]
    pub failback: Option<YesNo>,
    /// Whether physical switches are told of addresses that moved to another uplink [default: yes]
    #[arg(long, value_enum, value_name = "YES|NO")]
    pub notify_switches: Option<YesNo>,
    /// Forget all of that: as the switch, or all uplinks active
    #[arg(long)]
    #[arg(conflicts_with_all = ["active", "standby", "teaming", "detection", "failback", "notify_switches"])]
    pub no_teaming: bool,
}

/// Options of a switch.
#[derive(clap::Args, Debug, Clone, Default, PartialEq)]
pub struct SwitchOptions {
    /// Bytes of the largest packet behind the Ethernet header [default: 1500]
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u32>,
    /// The network cards that it uses; the same names on every host
    #[arg(long, value_name = "UPLINK,…", value_delimiter = ',', num_args = 0..=1)]
    pub uplinks: Option<Vec<String>>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub team: TeamOptions,
}

/// What a port may do.
#[derive(clap::Args, Debug, Clone, Default, PartialEq)]
#[command(next_help_heading = "Security (all rejected by default)")]
pub struct SecurityOptions {
    /// See frames that are not for it
    #[arg(long, value_enum, value_name = "ALLOW|REJECT")]
    pub promiscuous: Option<Allow>,
    /// Take another address than the one it was given
    #[arg(long, value_enum, value_name = "ALLOW|REJECT")]
    pub mac_change: Option<Allow>,
    /// Send from addresses that are not its own
    #[arg(long, value_enum, value_name = "ALLOW|REJECT")]
    pub forged_transmits: Option<Allow>,
    /// Drop what only DHCP servers say; auto is where its network has a gateway
    #[arg(long, value_enum, value_name = "ON|OFF|AUTO")]
    pub dhcp_guard: Option<Guard>,
    /// Drop what only routers say: advertisements and redirects; auto is where its network has a gateway
    #[arg(long, value_enum, value_name = "ON|OFF|AUTO")]
    pub router_guard: Option<Guard>,
}

/// Whether something is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum Guard {
    On,
    Off,
    Auto,
}

impl Guard {
    /// As it is written.
    pub fn get(self) -> Option<bool> {
        match self {
            Self::On => Some(true),
            Self::Off => Some(false),
            Self::Auto => None,
        }
    }
}

/// Rates and limits.
#[derive(clap::Args, Debug, Clone, Default, PartialEq)]
#[command(next_help_heading = "Rates")]
pub struct RateOptions {
    /// The rate from the guest: AVERAGE, AVERAGE/PEAK or AVERAGE/PEAK/BURST, as in 100M/1G/512K; none is no limit
    #[arg(long, value_name = "RATE", value_parser = rate_or_none)]
    pub ingress: Option<OrNone<RateSpec>>,
    /// The rate to the guest
    #[arg(long, value_name = "RATE", value_parser = rate_or_none)]
    pub egress: Option<OrNone<RateSpec>>,
    /// Broadcast frames a second from one port; none is no limit
    #[arg(long, value_name = "FRAMES", value_parser = number_or_none)]
    pub storm_broadcast: Option<OrNone<u32>>,
    /// Multicast frames a second from one port
    #[arg(long, value_name = "FRAMES", value_parser = number_or_none)]
    pub storm_multicast: Option<OrNone<u32>>,
    /// Frames a second from one port to addresses that nobody knows
    #[arg(long, value_name = "FRAMES", value_parser = number_or_none)]
    pub storm_unknown: Option<OrNone<u32>>,
}

/// Options of a port group.
#[derive(clap::Args, Debug, Clone, Default, PartialEq)]
#[command(group = ArgGroup::new("vlans").args(["vlan", "untagged", "trunk", "guest_tagging", "private_vlan"]))]
pub struct GroupOptions {
    /// The virtual network that makes it one segment on all hosts, 1 to 16777215; none is a standard group
    #[arg(long, value_name = "VNI", value_parser = number_or_none)]
    pub vni: Option<OrNone<u32>>,
    /// Access: untagged at the port, in this VLAN outside, 1 to 4094
    #[arg(long, value_name = "VLAN")]
    pub vlan: Option<u32>,
    /// Untagged everywhere
    #[arg(long)]
    pub untagged: bool,
    /// Trunk: the guest gets tagged frames of these VLANs, as in 10,20-29
    #[arg(long, value_name = "VLANS")]
    pub trunk: Option<Ranges>,
    /// With a trunk: the VLAN of untagged frames; none drops them
    #[arg(long, value_name = "VLAN", value_parser = number_or_none)]
    pub native: Option<OrNone<u32>>,
    /// The guest sends and gets what it likes: all VLANs, and untagged
    #[arg(long)]
    pub guest_tagging: bool,
    /// Private VLAN: its primary VLAN
    #[arg(long, value_name = "VLAN", requires = "private_kind")]
    pub private_vlan: Option<u32>,
    /// With a private VLAN: who its ports reach
    #[arg(long, value_enum, value_name = "KIND", requires = "private_vlan")]
    pub private_kind: Option<PrivateWord>,
    /// With a private VLAN: the secondary VLAN of isolated and community ports
    #[arg(long, value_name = "VLAN", requires = "private_vlan")]
    pub secondary: Option<u32>,
    /// The host, by name or id, at which a distributed group meets the physical network; none is nowhere
    #[arg(long, value_name = "HOST", value_parser = text_or_none)]
    pub bridge: Option<OrNone<String>>,
    /// Bytes of the largest packet; none is that of the switch
    #[arg(long, value_name = "BYTES", value_parser = number_or_none)]
    pub mtu: Option<OrNone<u32>>,
    /// Whether nothing gets in or out
    #[arg(long, value_enum, value_name = "YES|NO")]
    pub blocked: Option<YesNo>,
    /// Whether ARP and ND questions are asked on although the switch knows the answer
    #[arg(long, value_enum, value_name = "YES|NO")]
    pub flood_neighbours: Option<YesNo>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub security: SecurityOptions,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub rates: RateOptions,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub learning: LearningOptions,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub team: TeamOptions,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub gateway: GatewayOptions,
}

/// Learning of addresses.
#[derive(clap::Args, Debug, Clone, Default, PartialEq)]
#[command(next_help_heading = "Learning (needs forged transmits)")]
pub struct LearningOptions {
    /// Learn up to so many addresses behind each port; none learns nothing
    #[arg(long, value_name = "N", value_parser = number_or_none)]
    pub learn: Option<OrNone<u32>>,
    /// What becomes of frames from further addresses
    #[arg(long, value_enum, value_name = "WHAT")]
    pub learn_at_limit: Option<AtLimitWord>,
    /// Forget an address that is silent for so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub learn_age: Option<u32>,
}

/// The switch's own address in a group.
#[derive(clap::Args, Debug, Clone, Default, PartialEq)]
#[command(next_help_heading = "Gateway and DHCP")]
pub struct GatewayOptions {
    /// The switch's own address in the group, as in 10.0.0.1/24; the same on every host. Given twice: one of IPv4 and one of
    /// IPv6; each takes the place of the one of its kind. none takes all away
    #[arg(long, value_name = "ADDRESS/PREFIX", value_parser = text_or_none)]
    pub gateway: Vec<OrNone<String>>,
    /// Give guests addresses of this pool by DHCP, as in 10.0.0.10-10.0.0.99
    #[arg(long, value_name = "FIRST-LAST", value_parser = pool_or_none)]
    pub dhcp: Option<OrNone<Pool>>,
    /// Seconds that guests keep an address [default: 86400]
    #[arg(long, value_name = "SECONDS")]
    pub lease: Option<u32>,
}

/// What a port takes from its group again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum Inherit {
    Security,
    Shaping,
    Storm,
    Blocked,
    All,
}

/// Options of a port.
#[derive(clap::Args, Debug, Clone, Default, PartialEq)]
pub struct PortOptions {
    /// IP addresses that are known to be behind it: reserved for it, and asked for by nobody in vain
    #[arg(long, value_name = "IP,…", value_delimiter = ',', num_args = 0..=1)]
    pub address: Option<Vec<String>>,
    /// Whether nothing gets in or out, whatever its group says
    #[arg(long, value_enum, value_name = "YES|NO")]
    pub blocked: Option<YesNo>,
    /// Take this from the group again
    #[arg(long, value_enum, value_name = "WHAT,…", value_delimiter = ',')]
    pub inherit: Vec<Inherit>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub security: SecurityOptions,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub rates: RateOptions,
}

/// Options of a mirror.
#[derive(clap::Args, Debug, Clone, Default, PartialEq)]
pub struct MirrorOptions {
    /// The ports that are copied
    #[arg(long, value_name = "PORT,…", value_delimiter = ',', num_args = 0..=1)]
    pub port: Option<Vec<String>>,
    /// Port groups all of whose ports are copied
    #[arg(long, value_name = "GROUP,…", value_delimiter = ',', num_args = 0..=1)]
    pub group: Option<Vec<String>>,
    /// Which way, as the guest sees it [default: both]
    #[arg(long, value_enum, value_name = "WHICH")]
    pub direction: Option<DirectionWord>,
}
