//! The one way from a store to its files: every read, write and flush after opening passes [`DiskFiles`], so that a test can
//! record them or let them fail, and so that a running daemon can be made to see a broken disk ([`Fault`]).

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::latency::Histogram;
use crate::meta::MetaOp;
use crate::ring::{AlignedBuf, Ring, Token};
use crate::slab::Slab;

/// A file of the disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FileKind {
    /// The blocks.
    Data,
    /// The write-ahead log.
    Journal,
}

/// A request about to be made.
#[derive(Debug)]
pub enum IoRequest<'a> {
    /// Read.
    Read {
        /// Which file.
        file: FileKind,
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        len: usize,
    },
    /// Write.
    Write {
        /// Which file.
        file: FileKind,
        /// Where, in bytes.
        offset: u64,
        /// What, one behind the other.
        bufs: &'a [Bytes],
        /// Whether it completes only when it is stable.
        dsync: bool,
    },
    /// Flush the file.
    Sync {
        /// Which file.
        file: FileKind,
    },
    /// A synced metadata batch: all or nothing.
    Meta(&'a [MetaOp]),
}

/// What shall become of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is carried out.
    Pass,
    /// It fails with this error number and is not carried out.
    Fail(i32),
    /// It is not carried out and reports this many bytes.
    Short(u32),
    /// It is never answered.
    Hang,
}

/// Sees every request, and may let it fail.
pub trait IoHook: Send {
    /// Request number `id` is about to be made.
    fn issue(&mut self, id: u64, request: &IoRequest<'_>) -> Verdict;
    /// Request number `id` has completed.
    fn done(&mut self, id: u64);
}

/// A disk failure to be played.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fault {
    /// None: the disk works again (what has failed stays failed).
    #[default]
    None,
    /// Reads fail with EIO.
    ReadEio,
    /// Writes and flushes fail with EIO.
    WriteEio,
    /// Nothing is answered any more.
    Hang,
}

impl Fault {
    fn verdict(self, request: &IoRequest<'_>) -> Verdict {
        let read = matches!(request, IoRequest::Read { .. });
        match self {
            Self::ReadEio if read => Verdict::Fail(libc::EIO),
            Self::WriteEio if !read => Verdict::Fail(libc::EIO),
            Self::Hang => Verdict::Hang,
            _ => Verdict::Pass,
        }
    }
}

/// Reads of the disk's files, or writes to them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FileIo {
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// How long each took, from being issued to its completion.
    pub latency: Histogram,
}

/// What the files of a disk were asked for. Metadata, which `RocksDB` keeps, is not counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FileStats {
    /// Reads of data.
    pub read: FileIo,
    /// Writes: of batches to the journal, of data to its place.
    pub write: FileIo,
}

/// What a request under way is counted as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    Read,
    Write,
    Neither,
}

struct Pending<P> {
    purpose: P,
    id: u64,
    direction: Direction,
    issued_ns: u64,
}

/// A completion that no kernel was asked for.
type Synthetic = (u32, io::Result<u32>, Option<AlignedBuf>);

/// The files, and what is under way on them. `P` says what a request is for.
pub(crate) struct DiskFiles<P> {
    owner: u16,
    pub(crate) data: Arc<File>,
    pub(crate) journal: Arc<File>,
    pending: Slab<Pending<P>>,
    next_id: u64,
    hook: Option<Box<dyn IoHook>>,
    fault: Fault,
    synthetic: VecDeque<Synthetic>,
    now_ns: u64,
    stats: FileStats,
}

impl<P> DiskFiles<P> {
    pub(crate) fn new(owner: u16, data: File, journal: File, hook: Option<Box<dyn IoHook>>) -> Self {
        Self {
            owner,
            data: Arc::new(data),
            journal: Arc::new(journal),
            pending: Slab::default(),
            next_id: 0,
            hook,
            fault: Fault::None,
            synthetic: VecDeque::new(),
            now_ns: 0,
            stats: FileStats::default(),
        }
    }

    /// It is so late now.
    pub(crate) fn set_time(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    pub(crate) fn stats(&self) -> FileStats {
        self.stats
    }

    pub(crate) fn set_fault(&mut self, fault: Fault) {
        self.fault = fault;
    }

    fn file(&self, kind: FileKind) -> &Arc<File> {
        match kind {
            FileKind::Data => &self.data,
            FileKind::Journal => &self.journal,
        }
    }

    fn admit(&mut self, purpose: P, request: &IoRequest<'_>) -> (u32, Verdict) {
        self.next_id += 1;
        let mut verdict = self.fault.verdict(request);
        if let Some(hook) = &mut self.hook
            && verdict == Verdict::Pass
        {
            verdict = hook.issue(self.next_id, request);
        }
        let direction = match request {
            IoRequest::Read { .. } => Direction::Read,
            IoRequest::Write { .. } => Direction::Write,
            IoRequest::Sync { .. } | IoRequest::Meta(_) => Direction::Neither,
        };
        let pending = Pending { purpose, id: self.next_id, direction, issued_ns: self.now_ns };
        (self.pending.insert(pending), verdict)
    }

    /// Plays a verdict. Returns whether the request is to be carried out; if not, `buf` is taken.
    fn passes(&mut self, index: u32, verdict: Verdict, buf: &mut Option<AlignedBuf>) -> bool {
        match verdict {
            Verdict::Pass => return true,
            Verdict::Fail(errno) => {
                self.synthetic.push_back((index, Err(io::Error::from_raw_os_error(errno)), buf.take()));
            }
            Verdict::Short(bytes) => self.synthetic.push_back((index, Ok(bytes), buf.take())),
            Verdict::Hang => {}
        }
        false
    }

    pub(crate) fn read(
        &mut self,
        ring: &mut Ring,
        purpose: P,
        offset: u64,
        buf: AlignedBuf,
        range: Range<usize>,
    ) {
        let request = IoRequest::Read { file: FileKind::Data, offset, len: range.len() };
        let (index, verdict) = self.admit(purpose, &request);
        let mut buf = Some(buf);
        if self.passes(index, verdict, &mut buf)
            && let Some(buf) = buf
        {
            ring.read(Token::new(self.owner, u64::from(index)), &self.data, offset, buf, range);
        }
    }

    /// `dsync`: it completes only when it is stable.
    pub(crate) fn write(
        &mut self,
        ring: &mut Ring,
        purpose: P,
        file: FileKind,
        offset: u64,
        bufs: Vec<Bytes>,
        dsync: bool,
    ) {
        let (index, verdict) = self.admit(purpose, &IoRequest::Write { file, offset, bufs: &bufs, dsync });
        if self.passes(index, verdict, &mut None) {
            ring.write(Token::new(self.owner, u64::from(index)), self.file(file), offset, bufs, dsync);
        }
    }

    pub(crate) fn sync(&mut self, ring: &mut Ring, purpose: P, file: FileKind) {
        let (index, verdict) = self.admit(purpose, &IoRequest::Sync { file });
        if self.passes(index, verdict, &mut None) {
            ring.fsync(Token::new(self.owner, u64::from(index)), self.file(file), true);
        }
    }

    /// Admits a metadata batch; the caller carries it out if a token is returned, and reports its end with it.
    pub(crate) fn meta(&mut self, purpose: P, ops: &[MetaOp]) -> Option<Token> {
        let (index, verdict) = self.admit(purpose, &IoRequest::Meta(ops));
        self.passes(index, verdict, &mut None).then(|| Token::new(self.owner, u64::from(index)))
    }

    /// What a completed request was for.
    pub(crate) fn complete(&mut self, token: Token, result: &io::Result<u32>) -> Option<P> {
        self.forget(u32::try_from(token.id()).ok()?, result)
    }

    fn forget(&mut self, index: u32, result: &io::Result<u32>) -> Option<P> {
        let pending = self.pending.remove(index)?;
        let io = match pending.direction {
            Direction::Read => Some(&mut self.stats.read),
            Direction::Write => Some(&mut self.stats.write),
            Direction::Neither => None,
        };
        if let (Some(io), Ok(bytes)) = (io, result) {
            io.bytes += u64::from(*bytes);
            io.latency.add_ns(self.now_ns.saturating_sub(pending.issued_ns));
        }
        if let Some(hook) = &mut self.hook {
            hook.done(pending.id);
        }
        Some(pending.purpose)
    }

    /// The next completion that was made up.
    pub(crate) fn next_synthetic(&mut self) -> Option<(P, io::Result<u32>, Option<AlignedBuf>)> {
        let (index, result, buf) = self.synthetic.pop_front()?;
        Some((self.forget(index, &result)?, result, buf))
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.pending.len()
    }
}
