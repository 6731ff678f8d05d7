//! `console`: a terminal and a guest's serial port, joined.
//!
//! ```text
//!             ┌──────────── reset, restart: a new incarnation, or socket ◄──┐
//!             ▼                                                             │
//!   asked ─► joined ── connection ends ─► is the VM there? ─────────────────┘
//!             │                             │ the same of both: somebody else has the console
//!             │ escape key, signal, time    │ off
//!             ▼                             ▼
//!           left: the VM goes on          ended
//! ```
//!
//! Where the standard input is no terminal, all of it is sent and there is no escape key; the output goes on after its end, until
//! the VM ends, whoever reads it goes away, or the time is over.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use ferro_protocol::api::vm::{ConsoleInfo, VmInfo, VmName, VmState};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Context;
use super::args::ConsoleOptions;
use super::escape::EscapeKey;
use super::raw::RawTerminal;
use crate::failure::{Exit, Failure, Result};
use crate::text::printable;

/// Bytes that are moved in one go.
const PIECE: usize = 4096;
/// How often it is looked whether a VM that was reset is there again.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// So long it is waited for a console to come back after its connection ended.
const REATTACH_MAX: Duration = Duration::from_secs(60);

/// Why the guest is no longer listened to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// The escape key, a signal, the end of the time, or the terminal has gone.
    Left,
    /// The other side has closed the connection.
    Closed,
}

pub(super) async fn console(context: &Context, options: ConsoleOptions) -> Result<()> {
    let ConsoleOptions { name, escape, seconds } = options;
    let place = place(context, &name).await?;
    if context.terminal.is_json() {
        // For programs: where it is.
        return context.terminal.json(&place);
    }
    let incarnation = context.vm(&name).await?.status.incarnation;
    let mut at = Place { incarnation, socket: SocketId::of(Path::new(&place.socket)) };
    let mut stream = connect(&name, Path::new(&place.socket)).await?;
    let mut ends = Ends::new()?;
    let quiet = context.terminal.quiet;
    let raw = RawTerminal::enter().map_err(|error| {
        let message = format!("the terminal can't pass every key on: {error}");
        Failure::new(Exit::Failure, "terminal", message, "use another terminal, or pipe the input in")
    })?;
    let told = Told { on: raw.is_some() && !quiet };
    told.say(&if escape.is_some() {
        format!("This is the console of VM {name}; {escape} leaves it.")
    } else {
        format!("This is the console of VM {name}; nothing but its end leaves it.")
    });
    let mut keys = Keys { input: shared(std::io::stdin())?, escape, at_terminal: raw.is_some(), open: true };
    let late = sleep(seconds);
    tokio::pin!(late);
    let ended = loop {
        let (from, to) = stream.into_split();
        let end = tokio::select! {
            end = joined(from, to, &mut keys) => end?,
            () = ends.wait() => End::Left,
            () = &mut late => End::Left,
        };
        if end == End::Left {
            break Ok(format!("Left the console of VM {name}, which goes on."));
        }
        told.say(&format!("The connection to VM {name} has ended."));
        let again = tokio::select! {
            again = reattach(context, &name, at) => again,
            () = ends.wait() => break Ok(format!("Left the console of VM {name}.")),
            () = &mut late => break Ok(format!("Left the console of VM {name}.")),
            () = keys.left(), if keys.at_terminal => break Ok(format!("Left the console of VM {name}.")),
        };
        match again {
            Ok(Some((new, joined_again))) => {
                told.say(&if new.incarnation == at.incarnation {
                    format!("hypervisord was restarted; this is the console of VM {name} again.")
                } else {
                    format!("VM {name} has begun anew.")
                });
                (at, stream) = (new, joined_again);
            }
            Ok(None) => break Ok(format!("VM {name} is off.")),
            Err(failure) => break Err(failure),
        }
    };
    // First the terminal as it was, then words.
    drop(raw);
    ended.map(|text| told.say(&format!("\n{text}")))
}

async fn sleep(seconds: Option<u32>) {
    match seconds {
        Some(seconds) => tokio::time::sleep(Duration::from_secs(u64::from(seconds))).await,
        None => std::future::pending().await,
    }
}

/// What the console is joined with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    incarnation: u64,
    socket: Option<SocketId>,
}

/// One of the sockets that have lain at a path: its inode, and when it was made. A `hypervisord` that has the console of a VM in its
/// hands, as QEMU's, makes it anew when it is restarted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct SocketId {
    inode: u64,
    made_s: i64,
    made_ns: i64,
}

impl SocketId {
    /// `None` if there is none.
    fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        Some(Self { inode: found.ino(), made_s: found.mtime(), made_ns: found.mtime_nsec() })
    }
}

/// Words beside the guest's output. A raw terminal does not go to the beginning of the line by itself.
struct Told {
    on: bool,
}

impl Told {
    fn say(&self, text: &str) {
        if self.on {
            let lines: Vec<String> = text.split('\n').map(printable).collect();
            eprint!("{}\r\n", lines.join("\r\n"));
        }
    }
}

async fn place(context: &Context, name: &VmName) -> Result<ConsoleInfo> {
    context.client.get(&format!("/v1/vms/{name}/console")).await
}

async fn connect(name: &VmName, socket: &Path) -> Result<UnixStream> {
    UnixStream::connect(socket).await.map_err(|error| {
        let message =
            format!("the console of VM {name} can't be reached on its socket {}: {error}", socket.display());
        let next = match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                "run it as root or as a member of the socket's group".to_owned()
            }
            _ => format!("look with `vmctl show {name}` whether it still runs, and try again"),
        };
        Failure::new(Exit::Failure, "console", message, next)
    })
}

/// The VM's next machine, once there is one, or the same at a new socket; `None` if it is off.
async fn reattach(context: &Context, name: &VmName, was: Place) -> Result<Option<(Place, UnixStream)>> {
    let end = tokio::time::Instant::now() + REATTACH_MAX;
    let mut unchanged = 0;
    loop {
        let now: Result<VmInfo> = context.vm(name).await;
        match now {
            Ok(vm) => {
                let status = &vm.status;
                if !status.state.is_active() {
                    return Ok(None);
                }
                if !vm.here {
                    return Err(elsewhere(&vm));
                }
                // What is refused here is seen at the next look at the VM.
                if matches!(status.state, VmState::Running | VmState::Paused)
                    && let Ok(ConsoleInfo { socket, .. }) = place(context, name).await
                {
                    let path = Path::new(&socket);
                    let now = Place { incarnation: status.incarnation, socket: SocketId::of(path) };
                    if now == was {
                        // The daemon may not have seen yet that the machine has ended.
                        unchanged += 1;
                    } else if let Ok(stream) = UnixStream::connect(path).await {
                        return Ok(Some((now, stream)));
                    }
                    if unchanged > 10 && status.state == VmState::Running {
                        return Err(taken(name));
                    }
                }
            }
            // The daemon may be restarted meanwhile.
            Err(failure) if failure.exit == Exit::Unreachable => {}
            Err(failure) => return Err(failure),
        }
        if tokio::time::Instant::now() >= end {
            let message =
                format!("the console of VM {name} did not come back within {} s", REATTACH_MAX.as_secs());
            let next = format!("see `vmctl show {name}`");
            return Err(Failure::new(Exit::TimedOut, "timed_out", message, next));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn taken(name: &VmName) -> Failure {
    let message = format!("somebody else has taken over the console of VM {name}");
    Failure::new(Exit::Conflict, "console_taken", message, format!("`vmctl console {name}` takes it back"))
}

fn elsewhere(vm: &VmInfo) -> Failure {
    let host = super::machine::host_name(vm);
    let message = format!("VM {} has gone to host {host}", vm.name);
    Failure::new(Exit::Conflict, "vm_elsewhere", message, format!("run `vmctl console {}` there", vm.name))
}

/// One of this process's own files, read and written without holding up the rest.
fn shared(file: impl AsFd) -> Result<tokio::fs::File> {
    let own = file.as_fd().try_clone_to_owned().map_err(|error| {
        let message = format!("the input or output can't be used: {error}");
        Failure::new(Exit::Failure, "internal", message, "check the limits of this session (`ulimit -n`)")
    })?;
    Ok(tokio::fs::File::from_std(own.into()))
}

/// What is typed or piped in.
struct Keys<I> {
    input: I,
    escape: EscapeKey,
    at_terminal: bool,
    /// Nothing more comes once it is closed.
    open: bool,
}

impl<I: AsyncRead + Unpin> Keys<I> {
    /// The next that is for the guest; `None` if the console is to be left, with what came before in `rest`.
    async fn next(&mut self, rest: &mut Vec<u8>) -> Result<Option<()>> {
        let mut buffer = [0; PIECE];
        rest.clear();
        let count = self.input.read(&mut buffer).await.map_err(|error| {
            Failure::new(
                Exit::Failure,
                "input",
                format!("reading the input: {error}"),
                "check where it comes from",
            )
        })?;
        let typed = &buffer[..count];
        self.open = count > 0;
        let key = if self.at_terminal { self.escape.position(typed) } else { None };
        rest.extend_from_slice(&typed[..key.unwrap_or(count)]);
        // A terminal that ends has gone.
        let left = key.is_some() || (count == 0 && self.at_terminal);
        Ok((!left).then_some(()))
    }

    /// Waits for the escape key; what else is typed has no guest to go to.
    async fn left(&mut self) {
        let mut rest = Vec::new();
        while let Ok(Some(())) = self.next(&mut rest).await {}
    }
}

/// Moves bytes both ways until one side ends it.
async fn joined<I: AsyncRead + Unpin>(
    from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    keys: &mut Keys<I>,
) -> Result<End> {
    let printed = print(from, shared(std::io::stdout())?);
    let typed = typing(&mut to, keys);
    tokio::pin!(printed);
    tokio::pin!(typed);
    tokio::select! {
        end = &mut printed => end,
        end = &mut typed => end,
    }
}

async fn typing<I: AsyncRead + Unpin>(to: &mut (impl AsyncWrite + Unpin), keys: &mut Keys<I>) -> Result<End> {
    let mut rest = Vec::new();
    while keys.open {
        let goes_on = keys.next(&mut rest).await?;
        // A connection that has ended shows at the other direction, with all that came before.
        if to.write_all(&rest).await.is_err() {
            return std::future::pending().await;
        }
        if goes_on.is_none() {
            return Ok(End::Left);
        }
    }
    // All is sent; what the guest makes of it is still to come.
    std::future::pending().await
}

async fn print(mut from: impl AsyncRead + Unpin, mut out: impl AsyncWrite + Unpin) -> Result<End> {
    let mut buffer = [0; PIECE];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return Ok(End::Closed),
            Ok(count) => {
                let written = async {
                    out.write_all(&buffer[..count]).await?;
                    out.flush().await
                };
                written.await.map_err(|error| Failure::output(&error))?;
            }
        }
    }
}

/// What ends it from outside. A raw terminal makes no signals of keys, so these come from elsewhere, or from a plain terminal
/// when the input is piped in.
struct Ends([Signal; 4]);

impl Ends {
    fn new() -> Result<Self> {
        let one = |kind| {
            signal(kind).map_err(|error| {
                let message = format!("signals can't be taken: {error}");
                Failure::new(Exit::Failure, "internal", message, "this is worth a bug report")
            })
        };
        Ok(Self([
            one(SignalKind::interrupt())?,
            one(SignalKind::terminate())?,
            one(SignalKind::hangup())?,
            one(SignalKind::quit())?,
        ]))
    }

    async fn wait(&mut self) {
        let [interrupt, terminate, hangup, quit] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = quit.recv() => {}
        }
    }
}
