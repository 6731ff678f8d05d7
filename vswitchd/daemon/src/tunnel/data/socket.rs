//! One UDP socket and the QUIC endpoint behind it.

use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

use bytes::BytesMut;
use quinn_proto::{ConnectionHandle, Endpoint};
use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSockRef, UdpSocketState};

use super::quic::Quic;
use super::settings::{OpenError, Settings};

/// The longest that a receive with GRO brings, and more than any single datagram.
const RECEIVE_BYTES: usize = 65_536;
/// Receives of one batch. Each brings up to 64 KiB, and all of them should still be in the core's own cache when the last is
/// decrypted.
const RECEIVES_MAX: usize = if BATCH_SIZE < 8 { BATCH_SIZE } else { 8 };
/// The kernel takes no more in one send with GSO, whatever the segments: 64 KiB less the headers.
const TRANSMIT_BYTES_MAX: usize = 65_000;
/// More datagrams in one send make no difference, but longer bursts.
const SEGMENTS_MAX: usize = 64;

/// What a socket refused, to be sent again.
#[derive(Debug)]
struct Blocked {
    destination: SocketAddr,
    ecn: Option<quinn_udp::EcnCodepoint>,
    segment_size: Option<usize>,
    src_ip: Option<IpAddr>,
    bytes: Vec<u8>,
}

/// See the module's documentation.
pub(super) struct Socket {
    pub(super) io: UdpSocket,
    pub(super) local: SocketAddr,
    pub(super) endpoint: Endpoint,
    /// The connection of each of the endpoint's handles.
    by_handle: Vec<Option<usize>>,
    state: UdpSocketState,
    blocked: Option<Blocked>,
    pub(super) foreign: u64,
    pub(super) refused: u64,
    pub(super) send_errors: u64,
}

impl Socket {
    /// Opens it.
    pub(super) fn open(address: SocketAddr, settings: &Settings, quic: &Quic) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Socket { address, source };
        let io = UdpSocket::bind(address).map_err(failed)?;
        let state = UdpSocketState::new(UdpSockRef::from(&io)).map_err(failed)?;
        // As much as the system allows: with less, bursts are lost, and nothing else happens.
        let _less = state.set_recv_buffer_size(UdpSockRef::from(&io), settings.socket_bytes);
        let _less = state.set_send_buffer_size(UdpSockRef::from(&io), settings.socket_bytes);
        let local = io.local_addr().map_err(failed)?;
        let server = Some(Arc::clone(&quic.server));
        let endpoint = Endpoint::new(Arc::clone(&quic.endpoint), server, !state.may_fragment(), None);
        Ok(Self {
            io,
            local,
            endpoint,
            by_handle: Vec::new(),
            state,
            blocked: None,
            foreign: 0,
            refused: 0,
            send_errors: 0,
        })
    }

    /// Says which connection a handle is.
    pub(super) fn set(&mut self, handle: ConnectionHandle, connection: Option<usize>) {
        if self.by_handle.len() <= handle.0 {
            self.by_handle.resize(handle.0 + 1, None);
        }
        self.by_handle[handle.0] = connection;
    }

    /// Which connection a handle is.
    pub(super) fn get(&self, handle: ConnectionHandle) -> Option<usize> {
        self.by_handle.get(handle.0).copied().flatten()
    }

    /// How many datagrams of this size may go in one send.
    pub(super) fn segments_max(&self, payload: u16) -> usize {
        let fit = TRANSMIT_BYTES_MAX / usize::from(payload.max(1));
        self.state.max_gso_segments().min(SEGMENTS_MAX).min(fit).max(1)
    }

    /// Whether something waits to be sent again.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// Tries again what was refused.
    pub(super) fn retry(&mut self) {
        let Some(blocked) = self.blocked.take() else { return };
        let out = quinn_udp::Transmit {
            destination: blocked.destination,
            ecn: blocked.ecn,
            contents: &blocked.bytes,
            segment_size: blocked.segment_size,
            src_ip: blocked.src_ip,
        };
        if self.try_send(&out) {
            self.blocked = Some(blocked);
        }
    }

    /// Sends. What the system has no room for is kept; a caller with more waits until the socket is no longer blocked.
    pub(super) fn send(&mut self, transmit: &quinn_proto::Transmit, bytes: &[u8]) {
        let out = quinn_udp::Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn.and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8)),
            contents: &bytes[..transmit.size],
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        if self.try_send(&out) {
            self.blocked = Some(Blocked {
                destination: out.destination,
                ecn: out.ecn,
                segment_size: out.segment_size,
                src_ip: out.src_ip,
                bytes: out.contents.to_vec(),
            });
        }
    }

    /// True if there was no room.
    fn try_send(&mut self, out: &quinn_udp::Transmit<'_>) -> bool {
        match self.state.try_send(UdpSockRef::from(&self.io), out) {
            Ok(()) => false,
            Err(error) if error.kind() == ErrorKind::WouldBlock => true,
            // Like a datagram lost on the way: QUIC sees to it. Probes that are longer than the interface's MTU end here.
            Err(_) => {
                self.send_errors += 1;
                self.send_one_by_one(out);
                false
            }
        }
    }

    /// Sends the datagrams of a batch that was refused, each for itself. The system refuses a batch as a whole when its
    /// datagrams are longer than the interface's MTU is now; but then the short one at its end must arrive all the same:
    /// only losses that spare what is short tell QUIC that the path carries less than before (RFC 9000, 14.3).
    fn send_one_by_one(&mut self, out: &quinn_udp::Transmit<'_>) {
        let Some(size) = out.segment_size.filter(|size| *size > 0 && *size < out.contents.len()) else {
            return;
        };
        for contents in out.contents.chunks(size) {
            let one = quinn_udp::Transmit {
                destination: out.destination,
                ecn: out.ecn,
                contents,
                segment_size: None,
                src_ip: out.src_ip,
            };
            if self.state.try_send(UdpSockRef::from(&self.io), &one).is_err() {
                self.send_errors += 1;
            }
        }
    }

    /// Takes one batch. The datagrams of each entry lie one behind the other, all `stride` long but the last.
    pub(super) fn receive(&self, into: &mut Batch) -> io::Result<usize> {
        let mut places: Vec<IoSliceMut<'_>> =
            into.bytes.chunks_mut(RECEIVE_BYTES).map(IoSliceMut::new).collect();
        match self.state.recv(UdpSockRef::from(&self.io), &mut places, &mut into.metas) {
            Ok(count) => Ok(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            // An ICMP message about an earlier datagram, say: there may be more behind it.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(0),
            Err(error) => Err(error),
        }
    }
}

/// Room for one batch of datagrams.
pub(super) struct Batch {
    bytes: Vec<u8>,
    metas: Vec<RecvMeta>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; RECEIVE_BYTES * RECEIVES_MAX], metas: vec![RecvMeta::default(); RECEIVES_MAX] }
    }

    /// One entry: what is known of it, and a copy of its bytes, which are decrypted in place.
    pub(super) fn entry(&self, at: usize) -> (RecvMeta, BytesMut) {
        let meta = self.metas[at];
        let from = at * RECEIVE_BYTES;
        (meta, BytesMut::from(&self.bytes[from..from + meta.len]))
    }
}
