//! The other end of the serial port: this process's terminal, or whoever is connected to a socket.
//!
//! What the guest prints while nobody listens waits in the queue and greets the next client. Input waits here, at most
//! one buffer of it: while the guest does not read, nothing more is taken from the client.

use std::io::{ErrorKind, IsTerminal, Read, Stdin, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::terminal::Terminal;

use crate::config::ConsoleTarget;
use crate::devices::console::ConsoleOutput;
use crate::devices::serial::SerialPort;

/// Bytes written in one go. A pipe that is writable takes as many without making us wait.
const WRITE_MAX: usize = 4096;
/// Bytes of input that wait for the guest.
const INPUT_MAX: usize = 1024;
/// How long the last words may take to be written.
const FINISH_MS: i64 = 500;
/// The socket is for the service's group.
const SOCKET_MODE: u32 = 0o660;

#[derive(Debug)]
enum Place {
    Standard { terminal: Option<RawTerminal>, input_open: bool },
    Socket { listener: UnixListener, path: PathBuf, client: Option<UnixStream> },
    Nowhere,
}

/// Gives a terminal back as it was.
#[derive(Debug)]
struct RawTerminal(Stdin);

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = self.0.lock().set_canon_mode();
    }
}

/// The console.
#[derive(Debug)]
pub(crate) struct Console {
    place: Place,
    output: ConsoleOutput,
    input: Vec<u8>,
    drained: Arc<EventFd>,
}

impl Console {
    /// Opens the console at its place. `drained` says when the guest has read what it was given.
    pub(crate) fn open(
        target: &ConsoleTarget,
        output: ConsoleOutput,
        drained: Arc<EventFd>,
    ) -> std::io::Result<Self> {
        let place = match target {
            ConsoleTarget::Standard => {
                let stdin = std::io::stdin();
                let terminal = if stdin.is_terminal() {
                    stdin
                        .lock()
                        .set_raw_mode()
                        .map_err(|error| std::io::Error::other(format!("{error:?}")))?;
                    Some(RawTerminal(stdin))
                } else {
                    None
                };
                Place::Standard { terminal, input_open: true }
            }
            ConsoleTarget::Socket(path) => {
                Place::Socket { listener: listen(path)?, path: path.clone(), client: None }
            }
            ConsoleTarget::Nowhere => Place::Nowhere,
        };
        Ok(Self { place, output, input: Vec::new(), drained })
    }

    /// Adds what it waits for now.
    pub(crate) fn wait_for<'a>(&'a self, waited: &mut Vec<PollFd<'a>>) {
        let printed = !self.output.is_empty();
        let accepts = self.input.is_empty();
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, accepts);
        interest.set(PollFlags::OUT, printed);
        match &self.place {
            Place::Standard { input_open, .. } => {
                if *input_open && accepts {
                    waited.push(PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN));
                }
                if printed {
                    waited.push(PollFd::from_borrowed_fd(rustix::stdio::stdout(), PollFlags::OUT));
                }
            }
            Place::Socket { listener, client, .. } => {
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
        self.write_output();
        Ok(())
    }

    fn accept(&mut self) -> std::io::Result<()> {
        let Place::Socket { listener, client, .. } = &mut self.place else { return Ok(()) };
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                *client = Some(stream);
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
            Place::Standard { input_open, .. } => {
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
                    Ok(_) | Err(_) => *client = None,
                }
            }
            Place::Nowhere => {}
        }
    }

    fn write_output(&mut self) {
        let bytes = self.output.peek(WRITE_MAX);
        if bytes.is_empty() {
            return;
        }
        let written = match &mut self.place {
            Place::Standard { .. } if writable(rustix::stdio::stdout()) => {
                let mut stdout = std::io::stdout().lock();
                // Who closed our output does not want it: the bytes go, the VM stays.
                let _ = stdout.write_all(&bytes).and_then(|()| stdout.flush());
                bytes.len()
            }
            Place::Socket { client, .. } => match client.as_mut().map(|client| client.write(&bytes)) {
                Some(Ok(count)) => count,
                Some(Err(error))
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
                {
                    0
                }
                Some(Err(_)) => {
                    *client = None;
                    0
                }
                None => 0,
            },
            Place::Standard { .. } => 0,
            Place::Nowhere => bytes.len(),
        };
        self.output.consume(written);
    }

    /// Writes what is left, as far as somebody takes it soon.
    pub(crate) fn finish(&mut self) {
        while !self.output.is_empty() {
            let taker = match &self.place {
                Place::Standard { .. } => rustix::stdio::stdout(),
                Place::Socket { client: Some(client), .. } => client.as_fd(),
                Place::Socket { client: None, .. } | Place::Nowhere => return,
            };
            if !ready(taker, PollFlags::OUT, FINISH_MS) {
                return;
            }
            self.write_output();
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        match &mut self.place {
            Place::Socket { path, .. } => {
                let _ = std::fs::remove_file(path);
            }
            Place::Standard { terminal, .. } => drop(terminal.take()),
            Place::Nowhere => {}
        }
    }
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    ready(fd, PollFlags::IN, 0)
}

fn writable(fd: BorrowedFd<'_>) -> bool {
    ready(fd, PollFlags::OUT, 0)
}

fn ready(fd: BorrowedFd<'_>, what: PollFlags, wait_ms: i64) -> bool {
    let time = Timespec { tv_sec: 0, tv_nsec: wait_ms * 1_000_000 };
    matches!(poll(&mut [PollFd::from_borrowed_fd(fd, what)], Some(&time)), Ok(1..))
}

/// A socket that another VM listens on is not taken away from it; one that is left over is.
fn listen(path: &Path) -> std::io::Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && UnixStream::connect(path).is_err() => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        result => result?,
    };
    rustix::fs::chmod(path, Mode::from_raw_mode(SOCKET_MODE))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
