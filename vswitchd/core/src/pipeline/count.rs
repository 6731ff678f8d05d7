//! What passed and what did not, and why.

/// Why a frame, or one of its copies, went nowhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Cause {
    /// It is no frame: see [`crate::frame::Malformed`].
    Malformed,
    /// Its checksum or segmentation can't be as it says.
    BadOffload,
    /// It is for the next bridge only (spanning tree, LACP, LLDP, pause).
    Reserved,
    /// The port, uplink or network is not there.
    NotThere,
    /// The port is blocked.
    Blocked,
    /// The port only gets the copies of a mirror.
    MirrorOnly,
    /// The source address is not the port's.
    Forged,
    /// A tag where none may be.
    Tagged,
    /// No tag, and no native VLAN.
    Untagged,
    /// A VLAN that the port does not carry.
    VlanNotCarried,
    /// A service tag (IEEE 802.1ad).
    ServiceTag,
    /// A tag behind the tag that would be taken off: it would put the frame into another VLAN.
    HiddenTag,
    /// Isolated, or of another community.
    Private,
    /// Larger than the MTU.
    TooLarge,
    /// An address beyond the learning limit.
    LearningLimit,
    /// Too many broadcast frames.
    StormBroadcast,
    /// Too many multicast frames.
    StormMulticast,
    /// Too many frames to unknown addresses.
    StormUnknown,
    /// Faster than the rate from the port.
    ShapedIngress,
    /// Faster than the rate to the port.
    ShapedEgress,
    /// Its receiver is where it came from.
    Hairpin,
    /// Our own frame, back by another uplink.
    Reflected,
    /// Received by an uplink that its receivers do not use.
    OtherUplink,
    /// From outside, to an address that nobody here has.
    NotOurs,
    /// Nobody is there to get it.
    NoReceiver,
    /// All uplinks of the team are down.
    NoUplink,
    /// The other host does not answer.
    TunnelDown,
    /// A beacon between uplinks.
    Beacon,
    /// It says that it comes from the gateway, or that the gateway's address is its own.
    GatewayClaimed,
    /// A guest answers as a DHCP server.
    DhcpGuard,
    /// A guest speaks as a router.
    RouterGuard,
}

impl Cause {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// All of them, with the names that metrics have.
    pub const ALL: [(Self, &'static str); 31] = [
        (Self::Malformed, "malformed"),
        (Self::BadOffload, "bad_offload"),
        (Self::Reserved, "reserved_address"),
        (Self::NotThere, "not_there"),
        (Self::Blocked, "blocked"),
        (Self::MirrorOnly, "mirror_only"),
        (Self::Forged, "forged_source"),
        (Self::Tagged, "tagged"),
        (Self::Untagged, "untagged"),
        (Self::VlanNotCarried, "vlan_not_carried"),
        (Self::ServiceTag, "service_tag"),
        (Self::HiddenTag, "hidden_tag"),
        (Self::Private, "private_vlan"),
        (Self::TooLarge, "too_large"),
        (Self::LearningLimit, "learning_limit"),
        (Self::StormBroadcast, "storm_broadcast"),
        (Self::StormMulticast, "storm_multicast"),
        (Self::StormUnknown, "storm_unknown"),
        (Self::ShapedIngress, "shaped_ingress"),
        (Self::ShapedEgress, "shaped_egress"),
        (Self::Hairpin, "hairpin"),
        (Self::Reflected, "reflected"),
        (Self::OtherUplink, "other_uplink"),
        (Self::NotOurs, "not_ours"),
        (Self::NoReceiver, "no_receiver"),
        (Self::NoUplink, "no_uplink"),
        (Self::TunnelDown, "tunnel_down"),
        (Self::Beacon, "beacon"),
        (Self::GatewayClaimed, "gateway_claimed"),
        (Self::DhcpGuard, "dhcp_guard"),
        (Self::RouterGuard, "router_guard"),
    ];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// Frames and bytes. A super-frame is one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flow {
    /// Frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Flow {
    pub(super) fn add(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += bytes as u64;
    }
}

/// What a port, uplink or peer has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counters {
    /// What came from it.
    pub from: Flow,
    /// What went to it.
    pub to: Flow,
    /// What did not pass, by [`Cause`]: counted where it came from, but for what the receiver refused.
    pub dropped: [u64; Cause::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Self { from: Flow::default(), to: Flow::default(), dropped: [0; Cause::COUNT] }
    }
}

impl Counters {
    /// How many were dropped for this.
    pub fn of(&self, cause: Cause) -> u64 {
        self.dropped[cause as usize]
    }

    pub(super) fn drop(&mut self, cause: Cause) {
        self.dropped[cause as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_stand_at_their_places() {
        for (at, (cause, _)) in Cause::ALL.iter().enumerate() {
            assert_eq!(*cause as usize, at);
        }
    }
}
