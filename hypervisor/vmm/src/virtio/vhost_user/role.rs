//! What a device at a socket is: which features its guest is offered, which queues it has, what its configuration says.
//! Pure.
//!
//! Some of it is the front end's own, whatever the back end offers: a network card's address, the state of its link, how
//! many pairs of queues it has, and the control queue, which no vhost-user back end serves.

use super::VhostUserError;
use crate::virtio::{Active, ActiveQueue, DeviceKind, VERSION_1};

/// Most queues of a block device.
pub const QUEUES_MAX: u16 = 16;
/// Most pairs of queues of a network card.
pub const PAIRS_MAX: u16 = 16;
/// The smallest MTU (IPv4's, RFC 791).
pub const MTU_MIN: u16 = 68;

/// `VHOST_USER_F_PROTOCOL_FEATURES`.
pub(super) const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Indirect descriptors, event index, version 1: what a transport of ours has.
const TRANSPORT_FEATURES: u64 = 1 << 28 | 1 << 29 | VERSION_1;

const NET_MTU: u64 = 1 << 3;
const NET_MAC: u64 = 1 << 5;
const NET_STATUS: u64 = 1 << 16;
const NET_CONTROL: u64 = 1 << 17;
/// `VIRTIO_NET_F_GUEST_ANNOUNCE`.
pub(super) const NET_ANNOUNCE: u64 = 1 << 21;
/// `VIRTIO_NET_F_MQ`.
pub(super) const NET_MQ: u64 = 1 << 22;
/// Those that the front end answers for.
const NET_OWN: u64 = NET_MTU | NET_MAC | NET_STATUS | NET_CONTROL | NET_ANNOUNCE | NET_MQ;
/// Checksums, segmentation and merged buffers.
const NET_FEATURES: u64 = 0xff83;

/// All of a block device's but the switch of its cache, which would be ours to pass on.
const BLOCK_FEATURES: u64 = 0x00ff_ffff & !(1 << 11);
/// `VIRTIO_BLK_F_RO`.
const BLOCK_READ_ONLY: u64 = 1 << 5;
/// More queues than one.
const BLOCK_MQ: u64 = 1 << 12;
/// Bytes of a block device's configuration that we ask for.
const BLOCK_CONFIG_BYTES: u32 = 60;
/// Where the number of queues is in it.
const BLOCK_CONFIG_QUEUES: usize = 34;

/// A network card's configuration (virtio 1.2, 5.1.4): address, status, pairs, MTU.
const NET_CONFIG_BYTES: u32 = 12;
const NET_CONFIG_STATUS: usize = 6;
const NET_CONFIG_MTU: usize = 10;
const LINK_UP: u8 = 1;
/// `VIRTIO_NET_S_ANNOUNCE`.
const ANNOUNCE: u8 = 2;

/// A MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

/// What the device is, with what only the front end knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A block device.
    Block {
        /// Queues.
        queues: u16,
        /// Whether it has to be one that can't be written to.
        read_only: bool,
    },
    /// A network card.
    Net {
        /// Its address.
        mac: Mac,
        /// Pairs of queues.
        pairs: u16,
        /// Bytes behind the Ethernet header of its largest frame, if the guest is to be told.
        mtu: Option<u16>,
    },
}

impl Role {
    /// Kind of the device.
    pub(super) fn kind(self) -> DeviceKind {
        match self {
            Self::Block { .. } => DeviceKind::Block,
            Self::Net { .. } => DeviceKind::Net,
        }
    }

    /// Most queues that the back end serves.
    pub(super) fn data_queues_max(self) -> u16 {
        match self {
            Self::Block { queues, .. } => queues,
            Self::Net { pairs, .. } => 2 * pairs,
        }
    }

    /// Queues that the back end serves for a guest with these features.
    pub(super) fn data_queues(self, features: u64) -> u16 {
        match self {
            Self::Net { .. } if features & NET_MQ == 0 => 2,
            _ => self.data_queues_max(),
        }
    }

    /// Those of an active device's queues.
    pub(super) fn served(self, active: &Active) -> impl Iterator<Item = &ActiveQueue> + use<'_> {
        let count = self.data_queues(active.features);
        active.queues.iter().filter(move |queue| queue.index < count)
    }

    /// How many of them are in use while so many pairs are.
    pub(super) fn enabled_queues(self, features: u64, pairs: u16) -> u16 {
        match self {
            Self::Block { .. } => self.data_queues(features),
            Self::Net { .. } => self.data_queues(features).min(2 * pairs),
        }
    }

    /// The control queue of a guest with these features: the one behind the others (virtio 1.2, 5.1.2).
    pub(super) fn control_queue(self, features: u64) -> Option<u16> {
        (matches!(self, Self::Net { .. }) && features & NET_CONTROL != 0).then(|| self.data_queues(features))
    }

    /// What the guest is offered if the back end offers this, and has a configuration or not.
    pub(super) fn offer(self, theirs: u64, has_config: bool) -> u64 {
        match self {
            Self::Block { queues: 1, .. } => theirs & (TRANSPORT_FEATURES | BLOCK_FEATURES & !BLOCK_MQ),
            Self::Block { .. } => theirs & (TRANSPORT_FEATURES | BLOCK_FEATURES),
            Self::Net { pairs, mtu, .. } => {
                let several = if pairs > 1 { NET_MQ } else { 0 };
                let knows_mtu = mtu.is_some() || has_config && theirs & NET_MTU != 0;
                let announce = theirs & NET_ANNOUNCE;
                let control = if several | announce != 0 { NET_CONTROL } else { 0 };
                let own = NET_MAC | NET_STATUS | several | announce | control;
                theirs & (TRANSPORT_FEATURES | NET_FEATURES) | own | if knows_mtu { NET_MTU } else { 0 }
            }
        }
    }

    /// What the back end is told of what the guest has accepted; `None` if it no longer offers something that is used.
    pub(super) fn pass_on(self, accepted: u64, theirs: u64) -> Option<u64> {
        let own = match self {
            Self::Block { .. } => 0,
            Self::Net { .. } => NET_OWN,
        };
        (accepted & !own & !theirs == 0).then_some(accepted & theirs)
    }

    /// Whether the back end is what the configuration of the VM says; otherwise, what it lacks.
    pub(super) fn check(self, theirs: u64) -> Result<(), &'static str> {
        match self {
            Self::Block { read_only: true, .. } if theirs & BLOCK_READ_ONLY == 0 => Err(
                "a disk that is read-only, and nothing else keeps a guest from writing: open the volume read-only",
            ),
            _ => Ok(()),
        }
    }

    /// Bytes of the configuration that the back end is asked for.
    pub(super) fn config_bytes(self) -> u32 {
        match self {
            Self::Block { .. } => BLOCK_CONFIG_BYTES,
            Self::Net { .. } => NET_CONFIG_BYTES,
        }
    }

    /// The configuration for the guest, made of the back end's, if it has one.
    pub(super) fn config(self, theirs: Option<Vec<u8>>) -> Vec<u8> {
        match self {
            Self::Block { queues, .. } => block_config(theirs.unwrap_or_default(), queues),
            Self::Net { mac, pairs, mtu } => {
                let field = |at: usize| {
                    theirs
                        .as_ref()
                        .and_then(|all| all.get(at..)?.first_chunk())
                        .map(|bytes| u16::from_le_bytes(*bytes))
                };
                let link =
                    field(NET_CONFIG_STATUS).map_or(LINK_UP, |status| status as u8 & (LINK_UP | ANNOUNCE));
                let mtu = mtu.or(field(NET_CONFIG_MTU)).unwrap_or(0);
                [&mac.0[..], &[link, 0], &pairs.to_le_bytes(), &mtu.to_le_bytes()].concat()
            }
        }
    }
}

/// The number of queues that the guest is told is the smaller of both sides'.
fn block_config(mut config: Vec<u8>, queues: u16) -> Vec<u8> {
    if let Some(place) = config.get_mut(BLOCK_CONFIG_QUEUES..BLOCK_CONFIG_QUEUES + 2) {
        let theirs = u16::from_le_bytes([place[0], place[1]]).max(1);
        place.copy_from_slice(&theirs.min(queues).to_le_bytes());
    }
    config
}

/// Whether a card's driver is asked to announce itself.
pub(super) fn is_announcing(config: &[u8]) -> bool {
    config.get(NET_CONFIG_STATUS).is_some_and(|status| status & ANNOUNCE != 0)
}

/// Asks a card's driver to announce itself, or takes that back.
pub(super) fn set_announcing(config: &mut [u8], on: bool) {
    if let Some(status) = config.get_mut(NET_CONFIG_STATUS) {
        *status = *status & !ANNOUNCE | if on { ANNOUNCE } else { 0 };
    }
}

/// The same as an error of a device.
pub(super) fn lacks(path: &std::path::Path) -> impl FnOnce(&'static str) -> VhostUserError + use<'_> {
    move |what| VhostUserError::Missing { path: path.to_owned(), what }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: Role = Role::Net { mac: Mac([2, 0, 0, 0, 0, 1]), pairs: 4, mtu: Some(9000) };
    const PLAIN: Role = Role::Net { mac: Mac([2, 0, 0, 0, 0, 1]), pairs: 1, mtu: None };
    const EVERYTHING: u64 = u64::MAX;

    #[test]
    fn a_card_offers_what_is_its_own_and_what_the_back_end_has() {
        let features = CARD.offer(0, false);
        assert_eq!(features, NET_MAC | NET_STATUS | NET_MQ | NET_CONTROL | NET_MTU);
        assert_eq!(PLAIN.offer(0, false), NET_MAC | NET_STATUS);
        // Its MTU is known only by its configuration.
        assert_eq!(PLAIN.offer(NET_MTU, false) & NET_MTU, 0);
        assert_eq!(PLAIN.offer(NET_MTU, true) & NET_MTU, NET_MTU);
        // Who announces itself acknowledges it by the control queue.
        assert_eq!(
            PLAIN.offer(NET_ANNOUNCE, false) & (NET_ANNOUNCE | NET_CONTROL),
            NET_ANNOUNCE | NET_CONTROL
        );
        assert_eq!(PLAIN.offer(EVERYTHING, true) & (NET_MQ | 1 << 18 | 1 << 30), 0);
    }

    #[test]
    fn the_control_queue_is_behind_those_in_use() {
        assert_eq!(CARD.control_queue(NET_CONTROL | NET_MQ), Some(8));
        assert_eq!(CARD.control_queue(NET_CONTROL), Some(2), "the guest has one pair");
        assert_eq!(CARD.control_queue(NET_MQ), None);
        assert_eq!((CARD.data_queues(NET_MQ), CARD.data_queues(0)), (8, 2));
        assert_eq!((CARD.enabled_queues(NET_MQ, 3), CARD.enabled_queues(0, 3)), (6, 2));
        let disk = Role::Block { queues: 4, read_only: false };
        assert_eq!((disk.control_queue(EVERYTHING), disk.enabled_queues(EVERYTHING, 1)), (None, 4));
    }

    #[test]
    fn the_back_end_is_told_of_its_own_features() {
        assert_eq!(CARD.pass_on(VERSION_1 | NET_MQ | NET_MAC, VERSION_1 | NET_MQ), Some(VERSION_1 | NET_MQ));
        assert_eq!(CARD.pass_on(VERSION_1 | 1, VERSION_1), None);
        let disk = Role::Block { queues: 1, read_only: true };
        assert_eq!(disk.pass_on(VERSION_1 | 1 << 5, VERSION_1), None);
        assert!(disk.check(VERSION_1).is_err() && disk.check(BLOCK_READ_ONLY).is_ok());
        assert_eq!(disk.offer(EVERYTHING, true) & (BLOCK_MQ | 1 << 11), 0);
    }

    #[test]
    fn a_configuration_is_of_both_sides() {
        let mut own = CARD.config(None);
        assert_eq!(own, [2, 0, 0, 0, 0, 1, 1, 0, 4, 0, 0x28, 0x23]);
        set_announcing(&mut own, true);
        assert!(is_announcing(&own) && own[6] == 3);
        let theirs = vec![9, 9, 9, 9, 9, 9, 0, 0, 16, 0, 0xdc, 5];
        assert_eq!(
            PLAIN.config(Some(theirs)),
            [2, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0xdc, 5],
            "link down, MTU 1500"
        );
        let disk = Role::Block { queues: 4, read_only: false };
        let mut theirs = vec![0; 60];
        theirs[34] = 8;
        assert_eq!(disk.config(Some(theirs))[34..36], [4, 0]);
        assert!(disk.config(Some(vec![1; 7])).len() == 7 && !is_announcing(&[0; 3]));
    }
}
