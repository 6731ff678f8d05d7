//! The channel between the control thread, which may block on a VMM, and the data loop, which must not.
//!
//! Each command is answered; the control thread has at most one outstanding, waits with a bound, and the data loop
//! neither waits nor allocates to answer. A closed channel means that the other side is gone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use ferro_protocol::net::Mac;
use rustix::event::EventfdFlags;
use vm_memory::GuestAddress;

use crate::QueueIndex;
use crate::error::SessionError;
use crate::inflight::InflightRegion;
use crate::memory::GuestMap;

/// An eventfd, non-blocking, that can be shared.
#[derive(Debug, Clone)]
pub struct Notifier(Arc<OwnedFd>);

impl Notifier {
    /// Makes a new one.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self(Arc::new(Self::eventfd()?)))
    }

    pub(crate) fn eventfd() -> std::io::Result<OwnedFd> {
        Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
    }

    /// Takes a descriptor that a front end sent: it has to be an eventfd and is made non-blocking, so that neither a
    /// read nor a write of it can stop the data loop.
    pub(crate) fn from_peer(fd: OwnedFd, what: &'static str) -> Result<Self, SessionError> {
        use std::os::fd::AsRawFd;
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        if link.as_os_str() != "anon_inode:[eventfd]" {
            return Err(SessionError::NotEventFd(what));
        }
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(std::io::Error::from)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK).map_err(std::io::Error::from)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Adds one. A counter that is full already wakes whoever waits, so that error is none.
    pub fn signal(&self) {
        match rustix::io::write(&*self.0, &1u64.to_ne_bytes()) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => tracing::warn!(%error, "eventfd can't be signalled"),
        }
    }

    /// Takes what was signalled; whether there was anything.
    pub fn drain(&self) -> bool {
        let mut count = [0u8; 8];
        rustix::io::read(&*self.0, &mut count).is_ok_and(|bytes| bytes == 8)
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// All that a ring needs to run.
#[derive(Debug)]
pub(crate) struct RingSetup {
    pub(crate) size: u16,
    pub(crate) table: GuestAddress,
    pub(crate) avail: GuestAddress,
    pub(crate) used: GuestAddress,
    /// Where to go on in the available ring; the in-flight region, if there is one, knows better.
    pub(crate) base: u16,
    pub(crate) kick: Option<Notifier>,
    pub(crate) call: Option<Notifier>,
    pub(crate) err: Option<Notifier>,
    pub(crate) enabled: bool,
    pub(crate) event_idx: bool,
    pub(crate) indirect: bool,
    /// All that the driver acknowledged, the device's own features among them.
    pub(crate) features: u64,
}

/// What the control thread tells the data loop.
#[derive(Debug)]
pub(crate) enum Command {
    /// A front end has connected.
    Attach,
    /// The front end is gone: stop all rings and forget its memory.
    Detach,
    /// The memory table changed.
    SetMemory(Arc<GuestMap>),
    /// The front end gave an in-flight region.
    SetInflight(Arc<InflightRegion>),
    /// Run a ring. Boxed: much larger than the others.
    Start(QueueIndex, Box<RingSetup>),
    /// Take no more from the ring, and answer once all that was taken is done.
    Stop(QueueIndex),
    /// The kick descriptor of a running ring changed.
    SetKick(QueueIndex, Option<Notifier>),
    /// The call descriptor of a running ring changed.
    SetCall(QueueIndex, Option<Notifier>),
    /// The error descriptor of a running ring changed.
    SetErr(QueueIndex, Option<Notifier>),
    /// Enable or disable a running ring.
    Enable(QueueIndex, bool),
    /// The front end asks us to announce its guest's address. Only for network devices.
    Announce(Mac),
    /// The front end has set its guest's MTU. Only for network devices.
    SetMtu(u16),
}

/// The data loop's answer.
#[derive(Debug)]
pub(crate) enum Reply {
    Done,
    /// The ring stopped; the next available index.
    Base(u16),
    Refused(SessionError),
}

/// Where an answer goes. Dropped without an answer, the asker sees that the data loop gave up on it.
#[derive(Debug)]
pub(crate) struct ReplySlot(SyncSender<Reply>);

impl ReplySlot {
    pub(crate) fn send(self, reply: Reply) {
        // The asker may have stopped waiting; its slot has room for one, so this never blocks.
        let _ = self.0.try_send(reply);
    }

    pub(crate) fn new(tx: SyncSender<Reply>) -> Self {
        Self(tx)
    }
}

#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) command: Command,
    pub(crate) reply: ReplySlot,
}

/// Something that carries commands to whoever owns the rings.
pub(crate) trait Link: Send {
    fn call(&mut self, command: Command, timeout: Duration) -> Result<Reply, SessionError>;
}

/// The control thread's end.
#[derive(Debug)]
pub(crate) struct ControlLink {
    tx: SyncSender<Envelope>,
    wake: Notifier,
}

impl Link for ControlLink {
    fn call(&mut self, command: Command, timeout: Duration) -> Result<Reply, SessionError> {
        let (tx, rx) = sync_channel(1);
        match self.tx.try_send(Envelope { command, reply: ReplySlot(tx) }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                // As long as if it had been taken and not answered, or a caller that tries again would spin.
                std::thread::sleep(timeout);
                return Err(SessionError::LoopTimeout(timeout));
            }
            Err(TrySendError::Disconnected(_)) => return Err(SessionError::LoopGone),
        }
        self.wake.signal();
        match rx.recv_timeout(timeout) {
            Ok(Reply::Refused(error)) => Err(error),
            Ok(reply) => Ok(reply),
            Err(RecvTimeoutError::Timeout) => Err(SessionError::LoopTimeout(timeout)),
            Err(RecvTimeoutError::Disconnected) => Err(SessionError::LoopGone),
        }
    }
}

/// The data loop's end.
#[derive(Debug)]
pub struct ControlPort {
    rx: Receiver<Envelope>,
    wake: Notifier,
}

impl ControlPort {
    /// Readable when a command waits.
    pub(crate) fn notifier(&self) -> &Notifier {
        &self.wake
    }

    pub(crate) fn next(&self) -> Option<Envelope> {
        // Nothing waits, or the control thread is gone: nothing to do either way.
        self.rx.try_recv().ok()
    }
}

/// Commands waiting at most: one that is waited for, the others given up after a time-out.
const COMMANDS_MAX: usize = 64;

pub(crate) fn channel() -> std::io::Result<(ControlLink, ControlPort)> {
    let (tx, rx) = sync_channel(COMMANDS_MAX);
    let wake = Notifier::new()?;
    Ok((ControlLink { tx, wake: wake.clone() }, ControlPort { rx, wake }))
}
