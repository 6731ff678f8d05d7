//! A safe `io_uring`, owned by the one thread that waits on it.
//!
//! Whatever an operation needs while the kernel works on it (buffers, iovecs, the file) is owned by the ring until its
//! completion has come, so no caller can free or touch it too early. Requests are never lost: one that finds the
//! submission queue full waits in a backlog that is bounded by what the callers have in flight.
//!
//! It knows nothing of disks, journals or sockets; a [`Token`] says to whom a completion belongs.

mod buf;

pub use buf::{ALIGN, AlignedBuf, BufPool};

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use io_uring::{IoUring, cqueue, opcode, squeue, types};

/// Names an operation for the one who asked: 16 bits say who that is, 48 are its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(u64);

impl Token {
    /// The token `id` (its low 48 bits) of `owner`.
    pub const fn new(owner: u16, id: u64) -> Self {
        Self((owner as u64) << 48 | (id & ((1 << 48) - 1)))
    }

    /// Whose it is.
    pub const fn owner(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Which of its owner's.
    pub const fn id(self) -> u64 {
        self.0 & ((1 << 48) - 1)
    }
}

/// What became of an operation.
#[derive(Debug)]
pub struct Completion {
    /// The token it was asked with.
    pub token: Token,
    /// Bytes read or written, or the events of a poll; or why it failed.
    pub result: io::Result<u32>,
    /// The buffer of a read.
    pub buf: Option<AlignedBuf>,
    /// Whether this poll goes on and more completions with the token follow.
    pub more: bool,
}

/// Names a poll, to end it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PollId {
    slot: u32,
    generation: u32,
}

/// What the kernel may touch while the operation runs, and for that long only.
enum Held {
    Read { buf: AlignedBuf, _file: Arc<File> },
    Write { _bufs: Vec<Bytes>, _iov: Vec<libc::iovec>, _file: Arc<File> },
    Sync { _file: Arc<File> },
    Poll { _fd: Option<OwnedFd> },
}

struct Slot {
    generation: u32,
    held: Option<(Token, Held)>,
}

/// User data of requests whose completion nobody waits for.
const NOBODY: u64 = u64::MAX;

/// The ring. Not `Send`: the kernel lets only the thread that made it submit.
pub struct Ring {
    uring: IoUring,
    slots: Vec<Slot>,
    free: Vec<u32>,
    backlog: VecDeque<squeue::Entry>,
    in_flight: usize,
    /// `*const ()` is neither `Send` nor `Sync`.
    _thread: std::marker::PhantomData<*const ()>,
}

impl Ring {
    /// A ring whose submission queue has this many entries (a power of two) and whose completion queue four times as many.
    pub fn new(entries: u32) -> io::Result<Self> {
        // Deferred task work (Linux 6.1) runs completions only when we wait: no interrupt of the loop in between.
        let best = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(entries * 4)
            .build(entries);
        let uring = match best {
            Ok(uring) => uring,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                IoUring::builder().setup_cqsize(entries * 4).build(entries)?
            }
            Err(error) => return Err(error),
        };
        if !uring.params().is_feature_nodrop() || !uring.params().is_feature_ext_arg() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "io_uring of Linux 5.11 or later is needed",
            ));
        }
        Ok(Self {
            uring,
            slots: Vec::new(),
            free: Vec::new(),
            backlog: VecDeque::new(),
            in_flight: 0,
            _thread: std::marker::PhantomData,
        })
    }

    /// How many operations have not completed, polls included.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn hold(&mut self, token: Token, held: Held) -> u32 {
        self.in_flight += 1;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, held: None });
            (self.slots.len() - 1) as u32
        });
        self.slots[index as usize].held = Some((token, held));
        index
    }

    /// Puts the entry in the queue; what it points to lives in the slot that its user data names.
    fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() {
            self.backlog.push_back(entry);
            return;
        }
        // SAFETY: every pointer in the entry points into heap memory owned by the slot's `Held`, which is dropped only when
        // the completion has been taken; the file descriptor is kept open the same way.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        if pushed.is_err() {
            self.backlog.push_back(entry);
        }
    }

    fn drain_backlog(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            // SAFETY: as in `push`.
            if unsafe { self.uring.submission().push(&entry) }.is_err() {
                self.backlog.push_front(entry);
                return;
            }
        }
    }

    /// Reads `range.len()` bytes at `offset` into that part of `buf`.
    pub fn read(
        &mut self,
        token: Token,
        file: &Arc<File>,
        offset: u64,
        mut buf: AlignedBuf,
        range: Range<usize>,
    ) {
        let fd = types::Fd(file.as_raw_fd());
        let (ptr, len) = {
            let part = &mut buf[range];
            (part.as_mut_ptr(), part.len() as u32)
        };
        let slot = self.hold(token, Held::Read { buf, _file: Arc::clone(file) });
        self.push(opcode::Read::new(fd, ptr, len).offset(offset).build().user_data(u64::from(slot)));
    }

    /// Writes the buffers one behind the other at `offset`. With `dsync` they are on stable storage when it completes.
    pub fn write(&mut self, token: Token, file: &Arc<File>, offset: u64, bufs: Vec<Bytes>, dsync: bool) {
        let fd = types::Fd(file.as_raw_fd());
        let flags = if dsync { libc::RWF_DSYNC } else { 0 };
        if let [buf] = bufs.as_slice() {
            let (ptr, len) = (buf.as_ptr(), buf.len() as u32);
            let slot =
                self.hold(token, Held::Write { _bufs: bufs, _iov: Vec::new(), _file: Arc::clone(file) });
            let entry = opcode::Write::new(fd, ptr, len).offset(offset).rw_flags(flags).build();
            self.push(entry.user_data(u64::from(slot)));
            return;
        }
        let iov: Vec<libc::iovec> = bufs
            .iter()
            .map(|b| libc::iovec { iov_base: b.as_ptr().cast_mut().cast(), iov_len: b.len() })
            .collect();
        let (ptr, len) = (iov.as_ptr(), iov.len() as u32);
        let slot = self.hold(token, Held::Write { _bufs: bufs, _iov: iov, _file: Arc::clone(file) });
        let entry = opcode::Writev::new(fd, ptr, len).offset(offset).rw_flags(flags).build();
        self.push(entry.user_data(u64::from(slot)));
    }

    /// Flushes the file, with `datasync` only what is needed to read its data back.
    pub fn fsync(&mut self, token: Token, file: &Arc<File>, datasync: bool) {
        let fd = types::Fd(file.as_raw_fd());
        let flags = if datasync { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
        let slot = self.hold(token, Held::Sync { _file: Arc::clone(file) });
        self.push(opcode::Fsync::new(fd).flags(flags).build().user_data(u64::from(slot)));
    }

    fn poll_add(&mut self, token: Token, fd: &impl AsFd, events: i16, multishot: bool) -> PollId {
        // The kernel holds the file itself from submission on. Between now and then the caller might close the
        // descriptor, so a duplicate is kept for the operation's life.
        let own = fd.as_fd().try_clone_to_owned().ok();
        let raw = own.as_ref().map_or_else(|| fd.as_fd().as_raw_fd(), AsRawFd::as_raw_fd);
        let slot = self.hold(token, Held::Poll { _fd: own });
        let entry =
            opcode::PollAdd::new(types::Fd(raw), u32::from(events.cast_unsigned())).multi(multishot).build();
        self.push(entry.user_data(u64::from(slot)));
        PollId { slot, generation: self.slots[slot as usize].generation }
    }

    /// Reports when the descriptor is readable or hung up: once, or with `multishot` each time until it is cancelled or
    /// a completion without `more` comes.
    pub fn poll(&mut self, token: Token, fd: &impl AsFd, multishot: bool) -> PollId {
        self.poll_add(token, fd, libc::POLLIN | libc::POLLRDHUP, multishot)
    }

    /// Reports once when the descriptor is writable.
    pub fn poll_writable_once(&mut self, token: Token, fd: &impl AsFd) -> PollId {
        self.poll_add(token, fd, libc::POLLOUT, false)
    }

    /// Ends a poll. Its last completion (an error, `ECANCELED`) still comes; nothing happens if it is over already.
    pub fn cancel_poll(&mut self, poll: PollId) {
        let slot = &self.slots[poll.slot as usize];
        if slot.generation == poll.generation && matches!(slot.held, Some((_, Held::Poll { .. }))) {
            self.push(opcode::PollRemove::new(u64::from(poll.slot)).build().user_data(NOBODY));
        }
    }

    /// Whether something has completed. Makes no system call.
    pub fn has_completions(&mut self) -> bool {
        !self.uring.completion().is_empty()
    }

    /// Whether requests wait for the next [`Ring::submit`] or [`Ring::wait`].
    pub fn has_unsubmitted(&mut self) -> bool {
        !self.backlog.is_empty() || !self.uring.submission().is_empty()
    }

    /// Hands all requests to the kernel without waiting.
    pub fn submit(&mut self) -> io::Result<()> {
        loop {
            self.drain_backlog();
            match self.uring.submitter().submit_and_wait(0) {
                Ok(_) => {}
                // The completion queue is full or memory is short: what is queued stays queued, the caller takes completions.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN)) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            if self.backlog.is_empty() {
                return Ok(());
            }
        }
    }

    /// Hands all requests to the kernel and waits, in one system call, until something has completed or the time is over.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        while !self.backlog.is_empty() {
            let before = self.backlog.len();
            self.submit()?;
            if self.backlog.len() == before {
                break;
            }
        }
        let ready = !self.uring.completion().is_empty();
        if ready && !self.has_unsubmitted() {
            return Ok(());
        }
        let result = match timeout {
            _ if ready => self.uring.submitter().submit_and_wait(0),
            Some(timeout) if timeout.is_zero() => self.uring.submitter().submit_and_wait(0),
            None => self.uring.submitter().submit_and_wait(1),
            Some(timeout) => {
                let spec = types::Timespec::from(timeout);
                self.uring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&spec))
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(e) => match e.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(e),
            },
        }
    }

    /// Appends what has completed, at most so many. Makes no system call.
    pub fn completions(&mut self, max: usize, into: &mut Vec<Completion>) {
        let mut queue = self.uring.completion();
        queue.sync();
        for entry in queue.by_ref().take(max) {
            if entry.user_data() == NOBODY {
                continue;
            }
            let index = entry.user_data() as u32;
            let slot = &mut self.slots[index as usize];
            let more = cqueue::more(entry.flags());
            let result =
                u32::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()));
            if more {
                if let Some((token, _)) = &slot.held {
                    into.push(Completion { token: *token, result, buf: None, more });
                }
                continue;
            }
            // A slot is emptied only here and each request has exactly one completion without `more`.
            let Some((token, held)) = slot.held.take() else { continue };
            slot.generation = slot.generation.wrapping_add(1);
            self.free.push(index);
            self.in_flight -= 1;
            let buf = if let Held::Read { buf, .. } = held { Some(buf) } else { None };
            into.push(Completion { token, result, buf, more });
        }
    }
}

impl Drop for Ring {
    /// The kernel may still write into buffers of operations under way: wait for those, and leak what does not end.
    fn drop(&mut self) {
        for index in 0..self.slots.len() {
            if matches!(self.slots[index].held, Some((_, Held::Poll { .. }))) {
                self.push(opcode::PollRemove::new(index as u64).build().user_data(NOBODY));
            }
        }
        let mut gone = Vec::new();
        for _ in 0..50 {
            if self.in_flight == 0 {
                return;
            }
            if self.wait(Some(Duration::from_millis(100))).is_err() {
                break;
            }
            self.completions(usize::MAX, &mut gone);
            gone.clear();
        }
        if self.in_flight > 0 {
            tracing::error!(in_flight = self.in_flight, "operations did not end: their buffers are leaked");
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn finish(ring: &mut Ring, count: usize) -> Vec<Completion> {
        let mut done = Vec::new();
        while done.len() < count {
            ring.wait(Some(Duration::from_secs(10))).unwrap();
            ring.completions(usize::MAX, &mut done);
        }
        done
    }

    #[test]
    fn writes_and_reads_back_more_than_the_queue_holds() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut ring = Ring::new(8).unwrap();
        for n in 0..100_u64 {
            let bufs = vec![Bytes::from(vec![n as u8; 100]), Bytes::from(vec![n as u8 + 1; 100])];
            ring.write(Token::new(3, n), &file, n * 200, bufs, n % 2 == 0);
        }
        let done = finish(&mut ring, 100);
        assert!(done.iter().all(|c| matches!(c.result, Ok(200)) && c.token.owner() == 3));
        ring.fsync(Token::new(1, 1), &file, true);
        assert!(finish(&mut ring, 1)[0].result.is_ok());
        ring.read(Token::new(4, 9), &file, 99 * 200, AlignedBuf::new(400), 100..300);
        let mut done = finish(&mut ring, 1);
        let completion = done.pop().unwrap();
        assert_eq!(completion.token, Token::new(4, 9));
        let buf = completion.buf.unwrap();
        assert_eq!((buf[99], buf[100], buf[200], buf[299]), (0, 99, 100, 100));
        assert_eq!(ring.in_flight(), 0);
    }

    #[test]
    fn polls_report_again_until_cancelled() {
        let (mut rx, mut tx) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut ring = Ring::new(8).unwrap();
        let id = ring.poll(Token::new(1, 7), &rx, true);
        for _ in 0..3 {
            ring.submit().unwrap();
            tx.write_all(b"x").unwrap();
            let done = finish(&mut ring, 1);
            assert!(done.iter().all(|c| c.more && c.result.is_ok()));
            rx.read_exact(&mut [0]).unwrap();
        }
        ring.cancel_poll(id);
        let mut last = finish(&mut ring, 1);
        while last.last().unwrap().more {
            last = finish(&mut ring, 1);
        }
        assert!(last.last().unwrap().result.is_err());
        ring.cancel_poll(id);
        ring.poll_writable_once(Token::new(1, 8), &tx);
        assert!(!finish(&mut ring, 1)[0].more);
        assert_eq!(ring.in_flight(), 0);
    }

    #[test]
    fn waiting_ends_in_time() {
        let mut ring = Ring::new(8).unwrap();
        ring.wait(Some(Duration::from_millis(5))).unwrap();
        ring.wait(Some(Duration::ZERO)).unwrap();
        let mut none = Vec::new();
        ring.completions(usize::MAX, &mut none);
        assert!(none.is_empty());
    }
}
