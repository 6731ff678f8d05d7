//! Requests and responses over one connection between two members.
//!
//! ```text
//!   frame:   0  length of what follows, u32       all little-endian
//!            4  kind: 1 request, 2 reply, 3 fault
//!            5  service, u16
//!            7  request number, u64
//!           15  payload, up to 16 MiB; of a fault one byte
//! ```
//!
//! The side that connected asks, the side that accepted answers; two hosts that both ask hold two connections. Any
//! number of requests (within bounds) are under way at once, each is handled by a task of its own, and replies come
//! back in whatever order they are ready. A frame is one write; there is no Nagle underneath: a Raft heartbeat waits
//! for nobody but the frame that is just being written, which is why callers cut snapshots into pieces.
//!
//! Bounds: the length of a frame; requests under way on each side (beyond it the caller waits, and a peer that sends
//! more is told [`Fault::Busy`]); bytes of requests being handled (beyond it nothing more is read).
//!
//! What it must not know: what a payload means. Errors of the called service travel inside the reply's payload; a
//! [`Fault`] says only that the request did not reach a service that could answer.

mod client;
mod frame;
mod peer;
mod server;
mod task;

use std::io;

use ferro_protocol::ids::HostId;

pub use client::{CallError, ControlClient};
pub use frame::PAYLOAD_BYTES_MAX;
pub use peer::ControlPeer;
pub use server::{ControlHandler, serve_control};

/// Requests that may be under way on one connection.
pub const IN_FLIGHT_MAX: usize = 1024;
/// Bytes of requests that may be being handled on one connection.
pub const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;

/// Which of the services that share a connection is meant. Numbers below 16 are the transport's own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ServiceId(pub u16);

/// Why a request got no reply from its service.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// Nobody answers to that number: another release.
    #[error("the peer does not know this service; check that both hosts run the same release")]
    UnknownService,
    /// Too many requests are under way.
    #[error("the peer has too many requests of ours under way; try again")]
    Busy,
    /// The service could not read the request.
    #[error("the peer could not read the request; check that both hosts run the same release")]
    BadRequest,
    /// The service can't answer now.
    #[error("the peer can't answer now; try again")]
    Unavailable,
}

impl Fault {
    const fn wire(self) -> u8 {
        match self {
            Self::UnknownService => 1,
            Self::Busy => 2,
            Self::BadRequest => 3,
            Self::Unavailable => 4,
        }
    }

    const fn of_wire(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::UnknownService),
            2 => Some(Self::Busy),
            3 => Some(Self::BadRequest),
            4 => Some(Self::Unavailable),
            _ => None,
        }
    }
}

/// Why serving a connection ended before the peer closed it.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It broke.
    #[error("the control connection of host {peer} broke: {source}")]
    Io {
        /// The peer.
        peer: HostId,
        /// What the system said.
        source: io::Error,
    },
    /// The peer sent what it must not.
    #[error(
        "host {peer} sent a malformed control frame ({what}); check that both hosts run the same release"
    )]
    Malformed {
        /// The peer.
        peer: HostId,
        /// What was wrong.
        what: &'static str,
    },
}
