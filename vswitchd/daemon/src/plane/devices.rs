//! Opens what ports and uplinks are plugged into. It may wait, so it runs where that is allowed.

use ferro_protocol::api::switch::Attachment;
use ferro_protocol::net::{Mac, NetName};

use crate::ports::vhost::{VhostSettings, VhostSocket};
use crate::ports::{OpenError, PortDevice, TapPort, UplinkDevice, VhostPort};

/// A network card.
pub(super) fn uplink(interface: &str) -> Result<UplinkDevice, OpenError> {
    UplinkDevice::open(interface)
}

/// What a port is attached to. Its socket, if it is one, has been named already. `made`: its interface was made here before.
pub(super) fn port(
    name: &NetName,
    to: &Attachment,
    mac: Mac,
    mtu: u16,
    made: bool,
) -> Result<PortDevice, OpenError> {
    match to {
        Attachment::VhostUser { socket, connect, queue_pairs } => {
            let path = socket.clone().unwrap_or_default().into();
            let socket = if *connect { VhostSocket::Connect(path) } else { VhostSocket::Listen(path) };
            let settings = VhostSettings { pairs: *queue_pairs, ..VhostSettings::new(socket, mac, mtu) };
            Ok(PortDevice::Vhost(Box::new(VhostPort::open(name, &settings)?)))
        }
        Attachment::Tap { interface } => {
            Ok(PortDevice::Tap(Box::new(TapPort::open(interface, mac, mtu, made)?)))
        }
    }
}

/// Removes what was made here for a port.
pub(super) fn remove(made: &Attachment) -> Result<(), OpenError> {
    match made {
        Attachment::Tap { interface } => TapPort::remove(interface),
        Attachment::VhostUser { .. } => Ok(()),
    }
}

/// What it is attached to, for people.
pub(super) fn words(to: &Attachment) -> String {
    match to {
        Attachment::VhostUser { socket, .. } => format!("socket {}", socket.as_deref().unwrap_or("?")),
        Attachment::Tap { interface } => format!("interface {interface}"),
    }
}

/// Whether both are the same socket or the same interface.
pub(super) fn same_device(a: &Attachment, b: &Attachment) -> bool {
    match (a, b) {
        (Attachment::VhostUser { socket: a, .. }, Attachment::VhostUser { socket: b, .. }) => a == b,
        (Attachment::Tap { interface: a }, Attachment::Tap { interface: b }) => a == b,
        _ => false,
    }
}
