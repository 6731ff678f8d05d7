//! The configuration: what an operator writes ([`spec`], which is also what the API takes), whether it can be ([`validate`]), and what the data path takes
//! ([`Config`]).
//!
//! ```text
//!   Spec ── changes ──► Spec ── validate ──► Config ──► Switch::configure
//!                                  └──► every fault, one line each; nothing was applied
//! ```
//!
//! What a group and a port's override say together is settled here once ([`Policy`]): the data path looks at one place.
//! A `Config` can only come out of `validate`, so the data path need not doubt it: names are resolved, VLANs are VLANs,
//! no two of anything are the same.

mod change;
mod check;
mod gateway;
mod group;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Mac, NetName, VlanId, Vni};

pub use change::transact;
pub use check::validate;
pub use ferro_protocol::api::switch::Change;
pub use ferro_protocol::api::switch::spec;
pub use spec::{AtLimit, Detection, Direction, PrivateKind, SecuritySpec as Security, Spec, TeamPolicy};

/// The least MTU: what IPv4 needs (RFC 791, section 3.2).
pub const MTU_MIN: u32 = 68;
/// The largest MTU that network cards commonly take.
pub const MTU_MAX: u32 = 9216;
/// The most VLAN ranges of a trunk, uplinks of a switch, and addresses of a port.
pub const LIST_MAX: usize = 64;
/// The most uplinks of a switch.
pub const UPLINKS_MAX: usize = 16;
/// The most ports, and the most port groups.
pub const PORTS_MAX: usize = 65_536;
/// The most addresses that may be learned behind one port.
pub const LEARNING_MAX: u32 = 4096;

/// A checked configuration.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Config {
    pub(crate) switches: Vec<Switch>,
    pub(crate) uplinks: Vec<Uplink>,
    pub(crate) groups: Vec<Group>,
    pub(crate) ports: BTreeMap<NetName, Port>,
    pub(crate) mirrors: Vec<Mirror>,
}

impl Config {
    /// The switches.
    pub fn switches(&self) -> &[Switch] {
        &self.switches
    }

    /// The uplinks of all switches; their places are their [`UplinkIx`].
    pub fn uplinks(&self) -> &[Uplink] {
        &self.uplinks
    }

    /// The port groups; their places are their [`GroupIx`].
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The ports.
    pub fn ports(&self) -> &BTreeMap<NetName, Port> {
        &self.ports
    }

    /// The mirrors.
    pub fn mirrors(&self) -> &[Mirror] {
        &self.mirrors
    }

    /// The uplink of this name.
    pub fn uplink(&self, name: &NetName) -> Option<UplinkIx> {
        self.uplinks.iter().position(|it| it.name == *name).map(|at| UplinkIx(at as u16))
    }
}

/// A switch's place in the configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SwitchIx(pub u16);

/// An uplink's place in the configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct UplinkIx(pub u16);

/// A port group's place in the configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GroupIx(pub u32);

/// A switch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Switch {
    /// Its name.
    pub name: NetName,
    /// Its MTU in bytes.
    pub mtu: u16,
}

/// An uplink.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uplink {
    /// Its name.
    pub name: NetName,
    /// Whose it is.
    pub switch: SwitchIx,
}

/// A port group.
#[derive(Clone, PartialEq, Debug)]
pub struct Group {
    /// Its name.
    pub name: NetName,
    /// Whose it is.
    pub switch: SwitchIx,
    /// The virtual network of a distributed group.
    pub vni: Option<Vni>,
    /// The only host at which a distributed group meets the physical network.
    pub bridge: Option<HostId>,
    /// Its VLANs.
    pub vlan: Vlan,
    /// The policy of its ports.
    pub policy: Policy,
    /// Learning, if it does.
    pub learning: Option<Learning>,
    /// Whether ARP and ND are answered from what is known.
    pub answer_neighbours: bool,
    /// How it uses its switch's uplinks.
    pub team: Team,
    /// The switch's own addresses in it.
    pub gateway: Option<Gateway>,
}

/// The VLANs of a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Vlan {
    /// Untagged at the port; in this VLAN, or in none, outside.
    Access(Option<VlanId>),
    /// Tagged, but for the native VLAN.
    Trunk {
        /// What it carries, the native VLAN too.
        carries: Box<VlanSet>,
        /// The VLAN of untagged frames.
        native: Option<VlanId>,
    },
    /// All, as the guest sends them.
    Guest,
    /// Part of a private VLAN.
    Private {
        /// The VLAN that promiscuous ports send in, and that addresses are looked up in.
        primary: VlanId,
        /// The VLAN that the port sends in: the primary for promiscuous ones.
        sends: VlanId,
        /// Who reaches whom.
        kind: PrivateKind,
    },
}

/// A set of VLANs.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet([u64; 64]);

impl VlanSet {
    /// The empty set.
    pub const EMPTY: Self = Self([0; 64]);

    /// Adds one.
    pub fn insert(&mut self, vlan: VlanId) {
        self.0[usize::from(vlan.get()) / 64] |= 1 << (vlan.get() % 64);
    }

    /// Whether a number is in it.
    pub const fn contains(&self, vid: u16) -> bool {
        vid < 4096 && self.0[vid as usize / 64] & (1 << (vid % 64)) != 0
    }

    /// All that are in it.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..4096).filter(|vid| self.contains(*vid))
    }
}

impl std::fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// What holds at a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// What it may do.
    pub security: Security,
    /// It may not answer as a DHCP server.
    pub dhcp_guard: bool,
    /// It may not speak as a router.
    pub router_guard: bool,
    /// The rate from the guest.
    pub ingress: Option<Rate>,
    /// The rate to the guest.
    pub egress: Option<Rate>,
    /// Frames a second to many.
    pub storm: Storm,
    /// Bytes of the largest packet.
    pub mtu: u16,
    /// Nothing passes.
    pub blocked: bool,
}

/// A rate, in bytes and seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Bytes a second over time.
    pub average_bytes_s: u64,
    /// Bytes a second at most.
    pub peak_bytes_s: u64,
    /// Bytes that may go at the peak rate.
    pub burst_bytes: u64,
}

/// Limits on frames to many, in frames a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Storm {
    /// Broadcast.
    pub broadcast: Option<u32>,
    /// Multicast.
    pub multicast: Option<u32>,
    /// To unknown addresses.
    pub unknown: Option<u32>,
}

/// Learning of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Learning {
    /// The most behind one port.
    pub limit: u32,
    /// What becomes of frames from others.
    pub at_limit: AtLimit,
    /// After how long a silent one is forgotten.
    pub age: Duration,
}

/// How a group uses uplinks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Team {
    /// In use, in order.
    pub active: Vec<UplinkIx>,
    /// In reserve, in order.
    pub standby: Vec<UplinkIx>,
    /// Who goes where.
    pub policy: TeamPolicy,
    /// How failures are noticed.
    pub detection: Detection,
    /// Whether an uplink that comes back is used at once.
    pub failback: bool,
    /// Whether switches are told of what moved.
    pub notify: bool,
}

/// A group's own addresses: at least one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gateway {
    /// Its MAC address: the same on every host, made from the network.
    pub mac: Mac,
    /// Of IPv4.
    pub v4: Option<GatewayV4>,
    /// Of IPv6.
    pub v6: Option<GatewayV6>,
}

/// A group's own address of IPv4.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayV4 {
    /// The address.
    pub address: Ipv4Addr,
    /// Bits of its network.
    pub prefix: u8,
    /// First and last address for guests.
    pub pool: Option<(Ipv4Addr, Ipv4Addr)>,
    /// How long they keep one.
    pub lease: Duration,
}

/// A group's own address of IPv6.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayV6 {
    /// The address.
    pub address: Ipv6Addr,
    /// Bits of its network.
    pub prefix: u8,
}

/// A port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Its group.
    pub group: GroupIx,
    /// Its address.
    pub mac: Mac,
    /// What is known to be behind it.
    pub addresses: Vec<IpAddr>,
    /// What holds there.
    pub policy: Policy,
}

/// A mirror.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mirror {
    /// Its name.
    pub name: NetName,
    /// Whose frames.
    pub ports: Vec<NetName>,
    /// From the guest.
    pub ingress: bool,
    /// To the guest.
    pub egress: bool,
    /// Where the copies go.
    pub to: NetName,
}

/// One fault, as one line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{kind} {name:?}: {problem}")]
pub struct Fault {
    /// What kind of thing it is at.
    pub kind: &'static str,
    /// The thing's name.
    pub name: String,
    /// What is wrong.
    pub problem: Problem,
}

impl Fault {
    pub(crate) fn new(kind: &'static str, name: &str, problem: Problem) -> Self {
        Self { kind, name: name.to_owned(), problem }
    }
}

/// What can be wrong.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// A name that can't be one.
    #[error("use 1 to 63 letters, digits, '-', '_' and '.' for a name, beginning with a letter or a digit")]
    Name,
    /// Something to be changed or removed is not there.
    #[error("there is none of this name")]
    NotThere,
    /// Two of the same name.
    #[error("there is more than one of this name")]
    Twice,
    /// A port in two groups.
    #[error("it is in two port groups, {0:?} and {1:?}: a port has one")]
    TwoGroups(String, String),
    /// Too many.
    #[error("{what}: {count}, at most {max}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many are allowed.
        max: usize,
    },
    /// No VLAN.
    #[error("VLAN {0} is not from 1 to 4094")]
    Vlan(u32),
    /// A range that ends before it begins.
    #[error("the VLAN range {0}-{1} is backwards")]
    Backwards(u32, u32),
    /// A trunk that carries nothing.
    #[error("a trunk needs a VLAN range")]
    EmptyTrunk,
    /// No VNI.
    #[error("VNI {0} is not from 1 to 16777215")]
    Vni(u32),
    /// Somebody else's VNI.
    #[error("VNI {0} is taken by port group {1:?}")]
    VniTaken(u32, String),
    /// An MTU that is too large or too small.
    #[error("MTU {0} is not from 68 to 9216")]
    Mtu(u32),
    /// More than the switch takes.
    #[error("MTU {0} is more than the {1} of switch {2:?}")]
    MtuOfSwitch(u32, u16, String),
    /// An unknown switch.
    #[error("there is no switch {0:?}")]
    UnknownSwitch(String),
    /// An unknown uplink.
    #[error("uplink {0:?} is not one of switch {1:?}")]
    UnknownUplink(String, String),
    /// An uplink of two switches.
    #[error("uplink {0:?} is also one of switch {1:?}")]
    UplinkTaken(String, String),
    /// An uplink named twice.
    #[error("uplink {0:?} is named twice")]
    UplinkTwice(String),
    /// Beacons with less than three uplinks.
    #[error("beacons need three uplinks in use or in reserve, here are {0}: use detection = \"link\"")]
    Beacons(usize),
    /// An unknown group.
    #[error("there is no port group {0:?}")]
    UnknownGroup(String),
    /// An unknown port.
    #[error("there is no port {0:?}")]
    UnknownPort(String),
    /// No MAC address.
    #[error("{0:?} is not a MAC address: write six pairs of hexadecimal digits, as in 52:54:00:12:34:56")]
    Mac(String),
    /// A group's address, or none.
    #[error("MAC address {0} can't be a network card's")]
    MacKind(Mac),
    /// Somebody else's address.
    #[error("MAC address {0} is also that of port {1:?}")]
    MacTaken(Mac, String),
    /// No IP address.
    #[error("{0:?} is not an IP address")]
    Ip(String),
    /// An IP address that no card can have.
    #[error("IP address {0} can't be a port's")]
    IpKind(IpAddr),
    /// Somebody else's IP address.
    #[error("IP address {0} is also that of port {1:?} in the same network")]
    IpTaken(IpAddr, String),
    /// No address with prefix.
    #[error("{0:?} is not an address with its prefix, as in 10.0.0.1/24")]
    Prefix(String),
    /// A pool out of its network.
    #[error("the pool {0}-{1} is not within {2}/{3}")]
    PoolOutside(IpAddr, IpAddr, IpAddr, u8),
    /// A pool that ends before it begins.
    #[error("the pool {0}-{1} is backwards")]
    PoolBackwards(IpAddr, IpAddr),
    /// A pool with the gateway's address in it.
    #[error("the pool {0}-{1} holds the gateway's own address")]
    PoolHoldsGateway(IpAddr, IpAddr),
    /// Somebody else's pool.
    #[error("the address pool {0}-{1} overlaps that of port group {2:?}")]
    PoolTaken(IpAddr, IpAddr, String),
    /// A gateway where there is no single untagged network.
    #[error("a gateway needs a port group with one VLAN, not a trunk")]
    GatewayOnTrunk,
    /// A pool of addresses that nobody hands out.
    #[error(
        "there is no DHCP for IPv6: leave the pool out, guests make their addresses from the gateway's prefix"
    )]
    PoolV6,
    /// Two gateways of the same family.
    #[error("it has two gateways of IPv{0}: a port group has one of IPv4 and one of IPv6 at most")]
    GatewayFamily(u8),
    /// Two gateways that would meet.
    #[error("its network has its gateway in port group {0:?} already: a network has one")]
    GatewayTwice(String),
    /// The gateway's MAC address.
    #[error("MAC address {0} is that of the gateway of port group {1:?}")]
    MacOfGateway(Mac, String),
    /// The gateway's IP address.
    #[error("IP address {0} is that of the gateway of port group {1:?}")]
    IpOfGateway(IpAddr, String),
    /// A lease of no time.
    #[error("a lease of {0} s is not from 60 s to 30 days")]
    Lease(u32),
    /// A rate that can't be.
    #[error("{0}: average, peak and burst must be from 1 to {1}")]
    Rate(&'static str, u64),
    /// A peak below the average.
    #[error("{0}: the peak of {1} kbit/s is below the average of {2} kbit/s")]
    Peak(&'static str, u64, u64),
    /// A limit of no frames.
    #[error("a limit of 0 frames a second on {0} would let none through: leave it out, or block the port")]
    StormZero(&'static str),
    /// A learning limit that can't be.
    #[error("a learning limit of {0} is not from 1 to 4096")]
    LearningLimit(u32),
    /// An age that can't be.
    #[error("an age of {0} s is not from 10 s to 1 day")]
    LearningAge(u32),
    /// Learning of addresses that may not send.
    #[error("learning needs forged_transmits = true: else no other address gets in to be learned")]
    LearningForged,
    /// A secondary VLAN is missing.
    #[error("an isolated or community group needs a secondary VLAN")]
    SecondaryMissing,
    /// A secondary VLAN is too much.
    #[error("a promiscuous group has no secondary VLAN")]
    SecondaryGiven,
    /// A secondary VLAN that is the primary.
    #[error("secondary VLAN {0} is the primary one")]
    SecondaryIsPrimary(u16),
    /// A secondary VLAN with two meanings.
    #[error("VLAN {0} is used in another way by port group {1:?}: a private VLAN's are its own")]
    PrivateClash(u16, String),
    /// Two isolated VLANs of one primary.
    #[error("primary VLAN {0} has its isolated VLAN in port group {1:?} already: there is one of them")]
    TwoIsolated(u16, String),
    /// A bridge where nothing is to be bridged.
    #[error("only a distributed port group (with a VNI) has a bridge")]
    BridgeStandard,
    /// A bridge of many VLANs.
    #[error("a bridge needs a port group with one VLAN, not a trunk or a private one")]
    BridgeTrunk,
    /// Two segments on one physical VLAN.
    #[error(
        "{0} of switch {1:?} is bridged to it and used by port group {2:?}: two networks would become one"
    )]
    BridgeClash(String, String, String),
    /// A mirror of itself.
    #[error("port {0:?} can't be mirrored to itself")]
    MirrorSelf(String),
    /// A mirror without sources.
    #[error("a mirror needs ports or groups")]
    MirrorEmpty,
    /// Two mirrors into one port, or out of a mirror's port.
    #[error("port {0:?} gets the copies of mirror {1:?}")]
    MirrorTaken(String, String),
}
