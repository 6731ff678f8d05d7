//! One data connection.

use std::net::SocketAddr;

use super::congestion::acknowledged;
use super::stats::Volume;
use bytes::Bytes;
use ferro_protocol::time::Instant;
use quinn_proto::{Connection, ConnectionHandle, SendDatagramError};
use vswitch_core::bugs::Bugs;
use vswitch_core::table::PeerIx;
use vswitch_core::tunnel::{Beat, FairQueue, Heart, Meta, Packer, Source, Unpacker};

/// Packed frames go to QUIC in pieces of about so many bytes.
const BATCH_BYTES: usize = 64 << 10;
/// And QUIC's go to the socket when they are so many: what was packed is encrypted while it is still in the core's own cache.
/// With a few sends' worth, the short one at the end does not matter.
const DRIVE_BYTES: usize = 256 << 10;
/// While QUIC holds less than this, frames go to it at once. From here on they wait in lines of their sources, for what is in
/// QUIC's queue is served as it came.
const DIRECT_BYTES: usize = DRIVE_BYTES;
/// And QUIC is given of them when it holds less than this: two sends, so that the path never waits.
const FILL_BYTES: usize = 128 << 10;
/// What QUIC must have room for: the above, a frame on top, and what it counts for each datagram besides.
pub(super) const QUIC_BYTES: usize = 2 * DIRECT_BYTES;

/// What became of frames.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Tally {
    /// Packed.
    pub(super) sent: Volume,
    /// No tunnel carries them.
    pub(super) unsendable: u64,
    /// There was no room for them, or for their datagrams.
    pub(super) dropped: u64,
}

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
    /// What QUIC took when nothing waited, and what it holds.
    room_max: usize,
    in_quic: usize,
    /// Frames that have to wait.
    waiting: FairQueue,
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
        queue_bytes: usize,
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
            room_max: 0,
            in_quic: 0,
            waiting: FairQueue::new(queue_bytes.saturating_sub(DIRECT_BYTES).max(DIRECT_BYTES)),
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
        self.look();
        if let Some(max) = self.quic.datagrams().max_size() {
            self.packer.set_datagram_max(max);
        }
    }

    /// How much QUIC holds.
    fn look(&mut self) {
        let room = self.quic.datagrams().send_buffer_space();
        self.room_max = self.room_max.max(room);
        self.in_quic = self.room_max - room;
    }

    /// Whether a frame may go to QUIC at once.
    pub(super) fn is_direct(&self) -> bool {
        self.waiting.is_empty() && self.in_quic + self.bytes.len() < DIRECT_BYTES
    }

    /// Whether frames wait.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Keeps a frame until its source's turn. False: there is no room for it.
    pub(super) fn keep<S: Source + ?Sized>(
        &mut self,
        meta: &Meta,
        source: u16,
        frame: &S,
        tally: &mut Tally,
    ) -> bool {
        let kept = self.waiting.offer(source, meta, frame, &mut tally.dropped);
        tally.dropped += u64::from(!kept);
        kept
    }

    /// Packs a frame. False if no tunnel carries it.
    pub(super) fn push<S: Source + ?Sized>(&mut self, meta: &Meta, frame: &S, tally: &mut Tally) -> bool {
        if self.bytes.capacity() == 0 {
            self.bytes.reserve(BATCH_BYTES + BATCH_BYTES / 4);
        }
        let before = self.bytes.len();
        let packed = self.packer.push(meta, frame, &mut self.bytes, &mut self.ends);
        self.undriven += self.bytes.len() - before;
        if packed {
            tally.sent.add(frame.len());
        } else {
            tally.unsendable += 1;
        }
        if self.bytes.len() >= BATCH_BYTES {
            self.ship(tally);
        }
        packed
    }

    /// Gives QUIC what is packed, and of what waits as much as it needs.
    pub(super) fn fill(&mut self, tally: &mut Tally) {
        if self.is_waiting() {
            self.look();
            while self.in_quic + self.bytes.len() < FILL_BYTES {
                let Some(frame) = self.waiting.pop() else { break };
                self.push(&frame.meta, frame.bytes.as_slice(), tally);
            }
        }
        self.ship(tally);
    }

    /// Whether so much is packed that it should leave before more comes.
    pub(super) fn is_ripe(&self) -> bool {
        self.undriven >= DRIVE_BYTES
    }

    /// Ends the datagram that is being filled, and gives all to QUIC.
    fn ship(&mut self, tally: &mut Tally) {
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
                ) => tally.dropped += 1,
            }
            from = end;
        }
        self.look();
    }
}
