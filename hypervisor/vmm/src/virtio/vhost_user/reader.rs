//! Reads a disk before the guest does: one request after the other on one ring, over the same connection as a device's.
//!
//! ```text
//!   open ──► connected ──► read ──► … ──► dropped: the ring is stopped, the socket closed
//!     ▲          │ the back end has gone, or restarts
//!     └──────────┘ dialled again for a while; the read is done again, which changes nothing
//! ```
//!
//! The ring and the buffer are in memory of its own, [`MEMORY_BYTES`] of it, so that a disk costs the same whatever its
//! size, and the guest's memory is not known to the back end before the guest runs. A back end serves one front end at a
//! time: the reader has to be gone before the disk's device connects.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferro_vhost::frontend::{DriverRing, FrontendError, GuestRam, RingDescriptor};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::connection::{Connection, InFlight};
use super::{Role, VhostUserError};
use crate::events::borrow;
use crate::outside::BackEnd;
use crate::virtio::{Active, ActiveQueue, VERSION_1};

/// Bytes that one request reads at most.
pub const READ_BYTES_MAX: usize = 256 << 10;
/// A disk's smallest unit, and what a request's place is counted in (virtio 1.2, 5.2.6).
const SECTOR_BYTES: u64 = 512;
/// A back end that takes longer for one read is given up.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Between two attempts to connect.
const DIAL_EVERY: Duration = Duration::from_millis(100);
/// So often a back end may go away during one read.
const ATTEMPTS_MAX: u32 = 5;
/// Descriptors of the ring; a request takes three.
const RING_SIZE: u16 = 4;
/// Ring, header and status, data.
const HEADER_AT: GuestAddress = GuestAddress(16 << 10);
const STATUS_AT: GuestAddress = GuestAddress(HEADER_AT.0 + 64);
const DATA_AT: GuestAddress = GuestAddress(HEADER_AT.0 + 4096);
const MEMORY_BYTES: u64 = DATA_AT.0 + READ_BYTES_MAX as u64;
/// `VIRTIO_BLK_T_IN`.
const READ: u32 = 0;
/// No status that a back end writes.
const NO_STATUS: u8 = 0xff;
/// The back end's limit on a request's piece: offered by this feature, found here in the configuration.
const SIZE_MAX_FEATURE: u64 = 1 << 1;
const SIZE_MAX_AT: usize = 8;

/// Why a disk can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Nobody serves it.
    #[error(
        "{source} (tried for {} s; a back end that serves another machine does not answer either)",
        .waited.as_secs()
    )]
    Connect {
        /// How long it was tried.
        waited: Duration,
        /// What happened last.
        source: VhostUserError,
    },
    /// The back end comes and goes.
    #[error("{path}: the back end went away {ATTEMPTS_MAX} times while its disk was read: see its log")]
    Gone {
        /// The socket.
        path: PathBuf,
    },
    /// The back end says nothing.
    #[error(
        "{path}: no answer within {} s to a read of {bytes} bytes at byte {offset}: see the back end's log",
        ANSWER_MAX.as_secs()
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// From the disk's beginning.
        offset: u64,
        /// How many.
        bytes: usize,
    },
    /// The back end can't read.
    #[error(
        "{path}: reading {bytes} bytes at byte {offset} failed with status {status}: see the back end's log"
    )]
    Failed {
        /// The socket.
        path: PathBuf,
        /// From the disk's beginning.
        offset: u64,
        /// How many.
        bytes: usize,
        /// virtio 1.2, 5.2.6: 1 an error, 2 not supported.
        status: u8,
    },
    /// Another disk is there after a restart.
    #[error("{path}: the disk's size changed while it was read, from {before} to {now} bytes")]
    Changed {
        /// The socket.
        path: PathBuf,
        /// Bytes at first.
        before: u64,
        /// Bytes now.
        now: u64,
    },
    /// A configuration without a size.
    #[error("{path}: the back end does not say how large its disk is")]
    NoSize {
        /// The socket.
        path: PathBuf,
    },
    /// This side.
    #[error("{path}: {source}")]
    Here {
        /// The socket.
        path: PathBuf,
        /// What failed.
        source: FrontendError,
    },
}

/// What one attempt at a read comes to, if not to data.
enum Attempt {
    /// The connection has ended.
    Gone,
    /// For good.
    Failed(ReadError),
}

/// A disk.
#[derive(Debug)]
pub struct BlockReader {
    back_end: BackEnd,
    patience: Duration,
    bytes: u64,
    session: Option<Session>,
}

impl BlockReader {
    /// Connects, and goes on trying for so long if nobody is there.
    pub fn open(back_end: BackEnd, patience: Duration) -> Result<Self, ReadError> {
        let session = dial(&back_end, patience)?;
        Ok(Self { back_end, patience, bytes: session.bytes, session: Some(session) })
    }

    /// The disk's size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fills `buf`, of [`READ_BYTES_MAX`] at most, from byte `offset` on. Both are multiples of 512, and within the disk.
    pub fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        assert!(offset.is_multiple_of(SECTOR_BYTES) && buf.len().is_multiple_of(SECTOR_BYTES as usize));
        assert!(buf.len() <= READ_BYTES_MAX, "a read of {} bytes", buf.len());
        for _ in 0..ATTEMPTS_MAX {
            let session = match &mut self.session {
                Some(session) => session,
                None => self.session.insert(dial(&self.back_end, self.patience)?),
            };
            if session.bytes != self.bytes {
                let (before, now) = (self.bytes, session.bytes);
                return Err(ReadError::Changed { path: self.back_end.path().to_owned(), before, now });
            }
            match session.read(self.back_end.path(), offset, buf) {
                Ok(()) => return Ok(()),
                Err(Attempt::Gone) => self.session = None,
                Err(Attempt::Failed(error)) => return Err(error),
            }
        }
        Err(ReadError::Gone { path: self.back_end.path().to_owned() })
    }
}

fn dial(back_end: &BackEnd, patience: Duration) -> Result<Session, ReadError> {
    let from = Instant::now();
    loop {
        let source = match Session::open(back_end) {
            Ok(session) => return Ok(session),
            Err(ReadError::Connect { source, .. }) => source,
            Err(error) => return Err(error),
        };
        // What a back end has not, it will not have in a moment either.
        let hopeless = !matches!(source, VhostUserError::Connect { .. } | VhostUserError::Talk { .. });
        let waited = from.elapsed();
        if hopeless || waited >= patience {
            return Err(ReadError::Connect { waited, source });
        }
        std::thread::sleep(DIAL_EVERY);
    }
}

/// One connection with its ring.
struct Session {
    connection: Connection,
    memory: GuestRam,
    ring: DriverRing,
    active: Active,
    kick: Arc<EventFd>,
    call: Arc<EventFd>,
    /// The disk's size.
    bytes: u64,
    /// Of one descriptor.
    piece_bytes_max: usize,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Session {
    fn open(back_end: &BackEnd) -> Result<Self, ReadError> {
        let path = back_end.path();
        let connect = |source| ReadError::Connect { waited: Duration::ZERO, source };
        let here = |source| ReadError::Here { path: path.to_owned(), source };
        let role = Role::Block { queues: 1, read_only: false };
        let mut connection = Connection::open(back_end, role).map_err(connect)?;
        let config = connection.config().map_err(connect)?;
        let sectors = config.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let bytes = sectors.and_then(|sectors| sectors.checked_mul(SECTOR_BYTES));
        let bytes = bytes.ok_or_else(|| ReadError::NoSize { path: path.to_owned() })?;
        let piece_bytes_max = match config.get(SIZE_MAX_AT..).and_then(|rest| rest.first_chunk()) {
            Some(most) if connection.features() & SIZE_MAX_FEATURE != 0 => {
                (u32::from_le_bytes(*most) as usize).clamp(SECTOR_BYTES as usize, READ_BYTES_MAX)
            }
            _ => READ_BYTES_MAX,
        };
        let memory = GuestRam::new(MEMORY_BYTES).map_err(here)?;
        let ring = DriverRing::new(memory.mem().clone(), GuestAddress(0), RING_SIZE, false).map_err(here)?;
        let eventfd = || EventFd::new(EFD_NONBLOCK).map(Arc::new).map_err(|error| here(error.into()));
        let (kick, call) = (eventfd()?, eventfd()?);
        let (descriptors, driver, device) = ring.addrs();
        let queue = ActiveQueue {
            index: 0,
            size: RING_SIZE,
            descriptors,
            driver,
            device,
            kick: Arc::clone(&kick),
            call: Some(Arc::clone(&call)),
        };
        let active = Active { features: VERSION_1, queues: vec![queue] };
        connection.start(&active, memory.mem(), &mut InFlight::default(), 1).map_err(connect)?;
        Ok(Self { connection, memory, ring, active, kick, call, bytes, piece_bytes_max })
    }

    fn read(&mut self, path: &Path, offset: u64, buf: &mut [u8]) -> Result<(), Attempt> {
        let piece = self.piece_bytes_max / SECTOR_BYTES as usize * SECTOR_BYTES as usize;
        for (place, piece) in (offset..).step_by(piece).zip(buf.chunks_mut(piece)) {
            self.read_piece(path, place, piece)?;
        }
        Ok(())
    }

    fn read_piece(&mut self, path: &Path, offset: u64, buf: &mut [u8]) -> Result<(), Attempt> {
        let (path, bytes) = (path.to_owned(), buf.len());
        let status = match self.request(offset, bytes as u32) {
            Ok(Some(status)) => status,
            Ok(None) => return Err(Attempt::Failed(ReadError::Silent { path, offset, bytes })),
            Err(None) => return Err(Attempt::Gone),
            Err(Some(source)) => return Err(Attempt::Failed(ReadError::Here { path, source })),
        };
        if status != 0 {
            return Err(Attempt::Failed(ReadError::Failed { path, offset, bytes, status }));
        }
        let copied = self.memory.mem().read_slice(buf, DATA_AT);
        copied.map_err(|error| Attempt::Failed(ReadError::Here { path, source: error.into() }))
    }

    /// The status of a request, or nothing if it has none in time; the error is nothing if the connection has ended.
    fn request(&mut self, offset: u64, bytes: u32) -> Result<Option<u8>, Option<FrontendError>> {
        let mem = self.memory.mem();
        let mut header = [0; 16];
        header[..4].copy_from_slice(&READ.to_le_bytes());
        header[8..].copy_from_slice(&(offset / SECTOR_BYTES).to_le_bytes());
        let memory = |error| Some(FrontendError::Memory(error));
        mem.write_slice(&header, HEADER_AT).map_err(memory)?;
        mem.write_obj(NO_STATUS, STATUS_AT).map_err(memory)?;
        let piece = |addr, len, device_writes| RingDescriptor { addr, len, device_writes };
        let chain = [piece(HEADER_AT, 16, false), piece(DATA_AT, bytes, true), piece(STATUS_AT, 1, true)];
        self.ring.add(&chain, None).map_err(Some)?.ok_or(Some(FrontendError::Full(0)))?;
        self.kick.write(1).map_err(|error| Some(error.into()))?;
        let until = Instant::now() + ANSWER_MAX;
        while self.ring.reap().map_err(Some)?.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.wait(left)?;
        }
        self.memory.mem().read_obj(STATUS_AT).map(Some).map_err(memory)
    }

    /// For a call, or the connection's end.
    fn wait(&self, most: Duration) -> Result<(), Option<FrontendError>> {
        let io = |error: std::io::Error| Some(FrontendError::Io(error));
        let time = Timespec::try_from(most).map_err(|error| io(std::io::Error::other(error)))?;
        let mut waited = [
            PollFd::from_borrowed_fd(borrow(&self.call), PollFlags::IN),
            // Nothing is said without being asked; what comes is the end.
            PollFd::from_borrowed_fd(self.connection.as_fd(), PollFlags::RDHUP | PollFlags::IN),
        ];
        match poll(&mut waited, Some(&time)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io(error.into())),
        }
        let (called, ended) = (!waited[0].revents().is_empty(), !waited[1].revents().is_empty());
        if called {
            // Whoever emptied it before was this thread.
            let _ = self.call.read();
        }
        if ended && !called { Err(None) } else { Ok(()) }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A back end that has gone touches nothing any more; the next front end starts anew in any case.
        if let Err(error) = self.connection.stop(&self.active) {
            tracing::debug!("{error}");
        }
    }
}
