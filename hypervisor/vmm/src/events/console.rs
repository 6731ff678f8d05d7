//! The other end of the serial port: this process's terminal, or whoever is connected to a socket; and a log.
//!
//! ```text
//!   guest ──► ConsoleOutput ──┬──► log           all of it
//!             (bounded)       ├──► recent        the last 4 KiB, with which a client begins
//!                             └──► backlog ──► client      bounded: what a slow client misses is the oldest
//! ```
//!
//! Input waits here, at most one buffer of it: while the guest does not read, nothing more is taken from the client.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::EventFd;

use super::log::Log;
use crate::config::ConsoleTarget;
use crate::devices::console::{ConsoleOutput, WAITING_MAX};
use crate::devices::serial::SerialPort;

/// Bytes written in one go. A pipe that is writable takes as many without making us wait.
const WRITE_MAX: usize = 4096;
/// Bytes of input that wait for the guest.
const INPUT_MAX: usize = 1024;
/// Bytes that a client gets which were printed before it came.
const RECENT_MAX: usize = 4096;
/// How long the last words may take to be written.
const FINISH_MAX: Duration = Duration::from_millis(500);

#[derive(Debug)]
enum Place {
    Standard { input_open: bool },
    Socket { listener: UnixListener, client: Option<UnixStream> },
    Nowhere,
}

/// The console.
#[derive(Debug)]
pub(crate) struct Console {
    place: Place,
    output: ConsoleOutput,
    log: Option<Log>,
    recent: VecDeque<u8>,
    backlog: VecDeque<u8>,
    input: Vec<u8>,
    drained: Arc<EventFd>,
}

impl Console {
    /// A console at its place; `listener` is the socket, if it is at one. `drained` says when the guest has read what it was
    /// given.
    pub(crate) fn new(
        target: &ConsoleTarget,
        listener: Option<UnixListener>,
        log: Option<Log>,
        output: ConsoleOutput,
        drained: Arc<EventFd>,
    ) -> Self {
        let place = match (target, listener) {
            (ConsoleTarget::Standard, _) => Place::Standard { input_open: true },
            (ConsoleTarget::Socket(_), Some(listener)) => Place::Socket { listener, client: None },
            (ConsoleTarget::Socket(_), None) | (ConsoleTarget::Nowhere, _) => Place::Nowhere,
        };
        let (recent, backlog, input) = Default::default();
        Self { place, output, log, recent, backlog, input, drained }
    }

    /// Adds what it waits for now.
    pub(crate) fn wait_for<'a>(&'a self, waited: &mut Vec<PollFd<'a>>) {
        let printed = !self.backlog.is_empty();
        let accepts = self.input.is_empty();
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, accepts);
        interest.set(PollFlags::OUT, printed);
        match &self.place {
            Place::Standard { input_open } => {
                if *input_open && accepts {
                    waited.push(PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN));
                }
                if printed {
                    waited.push(PollFd::from_borrowed_fd(rustix::stdio::stdout(), PollFlags::OUT));
                }
            }
            Place::Socket { listener, client } => {
                waited.push(PollFd::new(listener, PollFlags::IN));
                if let Some(client) = client {
                    waited.push(PollFd::new(client, interest));
                }
            }
            Place::Nowhere => {}
        }
        waited.push(PollFd::from_borrowed_fd(super::borrow(self.output.filled()), PollFlags::IN));
        waited.push(PollFd::from_borrowed_fd(super::borrow(&self.drained), PollFlags::IN));
    }

    /// Moves what can be moved without waiting.
    pub(crate) fn turn(&mut self, serial: &mut SerialPort) -> std::io::Result<()> {
        // Both only wake: what is there is looked at in any case.
        let _ = self.output.filled().read();
        let _ = self.drained.read();
        self.accept()?;
        self.take_input();
        let taken = serial.receive(&self.input);
        self.input.drain(..taken);
        self.spread();
        self.write_backlog();
        Ok(())
    }

    fn accept(&mut self) -> std::io::Result<()> {
        let Place::Socket { listener, client } = &mut self.place else { return Ok(()) };
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                *client = Some(stream);
                self.backlog = self.recent.clone();
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn take_input(&mut self) {
        if !self.input.is_empty() {
            return;
        }
        let mut buffer = [0u8; INPUT_MAX];
        match &mut self.place {
            Place::Standard { input_open } => {
                if *input_open && readable(rustix::stdio::stdin()) {
                    match std::io::stdin().lock().read(&mut buffer) {
                        Ok(count) if count > 0 => self.input.extend_from_slice(&buffer[..count]),
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        // At its end, or of no use.
                        Ok(_) | Err(_) => *input_open = false,
                    }
                }
            }
            Place::Socket { client, .. } => {
                let Some(stream) = client else { return };
                match stream.read(&mut buffer) {
                    Ok(count) if count > 0 => self.input.extend_from_slice(&buffer[..count]),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                    Ok(_) | Err(_) => {
                        *client = None;
                        self.backlog.clear();
                    }
                }
            }
            Place::Nowhere => {}
        }
    }

    /// Gives what was printed to all who want it.
    fn spread(&mut self) {
        let mut moved = 0;
        loop {
            let bytes = self.output.peek(WRITE_MAX);
            self.output.consume(bytes.len());
            if bytes.is_empty() {
                return;
            }
            if let Some(log) = &mut self.log {
                log.write(&bytes);
            }
            keep_last(&mut self.recent, &bytes, RECENT_MAX);
            let listens = match &self.place {
                Place::Standard { .. } => true,
                Place::Socket { client, .. } => client.is_some(),
                Place::Nowhere => false,
            };
            if listens {
                keep_last(&mut self.backlog, &bytes, WAITING_MAX);
            }
            moved += bytes.len();
            if moved >= WAITING_MAX {
                // A guest that never stops printing: others have their turn too. The queue rings only when it was empty.
                let _ = self.output.filled().write(1);
                return;
            }
        }
    }

    fn write_backlog(&mut self) {
        if self.backlog.is_empty() {
            return;
        }
        let (front, _) = self.backlog.as_slices();
        let bytes = &front[..front.len().min(WRITE_MAX)];
        let written = match &mut self.place {
            Place::Standard { .. } if writable(rustix::stdio::stdout()) => {
                let mut stdout = std::io::stdout().lock();
                // Who closed our output does not want it: the bytes go, the VM stays.
                let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
                bytes.len()
            }
            Place::Socket { client, .. } => match client.as_mut().map(|client| client.write(bytes)) {
                Some(Ok(count)) => count,
                Some(Err(error))
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
                {
                    0
                }
                Some(Err(_)) | None => {
                    *client = None;
                    self.backlog.len()
                }
            },
            Place::Standard { .. } => 0,
            Place::Nowhere => self.backlog.len(),
        };
        self.backlog.drain(..written);
    }

    /// Writes what is left, as far as somebody takes it soon.
    pub(crate) fn finish(&mut self) {
        self.spread();
        let until = Instant::now() + FINISH_MAX;
        while !self.backlog.is_empty() {
            let taker = match &self.place {
                Place::Standard { .. } => rustix::stdio::stdout(),
                Place::Socket { client: Some(client), .. } => client.as_fd(),
                Place::Socket { client: None, .. } | Place::Nowhere => return,
            };
            if !ready(taker, PollFlags::OUT, until.saturating_duration_since(Instant::now())) {
                return;
            }
            self.write_backlog();
        }
    }
}

/// Adds bytes; of more than `most`, the oldest go.
fn keep_last(queue: &mut VecDeque<u8>, bytes: &[u8], most: usize) {
    queue.extend(bytes);
    queue.drain(..queue.len().saturating_sub(most));
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    ready(fd, PollFlags::IN, Duration::ZERO)
}

fn writable(fd: BorrowedFd<'_>) -> bool {
    ready(fd, PollFlags::OUT, Duration::ZERO)
}

fn ready(fd: BorrowedFd<'_>, what: PollFlags, wait: Duration) -> bool {
    let Ok(time) = Timespec::try_from(wait) else { return false };
    matches!(poll(&mut [PollFd::from_borrowed_fd(fd, what)], Some(&time)), Ok(1..))
}
