//! What is counted.

use std::net::SocketAddr;
use std::time::Duration;

use vswitch_core::table::PeerIx;

use super::super::Path;

/// One connection's figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionStats {
    /// Between which addresses.
    pub path: Path,
    /// Which of the path's connections.
    pub slot: u8,
    /// Whether flows are sent there.
    pub up: bool,
    /// The largest UDP payload that the path carries, as far as is known.
    pub payload: u16,
    /// The round trip.
    pub round_trip: Duration,
    /// How much may be in flight, in bytes.
    pub window: u64,
    /// UDP datagrams sent and received, and their bytes.
    pub sent: Volume,
    /// See `sent`.
    pub received: Volume,
    /// Packets that were lost on the way to the peer, as far as is known.
    pub lost: u64,
    /// Frames that came with pieces missing.
    pub incomplete: u64,
}

/// How many, and how much.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Volume {
    /// How many.
    pub count: u64,
    /// How many bytes.
    pub bytes: u64,
}

impl Volume {
    pub(super) fn add(&mut self, bytes: usize) {
        self.add_all(Self { count: 1, bytes: bytes as u64 });
    }

    pub(super) fn add_all(&mut self, other: Self) {
        self.count += other.count;
        self.bytes += other.bytes;
    }
}

/// One peer's figures. The counters outlive its connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerStats {
    /// Which.
    pub peer: PeerIx,
    /// Frames sent, and their bytes.
    pub frames_out: Volume,
    /// Frames received, and their bytes.
    pub frames_in: Volume,
    /// Frames dropped because no connection was up.
    pub no_path: u64,
    /// Frames, or pieces of them, dropped because too much was waiting to be sent.
    pub full: u64,
    /// Frames that no tunnel carries: empty, or longer than any.
    pub unsendable: u64,
    /// Datagrams that were no frames of ours.
    pub malformed: u64,
    /// Its connections.
    pub connections: Vec<ConnectionStats>,
}

/// One socket's figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketStats {
    /// Its address.
    pub local: SocketAddr,
    /// Datagrams that belong to no connection: not QUIC, or of a connection that is gone.
    pub foreign: u64,
    /// Connections that were refused: unknown hosts, other clusters, other versions.
    pub refused: u64,
    /// Sends that the system refused.
    pub send_errors: u64,
}

/// All figures.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Of each peer.
    pub peers: Vec<PeerStats>,
    /// Of each socket.
    pub sockets: Vec<SocketStats>,
}
