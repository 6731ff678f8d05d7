//! Data connections: frames in QUIC datagrams, driven by the worker.

mod settings;
mod stats;

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use ferro_protocol::ids::HostId;
use ferro_protocol::time::Instant;
use ferro_transport::identity::IdentityHandle;
use vswitch_core::table::PeerIx;
use vswitch_core::tunnel::{Arrived, Meta, Source};

use super::Path;

pub use settings::{Congestion, OpenError, Settings};
pub use stats::{ConnectionStats, PeerStats, SocketStats, Stats, Volume};

/// Something that the worker passes on to the control plane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A connection works now.
    Up {
        /// To whom.
        peer: PeerIx,
        /// Which way.
        path: Path,
    },
    /// It works no longer; its flows have moved to others.
    Down {
        /// To whom.
        peer: PeerIx,
        /// Which way.
        path: Path,
    },
}

/// All data connections of a host.
pub struct Tunnels {
    sockets: Vec<UdpSocket>,
}

impl Tunnels {
    /// Opens the sockets.
    pub fn new(now: Instant, settings: Settings, identity: IdentityHandle) -> Result<Self, OpenError> {
        let _ = (now, identity);
        settings.check()?;
        let open = |address: &SocketAddr| {
            UdpSocket::bind(address).map_err(|source| OpenError::Socket { address: *address, source })
        };
        Ok(Self { sockets: settings.listen.iter().map(open).collect::<Result<_, _>>()? })
    }

    /// What to wait for: readable means [`Tunnels::receive`]. They stay the same.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(AsFd::as_fd)
    }

    /// Where the sockets are: with the port that the system chose, if it was to choose.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.sockets.iter().filter_map(|socket| socket.local_addr().ok())
    }

    /// A peer, and where its tunnels are. What did not change is not touched.
    pub fn set_peer(&mut self, now: Instant, peer: PeerIx, host: HostId, addresses: &[SocketAddr]) {
        let _ = (now, peer, host, addresses);
    }

    /// The peer is gone: its connections are closed.
    pub fn remove_peer(&mut self, now: Instant, peer: PeerIx) {
        let _ = (now, peer);
    }

    /// Whether a frame to this peer would find a connection.
    pub fn is_up(&self, peer: PeerIx) -> bool {
        let _ = peer;
        false
    }

    /// Takes up to about `budget` datagrams from the sockets and hands on the frames in them. True if there may be more.
    pub fn receive(
        &mut self,
        now: Instant,
        budget: usize,
        deliver: &mut dyn FnMut(PeerIx, Arrived<'_>),
    ) -> bool {
        let _ = (now, budget, deliver);
        false
    }

    /// Puts a frame into a connection's next datagram; it leaves with [`Tunnels::flush`], at the latest. False if it was
    /// dropped: that is counted here.
    pub fn send<S: Source + ?Sized>(
        &mut self,
        now: Instant,
        to: PeerIx,
        meta: &Meta,
        flow: u32,
        frame: &S,
    ) -> bool {
        let _ = (now, to, meta, flow, frame);
        false
    }

    /// Sends what there is to send: once a turn of the worker, after receiving and sending.
    pub fn flush(&mut self, now: Instant) {
        let _ = now;
    }

    /// Time has passed: timers, heartbeats, and frames of which a piece was lost.
    pub fn handle_time(&mut self, now: Instant, deliver: &mut dyn FnMut(PeerIx, Arrived<'_>)) {
        let _ = (now, deliver);
    }

    /// When [`Tunnels::handle_time`], and then [`Tunnels::flush`], are next to be called, at the latest.
    pub fn next_at(&self) -> Option<Instant> {
        None
    }

    /// What happened, one by one.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }

    /// How everything is.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }
}
