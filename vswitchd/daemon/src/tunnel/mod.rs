//! Between hosts: QUIC.
//!
//! ```text
//!   host A                                                           host B
//!   Mesh    :7401 ══ control connection, one a path ════════════ :7401  Mesh      tokio; heartbeats, announcements
//!   Tunnels :7402 ══ data connections, one or more a path ══════ :7402  Tunnels   in the worker; frames in DATAGRAMs
//! ```
//!
//! A *path* is a pair of underlay addresses, one of each host. The host with the lower id dials, the other accepts, so two
//! hosts that find each other at the same time make one connection and not two. Both sides show the host's certificate and
//! check the other's ([`ferro_transport::tls::quic`]). Control has sockets, connections and a thread of its own: data can't
//! starve it.
//!
//! - [`data`]: [`data::Tunnels`], driven by the worker; carries frames.
//! - [`control`]: [`control::Mesh`], run by the control plane; says who is there and where each address is.
//!
//! What it must not know: the switch, configuration documents, the directory.

pub mod control;
pub mod data;
#[cfg(test)]
mod testing;

use std::net::SocketAddr;

/// Where hosts listen for control connections unless they are told otherwise.
pub const CONTROL_PORT: u16 = 7401;
/// Where hosts listen for data connections unless they are told otherwise.
pub const DATA_PORT: u16 = 7402;
/// The most addresses of a host.
pub const ADDRESSES_MAX: usize = 8;

/// A pair of underlay addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Path {
    /// This host's.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} - {}", self.local, self.remote)
    }
}
