//! What an operator writes: in `vswitchd.toml`, through the API, into the directory. Names and numbers as they were
//! given; nothing here is checked, so that the switch's core can name every fault of a whole specification at once.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::HostId;

/// The whole configuration of the network.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Spec {
    /// Virtual switches.
    #[serde(rename = "switch", skip_serializing_if = "Vec::is_empty")]
    pub switches: Vec<SwitchSpec>,
    /// Port groups.
    #[serde(rename = "portgroup", skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupSpec>,
    /// Ports.
    #[serde(rename = "port", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortSpec>,
    /// Mirrors.
    #[serde(rename = "mirror", skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<MirrorSpec>,
}

/// What is as it would be anyway is not written.
fn is_default<T: Default + PartialEq>(it: &T) -> bool {
    *it == T::default()
}

/// A virtual switch: what binds port groups to uplinks.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SwitchSpec {
    /// Its name.
    pub name: String,
    /// Bytes of the largest packet behind the Ethernet header.
    #[serde(default = "mtu_default")]
    pub mtu: u32,
    /// The uplinks' names: physical NICs.
    #[serde(default)]
    pub uplinks: Vec<String>,
    /// How its groups use the uplinks, unless they say otherwise. Without it all uplinks are active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<TeamSpec>,
}

/// A switch's MTU unless it is given.
pub const MTU_DEFAULT: u32 = 1500;
/// Seconds after which a learned address that is silent is forgotten, unless they are given.
pub const LEARNING_AGE_S_DEFAULT: u32 = 300;
/// Seconds that guests keep an address, unless they are given.
pub const LEASE_S_DEFAULT: u32 = 86_400;

fn mtu_default() -> u32 {
    MTU_DEFAULT
}

impl SwitchSpec {
    /// A switch of this name and nothing else.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), mtu: MTU_DEFAULT, uplinks: Vec::new(), team: None }
    }
}

/// A port group.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupSpec {
    /// Its name.
    pub name: String,
    /// The switch that it belongs to.
    pub switch: String,
    /// With a VNI the group is distributed: one segment on all hosts. Without, it is a standard group of each host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// VLANs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub vlan: VlanSpec,
    /// A distributed group leaves its tunnels for the physical network at this host only (one, or there were loops).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<HostId>,
    /// What its ports may do.
    #[serde(default, skip_serializing_if = "is_default")]
    pub security: SecuritySpec,
    /// Learning of addresses behind its ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning: Option<LearningSpec>,
    /// Rates.
    #[serde(default, skip_serializing_if = "is_default")]
    pub shaping: ShapingSpec,
    /// Limits on frames that go to many.
    #[serde(default, skip_serializing_if = "is_default")]
    pub storm: StormSpec,
    /// Bytes of the largest packet; the switch's unless it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Nothing gets in or out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub blocked: bool,
    /// ARP and ND are not answered by the switch, but always asked on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub flood_neighbours: bool,
    /// How it uses the uplinks; as its switch unless it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<TeamSpec>,
    /// The switch's own address in the group: one of IPv4, one of IPv6, or one of each. A single one may stand without a list.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "one_or_many")]
    pub gateway: Vec<GatewaySpec>,
}

/// A list that is written without its brackets if it has one entry: so all that was written when there could be one is read, and
/// one is written as it was.
mod one_or_many {
    use std::fmt;
    use std::marker::PhantomData;

    use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
    use serde::de::{MapAccess, SeqAccess, Visitor};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(list: &[T], to: S) -> Result<S::Ok, S::Error> {
        match list {
            [one] => one.serialize(to),
            many => many.serialize(to),
        }
    }

    pub(super) fn deserialize<'de, T, D>(from: D) -> Result<Vec<T>, D::Error>
    where
        T: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        from.deserialize_any(OneOrMany(PhantomData))
    }

    struct OneOrMany<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("one, or a list")
        }

        // What was once written for "none".
        fn visit_unit<E>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
            Ok(vec![T::deserialize(MapAccessDeserializer::new(map))?])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Vec<T>, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(list))
        }
    }
}

/// The VLANs of a port group.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum VlanSpec {
    /// Untagged everywhere.
    #[default]
    None,
    /// Untagged at the port, tagged outside.
    Access(u32),
    /// The guest gets tagged frames of these VLANs.
    Trunk {
        /// First and last VLAN of each range.
        ranges: Vec<(u32, u32)>,
        /// The VLAN of untagged frames; without it they are dropped.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        native: Option<u32>,
    },
    /// The guest sends and gets what it likes: all VLANs, and untagged.
    Guest,
    /// A private VLAN.
    Private {
        /// The VLAN that promiscuous ports send with.
        primary: u32,
        /// The VLAN that the others send with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        secondary: Option<u32>,
        /// Who reaches whom.
        kind: PrivateKind,
    },
}

/// Who reaches whom in a private VLAN (RFC 5517, section 3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PrivateKind {
    /// Reaches all.
    Promiscuous,
    /// Reaches promiscuous ports only.
    Isolated,
    /// Reaches its community and promiscuous ports.
    Community,
}

/// What a port may do; no unless it says yes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SecuritySpec {
    /// See frames that are not for it.
    pub promiscuous: bool,
    /// Take another address than the one it was given.
    pub mac_change: bool,
    /// Send from addresses that are not its own.
    pub forged_transmits: bool,
    /// What only DHCP servers say (IPv4 and IPv6) is dropped. Unless given: where its network has a gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dhcp_guard: Option<bool>,
    /// What only routers say (advertisements and redirects, IPv4 and IPv6) is dropped. Unless given: where its network has a
    /// gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_guard: Option<bool>,
}

/// Learning of addresses from frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LearningSpec {
    /// The most addresses behind one port.
    pub limit: u32,
    /// What becomes of frames from further ones.
    #[serde(default)]
    pub at_limit: AtLimit,
    /// Seconds after which an address that is silent is forgotten.
    #[serde(default = "age_default")]
    pub age_s: u32,
}

fn age_default() -> u32 {
    LEARNING_AGE_S_DEFAULT
}

/// What becomes of frames from addresses beyond the limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AtLimit {
    /// They are dropped.
    #[default]
    Drop,
    /// They pass, and what is for them goes to all who learn.
    Flood,
}

/// Rates in each direction, as the guest sees them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ShapingSpec {
    /// From the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<RateSpec>,
    /// To the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<RateSpec>,
}

/// A rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateSpec {
    /// Kilobits (1000) a second, over time.
    pub average_kbit_s: u64,
    /// Kilobits a second, at most.
    pub peak_kbit_s: u64,
    /// KiB that may go at the peak rate before the average holds.
    pub burst_kib: u64,
}

/// Frames a second from one port; no limit unless given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StormSpec {
    /// Broadcast.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broadcast_pps: Option<u32>,
    /// Multicast.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multicast_pps: Option<u32>,
    /// To addresses that nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_pps: Option<u32>,
}

/// Several uplinks as one.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TeamSpec {
    /// Used, in this order.
    pub active: Vec<String>,
    /// Used when active ones fail, in this order. Uplinks in neither list are not used.
    pub standby: Vec<String>,
    /// Who goes where.
    pub policy: TeamPolicy,
    /// How failures are noticed.
    pub detection: Detection,
    /// An active uplink that comes back stays unused until it is needed.
    pub no_failback: bool,
    /// Switches are not told of addresses that moved to another uplink.
    pub no_notify: bool,
}

/// Which uplink a frame takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TeamPolicy {
    /// By the port that it comes from.
    #[default]
    PortId,
    /// By its source address.
    SourceMac,
    /// By source and destination IP address; the physical switch must bundle the links.
    IpHash,
    /// The first that works.
    Explicit,
    /// By port, and ports move from a busy uplink to an idle one.
    Load,
}

/// How a dead uplink is noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Detection {
    /// Its link is down.
    #[default]
    Link,
    /// Its link is down, or its beacons don't arrive at the others. Needs three uplinks.
    Beacon,
}

/// The switch's own address in a port group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GatewaySpec {
    /// Address and prefix, as in `10.0.0.1/24`.
    pub address: String,
    /// First and last address that guests get by DHCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<(String, String)>,
    /// Seconds that they keep it.
    #[serde(default = "lease_default")]
    pub lease_s: u32,
}

fn lease_default() -> u32 {
    LEASE_S_DEFAULT
}

/// A port.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// Its name.
    pub name: String,
    /// The port group that it belongs to.
    pub group: String,
    /// The address of its network card.
    pub mac: String,
    /// IP addresses that are known to be behind it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// What is different from its group.
    #[serde(default, rename = "override", skip_serializing_if = "Option::is_none")]
    pub overrides: Option<OverrideSpec>,
}

/// What is different at one port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OverrideSpec {
    /// Its own security.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security: Option<SecuritySpec>,
    /// Its own rates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shaping: Option<ShapingSpec>,
    /// Its own limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storm: Option<StormSpec>,
    /// Whether it is blocked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked: Option<bool>,
}

/// A mirror: what some ports send and get is copied to another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MirrorSpec {
    /// Its name.
    pub name: String,
    /// The ports.
    #[serde(default)]
    pub ports: Vec<String>,
    /// All ports of these groups.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Which way, as the guest sees it.
    #[serde(default)]
    pub direction: Direction,
    /// The port that gets the copies and, as long as it does, nothing else.
    pub to: String,
}

/// Which way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Both.
    #[default]
    Both,
    /// From the guest.
    Ingress,
    /// To the guest.
    Egress,
}
