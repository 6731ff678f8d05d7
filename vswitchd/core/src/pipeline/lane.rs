//! VLANs: which network a frame is in, and whether and how it leaves to a port.
//!
//! ```text
//!   port, uplink or tunnel ──enter──► Lane (network, VLAN to look up, VLAN on the wire, who may hear it)
//!                                       ──leave──► untagged, tagged, or not at all
//! ```
//!
//! In a private VLAN (RFC 5517) addresses are looked up in the primary VLAN, and the wire carries the sender's: so the
//! other side of a tunnel or an uplink knows who may hear it.

use crate::bugs::{Bug, Bugs};
use crate::config::{PrivateKind, Vlan};
use crate::frame::{Ether, Tci, Vid};

use super::count::Cause;

/// Who may hear a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender {
    /// All: an ordinary or promiscuous port sent it.
    Open,
    /// Promiscuous ports.
    Isolated,
    /// Promiscuous ports and those of this community.
    Community(Vid),
}

/// The VLAN of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lane {
    /// In which addresses are looked up.
    pub vid: Vid,
    /// That the wire carries.
    pub wire: Vid,
    /// Who may hear it.
    pub sender: Sender,
}

impl Lane {
    /// An ordinary VLAN.
    pub fn plain(vid: Vid) -> Self {
        Self { vid, wire: vid, sender: Sender::Open }
    }
}

/// A VLAN of a private one, as it is seen on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Private {
    pub(super) wire: Vid,
    pub(super) primary: Vid,
    /// A community; else isolated, or the primary itself.
    pub(super) community: bool,
}

/// The lane of a VLAN on the wire.
pub(super) fn of_wire(private: &[Private], wire: Vid) -> Lane {
    let Some(it) = private.iter().find(|it| it.wire == wire) else { return Lane::plain(wire) };
    let sender = match (it.wire == it.primary, it.community) {
        (true, _) => Sender::Open,
        (false, true) => Sender::Community(wire),
        (false, false) => Sender::Isolated,
    };
    Lane { vid: it.primary, wire, sender }
}

/// A frame comes from a port.
pub(super) fn enter(vlan: &Vlan, ether: &Ether, bugs: Bugs) -> Result<Lane, Cause> {
    if ether.tag.is_none() && ether.hides_tag() {
        return Err(Cause::ServiceTag);
    }
    let vid = match ether.tag {
        None => Vid::NONE,
        Some(tci) => tci.vid().map_err(|_| Cause::Malformed)?,
    };
    // A priority tag says nothing about VLANs and is taken off: what is behind it must be no tag.
    if ether.tag.is_some() && vid == Vid::NONE && ether.hides_tag() && !bugs.has(Bug::HiddenTag) {
        return Err(Cause::HiddenTag);
    }
    let untagged = vid == Vid::NONE;
    match vlan {
        Vlan::Access(vlan) if untagged => Ok(Lane::plain(Vid::from(*vlan))),
        Vlan::Access(_) => Err(Cause::Tagged),
        Vlan::Guest => Ok(Lane::plain(vid)),
        Vlan::Trunk { carries, native } => match native {
            Some(native) if untagged => Ok(Lane::plain(Vid::from(*native))),
            None if untagged && bugs.has(Bug::NativeVlanLeak) => {
                let first = carries.iter().find_map(|vid| Tci(vid).vid().ok());
                Ok(Lane::plain(first.unwrap_or(Vid::NONE)))
            }
            None if untagged => Err(Cause::Untagged),
            _ if carries.contains(vid.get()) => Ok(Lane::plain(vid)),
            _ => Err(Cause::VlanNotCarried),
        },
        Vlan::Private { .. } if !untagged => Err(Cause::Tagged),
        Vlan::Private { primary, sends, kind } => {
            let wire = Vid::from(*sends);
            let sender = match kind {
                PrivateKind::Promiscuous => Sender::Open,
                PrivateKind::Isolated => Sender::Isolated,
                PrivateKind::Community => Sender::Community(wire),
            };
            Ok(Lane { vid: Vid::from(*primary), wire, sender })
        }
    }
}

/// Whether a port is in a frame's VLAN and may hear it, and the VLAN of the tag that it gets: none for no tag.
pub(super) fn leave(vlan: &Vlan, lane: Lane, bugs: Bugs) -> Result<Option<Vid>, Cause> {
    let not_carried = Err(Cause::VlanNotCarried);
    match vlan {
        Vlan::Access(vlan) => {
            if Vid::from(*vlan) == lane.vid {
                Ok(None)
            } else {
                not_carried
            }
        }
        Vlan::Guest => Ok((lane.vid != Vid::NONE).then_some(lane.vid)),
        Vlan::Trunk { carries, native } => {
            if !carries.contains(lane.vid.get()) {
                return not_carried;
            }
            Ok((native.map(Vid::from) != Some(lane.vid)).then_some(lane.vid))
        }
        Vlan::Private { primary, sends, kind } => {
            if Vid::from(*primary) != lane.vid {
                return not_carried;
            }
            let hears = match (lane.sender, kind) {
                (Sender::Open, _) | (_, PrivateKind::Promiscuous) => true,
                (Sender::Community(community), PrivateKind::Community) => Vid::from(*sends) == community,
                (Sender::Isolated, PrivateKind::Isolated) => bugs.has(Bug::IsolatedTalk),
                _ => false,
            };
            if hears { Ok(None) } else { Err(Cause::Private) }
        }
    }
}

/// A number as a VLAN; none for 0.
pub(super) fn vlan_of(vid: u16) -> Option<ferro_protocol::net::VlanId> {
    ferro_protocol::net::VlanId::new(u32::from(vid)).ok()
}
