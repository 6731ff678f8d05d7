//! The control socket: one small thread a socket, one front end at a time, again and again.
//!
//! ```text
//!  listen  --accept-----------> Attach --> messages ... --hang-up, error--> Detach --> listen
//!  connect --front end is up-->                                                    --> connect, again and again
//! ```
//!
//! Any message that can't be honoured ends the connection: a front end that sent it can't be trusted to hold the same
//! view of the device as we do, and it reconnects if it wants to. A second front end is turned away at once, rather than
//! left hanging, while one is attached.
//!
//! The thread blocks on the VMM and on the data loop (with a bound), never the other way round.

mod backchannel;
mod extra;
mod session;

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::BackendReqHandler;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use crate::error::SessionError;
use crate::event::{Command, ControlLink, Link, Notifier};
use crate::memory::SealPolicy;

pub(crate) use session::{Session, handle_one};

/// How a front end and we meet.
#[derive(Debug)]
pub enum Rendezvous {
    /// Front ends connect to us.
    Listen(UnixListener),
    /// The front end listens on this path (QEMU's `server=on`, DPDK's `server=1`): connect, and again when it has gone.
    Connect(PathBuf),
}

impl From<UnixListener> for Rendezvous {
    fn from(listener: UnixListener) -> Self {
        Self::Listen(listener)
    }
}

/// Between two attempts to connect to a front end.
const CONNECT_EVERY: Duration = Duration::from_millis(100);

/// How to serve a socket.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// For the log and the thread's name.
    pub name: String,
    /// The device's own feature bits; the transport's are added.
    pub device_features: u64,
    /// Queues of the device.
    pub queues: u16,
    /// Largest ring, a power of two up to [`crate::QUEUE_SIZE_MAX`].
    pub queue_size_max: u16,
    /// How long a stopping ring may take to finish what it has in flight. Then the connection is closed instead, and the
    /// requests stay marked in flight.
    pub drain_timeout: Duration,
    /// How long the data loop may take for anything else.
    pub apply_timeout: Duration,
    /// Guest memory that the VMM could truncate.
    pub seal_policy: SealPolicy,
    /// Protocol features that are offered.
    pub(crate) protocol: Protocol,
}

impl ServerSettings {
    /// Defaults for a socket of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            device_features: 0,
            queues: 1,
            queue_size_max: crate::QUEUE_SIZE_MAX,
            drain_timeout: Duration::from_secs(30),
            apply_timeout: Duration::from_secs(10),
            seal_policy: SealPolicy::Warn,
            protocol: Protocol::MQ
                | Protocol::CONFIG
                | Protocol::INFLIGHT_SHMFD
                | Protocol::REPLY_ACK
                | Protocol::BACKEND_REQ
                | Protocol::CONFIGURE_MEM_SLOTS,
        }
    }
}

/// The configuration space, shared by the device (which changes it, rarely) and the control thread (which shows it).
/// The lock is held for the copying of some hundred bytes, and never while rings are processed.
#[derive(Debug)]
pub struct SharedConfig {
    bytes: Mutex<Vec<u8>>,
    changed: AtomicBool,
    wake: Notifier,
}

impl SharedConfig {
    /// A space with this content.
    pub fn new(bytes: Vec<u8>) -> std::io::Result<Self> {
        Ok(Self { bytes: Mutex::new(bytes), changed: AtomicBool::new(false), wake: Notifier::new()? })
    }

    /// Changes the content and has the front end told.
    pub fn update(&self, bytes: Vec<u8>) {
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
        self.changed.store(true, Ordering::Release);
        self.wake.signal();
    }

    /// A part of it; beyond its end are zeroes, as newer drivers ask for fields that we lack.
    pub(crate) fn read(&self, offset: u32, size: u32) -> Vec<u8> {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.iter().copied().chain(std::iter::repeat(0)).skip(offset as usize).take(size as usize).collect()
    }
}

/// A running control thread. Dropping it stops the thread and closes the connection; the socket's file is the caller's.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    config: Arc<SharedConfig>,
    /// The connection now, to be shut down if the thread should block in it.
    connection: Mutex<Option<UnixStream>>,
}

impl Server {
    pub(crate) fn spawn(
        rendezvous: Rendezvous,
        settings: ServerSettings,
        config: Arc<SharedConfig>,
        link: ControlLink,
    ) -> std::io::Result<Self> {
        if let Rendezvous::Listen(listener) = &rendezvous {
            listener.set_nonblocking(true)?;
        }
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), config, connection: Mutex::new(None) });
        let theirs = Arc::clone(&shared);
        let name: String = format!("vu-{}", settings.name).chars().take(15).collect();
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || Serving { rendezvous, settings, shared: theirs, link: Some(link) }.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Whether the thread still runs; it ends by itself when the data loop drops its device.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Tells the thread to stop and closes the connection, without waiting for it.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.config.wake.signal();
        let connection = self.shared.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = connection.as_ref()
            && let Err(error) = connection.shutdown(std::net::Shutdown::Both)
        {
            tracing::debug!(%error, "connection was already down");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Not joined: the thread may wait for the data loop, which is perhaps who drops us. It ends within its bounds.
        self.stop();
        drop(self.thread.take());
    }
}

struct Serving {
    rendezvous: Rendezvous,
    settings: ServerSettings,
    shared: Arc<Shared>,
    link: Option<ControlLink>,
}

/// What a wait ended with.
#[derive(Default, Clone, Copy)]
struct Ready {
    listener: bool,
    connection: bool,
}

impl Serving {
    fn run(mut self) {
        while !self.stopping() {
            let stream = match self.meet() {
                Ok(Some(stream)) => stream,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!(socket = self.settings.name, %error, "control thread can't wait");
                    return;
                }
            };
            let Some(link) = self.link.take() else { return };
            match self.serve(stream, link) {
                Some(link) => self.link = Some(link),
                // The data loop is gone, so is the device.
                None => return,
            }
            if let Rendezvous::Connect(_) = self.rendezvous {
                // A front end that hangs up at once is not asked as fast as it can hang up.
                if let Err(error) = self.wait(None, Some(CONNECT_EVERY)) {
                    tracing::warn!(socket = self.settings.name, %error, "control thread can't pause");
                }
            }
        }
    }

    /// Waits for the next front end, a while.
    fn meet(&self) -> std::io::Result<Option<UnixStream>> {
        match &self.rendezvous {
            Rendezvous::Listen(_) => {
                let ready = self.wait(None, None)?;
                Ok(if ready.listener { self.accept() } else { None })
            }
            Rendezvous::Connect(path) => match UnixStream::connect(path) {
                Ok(stream) => Ok(Some(stream)),
                Err(error) => {
                    // Nothing to say: front ends come and go.
                    tracing::trace!(socket = self.settings.name, %error, "no front end");
                    self.wait(None, Some(CONNECT_EVERY))?;
                    Ok(None)
                }
            },
        }
    }

    fn stopping(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    fn wait(&self, connection: Option<&UnixStream>, most: Option<Duration>) -> std::io::Result<Ready> {
        let events = PollFlags::IN;
        let wake = self.shared.config.wake.as_fd();
        let listener = match &self.rendezvous {
            Rendezvous::Listen(listener) => Some(listener.as_fd()),
            Rendezvous::Connect(_) => None,
        };
        let mut fds = vec![PollFd::from_borrowed_fd(wake, events)];
        let connection = connection.map(AsFd::as_fd);
        fds.extend(
            [listener, connection].into_iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd, events)),
        );
        let most = most.map(Timespec::try_from).transpose().map_err(std::io::Error::other)?;
        match poll(&mut fds, most.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let mut others = fds[1..].iter().map(|fd| !fd.revents().is_empty());
        let mut next = |there: bool| there && others.next().unwrap_or(false);
        let ready = Ready { listener: next(listener.is_some()), connection: next(connection.is_some()) };
        self.shared.config.wake.drain();
        Ok(ready)
    }

    fn accept(&self) -> Option<UnixStream> {
        let Rendezvous::Listen(listener) = &self.rendezvous else { return None };
        match listener.accept() {
            Ok((stream, _)) => match stream.set_nonblocking(false) {
                Ok(()) => Some(stream),
                Err(error) => {
                    tracing::warn!(socket = self.settings.name, %error, "connection unusable");
                    None
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            Err(error) => {
                tracing::warn!(socket = self.settings.name, %error, "accept failed");
                // Out of descriptors, most likely: don't spin.
                std::thread::sleep(Duration::from_millis(100));
                None
            }
        }
    }

    /// Serves one front end to its end. `None`: the data loop is gone.
    fn serve(&self, stream: UnixStream, link: ControlLink) -> Option<ControlLink> {
        let name = self.settings.name.clone();
        let peer = match (stream.try_clone(), stream.try_clone()) {
            (Ok(peer), Ok(for_stop)) => {
                *self.shared.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(for_stop);
                peer
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(socket = name, %error, "connection can't be cloned");
                return Some(link);
            }
        };
        let session = Session::new(self.settings.clone(), Arc::clone(&self.shared.config), link);
        let session = Arc::new(Mutex::new(session));
        let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&session));
        tracing::info!(socket = name, "front end connected");
        let attached = lock(&session).attach();
        let result = attached.and_then(|()| self.messages(&peer, &session, &mut handler));
        drop(handler);
        *self.shared.connection.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match &result {
            Ok(()) => tracing::info!(socket = name, "front end disconnected"),
            Err(error) => tracing::warn!(socket = name, %error, "front end dropped"),
        }
        // Hang up first: the front end need not wait for the data loop.
        drop(peer);
        let session = Arc::into_inner(session)?.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (mut link, _memory) = session.into_parts();
        // The data loop has to know before the next front end comes, however long it takes.
        loop {
            match link.call(Command::Detach, self.settings.apply_timeout) {
                Ok(_) => return Some(link),
                Err(SessionError::LoopTimeout(waited)) if !self.stopping() => {
                    tracing::error!(socket = name, ?waited, "data loop does not answer");
                }
                Err(_) => return None,
            }
        }
    }

    fn messages(
        &self,
        peer: &UnixStream,
        session: &Arc<Mutex<Session<ControlLink>>>,
        handler: &mut BackendReqHandler<Mutex<Session<ControlLink>>>,
    ) -> Result<(), SessionError> {
        loop {
            let ready = self.wait(Some(peer), None)?;
            if self.stopping() {
                return Ok(());
            }
            if self.shared.config.changed.swap(false, Ordering::AcqRel) {
                lock(session).config_changed();
            }
            if ready.connection && !handle_one(peer, session, handler)? {
                return Ok(());
            }
            if ready.listener && !ready.connection && self.accept().is_some() {
                tracing::warn!(
                    socket = self.settings.name,
                    "a second front end was turned away: one is connected"
                );
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
