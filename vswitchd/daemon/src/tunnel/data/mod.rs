//! Data connections: frames in QUIC datagrams, driven by the worker.
//!
//! ```text
//!   send ─► pin(flow) ─┬──────────────────────────► Packer ─► QUIC's short queue ─► congestion, pacing ─► GSO ─► socket
//!                      └─ if that is not short any more ─► FairQueue: a line for each source, bounded, served in turn; what
//!                         does not fit is dropped and counted
//!   socket ─► GRO ─► QUIC ─► DATAGRAMs ─► Unpacker ─► deliver
//! ```
//!
//! **For the driver.** [`Tunnels`] belongs to the worker. A turn is: [`Tunnels::receive`] when a descriptor is readable,
//! [`Tunnels::handle_time`] when [`Tunnels::next_at`] has come, any number of [`Tunnels::send`], and then [`Tunnels::flush`];
//! [`Tunnels::poll_event`] until it is empty. Nothing waits and nothing is locked; a handshake takes some hundred microseconds
//! of the worker's time, once a connection.
//!
//! **Life of a connection.** See `peer.rs`: one lane a path and slot; flows are pinned to lanes that are up
//! ([`vswitch_core::tunnel::pin`]) and move at once when one is not heard for three heartbeats of 100 ms.
//!
//! **Who is let in.** Packets that begin a connection are looked at only when they come from an address of a known peer that
//! is to dial us; then the handshake must show a certificate of the cluster that names that peer. All else is refused, counted
//! and logged.
//!
//! What it must not know: the switch, what the frames say, who is a member (the control plane says whom to talk to).

mod clock;
mod congestion;
mod conn;
mod drive;
mod peer;
pub(super) mod quic;
mod settings;
mod socket;
mod stats;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use ferro_protocol::ids::HostId;
use ferro_protocol::time::Instant;
use ferro_transport::identity::IdentityHandle;
use ferro_transport::tls::Refusals;
use ferro_transport::tls::quic as tls;
use quinn_proto::{DatagramEvent, Incoming, VarInt};
use rustls::pki_types::CertificateDer;
use tracing::{debug, info, warn};
use vswitch_core::table::PeerIx;
use vswitch_core::tunnel::{Arrived, FlowKey, Meta, Source, pin};

use super::Path;
use clock::Clock;
use conn::{Conn, Stage, Tally};
use peer::Peer;
use quic::Quic;
use socket::{Batch, Socket};

pub use quic::PROTOCOL;
pub use settings::{Congestion, OpenError, Settings};
pub use stats::{ConnectionStats, PeerStats, SocketStats, Stats, Volume};

/// How often hearts are looked at.
const BEAT_EVERY: Duration = Duration::from_millis(50);
/// How often, while a frame waits for its pieces.
const PIECES_EVERY: Duration = Duration::from_millis(5);
/// When a socket that had no room is tried again.
const BLOCKED_FOR: Duration = Duration::from_micros(200);
/// Sends of one connection in one go, before others have their turn.
const SENDS_MAX: usize = 64;
/// Events that nobody has taken; the oldest go.
const EVENTS_MAX: usize = 4096;

/// Why a connection is closed, for the other side's log.
const CLOSED: VarInt = VarInt::from_u32(0);
const UNKNOWN: VarInt = VarInt::from_u32(1);
const REPLACED: VarInt = VarInt::from_u32(2);

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

/// All data connections of a host. See the module's documentation.
pub struct Tunnels {
    settings: Settings,
    identity: IdentityHandle,
    clock: Clock,
    quic: Quic,
    sockets: Vec<Socket>,
    locals: Vec<SocketAddr>,
    conns: Vec<Option<Box<Conn>>>,
    free: Vec<usize>,
    peers: Vec<Option<Peer>>,
    /// Connections that have something to send or to say.
    dirty: Vec<usize>,
    batch: Batch,
    /// Where packets are written to.
    scratch: Vec<u8>,
    /// The socket that is read first, next time.
    first: usize,
    beat_at: Instant,
    /// The earliest of all timers; it may have been postponed since.
    wake_at: Instant,
    events: VecDeque<Event>,
    refusals: Refusals,
    /// Loses what arrives at a socket, if it says so.
    #[cfg(test)]
    filter: Option<Filter>,
}

#[cfg(test)]
type Filter = Box<dyn FnMut(usize, &[u8]) -> bool + Send>;

impl Tunnels {
    /// Opens the sockets.
    pub fn new(now: Instant, settings: Settings, identity: IdentityHandle) -> Result<Self, OpenError> {
        settings.check()?;
        let quic = Quic::new(&settings, &identity)?;
        let open = |address: &SocketAddr| Socket::open(*address, &settings, &quic);
        let sockets = settings.listen.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            locals: sockets.iter().map(|socket| socket.local).collect(),
            clock: Clock::new(now),
            identity,
            quic,
            sockets,
            conns: Vec::new(),
            free: Vec::new(),
            peers: Vec::new(),
            dirty: Vec::new(),
            batch: Batch::new(),
            scratch: Vec::new(),
            first: 0,
            beat_at: now,
            wake_at: now,
            events: VecDeque::new(),
            refusals: Refusals::default(),
            #[cfg(test)]
            filter: None,
            settings,
        })
    }

    /// What to wait for: readable means [`Tunnels::receive`]. They stay the same.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(|socket| socket.io.as_fd())
    }

    /// Where the sockets are: with the port that the system chose, if it was to choose.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.locals.iter().copied()
    }

    /// A peer, and where its tunnels are. What did not change is not touched.
    pub fn set_peer(&mut self, now: Instant, peer: PeerIx, host: HostId, addresses: &[SocketAddr]) {
        self.clock.look(now);
        if self.peer(peer).is_some_and(|old| old.host != host) {
            self.remove_peer(now, peer);
        }
        let at = usize::from(peer.0);
        if self.peers.len() <= at {
            self.peers.resize_with(at + 1, || None);
        }
        let here = self.identity.host();
        let entry = self.peers[at].get_or_insert_with(|| Peer::new(peer, here, host));
        let gone = entry.place(self.clock.now(), &self.locals, addresses, self.settings.connections);
        self.end(peer, gone, "its address is gone");
        self.look_at(peer);
        self.wake_at = self.clock.now();
    }

    /// The peer is gone: its connections are closed.
    pub fn remove_peer(&mut self, now: Instant, peer: PeerIx) {
        self.clock.look(now);
        let Some(old) = self.peers.get_mut(usize::from(peer.0)).and_then(Option::take) else { return };
        self.end(peer, old.lanes, "the host was removed");
    }

    /// Whether a frame to this peer would find a connection.
    pub fn is_up(&self, peer: PeerIx) -> bool {
        self.peer(peer).is_some_and(|peer| peer.works.contains(&true))
    }

    /// Takes up to about `budget` datagrams from the sockets and hands on the frames in them. True if there may be more.
    pub fn receive(
        &mut self,
        now: Instant,
        budget: usize,
        deliver: &mut dyn FnMut(PeerIx, Arrived<'_>),
    ) -> bool {
        self.clock.look(now);
        let mut taken = 0;
        let count = self.sockets.len();
        let mut more = false;
        for turn in 0..count {
            let at = (self.first + turn) % count;
            loop {
                if taken >= budget {
                    more = true;
                    break;
                }
                match self.receive_batch(at, deliver) {
                    0 => break,
                    datagrams => taken += datagrams,
                }
            }
        }
        self.first = (self.first + 1) % count;
        more
    }

    /// Puts a frame into a connection's next datagram; it leaves with [`Tunnels::flush`], at the latest. False if it was
    /// dropped: that is counted here.
    pub fn send<S: Source + ?Sized>(
        &mut self,
        now: Instant,
        to: PeerIx,
        meta: &Meta,
        flow: FlowKey,
        frame: &S,
    ) -> bool {
        self.clock.look(now);
        let Some(peer) = self.peers.get(usize::from(to.0)).and_then(Option::as_ref) else { return false };
        let lane = pin(self.settings.hash, flow.hash, &peer.works);
        let Some(at) = lane.and_then(|lane| peer.lanes[lane].live) else {
            self.count(to, |stats| stats.no_path += 1);
            return false;
        };
        if self.conns[at].as_ref().is_some_and(|conn| !conn.is_direct() && !conn.is_waiting()) {
            // Nobody need wait if the path takes more.
            self.drive(at);
        }
        let Some(conn) = self.conns[at].as_mut() else { return false };
        let mut tally = Tally::default();
        let taken = if conn.is_direct() {
            conn.push(meta, frame, &mut tally)
        } else {
            conn.keep(meta, flow.source, frame, &mut tally)
        };
        let ripe = conn.is_ripe();
        self.tally(to, tally);
        if ripe {
            self.drive(at);
        } else {
            self.mark(at);
        }
        taken
    }

    /// Sends what there is to send: once a turn of the worker, after receiving and sending.
    pub fn flush(&mut self, now: Instant) {
        self.clock.look(now);
        for socket in &mut self.sockets {
            socket.retry();
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        for at in dirty.drain(..) {
            if let Some(conn) = &mut self.conns[at] {
                conn.dirty = false;
                self.drive(at);
            }
        }
        // Who had too much for one go is marked again by now.
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
    }

    /// Time has passed: timers, heartbeats, and frames of which a piece was lost. Then call [`Tunnels::flush`].
    pub fn handle_time(&mut self, now: Instant, deliver: &mut dyn FnMut(PeerIx, Arrived<'_>)) {
        self.clock.look(now);
        let (now, quic_now) = (self.clock.now(), self.clock.quic());
        if now < self.wake_at {
            return;
        }
        let beat = now >= self.beat_at;
        if beat {
            self.beat_at = now + BEAT_EVERY;
        }
        for at in 0..self.conns.len() {
            let Some(conn) = &mut self.conns[at] else { continue };
            if conn.due.is_some_and(|due| due <= quic_now) {
                conn.quic.handle_timeout(quic_now);
                self.mark(at);
            }
            let Some(conn) = &mut self.conns[at] else { continue };
            if conn.unpacker.is_waiting()
                && let Some(peer) = conn.peer
            {
                let mut volume = Volume::default();
                conn.unpacker.handle_time(now, |frame| {
                    volume.add(frame.bytes.len());
                    deliver(peer, frame);
                });
                self.count(peer, |stats| stats.frames_in.add_all(volume));
            }
            if beat {
                self.beat(at);
            }
        }
        if beat {
            self.dial_all();
        }
        self.wake_at = self.next_timer();
    }

    /// When [`Tunnels::handle_time`], and then [`Tunnels::flush`], are next to be called, at the latest. `None` as long as
    /// there are no peers.
    pub fn next_at(&self) -> Option<Instant> {
        if self.peers.iter().all(Option::is_none) && self.conns.iter().all(Option::is_none) {
            return None;
        }
        let at = if self.dirty.is_empty() { self.wake_at } else { self.clock.now() };
        Some(self.clock.of_worker(at))
    }

    /// What happened, one by one.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// How everything is.
    pub fn stats(&self) -> Stats {
        let connection = |at: usize, up: bool| {
            let conn = self.conns[at].as_ref()?;
            let all = conn.quic.stats();
            Some(ConnectionStats {
                path: Path { local: self.locals[conn.socket], remote: conn.remote },
                slot: conn.slot,
                up,
                payload: all.path.current_mtu,
                round_trip: all.path.rtt,
                window: all.path.cwnd,
                sent: Volume { count: all.udp_tx.datagrams, bytes: all.udp_tx.bytes },
                received: Volume { count: all.udp_rx.datagrams, bytes: all.udp_rx.bytes },
                lost: all.path.lost_packets,
                incomplete: conn.unpacker.given_up(),
            })
        };
        let peer = |peer: &Peer| {
            let connections = peer.lanes.iter().filter_map(|lane| connection(lane.live?, lane.up)).collect();
            PeerStats { connections, ..peer.stats.clone() }
        };
        let socket = |socket: &Socket| SocketStats {
            local: socket.local,
            foreign: socket.foreign,
            refused: socket.refused,
            send_errors: socket.send_errors,
        };
        Stats {
            peers: self.peers.iter().flatten().map(peer).collect(),
            sockets: self.sockets.iter().map(socket).collect(),
        }
    }
}
