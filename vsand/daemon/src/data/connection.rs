//! One data connection: frames over TLS over a non-blocking socket, driven by the data loop.
//!
//! Reading: the socket is read in large pieces, TLS records are opened one by one, and their plaintext goes straight into
//! the buffer of what is being received: head, then header, then a payload that is aligned for the disk.
//! Writing: frames wait until the loop flushes; then a batch of them ([`super::outgoing`]) is sealed together, in as few TLS
//! records as hold it, and leaves in few system calls. What the socket does not take waits for it to be writable, and what is
//! behind that waits unsealed.
//!
//! A connection that breaks, or that carries something which is no frame, is dropped as a whole; both sides then send
//! again what was not answered, over the next one.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::Bytes;
use ferro_protocol::frame::{self, FrameError, HEAD_BYTES, Head, Kind};
use ferro_protocol::ids::{DiskId, HostId};
use ferro_protocol::peer::{Refusal, Reply, Request, RequestId};
use ferro_transport::tls::RawTls;
use rustls::Connection as Tls;
use vsand_core::time::Instant;
use vsand_store::ring::{AlignedBuf, BufPool};

use super::outgoing::Outgoing;
use super::port::ConnectionId;

/// Read from the socket at once.
const READ_BYTES: usize = 256 << 10;
/// Read in one turn, so that one busy peer does not starve the others.
const TURN_BYTES: usize = 4 << 20;
/// Waiting to be sent at most; a peer that takes nothing is dropped before this is reached for long.
const SEND_BYTES_MAX: usize = 256 << 20;
/// An idle connection is asked for a sign of life this often.
const PING_EVERY: Duration = Duration::from_secs(1);
/// A connection without any sign of life for so long is dropped.
const SILENCE_MAX: Duration = Duration::from_secs(4);

/// A whole message.
#[derive(Debug)]
pub(super) enum Message {
    Request { id: RequestId, disk: DiskId, request: Request, payload: Bytes },
    Reply { id: RequestId, reply: Result<Reply, Refusal>, payload: Bytes },
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("the peer closed it")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("a request came where only answers may, or the other way round")]
    WrongDirection,
    #[error("no sign of life for {SILENCE_MAX:?}")]
    Silent,
    #[error("the peer takes no data")]
    Clogged,
    #[error("the peer takes it for an earlier connection than another one of ours")]
    Overtaken,
}

enum Stage {
    Head { buf: [u8; HEAD_BYTES], have: usize },
    Header { head: Head, buf: Vec<u8>, have: usize },
    Payload { head: Head, header: Vec<u8>, buf: AlignedBuf, have: usize },
}

impl Stage {
    const START: Self = Self::Head { buf: [0; HEAD_BYTES], have: 0 };
}

/// One connection.
pub(super) struct Connection {
    pub id: ConnectionId,
    pub host: HostId,
    pub outbound: bool,
    socket: TcpStream,
    tls: Tls,
    stage: Stage,
    input: Vec<u8>,
    outgoing: Outgoing,
    pub writable_asked: bool,
    heard: Instant,
    pinged: Instant,
}

impl Connection {
    pub(super) fn new(now: Instant, id: ConnectionId, host: HostId, outbound: bool, raw: RawTls) -> Self {
        let mut tls = raw.tls;
        // The loop bounds what is under way by the guests' queues; a limit here would cut frames in two.
        tls.set_buffer_limit(None);
        Self {
            id,
            host,
            outbound,
            socket: raw.socket,
            tls,
            stage: Stage::START,
            input: vec![0; READ_BYTES],
            outgoing: Outgoing::default(),
            writable_asked: false,
            heard: now,
            pinged: now,
        }
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Reads what is there; true if there may be more.
    pub(super) fn receive(
        &mut self,
        now: Instant,
        pool: &BufPool,
        out: &mut Vec<Message>,
    ) -> Result<bool, ConnectionError> {
        // The hand-over may have left plaintext behind.
        self.open(pool, out)?;
        let mut total = 0;
        while total < TURN_BYTES {
            let mut input = std::mem::take(&mut self.input);
            let result = self.socket.read(&mut input);
            self.input = input;
            let bytes = match result {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            self.heard = now;
            total += bytes;
            let input = std::mem::take(&mut self.input);
            let result = self.take_in(&input[..bytes], pool, out);
            self.input = input;
            result?;
            if bytes < READ_BYTES {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn take_in(
        &mut self,
        mut input: &[u8],
        pool: &BufPool,
        out: &mut Vec<Message>,
    ) -> Result<(), ConnectionError> {
        while !input.is_empty() {
            self.tls.read_tls(&mut input)?;
            self.tls.process_new_packets()?;
            self.open(pool, out)?;
        }
        Ok(())
    }

    /// Moves plaintext into the message that is being received.
    fn open(&mut self, pool: &BufPool, out: &mut Vec<Message>) -> Result<(), ConnectionError> {
        loop {
            let read = match &mut self.stage {
                Stage::Head { buf, have } => fill(&mut self.tls, buf, have)?,
                Stage::Header { buf, have, .. } => fill(&mut self.tls, buf, have)?,
                Stage::Payload { buf, have, head, .. } => {
                    fill(&mut self.tls, &mut buf[..head.payload_len], have)?
                }
            };
            if !read {
                return Ok(());
            }
            self.stage = match std::mem::replace(&mut self.stage, Stage::START) {
                Stage::Head { buf, .. } => {
                    let head = Head::parse(&buf)?;
                    Stage::Header { buf: vec![0; head.header_len], head, have: 0 }
                }
                Stage::Header { head, buf: header, .. } if head.payload_len == 0 => {
                    self.message(&head, &header, Bytes::new(), out)?;
                    Stage::START
                }
                Stage::Header { head, buf: header, .. } => {
                    let buf = pool.take(head.payload_len);
                    Stage::Payload { head, header, buf, have: 0 }
                }
                Stage::Payload { head, header, buf, .. } => {
                    self.message(&head, &header, buf.freeze(), out)?;
                    Stage::START
                }
            };
        }
    }

    fn message(
        &mut self,
        head: &Head,
        header: &[u8],
        payload: Bytes,
        out: &mut Vec<Message>,
    ) -> Result<(), ConnectionError> {
        match head.kind {
            Kind::Request if !self.outbound => {
                let request = frame::parse_request(header, payload.len())?;
                out.push(Message::Request { id: head.id, disk: head.disk, request, payload });
            }
            Kind::Reply if self.outbound => {
                out.push(Message::Reply { id: head.id, reply: frame::parse_reply(header)?, payload });
            }
            Kind::Request | Kind::Reply => return Err(ConnectionError::WrongDirection),
            Kind::Ping => {
                frame::put_empty(self.outgoing.heads(), Kind::Pong, head.id);
                self.put(&Bytes::new())?;
            }
            Kind::Pong => {}
        }
        Ok(())
    }

    /// Queues a request.
    pub(super) fn send_request(
        &mut self,
        id: RequestId,
        disk: DiskId,
        request: &Request,
        payload: &Bytes,
    ) -> Result<(), ConnectionError> {
        frame::put_request(self.outgoing.heads(), id, disk, request, payload.len());
        self.put(payload)
    }

    /// Queues an answer.
    pub(super) fn send_reply(
        &mut self,
        id: RequestId,
        disk: DiskId,
        reply: &Result<Reply, Refusal>,
        payload: &Bytes,
    ) -> Result<(), ConnectionError> {
        frame::put_reply(self.outgoing.heads(), id, disk, reply, payload.len());
        self.put(payload)
    }

    /// Queues the payload of the frame whose head was just written.
    fn put(&mut self, payload: &Bytes) -> Result<(), ConnectionError> {
        self.outgoing.payload(payload);
        if self.outgoing.bytes() > SEND_BYTES_MAX {
            return Err(ConnectionError::Clogged);
        }
        Ok(())
    }

    /// Seals the next batch of what is queued into TLS records: the fewer records, the less each byte costs.
    fn seal(&mut self) -> Result<(), ConnectionError> {
        let batch = self.outgoing.batch();
        let pieces = batch.pieces();
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        let written = self.tls.writer().write_vectored(&pieces)?;
        drop(pieces);
        self.outgoing.done(batch);
        if written != total {
            return Err(ConnectionError::Clogged);
        }
        Ok(())
    }

    /// Sends a batch of what is queued behind what the socket did not take before; true if there is more, and the socket must
    /// become writable first.
    pub(super) fn flush(&mut self) -> Result<bool, ConnectionError> {
        if self.send_sealed()? {
            return Ok(true);
        }
        if self.outgoing.bytes() == 0 {
            return Ok(false);
        }
        self.seal()?;
        Ok(self.send_sealed()? || self.outgoing.bytes() > 0)
    }

    /// Gives the socket what is sealed; true if it does not take all.
    fn send_sealed(&mut self) -> Result<bool, ConnectionError> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    /// Asks an idle peer for a sign of life; fails if there was none for too long.
    pub(super) fn keep_alive(&mut self, now: Instant) -> Result<(), ConnectionError> {
        let quiet = now.since(self.heard);
        if quiet >= SILENCE_MAX {
            return Err(ConnectionError::Silent);
        }
        if self.outbound && quiet >= PING_EVERY && now.since(self.pinged) >= PING_EVERY {
            self.pinged = now;
            frame::put_empty(self.outgoing.heads(), Kind::Ping, RequestId(0));
            self.put(&Bytes::new())?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("host", &self.host)
            .field("outbound", &self.outbound)
            .finish_non_exhaustive()
    }
}

/// Reads plaintext into `buf`; true when it is full.
fn fill(tls: &mut Tls, buf: &mut [u8], have: &mut usize) -> Result<bool, ConnectionError> {
    while *have < buf.len() {
        match tls.reader().read(&mut buf[*have..]) {
            Ok(0) => return Err(ConnectionError::Closed),
            Ok(bytes) => *have += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}
