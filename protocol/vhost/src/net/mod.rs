//! virtio-net (virtio 1.3, section 5.1) over vhost-user.
//!
//! [`NetDevice`] is one port, owned by the switch's worker, which does for all its ports, each time that something happened:
//!
//! ```text
//! woken -> disarm -> control -> poll_tx each pair -> forward, push_rx -> flush_notifications -> poll_event
//!            ^                                                                                     |
//!            |  more frames, or arm() said true                                                    | nothing left
//!            +-------------------------------------------------------------------------------------+--> arm() -> sleep
//! ```
//!
//! * Frames **from the guest** are copied once, into room that the caller gives ([`TxSink`]), with their
//!   [`VirtioNetHdr`] checked against frame and features. See [`frames`] for why they are not lent out.
//! * Frames **to the guest** are copied once into its buffers, over several if it merges them. No buffers: the caller
//!   counts a drop ([`RxRefusal::NoRoom`]); nothing is queued here.
//! * Nothing is in flight between calls, so there is no in-flight region: either side may die and come back, and what
//!   is lost are the frames that were under way.
//! * A guest that breaks the rules of its rings loses this device until it is reset ([`NetEvent::Broken`]). A frame
//!   that makes no sense is only thrown away and counted: guests forward what they get.
//!
//! **The control queue** is the front end's: over vhost-user QEMU, Cloud Hypervisor and DPDK's virtio-user serve it
//! themselves and tell us what follows from it, by enabling rings (`SET_VRING_ENABLE`: pairs in use). After a migration
//! a guest without `GUEST_ANNOUNCE` is announced by us (`SEND_RARP`, [`NetEvent::Announce`]).
//!
//! **Must not know**: MAC tables, VLANs, port groups, what a frame means behind its Ethernet header.

mod config;
mod device;
pub mod frames;
mod header;
mod ring;

pub use config::{FRAME_BYTES_MAX, MTU_MIN, NetSettings, PAIRS_MAX, feature};
pub use device::NetDevice;
pub use frames::{RxRefusal, TxBatch, TxOutcome, TxSink};
pub use header::{BadHeader, ETHER_BYTES, HEADER_BYTES, VirtioNetHdr, gso_type, header_flag};

use std::sync::Arc;

use ferro_protocol::net::Mac;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use crate::error::{DeviceBroken, SessionError};
use crate::event;
use crate::server::{Rendezvous, Server, ServerSettings, SharedConfig};

/// A ring for frames to the guest and one for frames from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueuePair(pub u16);

/// What happened to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetEvent {
    /// A front end has connected.
    Attached,
    /// It is gone, and with it all rings.
    Detached,
    /// The guest was moved here and can't announce itself: tell the network where this address is now.
    Announce(Mac),
    /// The front end has set this MTU for its guest.
    Mtu(u16),
    /// The device stopped serving its guest.
    Broken(DeviceBroken),
}

/// Serves a network device: on a listening socket, or to a front end that listens. The control thread, and the device for
/// the worker. Features, queues and protocol features of `server` are set here.
pub fn serve(
    rendezvous: Rendezvous,
    settings: NetSettings,
    server: ServerSettings,
) -> Result<(Server, NetDevice), SessionError> {
    let config = Arc::new(SharedConfig::new(settings.config_space(true, false))?);
    let (link, port) = event::channel()?;
    let server = Server::spawn(rendezvous, server_settings(&settings, server), Arc::clone(&config), link)?;
    Ok((server, NetDevice::new(settings, Some(port), config)))
}

pub(crate) fn server_settings(settings: &NetSettings, server: ServerSettings) -> ServerSettings {
    let mut protocol = Protocol::MQ
        | Protocol::REPLY_ACK
        | Protocol::RARP
        | Protocol::MTU
        | Protocol::STATUS
        | Protocol::CONFIGURE_MEM_SLOTS;
    if settings.config_space {
        protocol |= Protocol::CONFIG | Protocol::BACKEND_REQ;
    }
    ServerSettings {
        device_features: settings.offered(),
        // Also the answer to GET_QUEUE_NUM, which front ends read in two ways: Cloud Hypervisor counts rings, as the
        // specification does; QEMU and DPDK count pairs, and find out about a pair too many when they set it up.
        queues: 2 * settings.pairs(),
        protocol,
        ..server
    }
}
