//! TLS endpoints: one TCP port a host, three kinds of connection on it.
//!
//! ```text
//!   dialler                                         listener
//!     TCP connect ───────────────────────────────►    accept, count, start the clock (5 s for all that follows)
//!     ClientHello, ALPN names the channel ───────►    control, data: certificate of the cluster demanded
//!                                                     join: none asked for
//!     check: chain to the CA, host id in the SAN ◄─   certificate and the CA's
//!     certificate (not for join) ────────────────►    check: chain to the CA, host id in the SAN
//!     preamble, 8 bytes ◄────────────────────────►    preamble, 8 bytes
//! ```
//!
//! TLS 1.3 only, no resumption, no tickets, no early data: after the preambles nothing is in flight but what the owner
//! of the stream sends. A peer that speaks plaintext, has no certificate or one of another CA is refused and logged.
//!
//! What it must not know: who is a member *now*. A host that was removed still holds a certificate until it runs out;
//! whoever takes a connection checks [`Peer::Host`] against the directory.

mod client;
pub(crate) mod crypto;
mod endpoint;
mod error;
mod preamble;
pub mod quic;
mod raw;
mod refusals;
mod verify;

use std::net::SocketAddr;
use std::time::Duration;

use ferro_protocol::ids::HostId;
use tokio::net::TcpStream;

pub(crate) use client::connect_to_join;
pub use client::{Connected, connect};
pub use endpoint::{Endpoint, Limits};
pub use error::{BindError, ConnectError};
pub use preamble::PreambleError;
pub use raw::RawTls;
pub use refusals::Refusals;

/// An encrypted connection, whichever side opened it.
pub type PeerStream = tokio_rustls::TlsStream<TcpStream>;

/// How long a connection may take from TCP to the preamble.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Channel {
    /// Requests and responses between two members: [`crate::control`].
    Control,
    /// Bulk data between two members; what is said there is the caller's.
    Data,
    /// A host that is no member yet: [`crate::join`].
    Join,
}

impl Channel {
    const ALL: [Self; 3] = [Self::Control, Self::Data, Self::Join];

    pub(crate) const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Control => b"ferro-control/1",
            Self::Data => b"ferro-data/1",
            Self::Join => b"ferro-join/1",
        }
    }

    const fn wire(self) -> u8 {
        match self {
            Self::Control => 1,
            Self::Data => 2,
            Self::Join => 3,
        }
    }

    fn of_alpn(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|channel| channel.alpn() == name)
    }
}

/// Who is at the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// The holder of a valid certificate of this cluster for this host.
    Host(HostId),
    /// Someone without a certificate, on the join channel.
    Joiner,
}

/// A connection that was made to us.
#[derive(Debug)]
pub struct Incoming {
    /// Who made it.
    pub peer: Peer,
    /// What for.
    pub channel: Channel,
    /// The encrypted stream, just after the preambles.
    pub stream: PeerStream,
    /// From where.
    pub addr: SocketAddr,
}
