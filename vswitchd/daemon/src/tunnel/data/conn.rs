//! One data connection.

use std::net::SocketAddr;

use super::congestion::acknowledged;
use bytes::Bytes;
use ferro_protocol::time::Instant;
use quinn_proto::{Connection, ConnectionHandle, SendDatagramError};
use vswitch_core::bugs::Bugs;
use vswitch_core::table::PeerIx;
use vswitch_core::tunnel::{Beat, Heart, Meta, Packer, Shares, Source, Unpacker};

/// Packed frames go to QUIC in pieces of about so many bytes.
const BATCH_BYTES: usize = 64 << 10;
/// And QUIC's go to the socket when they are so many: what was packed is encrypted while it is still in the core's own cache.
/// With a few sends' worth, the short one at the end does not matter.
const DRIVE_BYTES: usize = 256 << 10;
/// What QUIC keeps for each datagram besides its bytes, at most.
const DATAGRAM_COST: usize = 64;

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Keys and certificates are being exchanged. A dialler stays here until the other side has confirmed that it takes this
    /// host's certificate.
    Handshake,
    /// Frames go both ways.
    Open,
    /// It is over; kept until QUIC has nothing more to say.
    Closed,
}

/// See the module's documentation.
pub(super) struct Conn {
    pub(super) quic: Connection,
    pub(super) handle: ConnectionHandle,
    pub(super) socket: usize,
    pub(super) remote: SocketAddr,
    /// Which of its path's connections.
    pub(super) slot: u8,
    pub(super) dialled: bool,
    /// Whose; of one that was accepted it is known when it is open.
    pub(super) peer: Option<PeerIx>,
    pub(super) stage: Stage,
    pub(super) heart: Heart,
    /// Whether it is to be looked at when the turn ends.
    pub(super) dirty: bool,
    /// The largest UDP payload of the path.
    pub(super) payload: u16,
    pub(super) unpacker: Unpacker,
    packer: Packer,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// What QUIC still takes, and what it took when nothing waited.
    room: usize,
    room_max: usize,
    /// Whose frames wait, here and in QUIC's queue.
    shares: Shares,
    /// Packed since the socket was last given anything.
    undriven: usize,
    /// Packets that were acknowledged so far.
    acked: u64,
    /// Whether there was none since the last heartbeat.
    quiet: bool,
    /// QUIC's next timer.
    pub(super) due: Option<std::time::Instant>,
}

impl Conn {
    pub(super) fn new(
        now: Instant,
        (handle, quic): (ConnectionHandle, Connection),
        socket: usize,
        slot: u8,
        dialled: Option<PeerIx>,
    ) -> Self {
        Self {
            remote: quic.remote_address(),
            handle,
            socket,
            slot,
            dialled: dialled.is_some(),
            peer: dialled,
            stage: Stage::Handshake,
            heart: Heart::new(now),
            dirty: false,
            payload: quic.current_mtu(),
            unpacker: Unpacker::new(Bugs::NONE),
            packer: Packer::new(0),
            bytes: Vec::new(),
            ends: Vec::new(),
            room: 0,
            room_max: 0,
            shares: Shares::default(),
            undriven: 0,
            acked: 0,
            quiet: true,
            due: None,
            quic,
        }
    }

    /// Whether flows may be sent here.
    pub(super) fn is_up(&self) -> bool {
        self.stage == Stage::Open && self.heart.alive()
    }

    /// A heartbeat's time has passed. What the other side acknowledges shows that the path works both ways; a connection on
    /// which nothing was acknowledged of late sends something that will be.
    pub(super) fn beat(&mut self, now: Instant) -> Beat {
        let acked = acknowledged(&self.quic);
        if std::mem::replace(&mut self.acked, acked) != acked {
            self.quiet = false;
            self.heart.handle_heard(now);
        }
        let beat = self.heart.handle_time(now);
        if beat.send && std::mem::replace(&mut self.quiet, true) {
            self.quic.ping();
        }
        beat
    }

    /// Follows what the path carries, and how much QUIC has room for.
    pub(super) fn follow(&mut self) {
        self.undriven = 0;
        self.payload = self.quic.current_mtu();
        let datagrams = self.quic.datagrams();
        self.room = datagrams.send_buffer_space();
        self.room_max = self.room_max.max(self.room);
        self.shares.left(self.room_max - self.room + self.bytes.len());
        if let Some(max) = datagrams.max_size() {
            self.packer.set_datagram_max(max);
        }
    }

    /// Whether there is room for a frame of so many bytes and its headers, and its source may have it.
    pub(super) fn has_room(&self, len: usize, source: u16) -> bool {
        // Each datagram has headers of its own, and a super-frame's headers come twice.
        let datagrams = (self.bytes.len() + len) / usize::from(self.payload.max(1200)) + 2;
        let fits = self.bytes.len() + len + 512 + datagrams * DATAGRAM_COST <= self.room;
        fits && self.shares.admits(source, len, self.room - self.bytes.len())
    }

    /// Packs a frame. False if no tunnel carries it. The number of datagrams that were dropped is added to `dropped`.
    pub(super) fn push<S: Source + ?Sized>(
        &mut self,
        meta: &Meta,
        source: u16,
        frame: &S,
        dropped: &mut u64,
    ) -> bool {
        if self.bytes.capacity() == 0 {
            self.bytes.reserve(BATCH_BYTES + BATCH_BYTES / 4);
        }
        let before = self.bytes.len();
        let packed = self.packer.push(meta, frame, &mut self.bytes, &mut self.ends);
        let grown = self.bytes.len() - before;
        self.undriven += grown;
        self.shares.take(source, grown);
        if self.bytes.len() >= BATCH_BYTES {
            self.ship(dropped);
        }
        packed
    }

    /// Whether so much is packed that it should leave before more comes.
    pub(super) fn is_ripe(&self) -> bool {
        self.undriven >= DRIVE_BYTES
    }

    /// Ends the datagram that is being filled, and gives all to QUIC.
    pub(super) fn ship(&mut self, dropped: &mut u64) {
        self.packer.finish(&self.bytes, &mut self.ends);
        if self.ends.is_empty() {
            return;
        }
        let bytes = Bytes::from(std::mem::take(&mut self.bytes));
        let mut from = 0;
        for end in self.ends.drain(..) {
            match self.quic.datagrams().send(bytes.slice(from..end), false) {
                Ok(()) => {}
                Err(
                    SendDatagramError::Blocked(_)
                    | SendDatagramError::TooLarge
                    | SendDatagramError::UnsupportedByPeer
                    | SendDatagramError::Disabled,
                ) => *dropped += 1,
            }
            from = end;
        }
        self.room = self.quic.datagrams().send_buffer_space();
    }
}
