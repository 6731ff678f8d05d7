//! What a network device offers, and its configuration space (virtio 1.3, sections 5.1.3 and 5.1.4).

use ferro_protocol::net::Mac;

/// Feature bits of section 5.1.3 that this device can offer.
pub mod feature {
    /// We take frames whose checksum is still to be made.
    pub const CSUM: u64 = 1 << 0;
    /// The driver takes such frames.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The device says how large an MTU is right.
    pub const MTU: u64 = 1 << 3;
    /// The device says what its MAC address is.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes super-frames of TCP over IPv4.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The driver takes super-frames of TCP over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The driver takes super-frames with ECN.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// We take super-frames of TCP over IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// We take super-frames of TCP over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// We take super-frames with ECN.
    pub const HOST_ECN: u64 = 1 << 13;
    /// A received frame may span buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The link's state can be seen.
    pub const STATUS: u64 = 1 << 16;
    /// There is a control queue. Over vhost-user the front end serves it and we never see it; but Cloud Hypervisor gives its
    /// guests one only if the back end offers it, as DPDK's does.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// The driver can announce itself (gratuitous ARP) when it is told to.
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// Several pairs of queues.
    pub const MQ: u64 = 1 << 22;

    /// All of them.
    pub const ALL: u64 = CSUM
        | GUEST_CSUM
        | MTU
        | MAC
        | GUEST_TSO4
        | GUEST_TSO6
        | GUEST_ECN
        | HOST_TSO4
        | HOST_TSO6
        | HOST_ECN
        | MRG_RXBUF
        | STATUS
        | CTRL_VQ
        | GUEST_ANNOUNCE
        | MQ;

    /// What needs what (section 5.1.3.1): never one without the other.
    pub(super) const NEEDS: [(u64, u64); 8] = [
        (GUEST_TSO4, GUEST_CSUM),
        (GUEST_TSO6, GUEST_CSUM),
        (GUEST_ECN, GUEST_TSO4 | GUEST_TSO6),
        (HOST_TSO4, CSUM),
        (HOST_TSO6, CSUM),
        (HOST_ECN, HOST_TSO4 | HOST_TSO6),
        (GUEST_ANNOUNCE, CTRL_VQ),
        (MQ, CTRL_VQ),
    ];
}

/// Most pairs of queues that a device may have.
pub const PAIRS_MAX: u16 = 16;
/// The longest frame: 65,535 bytes behind an IPv6 header, with a VLAN tag.
pub const FRAME_BYTES_MAX: usize = 65_535 + 40 + 14 + 4;
/// The smallest MTU (IPv4's, RFC 791).
pub const MTU_MIN: u16 = 68;

const LINK_UP: u16 = 1;
const ANNOUNCE: u16 = 2;
const CONFIG_BYTES: usize = 12;

/// What a network device is.
#[derive(Debug, Clone)]
pub struct NetSettings {
    /// Features to offer, of [`feature::ALL`]. What lacks something that it needs is left out.
    pub features: u64,
    /// Pairs of queues, 1 to [`PAIRS_MAX`].
    pub pairs: u16,
    /// Bytes behind the Ethernet header of the largest frame; offered as `MTU` and the most that a front end may set.
    pub mtu: Option<u16>,
    /// The address to offer, to front ends that ask for our configuration space.
    pub mac: Option<Mac>,
    /// Offer our configuration space (`PROTOCOL_F_CONFIG`), with notices of its changes. QEMU and Cloud Hypervisor keep
    /// their own and QEMU logs a warning if it is offered; our own VMM takes ours.
    pub config_space: bool,
}

impl Default for NetSettings {
    fn default() -> Self {
        Self { features: feature::ALL, pairs: PAIRS_MAX, mtu: None, mac: None, config_space: false }
    }
}

impl NetSettings {
    /// The features that are offered.
    pub fn offered(&self) -> u64 {
        let mut features = self.features & feature::ALL;
        if self.mtu.is_none() {
            features &= !feature::MTU;
        }
        if self.mac.is_none() || !self.config_space {
            features &= !feature::MAC;
        }
        if self.pairs() == 1 {
            features &= !feature::MQ;
        }
        // What another feature needs comes before it in the list, so one pass is enough.
        for (feature, needs) in feature::NEEDS {
            if features & needs == 0 {
                features &= !feature;
            }
        }
        features
    }

    pub(crate) fn pairs(&self) -> u16 {
        self.pairs.clamp(1, PAIRS_MAX)
    }

    /// Whether a front end may use this MTU.
    pub(crate) fn allows_mtu(&self, mtu: u64) -> bool {
        (u64::from(MTU_MIN)..=u64::from(self.mtu.unwrap_or(u16::MAX))).contains(&mtu)
    }

    /// The configuration space: `mac`, `status`, `max_virtqueue_pairs`, `mtu`.
    pub(crate) fn config_space(&self, link_up: bool, announce: bool) -> Vec<u8> {
        let mut space = Vec::with_capacity(CONFIG_BYTES);
        space.extend_from_slice(&self.mac.unwrap_or(Mac::ZERO).0);
        let status = if link_up { LINK_UP } else { 0 } | if announce { ANNOUNCE } else { 0 };
        space.extend_from_slice(&status.to_le_bytes());
        space.extend_from_slice(&self.pairs().to_le_bytes());
        space.extend_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        space
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_is_offered_only_with_what_it_needs() {
        let offered = |features| NetSettings { features, ..NetSettings::default() }.offered();
        assert_eq!(offered(feature::ALL & !feature::CSUM) & (feature::HOST_TSO4 | feature::HOST_ECN), 0);
        assert_eq!(offered(feature::ALL & !feature::CTRL_VQ) & (feature::MQ | feature::GUEST_ANNOUNCE), 0);
        assert_eq!(offered(feature::ALL & !feature::GUEST_TSO4) & feature::GUEST_ECN, feature::GUEST_ECN);
        assert_eq!(offered(u64::MAX) & !feature::ALL, 0);
        assert_eq!(offered(feature::ALL) & (feature::MTU | feature::MAC), 0, "neither is known");
        let one = NetSettings { pairs: 1, mtu: Some(1500), ..NetSettings::default() };
        assert_eq!(one.offered() & (feature::MQ | feature::MTU), feature::MTU);
    }

    #[test]
    fn the_space_is_that_of_the_standard() {
        let settings = NetSettings {
            mac: Some(Mac([1, 2, 3, 4, 5, 6])),
            mtu: Some(9000),
            pairs: 4,
            ..NetSettings::default()
        };
        assert_eq!(settings.config_space(true, false), [1, 2, 3, 4, 5, 6, 1, 0, 4, 0, 0x28, 0x23]);
        assert!(settings.allows_mtu(9000) && !settings.allows_mtu(9001) && !settings.allows_mtu(67));
    }
}
